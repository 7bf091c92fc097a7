"""How soon a cell answers, judged by its last answers. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["PROMPT", "STALL", "Distance", "Promptness", "Watch", "time_apart"]

STALL = 0.004
"""Seconds after which a serial executor is looked at, and of an answer that did not come at once."""
PROMPT = 0.001
"""Seconds within which an answer in a thread of its own wins back what trust was lost."""


class Promptness:
    """Whether a cell may be asked in turn with others. Shared by threads: a race costs a few milliseconds.

    Args:
        able: Whether its database is of the kind that may answer at once.
    """

    proven: bool

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
        """An answer took so long, in a serial executor and over a connection that was open already."""
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


def time_apart(began: float, seconds: float, periods: Iterable[tuple[float, float]]) -> float:
    """What is left of so many seconds, from *began* on, without those that lie in *periods* (from, to; apart)."""
    ended = began + seconds
    return seconds - sum(max(0.0, min(ended, to) - max(began, since)) for since, to in periods)


class Distance:
    """The least time in which a cell has answered lately: what is on the way, whatever else the machine does.

    Shared by threads: a race loses an answer.
    """

    WINDOW = 50
    """Answers after which the older ones are forgotten."""

    __slots__ = ("_before", "_count", "_least")

    def __init__(self) -> None:
        self._count = 0
        self._least = self._before = 0.0

    def answered(self, seconds: float) -> None:
        """An answer took so long."""
        if self._count % self.WINDOW == 0:
            self._before = self._least if self._count else seconds
            self._least = seconds
        elif seconds < self._least:
            self._least = seconds
        self._count += 1

    @property
    def seconds(self) -> float:
        """The least of the last answers; 0 before the first."""
        return min(self._before, self._least)


class Watch:
    """What SQLite asks every so often while it runs a statement: whether to give it up.

    Args:
        clock: Monotonic seconds.

    Attributes:
        limit: The monotonic instant to give it up at.
        late: The instant at which *tell* is called, once.
    """

    __slots__ = ("_clock", "late", "limit", "tell")

    limit: float
    late: float
    tell: Callable[[], None] | None

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.limit = self.late = inf
        self.tell = None

    def __call__(self) -> bool:
        """Whether to give it up."""
        now = self._clock()
        if now > self.late:
            tell, self.tell, self.late = self.tell, None, inf
            if tell is not None:
                tell()
        return now > self.limit
