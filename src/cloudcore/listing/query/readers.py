"""How the driver's values are read as Python's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cloudcore.listing.query.order import Kind
from cloudcore.listing.values import Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.listing.query.conditions import Column

__all__ = ["layout_of"]


def _instant(value: Any) -> datetime:
    if value.__class__ is str:
        value = datetime.fromisoformat(value)
    if value.tzinfo is None:
        result: datetime = value.replace(tzinfo=UTC)
        return result
    instant: datetime = value if value.tzinfo is UTC else value.astimezone(UTC)
    return instant


_READERS: dict[Kind, Callable[[Any], Any]] = {Kind.INSTANT: _instant, Kind.BOOLEAN: bool, Kind.UUID: str}


def layout_of(columns: Mapping[str, Column], shown: Sequence[str]) -> Layout:
    """How records of these columns are read."""
    return Layout(tuple(shown), tuple(_READERS.get(columns[name].kind) for name in shown))
