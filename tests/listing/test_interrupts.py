"""Ctrl-C at any moment of a call: the next page is complete, and nothing was lost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import Cancelled
from cloudcore.listing import Cell, CellRouter, InstanceDirectory, Query
from cloudcore.listing.cells import connections
from cloudcore.listing.cells.admission import Admission, Turn
from tests.interrupting import at_each_moment
from tests.listing.conftest import THINGS, things
from tests.listing.test_faults import rows
from tests.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""What is raised where a generator ends is heard by nobody."""
STEPS = {"sqlite": 1, "postgresql": 7, "mariadb": 11}
"""Every moment with files; of servers, where all but the driver is the same code, a part."""
KINDS = pytest.mark.parametrize("kind", sorted(STEPS))
PAGE = Query(sort=["size"], limit=20)
ALL = Query(sort=["size"], limit=None)


@pytest.fixture
def make(kind, databases, routers):
    """Makes a router over so many cells of 20 rows each, which is warm; each cell may be asked by two at once."""

    def made(number: int, **options) -> CellRouter:
        cells = []
        for index in range(number):
            url = databases.url(kind)
            engine = open_engine(url)
            things.metadata.create_all(engine)
            with engine.begin() as connection:
                connection.execute(things.insert(), rows(index, 20))
            engine.dispose()
            cells.append(Cell(f"c{index}", url, connections=2))
        router = routers(cells, source=THINGS, **options)
        for _ in range(3):
            router.page(PAGE)
        return router

    return made


def lost(router: CellRouter) -> dict[str, object]:
    """What is out of place though no call is under way: connections not idle, not counted once; threads; jobs."""
    pools = [pool for backend in router._backends.values() for pool in backend.pools]
    for pool in pools:
        if pool._lost:
            pool.release(pool.acquire(router._clock() + 60, fresh=True))
    idle, workers = sum(len(pool._idle) for pool in pools), router._workers
    found = {
        "room": [pool._connections - pool._room - len(pool._idle) for pool in pools],
        "bells": sum(len(pool._bells) for pool in pools),
        "counted": router._opened.number - idle,
        "threads": len(workers._threads) - len(workers._idle),
        "jobs": len(workers._jobs),
    }
    return {what: number for what, number in found.items() if number not in (0, [0] * len(pools))}


def sound(router: CellRouter, where: str, expected: int) -> None:
    """Nothing was lost, whatever was interrupted."""
    page = router.page(PAGE)
    assert (page.complete, len(page.records)) == (True, expected), (where, page.cells)
    end = router._clock() + 20
    while (away := lost(router)) and router._clock() < end:
        time.sleep(0.001)
    assert not away, where
    router.check()
    assert all(router.breaker(name).failures == 0 for name in router.cells), where


@KINDS
@pytest.mark.parametrize("number", [1, 3])
def test_a_page_that_is_interrupted_loses_nothing(kind, make, number):
    """One file is read in the caller's own thread, several by another."""
    router = make(number)
    moments = 0
    for where in at_each_moment(lambda: router.page(PAGE), "listing", step=STEPS[kind]):
        moments += 1
        sound(router, where, 20)
    assert moments > 20


@KINDS
def test_a_stream_that_is_interrupted_goes_on_from_its_cursor(kind, make):
    """With every record that it had not given out, once; the stream itself gives no more than it can vouch for."""
    router = make(2)
    whole = list(router.stream(ALL))
    given, streams = [], []

    def read() -> None:
        given.clear()
        streams[:] = [router.stream(ALL)]
        streams[0]._merge._batch = 8
        given.extend(streams[0])  # no signal comes between a record and its place there

    for where in at_each_moment(read, "listing", step=5 * STEPS[kind]):
        if streams:
            cursor = streams[0].resume_cursor
            rest = [] if cursor is None else list(router.stream(ALL, cursor=cursor))
            assert given + rest == whole, where
            with contextlib.suppress(Cancelled):
                given.extend(streams[0])
            assert given == whole[: len(given)], where
            streams[0].close()
        sound(router, where, 20)


