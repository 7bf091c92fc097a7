"""Values in forms that other writers gave them: walked exactly, each row once and none left out."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cloudcore.database import open_engine
from cloudcore.listing import Cell, Query, RecordSource, Sort
from tests.listing.conftest import walk

KINDS = [["sqlite"], ["sqlite", "sqlite"], ["sqlite", "postgresql", "mariadb"]]
IDS = ["one", "two", "mixed"]

prices = sa.Table(
    "prices",
    sa.MetaData(),
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("price", sa.Numeric(10, 2)),
)


def cells_of(databases, kinds, table, fill):
    """Cells with the table, filled by *fill(connection, number)*."""
    cells = []
    for number, kind in enumerate(kinds):
        url = databases.url(kind)
        engine = open_engine(url)
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            fill(connection, number)
        engine.dispose()
        cells.append(Cell(f"c{number}", url))
    return cells


@pytest.mark.parametrize("kinds", KINDS, ids=IDS)
@pytest.mark.parametrize("descending", [False, True])
def test_decimals_that_sqlite_keeps_with_more_digits_than_the_column_has(databases, routers, kinds, descending):
    """It reckons in binary fractions and rounds nothing: 0.1 * 3 is larger than 0.3."""

    def fill(connection, number):
        rows = [{"id": f"{number}-{n}", "price": Decimal(n + number) / 10} for n in range(8)]
        connection.execute(prices.insert(), rows)
        connection.execute(sa.text("UPDATE prices SET price = price * 3"))

    router = routers(cells_of(databases, kinds, prices, fill), source=RecordSource(prices, key="id"))
    sort = [Sort("price", descending=descending)]
    whole = walk(router, Query(sort=sort))
    assert len({record.id for record in whole}) == len(whole) == 8 * len(kinds)
    assert [record.price for record in whole] == sorted((r.price for r in whole), reverse=descending)
    for limit in (1, 2, 3):
        assert walk(router, Query(sort=sort, limit=limit)) == whole
    for number in (0, 4):
        rest = router.page(Query(sort=sort), marker=whole[number].id).records
        assert list(rest) == whole[number + 1 :]


long = sa.Table(
    "long",
    sa.MetaData(),
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("text", sa.Text()),
    sa.Column("words", sa.String(2000)),
)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
@pytest.mark.parametrize("column", ["text", "words"])
def test_long_texts_that_are_alike_for_hundreds_of_characters(databases, routers, kind, column):
    """MariaDB sorts by the first 1,024 bytes unless it is told otherwise."""
    order = [n * 7 % 30 for n in range(30)]

    def fill(connection, _):
        rows = [
            {"id": f"{n:02}", "text": "x" * 1500 + f"{m:02}", "words": "y" * 500 + f"{m:02}"}
            for n, m in enumerate(order)
        ]
        connection.execute(long.insert(), rows)

    router = routers(cells_of(databases, [kind], long, fill), source=RecordSource(long, key="id"))
    for limit in (1, 7):
        records = walk(router, Query(sort=[column], limit=limit))
        assert [record[column][-2:] for record in records] == [f"{m:02}" for m in range(30)]


padded = sa.Table(
    "padded", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), sa.Column("code", sa.CHAR(8))
)


@pytest.mark.parametrize("descending", [False, True])
def test_text_of_fixed_length_is_the_same_on_every_database(databases, routers, descending):
    codes = ["ab", "ab", "b", "a", "ab c", None, "abc"]

    def fill(connection, number):
        connection.execute(padded.insert(), [{"id": f"{n}-{number}", "code": code} for n, code in enumerate(codes)])

    cells = cells_of(databases, ["sqlite", "postgresql", "mariadb"], padded, fill)
    router = routers(cells, source=RecordSource(padded, key="id"))
    query = Query(sort=[Sort("code", descending=descending, nulls_first=True)], limit=2)
    records = walk(router, query)
    expected = sorted((code for code in codes * 3 if code is not None), reverse=descending)
    assert [record.code for record in records] == [None] * 3 + expected
    assert len({record.id for record in records}) == len(records)
    assert len(router.page(Query(where={"code": "ab"})).records) == 6
    assert router.count(by="code").by["ab"] == 6


def test_numbers_beyond_the_signed_ones_are_walked(databases, routers):
    unsigned = sa.Table(
        "numbers",
        sa.MetaData(),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("n", sa.BigInteger().with_variant(mysql.BIGINT(unsigned=True), "mysql", "mariadb")),
    )

    def fill(connection, number):
        most = 2**64 - 1 if number == 0 else 2**63 - 9
        rows = [{"id": f"{number}-{n}", "n": value} for n, value in enumerate([most, most - 1, 5, None, 2**62])]
        connection.execute(unsigned.insert(), rows)

    cells = cells_of(databases, ["mariadb", "postgresql", "sqlite"], unsigned, fill)
    router = routers(cells, source=RecordSource(unsigned, key="id"))
    for descending in (False, True):
        sort = [Sort("n", descending=descending)]
        whole = walk(router, Query(sort=sort))
        assert len({record.id for record in whole}) == 15
        assert walk(router, Query(sort=sort, limit=1)) == whole


def test_what_is_no_number_is_counted_as_one_value(databases, routers):
    table = sa.Table(
        "measures", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), sa.Column("f", sa.Double()),
        sa.Column("d", sa.Numeric()),
    )  # fmt: skip

    def fill(connection, number):
        rows = [{"id": f"{number}-{n}", "f": float("nan"), "d": Decimal("NaN")} for n in range(2)]
        connection.execute(table.insert(), rows)

    cells = cells_of(databases, ["postgresql", "postgresql"], table, fill)
    router = routers(cells, source=RecordSource(table, key="id"))
    for column in ("f", "d"):
        assert list(router.count(by=column).by.values()) == [4]
