"""What every connection of an engine is told, and what is listened for while it is used."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from cloudcore.database.addresses import shown
from cloudcore.database.driver_errors import session_is_lost
from cloudcore.database.forking import part_when_forked
from cloudcore.errors import Closed, InvalidArgument

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine, ExceptionContext
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

__all__ = [
    "adopt_engine",
    "at_rest",
    "begin_sqlite",
    "bound_each_transaction",
    "close_for_good",
    "is_galera",
    "leave_lost_sessions",
    "read_what_is_committed",
    "refuse_autocommit",
    "refuse_dirty_reads",
    "reset_quietly",
    "takes_writes",
]

_AT_REST = "cloudcore_at_rest"
_FOREIGN_KEYS = "cloudcore_foreign_keys"
_heard: weakref.WeakKeyDictionary[Engine, set[str]] = weakref.WeakKeyDictionary()


def adopt_engine(engine: object) -> Engine:
    """Take an engine of the caller's into use.

    Raises:
        InvalidArgument: It is none, is asynchronous, or commits or reads in a way that transactions cannot stand on.
    """
    plain = getattr(engine, "sync_engine", engine)  # an AsyncEngine wraps one
    if isinstance(plain, sa.Engine) and plain.dialect.is_async:
        raise InvalidArgument(
            "an asynchronous engine: cloudcore's calls block. Give a URL, or an engine of sqlalchemy.create_engine, "
            "and call from a thread (asyncio.to_thread)",
            field="engine",
        )
    if not isinstance(engine, sa.Engine):
        raise InvalidArgument(f"{type(engine).__name__}: expected a URL or a SQLAlchemy engine", field="database")
    level = engine.get_execution_options().get("isolation_level")
    level = level or getattr(engine.dialect, "_on_connect_isolation_level", None)  # as given to create_engine
    if level in {"AUTOCOMMIT", "READ UNCOMMITTED"}:
        raise InvalidArgument(
            f"isolation_level={level!r}: a transaction of this engine could neither be undone nor trusted. Open it "
            "with READ COMMITTED, or give its URL",
            field="isolation_level",
            value=level,
        )
    if engine.dialect.name == "sqlite":
        _listen(engine, "checkout", _enforce_foreign_keys)
    leave_lost_sessions(engine)
    part_when_forked(engine)
    return engine


def close_for_good(engine: Engine) -> None:
    """Close what is idle now, and what is in use as soon as it is given back; open nothing any more."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise Closed(f"{shown(engine.url)} is closed: open it anew", field="database")

    def drop(_: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        record.invalidate()

    # No listener, which would come after the one that goes from host to host.
    engine.dialect.connect = refuse  # type: ignore[method-assign]
    _listen(engine, "checkin", drop)
    engine.dispose()


def refuse_dirty_reads(connection: Connection) -> None:
    """See that a MariaDB or MySQL server has not made READ UNCOMMITTED of an engine that names no level of its own.

    Raises:
        InvalidArgument: It has.
    """
    if connection.dialect.name in {"mysql", "mariadb"} and _level(connection) == "READ UNCOMMITTED":
        raise InvalidArgument(
            "the server's own isolation is READ UNCOMMITTED, and the engine names none: what others may yet undo would "
            'be taken for true. Open it with isolation_level="READ COMMITTED", or give its URL',
            field="isolation_level",
            value="READ UNCOMMITTED",
        )


def _level(connection: Connection) -> str | None:
    """The isolation of *connection*: as the engine was opened with, else the server's when it first connected."""
    level = connection.get_execution_options().get("isolation_level")
    level = level or getattr(connection.dialect, "_on_connect_isolation_level", None)
    return level or connection.default_isolation_level


def refuse_autocommit(connection: Connection) -> None:
    """See that the driver itself does not commit each statement, as ``connect_args={"autocommit": True}`` asks it to.

    Raises:
        InvalidArgument: It does.
    """
    dialect, driver = connection.dialect, connection.connection.dbapi_connection
    if dialect.name == "sqlite":  # whose isolation_level=None means only that transactions are begun by hand
        commits = getattr(driver, "autocommit", None) is True
    else:
        commits = driver is not None and dialect.detect_autocommit_setting(driver)
    if commits:
        raise InvalidArgument(
            "the engine's driver commits each statement by itself (autocommit in connect_args): leave that out",
            field="connect_args",
        )


def begin_sqlite(connection: Connection, statement: str) -> None:
    """Begin a transaction with *statement*, ``BEGIN`` or ``BEGIN IMMEDIATE``, however the engine begins its own.

    Python's ``autocommit=False`` has one open at any time, and a listener to SQLAlchemy's "begin" opens one now: both
    are empty, and ended first. A transaction of somebody else's on a connection that is shared is not.

    Raises:
        InvalidArgument: The driver commits each statement, or has a transaction open at any time on a connection that
            several share, where nobody can tell whose it is.
    """
    refuse_autocommit(connection)
    driver: Any = connection.connection.dbapi_connection
    always_open = getattr(driver, "autocommit", None) is False
    if always_open and isinstance(connection.engine.pool, SingletonThreadPool | StaticPool):
        raise InvalidArgument(
            "autocommit=False in connect_args, and a pool that lends one connection to several: whose transaction is "
            "open on it cannot be told. Leave autocommit out, or give poolclass=QueuePool",
            field="connect_args",
        )
    others = driver.in_transaction and not always_open
    connection.begin()
    if driver.in_transaction and not others:
        connection.exec_driver_sql("ROLLBACK")
        _switch_foreign_keys_on(driver, connection.connection.info)
    connection.exec_driver_sql(statement)


def read_what_is_committed(connection: Connection) -> None:
    """Let the next transaction be READ COMMITTED where a caller's MariaDB or MySQL engine would keep to a snapshot.

    REPEATABLE READ is what these servers do by themselves. What is read after waiting for a lock must be what the
    holder left, not what was there before. The session's own level stays.
    """
    if connection.dialect.name not in {"mysql", "mariadb"}:
        return
    if _level(connection) == "REPEATABLE READ":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _enforce_foreign_keys(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
    """Switch them on where a connection leaves the pool, for it may have been opened before the engine was ours."""
    if _FOREIGN_KEYS not in record.info:
        _switch_foreign_keys_on(connection, record.info)


def _switch_foreign_keys_on(connection: Any, info: dict[Any, Any]) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
    if not connection.in_transaction:  # within one SQLite passes over it without a word
        info[_FOREIGN_KEYS] = True


def leave_lost_sessions(engine: Engine) -> None:
    """Close a session that can serve no more, and all that were opened before, instead of giving it back."""

    def judge(context: ExceptionContext) -> None:
        if context.connection is not None and session_is_lost(context.original_exception, engine.dialect.name):
            context.is_disconnect = True

    _listen(engine, "handle_error", judge)


def reset_quietly(engine: Engine) -> None:
    """Roll back what is given to the pool; a connection that cannot even do that is closed without more ado.

    The pool would do the same, and write a traceback to the log. Opened with ``pool_reset_on_return=None``.
    """

    def reset(connection: DBAPIConnection, record: ConnectionPoolEntry, state: PoolResetState) -> None:
        rests = record is not None and record.info.pop(_AT_REST, False)
        if state.transaction_was_reset or rests:
            return
        try:
            connection.rollback()
        except Exception:  # whatever it is, the connection is of no more use
            if record is not None:
                record.invalidate()

    _listen(engine, "reset", reset)


def at_rest(connection: Connection) -> None:
    """Say that *connection* has just ended its transaction and is given back as it is: a ROLLBACK would be idle."""
    connection.connection.info[_AT_REST] = True


def bound_each_transaction(engine: Engine, lock_timeout: int) -> None:
    """Say in every transaction how many milliseconds a statement waits for a lock, where sessions are not ours."""
    statement = f"SET LOCAL lock_timeout = {lock_timeout}"

    def begin(connection: Connection) -> None:
        if connection.connection.dbapi_connection is not None and not connection.dialect.detect_autocommit_setting(
            connection.connection.dbapi_connection
        ):
            connection.exec_driver_sql(statement)

    _listen(engine, "begin", begin)


def is_galera(connection: Connection) -> bool:
    """Whether the server is a node of a Galera cluster."""
    if connection.dialect.name not in {"mysql", "mariadb"}:
        return False
    found = connection.exec_driver_sql("SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").one_or_none()
    return found is not None and found[1] == "ON"


def takes_writes(connection: Any) -> bool:
    """Whether a MariaDB or MySQL server is neither read-only nor a Galera node without its cluster."""
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT @@global.read_only")  # a node outside the primary component refuses even this
        (read_only,) = cursor.fetchone()
    connection.rollback()
    return not read_only


def _listen(engine: Engine, name: str, function: Any) -> None:
    """Listen once, however many databases stand over one engine."""
    heard = _heard.setdefault(engine, set())
    if function.__qualname__ not in heard:
        heard.add(function.__qualname__)
        event.listen(engine, name, function)
