"""What the drivers raise, in cloudcore's own words.

Which kind an error is decides what may be repeated, so it is read off codes, never off prose: SQLite's name of the
error, PostgreSQL's SQLSTATE, MariaDB's and MySQL's number, whatever the driver. The texts, which a server may speak in
any language, only tell people what happened. Two exceptions, for want of a code: SQLite calls a missing table just
``SQLITE_ERROR``, in English always; and libpq gives no SQLSTATE when a connection is refused.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from cloudcore.database.addresses import shown
from cloudcore.errors import (
    CloudcoreError,
    ConstraintViolated,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    OutcomeUnknown,
    SchemaMismatch,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["misses_index", "misses_name", "plan_is_outdated", "session_is_lost", "translate"]

Kind = Literal["busy", "gone", "unknown", "constraint", "missing", "unprepared", "other"]

_POSTGRESQL: dict[str, Kind] = {
    "40001": "busy",  # serialization failure
    "40P01": "busy",  # deadlock
    "55P03": "busy",  # lock time-out
    "57014": "busy",  # cancelled: statement time-out, or by an administrator
    "53300": "gone",  # too many connections
    "25006": "gone",  # read-only: a standby, or the former primary
    "25P03": "gone",  # ended for having idled in a transaction
    "57P01": "gone",  # shut down, crashed, starting up, idle for too long
    "57P02": "gone",
    "57P03": "gone",
    "57P05": "gone",
    "08000": "gone",  # the connection
    "08001": "gone",
    "08003": "gone",
    "08004": "gone",
    "08006": "gone",
    "08007": "unknown",  # transaction resolution unknown
    "40003": "unknown",  # statement completion unknown
    "42P01": "missing",  # table, column, schema
    "42703": "missing",
    "3F000": "missing",
    "26000": "unprepared",  # prepared statement does not exist, exists already, is another one
    "42P05": "unprepared",
    "08P01": "unprepared",
}
_MYSQL: dict[int, Kind] = {
    1020: "busy",  # changed since the snapshot
    1205: "busy",  # lock time-out
    1213: "busy",  # deadlock; Galera: another node's write won
    1317: "busy",  # interrupted: KILL QUERY, or Galera's aborts
    1969: "busy",  # max_statement_time
    3024: "busy",  # max_execution_time
    1040: "gone",  # too many connections, of all or of this user
    1203: "gone",
    1226: "gone",
    1047: "gone",  # Galera: the node is not ready, or not in the primary component
    1053: "gone",  # shutting down
    1152: "gone",  # the connection, as the server sees it
    1158: "gone",
    1159: "gone",
    1160: "gone",
    1161: "gone",
    1290: "gone",  # read-only: a replica
    1836: "gone",
    1927: "gone",  # killed
    4031: "gone",  # idle for too long
    2001: "gone",  # the connection, as the client sees it: no socket to be had, here
    2002: "gone",
    2003: "gone",
    2004: "gone",
    2005: "gone",  # the server's name does not resolve, which PyMySQL calls 2003
    2006: "gone",
    2012: "gone",
    2013: "gone",
    2055: "gone",
    1180: "unknown",  # failed during COMMIT; Galera: no primary component to say whether it was replicated
    1022: "constraint",
    1048: "constraint",
    1062: "constraint",
    1169: "constraint",
    1216: "constraint",
    1217: "constraint",
    1451: "constraint",
    1452: "constraint",
    1557: "constraint",
    3819: "constraint",  # a CHECK, which no driver counts as integrity
    4025: "constraint",
    1054: "missing",  # column, table
    1146: "missing",
    1243: "unprepared",  # unknown prepared statement
}
_NEVER_COMMITTED = frozenset(
    {
        *(1020, 1205, 1213),
        *(1290, 1836, 1792),  # read-only: refused, and rolled back, before anything is written
        *(1044, 1142, 1143, 1227, 1370),  # no privilege
        *(1046, 1049, 1064, 1149, 1305, 1318),  # what is not there, or makes no sense
        *(1264, 1265, 1292, 1365, 1366, 1406, 1690),  # a value that does not fit
        *(1114, 1118, 1206),  # a row, or its lock, for which there is no room
    }
)
"""MariaDB's and MySQL's numbers that leave nothing in doubt, even where COMMIT was part of what was sent."""
_REFUSED_FOR_GOOD = re.compile(  # libpq, on connecting; in the server's language, but missing it only costs retries
    r"database \".*\" does not exist|no such database|authentication failed|role \".*\" does not exist|no pg_hba\.conf"
    r"|permission denied for database|unsupported startup parameter"
)
_MISSING_IN_SQLITE = re.compile(r"^no such (table|column)|has no column named")
_POOLER = (
    "Prepared statements and settings do not stay where they were made, as behind a pooler in transaction mode: "
    'open the database with pooler="transaction"'
)
_CREATE = (
    "Create or upgrade the tables with cloudcore.create_schema(engine) or `cloudcore schema upgrade --database URL`"
)


def translate(error: Exception, engine: Engine, *, committing: bool = False) -> CloudcoreError:
    """Return the cloudcore error for what SQLAlchemy raised, to be raised ``from`` it. Passwords are left out.

    Args:
        error: What was raised.
        engine: Whose connection it was; for its URL and dialect.
        committing: COMMIT raised it. Then whatever is no refusal leaves the outcome unknown.
    """
    database = shown(engine.url)
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseBusy(
            f"{database}: no free connection in the pool; use a larger pool_size or fewer threads",
            database=database,
        )
    if not isinstance(error, sa.exc.DBAPIError):
        return DatabaseError(f"{database}: {error}", database=database)
    kind = _kind(error, engine.dialect.name)
    text = f"{database}: {_text(error.orig)}"
    if kind == "unknown" or (committing and _undecided(kind, engine.dialect.name, error.orig)):
        return OutcomeUnknown(
            f"{text}: COMMIT was not answered, or not clearly; the transaction may have taken effect. "
            "Repeat the call with the same operation id"
        )
    if kind == "busy":
        return DatabaseBusy(text, database=database)
    if kind == "gone":
        return DatabaseUnavailable(text, database=database)
    if kind == "constraint" or (kind == "other" and isinstance(error, sa.exc.IntegrityError)):
        return ConstraintViolated(text, constraint=_constraint_name(error))
    if kind == "missing":
        return SchemaMismatch(f"{text}. {_CREATE}", database=database)
    if kind == "unprepared" or "unsupported startup parameter" in text:
        return DatabaseError(f"{text}. {_POOLER}", database=database)
    return DatabaseError(text, database=database)


def misses_name(original: Exception) -> bool:
    """Whether *original*, a driver's error, says that a column or an index that a statement names is not there."""
    if getattr(original, "sqlstate", None) == "42703" or _number(original) in {1054, 1176}:
        return True
    return isinstance(original, sqlite3.Error) and "no such column" in str(original)  # for which there is no code


