"""Database URLs, with one host or several: the first that answers and takes writes is used, then the next one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import URL
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["InTurn", "hosts_of", "missing_file", "parse_url"]

_SEVERAL = re.compile(r"(?P<before>^[\w+]+://(?:[^@/]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<after>.*)$")
_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d+))?$")


def parse_url(url: str | URL) -> URL:
    """Parse *url*; hosts after the first, ``scheme://user:password@a,b:5433/name``, go into its query as ``host``.

    Raises:
        InvalidArgument: It cannot be parsed. The text holds nothing of it, for it may hold a password.
    """
    try:
        several = _SEVERAL.match(url) if isinstance(url, str) else None
        if several is None:
            return sa.make_url(url)
        parts = [_HOST.match(part.strip()) for part in several["hosts"].split(",")]
        if None in parts:
            raise ValueError
        hosts = [f"{part[1]}:{part[2]}" if part[2] else part[1] for part in parts if part is not None]
        return sa.make_url(f"{several['before']}{several['after']}").update_query_pairs([("host", h) for h in hosts])
    except (sa.exc.ArgumentError, ValueError):
        pass
    # Out here it has no cause: SQLAlchemy's error quotes what it took for the port, which may be half of a password.
    raise InvalidArgument(
        "this is no database URL; expected something like sqlite:///cloud.db "
        "or postgresql://user:password@host/name, or with hosts a and b: postgresql://user:password@a,b:5433/name. "
        "In user and password @ is written %40, : %3A and / %2F",
        field="url",
    )


def missing_file(url: str | URL) -> str | None:
    """The SQLite file that *url* names, if it is not there: opening it would make it, and a look must not."""
    parsed = parse_url(url)
    name = parsed.database or ""
    if parsed.get_backend_name() != "sqlite" or name in {"", ":memory:"} or name.startswith("file:"):
        return None
    return None if Path(name).exists() else name


def hosts_of(url: URL) -> list[tuple[str, int | None]]:
    """The hosts that *url* names, each with its port, None for the usual one; empty where it names none."""
    given = url.query.get("host", ())
    found = [_HOST.match(each) for each in ((given,) if isinstance(given, str) else given)]
    named = [(match[1].strip("[]"), int(match[2]) if match[2] else url.port) for match in found if match is not None]
    return named or ([(url.host, url.port)] if url.host else [])


class InTurn:
    """Connects to the host that answered last, and to the next ones where it does not; for MariaDB and MySQL.

    PostgreSQL's own library does the same. A server that is read-only, or a Galera node outside the primary component,
    counts as one that does not answer. Thread-safe: threads that meet a change of host each look for themselves.
    """

    def __init__(self, hosts: Sequence[tuple[str, int | None]], usable: Callable[[DBAPIConnection], bool]) -> None:
        self._hosts = hosts
        self._usable = usable
        self._last = 0

    def connect(
        self, dialect: Dialect, _: ConnectionPoolEntry, arguments: list[Any], named: dict[str, Any]
    ) -> DBAPIConnection:
        """What SQLAlchemy calls to open a connection.

        Raises:
            Exception: The driver's, of the last host tried, where none will do.
        """
        begin, count = self._last, len(self._hosts)
        for number in [(begin + step) % count for step in range(count)]:
            host, port = self._hosts[number]
            address = {"host": host, **({} if port is None else {"port": port})}
            try:
                connection: DBAPIConnection = dialect.connect(*arguments, **{**named, **address})
                if self._usable(connection) or number == (begin - 1) % count:
                    self._last = number
                    return connection
                connection.close()
            except dialect.loaded_dbapi.Error:
                if number == (begin - 1) % count:
                    raise
        raise AssertionError("no host")  # pragma: no cover - hosts are never empty
