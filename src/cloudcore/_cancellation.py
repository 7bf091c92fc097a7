"""Cancelling a call from another thread: the call finds its :class:`Cancellation` here and says how it is stopped."""

from __future__ import annotations

import contextlib
import logging
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from cloudcore.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Cancellation"]

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("cloudcore")


class Cancellation:
    """One call that may be cancelled. :meth:`cancel` may come from any thread, at any time, and more than once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = []
        self.cancelled = False

    @staticmethod
    def current() -> Cancellation | None:
        """The one that the present call runs under, if any."""
        return _CURRENT.get()

    def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *function* under this."""
        token = _CURRENT.set(self)
        try:
            self.check()
            return function(*args, **kwargs)
        finally:
            _CURRENT.reset(token)

    def cancel(self) -> None:
        """Stop what is under way, and whatever begins after. Never raises: a stop that fails is logged."""
        with self._lock:
            self.cancelled = True
            stops = list(self._stops)
        for stop in stops:
            try:
                stop()
            except Exception:
                _log.warning("could not stop %r of a cancelled call, which may go on for a while", stop, exc_info=True)

    def check(self) -> None:
        """Raise if it was cancelled.

        Raises:
            Cancelled: It was.
        """
        if self.cancelled:
            raise Cancelled("the call was cancelled")

    @contextlib.contextmanager
    def stopped_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """While the block runs, :meth:`cancel` calls *stop* (in its own thread, at most once for each cancel)."""
        with self._lock:
            self._stops.append(stop)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)


_CURRENT: ContextVar[Cancellation | None] = ContextVar("cloudcore_cancellation", default=None)
