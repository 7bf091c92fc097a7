"""Hosts chosen and claimed: the selector, rescheduling inside a cell, and groups of instances in the database.

Knows the ledger and the decisions about hosts; must not decide by itself which host is better.
"""
