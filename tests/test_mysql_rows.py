"""Rows read past PyMySQL's cursors: the same values, the same errors, and never an answer to another's question."""

from __future__ import annotations

import io

import hypothesis.strategies as st
import pymysql
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from pymysql.connections import Connection

from cloudcore.database import open_engine
from cloudcore.database.mysql_rows import RowReader, conversions, row_reader
from tests import services

TYPES = """
n BIGINT, u BIGINT UNSIGNED, t TINYINT(1), y YEAR, b BIT(9), f FLOAT, d DOUBLE, m DECIMAL(20, 4), s VARCHAR(300),
w VARCHAR(40) CHARACTER SET latin1, c CHAR(4), l LONGTEXT, x BLOB, e ENUM('one', 'two'), a SET('p', 'q'),
i DATETIME, i3 DATETIME(3), i6 DATETIME(6), z TIMESTAMP NULL, o DATE, h TIME, h6 TIME(6), j JSON
"""
ROWS = [
    (1, 2**64 - 1, 1, 2026, b"\x01\x02", 1.5, 1e300, "12.3400", "é" * 120, "é", "ab", "x" * 70_000, b"\xff\0", "one",
     "p,q", "2026-02-03 04:05:06", "2026-02-03 04:05:06.7", "2026-02-03 04:05:06.000009", "2026-02-03 04:05:06",
     "2026-02-03", "-838:59:59", "01:02:03.000400", '{"a": 1}'),
    (-(2**63), 0, 0, 0, b"\0\0", -0.0, 0.0, "-0.0001", "", "", "", "", b"", "two", "",
     "0001-01-01 00:00:00", "9999-12-31 23:59:59.999", "1000-01-01 00:00:00", "1970-01-02 00:00:00", "0001-01-01",
     "00:00:00", "00:00:00", "[]"),
    (None,) * 23,
    (7, 8, 1, 1901, b"\0\1", 3.25, -1.0, "5", "z" * 255, "ÿ", "z", "y" * 252, b"z" * 251, None, None,
     "0000-00-00 00:00:00", "0000-00-00 00:00:00", None, None, "0000-00-00", None, None, None),
]  # fmt: skip


@pytest.fixture(scope="module")
def connection():
    server = services.mariadb()
    url = server.create_database()
    engine = open_engine(url)
    with engine.connect() as opened:
        raw = opened.connection.driver_connection
        with raw.cursor() as cursor:
            cursor.execute("SET sql_mode = ''")
            cursor.execute(f"CREATE TABLE every (id INT AUTO_INCREMENT PRIMARY KEY, {TYPES})")
            marks = ", ".join(["%s"] * 23)
            cursor.executemany(f"INSERT INTO every VALUES (NULL, {marks})", ROWS)
        raw.commit()
        yield raw
    engine.dispose()
    server.drop_database(url)


def by_cursor(connection, text: str) -> list:
    with connection.cursor() as cursor:
        cursor.execute(text)
        return list(cursor.fetchall())


@pytest.mark.parametrize("order", ["id", "id DESC"])
def test_values_of_every_type_are_those_of_the_cursor(connection, order):
    text = f"SELECT * FROM every ORDER BY {order}"
    reader = row_reader(connection)
    found, wanted = reader.read(text), by_cursor(connection, text)
    assert found == wanted == reader.read(text)
    assert [list(map(type, row)) for row in found] == [list(map(type, row)) for row in wanted]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.lists(
            st.one_of(
                st.none(), st.text(max_size=300), st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1),
                st.datetimes(), st.decimals(-(10**9), 10**9, places=3), st.dates(),
            ),
            min_size=1, max_size=8,
        ),
        max_size=5,
    )
)  # fmt: skip
def test_any_values(connection, rows):
    width = max(map(len, rows), default=1)
    rows = [[*row, *[None] * (width - len(row))] for row in rows]
    selects = [
        "SELECT " + ", ".join(connection.escape(value) for value in (number, *row)) for number, row in enumerate(rows)
    ]
    text = " UNION ALL ".join(selects) or "SELECT 1 FROM DUAL WHERE FALSE"
    assert row_reader(connection).read(text) == by_cursor(connection, text)


def test_a_refusal_says_the_same_and_the_connection_lives_on(connection):
    """Before any row, and after some were sent."""
    reader = row_reader(connection)
    for text in (
        "SELECT nothing FROM nowhere",
        "SELECT IF(seq < 5000, REPEAT('x', 100), (SELECT 1 UNION SELECT 2)) FROM seq_1_to_6000",
    ):
        with pytest.raises(pymysql.Error) as mine:
            reader.read(text)
        with pytest.raises(type(mine.value)) as theirs:
            by_cursor(connection, text)
        assert mine.value.args == theirs.value.args
        assert reader.read("SELECT 5") == [(5,)]


