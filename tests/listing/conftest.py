"""Cells for the listing tests: databases of every kind, with cloudcore's own tables or a small table of the test's."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloudcore.database import Instant, Uuid, open_engine
from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore, Query, RecordSource
from cloudcore.listing.tables import create_cell_tables
from tests import services

UTC = dt.UTC
NOW = dt.datetime(2026, 3, 1, 12, tzinfo=UTC)

things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("name", sa.String(100)),
    sa.Column("size", sa.Integer()),
    sa.Column("at", Instant()),
    sa.Column("flag", sa.Boolean()),
    sa.Column("kind", sa.String(20), nullable=False),
)
"""Nullable in every way, and with the database's default collation: nothing is prepared for the router."""

THINGS = RecordSource(things, key="id", wide=("kind",))

ELSEWHERE = ["pgbouncer", "galera"]
"""Cells behind a pooler, and on a node of a cluster. A test that goes there takes a second more."""


class Databases:
    """Makes empty databases of any kind that `services.database_server` knows, and drops them at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._made: list[tuple[object, str]] = []

    def url(self, kind: str) -> str:
        self._count += 1
        if kind == "sqlite":
            return f"sqlite:///{self._folder / f'cell-{self._count}.db'}"
        server = services.database_server(kind)
        url = server.create_database("cell")
        self._made.append((server, url))
        return services.address(kind, url)

    def close(self) -> None:
        for server, url in self._made:
            server.drop_database(url)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    made = Databases(tmp_path_factory.mktemp("cells"))
    yield made
    made.close()


@pytest.fixture
def routers() -> Iterator[Callable[..., CellRouter]]:
    """Makes routers; each is checked and closed at the end."""
    made: list[CellRouter] = []

    def make(*arguments: object, **options: object) -> CellRouter:
        options.setdefault("deadline", 60.0)  # a loaded machine is no fault of a cell's
        made.append(CellRouter(*arguments, **options))
        return made[-1]

    yield make
    for router in made:
        router.check()
        router.close()


class Cloud:
    """A router over cells with cloudcore's own tables, a directory, and a store to write with."""

    def __init__(self, router: CellRouter, directory: InstanceDirectory, engines: dict[str, sa.Engine]) -> None:
        self.router, self.directory, self.engines = router, directory, engines
        self.store = InstanceStore(router)


@pytest.fixture
def clouds(tmp_path: Path, routers: Callable[..., CellRouter], databases: Databases) -> Iterator[Callable[..., Cloud]]:
    """clouds(3) or clouds("sqlite", "postgresql"): one cell each, named cell1, cell2, …"""
    closing: list[object] = []

    def make(*kinds: str | int, **options: object) -> Cloud:
        names = ["sqlite"] * kinds[0] if isinstance(kinds[0], int) else kinds
        urls = {f"cell{number}": databases.url(kind) for number, kind in enumerate(names, 1)}
        engines = {name: open_engine(url) for name, url in urls.items()}
        for engine in engines.values():
            create_cell_tables(engine)
        directory = InstanceDirectory(f"sqlite:///{tmp_path / 'directory.db'}")
        cells = [Cell(name, url) for name, url in urls.items()]
        closing.extend([directory, *engines.values()])
        return Cloud(routers(cells, directory=directory, **options), directory, engines)

    yield make
    for each in closing:
        each.close() if isinstance(each, InstanceDirectory) else each.dispose()


def walk(router: CellRouter, query, *, complete: bool = True) -> list:
    """All records, page by page; every page keeps its limit, and unless told otherwise every cell answers."""
    records, cursor = [], None
    while True:
        page = router.page(query, cursor=cursor)
        assert page.complete or not complete, page.cells
        assert query.limit is None or len(page.records) <= query.limit
        records += page.records
        cursor = page.next_cursor
        if cursor is None:
            return records


def known_layout(router: CellRouter, cell: str):
    """What the router knows of the table in a cell, after a page; None where it does not matter to it."""
    router.page(Query(limit=1))
    return router._backends[cell].pool.layouts.get(router.source.table)
