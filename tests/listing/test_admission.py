"""Many callers at once: every page is complete or the caller hears of overload, and no healthy cell is blamed."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
import time
from collections import Counter

import pytest
import sqlalchemy as sa

from cloudcore._cancellation import Cancellation
from cloudcore.database import Database
from cloudcore.errors import Cancelled, CloudcoreError, Overloaded, Transient
from cloudcore.listing import Cell, CellRouter, Query
from cloudcore.listing.cells import in_flight
from cloudcore.listing.cells.admission import Admission, Turn
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.cells.promptness import Distance
from cloudcore.problems import problem_of
from tests.listing.conftest import THINGS, things
from tests.waiting import until


class Line:
    """Calls that wait for their turn in threads of their own, and what they do."""

    def __init__(self, admission: Admission) -> None:
        self.admission, self.order, self.threads = admission, [], []

    @contextlib.contextmanager
    def turn(self, cells, patience):
        turn = Turn(self.admission, cells)
        try:
            self.admission.enter(turn, patience)
            yield turn
        finally:
            self.admission.leave(turn)

    def join(self, name, cells=1, patience=20.0, work=lambda turn: None, cancellation=None) -> None:
        def call() -> None:
            try:
                with self.turn(cells, patience) as turn:
                    self.order.append(name)
                    work(turn)
            except CloudcoreError as error:
                self.order.append((name, type(error)))

        waiting = self.admission.waiting
        run = call if cancellation is None else lambda: self._cancelled(name, cancellation, call)
        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        until(lambda: self.admission.waiting == waiting + 1 or not self.threads[-1].is_alive())

    def _cancelled(self, name, cancellation, call) -> None:
        try:
            cancellation.run(call)
        except Cancelled:
            self.order.append((name, Cancelled))

    def end(self) -> list:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        self.admission.check()
        return self.order


@pytest.fixture
def line():
    return Line(Admission(1, 10, time.monotonic))


def test_first_come_first_served(line):
    """In the order in which they came, one at a time."""
    with line.turn(1, 1.0):
        for name in "abcde":
            line.join(name)
        assert line.order == []
    assert line.end() == list("abcde")


def test_a_turn_that_is_lent_goes_to_the_next_and_whoever_returns_goes_first(line):
    """While it waits for cells, others work; then it does not stand in line again."""
    with line.turn(1, 1.0) as turn:
        gate = threading.Event()
        line.join("a", work=lambda _: gate.wait(20))
        line.join("b")
        turn.lend()
        until(lambda: line.order == ["a"])
        threading.Timer(0.05, gate.set).start()
        turn.take_back()
        assert line.order == ["a"]  # b still waits
    assert line.end() == ["a", "b"]


def test_cells_asked_at_once_are_bounded_whoever_has_lent_its_turn(line):
    """Ten at most together; one call that asks more goes alone."""
    with line.turn(8, 1.0) as turn:
        turn.lend()
        line.join("three", 3)
        line.join("one", 1)  # there would be room, but it came later
        assert line.order == []
        turn.take_back()
    line.end()
    assert line.order == ["three", "one"]
    with line.turn(50, 1.0) as turn:
        turn.lend()
        line.join("one", 1)
        assert line.admission.waiting == 1
    assert line.end()[2:] == ["one"]


def test_whoever_waits_too_long_hears_of_it_and_leaves_the_line(line):
    """With a transient error that says how long; those behind move up."""
    with line.turn(1, 1.0):
        with pytest.raises(Overloaded, match="wait for one") as caught, line.turn(1, 0.01):
            pass
        assert isinstance(caught.value, Transient)
        assert 0 < caught.value.seconds < 20
        assert problem_of(caught.value).headers() == {"retry-after": "1"}
        line.join("next")
    assert line.end() == ["next"]


def test_a_call_in_line_can_be_cancelled(line):
    """It leaves at once."""
    cancellation = Cancellation()
    with line.turn(1, 1.0):
        line.join("gone", cancellation=cancellation)
        line.join("next")
        cancellation.cancel()
        until(lambda: line.order == [("gone", Cancelled)])
    assert line.end() == [("gone", Cancelled), "next"]


def test_an_error_gives_the_turn_back(line):
    """Lent or not."""
    for lend in (False, True):
        with contextlib.suppress(ZeroDivisionError), line.turn(3, 1.0) as turn:
            if lend:
                turn.lend()
            _ = 1 / 0
        line.admission.check()


def test_the_distance_of_a_cell_is_that_of_its_fastest_answers():
    """Slow ones among them say nothing; when all are slow for long, it is far."""
    distance = Distance()
    assert distance.seconds == 0.0
    for _ in range(300):
        distance.answered(0.02)
        distance.answered(0.001)
    assert distance.seconds == 0.001
    for _ in range(2 * Distance.WINDOW):
        distance.answered(0.05)
    assert distance.seconds == 0.05


class Slow(sqlite3.Connection):
    """Each statement takes a while, as a distant server's does."""

    seconds = 0.0

    def cursor(self, *_):
        return super().cursor(SlowCursor)


class SlowCursor(sqlite3.Cursor):
    def execute(self, *arguments):
        time.sleep(Slow.seconds)
        return super().execute(*arguments)


