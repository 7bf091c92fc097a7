"""Cells that answer at once share a thread, and a slow one among them holds nobody up."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.database import open_engine
from cloudcore.errors import Overloaded
from cloudcore.listing import Cell, CellState, Query
from cloudcore.listing.cells.connections import PooledConnection
from cloudcore.listing.cells.in_flight import RequestsInFlight
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.cells.promptness import PROMPT, STALL, Promptness, time_apart
from cloudcore.listing.cells.workers import CompletionQueue
from cloudcore.problems import problem_of
from tests.listing.conftest import THINGS, things
from tests.listing.test_faults import NEVER, rows
from tests.waiting import until

QUERY = Query(sort=["size"], limit=50)


class Gate(sqlite3.Connection):
    """A connection whose statements wait while the gate is shut, as those of a hanging file system would."""

    open = threading.Event()
    reached = threading.Event()

    def cursor(self, *_):
        return super().cursor(GatedCursor)


class GatedCursor(sqlite3.Cursor):
    def execute(self, *arguments):
        if "SELECT" in arguments[0]:
            Gate.reached.set()
            assert Gate.open.wait(60)
        return super().execute(*arguments)


@pytest.fixture
def gate():
    Gate.open.set()
    Gate.reached.clear()
    yield Gate
    Gate.open.set()


@pytest.fixture
def urls(databases):
    made = [databases.url("sqlite") for _ in range(6)]
    for number, url in enumerate(made):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(things.insert(), rows(number, 5))
        engine.dispose()
    return made


def cells_of(urls, gated=()):
    gated_options = {"connect_args": {"factory": Gate}}
    return [Cell(f"c{n}", url, options=gated_options if n in gated else {}) for n, url in enumerate(urls)]


@contextlib.contextmanager
def impatient(router, cell):
    """Meanwhile *cell* has a fifth of a second: before and after a busy machine is no fault of its."""
    backend = router._backends[cell]
    patient, backend.deadline = backend.deadline, 0.2
    yield
    backend.deadline = patient


def threads():
    return sum(thread.name == "cloudcore-listing" for thread in threading.enumerate())


def test_files_that_answer_at_once_need_one_thread(urls, routers):
    """Not one each: they would fight over the interpreter's lock."""
    before = threads()
    router = routers(cells_of(urls), source=THINGS)
    assert len(router.page(QUERY).records) == 30
    assert threads() - before <= 1 or any(not backend.promptness.proven for backend in router._backends.values()), (
        "unless one was late"
    )


@pytest.mark.parametrize("stuck", [0, 3, 5], ids=["first", "middle", "last"])
def test_a_cell_that_hangs_in_the_lane_holds_up_no_other(urls, routers, gate, stuck):
    """Only it is blamed; every row of the others is there, and their order is kept."""
    router = routers(cells_of(urls, {stuck}), source=THINGS, breaker=NEVER)
    assert router.page(QUERY).complete
    gate.open.clear()
    with impatient(router, f"c{stuck}"):
        page = router.page(QUERY)
    assert {name for name, report in page.cells.items() if report.state is not CellState.ANSWERED} == {f"c{stuck}"}
    assert page.cells[f"c{stuck}"].state is CellState.SLOW
    assert len(page.records) == 25
    gate.open.set()
    found = [record.id for record in page.records]
    while page.resume_cursor is not None:
        page = router.page(QUERY, cursor=page.resume_cursor)
        found += [record.id for record in page.records]
    assert sorted(found) == sorted(row["id"] for cell in range(6) for row in rows(cell, 5))


def test_a_lone_file_is_read_by_the_caller_and_keeps_its_deadline(urls, routers):
    """Without a thread; SQLite itself gives up a statement that takes longer than the cell may."""
    before = threads()
    router = routers([Cell("c0", urls[0])], source=THINGS, breaker=NEVER)
    backend = router._backends["c0"]
    for _ in range(200):  # a busy machine may make it look slow
        router.page(QUERY)
        if backend.direct:
            break
    made = threads() - before
    assert backend.direct
    assert router.page(QUERY).complete
    assert threads() - before == made
    engine = open_engine(urls[0])
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE things")
        connection.exec_driver_sql(
            "CREATE VIEW things AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT '0' AS id, NULL AS name, i AS size, NULL AS at, NULL AS flag, 'x' AS kind FROM n"
        )
    engine.dispose()
    with impatient(router, "c0"):
        page = router.page(QUERY)
    assert page.cells["c0"].state is CellState.SLOW
    assert page.cells["c0"].seconds < 30, "it would have gone on for ever"
    assert not backend.direct, "it has to earn the caller's trust again"


