"""Values of records as JSON, column by column, each kind of value in one form. Pure.

Text, whole numbers, true, false and null are JSON's own. Instants, dates and times of day are text by ISO 8601
(instants by RFC 3339, in UTC), durations too (``PT90S``); decimals are text, since readers of numbers would round
them; UUIDs and network addresses are text; bytes are text in base64 (RFC 4648). Binary fractions are numbers; those
that are not finite, of which JSON has none, are text as in Protocol Buffers' JSON: ``"NaN"``, ``"Infinity"``,
``"-Infinity"``, or what the caller wants instead. Arrays and documents hold the same; a name in a document that is a
number, true, false or null becomes its text.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["JsonWriter", "NotFinite", "json_objects", "json_writer"]

NotFinite = Literal["text", "null", "refuse"]
"""What becomes of NaN and the infinities: text, null, or an error."""


class JsonWriter:
    """Writes values; see the module. Made by :func:`json_writer`."""

    def __init__(self, not_finite: NotFinite) -> None:
        self._not_finite = not_finite
        self._writers: dict[type, Callable[[Any], str]] = _PLAIN | {
            float: self._float,
            Decimal: self._decimal,
            dict: self._document,
            list: self._document,
            tuple: self._document,
        }

    def column(self, values: Sequence[Any]) -> list[str]:
        """Each of the values.

        Raises:
            TypeError, ValueError: One has no form in JSON.
        """
        kinds = set(map(type, values))
        missing = type(None) in kinds
        kinds.discard(type(None))
        write = self._writers.get(kinds.pop(), self.value) if len(kinds) == 1 else self.value
        return ["null" if value is None else write(value) for value in values] if missing else list(map(write, values))

    def value(self, value: Any) -> str:
        """One value.

        Raises:
            TypeError, ValueError: It has no form in JSON.
        """
        write = self._writers.get(type(value))
        if write is None:
            for kind, other in self._writers.items():
                if isinstance(value, kind):
                    return other(value)
            raise ValueError(f"{type(value).__name__} has no form in JSON")
        return write(value)

    def _float(self, value: float) -> str:
        if math.isfinite(value):
            return float.__repr__(value)
        return self._unbounded("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")

    def _decimal(self, value: Decimal) -> str:
        if value.is_finite():
            return f'"{value}"'
        return self._unbounded("NaN" if value.is_nan() else "Infinity" if value > 0 else "-Infinity")

    def _unbounded(self, name: str) -> str:
        if self._not_finite == "refuse":
            raise ValueError(f"{name} is no number of JSON")
        return "null" if self._not_finite == "null" else f'"{name}"'

    def _document(self, value: Any) -> str:
        try:
            return _ENCODE(value)
        except (TypeError, ValueError):  # something in it is not JSON's own
            pass
        if isinstance(value, dict):
            return self.members(value)
        return "[" + ",".join(map(self.value, value)) + "]"

    def members(self, members: Mapping[str, Any]) -> str:
        """An object.

        Raises:
            TypeError, ValueError: A value has no form in JSON, or a name is none of JSON's own plain values.
        """
        written = (f"{_name(name)}:{self.value(value)}" for name, value in members.items())
        return "{" + ",".join(written) + "}"


def _name(name: Any) -> str:
    """A member's name. One that is no text is written as the encoder does, so whatever stands beside it."""
    return encode_basestring_ascii(name) if isinstance(name, str) else _ENCODE({name: 0}).removesuffix(":0}")[1:]


def json_objects(columns: Mapping[str, Sequence[str]]) -> str:
    """An array of objects, of columns that are written already, under their names."""
    template = ",".join(f"{encode_basestring_ascii(name)}:".replace("%", "%%") + "%s" for name in columns)
    return "[" + ",".join(map(f"{{{template}}}".__mod__, zip(*columns.values(), strict=True))) + "]"


json_writer: Callable[[NotFinite], JsonWriter] = cache(JsonWriter)
"""The writer for a treatment of what is not finite; it may be shared between threads."""


def _duration(value: timedelta) -> str:
    whole = abs(value)
    seconds, micros = whole.days * 86400 + whole.seconds, whole.microseconds
    fraction = f".{micros:06}".rstrip("0") if micros else ""
    return f'"{"-" if value < timedelta(0) else ""}PT{seconds}{fraction}S"'


_ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_PLAIN: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    bool: {True: "true", False: "false"}.__getitem__,
    int: int.__repr__,
    type(None): lambda _: "null",
    datetime: lambda value: f'"{value.isoformat()}"',
    date: lambda value: f'"{value.isoformat()}"',
    time: lambda value: f'"{value.isoformat()}"',
    timedelta: _duration,
    UUID: lambda value: f'"{value}"',
    bytes: lambda value: f'"{b64encode(value).decode()}"',
    bytearray: lambda value: f'"{b64encode(value).decode()}"',
    memoryview: lambda value: f'"{b64encode(value).decode()}"',
    **dict.fromkeys(
        (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network),
        lambda value: f'"{value}"',
    ),
}
"""How values of these types are written; subclasses go by the first that fits."""
