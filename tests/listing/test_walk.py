"""The walk equals the sorted union: any cells, data, order, filter and page size, on every database and mixtures."""

from __future__ import annotations

import datetime as dt
import uuid

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from cloudcore.database import open_engine
from cloudcore.listing import Cell, CellRouter, Query, Sort
from tests.listing import oracle
from tests.listing.conftest import ELSEWHERE, NOW, THINGS, things, walk

MIXTURES = {
    "sqlite": ("sqlite",) * 3,
    "postgresql": ("postgresql",) * 2,
    "mariadb": ("mariadb",) * 2,
    "mixed": ("sqlite", "postgresql", "mariadb"),
    "elsewhere": ELSEWHERE,
}

NAMES = [
    "",
    "a",
    "A",
    "aa",
    "a ",
    "a\t",
    "b",
    "B",
    "z",
    "Z",
    "ä",
    "é",
    "ß",
    "ss",
    "Ω",
    "a_b",
    "a%b",
    "a\\b",
    "\uffff",
    "😀",
]

row = st.fixed_dictionaries(
    {
        "id": st.integers(0, 2**128 - 1).map(lambda number: str(uuid.UUID(int=number))),
        "name": st.one_of(st.none(), st.sampled_from(NAMES)),
        "size": st.one_of(st.none(), st.integers(-2, 2)),
        "at": st.one_of(st.none(), st.integers(0, 3).map(lambda n: NOW + dt.timedelta(microseconds=n * 400_000))),
        "flag": st.one_of(st.none(), st.booleans()),
        "kind": st.sampled_from(["x", "y"]),
    }
)
sorts = st.lists(
    st.builds(
        Sort,
        st.sampled_from(["name", "size", "at", "flag", "id"]),
        descending=st.booleans(),
        nulls_first=st.sampled_from([None, True, False]),
    ),
    max_size=3,
    unique_by=lambda item: item.column,
)
wheres = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"size": st.one_of(st.none(), st.integers(-2, 2), st.lists(st.integers(-2, 2), max_size=3))}),
    st.fixed_dictionaries({"name": st.sampled_from(NAMES).map(lambda text: {"prefix": text})}),
    st.fixed_dictionaries({"name": st.sampled_from(NAMES).map(lambda text: {"contains": text})}),
    st.fixed_dictionaries({"name": st.sampled_from(NAMES).map(lambda text: {"ge": text, "ne": "b"})}),
    st.fixed_dictionaries({"name": st.lists(st.sampled_from(NAMES), max_size=4)}),
    st.fixed_dictionaries({"flag": st.booleans(), "kind": st.sampled_from(["x", "y"])}),
    st.fixed_dictionaries({"at": st.just({"gt": NOW, "le": NOW + dt.timedelta(seconds=1)})}),
)


@pytest.fixture(scope="module", params=MIXTURES)
def world(request, databases):
    urls = [databases.url(kind) for kind in MIXTURES[request.param]]
    engines = [open_engine(url, durable=False) for url in urls]
    for engine in engines:
        things.metadata.create_all(engine)
        with engine.begin() as connection:  # they have parts of the orders asked for
            connection.exec_driver_sql("CREATE INDEX ix_things_at ON things (at)")
            connection.exec_driver_sql("CREATE INDEX ix_things_size ON things (size, flag DESC)")
            connection.exec_driver_sql("CREATE INDEX ix_things_kind ON things (kind, flag, at)")
    with CellRouter([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=THINGS, deadline=60.0) as router:
        yield router, engines
        router.check()
    for engine in engines:
        engine.dispose()


def fill(engines, content):
    """Put these rows into these cells, and nothing else."""
    for engine, rows in zip(engines, content, strict=True):
        with engine.begin() as connection:
            connection.execute(sa.delete(things))
            if rows:
                connection.execute(things.insert(), rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_walk_is_the_sorted_union(world, data):
    """Whatever the cells hold and whatever is asked, page by page equals one sort of everything."""
    router, engines = world
    rows = data.draw(st.lists(row, max_size=24, unique_by=lambda each: each["id"]))
    content = [[] for _ in engines]
    for each in rows:
        content[data.draw(st.integers(0, len(engines) - 1))].append(each)
    fill(engines, content)
    sort, where = data.draw(sorts), data.draw(wheres)
    query = Query(
        where=where, sort=sort, limit=data.draw(st.sampled_from([1, 2, 3, 5, 7, 100, None])),
        fetching=data.draw(st.sampled_from(["rows", "keys"])),
    )  # fmt: skip

    expected = oracle.ordered([each for each in rows if oracle.matches(each, where)], sort, "id")
    assert [dict(record) for record in walk(router, query)] == expected
    assert [record["id"] for record in router.stream(query)] == [each["id"] for each in expected]
    assert router.count(query).total == len(expected)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_rows_that_stay_are_seen_once_whatever_others_do(world, data):
    """Between pages rows are inserted, deleted and changed; a row that stays as it is comes exactly once, in order."""
    router, engines = world
    rows = data.draw(st.lists(row, min_size=6, max_size=20, unique_by=lambda each: each["id"]))
    staying, others = rows[::2], rows[1::2]
    home = {each["id"]: data.draw(st.integers(0, len(engines) - 1)) for each in rows}
    fill(engines, [[each for each in rows if home[each["id"]] == number] for number in range(len(engines))])
    query = Query(sort=data.draw(sorts), limit=data.draw(st.integers(1, 4)))
    seen, cursor = [], None
    while True:
        page = router.page(query, cursor=cursor)
        seen += page.records
        cursor = page.next_cursor
        if cursor is None:
            break
        if others:
            victim = others.pop()
            with engines[home[victim["id"]]].begin() as connection:
                if data.draw(st.booleans()):
                    connection.execute(sa.delete(things).where(things.c.id == victim["id"]))
                else:
                    change = {name: value for name, value in data.draw(row).items() if name != "id"}
                    connection.execute(sa.update(things).where(things.c.id == victim["id"]).values(**change))
    kept = {each["id"] for each in staying}
    assert [r["id"] for r in seen if r["id"] in kept] == [r["id"] for r in oracle.ordered(staying, query.sort, "id")]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_only_ties_and_nulls(world, size):
    """All rows alike but for their key: the key alone orders them."""
    router, engines = world
    rows = [
        {"id": str(uuid.UUID(int=n * 7919)), "name": None, "size": 1, "at": None, "flag": None, "kind": "x"}
        for n in range(20)
    ]
    fill(engines, [rows[number :: len(engines)] for number in range(len(engines))])
    for sort in (["name"], [Sort("at", descending=True), "size"], [Sort("flag", nulls_first=False)]):
        found = walk(router, Query(sort=sort, limit=size))
        assert [record["id"] for record in found] == sorted(each["id"] for each in rows)
