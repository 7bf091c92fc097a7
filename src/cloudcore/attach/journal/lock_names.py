"""Names of the leases: what one holder at a time may work on. Pure.

Whoever takes several takes an instance's before a volume's, and a volume's before a target's.
"""

from __future__ import annotations

__all__ = ["instance_lock", "target_lock", "volume_lock"]


def instance_lock(instance_id: str) -> str:
    """The lease under which an instance's volumes are moved."""
    return f"instance/{instance_id}"


def volume_lock(volume_id: str) -> str:
    """The lease under which anything is done to a volume's legs."""
    return f"volume/{volume_id}"


def target_lock(host: str, service_uuid: str | None) -> str:
    """The lease under which a host touches a backend whose volumes share targets; one for all that have no name."""
    return f"target/{host}/{service_uuid or '*'}"
