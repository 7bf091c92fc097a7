"""Checks and normal forms shared by every area's values. No I/O, no clock, no randomness."""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from datetime import UTC, datetime
from typing import Any, TypeVar

from cloudcore.errors import InvalidArgument

__all__ = [
    "MAX_INTEGER",
    "FrozenDict",
    "is_storable",
    "normalise_uuid",
    "one_line",
    "require_duration",
    "require_flag",
    "require_instance",
    "require_integer",
    "require_items",
    "require_mapping",
    "require_name",
    "require_portion",
    "require_seconds",
    "require_text",
    "require_utc",
    "uuid_in",
]

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")

MAX_INTEGER = 2**31 - 1
"""The largest amount, total or unit: Placement's limit, which every supported database can hold."""

_DASHED = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_HEX = re.compile(r"[0-9a-f]{32}\Z")
_SHORTEST = 32  # digits alone
_NAME = re.compile(r"[A-Z0-9_]{1,255}\Z")


def normalise_uuid(value: str, field: str, error: type[InvalidArgument] = InvalidArgument) -> str:
    """Return *value* as dashed lower-case text.

    Accepts what :class:`uuid.UUID` accepts in writing: any case, with or without dashes, braces or ``urn:uuid:``.

    Raises:
        InvalidArgument: *value* is not the text of a UUID (or the subclass given as *error*).
    """
    if type(value) is str and _DASHED.match(value):
        return value
    if not isinstance(value, str):
        raise error(f"{field}: expected the text of a UUID, got {value!r}", field=field, value=value)
    found = uuid_in(value)
    if found is None:
        raise error(f"{field}: {value!r} is not a UUID", field=field, value=value)
    return found


def uuid_in(text: str) -> str | None:
    """The uuid that *text* is in any writing (see :func:`normalise_uuid`), None when it is none."""
    if len(text) < _SHORTEST:  # most names are
        return None
    digits = text.strip().lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    if not _HEX.match(digits):
        return None
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def require_integer(
    value: int,
    field: str,
    *,
    minimum: int,
    maximum: int = MAX_INTEGER,
    error: type[InvalidArgument] = InvalidArgument,
) -> int:
    """Return *value* if it is a whole number in [*minimum*, *maximum*]; booleans are not numbers here.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if type(value) is not int:
        raise error(f"{field}: expected a whole number, got {value!r}", field=field, value=value)
    if not minimum <= value <= maximum:
        raise error(f"{field}: {value} is not between {minimum} and {maximum}", field=field, value=value)
    return value


def require_duration(value: float, field: str, error: type[InvalidArgument] = InvalidArgument) -> float:
    """Return *value* as a float if it is a duration in seconds, above 0 and below thirty years.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
        raise error(f"{field}: expected a positive number of seconds, got {value!r}", field=field, value=value)
    return float(value)


def require_seconds(value: float | None, field: str, error: type[InvalidArgument] = InvalidArgument) -> float | None:
    """:func:`require_duration`, but None stays None."""
    return None if value is None else require_duration(value, field, error)


def require_name(value: str, field: str, error: type[InvalidArgument] = InvalidArgument) -> str:
    """Return *value* if it has the form of a resource class, trait or consumer type: ``[A-Z0-9_]{1,255}``.

    Raises:
        InvalidArgument: It has not (or the subclass given as *error*).
    """
    if not isinstance(value, str) or not _NAME.match(value):
        raise error(f"{field}: {value!r} does not match [A-Z0-9_]{{1,255}}", field=field, value=value)
    return value


def require_text(value: str, field: str, *, maximum: int = 255, error: type[InvalidArgument] = InvalidArgument) -> str:
    """Return *value* if it is text of 1 to *maximum* characters that databases hold: see :func:`is_storable`.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if not isinstance(value, str) or not value:
        raise error(f"{field}: expected text that is not empty, got {value!r}", field=field, value=value)
    if not is_storable(value):
        raise error(f"{field}: {value!r} is no text that databases hold", field=field, value=value)
    if len(value) > maximum:
        raise error(f"{field}: {len(value)} characters, at most {maximum} fit", field=field, value=value)
    return value


def is_storable(text: str) -> bool:
    """Whether every database holds *text*: no NUL, and no half of a surrogate pair, for which UTF-8 has no form."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return "\0" not in text


