"""How the driver's values are read as Python's when somebody looks at a record."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from cloudcore.listing.query.kinds import FORMS, Kind, dashed, plain
from cloudcore.listing.values import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.listing.query.conditions import Column

__all__ = ["layout_of"]


def layout_of(columns: Mapping[str, Column], shown: Sequence[str], key: str) -> Layout:
    """How records of these columns are read."""
    names = tuple(shown)
    return Layout(
        names,
        tuple(_reader(columns[name]) for name in names),
        names.index(key),
        forms=tuple(_forms(columns[name].kind) for name in names),
        told=tuple(_instant_as_text if columns[name].kind is Kind.INSTANT else None for name in names),
    )


def _forms(kind: Kind) -> frozenset[type]:
    """Types that the reader gives back unread; instants gain their zone."""
    return (frozenset() if kind is Kind.INSTANT else FORMS[kind]) | {type(None)}


def _reader(column: Column) -> Callable[[Any], Any] | None:
    if column.kind is Kind.OTHER:
        return None
    fast = _FAST.get(column.kind)
    return partial(plain, column.kind, scale=column.scale) if fast is None else fast


def _instant(value: Any) -> datetime:
    if value.__class__ is str:
        value = datetime.fromisoformat(value)
    if value.__class__ is datetime:
        if value.tzinfo is None:
            result: datetime = value.replace(tzinfo=UTC)
            return result
        if value.tzinfo is UTC:
            instant: datetime = value
            return instant
    read: datetime = plain(Kind.INSTANT, value)
    return read


def _instant_as_text(value: Any) -> str:
    """By RFC 3339: what the instant's ``isoformat()`` is, without giving it a zone only to ask for its offset."""
    if value.__class__ is str:
        value = datetime.fromisoformat(value)
    if value.__class__ is datetime and value.tzinfo is None:
        return f"{value.isoformat()}+00:00"
    return _instant(value).isoformat()


def _text(value: Any) -> str:
    text: str = value if value.__class__ is str else plain(Kind.TEXT, value)
    return text


def _integer(value: Any) -> int:
    number: int = value if value.__class__ is int else plain(Kind.INTEGER, value)
    return number


_FAST: dict[Kind, Callable[[Any], Any]] = {
    Kind.INSTANT: _instant,
    Kind.TEXT: _text,
    Kind.INTEGER: _integer,
    Kind.UUID: dashed,
}
"""For kinds that most columns are of."""