def misses_index(original: Exception) -> bool:
    """Whether *original*, a driver's error, says that an index that a statement names is not there."""
    return _number(original) == 1176


def plan_is_outdated(original: object) -> bool:
    """Whether PostgreSQL will not use what the session has prepared: a column has another type since.

    Nothing was done. The same statement is refused as long as the session lives, and works in a new one.
    """
    if getattr(original, "sqlstate", None) != "0A000":  # which is what other features have that it does not support
        return False
    return getattr(getattr(original, "diag", None), "source_function", None) == "RevalidateCachedQuery"


def session_is_lost(original: object, dialect: str) -> bool:
    """Whether the session that raised *original*, a driver's error, can serve no more, though its socket may be open.

    A node that left its cluster, a standby, a session that was killed: the next connection may find a better server.
    """
    if dialect == "sqlite":
        return False
    if dialect == "postgresql":
        state = getattr(original, "sqlstate", None)
        return _POSTGRESQL.get(str(state)) in {"gone", "unprepared"} or plan_is_outdated(original)
    number = _number(original)
    return number == 1180 or (number not in {1040, 1203, 1226} and _MYSQL.get(number) in {"gone", "unprepared"})


def _undecided(kind: Kind, dialect: str, original: object) -> bool:
    """Whether an error of this kind at COMMIT leaves it open if the transaction took effect.

    COMMIT may be the end of a block of statements; what only a statement before it can raise was no commit.
    """
    if kind == "gone":  # a session that had idled too long was over before COMMIT reached it
        idled = getattr(original, "sqlstate", None) in {"25P03", "57P05"}
        return not idled and _number(original) not in _NEVER_COMMITTED
    decided = kind in {"constraint", "missing", "unprepared"} or _number(original) in _NEVER_COMMITTED
    return dialect in {"mysql", "mariadb"} and not decided


def _kind(error: sa.exc.DBAPIError, dialect: str) -> Kind:
    original = error.orig
    if dialect == "sqlite":
        return _kind_of_sqlite(original)
    if dialect == "postgresql":
        state = getattr(original, "sqlstate", None)
        if state in _POSTGRESQL:
            return _POSTGRESQL[state]
        if state is None and isinstance(error, sa.exc.OperationalError):
            return "other" if _REFUSED_FOR_GOOD.search(str(original)) else "gone"
        return "gone" if error.connection_invalidated else "other"
    number = _number(original)
    if number in _MYSQL:
        return _MYSQL[number]
    closed = number == 0 and isinstance(error, sa.exc.InterfaceError)  # PyMySQL, on a connection that is closed
    return "gone" if closed or error.connection_invalidated or isinstance(original, OSError) else "other"


def _kind_of_sqlite(original: object) -> Kind:
    name = getattr(original, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "busy"
    if name.startswith("SQLITE_CANTOPEN"):
        return "gone"
    return "missing" if name == "SQLITE_ERROR" and _MISSING_IN_SQLITE.search(str(original)) else "other"


def _number(original: Any) -> int:
    """MariaDB's or MySQL's number of an error: PyMySQL and mysqlclient put it first, MariaDB's own driver apart."""
    number = getattr(original, "errno", None)
    if not isinstance(number, int):
        number = original.args[0] if original is not None and original.args else -1
    return number if isinstance(number, int) else -1


def _text(original: object) -> str:
    return str(original).strip().split("\n")[0]


def _constraint_name(error: sa.exc.DBAPIError) -> str | None:
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None and diagnosis.constraint_name:
        return str(diagnosis.constraint_name)
    found = re.search(r"\b((?:uq|ck|fk|pk|ix)_\w+)", str(error.orig))
    return found.group(1) if found else None
