"""Calls that may block for minutes, made so that their caller never does.

libvirt's calls wait for daemons, disks and networks: with an unreachable Ceph monitor, plugging a disk takes 300 s.
They cannot be interrupted. So each runs in a thread of its own, and the caller leaves when the deadline has passed.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

from cloudcore.errors import DeadlineExceeded, HypervisorUnavailable
from cloudcore.observability import span

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CallRunner"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


class CallRunner:
    """Runs blocking functions with a deadline. May be shared between threads.

    A call that is given up goes on in its thread (a daemon, so that it does not keep the process alive) and its result
    is dropped. At most *limit* may be under way, given up or not: then further ones are refused, instead of piling up.
    """

    def __init__(self, uri: str, *, limit: int = 32, clock: Callable[[], float] = time.monotonic) -> None:
        self._uri = uri
        self._limit = limit
        self._clock = clock
        self._slots = threading.BoundedSemaphore(limit)
        self._lock = threading.Lock()
        self._given_up = 0

    @property
    def given_up(self) -> int:
        """How many calls were given up and have not come back yet."""
        return self._given_up

    def run(self, what: str, function: Callable[[], T], seconds: float) -> T:
        """The result of *function*, or its exception. *what* names it in errors.

        Raises:
            DeadlineExceeded: It did not come back within *seconds*; it may still do its work.
            HypervisorUnavailable: No slot got free within *seconds*; nothing was started.
        """
        with span("hypervisor.libvirt", call=what):
            return self._run(what, function, seconds)

    def _run(self, what: str, function: Callable[[], T], seconds: float) -> T:
        deadline = self._clock() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise HypervisorUnavailable(
                f"{what}: {self._limit} calls to {self._uri} are under way, {self._given_up} of them overdue",
                uri=self._uri,
            )
        call = _Call(function)
        try:
            threading.Thread(target=self._work, args=(call,), name=f"cloudcore {what}", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            self._slots.release()
            raise HypervisorUnavailable(f"{what}: {error}", uri=self._uri) from error
        if not call.done.wait(max(deadline - self._clock(), 0)):
            with self._lock:
                if not call.done.is_set():
                    call.given_up = True
                    self._given_up += 1
            if call.given_up:
                _log.warning("%s: no answer from %s within %g s", what, self._uri, seconds)
                raise DeadlineExceeded(f"{what}: no answer from {self._uri} within {seconds:g} s", seconds=seconds)
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def _work(self, call: _Call) -> None:
        try:
            call.result = call.function()
        except BaseException as error:  # it is raised again where the result is waited for
            call.error = error
            traceback.clear_frames(error.__traceback__)  # a guest in them would keep a descriptor as long as the error
        finally:
            with self._lock:
                call.done.set()
                if call.given_up:
                    self._given_up -= 1
            self._slots.release()


class _Call:
    __slots__ = ("done", "error", "function", "given_up", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.result: Any = None
        self.given_up = False