@KINDS
@pytest.mark.parametrize("call", ["scatter", "count", "get"])
def test_other_questions_that_are_interrupted_lose_nothing(kind, make, call):
    router = make(2)
    some = router.page(PAGE).records[0].id
    calls = {
        "scatter": lambda: router.scatter(lambda connection: connection.scalar(sa.text("SELECT 1"))),
        "count": lambda: router.count(PAGE),
        "get": lambda: router.get(some),
    }
    for where in at_each_moment(calls[call], "listing", step=3 * STEPS[kind]):
        sound(router, where, 20)


class Line:
    """A call that has the turn until another is in line, and one that comes behind that; then the first lets go."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.over = admission, False
        self.first, self.last = Turn(admission, 1), Turn(admission, 1)
        admission.enter(self.first, 60)
        self.threads = [threading.Thread(target=self._let_go), threading.Thread(target=self._behind)]
        for thread in self.threads:
            thread.start()

    def _let_go(self) -> None:
        until(lambda: self.admission.waiting == 2 or self.over)
        self.admission.leave(self.first)

    def _behind(self) -> None:
        until(lambda: self.admission.waiting == 1 or self.over)
        self.admission.enter(self.last, 60)
        self.admission.leave(self.last)

    def end(self) -> bool:
        """Whether all have had their turn."""
        self.over = True
        for thread in self.threads:
            thread.join(20)
        return self.last.over


@pytest.mark.parametrize("lends", [False, True])
def test_who_is_interrupted_in_line_keeps_nobody_from_a_turn(lends):
    """Before it has come, when it comes, when it is lent and taken back, and given on."""
    admission = Admission(1, 8, time.monotonic)
    for number in itertools.count():
        line = Line(admission)

        def work(turn: Turn) -> None:
            if lends:
                turn.lend()
                turn.take_back()

        call = functools.partial(admission.run, 1, 60, work)
        where = next(at_each_moment(call, "listing/cells/admission", first=number), None)
        assert line.end(), where
        admission.check()
        assert (admission._free, admission._calls, admission.waiting) == (1, 0, 0), where
        if where is None:
            break
    assert number > 10


@KINDS
def test_a_directory_whose_question_is_interrupted_answers_the_next(kind, databases):
    with InstanceDirectory(databases.url(kind)) as directory:
        directory.cells_of_tenant("t")
        pool = directory._pool
        for where in at_each_moment(lambda: directory.cells_of_tenant("t"), "listing", step=STEPS[kind]):
            assert directory.cells_of_tenant("t") == frozenset(), where
        if pool._lost:
            pool.release(pool.acquire(time.monotonic() + 60, fresh=True))
        assert pool._room + len(pool._idle) == pool._connections


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_close_that_is_interrupted_is_finished_by_the_next(make, databases):
    """No thread stays, and no descriptor."""
    before = threading.active_count()
    template = make(2)
    routers = []

    def closing() -> None:
        if not routers:
            return
        routers[0].close()

    for number in itertools.count():
        routers[:] = [CellRouter(template.cells.values(), source=THINGS, deadline=60.0, idle_timeout=3600.0)]
        assert routers[0].page(PAGE).complete
        where = next(at_each_moment(closing, "listing", first=number), None)
        routers[0].close()
        assert lost(routers[0]).keys() <= {"threads"}, where
        assert routers[0]._opened.number == 0, where
        if where is None:
            break
    template.close()
    until(lambda: threading.active_count() <= before, 20)
    assert number > 20


def test_the_turn_to_read_is_not_lost_with_whoever_was_interrupted():
    """Taking the lock and noting that are two steps."""
    lock = connections._READING.lock
    pooled = SimpleNamespace()

    def read() -> None:
        connections.PooledConnection._in_turn(pooled, lambda: None)

    with ThreadPoolExecutor(1) as other:
        for where in at_each_moment(read, "listing"):
            assert other.submit(lambda: lock.acquire(blocking=False) and (lock.release() or True)).result(), where


def test_who_reads_beside_another_leaves_the_turn_to_it():
    """What was not got in time is not given back."""
    lock = connections._READING.lock
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lock.acquire).result()
        connections.PooledConnection._in_turn(SimpleNamespace(), lambda: None)
        assert not lock.acquire(blocking=False)
        other.submit(lock.release).result()
