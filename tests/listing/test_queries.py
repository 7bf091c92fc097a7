"""What is refused before any cell is asked; cursors, records, breakers and hedging on their own."""

from __future__ import annotations

import base64
import datetime as dt
import pickle
import sys
import threading
from decimal import Decimal

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudcore.errors import (
    AlreadyExists,
    CellNotFound,
    CellUnavailable,
    InstanceNotFound,
    InvalidArgument,
    InvalidCursor,
    InvalidQuery,
)
from cloudcore.listing import BreakerPolicy, Cell, CellState, HedgePolicy, Query, RecordSource, Sort
from cloudcore.listing.cells.breakers import Breakers, BreakerState
from cloudcore.listing.cells.hedging import Hedger
from cloudcore.listing.query.conditions import prefix_end
from cloudcore.listing.query.cursors import Cursor
from tests.listing.conftest import NOW, walk

UTC = dt.UTC


@pytest.fixture
def cloud(clouds):
    made = clouds(2)
    for number in range(8):
        made.store.create(
            f"cell{number % 2 + 1}", project_id="t", display_name=f"vm{number}", vcpus=number % 3, host=f"h{number % 2}"
        )
    return made


@pytest.mark.parametrize(
    "query",
    [
        {"where": {"colour": "red"}},
        {"where": {"vcpus": "two"}},
        {"where": {"vcpus": True}},
        {"where": {"vcpus": 2**63}},
        {"where": {"vcpus": {"prefix": "1"}}},
        {"where": {"vcpus": {"between": 1}}},
        {"where": {"vcpus": {}}},
        {"where": {"vcpus": {"in": 3}}},
        {"where": {"display_name": "a\0b"}},
        {"where": {"display_name": "\ud800"}},
        {"where": {"display_name": {"regex": "("}}},
        {"where": {"created_at": dt.datetime(2026, 1, 1)}},
        {"where": {"uuid": 7}},
        {"where": {"task_state": {"null": 1}}},
        {"where": "vcpus > 2"},
        {"where": {"host": "a"}, "host": "b"},
        {"sort": ["colour"]},
        {"columns": ["colour"]},
        {"limit": -1},
        {"limit": 1.5},
        {"changes_since": dt.datetime(2026, 1, 1)},
        {"changes_since": NOW, "changes_before": NOW - dt.timedelta(1)},
    ],
    ids=str,
)
def test_refused_before_any_query(routers, query):
    """The cell does not even exist: it was not asked."""
    router = routers([Cell("nowhere", "sqlite:////nonexistent/x.db")])
    with pytest.raises(InvalidQuery):
        router.page(Query(**query))
    assert router.breaker("nowhere").failures == 0


@pytest.mark.parametrize("query", [{"where": {"vcpus": []}}, {"limit": 0}], ids=str)
def test_nothing_can_match_so_nothing_is_asked(routers, query):
    """An empty IN, and no rows wanted."""
    router = routers([Cell("nowhere", "sqlite:////nonexistent/x.db")])
    page = router.page(Query(**query))
    assert page.records == ()
    assert page.cells["nowhere"].state is CellState.SKIPPED
    assert list(router.stream(Query(**query))) == []


def test_any_expression_over_the_table(cloud):
    """And a cursor that knows it from another."""
    table = cloud.router.source.table
    query = Query(where=(table.c.vcpus + 1).in_([2, 3]), limit=2)
    assert {record.vcpus for record in walk(cloud.router, query)} == {1, 2}
    cursor = cloud.router.page(query).next_cursor
    with pytest.raises(InvalidCursor):
        cloud.router.page(Query(where=(table.c.vcpus + 1).in_([2, 1]), limit=2), cursor=cursor)


def test_columns_and_their_key(cloud):
    """Only what was asked for, and the key."""
    record = cloud.router.page(Query(columns=["vcpus", "display_name"])).records[0]
    assert list(record) == ["uuid", "vcpus", "display_name"]
    with pytest.raises(AttributeError, match="host"):
        _ = record.host


def test_records_are_values(cloud):
    """Mapping, attributes, equality, hash, pickle, dictionaries, a frame."""
    page = cloud.router.page(Query(limit=3))
    record = page.records[0]
    assert record["uuid"] == record.uuid
    assert record.created_at.tzinfo is UTC
    assert record.locked is False
    assert pickle.loads(pickle.dumps(record)) == record
    assert hash(pickle.loads(pickle.dumps(record))) == hash(record)
    assert record == cloud.router.get(record.uuid)
    assert page.to_records()[0] == {**record, "cell": record.cell}
    pandas = pytest.importorskip("pandas")
    assert isinstance(page.to_pandas(), pandas.DataFrame)
    assert list(page.to_pandas()["uuid"]) == [each.uuid for each in page.records]


def test_markers(cloud):
    """After the record of a uuid, deleted or not; not beside a cursor."""
    everything = [record.uuid for record in walk(cloud.router, Query(limit=3))]
    cloud.store.delete(everything[2])
    assert [record.uuid for record in cloud.router.page(Query(limit=3), marker=everything[2]).records] == everything[
        3:6
    ]
    with pytest.raises(InstanceNotFound):
        cloud.router.page(Query(limit=3), marker="0" * 32)
    cursor = cloud.router.page(Query(limit=3)).next_cursor
    with pytest.raises(InvalidQuery):
        cloud.router.page(Query(limit=3), marker=everything[2], cursor=cursor)


