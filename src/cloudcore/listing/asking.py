"""Asking cells: jobs that run in workers, one flight per cell with its deadline, its replicas and its one answer."""

from __future__ import annotations

import math
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore.errors import CloudcoreError, DatabaseUnavailable, DeadlineExceeded
from cloudcore.listing.values import CellReport, CellState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing.cells import Lease, Link
    from cloudcore.listing.ports import Port

__all__ = ["Answer", "Ask", "Flight", "Flights", "Part", "ask_all"]

T = TypeVar("T")


@attrs.define(eq=False)
class Ask:
    """One job for a worker: run something on one database of a cell and put the answer where it belongs."""

    port: Port
    link: Link
    work: Callable[[Ask], Any]
    limit: float
    answers: SimpleQueue[Answer]
    clock: Callable[[], float]
    lease: Lease | None = None
    statements: int = 0
    dropped: bool = False

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        began = self.clock()
        result, error = None, None
        try:
            if not self.dropped:
                result = self.work(self)
        except CloudcoreError as raised:
            error = raised
        except Exception as raised:
            error = CloudcoreError(f"{type(raised).__name__}: {raised}")
            error.__cause__ = raised
        self.answers.put(Answer(self, result, error, self.clock() - began))

    def run(self, lease: Lease, text: str, parameters: Any) -> list[tuple[Any, ...]]:
        """One statement, counted."""
        self.statements += 1
        return lease.run(text, parameters, self.limit)

    def with_lease(self, use: Callable[[Lease], T]) -> T:
        """Call *use*, which only reads, with a connection that :meth:`drop` can break.

        A connection kept from before may have died with its server, which may be back: then once more with a new one.
        """
        lease = self.link.acquire(self.limit)
        while True:
            reused = lease.used
            self.lease = lease
            try:
                result = use(lease)
            except Exception as error:
                self.lease = None
                blamed = self.link.blame(lease, error)
                if self.dropped or not reused or not isinstance(blamed, DatabaseUnavailable):
                    raise blamed from error
                lease = self.link.acquire(self.limit, fresh=True)
                continue
            self.lease = None
            self.link.release(lease)
            return result

    def drop(self) -> None:
        """Nobody waits any more: make the statement under way fail."""
        self.dropped = True
        lease = self.lease
        if lease is not None:
            lease.abort()


@attrs.frozen(eq=False)
class Answer:
    """What came of an :class:`Ask`."""

    ask: Ask
    result: Any
    error: CloudcoreError | None
    seconds: float


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


@attrs.define(eq=False)
class Flight:
    """What is under way to one cell: one ask, or two when a replica was asked as well."""

    port: Port
    work: Callable[[Ask], Any]
    began: float
    limit: float
    hedge_at: float | None
    asks: list[Ask]
    links_left: list[Link]


