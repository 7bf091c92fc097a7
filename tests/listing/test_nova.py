"""Nova databases as Nova 34's own migrations leave them: listed, filtered and counted, beside Nova's own lister."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
from collections import Counter

import pytest
import sqlalchemy as sa

from bench.harness import HERE, Peer, peer_env
from cloudcore.errors import InvalidArgument, InvalidQuery
from cloudcore.listing import (
    NOVA_INSTANCES,
    NOVA_MIGRATIONS,
    Cell,
    CellRouter,
    CellState,
    NovaDirectory,
    Query,
    Sort,
)
from tests.listing import oracle
from tests.listing.conftest import Databases, walk
from tests.listing.nova_cloud import CELL0, EPOCH, NovaCloud, insert, instance, nova_url

pytestmark = pytest.mark.xdist_group("listing-nova")
UTC = dt.UTC
NEWEST = [Sort("created_at", descending=True)]


@pytest.fixture(scope="module")
def nova():
    """A process in Nova's own environment, which is built when it is missing."""
    try:
        python = peer_env("nova")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no environment with nova can be made: {error.stderr}")
    with Peer(python, HERE / "peer_nova.py") as process:
        yield process


@pytest.fixture(scope="module")
def cloud(nova, databases: Databases):
    """cell0 and a cell on SQLite, one on PostgreSQL, one on MariaDB; forty instances in each but cell0."""
    kinds = {"cell0": "sqlite", "small": "sqlite", "post": "postgresql", "maria": "mariadb"}
    made = NovaCloud(nova, databases.url("sqlite"), {name: databases.url(kind) for name, kind in kinds.items()})
    rng = random.Random(34)
    made.rows = {}
    for number, name in enumerate(kinds):
        rows = [instance(rng, number * 100 + n) for n in range(40 if name != "cell0" else 3)]
        made.rows[name] = made.add(name, rows)
    nobody = [instance(rng, 930, uuid=CELL0, deleted=5, project_id=CELL0)]
    for name in ("post", "maria", "small"):
        gone = [instance(rng, 900, deleted=1000 + n, deleted_at=EPOCH, vm_state="deleted") for n in range(2)]
        made.add(name, [*gone, instance(rng, 910, hidden=True), instance(rng, 920, vm_state="soft-delete")])
        with made.engines[name].begin() as connection:  # a deleted row carries its own id
            connection.execute(sa.text("UPDATE instances SET deleted = id WHERE deleted <> 0"))
        insert(made.engines[name], "instances", nobody)
        first, second = made.rows[name][0]["uuid"], made.rows[name][1]["uuid"]
        insert(
            made.engines[name],
            "instance_metadata",
            [
                {"instance_uuid": first, "key": "a", "value": "1", "deleted": 0},
                {"instance_uuid": second, "key": "a", "value": "2", "deleted": 0},
                {"instance_uuid": second, "key": "b", "value": "1", "deleted": 0},
                {"instance_uuid": made.rows[name][2]["uuid"], "key": "a", "value": "1", "deleted": 7},
            ],
        )
        insert(
            made.engines[name],
            "tags",
            [
                {"resource_id": first, "tag": "red"},
                {"resource_id": first, "tag": "blue"},
                {"resource_id": second, "tag": "red"},
            ],
        )
    yield made
    made.close()


@pytest.fixture(scope="module")
def listing(cloud):
    """A router over the mapped cells, with the API database as its directory."""
    with (
        NovaDirectory(cloud.api_url) as directory,
        CellRouter(directory.cells(deadline=60.0), directory=directory, source=NOVA_INSTANCES) as router,
    ):
        yield router
        router.check()


def live(cloud):
    """What must be listed, as the router shows it."""
    rows = [dict(row) for rows in cloud.rows.values() for row in rows]
    for row in rows:
        for name in ("created_at", "launched_at"):
            row[name] = row[name] and row[name].replace(tzinfo=UTC)
    return rows


def uuids(records):
    return [record["uuid"] for record in records]


@pytest.mark.parametrize("limit", [7, 50])
@pytest.mark.parametrize(
    "sort",
    [
        [Sort("created_at", descending=True)],
        [Sort("task_state", descending=True), "created_at"],
        [Sort("task_state")],
        [Sort("launched_at", descending=True, nulls_first=True)],
        ["display_name"],
        [Sort("access_ip_v4", descending=True)],
        ["locked_by", Sort("host", descending=True)],
    ],
    ids=lambda sort: ",".join(getattr(item, "column", item) for item in sort),
)
def test_every_order_is_the_same_on_three_databases(cloud, listing, sort, limit):
    """NULLs, capitals, addresses and enumerations: Nova's columns in one order over mixed cells."""
    query = Query(sort=sort, limit=limit)
    assert uuids(walk(listing, query)) == uuids(oracle.ordered(live(cloud), query.sort or NEWEST))


