"""Asking cells: jobs that run in workers, one flight per cell with its deadline, its replicas and its one answer."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore.errors import CloudcoreError, DatabaseUnavailable, DeadlineExceeded
from cloudcore.listing.cells.serial import FEWEST, STALL, Lane
from cloudcore.listing.values import CellReport, CellState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing.cells.backends import Port
    from cloudcore.listing.cells.connections import Lease, Link
    from cloudcore.listing.merge.page_bound import Horizon

__all__ = ["Answers", "Ask", "Flight", "Flights", "Part", "ask_all"]

T = TypeVar("T")


class Ask:
    """One job for a worker: run something on one database of a cell and put itself, with what came of it, back.

    Attributes:
        result: What the work returned.
        error: Why there is no result.
        began: When it was started.
        seconds: What it took.
        warm: Whether its connection was open already.
    """

    __slots__ = (
        "_clock", "_work", "answers", "began", "dropped", "error", "flight", "lease", "limit", "link", "result",
        "seconds", "statements", "warm",
    )  # fmt: skip

    def __init__(
        self,
        flight: Flight,
        link: Link,
        answers: Answers | Lane,
        clock: Callable[[], float],
    ) -> None:
        self.flight, self.link, self.limit = flight, link, flight.limit
        self._work, self.answers, self._clock = flight.work, answers, clock
        self.lease: Lease | None = None
        self.statements = 0
        self.dropped = self.warm = False
        self.result: Any = None
        self.error: CloudcoreError | None = None
        self.began = self.seconds = 0.0

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        self.began = self._clock()
        try:
            if not self.dropped:
                self.result = self._work(self)
        except CloudcoreError as raised:
            self.error = raised
        except Exception as raised:
            self.error = CloudcoreError(f"{type(raised).__name__}: {raised}")
            self.error.__cause__ = raised
        self.seconds = self._clock() - self.began
        self.answers.put(self)

    def run(self, lease: Lease, text: str, parameters: Any) -> list[tuple[Any, ...]]:
        """One statement, counted."""
        self.statements += 1
        return lease.run(text, parameters, self.limit)

    def run_to(self, horizon: Horizon, lease: Lease, text: str, parameters: Any) -> tuple[list[tuple[Any, ...]], bool]:
        """One statement, counted, as far as *horizon*; and whether it was left there."""
        self.statements += 1
        return lease.run_to(horizon, text, parameters, self.limit)

    def with_lease(self, use: Callable[[Ask, Lease], T]) -> T:
        """Call *use*, which only reads, with this and a connection that :meth:`drop` can break.

        A connection kept from before may have died with its server, which may be back: then once more with a new one.
        """
        lease = self.link.acquire(self.limit)
        while True:
            self.warm, self.lease = lease.used, lease
            try:
                result = use(self, lease)
            except Exception as error:
                self.lease = None
                blamed = self.link.blame(lease, error)
                if self.dropped or not self.warm or not isinstance(blamed, DatabaseUnavailable):
                    raise blamed from error
                lease = self.link.acquire(self.limit, fresh=True)
                continue
            except BaseException:  # the caller's own thread was interrupted
                self.link.scrap(lease)
                raise
            self.lease = None
            self.link.release(lease)
            return result

    def drop(self) -> None:
        """Nobody waits any more: make the statement under way fail."""
        self.dropped = True
        lease = self.lease
        if lease is not None:
            lease.abort()


@attrs.define
class Part:
    """One cell's part so far."""

    state: CellState = CellState.ANSWERED
    fetched: int = 0
    statements: int = 0
    seconds: float = 0.0
    error: str | None = None

    def report(self, name: str, rows: int, *, exhausted: bool = False) -> CellReport:
        """The part as callers see it."""
        return CellReport(
            name=name,
            state=self.state,
            rows=rows,
            fetched=self.fetched,
            statements=self.statements,
            seconds=self.seconds,
            error=self.error,
            exhausted=exhausted,
        )


class Flight:
    """What is under way to one cell: one ask, or two when a replica was asked as well."""

    __slots__ = ("asks", "began", "cell", "hedge_at", "limit", "links", "port", "work")

    def __init__(
        self, cell: str, port: Port, work: Callable[[Ask], Any], began: float, limit: float, hedge_at: float | None
    ) -> None:
        self.cell, self.port, self.work = cell, port, work
        self.began, self.limit, self.hedge_at = began, limit, hedge_at
        self.links = list(port.links)
        """Databases not yet asked."""
        self.asks: list[Ask] = []


