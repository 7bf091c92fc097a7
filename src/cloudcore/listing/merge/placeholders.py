"""Placeholders: what the directory knows of the records of a cell that does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.listing.query.compiled import statement_cache
from cloudcore.listing.query.conditions import Condition, order_of
from cloudcore.listing.query.segments import segments
from cloudcore.listing.query.statements import Plan
from cloudcore.listing.values import UNKNOWN, Query, Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.listing.merge.services import RouterServices
    from cloudcore.listing.query.order import Order, Position
    from cloudcore.listing.query.prepared import PreparedQuery

__all__ = ["Placeholder", "Placeholders"]

_ALL = 10**9
"""Stands for "no limit" in a statement."""
_KEPT = 100_000
"""Characters of statements kept while placeholders are fetched."""


@attrs.frozen
class Placeholder:
    """A placeholder, its sort key and its position in the order asked for, whose columns it need not show."""

    key: tuple[Any, ...]
    record: Record
    position: Position


class Placeholders:
    """The placeholders of one page.

    Attributes:
        possible: The directory can tell which of its instances the query means.
        in_place: It can also tell where in the order each stands; else they come at the end, by key.
        more: Whether there are further ones after those given.
    """

    more: bool
    possible: bool
    in_place: bool

    def __init__(self, services: RouterServices, prepared: PreparedQuery, away: Sequence[str]) -> None:
        self._prepared = prepared
        entries = None if services.directory is None else services.directory.entries(away)
        self.more = False
        self.possible = entries is not None and _answerable(prepared, entries.source.columns.keys())
        self.in_place = False
        if entries is not None and self.possible:
            self._source, self._database = entries.source, entries.database
            self._cells = {value: name for name, value in entries.values.items()}
            self.in_place = all(key.column in self._source.columns for key in prepared.order.keys)

    def after(self, position: Position | None, limit: int | None) -> list[Placeholder]:
        """Placeholders in the order asked for, strictly after *position*."""
        order = order_of(self._prepared.sort, self._source.key, self._source.columns)
        return self._fetch(order, position, limit)

    def tail(self, key: str | None, limit: int | None) -> list[Placeholder]:
        """Placeholders by key, strictly after *key*."""
        order = order_of((), self._source.key, self._source.columns)
        return self._fetch(order, None if key is None else (key,), limit)

    def _fetch(self, order: Order, after: Position | None, limit: int | None) -> list[Placeholder]:
        conditions = (*self._prepared.conditions, Condition("cell", "in", tuple(sorted(self._cells))))
        plan = Plan(
            self._source, Query(limit=limit), conditions, order, tuple(self._source.columns), statement_cache(_KEPT)
        )
        count = _ALL if limit is None else limit + 1
        rows: list[tuple[Any, ...]] = []
        with self._database.read() as connection:
            for segment in segments(order, after):
                sent = plan.page(self._database.engine.dialect, segment, count - len(rows))
                rows += [tuple(row) for row in connection.exec_driver_sql(sent.text, sent.parameters)]
                if len(rows) >= count:
                    break
        self.more = len(rows) >= count
        keys = order.sort_keys(order.read([[row[index] for row in rows] for index in plan.indexes])) if rows else []
        found = [
            Placeholder(key, self._record(plan, row), order.position(tuple([row[index] for index in plan.indexes])))
            for key, row in zip(keys, rows, strict=True)
        ]
        return found if limit is None else found[:limit]

    def _record(self, plan: Plan, row: tuple[Any, ...]) -> Record:
        layout = self._prepared.layout
        known = dict(zip(plan.columns, row, strict=True))
        values = {"vm_state": UNKNOWN, **known, self._prepared.source.key: known[self._source.key]}
        cell = self._cells[known["cell"]]
        return Record(layout, tuple([values.get(name) for name in layout.names]), cell, unknown=True)


def _answerable(prepared: PreparedQuery, columns: Any) -> bool:
    query = prepared.query
    plain = not (query.metadata or prepared.plan.words or prepared.plan.expression is not None or query.deleted is True)
    return plain and all(condition.column in columns for condition in prepared.conditions)
