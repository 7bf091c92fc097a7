"""From the driver's tuples to records: only the rows of a page get this far."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cloudcore.listing.order import Kind
from cloudcore.listing.values import Layout, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.listing.conditions import Column

__all__ = ["Shaper"]


def _instant(value: Any) -> datetime:
    if value.__class__ is str:
        value = datetime.fromisoformat(value)
    if value.tzinfo is None:
        result: datetime = value.replace(tzinfo=UTC)
        return result
    instant: datetime = value if value.tzinfo is UTC else value.astimezone(UTC)
    return instant


_CONVERTERS: dict[Kind, Callable[[Any], Any]] = {Kind.INSTANT: _instant, Kind.BOOLEAN: bool, Kind.UUID: str}


class Shaper:
    """Makes records of rows. Immutable.

    Args:
        columns: What the source says of its columns.
        selected: The columns of a row, in order.
        shown: Those that the record has, in order.
    """

    def __init__(self, columns: Mapping[str, Column], selected: Sequence[str], shown: Sequence[str]) -> None:
        self.layout = Layout(tuple(shown))
        self._indexes = None if tuple(selected[: len(shown)]) == tuple(shown) else [selected.index(n) for n in shown]
        self._width = len(shown)
        self._exact = len(selected) == len(shown)
        self._converters = [
            (number, _CONVERTERS[columns[name].kind])
            for number, name in enumerate(shown)
            if name in columns and columns[name].kind in _CONVERTERS
        ]

    def record(self, row: tuple[Any, ...], cell: str) -> Record:
        """One record."""
        values = list(row) if self._indexes is None else [row[index] for index in self._indexes]
        for number, convert in self._converters:
            value = values[number]
            if value is not None:
                values[number] = convert(value)
        return Record(self.layout, tuple(values if self._exact else values[: self._width]), cell)

    def from_plain(self, values: list[Any], cell: str) -> Record:
        """A placeholder, from values in the order of the layout."""
        for number, convert in self._converters:
            if values[number] is not None:
                values[number] = convert(values[number])
        return Record(self.layout, tuple(values), cell, unknown=True)
