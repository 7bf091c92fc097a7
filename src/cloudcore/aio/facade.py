"""How a call is offloaded to a thread, and what its cancellation means."""

from __future__ import annotations

import functools
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
        """Call *function* in a thread of the pool; a cancellation waits until it has returned.

        So whoever cancels a call that changes something knows that it has ended; which way, its operation id tells.
        """
        call = functools.partial(function, *args, **kwargs)
        result: R = await self._threads.run_sync(call, limiter=self._limiter)
        return result

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


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class ClosingFacade(Facade[C]):
    """An asynchronous context manager, too, that closes the object at its end."""

    async def close(self) -> None:
        """Close what does the work. Awaits it even when cancelled."""
        await self.run(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        anyio = require_extra("anyio", "async")
        with anyio.CancelScope(shield=True):
            await self.close()


def offloaded(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """The *method* of the object that does the work, awaited to its end even when cancelled."""

    @functools.wraps(method)
    async def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.run(_own(method, self.sync), *args, **kwargs)

    return call


def offloaded_read(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """The *method*, which changes nothing and heeds a cancellation."""

    @functools.wraps(method)
    async def call(self: Facade[Any], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.read(_own(method, self.sync), *args, **kwargs)

    return call


def _own(method: Callable[Concatenate[Any, P], R], sync: Any) -> Callable[P, R]:
    """The object's own method of that name: its class may be a subclass that has another."""
    found: Callable[P, R] = getattr(sync, method.__name__)
    return found
