"""A small pool of threads that ask cells. Started as needed, kept for the next page, ended by close()."""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cloudcore._forks import when_forked
from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

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
            self._threads.add(thread)
            thread.start()

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