class Flights:
    """The asks under way, at most one flight per cell. Used by one thread at a time.

    Args:
        ports: The cells.
        start: Starts a job in another thread.
        clock: Monotonic seconds.
    """

    def __init__(
        self, ports: Mapping[str, Port], *, start: Callable[[Ask], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ports = ports
        self.parts = {name: Part() for name in ports}
        self._start, self._clock = start, clock
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._flights: dict[str, Flight] = {}
        self._wake = math.inf
        """No limit and no hedge comes before this instant."""

    def send(self, cell: str, work: Callable[[Ask], Any], *, seconds: float | None = None) -> None:
        """Ask *cell*, which has the given time, else its deadline."""
        port = self.ports[cell]
        now = self._clock()
        patience = port.patience()
        flight = Flight(
            port=port,
            work=work,
            began=now,
            limit=now + (port.deadline if seconds is None else seconds),
            hedge_at=None if patience is None else now + patience,
            asks=[],
            links_left=list(port.links),
        )
        self._flights[cell] = flight
        self._ask(flight)

    def _ask(self, flight: Flight) -> None:
        self._wake = min(self._wake, flight.limit, flight.hedge_at or flight.limit)
        ask = Ask(flight.port, flight.links_left.pop(0), flight.work, flight.limit, self._answers, self._clock)
        flight.asks.append(ask)
        if not flight.links_left:
            flight.hedge_at = None
        self._start(ask)

    def wait(self) -> list[tuple[str, Any, CloudcoreError | None]]:
        """Results of at least one cell: (cell, result, error). Empty when nothing is under way.

        A cell that has not answered by its limit gets :class:`DeadlineExceeded`; answers that arrived while nobody
        waited are taken first, so a caller's pause is never held against a cell.
        """
        done: list[tuple[str, Any, CloudcoreError | None]] = []
        while self._flights and not done:
            try:
                answer = self._answers.get(timeout=max(0.0, self._wake - self._clock()))
            except Empty:
                done += self._overdue(self._clock())
                continue
            done += self._land(answer)
            while not self._answers.empty():
                done += self._land(self._answers.get())
        return done

    def _overdue(self, now: float) -> list[tuple[str, Any, CloudcoreError | None]]:
        late: list[tuple[str, Any, CloudcoreError | None]] = []
        for cell, flight in list(self._flights.items()):
            if flight.limit <= now:
                self._close(cell, flight)
                text = f"no answer within {flight.limit - flight.began:g} s"
                late.append((cell, None, DeadlineExceeded(text, seconds=flight.limit - flight.began)))
            elif flight.hedge_at is not None and flight.hedge_at <= now:
                flight.hedge_at = None
                if flight.port.may_hedge():
                    self._ask(flight)
        self._wake = min((each.hedge_at or each.limit for each in self._flights.values()), default=math.inf)
        for cell, _, error in late:
            if error is not None:
                self._blame(cell, CellState.SLOW, error)
        return late

    def _land(self, answer: Answer) -> list[tuple[str, Any, CloudcoreError | None]]:
        cell = answer.ask.port.cell.name
        flight = self._flights.get(cell)
        if flight is None or answer.ask not in flight.asks:
            return []  # it was given up, or another database of the cell was faster
        if answer.error is not None:
            flight.asks.remove(answer.ask)
            self.parts[cell].statements += answer.ask.statements
            if flight.links_left and self._clock() < flight.limit:
                self._ask(flight)  # a replica may be able
            if flight.asks:
                return []
            self._close(cell, flight)
            state = CellState.SLOW if isinstance(answer.error, DeadlineExceeded) else CellState.DOWN
            self._blame(cell, state, answer.error)
            return [(cell, None, answer.error)]
        self._close(cell, flight)
        flight.port.succeed(answer.seconds)
        return [(cell, answer.result, None)]

    def _close(self, cell: str, flight: Flight) -> None:
        del self._flights[cell]
        part = self.parts[cell]
        part.seconds += self._clock() - flight.began
        for ask in flight.asks:
            part.statements += ask.statements
            ask.drop()

    def _blame(self, cell: str, state: CellState, error: CloudcoreError) -> None:
        part = self.parts[cell]
        part.state, part.error = state, str(error)
        if type(error) is not CloudcoreError:  # that one comes from a caller's function, not from the cell
            self.ports[cell].fail(str(error))

    def stop(self) -> None:
        """Nobody wants what is still under way. It ends by itself, and no cell is blamed."""
        self._flights.clear()


def ask_all(
    ports: Mapping[str, Port],
    work: Callable[[str], Callable[[Ask], Any]],
    *,
    start: Callable[[Ask], None],
    clock: Callable[[], float],
    seconds: float | None = None,
) -> tuple[dict[str, Any], dict[str, Part], dict[str, CloudcoreError]]:
    """Ask every cell the same at once: results of those that answered, what became of each, and the errors."""
    flights = Flights(ports, start=start, clock=clock)
    for cell in ports:
        flights.send(cell, work(cell), seconds=seconds)
    results: dict[str, Any] = {}
    errors: dict[str, CloudcoreError] = {}
    while done := flights.wait():
        for cell, result, error in done:
            if error is None:
                results[cell] = result
            else:
                errors[cell] = error
    return results, flights.parts, errors
