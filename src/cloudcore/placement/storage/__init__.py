"""The forest in a database: reading it, writing an edit, the feed of changes; and reading a running Placement.

Knows tables, statements and transactions; must not decide what an edit means, nor know searches and claims.
"""
