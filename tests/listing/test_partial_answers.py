"""Answers that lack a cell or part of one: nothing is lost to who goes on from them, and nothing is made up."""

from __future__ import annotations

import datetime as dt

import pytest

from cloudcore.listing import Cell, CellState, Query, Sort
from tests.listing.conftest import NOW

QUERY = Query(limit=4, unknown=True)


def uuid_of(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def numbers_of(records) -> list[int]:
    return [int(record.uuid[:8]) for record in records]


def filled(clouds, cells):
    cloud = clouds(cells)
    for number in range(12):
        name, at = f"cell{number % cells + 1}", NOW + dt.timedelta(seconds=number)
        cloud.store.create(name, uuid=uuid_of(number), project_id="p", created_at=at)
    return cloud


def lose(cloud, name):
    cloud.router.remove_cell(name)
    cloud.router.add_cell(Cell(name, "sqlite:////nowhere/at/all.db"))


def test_a_page_read_backwards_is_in_order_though_a_cell_went_away(clouds):
    """What stands in for the cell's records is shown on the way there alone."""
    cloud = filled(clouds, 2)
    second = cloud.router.page(QUERY, cursor=cloud.router.page(QUERY).next_cursor)
    assert numbers_of(second.records) == [7, 6, 5, 4]
    lose(cloud, "cell2")
    first = cloud.router.page(QUERY, cursor=second.previous_cursor)
    assert numbers_of(first.records) == [10, 8]
    assert not first.complete
    following = cloud.router.page(QUERY, cursor=first.next_cursor)
    assert numbers_of(following.records) == [7, 6, 5, 4]


@pytest.mark.parametrize("columns", [None, ["display_name"], ["vm_state", "host"]])
@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_placeholders_are_walked_whatever_columns_are_shown(clouds, columns, limit):
    cloud = filled(clouds, 2)
    lose(cloud, "cell2")
    query, records, cursor = Query(limit=limit, unknown=True, columns=columns), [], None
    while True:
        page = cloud.router.page(query, cursor=cursor)
        records, cursor = [*records, *page.records], page.next_cursor
        if cursor is None:
            break
    assert numbers_of(records) == list(range(11, -1, -1))
    assert [record.unknown for record in records] == [True, False] * 6


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("taken", [1, 5])
def test_a_stream_left_before_an_unreadable_row_goes_on_where_it_was_left(clouds, cells, taken):
    cloud = filled(clouds, cells)
    with cloud.engines["cell1"].begin() as connection:
        connection.exec_driver_sql("UPDATE instances SET created_at = 'soon' WHERE uuid = ?", (uuid_of(10),))
    query = Query(sort=[Sort("created_at")])
    stream = cloud.router.stream(query)
    records = [next(stream) for _ in range(taken)]
    records += cloud.router.stream(query, cursor=stream.resume_cursor)
    assert numbers_of(records) == [number for number in range(12) if number != 10]


def test_a_cell_that_gave_keys_and_not_the_rows_says_what_kind_of_failure_it_was(clouds, monkeypatch):
    cloud = filled(clouds, 2)
    plan = cloud.router._prepare(Query(limit=4, fetching="keys")).plan
    winners = type(plan).winners

    def elsewhere(self, dialect, keys, layout=None):
        return ("SELECT * FROM nowhere", ()) if uuid_of(11) in keys else winners(self, dialect, keys, layout)

    monkeypatch.setattr(type(plan), "winners", elsewhere)
    report = cloud.router.page(Query(limit=4, fetching="keys")).cells["cell2"]
    assert (report.state, report.error_type, report.transient) == (CellState.DOWN, "SchemaMismatch", False)
