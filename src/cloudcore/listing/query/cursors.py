"""Cursors: where a walk stands, as one opaque, URL-safe word. Pure.

A cursor holds values, not the name of a row: the position of the last row given out, and for each cell that lags behind
(it was down, or slow) the position up to which it was read. It also holds a digest of the query's filter and order, and
a checksum. So it survives the deletion of the row, needs no look-up, and refuses to be used with another query.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import InvalidCursor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing.query.order import Position

__all__ = ["Cursor", "digest"]

_VERSION = 1
_PLAIN, _COMPRESSED = b"\x01", b"\x02"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITER = json.JSONEncoder(separators=(",", ":"))
_MICROSECOND = timedelta(microseconds=1)


def digest(*parts: Any) -> str:
    """A short digest of values whose ``repr`` is stable."""
    return blake2b(repr(parts).encode(), digest_size=9).hexdigest()


@attrs.frozen(kw_only=True)
class Cursor:
    """Where a walk stands.

    Attributes:
        digest: Of the query's filter and order.
        position: All rows up to here were given out, in every cell that does not lag; None: nothing was.
        lagging: Cells that were read less far, with how far (None: not at all).
        tail: Key of the last placeholder shown after the end of the result.
    """

    digest: str
    position: Position | None
    lagging: Mapping[str, Position | None]
    tail: str | None = None

    def moved(self, position: Position, sort_key: Callable[[Position], Any]) -> Cursor:
        """This cursor at *position*, if that is further on."""
        if self.position is not None and not sort_key(self.position) < sort_key(position):
            return self
        return attrs.evolve(self, position=position)

    def start_of(self, cell: str) -> Position | None:
        """The position after which *cell* goes on."""
        return self.lagging.get(cell, self.position)

    def encode(self) -> str:
        """The word."""
        lagging = {cell: _packed(position) for cell, position in self.lagging.items()}
        content = [_VERSION, self.digest, _packed(self.position), lagging, self.tail]
        body = _WRITER.encode(content).encode()
        data = _COMPRESSED + zlib.compress(body) if len(body) > 400 else _PLAIN + body
        return base64.urlsafe_b64encode(data + _checksum(data)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, word: str, expected: str) -> Cursor:
        """Read a word back.

        Raises:
            InvalidCursor: It is damaged, of another version, or its query's digest is not *expected*.
        """
        version, found, position, lagging, tail = _unpack_word(word)
        if version != _VERSION:
            raise InvalidCursor(f"the cursor is of version {version}, this release reads {_VERSION}", field="cursor")
        if found != expected:
            raise InvalidCursor(
                "the cursor belongs to a query with another filter or order; start again without a cursor",
                field="cursor",
            )
        return cls(
            digest=found,
            position=_unpacked(position),
            lagging={cell: _unpacked(values) for cell, values in lagging.items()},
            tail=tail,
        )


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=6).digest()


def _unpack_word(word: str) -> tuple[Any, Any, Any, dict[str, Any], Any]:
    try:
        data = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
        data, checksum = data[:-6], data[-6:]
        if checksum != _checksum(data):
            raise ValueError("checksum")
        body = zlib.decompress(data[1:]) if data[:1] == _COMPRESSED else data[1:]
        version, *rest = json.loads(body)
        if version != _VERSION:
            return version, None, None, {}, None
        found, position, lagging, tail = rest
    except (ValueError, TypeError, binascii.Error, zlib.error) as error:
        raise InvalidCursor("the cursor is damaged; start again without a cursor", field="cursor") from error
    return version, found, position, lagging, tail


def _packed(position: Position | None) -> list[Any] | None:
    return None if position is None else [_pack(value) for value in position]


def _pack(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"t": (value - _EPOCH) // _MICROSECOND}
    if isinstance(value, Decimal):
        return {"d": str(value)}
    return value


def _unpacked(values: list[Any] | None) -> Position | None:
    return None if values is None else tuple(map(_unpack, values))


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if "t" in value:
            return _EPOCH + value["t"] * _MICROSECOND
        return Decimal(value["d"])
    return value
