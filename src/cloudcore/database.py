"""Databases: engines, transactions that take effect once, and what differs between the dialects.

Every area keeps its state through a :class:`Database`:

* :meth:`Database.read` gives a connection whose statements see one snapshot (SQLite) or committed rows (the others);
* :meth:`Database.write` gives one transaction, one attempt;
* :meth:`Database.run` repeats a transaction on deadlocks and lost connections, as long as nothing was committed;
* :meth:`Database.operate` does the same under an *operation id*: the id and the result are stored in the transaction
  that has the effect, so any call may be repeated after a lost answer and takes effect once.

A connection lost while COMMIT was under way leaves an unknown outcome. ``operate`` resolves it by inserting the id
again: the database makes that insert wait for the lost transaction, then it either finds the stored result or starts
afresh. ``run`` cannot know and raises :class:`~cloudcore.errors.OutcomeUnknown`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

import attrs
import sqlalchemy as sa
import tenacity
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.pool import QueuePool

from cloudcore._extras import require_extra
from cloudcore._failpoints import failpoint
from cloudcore._values import require_text
from cloudcore.errors import (
    CloudcoreError,
    ConstraintViolated,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    OperationMismatch,
    OutcomeUnknown,
    SchemaMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sqlalchemy.engine import URL, Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = [
    "Database",
    "Instant",
    "Json",
    "Operation",
    "Outcome",
    "RetryPolicy",
    "Text",
    "Uuid",
    "insert_ignoring_duplicates",
    "metadata",
    "open_engine",
    "operations",
    "translate",
]

T = TypeVar("T")
DialectName = Literal["sqlite", "postgresql", "mysql"]

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""The tables of every area. Constraint names are fixed, so that three databases and the migrations agree on them."""


# --- column types ----------------------------------------------------------------------------------------------------


def Uuid() -> sa.types.TypeEngine[str]:  # noqa: N802 - it is used as a type
    """Column type of an identifier: 36 characters, compared byte by byte on every database."""
    return (
        sa.String(36)
        .with_variant(postgresql.VARCHAR(36, collation="C"), "postgresql")
        .with_variant(mysql.CHAR(36, charset="ascii", collation="ascii_bin"), "mysql", "mariadb")
    )


def Text(length: int = 255) -> sa.types.TypeEngine[str]:  # noqa: N802 - it is used as a type
    """Column type of a name: up to *length* characters, ordered by code point and case-sensitive on every database."""
    return (
        sa.String(length)
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
    )


class Instant(sa.types.TypeDecorator[datetime]):
    """A point in time with microseconds: timezone-aware UTC in Python, sortable in every database."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """Microseconds on MariaDB/MySQL too, which would drop them."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise InvalidArgument(f"{value!r} has no time zone", value=value)
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the time zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def Json() -> sa.types.TypeEngine[Any]:  # noqa: N802 - it is used as a type
    """Column type of a JSON document."""
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", Text(64), primary_key=True),
    sa.Column("name", Text(64), nullable=False),
    sa.Column("fingerprint", Text(64), nullable=False),
    sa.Column("result", sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")),
    sa.Column("created_at", Instant(), nullable=False),
    sa.Index(None, "created_at"),
    sqlite_with_rowid=False,
)
"""What was done under which operation id, written in the transaction that did it. Old rows may be pruned."""


# --- operations ------------------------------------------------------------------------------------------------------


_ORDERED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))  # json.dumps would make one for each call


