"""Cells by the hundred: few connections and threads, closed when unused, and cells that a directory spares."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import threading
import time

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from cloudcore.database import open_engine
from cloudcore.errors import InvalidArgument, LimitExceeded
from cloudcore.listing import Cell, CellRouter, CellState, Query
from cloudcore.listing.cells.connections import OpenConnections, affordable
from cloudcore.listing.cells.pool import ConnectionPool
from tests.listing.conftest import THINGS, things
from tests.listing.test_faults import rows

pytestmark = pytest.mark.xdist_group("hundreds")
KEPT, THREADS = 50, 4
PAGE = Query(sort=["size"], limit=20)


def descriptors(folder) -> int:
    """Of this process, to files of the cells."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found += os.readlink(f"/proc/self/fd/{number}").startswith(str(folder))
    return found


def listing_threads() -> int:
    return sum(thread.name == "cloudcore-listing" for thread in threading.enumerate())


def until(condition) -> bool:
    """Whether it comes true; an hour's patience would do no harm."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


class Counted(sqlite3.Connection):
    """Counts the connections that are open, and the most that ever were."""

    open = most = 0

    counting = threading.Lock()

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        with Counted.counting:
            Counted.open += 1
            Counted.most = max(Counted.most, Counted.open)

    def close(self):
        super().close()
        with Counted.counting:
            Counted.open -= 1


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand files with a log each, and a row each with a size of its own."""
    folder = tmp_path_factory.mktemp("thousand")
    engine = open_engine(f"sqlite:///{folder / 'template.db'}")
    things.metadata.create_all(engine)
    engine.dispose()
    for number in range(1000):
        path = folder / f"{number:03}.db"
        shutil.copy(folder / "template.db", path)
        (row,) = rows(number, 1)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("INSERT INTO things (id, size, kind) VALUES (?, ?, 'x')", (row["id"], number))
        connection.commit()
        connection.close()
    return folder


def cells_of(folder, **options):
    return [Cell(f"c{number:03}", f"sqlite:///{folder}/{number:03}.db", **options) for number in range(1000)]


def test_a_thousand_files_need_few_descriptors_and_threads(thousand, routers):
    """Each was asked, and every row is in its place."""
    Counted.open = Counted.most = 0
    threads = listing_threads()
    cells = cells_of(thousand, options={"connect_args": {"factory": Counted}})
    router = routers(cells, source=THINGS, max_connections=KEPT, threads=THREADS)
    assert descriptors(thousand) == 0, "nothing is opened before it is asked"
    cursor, sizes = None, []
    for _ in range(2):
        page = router.page(PAGE, cursor=cursor)
        assert page.complete
        sizes += [record.size for record in page.records]
        cursor = page.next_cursor
        assert listing_threads() - threads <= THREADS
    assert sizes == list(range(40))
    assert until(lambda: Counted.open <= KEPT), "a late thread may be about to give one back"
    assert 0 < descriptors(thousand) <= 3 * KEPT, "a file with a log takes three"
    assert 0 < Counted.most <= KEPT + THREADS


def test_what_nobody_uses_is_closed_and_opened_again_when_it_is_asked(thousand, routers):
    """The last thread stays until then, and goes."""
    threads = listing_threads()
    router = routers(cells_of(thousand), source=THINGS, idle_timeout=0.3)
    for _ in range(2):
        page = router.page(PAGE)
        assert page.complete
        assert [record.size for record in page.records] == list(range(20))
        assert until(lambda: descriptors(thousand) == 0)
        assert until(lambda: listing_threads() <= threads)


def test_the_caller_s_own_thread_leaves_nothing_open_either(thousand, routers):
    """A lone file that answers at once is read without another thread, which might have closed it."""
    router = routers(cells_of(thousand)[:1], source=THINGS, idle_timeout=0.2)
    for _ in range(3):
        assert router.page(PAGE).complete
        assert until(lambda: descriptors(thousand) == 0)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_servers_are_left_when_nobody_asks(kind, databases, routers):
    """Whatever opened a session: pages, calls of the user's own, or writing."""
    urls = [databases.url(kind) for _ in range(5)]
    for number, url in enumerate(urls):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(things.insert(), rows(number, 3))
        engine.dispose()
    watcher = open_engine(urls[0])
    names = [sa.make_url(url).database for url in urls]
    sessions = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname IN ({}) AND pid <> pg_backend_pid()",
        "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db IN ({}) AND id <> connection_id()",
    }[kind].format(", ".join(f"'{name}'" for name in names))

    def open_now() -> int:
        with watcher.connect() as connection:
            return connection.scalar(sa.text(sessions))

    cells = [Cell(f"c{number}", url) for number, url in enumerate(urls)]
    router = routers(cells, source=THINGS, max_connections=2, idle_timeout=3600.0)
    for _ in range(2):
        assert len(router.page(PAGE).records) == 15
        assert until(lambda: open_now() <= 2)
    router.close()
    router = routers(cells, source=THINGS, idle_timeout=0.3)
    assert len(router.page(PAGE).records) == 15
    answers = router.scatter(lambda connection: connection.scalar(sa.text("SELECT 1")))
    assert {answer.value for answer in answers.values()} == {1}
    with router.database("c0").read() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    assert until(lambda: open_now() == 0)
    kept = router.database("c0")
    assert until(lambda: not router._workers._threads)
    with kept.read() as connection:  # once nobody looks after connections any more
        assert connection.scalar(sa.text("SELECT 1")) == 1
    assert until(lambda: open_now() == 0)
    assert len(router.page(PAGE).records) == 15
    watcher.dispose()


