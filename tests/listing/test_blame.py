"""Whose fault it is: what is wrong with a query is the query's, and costs nobody else a cell."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import InvalidQuery, StatementRefused
from cloudcore.listing import CLOUDCORE_INSTANCES, BreakerState, Cell, CellState, Query, RecordSource
from cloudcore.listing.cells import regex
from tests.listing.conftest import ELSEWHERE, THINGS, things

PLAIN = ["sqlite", "postgresql", "mariadb"]
KINDS = pytest.mark.parametrize("kind", [*PLAIN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ELSEWHERE)])
table = CLOUDCORE_INSTANCES.table.c

REFUSED = {
    "lone surrogate in a tag": lambda: Query(tags=["\ud800"]),
    "NUL in a tag": lambda: Query(not_tags_any=["a", "\0"]),
    "NUL in metadata": lambda: Query(metadata={"key": "a\0b"}),
    "lone surrogate in metadata's key": lambda: Query(metadata={"\udfff": "b"}),
    "a tag that is no text": lambda: Query(tags=[5]),
    "NUL in a pattern": lambda: Query(where={"display_name": {"regex": "a\0"}}),
    "too many values": lambda: Query(where={"display_name": [f"n{n}" for n in range(130_000)]}),
    "too many values in two lists": lambda: Query(
        where={"display_name": [f"n{n}" for n in range(60_000)], "host": [f"n{n}" for n in range(60_000)]}
    ),
    "too much text": lambda: Query(where={"display_name": "x" * 20_000_000}),
    "a limit beyond all": lambda: Query(limit=2**63 - 1),
    "a number beyond 64 bits": lambda: Query(where={"vcpus": {"lt": 2**63}}),
    "unbalanced pattern": lambda: Query(where={"display_name": {"regex": "("}}),
    "unknown function": lambda: Query(where=sa.func.no_such_function(table.display_name) == "a"),
    "unknown column in an expression": lambda: Query(where=sa.column("no_such_column") == 1),
    "wrong syntax": lambda: Query(where=sa.literal_column("(((")),
}


@pytest.fixture
def cloud(clouds, kind):
    made = clouds(kind)
    made.store.create_many("cell1", [{"project_id": "p", "display_name": f"a{n}", "tags": ["t"]} for n in range(3)])
    return made


@KINDS
@pytest.mark.parametrize("what", list(REFUSED))
def test_a_refused_query_leaves_every_cell_to_the_others(cloud, kind, what):
    """However often it is asked: by page, stream and count alike."""
    router = cloud.router
    for _ in range(2):
        for ask in (router.page, lambda query: list(router.stream(query)), router.count):
            with pytest.raises(InvalidQuery):
                ask(REFUSED[what]())
    assert router.breaker("cell1").state is BreakerState.CLOSED
    assert router.breaker("cell1").failures == 0
    page = router.page(Query())
    assert page.complete
    assert len(page.records) == 3


@pytest.mark.parametrize("kind", ["postgresql"])
def test_what_only_one_kind_of_database_refuses_is_said_in_its_words(cloud):
    with pytest.raises(InvalidQuery, match=r"cell1 refuses the query: .*regular expression"):
        cloud.router.page(Query(where={"display_name": {"regex": "(?P<n>a)"}}))
    with pytest.raises(InvalidQuery, match="division by zero"):
        cloud.router.page(Query(where=(sa.literal(1) / sa.func.abs(sa.literal(0))) > 0))


@pytest.mark.parametrize("kind", PLAIN + ELSEWHERE)
def test_a_column_that_one_cell_lacks_is_that_cells_affair(databases, routers, kind):
    """Who can do without it sees the cell's rows; else the report names the column, and no breaker opens."""
    urls = [databases.url(kind) for _ in range(2)]
    for number, url in enumerate(urls):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(things.insert(), [{"id": f"{number}", "name": "n", "kind": "k"}])
            if number:
                connection.execute(sa.text("ALTER TABLE things DROP COLUMN size"))
        engine.dispose()
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=THINGS)
    page = router.page(Query(where={"name": "n"}))
    assert page.complete
    assert [(record.cell, record.name, record.size) for record in page.records] == [
        ("c0", "n", None),
        ("c1", "n", None),
    ]
    assert router.page(Query(columns=["name"], fetching="keys")).complete
    for query in (Query(columns=["size"]), Query(sort=["size"]), Query(where={"size": {"null": True}, "name": "n"})):
        for _ in range(5):
            page = router.page(query)
            assert [record.cell for record in page.records] == ["c0"]
        report = page.cells["c1"]
        assert (report.state, report.transient, report.error_type) == (CellState.DOWN, False, "SchemaMismatch")
        assert "no column size" in report.error
        assert page.cells["c0"].transient is page.cells["c0"].error_type is None
    assert router.breaker("c1").failures == 0
    counts = router.count(Query(where={"size": None}))
    assert (counts.total, counts.cells["c1"].error_type) == (1, "SchemaMismatch")
    assert router.count().total == 2