@attrs.frozen(kw_only=True)
class Operation:
    """A call that takes effect once. Make it with :meth:`of`.

    Attributes:
        id: Chosen by the caller, up to 64 characters; repeats use the same.
        name: The kind of call, such as ``"ledger.claim"``.
        fingerprint: SHA-256 of name and arguments, in hex: tells a repeat from a mistaken reuse.
    """

    id: str
    name: str
    fingerprint: str

    @classmethod
    def of(
        cls,
        name: str,
        arguments: Mapping[str, Any],
        operation_id: str | None = None,
        *,
        id_factory: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> Operation:
        """Describe one call. *arguments* must be JSON; without *operation_id* a fresh one is made.

        Raises:
            InvalidArgument: *operation_id* is empty or longer than 64 characters.
        """
        identifier = id_factory() if operation_id is None else require_text(operation_id, "operation_id", maximum=64)
        text = _ORDERED.encode([name, arguments])
        return cls(id=identifier, name=name, fingerprint=hashlib.sha256(text.encode()).hexdigest())

    def matches(self, name: str, fingerprint: str) -> None:
        """Check that a stored operation is this one.

        Raises:
            OperationMismatch: The id was used for something else.
        """
        if (name, fingerprint) != (self.name, self.fingerprint):
            raise OperationMismatch(
                f"operation {self.id} was used for {name} with other arguments; "
                f"{self.name} was not done. Use a new operation id for a new call",
                operation_id=self.id,
                identifier=self.id,
            )


@attrs.frozen(kw_only=True)
class Outcome(Generic[T]):
    """The result of an operation, and whether an earlier call had already done it."""

    result: T
    repeated: bool


_TRANSIENT = (DatabaseBusy, DatabaseUnavailable, OutcomeUnknown)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How often and how long a transaction is repeated after a deadlock or a lost connection.

    Attributes:
        attempts: In all, the first included.
        deadline: Seconds after which no further attempt starts.
        initial: Upper bound in seconds of the first pause; it doubles, and each pause is drawn at random below it.
        maximum: Upper bound in seconds of any pause.
    """

    attempts: int = 12
    deadline: float = 30.0
    initial: float = 0.004
    maximum: float = 1.0

    def retrying(self, transient: tuple[type[Exception], ...] = _TRANSIENT) -> tenacity.Retrying:
        """A fresh tenacity loop that repeats on *transient*: by default errors that pass, and unknown outcomes."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(transient),
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_after_delay(self.deadline),
            wait=tenacity.wait_random_exponential(multiplier=self.initial, max=self.maximum),
            reraise=True,
        )

    def call(self, attempt: Callable[[], T], transient: tuple[type[Exception], ...] = _TRANSIENT) -> T:
        """Return *attempt*'s result, repeated as :meth:`retrying` says; the loop is made when an attempt has failed.

        Raises:
            Exception: Whatever *attempt* raised last.
        """
        begun = time.monotonic()
        try:
            return attempt()
        except transient as error:
            failures = [error]

        def replayed() -> T:  # the first attempt is over: tenacity counts it, and pauses after it
            if failures:
                raise failures.pop()
            return attempt()

        left = attrs.evolve(self, deadline=self.deadline - (time.monotonic() - begun))
        result: T = left.retrying(transient)(replayed)
        return result


# --- engines ---------------------------------------------------------------------------------------------------------

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
    return sa.create_engine(parsed, pool_size=pool_size, max_overflow=pool_size, connect_args=arguments, **options)


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
            cursor.execute("PRAGMA cache_size=-32768")  # KiB: the upper levels of large indexes stay in memory
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


# --- errors ----------------------------------------------------------------------------------------------------------

_POSTGRESQL_BUSY = {"40001", "40P01", "55P03"}
_POSTGRESQL_GONE = {"57P01", "57P02", "57P03", "08000", "08001", "08003", "08004", "08006", "53300"}
_MYSQL_BUSY = {1205, 1213, 1020}
_MYSQL_CHECK = {3819, 4025}  # a CHECK constraint, which PyMySQL does not count as integrity
_MYSQL_GONE = {1040, 1053, 1927, 2002, 2003, 2006, 2013, 2055, 4031}
_MISSING_TABLE = re.compile(r"no such table|does not exist|doesn't exist", re.IGNORECASE)


