"""Nova's instances on MariaDB: any order and tie equals the sorted union, and a page costs what it shows."""

from __future__ import annotations

import datetime as dt
import random
import uuid

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from cloudcore.database import open_engine
from cloudcore.listing import NOVA_INSTANCES, Cell, CellRouter, Query, Sort
from tests import services
from tests.listing import oracle
from tests.listing.conftest import known_layout, walk

UTC = dt.UTC
EPOCH = dt.datetime(2026, 1, 1)
TABLE = NOVA_INSTANCES.table
INDEXES = {
    "uniq_instances0uuid": "uuid",
    "instances_reservation_id_idx": "reservation_id",
    "instances_terminated_at_launched_at_idx": "terminated_at launched_at",
    "instances_task_state_updated_at_idx": "task_state updated_at",
    "instances_uuid_deleted_idx": "uuid deleted",
    "instances_host_node_deleted_idx": "host node deleted",
    "instances_host_deleted_cleaned_idx": "host deleted cleaned",
    "instances_project_id_deleted_idx": "project_id deleted",
    "instances_project_id_idx": "project_id",
    "instances_deleted_created_at_idx": "deleted created_at",
    "instances_updated_at_project_id_idx": "updated_at project_id",
    "instances_compute_id_deleted_idx": "compute_id deleted",
}
"""Nova's own."""
KEYS = (
    "access_ip_v4", "access_ip_v6", "auto_disk_config", "availability_zone", "config_drive", "created_at",
    "display_description", "display_name", "host", "hostname", "image_ref", "instance_type_id", "kernel_id", "key_name",
    "launch_index", "launched_at", "locked", "locked_by", "node", "power_state", "progress", "project_id", "ramdisk_id",
    "root_device_name", "task_state", "terminated_at", "updated_at", "user_id", "uuid", "vm_state",
)  # fmt: skip
"""What Nova's API sorts by."""
SERVED = {"created_at", "updated_at", "terminated_at", "uuid"}
"""Keys for which Nova's schema has an index in the order asked for: the others are text of a foreign collation, or
have no index."""
NAMES = [None, "", "web", "Web", "WEB", "wéb", "web ", "db-1", "db-10", "zz", "_", "É"]


def create(url: str, *, mixed: bool = False) -> sa.Engine:
    """Nova's table with its indexes in an empty database; *mixed*: some columns in collations of their own."""
    engine = open_engine(url, durable=False)
    with engine.begin() as connection:
        TABLE.create(connection)
        for name, columns in INDEXES.items():
            if connection.dialect.name in {"mysql", "mariadb"} or name == "instances_deleted_created_at_idx":
                unique = "UNIQUE " if name.startswith("uniq") else ""
                connection.exec_driver_sql(f"CREATE {unique}INDEX {name} ON instances ({', '.join(columns.split())})")
        if mixed:
            for column, collation in (
                ("display_name", "utf8mb3_bin"), ("host", "latin1_german1_ci"), ("project_id", "utf8mb4_nopad_bin"),
                ("uuid", "latin1_swedish_ci"), ("vm_state", "ascii_general_ci"),
            ):  # fmt: skip
                length, nullable = (36, "NOT NULL") if column == "uuid" else (255, "NULL")
                connection.exec_driver_sql(
                    f"ALTER TABLE instances MODIFY {column} VARCHAR({length}) CHARACTER SET "
                    f"{collation.split('_')[0]} COLLATE {collation} {nullable}"
                )
    return engine