def test_records_have_the_types_of_python_on_every_database(cloud, listing):
    """The same columns, instants with a time zone, booleans, addresses as text."""
    stored = {row["uuid"]: row for row in live(cloud)}
    found = walk(listing, Query(limit=50))
    assert {record.uuid for record in found} == set(stored)
    for record in found:
        row = stored[record.uuid]
        for name in (
            "created_at",
            "display_name",
            "host",
            "task_state",
            "locked",
            "locked_by",
            "access_ip_v4",
            "memory_mb",
        ):
            assert record[name] == row[name], name
            assert type(record[name]) is type(row[name]), name
        assert record.cell in cloud.rows
        assert len(record) == 53


@pytest.mark.parametrize(
    "query",
    [
        Query(where={"project_id": "project-1"}),
        Query(where={"vm_state": ["active", "error"], "host": "host-2"}),
        Query(where={"display_name": "web"}),
        Query(where={"display_name": {"prefix": "db-1"}}),
        Query(where={"display_name": {"contains": "e"}}),
        Query(where={"display_name": {"regex": "^[Ww]eb$"}}),
        Query(where={"task_state": None}),
        Query(
            where={"memory_mb": {"gt": 512}, "created_at": {"ge": EPOCH.replace(tzinfo=UTC) + dt.timedelta(seconds=9)}}
        ),
        Query(where={"access_ip_v4": "10.0.0.9"}),
        Query(where={"locked_by": {"ne": "admin"}}),
        Query(where={"host": []}),
    ],
    ids=lambda query: "-".join(query.where),
)
def test_filters(cloud, listing, query):
    """Each filter selects what Python's own test selects, in every cell alike."""
    expected = {row["uuid"] for row in live(cloud) if oracle.matches(row, query.where)}
    assert set(uuids(listing.page(query).records)) == expected
    assert listing.count(query).total == len(expected)


def test_metadata_is_a_pair(cloud, listing):
    """{a: 1} is not met by {a: 2, b: 1}, nor by a pair that was deleted."""
    expected = {cloud.rows[name][0]["uuid"] for name in ("small", "post", "maria")}
    assert set(uuids(listing.page(Query(metadata={"a": "1"})).records)) == expected


def test_tags(cloud, listing):
    """All, any, not all, none."""
    first = {cloud.rows[name][0]["uuid"] for name in ("small", "post", "maria")}
    second = {cloud.rows[name][1]["uuid"] for name in ("small", "post", "maria")}
    everything = set(uuids(live(cloud)))

    def found(**tags):
        return set(uuids(listing.page(Query(**tags)).records))

    assert found(tags=["red", "blue"]) == first
    assert found(tags_any=["red", "blue"]) == first | second
    assert found(not_tags=["red", "blue"]) == everything - first
    assert found(not_tags_any=["red", "green"]) == everything - first - second


def test_changes_are_inclusive_and_null_never_matches(cloud, listing):
    """updated_at between two instants."""
    since, before = (EPOCH.replace(tzinfo=UTC) + dt.timedelta(seconds=s) for s in (10, 30))
    expected = {
        row["uuid"]
        for row in live(cloud)
        if row["updated_at"] is not None and since <= row["updated_at"].replace(tzinfo=UTC) <= before
    }
    assert set(uuids(listing.page(Query(changes_since=since, changes_before=before)).records)) == expected


def test_deleted_hidden_and_soft_deleted_rows(cloud, listing):
    """Live ones by default; deleted and soft-deleted on request; hidden on request; the marker row never."""
    total = len(live(cloud))
    assert listing.count().total == total
    assert listing.count(Query(hidden=True)).total == total + 3
    assert listing.count(Query(deleted=True)).total == 9
    assert listing.count(Query(deleted=None)).total == total + 9
    assert CELL0 not in uuids(listing.page(Query(deleted=None)).records)


def test_count_by_a_column(cloud, listing):
    """There is no such call in Nova."""
    assert listing.count(by="vm_state").by == Counter(row["vm_state"] for row in live(cloud))
    assert listing.count(by="task_state").by == Counter(row["task_state"] for row in live(cloud))


def test_a_tenant_is_looked_for_where_it_is_mapped(cloud, listing):
    """Cells without a mapping of the project are skipped, and say why."""
    rng = random.Random(5)
    cloud.add("post", [instance(rng, 990, project_id="rare")])
    try:
        page = listing.page(Query(tenant="rare"))
        assert len(page.records) == 1
        assert {name: report.state for name, report in page.cells.items()} == {
            **dict.fromkeys(("cell0", "small", "maria"), CellState.SKIPPED),
            "post": CellState.ANSWERED,
        }
    finally:
        with cloud.engines["post"].begin() as connection:
            connection.execute(sa.text("DELETE FROM instances WHERE project_id = 'rare'"))
        with cloud.api.begin() as connection:
            connection.execute(
                sa.text("UPDATE instance_mappings SET queued_for_delete = true WHERE project_id = 'rare'")
            )
    assert all(report.state is CellState.SKIPPED for report in listing.page(Query(tenant="rare")).cells.values())


