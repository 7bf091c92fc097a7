"""The rules of the ledger: what a claim changes, which steps a move may take, what an audit finds and how it is mended.

Knows consumers, allocations and moves as values; must not know the database that keeps them. Pure.
"""
