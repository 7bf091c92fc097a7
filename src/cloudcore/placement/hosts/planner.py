"""Plan hosts for a request on what the tree knows: search, filter, weigh, assign, give alternates. Claims nothing."""

from __future__ import annotations

from collections import Counter
from functools import partial
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
from cloudcore.notebook import Table, html_of
from cloudcore.placement.hosts.alternates import choose_alternates
from cloudcore.placement.hosts.assignment import Assignment, assign_best
from cloudcore.placement.hosts.host_pool import HostPool, PoolOptions
from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity, Room
from cloudcore.placement.search.matching import RememberedMatches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.candidate_hosts import Pick
    from cloudcore.placement.hosts.host_columns import JoinedHosts
    from cloudcore.placement.hosts.host_view import Filter, Weigher
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.rules.claims import Owner
    from cloudcore.placement.rules.groups import HostGroup
    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.search import Search
    from cloudcore.placement.tree import PlacementTree

__all__ = ["HostRequest", "Plan", "Planner", "SelectionReport"]

_REQUESTS = 16
"""Requests whose matches are remembered: clouds ask for few flavours, often."""


@attrs.frozen(kw_only=True)
class SelectionReport:
    """Why no host was selected.

    Attributes:
        search: The report of the search: for each host that does not fit, why not.
        filtered: Host name → the reason that a filter, a group policy or the other instances of the request gave.
        lost: Claims that were not granted, oldest first.
        placed: Instances of the request that had a host when the rest had none.
        without_cell: Hosts that were not looked at, since ``cell_of`` gave None for them.
        undecided: Hosts that have something for the request, and about which no callable was asked any more, since
            ``max_hosts`` of them had been; *filtered* names some.
        freed: What the instance that moves holds of shared pools, in words: the numbers of *search* count it as free.
    """

    search: Any
    filtered: Mapping[str, str]
    lost: tuple[str, ...] = ()
    placed: int = 0
    without_cell: int = 0
    undecided: int = 0
    freed: tuple[str, ...] = ()

    def as_fields(self) -> dict[str, Any]:
        """The same for structured logs, of the first hundred hosts and the last ten claims."""
        return {
            "search": self.search.as_fields(),
            "filtered": dict(sorted(self.filtered.items())[:100]),
            "lost": list(self.lost[-10:]),
            "placed": self.placed,
            "undecided": self.undecided,
            "freed": list(self.freed),
        }

    def _repr_html_(self) -> str:
        return html_of(
            self.summary(),
            Table(title="Refused by filters", headings=("host", "reason"), rows=tuple(sorted(self.filtered.items()))),
            Table(title="Lost claims", headings=("why",), rows=tuple((why,) for why in self.lost)),
        ) + str(self.search._repr_html_())

    @property
    def refusals(self) -> dict[str, int]:
        """Reason of *filtered* → number of hosts that it refused; most first."""
        counts = Counter(self.filtered.values())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def _refusals(self, most: int = 5) -> list[str]:
        """The commonest reasons in words: how many hosts each refused, or which host, where it is one."""
        host_of = {reason: name for name, reason in sorted(self.filtered.items(), reverse=True)}
        shown = list(self.refusals.items())[:most]
        words = [f"{count} × {reason}" if count > 1 else f"{host_of[reason]}: {reason}" for reason, count in shown]
        if words:
            words[0] = f"refused: {words[0]}"
        left = len(self.filtered) - sum(count for _, count in shown)
        return [*words, f"and {left} more hosts"] if left else words

    def summary(self) -> str:
        """One line: what the search found, what refused the rest, with how many hosts each, and the claims lost."""
        parts = [self.search.summary()]
        if self.filtered:  # then "fit" alone would contradict what follows
            parts = [parts[0].replace(" hosts fit", " hosts have what is asked for", 1)]
        if self.without_cell and not self.search.hosts:
            parts = [f"cell_of gave None for all of the {self.without_cell} hosts"]
        elif self.without_cell:
            parts.append(f"{self.without_cell} more hosts have no cell")
        parts += self._refusals()
        if self.undecided:
            parts.append(f"{self.undecided} hosts are not decided within the bound: raise max_hosts")
        parts += self.lost[-3:]
        if self.freed:
            parts.append(f"counted as free: {', '.join(self.freed)}, which the instance itself holds")
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
        filters: Beside those of the selector.
        weighers: Likewise.
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
    weighers: tuple[tuple[float, Weigher], ...] = ()
    partial: bool = False
    expires_in: float | None = None
    freed: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)


@attrs.frozen
class Plan:
    """The picks, and for each of them the picks to fall back on."""

    assignment: Assignment
    hands: Sequence[Sequence[Pick]]


@attrs.define(eq=False)
class _Remembered:
    """What was worked out for a request, in case that an equal one follows."""

    matches: RememberedMatches
    joined: JoinedHosts | None = None


