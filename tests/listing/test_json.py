"""A page as JSON says what its records say, value for value, whatever the column and the database."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import math
import uuid
from decimal import Decimal

import attrs
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from cloudcore.database import open_engine
from cloudcore.errors import InvalidArgument, UnreadableValue
from cloudcore.listing import Cell, Query, RecordSource, Sort
from cloudcore.listing.json_form import json_objects, json_writer

KINDS = ["sqlite", "postgresql", "mariadb"]
AT = dt.datetime(2026, 3, 1, 12, 30, 5, 120)
TYPES = {
    "text": (sa.String(60), ['a"b\\c\n\x01', "grün 😀 %s", "", None]),
    "number": (sa.BigInteger(), [2**63 - 1, -(2**63), 0, None]),
    "flag": (sa.Boolean(), [True, False, None]),
    "fraction": (sa.Double(), [0.1, -1e300, 5.0, None]),
    "money": (sa.Numeric(30, 10), [Decimal("12.5"), Decimal(0), Decimal("-98765432109876543210.0123456789"), None]),
    "loose": (sa.Numeric(asdecimal=True), [Decimal(7), None]),
    "token": (sa.Uuid(), [uuid.UUID(int=7**40), None]),
    "token_text": (sa.Uuid(as_uuid=False), [str(uuid.UUID(int=5**40)), None]),
    "at": (sa.DateTime(), [AT, AT.replace(microsecond=0), None]),
    "zoned": (sa.DateTime(timezone=True), [AT.replace(tzinfo=dt.UTC), None]),
    "day": (sa.Date(), [dt.date(1999, 12, 31), None]),
    "hour": (sa.Time(), [dt.time(23, 59, 1), None]),
    "document": (sa.JSON(), [{"a": [1, 2.5, {"ü": None}]}, [True], "text", 3, None]),
    "digest": (sa.BINARY(4).with_variant(sa.LargeBinary(4), "postgresql", "sqlite"), [b"\xff\x00ab", None]),
    "blob": (sa.LargeBinary(), [bytes(range(256)), b"", None]),
    'odd "%d" näme': (sa.Integer(), [1, None]),
}
POSTGRESQL = {
    "address": (postgresql.INET(), [ipaddress.ip_address("::1"), None]),
    "network": (postgresql.CIDR(), [ipaddress.ip_network("10.0.0.0/8"), None]),
    "span": (postgresql.INTERVAL(), [dt.timedelta(days=2, seconds=5, microseconds=120), dt.timedelta(-1), None]),
    "list": (postgresql.ARRAY(sa.Text()), [["a", None], [], None]),
    "prices": (postgresql.ARRAY(sa.Numeric()), [[Decimal("1.50")], None]),
    "words": (postgresql.JSONB(), [{"a": {"b": ["c"]}}, None]),
}


def slowly(value):
    """What json.dumps would be given, value by value."""
    if isinstance(value, dict):
        return {name: slowly(content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [slowly(content) for content in value]
    if isinstance(value, dt.timedelta):
        return duration(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, Decimal) and value.is_nan():
        return "NaN"
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def duration(value: dt.timedelta) -> str:
    exact = Decimal(abs(value) // dt.timedelta(microseconds=1)) / 10**6
    return f"{'-' if value < dt.timedelta(0) else ''}PT{exact.normalize():f}S"


def strictly(text: bytes):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def all_kinds(databases, routers):
    """A router over cells of these kinds, each with rows that hold every value of every type that all of them have."""
    engines = []

    def make(kinds):
        types = TYPES | (POSTGRESQL if kinds == ["postgresql"] else {})
        columns = [sa.Column(name, type_, nullable=True) for name, (type_, _) in types.items()]
        table = sa.Table("many", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), *columns)
        cells = []
        for place, kind in enumerate(kinds):
            engines.append(open_engine(databases.url(kind)))
            table.create(engines[-1])
            rows = [
                {"id": f"{place}-{n}"} | {name: values[n % len(values)] for name, (_, values) in types.items()}
                for n in range(12)
            ]
            with engines[-1].begin() as connection:
                connection.execute(table.insert(), rows)
            cells.append(Cell(f"c{place}", engines[-1]))
        return routers(cells, source=RecordSource(table, key="id"))

    yield make
    for engine in engines:
        engine.dispose()


@pytest.mark.parametrize("kinds", [[kind] for kind in KINDS] + [KINDS], ids=[*KINDS, "mixed"])
def test_a_page_as_json_says_what_its_records_say(all_kinds, kinds):
    router = all_kinds(kinds)
    for query in (Query(sort=["id"]), Query(sort=[Sort("id")], limit=1), Query(limit=0), Query(where={"id": "none"})):
        page = router.page(query)
        told = strictly(page.to_json())
        assert told.pop("records") == [slowly(dict(record)) for record in page.records]
        assert told == {
            "complete": True,
            "next_cursor": page.next_cursor,
            "resume_cursor": page.resume_cursor,
            "previous_cursor": page.previous_cursor,
        }
        assert strictly(page.to_json(cells=True))["records"] == slowly(page.to_records())
    second = router.page(Query(sort=["id"], limit=5), cursor=router.page(Query(sort=["id"], limit=5)).next_cursor)
    assert strictly(second.to_json())["previous_cursor"] == second.previous_cursor is not None


def test_each_form_is_the_standard_one(all_kinds):
    (first, *_), *_ = [strictly(all_kinds(["postgresql"]).page(Query(sort=["id"])).to_json("rows", {}))["rows"]]
    assert first["at"] == first["zoned"] == "2026-03-01T12:30:05.000120+00:00"
    assert (first["day"], first["hour"]) == ("1999-12-31", "23:59:01")
    assert (first["money"], first["fraction"]) == ("12.5000000000", 0.1)
    assert (first["digest"], first["span"], first["network"]) == ("/wBhYg==", "PT172805.00012S", "10.0.0.0/8")


def test_the_members_are_the_callers(all_kinds):
    page = all_kinds(["sqlite"]).page(Query(limit=1))
    links = [{"rel": "next", "href": 'https://cloud/servers?marker="x"'}]
    told = strictly(page.to_json("servers", {"servers_links": links, "at": AT}))
    assert list(told) == ["servers", "servers_links", "at"]
    assert (told["servers_links"], told["at"]) == (links, AT.isoformat())
    assert list(strictly(page.to_json("servers", {}))) == ["servers"]
    for arguments in ({"name": "at", "members": {"at": 1}}, {"members": {"x": object()}}, {"not_finite": "nought"}):
        with pytest.raises(InvalidArgument):
            page.to_json(**arguments)


def test_records_of_several_queries_stand_side_by_side(all_kinds):
    router = all_kinds(["sqlite"])
    one, other = (router.page(Query(sort=["id"], limit=2, columns=columns)) for columns in (["text"], ["text", "day"]))
    told = strictly(attrs.evolve(one, records=one.records + other.records).to_json())["records"]
    assert told == [slowly(dict(record)) | ({} if "day" in record else {"day": None}) for record in
                    one.records + other.records]  # fmt: skip


def test_what_is_not_finite_is_as_the_caller_wants(databases, routers):
    table = sa.Table(
        "wild", sa.MetaData(), sa.Column("id", sa.String(9), primary_key=True), sa.Column("f", sa.Double),
        sa.Column("d", sa.Numeric), sa.Column("j", sa.ARRAY(sa.Double)),
    )  # fmt: skip
    engine = open_engine(databases.url("postgresql"))
    table.create(engine)
    wild = [math.nan, math.inf, -math.inf, 1.5]
    with engine.begin() as connection:
        for place, value in enumerate(wild):
            connection.execute(table.insert(), {"id": f"i{place}", "f": value, "d": Decimal(value), "j": [value]})
    page = routers([Cell("c", engine)], source=RecordSource(table, key="id")).page(Query(sort=["id"]))
    engine.dispose()
    text = strictly(page.to_json())["records"]
    assert [row["f"] for row in text] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert [row["d"] for row in text] == ["NaN", "Infinity", "-Infinity", "1.5"]
    assert [row["j"] for row in text] == [["NaN"], ["Infinity"], ["-Infinity"], [1.5]]
    null = strictly(page.to_json(not_finite="null"))["records"]
    assert [[row["f"], row["d"], row["j"]] for row in null] == [[None, None, [None]]] * 3 + [[1.5, "1.5", [1.5]]]
    with pytest.raises(InvalidArgument, match="f: NaN"):
        page.to_json(not_finite="refuse")


def test_a_value_without_a_form_is_refused_with_its_column(databases, routers):
    table = sa.Table(
        "ranged", sa.MetaData(), sa.Column("id", sa.String(9), primary_key=True),
        sa.Column("r", postgresql.INT4RANGE),
    )  # fmt: skip
    engine = open_engine(databases.url("postgresql"))
    table.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO ranged VALUES ('a', '[1,5)')")
    router = routers([Cell("c", engine)], source=RecordSource(table, key="id"))
    with pytest.raises(InvalidArgument, match=r"r: .*Range has no form in JSON") as raised:
        router.page().to_json()
    assert raised.value.field == "r"
    assert strictly(router.page(Query(columns=["id"])).to_json("rows", {})) == {"rows": [{"id": "a"}]}
    engine.dispose()


def test_an_unreadable_value_is_told_as_a_record_tells_it(all_kinds):
    router = all_kinds(["sqlite"])
    with router._backends["c0"].pool.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE many SET day = '2026-02-30' WHERE id = '0-3'")
    with pytest.raises(UnreadableValue) as raised:
        router.page(Query(sort=["id"])).to_json()
    assert (raised.value.cell, raised.value.column, raised.value.identifier) == ("c0", "day", "0-3")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.uuids() | st.decimals()
    | st.datetimes(timezones=st.just(dt.UTC)) | st.dates() | st.times() | st.timedeltas(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["1", 1, -(2**70), True, False, None, 1.5, 1e300, math.nan, (1,), b"x", uuid.UUID(int=7)]
)
def test_a_name_in_a_document_is_written_alike_whatever_stands_beside_it(name):
    """Beside JSON's own values and beside others, at the top and further in: the same name, or an error each time."""
    written = set()
    for value in (2, AT, Decimal(1), [AT]):
        for document in ({name: value}, [{name: value}], {"in": {name: value}}):
            try:
                text = json_writer("text").value(document)
            except (TypeError, ValueError):
                written.add(None)
                continue
            found = json.loads(text, object_pairs_hook=lambda pairs: pairs)
            while not isinstance(found, tuple) or found[0] == "in":
                found = found[1] if isinstance(found, tuple) else found[0]
            written.add(found[0])
    expected = json.loads(json.dumps({name: 0}, allow_nan=False)) if plain_name(name) else {None: 0}
    assert written == set(expected)


def plain_name(name) -> bool:
    return name is None or isinstance(name, str | int) or (isinstance(name, float) and math.isfinite(name))


def test_names_are_text_and_no_formats():
    columns = {"100%": ["1"], "%s %(a)d": ["2"], '"\\': ["3"]}
    assert strictly(json_objects(columns).encode()) == [{"100%": 1, "%s %(a)d": 2, '"\\': 3}]


@given(st.lists(st.tuples(VALUES, VALUES), max_size=5), st.text(), st.text())
def test_any_values_come_back_as_what_was_written(rows, name, other):
    writer = json_writer("text")
    columns = {name: [row[0] for row in rows], other: [row[1] for row in rows]}
    told = json_objects({key: writer.column(values) for key, values in columns.items()})
    expected = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
    assert strictly(told.encode()) == slowly(expected)
