"""A small pool of threads that ask cells, started as needed and kept, and where they leave what they have done."""

from __future__ import annotations

import contextlib
import operator
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cloudcore._forks import at_rest_when_forked
from cloudcore.errors import Closed, Overloaded
from cloudcore.listing.cells.faults import COME_BACK_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloudcore.listing.cells.connections import OpenConnections

__all__ = ["CompletionQueue", "Receiver", "Workers"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

_LONGEST_REST = 0.25
"""Seconds for which a fork waits until no thread of a router is at work."""


def _keep(kept: list[T], take: Callable[[], T]) -> None:
    """Add what *take*, a method of a deque, gives to *kept* in one step.

    A signal may interrupt the main thread between any two calls that it makes: when ``worker = idle.pop()`` has taken a
    worker out, and before that has a name.
    """
    kept.extend(map(operator.call, (take,)))


class _Worker:
    """A thread: where it waits, and the job that it was given meanwhile (None: to end)."""

    __slots__ = ("bell", "job")

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.bell = threading.Lock()
        self.bell.acquire()


class Workers:
    """Threads that run jobs. Thread-safe. A job must not raise.

    A forked child starts threads of its own. A fork waits a little until no thread is at work: SQLite's library has
    locks of the whole process, and what a thread holds of them at the fork is held in the child for ever. Its callers
    cannot see to that, since a stream asks for its next rows while they do something else.

    Cheaper than :class:`concurrent.futures.ThreadPoolExecutor`: no future, no lock per job, and the answers go where
    the job puts them. A job is handed to the thread that became idle last, so that the others can end. (A queue with a
    time-out would not do: CPython's may wait for ever once that has passed.)

    Args:
        maximum: Threads at most.
        idle_timeout: Seconds after which a thread without work ends.
        connections: Those that the jobs use: a thread without work closes what is unused, and the last one stays while
            any is open.
    """

    def __init__(self, maximum: int, idle_timeout: float = 60.0, connections: OpenConnections | None = None) -> None:
        self._maximum, self._idle_timeout, self._connections = maximum, idle_timeout, connections
        if connections is not None:
            connections.attend = self.attend
        self._closed = self._ended = False
        self._start_empty()
        at_rest_when_forked(self, Workers._rest, Workers._start_empty)

    def _start_empty(self) -> None:
        """Without threads: at first, and in a forked child, which has none of its parent's nor does their jobs."""
        self._idle: deque[_Worker] = deque()
        """Those that wait; who takes one out gives it a job. Both ends are atomic."""
        self._jobs: deque[Callable[[], None]] = deque()
        """Jobs for which there was no thread."""
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    @contextlib.contextmanager
    def _rest(self) -> Iterator[None]:
        """Wait until each thread waits for a job; not for one that is long about it, in a dead connection perhaps."""
        until = time.monotonic() + _LONGEST_REST
        mine = threading.current_thread() in self._threads  # a job that forks does not wait for itself
        while len(self._idle) + mine < len(self._threads) and time.monotonic() < until:
            time.sleep(0.001)
        yield

    def run(self, job: Callable[[], None]) -> None:
        """Run *job* soon, in some thread.

        Raises:
            Closed: :meth:`close` was called.
            Overloaded: The system gives no thread, and none is there that could do it later.
        """
        if not self._hand(job):
            self._grow(job)
        if self._closed:  # asked afterwards: what was handed over before the end is still run
            raise Closed("the router is closed; make a new one", field="router")

    def _hand(self, job: Callable[[], None] | None) -> bool:
        """Give *job* to a thread that waits, if one does."""
        taken: list[_Worker] = []
        try:
            _keep(taken, self._idle.pop)
        except IndexError:
            return False
        finally:  # a signal in between loses no thread
            for worker in taken:
                worker.job = job
                worker.bell.release()
        return True

    def attend(self) -> None:
        """See to it that some thread closes connections when they are unused: with none, start one."""
        with self._lock:
            present = bool(self._threads) or self._closed
        if not present:
            with contextlib.suppress(Closed, Overloaded):  # closed just now, or no thread is to be had
                self.run(lambda: None)

    def _grow(self, job: Callable[[], None]) -> None:
        """One thread more, if there may be; else *job* waits for one."""
        with self._lock:
            if self._closed:
                return
            if len(self._threads) < self._maximum:
                thread = threading.Thread(target=self._work, args=(job,), name="cloudcore-listing", daemon=True)
                try:
                    self._threads.add(thread)
                    thread.start()
                    return
                except BaseException as error:
                    if thread.ident is None:  # should it run yet, it will say so itself
                        self._threads.discard(thread)
                    if not isinstance(error, RuntimeError):  # the caller was interrupted
                        raise
                    if not self._threads:  # the system has no thread left
                        raise Overloaded(
                            f"no cell can be asked: {error}", seconds=0.0, retry_after=COME_BACK_AFTER
                        ) from error
            self._jobs.append(job)
        self._hand_over()  # one may have become idle just before

    def _hand_over(self) -> None:
        """Give jobs that wait to threads that wait: whoever makes one of the two looks for the other afterwards."""
        while self._jobs and self._idle:
            taken: list[Callable[[], None]] = []
            handed = False
            try:
                _keep(taken, self._jobs.popleft)
                handed = self._hand(taken[0])
            except IndexError:
                return
            finally:
                if taken and not handed:  # after a signal perhaps handed all the same: to do it twice does no harm
                    self._jobs.appendleft(taken[0])

    def _work(self, job: Callable[[], None] | None) -> None:
        with self._lock:
            self._threads.add(threading.current_thread())
        worker = _Worker()
        try:
            while job is not None:
                job()
                job = self._next(worker)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, worker: _Worker) -> Callable[[], None] | None:
        """What to do next; None: end."""
        if self._jobs:
            with contextlib.suppress(IndexError):
                return self._jobs.popleft()
        worker.job = None
        self._idle.append(worker)
        if self._jobs:
            self._hand_over()
        if self._closed:
            self._hand(None)
        while not worker.bell.acquire(timeout=self._idle_timeout):
            if self._retire(worker):
                return None
        return worker.job

    def _retire(self, worker: _Worker) -> bool:
        """End this thread, unless it was given a job just now, or it is the last and connections are open."""
        connections = self._connections
        if connections is not None:
            connections.close_unused()
        with self._lock:
            last = len(self._threads) == 1 and not self._closed
            if last and connections is not None and connections.any:
                return False
            try:
                self._idle.remove(worker)
            except ValueError:
                return False
            self._threads.discard(threading.current_thread())
        return True

    def close(self, timeout: float = 1.0) -> None:
        """End the threads; one that is stuck in a dead connection is left behind after *timeout* seconds.

        May be called twice, and goes on where a signal interrupted it.
        """
        if self._ended:
            return
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        while self._hand(None):
            pass
        for thread in threads:
            thread.join(timeout)
        self._ended = True


