"""Cursors come from outside: whatever one says, it is read or refused with InvalidCursor, at a bounded cost."""

from __future__ import annotations

import base64
import contextlib
import json
import tracemalloc
import zlib
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import InvalidArgument, InvalidCursor
from cloudcore.listing import Cell, Query, Sort
from cloudcore.listing.query.cursors import Cursor
from cloudcore.listing.query.kinds import Kind
from cloudcore.listing.query.order import Key, Order
from tests.listing.conftest import walk

OLD, NEW = b"an old secret, sixteen bytes", b"the new secret of this month"


def written(content: bytes, prefix: bytes = b"\x01") -> str:
    """A word as anybody can write one."""
    data = prefix + content
    return base64.urlsafe_b64encode(data + blake2b(data, digest_size=6).digest()).rstrip(b"=").decode()


@pytest.fixture
def cloud(clouds):
    made = clouds(2)
    for cell in ("cell1", "cell2"):
        made.store.create_many(cell, [{"project_id": "p", "vcpus": n} for n in range(6)])
    return made


QUERIES = [Query(limit=3), Query(sort=["vcpus"], limit=3), Query(sort=[Sort("locked"), Sort("launched_at")], limit=3)]


@pytest.mark.parametrize("query", QUERIES, ids=["instant", "number", "several"])
def test_forged_positions_are_refused(cloud, query):
    word = cloud.router.page(query).next_cursor
    version, digest, position, lagging, tail = json.loads(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))[1:-6])
    key = position[-1]
    forged = [
        [version, digest, position[:1], lagging, tail],
        [version, digest, [*position, "more"], lagging, tail],
        [version, digest, ["text"] * (len(position) - 1) + [5], lagging, tail],
        [version, digest, [{"zz": 1}] * len(position), lagging, tail],
        [version, digest, [{"t": 10**30}, key], lagging, tail],
        [version, digest, [{"t": 1.5}, key], lagging, tail],
        [version, digest, [{"d": "1e999999999"}] * len(position), lagging, tail],
        [version, digest, [{"f": "0x1p99999"}] * len(position), lagging, tail],
        [version, digest, [{"D": 7}] * len(position), lagging, tail],
        [version, digest, [2**70] * len(position), lagging, tail],
        [version, digest, [True] * len(position), lagging, tail],
        [version, digest, [[[]]] * len(position), lagging, tail],
        [version, digest, [*position[:-1], None], lagging, tail],
        [version, digest, [*position[:-1], "a\0b"], lagging, tail],
        [version, digest, [*position[:-1], "\ud800"], lagging, tail],
        [version, digest, 5, lagging, tail],
        [version, digest, "ab", lagging, tail],
        [version, digest, position, [1, 2], tail],
        [version, digest, position, None, tail],
        [version, digest, position, {"cell1": ["x"]}, tail],
        [version, digest, position, lagging, 5],
        [version, digest, position, lagging, tail, False],
        [version, digest, position, lagging, tail, True, True],
        [version, digest, position],
        [{}, digest, position, lagging, tail],
        [version, None, position, lagging, tail],
        {"version": 1},
        [],
        7,
        None,
    ]
    for content in forged:
        for ask in (cloud.router.page, cloud.router.stream):
            with pytest.raises(InvalidCursor):
                ask(query, cursor=written(json.dumps(content).encode()))
    for text in (b"[1," * 50_000, b"{", b"\xff\xfe", b"NaN", b'[1, "x", [NaN], {}, null]', b"9" * 10_000):
        with pytest.raises(InvalidCursor):
            cloud.router.page(query, cursor=written(text))
    assert cloud.router.page(query).complete


@pytest.mark.parametrize("word", ["", "=", "ü", "a" * 7, "A" * 10**6, "\0", 5, b"bytes", ["a"]])
def test_what_is_no_word_is_refused(cloud, word):
    with pytest.raises(InvalidCursor):
        cloud.router.page(Query(limit=3), cursor=word)


def test_a_word_that_unpacks_to_much_costs_little(cloud):
    """389 kB of them used to become 300 MB before they were refused."""
    bomb = written(zlib.compress(b"[" + b" " * 300_000_000 + b"]"), b"\x02")
    small = written(zlib.compress(b"[" + b" " * 30_000_000 + b"]"), b"\x02")
    tracemalloc.start()
    for word in (bomb, small):
        with pytest.raises(InvalidCursor):
            cloud.router.page(Query(limit=3), cursor=word)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8_000_000


@given(st.binary(max_size=200), st.sampled_from([b"\x01", b"\x02", b""]))
def test_no_bytes_raise_anything_else(content, prefix):
    order = Order((Key(column="id", kind=Kind.TEXT, descending=False, nullable=False, nulls_first=True),))
    for word in (written(content, prefix), content.decode("latin-1")):
        with contextlib.suppress(InvalidCursor):
            Cursor.decode(word, "d", order)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["t", "d", "D", "T", "f", "x"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=3), st.sampled_from(list(Kind)))
def test_no_position_raises_anything_else(position, kind):
    order = Order((Key(column="v", kind=kind, descending=True, nullable=True, nulls_first=True),))
    try:
        read = Cursor.decode(written(json.dumps([1, "d", position, {}, None]).encode()), "d", order)
    except InvalidCursor:
        return
    if kind not in {Kind.JSON, Kind.OTHER}:
        order.sort_key(read.position)  # what is accepted can be compared


def test_signed_cursors_are_read_by_who_has_the_key(cloud, routers):
    """A key can be replaced while walks go on."""
    cells = list(cloud.router.cells.values())
    query = Query(limit=3)
    plain, signed = cloud.router, routers(cells, cursor_keys=[OLD])
    assert [r.uuid for r in walk(signed, query)] == [r.uuid for r in walk(plain, query)]
    word = signed.page(query).next_cursor
    both = routers(cells, cursor_keys=[NEW, OLD])
    following = both.page(query, cursor=word).next_cursor
    assert len(both.page(query, cursor=following).records) == 3
    assert both.stream(query, cursor=following).resume_cursor
    for router, refused in (
        (signed, following),
        (signed, plain.page(query).next_cursor),
        (plain, word),
        (signed, word[:-4] + ("A" if word[-4] != "A" else "B") + word[-3:]),  # the very last may hold no whole bits
        (signed, word[:20] + ("A" if word[20] != "A" else "B") + word[21:]),
    ):
        with pytest.raises(InvalidCursor):
            router.page(query, cursor=refused)


@pytest.mark.parametrize("keys", [[b"short"], ["text that is long enough"], b"bytes, not a list of them"])
def test_keys_are_secrets_of_some_length(keys):
    from cloudcore.listing import CellRouter

    with pytest.raises(InvalidArgument, match="16 bytes"):
        CellRouter([Cell("a", "sqlite:////nonexistent")], cursor_keys=keys)
