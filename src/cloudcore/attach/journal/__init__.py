"""The journal of attachments and the leases that serialise work on them: all SQL but the embedded service's own.

Knows the tables and the records that they hold. Must not call a volume service, a host or a guest, nor decide what is
done next; it writes what it is told, if the state table allows it and the lease still holds.
"""