def test_get_and_locate_by_mapping(cloud, listing):
    """In any spelling of the uuid."""
    row = cloud.rows["maria"][3]
    assert listing.locate(row["uuid"]) == "maria"
    assert listing.get(row["uuid"].upper().replace("-", "")).hostname == row["hostname"]


def test_placeholders_for_a_dead_cell(cloud):
    """What the API database knows of a dead cell's instances, in their place when ordered by creation."""
    with NovaDirectory(cloud.api_url) as directory:
        cells = [
            Cell(cell.name, "postgresql://nobody@127.0.0.1:1/none" if cell.name == "post" else cell.database)
            for cell in directory.cells()
        ]
        with CellRouter(cells, directory=directory, source=NOVA_INSTANCES) as router:
            query = Query(limit=25, unknown=True)
            records = walk(router, query, complete=False)
    shown = [
        record
        for record in records
        if not (record.vm_state == "UNKNOWN" and record.uuid not in {r["uuid"] for r in cloud.rows["post"]})
    ]
    assert uuids(shown) == uuids(oracle.ordered(live(cloud), query.sort or NEWEST))
    assert {record.uuid for record in records if record.unknown} >= {row["uuid"] for row in cloud.rows["post"]}


def test_url_templates_and_disabled_cells(cloud):
    """A mapping may be a template, filled from the reader's own URL; disabled cells are known and not asked."""
    url = sa.make_url(cloud.cell_urls["post"])
    main = f"postgresql+psycopg2://{url.username}:{url.password}@{url.host}:{url.port}/other?x=1"
    rows = [
        {"uuid": "t1", "name": "template", "transport_url": "none:///", "disabled": True,
         "database_connection": "{scheme}://{username}:{password}@{hostname}:{port}/" + url.database},
        {"uuid": "t2", "name": None, "transport_url": "none:///", "disabled": True, "database_connection": "sqlite:///{path}"},
    ]  # fmt: skip
    insert(cloud.api, "cell_mappings", rows)
    try:
        with NovaDirectory(cloud.api_url, main_database=main) as directory:
            cells = {cell.name: cell for cell in directory.cells()}
        assert cells["template"].database == url.set(drivername="postgresql+psycopg")
        assert not cells["template"].enabled
        assert cells["t2"].database.database == "other"
        with NovaDirectory(cloud.api_url) as directory, pytest.raises(InvalidArgument, match="template"):
            directory.cells()
    finally:
        with cloud.api.begin() as connection:
            connection.execute(sa.text("DELETE FROM cell_mappings WHERE uuid IN ('t1', 't2')"))


def test_migrations_are_listed_by_the_same_router(cloud):
    """Another table of Nova's, with an enumeration that PostgreSQL keeps as a type."""
    rng = random.Random(7)
    for name in ("small", "post", "maria"):
        rows = [
            {
                "uuid": f"{name:_<8}-0000-4000-8000-{number:012}",
                "instance_uuid": cloud.rows[name][number]["uuid"],
                "created_at": EPOCH + dt.timedelta(seconds=rng.randrange(5)),
                "migration_type": rng.choice(["migration", "resize", "live-migration", "evacuation"]),
                "status": "done", "source_compute": "h1", "dest_compute": "h2", "hidden": False, "deleted": 0,
            }
            for number in range(5)
        ]  # fmt: skip
        insert(cloud.engines[name], "migrations", rows)
    with NovaDirectory(cloud.api_url) as directory, CellRouter(directory.cells(), source=NOVA_MIGRATIONS) as router:
        found = walk(router, Query(sort=["migration_type", Sort("created_at", descending=True)], limit=4))
        only = router.count(Query(where={"migration_type": "resize"})).total
    assert uuids(found) == uuids(oracle.ordered(found, [Sort("migration_type"), Sort("created_at", descending=True)]))
    assert len(found) == 15
    assert only == sum(record.migration_type == "resize" for record in found)


def test_what_nova_refuses_is_refused(listing):
    """Joined tables and columns without an order are no sort keys; unknown filters are not silently ignored."""
    for query in (
        Query(sort=["user_data"]),
        Query(sort=["metadata"]),
        Query(where={"filter": "x"}),
        Query(where={"deleted": "no"}),
    ):
        with pytest.raises(InvalidQuery):
            listing.page(query)


def test_the_same_pages_as_novas_own_lister(nova, cloud, listing):
    """On the same databases, where Nova can sort at all: created_at, no NULLs."""
    nova.run("configure", api_url=nova_url(cloud.api_url), main_url=nova_url(cloud.cell_urls["cell0"]))
    first = nova.run("page", limit=40)
    page = listing.page(Query(limit=40))
    assert uuids(page.records) == first
    assert uuids(listing.page(Query(limit=40), cursor=page.next_cursor).records) == nova.run(
        "page", limit=40, marker=first[-1]
    )
    assert uuids(listing.page(Query(limit=40), marker=first[-1]).records) == nova.run(
        "page", limit=40, marker=first[-1]
    )