def test_a_lone_file_that_is_locked_is_given_up_at_its_deadline(urls, routers):
    """A writer that holds the file exclusively keeps the caller no longer than the cell may take."""
    writer = sqlite3.connect(urls[0].removeprefix("sqlite:///"), isolation_level=None)
    assert writer.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    router = routers([Cell("c0", urls[0], deadline=0.2)], source=THINGS, breaker=NEVER)
    for _ in range(3):  # on a busy machine it may be late
        until(lambda: router.page(QUERY).complete)
    writer.execute("BEGIN EXCLUSIVE")
    page = router.page(QUERY)
    assert page.cells["c0"].state is not CellState.ANSWERED
    assert page.cells["c0"].seconds < 30
    writer.execute("ROLLBACK")
    writer.close()
    until(lambda: router.page(QUERY).complete)


def test_trust_is_lost_for_longer_each_time_and_won_back_at_once():
    """A distant cell is tried less and less often."""
    promptness = Promptness(able=True)
    assert promptness.quick(0.0)
    pauses, now = [], 0.0
    for _ in range(6):
        promptness.stalled(now)
        later = next(step for step in range(2000) if promptness.quick(now + step))
        pauses.append(later)
        now += later
    assert pauses == [1, 4, 16, 64, 256, 256]
    promptness.answered(0.0001, now)
    assert promptness.proven
    promptness.stalled(now)
    assert not promptness.proven
    assert promptness.quick(now + 1)
    assert not Promptness(able=False).quick(now)


def test_a_prompt_answer_in_a_thread_of_its_own_wins_trust_back():
    """A pause of the machine may make eighty files look slow; they need not stay so for minutes."""
    promptness = Promptness(able=True)
    for _ in range(6):
        promptness.stalled(0.0)
    promptness.answered_apart(STALL)
    assert not promptness.quick(1.0), "so may a distant one, with luck"
    promptness.answered_apart(PROMPT)
    assert promptness.quick(1.0)
    promptness.stalled(1.0)
    assert not promptness.quick(200.0), "but it is not forgotten"


class Distant(sqlite3.Connection):
    """A connection whose statements take a while, as those of a file on a distant server do."""

    def cursor(self, *_):
        return super().cursor(DistantCursor)


class DistantCursor(sqlite3.Cursor):
    def execute(self, *arguments):
        time.sleep(1.5 * STALL)
        return super().execute(*arguments)


def test_cells_that_are_all_far_away_are_known_after_one_page(urls, routers):
    options = {"connect_args": {"factory": Distant}}
    far = [Cell(f"c{n}", urls[n % len(urls)], options=options) for n in range(36)]
    with routers(far, source=THINGS) as router:
        router.page(QUERY)  # opens the connections
        for backend in router._backends.values():
            backend.promptness = Promptness(True)
        asked = time.monotonic()
        router.page(QUERY)
        soon = asked + Promptness.SHORTEST / 2
        assert [name for name, backend in router._backends.items() if backend.promptness.quick(soon)] == []


@given(
    began=st.integers(0, 50),
    seconds=st.integers(0, 50),
    bounds=st.lists(st.integers(0, 120), max_size=8, unique=True).map(sorted),
)
def test_time_apart_leaves_out_every_second_in_which_the_caller_worked(began, seconds, bounds):
    periods = list(zip(bounds[::2], bounds[1::2], strict=False))
    counted = [at for at in range(began, began + seconds) if not any(since <= at < to for since, to in periods)]
    assert time_apart(began, seconds, periods) == len(counted)


def test_what_a_busy_caller_does_to_a_lane_is_not_held_against_cells(urls, routers):
    """It may keep an executor that reads ahead from the interpreter for a while."""
    router = routers(cells_of(urls), source=THINGS)
    backends = router._backends
    released = threading.Event()

    def work(prepared):
        assert released.wait(60)
        return prepared.with_connection(lambda prepared, pooled: prepared.run(pooled, "SELECT 1", ()))

    for backend in backends.values():
        backend.pool.release(backend.pool.acquire(time.monotonic() + 60))  # its connection is open
    requests = RequestsInFlight(backends, start=router._workers.run, serial=True)
    for cell in backends:
        requests.send(cell, work)
    requests.go()
    [executor] = requests._executors
    time.sleep(2 * STALL)  # the caller is busy for longer than any answer may take
    released.set()
    while len(executor.finished) < len(backends):
        released.wait(0.001)
    assert executor.finished[0].seconds > STALL
    while requests.wait():
        pass
    assert backends["c0"].promptness.quick(time.monotonic())