class Receiver(Protocol[T_contra]):
    """Takes what is done."""

    def put(self, answer: T_contra, /, *, urgent: bool) -> None:
        """Take an answer; *urgent*: somebody should look at once."""


class CompletionQueue(Generic[T]):
    """Where work puts itself when it is done; one thread waits until enough of it is there.

    It is woken once for all rather than for each: by the last, or by what wants to be seen to at once.
    """

    __slots__ = ("_bell", "_completed", "_enough", "_woken")

    def __init__(self) -> None:
        self._completed: deque[T] = deque()
        self._enough = 1
        self._woken = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, answer: T, *, urgent: bool) -> None:
        """Take an answer, in any thread; an *urgent* one wakes the waiting thread whatever else is missing."""
        self._completed.append(answer)
        if urgent or len(self._completed) >= self._enough:
            self._ring()

    def wake(self) -> None:
        """From now on nobody waits: :meth:`take` comes back at once, whatever is there. From any thread, for good."""
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # somebody else has just done so
            self._bell.release()

    def take(self, enough: int, timeout: float) -> list[T]:
        """What has come, once there is *enough* of it or somebody rang; whatever there is after *timeout* seconds."""
        self._enough = enough
        if len(self._completed) < enough and not self._woken:
            # Who puts the last one after this look sees the number, and rings.
            while self._bell.acquire(timeout=timeout) and not self._completed and not self._woken:
                pass  # it rang for what was taken already
        taken: list[T] = []
        while self._completed:
            taken.append(self._completed.popleft())
        return taken
