"""One change of a guest's definition at a time, within one adapter."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from cloudcore.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Turns"]


class Turns:
    """Locks by guest, each there for as long as somebody has it or waits for it. May be shared between threads.

    Taken by the thread that makes the call, not by the caller, who may leave before the call comes back. A forked child
    never gets here: the connection refuses what the child of a process that used it asks for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()

    @contextlib.contextmanager
    def take(self, instance_id: str, ends: float) -> Iterator[None]:
        """Have the guest's turn, which must have come by *ends* on the monotonic clock.

        Raises:
            DeadlineExceeded: It has not: another change of the definition hangs. Nothing was done.
        """
        with self._lock:
            turn = self._guests.setdefault(instance_id, threading.Lock())
        if not turn.acquire(timeout=max(ends - time.monotonic(), 0)):
            raise DeadlineExceeded(f"another change of the definition of guest {instance_id} hangs: nothing was done")
        try:
            yield
        finally:
            turn.release()

    def __len__(self) -> int:
        return len(self._guests)