def instance(number: int, draw=random, **values):
    """One live row; equal numbers make equal uuids."""
    moment = lambda: draw.choice([None, *(EPOCH + dt.timedelta(seconds=n) for n in range(3))])  # noqa: E731
    row = dict.fromkeys(KEYS)
    row.update(
        uuid=str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4)),
        created_at=moment(), updated_at=moment(), launched_at=moment(), terminated_at=moment(),
        display_name=draw.choice(NAMES), hostname=draw.choice(NAMES), host=draw.choice(["h1", "H1", "h-2", None]),
        project_id=draw.choice(["p", "P", "q"]), task_state=draw.choice([None, None, "spawning"]),
        vm_state=draw.choice(["active", "ACTIVE", "error"]), locked=draw.choice([None, True, False]),
        locked_by=draw.choice([None, "owner", "admin"]), access_ip_v4=draw.choice([None, "10.0.0.9", "9.0.0.1"]),
        power_state=draw.choice([None, 0, 1, 4]), progress=draw.choice([0, 1]), launch_index=draw.choice([None, 0, 1]),
        deleted=0, hidden=draw.choice([None, False]),
    )  # fmt: skip
    return {**row, **values}


def insert(engine: sa.Engine, rows: list[dict]) -> None:
    with engine.begin() as connection:
        connection.execute(sa.delete(TABLE))
        if rows:
            connection.execute(sa.insert(TABLE), rows)


def as_shown(row: dict) -> dict:
    instants = {"created_at", "updated_at", "launched_at", "terminated_at"}
    return {name: value.replace(tzinfo=UTC) if name in instants and value else value for name, value in row.items()}


def expected(content: list[list[dict]], sort) -> list[str]:
    rows = [as_shown(row) for rows in content for row in rows]
    return [row["uuid"] for row in oracle.ordered(rows, sort)]


def found(router: CellRouter, query: Query) -> list[str]:
    return [record["uuid"] for record in walk(router, query)]


WORLDS = {
    "utf8mb3": ["utf8mb3_general_ci"] * 2,
    "latin1": ["latin1_swedish_ci", "latin1_bin"],
    "utf8mb4": ["utf8mb4_general_ci", "utf8mb4_unicode_520_ci"],
    "mixed columns": ["utf8mb3_general_ci+", "utf8mb4_bin+"],
    "mixed databases": ["utf8mb3_general_ci", "sqlite", "postgresql"],
}
"""Cells by the collation that their MariaDB has as its default; + for columns that have their own."""


@pytest.fixture(scope="module", params=WORLDS)
def world(request, databases):
    urls, engines = [], []
    for kind in WORLDS[request.param]:
        collation = kind.strip("+")
        url = databases.url(collation if collation in {"sqlite", "postgresql"} else "mariadb")
        if "_" in collation:
            name = sa.make_url(url).database
            charset = collation.split("_")[0]
            services.mariadb().execute(f"ALTER DATABASE {name} CHARACTER SET {charset} COLLATE {collation}")
        urls.append(url)
        engines.append(create(url, mixed="+" in kind))
    cells = [Cell(f"c{number}", url) for number, url in enumerate(urls)]
    with CellRouter(cells, source=NOVA_INSTANCES, deadline=60.0) as router:
        yield router, engines
        router.check()
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("name", KEYS)
def test_every_key_of_the_api_in_both_directions(world, name, descending):
    """NULLs, ties, capitals, accents, trailing spaces: as one sort of everything has it."""
    router, engines = world
    rng = random.Random(name)
    content = [[instance(1000 * cell + n, rng) for n in range(30)] for cell in range(len(engines))]
    for engine, rows in zip(engines, content, strict=True):
        insert(engine, rows)
    sort = [Sort(name, descending=descending)]
    for query in (Query(sort=sort, limit=7), Query(sort=sort, limit=50, fetching="keys")):
        assert found(router, query) == expected(content, sort)
    assert [record["uuid"] for record in router.stream(query)] == expected(content, sort)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_order_of_several_keys(world, data):
    """Up to three keys with any directions and places of NULL, any page size, a filter or none."""
    router, engines = world
    rng = data.draw(st.randoms(use_true_random=False))
    content = [
        [instance(1000 * cell + n, rng) for n in range(data.draw(st.integers(0, 25)))] for cell in range(len(engines))
    ]
    for engine, rows in zip(engines, content, strict=True):
        insert(engine, rows)
    keys = st.sampled_from(["created_at", "updated_at", "terminated_at", "launched_at", "project_id", "host", "uuid"])
    sort = data.draw(
        st.lists(
            st.builds(Sort, keys, descending=st.booleans(), nulls_first=st.sampled_from([None, True, False])),
            min_size=1, max_size=3, unique_by=lambda item: item.column,
        )
    )  # fmt: skip
    where = data.draw(st.sampled_from([{}, {"project_id": "p"}, {"terminated_at": None}, {"vm_state": ["active"]}]))
    kept = [[row for row in rows if oracle.matches(row, where)] for rows in content]
    query = Query(sort=sort, where=where, limit=data.draw(st.sampled_from([1, 2, 3, 5, 8, 60])))
    assert found(router, query) == expected(kept, sort)
    assert [record["uuid"] for record in router.stream(query)] == expected(kept, sort)


