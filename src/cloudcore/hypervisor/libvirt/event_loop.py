"""libvirt's event loop, in a thread, while anyone needs it.

libvirt has one event loop for a process, so this is the one thing here that is per process: the loop is registered when
the first user comes, and the thread runs until the last one leaves. A process that runs a loop of its own (libvirt's
default one or libvirtaio) does not use this module, and a forked child of one that had it has none.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from cloudcore._extras import require_extra
from cloudcore._forks import when_forked
from cloudcore.errors import HypervisorUnavailable

__all__ = ["EventLoop"]

_DRAINED_AFTER = 20  # milliseconds
_log = logging.getLogger(__name__)


class EventLoop:
    """A share in the process's event loop: ``start()`` before the first connection is opened, ``stop()`` at the end."""

    _guard = threading.Lock()
    _users = 0
    _registered = False
    _thread: threading.Thread | None = None
    _stopping: threading.Event | None = None

    _forked = False  # a child of a process that had one: half of it lives on there, so it is left alone

    def __init__(self) -> None:
        self._started = self._ended = False

    def start(self) -> None:
        """Have the loop run. Repeated calls do nothing, nor do those after the end.

        Raises:
            HypervisorUnavailable: The system has no thread left for it.
        """
        libvirt = require_extra("libvirt", "libvirt")
        with EventLoop._guard:
            if self._started or self._ended or EventLoop._forked:
                return
            if not EventLoop._registered:
                when_forked(EventLoop, _without_loop)
                libvirt.registerErrorHandler(_silent, None)  # else every error is printed as well as raised
                libvirt.virEventRegisterDefaultImpl()
                EventLoop._registered = True
            if EventLoop._thread is None:
                EventLoop._stopping = threading.Event()
                thread = threading.Thread(
                    target=_run, args=(libvirt, EventLoop._stopping), name="cloudcore libvirt events", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    raise HypervisorUnavailable(f"no thread for libvirt's event loop: {error}") from error
                EventLoop._thread = thread
            EventLoop._users += 1
            self._started = True

    def stop(self) -> None:
        """Give the share back; the thread ends with the last one. Repeated calls do nothing."""
        with EventLoop._guard:
            self._ended = True  # for a thread too that was about to start it
            if not self._started:
                return
            self._started = False
            EventLoop._users -= 1
            if EventLoop._users:
                return
            thread, EventLoop._thread = EventLoop._thread, None
            if EventLoop._stopping is not None:
                EventLoop._stopping.set()
            _wake(require_extra("libvirt", "libvirt"))
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)


def _without_loop(loop: type[EventLoop]) -> None:
    """In a forked child: adapters that are made there get no events, which are hints, and do without."""
    loop._guard = threading.Lock()  # noqa: SLF001 - of this module
    loop._forked, loop._users, loop._thread = True, 0, None  # noqa: SLF001


def _run(libvirt: Any, stopping: threading.Event) -> None:
    _turn(libvirt, stopping)
    drained = threading.Event()  # sockets that were let go are closed by the loop when it has nothing else to do
    _wake(libvirt, _DRAINED_AFTER, drained)
    _turn(libvirt, drained)


def _turn(libvirt: Any, until: threading.Event) -> None:
    while not until.is_set():
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            _log.warning("libvirt's event loop: %s", error)
            until.wait(0.1)


def _wake(libvirt: Any, milliseconds: int = 0, fired: threading.Event | None = None) -> None:
    """Make the loop return from waiting: a timer that fires once and removes itself."""

    def fire(timer: int, _: object) -> None:
        libvirt.virEventRemoveTimeout(timer)
        if fired is not None:
            fired.set()

    libvirt.virEventAddTimeout(milliseconds, fire, None)


def _silent(_: object, __: object) -> None:
    """Libvirt's errors are raised; they need not be printed."""
