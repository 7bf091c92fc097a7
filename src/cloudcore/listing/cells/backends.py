"""Backends: what the router keeps for each cell while it lives: connections, breaker, latencies."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from cloudcore._forks import when_forked
from cloudcore.listing.cells.hedging import HedgePolicy, Hedger
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.cells.promptness import Distance, Promptness
from cloudcore.listing.values import CellStatus
from cloudcore.observability import event

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.listing.cells.breakers import Breakers, BreakerView
    from cloudcore.listing.cells.cell import Cell
    from cloudcore.listing.cells.connections import OpenConnections

__all__ = ["Backend", "SharedBreakers"]


class SharedBreakers:
    """The breakers of a router behind a lock and a clock. Thread-safe."""

    def __init__(self, breakers: Breakers, clock: Callable[[], float] = time.monotonic) -> None:
        self._breakers, self._clock = breakers, clock
        self._unlock()
        when_forked(self, SharedBreakers._unlock)

    def _unlock(self) -> None:
        """With a lock that nobody holds: at first, and in a forked child, where its holder is missing."""
        self._lock = threading.Lock()

    def admit(self, cell: str) -> bool:
        """Whether *cell* may be asked now."""
        with self._lock:
            return self._breakers.admit(cell, self._clock())

    @property
    def quiet(self) -> bool:
        """Whether no cell has failed since its last success: all are admitted."""
        return not self._breakers.any_troubled

    def succeed(self, cell: str) -> None:
        """*cell* has answered."""
        if not self._breakers.troubled(cell):  # the common case needs no lock: reading a dictionary is atomic
            return
        with self._lock:
            self._breakers.succeed(cell)
        event("listing.cell.recovered", logging.INFO, cell=cell)

    def fail(self, cell: str, reason: str) -> None:
        """*cell* has failed or was too slow."""
        with self._lock:
            self._breakers.fail(cell, self._clock(), reason)
            view = self._breakers.view(cell)
        event(
            "listing.cell.failed",
            logging.WARNING,
            cell=cell,
            reason=reason,
            failures=view.failures,
            breaker=view.state.value,
        )

    def forget(self, cell: str) -> None:
        """*cell* is gone."""
        with self._lock:
            self._breakers.forget(cell)

    def view(self, cell: str) -> BreakerView:
        """How the breaker stands."""
        with self._lock:
            return self._breakers.view(cell)

    def refusal(self, cell: str) -> str:
        """Why *cell* is not asked at present."""
        view = self.view(cell)
        left = max(0.0, (view.opens_at or 0.0) - self._clock())
        return f"breaker {view.state} after {view.failures} failures, next probe in {left:.1f} s; last: {view.reason}"

    def check(self) -> None:
        """Verify the breakers. Raises InvariantViolated."""
        with self._lock:
            self._breakers.check()


class Backend:
    """One cell as the router holds it. Thread-safe."""

    deadline: float
    pools: list[ConnectionPool]
    promptness: Promptness
    distance: Distance

    def __init__(
        self,
        cell: Cell,
        deadline: float,
        breakers: SharedBreakers,
        *,
        opened: OpenConnections,
        hedging: HedgePolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cell = cell
        self.deadline = cell.deadline or deadline
        options = {**cell.options, **({"pooler": cell.pooler} if cell.pooler else {})}
        self.pools = [
            ConnectionPool(
                database,
                connections=cell.connections,
                deadline=self.deadline,
                options=options,
                clock=clock,
                opened=opened,
            )
            for database in (cell.database, *cell.replicas)
        ]
        self.promptness = Promptness(self.pool.local)
        self.distance = Distance()
        self._plain = self.pool.mine and not cell.options
        self._breakers = breakers
        self._hedger = Hedger(hedging) if cell.replicas else None
        self._clock = clock
        self._answered_at: float | None = None
        self._unlock()
        when_forked(self, Backend._unlock)

    def _unlock(self) -> None:
        """With a lock that nobody holds: at first, and in a forked child, where its holder is missing."""
        self._lock = threading.Lock()

    def status(self, now: float) -> CellStatus:
        """How it stands at the instant *now*."""
        view = self._breakers.view(self.cell.name)
        return CellStatus(
            enabled=self.cell.enabled,
            breaker=view.state.value,
            failures=view.failures,
            probe_in=None if view.opens_at is None else max(0.0, view.opens_at - now),
            answered_ago=None if self._answered_at is None else now - self._answered_at,
            reason=view.reason,
        )

    @property
    def pool(self) -> ConnectionPool:
        """The first of its databases, which is also the one written to."""
        return self.pools[0]

    @property
    def direct(self) -> bool:
        """Whether the caller's own thread may wait for an answer.

        Only for a file that has just answered at once over a connection of ours: SQLite gives up a statement at the
        deadline by itself, and waits no longer for a lock. A file system that hangs would hold the caller.
        """
        return self._plain and self.promptness.proven

    def patience(self) -> float | None:
        """Note a request; seconds after which a replica should be asked too, None when there is none."""
        if self._hedger is None:
            return None
        with self._lock:
            self._hedger.note_request()
            return self._hedger.patience()

    def may_hedge(self) -> bool:
        """Whether the budget allows a second request now; takes it."""
        with self._lock:
            return self._hedger is not None and self._hedger.spend()

    def succeed(self, seconds: float) -> None:
        """It has answered."""
        self.distance.answered(seconds)
        self._answered_at = self._clock()
        self._breakers.succeed(self.cell.name)
        if self._hedger is not None:
            with self._lock:
                self._hedger.note_answer(seconds)

    def refuse(self) -> None:
        """It has answered that it will not: a probe has found it well."""
        self._breakers.succeed(self.cell.name)

    def fail(self, reason: str) -> None:
        """It has failed."""
        self._breakers.fail(self.cell.name, reason)

    def close(self) -> None:
        """Close its connections."""
        for pool in self.pools:
            pool.close()
