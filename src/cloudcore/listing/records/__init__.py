"""Where records are kept: cloudcore's own tables and Nova's, as sources to list, with their directories and audit.

Knows queries and the connections to one database. Must not know how pages are made.
"""
