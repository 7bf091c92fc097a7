"""Cells: where one shard of the records is kept, and the connections to it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import attrs
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool

from cloudcore._values import require_text
from cloudcore.database import Database, open_engine, translate
from cloudcore.errors import CloudcoreError, DatabaseUnavailable, DeadlineExceeded, InvalidArgument
from cloudcore.listing.query.statements import dialect_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import URL, Dialect, Engine
    from sqlalchemy.pool import PoolProxiedConnection

    from cloudcore.listing.merge.page_bound import Horizon

__all__ = ["Cell", "Lease", "Link", "in_memory"]

T = TypeVar("T")

_READING = threading.Lock()
"""Held while rows are read from a SQLite file: at each the interpreter's lock is let go and taken again, and threads
that do so together spend ten times their work on waking each other. Rows that are long in coming delay the others by
``_TURN`` at most."""
_TURN = 0.02
"""Seconds to wait for one's turn to read before reading beside the others."""


def _replicas(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | sa.URL | sa.Engine) else tuple(value)


@attrs.frozen
class Cell:
    """One cell: a name and a database.

    Attributes:
        name: Unique in its router, up to 64 characters.
        database: A URL, whose connections the router opens, keeps and closes; or an engine of yours, whose pool is
            used for one statement at a time and whose session settings are left as they are.
        replicas: Databases with the same content, asked when the first is late or away. Their rows may be as stale
            as they are.
        deadline: Seconds within which the cell must answer a page; None for the router's.
        connections: At most so many at once, for each of its databases.
        enabled: False: it is never asked, and pages say so.
        options: For :func:`sqlalchemy.create_engine`, when *database* is a URL.
    """

    name: str = attrs.field()
    database: str | URL | Engine = attrs.field(repr=False)
    replicas: tuple[str | URL | Engine, ...] = attrs.field(default=(), converter=_replicas, kw_only=True, repr=False)
    deadline: float | None = attrs.field(default=None, kw_only=True)
    connections: int = attrs.field(default=8, kw_only=True)
    enabled: bool = attrs.field(default=True, kw_only=True)
    options: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, repr=False)

    @name.validator
    def _check_name(self, _: attrs.Attribute[Any], value: str) -> None:
        require_text(value, "name", maximum=64)

    @deadline.validator
    def _check_deadline(self, _: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and not value > 0:
            raise InvalidArgument(f"deadline: {value!r} is no positive number of seconds", field="deadline")


class Lease:
    """One connection, used by one thread at a time."""

    __slots__ = ("_autocommit", "_proxied", "connection", "cursor", "dialect", "form", "limit", "local", "mine", "used")

    def __init__(self, proxied: PoolProxiedConnection, dialect: Dialect, *, mine: bool) -> None:
        self._proxied = proxied
        self.dialect = dialect
        self.form = f"{dialect_name(dialect)} {dialect.driver}"
        """Leases of one form take the same text and parameters."""
        self.local = dialect.name == "sqlite"
        self.mine = mine
        self.connection: Any = proxied.dbapi_connection
        self.limit = math.inf
        self.used = False
        """Whether it was kept since an earlier statement."""
        self._autocommit: Any = None
        self.cursor: Any = None

    def prepare(self, deadline: float) -> None:
        """Make reading cost one round trip a statement, and on connections of ours bound each statement's time."""
        kind = self.dialect.name
        if kind == "postgresql":
            self._autocommit, self.connection.autocommit = self.connection.autocommit, True
        elif kind in {"mysql", "mariadb"}:
            self._autocommit = self.connection.get_autocommit()
            self.connection.autocommit(True)
        self.cursor = self.connection.cursor()
        if self.mine:
            self._bound(deadline)
        if kind == "sqlite" and "cloudcore.regexp" not in self._proxied.info:
            self.connection.create_function("regexp", 2, _regexp, deterministic=True)
            self._proxied.info["cloudcore.regexp"] = True

    def _bound(self, deadline: float) -> None:
        kind = dialect_name(self.dialect)
        milliseconds = max(1, math.ceil(deadline * 1000))
        if kind == "postgresql":
            self.cursor.execute(f"SET statement_timeout = {milliseconds}")
            if self.dialect.driver == "psycopg":
                self.connection.prepare_threshold = 1  # few texts, sent again and again: plan each but once
        elif kind == "mariadb":
            self.cursor.execute(f"SET SESSION max_statement_time = {deadline:.3f}")
        elif kind == "mysql":
            self.cursor.execute(f"SET SESSION max_execution_time = {milliseconds}")
        else:
            self.connection.set_progress_handler(lambda: time.monotonic() > self.limit, 50_000)

    def run(self, text: str, parameters: Any, limit: float) -> list[tuple[Any, ...]]:
        """All rows of one statement, as the driver gives them; *limit* is the monotonic instant to give up at."""
        self.limit = limit
        self.cursor.execute(text, parameters)
        rows: list[tuple[Any, ...]] = self._in_turn(self.cursor.fetchall) if self.local else self.cursor.fetchall()
        return rows if rows.__class__ is list else list(rows)

    def run_to(self, horizon: Horizon, text: str, parameters: Any, limit: float) -> tuple[list[tuple[Any, ...]], bool]:
        """Rows of one statement up to *horizon*, and whether it was left there; all of them where all have come."""
        if not self.local:
            return self.run(text, parameters, limit), False
        self.limit = limit
        self.cursor.execute(text, parameters)
        rows, cut = self._in_turn(lambda: horizon.take(self.cursor))
        if cut:
            self.cursor.close()  # ends the statement, and with it the lock on the file
            self.cursor = self.connection.cursor()
        return rows, cut

    def _in_turn(self, read: Callable[[], T]) -> T:
        alone = _READING.acquire(timeout=_TURN)
        try:
            return read()
        finally:
            if alone:
                _READING.release()

    def abort(self) -> None:
        """From another thread: make the statement under way fail now."""
        with contextlib.suppress(Exception):  # it may have ended meanwhile, in any state
            if self.dialect.name == "sqlite":
                self.connection.interrupt()
            elif self.dialect.name == "postgresql":
                with socket.socket(fileno=os.dup(self.connection.fileno())) as twin:
                    twin.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give the connection back to its pool as it was."""
        with contextlib.suppress(Exception):
            self.cursor.close()
            if self.dialect.name == "postgresql":
                self.connection.autocommit = self._autocommit
            elif self.dialect.name in {"mysql", "mariadb"}:
                self.connection.autocommit(self._autocommit)
        self._proxied.close()

    def discard(self) -> None:
        """Close the connection for good."""
        with contextlib.suppress(Exception):
            self._proxied.invalidate()


def _regexp(pattern: str, value: str | None) -> bool | None:
    return None if value is None else re.search(pattern, value) is not None


class Link:
    """The connections to one database of one cell. Thread-safe.

    Connections of a URL are kept open between statements; those of a caller's engine go back after each.
    """

    def __init__(
        self,
        source: str | URL | Engine,
        *,
        connections: int,
        deadline: float,
        options: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = False
        if not isinstance(source, sa.Engine) and in_memory(sa.make_url(source)):
            self._memory = True  # reading and writing must share the one connection that is the database
            source = open_engine(source, **options)
        self._source = source
        self.mine = not isinstance(source, sa.Engine)
        url = source.url if isinstance(source, sa.Engine) else sa.make_url(source)
        self.local = url.get_backend_name() == "sqlite"
        """Whether it is a file that this process reads by itself."""
        self._deadline = deadline
        self._options = options
        self._clock = clock
        self._free = threading.Condition()
        self._idle: list[Lease] = []
        """Taken from and added to without the lock: both are atomic."""
        self._room = connections
        self._waiting = 0
        self._closed = False
        self._engine: Engine | None = None if self.mine else source  # type: ignore[assignment]  # checked above
        self._database: Database | None = None

    @property
    def engine(self) -> Engine:
        """The engine, opened on first use."""
        if self._engine is not None:
            return self._engine
        with self._free:
            if self._engine is None:
                self._engine = _reading_engine(self._source, self._deadline, self._options)
            return self._engine

    @property
    def database(self) -> Database:
        """The same database for writing, opened on first use with the settings of cloudcore's own databases."""
        with self._free:
            if self._database is None:
                self._database = Database(self._source, pool_size=2) if self.mine else Database(self._source)
            return self._database

    def acquire(self, limit: float, *, fresh: bool = False) -> Lease:
        """A connection; give it to :meth:`release` or :meth:`blame`. Waits for a free one until the instant *limit*.

        With *fresh* the idle ones are closed first: one of them was dead, so the others are too.

        Raises:
            DeadlineExceeded: None became free.
            DatabaseUnavailable, DatabaseError: The database cannot be reached.
        """
        if fresh:
            self._forget_idle()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        engine = self.engine
        kept = self._enter(limit)
        if kept is not None:
            return kept
        try:
            return self._open(engine)
        except Exception as error:
            self._leave()
            raise _typed(error, engine) from error
        except BaseException:  # the caller's own thread was interrupted
            self._leave()
            raise

    def _forget_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.scrap(self._idle.pop())

    def release(self, lease: Lease) -> None:
        """Take a connection back after a statement that went well."""
        if not self.mine:
            lease.release()
            self._leave()
            return
        lease.used = True
        self._idle.append(lease)
        if self._waiting:  # whoever waits said so before looking for an idle one once more
            with self._free:
                self._free.notify()
        if self._closed:
            self._close_idle()

    def scrap(self, lease: Lease) -> None:
        """Take a connection back for good."""
        lease.discard()
        self._leave()

    def blame(self, lease: Lease, error: Exception) -> CloudcoreError:
        """Take a connection back after *error*, for good; returns the error to raise."""
        self.scrap(lease)
        return error if isinstance(error, CloudcoreError) else _typed(error, self.engine)

    def _enter(self, limit: float) -> Lease | None:
        """Wait for an idle connection, or for the right to open one (None)."""
        with self._free:
            self._waiting += 1
            try:
                while True:
                    with contextlib.suppress(IndexError):
                        return self._idle.pop()
                    if self._room:
                        self._room -= 1
                        return None
                    left = limit - self._clock()
                    if left <= 0 or not self._free.wait(left):
                        raise DeadlineExceeded("all connections to the cell are busy; give the cell more connections")
            finally:
                self._waiting -= 1

    def _open(self, engine: Engine) -> Lease:
        proxied = engine.raw_connection()
        try:
            lease = Lease(proxied, engine.dialect, mine=self.mine)
            lease.prepare(self._deadline)
        except BaseException:
            proxied.invalidate()
            raise
        return lease

    def _leave(self) -> None:
        """One connection fewer is open."""
        with self._free:
            self._room += 1
            self._free.notify()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().release()

    def close(self) -> None:
        """Close what is idle now and what is in use as soon as it is free. May be called twice."""
        self._closed = True
        self._close_idle()
        if self._database is not None:
            self._database.close()
        if (self.mine or self._memory) and self._engine is not None:
            self._engine.dispose()


def _typed(error: Exception, engine: Engine) -> CloudcoreError:
    """The cloudcore error for what the driver raised."""
    dbapi = engine.dialect.dbapi
    wrapped: Exception = error
    if dbapi is not None and isinstance(error, dbapi.Error):
        gone = engine.dialect.is_disconnect(error, None, None)
        kind = {
            "OperationalError": sa.exc.OperationalError,
            "InterfaceError": sa.exc.InterfaceError,
            "ProgrammingError": sa.exc.ProgrammingError,
        }
        chosen = next((kind[each.__name__] for each in type(error).__mro__ if each.__name__ in kind), sa.exc.DBAPIError)
        wrapped = chosen(None, None, error, connection_invalidated=gone)
    elif isinstance(error, OSError):
        return DatabaseUnavailable(
            f"{engine.url.render_as_string(hide_password=True)}: {error}", database=str(engine.url)
        )
    return translate(wrapped, engine)


def in_memory(url: URL) -> bool:
    """Whether the database is one connection's own, in memory."""
    return url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}


