"""Engines: URLs, drivers, and the settings of a connection that the rest of the library relies on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from cloudcore._extras import require_extra
from cloudcore.database.forking import part_when_forked
from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["enforce_foreign_keys", "open_engine"]

_DRIVERS = {
    "postgresql": ("postgresql+psycopg", "psycopg", "postgresql"),
    "mysql": ("mysql+pymysql", "pymysql", "mysql"),
    "mariadb": ("mariadb+pymysql", "pymysql", "mysql"),
}


def open_engine(
    url: str | URL,
    *,
    pool_size: int = 10,
    busy_timeout: float = 30.0,
    durable: bool = True,
    **options: Any,
) -> Engine:
    """Open an engine with the settings that cloudcore relies on.

    SQLite: WAL, foreign keys on, busy time-out, ``synchronous=FULL``; ``sqlite://`` is one database in memory, shared
    by all threads through one connection. PostgreSQL: psycopg 3, READ COMMITTED. MariaDB/MySQL: PyMySQL, READ
    COMMITTED, strict mode, UTC.

    Args:
        url: A SQLAlchemy URL; ``postgresql://``, ``mysql://`` and ``mariadb://`` get the driver named above.
        pool_size: Connections kept at most.
        busy_timeout: Seconds a statement waits for another writer's lock.
        durable: False gives up durability after a power failure (not consistency) for speed, on SQLite.
        options: Passed on to :func:`sqlalchemy.create_engine`.

    Raises:
        InvalidArgument: The URL cannot be parsed, or names another kind of database.
        MissingExtra: The driver is not installed.
    """
    parsed = _parse_url(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return _open_sqlite(parsed, pool_size, busy_timeout, durable=durable, options=options)
    if kind not in _DRIVERS:
        raise InvalidArgument(f"{kind}: cloudcore knows sqlite, postgresql, mysql and mariadb", field="url", value=kind)
    driver, module, extra = _DRIVERS[kind]
    if "+" not in parsed.drivername:
        require_extra(module, extra)
        parsed = parsed.set(drivername=driver)
    arguments = _server_arguments(kind, busy_timeout)
    arguments.update(options.pop("connect_args", {}))
    options.setdefault("pool_recycle", 1800)
    options.setdefault("isolation_level", "READ COMMITTED")
    engine = sa.create_engine(parsed, pool_size=pool_size, max_overflow=pool_size, connect_args=arguments, **options)
    part_when_forked(engine)
    return engine


def _parse_url(url: str | URL) -> URL:
    try:
        return sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise InvalidArgument(
            "this is no database URL; expected something like sqlite:///cloud.db "
            "or postgresql://user:password@host/name",
            field="url",
        ) from error


def _server_arguments(kind: str, busy_timeout: float) -> dict[str, Any]:
    if kind == "postgresql":
        return {
            "connect_timeout": 10,
            "application_name": "cloudcore",
            "options": f"-c lock_timeout={int(busy_timeout * 1000)} -c timezone=UTC",
        }
    return {
        "connect_timeout": 10,
        "charset": "utf8mb4",
        "init_command": (
            "SET time_zone='+00:00', sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO', "
            f"innodb_lock_wait_timeout={max(1, int(busy_timeout))}"
        ),
    }


def _open_sqlite(url: URL, pool_size: int, busy_timeout: float, *, durable: bool, options: dict[str, Any]) -> Engine:
    in_memory = url.database in {None, "", ":memory:"} or "mode=memory" in (url.database or "")
    arguments = {
        "check_same_thread": False,
        "timeout": busy_timeout,
        "isolation_level": None,  # sqlite3 opens no transaction by itself; Database does
        "cached_statements": 512,
    }
    arguments.update(options.pop("connect_args", {}))
    options.setdefault("poolclass", QueuePool)
    if in_memory:  # one connection is the database: threads take turns
        options.update(pool_size=1, max_overflow=0)
    else:
        options.update(pool_size=pool_size, max_overflow=pool_size)
    engine = sa.create_engine(url, connect_args=arguments, **options)

    @event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        if not in_memory:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            cursor.execute("PRAGMA wal_autocheckpoint=4000")  # pages: fewer, longer copies back into the file
            cursor.execute("PRAGMA temp_store=MEMORY")  # what savepoints keep of changed pages
            # KiB: the upper levels of large indexes stay in memory. Not more, for a commit after a balanced tree looks
            # through all that is kept (SQLite moves pages by way of the number of the lock page, then truncates).
            cursor.execute("PRAGMA cache_size=-8192")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    part_when_forked(engine)
    return engine


def enforce_foreign_keys(engine: Engine) -> None:
    """Switch foreign keys on for connections that a caller's SQLite engine opens from now on."""

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    event.listen(engine, "connect", prepare)
