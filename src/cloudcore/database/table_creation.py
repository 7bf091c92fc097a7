"""Tables made where they are missing, by any number of processes that start at the same moment."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from cloudcore.database.sessions import begin_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Connection, Engine

__all__ = ["alone", "create_tables"]

_NUMBER = 0x636C6F7564
"""PostgreSQL knows locks of applications by number."""
_NAME = "cloudcore.create_tables"
_PATIENCE = 60
"""Seconds to wait on MariaDB and MySQL; then it is tried all the same."""


def create_tables(bind: Engine | Connection, tables: Sequence[sa.Table]) -> None:
    """Create those of *tables*, all of one metadata, that are not there yet; what is there is left as it is.

    One process does it after the other: who looks while another creates would create the same. With an engine it is a
    transaction of its own; with a connection the caller's, which on SQLite has begun as a writer's. On Galera the lock
    holds at one node: create at one of them. Without tables nothing is done.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database does not answer, or refuses, in SQLAlchemy's own words. Within
            :meth:`Database.run <cloudcore.database.Database.run>` it is one of this library's errors.
    """
    if not tables:
        return
    if isinstance(bind, sa.Engine):
        with bind.connect() as connection:
            if connection.dialect.name == "sqlite":
                begin_sqlite(connection, "BEGIN IMMEDIATE")
            create_tables(connection, tables)
            connection.commit()
        return
    with alone(bind):
        tables[0].metadata.create_all(bind, tables=tables)


@contextmanager
def alone(connection: Connection) -> Iterator[None]:
    """Nobody else creates or changes tables of cloudcore's in this database meanwhile. May be nested."""
    kind = connection.dialect.name
    if kind == "postgresql":  # until the transaction ends
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_NUMBER))).close()
    if kind not in {"mysql", "mariadb"}:
        yield
        return
    name = sa.func.concat(_NAME, ":", sa.func.left(sa.func.md5(sa.func.database()), 32))  # locks are the server's
    connection.execute(sa.select(sa.func.get_lock(name, _PATIENCE))).close()
    try:
        yield
    finally:
        connection.execute(sa.select(sa.func.release_lock(name))).close()
