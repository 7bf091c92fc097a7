"""How long to wait for a hypervisor and its guests: for each call, and for an operation that is made of many."""

from __future__ import annotations

import contextlib
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Timeouts", "time_left", "time_limit"]

_ends: ContextVar[float] = ContextVar("ends of the operation under way", default=math.inf)


@attrs.frozen(kw_only=True)
class Timeouts:
    """Deadlines, in seconds.

    Attributes:
        connect: To open a connection, repeated attempts included: as long as a restart of libvirtd may take.
        read: For a call that changes nothing.
        change: For a call that plugs or resizes.
        facts: To read everything about the host, or all of its guests.
        detach: How long a guest is waited for before a detach is *pending*.
        paused: The same for a guest that cannot answer because it is paused.
        operation: For a whole attach, detach, look or resize: connecting, every call and its repetition, and waiting
            for the guest. None is the longest of *connect*, *read*, *change* and *detach*, so that no operation
            outlasts the longest wait that is allowed for a part of it.
    """

    connect: float = 10.0
    read: float = 15.0
    change: float = 60.0
    facts: float = 60.0
    detach: float = 20.0
    paused: float = 1.0
    operation: float | None = None

    @property
    def whole(self) -> float:
        """The deadline of an operation."""
        longest = max(self.connect, self.read, self.change, self.detach)
        return longest if self.operation is None else self.operation


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let what is asked meanwhile, in this thread, end after *seconds*; inside another limit, at the earlier end."""
    token = _ends.set(min(_ends.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends.reset(token)


def time_left() -> float:
    """Seconds until the end of the operation under way, 0 after it, infinite when there is no limit."""
    return max(_ends.get() - time.monotonic(), 0.0)
