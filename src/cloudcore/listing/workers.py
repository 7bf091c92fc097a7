"""A small pool of threads that ask cells. Started as needed, kept for the next page, ended by close()."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

_IDLE = 60.0
"""Seconds after which a thread without work ends."""


class Workers:
    """Threads that run jobs. Thread-safe. A job must not raise.

    Cheaper than :class:`concurrent.futures.ThreadPoolExecutor`: no future, no lock per job, and the answers go where
    the job puts them.

    Args:
        maximum: Threads at most.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        """Run *job* soon, in some thread.

        Raises:
            InvalidArgument: :meth:`close` was called.
        """
        with self._lock:
            if self._closed:
                raise InvalidArgument("the router is closed; make a new one", field="router")
            if self._idle > 0:
                self._idle -= 1
            elif len(self._threads) < self._maximum:
                thread = threading.Thread(target=self._work, name="cloudcore-listing", daemon=True)
                self._threads.add(thread)
                thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if self._jobs.empty() and self._idle > 0:
                        self._idle -= 1
                        self._threads.discard(threading.current_thread())
                        return
                continue
            if job is None:
                return
            job()
            with self._lock:
                self._idle += 1

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
