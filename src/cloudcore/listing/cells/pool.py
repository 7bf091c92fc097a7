"""The connections to one database of a cell, and what the driver's errors mean."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool, QueuePool

from cloudcore._forks import when_forked
from cloudcore.database import Database, open_engine, translate
from cloudcore.database.addresses import in_memory, parse_url, shown
from cloudcore.database.engines import with_driver
from cloudcore.database.forking import part_when_forked
from cloudcore.errors import (
    CloudcoreError,
    DatabaseUnavailable,
    Overloaded,
    StatementRefused,
    UnreadableValue,
)
from cloudcore.listing.cells.connections import OpenConnections, Permit, PooledConnection, ring
from cloudcore.listing.cells.faults import COME_BACK_AFTER, refusal
from cloudcore.listing.cells.table_layouts import TableLayouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL, Engine

__all__ = ["ConnectionPool"]

_abandoned: list[Any] = []
"""What a forked child took over from its parent's pools and must not even close."""


class ConnectionPool:
    """The connections to one database of one cell. Thread-safe. A forked child starts with none of its parent's.

    Connections of a URL are kept open between statements; those of a caller's engine go back after each.

    Args:
        source: The database.
        connections: At most so many at once.
        deadline: Seconds for each statement.
        options: For :func:`sqlalchemy.create_engine`, when *source* is a URL.
        clock: Monotonic seconds.
        opened: Bounds what this and other pools keep open together.
    """

    mine: bool
    local: bool
    layouts: TableLayouts

    def __init__(
        self,
        source: str | URL | Engine,
        *,
        connections: int,
        deadline: float,
        options: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        opened: OpenConnections | None = None,
    ) -> None:
        self._memory = False
        url = source.url if isinstance(source, sa.Engine) else parse_url(source)
        if not isinstance(source, sa.Engine):
            with_driver(url)  # a missing driver is no cell that is down: say so now, not on every page
            if in_memory(url):
                self._memory = True  # reading and writing must share the one connection that is the database
                source = open_engine(url, **options)
        self._source = source
        self.mine = not isinstance(source, sa.Engine)
        self.local = url.get_backend_name() == "sqlite"
        """Whether it is a file that this process reads by itself."""
        self._deadline = deadline
        self._options = options
        self._clock = clock
        self._connections = connections
        self._opened = OpenConnections(connections, math.inf) if opened is None else opened
        self._touched = 0.0
        """When somebody last asked for the engine or the database."""
        self._start_empty()
        self._closed = False
        self.layouts = TableLayouts(clock)
        self._engine: Engine | None = None if self.mine else source  # type: ignore[assignment]  # checked above
        self._database: Database | None = None
        if self._engine is not None:
            part_when_forked(self._engine)
        when_forked(self, ConnectionPool._part)
        if self.mine:
            self._opened.watch(self)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[PooledConnection] = []
        """Taken from and added to without the lock: both are atomic."""
        self._room = self._connections
        self._bells: deque[threading.Lock] = deque()
        """Of those that wait; whoever gives something back rings the first."""
        self._lost: deque[Permit] = deque()
        """Of those that were interrupted."""

    def _part(self) -> None:
        """In a forked child: the connections are the parent's, and so is whoever held the lock."""
        for pooled in self._idle:
            pooled.abandon()
        _abandoned.append(self._idle)
        self._start_empty()

    @property
    def engine(self) -> Engine:
        """The engine, opened on first use."""
        self._touched = self._clock()
        if self._engine is not None:
            return self._engine
        with self._lock:
            if self._engine is None:
                self._engine = self._attended(_reading_engine(self._source, self._deadline, self._options))
            return self._engine

    @property
    def database(self) -> Database:
        """The same database for writing, opened on first use with the settings of cloudcore's own databases."""
        self._touched = self._clock()
        with self._lock:
            if self._database is None:
                if self.mine:
                    self._database = Database(self._source, pool_size=2, pooler=self._options.get("pooler"))
                    self._attended(self._database.engine)
                else:
                    self._database = Database(self._source)
            return self._database

    def _attended(self, engine: Engine) -> Engine:
        """See to it, whenever the engine opens a connection, that somebody closes it when it is unused."""
        event.listen(engine, "connect", lambda *_: self._opened.attend())
        return engine

    def acquire(
        self, limit: float, *, fresh: bool = False, waits: Callable[[bool], None] | None = None
    ) -> PooledConnection:
        """A connection; give it to :meth:`release` or :meth:`blame`. Waits for a free one until the instant *limit*.

        With *fresh* the idle ones are closed first: one of them was dead, so the others are too. *waits* is called with
        True before it waits for one, and with False after.

        Raises:
            Overloaded: None became free: that is no fault of the database.
            DatabaseUnavailable, DatabaseError: The database cannot be reached.
        """
        if fresh:
            self._forget_idle()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        engine = self.engine
        permit = Permit(self._lost, self._bells)
        try:
            kept = self._enter(permit, limit, waits)
            return self._open(engine, permit) if kept is None else kept
        except BaseException as error:
            self._give_back(permit)
            if isinstance(error, CloudcoreError) or not isinstance(error, Exception):
                raise  # the caller's own thread was interrupted, if it is neither
            raise _typed(error, engine) from error

    def _forget_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self.scrap(self._idle.pop())

    def release(self, pooled: PooledConnection) -> None:
        """Take a connection back after a statement that went well."""
        if not self.mine:
            pooled.release()
            self._give_back(pooled.permit)
            return
        if self._opened.crowded:
            self.scrap(pooled)
            return
        pooled.used, pooled.idle_since = True, self._clock()
        try:
            self._idle.append(pooled)
        finally:
            if self._bells:  # whoever waits said so before looking for an idle one once more
                ring(self._bells)
            if self._closed:
                self._forget_idle()

    def scrap(self, pooled: PooledConnection) -> None:
        """Take a connection back for good."""
        pooled.discard()
        self._give_back(pooled.permit)

    def blame(self, pooled: PooledConnection, error: Exception, *, broken: bool = False) -> CloudcoreError:
        """Take a connection back after *error*, for good if it may be the connection's; returns the error to raise.

        Args:
            pooled: The connection.
            error: What was raised.
            broken: Whether somebody has broken it.
        """
        if pooled.regex is not None and pooled.regex.error is not None:
            error, pooled.regex.error = pooled.regex.error, None
        typed = error if isinstance(error, CloudcoreError) else _typed(error, self.engine)
        if isinstance(typed, StatementRefused | UnreadableValue) and not broken and pooled.renewed():
            self.release(pooled)
        else:
            self.scrap(pooled)
        return typed

    def _enter(self, permit: Permit, limit: float, waits: Callable[[bool], None] | None) -> PooledConnection | None:
        """Wait for an idle connection, or until *permit* is taken (None)."""
        if not self._idle and self._take(permit):
            return None
        bell = threading.Lock()
        bell.acquire()
        began, served = self._clock(), False
        stand = self._bells.append
        if waits is not None:
            waits(True)
        try:
            while True:
                stand(bell)
                kept = self._kept()
                if kept is not None or self._take(permit):
                    served = True
                    return kept
                left = limit - self._clock()
                if left <= 0 or not bell.acquire(timeout=left):
                    raise self._busy(self._clock() - began)
                stand = self._bells.appendleft  # somebody was faster
        finally:
            try:
                self._bells.remove(bell)
            except ValueError:
                if not served:  # it was rung: let another look
                    ring(self._bells)
            if waits is not None:
                waits(False)

    def _kept(self) -> PooledConnection | None:
        """An idle connection, if there is one."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _take(self, permit: Permit) -> bool:
        """Whether there is room for one connection more, which is *permit*'s then."""
        with self._lock:
            while self._lost:
                lost = self._lost[0]
                self._opened.leave(lost)
                self._room, lost.taken = self._room + lost.taken, False
                self._lost.popleft()
            if not self._room:
                return False
            self._room, permit.taken = self._room - 1, True
            return True

    def _busy(self, waited: float) -> Overloaded:
        return Overloaded(
            f"all {self._connections} connections to the cell were busy for {waited:.3g} s: "
            "give the cell more, or send fewer calls at once",
            seconds=waited,
            retry_after=COME_BACK_AFTER,
        )

    def _open(self, engine: Engine, permit: Permit) -> PooledConnection:
        if self.mine:
            self._opened.enter(permit)
        pooled = PooledConnection(engine.raw_connection(), engine.dialect, mine=self.mine, permit=permit)
        try:
            pooled.prepare(self._deadline)
        except BaseException:
            pooled.discard()
            raise
        return pooled

    def _give_back(self, permit: Permit) -> None:
        """One connection fewer is open, if *permit* was taken. May be repeated."""
        self._opened.leave(permit)
        with self._lock:
            self._room, permit.taken = self._room + permit.taken, False
        ring(self._bells)

    @property
    def holds(self) -> bool:
        """Whether a connection is open."""
        return bool(self._idle) or any(pool.checkedin() or pool.checkedout() for _, pool in self._engines())

    def _engines(self) -> Iterator[tuple[Engine, QueuePool]]:
        """Ours with their pools, where SQLAlchemy keeps connections: those of scattered calls, and those written by."""
        for engine in (self._engine, None if self._database is None else self._database.engine):
            if engine is not None and isinstance(engine.pool, QueuePool):
                yield engine, engine.pool

    def idle(self) -> list[float]:
        """Since when each idle connection is."""
        return [each.idle_since for each in list(self._idle)]

    def close_idle(self, since: float) -> None:
        """Close the connections that have been idle since that instant or an earlier one."""
        with contextlib.suppress(IndexError):
            while self._idle[0].idle_since <= since:
                oldest = self._idle.pop(0)
                if oldest.idle_since > since:  # another thread took the one that was looked at
                    self._idle.append(oldest)
                    ring(self._bells)  # for whoever has looked meanwhile, and found none
                    break
                self.scrap(oldest)
        if self._touched <= since:
            for engine, pool in self._engines():
                if pool.checkedin() and not pool.checkedout():  # else what is in use would come back to no pool
                    engine.dispose()

    def close(self) -> None:
        """Close what is idle now and what is in use as soon as it is free. May be called twice."""
        self._closed = True
        self._forget_idle()
        if self._database is not None:
            self._database.close()
        if (self.mine or self._memory) and self._engine is not None:
            self._engine.dispose()


