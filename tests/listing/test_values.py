"""Values of one column have one form in Python and one order, whatever database they come from."""

from __future__ import annotations

import datetime as dt
import math
import sqlite3
import uuid
from decimal import Decimal

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import InvalidQuery, UnreadableValue
from cloudcore.listing import NOVA_INSTANCES, Cell, CellState, Query, RecordSource, Sort
from tests.listing.conftest import UTC, walk

KINDS = ["sqlite", "postgresql", "mariadb"]
EACH = pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS], ids=[*KINDS, "mixed"])
NUMBER = iter(range(10**6))


@pytest.fixture
def listing(databases, routers):
    """listing(kinds, type, values): a router over cells that share the values out, and the values by key."""
    engines = []

    def make(kinds, type_, values, **options):
        table = sa.Table(
            f"values_{next(NUMBER)}",
            sa.MetaData(),
            sa.Column("id", sa.String(36), primary_key=True),
            sa.Column("v", type_, **options),
        )
        cells = []
        for number, kind in enumerate(kinds):
            engine = open_engine(databases.url(kind))
            engines.append(engine)
            table.metadata.create_all(engine)
            rows = [{"id": f"i{n:03}", "v": value} for n, value in enumerate(values) if n % len(kinds) == number]
            with engine.begin() as connection:
                if rows:
                    connection.execute(table.insert(), rows)
            cells.append(Cell(f"c{number}", engine))
        return routers(cells, source=RecordSource(table, key="id")), {f"i{n:03}": v for n, v in enumerate(values)}

    yield make
    for engine in engines:
        engine.dispose()


COLUMNS = {
    "decimals": (sa.Numeric(10, 2), [Decimal(n) / 4 for n in range(-4, 12)] + [None]),
    "decimals of many digits": (sa.Numeric(30, 10), [Decimal(n) / 8 for n in range(9)]),
    "floats": (sa.Double(), [0.1 * n for n in range(-5, 9)] + [1e300, -1e300, None]),
    "uuids": (sa.Uuid(), [uuid.UUID(int=n * 0x1234567890ABCDEF1234567890ABCD, version=4) for n in range(12)] + [None]),
    "uuids as text": (sa.Uuid(as_uuid=False), [str(uuid.UUID(int=n << 100, version=1 + n % 5)) for n in range(12)]),
    "dates": (sa.Date(), [dt.date(2026, 1, 1) + dt.timedelta(n * 17) for n in range(12)] + [None]),
    "times": (sa.Time(), [dt.time(n, 59 - n, n) for n in range(12)] + [None]),
    "instants": (sa.DateTime(), [dt.datetime(2026, 1, 1, n % 3) for n in range(12)] + [None]),
    "enumerations": (sa.Enum("red", "blue", "green", name="colour"), ["red", "blue", "green", None] * 3),
    "booleans": (sa.Boolean(), [True, False, None] * 4),
    "large numbers": (sa.BigInteger(), [2**62, -(2**63), 2**63 - 1, 0, None]),
}


def plainly(value):
    if isinstance(value, uuid.UUID):
        return str(value)
    return value.replace(tzinfo=UTC) if isinstance(value, dt.datetime) else value


@EACH
@pytest.mark.parametrize("what", list(COLUMNS))
def test_one_form_one_order_and_filters_that_find(listing, kinds, what):
    """Walked both ways, page by page; each value is found by equality, IN and bounds, as what it was shown as."""
    type_, values = COLUMNS[what]
    router, stored = listing(kinds, type_, values)
    expected = {key: plainly(value) for key, value in stored.items()}
    for descending in (False, True):
        records = walk(router, Query(sort=[Sort("v", descending=descending)], limit=3))
        shown = {record.id: record.v for record in records}
        assert shown == expected
        assert {type(v) for v in shown.values()} == {type(v) for v in expected.values()}
        present = [record for record in records if record.v is not None]
        keys = [(record.v, record.id) for record in present]
        assert keys == sorted(sorted(keys, key=lambda k: k[1]), key=lambda k: k[0], reverse=descending)
    for value in [value for value in set(expected.values()) if value is not None][:5]:
        same = {key for key, other in expected.items() if other == value}
        above = {key for key, other in expected.items() if other is not None and other >= value}
        assert {record.id for record in router.page(Query(where={"v": value})).records} == same
        assert {record.id for record in router.page(Query(where={"v": [value]})).records} == same
        assert {record.id for record in router.page(Query(where={"v": {"ge": value}})).records} == above
        assert {record.id for record in router.page(Query(where={"v": {"ne": value}})).records} == stored.keys() - same
    assert router.count(by="v").by == {value: list(expected.values()).count(value) for value in set(expected.values())}


