"""Orders: one list of (column, direction, NULL rank) that drives SQL, merge and cursor alike. Pure.

A row's place in an order has two forms. Its *position* is the tuple of plain values of its sort columns, with None for
NULL; cursors carry it and SQL gets it as parameters. Its *sort key* is a tuple that Python compares with ``<`` exactly
as the databases order the rows: directions and NULL ranks are worked in, and NaN, which comes after all numbers.
Decimals keep all their digits here, also those beyond their column's scale, which SQLite may hold and orders by.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import repeat
from operator import attrgetter, gt, itemgetter, lt, ne, neg, sub
from typing import Any

import attrs

from cloudcore.listing.query.kinds import FORMS, Kind, dashed, plain

__all__ = ["Key", "Order", "Position", "Unfit", "ordered"]

Position = tuple[Any, ...]
"""Plain values of the sort columns of one row, in order of weight."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the other side of the subtraction is naive UTC
_NULLS_FIRST, _NAN_FIRST, _VALUE, _NAN_LAST, _NULLS_LAST = range(5)
_WITH_NAN = frozenset({Kind.FLOAT, Kind.DECIMAL})
_SEPARATOR, _ZONE = itemgetter(10), attrgetter("tzinfo")
_TEXT_LENGTHS = frozenset(range(19, 27)) - {20}
"""Of instants as text that sort as instants do: ``YYYY-MM-DD HH:MM:SS`` with no fraction or one of up to six digits."""


class Unfit(ValueError):
    """A value of a sort column that cannot be read or compared.

    Attributes:
        row: Which row has it.
        column: Its name.
        value: What is there.
    """

    row: int
    column: str
    value: Any

    def __init__(self, row: int, column: str, value: Any, reason: str) -> None:
        super().__init__(reason)
        self.row, self.column, self.value = row, column, value


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
    """How long after the epoch each instant is, or before it when *descending*: comparable whatever the driver sent."""
    try:
        epoch = _EPOCH if values and values[0].tzinfo is not None else _NAIVE_EPOCH
        return list(map(sub, repeat(epoch), values) if descending else map(sub, values, repeat(epoch)))
    except TypeError:
        instants = [plain(Kind.INSTANT, value) for value in values]
        return [_EPOCH - instant if descending else instant - _EPOCH for instant in instants]


def _from_midnight(value: time) -> int:
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond


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

    @property
    def reversed(self) -> Key:
        """The same column the other way round."""
        return attrs.evolve(self, descending=not self.descending, nulls_first=not self.nulls_first)

    # ---- reading

    def read(self, values: list[Any]) -> list[Any]:
        """The driver's values in a form that can be compared: plain, but for time zones.

        A driver sends one form for a whole column, so the loops are the interpreter's own; SQLite may hold a mixture.

        Raises:
            Unfit: One of them, the first in the list, is nothing that the column can hold.
        """
        forms = set(map(type, values))
        if forms <= FORMS[self.kind] or (self.nullable and forms - {type(None)} <= FORMS[self.kind]):
            return values
        if self.kind is Kind.INSTANT and forms == {str} and (read := _sortable_instants(values)) is not None:
            return read
        if self.kind is Kind.UUID and forms == {str} and set(map(len, values)) == {36}:
            return values
        return [self._read(row, value) for row, value in enumerate(values)]

    def _read(self, row: int, value: Any) -> Any:
        if value is None:
            if self.nullable:
                return None
            raise Unfit(row, self.column, value, "NULL, where none may be")
        try:
            if self.kind is Kind.INSTANT and isinstance(value, str) and _sortable_instants([value]) is None:
                datetime.fromisoformat(value)
                raise ValueError(
                    f"{value!r} is an instant in a form that does not sort as text: write YYYY-MM-DD HH:MM:SS.ffffff"
                )
            return plain(self.kind, value)
        except ValueError as error:
            raise Unfit(row, self.column, value, str(error)) from error

    # ---- comparing

    def comparable(self, values: list[Any]) -> list[list[Any]]:
        """One or two columns of sort keys for a column of values that were read."""
        if not self.nullable and self.kind not in _WITH_NAN:
            return [self._directed(values)]
        ranks = [_VALUE] * len(values)
        if self.nullable and None in values:
            null = _NULLS_FIRST if self.nulls_first else _NULLS_LAST
            ranks = [null if value is None else _VALUE for value in values]
        if self.kind in _WITH_NAN and any(map(ne, values, values)):
            nan = _NAN_FIRST if self.descending else _NAN_LAST
            ranks = [nan if value != value else rank for value, rank in zip(values, ranks, strict=True)]
        directed = iter(self._directed([v for v, rank in zip(values, ranks, strict=True) if rank == _VALUE]))
        return [ranks, [next(directed) if rank == _VALUE else 0 for rank in ranks]]

    def _directed(self, values: list[Any]) -> list[Any]:
        if self.kind is Kind.INSTANT:
            return _from_epoch(values, descending=self.descending)
        if not self.descending:
            return values
        if self.kind in {Kind.TEXT, Kind.UUID, Kind.BINARY}:
            return list(map(_Reversed, values))
        if self.kind is Kind.DECIMAL:
            return list(map(Decimal.copy_negate, values))  # exact, whatever the context's precision
        if self.kind is Kind.DATE:
            values = list(map(date.toordinal, values))
        elif self.kind is Kind.TIME:
            values = list(map(_from_midnight, values))
        return list(map(neg, values))