def translate(error: Exception, engine: Engine) -> CloudcoreError:
    """Return the cloudcore error for what SQLAlchemy raised, to be raised ``from`` it. Passwords are left out."""
    database = engine.url.render_as_string(hide_password=True)
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseBusy(
            f"{database}: no free connection in the pool; use a larger pool_size or fewer threads",
            database=database,
        )
    if not isinstance(error, sa.exc.DBAPIError):
        return DatabaseError(f"{database}: {error}", database=database)
    kind = _classify(error, engine.dialect.name)
    text = str(error.orig).strip().split("\n")[0]
    if kind == "busy":
        return DatabaseBusy(f"{database}: {text}", database=database)
    if kind == "gone":
        return DatabaseUnavailable(f"{database}: {text}", database=database)
    if isinstance(error, sa.exc.IntegrityError) or kind == "constraint":
        return ConstraintViolated(f"{database}: {text}", constraint=_constraint_name(error))
    if isinstance(error, sa.exc.OperationalError | sa.exc.ProgrammingError) and _MISSING_TABLE.search(text):
        return SchemaMismatch(
            f"{database}: {text}. Create the tables with cloudcore.create_schema(engine) "
            f"or `cloudcore schema upgrade --database URL`",
            database=database,
        )
    return DatabaseError(f"{database}: {text}", database=database)


def _classify(error: sa.exc.DBAPIError, dialect: str) -> Literal["busy", "gone", "constraint", "other"]:
    original = error.orig
    if dialect == "sqlite":
        name = getattr(original, "sqlite_errorname", "") or ""
        if name.startswith("SQLITE_CANTOPEN"):
            return "gone"
        return "busy" if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) else "other"
    if dialect == "postgresql":
        state = getattr(original, "sqlstate", None)
        if state in _POSTGRESQL_BUSY:
            return "busy"
        refused = state is None and isinstance(error, sa.exc.OperationalError)
        return "gone" if error.connection_invalidated or state in _POSTGRESQL_GONE or refused else "other"
    number = original.args[0] if original is not None and original.args else None
    if number in _MYSQL_BUSY:
        return "busy"
    if number in _MYSQL_CHECK:
        return "constraint"
    broken = isinstance(original, OSError) or number in _MYSQL_GONE
    broken = broken or (number == 0 and isinstance(error, sa.exc.InterfaceError))  # PyMySQL: already closed
    return "gone" if error.connection_invalidated or broken else "other"


def _constraint_name(error: sa.exc.DBAPIError) -> str | None:
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None and diagnosis.constraint_name:
        return str(diagnosis.constraint_name)
    found = re.search(r"\b((?:uq|ck|fk|pk|ix)_\w+)", str(error.orig))
    return found.group(1) if found else None


# --- the database ----------------------------------------------------------------------------------------------------


