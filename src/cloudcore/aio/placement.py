"""Trees, ledgers and selectors, awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from cloudcore import AllocationLedger, HostSelector, PlacementTree
from cloudcore._extras import require_extra
from cloudcore.aio.facade import ClosingFacade, Facade, offloaded

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from sqlalchemy.engine import URL, Engine

    from cloudcore.database import Database
    from cloudcore.placement import Candidate, ResourceRequest

__all__ = ["AsyncAllocationLedger", "AsyncHostSelector", "AsyncPlacementTree"]


class AsyncPlacementTree(ClosingFacade[PlacementTree]):
    """A :class:`~cloudcore.PlacementTree` whose searches and edits are awaited.

    What only looks at memory (``sync.provider``, ``sync.roots``, ``sync.usage``) needs no awaiting.
    """

    @classmethod
    async def open(cls, database: Database | str | URL | Engine, *, limiter: CapacityLimiter | None = None) -> Self:
        """See :meth:`PlacementTree.open`."""
        threads = require_extra("anyio.to_thread", "async")
        return cls(await threads.run_sync(PlacementTree.open, database, limiter=limiter), limiter=limiter)

    async def candidates(self, request: ResourceRequest | str, **options: Any) -> tuple[Candidate, ...]:
        """All candidates of a search, as many as the request's ``limit``; see :meth:`PlacementTree.candidates`."""
        return await self.run(lambda: tuple(self.sync.candidates(request, **options)))

    refresh = offloaded(PlacementTree.refresh)
    add = offloaded(PlacementTree.add)
    update = offloaded(PlacementTree.update)
    put_inventory = offloaded(PlacementTree.put_inventory)
    remove_inventory = offloaded(PlacementTree.remove_inventory)
    set_inventory = offloaded(PlacementTree.set_inventory)
    set_traits = offloaded(PlacementTree.set_traits)
    set_aggregates = offloaded(PlacementTree.set_aggregates)
    rename = offloaded(PlacementTree.rename)
    move = offloaded(PlacementTree.move)
    remove = offloaded(PlacementTree.remove)
    load = offloaded(PlacementTree.load)
    status = offloaded(PlacementTree.status)
    check = offloaded(PlacementTree.check)


class AsyncAllocationLedger(ClosingFacade[AllocationLedger]):
    """An :class:`~cloudcore.AllocationLedger` whose calls are awaited, each to its end even when cancelled."""

    claim = offloaded(AllocationLedger.claim)
    replace = offloaded(AllocationLedger.replace)
    swap = offloaded(AllocationLedger.swap)
    settle = offloaded(AllocationLedger.settle)
    release = offloaded(AllocationLedger.release)
    begin_move = offloaded(AllocationLedger.begin_move)
    confirm_move = offloaded(AllocationLedger.confirm_move)
    revert_move = offloaded(AllocationLedger.revert_move)
    abandon_move = offloaded(AllocationLedger.abandon_move)
    expire = offloaded(AllocationLedger.expire)
    reshape = offloaded(AllocationLedger.reshape)
    heal = offloaded(AllocationLedger.heal)
    allocations = offloaded(AllocationLedger.allocations)
    consumer = offloaded(AllocationLedger.consumer)
    consumers = offloaded(AllocationLedger.consumers)
    holders = offloaded(AllocationLedger.holders)
    usages = offloaded(AllocationLedger.usages)
    usages_by_type = offloaded(AllocationLedger.usages_by_type)
    history_of = offloaded(AllocationLedger.history_of)
    held_at = offloaded(AllocationLedger.held_at)
    holders_at = offloaded(AllocationLedger.holders_at)
    prune_history = offloaded(AllocationLedger.prune_history)
    move = offloaded(AllocationLedger.move)
    moves = offloaded(AllocationLedger.moves)
    audit = offloaded(AllocationLedger.audit)
    status = offloaded(AllocationLedger.status)
    check = offloaded(AllocationLedger.check)


class AsyncHostSelector(Facade[HostSelector]):
    """A :class:`~cloudcore.HostSelector` whose calls are awaited, each to its end even when cancelled."""

    select = offloaded(HostSelector.select)
    select_destination = offloaded(HostSelector.select_destination)
