"""Filters: what a query's ``where`` means, checked against the source's columns before anything is asked. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import is_storable, normalise_uuid, require_utc
from cloudcore.errors import InvalidArgument, InvalidQuery
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.lists import LONG, PACKED
from cloudcore.listing.query.order import Key, Order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cloudcore.listing.values import Query, Sort

__all__ = [
    "OPERATORS",
    "Column",
    "Condition",
    "conditions_of",
    "order_of",
    "prefix_end",
    "projection_of",
    "require_storable",
]

OPERATORS = frozenset({"eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "prefix", "contains", "regex", "null"})
_LISTS = frozenset({"in", "not_in"})
_TEXT_ONLY = frozenset({"prefix", "contains", "regex"})
_COMPARED = frozenset({"lt", "le", "gt", "ge"})
_BIGGEST = 2**63 - 1
_LONGEST_PATTERN = 4_000
_MOST_SETS = 16
"""Sets of characters (``[…]``) of a pattern that is compiled in advance: each may take milliseconds."""
_TYPES: dict[Kind, tuple[type, ...]] = {
    Kind.TEXT: (str,),
    Kind.UUID: (str,),
    Kind.INTEGER: (int,),
    Kind.BOOLEAN: (bool,),
    Kind.FLOAT: (float, int),
    Kind.DECIMAL: (Decimal, int),
    Kind.INSTANT: (datetime,),
    Kind.BINARY: (bytes,),
    Kind.DATE: (date,),
    Kind.TIME: (time,),
}


@attrs.frozen(kw_only=True)
class Column:
    """What a source says of one of its columns.

    Attributes:
        name: As callers name it.
        kind: What it holds.
        nullable: Whether NULL occurs.
        sortable: Whether a query may order by it.
        wide: Whether its values are large, so that keys are better fetched first.
        pinned: Whether the database compares it byte by byte already, so that no collation need be named.
        scale: Digits behind the point of a decimal column, None when they vary.
        uuid: Whether it holds UUIDs as text in dashed lower case: those in filters may be written in any form.
        textual: False where UUIDs have a type of their own, in which no prefix can be looked for.
    """

    name: str
    kind: Kind
    nullable: bool = True
    sortable: bool = True
    wide: bool = False
    pinned: bool = False
    scale: int | None = None
    uuid: bool = False
    textual: bool = True


@attrs.frozen
class Condition:
    """One test of one column.

    Attributes:
        column: Its name.
        operator: One of :data:`OPERATORS`.
        values: Plain values; several for IN, none for ``null``.
        packed: Whether they are sent as one value, for there are so many.
    """

    column: str
    operator: str
    values: tuple[Any, ...]
    packed: bool = False

    @property
    def shape(self) -> tuple[str, str, int]:
        """All but the values: conditions of one shape share their SQL."""
        return self.column, self.operator, len(self.values)

    @property
    def confining(self) -> bool:
        """Whether all records that pass have one value in the column."""
        return self.operator == "null" or (self.operator in {"eq", "in"} and len(self.values) == 1)

    @property
    def impossible(self) -> bool:
        """Whether no record can pass: IN over nothing."""
        return self.operator == "in" and not self.values


def conditions_of(where: Mapping[str, Any], columns: Mapping[str, Column]) -> tuple[Condition, ...]:
    """The conditions that a mapping stands for, in a fixed order.

    Raises:
        InvalidQuery: An unknown column or operator, or a value that the column cannot be compared with.
    """
    found: list[Condition] = []
    for name, value in where.items():
        column = _column(name, columns)
        for operator, operand in _operations(name, value):
            found.append(_condition(column, operator, operand))
    return tuple(sorted(found, key=lambda condition: condition.shape))


def _column(name: Any, columns: Mapping[str, Column]) -> Column:
    column = columns.get(name)
    if column is None:
        raise InvalidQuery(f"no column {name!r}; there are {', '.join(sorted(columns))}", field="where", value=name)
    return column


def _operations(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        unknown = value.keys() - OPERATORS
        if unknown or not value:
            raise InvalidQuery(
                f"{name}: unknown operator {', '.join(map(repr, unknown))}; there are {', '.join(sorted(OPERATORS))}",
                field=name,
                value=dict(value),
            )
        return value.items()
    if isinstance(value, list | tuple | AbstractSet):
        return [("in", value)]
    return [("null", True)] if value is None else [("eq", value)]


def _condition(column: Column, operator: str, operand: Any) -> Condition:
    if operator == "null":
        if not isinstance(operand, bool):
            raise InvalidQuery(f"{column.name}: null is tested with True or False", field=column.name, value=operand)
        return Condition(column.name, "null" if operand else "not_null", ())
    if operator in {"eq", "ne"} and operand is None:
        return Condition(column.name, "null" if operator == "eq" else "not_null", ())
    if column.kind in {Kind.OTHER, Kind.JSON}:
        raise InvalidQuery(f"{column.name}: only null can be asked of it", field=column.name, value=operand)
    if operator in _TEXT_ONLY and (column.kind not in {Kind.TEXT, Kind.UUID} or not column.textual):
        raise InvalidQuery(f"{column.name} holds no text: {operator} has no meaning", field=column.name, value=operand)
    if operator in _LISTS:
        if not isinstance(operand, list | tuple | AbstractSet):
            raise InvalidQuery(f"{column.name}: {operator} wants a list", field=column.name, value=operand)
        values = {_value(column, item) for item in operand}
        packed = len(values) > LONG and column.kind in PACKED
        return Condition(column.name, operator, tuple(sorted(values)), packed)
    if operator in _TEXT_ONLY:
        return Condition(column.name, operator, (_pattern(column, operator, operand),))
    return Condition(column.name, operator, (_value(column, operand),))


def _value(column: Column, value: Any) -> Any:
    if not _fits(column.kind, value):
        raise InvalidQuery(
            f"{column.name}: expected {column.kind}, got {value!r} ({type(value).__name__})",
            field=column.name,
            value=value,
        )
    if column.kind is Kind.INSTANT:
        return require_utc(value, column.name, InvalidQuery)
    if column.kind is Kind.UUID:
        return normalise_uuid(value, column.name, InvalidQuery)
    if column.kind is Kind.INTEGER and not -_BIGGEST - 1 <= value <= _BIGGEST:
        raise InvalidQuery(f"{column.name}: {value} does not fit 64 bits", field=column.name, value=value)
    if column.kind is Kind.INTEGER:
        return int(value)  # and no member of an enumeration, of which drivers make its name
    if column.kind is Kind.TEXT:
        text = require_storable(value, column.name)
        return _normalised(text) if column.uuid else text
    if column.kind is Kind.FLOAT:
        value = float(value)
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise InvalidQuery(f"{column.name}: {value} is no finite number", field=column.name, value=value)
    return value


def _normalised(text: str) -> str:
    """A UUID in the form in which it is stored; anything else, which no row holds, as it is."""
    try:
        return normalise_uuid(text, "uuid")
    except InvalidArgument:
        return text


def _fits(kind: Kind, value: Any) -> bool:
    expected = _TYPES[kind]
    if isinstance(value, datetime) and kind is Kind.DATE:
        return False
    if kind is Kind.TIME and isinstance(value, time) and value.tzinfo is not None:
        return False
    return isinstance(value, expected) and (bool in expected or not isinstance(value, bool))


def require_storable(value: Any, field: str) -> str:
    """*value*, if it is text that every database holds: no NUL, and no half of a surrogate pair.

    Raises:
        InvalidQuery: It is not.
    """
    if not isinstance(value, str) or not is_storable(value):
        raise InvalidQuery(f"{field}: {value!r} is no text that databases hold", field=field, value=value)
    return str.__str__(value)  # plain text, where a member of an enumeration would show its name


def _pattern(column: Column, operator: str, value: Any) -> str:
    """A pattern that is none in Python's dialect either is refused at once; the databases' own words come later."""
    text = require_storable(value, column.name)
    if operator == "regex":
        if len(text) > _LONGEST_PATTERN:
            raise InvalidQuery(
                f"{column.name}: a pattern of {len(text)} characters, at most {_LONGEST_PATTERN} are tried",
                field=column.name,
                value=value,
            )
        try:
            re.compile(text if text.count("[") <= _MOST_SETS else "")
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidQuery(f"{column.name}: {text!r}: {error}", field=column.name, value=value) from error
    if column.uuid or column.kind is Kind.UUID:
        return text.lower() if operator != "regex" else text
    return text


def prefix_end(prefix: str) -> str | None:
    """The smallest text that is larger, by code point, than everything with *prefix*; None when there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)


