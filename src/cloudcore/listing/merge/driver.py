"""The driver of a merge: sends its fetches to the cells through threads and feeds the answers back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore.listing.cells.in_flight import CellOutcome, RequestsInFlight
from cloudcore.listing.merge.page_bound import PageBound
from cloudcore.listing.merge.reading import Reader
from cloudcore.listing.values import CellState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloudcore.listing.cells.admission import Turn
    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.merge.merging import Entry, Fetch, Merge
    from cloudcore.listing.merge.services import RouterServices
    from cloudcore.listing.query.prepared import PreparedQuery
    from cloudcore.listing.query.statements import Plan

__all__ = ["MergeDriver"]


class MergeDriver:
    """Drives one merge. Used by one thread at a time.

    Args:
        prepared: What is wanted.
        plan: What to ask: whole rows, or keys.
        merge: The merge to feed.
        backends: The cells to ask.
        services: The router's.
        patient: Each fetch has the cell's whole deadline (streams); else all fetches of the merge share it (pages).
    """

    merge: Merge

    def __init__(
        self,
        prepared: PreparedQuery,
        plan: Plan,
        merge: Merge,
        backends: Mapping[str, Backend],
        services: RouterServices,
        *,
        patient: bool = False,
    ) -> None:
        self.merge, self._prepared = merge, prepared
        self._reader = Reader(plan, _bound(plan, merge))
        self._requests = RequestsInFlight(backends, start=services.start, clock=services.clock, serial=True)
        self._settle, self._patient = services.settle, patient
        self._starved: set[str] = set()

    def work_by(self, turn: Turn | None) -> None:
        """From now on wait for cells by lending *turn*."""
        self._requests.turn = turn

    @property
    def outcomes(self) -> dict[str, CellOutcome]:
        """What became of each cell so far."""
        return self._requests.outcomes

    def advance(self) -> list[Entry]:
        """The next rows that are certain; empty when the merge is done."""
        merge = self.merge
        while True:
            given = merge.emit()
            self._send(merge.fetches())
            if given:
                return given
            if merge.disputed:
                merge.decide(self._settle(self._prepared, merge.disputed))
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
        self._requests.stop()

    def _send(self, fetches: list[Fetch]) -> None:
        for fetch in fetches:
            if not self.merge.runs[fetch.cell].left:
                self._starved.add(fetch.cell)
            seconds = None
            outcome = self.outcomes[fetch.cell]
            if outcome.seconds and not self._patient:
                deadline = self._requests.backends[fetch.cell].deadline
                seconds = max(deadline - outcome.seconds, deadline / 20)
            self._requests.send(fetch.cell, self._reader.work(fetch), seconds=seconds)
        self._requests.go()

    def _receive(self) -> None:
        """Wait until every cell without which nothing is certain has answered or failed."""
        waited = False
        while self._starved or not waited:
            waited = True
            done = self._requests.wait(len(self._starved))
            if not done:
                return
            for cell, batch, error in done:
                self._starved.discard(cell)
                if error is not None:
                    self._prepared.answer_for(cell, error)
                    self.merge.fail(cell)
                else:
                    self._feed(cell, *batch)

    def _feed(self, cell: str, rows: list[tuple[Any, ...]], cut: bool) -> None:
        outcome = self.outcomes[cell]
        outcome.fetched += len(rows)
        if not self.merge.feed(cell, rows, cut=cut):
            outcome.state, outcome.failure = CellState.DOWN, self.merge.runs[cell].problem
            outcome.error = str(outcome.failure)


def _bound(plan: Plan, merge: Merge) -> PageBound | None:
    """Where the page will end; streams have no end, and a single cell is asked for just what is wanted."""
    if merge.limit is None or len(merge.runs) < 2:
        return None
    return PageBound(merge.limit, len(merge.runs), plan.indexes[0], descending=plan.order.keys[0].descending)
