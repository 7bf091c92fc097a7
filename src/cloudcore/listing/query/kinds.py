"""What a column holds, and the one form in Python that its values have whatever database they come from. Pure.

Drivers differ: SQLite gives instants and decimals as text and floats, MariaDB times as durations, PostgreSQL
identifiers as objects; and SQLite holds anything anywhere. What cannot be brought into the form is a
:class:`ValueError`.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMS", "Kind", "dashed", "plain"]


class Kind(StrEnum):
    """What a column holds, as far as comparing and converting go."""

    TEXT = "text"
    """Text, compared by code point."""
    UUID = "uuid"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    FLOAT = "float"
    """A binary fraction; NaN comes after all numbers, as on PostgreSQL."""
    DECIMAL = "decimal"
    INSTANT = "instant"
    """A point in time; columns without a time zone hold UTC."""
    DATE = "date"
    TIME = "time"
    """A time of day without a zone."""
    JSON = "json"
    """A document, read as Python's; only NULL can be asked of it, and it cannot be ordered by."""
    BINARY = "binary"
    """Bytes of bounded length, compared byte by byte."""
    OTHER = "other"
    """Anything that is only passed through: arrays, bytes of any length."""


FORMS: dict[Kind, frozenset[type]] = {
    Kind.TEXT: frozenset({str}),
    Kind.UUID: frozenset(),
    Kind.INTEGER: frozenset({int}),
    Kind.BOOLEAN: frozenset({bool}),
    Kind.FLOAT: frozenset({float}),
    Kind.DECIMAL: frozenset(),
    Kind.INSTANT: frozenset({datetime}),
    Kind.DATE: frozenset({date}),
    Kind.TIME: frozenset({time}),
    Kind.JSON: frozenset(),
    Kind.BINARY: frozenset({bytes}),
    Kind.OTHER: frozenset(),
}
"""Types of values that need no look one by one."""

_EXACT = Context(prec=200_000)
"""More digits than any database keeps."""
_MIDNIGHT = datetime(2000, 1, 1)  # noqa: DTZ001 - only its time of day is used


def plain(kind: Kind, value: Any, scale: int | None = None) -> Any:
    """The plain form of what a driver returned.

    Args:
        kind: Of its column.
        value: None stays None.
        scale: Digits behind the point of a decimal column, None when they vary.

    Raises:
        ValueError: It is nothing of this kind.
    """
    if value is None:
        return None
    if kind is Kind.DECIMAL:
        return _decimal(value, scale)
    return _READERS[kind](value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _unfit(value, "text")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    raise _unfit(value, "a whole number")


def _boolean(value: Any) -> bool:
    if isinstance(value, int):
        return bool(value)
    if isinstance(value, bytes):  # MariaDB's BIT(1)
        return any(value)
    raise _unfit(value, "true or false")


def _float(value: Any) -> float:
    if isinstance(value, float | int | Decimal):
        try:
            return float(value)
        except OverflowError:
            raise _unfit(value, "a number of double precision") from None
    raise _unfit(value, "a number")


def _decimal(value: Any, scale: int | None) -> Decimal:
    if not isinstance(value, Decimal | int | float | str):
        raise _unfit(value, "a decimal number")
    try:
        number = value if isinstance(value, Decimal) else Decimal(repr(value) if isinstance(value, float) else value)
        if scale is not None and number.is_finite():
            number = number.quantize(Decimal(1).scaleb(-scale), context=_EXACT)
    except InvalidOperation as error:
        raise _unfit(value, "a decimal number") from error
    return number


def _instant(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise _unfit(value, "an instant")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise _unfit(value, "an instant of the years 1 to 9999 in UTC") from None


def _date(value: Any) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise _unfit(value, "a date")


def _time(value: Any) -> time:
    if isinstance(value, str):
        return time.fromisoformat(value)
    if isinstance(value, timedelta) and timedelta(0) <= value < timedelta(days=1):
        return (_MIDNIGHT + value).time()
    if isinstance(value, time):
        return value
    raise _unfit(value, "a time of day")


def _binary(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _unfit(value, "bytes")


def dashed(value: Any) -> str:
    """A UUID in dashed form, from any form that a database gives it in."""
    if value.__class__ is str and len(value) == 36:  # as most are
        usual: str = value.lower()
        return usual
    text = str(value)
    if len(text) == 32:
        text = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    if len(text) != 36 or isinstance(value, bytes):
        raise _unfit(value, "a UUID")
    return text.lower()


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str | bytes) else value


def _unfit(value: Any, what: str) -> ValueError:
    return ValueError(f"{value!r:.100} is not {what}")


_READERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.TEXT: _text,
    Kind.UUID: dashed,
    Kind.INTEGER: _integer,
    Kind.BOOLEAN: _boolean,
    Kind.FLOAT: _float,
    Kind.INSTANT: _instant,
    Kind.DATE: _date,
    Kind.TIME: _time,
    Kind.JSON: _json,
    Kind.BINARY: _binary,
    Kind.OTHER: lambda value: value,
}
