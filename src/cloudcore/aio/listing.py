"""Listing, awaited: pages, counts and look-ups, and streams as asynchronous iterators."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

from cloudcore import CellRouter
from cloudcore._extras import require_extra
from cloudcore._forks import when_forked
from cloudcore.aio.facade import ClosingFacade, offloaded, offloaded_read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing import CellReport, Query, Record, Stream

__all__ = ["AsyncCellRouter", "AsyncStream"]

_BLOCK = 256
"""Records taken in one visit to a thread."""


class AsyncCellRouter(ClosingFacade[CellRouter]):
    """A :class:`~cloudcore.CellRouter` whose calls are awaited; a cancelled call stops its statements in the cells."""

    @offloaded_read(CellRouter.page)
    def page(self) -> None: ...

    @offloaded_read(CellRouter.get)
    def get(self) -> None: ...

    @offloaded_read(CellRouter.locate)
    def locate(self) -> None: ...

    @offloaded_read(CellRouter.count)
    def count(self) -> None: ...

    @offloaded(CellRouter.scatter)
    def scatter(self) -> None: ...

    def stream(
        self,
        query: Query | None = None,
        *,
        cursor: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> AsyncStream:
        """The whole result, as an asynchronous iterator; see :meth:`CellRouter.stream`.

        ``async with`` ends what is under way when the block is left early.
        """
        return AsyncStream(self, lambda: self.sync.stream(query, cursor=cursor, on_progress=on_progress))


class AsyncStream:
    """A :class:`~cloudcore.listing.Stream`, block by block. Tasks that step at once share the records among them.

    A step that is cancelled loses no record: what its thread had taken comes with the next one. If the cancellation
    stopped statements, the stream has ended there: once what was taken has been given, a further step raises
    :class:`~cloudcore.errors.Cancelled`.
    """

    def __init__(self, router: AsyncCellRouter, begin: Callable[[], Stream]) -> None:
        self._router, self._begin = router, begin
        self._stream: Stream | None = None
        self._block: deque[Record] = deque()
        self._failure: Exception | None = None
        self._over = False
        self._unlock()
        when_forked(self, AsyncStream._unlock)

    def _unlock(self) -> None:
        self._taking = threading.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        """The next record.

        Raises:
            InvalidQuery, InvalidCursor: The first time; nothing was asked.
            CellUnavailable: ``require="all"`` and some cell did not answer.
            Cancelled: An earlier step was cancelled, and its statements were stopped; or this is a forked child, whose
                parent has begun the stream.
        """
        while True:
            with contextlib.suppress(IndexError):  # another task may have taken the last
                return self._block.popleft()
            if self._over:
                raise StopAsyncIteration
            await self._router.read(self._take)

    def _take(self) -> None:
        """Take a block, in a thread. One that was given up may still be at it: then this one waits."""
        with self._taking:
            if self._block or self._over:
                return
            if self._failure is not None:
                raise self._failure
            if self._stream is None:
                self._stream = self._begin()
            try:
                self._block.extend(itertools.islice(self._stream, _BLOCK))
            except Exception as failure:  # told when what was taken before it has been given
                self._failure = failure
                if not self._block:
                    raise
            self._over = not self._block

    @property
    def cells(self) -> Mapping[str, CellReport]:
        """What became of each cell so far."""
        return {} if self._stream is None else self._stream.cells

    async def close(self) -> None:
        """Drop what is under way. The stream gives nothing more. Awaits that even when cancelled."""
        anyio = require_extra("anyio", "async")
        with anyio.CancelScope(shield=True):
            await self._router.run(self._close)

    def _close(self) -> None:
        with self._taking:
            self._over = True
            self._block.clear()
            if self._stream is not None:
                self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