def order_of(sort: Sequence[Sort], key: str, columns: Mapping[str, Column]) -> Order:
    """The total order of a query: its sort keys, closed by the key column.

    A column named twice counts once, where it first stands; what follows the key column cannot matter and is dropped.

    Raises:
        InvalidQuery: An unknown column, or one that cannot be ordered by.
    """
    keys: dict[str, Key] = {}
    for item in sort:
        column = columns.get(item.column)
        if column is None or not column.sortable or column.kind in {Kind.OTHER, Kind.JSON}:
            sortable = ", ".join(sorted(name for name, each in columns.items() if each.sortable))
            raise InvalidQuery(
                f"cannot order by {item.column!r}; there are {sortable}", field="sort", value=item.column
            )
        if item.column not in keys:
            keys[item.column] = _key(column, descending=item.descending, nulls_first=item.puts_nulls_first)
        if item.column == key:
            return Order(tuple(keys.values()))
    keys[key] = _key(columns[key], descending=False, nulls_first=True)
    return Order(tuple(keys.values()))


def _key(column: Column, *, descending: bool, nulls_first: bool) -> Key:
    return Key(
        column=column.name,
        kind=column.kind,
        descending=descending,
        nullable=column.nullable,
        nulls_first=nulls_first,
    )


def projection_of(query: Query, key: str, columns: Mapping[str, Column]) -> tuple[str, ...]:
    """The columns to show: those asked for, with the key column in front if it was left out.

    Raises:
        InvalidQuery: An unknown column.
    """
    if query.columns is None:
        return tuple(columns)
    for name in query.columns:
        _column(name, columns)
    names = tuple(dict.fromkeys(query.columns))
    return names if key in names else (key, *names)
