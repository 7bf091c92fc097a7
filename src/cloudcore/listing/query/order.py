"""Orders: one list of (column, direction, NULL rank) that drives SQL, merge and cursor alike. Pure.

A row's place in an order has two forms. Its *position* is the tuple of plain values of its sort columns, with None for
NULL; cursors carry it and SQL gets it as parameters. Its *sort key* is a tuple that Python compares with ``<`` exactly
as the databases order the rows: directions and NULL ranks are worked in.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from itertools import repeat
from operator import gt, lt, neg, sub
from typing import Any

import attrs

__all__ = ["Key", "Kind", "Order", "Position", "ordered", "plain"]

Position = tuple[Any, ...]
"""Plain values of the sort columns of one row, in order of weight."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the other side of the subtraction is naive UTC


class Kind(StrEnum):
    """What a column holds, as far as comparing and converting go."""

    TEXT = "text"
    """Text, compared by code point."""
    UUID = "uuid"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    FLOAT = "float"
    DECIMAL = "decimal"
    INSTANT = "instant"
    """A point in time; columns without a time zone hold UTC."""
    OTHER = "other"
    """Anything that is only passed through: JSON, bytes."""


def plain(kind: Kind, value: Any) -> Any:
    """The plain form of what a driver returned: UTC instants, real booleans, identifiers as text."""
    if value is None:
        return None
    if kind is Kind.INSTANT:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if kind is Kind.BOOLEAN:
        return bool(value)
    if kind is Kind.UUID:
        return str(value)
    return value


class _Reversed:
    """A value that compares the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)


def _from_epoch(values: list[Any], *, descending: bool) -> list[Any]:
    """How long after the epoch each instant is, or before it when *descending*: comparable whatever the driver sent.

    A driver sends one form for a whole column, so the loops are the interpreter's own; SQLite may hold a mixture.
    """
    try:
        if values and values[0].__class__ is str:
            values = list(map(datetime.fromisoformat, values))
        epoch = _EPOCH if values and values[0].tzinfo is not None else _NAIVE_EPOCH
        return list(map(sub, repeat(epoch), values) if descending else map(sub, values, repeat(epoch)))
    except TypeError:
        instants = [plain(Kind.INSTANT, value) for value in values]
        return [_EPOCH - instant if descending else instant - _EPOCH for instant in instants]


@attrs.frozen(kw_only=True)
class Key:
    """One sort column of an order.

    Attributes:
        column: Its name.
        kind: What it holds.
        descending: Largest first.
        nullable: Whether NULL occurs.
        nulls_first: Where NULLs go.
    """

    column: str
    kind: Kind
    descending: bool
    nullable: bool
    nulls_first: bool

    def comparable(self, values: list[Any]) -> list[list[Any]]:
        """One or two columns of sort keys for a column of driver values."""
        if not self.nullable:
            return [self._directed(values)]
        present = [value for value in values if value is not None]
        if len(present) == len(values):
            return [[1] * len(values), self._directed(values)]
        null = 0 if self.nulls_first else 2
        directed = iter(self._directed(present))
        return [
            [null if value is None else 1 for value in values],
            [0 if value is None else next(directed) for value in values],
        ]

    def _directed(self, values: list[Any]) -> list[Any]:
        if self.kind is Kind.INSTANT:
            return _from_epoch(values, descending=self.descending)
        if self.kind is Kind.UUID:
            values = list(map(str, values))
        if not self.descending:
            return values
        if self.kind in {Kind.TEXT, Kind.UUID}:
            return list(map(_Reversed, values))
        return list(map(neg, values))


@attrs.frozen
class Order:
    """A total order over records: the last key is the source's key column, which no two records share.

    Attributes:
        keys: In order of weight.
    """

    keys: tuple[Key, ...]

    def sort_keys(self, columns: list[list[Any]]) -> list[tuple[Any, ...]]:
        """Sort keys of many rows, given the values of each sort column."""
        parts: list[list[Any]] = []
        for key, values in zip(self.keys, columns, strict=True):
            parts += key.comparable(values)
        return list(zip(*parts, strict=True))

    def plainly_ordered(self, columns: list[list[Any]]) -> bool:
        """Whether the leading column alone shows that the rows are in order: a quick look that may say no in vain."""
        values = columns[0]
        try:
            return all(map(gt if self.keys[0].descending else lt, values, values[1:]))
        except TypeError:  # NULLs
            return False

    def sort_key(self, position: Position) -> tuple[Any, ...]:
        """The sort key of one position."""
        return self.sort_keys([[value] for value in position])[0]

    def position(self, values: tuple[Any, ...]) -> Position:
        """The position of a row, given the driver's values of its sort columns."""
        return tuple(plain(key.kind, value) for key, value in zip(self.keys, values, strict=True))


def ordered(sort_keys: list[tuple[Any, ...]]) -> int | None:
    """Index of the first sort key that does not come strictly after the one before it; None when all do."""
    increasing = list(map(lt, sort_keys, sort_keys[1:]))
    return None if all(increasing) else increasing.index(False) + 1
