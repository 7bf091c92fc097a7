"""Does the directory agree with the cells? Finds what crashes left behind, and mends it.

The comparison runs beside writers: an entry whose record is not there yet, because somebody is between two steps of a
create, is only reported once it is older than the grace period; numbers of routes are compared within one statement
and mended by their difference, so that changes meanwhile are kept.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.database import utc_now
from cloudcore.errors import CloudcoreError
from cloudcore.listing.records.directory import Entry
from cloudcore.listing.tables import directory_instances, directory_routes, instances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

    from cloudcore.database import Database
    from cloudcore.listing.records.directory import InstanceDirectory

__all__ = ["Auditor", "Discrepancy", "Finding"]

_BATCH = 500
_d, _r, _i = directory_instances.c, directory_routes.c, instances.c


class Discrepancy(StrEnum):
    """What an audit can find."""

    ENTRY_WITHOUT_RECORD = "entry-without-record"
    """The directory names a cell that does not have the record."""
    RECORD_WITHOUT_ENTRY = "record-without-entry"
    """A record that routed queries miss: somebody wrote it without the directory."""
    STRAY_COPY = "stray-copy"
    """A record in a cell that neither owns it nor takes part in a move of it."""
    ENTRY_DIFFERS = "entry-differs"
    """Tenant, host or deletion are not the same in the directory and in the record."""
    UNFINISHED_MOVE = "unfinished-move"
    """A move between cells that nobody finished."""
    WRONG_ROUTE = "wrong-route"
    """A number of instances by tenant or host is not what the entries add up to."""
    CELL_UNREADABLE = "cell-unreadable"
    """The cell did not answer; nothing is known of it."""


@attrs.frozen(kw_only=True)
class Finding:
    """One disagreement.

    Attributes:
        what: See :class:`Discrepancy`.
        identifier: The instance's uuid, the route's value, or the cell's name.
        cell: The cell concerned.
        detail: The facts, for people.
        facts: The facts, for :meth:`Auditor.mend`.
    """

    what: Discrepancy
    identifier: str
    cell: str
    detail: str
    facts: dict[str, Any] = attrs.field(factory=dict, repr=False)


class Auditor:
    """Compares a directory with the cells it speaks of.

    Args:
        directory: The directory.
        database_of: The database of a cell.
        cells: Names of the cells.
        grace: Entries younger than this may lack their record.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        database_of: Callable[[str], Database],
        cells: Iterable[str],
        *,
        grace: timedelta,
    ) -> None:
        self._directory, self._database_of = directory, database_of
        self._cells = list(cells)
        self._grace = grace

    def findings(self, on_progress: Callable[[int], object] | None = None) -> Iterator[Finding]:
        """Everything that disagrees, found batch by batch; *on_progress* is told how many rows were read."""
        read = 0

        def tell(rows: list[Any]) -> None:
            nonlocal read
            read += len(rows)
            if on_progress is not None:
                on_progress(read)

        readable = []
        for cell in self._cells:
            try:
                yield from self._records(cell, tell)
                readable.append(cell)
            except CloudcoreError as error:
                yield Finding(what=Discrepancy.CELL_UNREADABLE, identifier=cell, cell=cell, detail=str(error))
        for cell in readable:
            yield from self._entries(cell, tell)
        yield from self._moves()
        yield from self._routes()

    def _records(self, cell: str, tell: Callable[[list[Any]], None]) -> Iterator[Finding]:
        """Every record of a cell has an entry that says the same."""
        columns = (_i.uuid, _i.project_id, _i.host, _i.deleted, _i.created_at)
        for rows in _batches(self._database_of(cell), sa.select(*columns), _i.uuid):
            entries = self._known([row.uuid for row in rows])
            for row in rows:
                yield from _compare(cell, row, entries.get(row.uuid))
            tell(rows)

    def _known(self, uuids: list[str]) -> dict[str, Any]:
        with self._directory.database.read() as connection:
            found = connection.execute(sa.select(directory_instances).where(_d.uuid.in_(uuids)))
            return {row.uuid: row for row in found}

    def _entries(self, cell: str, tell: Callable[[list[Any]], None]) -> Iterator[Finding]:
        """Every entry that is not new has its record. How old one is the directory's clock says, and nobody's else."""
        with self._directory.database.read() as connection:
            old = connection.execute(sa.select(utc_now())).scalar_one() - self._grace
        select = sa.select(_d.uuid).where(_d.cell == cell, _d.entered_at < old)
        for rows in _batches(self._directory.database, select, _d.uuid):
            uuids = [row.uuid for row in rows]
            with self._database_of(cell).read() as connection:
                there = set(connection.scalars(sa.select(_i.uuid).where(_i.uuid.in_(uuids))))
            for uuid in uuids:
                if uuid not in there:
                    detail = f"the directory says {cell}, which has no such record"
                    yield Finding(what=Discrepancy.ENTRY_WITHOUT_RECORD, identifier=uuid, cell=cell, detail=detail)
            tell(rows)

    def _moves(self) -> Iterator[Finding]:
        select = sa.select(_d.uuid, _d.cell, _d.moving_to).where(_d.moving_to.is_not(None))
        with self._directory.database.read() as connection:
            rows = connection.execute(select).all()
        for row in rows:
            detail = f"owned by {row.cell}, other copy in {row.moving_to}"
            facts = {"other": row.moving_to}
            yield Finding(
                what=Discrepancy.UNFINISHED_MOVE, identifier=row.uuid, cell=row.cell, detail=detail, facts=facts
            )

    def _routes(self) -> Iterator[Finding]:
        with self._directory.database.read() as connection:
            rows = connection.execute(_wrong_routes()).all()
        for row in rows:
            change = int(row.change)
            detail = f"the number for {row.kind} {row.value} in {row.cell} is off by {-change:+d}"
            facts = {"kind": row.kind, "change": change}
            yield Finding(what=Discrepancy.WRONG_ROUTE, identifier=row.value, cell=row.cell, detail=detail, facts=facts)

    def mend(self, finding: Finding) -> bool:
        """Put one finding right; False when that needs a person (moves, strays, cells that do not answer)."""
        directory, facts = self._directory, finding.facts
        if finding.what is Discrepancy.RECORD_WITHOUT_ENTRY:
            directory.add([facts["entry"]])
            directory.mark(finding.identifier, deleted=facts["deleted"])
        elif finding.what is Discrepancy.ENTRY_WITHOUT_RECORD:
            directory.remove(finding.identifier)
        elif finding.what is Discrepancy.ENTRY_DIFFERS:
            directory.expect(finding.identifier, tenant=facts["tenant"], host=facts["host"])
            directory.settle(finding.identifier, tenant=facts["tenant"], host=facts["host"])
            directory.mark(finding.identifier, deleted=facts["deleted"])
        elif finding.what is Discrepancy.WRONG_ROUTE:
            directory.correct(facts["kind"], finding.identifier, finding.cell, facts["change"])
        else:
            return False
        return True