def one_line(text: str, *, keeping: str = "") -> str:
    """*text* with line breaks, and whatever else a terminal or a log cannot take, as Python writes them in quotes.

    Characters of *keeping* stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keeping else ascii(one)[1:-1] for one in text)


def require_portion(limit: int) -> int:
    """Return *limit* if so many rows may be forgotten in one transaction: 1 to 30,000.

    Raises:
        InvalidArgument: It is no such number; more values in an IN not every database takes.
    """
    return require_integer(limit, "limit", minimum=1, maximum=30_000)


def require_flag(value: bool, field: str, error: type[InvalidArgument] = InvalidArgument) -> bool:
    """Return *value* if it is True or False, not something that would pass for either: the text "false", or 0.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if type(value) is not bool:
        raise error(f"{field}: expected True or False, got {value!r:.100}", field=field, value=value)
    return value


def require_instance(value: T, kind: type[T], field: str, error: type[InvalidArgument] = InvalidArgument) -> T:
    """Return *value* if it is a *kind*. What it is else is not told: it may be a URL with a password.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if not isinstance(value, kind):
        raise error(f"{field}: expected a {kind.__name__}, got a value of type {type(value).__name__}", field=field)
    return value


def require_items(
    value: Iterable[T], field: str, what: str, error: type[InvalidArgument] = InvalidArgument
) -> tuple[T, ...]:
    """Return what *value* lists; text, bytes and mappings, which could be gone through, are no lists.

    Args:
        value: Of the caller.
        field: Its name.
        what: Is to be listed, in words.
        error: What is raised.

    Raises:
        InvalidArgument: It is no list (or the subclass given as *error*).
    """
    if type(value) is tuple:
        return value
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise error(f"{field}: expected a list of {what}, got a value of type {type(value).__name__}", field=field)
    return tuple(value)


def require_mapping(value: Mapping[K, V], field: str, error: type[InvalidArgument] = InvalidArgument) -> Mapping[K, V]:
    """Return *value* if it is a mapping.

    Raises:
        InvalidArgument: It is not (or the subclass given as *error*).
    """
    if not isinstance(value, Mapping):
        raise error(f"{field}: expected a mapping, got {value!r}", field=field, value=value)
    return value


def require_utc(value: datetime, field: str, error: type[InvalidArgument] = InvalidArgument) -> datetime:
    """Return *value* in UTC.

    Raises:
        InvalidArgument: It is no datetime, has no time zone, or lies beyond year 1 or 9999 in UTC (or the subclass
            given as *error*).
    """
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise error(f"{field}: expected a datetime with a time zone, got {value!r}", field=field, value=value)
    try:
        return value.astimezone(UTC)
    except OverflowError as beyond:
        raise error(f"{field}: {value} lies beyond the years 1 to 9999 in UTC", field=field, value=value) from beyond


class FrozenDict(Mapping[K, V]):
    """A mapping that never changes; equal to any mapping of the same items, hashable when its values are."""

    __slots__ = ("_data", "_hash")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._data: dict[K, V] = dict(*args, **kwargs)
        self._hash: int | None = None

    def __getitem__(self, key: K) -> V:
        return self._data[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def items(self) -> ItemsView[K, V]:
        """The pairs."""
        return self._data.items()

    def keys(self) -> KeysView[K]:
        """The keys."""
        return self._data.keys()

    def values(self) -> ValuesView[V]:
        """The values."""
        return self._data.values()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenDict):
            return self is other or self._data == other._data
        return self._data == dict(other) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._data.items()))
        return self._hash

    def __repr__(self) -> str:
        return repr(self._data)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (self._data,)
