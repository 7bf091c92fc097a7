"""Plan hosts for a request on what the tree knows: search, filter, weigh, assign, give alternates. Claims nothing."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import (
    CapacityExceeded,
    CloudcoreError,
    InventoryNotFound,
    NoValidHost,
    ProviderNotFound,
    UnitViolation,
)
from cloudcore.placement.hosts.alternates import choose_alternates
from cloudcore.placement.hosts.assignment import Assignment, assign
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Pick
from cloudcore.placement.hosts.host_view import HostView
from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity, Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.host_view import Filter, HostGroup, Weigher
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.rules.claims import Owner
    from cloudcore.placement.search.search import HostMatch, Search
    from cloudcore.placement.tree import PlacementTree

__all__ = ["HostRequest", "Plan", "Planner", "SelectionReport"]


@attrs.frozen(kw_only=True)
class SelectionReport:
    """Why no host was selected.

    Attributes:
        search: The report of the search: for each host that does not fit, why not.
        filtered: Host name → the reason that a filter, a group policy or the other instances of the request gave.
        lost: Claims that were not granted, oldest first.
        placed: Instances of the request that had a host when the rest had none.
    """

    search: Any
    filtered: Mapping[str, str]
    lost: tuple[str, ...] = ()
    placed: int = 0

    def as_fields(self) -> dict[str, Any]:
        """The same for structured logs, of the first hundred hosts and the last ten claims."""
        return {
            "search": self.search.as_fields(),
            "filtered": dict(sorted(self.filtered.items())[:100]),
            "lost": list(self.lost[-10:]),
            "placed": self.placed,
        }

    def summary(self) -> str:
        """One line for people."""
        parts = [self.search.summary()]
        parts += [f"{name}: {reason}" for name, reason in sorted(self.filtered.items())[:5]]
        if len(self.filtered) > 5:
            parts.append(f"and {len(self.filtered) - 5} more hosts")
        parts += self.lost[-3:]
        return "; ".join(part for part in parts if part)


@attrs.frozen(kw_only=True)
class HostRequest:
    """A request for hosts, checked.

    Attributes:
        request: What each instance needs.
        instances: Their uuids.
        alternates: How many each may get.
        owner: Who answers for their claims.
        group: The group of all of them, with the members that are known.
        filters: Those of the selector and of the request.
        partial: Whether fewer hosts than instances will do.
        expires_in: Seconds after which unsettled claims lapse.
        freed: ``{provider: {class: amount}}`` that the move itself makes free.
    """

    request: ResourceRequest
    instances: tuple[str, ...]
    alternates: int
    owner: Owner
    group: HostGroup | None
    filters: tuple[Filter, ...]
    partial: bool = False
    expires_in: float | None = None
    freed: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)


@attrs.frozen
class Plan:
    """The picks, and for each of them the picks to fall back on."""

    assignment: Assignment
    hands: Sequence[Sequence[Pick]]


@attrs.frozen(kw_only=True)
class Planner:
    """What a cloud wants of its hosts; see :class:`~cloudcore.placement.HostSelector` for the fields."""

    tree: PlacementTree
    cell_of: Callable[[Provider], str | None]
    weighers: Sequence[tuple[float, Weigher]]
    domain_of: Callable[[Provider], str | None]
    metadata_of: Callable[[Provider], Mapping[str, Any]]
    max_hosts: int
    subset: int
    choose: Callable[[int], int]

    def _tree_for(self, asked: HostRequest) -> PlacementTree:
        """The tree to search: as it is, or where something is freed by the move itself, a fork without that."""
        self.tree.refresh()
        if not asked.freed:
            return self.tree
        fork = self.tree.what_if()
        for provider, amounts in asked.freed.items():
            used = fork.usage(provider)
            fork.set_usage(provider, {name: max(0, n - amounts.get(name, 0)) for name, n in used.items()})
        return fork

    def search(self, request: ResourceRequest, tree: PlacementTree | None = None) -> Search:
        """Search the hosts that have a cell."""
        return (tree or self.tree).candidates(
            request, distinct="physical", within=lambda root: self.cell_of(root) is not None, hosts_first=True
        )

    def plan(self, asked: HostRequest, lost: Sequence[CloudcoreError]) -> Plan:
        """Plan *asked*, counting with what the refusals of *lost* claims told.

        Raises:
            NoValidHost: Not enough hosts; ``report`` is a :class:`SelectionReport`.
        """
        tree = self._tree_for(asked)
        search = self.search(asked.request, tree)
        filtered: dict[str, str] = {}
        candidate_hosts = list(islice(self._candidate_hosts(search, asked, filtered), self.max_hosts))
        remaining = RemainingCapacity(partial(_room, tree))
        for refusal in lost:
            _learn(remaining, refusal)
        assignment = assign(
            candidate_hosts,
            len(asked.instances),
            remaining,
            weighers=self.weighers,
            group=asked.group,
            choose=self.choose,
            subset=self.subset,
        )
        if len(assignment.picks) < (1 if asked.partial else len(asked.instances)):
            report = SelectionReport(
                search=search.report(),
                filtered={**filtered, **assignment.refused},
                lost=tuple(str(refusal) for refusal in lost),
                placed=len(assignment.picks),
            )
            raise NoValidHost(
                f"{len(assignment.picks)} of {len(asked.instances)} instances have a host: {report.summary()}",
                report=report,
            )
        return Plan(assignment, choose_alternates(assignment, remaining, asked.alternates, asked.group))

    def _candidate_hosts(self, search: Search, asked: HostRequest, filtered: dict[str, str]) -> Iterator[CandidateHost]:
        group = asked.group
        for match in search.hosts():
            view = self._view(match, group)
            reason = next((reason for refuse in asked.filters if (reason := refuse(view)) is not None), None)
            if reason is None and group is not None:
                reason = group.refuses(view.root, group.members)
            if reason is None:
                yield CandidateHost(view, (Option(allocations=c.allocations, mappings=c.mappings) for c in match))
            else:
                filtered[view.name] = reason

    def _view(self, match: HostMatch, group: HostGroup | None) -> HostView:
        root = match.root
        host = next(iter(match)).as_host()
        return HostView(
            root=root.uuid,
            name=root.name,
            cell=self.cell_of(root) or "",
            traits=frozenset[str]().union(*(provider.traits for provider in host.providers)),
            aggregates=root.aggregates,
            capacity=host.capacity,
            used=host.used,
            metadata=self.metadata_of(root),
            domain=self.domain_of(root),
            members=group.members.get(root.uuid, 0) if group is not None else 0,
        )


def _learn(remaining: RemainingCapacity, refusal: CloudcoreError) -> None:
    """Let what the ledger refused count in the next plan."""
    if isinstance(refusal, CapacityExceeded) and refusal.provider and refusal.resource_class:
        remaining.learn(
            refusal.provider, refusal.resource_class, used=refusal.used or 0, capacity=refusal.capacity or 0
        )
    elif isinstance(refusal, ProviderNotFound) and refusal.identifier:
        remaining.avoid(refusal.identifier, str(refusal))
    elif isinstance(refusal, InventoryNotFound | UnitViolation) and refusal.provider:
        remaining.avoid(refusal.provider, str(refusal))


def _room(tree: PlacementTree, provider: str, resource_class: str) -> Room | None:
    found = tree.provider(provider).inventories.get(resource_class)
    if found is None:
        return None
    used = tree.usage(provider).get(resource_class, 0)
    return Room(used=used, capacity=found.capacity)
