"""Writing instances: the record and its directory entry in one operation that a crash cannot tear.

========== =========================================================================
create     directory entry, then record
update     routes that the record may need, then record, then routes it no longer needs
delete     record, then directory entry
move       entry says "two cells", copy there, entry switches owner, original away, entry says "one cell"
========== =========================================================================

Killed between two steps, the directory knows too much, never too little; repeating the call finishes the job, and
:meth:`InstanceStore.audit` finds what nobody repeats.
"""

from __future__ import annotations

import uuid as uuids
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore._values import (
    MAX_INTEGER,
    is_storable,
    normalise_uuid,
    require_flag,
    require_instance,
    require_integer,
    require_items,
    require_mapping,
    require_utc,
)
from cloudcore.database import insert_ignoring_duplicates
from cloudcore.errors import CellNotFound, InstanceNotFound, InvalidArgument
from cloudcore.listing.records.audit import Auditor, Discrepancy, Finding
from cloudcore.listing.records.directory import Entry, InstanceDirectory
from cloudcore.listing.tables import create_cell_tables, instance_metadata, instance_tags, instances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.listing.router import CellRouter

__all__ = ["InstanceStore"]

_i = instances.c
_FIXED = frozenset({"uuid", "created_at", "deleted", "deleted_at"})


class InstanceStore:
    """Creates, changes, moves and deletes instances of a router's cells. May be shared between threads.

    Args:
        router: Its cells hold cloudcore's own ``instances`` table, its directory is an :class:`InstanceDirectory`.
        clock: Gives the present instant.
        id_factory: Gives a new UUID.
    """

    def __init__(
        self,
        router: CellRouter,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        id_factory: Callable[[], str] = lambda: str(uuids.uuid4()),
    ) -> None:
        directory = getattr(router, "directory", None)
        if not isinstance(directory, InstanceDirectory):
            raise InvalidArgument("the router has no InstanceDirectory to write to", field="router")
        self._router, self._directory = router, directory
        self._clock, self._id_factory = clock, id_factory

    def create_tables(self, *cells: str) -> None:
        """Create the tables of these cells (all, when none is named) where they are missing.

        Raises:
            CellNotFound: No such cell.
            DatabaseUnavailable, DatabaseError: A cell does not answer, or refuses.
        """
        for cell in cells or tuple(self._router.cells):
            self._database(cell).run(create_cell_tables)

    def create(self, cell: str, **values: Any) -> str:
        """Write one instance into *cell*; returns its uuid.

        Args:
            cell: Where.
            values: What :meth:`create_many` takes for each: ``router.source.columns``, ``tags`` and ``metadata``.

        Raises:
            CellNotFound, InvalidArgument, AlreadyExists: As for :meth:`create_many`.
        """
        return self.create_many(cell, [values])[0]

    def create_many(self, cell: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Write instances into *cell*; returns their uuids. Repeating the call with the same uuids is harmless.

        Args:
            cell: Where.
            rows: Values of columns of ``instances`` (``router.source.columns`` names them), of which ``project_id``
                must be there; also ``tags`` (words) and ``metadata`` (pairs).

        Raises:
            CellNotFound, InvalidArgument: Nothing was done.
            AlreadyExists: An instance is in another cell; nothing was done.
        """
        database = self._database(cell)
        prepared = [self._row(require_mapping(row, "rows")) for row in require_items(rows, "rows", "mappings")]
        self._directory.add(
            Entry(uuid=r["uuid"], cell=cell, project_id=r["project_id"], host=r["host"], created_at=r["created_at"])
            for r, _, _ in prepared
        )
        failpoint("listing.create.entered")
        database.run(lambda connection: self._insert(connection, database, prepared))
        return [row["uuid"] for row, _, _ in prepared]

    def _row(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
        values = dict(given)
        words = require_items(values.pop("tags", ()), "tags", "words")
        given_pairs = require_mapping(values.pop("metadata", {}), "metadata")
        unknown = values.keys() - set(_i.keys())
        if unknown or not values.get("project_id"):
            wrong = f"no column {', '.join(sorted(unknown))}" if unknown else "project_id is missing"
            columns = ", ".join((*_i.keys(), "tags", "metadata"))
            raise InvalidArgument(f"instance: {wrong}; there are {columns}", field="values")
        row = dict.fromkeys(_i.keys())
        row.update(vm_state="active", locked=False, hidden=False, deleted=False, created_at=self._clock())
        row.update(values)
        tags = [_words(tag, "tags", instance_tags.c.tag) for tag in words]
        pairs: dict[str, Any] = {
            _words(key, "metadata", instance_metadata.c.key): None
            if content is None
            else _words(content, "metadata", instance_metadata.c.value)
            for key, content in given_pairs.items()
        }
        if row["updated_at"] is None:
            row["updated_at"] = row["created_at"]  # else changes-since would not hear of it
        row["uuid"] = normalise_uuid(values["uuid"], "uuid") if "uuid" in values else self._id_factory()
        return _storable(row), tags, pairs

    def _insert(
        self, connection: Connection, database: Database, rows: list[tuple[dict[str, Any], list[str], dict[str, str]]]
    ) -> None:
        tags = [{"instance_uuid": row["uuid"], "tag": tag} for row, words, _ in rows for tag in words]
        pairs = [
            {"instance_uuid": row["uuid"], "key": k, "value": v} for row, _, items in rows for k, v in items.items()
        ]
        for table, content in (
            (instances, [row for row, _, _ in rows]),
            (instance_tags, tags),
            (instance_metadata, pairs),
        ):
            if content:
                connection.execute(insert_ignoring_duplicates(table, database.dialect), content)

    def update(self, uuid: str, /, **changes: Any) -> None:
        """Change columns of one instance; ``updated_at`` follows.

        Raises:
            InstanceNotFound: Nobody knows it.
            InvalidArgument: A column that cannot be changed here, or a value that it cannot hold.
        """
        wrong = (changes.keys() & _FIXED) | (changes.keys() - set(_i.keys()))
        if wrong:
            changeable = ", ".join(name for name in _i.keys() if name not in _FIXED)  # noqa: SIM118 - a collection of columns
            raise InvalidArgument(
                f"these cannot be changed here: {', '.join(sorted(wrong))}; there are {changeable}", field="changes"
            )
        changes = _storable(changes)
        cell, stored = self._owner(uuid)
        tenant, host = changes.get("project_id", stored["project_id"]), changes.get("host", stored["host"])
        routed = (tenant, host) != self._directory.told(stored["uuid"])  # not: the record, which a killed call changed
        if routed:
            self._directory.expect(stored["uuid"], tenant=tenant, host=host)
            failpoint("listing.update.expected")
        values = {"updated_at": self._clock(), **changes}
        self._change(cell, stored["uuid"], values)
        if routed:
            failpoint("listing.update.written")
            self._directory.settle(stored["uuid"], tenant=tenant, host=host)

    def delete(self, uuid: str, *, purge: bool = False) -> None:
        """Mark one instance as deleted, or with *purge* remove it for good. Repeating the call is harmless.

        Raises:
            InvalidArgument: *uuid* is none, or *purge* is neither True nor False: nothing was done.
            InstanceNotFound: Nobody knows it; with *purge* that is no error.
        """
        require_flag(purge, "purge")
        try:
            cell, stored = self._owner(uuid)
        except InstanceNotFound:
            if purge:
                self._directory.remove(normalise_uuid(uuid, "uuid"))
                return
            raise
        if purge:
            self._remove(cell, stored["uuid"])
            failpoint("listing.delete.removed")
            self._directory.remove(stored["uuid"])
            return
        now = self._clock()
        self._change(cell, stored["uuid"], {"deleted": True, "deleted_at": now, "updated_at": now})
        failpoint("listing.delete.marked")
        self._directory.mark(stored["uuid"], deleted=True)

    def move(self, uuid: str, target: str) -> None:
        """Move one instance's record to another cell. Repeating the call finishes what was interrupted."""
        identifier = normalise_uuid(uuid, "uuid")
        database = self._database(target)
        cell = self._router.locate(identifier)
        if cell != target:
            self._directory.begin_move(identifier, target)
            failpoint("listing.move.begun")
            copy = self._copy(cell, identifier)
            database.run(lambda connection: self._insert(connection, database, [copy]))
            failpoint("listing.move.copied")
            self._directory.switch(identifier, target)
            failpoint("listing.move.switched")
        self._leave_behind(identifier, target)
        self._directory.finish_move(identifier)

    def audit(
        self, *, grace: timedelta = timedelta(minutes=10), on_progress: Callable[[int], object] | None = None
    ) -> list[Finding]:
        """Compare the directory with every cell. Reads everything once, in batches; changes nothing.

        Args:
            grace: Entries younger than this may lack their record: somebody may be between two steps of a create.
            on_progress: Called with the number of records and entries read so far, batch by batch.
        """
        return list(self._auditor(require_instance(grace, timedelta, "grace")).findings(on_progress))

    def heal(self, findings: Iterable[Finding]) -> list[Finding]:
        """Put findings right, a move by finishing it; returns those that a person must look at."""
        auditor = self._auditor(timedelta())
        left = []
        chosen = [
            require_instance(each, Finding, "findings") for each in require_items(findings, "findings", "Findings")
        ]
        for finding in chosen:
            if finding.what is Discrepancy.UNFINISHED_MOVE:
                self._finish(finding.identifier, finding.cell)
            elif not auditor.mend(finding):
                left.append(finding)
        return left

    def _finish(self, uuid: str, owner: str) -> None:
        """End an interrupted move where it stands: the owner keeps the record, the other copy goes."""
        self._leave_behind(uuid, owner)
        self._directory.finish_move(uuid)

    def _auditor(self, grace: timedelta) -> Auditor:
        return Auditor(self._directory, self._database, self._router.cells, grace=grace)

    def _leave_behind(self, uuid: str, target: str) -> None:
        left = self._directory.copies(uuid) - {target}
        for cell in sorted(left):
            self._remove(cell, uuid)
            failpoint("listing.move.removed")

    def _copy(self, cell: str, uuid: str) -> tuple[dict[str, Any], list[str], dict[str, str]]:
        with self._database(cell).read() as connection:
            row = connection.execute(sa.select(instances).where(_i.uuid == uuid)).mappings().one()
            tags = connection.scalars(sa.select(instance_tags.c.tag).where(instance_tags.c.instance_uuid == uuid))
            words = list(tags)
            columns = (instance_metadata.c.key, instance_metadata.c.value)
            pairs = connection.execute(sa.select(*columns).where(instance_metadata.c.instance_uuid == uuid))
            return dict(row), words, {pair.key: pair.value for pair in pairs}

    def _owner(self, uuid: str) -> tuple[str, Mapping[str, Any]]:
        record = self._router.get(uuid)
        return record.cell, record

    def _change(self, cell: str, uuid: str, values: Mapping[str, Any]) -> None:
        statement = sa.update(instances).where(_i.uuid == uuid).values(**values)
        if self._database(cell).run(lambda connection: connection.execute(statement).rowcount) == 0:
            raise InstanceNotFound(f"instance {uuid} is not in {cell} any more", identifier=uuid)

    def _remove(self, cell: str, uuid: str) -> None:
        def work(connection: Connection) -> None:
            for table in (instance_tags, instance_metadata):
                connection.execute(sa.delete(table).where(table.c.instance_uuid == uuid))
            connection.execute(sa.delete(instances).where(_i.uuid == uuid))

        self._database(cell).run(work)

    def _database(self, cell: str) -> Database:
        if not isinstance(cell, str) or cell not in self._router.cells:
            raise CellNotFound(f"no cell {cell!r}; there are {', '.join(self._router.cells)}", identifier=cell)
        return self._router.database(cell)


def _storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """*values*, if each column can hold its own as it is: one database would cut it, one leave the row out.

    Raises:
        InvalidArgument: One cannot.
    """
    return {name: _value(value, _i[name]) for name, value in values.items()}


def _value(value: Any, column: sa.Column[Any]) -> Any:
    if value is None:
        if not column.nullable:
            raise InvalidArgument(f"instance: {column.name} must have a value", field=column.name)
        return None
    if isinstance(column.type, sa.String):
        return _words(value, column.name, column)
    if isinstance(column.type, sa.Boolean):
        if not isinstance(value, bool):
            raise InvalidArgument(
                f"{column.name}: expected True or False, got {value!r:.100}", field=column.name, value=value
            )
        return value
    if isinstance(column.type, sa.Integer):
        return require_integer(value, column.name, minimum=-MAX_INTEGER)
    return require_utc(value, column.name)


def _words(value: Any, field: str, column: sa.Column[Any]) -> str:
    longest = getattr(column.type, "length", 0)
    if not isinstance(value, str) or not is_storable(value) or len(value) > longest:
        raise InvalidArgument(
            f"{field}: expected text of at most {longest} characters that databases hold, got {value!r:.100}",
            field=field,
            value=value,
        )
    return str.__str__(value)  # plain text, where a member of an enumeration would show its name
