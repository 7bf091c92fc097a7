"""What one caller's values can do: nothing to the SQL around them, to the process, or to the cells of the others."""

from __future__ import annotations

import enum
import re

import pytest
import sqlalchemy as sa

from cloudcore.database import Database, open_engine
from cloudcore.errors import InvalidQuery
from cloudcore.listing import BreakerPolicy, BreakerState, Cell, Query
from cloudcore.listing.query import conditions
from tests.listing.conftest import THINGS, things

PLAIN = ["sqlite", "postgresql", "mariadb"]


class State(str, enum.Enum):  # noqa: UP042 - this kind is the test
    """As before Python 3.11: its text is another than its value."""

    ACTIVE = "active"


class Power(int, enum.Enum):
    RUNNING = 1


@pytest.fixture
def cloud(clouds, kind):
    cloud = clouds(kind)
    cloud.store.create(
        "cell1",
        project_id="p",
        display_name="a",
        hostname="h",
        power_state=1,
        tags=["active"],
        metadata={"k": "active"},
    )
    cloud.store.create("cell1", project_id="p", display_name="b", hostname="h", vm_state="error", power_state=0)
    return cloud


@pytest.mark.parametrize("kind", PLAIN)
def test_values_that_look_like_the_place_of_another_list_are_values(cloud):
    names = [f"n{number}" for number in range(1200)]
    words = [f"cloudcore_list_{number}_" for number in range(4)]
    query = Query(where={"display_name": ["a", *words, *names], "hostname": ["h", *words, *names]})
    page = cloud.router.page(query)
    assert page.complete, page.cells
    assert [record.display_name for record in page.records] == ["a"]


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(
    "query",
    [
        Query(where={"vm_state": State.ACTIVE}),
        Query(where={"vm_state": {"in": [State.ACTIVE, "paused"]}}),
        Query(where={"vm_state": {"prefix": State.ACTIVE}}),
        Query(where={"power_state": Power.RUNNING}),
        Query(where={"power_state": {"in": [Power.RUNNING, 7]}}),
        Query(tags=[State.ACTIVE]),
        Query(metadata={"k": State.ACTIVE}),
    ],
    ids=["eq", "in", "prefix", "number", "numbers", "tag", "pair"],
)
def test_members_of_enumerations_are_their_values(cloud, query):
    page = cloud.router.page(query)
    assert page.complete, page.cells
    assert [record.display_name for record in page.records] == ["a"]


@pytest.mark.parametrize("kind", PLAIN)
def test_many_tags_are_answered_or_refused_and_no_cell_is_down(cloud):
    words = [f"w{number}" for number in range(3_000)]
    page = cloud.router.page(Query(tags_any=["active", *words]))
    assert page.complete, page.cells
    assert [record.display_name for record in page.records] == ["a"]
    page = cloud.router.page(Query(not_tags_any=["active", *words]))
    assert page.complete, page.cells
    assert [record.display_name for record in page.records] == ["b"]
    most = Query(tags=words[:20], not_tags=words[:10], metadata=dict.fromkeys(words[:20], "x"))
    assert cloud.router.page(most).complete
    for query in (Query(tags=words), Query(not_tags=words), Query(metadata=dict.fromkeys(words, "x"))):
        with pytest.raises(InvalidQuery, match=r"3000 .*at most 50 "):
            cloud.router.page(query)


@pytest.mark.parametrize("text", ["\U0001f600" * 1_800_000, "\\" * 3_700_000], ids=["wide", "escaped"])
def test_the_largest_value_fits_the_servers_packets_and_a_larger_one_is_refused(databases, routers, text):
    """Too much ends a session of MariaDB's, which would count as the cell's fault. A value may be sent twice."""
    url = databases.url("mariadb")
    engine = open_engine(url)
    things.metadata.create_all(engine)
    engine.dispose()
    router = routers([Cell("c", url)], source=THINGS)
    page = router.page(Query(where={"name": text}))
    assert page.complete, page.cells
    with pytest.raises(InvalidQuery, match="bytes of SQL"):
        router.page(Query(where={"name": text + text}))
    assert router.breaker("c").failures == 0


