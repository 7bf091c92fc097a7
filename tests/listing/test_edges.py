"""Where a walk, a poll or a key goes wrong without a word: each is listed rightly or refused."""

from __future__ import annotations

import datetime as dt
import sys

import pytest
import sqlalchemy as sa

from cloudcore import create_schema
from cloudcore.database import Database, RetryPolicy, open_engine
from cloudcore.errors import DatabaseUnavailable, InvalidArgument, MissingExtra
from cloudcore.listing import (
    CLOUDCORE_INSTANCES,
    Cell,
    CellRouter,
    CellState,
    InstanceDirectory,
    NovaDirectory,
    Query,
    RecordSource,
    Sort,
)
from cloudcore.listing.records import nova_tables
from tests.listing.conftest import ELSEWHERE, NOW, THINGS, things, walk

KINDS = pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb", *ELSEWHERE])
def test_a_poller_hears_of_new_instances(clouds, kind):
    """Also of those that nobody has changed since; and not of what it has heard of."""
    cloud = clouds(kind)
    cloud.store._clock = lambda: NOW
    first = cloud.store.create("cell1", project_id="p")
    cloud.store._clock = lambda: NOW + dt.timedelta(minutes=5)
    second = cloud.store.create("cell1", project_id="p")

    def heard(since):
        return {record.uuid for record in cloud.router.page(Query(changes_since=since)).records}

    assert heard(NOW) == {first, second}
    assert heard(NOW + dt.timedelta(minutes=1)) == {second}
    assert len(cloud.router.page(Query(changes_before=NOW)).records) == 1
    cloud.store._clock = lambda: NOW + dt.timedelta(minutes=9)
    cloud.store.update(first, vm_state="stopped")
    assert heard(NOW + dt.timedelta(minutes=6)) == {first}


@pytest.mark.parametrize("fetching", ["rows", "keys"])
@pytest.mark.parametrize("kinds", [["sqlite"] * 3, ["sqlite", "postgresql", "mariadb"]], ids=["alike", "mixed"])
def test_numbers_that_each_cell_counts_are_no_key(databases, routers, kinds, fetching):
    """Thirty records, of which ten were listed as all there are."""
    table = sa.Table(
        "counted", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
    )
    cells = []
    for number, kind in enumerate(kinds):
        engine = open_engine(databases.url(kind))
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(table.insert(), [{"name": f"{number}-{n}"} for n in range(10)])
        cells.append(Cell(f"c{number}", engine))
    source = RecordSource(table, key="id")
    router = routers(cells, source=source)
    for sort in ([], ["name"]):
        with pytest.raises(InvalidArgument, match="several cells have a record with id"):
            router.page(Query(sort=sort, limit=100, fetching=fetching))
    with pytest.raises(InvalidArgument, match="UUID"):
        list(router.stream(Query()))
    assert len(routers(cells[:1], source=source).page(Query()).records) == 10
    assert router.count().total == 30