def _compare(cell: str, row: Any, entry: Any) -> Iterator[Finding]:
    deleted = bool(row.deleted)
    if entry is None:
        told = Entry(uuid=row.uuid, cell=cell, project_id=row.project_id, host=row.host, created_at=row.created_at)
        yield Finding(
            what=Discrepancy.RECORD_WITHOUT_ENTRY,
            identifier=row.uuid,
            cell=cell,
            detail=f"{cell} has a record that the directory does not know",
            facts={"entry": told, "deleted": deleted},
        )
    elif cell not in {entry.cell, entry.moving_to}:
        detail = f"{cell} has a copy, {entry.cell} owns it"
        yield Finding(what=Discrepancy.STRAY_COPY, identifier=row.uuid, cell=cell, detail=detail)
    elif cell == entry.cell and (row.project_id, row.host, deleted) != (
        entry.project_id,
        entry.host,
        bool(entry.deleted),
    ):
        yield Finding(
            what=Discrepancy.ENTRY_DIFFERS,
            identifier=row.uuid,
            cell=cell,
            detail=f"record: {row.project_id}, {row.host}, deleted {deleted}; "
            f"entry: {entry.project_id}, {entry.host}, deleted {bool(entry.deleted)}",
            facts={"tenant": row.project_id, "host": row.host, "deleted": deleted},
        )


def _batches(database: Database, select: sa.Select[Any], key: sa.ColumnElement[str]) -> Iterator[list[Any]]:
    """All rows in batches by key, each read in a transaction of its own."""
    last = ""
    while True:
        with database.read() as connection:
            rows = list(connection.execute(select.where(key > last).order_by(key).limit(_BATCH)).all())
        if rows:
            yield rows
        if len(rows) < _BATCH:
            return
        last = rows[-1].uuid


def _wrong_routes() -> sa.Select[Any]:
    """Routes whose number differs from what the entries add up to, in one statement and so in one snapshot."""
    live = _d.deleted == sa.literal(value=False, type_=sa.Boolean())
    parts = [
        sa.select(
            sa.literal(kind).label("kind"), value.label("value"), cell.label("cell"), sa.literal(1).label("n")
        ).where(cell.is_not(None), value.is_not(None), live)
        for kind, value in (("tenant", _d.project_id), ("host", _d.host))
        for cell in (_d.cell, _d.moving_to)
    ]
    stored = sa.select(_r.kind, _r.value, _r.cell, (-_r.instances).label("n"))
    every = sa.union_all(*parts, stored).subquery("every")
    change = sa.func.sum(every.c.n)
    groups = (every.c.kind, every.c.value, every.c.cell)
    return sa.select(*groups, change.label("change")).group_by(*groups).having(change != 0)