@attrs.frozen(kw_only=True)
class Planner:
    """What a cloud wants of its hosts; see :class:`~cloudcore.placement.HostSelector` for the fields."""

    tree: PlacementTree
    filters: Sequence[Filter]
    cell_of: Callable[[Provider], str | None]
    options: PoolOptions
    subset: int
    choose: Callable[[int], int]
    seed: Callable[[int], int]
    _requests: dict[int, _Remembered] = attrs.field(factory=dict, init=False)

    def _tree_for(self, asked: HostRequest) -> PlacementTree:
        """The tree to search: as it is, or where something is freed by the move itself, a fork without that."""
        self.tree.refresh()
        if not asked.freed:
            return self.tree
        fork = self.tree.what_if()
        for provider, amounts in asked.freed.items():
            given = fork.provider(provider).inventories
            used = {
                # over its capacity a pool grants nothing more; but what is held there may change hands
                name: max(0, min(n, given[name].capacity) - amounts[name]) if name in amounts else n
                for name, n in fork.usage(provider).items()
            }
            fork.set_usage(provider, used)
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
            InvalidCallable: A filter, a weigher or another callable went wrong.
        """
        tree = self._tree_for(asked)
        search = self.search(asked.request, tree)
        pool = self._pool(search, asked)
        remaining = RemainingCapacity(partial(_room, tree), lambda provider: tree.provider(provider).name)
        for refusal in lost:
            _learn(remaining, refusal)
        assignment = assign_best(
            pool.best(),
            len(asked.instances),
            remaining,
            scales=pool.scales,
            bad_weigher=self.options.bad_weigher,
            group=asked.group,
            choose=self.choose,
            subset=self.subset,
        )
        if len(assignment.picks) < (1 if asked.partial else len(asked.instances)):
            raise self._no_host(asked, search, pool, assignment, lost)
        if not asked.alternates:
            return Plan(assignment, [()] * len(assignment.picks))
        picked = {pick.host.view.root: pick.host for pick in assignment.picks}
        ranking = pool.ranking(list(picked.values()), len(asked.instances) * asked.alternates)
        assignment = attrs.evolve(assignment, ranking=ranking, in_domains=pool.in_domains)
        return Plan(assignment, choose_alternates(assignment, remaining, asked.alternates, asked.group))

    def _pool(self, search: Search, asked: HostRequest) -> HostPool:
        table = self.options.table.of(search.columns)
        remembered = self._remembered(search.compiled)
        matches = zip(table, search.matches(remembered.matches), strict=True)
        pool = HostPool(
            search,
            [(hosts, match) for hosts, match in matches if match is not None],
            self.options,
            filters=(self.filters, asked.filters),
            weighers=asked.weighers,
            group=asked.group,
            start=self.seed,
            before=remembered.joined,
        )
        remembered.joined = pool.joined
        return pool

    def _remembered(self, compiled: CompiledRequest) -> _Remembered:
        """What is remembered of an equal request, of the last few."""
        remembered = self._requests.get(id(compiled))
        if remembered is None or remembered.matches.compiled is not compiled:
            for old in list(self._requests)[: 1 - _REQUESTS]:
                self._requests.pop(old, None)
            remembered = self._requests[id(compiled)] = _Remembered(RememberedMatches(compiled))
        return remembered

    def _no_host(
        self,
        asked: HostRequest,
        search: Search,
        pool: HostPool,
        assignment: Assignment,
        lost: Sequence[CloudcoreError],
    ) -> NoValidHost:
        table = self.options.table.of(search.columns)
        report = SelectionReport(
            search=search.report(),
            filtered={**pool.reasons(self.options.max_hosts), **assignment.refused},
            lost=tuple(self.named(refusal) for refusal in lost),
            placed=len(assignment.picks),
            without_cell=sum(int((hosts.cells < 0).sum()) for hosts in table),
            undecided=pool.undecided,
            freed=tuple(
                f"{amount} {name} of {self._name(provider)}"
                for provider, amounts in sorted(asked.freed.items())
                for name, amount in sorted(amounts.items())
            ),
        )
        return NoValidHost(
            f"{len(assignment.picks)} of {len(asked.instances)} instances have a host: {report.summary()}",
            report=report,
        )

    def _name(self, provider: str) -> str:
        return self.tree.provider(provider).name if provider in self.tree else provider

    def named(self, refusal: CloudcoreError) -> str:
        """What a refusal says, with the names of the providers that it says the uuids of."""
        text = str(refusal)
        for uuid in {
            getattr(refusal, "provider", None),
            getattr(refusal, "identifier", None),
            getattr(refusal, "root", None),
        }:
            if isinstance(uuid, str) and uuid in self.tree:
                text = text.replace(uuid, self.tree.provider(uuid).name)
        return text


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
