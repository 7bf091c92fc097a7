"""The work: attaching, detaching, moving and recovering, step by step from state to state.

Knows the journal, the volume service, hosts and guests, and brings them together under leases. Must not decide what
follows a step (the state table does), nor compare stores with each other (the audit does).
"""
