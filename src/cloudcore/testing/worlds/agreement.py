"""Do the records of a world and its books say the same?"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from cloudcore.errors import InvariantViolated
from cloudcore.listing.records.audit import Discrepancy
from cloudcore.listing.values import CellState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cloudcore.listing.router import CellRouter
    from cloudcore.listing.store import InstanceStore
    from cloudcore.placement.allocation_ledger import AllocationLedger
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.ledger.queries import ConsumerState
    from cloudcore.placement.tree import PlacementTree

__all__ = ["require_agreement"]


def require_agreement(
    tree: PlacementTree,
    ledger: AllocationLedger,
    router: CellRouter,
    store: InstanceStore,
    cell_of: Callable[[Provider], str | None],
) -> None:
    """Require that directory, records and books tell of the same instances on the same hosts.

    A record holds something of its host, or has left it in a move that is under way. Consumers that are no instances
    need no record. Of cells that do not answer nothing is required.

    Raises:
        InvariantViolated: They do not agree.
    """
    for finding in store.audit(grace=timedelta()):
        if finding.what is not Discrepancy.CELL_UNREADABLE:
            raise InvariantViolated(f"the directory: {finding.what}, {finding.identifier}: {finding.detail}")
    with router.stream() as stream:
        records = {record.uuid: record for record in stream}
        away = {name for name, report in stream.cells.items() if report.state in {CellState.SLOW, CellState.DOWN}}
    left = {move.instance: move.source for move in ledger.moves()}
    for state in _instances(ledger):
        held = {tree.by_uuid(one).root for one in (*state.allocations, *left.get(state.consumer, ()))}
        cells = {root.name: cell_of(root) for root in map(tree.by_uuid, held)}
        record = records.pop(state.consumer, None)
        if record is None and away.isdisjoint(cells.values()):
            raise InvariantViolated(f"instance {state.consumer} holds something of {_words(cells)}, and has no record")
        if record is not None and record.host not in cells:
            raise InvariantViolated(
                f"instance {state.consumer} is on {record.host} by its record, and holds something of {_words(cells)}"
            )
    for record in records.values():
        raise InvariantViolated(f"instance {record.uuid} is on {record.host} by its record, and holds nothing")


def _instances(ledger: AllocationLedger) -> Iterator[ConsumerState]:
    after = None
    while page := ledger.consumers(consumer_type="INSTANCE", after=after):
        yield from page
        after = page[-1].consumer


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
