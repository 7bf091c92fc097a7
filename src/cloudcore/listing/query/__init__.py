"""What is asked: order, filters, cursors, the tables that are listed and the SQL for them.

Knows columns, values and dialects of SQL. Must not know connections, threads, cells, or how answers are merged.
"""