@pytest.fixture
def router(databases, routers):
    urls = [databases.url("sqlite") for _ in range(2)]
    for number, url in enumerate(urls):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            rows = [{"id": f"{number}-{n}", "name": f"n{n}", "size": n, "kind": "k"} for n in range(5)]
            connection.execute(things.insert(), rows)
        engine.dispose()
    return routers([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=THINGS)


def test_a_page_of_none_does_not_end_a_walk(router):
    """It asks nobody, and goes on where it stands: at the start, and anywhere else."""
    query, none = Query(sort=["size"], limit=3), Query(sort=["size"], limit=0)
    page = router.page(none)
    assert page.records == ()
    assert {report.state for report in page.cells.values()} == {CellState.SKIPPED}
    whole = [record.id for record in walk(router, query)]
    assert [record.id for record in router.page(query, cursor=page.next_cursor).records] == whole[:3]
    first = router.page(query)
    again = router.page(none, cursor=first.next_cursor)
    assert [record.id for record in router.page(query, cursor=again.next_cursor).records] == whole[3:6]
    assert router.page(Query(limit=0, where={"size": []})).next_cursor is None, "nothing can match"
    assert len(list(router.stream(none))) == router.count(none).total == 10


@KINDS
@pytest.mark.parametrize("number", [987654321, 100, 3])
def test_a_literal_is_not_taken_for_the_limit(clouds, kind, number):
    cloud = clouds(kind)
    cloud.store.create_many("cell1", [{"project_id": "p", "vcpus": n} for n in (1, 2, number)])
    column = CLOUDCORE_INSTANCES.table.c.vcpus
    for expression in (column == sa.literal_column(str(number)), column == number):
        assert len(cloud.router.page(Query(where=expression, limit=2)).records) == 1
    named = column.is_not(None) & (sa.literal_column("'cloudcore_number_of_rows'") != "x")
    assert len(walk(cloud.router, Query(where=named, limit=2))) == 3


def test_columns_named_as_attributes_can_be_had(databases, routers):
    """``record.cell`` is the router's word; the column stands under its name."""
    table = sa.Table(
        "prisons",
        sa.MetaData(),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("cell", sa.String(20)),
        sa.Column("unknown", sa.String(20)),
    )
    engine = open_engine(databases.url("sqlite"))
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": "a", "cell": "B12", "unknown": "why"})
    page = routers([Cell("north", engine)], source=RecordSource(table, key="id")).page(
        Query(where={"cell": "B12"}, sort=[Sort("cell")])
    )
    record = page.records[0]
    assert (record.cell, record["cell"], record.unknown, record["unknown"]) == ("north", "B12", False, "why")
    assert page.to_records() == [{"id": "a", "cell": "B12", "unknown": "why", "cell_name": "north"}]
    engine.dispose()


URLS = ["postgresql://u:p@127.0.0.1:1/x", "mysql://u:p@127.0.0.1:1/x", "mariadb+pymysql://u:p@127.0.0.1:1/x"]


@pytest.mark.parametrize("url", URLS)
def test_a_missing_driver_is_no_cell_that_is_down(tmp_path, monkeypatch, url):
    """It is said when the router is made or the cell is added, also where only a replica needs it."""
    for module in ("psycopg", "pymysql"):
        monkeypatch.setitem(sys.modules, module, None)
    here = f"sqlite:///{tmp_path}/cell.db"
    install = r'is not installed: pip install "cloudcore\[(postgresql|mysql)\]"'
    with pytest.raises(MissingExtra, match=install):
        CellRouter([Cell("good", here), Cell("bad", url)])
    create_schema(here, areas=["listing"])
    with CellRouter([Cell("good", here)]) as router:
        for cell in (Cell("bad", url), Cell("bad", here, replicas=[url])):
            with pytest.raises(MissingExtra, match=install):
                router.add_cell(cell)
        assert list(router.cells) == ["good"]
        assert router.page().complete
        monkeypatch.undo()
        router.add_cell(Cell("bad", url))
        assert router.page().cells["bad"].state is CellState.DOWN, "nobody listens there, which is another matter"


@pytest.mark.parametrize("url", URLS)
def test_a_directory_that_nobody_answers_for_is_unavailable(url):
    """The constructor makes its tables, so it is the first to notice: an error of the library's, as for a cell."""
    with Database(url, retry=RetryPolicy(attempts=2)) as database, pytest.raises(DatabaseUnavailable):
        InstanceDirectory(database)


@pytest.mark.parametrize("wrong", ["5", "x", 1.5, None])
def test_a_key_of_another_kind_is_refused_in_words(databases, routers, wrong):
    url = databases.url("sqlite")
    counted = sa.Table("counted", sa.MetaData(), sa.Column("id", sa.Integer(), primary_key=True))
    engine = open_engine(url)
    counted.metadata.create_all(engine)
    engine.dispose()
    router = routers([Cell("c", url)], source=RecordSource(counted, key="id"))
    for ask in (router.get, router.locate):
        with pytest.raises(InvalidArgument, match="id: "):
            ask(wrong)


def test_novas_directory_needs_one_connection_and_no_urls_to_name_cells():
    """Whoever describes the cells by hand needs no template filled."""
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0, pool_timeout=1)
    tables = [nova_tables.cell_mappings, nova_tables.instance_mappings, nova_tables.host_mappings]
    nova_tables.cell_mappings.metadata.create_all(engine, tables=tables)
    mapping = {"id": 1, "uuid": "u", "name": "cell1", "database_connection": "{scheme}://h/{path}"}
    with engine.begin() as connection:
        connection.execute(tables[0].insert(), mapping)
        connection.execute(tables[1].insert(), {"instance_uuid": "i", "cell_id": 1, "project_id": "p"})
        connection.execute(tables[2].insert(), {"host": "cn1", "cell_id": 1})
    assert NovaDirectory(engine).cells_of_tenant("p") == {"cell1"}
    assert NovaDirectory(engine).cells_of_host("cn1") == {"cell1"}
    assert NovaDirectory(engine).cells_of(["i"]) == {"i": "cell1"}
    assert NovaDirectory(engine).entries(["cell1"]).values == {"cell1": "1"}
    engine.dispose()
