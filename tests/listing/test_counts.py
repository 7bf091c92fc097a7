"""Counts and sums over cells, and answers that travel: pickled, copied, compared."""

from __future__ import annotations

import copy
import pickle
from decimal import Decimal

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import InvalidQuery
from cloudcore.listing import Cell, CellState, Query, RecordSource, Require, Sort
from tests.listing.conftest import ELSEWHERE, NOW

KINDS = [["sqlite"], ["postgresql"], ["mariadb"], ["sqlite", "postgresql", "mariadb"], ELSEWHERE]


@pytest.fixture
def cloud(clouds, kinds):
    made = clouds(*kinds)
    for number, cell in enumerate(made.router.cells):
        rows = [{"project_id": f"p{n % 2}", "vcpus": n, "memory_mb": 2**30, "host": "h"} for n in range(4)]
        made.store.create_many(cell, [*rows, {"project_id": "p1", "vm_state": f"s{number}"}])
    return made


@pytest.mark.parametrize("kinds", KINDS, ids=["sqlite", "postgresql", "mariadb", "mixed", "elsewhere"])
def test_what_a_tenant_uses_over_all_cells(cloud, kinds):
    cells = len(kinds)
    used = cloud.router.count(Query(tenant="p1"), sums=["vcpus", "memory_mb"])
    assert used.complete
    assert (used.total, dict(used.sums)) == (3 * cells, {"vcpus": 4 * cells, "memory_mb": 2**31 * cells})
    assert {type(value) for value in used.sums.values()} == {int}
    by = cloud.router.count(by="project_id", sums="vcpus")
    assert by.by == {"p0": 2 * cells, "p1": 3 * cells}
    assert by.sums_by == {"p0": {"vcpus": 2 * cells}, "p1": {"vcpus": 4 * cells}}
    assert by.sums == {"vcpus": 6 * cells}
    nobody = cloud.router.count(Query(tenant="nobody"), sums=["vcpus"])
    assert (nobody.total, dict(nobody.sums)) == (0, {"vcpus": 0})
    assert cloud.router.count(Query(where={"vcpus": []}), sums=["vcpus"]).sums == {"vcpus": 0}
    for wrong in ({"sums": ["project_id"]}, {"sums": ["colour"]}, {"by": "colour"}):
        with pytest.raises(InvalidQuery):
            cloud.router.count(**wrong)


@pytest.mark.parametrize("kinds", KINDS[:1])
def test_a_count_says_when_a_cell_is_missing(cloud, kinds, tmp_path):
    cloud.router.add_cell(Cell("away", f"sqlite:///{tmp_path / 'nowhere.db'}"))
    counts = cloud.router.count(sums=["vcpus"])
    assert not counts.complete
    assert counts.total == 5


def test_decimals_add_up_exactly_and_unreadable_values_are_blamed(databases, routers):
    table = sa.Table(
        "prices", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), sa.Column("v", sa.Numeric(10, 2))
    )
    cells = []
    for number, kind in enumerate(["sqlite", "postgresql", "mariadb"]):
        engine = open_engine(databases.url(kind))
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            rows = [{"id": f"{number}-{n}", "v": Decimal("0.10")} for n in range(3)]
            connection.execute(table.insert(), rows)
        cells.append(Cell(f"c{number}", engine))
    router = routers(cells, source=RecordSource(table, key="id"))
    counts = router.count(by="v", sums=["v"])
    assert counts.sums == {"v": Decimal("0.90")}
    assert counts.by == {Decimal("0.10"): 9}
    with router._backends["c0"].pool.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE prices SET v = 'dear' WHERE id = '0-1'")
    counts = router.count(by="v")
    assert counts.by == {Decimal("0.10"): 6}
    assert (counts.cells["c0"].state, counts.cells["c0"].error_type) == (CellState.DOWN, "UnreadableValue")


@pytest.mark.parametrize(
    "copied", [lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy], ids=["pickle", "copy"]
)
@pytest.mark.parametrize("kinds", [["sqlite", "postgresql"]])
def test_answers_and_queries_travel(cloud, kinds, copied):
    query = Query(
        where={"vcpus": {"ge": 1}, "host": ["h", "i"]}, sort=[Sort("vcpus"), "host"], limit=3, changes_before=NOW,
        tags_any={"a"}, not_tags={"b"}, metadata={}, columns=["vcpus", "host", "created_at"], require=Require.ALL,
    )  # fmt: skip
    again = copied(query)
    for name in ("where", "sort", "limit", "changes_before", "tags_any", "not_tags", "metadata", "columns", "require"):
        assert getattr(again, name) == getattr(query, name), name
    query = copied(Query(where={"vcpus": {"ge": 1}}, sort=["vcpus"], limit=4))
    page = cloud.router.page(query)
    assert len(page.records) == 4
    again = copied(page)
    assert again == page
    assert [dict(record) for record in again.records] == [dict(record) for record in page.records]
    assert again.cells["cell1"] == page.cells["cell1"]
    assert cloud.router.page(query, cursor=again.next_cursor).complete
    counts = cloud.router.count(by="host", sums=["vcpus"])
    assert copied(counts) == counts
    assert copied(cloud.router.status()).ready
