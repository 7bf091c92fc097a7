"""The same classes for programs on asyncio or trio: their calls run in a bounded pool of threads and are awaited.

Nothing is decided here, and nothing is implemented a second time: each method is the method of the same name, with its
arguments, its answers and its errors, offloaded by anyio. Needs the extra ``async``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.aio.attach import AsyncAttachmentManager
    from cloudcore.aio.listing import AsyncCellRouter, AsyncStream
    from cloudcore.aio.placement import AsyncAllocationLedger, AsyncHostSelector, AsyncPlacementTree

_EXPORTS = {
    "AsyncAllocationLedger": "cloudcore.aio.placement",
    "AsyncAttachmentManager": "cloudcore.aio.attach",
    "AsyncCellRouter": "cloudcore.aio.listing",
    "AsyncHostSelector": "cloudcore.aio.placement",
    "AsyncPlacementTree": "cloudcore.aio.placement",
    "AsyncStream": "cloudcore.aio.listing",
}

__all__ = [
    "AsyncAllocationLedger",
    "AsyncAttachmentManager",
    "AsyncCellRouter",
    "AsyncHostSelector",
    "AsyncPlacementTree",
    "AsyncStream",
]

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
