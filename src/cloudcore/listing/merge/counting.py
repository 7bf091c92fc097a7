"""Counts and sums over cells: one statement to each, added up by value."""

from __future__ import annotations

from collections import Counter, defaultdict
from decimal import Decimal
from math import nan
from typing import TYPE_CHECKING, Any

from cloudcore._values import FrozenDict
from cloudcore.errors import InvalidQuery, UnreadableValue
from cloudcore.listing.cells.in_flight import ask_all
from cloudcore.listing.merge.resuming import insist
from cloudcore.listing.query.kinds import Kind, plain
from cloudcore.listing.values import CellState, Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.cells.requests import Attempt
    from cloudcore.listing.merge.services import RouterServices
    from cloudcore.listing.query.conditions import Column
    from cloudcore.listing.query.prepared import PreparedQuery
    from cloudcore.listing.query.sources import RecordSource
    from cloudcore.listing.values import CellReport

__all__ = ["check_columns", "count"]

_SUMMED = frozenset({Kind.INTEGER, Kind.DECIMAL, Kind.FLOAT})
Row = tuple[Any, ...]
_NANS: dict[type, Any] = {float: nan, Decimal: Decimal("NaN")}
"""One of each: they are equal to nothing, but a dictionary finds what is the same object."""


def check_columns(source: RecordSource, by: str | None, sums: Sequence[str]) -> None:
    """Refuse columns that cannot be counted by or added up.

    Raises:
        InvalidQuery: With the column.
    """
    column = source.columns.get(by) if isinstance(by, str) else None
    if by is not None and (column is None or column.kind in {Kind.JSON, Kind.OTHER}):
        raise InvalidQuery(f"no column {by!r} to count by", field="by", value=by)
    for name in sums:
        if not isinstance(name, str) or name not in source.columns or source.columns[name].kind not in _SUMMED:
            raise InvalidQuery(f"no column {name!r} of numbers to add up", field="sums", value=name)


def count(
    services: RouterServices,
    prepared: PreparedQuery,
    backends: Mapping[str, Backend],
    reports: dict[str, CellReport],
    by: str | None,
    sums: Sequence[str],
) -> Counts:
    """Ask every cell, and add up.

    Raises:
        InvalidQuery: A database refuses the query.
        CellUnavailable: ``require="all"`` and some cell did not answer.
    """
    asking = {} if prepared.impossible else backends
    work = _work(services, prepared, backends, by, sums)
    results, outcomes, errors = services.in_turn(
        len(asking), lambda turn: ask_all(asking, work, start=services.start, clock=services.clock, turn=turn)
    )
    for cell, error in errors.items():
        prepared.answer_for(cell, error)
    adding = _Adding(prepared.source.columns, by, sums)
    for name, outcome in outcomes.items():
        number = 0
        try:
            number = adding.take(results.get(name, ()))
        except ValueError as error:
            outcome.state, outcome.error = CellState.DOWN, f"{name}: {by}: {error}"
            outcome.failure = UnreadableValue(outcome.error, cell=name, column=by)
        reports[name] = outcome.report(name, number)
    insist(prepared.query, reports)
    return adding.counts(reports)


def _work(
    services: RouterServices,
    prepared: PreparedQuery,
    backends: Mapping[str, Backend],
    by: str | None,
    sums: Sequence[str],
) -> Callable[[str], Callable[[Attempt], Any]]:
    owners, plan = services.owners(len(backends)), prepared.plan

    def work_of(cell: str) -> Callable[[Attempt], Any]:
        copies = [key for key, owner in owners.items() if owner != cell and owner in backends]
        return lambda attempt: attempt.fetch(
            plan.source.table, lambda dialect, layout: plan.count(dialect, by, sums, copies, layout)
        )

    return work_of


class _Adding:
    """What the cells have said so far."""

    def __init__(self, columns: Mapping[str, Column], by: str | None, sums: Sequence[str]) -> None:
        self._by = None if by is None else columns[by]
        self._summed = [columns[name] for name in sums]
        self._numbers: Counter[Any] = Counter()
        self._sums: dict[Any, list[Any]] = defaultdict(lambda: [0] * len(self._summed))

    def take(self, rows: Sequence[Row]) -> int:
        """Add the rows of a cell, all or none; their number of records.

        Raises:
            ValueError: A value is nothing that its column can hold.
        """
        read = [self._read(row) for row in rows]
        for value, sums, number in read:
            self._numbers[value] += number
            self._sums[value] = [mine + other for mine, other in zip(self._sums[value], sums, strict=True)]
        return sum(number for _, _, number in read)

    def _read(self, row: Row) -> tuple[Any, list[Any], int]:
        value = None if self._by is None else plain(self._by.kind, row[0], self._by.scale)
        if value != value:
            value = _NANS[type(value)]
        given = row[-1 - len(self._summed) : -1]
        sums = [plain(column.kind, each, column.scale) for column, each in zip(self._summed, given, strict=True)]
        return value, sums, row[-1]

    def counts(self, reports: Mapping[str, CellReport]) -> Counts:
        """All of it."""
        names = [column.name for column in self._summed]
        by: dict[Any, FrozenDict[str, Any]] = {
            value: FrozenDict(zip(names, sums, strict=True)) for value, sums in self._sums.items()
        }
        totals = {name: sum(sums[name] for sums in by.values()) for name in names}
        return Counts(
            total=self._numbers.total(),
            by=FrozenDict(self._numbers if self._by is not None else {}),
            sums=FrozenDict(totals),
            sums_by=FrozenDict(by if self._by is not None and names else {}),
            cells=FrozenDict(reports),
        )
