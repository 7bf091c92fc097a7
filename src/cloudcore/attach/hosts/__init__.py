"""What happens on a compute host: connections to volumes (plain, by os-brick), and guests that exist in memory.

Knows one host and the connection information of one volume at a time. Must not know the journal, states, nor who else
uses a volume: whether a connection may end is decided above.
"""
