"""Any column, any value, any filter, any order, any page size, on any mixture of databases.

A walk equals the sorted union made in Python, or the one cell that holds an unreadable value is blamed by name, or the
query is refused before it is sent. Nothing else is raised, and no query moves a breaker.
"""

from __future__ import annotations

import datetime as dt
import math
import random
import struct
import uuid
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cloudcore.database import open_engine
from cloudcore.errors import InvalidQuery
from cloudcore.listing import Cell, CellState, Query, RecordSource, Sort
from tests.listing.conftest import UTC

KINDS = ("sqlite", "postgresql", "mariadb")
EPOCH = dt.datetime(2026, 1, 1)


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


TYPES = {
    "text": (lambda: sa.String(60), ["", "a", "A", "a ", "ä", "Z", "\U0001f600", "~", "%_", "aa", "\uffff", "b" * 50]),
    "integer": (lambda: sa.BigInteger(), [0, 1, -1, 2**63 - 1, -(2**63), 7, 2**53 + 1, 2**53]),
    "float": (lambda: sa.Double(), [0.1, 0.2, 0.30000000000000004, -1e300, 1e-300, 0.0, 5.0, math.inf, math.nan]),
    "single": (lambda: sa.REAL().with_variant(mysql.FLOAT(), "mysql", "mariadb"), [0.1, 0.2, 1.5, -3.3, 16777216.0]),
    "decimal": (lambda: sa.Numeric(12, 3), [Decimal(n) / 8 for n in range(-3, 5)] + [Decimal(10**8), Decimal("0.100")]),
    "boolean": (lambda: sa.Boolean(), [True, False]),
    "instant": (
        lambda: sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
        [dt.datetime.min, dt.datetime.max, *(EPOCH + dt.timedelta(microseconds=n) for n in (0, 1, 500_000, 10**9))],
    ),
    "date": (lambda: sa.Date(), [dt.date(2026, 1, n) for n in (1, 2, 9)] + [dt.date(1000, 1, 1), dt.date.max]),
    "time": (lambda: sa.Time(), [dt.time(n, 0, n) for n in (0, 3, 23)]),
    "uuid": (lambda: sa.Uuid(), [uuid.UUID(int=n << 96 | 5, version=4) for n in (0, 1, 0xFF, 0xABCD)]),
    "binary": (
        lambda: sa.LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb"),
        [bytes(16), b"\xff" * 16, b"a" * 16, b"A" * 16, b"%_'\\\"\n\0\x80" * 2, b"\0" * 15 + b"\1"],
    ),
    "enumeration": (lambda: sa.Enum("red", "Blue", "green", name="fuzz_colour"), ["red", "Blue", "green"]),
}  # fmt: skip
ODD = {
    "text": ["\0", "\ud800", 5, b"x"],
    "integer": [2**63, "5", True, 1.0],
    "float": [math.nan, math.inf, "x", Decimal(1)],
    "single": [math.nan, "x"],
    "decimal": [Decimal("NaN"), 0.5, "1"],
    "boolean": [1, "true"],
    "instant": [EPOCH, "2026-01-01", 5],
    "date": [EPOCH, "2026-01-01"],
    "time": [dt.time(1, tzinfo=UTC), "01:00"],
    "uuid": ["no uuid", 5],
    "binary": ["text", 5, bytearray(16)],
    "enumeration": ["no colour", "\0", 5],
}
WRONG = [b"\xff", "wrong", "", "0000-00-00 00:00:00", 10**15, 1.25, "NaN", "2026-01-01T00:00:00+01:00"]
"""What SQLite may hold in a column of any type."""