class Answers:
    """Where asks and lanes put themselves when they are done; one thread waits until enough are there.

    It is woken once for all of them rather than for each: by the last, by a lane, or by one that went wrong, for which
    a replica may have to be asked.
    """

    __slots__ = ("_bell", "_enough", "_landed")

    def __init__(self) -> None:
        self._landed: deque[Ask | Lane] = deque()
        self._enough = 1
        self._bell = Lock()
        self._bell.acquire()

    def put(self, answer: Ask | Lane) -> None:
        """Take an answer, in any thread."""
        self._landed.append(answer)
        if len(self._landed) >= self._enough or isinstance(answer, Lane) or answer.error is not None:
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody else has just done so
            self._bell.release()

    def take(self, enough: int, timeout: float) -> list[Ask | Lane]:
        """What has come, once there is *enough* of it or somebody rang; whatever there is after *timeout* seconds."""
        self._enough = enough
        if len(self._landed) < enough:  # who puts the last one after this look sees the number, and rings
            while self._bell.acquire(timeout=timeout) and not self._landed:
                pass  # it rang for what was taken already
        taken: list[Ask | Lane] = []
        while self._landed:
            taken.append(self._landed.popleft())
        return taken


class Flights:
    """The asks under way, at most one flight per cell. Used by one thread at a time.

    Args:
        ports: The cells.
        start: Starts a job in another thread.
        clock: Monotonic seconds.
        lanes: Whether cells that answer at once may share a thread, and a single one the caller's; for statements of
            which none is known to take long.
    """

    def __init__(
        self,
        ports: Mapping[str, Port],
        *,
        start: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
        lanes: bool = False,
    ) -> None:
        self.ports = ports
        self.parts = {name: Part() for name in ports}
        self._start, self._clock, self._lanes = start, clock, lanes
        self._answers = Answers()
        self._flights: dict[str, Flight] = {}
        self._lane: Lane | None = None
        self._attentive = math.inf
        """Since when the caller waits. While it works itself, it may be what keeps a lane from the interpreter."""
        self._wake = math.inf
        """No limit and no hedge comes before this instant."""

    def send(self, cell: str, work: Callable[[Ask], Any], *, seconds: float | None = None) -> None:
        """Ask *cell*, which has the given time, else its deadline. Call :meth:`go` after the last."""
        port = self.ports[cell]
        now = self._clock()
        patience = port.patience()
        limit = now + (port.deadline if seconds is None else seconds)
        flight = Flight(cell, port, work, now, limit, None if patience is None else now + patience)
        self._flights[cell] = flight
        if self._lanes and patience is None and port.pace.quick(now) and not (self._lane and self._lane.started):
            if self._lane is None:
                self._lane = Lane(self._answers)
            self._lane.waiting.append(self._asking(flight, self._lane))
        else:
            self._ask(flight)

    def go(self) -> None:
        """Start what was sent to the lane."""
        lane = self._lane
        if lane is None or lane.started:
            return
        lane.started = True
        if len(self._flights) == 1 and lane.waiting[0].flight.port.direct:
            lane.own = True
            lane()  # the database itself keeps the deadline
        else:
            self._start(lane)

    def _ask(self, flight: Flight) -> None:
        """Ask the next database of the cell."""
        self._start(self._asking(flight, self._answers))

    def _asking(self, flight: Flight, answers: Answers | Lane) -> Ask:
        ask = Ask(flight, flight.links.pop(0), answers, self._clock)
        first = flight.limit if flight.hedge_at is None else min(flight.limit, flight.hedge_at)
        if first < self._wake:
            self._wake = first
        if not flight.links:
            flight.hedge_at = None
        flight.asks.append(ask)
        return ask

    def wait(self, least: int = 1) -> list[tuple[str, Any, CloudcoreError | None]]:
        """Results of some cells: (cell, result, error). Empty when nothing is under way.

        Comes back when about *least* cells have answered, when one has failed or is late, or a lane has ended. A cell
        that has not answered by its limit gets :class:`DeadlineExceeded`; answers that arrived while nobody waited are
        taken first, so a caller's pause is never held against a cell.
        """
        done: list[tuple[str, Any, CloudcoreError | None]] = []
        self._attentive = self._clock()
        while self._flights and not done:
            pause = max(0.0, self._wake - self._clock())
            enough = max(1, min(least, len(self._flights)))
            taken = self._answers.take(enough, pause if self._lane is None else min(pause, STALL))
            for answer in taken:
                self._take(answer, done)
            if not taken:
                if self._lane is not None:
                    self._look_after(self._lane, done)
                if not done and self._wake <= (now := self._clock()):
                    done += self._overdue(now)
        return done

    def _take(self, answer: Ask | Lane, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        if isinstance(answer, Lane):
            self._empty(answer, done)
            if answer is self._lane:
                self._lane = None
        else:
            if answer.warm and answer.error is None:
                answer.flight.port.pace.answered_apart(answer.seconds)
            self._land(answer, done)

    def _empty(self, lane: Lane, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take what a lane has finished."""
        now = self._clock()
        while lane.finished:
            ask = lane.finished.popleft()
            if ask.error is not None:
                ask.flight.port.pace.stalled(now)
            elif ask.warm and (ask.seconds <= STALL or lane.own or ask.began >= self._attentive):
                ask.flight.port.pace.answered(ask.seconds, now, lenient=len(self.ports) == 1)
            self._land(ask, done)

    def _look_after(self, lane: Lane, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take what a lane has finished; when that is little once more, go on without it."""
        slow = len(lane.finished) < FEWEST
        if slow and lane.doubted:
            self._spill(lane)
        lane.doubted = slow
        self._empty(lane, done)

    def _spill(self, lane: Lane) -> None:
        """Give what waits in a lane to threads of its own."""
        self._lane = None
        now = self._clock()
        stuck = lane.running
        if stuck is not None and not stuck.warm:
            stuck = None  # opening a connection takes its time; that says nothing of the answers
        if stuck is not None:
            stuck.flight.port.pace.stalled(now)
        while lane.waiting:
            try:
                ask = lane.waiting.popleft()
            except IndexError:  # the lane's own thread was faster
                break
            if stuck is not None:
                ask.flight.port.pace.stalled(now)
            ask.answers = self._answers
            self._start(ask)

    def _overdue(self, now: float) -> list[tuple[str, Any, CloudcoreError | None]]:
        late: list[tuple[str, Any, CloudcoreError | None]] = []
        for cell, flight in list(self._flights.items()):
            if flight.limit <= now:
                self._close(cell, flight)
                late.append((cell, None, _late(flight)))
            elif flight.hedge_at is not None and flight.hedge_at <= now:
                flight.hedge_at = None
                if flight.port.may_hedge():
                    self._ask(flight)
        self._wake = min((each.hedge_at or each.limit for each in self._flights.values()), default=math.inf)
        for cell, _, error in late:
            if error is not None:
                self._blame(cell, CellState.SLOW, error)
        return late

    def _land(self, ask: Ask, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take an answer; what became of its cell, once that is known, goes to *done*."""
        flight = ask.flight
        cell = flight.cell
        if self._flights.get(cell) is not flight or ask not in flight.asks:
            return  # it was given up, or another database of the cell was faster
        if ask.error is None:
            self._close(cell, flight)
            flight.port.succeed(ask.seconds)
            done.append((cell, ask.result, None))
            return
        flight.asks.remove(ask)
        self.parts[cell].statements += ask.statements
        if flight.links and self._clock() < flight.limit:
            self._ask(flight)  # a replica may be able
        if not flight.asks:
            error = ask.error if self._clock() < flight.limit else _late(flight)
            self._close(cell, flight)
            self._blame(cell, CellState.SLOW if isinstance(error, DeadlineExceeded) else CellState.DOWN, error)
            done.append((cell, None, error))

    def _close(self, cell: str, flight: Flight) -> None:
        del self._flights[cell]
        part = self.parts[cell]
        part.seconds += self._clock() - flight.began
        for ask in flight.asks:
            part.statements += ask.statements
            ask.drop()
        flight.asks = []  # no circle of references: rows that nobody wants any more go at once

    def _blame(self, cell: str, state: CellState, error: CloudcoreError) -> None:
        part = self.parts[cell]
        part.state, part.error = state, str(error)
        if type(error) is not CloudcoreError:  # that one comes from a caller's function, not from the cell
            self.ports[cell].fail(str(error))

    def stop(self) -> None:
        """Nobody wants what is still under way. It ends by itself, and no cell is blamed."""
        for flight in self._flights.values():
            flight.asks = []
        self._flights.clear()


def _late(flight: Flight) -> DeadlineExceeded:
    seconds = flight.limit - flight.began
    return DeadlineExceeded(f"no answer within {seconds:g} s", seconds=seconds)


def ask_all(
    ports: Mapping[str, Port],
    work: Callable[[str], Callable[[Ask], Any]],
    *,
    start: Callable[[Callable[[], None]], None],
    clock: Callable[[], float],
    seconds: float | None = None,
    lanes: bool = False,
) -> tuple[dict[str, Any], dict[str, Part], dict[str, CloudcoreError]]:
    """Ask every cell the same at once: results of those that answered, what became of each, and the errors."""
    flights = Flights(ports, start=start, clock=clock, lanes=lanes)
    for cell in ports:
        flights.send(cell, work(cell), seconds=seconds)
    flights.go()
    results: dict[str, Any] = {}
    errors: dict[str, CloudcoreError] = {}
    while done := flights.wait():
        for cell, result, error in done:
            if error is None:
                results[cell] = result
            else:
                errors[cell] = error
    return results, flights.parts, errors
