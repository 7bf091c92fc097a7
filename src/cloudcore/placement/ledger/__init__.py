"""The ledger in a database: the statements of claims, moves, reshapes and audits, in lock order.

Knows tables, rows and transactions, and the rules below; must not know why a host was chosen.
"""
