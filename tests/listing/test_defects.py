"""One test for each mistake found in the lister that we measure ourselves against, with what it got wrong."""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import InvalidQuery
from cloudcore.listing import Cell, CellState, Query, RecordSource, Sort
from cloudcore.listing.query.segments import segments
from tests.listing import oracle
from tests.listing.conftest import NOW, THINGS, known_layout, things, walk

NEWEST = [Sort("created_at", descending=True)]


@pytest.fixture
def filled(clouds):
    """Four SQLite cells with ten instances each; two tenants, NULLs, ties."""
    cloud = clouds(4)
    rng = random.Random(1)
    for number in range(1, 5):
        cloud.store.create_many(
            f"cell{number}",
            [
                {
                    "project_id": "even" if n % 2 == 0 else f"only-{number}",
                    "created_at": NOW + dt.timedelta(seconds=rng.randrange(6)),
                    "display_name": rng.choice(["web", "Web", "ωmega", None]),
                    "task_state": rng.choice([None, "rebooting", "deleting"]),
                    "launched_at": None,
                    "vcpus": rng.choice([1, 2, None]),
                }
                for n in range(10)
            ],
        )
    return cloud


def rows_of(cloud):
    found = []
    for engine in cloud.engines.values():
        with engine.connect() as connection:
            found += [dict(row) for row in connection.execute(sa.text("SELECT * FROM instances")).mappings()]
    return found


def uuids(rows):
    return [row["uuid"] for row in rows]


class Gate:
    """Holds statements back until so many are under way at once."""

    def __init__(self, number: int) -> None:
        self._barrier = threading.Barrier(number)

    def factory(self):
        import sqlite3

        gate = self

        class Cursor(sqlite3.Cursor):
            def execute(self, text, *rest):
                if "FROM instances" in text:
                    gate._barrier.wait(30)
                return super().execute(text, *rest)

        class Connection(sqlite3.Connection):
            def cursor(self, *_):
                return super().cursor(Cursor)

        return Connection


def test_l01_every_cell_is_asked_before_any_answer_is_used(filled, routers):
    """There: one query after the other. Here: each waits until four are under way, which one by one never happens."""
    options = {"connect_args": {"factory": Gate(4).factory()}}
    cells = [Cell(cell.name, cell.database, options=options) for cell in filled.router.cells.values()]
    assert routers(cells, deadline=60.0).page(Query(limit=5)).complete


@pytest.mark.parametrize("dead_first", [True, False])
@pytest.mark.parametrize(
    "url", ["postgresql://x@127.0.0.1:1/x", "mysql://x@127.0.0.1:1/x"], ids=["postgresql", "mysql"]
)
def test_l02_one_dead_cell_empties_nothing(filled, routers, url, dead_first):
    """There: no rows and every cell reported down, or a TypeError. Here: its own error, and all rows of the others."""
    cells = list(filled.router.cells.values())
    cells.insert(0 if dead_first else len(cells), Cell("dead", url))
    page = routers(cells, deadline=30.0).page(Query(limit=50))
    assert len(page.records) == 40
    assert {name for name, each in page.cells.items() if each.state is not CellState.ANSWERED} == {"dead"}
    assert page.cells["dead"].error


def test_l03_deadlines_are_each_cells_own(filled, routers):
    """There: one clock for all, with the caller's pauses in it. Here: each its own; see test_faults' consumer too."""
    hold = threading.Event()

    class Stuck:
        def __init__(self):
            import sqlite3

            class Cursor(sqlite3.Cursor):
                def execute(self, *arguments):
                    hold.wait(60)
                    return super().execute(*arguments)

            class Connection(sqlite3.Connection):
                def cursor(self, *_):
                    return super().cursor(Cursor)

            self.factory = Connection

    cells = list(filled.router.cells.values())
    cells[0] = Cell("cell1", cells[0].database, deadline=0.3, options={"connect_args": {"factory": Stuck().factory}})
    router = routers(cells, deadline=60.0)
    page = router.page(Query(limit=50))
    hold.set()
    assert len(page.records) == 30
    assert {name: each.state for name, each in page.cells.items()} == {
        "cell1": CellState.SLOW, "cell2": CellState.ANSWERED, "cell3": CellState.ANSWERED, "cell4": CellState.ANSWERED,
    }  # fmt: skip


