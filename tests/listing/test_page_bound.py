"""Cells in files are read only so far as the page will probably reach."""

from __future__ import annotations

import random
import sqlite3

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cloudcore.database import open_engine
from cloudcore.listing import Cell, Query, Sort
from cloudcore.listing.merge.page_bound import PageBound
from tests.listing.conftest import THINGS, things, walk

CELLS, ROWS = 24, 60
QUERY = Query(where={"size": {"null": False}}, sort=[Sort("size", descending=True)], limit=400)


@given(st.lists(st.lists(st.integers(0, 50), max_size=30), min_size=1, max_size=12), st.integers(1, 40), st.booleans())
def test_a_cell_is_left_after_the_first_row_beyond_the_bound(contents, limit, descending):
    """What is taken is a prefix; beyond lies its last row, or what makes up the least number."""
    page = PageBound(limit, len(contents), 0, descending=descending)
    for content in contents:
        rows = [(value,) for value in sorted(content, reverse=descending)]
        bound = page._bound
        taken, cut = page.take(iter(rows))
        assert taken == rows[: len(taken)]
        beyond = [row for row in taken if bound is not None and (row[0] < bound if descending else row[0] > bound)]
        assert len(beyond) <= max(1, page._least) if cut else len(beyond) < page._least
        assert not beyond or len(taken) <= max(page._least, len(taken) - len(beyond) + 1)
        assert bound is not None or not cut or len(taken) == page._most
        assert cut or taken == rows


def test_a_wrong_order_is_not_taken_for_an_end():
    """A cell whose index runs the other way sends its largest rows first; more of them than one are looked at."""
    page = PageBound(60, 3, 0, descending=False)
    for _ in range(2):
        page.take(iter([(n,) for n in range(100)]))
    taken, _ = page.take(iter([(n,) for n in reversed(range(100))]))
    assert len(taken) > 10


def test_the_page_bound_lies_a_little_behind_the_end_of_the_page():
    """Even shares: cells are read to about the end, not to a margin of their own each."""
    rng = random.Random(1)
    cells = [sorted((rng.random(),) for _ in range(200)) for _ in range(80)]
    page = PageBound(1000, len(cells), 0, descending=False)
    taken = [page.take(iter(cell))[0] for cell in cells]
    end = sorted(row for cell in cells for row in cell)[999]
    assert sum(taken[-1] >= end for taken in taken[2:]) >= 70
    assert sum(map(len, taken[8:])) < 1.35 * 1000


@pytest.mark.parametrize("odd", [None, "text"])
def test_values_that_do_not_compare_are_read_to_the_end(odd):
    """SQLite holds any kind of value in a column."""
    page = PageBound(10, 5, 0, descending=False)
    for _ in range(4):
        page.take(iter([(n,) for n in range(20)]))
    assert page._bound is not None
    rows = [(0,), (odd,), (1,), (99,)]
    assert page.take(iter(rows)) == (rows, False)
    for _ in range(4):  # reckoned with the odd value
        assert page.take(iter(rows[:1])) == (rows[:1], False)
    assert page._bound is None


@pytest.fixture(scope="module")
def files(databases):
    urls, rng = [], random.Random(2)
    for number in range(CELLS):
        urls.append(databases.url("sqlite"))
        engine = open_engine(urls[-1])
        things.metadata.create_all(engine)
        content = [
            {"id": f"{number:08}-0000-4000-8000-{n:012}", "name": None, "size": rng.choice([None, *range(300)]),
             "at": None, "flag": None, "kind": "x"}
            for n in range(ROWS)
        ]  # fmt: skip
        with engine.begin() as connection:
            connection.execute(things.insert(), content)
        engine.dispose()
    return urls


@pytest.mark.parametrize("sort", [Sort("size"), Sort("size", descending=True), Sort("name"), Sort("id")], ids=str)
@pytest.mark.parametrize("limit", [7, 100, 500])
def test_walks_over_files_are_exact_and_decode_few_rows(files, routers, sort, limit):
    """NULLs first or last, ties, nothing but NULLs, cells one behind the other: whatever is guessed, none is lost."""
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(files)], source=THINGS)
    found = [record.id for record in walk(router, Query(sort=[sort], limit=limit))]
    whole = [record.id for record in router.stream(Query(sort=[sort]))]
    assert found == whole
    assert len(set(found)) == CELLS * ROWS


def test_a_page_decodes_little_more_than_it_shows(files, routers):
    """And hardly a cell is asked twice for that."""
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(files)], source=THINGS)
    page = router.page(QUERY)
    assert sum(report.fetched for report in page.cells.values()) <= 1.5 * 400
    assert sum(report.statements for report in page.cells.values()) <= 1.1 * CELLS


def test_a_file_that_was_left_early_is_not_locked(files, routers):
    """The statement has ended: whoever writes need not wait for the router's next one."""
    for url in files:
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
        connection.close()
    router = routers([Cell(f"c{n}", url) for n, url in enumerate(files)], source=THINGS)
    page = router.page(QUERY)
    assert any(not report.exhausted and report.fetched < 25 for report in page.cells.values()), "some were left early"
    for url in files:
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0.0)
        with connection:
            connection.execute("UPDATE things SET name = 'written'")
        connection.close()
