"""Rows from MariaDB and MySQL, read with less work than their drivers in Python make of it.

PyMySQL takes an answer apart by a method call for each length and each value, and describes the columns anew for each
statement: of a page of instances in Nova's 54 columns that is most of the work. Here an answer comes off the socket in
large pieces, columns described by the same bytes as before are known, and a row is one loop.

The values are PyMySQL's, made by its own converters. Parts of it that are not public are used; where a release has them
otherwise, :func:`row_reader` says so with None, and its cursors do the work.

mysqlclient reads rows in C, all but instants: these are read as :func:`conversions` has it.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Convert = Callable[[bytes], Any]

__all__ = ["RowReader", "conversions", "row_reader"]

_NEEDED = (
    "_execute_command", "_force_close", "_next_seq_id", "_read_packet", "_rfile", "client_flag", "decoders", "encoding",
    "use_unicode",
)  # fmt: skip
_DEPRECATE_EOF = 1 << 24
"""Capability of a client that is told otherwise where rows end."""
_COM_QUERY = 3
_PIECE = 1 << 16
"""Bytes taken off the socket at once, at most."""
_LONGEST = (1 << 24) - 1
"""Bytes of a packet that the next one continues."""
_REFUSED, _END = 255, 254
"""First bytes of packets: an error, and in a short one the end of columns or rows."""
_NULL, _WIDTHS = 251, {252: 2, 253: 3, 254: 8}
"""First bytes of a length: there is no value, or in how many bytes the length follows."""
_LOST = "Lost connection to MySQL server during query"
_DESCRIBED = 64
"""Descriptions of columns that are remembered."""


def row_reader(connection: Any) -> RowReader | None:
    """A reader for a connection of PyMySQL; None if it is another driver's, or lacks a part that is needed."""
    if type(connection).__module__ != "pymysql.connections" or not all(hasattr(connection, name) for name in _NEEDED):
        return None
    return None if connection.client_flag & _DEPRECATE_EOF else RowReader(connection)


class RowReader:
    """Reads the rows of single SELECTs. For one thread at a time, as its connection is."""

    __slots__ = ("_connection", "_converters")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._converters: dict[bytes, list[Convert]] = {}

    def read(self, text: str) -> list[tuple[Any, ...]]:
        """Send a SELECT, its parameters filled in; all its rows.

        Raises:
            pymysql.Error: The server refuses it, or the connection is lost: what PyMySQL's cursors raise.
            ValueError: A value cannot be read, such as text in another encoding than the connection's.
        """
        connection = self._connection
        connection._execute_command(_COM_QUERY, text)
        if not connection._read_packet().is_resultset_packet():
            connection._force_close()
            raise _failure("a statement that gives no rows was sent to be read")
        try:
            described, rows = _answer(connection)
        except BaseException:
            connection._force_close()  # the rest would be taken for the answer to the next statement
            raise
        if refused := next((last for last in (*described[-1:], *rows[-1:]) if last[0] == _REFUSED), None):
            from pymysql.err import raise_mysql_exception

            raise_mysql_exception(refused)
        convert = self._converters_of(described)
        return [_row(row, convert) for row in rows]

    def _converters_of(self, described: Sequence[bytes]) -> list[Convert]:
        """What makes a value of what was sent, for each column."""
        key = b"".join(described)
        known = self._converters.get(key)
        if known is None:
            if len(self._converters) == _DESCRIBED:
                self._converters.clear()
            known = self._converters[key] = _converters(self._connection, described)
        return known


def _failure(words: str) -> Exception:
    from pymysql.constants import CR
    from pymysql.err import OperationalError

    return OperationalError(CR.CR_SERVER_LOST, words)


def _answer(connection: Any) -> tuple[list[bytes], list[bytes]]:
    """Of each column its description, of each row its values; an error comes last."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    packets = _packets(connection)
    for part in parts:
        for packet in packets:
            if packet[0] == _END and len(packet) < 9:
                break
            part.append(packet)
            if packet[0] == _REFUSED:
                return parts
    return parts


def _packets(connection: Any) -> Iterator[bytes]:
    """What the server sends, as it comes."""
    file, number = connection._rfile, connection._next_seq_id
    come, start, whole = b"", 0, b""
    while True:
        while len(come) - start < 4:
            come, start = come[start:] + _taken(file.read1, _PIECE), 0
        end = start + 4 + int.from_bytes(come[start : start + 3], "little")
        if len(come) < end:
            missing = end - len(come)
            come += _taken(file.read, missing)
            if len(come) < end:
                raise _failure(_LOST)
        if come[start + 3] != number:
            raise _failure(f"packet {come[start + 3]} came in place of {number}")
        number = (number + 1) % 256
        packet = come[start + 4 : end]
        start = end
        if len(packet) == _LONGEST:
            whole += packet
            continue
        yield whole + packet
        whole = b""


def _taken(read: Callable[[int], bytes], count: int) -> bytes:
    try:
        piece = read(count)
    except OSError as error:
        raise _failure(f"{_LOST} ({error})") from error
    if not piece:
        raise _failure(_LOST)
    return piece


def _row(packet: bytes, convert: Sequence[Convert]) -> tuple[Any, ...]:
    values: list[Any] = []
    place = 0
    for made in convert:
        length = packet[place]
        place += 1
        if length == _NULL:
            values.append(None)
            continue
        if length > _NULL:
            width = _WIDTHS[length]
            length = int.from_bytes(packet[place : place + width], "little")
            place += width
        end = place + length
        values.append(made(packet[place:end]))
        place = end
    return tuple(values)


class _Replay:
    """Stands for a connection that gives the same descriptions once more."""

    def __init__(self, connection: Any, packets: Sequence[bytes]) -> None:
        self.use_unicode, self.encoding, self.decoders = (
            connection.use_unicode,
            connection.encoding,
            connection.decoders,
        )
        self._left = iter([*packets, b"\xfe\0\0\0\0"])

    def _read_packet(self, made: Any = None) -> Any:
        from pymysql.protocol import MysqlPacket

        return (made or MysqlPacket)(next(self._left), self.encoding)


def _converters(connection: Any, described: Sequence[bytes]) -> list[Convert]:
    """PyMySQL's own, by its own rules."""
    from pymysql.connections import MySQLResult

    replay: Any = _Replay(connection, described)
    result: Any = MySQLResult(replay)
    result.field_count = len(described)
    result._get_descriptions()
    return [_converter(encoding, convert) for encoding, convert in result.converters]


def _converter(encoding: str | None, convert: Callable[[Any], Any] | None) -> Convert:
    from pymysql.converters import convert_datetime

    if encoding is None:
        return _as_sent if convert is None else convert
    if convert is None:
        return bytes.decode if encoding in {"utf8", "utf-8"} else partial(_text, encoding=encoding)
    if convert is int:
        return int
    if convert is convert_datetime:
        return lambda value: _instant(value.decode("ascii"), convert_datetime)
    return lambda value: convert(value.decode(encoding))


def _as_sent(value: bytes) -> bytes:
    return value


def _text(value: bytes, encoding: str) -> str:
    return value.decode(encoding)


def _instant(text: str, otherwise: Callable[[str], Any]) -> Any:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # such as 0000-00-00
        return otherwise(text)


def conversions() -> dict[Any, Any]:
    """The conversions of mysqlclient, but for instants, which Python reads in C as well."""
    from MySQLdb.constants import FIELD_TYPE
    from MySQLdb.converters import conversions as usual

    own: dict[Any, Any] = usual
    return own | {kind: partial(_instant, otherwise=own[kind]) for kind in (FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP)}
