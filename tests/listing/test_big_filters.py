"""Filters with very many values: exact on every database, few parameters, and bounded."""

from __future__ import annotations

import random
import re
import uuid

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudcore.database import Uuid, open_engine
from cloudcore.errors import InvalidQuery
from cloudcore.listing import Cell, Query, RecordSource
from cloudcore.listing.query.caches import GenerationCache
from cloudcore.listing.query.lists import LONG, MOST_LISTED, literals
from cloudcore.listing.query.prepared import PreparedQuery
from tests.listing.conftest import walk

KINDS = ("sqlite", "postgresql", "mariadb")
ODD = ["", " ", "a", "A", "a ", "ä", "a\u0308", "ß", "ss", "'", "\\", "\\'", '"', "%", "%s", "%%", "\n", "\t", "\x01",
       "\U0001f600", "\ue000", ":x", "{}", "[]", "cloudcore_list_0_", "null", "1", "01", "x" * 90]  # fmt: skip

table = sa.Table(
    "listed",
    sa.MetaData(),
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("name", sa.String(100), index=True),
    sa.Column("size", sa.BigInteger()),
    sa.Column("native", sa.Uuid(as_uuid=False)),
)
SOURCE = RecordSource(table, key="id")


def content(cell: int) -> list[dict]:
    rng = random.Random(cell)
    sizes = [None, 0, -1, 2**63 - 1, -(2**63), *range(1, 50)]
    return [
        {
            "id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "name": None if number % 9 == 0 else ODD[number % len(ODD)] if number % 2 else f"vm-{rng.randrange(90)}",
            "size": rng.choice(sizes),
            "native": None if number % 7 == 0 else str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        }
        for number in range(120)
    ]


ROWS = {kind: content(number) for number, kind in enumerate(KINDS)}
ALL = [row for rows in ROWS.values() for row in rows]


@pytest.fixture(scope="module")
def cells(databases):
    made = []
    for kind, rows in ROWS.items():
        url = databases.url(kind)
        engine = open_engine(url)
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(table.insert(), rows)
        engine.dispose()
        made.append(Cell(kind, url))
    return made


def padded(values: set, column: str) -> list:
    """With so many others that the list is a long one."""
    if column == "name":
        others = {f"none-{number}'\\" for number in range(LONG + 1)}
    elif column == "size":
        others = set(range(10**6, 10**6 + LONG + 1))
    else:
        others = {str(uuid.UUID(int=number)) for number in range(LONG + 1)}
    return [*others, *values]


@pytest.mark.parametrize("column", ["id", "name", "size", "native"])
@pytest.mark.parametrize("operator", ["in", "not_in"])
def test_long_lists_find_what_python_finds(cells, routers, column, operator):
    """On every database and over all three: text by its characters, whatever the collation, and NULL as with few."""
    router = routers(cells, source=SOURCE)
    rng = random.Random(column + operator)
    for share in (0.0, 0.3, 1.0):
        there = {row[column] for row in ALL if row[column] is not None}
        values = {value for value in there if rng.random() < share}
        query = Query(where={column: {operator: padded(values, column)}}, sort=["size", "id"], limit=50)
        expected = {row["id"] for row in ALL if (row[column] in values) is (operator == "in")}
        found = walk(router, query)
        assert [record.id for record in found] == [record.id for record in router.stream(query)]
        assert {record.id for record in found} == expected
        assert len(found) == len(expected)
        assert router.count(query).total == len(expected)


def test_a_long_list_and_a_short_one_agree(cells, routers):
    """Two of them, with other tests beside, backwards, and fetched keys first."""
    router = routers(cells, source=SOURCE)
    names, sizes = {"a", "vm-3", "vm-4", "\\", "%"}, {1, 2, 3, 4, 2**63 - 1}
    few = {"name": {"in": list(names), "ne": "a"}, "size": list(sizes)}
    many = {"name": {"in": padded(names, "name"), "ne": "a"}, "size": padded(sizes, "size")}
    for options in ({}, {"fetching": "keys"}, {"columns": ["name"]}):
        short, long = (router.page(Query(where=where, sort=["name"], limit=100, **options)) for where in (few, many))
        assert [dict(record) for record in short.records] == [dict(record) for record in long.records]
        assert short.records


def test_no_database_gets_a_parameter_for_each_value(cells, routers):
    """Nor does the interpreter write the list anew for each cell and page."""
    router = routers(cells, source=SOURCE)
    query = Query(where={"id": [str(uuid.UUID(int=number)) for number in range(20_000)]}, limit=1)
    router.page(query)
    prepared = router._prepare(query)
    assert prepared is router._prepare(query), "kept for the next page of a walk, large as it is"
    assert len(prepared.plan._packed) == len(KINDS)
    for backend in router._backends.values():
        dialect = backend.pool.engine.dialect
        (segment, *_) = prepared.plan.segments(dialect, None, None)
        sent = prepared.plan.page(dialect, segment, 1)
        assert len(sent.parameters) < 10
        assert sent.parameters == prepared.plan.page(dialect, segment, 1).parameters


def test_lists_are_refused_above_their_bounds_by_number(cells, routers):
    """Before anything is asked; at the bound they are answered."""
    router = routers(cells, source=SOURCE)
    wanted = ROWS["mariadb"][5]["id"]
    most = [wanted, *(str(uuid.UUID(int=number)) for number in range(MOST_LISTED - 1))]
    assert [record.id for record in router.page(Query(where={"id": most})).records] == [wanted]
    for where, number in (
        ({"id": [*most, ROWS["sqlite"][0]["id"]]}, MOST_LISTED + 1),
        ({"id": most, "size": list(range(LONG + 1))}, MOST_LISTED + LONG + 1),
        ({"name": ["'" * 90 + str(number) for number in range(50_000)]}, None),
    ):
        with pytest.raises(InvalidQuery) as caught:
            router.page(Query(where=where))
        assert number is None or str(number) in str(caught.value)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(ODD)


@given(st.lists(texts, min_size=1, max_size=6))
@settings(max_examples=60)
def test_a_literal_is_quoted_or_spelled_in_digits(texts):
    """Nothing that ends a literal, no escape, and nothing that a driver formats gets between quotes."""
    inside = literals(texts, lambda value: value)[1:-1]
    assert not set(inside) & set("\\%")
    for text, literal in zip(texts, inside.split(","), strict=True):
        quoted = re.fullmatch(r"'([0-9A-Za-z_.:@/ -]*)'|_utf8mb4 X'([0-9a-f]*)'", literal)
        assert quoted, literal
        plain, digits = quoted.groups()
        assert (bytes.fromhex(digits).decode() if plain is None else plain) == text


def test_a_prepared_query_of_many_values_pushes_no_other_out():
    """It is too large for the place of the others."""
    cache: GenerationCache[int, PreparedQuery] = GenerationCache(4_000_000, lambda each: each.weight)
    query = Query(where={"id": [str(uuid.UUID(int=number)) for number in range(20_000)]})
    cache[0] = PreparedQuery(SOURCE, query, GenerationCache(1000, lambda _: 1))
    assert len(cache) == 0
