"""An unmodified Nova deployment: the tables of its cell databases as sources to list.

Read-only, and without Nova's code. Times are naive UTC there, deleted rows stay until they are archived, and some
columns have foreign types on PostgreSQL (addresses, enumerations), which are read as text so that every database orders
them alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.listing.query.conditions import Column
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.sources import RecordSource, pin
from cloudcore.listing.records.nova_tables import NOBODY, instance_metadata, instances, migrations, tags

if TYPE_CHECKING:
    from cloudcore.listing.values import Query

__all__ = ["NOVA_INSTANCES", "NOVA_MIGRATIONS", "NovaInstances", "NovaMigrations"]

Expression = sa.ColumnElement[Any]
_UUID = Column(name="uuid", kind=Kind.UUID, nullable=False)
"""Lower case and dashed, as Nova makes them: text that every collation orders alike, so that indexes serve."""


class _NovaSource(RecordSource):
    """What Nova's tables have in common: foreign types on PostgreSQL, ``deleted`` as a number, nullable ``hidden``."""

    def value(self, name: str, dialect: str) -> Expression:
        """Addresses as text, so that all databases return and order the same."""
        column = self.table.c[name]
        if dialect == "postgresql" and name.startswith("access_ip"):
            return sa.func.host(column)
        return super().value(name, dialect)

    def sortable(self, name: str, dialect: str) -> Expression:
        """Text by code point."""
        text = self.columns[name].kind is Kind.TEXT
        return pin(self.value(name, dialect), dialect) if text else self.value(name, dialect)

    def standing(self, query: Query) -> list[Expression]:
        """Live or deleted by Nova's rules; hidden is false or NULL."""
        c = self.table.c
        tests: list[Expression] = []
        if query.deleted is not None:
            tests += self._deleted() if query.deleted else self._alive()
        if query.deleted is not False:
            tests.append(c.uuid != NOBODY)
        if not query.hidden:
            tests.append(sa.or_(c.hidden.is_(None), c.hidden == sa.literal(value=False, type_=sa.Boolean())))
        return tests

    def confined(self, query: Query) -> frozenset[str]:
        """Rows that live have 0 in ``deleted``."""
        return frozenset({"deleted"} if query.deleted is False else ())

    def _alive(self) -> list[Expression]:
        return [self.table.c.deleted == 0]

    def _deleted(self) -> list[Expression]:
        return [self.table.c.deleted != 0]

    def _live(self, table: sa.Table) -> list[Expression]:
        return [table.c.deleted == 0] if "deleted" in table.c else []


class NovaInstances(_NovaSource):
    """The ``instances`` of Nova's cell databases, with their metadata and tags.

    ``deleted=False`` leaves out what is deleted or soft-deleted, ``deleted=True`` shows just that. Use the instance
    :data:`NOVA_INSTANCES`.
    """

    UNSORTABLE = frozenset({"key_data", "user_data", "launched_on", "cleaned", "deleted", "hidden", "cell_name"})

    def __init__(self) -> None:
        refined = {
            name: Column(
                name=name,
                kind=Kind.TEXT,
                sortable=name not in self.UNSORTABLE,
                wide=name in {"user_data", "key_data"},
            )
            for name in ("key_data", "user_data", "launched_on", "locked_by", "access_ip_v4", "access_ip_v6")
        }
        refined["uuid"] = _UUID
        super().__init__(
            instances,
            tenant="project_id",
            host="host",
            updated="updated_at",
            refine=refined,
            metadata=(instance_metadata, "instance_uuid", "key", "value"),
            tags=(tags, "resource_id", "tag"),
        )

    def _alive(self) -> list[Expression]:
        c = self.table.c
        return [c.deleted == 0, sa.or_(c.vm_state.is_(None), c.vm_state != "soft-delete")]

    def _deleted(self) -> list[Expression]:
        c = self.table.c
        return [sa.or_(c.deleted == c.id, c.vm_state == "soft-delete")]


class NovaMigrations(_NovaSource):
    """The ``migrations`` of Nova's cell databases. Use the instance :data:`NOVA_MIGRATIONS`."""

    def __init__(self) -> None:
        refined = {"migration_type": Column(name="migration_type", kind=Kind.TEXT), "uuid": _UUID}
        super().__init__(migrations, tenant="project_id", host="source_compute", updated="updated_at", refine=refined)


NOVA_INSTANCES = NovaInstances()
"""Nova's instances."""

NOVA_MIGRATIONS = NovaMigrations()
"""Nova's migrations: resizes, cold and live migrations, evacuations."""