@pytest.mark.parametrize("kinds", [["postgresql"], ["mariadb"], KINDS], ids=["postgresql", "mariadb", "mixed"])
@pytest.mark.parametrize("type_", [sa.REAL(), sa.Float()], ids=["REAL", "Float"])
def test_single_precision_is_walked_once(listing, kinds, type_):
    """A tenth is another number there than as a double; positions carry what is stored."""
    router, stored = listing(kinds, type_, [(n // 2 + 1) / 10 for n in range(12)] + [16777217.0, 1e-30, None])
    for descending in (False, True):
        records = walk(router, Query(sort=[Sort("v", descending=descending)], limit=2))
        assert sorted(record.id for record in records) == sorted(stored)
    assert len(router.page(Query(where={"v": 0.1})).records) == 2
    assert len(router.page(Query(where={"v": [0.2, 0.3]})).records) == 4


@pytest.mark.parametrize("kinds", [["postgresql"], ["postgresql", "sqlite", "mariadb"]], ids=["one", "mixed"])
@pytest.mark.parametrize("type_", [sa.Double(), sa.Numeric()], ids=["float", "decimal"])
def test_nan_comes_after_all_numbers(listing, kinds, type_):
    if isinstance(type_, sa.Double):
        values = [1.0, 2.0, 3.0, math.inf, 4.0, 5.0, -math.inf, 7.0, 8.0, math.nan, 10.0, 11.0, math.nan]
    else:
        values = [Decimal(n) for n in range(9)] + [Decimal("NaN"), Decimal(9), Decimal(10), Decimal("NaN")]
    router, stored = listing(kinds, type_, values)
    up = [record.id for record in walk(router, Query(sort=["v"], limit=2))]
    down = [record.id for record in walk(router, Query(sort=[Sort("v", descending=True)], limit=2))]
    assert sorted(up) == sorted(down) == sorted(stored)
    assert up[-2:] == down[:2] == ["i009", "i012"]
    with pytest.raises(InvalidQuery, match="finite"):
        router.page(Query(where={"v": math.nan if isinstance(type_, sa.Double) else Decimal("NaN")}))


@EACH
def test_documents_are_read_alike_and_asked_by_expressions(listing, kinds):
    documents = [{"region": "eu", "n": 1}, [1, "two"], "text", {"region": "us"}]
    router, stored = listing(kinds, sa.JSON(), documents)
    assert {record.id: record.v for record in router.page(Query()).records} == stored
    column = router.source.table.c.v
    found = router.page(Query(where=column["region"].as_string() == "eu")).records
    assert [record.v for record in found] == [documents[0]]
    for query in (Query(where={"v": "text"}), Query(sort=["v"])):
        with pytest.raises(InvalidQuery):
            router.page(query)


FORMS = [
    "2026-01-01 00:00:00",
    "2026-01-01 00:00:01",
    "2026-01-01 00:00:01",
    "2026-01-01 00:00:01.000000",
    "2026-01-01 00:00:01.500",
    "2026-01-01 00:00:01.500001",
    "2026-01-01 00:00:02",
]


def raw(router, rows):
    """Rows put into SQLite by hand."""
    table = router.source.table.name
    with router._backends["c0"].pool.engine.begin() as connection:
        for key, value in rows:
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES (?, ?)", (key, value))


@pytest.mark.parametrize("kinds", [["sqlite"], ["sqlite", "postgresql"]], ids=["alone", "mixed"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_instants_without_a_fraction_are_compared_as_instants(listing, kinds, descending, limit):
    """As CURRENT_TIMESTAMP writes them."""
    router, _ = listing(kinds, sa.DateTime(), [])
    forms = [form for form in FORMS if "." not in form]
    raw(router, [(f"r{n}", form) for n, form in enumerate(forms)])
    records = walk(router, Query(sort=[Sort("v", descending=descending)], limit=limit))
    expected = sorted(enumerate(forms), key=lambda pair: pair[1], reverse=descending)
    assert [record.id for record in records] == [f"r{n}" for n, _ in expected]
    second = dt.datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    for condition, number in ((second, 2), ({"ge": second}, 3), ({"gt": second}, 1), ({"le": second}, 3)):
        assert len(router.page(Query(where={"v": condition})).records) == number
    assert len(router.page(Query(where={"v": [second]})).records) == 2
    assert len(router.page(Query(where={"v": {"ne": second}})).records) == 2


@pytest.mark.parametrize("descending", [False, True])
def test_instants_in_several_forms_are_listed_or_refused_by_name(listing, descending):
    router, _ = listing(["sqlite"], sa.DateTime(), [])
    raw(router, [(f"r{n}", form) for n, form in enumerate(FORMS)])
    page = router.page(Query(sort=[Sort("v", descending=descending)]))
    assert len(page.records) == len(FORMS) or "out of order" in page.cells["c0"].error


BAD = {
    "no instant": (sa.DateTime(), "yesterday"),
    "empty instant": (sa.DateTime(), ""),
    "a number for an instant": (sa.DateTime(), 1767225600),
    "an instant that does not sort as text": (sa.DateTime(), "2026-01-01T00:00:00"),
    "an instant with a zone": (sa.DateTime(), "2026-01-01 00:00:00+01:00"),
    "an instant before the year 1": (sa.DateTime(), "0001-01-01 00:00:00+05:00"),
    "an instant after the year 9999": (sa.DateTime(timezone=True), "9999-12-31 23:59:59-05:00"),
    "the zero date": (sa.DateTime(), "0000-00-00 00:00:00"),
    "text for a number": (sa.Integer(), "unlimited"),
    "a fraction for a number": (sa.Integer(), 1.5),
    "bytes for text": (sa.String(40), b"\xff\x00"),
    "text for a fraction": (sa.Double(), "much"),
    "text for a decimal": (sa.Numeric(10, 2), "dear"),
    "no uuid": (sa.Uuid(), "me"),
    "no date": (sa.Date(), "2026-02-30"),
    "no time": (sa.Time(), "25:00"),
    "text for a boolean": (sa.Boolean(), "maybe"),
}
GOOD = {
    sa.DateTime: dt.datetime(2026, 1, 1), sa.Integer: 5, sa.String: "a", sa.Double: 1.5, sa.Numeric: Decimal(1),
    sa.Uuid: uuid.UUID(int=5), sa.Date: dt.date(2026, 1, 1), sa.Time: dt.time(1), sa.Boolean: True,
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
@pytest.mark.parametrize("descending", [False, True])
def test_an_unreadable_value_costs_its_cell_alone(listing, what, descending):
    """Named with its row and column; the others' rows come, and nobody's breaker moves."""
    type_, value = BAD[what]
    good = GOOD[type(type_)]
    router, _ = listing(["sqlite", "sqlite"], type_, [good] * 6)
    raw(router, [("bad", value)])
    query = Query(sort=[Sort("v", descending=descending)], limit=20)
    page = router.page(query)
    assert {"i001", "i003", "i005"} <= {record.id for record in page.records}
    report = page.cells["c0"]
    assert (report.state, report.error_type, report.transient) == (CellState.DOWN, "UnreadableValue", False)
    assert "'bad'" in report.error
    assert "v:" in report.error
    assert page.cells["c1"].state is CellState.ANSWERED
    assert router.breaker("c0").failures == 0
    assert len(list(router.stream(query))) >= 3
    if "sort as text" in report.error:
        return  # it can be read well
    shown = {record.id: record for record in router.page(Query(sort=["id"])).records}
    with pytest.raises(UnreadableValue, match="'bad'") as raised:
        shown["bad"]["v"]
    assert (raised.value.cell, raised.value.column, raised.value.identifier) == ("c0", "v", "bad")


def test_null_where_none_may_be_costs_its_cell_alone(databases, routers):
    """A column that a rolling upgrade has tightened elsewhere."""
    table = sa.Table(
        "tight",
        sa.MetaData(),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("v", sa.Integer, nullable=False),
    )
    cells = []
    for name, values in (("new", [1, 3]), ("old", [2, None])):
        url = databases.url("sqlite")
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute("CREATE TABLE tight (id VARCHAR(36) PRIMARY KEY, v INTEGER)")
            connection.executemany("INSERT INTO tight VALUES (?, ?)", [(f"{name}{n}", v) for n, v in enumerate(values)])
        cells.append(Cell(name, url))
    router = routers(cells, source=RecordSource(table, key="id"))
    page = router.page(Query(sort=[Sort("v", descending=True)]))
    assert [record.id for record in page.records] == ["new1", "old0", "new0"]
    assert "old1" in page.cells["old"].error
    page = router.page(Query(sort=["v"]))
    assert [record.id for record in page.records] == ["new0", "new1"]


def test_mariadbs_zero_date_is_blamed_by_name(listing):
    router, _ = listing(["mariadb", "sqlite"], sa.DateTime(), [])
    engine, table = router._backends["c0"].pool.engine, router.source.table.name
    with engine.begin() as connection:
        connection.exec_driver_sql("SET SESSION sql_mode = ''")
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES ('zero', '0000-00-00 00:00:00')")
    report = router.page(Query(sort=["v"])).cells["c0"]
    assert (report.error_type, "'zero'" in report.error) == ("UnreadableValue", True)


@pytest.mark.parametrize(
    ("type_", "value"), [(sa.DateTime(), "infinity"), (sa.Date(), "-infinity"), (sa.DateTime(), "20000-01-01")]
)
def test_instants_beyond_pythons_are_blamed_by_name(listing, type_, value):
    """The driver itself cannot read them, so the query could be taken for the culprit."""
    router, _ = listing(["postgresql", "sqlite"], type_, [None, None])
    engine, table = router._backends["c0"].pool.engine, router.source.table.name
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO {table} VALUES ('endless', '{value}')")
    for query in (Query(sort=["v"]), Query(where={"id": {"ne": "x"}}), Query(where={"id": ["endless", "i001"]})):
        page = router.page(query)
        report = page.cells["c0"]
        assert "i001" in {record.id for record in page.records}
        assert (report.state, report.error_type, report.transient) == (CellState.DOWN, "UnreadableValue", False)
        assert "endless" in report.error
    assert router.breaker("c0").failures == 0
    assert router.page(Query(columns=["id"])).complete


def test_text_that_is_none_is_blamed_by_name(listing):
    router, _ = listing(["sqlite", "sqlite"], sa.String(40), ["a", "b"])
    raw(router, [("bad", "x")])
    table = router.source.table.name
    with router._backends["c0"].pool.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET v = CAST(X'ff41' AS TEXT) WHERE id = 'bad'")
    page = router.page(Query(where={"id": {"ne": "x"}}))
    assert page.cells["c0"].error_type == "UnreadableValue"
    assert [record.id for record in page.records if record.cell == "c1"] == ["i001"]


def test_a_copy_is_recognised_whatever_form_its_key_has(databases, routers):
    """PostgreSQL gives UUIDs as objects, SQLite as 32 digits."""
    table = sa.Table("keyed", sa.MetaData(), sa.Column("uuid", sa.Uuid(), primary_key=True), sa.Column("v", sa.Integer))
    one, two = uuid.UUID(int=2**100), uuid.UUID(int=2**90)
    cells = []
    for number, kind in enumerate(KINDS):
        engine = open_engine(databases.url(kind))
        table.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(table.insert(), [{"uuid": one, "v": 1}] + ([{"uuid": two, "v": 2}] if number else []))
        cells.append(Cell(f"c{number}", engine))
    router = routers(cells, source=RecordSource(table))
    assert [record.uuid for record in router.page(Query(sort=["v"])).records] == [str(one), str(two)]
    for form in (str(one), str(one).upper(), one.hex):
        assert router.get(form).v == 1
        assert len(router.page(Query(where={"uuid": form})).records) == 1
    assert len(router.page(Query(sort=["v"], fetching="keys")).records) == 2


@pytest.mark.parametrize("form", [str.upper, str.lower, lambda text: text.replace("-", "")])
def test_uuids_of_nova_are_found_in_any_form(databases, routers, form):
    identifier = "6f9619ff-8b86-4011-b42d-00c04fc964ff"
    engine = open_engine(databases.url("sqlite"))
    NOVA_INSTANCES.table.metadata.create_all(engine, tables=[NOVA_INSTANCES.table])
    with engine.begin() as connection:
        connection.execute(NOVA_INSTANCES.table.insert(), {"uuid": identifier, "deleted": 0, "vm_state": "active"})
    router = routers([Cell("a", engine)], source=NOVA_INSTANCES)
    for condition in (form(identifier), [form(identifier)], {"ne": str(uuid.UUID(int=1)), "eq": form(identifier)}):
        assert len(router.page(Query(where={"uuid": condition})).records) == 1
    assert not router.page(Query(where={"uuid": {"ne": form(identifier)}})).records
    assert len(router.page(Query(where={"uuid": {"prefix": "6F96"}})).records) == 1
    engine.dispose()


def test_the_look_at_types_is_cheap():
    """It is one pass of the interpreter's own loops over columns that hold what they should."""
    from cloudcore.listing.query.kinds import Kind
    from cloudcore.listing.query.order import Key

    values = [3, 1, 2]
    key = Key(column="v", kind=Kind.INTEGER, descending=False, nullable=False, nulls_first=True)
    assert key.read(values) is values
