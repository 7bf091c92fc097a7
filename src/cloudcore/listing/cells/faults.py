"""Whose fault an error is: the statement's, that was sent, or the database's, that was asked. Pure.

Only the latter is held against a cell, for everybody is to be answered by it. What a statement is refused for is read
off the driver's codes: classes of SQLSTATE, MariaDB's and MySQL's numbers, SQLite's names.
"""

from __future__ import annotations

from typing import Any

from cloudcore.errors import DatabaseError, Overloaded, SchemaMismatch, StatementRefused, Transient, UnreadableValue

__all__ = ["COME_BACK_AFTER", "answers", "held_against", "refusal", "unreadable"]

COME_BACK_AFTER = 1.0
"""Seconds after which a call that was told ``Overloaded`` may come again, as an API tells it."""

_MISSING_TABLE = frozenset({"42P01", "3F000", "42501"})
"""No fault of the SQL: the tables are not there, or not for us."""
_VALUES_OF_MYSQL = frozenset(
    {
        1139, 1210, 1264, 1265, 1292, 1300, 1365, 1366, 1367, 1406, 1411, 1441, 1525, 1690, 3854, 3685, 3686, 3687,
        3688, 3689, 3690, 3691, 3692, 3693, 3694, 3695, 3696, 3697, 3698, 3699, 4078,
    }
)  # fmt: skip
"""Values out of range or of the wrong form, and regular expressions."""
_SQL_OF_MYSQL = frozenset(
    {
        1052, 1054, 1055, 1056, 1060, 1064, 1066, 1111, 1116, 1128, 1149, 1221, 1235, 1241, 1242, 1253, 1267, 1270,
        1271, 1273, 1305, 1390, 1416, 1436, 1582, 1583, 4079,
    }
)  # fmt: skip


def held_against(error: Exception) -> bool:
    """Whether *error* counts for the cell's breaker: a connection, a time-out or a server that failed."""
    if isinstance(error, StatementRefused | UnreadableValue | SchemaMismatch | Overloaded):
        return False
    return isinstance(error, Transient | DatabaseError)


def answers(error: Exception) -> bool:
    """Whether *error*, which is held against nobody, shows that the database answers: it has read the statement."""
    if not isinstance(error, StatementRefused | SchemaMismatch):
        return isinstance(error, UnreadableValue)
    said = error.__cause__  # by the driver; it is the error itself, or the driver's own trouble, where nothing was sent
    return said is not None and said is not error and not isinstance(said, TypeError | ValueError | OverflowError)


def unreadable(error: Exception) -> bool:
    """Whether *error*, raised while rows were fetched, says that the driver cannot read a value that is there."""
    if isinstance(error, UnicodeDecodeError | ValueError | OverflowError) or "Could not decode to UTF-8" in str(error):
        return True
    return type(error).__name__ == "DataError" and getattr(error, "sqlstate", None) is None


def refusal(error: Exception, dialect: str, database: str) -> StatementRefused | None:
    """What *error*, raised by a driver, says against the statement; None when it says something of the server.

    Args:
        error: The driver's own.
        dialect: ``sqlite``, ``postgresql``, ``mysql`` or ``mariadb``.
        database: To be named.
    """
    found = _found(error, dialect)
    if found is None:
        return None
    text = str(error.args[1] if dialect in {"mysql", "mariadb"} and len(error.args) > 1 else error)
    return StatementRefused(f"{database}: {text.strip().splitlines()[0]}", database=database, **found)


def _found(error: Exception, dialect: str) -> dict[str, Any] | None:
    if isinstance(error, UnicodeDecodeError):
        return None  # that came from the database
    if isinstance(error, TypeError | ValueError | OverflowError):  # the driver could not even send it
        return {"values": True}
    if dialect == "sqlite":
        return _found_by_sqlite(error)
    if dialect == "postgresql":
        return _found_by_postgresql(error)
    number = error.args[0] if error.args else None
    if number in _VALUES_OF_MYSQL or number in _SQL_OF_MYSQL:
        return {"values": number in _VALUES_OF_MYSQL}
    return {"values": True} if type(error).__name__ in {"DataError", "NotSupportedError"} else None


def _found_by_postgresql(error: Exception) -> dict[str, Any] | None:
    state = getattr(error, "sqlstate", None)
    if state is None:  # raised by the driver itself
        return {"values": True} if type(error).__name__ in {"DataError", "ProgrammingError"} else None
    if state in _MISSING_TABLE:
        return None
    return {"values": state[:2] in {"22", "54"}} if state[:2] in {"22", "42", "54", "0A"} else None


def _found_by_sqlite(error: Exception) -> dict[str, Any] | None:
    name = getattr(error, "sqlite_errorname", None)
    if name is None:  # raised by the module itself
        return {"values": True} if type(error).__name__ in {"ProgrammingError", "InterfaceError", "DataError"} else None
    if name in {"SQLITE_TOOBIG", "SQLITE_MISMATCH", "SQLITE_RANGE"}:
        return {"values": True}
    if name != "SQLITE_ERROR":
        return None
    return None if str(error).startswith("no such table") else {"values": False}
