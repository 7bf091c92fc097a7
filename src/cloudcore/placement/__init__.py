"""Where an instance may run, and who holds what.

Names load on first use. The forest: :class:`PlacementTree` with its values, requests and answers. The ledger:
:class:`AllocationLedger`, what it answers, and the feed that trees follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.placement.candidates import Candidate
    from cloudcore.placement.changes import changes_since, prune_changes, record_changes
    from cloudcore.placement.claims import Held
    from cloudcore.placement.ledger import AllocationLedger
    from cloudcore.placement.ledger_reads import ConsumerState, Usage
    from cloudcore.placement.moves import Move, MoveKind, MoveState
    from cloudcore.placement.ordering import Host
    from cloudcore.placement.report import Rejection, SearchReport
    from cloudcore.placement.requests import RequestGroup, ResourceRequest
    from cloudcore.placement.search import HostMatch, Search
    from cloudcore.placement.tree import PlacementTree
    from cloudcore.placement.values import Inventory, Provider

_EXPORTS = {
    "AllocationLedger": "cloudcore.placement.ledger",
    "Candidate": "cloudcore.placement.candidates",
    "ConsumerState": "cloudcore.placement.ledger_reads",
    "Held": "cloudcore.placement.claims",
    "Host": "cloudcore.placement.ordering",
    "HostMatch": "cloudcore.placement.search",
    "Inventory": "cloudcore.placement.values",
    "Move": "cloudcore.placement.moves",
    "MoveKind": "cloudcore.placement.moves",
    "MoveState": "cloudcore.placement.moves",
    "PlacementTree": "cloudcore.placement.tree",
    "Provider": "cloudcore.placement.values",
    "Rejection": "cloudcore.placement.report",
    "RequestGroup": "cloudcore.placement.requests",
    "ResourceRequest": "cloudcore.placement.requests",
    "Search": "cloudcore.placement.search",
    "SearchReport": "cloudcore.placement.report",
    "Usage": "cloudcore.placement.ledger_reads",
    "changes_since": "cloudcore.placement.changes",
    "prune_changes": "cloudcore.placement.changes",
    "record_changes": "cloudcore.placement.changes",
}

__all__ = [
    "AllocationLedger",
    "Candidate",
    "ConsumerState",
    "Held",
    "Host",
    "HostMatch",
    "Inventory",
    "Move",
    "MoveKind",
    "MoveState",
    "PlacementTree",
    "Provider",
    "Rejection",
    "RequestGroup",
    "ResourceRequest",
    "Search",
    "SearchReport",
    "Usage",
    "changes_since",
    "prune_changes",
    "record_changes",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