class Database:
    """A database as cloudcore uses it: see the module's text for the four ways in.

    May be shared between threads; not between processes (open one in each). Never nest two of its transactions in one
    thread: on SQLite the inner one would wait for the outer.

    Args:
        source: A URL, which is opened with :func:`open_engine` and closed by :meth:`close`, or an engine of the
            caller's, which keeps its own settings and stays open.
        retry: How transactions are repeated.
        clock: Gives the present instant; only stored for information and pruning.
        options: For :func:`open_engine`, when *source* is a URL.
    """

    def __init__(
        self,
        source: str | URL | Engine,
        *,
        retry: RetryPolicy | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **options: Any,
    ) -> None:
        self._owned = not isinstance(source, sa.Engine)
        self.engine: Engine = source if isinstance(source, sa.Engine) else open_engine(source, **options)
        self.retry = retry or RetryPolicy()
        self.clock = clock
        if not self._owned and self.dialect == "sqlite":
            _enforce_foreign_keys(self.engine)

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

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection for reading; the transaction is rolled back at the end.

        On SQLite all its statements see one snapshot; on the others each sees what is committed when it starts.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: What SQLAlchemy raised inside, translated.
        """
        with self._translated(), self.engine.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give one transaction: committed at the end, rolled back when the block raises. One attempt, no retry.

        On SQLite it begins with ``BEGIN IMMEDIATE``, so that two writers queue instead of failing midway.

        Raises:
            OutcomeUnknown: The connection was lost while COMMIT was under way.
            DatabaseUnavailable, DatabaseBusy, ConstraintViolated, DatabaseError: Nothing was committed.
        """
        with self._translated(), self.engine.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            failpoint("database.commit.before")
            self._commit(connection)
            failpoint("database.commit.after")

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except sa.exc.DBAPIError as error:
            translated = translate(error, self.engine)
            if not isinstance(translated, DatabaseUnavailable):
                raise
            raise OutcomeUnknown(
                f"{translated}: the connection was lost during COMMIT; the transaction may have taken effect"
            ) from error

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
            connection.execute(_FINISH, {"the_id": operation.id, "text": text})
            return Outcome(result=result, repeated=False)

    def begin_operation(self, connection: Connection, operation: Operation) -> Outcome[Any] | None:
        """Take *operation*'s id in this transaction, or return what it did before.

        Waits for a transaction that holds the same id and has not ended.

        Raises:
            OperationMismatch: The id was used with other arguments.
        """
        row = {
            "id": operation.id,
            "name": operation.name,
            "fingerprint": operation.fingerprint,
            "created_at": self.clock(),
        }
        if connection.execute(insert_ignoring_duplicates(operations, self.dialect), row).rowcount:
            return None
        return self.stored_operation(connection, operation)

    def stored_operation(self, connection: Connection, operation: Operation) -> Outcome[Any] | None:
        """Return what *operation* did before, None if its id is unused.

        Raises:
            OperationMismatch: The id was used with other arguments.
        """
        found = connection.execute(_ASK, {"the_id": operation.id}).one_or_none()
        if found is None:
            return None
        operation.matches(found.name, found.fingerprint)
        return Outcome(result=None if found.result is None else json.loads(found.result), repeated=True)

    def prune_operations(self, older_than: datetime, *, limit: int = 10_000) -> int:
        """Forget operations made before *older_than*, at most *limit*; return how many.

        A forgotten id can take effect again: keep rows for longer than any caller may repeat.
        """
        old = sa.select(operations.c.id).where(operations.c.created_at < older_than)
        chosen = old.order_by(operations.c.created_at).limit(limit)

        def prune(connection: Connection) -> int:
            ids = list(connection.scalars(chosen))
            if not ids:
                return 0
            return connection.execute(sa.delete(operations).where(operations.c.id.in_(ids))).rowcount

        return self.run(prune)

    def ping(self, *, timeout: float | None = None) -> None:
        """Ask for one row, to see that the database answers.

        Raises:
            DeadlineExceeded: No connection became free within *timeout* seconds.
            DatabaseUnavailable, DatabaseError: It does not answer.
        """
        try:
            with self.read() as connection:
                connection.execute(sa.select(sa.literal(1)))
        except DatabaseBusy as error:
            raise DeadlineExceeded(str(error), seconds=timeout) from error

    def close(self) -> None:
        """Close the connections, unless the engine is the caller's. May be called twice."""
        if self._owned:
            self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Database {self.engine.url.render_as_string(hide_password=True)}>"


_ASK = sa.select(operations.c.name, operations.c.fingerprint, operations.c.result).where(
    operations.c.id == sa.bindparam("the_id")
)
_FINISH = sa.update(operations).where(operations.c.id == sa.bindparam("the_id")).values(result=sa.bindparam("text"))


def insert_ignoring_duplicates(table: sa.Table, dialect: DialectName) -> sa.sql.dml.Insert:
    """An INSERT into *table* that does nothing (``rowcount`` 0) where a unique key is taken.

    On all three databases it waits for an unfinished transaction that holds the key.
    """
    statement = sa.insert(table).execution_options(preserve_rowcount=True)  # else SQLAlchemy keeps none for INSERT
    if dialect == "mysql":
        return statement.prefix_with("IGNORE")
    if dialect == "postgresql":
        conflict_free = postgresql.insert(table).on_conflict_do_nothing()
        return conflict_free.execution_options(preserve_rowcount=True)
    return statement.prefix_with("OR IGNORE")


def _enforce_foreign_keys(engine: Engine) -> None:
    """Switch foreign keys on for connections that a caller's SQLite engine opens from now on."""

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    event.listen(engine, "connect", prepare)
