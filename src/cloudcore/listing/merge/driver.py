"""The driver of a merge: sends its fetches to the cells through threads and feeds the answers back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cloudcore.listing.cells.requests import Ask, Flights, Part
from cloudcore.listing.merge.page_bound import Horizon
from cloudcore.listing.query.statements import segments
from cloudcore.listing.values import CellState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.listing.cells.backends import Port
    from cloudcore.listing.cells.connections import Lease
    from cloudcore.listing.merge.merging import Entry, Fetch, Merge
    from cloudcore.listing.query.statements import Plan, Segment

__all__ = ["Gather"]

Batch = tuple[list[tuple[Any, ...]], bool]
"""Rows, and whether reading was left off before there were as many as asked for."""

_KEPT = 16
"""Statements that one merge keeps."""
_DISORDER = "rows came out of order or twice: the database does not sort as told, or an index of it is corrupt"


class Gather:
    """Drives one merge. Used by one thread at a time.

    Args:
        plan: What to ask.
        merge: The merge to feed.
        ports: The cells to ask.
        start: Starts a job in another thread.
        settle: Says which cells own records that came twice.
        clock: Monotonic seconds.
        patient: Each fetch has the cell's whole deadline (streams); else all fetches of the merge share it (pages).
    """

    def __init__(
        self,
        plan: Plan,
        merge: Merge,
        ports: Mapping[str, Port],
        *,
        start: Callable[[Callable[[], None]], None],
        settle: Callable[[Iterable[str]], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
        patient: bool = False,
    ) -> None:
        self.merge = merge
        self._reader = _Reader(plan, _horizon(plan, merge))
        self._flights = Flights(ports, start=start, clock=clock, lanes=True)
        self._settle, self._patient = settle, patient
        self._starved: set[str] = set()

    @property
    def parts(self) -> dict[str, Part]:
        """What became of each cell so far."""
        return self._flights.parts

    def advance(self) -> list[Entry]:
        """The next rows that are certain; empty when the merge is done."""
        merge = self.merge
        while True:
            given = merge.emit()
            self._send(merge.fetches())
            if given:
                return given
            if merge.disputed:
                merge.decide(self._settle(merge.disputed))
            elif merge.done:
                return given
            else:
                self._receive()

    def run(self) -> None:
        """Until the merge is done."""
        while not self.merge.done:
            self.advance()

    def stop(self) -> None:
        """Nobody wants the fetches still under way. They end by themselves; their cells are not blamed."""
        self._flights.stop()

    def _send(self, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            if not self.merge.runs[fetch.cell].left:
                self._starved.add(fetch.cell)
            seconds = None
            part = self.parts[fetch.cell]
            if part.seconds and not self._patient:
                deadline = self._flights.ports[fetch.cell].deadline
                seconds = max(deadline - part.seconds, deadline / 20)
            self._flights.send(fetch.cell, self._reader.work(fetch), seconds=seconds)
        self._flights.go()

    def _receive(self) -> None:
        """Wait until every cell without which nothing is certain has answered or failed."""
        waited = False
        while self._starved or not waited:
            waited = True
            done = self._flights.wait(len(self._starved))
            if not done:
                return
            for cell, batch, error in done:
                self._starved.discard(cell)
                if error is not None:
                    self.merge.fail(cell)
                else:
                    self._feed(cell, *batch)

    def _feed(self, cell: str, rows: list[tuple[Any, ...]], cut: bool) -> None:
        part = self.parts[cell]
        part.fetched += len(rows)
        if not self.merge.feed(cell, rows, cut=cut):
            part.state, part.error = CellState.DOWN, _DISORDER
            self._flights.ports[cell].fail(_DISORDER)


def _horizon(plan: Plan, merge: Merge) -> Horizon | None:
    """Where the page will end; streams have no end, and a single cell is asked for just what is wanted."""
    if merge.limit is None or len(merge.runs) < 2:
        return None
    return Horizon(merge.limit, len(merge.runs), plan.indexes[0], descending=plan.order.keys[0].descending)


class _Reader:
    """Reads batches: statement after statement until there are enough rows.

    Most cells of a merge are asked the same thing, so what the first of them sends is kept for the others. May be
    called from several threads.
    """

    def __init__(self, plan: Plan, horizon: Horizon | None) -> None:
        self._plan = plan
        self._horizon = horizon
        self._sent: dict[Any, tuple[list[Segment], tuple[str, Any]]] = {}

    def work(self, fetch: Fetch) -> Callable[[Ask], Batch]:
        """The job that answers *fetch*."""
        horizon = self._horizon if fetch.first else None  # who is asked again was left too early

        def read(ask: Ask, lease: Lease) -> Batch:
            stretches, statement = self._first(lease, fetch)
            rows: list[tuple[Any, ...]] = []
            for number, segment in enumerate(stretches):
                if number:
                    statement = self._plan.page(lease.dialect, segment, fetch.count - len(rows))
                if horizon is not None and segment.leading != "nulls":
                    more, cut = ask.run_to(horizon, lease, *statement)
                else:
                    more, cut = ask.run(lease, *statement), False
                rows = rows + more if rows else more
                if cut or len(rows) >= fetch.count:
                    return rows, cut
            return rows, False

        return lambda ask: ask.with_lease(read)

    def _first(self, lease: Lease, fetch: Fetch) -> tuple[list[Segment], tuple[str, Any]]:
        key = lease.form, fetch.after, fetch.count
        found = self._sent.get(key)
        if found is None:
            stretches = segments(self._plan.order, fetch.after)
            found = stretches, self._plan.page(lease.dialect, stretches[0], fetch.count)
            if len(self._sent) < _KEPT:
                self._sent[key] = found
        return found
