"""How a call is offloaded to a thread, and what its cancellation means."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from cloudcore._cancellation import Cancellation
from cloudcore._extras import require_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

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
        limiter: Bounds the threads that are busy at once, those of cancelled calls too until they end; by default
            anyio's own limiter of the running event loop (40 threads), which other libraries share.

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
        async with self._place(call) as limiter:
            try:
                result: R = await self._threads.run_sync(call, limiter=limiter)
            except BaseException:
                if not call.revoke():  # asyncio's own cancel() and timeout() leave even a shielded thread behind
                    await self._end_of(call)
                raise
        return result

    async def _end_of(self, call: _Call) -> None:
        anyio = require_extra("anyio", "async")
        while not call.ended:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.005)
            except anyio.get_cancelled_exc_class():  # once more; the first one is raised in the end
                continue

    async def read(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call *function*, which changes nothing, in a thread of the pool. Cancelled, its statements are stopped.

        The task goes on at once; the thread keeps its place until it has ended, too.
        """
        cancellation = Cancellation()
        call = _Call(functools.partial(cancellation.run, function, *args, **kwargs))
        async with self._place(call) as limiter:
            try:
                result: R = await self._threads.run_sync(call, limiter=limiter, abandon_on_cancel=True)
            except BaseException:  # cancelled, whatever the event loop calls that; the thread need not be awaited
                cancellation.cancel()
                raise
        return result

    def _place(self, call: _Call) -> AbstractAsyncContextManager[CapacityLimiter | None]:
        """The limiter with which anyio is to begin *call*, whose place is taken until its thread has ended."""
        if _on_asyncio():
            return _Place(call, self._limiter or self._threads.current_default_thread_limiter())
        return nullcontext(self._limiter)  # trio gives places back when threads end

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.sync!r}>"


class _Call:
    """A call on its way into a thread: it can be revoked until it has begun, and tells when it has ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._begun = self._revoked = False
        self._tell: Callable[[], None] | None = None
        self.ended = False

    def __call__(self) -> Any:
        with self._lock:
            if self._revoked:
                return None
            self._begun = True
        try:
            return self._function()
        finally:
            with self._lock:
                self.ended = True
            if self._tell is not None:
                self._tell()

    def revoke(self) -> bool:
        """See that it never begins; False if it has begun."""
        with self._lock:
            self._revoked = not self._begun
            return self._revoked

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Have *tell* called, in the thread when it ends, or at once if it has ended."""
        with self._lock:
            if not self.ended:
                self._tell = tell
                return
        tell()


class _Place:
    """A call's place of a limiter on asyncio, where anyio gives it back as soon as the task is cancelled.

    A thread that outlives its task has a task of its own that keeps the place: an event loop that ends cancels that
    too, so that a limiter that is used with the next loop has all its places.
    """

    def __init__(self, call: _Call, limiter: CapacityLimiter) -> None:
        self._call, self._limiter = call, limiter

    async def __aenter__(self) -> CapacityLimiter:
        try:
            self._limiter.acquire_on_behalf_of_nowait(self._call)  # the usual case, without a turn of the event loop
        except require_extra("anyio", "async").WouldBlock:
            await self._limiter.acquire_on_behalf_of(self._call)
        return _boundless()

    async def __aexit__(self, *_: object) -> None:
        if self._call.revoke() or self._call.ended or not _on_asyncio():  # at last: a task that is thrown away
            self._limiter.release_on_behalf_of(self._call)
        else:
            asyncio.ensure_future(self._keep())  # noqa: RUF006 - the thread holds it

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has closed, and has cancelled this
                loop.call_soon_threadsafe(ended.set)

        self._call.when_ended(tell)
        try:
            await ended.wait()
        finally:
            self._limiter.release_on_behalf_of(self._call)


@functools.cache
def _boundless() -> CapacityLimiter:
    """For calls on asyncio that have their places already. It never lets anybody wait, and so is of no event loop."""
    made: CapacityLimiter = require_extra("anyio", "async").CapacityLimiter(math.inf)
    return made


def _on_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


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
