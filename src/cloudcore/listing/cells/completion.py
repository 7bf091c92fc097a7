"""Where threads leave what they have done, for the one thread that waits for it."""

from __future__ import annotations

import contextlib
from collections import deque
from threading import Lock
from typing import Generic, Protocol, TypeVar

__all__ = ["CompletionQueue", "Receiver"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Receiver(Protocol[T_contra]):
    """Takes what is done."""

    def put(self, answer: T_contra, /, *, urgent: bool) -> None:
        """Take an answer; *urgent*: somebody should look at once."""


class CompletionQueue(Generic[T]):
    """Where work puts itself when it is done; one thread waits until enough of it is there.

    It is woken once for all rather than for each: by the last, or by what wants to be seen to at once.
    """

    __slots__ = ("_bell", "_completed", "_enough", "_woken")

    def __init__(self) -> None:
        self._completed: deque[T] = deque()
        self._enough = 1
        self._woken = False
        self._bell = Lock()
        self._bell.acquire()

    def put(self, answer: T, *, urgent: bool) -> None:
        """Take an answer, in any thread; an *urgent* one wakes the waiting thread whatever else is missing."""
        self._completed.append(answer)
        if urgent or len(self._completed) >= self._enough:
            self._ring()

    def wake(self) -> None:
        """Let the waiting thread come back, from any thread, whatever is there."""
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody else has just done so
            self._bell.release()

    def take(self, enough: int, timeout: float) -> list[T]:
        """What has come, once there is *enough* of it or somebody rang; whatever there is after *timeout* seconds."""
        self._enough = enough
        if len(self._completed) < enough:  # who puts the last one after this look sees the number, and rings
            while self._bell.acquire(timeout=timeout) and not self._completed and not self._woken:
                pass  # it rang for what was taken already
        taken: list[T] = []
        while self._completed:
            taken.append(self._completed.popleft())
        return taken