@pytest.mark.parametrize("column", ["task_state", "launched_at", "vcpus", "display_name"])
@pytest.mark.parametrize("descending", [True, False])
def test_l04_nulls_have_their_place(filled, column, descending):
    """There: a TypeError over cells, lost rows in one. Here: the same order on every database, whole walks."""
    query = Query(sort=[Sort(column, descending=descending)], limit=2)
    assert uuids(walk(filled.router, query)) == uuids(oracle.ordered(rows_of(filled), query.sort))


@pytest.mark.parametrize("limit", [3, 40])
def test_l05_every_key_has_its_direction(filled, limit):
    """There: fewer directions than keys let one land on the wrong key. Here: a direction is part of its key."""
    query = Query(sort=[Sort("vcpus", descending=True), "task_state", "display_name"], limit=limit)
    assert uuids(walk(filled.router, query)) == uuids(oracle.ordered(rows_of(filled), query.sort))


def test_l06_a_uuid_filter_and_paging_go_together(filled):
    """There: every page began with the filter's first match. Here: a cursor holds values, nothing is looked up."""
    chosen = sorted(uuids(rows_of(filled)))[::3]
    query = Query(where={"uuid": chosen}, limit=2)
    assert sorted(uuids(walk(filled.router, query))) == chosen


@pytest.mark.parametrize("limit", [3, 5, 7])
def test_l07_the_order_is_by_code_point_whatever_the_collation(databases, routers, limit):
    """There: ICU's order in the database, Python's in the merge; rows lost. Here: pinned in SQL."""
    urls = [databases.url("postgresql"), databases.url("mariadb"), databases.url("sqlite")]
    names = ["a", "B", "b", "A", "ä", "Z", "z", "_", "a b", "ab", "É", "é", "zz", "Zz"]
    rows = []
    for number, url in enumerate(urls):
        engine = open_engine(url)
        kind = sa.String(50)
        if number == 0:
            with engine.begin() as connection:
                connection.execute(sa.text("CREATE COLLATION english (provider = icu, locale = 'en-US')"))
            kind = sa.String(50, collation="english")
        if number == 1:
            kind = sa.String(50, collation="utf8mb4_general_ci")
        if number == 2:
            kind = sa.String(50, collation="NOCASE")
        table = sa.Table(
            "named", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), sa.Column("name", kind)
        )
        table.metadata.create_all(engine)
        content = [{"id": f"{number}-{n:02}", "name": name} for n, name in enumerate(names)]
        rows += content
        with engine.begin() as connection:
            connection.execute(table.insert(), content)
        engine.dispose()
    plain = sa.Table(
        "named", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), sa.Column("name", sa.String(50))
    )
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=RecordSource(plain, key="id"))
    for descending in (False, True):
        query = Query(sort=[Sort("name", descending=descending)], limit=limit)
        found = walk(router, query)
        assert [record.id for record in found] == [row["id"] for row in oracle.ordered(rows, query.sort, "id")]
    assert router.count(Query(where={"name": "B"})).total == 3, "equality is exact too"
    assert router.count(Query(where={"name": {"prefix": "Z"}})).total == 6


def test_l08_metadata_is_matched_as_pairs(clouds):
    """There: {a: 1} matched {a: 2, b: 1}. Here: key and value in one test."""
    cloud = clouds("sqlite", "postgresql", "mariadb")
    for number in (1, 2, 3):
        cloud.store.create(f"cell{number}", project_id="t", display_name="right", metadata={"a": "1"})
        cloud.store.create(f"cell{number}", project_id="t", display_name="wrong", metadata={"a": "2", "b": "1"})
    assert {record.display_name for record in cloud.router.page(Query(metadata={"a": "1"})).records} == {"right"}
    assert cloud.router.count(Query(metadata={"a": "2", "b": "1"})).total == 3
    assert cloud.router.count(Query(metadata={"a": "1", "b": "1"})).total == 0


