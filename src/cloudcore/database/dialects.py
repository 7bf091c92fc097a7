"""What cloudcore calls the three kinds of database, and the statements that each of them words its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

__all__ = ["DialectName", "hold", "insert_ignoring_duplicates"]

DialectName = Literal["sqlite", "postgresql", "mysql"]
"""MariaDB counts as ``"mysql"``."""


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


def hold(connection: Connection, table: sa.Table, key: sa.ColumnElement[bool]) -> Row[Any] | None:
    """Keep one row of *table* as it is until the transaction ends, on every node of a cluster; None if there is none.

    A row lock would hold on its own node only. What two nodes cannot both commit is a write to one row, so the row's
    ``version`` is counted up: on one server others wait, on another node one of the two is undone and tries again.
    """
    counted = sa.update(table).where(key).values(version=table.c.version + 1)
    if connection.dialect.name in {"postgresql", "sqlite"}:
        return connection.execute(counted.returning(*table.c)).one_or_none()
    if not connection.execute(counted).rowcount:
        return None
    return connection.execute(sa.select(table).where(key)).one_or_none()