def test_a_value_that_cannot_be_read_leaves_nothing_behind(connection):
    """The answer has been taken whole: the next statement gets its own."""
    reader = row_reader(connection)
    with pytest.raises(pymysql.Error):
        reader.read("SELECT IF(seq < 3, 'fine', (SELECT 1 UNION SELECT 2)) FROM seq_1_to_9")
    connection.decoders[pymysql.constants.FIELD_TYPE.LONGLONG] = lambda value: {"1": 1}[value]
    try:
        with pytest.raises(KeyError):
            row_reader(connection).read("SELECT seq FROM seq_1_to_2000")
    finally:
        connection.decoders[pymysql.constants.FIELD_TYPE.LONGLONG] = int
    assert reader.read("SELECT 5") == [(5,)]


def test_a_statement_without_rows_is_refused(connection):
    with open_engine(services.mariadb().admin_url).connect() as opened:
        raw = opened.connection.driver_connection
        with pytest.raises(pymysql.Error, match="no rows"):
            row_reader(raw).read("SET @a = 1")
        opened.invalidate()


# ----------------------------------------------------------------------------------------------------- from a recording


class Recording(Connection):
    """A connection that gets an answer from a file, so many bytes at a time."""

    def __init__(self, answer: bytes, piece: int = 1 << 20) -> None:
        super().__init__(defer_connect=True)
        self._sock, self.closed = self, False
        self._read_timeout = self._write_timeout = self._current_timeout = None
        self._rfile = io.BufferedReader(Pieces(answer, piece))

    def _execute_command(self, command, sql):
        self._next_seq_id = 1

    def _force_close(self):
        self.closed = True

    def close(self):
        pass


class Pieces(io.RawIOBase):
    def __init__(self, content: bytes, size: int) -> None:
        self._content, self._size = io.BytesIO(content), size

    def readable(self) -> bool:
        return True

    def readinto(self, into) -> int:
        piece = self._content.read(min(len(into), self._size))
        into[: len(piece)] = piece
        return len(piece)


def packets(*contents: bytes) -> bytes:
    sent, number = b"", 1
    for content in contents:
        for start in range(0, len(content) + 1, 0xFFFFFF):
            part = content[start : start + 0xFFFFFF]
            sent += len(part).to_bytes(3, "little") + bytes([number % 256]) + part
            number += 1
    return sent


END = b"\xfe\0\0\2\0"
TEXT = b"\3def\0\0\0\1s\0\x0c\x2d\0\xff\xff\xff\xff\xfd\0\0\0\0\0"


def answer(*rows: bytes) -> bytes:
    return packets(b"\1", TEXT, END, *rows, END)


def test_a_row_longer_than_a_packet():
    """16 MiB less a byte is what one packet holds: exactly that, and more."""
    for length in (0xFFFFFF - 9, 0xFFFFFF, 0xFFFFFF + 5):
        row = b"\xfe" + length.to_bytes(8, "little") + b"x" * length
        assert RowReader(Recording(answer(row, b"\1y"))).read("") == [("x" * length,), ("y",)]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64])
def test_an_answer_may_come_in_any_pieces(piece):
    rows = [b"\1%d" % (n % 10) for n in range(600)]  # the numbers of packets start again
    found = RowReader(Recording(answer(*rows), piece)).read("")
    assert found == [(str(n % 10),) for n in range(600)]


def test_an_answer_cut_anywhere_is_a_lost_connection():
    """Never fewer rows than there are, and never used again."""
    whole = answer(b"\3abc", b"\xfb", b"\0")
    assert RowReader(Recording(whole)).read("") == [("abc",), (None,), ("",)]
    for length in range(5, len(whole)):
        cut = Recording(whole[:length])
        with pytest.raises(pymysql.OperationalError, match="Lost connection"):
            RowReader(cut).read("")
        assert cut.closed, length


def test_a_packet_out_of_turn_is_a_lost_connection():
    whole = bytearray(answer(b"\3abc", b"\3def"))
    place = whole.index(b"\3def") - 1
    whole[place] += 1
    wrong = Recording(bytes(whole))
    with pytest.raises(pymysql.OperationalError, match="in place of"):
        RowReader(wrong).read("")
    assert wrong.closed


def test_other_drivers_and_unknown_releases_keep_their_cursors():
    assert row_reader(object()) is None
    known = Connection(defer_connect=True)
    known._rfile, known._next_seq_id = None, 0
    assert row_reader(known) is not None
    known.client_flag |= 1 << 24
    assert row_reader(known) is None
    del known.client_flag
    assert row_reader(known) is None


def test_instants_are_those_of_mysqlclient():
    """Zero dates and fractions of any length among them."""
    services.require("mysqldb")
    url = sa.make_url(services.mariadb().admin_url).set(drivername="mysql+mysqldb")
    texts = ["2026-02-03 04:05:06", "2026-02-03 04:05:06.7", "2026-02-03 04:05:06.123456", "0000-00-00 00:00:00"]
    from MySQLdb.constants import FIELD_TYPE
    from MySQLdb.converters import conversions as own

    assert conversions().keys() == own.keys()
    for kind in (FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP):
        assert [conversions()[kind](text) for text in texts] == [own[kind](text) for text in texts]
    with open_engine(url).connect() as opened:
        assert (
            opened.exec_driver_sql("SELECT CAST('2026-02-03 04:05:06.7' AS DATETIME(1))").scalar().microsecond
            == 700_000
        )
