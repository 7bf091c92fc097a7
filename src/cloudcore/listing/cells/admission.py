"""How many calls of one router work at once; the others wait in line.

Merging and reading are the interpreter's work, of which it does one thing at a time: two calls at once finish no sooner
than one after the other, and forty fight over its lock until all of them take ten times as long. So a call needs one of
a few *turns* to work. While it merely waits for cells it lends its turn to others: at once when these are far away,
else after a while, for an answer that is about to come is worth waiting for. Those that come back from waiting go
first. And no more cells are asked at once than there are threads to ask them, so that nothing that was sent waits for a
thread.

Time in line is the caller's own process's: it is counted apart, never held against a cell.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from cloudcore._cancellation import Cancellation
from cloudcore._forks import when_forked
from cloudcore.errors import Cancelled, InvariantViolated, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FAR", "LENDING", "Admission", "Turn"]

LENDING = 0.1
"""Seconds for which a call keeps its turn while it waits for cells that usually answer sooner."""
FAR = 0.008
"""Seconds that even the fastest answers of a cell take when it is far away: then the turn is lent at once."""


class Turn:
    """One call's leave to work. For the thread that has it."""

    __slots__ = ("_admission", "bell", "cells", "working")

    bell: threading.Lock
    cells: int
    working: bool

    def __init__(self, admission: Admission, cells: int) -> None:
        self._admission = admission
        self.cells = cells
        self.working = False
        self.bell = threading.Lock()
        """Rung when the turn has come."""
        self.bell.acquire()

    def lend(self) -> None:
        """Let others work while this call waits for cells."""
        self._admission.lend(self)

    def take_back(self) -> None:
        """Go on working, as soon as one of those that work now lets go.

        Raises:
            Cancelled: The call was cancelled meanwhile.
        """
        self._admission.take_back(self)


class Admission:
    """The turns of one router. Thread-safe. A forked child starts with none taken.

    Args:
        turns: Calls that work at once.
        cells: Cells that are asked at once, by all calls together. A call that asks more goes alone.
        clock: Monotonic seconds.
    """

    def __init__(self, turns: int, cells: int, clock: Callable[[], float]) -> None:
        self._turns, self._cells, self._clock = turns, cells, clock
        self._start_empty()
        when_forked(self, Admission._start_empty)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._free = self._turns
        self._asked = self._calls = 0
        self._line: deque[Turn] = deque()
        self._returning: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return len(self._line)

    @contextlib.contextmanager
    def turn(self, cells: int, patience: float) -> Iterator[Turn]:
        """A turn for a call that asks so many cells; waits for it for *patience* seconds at most.

        Raises:
            Overloaded: It did not come. Nothing was asked.
            Cancelled: The call was cancelled in line.
        """
        turn = Turn(self, cells)
        with self._lock:
            self._line.append(turn)
            self._admit()
        try:
            if not turn.working:
                self._await(turn, patience)
            yield turn
        finally:
            self._leave(turn)

    def lend(self, turn: Turn) -> None:
        """See :meth:`Turn.lend`."""
        with self._lock:
            if turn.working:
                turn.working = False
                self._free += 1
                self._admit()

    def take_back(self, turn: Turn) -> None:
        """See :meth:`Turn.take_back`."""
        with self._lock:
            if turn.working:
                return
            turn.bell.acquire(blocking=False)
            self._returning.append(turn)
            self._admit()
        if not turn.working:
            self._await(turn, None)

    def _admit(self) -> None:
        """Give the free turns to those next in line. Under the lock."""
        while self._free and self._returning:
            self._give(self._returning.popleft())
        while self._free and self._line:
            cells = self._line[0].cells
            if self._calls and self._asked + cells > self._cells:
                return
            self._asked += cells
            self._calls += 1
            self._give(self._line.popleft())

    def _give(self, turn: Turn) -> None:
        self._free -= 1
        turn.working = True
        self._ring(turn)

    def _await(self, turn: Turn, patience: float | None) -> None:
        cancellation = Cancellation.current()
        began = self._clock()
        if cancellation is None:
            came = turn.bell.acquire(timeout=-1 if patience is None else patience)
        else:
            with cancellation.stopped_by(lambda: self._ring(turn)):
                came = turn.bell.acquire(timeout=-1 if patience is None else patience)
            cancellation.check()
        with self._lock:
            if turn.working:
                return
            waiting = len(self._line)
        if came:
            raise Cancelled("the call was cancelled")
        waited = self._clock() - began
        raise Overloaded(
            f"no turn within {waited:.3g} s: {waiting} calls of this router wait for one. "
            "Send fewer at once, or to more processes",
            seconds=waited,
        )

    @staticmethod
    def _ring(turn: Turn) -> None:
        with contextlib.suppress(RuntimeError):  # it has just been rung: its turn has come, or it was cancelled
            turn.bell.release()

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)  # it never came
                self._admit()
                return
            if turn in self._returning:
                self._returning.remove(turn)
            if turn.working:
                turn.working = False
                self._free += 1
            self._asked -= turn.cells
            self._calls -= 1
            self._admit()

    def check(self) -> None:
        """Verify that every turn is free or with somebody. For when no call is under way.

        Raises:
            InvariantViolated: One was lost.
        """
        with self._lock:
            if not self._calls and (self._free, self._asked) != (self._turns, 0):
                raise InvariantViolated(
                    f"admission: {self._free} of {self._turns} turns free, {self._asked} cells asked"
                )
