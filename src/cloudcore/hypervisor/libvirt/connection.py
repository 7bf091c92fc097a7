"""One libvirt connection that is opened when needed, noticed when lost, and opened again."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from cloudcore._extras import require_extra
from cloudcore._failpoints import failpoint
from cloudcore._forks import when_forked
from cloudcore.errors import CloudcoreError, HypervisorError, HypervisorUnavailable
from cloudcore.hypervisor.libvirt.calls import CallRunner
from cloudcore.hypervisor.libvirt.errors import cloudcore_error, connection_lost, failure_of
from cloudcore.hypervisor.libvirt.event_loop import EventLoop
from cloudcore.hypervisor.timeouts import time_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["Connection"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_KEPT = 4  # idle connections that are kept


class Connection:
    """The way to one libvirt daemon (or driver in this process). May be shared between threads.

    Behind it are several libvirt connections. Each serves one call at a time: a daemon answers only a few calls of one
    client at once, and libvirt's client can leave an answer lying for seconds while another call of the same connection
    hangs. So a call that hangs takes nothing with it but its own connection. One more connection listens for events.

    No lock is held while libvirt is called.
    """

    def __init__(
        self,
        uri: str,
        *,
        timeouts: Timeouts,
        own_event_loop: bool = True,
        listen: Callable[[Any], list[int]] | None = None,
        lost: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is opened yet.

        Args:
            uri: What to connect to.
            timeouts: Deadlines.
            own_event_loop: Run libvirt's event loop; False where the caller's process runs one.
            listen: Called with a new ``virConnect``, to register for events; returns the ids of the callbacks.
            lost: Called when a connection was lost, from any thread; must return at once.
            clock: Seconds that only grow.
        """
        self.uri = uri
        self._timeouts = timeouts
        self._listen = listen
        self._lost = lost
        self._clock = clock
        self._runner = CallRunner(uri, clock=clock)
        self._loop = EventLoop() if own_event_loop else None
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._listener: Any = None
        self._registered: dict[int, list[int]] = {}  # callbacks, by identity of their connection
        self._listening = False  # somebody has or opens the listener
        self._connected_once = False
        self._failed_at: float | None = None
        self._closed = False
        self._closing: set[threading.Thread] = set()
        self._used = False
        self._forked = False
        when_forked(self, Connection._abandon)

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
            HypervisorError: This is the child of a process that used it.
            HypervisorUnavailable: No connection, or it was lost meanwhile (what was asked may have been done).
            DeadlineExceeded: No answer in time (likewise).
            CloudcoreError: What libvirt's error means.
        """
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(2 if repeat else 1),
            retry=tenacity.retry_if_exception_type(HypervisorUnavailable),
            reraise=True,
        )
        if self._forked:
            raise HypervisorError(
                f"{what}: {self.uri} was in use when this process was forked; make a new adapter after the fork"
            )
        self._used = True
        limit = self._timeouts.read if seconds is None else seconds
        result: T = attempts(self._call_once, what, function, limit, identifier)
        return result

    def _call_once(self, what: str, function: Callable[[Any], T], seconds: float, identifier: str | None) -> T:
        libvirt = require_extra("libvirt", "libvirt")
        connection, started = self._take(), threading.Event()
        failpoint("hypervisor.connection.before_call")

        def use() -> T:
            started.set()
            return self._use(connection, function)

        try:
            result = self._runner.run(what, use, min(seconds, time_left()))
        except HypervisorUnavailable:
            if not started.is_set():  # no slot was free
                self._put_back(connection)
            raise
        except libvirt.libvirtError as error:
            raise cloudcore_error(failure_of(error), what, uri=self.uri, identifier=identifier) from error
        failpoint("hypervisor.connection.after_call")
        return result

    def _use(self, connection: Any, function: Callable[[Any], T]) -> T:
        """Call, then put the connection back; in the call's own thread, whether anybody still waits for it or not."""
        libvirt = require_extra("libvirt", "libvirt")
        try:
            result = function(connection)
        except libvirt.libvirtError as error:
            if connection_lost(failure_of(error)):
                self._drop(connection)
            else:
                self._put_back(connection)
            raise
        except BaseException:
            self._put_back(connection)
            raise
        self._put_back(connection)
        return result

    @property
    def given_up(self) -> int:
        """Calls that were given up at their deadline and have not come back."""
        return self._runner.given_up

    def close(self) -> None:
        """Close every connection and give the event loop back. Repeated calls do nothing.

        One that is in use is closed when its call comes back. Waits for the rest, no longer than for a read: the event
        loop has to run until they are closed.
        """
        with self._lock:
            self._closed = True
            gone, self._idle = [*self._idle, self._listener], []
            self._listener = None
        for connection in gone:
            self._discard(connection)
        with self._lock:
            closing = list(self._closing)
        end = self._clock() + self._timeouts.read
        for thread in closing:
            thread.join(max(end - self._clock(), 0))
        if self._loop is not None:
            self._loop.stop()

    def _abandon(self) -> None:
        """In a forked child: the sockets are the parent's, so nothing is said on them, not even farewell."""
        if not self._used:
            return
        self._forked = self._closed = True
        for connection in (*self._idle, self._listener):
            if connection is not None:
                connection._o = None  # noqa: SLF001 - else its destructor says farewell
        self._idle, self._listener, self._closing = [], None, set()
        self._lock, self._loop = threading.Lock(), None

    # --- taking and putting back -------------------------------------------------------------------------------------

    def _take(self) -> Any:
        """A connection for one call."""
        with self._lock:
            if self._closed:
                raise HypervisorUnavailable(f"{self.uri}: closed", uri=self.uri)
            if self._idle:
                return self._idle.pop()
        opening = _Opening()
        try:
            if self._loop is not None:
                self._loop.start()
            connection = self._runner.run(
                f"connect to {self.uri}", partial(self._open, opening), min(self._timeouts.connect, time_left())
            )
        except CloudcoreError as error:
            opening.abandoned = True
            with self._lock:
                self._failed_at = self._clock()
            code = getattr(error, "code", None)
            raise HypervisorUnavailable(str(error), uri=self.uri, code=code) from error
        with self._lock:
            self._connected_once, self._failed_at = True, None
        return connection

    def _put_back(self, connection: Any) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _KEPT:
                self._idle.append(connection)
                return
        self._discard(connection)

    def _open(self, opening: _Opening) -> Any:
        """A new connection, and the one for events if there is none."""
        connection = self._opened()
        with self._lock:
            listen = self._listen is not None and not self._listening
            self._listening = self._listening or listen
        if listen:
            self._start_listening()
        if opening.abandoned:  # nobody waits for it any more
            self._discard(connection)
        return connection

    def _opened(self) -> Any:
        libvirt = require_extra("libvirt", "libvirt")
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self._patience()),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1),
            retry=tenacity.retry_if_exception_type(libvirt.libvirtError),
            reraise=True,
        )
        try:
            return retrying(libvirt.open, self.uri)
        except libvirt.libvirtError as error:
            failure = failure_of(error)
            raise HypervisorUnavailable(
                f"connect to {self.uri}: libvirt: {failure.message} (code {failure.code})",
                uri=self.uri,
                code=failure.code,
            ) from error

    def _patience(self) -> float:
        """How long to wait for a daemon that restarts: not for one that never answered, or did not a moment ago."""
        with self._lock:
            failed = self._failed_at is not None and self._clock() - self._failed_at < self._timeouts.connect
            return 0 if failed or not self._connected_once else self._timeouts.connect * 0.9

    def _start_listening(self) -> None:
        """Events are hints: if they cannot be had now, the next new connection tries again."""
        libvirt = require_extra("libvirt", "libvirt")
        try:
            listener = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            _log.info("no events from %s: %s", self.uri, error)
            with self._lock:
                self._listening = False
            return
        with contextlib.suppress(libvirt.libvirtError):  # drivers inside this process have neither
            listener.setKeepAlive(5, 3)  # first: a refused close callback makes libvirt-python keep the connection
            listener.registerCloseCallback(lambda gone, *_: self._listener_lost(gone), None)
        registered = [] if self._listen is None else self._listen(listener)
        with self._lock:
            self._registered[id(listener)] = registered
            if not self._closed:
                self._listener = listener
                return
        self._discard(listener)

    # --- losing ------------------------------------------------------------------------------------------------------

    def _listener_lost(self, listener: Any) -> None:
        """Called by libvirt; late for one that was given up already."""
        with self._lock:
            current = self._listener is not None and self._listener.c_pointer() == listener.c_pointer()
        if current:
            self._drop(listener)

    def _drop(self, connection: Any) -> None:
        """One is of no use any more: then none is. The next call opens a new one."""
        with self._lock:
            gone = [connection, *self._idle]
            self._idle = []
            if self._listener is not None:
                gone.append(self._listener)
                self._listener, self._listening = None, False
        _log.warning("connection to %s was lost", self.uri)
        for one in {id(one): one for one in gone}.values():
            self._discard(one)
        if self._lost is not None:
            self._lost()

    def _discard(self, connection: Any) -> None:
        """Close it in a thread of its own: closing a broken connection may take its time.

        :meth:`close` waits for these threads, in another thread perhaps, and may see none of them before it runs.
        """
        if connection is None:
            return
        thread = threading.Thread(target=self._close, args=(connection,), name="cloudcore libvirt close", daemon=True)
        try:
            with self._lock:
                thread.start()
                self._closing.add(thread)
        except RuntimeError:  # the system has no thread left
            self._close(connection)

    def _close(self, connection: Any) -> None:
        """Close it, in a share of the event loop that lets its socket go: the adapter's may have ended long ago.

        libvirt keeps a connection open while one of its callbacks is registered.
        """
        libvirt = require_extra("libvirt", "libvirt")
        loop = None if self._loop is None else EventLoop()
        if loop is not None:
            with contextlib.suppress(HypervisorUnavailable):
                loop.start()
        with self._lock:
            registered = self._registered.pop(id(connection), None)
        if registered is not None:
            for callback in registered:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.domainEventDeregisterAny(callback)
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()
        if loop is not None:
            loop.stop()
        with self._lock:
            self._closing.discard(threading.current_thread())


class _Opening:
    """An attempt to connect; *abandoned* when nobody waits for it any more."""

    def __init__(self) -> None:
        self.abandoned = False