def test_the_connections_in_use_lately_are_kept(thousand):
    """Others come and go beside them; but those that have been idle for a while make room."""
    now = [1000.0]
    opened = OpenConnections(2, 60.0, lambda: now[0])
    pools = [
        ConnectionPool(f"sqlite:///{thousand}/{n:03}.db", connections=1, deadline=5.0, options={},
                       clock=lambda: now[0], opened=opened)
        for n in range(5)
    ]  # fmt: skip

    def use(number: int) -> None:
        pools[number].release(pools[number].acquire(now[0] + 5))

    def kept() -> list[int]:
        return [number for number, pool in enumerate(pools) if pool.idle()]

    for number in range(5):
        use(number)
    assert kept() == [0, 1], "the first are kept, however many come after them"
    now[0] += 4
    use(1)
    now[0] += 2
    use(3)
    assert kept() == [1, 3], "the first was used longer ago than five seconds"
    now[0] += 59
    use(3)
    now[0] += 2
    opened.close_unused()
    assert kept() == [3]
    assert opened.number == 1
    for pool in pools:
        pool.close()
    assert opened.number == 0


def test_what_the_callers_engines_keep_is_taken_off_and_refused_where_it_is_too_much(databases, routers):
    """By their pools' size or by what the router uses of them at once; an engine of several cells counts once."""
    engines = [sa.create_engine(databases.url("sqlite"), pool_size=size) for size in (3, 0)]
    engines.append(sa.create_engine(databases.url("sqlite"), poolclass=NullPool))
    url = Cell("url", databases.url("sqlite"))
    cells = [Cell(f"c{number}", engine) for number, engine in enumerate((engines[0], *engines))]
    router = routers([url, *cells[:2], cells[3]], source=THINGS, max_connections=10)
    assert router._opened._kept == 7
    with pytest.raises(LimitExceeded, match="keep 11 connections, and max_connections is 10") as caught:
        router.add_cell(cells[2])
    assert (caught.value.limit, caught.value.used) == (10, 11)
    assert "c2" not in router.cells
    router.add_cell(Cell("c2", engines[1], connections=7))
    assert router._opened._kept == 0
    assert router.page(Query(limit=5)).cells.keys() == {"url", "c0", "c1", "c2", "c3"}
    router.remove_cell("c2")
    assert router._opened._kept == 7
    assert routers([url, *cells], source=THINGS)._opened._kept == affordable() - 11
    for engine in engines:
        engine.dispose()


def test_bounds_follow_the_descriptors_that_may_be_opened():
    """A process that may open few keeps fewer."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 600), hard))
        assert affordable() == min(soft, 600) // 6
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SECONDS_THAT_ARE_NONE = [0, -1, "x", None, True, math.nan, math.inf]
NUMBERS_THAT_ARE_NONE = [0, -1, "5", 2.0, True, math.nan]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("deadline", "idle_timeout") for value in SECONDS_THAT_ARE_NONE),
        *((name, value) for name in ("max_connections", "threads") for value in NUMBERS_THAT_ARE_NONE),
        ("threads", None),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_opened(name, value):
    """Or it would break a thread, a page or a clean-up much later."""
    opened = []
    cell = Cell("c", "sqlite://", options={"creator": lambda: opened.append("c")})
    with pytest.raises(InvalidArgument, match=name) as caught:
        CellRouter([cell], **{name: value})
    assert (caught.value.field, opened) == (name, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("deadline", value) for value in SECONDS_THAT_ARE_NONE if value is not None),
        *(("connections", value) for value in [*NUMBERS_THAT_ARE_NONE, None]),
    ],
)
def test_a_cell_of_numbers_that_cannot_be_is_none(name, value):
    with pytest.raises(InvalidArgument, match=name) as caught:
        Cell("c", "sqlite://", **{name: value})
    assert caught.value.field == name


def test_the_directory_spares_the_cells_that_have_none_of_the_records(clouds):
    """Listed by uuid, live or deleted; one that nobody knows may be anywhere."""
    cloud = clouds(4)
    store, router = cloud.store, cloud.router
    uuids = [store.create(f"cell{1 + number % 3}", project_id="p", display_name=f"n{number}") for number in range(6)]
    store.delete(uuids[3])  # in the first cell

    def asked(where, **options):
        page = router.page(Query(where=where, **options))
        states = {name for name, report in page.cells.items() if report.state is not CellState.SKIPPED}
        return {record.uuid for record in page.records}, states

    assert asked({"uuid": uuids[0]}) == ({uuids[0]}, {"cell1"})
    assert asked({"uuid": [uuids[0].upper(), uuids[1]]}) == ({uuids[0], uuids[1]}, {"cell1", "cell2"})
    assert asked({"uuid": uuids[3]}, deleted=True) == ({uuids[3]}, {"cell1"})
    assert asked({"uuid": [uuids[2], uuids[3]]}, deleted=None) == ({uuids[2], uuids[3]}, {"cell1", "cell3"})
    unknown = "00000000-0000-4000-8000-00000000000a"
    assert asked({"uuid": [uuids[0], unknown]}) == ({uuids[0]}, {"cell1", "cell2", "cell3", "cell4"})
    assert router.count(Query(where={"uuid": uuids[:2]})).total == 2
    store.move(uuids[0], "cell4")
    assert asked({"uuid": uuids[0]}) == ({uuids[0]}, {"cell4"})
