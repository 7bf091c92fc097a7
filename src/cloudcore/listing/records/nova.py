"""An unmodified Nova deployment: the tables of its cell databases as sources to list.

Read-only, and without Nova's code. Times are naive UTC there, deleted rows stay until they are archived, and some
columns have foreign types on PostgreSQL (addresses, enumerations), which are read as text so that every database orders
them alike.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.errors import InvalidQuery
from cloudcore.listing.query.conditions import Column
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.sources import RecordSource, pin
from cloudcore.listing.records.nova_tables import (
    NOBODY,
    instance_info_caches,
    instance_metadata,
    instances,
    migrations,
    tags,
)

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

    def has_address(self, address: str, *, floating: bool = False) -> Expression:
        """The instance has a fixed address of IPv4 or IPv6, by Nova's cache of its ports: an expression for ``where``.

        Args:
            address: A whole address, or the beginning of one that ends with its separator: ``"10.0."`` or
                ``"2001:db8:"``. IPv6 is compared in its shortest form.
            floating: Floating addresses count too; Nova's own filters look at fixed ones alone.

        Raises:
            InvalidQuery: It is no address, and no beginning of one.
        """
        c = instance_info_caches.c
        return sa.exists().where(
            c.instance_uuid == self.table.c.uuid,
            c.network_info.regexp_match(_address_pattern(address, "(fixed|floating)" if floating else "fixed")),
            *self._live(instance_info_caches),
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


_TAILS = (*(".".join("0" * n) for n in (1, 2, 3)), *(":".join("1" * n) for n in range(1, 8)))
"""What the beginning of an address may lack."""


def _address_pattern(address: str, type_: str) -> str:
    """A regular expression for the JSON of a cache, in words that all dialects share.

    The type tells an instance's addresses from gateways and name servers, which are there too; Nova writes it right
    behind the address. Quotes within names are escaped there, so no name looks like an address.
    """
    # Checked first: Python takes anything for the zone of an IPv6 address.
    text = address.lower() if isinstance(address, str) and re.fullmatch("[0-9A-Fa-f.:]{2,45}", address) else ""
    partial = text.endswith((".", ":"))
    if partial:
        found = text if any(_shortest(text + tail).startswith(text) for tail in _TAILS) else ""
    else:
        found = _shortest(text)
    if not found:
        raise InvalidQuery(
            f"{address!r:.100} is no IP address, and no beginning of one such as '10.0.' or '2001:db8:' (in its "
            "shortest form, separator included)",
            field="address",
            value=address,
        )
    rest = "[0-9a-f.:]*" if partial else ""
    return f'"address": "{found.replace(".", "[.]")}{rest}", "type": "{type_}"'


def _shortest(text: str) -> str:
    """An address as Neutron writes it; nothing for what is none."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


NOVA_INSTANCES = NovaInstances()
"""Nova's instances."""

NOVA_MIGRATIONS = NovaMigrations()
"""Nova's migrations: resizes, cold and live migrations, evacuations."""