def test_a_pattern_of_many_sets_is_left_to_the_databases(monkeypatch, routers):
    """Python takes two to four milliseconds for each: seconds for a pattern of the allowed length."""
    compiled = []

    def compile_(pattern, *arguments):
        compiled.append(pattern)
        return re.Pattern

    monkeypatch.setattr(conditions.re, "compile", compile_)
    source = routers([]).source
    for pattern in ("(?i)" + "[a-z]" * 16, "(?i)" + "[a-z]" * 700):
        conditions.conditions_of({"display_name": {"regex": pattern}}, source.columns)
    assert max(each.count("[") for each in compiled) == 16


def things_in(databases, kind):
    url = databases.url(kind)
    engine = open_engine(url)
    things.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(things.insert(), [{"id": f"{n}", "size": n, "kind": "k"} for n in range(3)])
    return url, engine


def test_an_expression_over_a_column_that_is_not_there_costs_no_other_query_its_index(databases, routers):
    """MariaDB sorts a whole table where it is not told of the index."""
    url, engine = things_in(databases, "mariadb")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX by_size ON things (size)")
    router = routers([Cell("c", url)], source=THINGS)
    router.page(Query(sort=["size"]))
    layouts = router._backends["c"].pool.layouts
    known = layouts.get(things)
    assert {index.name for index in known.indexes} == {"PRIMARY", "by_size"}
    with pytest.raises(InvalidQuery, match="nowhere"):
        router.page(Query(where=sa.literal_column("nowhere") == 1))
    assert layouts.get(things) == known
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX by_size ON things")
    assert len(router.page(Query(sort=["size"])).records) == 3, "an index that is gone is no longer named"
    engine.dispose()


@pytest.mark.parametrize("kind", PLAIN)
def test_a_probe_that_is_refused_has_found_the_cell_well(databases, routers, kind):
    """Whoever asks next need not wait for another pause because somebody else's query was wrong."""
    url, engine = things_in(databases, kind)
    engine.dispose()
    now = [1000.0]
    policy = BreakerPolicy(threshold=1, pause=5.0)
    router = routers([Cell("c", url)], source=THINGS, breaker=policy, clock=lambda: now[0])
    router._backends["c"].fail("it was away")
    assert router.page(Query()).cells["c"].error_type == "CellUnavailable"
    now[0] += 6
    with pytest.raises(InvalidQuery, match="nowhere"):
        router.page(Query(where=sa.literal_column("nowhere") == 1))
    assert router.breaker("c").state is BreakerState.CLOSED
    assert router.page(Query()).complete


@pytest.mark.parametrize("kind", PLAIN)
def test_a_column_that_changes_its_type_takes_no_cell_away(databases, routers, kind):
    """PostgreSQL refuses what a session has prepared before, again and again."""
    url, engine = things_in(databases, kind)
    router = routers([Cell("c", url), Cell("theirs", engine)], source=THINGS)
    for _ in range(8):  # psycopg prepares what is sent for the sixth time
        assert router.page(Query(limit=2)).complete
    change = {
        "sqlite": "ALTER TABLE things RENAME COLUMN size TO volume",
        "postgresql": "ALTER TABLE things ALTER COLUMN size TYPE bigint",
        "mariadb": "ALTER TABLE things MODIFY size BIGINT",
    }
    with engine.begin() as connection:
        connection.exec_driver_sql(change[kind])
    page = router.page(Query(limit=2))
    assert page.complete, page.cells
    with Database(engine) as database, database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(things)) == 3
    engine.dispose()


def test_a_transaction_over_a_changed_column_is_repeated_with_a_new_plan(databases):
    url, engine = things_in(databases, "postgresql")
    with Database(url, pool_size=1) as database:
        for _ in range(8):
            assert len(database.run(lambda connection: connection.execute(sa.select(things)).all())) == 3
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE things ALTER COLUMN size TYPE bigint")
        assert len(database.run(lambda connection: connection.execute(sa.select(things)).all())) == 3
    engine.dispose()
