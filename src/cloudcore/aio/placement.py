"""Trees, ledgers and selectors, awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from cloudcore import AllocationLedger, HostSelector, PlacementTree
from cloudcore.aio.facade import ClosingFacade, Facade, offloaded

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from sqlalchemy.engine import URL, Engine

    from cloudcore.database import Database
    from cloudcore.observability import Observer
    from cloudcore.placement import Candidate, ResourceRequest
    from cloudcore.placement.storage.generations import Generations

__all__ = ["AsyncAllocationLedger", "AsyncHostSelector", "AsyncPlacementTree"]


class AsyncPlacementTree(ClosingFacade[PlacementTree]):
    """A :class:`~cloudcore.PlacementTree` whose searches and edits are awaited.

    What only looks at memory (``sync.provider``, ``sync.roots``, ``sync.usage``) needs no awaiting.
    """

    @classmethod
    async def open(
        cls,
        database: Database | str | URL | Engine,
        *,
        generations: Generations = "cloudcore",
        observer: Observer | None = None,
        strict: bool = False,
        limiter: CapacityLimiter | None = None,
    ) -> Self:
        """See :meth:`PlacementTree.open`. Cancelled, it waits for its end, and closes what was opened for nobody."""
        opened: list[PlacementTree] = []
        opening = Facade(opened, limiter=limiter)

        def open_one() -> None:
            opened.append(PlacementTree.open(database, generations=generations, observer=observer, strict=strict))

        try:
            await opening.run(open_one)
        except BaseException:
            for tree in opened:
                tree.close()
            raise
        return cls(opened.pop(), limiter=limiter)

    async def candidates(self, request: ResourceRequest | str, **options: Any) -> tuple[Candidate, ...]:
        """All candidates of a search, as many as the request's ``limit``; see :meth:`PlacementTree.candidates`."""
        return await self.run(lambda: tuple(self.sync.candidates(request, **options)))

    @offloaded(PlacementTree.refresh)
    def refresh(self) -> None: ...

    @offloaded(PlacementTree.add)
    def add(self) -> None: ...

    @offloaded(PlacementTree.update)
    def update(self) -> None: ...

    @offloaded(PlacementTree.put_inventory)
    def put_inventory(self) -> None: ...

    @offloaded(PlacementTree.remove_inventory)
    def remove_inventory(self) -> None: ...

    @offloaded(PlacementTree.set_inventory)
    def set_inventory(self) -> None: ...

    @offloaded(PlacementTree.set_traits)
    def set_traits(self) -> None: ...

    @offloaded(PlacementTree.set_aggregates)
    def set_aggregates(self) -> None: ...

    @offloaded(PlacementTree.rename)
    def rename(self) -> None: ...

    @offloaded(PlacementTree.move)
    def move(self) -> None: ...

    @offloaded(PlacementTree.remove)
    def remove(self) -> None: ...

    @offloaded(PlacementTree.generations)
    def generations(self) -> None: ...

    @offloaded(PlacementTree.times)
    def times(self) -> None: ...

    @offloaded(PlacementTree.load)
    def load(self) -> None: ...

    @offloaded(PlacementTree.status)
    def status(self) -> None: ...

    @offloaded(PlacementTree.check)
    def check(self) -> None: ...


class AsyncAllocationLedger(ClosingFacade[AllocationLedger]):
    """An :class:`~cloudcore.AllocationLedger` whose calls are awaited, each to its end even when cancelled."""

    @offloaded(AllocationLedger.claim)
    def claim(self) -> None: ...

    @offloaded(AllocationLedger.replace)
    def replace(self) -> None: ...

    @offloaded(AllocationLedger.swap)
    def swap(self) -> None: ...

    @offloaded(AllocationLedger.settle)
    def settle(self) -> None: ...

    @offloaded(AllocationLedger.release)
    def release(self) -> None: ...

    @offloaded(AllocationLedger.begin_move)
    def begin_move(self) -> None: ...

    @offloaded(AllocationLedger.confirm_move)
    def confirm_move(self) -> None: ...

    @offloaded(AllocationLedger.revert_move)
    def revert_move(self) -> None: ...

    @offloaded(AllocationLedger.abandon_move)
    def abandon_move(self) -> None: ...

    @offloaded(AllocationLedger.expire)
    def expire(self) -> None: ...

    @offloaded(AllocationLedger.reshape)
    def reshape(self) -> None: ...

    @offloaded(AllocationLedger.heal)
    def heal(self) -> None: ...

    @offloaded(AllocationLedger.allocations)
    def allocations(self) -> None: ...

    @offloaded(AllocationLedger.consumer)
    def consumer(self) -> None: ...

    @offloaded(AllocationLedger.consumers)
    def consumers(self) -> None: ...

    @offloaded(AllocationLedger.holders)
    def holders(self) -> None: ...

    @offloaded(AllocationLedger.usages)
    def usages(self) -> None: ...

    @offloaded(AllocationLedger.usages_by_type)
    def usages_by_type(self) -> None: ...

    @offloaded(AllocationLedger.history_of)
    def history_of(self) -> None: ...

    @offloaded(AllocationLedger.held_at)
    def held_at(self) -> None: ...

    @offloaded(AllocationLedger.holders_at)
    def holders_at(self) -> None: ...

    @offloaded(AllocationLedger.prune_history)
    def prune_history(self) -> None: ...

    @offloaded(AllocationLedger.move)
    def move(self) -> None: ...

    @offloaded(AllocationLedger.moves)
    def moves(self) -> None: ...

    @offloaded(AllocationLedger.audit)
    def audit(self) -> None: ...

    @offloaded(AllocationLedger.status)
    def status(self) -> None: ...

    @offloaded(AllocationLedger.check)
    def check(self) -> None: ...


class AsyncHostSelector(Facade[HostSelector]):
    """A :class:`~cloudcore.HostSelector` whose calls are awaited, each to its end even when cancelled."""

    @offloaded(HostSelector.select)
    def select(self) -> None: ...

    @offloaded(HostSelector.preview)
    def preview(self) -> None: ...

    @offloaded(HostSelector.select_destination)
    def select_destination(self) -> None: ...
