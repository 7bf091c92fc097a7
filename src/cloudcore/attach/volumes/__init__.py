"""Volume services: what a manager asks of one, and the two there are, Cinder and the embedded one.

Knows volumes, a service's own records of who has them, and connection information. Must not know the journal, hosts,
guests, nor in which order a volume is attached: it answers one call at a time.
"""
