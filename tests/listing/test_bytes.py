"""Bytes of bounded length, and dates: one order on every database, walked forwards and backwards."""

from __future__ import annotations

import datetime as dt
import operator
import random
import uuid

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from cloudcore.database import Uuid, open_engine
from cloudcore.errors import InvalidArgument, InvalidQuery
from cloudcore.listing import Cell, Query, RecordSource, Sort
from tests.listing.conftest import walk

KINDS = ["sqlite", "postgresql", "mariadb"]
table = sa.Table(
    "hashed",
    sa.MetaData(),
    sa.Column("id", Uuid(), primary_key=True),
    sa.Column("hash", sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")),
    sa.Column("day", sa.Date()),
)
SOURCE = RecordSource(table, key="id")


@pytest.fixture(scope="module")
def cells(databases):
    """Cells of every kind by name, and the rows that they hold."""
    rng, made = random.Random(7), {}
    odd = [bytes(16), b"\xff" * 16, b"\x7f" * 16, b"\x80" + bytes(15), b"%_'\\\"\n\r\t" + b"\xc3\x28" * 4]
    for kind in KINDS:
        held = [
            {
                "id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
                "hash": None if number % 8 == 0 else rng.choice([rng.randbytes(16), *odd]),
                "day": None if number % 7 == 0 else dt.date(2026, 1, rng.randrange(1, 9)),
            }
            for number in range(24)
        ]
        url = databases.url(kind)
        engine = open_engine(url)
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(table.insert(), held)
        engine.dispose()
        made[kind] = (Cell(kind, url), held)
    return made


@pytest.fixture(params=[*KINDS, "mixed"])
def listing(request, cells, routers):
    kinds = KINDS if request.param == "mixed" else [request.param]
    return routers([cells[kind][0] for kind in kinds], source=SOURCE), [row for kind in kinds for row in cells[kind][1]]


@pytest.mark.parametrize("column", ["hash", "day"])
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_pages_are_in_order_both_ways(listing, column, descending):
    """By cursors that hold the values, rows or keys first; NULL is the smallest value."""
    router, held = listing
    least = b"" if column == "hash" else dt.date.min
    values = [row[column] for row in held]
    expected = sorted(values, key=lambda value: (value is not None, value or least), reverse=descending)
    for fetching in ("rows", "keys"):
        query = Query(sort=[Sort(column, descending=descending)], limit=7, fetching=fetching)
        found = walk(router, query)
        assert [record[column] for record in found] == expected
        assert {record.id for record in found} == {row["id"] for row in held}
        second = router.page(query, cursor=router.page(query).next_cursor)
        assert router.page(query, cursor=second.previous_cursor).records == tuple(found[:7])


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_bytes_are_compared_byte_by_byte(listing, name):
    router, held = listing
    there = sorted({row["hash"] for row in held if row["hash"] is not None})
    for value in (there[0], there[len(there) // 2], there[-1], b"\x7f\xff"):
        expected = {
            row["id"]
            for row in held
            if (name == "ne" if row["hash"] is None else getattr(operator, name)(row["hash"], value))
        }
        assert {record.id for record in router.page(Query(where={"hash": {name: value}}, sort=())).records} == expected
    some = there[::3]
    assert router.count(Query(where={"hash": some})).total == sum(row["hash"] in some for row in held)


def test_a_cursor_with_bytes_is_checked(listing):
    """Text is none, whoever wrote it."""
    router, _ = listing
    cursor = router.page(Query(sort=["hash"], limit=1)).next_cursor
    assert router.page(Query(sort=["hash"], limit=3), cursor=cursor).records
    for wrong in ("text", bytearray(16), 5):
        with pytest.raises(InvalidQuery):
            router.page(Query(where={"hash": wrong}))


def test_bytes_of_any_length_are_passed_through_and_bytes_are_no_key():
    """MariaDB sorts by their first 1,024 alone."""
    types = {
        "any": sa.LargeBinary(),
        "long": sa.LargeBinary(2000),
        "short": sa.LargeBinary(1024),
        "bytea": postgresql.BYTEA(),
        "fixed": sa.BINARY(16),
        "varying": sa.VARBINARY(255),
        "tiny": mysql.TINYBLOB(),
        "blob": mysql.BLOB(),
    }
    made = sa.Table(
        "blobs", sa.MetaData(), sa.Column("id", Uuid()), *(sa.Column(name, type_) for name, type_ in types.items())
    )
    columns = RecordSource(made, key="id").columns
    assert {name for name in types if columns[name].sortable} == {"short", "bytea", "fixed", "varying", "tiny"}
    with pytest.raises(InvalidArgument, match="holds bytes"):
        RecordSource(made, key="fixed")
