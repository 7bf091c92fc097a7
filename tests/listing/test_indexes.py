"""Which index serves an order and how far, and what becomes of rows that tie: decided without a database."""

from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given

from cloudcore.listing.query.indexes import Index, IndexColumn, Served, TableLayout, serve
from cloudcore.listing.query.order import Key, Kind, Order
from cloudcore.listing.query.ties import settle


def key(name, *, descending=False, nullable=True, nulls_first=None, kind=Kind.INTEGER):
    first = not descending if nulls_first is None else nulls_first
    return Key(column=name, kind=kind, descending=descending, nullable=nullable, nulls_first=first)


def index(name, *columns):
    return Index(name, tuple(IndexColumn(each.strip("-"), descending=each.startswith("-")) for each in columns))


NOVA = [
    index("created", "deleted", "created"), index("project", "project", "deleted"),
    index("updated", "updated", "project"),
    index("unique", "uuid"),
]  # fmt: skip


def served(keys, *, indexes=NOVA, constant=(), narrowed=(), exact=("created", "updated", "uuid", "number")):
    return serve(keys, indexes, ordered=set(exact), constant=set(constant), narrowed=set(narrowed))


def test_the_leading_key_is_served_behind_a_constant():
    """created_at, uuid among live rows: the index has the first; the second is not in it."""
    keys = [key("created", descending=True), key("uuid", nullable=False)]
    assert served(keys, constant=["deleted"]) == Served("created", 1, alone=True)
    assert served(keys) is None  # deleted or not: the index is in another order


def test_a_key_in_another_order_than_the_index_ends_what_it_serves():
    """Text under a foreign collation is in no order of ours."""
    keys = [key("updated"), key("project"), key("uuid")]
    assert served(keys).keys == 1
    assert served(keys, exact=["updated", "project", "uuid"]).keys == 2
    assert served([key("project"), key("uuid")]) is None


def test_directions_turn_together_or_not_at_all():
    """An index is read forwards or backwards."""
    indexes = [index("i", "a", "-b", "c")]
    for down in (False, True):
        keys = [key("a", descending=down), key("b", descending=not down), key("c", descending=down)]
        assert served(keys, indexes=indexes, exact="abc").keys == 3
    keys = [key("a"), key("b", descending=True), key("c", descending=True)]
    assert served(keys, indexes=indexes, exact="abc").keys == 2


def test_nulls_within_an_index_come_first():
    """A later key whose NULLs are wanted elsewhere is not served; the first key's are read apart."""
    indexes = [index("i", "a", "b")]
    assert served([key("a"), key("b", nulls_first=False)], indexes=indexes, exact="ab").keys == 1
    assert served([key("a"), key("b", nulls_first=True)], indexes=indexes, exact="ab").keys == 2
    assert served([key("a"), key("b", nullable=False, nulls_first=False)], indexes=indexes, exact="ab").keys == 2
    assert served([key("a", nulls_first=False), key("b")], indexes=indexes, exact="ab").keys == 2


def test_keys_that_are_constant_cost_nothing():
    """A tenant's rows by tenant, then time."""
    indexes = [index("own", "project", "deleted", "-created", "uuid")]
    keys = [key("project"), key("created", descending=True), key("uuid")]
    assert served(keys, indexes=indexes, constant=["project", "deleted"]) == Served("own", 3, alone=True)
    assert served([key("project"), key("other")], indexes=indexes, constant=["project"]) is None


def test_the_index_that_seeks_by_more_is_taken():
    """Both have the order; one also finds the tenant."""
    indexes = [index("any", "deleted", "created"), index("tenant", "project", "deleted", "created")]
    assert served([key("created")], indexes=indexes, constant=["deleted", "project"]).index == "tenant"
    assert served([key("created")], indexes=indexes, constant=["deleted"]).index == "any"


def test_no_index_is_insisted_on_where_another_may_find_the_rows_sooner():
    """A tenant with three rows in a cell of a million must not be looked for along the whole index of times."""
    keys = [key("created", descending=True), key("uuid")]
    assert not served(keys, constant=["deleted", "project"], narrowed=["project"]).alone
    assert served(keys, constant=["deleted", "state"], narrowed=["state"]).alone
    # NULLs of a time are found by its own index, behind the constant; the index of uuids would go through the cell
    assert not served([key("uuid")], constant=["deleted", "created"], narrowed=["created"]).alone
    assert served([key("uuid")], constant=["deleted", "launched"], narrowed=["launched"]).alone


def test_layouts_of_cells_that_are_alike_are_equal():
    """In whatever order the database tells of them."""
    one = TableLayout(["a", "b"], [index("x", "a"), index("y", "b")])
    assert one == TableLayout(["b", "a"], [index("y", "b"), index("x", "a")])
    assert hash(one) == hash(TableLayout(["b", "a"], [index("y", "b"), index("x", "a")]))
    assert one != TableLayout(["a", "b"], [index("x", "a")])
    assert one != TableLayout(["a"], [index("x", "a"), index("y", "b")])


ORDER = Order((key("a", descending=True), key("b"), key("c", nullable=False)))


@given(
    values=st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 2)))),
    wanted=st.integers(1, 12), keys=st.integers(1, 2), seed=st.integers(0, 9),
)  # fmt: skip
def test_what_is_settled_is_the_start_of_the_whole_order(values, wanted, keys, seed):
    """Whatever ties, the certain rows are the first of all, and a cut tie is told by its values."""
    rows = [(a, b, number) for number, (a, b) in enumerate(values)]
    random.Random(seed).shuffle(rows)
    whole = sorted(rows, key=ORDER.sort_key)
    # As a database sends them: in the order of the leading keys, ties as it pleases, one more than wanted.
    sent = sorted(rows, key=lambda row: ORDER.sort_key((*row[:keys], *[0] * (3 - keys))))[: wanted + 1]
    settled = settle(list(sent), wanted, ORDER, (0, 1, 2), keys)
    assert settled.rows == whole[: len(settled.rows)]
    assert len(settled.rows) <= wanted
    if settled.cut is None:
        assert settled.rows == whole[:wanted]
    else:
        tie = [row for row in whole if row[:keys] == settled.cut[:keys]]
        assert settled.rows + tie[: wanted - len(settled.rows)] == whole[:wanted]
