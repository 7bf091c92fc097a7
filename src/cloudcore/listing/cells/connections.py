"""One open connection to a cell: prepared for reading, bounded in time, and broken from outside when nobody waits."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from cloudcore._forks import when_forked
from cloudcore.database.mysql_rows import row_reader
from cloudcore.errors import UnreadableValue
from cloudcore.listing.cells.faults import unreadable
from cloudcore.listing.cells.regex import RegexFunction
from cloudcore.listing.query.dialects import dialect_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import PoolProxiedConnection

    Take = Callable[[Iterator[tuple[Any, ...]]], tuple[list[tuple[Any, ...]], bool]]
    """Reads rows as far as they are wanted, and says whether it left off before their end."""

__all__ = ["PooledConnection", "Take"]

T = TypeVar("T")


class _Turns:
    """A lock for the whole process; a forked child, where its holder is missing, has a new one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


_READING = _Turns()
"""Held while rows are read from a SQLite file: at each the interpreter's lock is let go and taken again, and threads
that do so together spend ten times their work on waking each other. Rows that are long in coming delay the others by
``_TURN`` at most."""
when_forked(_READING, _Turns.__init__)
_TURN = 0.02
"""Seconds to wait for one's turn to read before reading beside the others."""


class PooledConnection:
    """One connection, used by one thread at a time."""

    __slots__ = (
        "_autocommit",
        "_proxied",
        "connection",
        "cursor",
        "dialect",
        "form",
        "limit",
        "local",
        "mine",
        "reader",
        "regex",
        "used",
    )

    dialect: Dialect
    form: str
    limit: float
    local: bool
    mine: bool
    used: bool

    def __init__(self, proxied: PoolProxiedConnection, dialect: Dialect, *, mine: bool) -> None:
        self._proxied = proxied
        self.dialect = dialect
        self.form = f"{dialect_name(dialect)} {dialect.driver}"
        """Connections of one form take the same text and parameters."""
        self.local = dialect.name == "sqlite"
        self.mine = mine
        self.connection: Any = proxied.dbapi_connection
        self.limit = math.inf
        self.used = False
        """Whether it was kept since an earlier statement."""
        self._autocommit: Any = None
        self.cursor: Any = None
        self.regex: RegexFunction | None = None
        self.reader = row_reader(self.connection)

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
        if kind == "sqlite":
            self.regex = self._proxied.info.get("cloudcore.regexp")
            if self.regex is None:
                self.regex = self._proxied.info["cloudcore.regexp"] = RegexFunction()
                self.connection.create_function("regexp", 2, self.regex, deterministic=True)

    def _bound(self, deadline: float) -> None:
        kind = dialect_name(self.dialect)
        milliseconds = max(1, math.ceil(deadline * 1000))
        if kind == "postgresql":
            psycopg = self.dialect.driver == "psycopg"
            if psycopg and self.connection.prepare_threshold is None:
                return  # behind a pooler: the session is another's in a moment
            self.cursor.execute(f"SET statement_timeout = {milliseconds}")
            if psycopg:
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
        if self.reader is not None:
            reader, filled = self.reader, self.cursor.mogrify(text, parameters or None)
            return self._fetched(lambda: reader.read(filled))
        self._execute(text, parameters)
        rows: list[tuple[Any, ...]] = self._fetched(self.cursor.fetchall)
        return rows if rows.__class__ is list else list(rows)

    def run_until(self, take: Take, text: str, parameters: Any, limit: float) -> tuple[list[tuple[Any, ...]], bool]:
        """Rows of one statement as far as *take* reads, and whether it left off; all of them where all have come."""
        if not self.local:
            return self.run(text, parameters, limit), False
        self.limit = limit
        self._execute(text, parameters)
        rows, cut = self._fetched(lambda: take(self.cursor))
        if cut:
            self.cursor.close()  # ends the statement, and with it the lock on the file
            self.cursor = self.connection.cursor()
        return rows, cut

    def _execute(self, text: str, parameters: Any) -> None:
        if self.regex is not None and " REGEXP " in text:
            self.regex.require()
            self.regex.error = None
        self.cursor.execute(text, parameters)

    def _fetched(self, read: Callable[[], T]) -> T:
        """What *read* gives.

        Raises:
            UnreadableValue: The driver cannot read a value, such as PostgreSQL's infinite timestamp.
        """
        try:
            return self._in_turn(read) if self.local else read()
        except Exception as error:
            if (self.regex is None or self.regex.error is None) and unreadable(error):
                raise UnreadableValue(f"{error}{self._culprit()}") from error
            raise

    def _culprit(self) -> str:
        """The row that psycopg could not read, as the server sent it; nothing with other drivers."""
        result = getattr(self.cursor, "pgresult", None)
        if result is None:
            return ""
        number = 0
        with contextlib.suppress(Exception):
            self.cursor.scroll(0, mode="absolute")
            for number in range(result.ntuples):  # noqa: B007 - where it stops
                self.cursor.fetchone()
        values = [result.get_value(number, place) or b"NULL" for place in range(result.nfields)]
        return f"; in the row {b', '.join(values).decode(errors='replace'):.300}"

    def _in_turn(self, read: Callable[[], T]) -> T:
        reading = _READING.lock
        alone = reading.acquire(timeout=_TURN)
        try:
            return read()
        finally:
            if alone:
                reading.release()

    def abort(self) -> None:
        """From another thread: make the statement under way fail now."""
        with contextlib.suppress(Exception):  # it may have ended meanwhile, in any state
            if self.dialect.name == "sqlite":
                self.connection.interrupt()
            elif self.dialect.name == "postgresql":
                with socket.socket(fileno=os.dup(self.connection.fileno())) as twin:
                    twin.shutdown(socket.SHUT_RDWR)
            elif (open_socket := getattr(self.connection, "_sock", None)) is not None:  # PyMySQL
                open_socket.shutdown(socket.SHUT_RDWR)

    def renewed(self) -> bool:
        """Leave a statement that was refused; whether the connection can be used on."""
        with contextlib.suppress(Exception):
            self.cursor.close()
            self.cursor = self.connection.cursor()
            return True
        return False

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
