"""One libvirt connection that is opened when needed, noticed when lost, and opened again."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import tenacity

from cloudcore._extras import require_extra
from cloudcore._failpoints import failpoint
from cloudcore.errors import HypervisorUnavailable
from cloudcore.hypervisor.calls import CallRunner
from cloudcore.hypervisor.event_loop import EventLoop
from cloudcore.hypervisor.libvirt_errors import cloudcore_error, connection_lost, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "Timeouts"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Timeouts:
    """Deadlines, in seconds.

    Attributes:
        connect: To open a connection, repeated attempts included: as long as a restart of libvirtd may take.
        read: For a call that changes nothing.
        change: For a call that plugs or resizes.
        facts: To read everything about the host.
        detach: How long a guest is waited for before a detach is *pending*.
        paused: The same for a guest that cannot answer because it is paused.
    """

    connect: float = 10.0
    read: float = 15.0
    change: float = 60.0
    facts: float = 60.0
    detach: float = 20.0
    paused: float = 1.0


class Connection:
    """The way to one libvirt daemon (or driver in this process). May be shared between threads.

    No lock is held while libvirt is called.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeouts: Timeouts,
        own_event_loop: bool = True,
        prepare: Callable[[Any], None] | None = None,
        lost: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet.

        Args:
            uri: What to connect to.
            timeouts: Deadlines.
            own_event_loop: Run libvirt's event loop; False where the caller's process runs one.
            prepare: Called with each new ``virConnect``, to register for events.
            lost: Called when a connection was lost, from any thread; must return at once.
            clock: Seconds that only grow.
        """
        self.uri = uri
        self.generation = 0
        self._timeouts = timeouts
        self._prepare = prepare
        self._lost = lost
        self._clock = clock
        self._runner = CallRunner(uri, clock=clock)
        self._loop = EventLoop() if own_event_loop else None
        self._lock = threading.Lock()
        self._current: Any = None
        self._attempt: _Attempt | None = None
        self._failed_at: float | None = None
        self._closed = False

    def call(
        self,
        what: str,
        function: Callable[[Any], T],
        *,
        seconds: float | None = None,
        identifier: str | None = None,
        repeat: bool = False,
    ) -> T:
        """The result of ``function(virConnect)``, made in a thread of its own.

        Args:
            what: Names the call in errors.
            function: Makes libvirt calls; nothing else.
            seconds: Its deadline, ``timeouts.read`` by default.
            identifier: The object it is about, for errors.
            repeat: It changes nothing: if the connection breaks meanwhile, do it again on a new one.

        Raises:
            HypervisorUnavailable: No connection, or it was lost meanwhile (what was asked may have been done).
            DeadlineExceeded: No answer in time (likewise).
            CloudcoreError: What libvirt's error means.
        """
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(2 if repeat else 1),
            retry=tenacity.retry_if_exception_type(HypervisorUnavailable),
            reraise=True,
        )
        limit = self._timeouts.read if seconds is None else seconds
        result: T = attempts(self._call_once, what, function, limit, identifier)
        return result

    def _call_once(self, what: str, function: Callable[[Any], T], seconds: float, identifier: str | None) -> T:
        libvirt = require_extra("libvirt", "libvirt")
        connection = self._connected()
        failpoint("hypervisor.connection.before_call")
        try:
            result = self._runner.run(what, partial(function, connection), seconds)
        except libvirt.libvirtError as error:
            failure = failure_of(error)
            if connection_lost(failure):
                self._drop(connection)
            raise cloudcore_error(failure, what, uri=self.uri, identifier=identifier) from error
        failpoint("hypervisor.connection.after_call")
        return result

    @property
    def given_up(self) -> int:
        """Calls that were given up at their deadline and have not come back."""
        return self._runner.given_up

    def close(self) -> None:
        """Close the connection and give the event loop back. Repeated calls do nothing."""
        with self._lock:
            self._closed = True
            connection, self._current = self._current, None
        if connection is not None:
            self._discard(connection)
        if self._loop is not None:
            self._loop.stop()

    # --- opening and losing ------------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        """The connection; opened by one thread, which the others wait for."""
        with self._lock:
            if self._closed:
                raise HypervisorUnavailable(f"{self.uri}: closed", uri=self.uri)
            if self._current is not None:
                return self._current
            attempt, mine = self._attempt, self._attempt is None
            if attempt is None:
                attempt = self._attempt = _Attempt()
        if mine:
            self._open(attempt)
        elif not attempt.done.wait(self._timeouts.connect):
            raise HypervisorUnavailable(f"{self.uri}: no connection yet", uri=self.uri)
        if attempt.error is not None:
            raise HypervisorUnavailable(
                str(attempt.error), uri=self.uri, code=getattr(attempt.error, "code", None)
            ) from attempt.error
        return attempt.connection

    def _open(self, attempt: _Attempt) -> None:
        """Carry the attempt to its end, good or bad."""
        try:
            if self._loop is not None:
                self._loop.start()
            attempt.connection = self._runner.run(
                f"connect to {self.uri}", lambda: self._opened(attempt), self._timeouts.connect
            )
        except Exception as error:
            attempt.error = error
        finally:
            with self._lock:
                self._attempt = None
                if attempt.connection is not None and not self._closed:
                    self._current, self._failed_at = attempt.connection, None
                    self.generation += 1
                else:
                    self._failed_at = self._clock()
                attempt.over = True
            attempt.done.set()

    def _opened(self, attempt: _Attempt) -> Any:
        """A new connection, ready for use."""
        libvirt = require_extra("libvirt", "libvirt")
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self._patience()),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1),
            retry=tenacity.retry_if_exception_type(libvirt.libvirtError),
            reraise=True,
        )
        try:
            connection = retrying(libvirt.open, self.uri)
        except libvirt.libvirtError as error:
            failure = failure_of(error)
            raise HypervisorUnavailable(
                f"connect to {self.uri}: libvirt: {failure.message} (code {failure.code})",
                uri=self.uri,
                code=failure.code,
            ) from error
        with contextlib.suppress(libvirt.libvirtError):  # drivers inside this process have neither
            connection.registerCloseCallback(lambda gone, *_: self._drop(gone), None)
            connection.setKeepAlive(5, 3)
        if self._prepare is not None:
            self._prepare(connection)
        if attempt.over:  # nobody waits for it any more
            self._discard(connection)
        return connection

    def _patience(self) -> float:
        """How long to wait for a daemon that restarts: not for one that never answered, or did not a moment ago."""
        with self._lock:
            failed = self._failed_at is not None and self._clock() - self._failed_at < self._timeouts.connect
            return 0 if failed or not self.generation else self._timeouts.connect * 0.9

    def _drop(self, connection: Any) -> None:
        """Forget a connection that is of no use; the next call opens a new one."""
        with self._lock:
            if self._current is None or self._current.c_pointer() != connection.c_pointer():
                return
            self._current = None
        _log.warning("connection to %s was lost", self.uri)
        self._discard(connection)
        if self._lost is not None:
            self._lost()

    def _discard(self, connection: Any) -> None:
        """Close it in a thread that nobody waits for: closing a broken connection may take its time."""
        libvirt = require_extra("libvirt", "libvirt")

        def close() -> None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

        threading.Thread(target=close, name="cloudcore libvirt close", daemon=True).start()


class _Attempt:
    """One attempt to connect, which several threads may wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.connection: Any = None
        self.error: BaseException | None = None
        self.over = False
