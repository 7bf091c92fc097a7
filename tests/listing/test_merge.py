"""The merging core alone, driven by hand: cells are lists, faults are scripted, no thread and no clock."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cloudcore.listing.merge.merging import Fetch, Merge, batch_size
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.order import Key, Order

ORDER = Order(
    (
        Key(column="n", kind=Kind.INTEGER, descending=True, nullable=True, nulls_first=False),
        Key(column="id", kind=Kind.TEXT, descending=False, nullable=False, nulls_first=True),
    )
)
INDEXES = (0, 1)


def key_of(row):
    return (row[0] is None, -(row[0] or 0), row[1])


class Cells:
    """Cells as sorted lists; each may fail at its n-th batch, and answers come in any order."""

    def __init__(self, content, failures=None):
        self.rows = {cell: sorted(rows, key=key_of) for cell, rows in content.items()}
        self.failures = dict(failures or {})
        self.asked = dict.fromkeys(content, 0)

    def answer(self, fetch: Fetch):
        self.asked[fetch.cell] += 1
        if self.failures.get(fetch.cell) == self.asked[fetch.cell]:
            return None
        after = [row for row in self.rows[fetch.cell] if fetch.after is None or key_of(row) > key_of(fetch.after)]
        return after[: fetch.count]


def drive(merge: Merge, cells: Cells, choose=lambda pending: 0, owners=None):
    """A driver that lets answers arrive in the order that *choose* says."""
    pending: list[Fetch] = []
    while True:
        pending += merge.fetches()
        if merge.emit():
            merge.check()
            continue
        if merge.disputed:
            merge.decide(owners or {})
            continue
        if merge.done or not pending:
            return
        fetch = pending.pop(choose(len(pending)))
        rows = cells.answer(fetch)
        merge.fail(fetch.cell) if rows is None else merge.feed(fetch.cell, rows)


rows_of = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 999)), max_size=25, unique_by=lambda row: row[1]
)


def named(cell, rows):
    return [(n, f"{cell}-{i:03}") for n, i in rows]


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from("abcd"), rows_of, min_size=1), st.integers(1, 12), st.data())
def test_any_answers_in_any_order_give_the_sorted_union(content, limit, data):
    """Page after page, with positions handed from one merge to the next."""
    cells = Cells({cell: named(cell, rows) for cell, rows in content.items()})
    positions, found = dict.fromkeys(content), []
    while True:
        merge = Merge(ORDER, positions, limit=limit, indexes=INDEXES)
        drive(merge, cells, lambda n: data.draw(st.integers(0, n - 1)))
        found += [entry[2] for entry in merge.taken()]
        positions = merge.positions()
        assert len(merge.taken()) <= limit
        if not merge.more:
            break
    assert found == sorted((row for rows in cells.rows.values() for row in rows), key=key_of)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from("abcd"), rows_of, min_size=2), st.integers(1, 12), st.data())
def test_a_cell_that_fails_at_any_batch_loses_nothing(content, limit, data):
    """Its rows so far are good, its position says where to go on, and the others never suffer."""
    failures = {data.draw(st.sampled_from(sorted(content))): data.draw(st.integers(1, 3))}
    cells = Cells({cell: named(cell, rows) for cell, rows in content.items()}, failures)
    positions, found = dict.fromkeys(content), []
    while True:
        merge = Merge(ORDER, positions, limit=limit, indexes=INDEXES)
        drive(merge, cells, lambda n: data.draw(st.integers(0, n - 1)))
        page = [entry[2] for entry in merge.taken()]
        assert page == sorted(page, key=key_of)
        found += page
        positions = merge.positions()
        if not merge.more and not any(run.failed for run in merge.runs.values()):
            break
    expected = [row for rows in cells.rows.values() for row in rows]
    assert sorted(found, key=key_of) == sorted(expected, key=key_of), "each row once, over recovery"


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from("abcd"), rows_of, min_size=2), st.integers(1, 12), st.data())
def test_answers_left_off_anywhere_give_the_same(content, limit, data):
    """A reader that stops after some row says so; the cell is asked again if that was too early."""
    cells = Cells({cell: named(cell, rows) for cell, rows in content.items()})
    merge = Merge(ORDER, dict.fromkeys(content), limit=limit, indexes=INDEXES)
    while not merge.done:
        for fetch in merge.fetches():
            rows = cells.answer(fetch)
            left_off = bool(rows) and data.draw(st.booleans())
            kept = rows[: data.draw(st.integers(1, len(rows)))] if left_off else rows
            assert merge.feed(fetch.cell, kept, cut=left_off)
        merge.emit()
    expected = sorted((row for rows in cells.rows.values() for row in rows), key=key_of)
    assert [entry[2] for entry in merge.taken()] == expected[:limit]


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from("abc"), rows_of, min_size=1), st.integers(1, 10))
def test_streams_give_the_same(content, batch):
    """Without a limit, in blocks, nothing kept."""
    cells = Cells({cell: named(cell, rows) for cell, rows in content.items()})
    merge = Merge(ORDER, dict.fromkeys(content), limit=None, indexes=INDEXES, batch=batch, retain=False)
    pending, found = [], []
    while not merge.done:
        pending += merge.fetches()
        found += [entry[2] for entry in merge.emit()]
        if pending:
            fetch = pending.pop()
            merge.feed(fetch.cell, cells.answer(fetch))
    assert found == sorted((row for rows in cells.rows.values() for row in rows), key=key_of)
    assert merge.taken() == []


@pytest.mark.parametrize(
    "rows",
    [
        [(3, "a-1"), (2, "a-2"), (3, "a-0")],
        [(3, "a-1"), (3, "a-1")],
        [(None, "a-1"), (3, "a-2")],
        [(3, "a-2"), (3, "a-1")],
    ],
    ids=["larger", "twice", "null-first", "tie"],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_cell_out_of_order_is_caught(rows, alone):
    """The first row that does not come after the one before it, and all behind it, are refused."""
    others = {} if alone else {"b": None}
    merge = Merge(ORDER, {"a": None, **others}, limit=10, indexes=INDEXES)
    merge.fetches()
    if not alone:
        merge.feed("b", [(1, "b-1")])
    assert merge.feed("a", rows) is False
    while merge.emit():
        pass
    good = [entry[2] for entry in merge.taken() if merge.cell_of(entry) == "a"]
    assert good == sorted(good, key=key_of)
    assert good == rows[: len(good)]
    assert len(good) < len(rows)


def test_a_cell_that_starts_before_where_it_was_told_is_caught():
    """As a cell does that ignores the position: the walk would repeat rows for ever."""
    merge = Merge(ORDER, {"a": (2, "a-5")}, limit=10, indexes=INDEXES)
    merge.fetches()
    assert merge.feed("a", [(3, "a-1"), (1, "a-2")]) is False
    assert merge.positions() == {"a": (2, "a-5")}


def test_of_two_copies_the_owner_is_shown_and_the_page_is_full():
    """One record in two cells, at two places of the order; the limit is met all the same."""
    content = {"a": [(9, "x"), (5, "a-1")], "b": [(8, "x"), (4, "b-1"), (3, "b-2")]}
    for owner, expected in (("a", [(9, "x"), (5, "a-1"), (4, "b-1")]), ("b", [(8, "x"), (5, "a-1"), (4, "b-1")])):
        known = Merge(ORDER, {"a": None, "b": None}, limit=3, indexes=INDEXES, owners={"x": owner})
        asked = Merge(ORDER, {"a": None, "b": None}, limit=3, indexes=INDEXES)
        for merge in (known, asked):
            drive(merge, Cells(content), owners={"x": owner})
            assert [entry[2] for entry in merge.taken()] == expected


def test_a_copy_met_late_replaces_what_was_given_out():
    """The second copy comes in a later batch, when the first is already on the page."""
    content = {
        "a": [(9, "x"), *[(8, f"a-{n:02}") for n in range(30)]],
        "b": [*[(9, f"b-{n:02}") for n in range(30)], (7, "x")],
    }
    merge = Merge(ORDER, {"a": None, "b": None}, limit=62, indexes=INDEXES)
    drive(merge, Cells(content), owners={"x": "b"})
    taken = [entry[2] for entry in merge.taken()]
    assert len(taken) == 61
    assert (7, "x") in taken
    assert (9, "x") not in taken


def test_first_batches_go_out_together_and_are_small():
    """Expected share plus three standard deviations: about twice the page for eighty cells."""
    merge = Merge(ORDER, {f"c{n}": None for n in range(80)}, limit=1000, indexes=INDEXES)
    fetches = merge.fetches()
    assert len(fetches) == 80
    assert sum(fetch.count for fetch in fetches) <= 2500
    assert merge.fetches() == []
    assert [batch_size(n) for n in (0, 1, 12.5, 1000)] == [3, 7, 26, 1090]


def test_a_short_batch_ends_its_cell():
    """No second statement to learn that there is nothing more."""
    cells = Cells({"a": named("a", [(1, 1)]), "b": named("b", [(2, 2)])})
    merge = Merge(ORDER, {"a": None, "b": None}, limit=50, indexes=INDEXES)
    drive(merge, cells)
    assert cells.asked == {"a": 1, "b": 1}
    assert not merge.more
