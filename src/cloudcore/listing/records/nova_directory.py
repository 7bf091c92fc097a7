"""Nova's API database as a directory: which cell an instance or a host is mapped to. Only read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import sqlalchemy as sa

from cloudcore._forks import when_forked
from cloudcore.database import Database
from cloudcore.database.addresses import parse_url
from cloudcore.errors import InvalidArgument
from cloudcore.listing.cells.cell import Cell
from cloudcore.listing.cells.directory import Entries
from cloudcore.listing.query.sources import RecordSource
from cloudcore.listing.records.nova_tables import NOBODY, cell_mappings, host_mappings, instance_mappings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import URL, Engine

__all__ = ["NovaDirectory"]

_ENTRIES = RecordSource(
    # A query in the place of a table: what the API database knows of each scheduled instance.
    sa.select(
        instance_mappings.c.instance_uuid.label("uuid"),
        instance_mappings.c.project_id,
        instance_mappings.c.created_at,
        sa.cast(instance_mappings.c.cell_id, sa.String(64)).label("cell"),
    )
    .where(
        instance_mappings.c.cell_id.is_not(None),
        sa.func.coalesce(instance_mappings.c.queued_for_delete, sa.false()) == sa.false(),
        instance_mappings.c.instance_uuid != NOBODY,
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

    database: Database

    def __init__(self, source: Database | str | URL | Engine, *, main_database: str | None = None) -> None:
        self.database = Database.of(source)
        self._owned = self.database is not source
        self._main = main_database
        self._unlock()
        when_forked(self, NovaDirectory._unlock)
        self._names: dict[int, str] = {}

    def _unlock(self) -> None:
        """With a lock that nobody holds: at first, and in a forked child, where its holder is missing."""
        self._lock = threading.Lock()

    def cells(self, **options: Any) -> list[Cell]:
        """The cells that are mapped, disabled ones marked so, cell0 included.

        A cell is named by its mapping's name, or by its uuid where that has none or shares it.

        Args:
            options: For every :class:`Cell`.

        Raises:
            InvalidArgument: A URL is a template, and *main_database* is missing or cannot fill it.
        """
        return [
            Cell(name, _url(row.database_connection, self._main, name), enabled=not row.disabled, **options)
            for name, row in self._mapped()
        ]

    def _mapped(self) -> list[tuple[str, sa.Row[Any]]]:
        """The cell mappings, each with its cell's name, which is known from now on."""
        with self.database.read() as connection:
            rows = connection.execute(sa.select(cell_mappings).order_by(cell_mappings.c.id)).all()
        names = [row.name for row in rows]
        named = {
            row.id: row.name if row.name and names.count(row.name) == 1 and len(row.name) <= 64 else row.uuid
            for row in rows
        }
        with self._lock:
            self._names = named
        return [(named[row.id], row) for row in rows]

    def _named(self, identifiers: Iterable[int]) -> frozenset[str]:
        """The names of cells. Reads the mappings where one is new: not within another reading."""
        wanted = frozenset(identifiers)
        if not self._names or not wanted <= self._names.keys():
            self._mapped()
        return frozenset(self._names[each] for each in wanted if each in self._names)

    def cells_of_tenant(self, tenant: str) -> frozenset[str]:
        """Every cell with an instance of the project that is not being deleted."""
        with self.database.read() as connection:
            found = connection.scalars(_CELLS_OF_PROJECT, {"project": tenant}).all()
        return self._named(found)

    def cells_of_host(self, host: str) -> frozenset[str] | None:
        """The cell of a compute host; None when it is not mapped."""
        with self.database.read() as connection:
            found = connection.scalars(_CELL_OF_HOST, {"host": host}).all()
        return self._named(found) or None

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


_m = instance_mappings.c
_CELLS_OF_PROJECT = (
    sa.select(_m.cell_id)
    .where(
        _m.project_id == sa.bindparam("project"),
        _m.cell_id.is_not(None),
        sa.or_(_m.queued_for_delete.is_(None), _m.queued_for_delete == sa.false()),
    )
    .distinct()
)
_CELL_OF_HOST = sa.select(host_mappings.c.cell_id).where(host_mappings.c.host == sa.bindparam("host"))
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
    url = parse_url(mapped)
    drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
    return url.set(drivername=drivers.get(url.get_backend_name(), url.drivername))


def _parts(main: str) -> dict[str, Any]:
    """What a template may name: the parts of the reader's own URL, as they are written there."""
    parse_url(main)  # what it refuses, others would quote: a port that may be half of a password
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