def test_a_dead_cell_is_told_from_a_refused_query_by_class(routers, tmp_path):
    router = routers([Cell("gone", f"sqlite:///{tmp_path / 'nowhere.db'}")], source=THINGS)
    for _ in range(3):
        report = router.page(Query()).cells["gone"]
        assert (report.error_type, report.transient) == ("DatabaseUnavailable", True)
    report = router.page(Query()).cells["gone"]
    assert router.breaker("gone").state is BreakerState.OPEN
    assert (report.error_type, report.transient) == ("CellUnavailable", True)


class Heart:
    """A thread that notes how long it was kept from beating."""

    def __enter__(self):
        self.longest, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()
        return self

    def _beat(self):
        last = time.monotonic()
        while not self._stop.wait(0.005):
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|a)*b", "^(a|aa)+$", "(.*a){12}c"])
@pytest.mark.parametrize("kind", ["sqlite"])
def test_no_pattern_stops_the_process(cloud, pattern):
    cloud.store.create("cell1", project_id="p", display_name="a" * 200 + "!")
    with Heart() as heart:
        page = cloud.router.page(Query(where={"display_name": {"regex": pattern}}))
    assert page.complete
    assert page.records == ()
    assert heart.longest < 5.0, "with backtracking this would be the age of the universe"


@pytest.mark.parametrize("kind", ["sqlite"])
def test_patterns_of_sqlite_cells_are_re2s(cloud, monkeypatch):
    cloud.store.create("cell1", project_id="p", display_name="größe-7")
    found = cloud.router.page(Query(where={"display_name": {"regex": r"^gr..e-\d$"}})).records
    assert [record.display_name for record in found] == ["größe-7"]
    assert len(cloud.router.page(Query(where={"display_name": {"regex": "[[:alpha:]]\\d"}})).records) == 3
    for pattern, word in (("(?=a)", "RE2"), ("x" * 5000, "4000")):
        with pytest.raises(InvalidQuery, match=word):
            cloud.router.page(Query(where={"display_name": {"regex": pattern}}))

    def missing(*_):
        raise regex.MissingExtra('re2 is not installed: pip install "cloudcore[regex]"')

    monkeypatch.setattr(regex, "require_extra", missing)
    with pytest.raises(InvalidQuery, match=r"pip install .*regex"):
        cloud.router.page(Query(where={"display_name": {"regex": "a"}}))
    assert cloud.router.page(Query()).complete


def test_rows_out_of_order_are_shown_and_move_no_breaker(databases, routers):
    """A name that the source calls pinned, in a column that ignores case."""
    engine = open_engine(databases.url("sqlite"))
    loose = sa.Table(
        "loose",
        sa.MetaData(),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(20, collation="NOCASE")),
    )
    loose.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(loose.insert(), [{"id": f"i{n}", "name": name} for n, name in enumerate("aBcD")])
    router = routers([Cell("c", engine)], source=RecordSource(loose, key="id", pinned=["name"]))
    report = router.page(Query(sort=["name"])).cells["c"]
    assert (report.state, report.transient) == (CellState.DOWN, False)
    assert router.breaker("c").failures == 0
    engine.dispose()


def test_the_class_says_whose_fault_it_is():
    assert StatementRefused("x", values=True).as_fields()["values"] is True