def _sortable_instants(values: list[str]) -> list[datetime] | None:
    """Instants out of text that sorts as they do, None when any of it does not."""
    try:
        if set(map(len, values)) <= _TEXT_LENGTHS and set(map(_SEPARATOR, values)) <= {" "}:
            read = list(map(datetime.fromisoformat, values))
            return read if set(map(_ZONE, read)) <= {None} else None
    except ValueError:
        pass
    return None


@attrs.frozen
class Order:
    """A total order over records: the last key is the source's key column, which no two records share.

    Attributes:
        keys: In order of weight.
    """

    keys: tuple[Key, ...]

    @property
    def reversed(self) -> Order:
        """The same order from its end."""
        return Order(tuple(key.reversed for key in self.keys))

    def read(self, columns: list[list[Any]]) -> list[list[Any]]:
        """The driver's values of each sort column in a form that can be compared.

        Raises:
            Unfit: Of the first row that has a value that cannot.
        """
        found: Unfit | None = None
        read: list[list[Any]] = []
        for key, values in zip(self.keys, columns, strict=True):
            try:
                read.append(key.read(values))
            except Unfit as unfit:
                if found is None or unfit.row < found.row:
                    found = unfit
        if found is not None:
            raise found
        return read

    def sort_keys(self, columns: list[list[Any]]) -> list[tuple[Any, ...]]:
        """Sort keys of many rows, given the values of each sort column as :meth:`read` gives them."""
        parts: list[list[Any]] = []
        for key, values in zip(self.keys, columns, strict=True):
            parts += key.comparable(values)
        return list(zip(*parts, strict=True))

    def plainly_ordered(self, columns: list[list[Any]]) -> bool:
        """Whether the leading column alone shows that the rows are in order: a quick look that may say no in vain."""
        values = columns[0]
        try:
            return all(map(gt if self.keys[0].descending else lt, values, values[1:]))
        except (TypeError, ArithmeticError):  # NULLs; decimals that are no number
            return False

    def sort_key(self, position: Position) -> tuple[Any, ...]:
        """The sort key of one position."""
        return self.sort_keys([[value] for value in position])[0]

    def position(self, values: tuple[Any, ...]) -> Position:
        """The position of a row, given the driver's values of its sort columns."""
        return tuple(plain(key.kind, value) for key, value in zip(self.keys, values, strict=True))

    def fits(self, position: Any) -> bool:
        """Whether a position that came from outside may be one of this order."""
        if not isinstance(position, tuple) or len(position) != len(self.keys):
            return False
        return all(map(_fits, self.keys, position))


_PLAIN: dict[Kind, type | tuple[type, ...]] = {
    Kind.TEXT: str,
    Kind.UUID: str,
    Kind.INTEGER: int,
    Kind.BOOLEAN: bool,
    Kind.FLOAT: float,
    Kind.DECIMAL: Decimal,
    Kind.BINARY: bytes,
    Kind.DATE: date,
    Kind.TIME: time,
    Kind.INSTANT: datetime,
}


def _fits(key: Key, value: Any) -> bool:
    if value is None:
        return key.nullable
    try:
        if key.kind in _PLAIN and not isinstance(value, _PLAIN[key.kind]):
            return False
        if key.kind is Kind.INTEGER and (isinstance(value, bool) or not -(2**63) <= value < 2**64):
            return False
        if key.kind is Kind.UUID:
            dashed(value)
        if isinstance(value, str):
            value.encode()
            return "\0" not in value
        return bool(plain(key.kind, value) is not None)
    except ValueError:
        return False


def ordered(sort_keys: list[tuple[Any, ...]]) -> int | None:
    """Index of the first sort key that does not come strictly after the one before it; None when all do."""
    increasing = list(map(lt, sort_keys, sort_keys[1:]))
    return None if all(increasing) else increasing.index(False) + 1
