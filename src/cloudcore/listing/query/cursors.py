"""Cursors: where a walk stands, as one opaque, URL-safe word. Pure.

A cursor holds values, not the name of a row: the position of the last row given out, and for each cell that lags behind
(it was down, or slow) the position up to which it was read. It also holds a digest of the query's filter and order, and
a checksum. So it survives the deletion of the row, needs no look-up, and refuses to be used with another query.

Cursors come from outside. What a word unpacks to is bounded, and all of it is checked before any of it is used. The
checksum has no key unless the application gives one, so anybody can write a cursor; all that it can do is to begin a
walk elsewhere in what its query may see. With a key (HMAC-SHA256) only words of this application are read.
"""

from __future__ import annotations

import base64
import hmac
import json
import zlib
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import InvalidCursor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.listing.query.order import Order, Position

__all__ = ["Cursor", "digest"]

_VERSION = 1
_PLAIN, _COMPRESSED = b"\x01", b"\x02"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITER = json.JSONEncoder(separators=(",", ":"))
_MICROSECOND = timedelta(microseconds=1)
_LONGEST = 64_000
"""Characters of a word: a thousand cells that lag behind, each at a place of its own."""
_LARGEST = 400_000
"""Bytes that a word unpacks to."""
_SHORT, _SIGNED = 6, 16
"""Bytes of a checksum and of a signature."""


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
        backward: The walk goes towards the beginning: *position* is the first row given out, not the last.
    """

    digest: str
    position: Position | None
    lagging: Mapping[str, Position | None]
    tail: str | None = None
    backward: bool = False

    def moved(self, position: Position, sort_key: Callable[[Position], Any]) -> Cursor:
        """This cursor at *position*, if that is further on."""
        if self.position is not None and not sort_key(self.position) < sort_key(position):
            return self
        return attrs.evolve(self, position=position)

    def start_of(self, cell: str) -> Position | None:
        """The position after which *cell* goes on."""
        return self.lagging.get(cell, self.position)

    def encode(self, keys: Sequence[bytes] = ()) -> str:
        """The word, signed with the first of *keys* when there are any."""
        lagging = {cell: _packed(position) for cell, position in self.lagging.items()}
        content = [_VERSION, self.digest, _packed(self.position), lagging, self.tail]
        body = _WRITER.encode([*content, True] if self.backward else content).encode()
        data = _COMPRESSED + zlib.compress(body) if len(body) > 400 else _PLAIN + body
        mark = _signature(data, keys[0]) if keys else _checksum(data)
        return base64.urlsafe_b64encode(data + mark).rstrip(b"=").decode()

    @classmethod
    def decode(cls, word: str, expected: str, order: Order | None = None, keys: Sequence[bytes] = ()) -> Cursor:
        """Read a word back.

        Args:
            word: From outside.
            expected: The digest of its query.
            order: Of its query: what positions must fit, if anything.
            keys: One of them signed it; none: it has a checksum only.

        Raises:
            InvalidCursor: It is damaged, forged, of another version, or its query's digest is not *expected*.
        """
        content = _unpack_word(word, keys)
        version = content[0]
        if version != _VERSION:
            raise InvalidCursor(
                f"the cursor is of version {version!r:.20}, this release reads {_VERSION}", field="cursor"
            )
        if len(content) not in {5, 6}:
            raise _damaged()
        _, found, position, lagging, tail, *rest = content
        if found != expected:
            raise InvalidCursor(
                "the cursor belongs to a query with another filter or order; start again without a cursor",
                field="cursor",
            )
        cells = lagging.keys() if isinstance(lagging, dict) else [None]
        if not (isinstance(tail, str | None) and rest in ([], [True]) and all(isinstance(cell, str) for cell in cells)):
            raise _damaged()
        return cls(
            digest=found,
            position=_unpacked(position, order),
            lagging={cell: _unpacked(values, order) for cell, values in lagging.items()},
            tail=tail,
            backward=bool(rest),
        )


def _damaged() -> InvalidCursor:
    return InvalidCursor("the cursor is damaged; start again without a cursor", field="cursor")


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=_SHORT).digest()


def _signature(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")[:_SIGNED]


def _unpack_word(word: str, keys: Sequence[bytes]) -> list[Any]:
    """What a word holds: a list with a version in front. Bounded in time and memory, whatever the word."""
    if not isinstance(word, str) or len(word) > _LONGEST:
        raise _damaged()
    try:
        data = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
        content = json.loads(_body(data, keys), parse_constant=_refused)
    except (ValueError, zlib.error, RecursionError) as error:
        raise _damaged() from error
    if not isinstance(content, list) or not content:
        raise _damaged()
    return content


def _body(data: bytes, keys: Sequence[bytes]) -> bytes:
    size = _SIGNED if keys else _SHORT
    data, mark = data[:-size], data[-size:]
    marks = [_signature(data, key) for key in keys] or [_checksum(data)]
    if not any(hmac.compare_digest(mark, each) for each in marks):
        raise ValueError("checksum")
    if data[:1] != _COMPRESSED:
        return data[1:]
    unpacking = zlib.decompressobj()
    body = unpacking.decompress(data[1:], _LARGEST)
    if not unpacking.eof:
        raise ValueError("it unpacks to too much")
    return body


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _packed(position: Position | None) -> list[Any] | None:
    return None if position is None else [_pack(value) for value in position]


def _pack(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"t": (value - _EPOCH) // _MICROSECOND}
    if isinstance(value, Decimal):
        return {"d": str(value)}
    if isinstance(value, date):
        return {"D": value.isoformat()}
    if isinstance(value, time):
        return {"T": value.isoformat()}
    if isinstance(value, float):
        return {"f": value.hex()}  # also what is no finite number
    if isinstance(value, bytes):
        return {"b": value.hex()}
    return value


def _unpacked(values: Any, order: Order | None) -> Position | None:
    """A position of *order*.

    Raises:
        InvalidCursor: It is none.
    """
    if values is None:
        return None
    try:
        position = tuple(map(_unpack, values))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise _damaged() from error
    if order is not None and not order.fits(position):
        raise _damaged()
    return position


_UNPACKING: dict[str, Callable[[Any], Any]] = {
    "t": lambda value: _EPOCH + value * _MICROSECOND,
    "d": Decimal,
    "D": date.fromisoformat,
    "T": time.fromisoformat,
    "f": float.fromhex,
    "b": bytes.fromhex,
}


def _unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("no value")
    form, content = next(iter(value.items()))
    if form not in _UNPACKING or not isinstance(content, int if form == "t" else str):
        raise ValueError("no value")
    return _UNPACKING[form](content)
