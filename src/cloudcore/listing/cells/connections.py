"""One open connection to a cell: prepared for reading, bounded in time, and broken from outside when nobody waits.

And the bound on how many of them a router keeps open over all its cells.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from cloudcore._forks import when_forked
from cloudcore.database.mysql_rows import row_reader
from cloudcore.errors import UnreadableValue
from cloudcore.listing.cells.faults import unreadable
from cloudcore.listing.cells.promptness import Watch
from cloudcore.listing.cells.regex import RegexFunction
from cloudcore.listing.query.dialects import dialect_name

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Dialect
    from sqlalchemy.pool import PoolProxiedConnection

    from cloudcore.database.mysql_rows import RowReader

    Take = Callable[[Iterator[tuple[Any, ...]]], tuple[list[tuple[Any, ...]], bool]]
    """Reads rows as far as they are wanted, and says whether it left off before their end."""

__all__ = ["OpenConnections", "Permit", "PooledConnection", "Take", "affordable", "ring"]

T = TypeVar("T")


class _Turns:
    """A lock for the whole process; a forked child, where its holder is missing, has a new one.

    It knows who has it: a signal may interrupt whoever has just got it before that is noted anywhere else.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()


_READING = _Turns()
"""Held while rows of a SQLite file are read: at each the interpreter's lock is let go and taken again, and threads that
do so together spend ten times their work on waking each other. Rows long in coming delay the others by ``_TURN``."""
when_forked(_READING, _Turns.__init__)
_TURN = 0.02
"""Seconds to wait for one's turn to read before reading beside the others."""


_SORTED = 16_384
"""Bytes by which MariaDB and MySQL sort, three for a character, in place of 1,024; a sort buffer must take fifteen."""


class Permit:
    """Leave to have one connection of a pool open.

    A signal may interrupt whoever has it anywhere. Then it is found among those that were *lost*, as soon as nobody has
    it any more, and whoever waits longest is woken to find it.

    Attributes:
        taken: It is counted in the pool.
        counted: It is counted among all that the router has open.
    """

    __slots__ = ("_bells", "_lost", "counted", "taken")

    counted: bool
    taken: bool

    def __init__(self, lost: deque[Permit], bells: deque[threading.Lock]) -> None:
        self._lost, self._bells = lost, bells
        self.taken = self.counted = False

    def __del__(self) -> None:
        if self.taken or self.counted:  # in any thread, perhaps one that has the pool's lock: so without it
            self._lost.append(self)
            ring(self._bells)


def ring(bells: deque[threading.Lock]) -> None:
    """Wake whoever waits longest. It takes no lock."""
    with contextlib.suppress(IndexError):
        bells.popleft().release()


class PooledConnection:
    """One connection, used by one thread at a time. It is closed when whoever used it was interrupted and is gone."""

    __slots__ = (
        "_autocommit", "_ended", "_proxied", "_watch", "connection", "cursor", "dialect", "form", "idle_since", "local",
        "mine", "permit", "reader", "regex", "used",
    )  # fmt: skip

    permit: Permit
    dialect: Dialect
    form: str
    local: bool
    mine: bool
    used: bool

    def __init__(self, proxied: PoolProxiedConnection, dialect: Dialect, *, mine: bool, permit: Permit) -> None:
        self._ended = False
        self._proxied = proxied
        self.permit = permit
        self.dialect = dialect
        self.form = f"{dialect_name(dialect)} {dialect.driver}"
        """Connections of one form take the same text and parameters."""
        self.local = dialect.name == "sqlite"
        self.mine = mine
        self.connection: Any = proxied.dbapi_connection
        self._watch = Watch(time.monotonic)
        self.used = False
        """Whether it was kept since an earlier statement."""
        self.idle_since: float = 0.0
        """The monotonic instant of its last statement's end."""
        self._autocommit: Any = None
        self.cursor: Any = None
        self.regex: RegexFunction | None = None
        self.reader: RowReader | None = row_reader(self.connection)

    def prepare(self, deadline: float) -> None:
        """Make reading cost one round trip a statement, and on connections of ours bound each statement's time."""
        kind = self.dialect.name
        if self._says_autocommit:
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

    @property
    def _says_autocommit(self) -> bool:
        """Whether the driver's autocommit is an attribute; PyMySQL's and mysqlclient's is a method."""
        return self.dialect.name == "postgresql" or self.dialect.driver == "mariadbconnector"

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
            self.cursor.execute(f"SET SESSION max_statement_time = {deadline:.3f}, max_sort_length = {_SORTED}")
        elif kind == "mysql":
            self.cursor.execute(f"SET SESSION max_execution_time = {milliseconds}, max_sort_length = {_SORTED}")
        else:
            self.connection.set_progress_handler(self._watch, 50_000)  # and not the whole, which would be a circle

    def tell_when_late(self, late: float, tell: Callable[[], None] | None) -> None:
        """Call *tell* in a statement of this thread that is under way at the instant *late*; only SQLite's can."""
        self._watch.tell, self._watch.late = tell, late

    def run(self, text: str, parameters: Any, limit: float) -> list[tuple[Any, ...]]:
        """All rows of one statement, as the driver gives them; *limit* is the monotonic instant to give up at."""
        self._watch.limit = limit
        if self.reader is not None:
            reader, filled = self.reader, self.cursor.mogrify(text, parameters)
            return self._fetched(lambda: reader.read(filled))
        self._execute(text, parameters)
        rows: list[tuple[Any, ...]] = self._fetched(self.cursor.fetchall)
        return rows if rows.__class__ is list else list(rows)

    def run_until(self, take: Take, text: str, parameters: Any, limit: float) -> tuple[list[tuple[Any, ...]], bool]:
        """Rows of one statement as far as *take* reads, and whether it left off; all of them where all have come."""
        if not self.local:
            return self.run(text, parameters, limit), False
        self._watch.limit = limit
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
        try:
            reading.acquire(timeout=_TURN)
            return read()
        finally:
            try:  # noqa: SIM105 - at once: a further call is a place for a signal
                reading.release()
            except RuntimeError:  # another's: this one read beside it
                pass

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
            if self._says_autocommit:
                self.connection.autocommit = self._autocommit
            elif self.dialect.name in {"mysql", "mariadb"}:
                self.connection.autocommit(self._autocommit)
        self._proxied.close()
        self._ended = True

    def discard(self) -> None:
        """Close the connection for good."""
        self._ended = True
        with contextlib.suppress(Exception):
            self._proxied.invalidate()

    def abandon(self) -> None:
        """Never touch the connection again: it is the parent's of this forked child."""
        self._ended = True

    def __del__(self) -> None:
        if not self._ended:
            self.discard()