def test_a_cursor_survives_its_row(cloud):
    """Deleted and purged: the values stay where they were."""
    query = Query(limit=3)
    page = cloud.router.page(query)
    rest = [record.uuid for record in walk(cloud.router, query)][3:]
    cloud.store.delete(page.records[-1].uuid, purge=True)
    assert [record.uuid for record in cloud.router.page(query, cursor=page.next_cursor).records] == rest[:3]


def test_cursors_refuse_what_is_not_theirs(cloud):
    """Another filter, another order, damage, another version; another limit and projection are fine."""
    query = Query(where={"vcpus": {"ge": 0}}, sort=["vcpus"], limit=2)
    cursor = cloud.router.page(query).next_cursor
    assert cursor.replace("-", "").replace("_", "").isalnum()
    for other in (Query(sort=["vcpus"]), Query(where={"vcpus": {"ge": 1}}, sort=["vcpus"]), Query(where=query.where)):
        with pytest.raises(InvalidCursor, match="another"):
            cloud.router.page(other, cursor=cursor)
    for damaged in (cursor[:-1], "B" + cursor[1:], "", "!", cursor[:20] + "AAAA" + cursor[24:]):
        with pytest.raises(InvalidCursor, match="damaged"):
            cloud.router.page(query, cursor=damaged)
    same = Query(where={"vcpus": {"ge": 0}}, sort=["vcpus"], limit=5, columns=["vcpus"])
    assert len(cloud.router.page(same, cursor=cursor).records) == 5


value = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(), st.floats(allow_nan=False),
    st.decimals(allow_nan=False), st.datetimes(min_value=dt.datetime(1, 1, 1), timezones=st.just(UTC)),
)  # fmt: skip
position = st.one_of(st.none(), st.lists(value, min_size=1, max_size=3).map(tuple))


@given(position, st.dictionaries(st.text(min_size=1, max_size=10), position, max_size=30))
def test_cursors_keep_their_values(at, lagging):
    """Whatever they hold comes back as it was, types included."""
    cursor = Cursor(digest="d", position=at, lagging=lagging)
    assert Cursor.decode(cursor.encode(), "d") == cursor


def test_a_cursor_of_another_version_says_so():
    """So that a release after this one can tell."""
    word = Cursor(digest="d", position=None, lagging={}).encode()
    raw = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))[:-6].replace(b"[1,", b"[9,")
    from cloudcore.listing.query.cursors import _checksum

    with pytest.raises(InvalidCursor, match="version 9"):
        Cursor.decode(base64.urlsafe_b64encode(raw + _checksum(raw)).rstrip(b"=").decode(), "d")


def test_cells_and_sources_are_checked(routers, cloud):
    """Names, doubles, deadlines, columns that are not there."""
    router = routers([Cell("a", "sqlite://")])
    with pytest.raises(AlreadyExists):
        router.add_cell(Cell("a", "sqlite://"))
    with pytest.raises(CellNotFound):
        router.remove_cell("b")
    for wrong in ({"name": ""}, {"name": "x" * 65}, {"deadline": 0}):
        with pytest.raises(InvalidArgument):
            Cell(**{"name": "n", "database": "sqlite://", **wrong})
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(InvalidArgument):
        RecordSource(table, key="uuid")
    with pytest.raises(InvalidArgument):
        RecordSource(table, key="id", tenant="project")
    with pytest.raises(InvalidArgument):
        RecordSource.reflect(cloud.engines["cell1"], "no_such_table", key="id")
    with pytest.raises(InvalidQuery):
        routers([Cell("a", "sqlite://")], source=RecordSource(table, key="id")).page(Query(tags="x"))


def test_reflection_reads_the_types(cloud, routers):
    """A source made of the table as it is in one cell."""
    source = RecordSource.reflect(cloud.engines["cell1"], "instances", key="uuid", tenant="project_id")
    router = routers(list(cloud.router.cells.values()), source=source)
    found = walk(router, Query(sort=[Sort("vcpus", descending=True), "display_name"], limit=3))
    assert [(record.vcpus, record.display_name) for record in found] == sorted(
        ((record.vcpus, record.display_name) for record in found), key=lambda pair: (-pair[0], pair[1])
    )


def test_scatter(cloud):
    """A function per cell; its error is its cell's, and opens no breaker."""
    answers = cloud.router.scatter(lambda connection: connection.scalar(sa.text("SELECT count(*) FROM instances")))
    assert {name: answer.value for name, answer in answers.items()} == {"cell1": 4, "cell2": 4}
    for _ in range(5):
        answers = cloud.router.scatter(lambda _: 1 / 0, cells=["cell1"])
    assert isinstance(answers["cell1"].error.__cause__, ZeroDivisionError)
    assert cloud.router.page().complete
    with pytest.raises(CellNotFound):
        cloud.router.scatter(lambda _: 1, cells=["cell9"])


