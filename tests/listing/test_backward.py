"""The way back: previous_cursor leads to the page before, in the same order."""

from __future__ import annotations

import pytest

from cloudcore.database import open_engine
from cloudcore.errors import InvalidCursor
from cloudcore.listing import Cell, Query, Sort
from tests.listing.conftest import ELSEWHERE, THINGS, things

KINDS = [["sqlite"], ["postgresql"], ["mariadb"], ["sqlite", "postgresql", "mariadb"]]
KINDS += [pytest.param(ELSEWHERE, marks=pytest.mark.slow)]
SORTS = [
    [Sort("size")],
    [Sort("size", descending=True, nulls_first=True), Sort("name")],
    [Sort("at", nulls_first=False), Sort("flag", descending=True)],
    [],
]


@pytest.fixture
def router(databases, routers, kinds):
    cells = []
    for number, kind in enumerate(kinds):
        url = databases.url(kind)
        engine = open_engine(url)
        things.metadata.create_all(engine)
        rows = [
            {"id": f"{n:02}-{number}", "name": f"n{n % 4}", "size": n % 3 or None, "flag": n % 2 == 0, "kind": "k"}
            for n in range(11)
        ]
        with engine.begin() as connection:
            connection.execute(things.insert(), rows)
        engine.dispose()
        cells.append(Cell(f"c{number}", url))
    return routers(cells, source=THINGS)


@pytest.mark.parametrize("kinds", KINDS, ids=["sqlite", "postgresql", "mariadb", "mixed", "elsewhere"])
@pytest.mark.parametrize("sort", SORTS, ids=["one", "nulls", "several", "key"])
@pytest.mark.parametrize("fetching", ["rows", "keys"])
def test_there_and_back(router, kinds, sort, fetching):
    query = Query(sort=sort, limit=4, fetching=fetching)
    there = [router.page(query)]
    assert there[0].previous_cursor is None
    while there[-1].next_cursor:
        there.append(router.page(query, cursor=there[-1].next_cursor))
    back = [there[-1]]
    while back[-1].previous_cursor:
        back.append(router.page(query, cursor=back[-1].previous_cursor))
    assert [page.records for page in reversed(back)] == [page.records for page in there]
    again = router.page(query, cursor=back[-1].next_cursor)
    assert again.records == there[1].records, "and there again"
    assert again.previous_cursor == there[1].previous_cursor


@pytest.mark.parametrize("kinds", [["sqlite", "sqlite"]])
def test_the_way_back_survives_deletions_and_is_no_stream(router, kinds):
    query = Query(sort=["size"], limit=4)
    second = router.page(query, cursor=router.page(query).next_cursor)
    with pytest.raises(InvalidCursor, match="forward"):
        router.stream(query, cursor=second.previous_cursor)
    with pytest.raises(InvalidCursor, match="another"):
        router.page(Query(sort=["name"], limit=4), cursor=second.previous_cursor)
    for name in router.cells:
        with router._backends[name].pool.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM things WHERE size IS NULL")
    before = router.page(query, cursor=second.previous_cursor)
    assert before.previous_cursor is None
    whole = [record.id for record in router.page(Query(sort=["size"])).records]
    following = router.page(query, cursor=before.next_cursor)
    assert [r.id for r in (*before.records, *following.records)] == whole[: len(before.records) + 4]
