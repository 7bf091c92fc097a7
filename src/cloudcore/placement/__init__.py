"""Where an instance may run, and who holds what.

Names load on first use. The forest: :class:`PlacementTree` with its values, requests and answers. The ledger:
:class:`AllocationLedger`, what it answers, and the feed that trees follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.placement.allocation_ledger import AllocationLedger, Expired
    from cloudcore.placement.forest.values import Inventory, Provider
    from cloudcore.placement.hosts.headroom import Count, FlavorHeadroom, Headroom, headroom
    from cloudcore.placement.hosts.host_view import HostView
    from cloudcore.placement.hosts.planner import SelectionReport
    from cloudcore.placement.hosts.selection import HostChoice, Selection
    from cloudcore.placement.ledger.history import HistoryEntry
    from cloudcore.placement.ledger.queries import ConsumerState, Holder, LedgerStatus, Usage
    from cloudcore.placement.requests.flavors.rules import FlavorRules, PciAlias, Unhonoured
    from cloudcore.placement.requests.groups import RequestGroup
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.rules.audit import Finding, FindingKind, Repair, RepairAction
    from cloudcore.placement.rules.claims import Held, Owner
    from cloudcore.placement.rules.groups import AffinityPolicy, HostGroup
    from cloudcore.placement.rules.moves import Move, MoveKind, MoveState
    from cloudcore.placement.scheduling.draining import DrainMove, DrainOutcome, DrainPlan, Stuck, plan_drain
    from cloudcore.placement.scheduling.rescheduling import (
        Attempt,
        Failure,
        FailureKind,
        Rescheduled,
        prune_attempts,
        reschedule,
    )
    from cloudcore.placement.scheduling.selector import HostSelector
    from cloudcore.placement.search.candidates import Candidate
    from cloudcore.placement.search.ordering import Host
    from cloudcore.placement.search.rejections import Rejection
    from cloudcore.placement.search.report import SearchReport
    from cloudcore.placement.search.search import HostMatch, Search
    from cloudcore.placement.storage.changes import changes_since, prune_changes, record_changes
    from cloudcore.placement.tree import PlacementTree
    from cloudcore.placement.tree_state import TreeStatus

_EXPORTS = {
    "AffinityPolicy": "cloudcore.placement.rules.groups",
    "AllocationLedger": "cloudcore.placement.allocation_ledger",
    "Attempt": "cloudcore.placement.scheduling.rescheduling",
    "Candidate": "cloudcore.placement.search.candidates",
    "ConsumerState": "cloudcore.placement.ledger.queries",
    "Count": "cloudcore.placement.hosts.headroom",
    "DrainMove": "cloudcore.placement.scheduling.draining",
    "DrainOutcome": "cloudcore.placement.scheduling.draining",
    "DrainPlan": "cloudcore.placement.scheduling.draining",
    "Expired": "cloudcore.placement.allocation_ledger",
    "Failure": "cloudcore.placement.scheduling.rescheduling",
    "FailureKind": "cloudcore.placement.scheduling.rescheduling",
    "Finding": "cloudcore.placement.rules.audit",
    "FindingKind": "cloudcore.placement.rules.audit",
    "FlavorHeadroom": "cloudcore.placement.hosts.headroom",
    "FlavorRules": "cloudcore.placement.requests.flavors.rules",
    "Headroom": "cloudcore.placement.hosts.headroom",
    "Held": "cloudcore.placement.rules.claims",
    "HistoryEntry": "cloudcore.placement.ledger.history",
    "Holder": "cloudcore.placement.ledger.queries",
    "Host": "cloudcore.placement.search.ordering",
    "HostChoice": "cloudcore.placement.hosts.selection",
    "HostGroup": "cloudcore.placement.rules.groups",
    "HostMatch": "cloudcore.placement.search.search",
    "HostSelector": "cloudcore.placement.scheduling.selector",
    "HostView": "cloudcore.placement.hosts.host_view",
    "Inventory": "cloudcore.placement.forest.values",
    "LedgerStatus": "cloudcore.placement.ledger.queries",
    "Move": "cloudcore.placement.rules.moves",
    "MoveKind": "cloudcore.placement.rules.moves",
    "MoveState": "cloudcore.placement.rules.moves",
    "Owner": "cloudcore.placement.rules.claims",
    "PciAlias": "cloudcore.placement.requests.flavors.rules",
    "PlacementTree": "cloudcore.placement.tree",
    "Provider": "cloudcore.placement.forest.values",
    "Rejection": "cloudcore.placement.search.rejections",
    "Repair": "cloudcore.placement.rules.audit",
    "RepairAction": "cloudcore.placement.rules.audit",
    "RequestGroup": "cloudcore.placement.requests.groups",
    "Rescheduled": "cloudcore.placement.scheduling.rescheduling",
    "ResourceRequest": "cloudcore.placement.requests.requests",
    "Search": "cloudcore.placement.search.search",
    "SearchReport": "cloudcore.placement.search.report",
    "Selection": "cloudcore.placement.hosts.selection",
    "SelectionReport": "cloudcore.placement.hosts.planner",
    "Stuck": "cloudcore.placement.scheduling.draining",
    "TreeStatus": "cloudcore.placement.tree_state",
    "Unhonoured": "cloudcore.placement.requests.flavors.rules",
    "Usage": "cloudcore.placement.ledger.queries",
    "changes_since": "cloudcore.placement.storage.changes",
    "headroom": "cloudcore.placement.hosts.headroom",
    "plan_drain": "cloudcore.placement.scheduling.draining",
    "prune_attempts": "cloudcore.placement.scheduling.rescheduling",
    "prune_changes": "cloudcore.placement.storage.changes",
    "record_changes": "cloudcore.placement.storage.changes",
    "reschedule": "cloudcore.placement.scheduling.rescheduling",
}

__all__ = [
    "AffinityPolicy",
    "AllocationLedger",
    "Attempt",
    "Candidate",
    "ConsumerState",
    "Count",
    "DrainMove",
    "DrainOutcome",
    "DrainPlan",
    "Expired",
    "Failure",
    "FailureKind",
    "Finding",
    "FindingKind",
    "FlavorHeadroom",
    "FlavorRules",
    "Headroom",
    "Held",
    "HistoryEntry",
    "Holder",
    "Host",
    "HostChoice",
    "HostGroup",
    "HostMatch",
    "HostSelector",
    "HostView",
    "Inventory",
    "LedgerStatus",
    "Move",
    "MoveKind",
    "MoveState",
    "Owner",
    "PciAlias",
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
    "Stuck",
    "TreeStatus",
    "Unhonoured",
    "Usage",
    "changes_since",
    "headroom",
    "plan_drain",
    "prune_attempts",
    "prune_changes",
    "record_changes",
    "reschedule",
]

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
