"""The four ways into a database: reading, one transaction, a repeated one, and one that takes effect once for ever."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore._values import require_portion, require_utc
from cloudcore.database.addresses import shown
from cloudcore.database.dialects import insert_ignoring_duplicates
from cloudcore.database.driver_errors import translate
from cloudcore.database.engines import behind_pooler, lock_timeout_to_say, open_engine
from cloudcore.database.exactly_once import FIND, FINISH, Outcome, operations
from cloudcore.database.retrying import RetryPolicy
from cloudcore.database.sessions import (
    adopt_engine,
    at_rest,
    begin_sqlite,
    close_for_good,
    is_galera,
    read_what_is_committed,
    refuse_autocommit,
    refuse_dirty_reads,
)
from cloudcore.errors import DatabaseBusy, DatabaseUnavailable, DeadlineExceeded, OutcomeUnknown
from cloudcore.observability import span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.database.dialects import DialectName
    from cloudcore.database.exactly_once import Operation

__all__ = ["Database"]

T = TypeVar("T")


class Database:
    """A database as cloudcore uses it: see the package's text for the four ways in.

    May be shared between threads. A forked child may go on using it: it opens connections of its own, never touches
    its parent's, and a transaction that was open at the fork fails in the child as a lost connection does. Never nest
    two of its transactions in one thread: on SQLite the inner one would wait for the outer.

    Args:
        source: A URL, which is opened with :func:`open_engine` and closed by :meth:`close`, or an engine of the
            caller's, which keeps its own settings and stays open.
        retry: How transactions are repeated.
        consistent_reads: On a node of a Galera cluster, reading waits until what other nodes have committed before is
            there too, for about a round trip between nodes. False: a read may miss commits of some milliseconds ago
            that another node has acknowledged. Of no effect elsewhere.
        clock: Gives the present instant; only stored for information and pruning.
        options: For :func:`open_engine`, when *source* is a URL: ``pool_size``, ``pooler`` and others.

    Raises:
        InvalidArgument: The URL cannot be used, or the engine commits each statement, reads what is not committed, or
            is asynchronous.
    """

    retry: RetryPolicy

    def __init__(
        self,
        source: str | URL | Engine,
        *,
        retry: RetryPolicy | None = None,
        consistent_reads: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **options: Any,
    ) -> None:
        self._owned = isinstance(source, str | sa.URL)
        self.engine: Engine = (
            open_engine(source, **options) if isinstance(source, str | sa.URL) else adopt_engine(source)
        )
        self.retry = retry or RetryPolicy()
        self.clock = clock
        self.consistent_reads = consistent_reads
        self._galera: bool | None = None if self.dialect == "mysql" else False

    @classmethod
    def of(cls, source: Database | str | URL | Engine) -> Database:
        """Return *source* itself if it is a Database, else a new one over it."""
        return source if isinstance(source, Database) else cls(source)

    @property
    def dialect(self) -> DialectName:
        """The kind of database; MariaDB counts as ``"mysql"``."""
        name = self.engine.dialect.name
        if name in {"mysql", "mariadb"}:
            return "mysql"
        return "sqlite" if name == "sqlite" else "postgresql"

    @property
    def keeps_sessions(self) -> bool:
        """Whether what is set in a session stays set: not where a pooler lends another one for each transaction."""
        return not behind_pooler(self.engine)

    @property
    def lock_timeout_to_say(self) -> int | None:
        """Milliseconds that a single statement must bound its waits by, where its session does not; else None."""
        return lock_timeout_to_say(self.engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for reading; the transaction is rolled back at the end.

        On SQLite all its statements see one snapshot; on the others each sees what is committed when it starts, on
        Galera also at other nodes (see *consistent_reads*).

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: What SQLAlchemy raised inside, translated.
        """
        with self._span("read"), self._translated(), self._connected() as connection:
            if self.dialect == "sqlite":
                begin_sqlite(connection, "BEGIN")
            else:
                if not self._owned:
                    refuse_dirty_reads(connection)
                self.catch_up(connection)
            yield connection

    def catch_up(self, connection: Connection) -> None:
        """Wait until *connection*'s node of a Galera cluster has what the others had committed before this call.

        Leaves no transaction behind: the reader may still choose its isolation.
        """
        if self._galera is None:
            self._galera = is_galera(connection)
            connection.rollback()
        if self._galera and self.consistent_reads:
            connection.exec_driver_sql("SET STATEMENT wsrep_sync_wait = 1 FOR SELECT 1").close()
            connection.rollback()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give one transaction: committed at the end, rolled back when the block raises. One attempt, no retry.

        On SQLite it begins with ``BEGIN IMMEDIATE``, so that two writers queue instead of failing midway.

        Raises:
            OutcomeUnknown: The connection, or a node's cluster, was lost while COMMIT was under way.
            DatabaseUnavailable, DatabaseBusy, ConstraintViolated, DatabaseError: Nothing was committed.
        """
        with self._span("write"), self._translated(), self._connected() as connection:
            if self.dialect == "sqlite":
                begin_sqlite(connection, "BEGIN IMMEDIATE")
            elif not self._owned:
                refuse_autocommit(connection)
                refuse_dirty_reads(connection)
                read_what_is_committed(connection)
            yield connection
            failpoint("database.commit.before")
            self._commit(connection)
            at_rest(connection)
            failpoint("database.commit.after")

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except sa.exc.DBAPIError as error:
            raise translate(error, self.engine, committing=True) from error

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection, given back in any case: where even ROLLBACK fails, the server does it when it notices."""
        connection = self.engine.connect()
        try:
            yield connection
        finally:
            try:
                connection.close()
            except sa.exc.SQLAlchemyError:
                if not (connection.closed or connection.invalidated):
                    connection.invalidate()
                connection.close()

    def _span(self, what: str) -> AbstractContextManager[Any]:
        return span(
            f"database.{what}", **{"db.system.name": self.engine.dialect.name, "db.namespace": self.engine.url.database}
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise translate(error, self.engine) from error

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do *work* in a transaction, repeated while nothing was committed. *work* must have no other effects.

        Raises:
            OutcomeUnknown: The answer to COMMIT was lost; use :meth:`operate` where that must be resolved.
            DatabaseUnavailable, DatabaseBusy: Still so after the bounded retries.
        """
        return self.retry.call(lambda: self._attempt(work), (DatabaseBusy, DatabaseUnavailable))

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        with self.write() as connection:
            return work(connection)

    def operate(self, operation: Operation, work: Callable[[Connection], T]) -> Outcome[T]:
        """Do *work* once for ever under *operation*'s id. Its result must be JSON; a repeat returns what was stored.

        When *work* raises, nothing is stored and the id stays free.

        Raises:
            OperationMismatch: The id was used with other arguments.
            OutcomeUnknown: The database stayed away for the whole retry budget after an answer was lost.
            DatabaseUnavailable, DatabaseBusy: Nothing was committed, after the bounded retries.
        """
        return self.resolve(operation, lambda: self._operate_once(operation, work))

    def resolve(self, operation: Operation, attempt: Callable[[], Outcome[T]]) -> Outcome[T]:
        """Repeat *attempt* until its outcome is known. It must take *operation*'s id in the transaction of its effect.

        Raises:
            OutcomeUnknown: The database stayed away for the whole retry budget after an answer was lost.
            DatabaseUnavailable, DatabaseBusy: Nothing was committed, after the bounded retries.
        """
        lost = False

        def informed() -> Outcome[T]:
            nonlocal lost
            try:
                return attempt()
            except OutcomeUnknown:
                lost = True
                raise
            except (DatabaseBusy, DatabaseUnavailable) as error:
                if lost:
                    raise OutcomeUnknown(
                        f"{operation.name} {operation.id}: an answer was lost and the database did not come "
                        f"back to be asked ({error}); repeat with the same operation id",
                        operation_id=operation.id,
                    ) from error
                raise

        return self.retry.call(informed)

    def _operate_once(self, operation: Operation, work: Callable[[Connection], T]) -> Outcome[T]:
        with self.write() as connection:
            stored = self.begin_operation(connection, operation)
            if stored is not None:
                return stored
            result = work(connection)
            text = json.dumps(result, separators=(",", ":"))
            connection.execute(FINISH, {"the_id": operation.id, "text": text})
            return Outcome(result=result, repeated=False)

    def begin_operation(self, connection: Connection, operation: Operation) -> Outcome[Any] | None:
        """Take *operation*'s id in this transaction, or return what it did before.

        Waits for a transaction that holds the same id and has not ended.

        Raises:
            OperationMismatch: The id was used with other arguments.
            DatabaseBusy: It was used, and is being forgotten just now; try again.
        """
        row = {
            "id": operation.id,
            "name": operation.name,
            "fingerprint": operation.fingerprint,
            "created_at": self.clock(),
        }
        if connection.execute(insert_ignoring_duplicates(operations, self.dialect), row).rowcount:
            return None
        stored = self.stored_operation(connection, operation)
        if stored is None:  # going on would have an effect under no id
            raise DatabaseBusy(f"operation {operation.id} was being forgotten just then; repeat the call")
        return stored

    def stored_operation(self, connection: Connection, operation: Operation) -> Outcome[Any] | None:
        """Return what *operation* did before, None if its id is unused.

        Raises:
            OperationMismatch: The id was used with other arguments.
        """
        found = connection.execute(FIND, {"the_id": operation.id}).one_or_none()
        if found is None:
            return None
        operation.matches(found.name, found.fingerprint)
        return Outcome(result=None if found.result is None else json.loads(found.result), repeated=True)

    def prune_operations(self, older_than: datetime, *, limit: int = 10_000) -> int:
        """Forget operations made before *older_than*, at most *limit*; return how many.

        A forgotten id can take effect again: keep rows for longer than any caller may repeat.

        Raises:
            InvalidArgument: *older_than* has no time zone, or *limit* is not from 1 to 30,000.
        """
        old = sa.select(operations.c.id).where(operations.c.created_at < require_utc(older_than, "older_than"))
        chosen = old.order_by(operations.c.created_at).limit(require_portion(limit))

        def prune(connection: Connection) -> int:
            ids = list(connection.scalars(chosen))
            if not ids:
                return 0
            return connection.execute(sa.delete(operations).where(operations.c.id.in_(ids))).rowcount

        return self.run(prune)

    def ping(self) -> None:
        """Ask for one row, to see that the database answers.

        Raises:
            DeadlineExceeded: No connection became free in the time that the engine's pool has for that.
            DatabaseUnavailable, DatabaseError: It does not answer.
        """
        try:
            with self.read() as connection:
                connection.execute(sa.select(sa.literal(1)))
        except DatabaseBusy as error:
            raise DeadlineExceeded(str(error), seconds=None) from error

    def close(self) -> None:
        """Close the connections, unless the engine is the caller's. May be called twice.

        A transaction under way goes on to its end; whatever would need another connection raises Closed.
        """
        if self._owned:
            close_for_good(self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {shown(self.engine.url)}>"