def test_l09_a_cell_that_fails_on_a_later_batch_can_be_resumed(clouds, routers):
    """There: its first rows, and a hole that nobody mentions. Here: the report and the cursor say where it stopped."""
    import sqlite3

    cloud = clouds(2)
    for number in (1, 2):
        cloud.store.create_many(
            f"cell{number}",
            [{"project_id": "t", "created_at": NOW + dt.timedelta(seconds=2 * n + number)} for n in range(60)],
        )
    failing = {"after": 1}

    class Cursor(sqlite3.Cursor):
        def execute(self, text, *rest):
            if "FROM instances" in text:
                failing["after"] -= 1
                if failing["after"] < 0:
                    raise sqlite3.OperationalError("disk I/O error")
            return super().execute(text, *rest)

    class Connection(sqlite3.Connection):
        def cursor(self, *_):
            return super().cursor(Cursor)

    first, second = (cloud.router.cells[name].database for name in ("cell1", "cell2"))
    cells = [Cell("cell1", first), Cell("cell2", second, options={"connect_args": {"factory": Connection}})]
    router = routers(cells)
    stream = router.stream(Query(sort=["created_at"]))
    stream._merge._batch = 20
    found = [record.uuid for record in stream]
    assert stream.cells["cell2"].state is CellState.DOWN
    assert stream.cells["cell2"].rows == 20
    assert len(found) == 80
    failing["after"] = 10**6
    again = [record.uuid for record in router.stream(Query(sort=["created_at"]), cursor=stream.resume_cursor)]
    assert len(again) == 40
    assert sorted(found + again) == sorted(uuids(rows_of(cloud)))


def test_l10_a_later_page_costs_one_statement_per_cell(filled):
    """There: 127 statements for 16 cells. Here: one each, and a drained cell says so by a short batch."""
    page = filled.router.page(Query(limit=10))
    page = filled.router.page(Query(limit=10), cursor=page.next_cursor)
    assert {each.statements for each in page.cells.values()} == {1}
    whole = filled.router.page(Query(limit=100))
    assert {each.statements for each in whole.cells.values()} == {1}
    assert all(each.exhausted for each in whole.cells.values())
    assert whole.next_cursor is None


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_l11_l12_a_later_page_is_a_range_of_an_index(clouds, dialect):
    """There: no deleted test and no bound on the leading key, so scans that grow. Here: the plan of any page seeks."""
    cloud = clouds(dialect)
    cloud.store.create_many(
        "cell1", [{"project_id": "t", "created_at": NOW + dt.timedelta(seconds=n)} for n in range(2000)]
    )
    engine = cloud.engines["cell1"]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(
            {"sqlite": "ANALYZE", "postgresql": "VACUUM ANALYZE", "mariadb": "ANALYZE TABLE instances"}[dialect]
        )
    asked = cloud.router._prepare(Query(limit=10))
    layout = known_layout(cloud.router, "cell1")
    position = (NOW + dt.timedelta(seconds=1000), str(uuid.uuid4()))
    sent = asked.plan.page(engine.dialect, segments(asked.order, position)[0], 10, layout)
    explain = {
        "sqlite": "EXPLAIN QUERY PLAN ",
        "postgresql": "EXPLAIN (ANALYZE, COSTS OFF) ",
        "mariadb": "ANALYZE FORMAT=JSON ",
    }[dialect]
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(explain + sent.text, sent.parameters)
        plan = "\n".join(" ".join(map(str, row)) for row in rows)
    assert "ix_instances_created" in plan
    if dialect == "sqlite":
        assert "SEARCH instances USING INDEX ix_instances_created (deleted=? AND created_at<?)" in plan
        assert "TEMP B-TREE" not in plan
    elif dialect == "postgresql":
        assert "Index Cond" in plan
        assert "created_at <=" in plan
        assert "Sort" not in plan
    else:
        assert '"access_type": "range"' in plan
        assert '"filesort"' not in plan


def test_l13_one_order_over_all_sources_and_full_pages(filled):
    """There: requests before instances, each sorted by itself; duplicates dropped after the limit. Here: one merge."""
    moved = uuids(rows_of(filled))[0]
    filled.directory.begin_move(moved, "cell3")
    copy = filled.store._copy("cell1", moved)
    database = filled.router.database("cell3")
    database.run(lambda connection: filled.store._insert(connection, database, [copy]))
    query = Query(limit=4, sort=NEWEST)
    cursor, found = None, []
    while True:
        page = filled.router.page(query, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.records) == 4
    assert len(found) == len(set(uuids(found))) == 40
    assert [record.created_at for record in found] == sorted((record.created_at for record in found), reverse=True)
    assert [record.cell for record in found if record.uuid == moved] == ["cell1"]


