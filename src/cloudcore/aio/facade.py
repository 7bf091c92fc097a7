"""How a call is offloaded to a thread, and what its cancellation means."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from cloudcore._cancellation import Cancellation
from cloudcore._extras import require_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from anyio import CapacityLimiter

__all__ = ["ClosingFacade", "Facade", "offloaded", "offloaded_read"]

P = ParamSpec("P")
R = TypeVar("R")


S = TypeVar("S")


class Facade(Generic[S]):
    """An object whose calls are awaited.

    May be shared between tasks, and between event loops: it holds nothing of a loop.

    Args:
        sync: The object that does the work; it may be used directly, too.
        limiter: Bounds the threads that are busy at once; by default anyio's own limiter of the running event loop (40
            threads), which other libraries share.

    Raises:
        MissingExtra: anyio is not installed.
    """

    def __init__(self, sync: S, *, limiter: CapacityLimiter | None = None) -> None:
        self.sync = sync
        self._limiter = limiter
        self._threads = require_extra("anyio.to_thread", "async")

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *function* in a thread of the pool; a cancellation keeps it from beginning, or waits for its end.

        So whoever cancels a call that changes something knows that it has ended; which way, its operation id tells.
        """
        call = _Call(functools.partial(function, *args, **kwargs))
        try:
            result: R = await self._threads.run_sync(call, limiter=self._limiter)
        except BaseException:
            if not call.revoke():  # asyncio's own cancel() and timeout() leave even a shielded thread behind
                await self._end_of(call)
            raise
        return result

    async def _end_of(self, call: _Call) -> None:
        anyio = require_extra("anyio", "async")
        while not call.ended.is_set():
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.005)
            except anyio.get_cancelled_exc_class():  # once more; the first one is raised in the end
                continue

    async def read(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *function*, which changes nothing, in a thread of the pool. Cancelled, its statements are stopped."""
        cancellation = Cancellation()
        call = functools.partial(cancellation.run, function, *args, **kwargs)
        try:
            result: R = await self._threads.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
        except BaseException:  # cancelled, whatever the event loop calls that; the thread need not be awaited
            cancellation.cancel()
            raise
        return result

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.sync!r}>"


class _Call:
    """A call on its way into a thread: it can be revoked until it has begun, and tells when it has ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._begun = self._revoked = False
        self.ended = threading.Event()

    def __call__(self) -> Any:
        with self._lock:
            if self._revoked:
                return None
            self._begun = True
        try:
            return self._function()
        finally:
            self.ended.set()

    def revoke(self) -> bool:
        """See that it never begins; False if it has begun."""
        with self._lock:
            self._revoked = not self._begun
            return self._revoked


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class ClosingFacade(Facade[C]):
    """An asynchronous context manager, too, that closes the object at its end."""

    async def close(self) -> None:
        """Close what does the work. Awaits it even when cancelled."""
        anyio = require_extra("anyio", "async")
        with anyio.CancelScope(shield=True):
            await self.run(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def offloaded(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[[Callable[[Any], None]], Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]]:
    """Make what is decorated *method* of the object that does the work, awaited to its end even when cancelled."""

    def make(_: Callable[[Any], None]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
        @functools.wraps(method)
        async def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
            return await self.run(_own(method, self.sync), *args, **kwargs)

        return call

    return make


def offloaded_read(
    method: Callable[Concatenate[Any, P], R],
) -> Callable[[Callable[[Any], None]], Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]]:
    """Make what is decorated *method*, which changes nothing and heeds a cancellation."""

    def make(_: Callable[[Any], None]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
        @functools.wraps(method)
        async def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
            return await self.read(_own(method, self.sync), *args, **kwargs)

        return call

    return make


def _own(method: Callable[Concatenate[Any, P], R], sync: Any) -> Callable[P, R]:
    """The object's own method of that name: its class may be a subclass that has another."""
    found: Callable[P, R] = getattr(sync, method.__name__)
    return found
