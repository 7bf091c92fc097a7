"""How cells are reached: connections, breakers, hedged requests, threads, deadlines.

Knows databases and time. Sends text and parameters that others made, and must not know what they mean or what becomes
of the rows.
"""
