"""The threads that the library starts itself: closed while one is just starting, or when the system gives none."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import attrs
import pytest

from cloudcore import create_schema, errors
from cloudcore.attach.journal.leases import Leases
from cloudcore.database import Database
from cloudcore.hypervisor import Timeouts
from cloudcore.hypervisor.libvirt.connection import Connection
from cloudcore.listing.cells.workers import Workers
from cloudcore.problems import problem_of
from tests import services
from tests.interrupting import at_each_moment
from tests.waiting import until


@attrs.frozen
class Threaded:
    """Something that has a thread of *name* as soon as it is used, and the error that says that there is none."""

    name: str
    use: Callable[[], object]
    close: Callable[[], object]
    refusal: type[Exception] | None = None


def connection() -> Connection:
    services.require("libvirt")
    return Connection("test:///default", timeouts=Timeouts())


@contextlib.contextmanager
def ends_of_libvirt_connections() -> Iterator[Threaded]:
    made = connection()

    def lose(gone) -> None:
        gone.close()
        gone.getHostname()

    def use() -> None:
        with pytest.raises(errors.HypervisorUnavailable, match="invalid connection pointer"):
            made.call("lose it", lose)

    yield Threaded("cloudcore libvirt close", use, made.close)


@contextlib.contextmanager
def libvirt_events() -> Iterator[Threaded]:
    made = connection()
    ask = functools.partial(made.call, "ask", lambda one: one.getHostname())
    yield Threaded("cloudcore libvirt events", ask, made.close, errors.HypervisorUnavailable)


@contextlib.contextmanager
def leases() -> Iterator[Threaded]:
    with Database("sqlite://") as database:
        create_schema(database, areas=["attach"])
        made = Leases(database)

        def use() -> None:
            with made.hold(["volume/a"]):
                pass

        yield Threaded("cloudcore-leases", use, made.close, errors.Overloaded)


@contextlib.contextmanager
def workers() -> Iterator[Threaded]:
    made = Workers(2)
    yield Threaded("cloudcore-listing", lambda: made.run(lambda: None), made.close, errors.Overloaded)


THREADED = pytest.mark.parametrize("threaded", [ends_of_libvirt_connections, libvirt_events, leases, workers])


@contextlib.contextmanager
def at_start(monkeypatch, name: str, act: Callable[[], object]) -> Iterator[None]:
    """Call *act* whenever a thread of *name* is made and does not run yet."""
    start = threading.Thread.start

    def acting(thread: threading.Thread) -> None:
        if thread.name == name:
            act()
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", acting)
        yield


@THREADED
def test_closed_while_a_thread_is_just_starting(monkeypatch, threaded):
    """By another thread: it waits, rather than join what does not run."""
    before = threading.enumerate()
    with threaded() as made, ThreadPoolExecutor(1) as another:
        endings: list[Future] = []

        def closing() -> None:
            if not endings:
                endings.append(another.submit(made.close))
                wait(endings, timeout=0.2)  # it may, or may not, have to wait for the start

        with at_start(monkeypatch, made.name, closing), contextlib.suppress(errors.CloudcoreError):
            made.use()
        assert [ending.result(30) for ending in endings] == [None]
        made.close()
    assert made.name not in {thread.name for thread in threading.enumerate() if thread not in before}


@THREADED
def test_a_thread_that_the_system_refuses(monkeypatch, threaded):
    """A typed error, if the work cannot go on without; the next use finds everything in order, and so does the end."""

    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    with threaded() as made:
        told = contextlib.nullcontext() if made.refusal is None else pytest.raises(made.refusal, match="new thread")
        with at_start(monkeypatch, made.name, refuse), told as caught:
            made.use()
        if made.refusal is errors.Overloaded:
            assert problem_of(caught.value).headers() == {"retry-after": "1"}
        made.use()
        made.close()
        with threaded() as other:
            with at_start(monkeypatch, other.name, refuse), contextlib.suppress(errors.CloudcoreError):
                other.use()
            other.close()


def test_cells_are_asked_by_the_threads_that_there_are(monkeypatch):
    """One that cannot be started is not missed for good: the job waits for another."""

    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    made, over, done = Workers(2), threading.Event(), threading.Event()
    made.run(over.wait)
    with at_start(monkeypatch, "cloudcore-listing", refuse):
        made.run(done.set)
    over.set()
    assert done.wait(30)
    made.close()


def test_a_thread_whose_start_was_interrupted_is_known_or_is_none():
    """So that it is counted, and the next job finds it or a place for another."""
    before = set(threading.enumerate())

    def running() -> set[threading.Thread]:
        found = {thread for thread in threading.enumerate() if thread.name == "cloudcore-listing"} - before
        return {thread for thread in found if thread.is_alive()}  # the interpreter lists some that it never started

    for number in itertools.count():
        made, done = Workers(1, idle_timeout=3600.0), threading.Event()
        call = functools.partial(made.run, int)
        where = next(at_each_moment(call, "listing/cells/workers", first=number), None)
        made.run(done.set)
        assert done.wait(30), where
        until(lambda made=made: made._threads == running(), 30)
        made.close()
        until(lambda: not running(), 30)
        if where is None:
            break
    assert number > 5