def _open_existing(engine: Engine) -> None:
    """Make a SQLite engine open its file only if it is there, for asking a cell must not create it.

    The engine's URL stays as the user wrote it, and so do the errors that name it.
    """

    @event.listens_for(engine, "do_connect")
    def prepare(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        path = arguments[0]
        if not path.startswith("file:"):
            arguments[0] = f"file:{quote(path)}?mode=rw"
            options["uri"] = True


def _reading_engine(source: Any, deadline: float, options: Mapping[str, Any]) -> Engine:
    """An engine for reading a cell: it changes nothing in the database, not even a SQLite file's journal mode."""
    url = sa.make_url(source)
    arguments = {**options}
    if url.get_backend_name() == "sqlite":
        connect = {"check_same_thread": False, "timeout": deadline, "isolation_level": None, "cached_statements": 512}
        arguments["connect_args"] = {**connect, **arguments.pop("connect_args", {})}
        engine = sa.create_engine(url, **{"poolclass": NullPool, **arguments})
        _open_existing(engine)
        return engine
    if url.get_backend_name() != "sqlite":
        connect = {"connect_timeout": max(2, math.ceil(deadline))}
        if url.get_backend_name() in {"mysql", "mariadb"}:
            connect["read_timeout"] = math.ceil(deadline) + 1
        arguments["connect_args"] = {**connect, **arguments.pop("connect_args", {})}
    return open_engine(url, **arguments)
