"""The directory: which cell owns an instance, and which cells may hold a tenant's or a host's.

What must always hold: **the directory knows at least what the cells hold.** So an instance is entered before its record
is written, and left out after its record is gone; a process killed in between leaves an entry without a record, which
costs a needless question and is found by the audit. Never is there a record that the directory does not know, which a
routed query would miss.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import attrs
import sqlalchemy as sa

from cloudcore.database import Database, create_tables, hold, insert_ignoring_duplicates
from cloudcore.database.addresses import in_memory
from cloudcore.database.driver_errors import plan_is_outdated
from cloudcore.database.statement_events import told_statement
from cloudcore.errors import AlreadyExists, Closed, Conflict, DatabaseUnavailable, InstanceNotFound
from cloudcore.listing.cells.directory import Entries
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.query.compiled import FixedStatement
from cloudcore.listing.query.dialects import dialect_name
from cloudcore.listing.query.sources import RecordSource
from cloudcore.listing.tables import directory_instances, directory_routes
from cloudcore.observability import teller

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.listing.cells.connections import PooledConnection

__all__ = ["Entry", "InstanceDirectory"]

_d, _r = directory_instances.c, directory_routes.c
_CHUNK = 500
"""Identifiers per statement."""
_CONNECTIONS = 8
"""Connections that questions of pages may take at once."""
_PATIENCE = 10.0
"""Seconds to wait for one of them."""


@attrs.frozen(kw_only=True)
class Entry:
    """What the directory is told of a new instance."""

    uuid: str
    cell: str
    project_id: str
    host: str | None
    created_at: datetime


_ENTRIES = RecordSource(
    directory_instances,
    tenant="project_id",
    host="host",
    deleted="deleted",
    columns=("uuid", "cell", "project_id", "host", "created_at"),
    pinned=("uuid", "cell", "project_id", "host"),
)


class InstanceDirectory:
    """cloudcore's own directory, in any database.

    May be shared between threads and, through its database, between processes. A context manager: :meth:`close` ends
    connections that it opened itself.

    Args:
        source: A URL, an engine or a Database. The tables are created where they are missing.

    Raises:
        InvalidArgument: The source cannot be used.
        DatabaseUnavailable, DatabaseBusy, DatabaseError: The database does not answer, or refuses.
    """

    database: Database

    def __init__(self, source: Database | str | URL | Engine) -> None:
        self.database = Database.of(source)
        self._owned, self._closed = self.database is not source, False
        self.database.run(functools.partial(create_tables, tables=[directory_instances, directory_routes]))
        engine = self.database.engine
        # Connections of its own are kept open between questions; those of a caller's pool go back after each. They are
        # opened from what was given, for an engine's URL no longer has all that stood in it: other hosts, a pooler.
        kept = engine if isinstance(source, Database | sa.Engine) or in_memory(engine.url) else source
        self._pool = ConnectionPool(kept, connections=_CONNECTIONS, deadline=_PATIENCE, options={})

    # ---- questions

    def entries(self, cells: Iterable[str]) -> Entries:
        """What it knows of the instances of these cells, to be listed in their place when they do not answer."""
        return Entries(source=_ENTRIES, database=self.database, values={cell: cell for cell in cells})

    def cells_of_tenant(self, tenant: str) -> frozenset[str]:
        """Every cell that may hold live records of *tenant*."""
        return self._route("tenant", tenant)

    def cells_of_host(self, host: str) -> frozenset[str]:
        """Every cell that may hold records on *host*."""
        return self._route("host", host)

    def _route(self, kind: str, value: str) -> frozenset[str]:
        return frozenset(row[0] for row in self._ask(_ROUTE, {"kind": kind, "value": value}))

    def _ask(self, statement: FixedStatement, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement that every page sends: as cached text, past SQLAlchemy's executor."""
        if self._closed:
            raise Closed("the directory is closed; make a new one", field="directory")
        limit = monotonic() + _PATIENCE
        pooled = self._pool.acquire(limit)
        while True:
            kept = pooled.used
            try:
                rows = self._run(pooled, *statement.text(pooled.dialect, values), limit)
            except Exception as error:
                outdated = plan_is_outdated(error)
                blamed = self._pool.blame(pooled, error, broken=outdated)
                if not kept or not (outdated or isinstance(blamed, DatabaseUnavailable)):
                    raise blamed from error
                pooled = self._pool.acquire(limit, fresh=True)  # it may have died with a server that is back
                continue
            except BaseException:  # a signal
                self._pool.scrap(pooled)
                raise
            self._pool.release(pooled)
            return rows

    def _run(self, pooled: PooledConnection, text: str, parameters: Any, limit: float) -> list[tuple[Any, ...]]:
        tell = teller("listing", logging.DEBUG)
        if tell is None:
            return pooled.run(text, parameters, limit)
        with told_statement(tell, "listing.directory_statement", dialect_name(pooled.dialect), text) as told:
            rows = pooled.run(text, parameters, limit)
            told["rows"] = len(rows)
        return rows

    def cells_of(self, uuids: Iterable[str]) -> dict[str, str]:
        """The cell that owns each of these; unknown ones are left out."""
        wanted = list(uuids)
        found: dict[str, str] = {}
        with self.database.read() as connection:
            for start in range(0, len(wanted), _CHUNK):
                rows = connection.execute(_CELLS, {"uuids": wanted[start : start + _CHUNK]})
                found.update((row.uuid, row.cell) for row in rows)
        return found

    def moving(self) -> dict[str, str]:
        """Records that may be in two cells at present, with the cell that owns each."""
        return {row[0]: row[1] for row in self._ask(_MOVING, {})}

    def copies(self, uuid: str) -> set[str]:
        """Every cell in which a record of this instance may be."""
        with self.database.read() as connection:
            stored = connection.execute(_ENTRY, {"uuid": uuid}).one_or_none()
        return set() if stored is None else {stored.cell, stored.moving_to} - {None}

    def told(self, uuid: str) -> tuple[str, str | None]:
        """Tenant and host of an instance as they were last told.

        Raises:
            InstanceNotFound: It is not entered.
        """
        with self.database.read() as connection:
            stored = connection.execute(_ENTRY, {"uuid": uuid}).one_or_none()
        if stored is None:
            raise InstanceNotFound(f"the directory knows no instance {uuid}", identifier=uuid)
        return stored.project_id, stored.host

    # ---- changes

    def add(self, entries: Iterable[Entry]) -> None:
        """Enter live instances, before their records are written. Repeating the same call is harmless.

        Raises:
            AlreadyExists: One is entered in another cell; none was entered.
        """
        rows = [attrs.asdict(entry) for entry in entries]
        self.database.run(lambda connection: self._add(connection, rows))

    def _add(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        insert = insert_ignoring_duplicates(directory_instances, self.database.dialect)
        fresh = []
        for row in rows:
            if connection.execute(insert, {**row, "deleted": False}).rowcount:
                fresh.append(row)
                continue
            stored = connection.execute(_ENTRY, {"uuid": row["uuid"]}).one()
            if stored.cell != row["cell"]:
                raise AlreadyExists(f"instance {row['uuid']} is in {stored.cell}", identifier=row["uuid"])
        for kind, column in (("host", "host"), ("tenant", "project_id")):
            numbers = Counter((row[column], row["cell"]) for row in fresh if row[column] is not None)
            for (value, cell), number in sorted(numbers.items()):
                self._count(connection, kind, value, cell, number)

    def _count(self, connection: Connection, kind: str, value: str | None, cell: str, change: int) -> None:
        """Change a route's number; the row stays locked until the transaction ends."""
        if value is None:
            return
        key = {"kind": kind, "value": value, "cell": cell}
        insert = insert_ignoring_duplicates(directory_routes, self.database.dialect)
        connection.execute(insert.values(**key, instances=0))
        test = sa.and_(*(directory_routes.c[name] == content for name, content in key.items()))
        connection.execute(sa.update(directory_routes).where(test).values(instances=_r.instances + change))

    def remove(self, uuid: str) -> None:
        """Leave an instance out, after its record is gone. Repeating the call is harmless."""

        def work(connection: Connection) -> None:
            stored = hold(connection, directory_instances, _d.uuid == uuid)
            if stored is not None:
                if not stored.deleted:
                    self._count_all(connection, stored, -1)
                connection.execute(sa.delete(directory_instances).where(_d.uuid == uuid))

        self.database.run(work)

    def mark(self, uuid: str, *, deleted: bool) -> None:
        """Say that the record is deleted (after it was marked so) or lives again (before)."""

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if bool(stored.deleted) != deleted:
                self._count_all(connection, stored, -1 if deleted else 1)
                connection.execute(sa.update(directory_instances).where(_d.uuid == uuid).values(deleted=deleted))

        self.database.run(work)

    def _count_all(self, connection: Connection, stored: Any, change: int) -> None:
        """Change the numbers of every route that leads to this instance."""
        for cell in sorted({stored.cell, stored.moving_to} - {None}):
            self._count(connection, "host", stored.host, cell, change)
            self._count(connection, "tenant", stored.project_id, cell, change)

    def expect(self, uuid: str, *, tenant: str | None = None, host: str | None = None) -> None:
        """Say that the record may soon be of another tenant or on another host: before the record is changed.

        Each call counts for itself, also one that repeats what a killed one said: whether that is dead or only slow
        nobody knows, and a number too small would hide a record. One too large costs a needless question until the
        audit mends it.
        """

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if not stored.deleted:
                if host != stored.host:
                    self._count(connection, "host", host, stored.cell, 1)
                if tenant != stored.project_id:
                    self._count(connection, "tenant", tenant, stored.cell, 1)

        self.database.run(work)

    def settle(self, uuid: str, *, tenant: str, host: str | None) -> None:
        """Say that the record is of *tenant* and on *host*: after it was changed, following :meth:`expect`."""

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if not stored.deleted:
                if host != stored.host:
                    self._count(connection, "host", stored.host, stored.cell, -1)
                if tenant != stored.project_id:
                    self._count(connection, "tenant", stored.project_id, stored.cell, -1)
            values = {"host": host, "project_id": tenant}
            connection.execute(sa.update(directory_instances).where(_d.uuid == uuid).values(**values))

        self.database.run(work)

    def begin_move(self, uuid: str, target: str) -> None:
        """Say that a copy of the record will appear in *target*; the present cell goes on owning it.

        Raises:
            Conflict: It is moving elsewhere already.
        """

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if stored.moving_to == target or stored.cell == target:
                return
            if stored.moving_to is not None:
                raise Conflict(f"instance {uuid} is moving to {stored.moving_to} already", identifier=uuid)
            if not stored.deleted:
                self._count(connection, "host", stored.host, target, 1)
                self._count(connection, "tenant", stored.project_id, target, 1)
            connection.execute(sa.update(directory_instances).where(_d.uuid == uuid).values(moving_to=target))

        self.database.run(work)

    def switch(self, uuid: str, target: str) -> None:
        """Make *target* the owner; the copy left behind no longer counts. The cell left is now *moving_to*."""

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if stored.moving_to == target:
                values = {"cell": target, "moving_to": stored.cell}
                connection.execute(sa.update(directory_instances).where(_d.uuid == uuid).values(**values))

        self.database.run(work)

    def finish_move(self, uuid: str) -> None:
        """Say that only the owner's record is left."""

        def work(connection: Connection) -> None:
            stored = self._stored(connection, uuid)
            if stored.moving_to is not None:
                if not stored.deleted:
                    self._count(connection, "host", stored.host, stored.moving_to, -1)
                    self._count(connection, "tenant", stored.project_id, stored.moving_to, -1)
                connection.execute(sa.update(directory_instances).where(_d.uuid == uuid).values(moving_to=None))

        self.database.run(work)

    def correct(self, kind: str, value: str, cell: str, change: int) -> None:
        """Change the number of a route by a difference that an audit has found."""
        self.database.run(lambda connection: self._count(connection, kind, value, cell, change))

    def _stored(self, connection: Connection, uuid: str) -> Any:
        stored = hold(connection, directory_instances, _d.uuid == uuid)
        if stored is None:
            raise InstanceNotFound(f"the directory knows no instance {uuid}", identifier=uuid)
        return stored

    def close(self) -> None:
        """Close the connections, unless the database is the caller's. What is asked later raises Closed."""
        self._closed = True
        self._pool.close()
        if self._owned:
            self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ROUTE = FixedStatement(
    sa.select(_r.cell).where(
        _r.kind == sa.bindparam("kind"), _r.value == sa.bindparam("value"), _r.instances > sa.literal_column("0")
    )
)
_CELLS = sa.select(_d.uuid, _d.cell).where(_d.uuid.in_(sa.bindparam("uuids", expanding=True)))
_MOVING = FixedStatement(sa.select(_d.uuid, _d.cell).where(_d.moving_to.is_not(None)))
_ENTRY = sa.select(directory_instances).where(_d.uuid == sa.bindparam("uuid"))