def test_l14_each_cell_is_asked_in_its_own_dialect(clouds):
    """There: the API database's URL chose the regex operator. Here: mixed cells, and text is never a pattern."""
    cloud = clouds("sqlite", "postgresql", "mariadb")
    for number in (1, 2, 3):
        for name in ("web-1", "web_1", "WEB-1", "100%", "a\\b"):
            cloud.store.create(f"cell{number}", project_id="t", display_name=name)
    for condition, expected in (
        ({"regex": "^web.1$"}, 6),
        ({"regex": "^WEB"}, 3),
        ({"contains": "_"}, 3),
        ({"contains": "%"}, 3),
        ({"contains": "\\"}, 3),
        ({"prefix": "web_"}, 3),
        ({"prefix": "w"}, 6),
    ):
        assert cloud.router.count(Query(where={"display_name": condition})).total == expected, condition


def test_l15_filters_intersect_and_errors_are_raised(filled):
    """There: given uuids were united with another filter's. Here: all must hold; what cannot be asked is refused."""
    rows = rows_of(filled)[:4]
    chosen, only = uuids(rows), rows[0]["project_id"]
    page = filled.router.page(Query(where={"uuid": chosen, "project_id": only}))
    assert {record.uuid for record in page.records} == {row["uuid"] for row in rows if row["project_id"] == only}
    with pytest.raises(InvalidQuery):
        filled.router.page(Query(where={"project_id": "a"}, tenant="b"))
    with pytest.raises(InvalidQuery):
        filled.router.page(Query(where={"ip": "10.0.0.1"}))


def test_l16_one_meaning_of_every_filter_in_every_source(databases, routers):
    """There: the halves of a list tested differently (regex or equality, NULL or not). Here: one for all cells."""
    urls = [databases.url(kind) for kind in ("sqlite", "postgresql", "mariadb")]
    for number, url in enumerate(urls):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(
                things.insert(),
                [
                    {"id": f"{number}{n}", "name": name, "size": n, "at": None, "flag": flag, "kind": "x"}
                    for n, (name, flag) in enumerate([("", True), ("a.c", False), ("abc", None), (None, True)])
                ],
            )
        engine.dispose()
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=THINGS)
    for where, expected in (
        ({"name": ""}, 3), ({"name": "a.c"}, 3), ({"flag": True}, 6), ({"flag": None}, 3),
        ({"flag": {"ne": True}}, 6), ({"name": {"not_in": ["", "abc"]}}, 6), ({"name": {"null": False}}, 9),
    ):  # fmt: skip
        assert router.count(Query(where=where)).total == expected, where


def test_l17_every_page_says_what_became_of_each_cell(filled, routers):
    """There: down cells are only mentioned without paging, and a marker in one is an error. Here: always, and cursors
    need no row."""
    healthy = filled.router.page(Query(limit=5))
    last = healthy.records[-1]
    cells = [
        cell if cell.name != last.cell else Cell(cell.name, "sqlite:////nonexistent/gone.db")
        for cell in filled.router.cells.values()
    ]
    router = routers(cells)
    cursor, pages = healthy.next_cursor, 0
    while cursor is not None:
        page = router.page(Query(limit=5), cursor=cursor)
        assert page.cells[last.cell].state is CellState.DOWN
        assert set(page.cells) == {"cell1", "cell2", "cell3", "cell4"}
        cursor, pages = page.next_cursor, pages + 1
    assert pages >= 4
    rest = walk_from(filled.router, page.resume_cursor)
    assert {record.cell for record in rest} == {last.cell}


def walk_from(router, cursor):
    found = []
    while cursor is not None:
        page = router.page(Query(limit=5), cursor=cursor)
        found += page.records
        cursor = page.next_cursor
    return found


def test_l18_a_tenant_is_looked_for_only_where_it_may_be(filled):
    """There: all cells unless configured otherwise, and deleted instances count. Here: by default, and they do not."""
    page = filled.router.page(Query(tenant="only-2"))
    assert len(page.records) == 5
    assert {name for name, each in page.cells.items() if each.state is CellState.ANSWERED} == {"cell2"}
    for record in page.records:
        filled.store.delete(record.uuid)
    assert all(each.state is CellState.SKIPPED for each in filled.router.page(Query(tenant="only-2")).cells.values())
