"""What the drivers raise, in cloudcore's own words: busy, gone, a constraint, a missing table, or something else.

Which of them it is decides what may be repeated, so it is read off the driver's code (SQLite's name, PostgreSQL's
SQLSTATE, MariaDB's number), never off its prose. The text tells only what is missing or violated.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import sqlalchemy as sa

from cloudcore.errors import (
    CloudcoreError,
    ConstraintViolated,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    SchemaMismatch,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["translate"]

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
