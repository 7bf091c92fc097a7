"""Where an instance may run, and who holds what.

Names load on first use. The forest: :class:`PlacementTree` with its values, requests and answers. The ledger:
:class:`AllocationLedger`, what it answers, and the feed that trees follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.placement.audit import Finding, FindingKind, Repair, RepairAction
    from cloudcore.placement.candidates import Candidate
    from cloudcore.placement.changes import changes_since, prune_changes, record_changes
    from cloudcore.placement.claims import Held
    from cloudcore.placement.history import HistoryEntry
    from cloudcore.placement.hosts import AffinityPolicy, HostGroup, HostView
    from cloudcore.placement.ledger import AllocationLedger, Expired
    from cloudcore.placement.ledger_reads import ConsumerState, Usage
    from cloudcore.placement.moves import Move, MoveKind, MoveState
    from cloudcore.placement.ordering import Host
    from cloudcore.placement.planner import SelectionReport
    from cloudcore.placement.report import Rejection, SearchReport
    from cloudcore.placement.requests import RequestGroup, ResourceRequest
    from cloudcore.placement.rescheduling import (
        Attempt,
        Failure,
        FailureKind,
        Rescheduled,
        prune_attempts,
        reschedule,
    )
    from cloudcore.placement.search import HostMatch, Search
    from cloudcore.placement.selection import HostChoice, Selection
    from cloudcore.placement.selector import HostSelector
    from cloudcore.placement.tree import PlacementTree
    from cloudcore.placement.values import Inventory, Provider

_EXPORTS = {
    "AffinityPolicy": "cloudcore.placement.hosts",
    "AllocationLedger": "cloudcore.placement.ledger",
    "Attempt": "cloudcore.placement.rescheduling",
    "Candidate": "cloudcore.placement.candidates",
    "ConsumerState": "cloudcore.placement.ledger_reads",
    "Expired": "cloudcore.placement.ledger",
    "Failure": "cloudcore.placement.rescheduling",
    "FailureKind": "cloudcore.placement.rescheduling",
    "Finding": "cloudcore.placement.audit",
    "FindingKind": "cloudcore.placement.audit",
    "Held": "cloudcore.placement.claims",
    "HistoryEntry": "cloudcore.placement.history",
    "Host": "cloudcore.placement.ordering",
    "HostChoice": "cloudcore.placement.selection",
    "HostGroup": "cloudcore.placement.hosts",
    "HostMatch": "cloudcore.placement.search",
    "HostSelector": "cloudcore.placement.selector",
    "HostView": "cloudcore.placement.hosts",
    "Inventory": "cloudcore.placement.values",
    "Move": "cloudcore.placement.moves",
    "MoveKind": "cloudcore.placement.moves",
    "MoveState": "cloudcore.placement.moves",
    "PlacementTree": "cloudcore.placement.tree",
    "Provider": "cloudcore.placement.values",
    "Rejection": "cloudcore.placement.report",
    "Repair": "cloudcore.placement.audit",
    "RepairAction": "cloudcore.placement.audit",
    "RequestGroup": "cloudcore.placement.requests",
    "Rescheduled": "cloudcore.placement.rescheduling",
    "ResourceRequest": "cloudcore.placement.requests",
    "Search": "cloudcore.placement.search",
    "SearchReport": "cloudcore.placement.report",
    "Selection": "cloudcore.placement.selection",
    "SelectionReport": "cloudcore.placement.planner",
    "Usage": "cloudcore.placement.ledger_reads",
    "changes_since": "cloudcore.placement.changes",
    "prune_attempts": "cloudcore.placement.rescheduling",
    "prune_changes": "cloudcore.placement.changes",
    "record_changes": "cloudcore.placement.changes",
    "reschedule": "cloudcore.placement.rescheduling",
}

__all__ = [
    "AffinityPolicy",
    "AllocationLedger",
    "Attempt",
    "Candidate",
    "ConsumerState",
    "Expired",
    "Failure",
    "FailureKind",
    "Finding",
    "FindingKind",
    "Held",
    "HistoryEntry",
    "Host",
    "HostChoice",
    "HostGroup",
    "HostMatch",
    "HostSelector",
    "HostView",
    "Inventory",
    "Move",
    "MoveKind",
    "MoveState",
    "PlacementTree",
    "Provider",
    "Rejection",
    "Repair",
    "RepairAction",
    "RequestGroup",
    "Rescheduled",
    "ResourceRequest",
    "Search",
    "SearchReport",
    "Selection",
    "SelectionReport",
    "Usage",
    "changes_since",
    "prune_attempts",
    "prune_changes",
    "record_changes",
    "reschedule",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
