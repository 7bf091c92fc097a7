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
from typing import TYPE_CHECKING, TypeVar

from cloudcore._cancellation import Cancellation
from cloudcore._forks import when_forked
from cloudcore.errors import Closed, InvariantViolated, Overloaded
from cloudcore.listing.cells.faults import COME_BACK_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["FAR", "LENDING", "Admission", "Turn"]

T = TypeVar("T")

LENDING = 0.1
"""Seconds for which a call keeps its turn while it waits for cells that usually answer sooner."""
FAR = 0.008
"""Seconds that even the fastest answers of a cell take when it is far away: then the turn is lent at once."""


class Turn:
    """One call's leave to work. For the thread that has it.

    Attributes:
        cells: How many cells the call asks.
        working: It has a turn.
        admitted: It is counted among the calls under way, working or not.
        over: It has left, and everything that it had is back.
    """

    __slots__ = ("_admission", "admitted", "bell", "cells", "over", "working")

    admitted: bool
    bell: threading.Lock
    cells: int
    over: bool
    working: bool

    def __init__(self, admission: Admission, cells: int) -> None:
        self._admission = admission
        self.cells = cells
        self.working = self.admitted = self.over = False
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

    A signal may interrupt the main thread between any two calls that it makes, though not between two assignments. What
    it cuts short here is repeated when the call leaves, so that neither its turn nor the one that it was just giving to
    another is lost.

    Args:
        turns: Calls that work at once.
        cells: Cells that are asked at once, by all calls together. A call that asks more goes alone.
        clock: Monotonic seconds.
    """

    def __init__(self, turns: int, cells: int, clock: Callable[[], float]) -> None:
        self._turns, self._cells, self._clock = turns, cells, clock
        self.closed = False
        """Whether further calls are refused."""
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

    def run(self, cells: int, patience: float, work: Callable[[Turn], T]) -> T:
        """What *work* gives, called with a turn for so many cells; waits for it for *patience* seconds at most.

        Raises:
            Overloaded: It did not come. Nothing was asked.
            Cancelled: The call was cancelled in line.
            Closed: The router is closed.
        """
        if self.closed:
            raise Closed("the router is closed; make a new one", field="router")
        turn = Turn(self, cells)
        interrupt: BaseException | None = None
        try:
            self.enter(turn, patience)
            return work(turn)
        finally:
            while not turn.over:
                try:
                    self.leave(turn)
                except BaseException as error:
                    interrupt = error
            if interrupt is not None:
                try:
                    raise interrupt
                finally:
                    interrupt = None  # no circle of error, traceback and frame

    def enter(self, turn: Turn, patience: float) -> None:
        """Stand in line until *turn* has come. Afterwards, whatever this raises, call :meth:`leave`."""
        with self._lock:
            self._line.append(turn)
            self._admit()
        if not turn.working:
            self._await(turn, patience)

    def leave(self, turn: Turn) -> None:
        """Give back what the call has; may be repeated."""
        with self._lock:
            for line in (self._line, self._returning):
                if turn in line:
                    line.remove(turn)
            if turn.admitted:
                free, asked, calls = self._free + turn.working, self._asked - turn.cells, self._calls - 1
                self._free, self._asked, self._calls, turn.admitted, turn.working = free, asked, calls, False, False
            self._admit()
            turn.over = True

    def lend(self, turn: Turn) -> None:
        """See :meth:`Turn.lend`."""
        with self._lock:
            if turn.working:
                self._free, turn.working = self._free + 1, False
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
        while self._returning and (self._free or self._returning[0].working):
            self._give(self._returning)
        while self._line and (self._free or self._line[0].admitted):
            turn = self._line[0]
            if not turn.admitted and self._calls and self._asked + turn.cells > self._cells:
                return
            self._give(self._line)

    def _give(self, line: deque[Turn]) -> None:
        """A turn to the first in *line*, who stays there until it has been told."""
        turn = line[0]
        if not turn.admitted:
            free, asked, calls = self._free - 1, self._asked + turn.cells, self._calls + 1
            self._free, self._asked, self._calls, turn.admitted, turn.working = free, asked, calls, True, True
        elif not turn.working and line is self._returning:
            self._free, turn.working = self._free - 1, True
        self._ring(turn)
        line.popleft()

    def _await(self, turn: Turn, patience: float | None) -> None:
        cancellation = Cancellation.current()
        began = self._clock()
        stopped: AbstractContextManager[None] = contextlib.nullcontext()
        if cancellation is not None:
            stopped = cancellation.stopped_by(lambda: self._ring(turn))
        with stopped:
            while not turn.working:
                left = -1 if patience is None else max(0.0, began + patience - self._clock())
                came = turn.bell.acquire(timeout=left)
                if cancellation is not None:
                    cancellation.check()
                if not came:
                    self._give_up(turn, self._clock() - began)

    def _give_up(self, turn: Turn, waited: float) -> None:
        """Raise, unless the turn has come at the last moment."""
        with self._lock:
            if turn.working:
                return
            waiting = len(self._line)
        raise Overloaded(
            f"no turn within {waited:.3g} s: {waiting} calls of this router wait for one. "
            "Send fewer at once, or to more processes",
            seconds=waited,
            retry_after=COME_BACK_AFTER,
        )

    @staticmethod
    def _ring(turn: Turn) -> None:
        with contextlib.suppress(RuntimeError):  # it has just been rung: its turn has come, or it was cancelled
            turn.bell.release()

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