@pytest.mark.parametrize("size", [1, 2, 49, 50, 51, 52, 500, 5000])
def test_ties_of_every_size(databases, size):
    """So many instances of one second, between some of their own; walked by pages of 50 or 700, and streamed."""
    urls = [databases.url("mariadb") for _ in range(2)]
    engines = [create(url) for url in urls]
    moment = EPOCH + dt.timedelta(days=1)
    content = []
    for cell in range(2):
        rows = [instance(cell * 10_000 + n, created_at=moment, vm_state="active") for n in range(size)]
        rows += [
            instance(cell * 10_000 + 9_000 + n, created_at=EPOCH + dt.timedelta(days=n % 3, seconds=1))
            for n in range(60)
        ]
        content.append(rows)
        insert(engines[cell], rows)
    with CellRouter([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=NOVA_INSTANCES, deadline=60.0) as router:
        for sort in ([Sort("created_at", descending=True)], ["created_at"], [Sort("created_at"), Sort("project_id")]):
            wanted = expected(content, Query(sort=sort).sort)
            assert found(router, Query(sort=sort, limit=50 if size < 1000 else 700)) == wanted
            assert [record["uuid"] for record in router.stream(Query(sort=sort))] == wanted
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="module", params=[2_000, 20_000])
def filled(request, databases):
    """One cell of so many rows a second or two apart, few of them deleted or with a time of their end."""
    url = databases.url("mariadb")
    engine = create(url)
    rng = random.Random(7)
    second = lambda n: EPOCH + dt.timedelta(seconds=n)  # noqa: E731
    rows = [
        instance(
            n, rng, created_at=second(n // 2), vm_state="active", deleted=n if n % 50 == 0 else 0,
            updated_at=second(n) if n % 1000 else None, terminated_at=None if n % 10 else second(n),
        )
        for n in range(1, request.param)
    ]  # fmt: skip
    insert(engine, rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE TABLE instances")
    with CellRouter([Cell("cell", url, connections=1)], source=NOVA_INSTANCES, deadline=60.0) as router:
        yield router, rows, engine
    engine.dispose()


def looked_at(router: CellRouter) -> int:
    """Rows and index entries that the server has looked at for the router, those that a condition dropped too."""
    pool = router._backends["cell"].pool
    pooled = pool.acquire(float("inf"))
    total = 0
    for counter in ("Handler_read%", "Handler_icp_attempts"):
        pooled.cursor.execute(f"SHOW SESSION STATUS LIKE '{counter}'")
        total += sum(int(count) for _, count in pooled.cursor.fetchall())
    pool.release(pooled)
    return total


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_a_page_reads_little_more_than_it_shows(filled, name, descending):
    """At its start, in the middle and near its end, in small cells as in large ones."""
    router, rows, _ = filled
    live = [as_shown(row) for row in rows if not row["deleted"]]
    sort = (Sort(name, descending=descending),)
    whole = oracle.ordered(live, sort)
    assert known_layout(router, "cell") is not None
    for place in (0, 60, len(whole) // 2, len(whole) - 120):
        cursor = None
        if place:
            cursor = router.page(Query(sort=sort, limit=1), marker=whole[place - 2]["uuid"]).next_cursor
        first = looked_at(router)
        idle = looked_at(router) - first  # what it costs to ask
        page = router.page(Query(sort=sort, limit=50), cursor=cursor)
        looked = looked_at(router) - first - 2 * idle
        assert [record["uuid"] for record in page.records] == [row["uuid"] for row in whole[place : place + 50]]
        assert looked <= 4 * 50, (place, looked)


LOAD = """
INSERT INTO instances (uuid, created_at, updated_at, deleted, hidden, vm_state, project_id, host, node, task_state)
SELECT CONCAT('00000000-0000-4000-8000-', LPAD(seq, 12, '0')), '2026-01-01' + INTERVAL seq DIV 2 SECOND,
       '2026-01-01' + INTERVAL seq * 7919 MOD {size} SECOND, IF(seq MOD 50, 0, seq), 0, 'active',
       CONCAT('p', seq MOD 99), CONCAT('h', seq MOD 500), CONCAT('h', seq MOD 500), IF(seq MOD 9, NULL, 'spawning')
FROM seq_1_to_{size}
"""


@pytest.fixture(scope="module", params=[10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def vast(request, databases):
    """A cell of so many rows, and what each is sorted by."""
    size, url = request.param, databases.url("mariadb")
    engine = create(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(LOAD.format(size=size))
        connection.exec_driver_sql("ANALYZE TABLE instances")
    engine.dispose()
    keys = {"created_at": lambda n: n // 2, "updated_at": lambda n: n * 7919 % size, "uuid": lambda n: n}
    with CellRouter([Cell("cell", url, connections=1)], source=NOVA_INSTANCES, deadline=600.0) as router:
        yield router, [n for n in range(1, size + 1) if n % 50], keys


@pytest.mark.timeout(900)
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("name", ["created_at", "updated_at", "uuid"])
def test_a_page_of_a_vast_cell_reads_as_little(vast, name, descending):
    """Rows looked at do not grow with the cell, and all pages are right."""
    router, numbers, keys = vast
    whole = sorted(numbers, key=keys[name], reverse=descending)  # equal ones stay in the order of their uuids
    uuids = [f"00000000-0000-4000-8000-{n:012}" for n in whole]
    sort = (Sort(name, descending=descending),)
    assert known_layout(router, "cell") is not None
    for place in (0, len(whole) // 3, len(whole) - 80):
        cursor = None
        if place:
            cursor = router.page(Query(sort=sort, limit=1), marker=uuids[place - 2]).next_cursor
        first = looked_at(router)
        idle = looked_at(router) - first
        page = router.page(Query(sort=sort, limit=50), cursor=cursor)
        looked = looked_at(router) - first - 2 * idle
        assert [record["uuid"] for record in page.records] == uuids[place : place + 50]
        assert looked <= 4 * 50, (place, looked)


@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("name", KEYS)
def test_no_sort_where_an_index_serves(filled, name, descending):
    """EXPLAIN of every order of Nova's API: a sort of the cell only where the documentation says so."""
    router, rows, engine = filled
    prepared = router._prepare(Query(sort=[Sort(name, descending=descending)], limit=50))
    layout = known_layout(router, "cell")
    columns = [key.column for key in prepared.order.keys]
    positions = [None, *(tuple(as_shown(row)[column] for column in columns) for row in rows[1::500])]
    sorts = set()
    with engine.connect() as connection:
        for position in positions:
            for segment in prepared.plan.segments(engine.dialect, position, layout):
                sent = prepared.plan.page(engine.dialect, segment, 50, layout)
                plan = connection.exec_driver_sql("EXPLAIN " + sent.text, sent.parameters).mappings().all()
                assert len(plan) == 1
                if "filesort" in plan[0]["Extra"] or "temporary" in plan[0]["Extra"]:
                    sorts.add(segment.leading)
    # Rows without a value tie: where they are few, the database finds them by the index and sorts these.
    assert (sorts <= {"nulls"}) == (name in SERVED), sorts
