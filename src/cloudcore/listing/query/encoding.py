"""What a driver is given for a plain value: the form in which its database compares it with what is stored. Pure."""

from __future__ import annotations

import math
import struct
import sys
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from cloudcore.listing.query.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import Dialect

__all__ = ["encoder"]

_MOST_SIGNED = 2**63 - 1


def encoder(kind: Kind, dialect: Dialect, single: bool, type_: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    """What to do to each value of such a parameter; *single*: it is compared with numbers of single precision."""
    if kind is Kind.UUID:
        return _uuid_encoder(dialect, type_)
    if kind in {Kind.FLOAT, Kind.DECIMAL} and dialect.name != "postgresql":
        return _number_for_sqlite if dialect.name == "sqlite" else (_nearest_single if single else _clamped)
    if kind is Kind.INTEGER and dialect.name in {"sqlite", "postgresql"}:
        return _clamped_to_signed
    if kind is Kind.FLOAT and single:
        return _nearest_single
    if kind in {Kind.DATE, Kind.TIME} and dialect.name == "sqlite":
        return _date_as_text if kind is Kind.DATE else _time_as_text
    if kind is not Kind.INSTANT:
        return _as_is
    if dialect.name == "sqlite":
        return _instant_as_text
    impl = type_.dialect_impl(dialect)
    impl = impl.impl_instance if isinstance(impl, sa.types.TypeDecorator) else impl
    return _as_is if dialect.name == "postgresql" and getattr(impl, "timezone", False) else _naive


def _uuid_encoder(dialect: Dialect, type_: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    process = type_.dialect_impl(dialect).bind_processor(dialect)
    if process is None:
        return _as_is
    as_uuid = getattr(type_, "as_uuid", False)
    return lambda value: process(UUID(value) if as_uuid else value)


def _number_for_sqlite(value: Any) -> Any:
    """SQLite knows no decimals, and no NaN; any text is larger than all numbers."""
    if value != value:
        return "NaN"
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63:
        return int(value)
    return float(value)


def _clamped(value: Any) -> Any:
    """MariaDB knows neither NaN nor infinity: they stand beyond its numbers."""
    if value != value or value == math.inf:
        return sys.float_info.max
    return -sys.float_info.max if value == -math.inf else value


def _clamped_to_signed(value: int) -> int:
    """Only MariaDB and MySQL know unsigned numbers: a cursor from there stands at the end here."""
    return min(value, _MOST_SIGNED)


def _nearest_single(value: float) -> float:
    try:
        nearest: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return value
    return nearest


def _date_as_text(value: date) -> str:
    return value.isoformat()


def _time_as_text(value: time) -> str:
    return value.isoformat(timespec="microseconds")


def _as_is(value: Any) -> Any:
    return value


def _naive(value: datetime) -> datetime:
    return value.astimezone(UTC).replace(tzinfo=None)


def _instant_as_text(value: datetime) -> str:
    return _naive(value).isoformat(sep=" ", timespec="microseconds")
