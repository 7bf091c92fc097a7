"""Values in forms that other writers gave them: walked exactly, each row once and none left out."""

from __future__ import annotations

from decimal import Decimal

import pytest
import sqlalchemy as sa

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