_RECENT = 5.0
"""Seconds for which an idle connection is left alone though others want to be opened: when pages go round more cells
than connections are kept, closing one that the next page needs for one that this page needs would gain nothing."""
_FEWEST, _MOST_KEPT = 16, 1024
"""Connections that are kept, unless told otherwise."""
_SHARE = 8
"""Of the connections kept, the part that is closed in one go to make room."""


class Keeper(Protocol):
    """Keeps connections that are idle."""

    @property
    def holds(self) -> bool:
        """Whether any is open."""

    def idle(self) -> list[float]:
        """Since when each of those that are counted and idle is."""

    def close_idle(self, since: float) -> None:
        """Close those that have been idle since that instant or an earlier one."""


class OpenConnections:
    """How many connections a router has open to all its cells. Thread-safe. A forked child has none.

    What has not been used for a while is closed. More than *most* are open only while they are in use: then each is
    closed after its statement, unless others have been idle for longer.

    Args:
        most: Connections that are kept.
        idle_timeout: Seconds after which one that nobody uses is closed.
        clock: Monotonic seconds.
    """

    def __init__(self, most: int, idle_timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._idle_timeout, self._clock = most, idle_timeout, clock
        self._kept = most
        self._keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
        self.attend: Callable[[], None] = lambda: None
        """Called when one is opened: sees to it that :meth:`close_unused` is called some time later."""
        self._start_empty()
        when_forked(self, OpenConnections._start_empty)

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self.number: int = 0
        """Open now."""
        self._look_at = self._swept = -math.inf

    def watch(self, keeper: Keeper) -> None:
        """Close what *keeper* has kept for too long."""
        self._keepers.add(keeper)

    @property
    def any(self) -> bool:
        """Whether one is open, counted or not."""
        return self.number > 0 or any(keeper.holds for keeper in list(self._keepers))

    @property
    def crowded(self) -> bool:
        """Whether one that was just used is to be closed."""
        return self.number > self._kept

    def leave_to_engines(self, number: int, *, least: int = _FEWEST) -> None:
        """Engines of the caller's keep so many of them; *least* are kept here all the same."""
        self._kept = max(min(least, self._most), self._most - number)

    def enter(self, permit: Permit) -> None:
        """One is about to be opened."""
        with self._lock:
            self.number, permit.counted = self.number + 1, True
            now = self._clock()
            full = self.number > self._kept and self._look_at <= now
            if full:
                self._look_at = now + _RECENT  # nobody else need look meanwhile
        if full and self._close_oldest(now):
            self._look_at = now
        self.attend()

    def leave(self, permit: Permit) -> None:
        """One was closed, or could not be opened, or was not even counted. May be repeated."""
        with self._lock:
            self.number, permit.counted = self.number - permit.counted, False

    def _close_oldest(self, now: float) -> bool:
        """Whether there were some to close."""
        idle = sorted(since for keeper in list(self._keepers) for since in keeper.idle() if since <= now - _RECENT)
        closed = idle[: max(1, self._kept // _SHARE)]
        self._close(closed[-1] if closed else -math.inf)
        return bool(closed)

    def close_unused(self) -> None:
        """Close those that have been idle for too long, unless another thread has just done so."""
        now = self._clock()
        with self._lock:
            if now < self._swept + self._idle_timeout / 4:
                return
            self._swept = now
        self._close(now - self._idle_timeout)

    def _close(self, since: float) -> None:
        for keeper in list(self._keepers):
            keeper.close_idle(since)


def affordable() -> int:
    """Connections that a router keeps unless told otherwise, by the descriptors that this process may open.

    A SQLite connection takes three (the file, its log and the log's index), and half of all are left to others.
    """
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return _MOST_KEPT
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_KEPT if descriptors == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST_KEPT, descriptors // 6))
