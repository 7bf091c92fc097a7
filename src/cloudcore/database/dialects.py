"""What cloudcore calls the three kinds of database, and the statement that each of them words its own way."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

__all__ = ["DialectName", "insert_ignoring_duplicates"]

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
