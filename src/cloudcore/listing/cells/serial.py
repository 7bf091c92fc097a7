"""Cells that answer at once, asked one after the other in one thread instead of each in its own.

SQLite reads a file within a fraction of a millisecond, all of it under the interpreter's lock or nearly so. Eighty
threads that do this together take several times the CPU of one, for they fight over that lock at every row. So cells of
this kind share a *serial executor*. One that stands still is given up: the cell that it waits for is taken for slow for
a while, and what waits behind it is shared by a few new executors; of these, too, one may be given up, and then what is
left in it gets threads of its own. A slow cell costs a page a few milliseconds that way, and never another cell's rows.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudcore.listing.cells.requests import Attempt
    from cloudcore.listing.cells.workers import Receiver

__all__ = ["FEWEST", "SHARES", "SerialExecutor"]

FEWEST = 3
"""Answers between two looks without which an executor is doubted; doubted twice running, it is given up."""
SHARES = 3
"""Executors that share what waited in one that was given up."""


class SerialExecutor:
    """Attempts that one thread makes in turn. Whoever waits for the answers looks after it.

    Args:
        answers: Where to report once everything is done; the attempts themselves are in :attr:`finished` then.
        handed_on: Whether its attempts waited in another executor, which was given up.
    """

    __slots__ = ("_answers", "doubted", "finished", "handed_on", "own", "running", "waiting")

    doubted: bool
    handed_on: bool
    own: bool

    def __init__(self, answers: Receiver[SerialExecutor], *, handed_on: bool = False) -> None:
        self._answers, self.handed_on = answers, handed_on
        self.waiting: deque[Attempt] = deque()
        self.doubted = False
        self.own = False
        """Whether the caller's own thread runs it."""
        self.running: Attempt | None = None
        self.finished: deque[Attempt] = deque()

    def put(self, attempt: Attempt, *, urgent: bool) -> None:
        """Take an answer: in place of the queue that attempts usually answer to."""
        self.finished.append(attempt)

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        while self.waiting:
            try:
                attempt = self.waiting.popleft()
            except IndexError:  # they were taken away
                break
            self.running = attempt
            attempt()
        self.running = None
        self._answers.put(self, urgent=True)