def test_a_scattered_function_that_exits_is_an_answer_and_ends_no_thread(cloud, routers):
    router = routers(cloud.router.cells.values(), threads=1)
    for _ in range(3):
        answers = router.scatter(lambda _: sys.exit("no"))
        assert {str(answer.error) for answer in answers.values()} == {"SystemExit: no"}
    assert router.page(Query()).complete


def test_get_and_locate_say_when_they_cannot_know(cloud, routers):
    """Not found is only said when every cell has said so."""
    uuid = cloud.router.page(Query(where={"host": "h0"})).records[0].uuid
    cells = [Cell("cell1", "sqlite:////nonexistent/x.db"), cloud.router.cells["cell2"]]
    alone = routers(cells)
    with pytest.raises(CellUnavailable):
        alone.get(uuid)
    with pytest.raises(CellUnavailable):
        alone.locate("0" * 32)
    with_directory = routers(cells, directory=cloud.directory)
    assert with_directory.locate(uuid) == "cell1"
    with pytest.raises(CellUnavailable):
        with_directory.get(uuid)
    with pytest.raises(InvalidArgument):
        alone.get("not a uuid")
    with pytest.raises(InstanceNotFound):
        cloud.router.get("0" * 32)


def test_many_threads_share_a_router(cloud):
    """Pages, counts and streams at once, over cells of one connection each."""
    cells = [Cell(cell.name, cell.database, connections=1) for cell in cloud.router.cells.values()]
    expected = [record.uuid for record in walk(cloud.router, Query(limit=3))]
    from cloudcore.listing import CellRouter

    failures: list[object] = []
    with CellRouter(cells, directory=cloud.directory, deadline=60.0) as router:

        def work() -> None:
            for _ in range(5):
                if [record.uuid for record in walk(router, Query(limit=3))] != expected:
                    failures.append("walk")
                if router.count().total != 8 or [r.uuid for r in router.stream()] != expected:
                    failures.append("count or stream")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        router.check()
    assert failures == []


@given(st.text(max_size=4), st.text(max_size=6))
def test_the_end_of_a_prefix(prefix, text):
    """A prefix is the range from itself to its end, by code point."""
    end = prefix_end(prefix)
    inside = text >= prefix and (end is None or text < end)
    assert inside == text.startswith(prefix)


class BreakerMachine(RuleBasedStateMachine):
    """Any story of one cell: never asked while open, one probe per pause, closed by a success."""

    def __init__(self):
        super().__init__()
        self.breakers = Breakers(BreakerPolicy(threshold=2, pause=5.0, longest=20.0))
        self.now, self.failures, self.opens_at = 0.0, 0, None

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 25.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(fine=st.booleans())
    def ask(self, fine):
        admitted = self.breakers.admit("c", self.now)
        assert admitted == (self.opens_at is None or self.now >= self.opens_at)
        if not admitted:
            return
        if fine:
            self.breakers.succeed("c")
            self.failures, self.opens_at = 0, None
        else:
            self.breakers.fail("c", self.now, "x")
            self.failures += 1
            if self.failures >= 2:
                self.opens_at = self.now + min(5.0 * 2 ** (self.failures - 2), 20.0)

    @rule()
    def lose_a_probe(self):
        if self.breakers.admit("c", self.now) and self.opens_at is not None:
            assert self.breakers.view("c").state is BreakerState.HALF_OPEN
            assert not self.breakers.admit("c", self.now)
            self.opens_at = self.breakers.view("c").opens_at

    @invariant()
    def agrees(self):
        self.breakers.check()
        assert self.breakers.view("c").failures == self.failures
        probe = self.breakers.next_probe()
        assert (probe is None) == (self.opens_at is None)
        assert self.breakers.due(self.now) == ([] if self.opens_at is None or self.opens_at > self.now else ["c"])


TestBreakers = BreakerMachine.TestCase


def test_hedging_keeps_to_its_quantile_and_budget():
    """Patience follows the answers; second requests stay within their share."""
    hedger = Hedger(HedgePolicy(budget=0.05, burst=2.0, initial=1.0))
    assert hedger.patience() == 1.0
    for number in range(100):
        hedger.note_answer(0.010 if number % 20 else 0.5)
    assert hedger.patience() == 0.5
    granted = 0
    for _ in range(1000):
        hedger.note_request()
        granted += hedger.spend()
    assert granted <= 2 + 1000 * 0.05


def test_decimals_in_cursors_stay_exact():
    """No detour over floats."""
    cursor = Cursor(digest="d", position=(Decimal("1.10"),), lagging={})
    assert str(Cursor.decode(cursor.encode(), "d").position[0]) == "1.10"


def test_conditions_of_one_shape_share_their_statement_and_others_do_not(cloud):
    """A prefix with an end has two bounds, the empty prefix has one."""
    for prefix, expected in (("vm", 8), ("", 8), ("vm1", 1), ("\U0010ffff", 0)):
        page = cloud.router.page(Query(where={"display_name": {"prefix": prefix}}))
        assert page.complete
        assert len(page.records) == expected
