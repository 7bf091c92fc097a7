"""Rows by the thousand: ids drawn ahead, and inserts in the form that each driver takes fastest. SQL only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

__all__ = ["draw_ids", "insert_rows"]

_CHUNK = 20_000  # rows in a statement, where a statement takes many

_SQLITE_LAST = "SELECT COALESCE((SELECT seq FROM sqlite_sequence WHERE name = ?), 0)"
_POSTGRESQL_DRAW = "SELECT nextval(pg_get_serial_sequence(%s, 'id')) FROM generate_series(1, %s)"


def draw_ids(connection: Connection, table: sa.Table, count: int) -> list[int] | None:
    """Ids for *count* new rows of *table*, ascending, that no other row has, had or will have.

    None where ids cannot be had before the rows (MariaDB, MySQL). On SQLite the transaction of *connection* must have
    the write lock, and insert the rows.
    """
    if connection.dialect.name == "sqlite":
        last: int = connection.exec_driver_sql(_SQLITE_LAST, (table.name,)).scalar_one()
        return list(range(last + 1, last + 1 + count))
    if connection.dialect.name == "postgresql":
        return sorted(connection.exec_driver_sql(_POSTGRESQL_DRAW, (table.name, count)).scalars())
    return None


def insert_rows(
    connection: Connection, table: sa.Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]], *, also: str = ""
) -> None:
    """Insert *rows* into the columns *names* of *table*: whole numbers, floats, text and None only.

    *also* ends the statement (``ON DUPLICATE KEY UPDATE`` ...).
    """
    if not rows:
        return
    begin = f"INSERT INTO {table.name} ({', '.join(names)})"
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(f"{begin} VALUES ({marks}) {also}", list(rows))
        return
    for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        if connection.dialect.name == "postgresql":  # one array for each column
            arrays = ", ".join(f"%s::{_array_type(table.c[name])}[]" for name in names)
            columns = tuple(list(column) for column in zip(*chunk, strict=True))
            statement = f"{begin} SELECT * FROM unnest({arrays}) {also}"  # noqa: S608 - names of our own tables
            connection.exec_driver_sql(statement, columns)
        else:
            marks = ", ".join(["%s"] * len(names))  # the driver makes long statements of it
            connection.exec_driver_sql(f"{begin} VALUES ({marks}) {also}", list(chunk))


def _array_type(column: sa.Column[Any]) -> str:
    if isinstance(column.type, sa.Integer):
        return "bigint"
    return "double precision" if isinstance(column.type, sa.Float) else "text"
