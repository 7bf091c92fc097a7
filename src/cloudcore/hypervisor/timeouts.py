"""How long to wait for a hypervisor and its guests."""

from __future__ import annotations

import attrs

__all__ = ["Timeouts"]


@attrs.frozen(kw_only=True)
class Timeouts:
    """Deadlines, in seconds.

    Attributes:
        connect: To open a connection, repeated attempts included: as long as a restart of libvirtd may take.
        read: For a call that changes nothing.
        change: For a call that plugs or resizes.
        facts: To read everything about the host.
        detach: How long a guest is waited for before a detach is *pending*.
        paused: The same for a guest that cannot answer because it is paused.
    """

    connect: float = 10.0
    read: float = 15.0
    change: float = 60.0
    facts: float = 60.0
    detach: float = 20.0
    paused: float = 1.0