def storm(router: CellRouter, callers: int, pages: int) -> Counter:
    """What so many callers hear, who ask for some pages each, all at once."""
    heard: Counter = Counter()
    gate = threading.Barrier(callers)

    def call() -> None:
        gate.wait()
        for _ in range(pages):
            try:
                page = router.page(Query(limit=20))
            except CloudcoreError as error:
                heard[type(error)] += 1
            else:
                heard["complete" if page.complete else str(page.cells)] += 1

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def cells(databases, number: int, **options) -> list[Cell]:
    made = []
    for index in range(number):
        url = databases.url("sqlite")
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute("CREATE TABLE things (id, name, size, at, flag, kind)")
            rows = [(f"{index}-{row}", "n", row, None, None, "k") for row in range(60)]
            connection.executemany("INSERT INTO things VALUES (?, ?, ?, ?, ?, ?)", rows)
        made.append(Cell(f"c{index}", url, **options))
    return made


@pytest.mark.parametrize("deadline", [0.25, 60.0])
def test_no_healthy_cell_is_blamed_by_a_crowd(databases, routers, deadline):
    """From a cold start: a page is whole, or its caller hears that this process has too much to do."""
    router = routers(cells(databases, 16), source=THINGS, deadline=deadline)
    heard = storm(router, 100, 3)
    assert set(heard) <= ({"complete", Overloaded} if deadline < 1 else {"complete"}), heard
    assert heard["complete"]
    assert all(router.breaker(name).failures == 0 for name in router.cells)


def test_a_crowd_before_distant_cells_waits_for_its_own_connections(databases, routers):
    """One connection a cell and 0.1 s a statement: the time for which callers wait for each other is not the cells'."""
    Slow.seconds = 0.1
    far = cells(databases, 2, connections=1, options={"connect_args": {"factory": Slow}})
    router = routers(far, source=THINGS, deadline=2.0)
    heard = storm(router, 40, 1)
    assert set(heard) == {"complete", Overloaded}, heard
    assert all(router.breaker(name).failures == 0 for name in router.cells)


def test_whoever_finds_all_connections_busy_is_told_when_to_come_again(databases):
    pool = ConnectionPool(cells(databases, 1)[0].database, connections=1, deadline=5.0, options={})
    held = pool.acquire(time.monotonic() + 5.0)
    with pytest.raises(Overloaded, match="were busy") as caught:
        pool.acquire(time.monotonic())
    assert problem_of(caught.value).headers() == {"retry-after": "1"}
    pool.release(held)
    pool.close()


def test_distant_cells_are_asked_by_many_calls_at_once(databases, routers):
    """Turns are lent while calls wait: cells that answer nobody before half of twenty calls have asked them answer."""
    Slow.seconds = 0.05
    router = routers(cells(databases, 2, connections=20, options={"connect_args": {"factory": Slow}}), source=THINGS)
    router.page(Query(limit=20))
    asked, enough = itertools.count(1), threading.Event()
    execute = SlowCursor.execute

    def together(self, *arguments):
        if next(asked) > 10:
            enough.set()
        assert enough.wait(30)
        return execute(self, *arguments)

    SlowCursor.execute = together
    try:
        assert storm(router, 20, 1) == {"complete": 20}
    finally:
        SlowCursor.execute = execute


def test_a_cell_that_hangs_holds_up_its_own_callers_only(databases, routers):
    """Whoever waits for it has lent its turn; pages of other cells go on."""
    Slow.seconds = 0.0
    gate, execute = threading.Event(), SlowCursor.execute
    slow = cells(databases, 1, options={"connect_args": {"factory": Slow}})
    router = routers([*slow, *(Cell(f"b{cell.name}", cell.database) for cell in cells(databases, 3))], source=THINGS)
    SlowCursor.execute = lambda self, *arguments: (gate.wait(60), execute(self, *arguments))[1]
    hung = threading.Thread(target=router.page)
    try:
        hung.start()
        until(lambda: router._services.admission._calls == 1)
        router.remove_cell("c0")
        for _ in range(5):
            assert router.page(Query(limit=5)).complete
        assert hung.is_alive()
    finally:
        gate.set()
        SlowCursor.execute = execute
    hung.join()


def test_threads_are_bounded_by_the_router_not_by_callers(databases, routers):
    """Eight for all calls together, though forty ask sixteen cells each."""
    router = routers(cells(databases, 16), source=THINGS, threads=8)
    assert storm(router, 40, 2) == {"complete": 80}
    assert len(router._workers._threads) <= 8


def test_streams_take_turns_batch_by_batch(databases, routers):
    """A stream that nobody reads on holds up nobody."""
    router = routers(cells(databases, 3), source=THINGS)
    stream = router.stream()
    next(stream)
    assert router.page(Query(limit=5)).complete
    assert sum(1 for _ in stream) == 3 * 60 - 1
    assert things.name


def test_a_long_statement_in_the_callers_own_thread_holds_up_no_other_call(databases, routers, monkeypatch):
    """The one file of a router is read by its caller, whose turn others may have while that takes long."""
    url = databases.url("sqlite")
    with Database(url) as database:
        database.run(things.metadata.create_all)
        rows = [{"id": f"{n:05}", "kind": "k"} for n in range(20_000)]
        database.run(lambda connection: connection.execute(things.insert(), rows))
    router = routers([Cell("c", url)], source=THINGS)
    for _ in range(5):
        router.page(Query(limit=1))
    assert router._backends["c"].direct
    monkeypatch.setattr(in_flight, "LENDING", 0.0)
    ended, begun, other = [], threading.Event(), threading.Event()
    calls = itertools.count()

    def slow(_):
        begun.set()
        if next(calls) == 15_000:  # SQLite has looked whether it is late by then
            other.wait(10)
        return 0

    router._backends["c"].pool._idle[0].connection.create_function("slow", 1, slow)

    def ask():
        page = router.page(Query(where=sa.func.slow(things.c.id) == 1))
        ended.append(("long", page.complete))

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    ended.append(("short", router.page(Query(limit=1)).complete))
    other.set()
    thread.join()
    assert ended == [("short", True), ("long", True)]
