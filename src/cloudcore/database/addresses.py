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

__all__ = ["InTurn", "hosts_of", "in_memory", "missing_file", "parse_url", "shown"]

_URL = re.compile(r"(?P<before>[\w+]+://(?P<user>[^:/]*(?::[^@]*)?@)?+)(?P<hosts>[^/?]*)(?P<after>.*)", re.DOTALL)
"""Who logs in is read as SQLAlchemy reads it: up to the first @, whatever commas and slashes there are."""
_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d+))?$")
_TOLD = frozenset(
    {
        *("application_name", "cache", "charset", "connect_timeout", "host", "mode", "pooler", "port", "read_timeout"),
        *("sslmode", "target_session_attrs", "timeout", "uri", "user", "write_timeout"),
    }
)
"""What a URL's query may say in texts; whatever else it says, a password among it, is left out."""


def parse_url(url: str | URL) -> URL:
    """Parse *url*; hosts after the first, ``scheme://user:password@a,b:5433/name``, go into its query as ``host``.

    Raises:
        InvalidArgument: It cannot be parsed. The text holds nothing of it, for it may hold a password.
    """
    if isinstance(url, sa.URL):
        if "," not in (url.host or ""):
            return url
        url = url.render_as_string(hide_password=False)
    try:
        found = _parsed(url)
        if found is not None:
            return found
    except (sa.exc.ArgumentError, ValueError):
        pass
    # Out here it has no cause: SQLAlchemy's error quotes what it took for the port, which may be half of a password.
    raise InvalidArgument(
        "this is no database URL; expected something like sqlite:///cloud.db "
        "or postgresql://user:password@host/name, or with hosts a and b: postgresql://user:password@a,b:5433/name. "
        "In user, password and options @ is written %40, in user and password : %3A and / %2F",
        field="url",
    )


def _parsed(text: str) -> URL | None:
    """None where part of a password might be taken for a host, or the other way round."""
    parts = _URL.match(text) if isinstance(text, str) else None
    if parts is None:
        return sa.make_url(text)
    user, hosts = parts["user"] or "", parts["hosts"].split(",")
    if "@" in parts["hosts"] or ("," in user + parts["hosts"] and re.search("[/?]", user)):
        return None
    if len(hosts) == 1:
        return sa.make_url(text)
    found = [_HOST.match(each.strip()) for each in hosts]
    if None in found:
        return None
    several = [("host", f"{each[1]}:{each[2]}" if each[2] else each[1]) for each in found if each is not None]
    return sa.make_url(f"{parts['before']}{parts['after']}").update_query_pairs(several)


def shown(url: URL) -> str:
    """The URL as texts may hold it: no password, and of its query only what is known to be harmless."""
    said = [
        f"{name}={value if name in _TOLD else '***'}"
        for name, values in url.query.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]
    plain = url.set(query={}).render_as_string(hide_password=True)
    return f"{plain}?{'&'.join(said)}" if said else plain


def in_memory(url: URL) -> bool:
    """Whether it is a SQLite database in memory, which is one connection's own; also as ``file:name?mode=memory``."""
    name = url.database or ""
    if url.get_backend_name() != "sqlite":
        return False
    if "uri" not in url.query:
        return name in {"", ":memory:"}
    return name in {"file:", "file::memory:"} or url.query.get("mode") == "memory"


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
    each_said = [each for said in ((given,) if isinstance(given, str) else given) for each in said.split(",")]
    found = [_HOST.match(each) for each in each_said]
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
                if number == (begin - 1) % count or self._serves(connection):
                    self._last = number
                    return connection
            except dialect.loaded_dbapi.Error:
                if number == (begin - 1) % count:
                    raise
        raise AssertionError("no host")  # pragma: no cover - hosts are never empty

    def _serves(self, connection: DBAPIConnection) -> bool:
        """Whether it is of use; closed where it is not."""
        serves = False
        try:
            serves = self._usable(connection)
        finally:
            if not serves:
                connection.close()
        return serves
