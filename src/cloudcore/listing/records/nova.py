"""An unmodified Nova deployment: its cell databases as a source, its API database as the directory.

Read-only, and without Nova's code: the tables as Nova 34's migrations leave them. Times are naive UTC there, deleted
rows stay until they are archived, and some columns have foreign types on PostgreSQL (addresses, enumerations), which
are read as text so that every database orders them alike.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from cloudcore.database import Database
from cloudcore.errors import InvalidArgument
from cloudcore.listing.cells.connections import Cell
from cloudcore.listing.query.conditions import Column
from cloudcore.listing.query.order import Kind
from cloudcore.listing.query.sources import RecordSource, pin
from cloudcore.listing.records.directory import Entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import URL, Engine

    from cloudcore.listing.values import Query

__all__ = ["NOVA_INSTANCES", "NOVA_MIGRATIONS", "NovaDirectory", "NovaInstances", "NovaMigrations"]

Expression = sa.ColumnElement[Any]
_NOBODY = "00000000-0000-0000-0000-000000000000"
"""Uuid of rows that Nova's own migrations leave behind as markers."""

_metadata = sa.MetaData()


def _table(name: str, /, **columns: sa.types.TypeEngine[Any]) -> sa.Table:
    required = {"id", "uuid", "instance_uuid", "resource_id", "tag"}
    return sa.Table(
        name,
        _metadata,
        *(
            sa.Column(column, type_, primary_key=column == "id", nullable=column not in required)
            for column, type_ in columns.items()
        ),
    )


_TEXT, _INTEGER, _TIME, _YES = sa.String(255), sa.Integer(), sa.DateTime(), sa.Boolean()
_ADDRESS = sa.String(39).with_variant(postgresql.INET(), "postgresql")

_instances = _table(
    "instances",
    id=_INTEGER,
    uuid=sa.String(36),
    created_at=_TIME,
    updated_at=_TIME,
    deleted_at=_TIME,
    deleted=_INTEGER,
    cleaned=_INTEGER,
    hidden=_YES,
    user_id=_TEXT,
    project_id=_TEXT,
    image_ref=_TEXT,
    kernel_id=_TEXT,
    ramdisk_id=_TEXT,
    hostname=_TEXT,
    launch_index=_INTEGER,
    key_name=_TEXT,
    key_data=sa.Text(),
    power_state=_INTEGER,
    vm_state=_TEXT,
    task_state=_TEXT,
    memory_mb=_INTEGER,
    vcpus=_INTEGER,
    root_gb=_INTEGER,
    ephemeral_gb=_INTEGER,
    ephemeral_key_uuid=sa.String(36),
    host=_TEXT,
    node=_TEXT,
    compute_id=sa.BigInteger(),
    instance_type_id=_INTEGER,
    user_data=sa.Text(),
    reservation_id=_TEXT,
    launched_at=_TIME,
    terminated_at=_TIME,
    availability_zone=_TEXT,
    display_name=_TEXT,
    display_description=_TEXT,
    launched_on=sa.Text(),
    locked=_YES,
    locked_by=sa.Enum("owner", "admin", name="instances0locked_by"),
    os_type=_TEXT,
    architecture=_TEXT,
    vm_mode=_TEXT,
    root_device_name=_TEXT,
    default_ephemeral_device=_TEXT,
    default_swap_device=_TEXT,
    config_drive=_TEXT,
    access_ip_v4=_ADDRESS,
    access_ip_v6=_ADDRESS,
    auto_disk_config=_YES,
    progress=_INTEGER,
    shutdown_terminate=_YES,
    disable_terminate=_YES,
    cell_name=_TEXT,
)
_instance_metadata = _table(
    "instance_metadata", id=_INTEGER, instance_uuid=sa.String(36), key=_TEXT, value=_TEXT, deleted=_INTEGER
)
_tags = sa.Table(
    "tags",
    _metadata,
    sa.Column("resource_id", sa.String(36), primary_key=True),
    sa.Column("tag", sa.String(80), primary_key=True),
)
_migrations = _table(
    "migrations",
    id=_INTEGER,
    uuid=sa.String(36),
    created_at=_TIME,
    updated_at=_TIME,
    deleted_at=_TIME,
    deleted=_INTEGER,
    source_compute=_TEXT,
    dest_compute=_TEXT,
    source_node=_TEXT,
    dest_node=_TEXT,
    dest_host=_TEXT,
    status=_TEXT,
    instance_uuid=sa.String(36),
    old_instance_type_id=_INTEGER,
    new_instance_type_id=_INTEGER,
    migration_type=sa.Enum("migration", "resize", "live-migration", "evacuation", name="migration_type"),
    hidden=_YES,
    memory_total=sa.BigInteger(),
    memory_processed=sa.BigInteger(),
    memory_remaining=sa.BigInteger(),
    disk_total=sa.BigInteger(),
    disk_processed=sa.BigInteger(),
    disk_remaining=sa.BigInteger(),
    cross_cell_move=_YES,
    user_id=_TEXT,
    project_id=_TEXT,
)