def held(name, kind, value):
    """What a database of this kind gives back for a value that it was given; None where it cannot hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return value if kind == "postgresql" or (kind == "sqlite" and value == math.inf) else None
    if name == "single" and kind != "sqlite":
        return single(value)
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=UTC)
    return str(value) if isinstance(value, uuid.UUID) else value


def weight(value):
    """A value so that NaN is larger than all numbers."""
    return (1, 0) if value != value else (0, value)


def passes(value, operator, operand):
    if operator == "null":
        return (value is None) == operand
    if operator in {"ne", "not_in"}:
        return value is None or not passes(value, {"ne": "eq", "not_in": "in"}[operator], operand)
    if value is None:
        return False
    if operator == "in":
        return any(value == each for each in operand)
    if operator in {"prefix", "contains"}:
        return value.startswith(operand) if operator == "prefix" else operand in value
    mine, other = weight(value), weight(operand)
    return {"eq": mine == other, "lt": mine < other, "le": mine <= other, "gt": mine > other, "ge": mine >= other}[
        operator
    ]


class Reversed:
    def __init__(self, value):
        self.value = value

    def __lt__(self, other):
        return other.value < self.value

    def __eq__(self, other):
        return self.value == other.value


def key_of(row, sort):
    """Where a row stands: NULLs by rank, the key at last."""
    parts = []
    for each in sort:
        value = row[each.column]
        rank = (0 if each.puts_nulls_first else 2) if value is None else 1
        content = 0 if value is None else weight(value)
        parts.append((rank, Reversed(content) if each.descending and value is not None else content))
    return (*parts, row["id"])


class World:
    """Cells with one random table each, and what they hold."""

    def __init__(self, rng, urls, routers, number):
        self.rng = rng
        self.kinds = [rng.choice(KINDS) for _ in range(rng.choice([1, 1, 2, 3]))]
        self.names = {column: rng.choice(list(TYPES)) for column in ("a", "b")}
        columns = [sa.Column(column, TYPES[name][0]()) for column, name in self.names.items()]
        self.table = sa.Table(
            f"fuzz_{number}", sa.MetaData(), sa.Column("id", sa.String(36), primary_key=True), *columns
        )
        self.rows, cells, self.engines = [], [], []
        for place, kind in enumerate(self.kinds):
            engine = open_engine(urls[kind, place])
            self.engines.append(engine)
            self.table.drop(engine, checkfirst=True)
            self.table.metadata.create_all(engine)
            rows = [self._row(f"r{n:02}-{place}", kind) for n in range(rng.randrange(14))]
            with engine.begin() as connection:
                for row in rows:
                    connection.execute(self.table.insert(), {**row})
            self.rows += [
                {"id": row["id"], "cell": f"c{place}", **{c: self._held(c, kind, row[c]) for c in self.names}}
                for row in rows
            ]
            cells.append(Cell(f"c{place}", engine, deadline=60.0))
        self.bad = self._spoil() if rng.random() < 0.3 else None
        self.router = routers(cells, source=RecordSource(self.table, key="id"))

    def _row(self, key, kind):
        row = {"id": key}
        for column, name in self.names.items():
            values = [value for value in TYPES[name][1] if held(name, kind, value) is not None]
            row[column] = None if self.rng.random() < 0.2 else self.rng.choice(values)
        return row

    def _held(self, column, kind, value):
        return None if value is None else held(self.names[column], kind, value)

    def _spoil(self):
        """Put a wrong value into one row of a SQLite cell; its cell."""
        places = [place for place, kind in enumerate(self.kinds) if kind == "sqlite"]
        rows = [row for row in self.rows if row["cell"] in {f"c{place}" for place in places}]
        if not rows:
            return None
        row = self.rng.choice(rows)
        with self.engines[int(row["cell"][1:])].begin() as connection:
            text = f"UPDATE {self.table.name} SET a = ? WHERE id = ?"
            connection.exec_driver_sql(text, (self.rng.choice(WRONG), row["id"]))
        return row

    def ask(self):
        """One random query, walked, and what must come."""
        rng, column = self.rng, self.rng.choice(["a", "b"])
        name = self.names[column]
        value = rng.choice(TYPES[name][1]) if rng.random() < 0.8 else rng.choice(ODD[name])
        value = str(value) if isinstance(value, uuid.UUID) else value
        value = value.replace(tzinfo=UTC) if isinstance(value, dt.datetime) and rng.random() < 0.9 else value
        operator = rng.choice(["eq", "ne", "in", "not_in", "lt", "le", "gt", "ge", "null", "prefix", "contains", "no"])
        where = {column: {operator: [value] if operator in {"in", "not_in"} else value}}
        where = {} if operator == "no" else {column: {"null": True}} if operator == "null" else where
        sort = [
            Sort(each, descending=rng.random() < 0.5, nulls_first=rng.choice([None, True, False]))
            for each in rng.sample(["a", "b"], rng.randrange(3))
        ]
        limit = rng.choice([1, 2, 3, 7, 100, None])
        try:
            query = Query(where=where, sort=sort, limit=limit, fetching=rng.choice(["rows", "keys", "auto"]))
            shown, reports = self._walk(query)
        except InvalidQuery:
            return "refused"
        expected = [
            row for row in self.rows if all(self._passes(row, c, o, v) for c, t in where.items() for o, v in t.items())
        ]
        expected = [row["id"] for row in sorted(expected, key=lambda row: key_of(row, sort))]
        told = f"{self.names} {self.kinds} {where} {sort} {limit} bad={self.bad}: {reports}"
        if self.bad is not None:
            mine = f"-{self.bad['cell'][1:]}"
            others = [key for key in shown if not key.endswith(mine)]
            assert others == [key for key in expected if not key.endswith(mine)], told
            report = reports.get(self.bad["cell"])
            assert report is None or report.state is CellState.ANSWERED or report.transient is False, told
            return "spoilt"
        assert shown == expected, told
        assert not reports, told
        return "listed"

    def _passes(self, row, column, operator, operand):
        kind = self.kinds[int(row["cell"][1:])]
        if self.names[column] == "single" and kind != "sqlite" and operator in {"eq", "ne", "in", "not_in"}:
            operand = [single(each) for each in operand] if isinstance(operand, list) else single(operand)
        return passes(row[column], operator, operand)

    def _walk(self, query):
        """The keys of all pages, and reports of cells that did not answer one of them."""
        shown, reports, cursor = [], {}, None
        for _ in range(400):
            page = self.router.page(query, cursor=cursor)
            shown += [record.id for record in page.records]
            reports |= {name: report for name, report in page.cells.items() if report.state is CellState.DOWN}
            cursor = page.next_cursor
            if cursor is None:
                return shown, reports
        raise AssertionError(f"a walk that never ends: {query}")


@pytest.fixture(scope="module")
def urls(databases):
    return {(kind, place): databases.url(kind) for kind in KINDS for place in range(3)}


@pytest.mark.parametrize(
    "seeds",
    [range(40), pytest.param(range(40, 1000), marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
    ids=["", "long"],
)
def test_any_query_of_anything(urls, routers, seeds):
    outcomes = []
    for seed in seeds:
        rng = random.Random(seed)
        world = World(rng, urls, routers, seed)
        try:
            for _ in range(12):
                try:
                    outcomes.append(world.ask())
                except Exception as error:
                    error.add_note(f"seed {seed}: {world.names} {world.kinds} {world.bad}")
                    raise
            for place in range(len(world.kinds)):
                assert world.router.breaker(f"c{place}").failures == 0, seed
        finally:
            for engine in world.engines:
                world.table.metadata.drop_all(engine)
                engine.dispose()
    assert outcomes.count("listed") > len(outcomes) // 3
    assert outcomes.count("refused") > 0
