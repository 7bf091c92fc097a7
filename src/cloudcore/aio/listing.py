"""Listing, awaited: pages, counts and look-ups, and streams as asynchronous iterators."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Self

from cloudcore import CellRouter
from cloudcore.aio.facade import ClosingFacade, offloaded, offloaded_read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing import CellReport, Query, Record, Stream

__all__ = ["AsyncCellRouter", "AsyncStream"]

_BLOCK = 256
"""Records taken in one visit to a thread."""


class AsyncCellRouter(ClosingFacade[CellRouter]):
    """A :class:`~cloudcore.CellRouter` whose calls are awaited; a cancelled call stops its statements in the cells."""

    page = offloaded_read(CellRouter.page)
    get = offloaded_read(CellRouter.get)
    locate = offloaded_read(CellRouter.locate)
    count = offloaded_read(CellRouter.count)
    scatter = offloaded(CellRouter.scatter)

    def stream(
        self,
        query: Query | None = None,
        *,
        cursor: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> AsyncStream:
        """The whole result, as an asynchronous iterator; see :meth:`CellRouter.stream`. For one task.

        ``async with`` ends what is under way when the block is left early.
        """
        return AsyncStream(self, lambda: self.sync.stream(query, cursor=cursor, on_progress=on_progress))


class AsyncStream:
    """A :class:`~cloudcore.listing.Stream`, block by block. For one task."""

    def __init__(self, router: AsyncCellRouter, begin: Callable[[], Stream]) -> None:
        self._router, self._begin = router, begin
        self._stream: Stream | None = None
        self._block: deque[Record] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        """The next record.

        Raises:
            InvalidQuery, InvalidCursor: The first time; nothing was asked.
            CellUnavailable: ``require="all"`` and some cell did not answer.
        """
        if not self._block:
            self._block.extend(await self._router.read(self._take))
            if not self._block:
                raise StopAsyncIteration
        return self._block.popleft()

    def _take(self) -> list[Record]:
        if self._stream is None:
            self._stream = self._begin()
        return list(itertools.islice(self._stream, _BLOCK))

    @property
    def cells(self) -> Mapping[str, CellReport]:
        """What became of each cell so far."""
        return {} if self._stream is None else self._stream.cells

    async def close(self) -> None:
        """Drop what is under way. The stream gives nothing more."""
        self._block.clear()
        if self._stream is not None:
            await self._router.run(self._stream.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
