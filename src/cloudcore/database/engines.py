"""Engines: URLs, drivers, and the settings of a connection that the rest of the library relies on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from cloudcore._extras import require_extra
from cloudcore._values import require_duration
from cloudcore.database.addresses import InTurn, hosts_of, in_memory, parse_url, shown
from cloudcore.database.forking import part_when_forked
from cloudcore.database.mysql_rows import conversions
from cloudcore.database.sessions import bound_each_transaction, leave_lost_sessions, reset_quietly, takes_writes
from cloudcore.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["PoolerMode", "behind_pooler", "lock_timeout_to_say", "open_engine", "with_driver"]

PoolerMode = Literal["transaction"]
"""How a pooler between client and server lends server sessions: for one transaction at a time."""

_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
_USUAL = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
"""Which extra holds the driver of each."""
_LONGEST_WAIT = 2_147_483.0
"""Seconds; all three databases count milliseconds in 32 bits."""
_MODULES = {
    "psycopg": ("psycopg", "postgresql"),
    "pymysql": ("pymysql", "mysql"),
    "mysqldb": ("MySQLdb", "mysqlclient"),
    "mariadbconnector": ("mariadb", "mariadb"),
}
_LEFT_TO_URLS = frozenset({"application_name", "connect_timeout", "options"})
"""What is told to a driver unless the URL says it."""
_MODES = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO"


def open_engine(
    url: str | URL,
    *,
    pool_size: int = 10,
    busy_timeout: float = 30.0,
    durable: bool = True,
    pooler: PoolerMode | None = None,
    **options: Any,
) -> Engine:
    """Open an engine with the settings that cloudcore relies on.

    SQLite: WAL, foreign keys on, busy time-out, ``synchronous=FULL``; ``sqlite://`` is one database in memory, shared
    by all threads through one connection. PostgreSQL: psycopg 3, READ COMMITTED. MariaDB/MySQL: PyMySQL, mysqlclient
    (``mysql+mysqldb://``) or MariaDB's own driver (``mariadb+mariadbconnector://``), READ COMMITTED, strict mode, UTC.

    Args:
        url: A SQLAlchemy URL; ``postgresql://``, ``mysql://`` and ``mariadb://`` get the driver named first above. It
            may name several hosts, ``postgresql://user@a,b:5433/name``: the first that answers and takes writes is
            used, and the next one when that is away.
        pool_size: Connections kept at most.
        busy_timeout: Seconds a statement waits for another writer's lock, above 0; at most 24 days.
        durable: False gives up durability after a power failure (not consistency) for speed, on SQLite.
        pooler: ``"transaction"`` where a pooler such as PgBouncer stands before PostgreSQL and lends its sessions for
            a transaction: nothing is then asked of a session that must outlast one, and no statement is prepared.
            ``?pooler=transaction`` at the end of the URL says the same.
        options: Passed on to :func:`sqlalchemy.create_engine`. With another ``poolclass``, such as ``NullPool``, there
            is no *pool_size*.

    Raises:
        InvalidArgument: The URL cannot be parsed, or names another kind of database, an unknown driver or an
            asynchronous one; *busy_timeout* is no such time.
        MissingExtra: The driver is not installed.
    """
    busy_timeout = min(require_duration(busy_timeout, "busy_timeout"), _LONGEST_WAIT)
    parsed = with_driver(parse_url(url))
    kind = parsed.get_backend_name()
    if "pooler" in parsed.query:
        pooler, parsed = cast("Any", parsed.query["pooler"]), parsed.difference_update_query(["pooler"])
    if pooler not in {None, "transaction"} or (pooler and kind != "postgresql"):
        raise InvalidArgument(
            f'pooler={pooler!r} on {kind}: only "transaction" is known, and only before PostgreSQL',
            field="pooler",
            value=pooler,
        )
    if kind == "sqlite":
        return _open_sqlite(parsed, pool_size, busy_timeout, durable=durable, options=options)
    arguments = _beside(_arguments(parsed, busy_timeout, pooler), parsed, options.pop("connect_args", {}))
    options.setdefault("pool_recycle", 1800)
    options.setdefault("isolation_level", "READ COMMITTED")
    options.setdefault("pool_reset_on_return", None)  # see reset_quietly
    hosts = hosts_of(parsed)
    if kind == "postgresql" and len(hosts) > 1 and "port" not in parsed.query:  # in libpq's own form
        arguments["host"] = ",".join(host for host, _ in hosts)
        arguments["port"] = ",".join(str(port or "") for _, port in hosts)
        parsed = parsed.difference_update_query(["host"])
    elif kind != "postgresql":
        parsed = parsed.difference_update_query(["host"]).set(host=hosts[0][0], port=hosts[0][1]) if hosts else parsed
    engine = sa.create_engine(parsed, connect_args=arguments, **_bounded(options, pool_size))
    if len(hosts) > 1 and kind != "postgresql":
        event.listen(engine, "do_connect", InTurn(hosts, takes_writes).connect)
    if options["pool_reset_on_return"] is None:
        reset_quietly(engine)
    if pooler:
        engine.update_execution_options(pooler=pooler, lock_timeout=_milliseconds(busy_timeout))
        bound_each_transaction(engine, _milliseconds(busy_timeout))
    leave_lost_sessions(engine)
    part_when_forked(engine)
    return engine


def with_driver(url: URL) -> URL:
    """The URL with the driver that serves it, the usual one where it names none; opens nothing.

    Raises:
        InvalidArgument: It names another kind of database, an unknown driver or an asynchronous one, or a host of
            SQLite's.
        MissingExtra: The driver is not installed.
    """
    kind = url.get_backend_name()
    if kind != "sqlite" and kind not in _DRIVERS:
        raise InvalidArgument(f"{kind}: cloudcore knows sqlite, postgresql, mysql and mariadb", field="url", value=kind)
    if kind == "sqlite" and (url.host or url.port or url.username):
        raise InvalidArgument(
            f"{shown(url)}: SQLite has no hosts; a file is sqlite:///relative/path or sqlite:////absolute/path",
            field="url",
            value=shown(url),
        )
    if "+" not in url.drivername:
        url = url.set(drivername=_DRIVERS.get(kind, kind))
    driver = url.get_driver_name()
    if driver in _MODULES:
        require_extra(*_MODULES[driver])
    try:
        dialect = url.get_dialect()
        if dialect.is_async:
            raise InvalidArgument(
                f"{driver} is an asynchronous driver: cloudcore's calls block", field="url", value=driver
            )
        dialect.import_dbapi()
    except sa.exc.NoSuchModuleError:
        raise InvalidArgument(
            f"{url.drivername}: SQLAlchemy knows no such driver; {kind}:// gets the usual one",
            field="url",
            value=driver,
        ) from None
    except ImportError as error:
        usual = f"{kind}://" if kind == "sqlite" else f'{kind}:// after pip install "cloudcore[{_USUAL[kind]}]"'
        raise MissingExtra(
            f"{url.drivername}: {error}. Install that driver, or use {usual}", extra=_USUAL.get(kind)
        ) from error
    return url


def behind_pooler(engine: Engine) -> bool:
    """Whether *engine* was opened for a pooler, so that no session is its own for longer than a transaction."""
    return engine.get_execution_options().get("pooler") is not None


def lock_timeout_to_say(engine: Engine) -> int | None:
    """Milliseconds that each transaction must say by itself, where its session does not keep them; else None."""
    found: int | None = engine.get_execution_options().get("lock_timeout")
    return found


def _milliseconds(seconds: float) -> int:
    """At least one, for PostgreSQL takes 0 for no bound at all."""
    return math.ceil(seconds * 1000)


def _arguments(url: URL, busy_timeout: float, pooler: PoolerMode | None) -> dict[str, Any]:
    """What each driver is told when it connects."""
    if url.get_backend_name() == "postgresql":
        arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "cloudcore"}
        if len(hosts_of(url)) > 1 and "target_session_attrs" not in url.query:
            arguments["target_session_attrs"] = "read-write"
        if pooler:
            return arguments | {"prepare_threshold": None}
        return arguments | {"options": f"-c lock_timeout={_milliseconds(busy_timeout)} -c timezone=UTC"}
    session = f"SET time_zone='+00:00', sql_mode='{_MODES}', innodb_lock_wait_timeout={math.ceil(busy_timeout)}"
    arguments = {"connect_timeout": 10, "init_command": session}
    if url.get_driver_name() != "mariadbconnector":  # which speaks nothing else
        arguments["charset"] = "utf8mb4"
    if url.get_driver_name() == "mysqldb":
        arguments["conv"] = conversions()
    return arguments


def _beside(ours: dict[str, Any], url: URL, given: dict[str, Any]) -> dict[str, Any]:
    """What a driver is told: *ours*, but for what the URL or the caller says otherwise, and both their ``options``."""
    said = {name: value if isinstance(value, str) else " ".join(value) for name, value in url.query.items()}
    told = {name: value for name, value in ours.items() if name not in _LEFT_TO_URLS or name not in said} | given
    if theirs := given.get("options", said.get("options")):
        told["options"] = f"{ours.get('options', '')} {theirs}".strip()  # of two that say the same the last holds
    return told


def _bounded(options: dict[str, Any], size: int) -> dict[str, Any]:
    """*options* with the bounds of a pool that has such."""
    if not issubclass(options.get("poolclass") or QueuePool, QueuePool):
        return {name: value for name, value in options.items() if name != "max_overflow"}
    return {"max_overflow": size, **options, "pool_size": size}


def _open_sqlite(url: URL, pool_size: int, busy_timeout: float, *, durable: bool, options: dict[str, Any]) -> Engine:
    one_connection = in_memory(url)
    arguments = {
        "check_same_thread": False,
        "timeout": busy_timeout,
        "isolation_level": None,  # sqlite3 opens no transaction by itself; Database does
        "cached_statements": 512,
    }
    arguments.update(options.pop("connect_args", {}))
    if arguments.get("autocommit") in {True, False}:
        raise InvalidArgument(
            "autocommit in connect_args: cloudcore begins and ends transactions itself; leave that out",
            field="connect_args",
        )
    options.setdefault("poolclass", QueuePool)
    if one_connection:  # one connection is the database: threads take turns
        pool_size, options["max_overflow"] = 1, 0
    engine = sa.create_engine(url, connect_args=arguments, **_bounded(options, pool_size))

    @event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        if not one_connection:
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
