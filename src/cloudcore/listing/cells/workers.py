"""A small pool of threads that ask cells, started as needed and kept, and where they leave what they have done."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cloudcore._forks import when_forked
from cloudcore.errors import InvalidArgument, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CompletionQueue", "Receiver", "Workers"]

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
_IDLE = 60.0
"""Seconds after which a thread without work ends."""


class Workers:
    """Threads that run jobs. Thread-safe. A job must not raise. A forked child starts threads of its own.

    Cheaper than :class:`concurrent.futures.ThreadPoolExecutor`: no future, no lock per job, and the answers go where
    the job puts them.

    Args:
        maximum: Threads at most.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._closed = False
        self._start_empty()
        when_forked(self, Workers._start_empty)

    def _start_empty(self) -> None:
        """Without threads: at first, and in a forked child, which has none of its parent's nor does their jobs."""
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle: deque[None] = deque()
        """One token for each thread that waits and that no job was promised to; both ends are atomic."""
        self._waiting = 0
        """Jobs beyond the number of threads: who takes one of them becomes idle a job later."""
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()

    def run(self, job: Callable[[], None]) -> None:
        """Run *job* soon, in some thread.

        Raises:
            InvalidArgument: :meth:`close` was called.
            Overloaded: The system gives no thread, and none is there that could do it later.
        """
        try:
            self._idle.pop()
        except IndexError:
            self._grow()
        self._jobs.put(job)
        if self._closed:  # asked afterwards: a job put before the end's marks is still run
            raise InvalidArgument("the router is closed; make a new one", field="router")

    def _grow(self) -> None:
        """One thread more, if there may be."""
        with self._lock:
            if self._closed or len(self._threads) >= self._maximum:
                self._waiting += 1
                return
            thread = threading.Thread(target=self._work, name="cloudcore-listing", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no thread left
                if not self._threads:
                    raise Overloaded(f"no cell can be asked: {error}", seconds=0.0) from error
                self._waiting += 1
                return
            self._threads.add(thread)

    def _work(self) -> None:
        jobs, idle = self._jobs, self._idle
        while True:
            try:
                job = jobs.get(timeout=_IDLE)
            except Empty:
                if self._retire():
                    return
                continue
            if job is None:
                return
            job()
            if not (self._waiting and self._goes_on()):
                idle.append(None)

    def _goes_on(self) -> bool:
        """Whether a job waits that no thread was promised to."""
        with self._lock:
            if not self._waiting:
                return False
            self._waiting -= 1
            return True

    def _retire(self) -> bool:
        """End this thread, unless a job is promised to it."""
        try:
            self._idle.pop()
        except IndexError:
            return False
        with self._lock:
            self._threads.discard(threading.current_thread())
        return True

    def close(self, timeout: float = 1.0) -> None:
        """End the threads; one that is stuck in a dead connection is left behind after *timeout* seconds."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(timeout)


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