_cell_mappings = _table(
    "cell_mappings", id=_INTEGER, uuid=sa.String(36), name=_TEXT, database_connection=sa.Text(), disabled=_YES
)
_instance_mappings = _table(
    "instance_mappings",
    id=_INTEGER,
    created_at=_TIME,
    instance_uuid=sa.String(36),
    cell_id=_INTEGER,
    project_id=_TEXT,
    user_id=_TEXT,
    queued_for_delete=_YES,
)
_host_mappings = _table("host_mappings", id=_INTEGER, cell_id=_INTEGER, host=_TEXT)


class _NovaSource(RecordSource):
    """What Nova's tables have in common: foreign types on PostgreSQL, ``deleted`` as a number, nullable ``hidden``."""

    def value(self, name: str, dialect: str) -> Expression:
        """Addresses and enumerations as text, so that all databases return and order the same."""
        column = self.table.c[name]
        if dialect == "postgresql" and isinstance(column.type, sa.Enum):
            return sa.cast(column, sa.Text())
        if dialect == "postgresql" and name.startswith("access_ip"):
            return sa.func.host(column)
        return column

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
            tests.append(c.uuid != _NOBODY)
        if not query.hidden:
            tests.append(sa.or_(c.hidden.is_(None), c.hidden == sa.literal(value=False, type_=sa.Boolean())))
        return tests

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
        super().__init__(
            _instances,
            tenant="project_id",
            host="host",
            updated="updated_at",
            refine=refined,
            metadata=(_instance_metadata, "instance_uuid", "key", "value"),
            tags=(_tags, "resource_id", "tag"),
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
        refined = {"migration_type": Column(name="migration_type", kind=Kind.TEXT)}
        super().__init__(_migrations, tenant="project_id", host="source_compute", updated="updated_at", refine=refined)


NOVA_INSTANCES = NovaInstances()
"""Nova's instances."""

NOVA_MIGRATIONS = NovaMigrations()
"""Nova's migrations: resizes, cold and live migrations, evacuations."""

_ENTRIES = RecordSource(
    # A query in the place of a table: what the API database knows of each scheduled instance.
    sa.select(
        _instance_mappings.c.instance_uuid.label("uuid"),
        _instance_mappings.c.project_id,
        _instance_mappings.c.created_at,
        sa.cast(_instance_mappings.c.cell_id, sa.String(64)).label("cell"),
    )
    .where(
        _instance_mappings.c.cell_id.is_not(None),
        sa.func.coalesce(_instance_mappings.c.queued_for_delete, sa.false()) == sa.false(),
        _instance_mappings.c.instance_uuid != _NOBODY,
    )
    .subquery("entries"),  # type: ignore[arg-type]  # RecordSource needs only .c and .name of it
    tenant="project_id",
)


class NovaDirectory:
    """Nova's API database as a directory: cells, and the mappings of instances and hosts to them. Only read.

    May be shared between threads. A context manager.

    Args:
        source: The API database: a URL, an engine or a Database.
        main_database: ``[database]connection`` of this reader's own Nova configuration: fills URLs in
            ``cell_mappings`` that are templates.
    """

    def __init__(self, source: Database | str | URL | Engine, *, main_database: str | None = None) -> None:
        self.database = Database.of(source)
        self._owned = self.database is not source
        self._main = main_database
        self._lock = threading.Lock()
        self._names: dict[int, str] = {}

    def cells(self, **options: Any) -> list[Cell]:
        """The cells that are mapped, disabled ones marked so, cell0 included.

        A cell is named by its mapping's name, or by its uuid where that has none or shares it.

        Args:
            options: For every :class:`Cell`.

        Raises:
            InvalidArgument: A URL is a template, and *main_database* is missing or cannot fill it.
        """
        with self.database.read() as connection:
            rows = connection.execute(sa.select(_cell_mappings).order_by(_cell_mappings.c.id)).all()
        names = [row.name for row in rows]
        named = {
            row.id: row.name if row.name and names.count(row.name) == 1 and len(row.name) <= 64 else row.uuid
            for row in rows
        }
        with self._lock:
            self._names = named
        return [
            Cell(
                named[row.id],
                _url(row.database_connection, self._main, named[row.id]),
                enabled=not row.disabled,
                **options,
            )
            for row in rows
        ]

    def _named(self, identifiers: Iterable[int]) -> frozenset[str]:
        wanted = frozenset(identifiers)
        if not self._names or not wanted <= self._names.keys():
            self.cells()
        return frozenset(self._names[each] for each in wanted if each in self._names)

    def cells_of_tenant(self, tenant: str) -> frozenset[str]:
        """Every cell with an instance of the project that is not being deleted."""
        with self.database.read() as connection:
            return self._named(connection.scalars(_CELLS_OF_PROJECT, {"project": tenant}))

    def cells_of_host(self, host: str) -> frozenset[str] | None:
        """The cell of a compute host; None when it is not mapped."""
        with self.database.read() as connection:
            found = self._named(connection.scalars(_CELL_OF_HOST, {"host": host}))
        return found or None

    def cells_of(self, uuids: Iterable[str]) -> dict[str, str]:
        """The cell of each of these; unscheduled and unknown ones are left out."""
        wanted = list(uuids)
        found: dict[str, int] = {}
        with self.database.read() as connection:
            for start in range(0, len(wanted), 500):
                rows = connection.execute(_CELLS_OF, {"uuids": wanted[start : start + 500]})
                found.update((row.instance_uuid, row.cell_id) for row in rows)
        self._named(set(found.values()))
        return {uuid: self._names[cell] for uuid, cell in found.items() if cell in self._names}

    def moving(self) -> Mapping[str, str]:
        """Nothing: Nova does not list them. Copies are settled by their mapping when they are met."""
        return {}

    def entries(self, cells: Iterable[str]) -> Entries:
        """Scheduled instances of these cells that are not being deleted."""
        self._named(())
        wanted = frozenset(cells)
        values = {name: str(identifier) for identifier, name in self._names.items() if name in wanted}
        return Entries(source=_ENTRIES, database=self.database, values=values)

    def close(self) -> None:
        """Close the connections, unless the database is the caller's."""
        if self._owned:
            self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_m = _instance_mappings.c
_CELLS_OF_PROJECT = (
    sa.select(_m.cell_id)
    .where(
        _m.project_id == sa.bindparam("project"),
        _m.cell_id.is_not(None),
        sa.or_(_m.queued_for_delete.is_(None), _m.queued_for_delete == sa.false()),
    )
    .distinct()
)
_CELL_OF_HOST = sa.select(_host_mappings.c.cell_id).where(_host_mappings.c.host == sa.bindparam("host"))
_CELLS_OF = sa.select(_m.instance_uuid, _m.cell_id).where(
    _m.instance_uuid.in_(sa.bindparam("uuids", expanding=True)), _m.cell_id.is_not(None)
)


def _url(mapped: str, main: str | None, cell: str) -> URL:
    """The cell's database URL, its template filled, with the drivers that cloudcore uses."""
    if "{" in mapped:
        if main is None:
            raise InvalidArgument(
                f"the database URL of cell {cell} is a template; give main_database, which fills it",
                field="main_database",
            )
        try:
            mapped = mapped.format(**_parts(main))
        except (KeyError, IndexError, ValueError) as error:
            raise InvalidArgument(f"the database URL of cell {cell} cannot be filled: {error}", field="url") from error
    url = sa.make_url(mapped)
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
    return url.set(drivername=drivers.get(url.get_backend_name(), url.drivername))


def _parts(main: str) -> dict[str, Any]:
    """What a template may name: the parts of the reader's own URL, as they are written there."""
    url = urlsplit(main)
    return {
        "scheme": url.scheme,
        "username": url.username,
        "password": url.password,
        "hostname": url.hostname,
        "port": url.port,
        "path": url.path.lstrip("/"),
        "query": url.query,
        "fragment": url.fragment,
    }
