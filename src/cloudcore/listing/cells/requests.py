"""One request to a cell and its attempts: each runs in a worker, over one connection to one of the cell's databases."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from cloudcore.database.driver_errors import plan_is_outdated
from cloudcore.database.statement_events import told_statement
from cloudcore.errors import Cancelled, CloudcoreError, DatabaseUnavailable
from cloudcore.listing.query.dialects import dialect_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import sqlalchemy as sa
    from sqlalchemy.engine import Dialect

    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.cells.connections import PooledConnection, Take
    from cloudcore.listing.cells.pool import ConnectionPool
    from cloudcore.listing.cells.workers import Receiver
    from cloudcore.listing.query.indexes import TableLayout

__all__ = ["Attempt", "Request"]

T = TypeVar("T")


class Attempt:
    """One job for a worker: run something on one database of a cell and put itself, with what came of it, back.

    Attributes:
        result: What the work returned.
        error: Why there is no result.
        began: When it was started.
        seconds: What it took.
        warm: Whether its connection was open already.
    """

    __slots__ = (
        "_clock", "_holding", "_work", "answers", "began", "broken", "dropped", "error", "lending", "pool", "pooled",
        "request", "result", "seconds", "statements", "warm",
    )  # fmt: skip

    answers: Receiver[Attempt]
    began: float
    broken: bool
    dropped: bool
    pool: ConnectionPool
    request: Request
    seconds: float
    statements: int
    warm: bool

    def __init__(
        self,
        request: Request,
        pool: ConnectionPool,
        answers: Receiver[Attempt],
        clock: Callable[[], float],
    ) -> None:
        self.request, self.pool = request, pool
        self._work, self.answers, self._clock = request.work, answers, clock
        self.pooled: PooledConnection | None = None
        self.statements = 0
        self.dropped = self.warm = False
        self.lending: tuple[float, Callable[[], None]] | None = None
        """The monotonic instant from which others may work beside it, and how they are let; None where they do."""
        self._holding = threading.Lock()
        """Whoever breaks the connection has it, so that it is broken for nobody else."""
        self.broken = False
        self.result: Any = None
        self.error: CloudcoreError | None = None
        self.began = self.seconds = 0.0

    @property
    def limit(self) -> float:
        """The monotonic instant to give up at."""
        return self.request.limit

    def _waits(self, waiting: bool) -> None:
        """The cell's clock stands while the attempt waits for one of our own connections."""
        if self.request.attempts == [self]:
            self.request.started = None if waiting else self._clock()

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        self.began = self._clock()
        if self.request.started is None:
            self.request.started = self.began
        try:
            if not self.dropped:
                self.result = self._work(self)
        except CloudcoreError as raised:
            self.error = raised
        except Exception as raised:
            self.error = CloudcoreError(f"{type(raised).__name__}: {raised}")
            self.error.__cause__ = raised
        self.seconds = self._clock() - self.began
        self.answers.put(self, urgent=self.error is not None)  # a replica may have to be asked

    def run(self, pooled: PooledConnection, text: str, parameters: Any) -> list[tuple[Any, ...]]:
        """One statement, counted and told."""
        self.statements += 1
        tell = self.request.tell
        if tell is None:
            return pooled.run(text, parameters, self.limit)
        with self._told(tell, pooled, text) as told:
            rows = pooled.run(text, parameters, self.limit)
            told["rows"] = len(rows)
        return rows

    def run_until(
        self, take: Take, pooled: PooledConnection, text: str, parameters: Any
    ) -> tuple[list[tuple[Any, ...]], bool]:
        """One statement, counted, as far as *take* reads its rows; and whether it left off early."""
        self.statements += 1
        tell = self.request.tell
        if tell is None:
            return pooled.run_until(take, text, parameters, self.limit)
        with self._told(tell, pooled, text) as told:
            rows, cut = pooled.run_until(take, text, parameters, self.limit)
            told["rows"] = len(rows)
        return rows, cut

    def _told(
        self, tell: Callable[..., None], pooled: PooledConnection, text: str
    ) -> AbstractContextManager[dict[str, Any]]:
        dialect, cell = dialect_name(pooled.dialect), self.request.cell
        return told_statement(tell, "listing.statement", dialect, text, clock=self._clock, cell=cell)

    def fetch(
        self, table: sa.Table, make: Callable[[Dialect, TableLayout | None], tuple[str, Any]]
    ) -> list[tuple[Any, ...]]:
        """All rows of the one statement that *make* words for this database: its text and parameters."""
        return self.with_connection(
            lambda attempt, pooled: attempt.with_layout(
                pooled, table, lambda layout: attempt.run(pooled, *make(pooled.dialect, layout))
            )
        )

    def with_layout(self, pooled: PooledConnection, table: sa.Table, read: Callable[[TableLayout | None], T]) -> T:
        """Call *read*, which sends its statements by :meth:`run`, with what is known of the table in this database."""
        return self.pool.layouts.use(
            table, pooled.dialect, lambda text, parameters: self.run(pooled, text, parameters), read
        )

    def with_connection(self, use: Callable[[Attempt, PooledConnection], T]) -> T:
        """Call *use*, which only reads, with this and a connection that :meth:`drop` can break.

        A connection kept from before may have died with its server, which may be back, or remember plans for a table
        that has changed: then once more with a new one.
        """
        pooled = self.pool.acquire(self._clock() + self.request.seconds, waits=self._waits)
        renewed = False
        while True:
            if self.dropped:  # while it waited; nobody else has seen the connection, which is as good as before
                self.pool.release(pooled)
                self._unless_dropped()
            self.warm = pooled.used
            try:
                with self._holding:
                    self.pooled = pooled
                if self.lending is not None:
                    pooled.tell_when_late(*self.lending)
                self._unless_dropped()  # once more: from here on it is the connection that is broken
                result = use(self, pooled)
            except Exception as error:
                outdated = plan_is_outdated(error)
                blamed = self.pool.blame(pooled, error, broken=self._let_go() or outdated)
                gone = self.warm and isinstance(blamed, DatabaseUnavailable)
                if self.dropped or renewed or not (gone or outdated):
                    raise blamed from error
                renewed = True
                pooled = self.pool.acquire(self.limit, fresh=True, waits=self._waits)
                continue
            except BaseException:  # the caller's own thread was interrupted
                self._let_go()
                self.pool.scrap(pooled)
                raise
            if self._let_go():
                self.pool.scrap(pooled)  # just after its answer came
            else:
                self.pool.release(pooled)
            return result

    def _let_go(self) -> bool:
        """From now on :meth:`drop` breaks no connection, which is another's soon; whether it has done so."""
        with self._holding:
            if self.pooled is not None and self.lending is not None:
                self.pooled.tell_when_late(math.inf, None)
            self.pooled = None
            return self.broken

    def _unless_dropped(self) -> None:
        if self.dropped:
            raise Cancelled("nobody waits for the answer any more: the statement was not sent")

    def drop(self) -> None:
        """Nobody waits any more: make the statement under way fail."""
        self.dropped = True
        with self._holding:
            if self.pooled is not None:
                self.broken = True
                self.pooled.abort()


class Request:
    """What is under way to one cell: one attempt, or two when a replica was asked as well (a hedged request)."""

    __slots__ = ("attempts", "backend", "began", "cell", "hedge_at", "pools", "seconds", "started", "tell", "work")

    backend: Backend
    began: float
    cell: str
    hedge_at: float | None
    pools: list[ConnectionPool]
    seconds: float
    tell: Callable[..., None] | None
    work: Callable[[Attempt], Any]

    def __init__(
        self,
        cell: str,
        backend: Backend,
        work: Callable[[Attempt], Any],
        *,
        began: float,
        seconds: float,
        hedge_at: float | None,
        tell: Callable[..., None] | None = None,
    ) -> None:
        self.tell = tell
        self.cell, self.backend, self.work = cell, backend, work
        self.began, self.seconds, self.hedge_at = began, seconds, hedge_at
        self.started: float | None = None
        """When the cell was really asked; None while the request waits for a thread or a connection of ours."""
        self.pools = list(backend.pools)
        """Databases not yet asked."""
        self.attempts: list[Attempt] = []

    @property
    def limit(self) -> float:
        """The monotonic instant at which the cell is late, if it has been asked, else our own process."""
        return (self.began if self.started is None else self.started) + self.seconds
