"""Cells that answer at once, asked one after the other in one thread instead of each in its own.

SQLite reads a file within a fraction of a millisecond, all of it under the interpreter's lock or nearly so. Eighty
threads that do this together take several times the CPU of one, for they fight over that lock at every row. So cells of
this kind share a *lane*. A lane that stands still is given up: what waits in it goes to threads of its own, and these
cells are taken for slow for a while. A slow cell costs a page a few milliseconds that way, and never another cell's
rows.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudcore.listing.cells.requests import Answers, Ask

__all__ = ["FEWEST", "PROMPT", "STALL", "Lane", "Pace"]

STALL = 0.004
"""Seconds after which a lane is looked at, and of an answer that did not come at once."""
FEWEST = 3
"""Answers between two looks without which a lane is doubted; a lane that is doubted twice running is given up."""
PROMPT = 0.001
"""Seconds within which an answer in a thread of its own wins back what trust was lost."""


class Pace:
    """Whether a cell may be asked in a lane. Shared by threads: a race costs a few milliseconds.

    Args:
        able: Whether its database is of the kind that may answer at once.
    """

    SHORTEST, LONGEST, GROWTH = 1.0, 256.0, 4.0
    """Seconds for which a cell is taken for slow: at first, at most, and how they grow with each disappointment."""

    STRIKES = 3
    """Late answers in a row that disappoint when there is no other cell that they could hold up."""

    __slots__ = ("_able", "_pause", "_strikes", "_until", "proven")

    def __init__(self, able: bool) -> None:
        self._able = able
        self._pause = self.SHORTEST
        self._strikes = 0
        self._until = 0.0
        self.proven = False
        """Its last answer came at once."""

    def quick(self, now: float) -> bool:
        """Whether to expect an answer at once."""
        return self._able and self._until <= now

    def answered(self, seconds: float, now: float, *, lenient: bool = False) -> None:
        """An answer took so long, in a lane and over a connection that was open already."""
        if seconds <= STALL:
            self.proven, self._pause, self._strikes = True, self.SHORTEST, 0
            return
        self._strikes += 1
        if self._strikes >= self.STRIKES or not lenient:  # alone it holds up nobody
            self.stalled(now)

    def answered_apart(self, seconds: float) -> None:
        """An answer took so long in a thread of its own, where it may have waited for its turn among others."""
        if seconds <= PROMPT:
            self._until = 0.0

    def stalled(self, now: float) -> None:
        """It did not answer at once, or nobody knows whether it would have."""
        self.proven, self._strikes = False, 0
        self._until, self._pause = now + self._pause, min(self._pause * self.GROWTH, self.LONGEST)


class Lane:
    """A row of asks for one thread. Whoever waits for the answers looks after it.

    Args:
        answers: Where to report once everything is done; the asks themselves are in :attr:`finished` then.
    """

    __slots__ = ("_answers", "doubted", "finished", "own", "running", "started", "waiting")

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.waiting: deque[Ask] = deque()
        self.started = self.doubted = False
        self.own = False
        """Whether the caller's own thread runs it."""
        self.running: Ask | None = None
        self.finished: deque[Ask] = deque()

    def put(self, ask: Ask) -> None:
        """Take an answer: in place of the queue that asks usually answer to."""
        self.finished.append(ask)

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        while self.waiting:
            try:
                ask = self.waiting.popleft()
            except IndexError:  # they were taken away
                break
            self.running = ask
            ask()
        self.running = None
        self._answers.put(self)