def test_an_executor_to_which_no_thread_has_come_is_not_shared_out(urls, routers):
    """It would be handed from one to the next as long as the caller waits, and each would stay in the queue."""
    router = routers(cells_of(urls), source=THINGS)
    queue = []
    requests = RequestsInFlight(router._backends, start=queue.append, serial=True)
    for cell in router._backends:
        requests.send(cell, lambda attempt: None, seconds=20 * STALL)
    requests.go()
    with pytest.raises(Overloaded) as caught:
        requests.wait()
    assert problem_of(caught.value).headers() == {"retry-after": "1"}
    assert len(queue) == 1


def test_what_a_caller_did_long_ago_is_forgotten(urls, routers):
    """A stream asks as long as it lives."""
    router = routers(cells_of(urls[:2]), source=THINGS)
    requests = RequestsInFlight(router._backends, start=router._workers.run, serial=True)
    for _ in range(200):
        for cell in router._backends:
            requests.send(cell, lambda attempt: None)
        requests.go()
        while requests.wait():
            pass
    assert len(requests._worked) < 100


def test_a_connection_that_was_used_while_idle_ones_were_closed_is_had_at_once(urls):
    """By whoever looked for one just when it was in the hands of the thread that closes."""
    pool = ConnectionPool(urls[0], connections=1, deadline=5.0, options={})
    pool.release(pool.acquire(time.monotonic() + 60))
    had = []
    waiter = threading.Thread(target=lambda: had.append(pool.acquire(time.monotonic() + 20)))

    class Raced(list):
        def pop(self, *place):
            taken = super().pop(*place)
            if place:
                waiter.start()
                until(lambda: pool._bells)
                taken.idle_since = time.monotonic()
            return taken

    pool._idle = Raced(pool._idle)
    pool.close_idle(time.monotonic() - 0.0)
    waiter.join()
    assert len(had) == 1
    pool.release(had[0])
    pool.close()


def test_one_late_answer_is_forgiven_and_three_in_a_row_are_not():
    """A busy machine lets any thread wait now and then."""
    promptness = Promptness(able=True)
    for seconds in (0.0001, 1.0, 1.0, 0.0001, 1.0, 1.0):
        promptness.answered(seconds, 0.0, lenient=True)
        assert promptness.quick(0.0)
    promptness.answered(1.0, 0.0, lenient=True)
    assert not promptness.quick(0.0)
    assert not promptness.proven
    promptness.answered(0.0001, 1.0)
    promptness.answered(1.0, 1.0)
    assert not promptness.quick(1.0), "beside other cells none is forgiven"


def test_whoever_waits_for_several_answers_is_woken_by_the_last_or_by_trouble():
    """Not by each; and a bell that rang for what was taken already is not an answer."""
    answers = CompletionQueue()
    first, second, bad = (SimpleNamespace(error=error) for error in (None, None, ValueError()))

    def put(*given):
        for answer in given:
            answers.put(answer, urgent=answer.error is not None)

    put(first)
    assert answers.take(1, 0.0) == [first]
    assert answers.take(1, 0.0) == []
    thread = threading.Thread(target=put, args=[first, second])
    thread.start()
    taken = []
    while len(taken) < 2:
        taken += answers.take(2 - len(taken), 60.0)
    thread.join()
    assert taken == [first, second]
    thread = threading.Thread(target=put, args=[bad])
    thread.start()
    assert answers.take(50, 60.0) == [bad], "it might have a replica"
    thread.join()


def test_an_interrupt_while_a_connection_is_opened_keeps_no_room(urls, monkeypatch):
    """A lone file is opened in the caller's own thread, where a signal may come: its only connection can be had."""
    pool = ConnectionPool(urls[0], connections=1, deadline=5.0, options={})
    prepare = PooledConnection.prepare

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(PooledConnection, "prepare", prepare)
        raise KeyboardInterrupt

    monkeypatch.setattr(PooledConnection, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.acquire(time.monotonic() + 5)
    pool.release(pool.acquire(time.monotonic() + 5))
    pool.close()