def _typed(error: Exception, engine: Engine) -> CloudcoreError:
    """The cloudcore error for what the driver raised."""
    dbapi = engine.dialect.dbapi
    wrapped: Exception = error
    refused = refusal(error, engine.dialect.name, shown(engine.url))
    if refused is not None:
        return refused
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
        return DatabaseUnavailable(f"{shown(engine.url)}: {error}", database=shown(engine.url))
    return translate(wrapped, engine)


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
    url = parse_url(source)
    arguments = {**options}
    if url.get_backend_name() == "sqlite":
        connect = {"check_same_thread": False, "timeout": deadline, "isolation_level": None, "cached_statements": 512}
        arguments["connect_args"] = {**connect, **arguments.pop("connect_args", {})}
        engine = sa.create_engine(url, **{"poolclass": NullPool, **arguments})
        _open_existing(engine)
        part_when_forked(engine)
        return engine
    if url.get_backend_name() != "sqlite":
        connect = {"connect_timeout": max(2, math.ceil(deadline))}
        if url.get_backend_name() in {"mysql", "mariadb"}:
            connect["read_timeout"] = math.ceil(deadline) + 1
        connect = {name: seconds for name, seconds in connect.items() if name not in url.query}
        arguments["connect_args"] = {**connect, **arguments.pop("connect_args", {})}
    return open_engine(url, **arguments)
