"""What cloudcore calls the three kinds of database, and the statements that each of them words its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

__all__ = ["DialectName", "hold", "insert_ignoring_duplicates", "tells_other_nodes"]

_WSREP = "cloudcore_wsrep"

DialectName = Literal["sqlite", "postgresql", "mysql"]
"""MariaDB counts as ``"mysql"``."""


def insert_ignoring_duplicates(table: sa.Table, dialect: DialectName) -> sa.sql.dml.Insert:
    """An INSERT into *table* that does nothing (``rowcount`` 0) where a unique key is taken.

    On all three databases it waits for an unfinished transaction that holds the key. MariaDB and MySQL also make values
    that do not fit into such that do, without a word: check them first.
    """
    statement: sa.sql.dml.Insert
    if dialect == "mysql":
        statement = sa.insert(table).prefix_with("IGNORE")
    elif dialect == "postgresql":
        statement = postgresql.insert(table).on_conflict_do_nothing()
    else:
        statement = sqlite.insert(table).on_conflict_do_nothing()
    return statement.execution_options(preserve_rowcount=True)  # else SQLAlchemy keeps none for INSERT


def hold(connection: Connection, table: sa.Table, key: sa.ColumnElement[bool]) -> Row[Any] | None:
    """Keep one row of *table* as it is until the transaction ends, on every node of a cluster; None if there is none.

    On one server a lock does that, of the row or (SQLite) of the database. Between nodes it does not: what two of them
    cannot both commit is a write to one row. So a session whose writes go to other nodes counts the row's ``version``
    up too, and of two nodes one is undone and tries again. PostgreSQL counts it up in any case, in the statement that
    takes the lock: a transaction of REPEATABLE READ that has waited must not go on with what it saw before.
    """
    if connection.dialect.name == "sqlite":
        return connection.execute(sa.select(table).where(key)).one_or_none()
    if connection.dialect.name == "postgresql":
        return connection.execute(_counted(table, key).returning(*table.c)).one_or_none()
    told = sa.literal_column(tells_other_nodes(connection), sa.Integer()).label("tells_other_nodes")
    row = connection.execute(sa.select(table, told).where(key).with_for_update()).one_or_none()
    if row is not None and row.tells_other_nodes:
        connection.execute(_counted(table, key))
    return row


def _counted(table: sa.Table, key: sa.ColumnElement[bool]) -> sa.Update:
    return sa.update(table).where(key).values(version=table.c.version + 1)


def tells_other_nodes(connection: Connection) -> str:
    """SQL that is 1 in a MariaDB or MySQL session whose writes go to other nodes of a cluster, now; else 0.

    A server may become a node while it is connected to, so its word is asked for anew with each lock. Only whether it
    has such a variable at all is remembered for the connection: that goes by how it was built.
    """
    known = connection.connection.info
    if _WSREP not in known:
        found = connection.exec_driver_sql("SHOW VARIABLES LIKE 'wsrep_on'").one_or_none()
        known[_WSREP] = "0" if found is None else "@@wsrep_on"
    return str(known[_WSREP])
