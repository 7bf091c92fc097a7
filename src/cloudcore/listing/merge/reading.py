"""Reading a batch of a cell's rows: statement after statement, until there are as many as asked for, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore.errors import UnreadableValue
from cloudcore.listing.query.ties import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.listing.cells.connections import PooledConnection
    from cloudcore.listing.cells.requests import Attempt
    from cloudcore.listing.merge.merging import Fetch
    from cloudcore.listing.merge.page_bound import PageBound
    from cloudcore.listing.query.indexes import TableLayout
    from cloudcore.listing.query.order import Position
    from cloudcore.listing.query.segments import Segment
    from cloudcore.listing.query.statements import Plan, Sent

__all__ = ["Batch", "Reader"]

Row = tuple[Any, ...]
Batch = tuple[list[Row], bool]
"""Rows, and whether reading was left off before there were as many as asked for."""

_KEPT = 16
"""Statements that one merge keeps."""


class Reader:
    """Reads the batches of one merge.

    Most cells of a merge are asked the same thing, so what the first of them sends is kept for the others. May be
    called from several threads.

    Args:
        plan: What to ask.
        bound: Where the page will end, None when it is not to be guessed.
    """

    def __init__(self, plan: Plan, bound: PageBound | None) -> None:
        self._plan = plan
        self._bound = bound
        self._sent: dict[Any, tuple[list[Segment], Sent]] = {}
        self._inside: dict[str, int] = {}
        """Cells whose last batch ended within a tie, with the number of keys that its rows share."""

    def work(self, fetch: Fetch) -> Callable[[Attempt], Batch]:
        """The job that answers *fetch*."""

        def read(attempt: Attempt, pooled: PooledConnection) -> Batch:
            return attempt.with_layout(
                pooled, self._plan.source.table, lambda layout: self._read(attempt, pooled, fetch, layout)
            )

        return lambda attempt: attempt.with_connection(read)

    def _read(self, attempt: Attempt, pooled: PooledConnection, fetch: Fetch, layout: TableLayout | None) -> Batch:
        after, wanted, rows = fetch.after, fetch.count, self._more_of_tie(attempt, pooled, fetch, layout)
        if rows:
            after, wanted = self._position(rows[-1]), fetch.count - len(rows)
            if not wanted:
                return rows, False
        bound = self._bound if fetch.first else None  # who is asked again was left too early
        stretches, sent = self._first(pooled, after, wanted, layout)
        for number, segment in enumerate(stretches):
            if number:
                sent = self._plan.page(pooled.dialect, segment, wanted, layout)
            if bound is not None and segment.leading != "nulls":
                more, cut = attempt.run_until(bound.take, pooled, sent.text, sent.parameters)
            else:
                more, cut = attempt.run(pooled, sent.text, sent.parameters), False
            if sent.keys:
                more = self._settled(attempt, pooled, fetch.cell, segment, more, wanted, sent.keys, layout)
            rows = rows + more if rows else more
            wanted = fetch.count - len(rows)
            if cut or wanted <= 0:
                return rows, cut
        return rows, False

    def _settled(
        self, attempt: Attempt, pooled: PooledConnection, cell: str, segment: Segment, rows: list[Row], wanted: int,
        keys: int, layout: TableLayout | None,
    ) -> list[Row]:  # fmt: skip
        """The first *wanted* rows in their whole order, of rows that came in that of some *keys*."""
        settled = settle(rows, wanted, self._plan.order, self._plan.indexes, keys)
        if settled.cut is None:
            return settled.rows
        tie = segment.tie(self._position(settled.cut), keys)
        missing = wanted - len(settled.rows)
        sent = self._plan.page(pooled.dialect, tie, missing, layout)
        found = attempt.run(pooled, sent.text, sent.parameters)
        if len(found) == missing:
            self._inside[cell] = keys
        return settled.rows + found

    def _more_of_tie(
        self, attempt: Attempt, pooled: PooledConnection, fetch: Fetch, layout: TableLayout | None
    ) -> list[Row]:
        """The next rows of the tie in which the cell's last batch ended, which would only be read in vain otherwise."""
        keys = self._inside.pop(fetch.cell, 0)
        if not keys or fetch.after is None:
            return []
        tie = self._plan.segments(pooled.dialect, fetch.after, layout)[0].tie(fetch.after, keys)
        sent = self._plan.page(pooled.dialect, tie, fetch.count, layout)
        rows = attempt.run(pooled, sent.text, sent.parameters)
        if len(rows) == fetch.count:
            self._inside[fetch.cell] = keys
        return rows

    def _position(self, row: Row) -> Position:
        values = tuple([row[place] for place in self._plan.indexes])
        try:
            return self._plan.order.position(values)
        except ValueError as error:
            key = str(values[-1])
            raise UnreadableValue(f"row {key!r:.100}: {error}", identifier=key) from error

    def _first(
        self, pooled: PooledConnection, after: Position | None, count: int, layout: TableLayout | None
    ) -> tuple[list[Segment], Sent]:
        key = pooled.form, layout, after, count
        found = self._sent.get(key)
        if found is None:
            stretches = self._plan.segments(pooled.dialect, after, layout)
            found = stretches, self._plan.page(pooled.dialect, stretches[0], count, layout)
            if len(self._sent) < _KEPT:
                self._sent[key] = found
        return found
