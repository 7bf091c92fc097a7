"""One question to one database of a cell, in steps: waiting for it, and reading what has come.

Many may wait at once, each in a thread of its own. Reading is work for the interpreter: threads that do it together
spend more on waking each other than on reading. So it is done in turn: whoever has an answer leaves it, and one of them
reads what all have left while the others are free for the next job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from enum import Enum
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from cloudcore.errors import CloudcoreError, DatabaseUnavailable
from cloudcore.listing.cells import not_at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.listing.asking import Answers, Flight
    from cloudcore.listing.cells import Lease, Link
    from cloudcore.listing.horizon import Horizon
    from cloudcore.listing.lanes import Lane

__all__ = ["HURRY", "Ask", "Next", "Rows", "Steps", "Turn"]

HURRY = 0.02
"""Seconds for which a caller's own thread tries a cell."""

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


class Next(Enum):
    """What the next step of a question does."""

    WAIT = "wait"
    """It may wait for the database."""
    READ = "read"
    """It reads what has come already."""


Steps = Generator[Next, None, T]
"""Work in steps, which says before each but the first what it does."""


class Ask:
    """One question: run something on one database of a cell and put itself, with what came of it, back.

    Attributes:
        result: What the work returned.
        error: Why there is no result.
        began: When it was started.
        hurried: Whether the caller's own thread tries it: what does not answer at once then says that it has to wait.
        seconds: What it took.
        warm: Whether its connection was open already.
    """

    __slots__ = (
        "_clock", "_steps", "_turn", "answers", "began", "dropped", "error", "flight", "hurried", "lease", "limit",
        "link", "result", "seconds", "statements", "warm",
    )  # fmt: skip

    def __init__(
        self, flight: Flight, link: Link, answers: Answers | Lane, turn: Turn, clock: Callable[[], float]
    ) -> None:
        self.flight, self.link, self.limit = flight, link, flight.limit
        self.answers, self._turn, self._clock = answers, turn, clock
        self._steps: Steps[Any] | None = None
        self.lease: Lease | None = None
        self.statements = 0
        self.dropped = self.warm = self.hurried = False
        self.result: Any = None
        self.error: CloudcoreError | None = None
        self.began = self.seconds = 0.0

    def __call__(self) -> None:
        """Go on to the end, in this thread. Never raises."""
        while self._step() is not None:
            pass

    def apart(self) -> None:
        """Go on as far as there is something to wait for; what is to be read is left to the turn. Never raises."""
        while (coming := self._step()) is not None:
            if coming is Next.READ:
                self._turn.put(self)
                return

    def read(self) -> bool:
        """Go on as far as there is something to read. False when what comes next is to wait. Never raises."""
        while (coming := self._step()) is not None:
            if coming is Next.WAIT and not self.dropped:
                return False
        return True

    def _step(self) -> Next | None:
        """One step; None when it was the last."""
        try:
            if self._steps is None:
                self.began = self._clock()
                self._steps = self.flight.work(self)
            if not self.dropped:
                return next(self._steps)
            self._steps.close()
        except StopIteration as ended:
            self.result = ended.value
        except CloudcoreError as raised:
            self.error = raised
        except Exception as raised:
            self.error = CloudcoreError(f"{type(raised).__name__}: {raised}")
            self.error.__cause__ = raised
        self.seconds = self._clock() - self.began
        self.answers.put(self)
        return None

    # ---- what the work may use

    def run(self, lease: Lease, text: str, parameters: Any) -> Steps[Rows]:
        """One statement, counted."""
        yield from self._execute(lease, text, parameters)
        return lease.fetch()

    def run_to(self, horizon: Horizon, lease: Lease, text: str, parameters: Any) -> Steps[tuple[Rows, bool]]:
        """One statement, counted, as far as *horizon*; and whether it was left there."""
        yield from self._execute(lease, text, parameters)
        return lease.fetch_to(horizon)

    def _execute(self, lease: Lease, text: str, parameters: Any) -> Steps[None]:
        if self.statements and lease.local and not self.hurried:
            yield Next.WAIT
        self.statements += 1
        lease.execute(text, parameters, self._until(), hurried=self.hurried)
        if lease.local:
            yield Next.READ

    def _until(self) -> float:
        return min(self.limit, self.began + HURRY) if self.hurried else self.limit

    def with_lease(self, use: Callable[[Ask, Lease], Steps[T]]) -> Steps[T]:
        """Call *use*, which only reads, with this and a connection that :meth:`drop` can break.

        A connection kept from before may have died with its server, which may be back: then once more with a new one.
        """
        fresh = False
        while True:
            lease = None
            try:
                lease = self.link.acquire(self._until(), fresh=fresh)
                self.warm, self.lease = lease.used, lease
                result = yield from use(self, lease)
            except Exception as error:
                self.lease = None
                blamed = error if lease is None else self.link.blame(lease, error)
                fresh = lease is not None and self.warm and isinstance(blamed, DatabaseUnavailable)
                slow = self.hurried and not_at_once(error)
                if self.dropped or not (fresh or slow):
                    raise blamed from error
            except BaseException:  # the caller's own thread was interrupted, or nobody goes on
                if lease is not None:
                    self.link.scrap(lease)
                raise
            else:
                self.lease = None
                self.link.release(lease)
                return result
            if slow:
                self.hurried = False
                yield Next.WAIT

    def drop(self) -> None:
        """Nobody waits any more: make the statement under way fail."""
        self.dropped = True
        lease = self.lease
        if lease is not None:
            lease.abort()


class Turn:
    """Reads one answer after the other, in the thread that came first. Thread-safe.

    Args:
        start: Starts a job in another thread.
    """

    __slots__ = ("_busy", "_start", "reading", "waiting")

    def __init__(self, start: Callable[[Callable[[], None]], None]) -> None:
        self._start = start
        self._busy = Lock()
        self.waiting: deque[Ask] = deque()
        self.reading: Ask | None = None

    def put(self, ask: Ask) -> None:
        """Leave an answer to be read; read what is there, if nobody does so yet."""
        self.waiting.append(ask)
        while self.waiting and self._busy.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._busy.release()

    def _read(self) -> None:
        while self.waiting:
            try:
                ask = self.waiting.popleft()
            except IndexError:  # they were taken away
                break
            self.reading = ask
            if not ask.read():
                try:
                    self._start(ask.apart)
                except CloudcoreError:  # the router has been closed meanwhile: no other thread will do it
                    ask()
        self.reading = None

    def disperse(self) -> None:
        """Somebody reads for too long: give what waits to threads of its own."""
        while self.waiting:
            try:
                ask = self.waiting.popleft()
            except IndexError:
                break
            self._start(ask)
