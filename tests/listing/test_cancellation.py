"""A cancelled call comes back at once, whatever it waits for, and sends nothing more."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from cloudcore._cancellation import Cancellation
from cloudcore.errors import Cancelled
from cloudcore.listing import Cell, Query, Stream
from cloudcore.listing.cells import in_flight
from cloudcore.listing.cells.connections import PooledConnection
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.cells.promptness import STALL
from cloudcore.listing.cells.requests import Attempt, Request
from cloudcore.listing.cells.workers import CompletionQueue
from tests.listing.conftest import THINGS
from tests.listing.test_faults import fill, rows

QUERY = Query(sort=["size"], limit=50)
LONG = 20.0
"""Seconds that no call needs to come back, and fewer than a cell may take."""


class Door:
    """What connecting and asking stop at while it is shut, and who stands there."""

    def __init__(self) -> None:
        self.connecting, self.asking = threading.Event(), threading.Event()
        self.waiting = threading.Event()
        """Set when somebody is about to wait for answers for longer than for an executor."""
        self.arrived = threading.Semaphore(0)
        self.statements: list[str] = []
        self.connections = 0
        self.open()

    def open(self) -> None:
        self.connecting.set()
        self.asking.set()


def eventually(condition) -> None:
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.fixture
def door(monkeypatch):
    """With a lender so patient that whatever is cancelled has not lent its turn yet."""
    made = Door()
    take = CompletionQueue.take

    def told(self, enough, timeout):
        if timeout > STALL:
            made.waiting.set()
        return take(self, enough, timeout)

    monkeypatch.setattr(CompletionQueue, "take", told)
    monkeypatch.setattr(in_flight, "LENDING", LONG / 4)
    yield made
    made.open()


@pytest.fixture
def cells(databases, door):
    """Two files behind the door."""

    class GatedCursor(sqlite3.Cursor):
        def execute(self, *arguments):
            if "read_uncommitted" not in arguments[0]:  # SQLAlchemy's own, when it connects
                door.statements.append(arguments[0])
            if not door.asking.is_set():
                door.arrived.release()
                assert door.asking.wait(60)
            return super().execute(*arguments)

    class Gated(sqlite3.Connection):
        def __init__(self, *arguments, **options):
            door.connections += 1
            if not door.connecting.is_set():
                door.arrived.release()
                assert door.connecting.wait(60)
            super().__init__(*arguments, **options)

        def cursor(self, *_):
            return super().cursor(GatedCursor)

    made = [Cell(f"c{n}", databases.url("sqlite"), options={"connect_args": {"factory": Gated}}) for n in range(2)]
    for number, cell in enumerate(made):
        fill(cell.database, rows(number, 40))
    return made


class Call:
    """A call under way in a thread of its own."""

    def __init__(self, cancellation: Cancellation, function, *arguments) -> None:
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run, args=[cancellation, function, arguments])
        self.thread.start()

    def _run(self, cancellation, function, arguments) -> None:
        try:
            self.outcome = cancellation.run(function, *arguments)
        except BaseException as error:
            self.outcome = error

    def end(self, door: Door) -> object:
        """What came of it, with the door as it is."""
        self.thread.join(LONG)
        late = self.thread.is_alive()
        if late:
            door.open()
            self.thread.join()
        assert not late, "it came back only when its cells did"
        return self.outcome


def cancelled_while_connecting(router, door) -> object:
    """A page that is cancelled while it waits for both cells, which are being connected to."""
    door.connecting.clear()
    cancellation = Cancellation()
    call = Call(cancellation, router.page, QUERY)
    for _ in range(2):
        assert door.arrived.acquire(timeout=LONG)
    assert door.waiting.wait(LONG)
    cancellation.cancel()
    return call.end(door)


def test_a_call_is_cancelled_before_it_has_lent_its_turn(cells, door, routers):
    """While its cells are still being connected to; and nobody is blamed."""
    router = routers(cells, source=THINGS)
    assert isinstance(cancelled_while_connecting(router, door), Cancelled)
    assert not door.connecting.is_set()
    door.open()
    assert router.page(QUERY).complete
    assert all(router.breaker(cell.name).failures == 0 for cell in cells)


def test_what_waited_for_a_connection_when_it_was_cancelled_sends_no_statement(cells, door, routers):
    """The connections, once there, are kept for the next call."""
    router = routers(cells, source=THINGS)
    cancelled_while_connecting(router, door)
    door.open()
    pools = [backend.pool for backend in router._backends.values()]
    eventually(lambda: all(pool._idle for pool in pools))
    assert door.statements == []
    assert router.page(QUERY).complete
    assert door.connections == 2


def started(router, cancellation) -> Stream:
    """A stream whose first record was taken under *cancellation*; each batch is small."""

    def begin() -> Stream:
        stream = router.stream(Query(sort=["size"], limit=None))
        stream._merge._batch = 4
        next(stream)
        return stream

    return cancellation.run(begin)


def cancelled_while_read(router, door) -> Stream:
    """A stream that one call began, and another read that was cancelled while it waited for the cells."""
    stream = started(router, Cancellation())
    later = Cancellation()
    door.asking.clear()
    call = Call(later, list, stream)
    assert door.arrived.acquire(timeout=LONG)
    later.cancel()
    assert isinstance(call.end(door), Cancelled)
    door.open()
    return stream


def test_each_part_of_a_stream_heeds_the_cancellation_of_the_call_that_reads_it(cells, door, routers):
    """Not that of the call that began it, which has long ended."""
    router = routers(cells, source=THINGS)
    cancelled_while_read(router, door)
    assert all(router.breaker(cell.name).failures == 0 for cell in cells)


def test_the_end_of_the_call_that_began_a_stream_does_not_end_the_stream(cells, routers):
    """Whoever cancels it afterwards cancels nothing."""
    router = routers(cells, source=THINGS)
    first = Cancellation()
    stream = started(router, first)
    first.cancel()
    assert len(Cancellation().run(list, stream)) == 79


def test_a_stream_that_was_cancelled_says_so_whenever_it_is_read(cells, door, routers):
    """Rather than wait for ever for what was stopped, or seem to be at its end; its cursor goes on."""
    router = routers(cells, source=THINGS)
    stream = cancelled_while_read(router, door)
    with pytest.raises(Cancelled):
        next(stream)
    assert 0 < len(list(router.stream(Query(sort=["size"], limit=None), cursor=stream.resume_cursor))) < 80
    stream.close()
    assert list(stream) == []


def test_a_call_that_is_cancelled_while_it_waits_for_its_turn_stops_what_is_under_way(cells, door, routers):
    """One cell has answered, the other has not yet: nobody will ask for its answer any more."""
    backends = routers(cells, source=THINGS)._backends
    cancellation = Cancellation()

    class CancelledInLine:
        working = False

        def take_back(self) -> None:
            cancellation.cancelled = True  # by somebody who looked for what to stop before or after
            cancellation.check()

    jobs: list = []
    requests = in_flight.RequestsInFlight(backends, start=jobs.append, turn=CancelledInLine())
    for cell in backends:
        requests.send(cell, lambda _: None)
    jobs[0]()
    with pytest.raises(Cancelled):
        cancellation.run(requests.wait)
    assert jobs[1].dropped


def test_a_queue_that_was_woken_keeps_nobody_waiting():
    """However often it is looked at: the bell rings but once."""
    answers = CompletionQueue()
    answers.wake()
    began = time.monotonic()
    for _ in range(3):
        assert answers.take(1, LONG) == []
    assert time.monotonic() - began < LONG


def test_a_stop_that_fails_keeps_no_other_from_being_called(caplog):
    """And whoever cancels hears of the cancellation, not of it."""
    cancellation = Cancellation()
    called = []

    def fails() -> None:
        called.append("first")
        raise OSError("the socket is gone")

    with cancellation.stopped_by(fails), cancellation.stopped_by(lambda: called.append("second")):
        cancellation.cancel()
    assert called == ["first", "second"]
    with pytest.raises(Cancelled):
        cancellation.check()
    assert "the socket is gone" in caplog.text


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_whoever_is_lent_a_connection_next_finds_it_whole(kind, databases, monkeypatch):
    """A call is given up just as its answer comes: its connection is broken before it lets go of it, or not at all."""
    pool = ConnectionPool(databases.url(kind), connections=1, deadline=60.0, options={})
    backend = SimpleNamespace(pools=[pool])
    request = Request("c", backend, None, began=time.monotonic(), seconds=60.0, hedge_at=None)
    attempt = Attempt(request, pool, None, time.monotonic)
    breaking, lent = threading.Event(), threading.Event()
    abort = PooledConnection.abort

    def slowly(pooled):
        breaking.set()
        lent.wait(0.2)  # until the connection is another's, if it ever is
        abort(pooled)

    monkeypatch.setattr(PooledConnection, "abort", slowly)
    with ThreadPoolExecutor(1) as other:
        dropping = []

        def use(attempt, pooled):
            rows = attempt.run(pooled, "SELECT 1", ())
            dropping.append(other.submit(attempt.drop))
            assert breaking.wait(60)
            return rows

        assert [tuple(row) for row in attempt.with_connection(use)] == [(1,)]
        pooled = pool.acquire(time.monotonic() + 60)
        lent.set()
        dropping[0].result()
        assert [tuple(row) for row in pooled.run("SELECT 2", (), time.monotonic() + 60)] == [(2,)]
        attempt.drop()
        assert [tuple(row) for row in pooled.run("SELECT 3", (), time.monotonic() + 60)] == [(3,)]
    pool.release(pooled)
    pool.close()
