"""The hosts that a request has something on, weighed all at once and opened one by one, best first. Pure.

What can be told from columns is told for all hosts: the match, vectorised filters and weighers, the policy of a group.
Only then a host is opened: whether the groups of the request fit together on it, and what the caller's filters say. So
thousands of hosts cost little, however few are needed, and none is left out because of its place in the forest.

One module: what is told of all hosts and of one must agree on who is left.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore.errors import InvalidCallable
from cloudcore.placement.hosts.assignment import Scale
from cloudcore.placement.hosts.best_first import BestFirst
from cloudcore.placement.hosts.callables import ask_filter, ask_over, ask_weigher
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Ranked
from cloudcore.placement.hosts.host_columns import NOWHERE, JoinedHosts, over_of
from cloudcore.placement.hosts.host_view import is_uncached
from cloudcore.placement.rules.groups import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Mask
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.host_columns import HostColumns, HostTable
    from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher
    from cloudcore.placement.rules.groups import HostGroup
    from cloudcore.placement.search.matching import BlockMatch
    from cloudcore.placement.search.search import Search

__all__ = ["HostPool", "PoolOptions"]

_REFUSED, _PASSES = 0.0, 1.0
"""What is remembered of a filter that was asked about a host."""


@attrs.frozen(kw_only=True)
class PoolOptions:
    """What a cloud wants of its hosts.

    Attributes:
        table: The hosts, followed from state to state.
        weighers: (multiplier, weigher) pairs.
        metadata_of: Root provider → what filters want to know of it.
        max_hosts: How many hosts callables are asked about for one request, beside those whose answer is known.
        bad_weigher: Is told of a weigher that failed for a host: raises, or lets it be left out.
    """

    table: HostTable
    weighers: Sequence[tuple[float, Weigher]]
    metadata_of: Callable[[Provider], Mapping[str, Any]]
    max_hosts: int
    bad_weigher: Callable[[InvalidCallable], None]


class HostPool:
    """The hosts for one request, on one state of the forest.

    Args:
        search: The search of the request.
        matches: What each block has for it.
        options: What the cloud wants.
        filters: Of the cloud, whose answers are remembered, and of the request, whose answers are not.
        weighers: Of the request, beside those of the cloud; their answers are not remembered either.
        group: The group of the instances, with its members.
        start: Given n, a number below n: on equal weights the hosts from there on come first.
        before: What was worked out for an equal request before.
    """

    size: int
    weights: NDArray[np.float64]

    def __init__(
        self,
        search: Search,
        matches: Sequence[tuple[HostColumns, BlockMatch]],
        options: PoolOptions,
        *,
        filters: tuple[Sequence[Filter], Sequence[Filter]],
        weighers: Sequence[tuple[float, Weigher]] = (),
        group: HostGroup | None,
        start: Callable[[int], int],
        before: JoinedHosts | None,
    ) -> None:
        self._search = search
        self._options = options
        self._group = group
        self._members = Counter(group.members) if group is not None else Counter[str]()
        self._kept_filters, self._own_filters = filters
        self._metadata_change = is_uncached(options.metadata_of)
        self._weighers = [
            *((multiplier, weigher, self._is_kept(weigher)) for multiplier, weigher in options.weighers),
            *((multiplier, weigher, False) for multiplier, weigher in weighers),
        ]
        self._asked = 0
        self._opened: dict[int, CandidateHost | None] = {}
        self.refused: dict[str, str] = {}
        self.joined: JoinedHosts = JoinedHosts(matches, before)
        self.size: int = self.joined.size
        self.in_domains: bool = any(hosts.in_domains for hosts, _ in matches)
        self._passing = self._pass()
        self._beyond = 0
        self.scales: tuple[Scale, ...] = ()
        self.weights = self._weigh()
        self._cells = self.joined.array("cells", lambda hosts: hosts.cells, np.int32)
        self._worth_opening = self._without_refused(self._passing)
        self.joined.let_go()
        self._start = start(self.size) if self.size else 0
        self._best = BestFirst(self.weights, self._passing, self._start)

    def _is_kept(self, function: object) -> bool:
        """Whether the answers of a callable are remembered.

        Not if it says no, cannot be a key, or sees metadata that are asked for each time: those are for views alone.
        """
        try:
            hash(function)
        except TypeError:
            return False
        return not is_uncached(function) and (over_of(function) is not None or not self._metadata_change)

    # --- all at once -------------------------------------------------------------------------------------------------

    def _mask(self, hosts: HostColumns) -> Mask:
        """What does not depend on the request."""
        passing: Mask = hosts.cells >= 0
        for refuse in self._kept_filters:
            over = over_of(refuse)
            if over is not None:
                passing = passing & over(hosts)
        return passing

    def _pass(self) -> Mask:
        """Which hosts are not refused, as far as columns tell."""
        kept = all(self._is_kept(refuse) or over_of(refuse) is None for refuse in self._kept_filters)
        vectorised = "passing" if kept else None
        passing = self.joined.array(vectorised, self._mask, np.bool_).copy()
        for refuse in self._own_filters:
            over = over_of(refuse)
            if over is not None:
                passing &= self.joined.array(None, over, np.bool_)
        hard = self._group if self._group is not None and self._group.hard else None
        if hard is not None and any(self._members.values()):
            passing &= self.joined.array(None, partial(self._allowed, hard), np.bool_)
        return passing

    def _without_refused(self, passing: Mask) -> Mask:
        """Those of *passing* that no filter is remembered to have refused."""
        for refuse in self._kept_filters:
            if over_of(refuse) is None and self._is_kept(refuse):
                refused = self._known(refuse) == _REFUSED
                refused[self._with_members()] = False
                passing = passing & ~refused
        return passing

    def _known(self, function: object) -> NDArray[np.float64]:
        """What a callable has answered for each host, NaN where it was not asked. What it answers is added."""
        return self.joined.array(function, lambda hosts: hosts.known(function), np.float64)

    def _with_members(self) -> list[int]:
        """The hosts that hold members of the group: what callables say of them is not remembered."""
        return [number for root in self._members for number in self.joined.numbers_of(root)]

    def _allowed(self, group: HostGroup, hosts: HostColumns) -> Mask:
        """Where a hard policy allows one more member."""
        allowed = np.full(hosts.size, group.policy is AffinityPolicy.ANTI_AFFINITY)
        for root in self._members:
            for host in hosts.places([root]):
                allowed[host] = group.refuses(root, self._members) is None
        return allowed

    def _weigh(self) -> NDArray[np.float64]:
        weights = np.zeros(self.size)
        for multiplier, weigher, kept in self._weighers:
            try:
                values = self._values(weigher, weights, kept=kept)
            except InvalidCallable as error:
                self._options.bad_weigher(error)
                continue
            passing = values if self._passing.all() else values[self._passing]
            low, high = (float(passing.min()), float(passing.max())) if len(passing) else (0.0, 0.0)
            scale = Scale.of_range(multiplier, weigher, low, high)
            self.scales += (scale,)
            scaled = values - low
            scaled *= multiplier
            scaled /= scale.span
            weights += scaled
        if self._group is not None and not self._group.hard:
            for root in self._members:
                for host in self.joined.numbers_of(root):
                    weights[host] += self._group.preference(root, self._members)
        return weights

    def _values(self, weigher: Weigher, so_far: NDArray[np.float64], *, kept: bool) -> NDArray[np.float64]:
        over = over_of(weigher)
        if over is not None:
            return self.joined.array(weigher if kept else None, partial(ask_over, weigher, over), np.float64)
        values = self._known(weigher).copy() if kept else np.full(self.size, np.nan)
        values[self._with_members()] = np.nan
        unknown = np.flatnonzero(np.isnan(values) & self._passing)
        if len(unknown) > self._options.max_hosts:
            unknown = unknown[np.argsort(-so_far[unknown], kind="stable")]
        for number in unknown[: self._options.max_hosts].tolist():
            values[number] = self._ask_weigher(weigher, number, kept=kept)
        beyond = unknown[self._options.max_hosts :]
        self._passing[beyond] = False
        self._beyond += len(beyond)
        values[np.isnan(values)] = 0.0  # of hosts that do not pass
        return values

    def _ask_weigher(self, weigher: Weigher, number: int, *, kept: bool) -> float:
        hosts, _, host = self.joined.where(number)
        view = self._view(hosts, host)
        weight = ask_weigher(weigher, view)
        if kept and not view.members:
            hosts.remember(weigher, host, weight)
            self._known(weigher)[number] = weight
        return weight

    # --- one by one --------------------------------------------------------------------------------------------------

    def _view(self, hosts: HostColumns, host: int) -> HostView:
        table = self._options.table
        cell, domain = table.name(int(hosts.cells[host])), table.name(int(hosts.domains[host]))
        view = hosts.view(host, cell or "", domain, self._options.metadata_of)
        members = self._members.get(view.root, 0)
        return attrs.evolve(view, members=members) if members else view

    def open(self, number: int) -> CandidateHost | None:
        """The host of this number, None when it cannot hold the request, or a filter refuses it."""
        if number not in self._opened:
            self._opened[number] = self._open(number)
        return self._opened[number]

    def _open(self, number: int) -> CandidateHost | None:
        hosts, match, host = self.joined.where(number)
        opened = self._search.host(match, host)
        if opened is None:
            return None
        view = self._view(hosts, host)
        reason = self._reason(number, hosts, host, view)
        if reason is not None:
            self.refused[view.name] = reason
            return None
        return CandidateHost(
            view,
            (option for each in chain([opened.first], opened.more) if (option := _option_of(each)) is not None),
            again=lambda left: _option_of(opened.beside(left)),
            weight=float(self.weights[number]),
            number=(number - self._start) % self.size,
        )

    def _reason(self, number: int, hosts: HostColumns, host: int, view: HostView) -> str | None:
        for refuse in self._kept_filters:
            if over_of(refuse) is None and (reason := self._remembered(refuse, number, hosts, host, view)) is not None:
                return reason
        for refuse in self._own_filters:
            if over_of(refuse) is None:
                self._asked += 1
                if (reason := ask_filter(refuse, view)) is not None:
                    return reason
        return None

    def _remembered(self, refuse: Filter, number: int, hosts: HostColumns, host: int, view: HostView) -> str | None:
        kept = self._is_kept(refuse) and not view.members
        if kept and self._known(refuse)[number] == _PASSES:
            return None
        self._asked += 1
        reason = ask_filter(refuse, view)
        if kept:
            answer = _PASSES if reason is None else _REFUSED
            hosts.remember(refuse, host, answer, reason)
            self._known(refuse)[number] = answer
        return reason

    # --- in order ----------------------------------------------------------------------------------------------------

    def best(self) -> Iterator[CandidateHost]:
        """Hosts that can hold the request by themselves, best first, opened one by one."""
        return self._hosts(self._walk(self._best, self._worth_opening))

    @staticmethod
    def _walk(best: BestFirst, chosen: Mask) -> Iterator[int]:
        return chain.from_iterable(portion[chosen[portion]].tolist() for portion in best)

    def _hosts(self, numbers: Iterable[int]) -> Iterator[CandidateHost]:
        """Those that turn out to hold it; when no more callables may be asked, those about which none need be."""
        for number in numbers:
            if self._asked >= self._options.max_hosts and self._must_ask(number):
                continue
            host = self.open(number)
            if host is not None:
                yield host

    def _must_ask(self, number: int) -> bool:
        """Whether a callable is to be asked about a host before it can be used."""
        if number in self._opened:
            return False
        if any(over_of(refuse) is None for refuse in self._own_filters):
            return True
        asked = [refuse for refuse in self._kept_filters if over_of(refuse) is None]
        return any(not self._is_kept(refuse) or self._known(refuse)[number] != _PASSES for refuse in asked)

    def ranking(self, picked: Sequence[CandidateHost], alternates: int) -> Iterator[Ranked]:
        """Hosts for *alternates* in all of the *picked* ones, in their cells, best first; as few as it takes."""
        taken = {self._number(host) for host in picked}
        cells = sorted({int(self._cells[number]) for number in taken})
        if self.in_domains:
            most = alternates * len(picked)
            queues = [
                islice(queue, most) for cell in cells for queue in self._of_domains(cell, taken, most + alternates)
            ]
            hosts: Iterable[CandidateHost] = merge(*queues, key=lambda host: (-host.weight, host.number))
        else:
            in_cells = self._worth_opening & _any_of(self._cells, cells)
            hosts = self._hosts(number for number in self._walk(self._best, in_cells) if number not in taken)
        for host in hosts:
            yield Ranked(host, host.weight, self._best.rank(self._number(host)))

    def _of_domains(self, cell: int, taken: Collection[int], avoided: int) -> Iterator[Iterator[CandidateHost]]:
        """For each failure domain of a cell that may be needed its hosts, best first.

        However hosts are given out, an instance avoids no more domains than *avoided*: among the best of one domain
        more there is always one that is right.
        """
        domains = self.joined.array("domains", lambda hosts: hosts.domains, np.int32)
        chosen = self._worth_opening & (self._cells == cell)
        chosen[list(taken)] = False
        there = int(np.count_nonzero(np.bincount(domains[chosen] - NOWHERE)))
        for domain in _first_distinct(
            (domains[portion] for portion in BestFirst(self.weights, chosen, self._start)), min(avoided + 1, there)
        ):
            best = BestFirst(self.weights, chosen & (domains == domain), self._start)
            yield self._hosts(chain.from_iterable(portion.tolist() for portion in best))

    def _number(self, host: CandidateHost) -> int:
        return (host.number + self._start) % self.size

    # --- why not -----------------------------------------------------------------------------------------------------

    def reasons(self, most: int) -> dict[str, str]:
        """Why hosts that have something for the request are refused, of *most* hosts at most."""
        reasons = dict(self.refused)
        for number in np.flatnonzero(~self._worth_opening).tolist():
            if len(reasons) >= most:
                break
            hosts, _, host = self.joined.where(number)
            if hosts.cells[host] != NOWHERE:
                view = self._view(hosts, host)
                reasons[view.name] = self._why(hosts, host, view) or self._not_decided
        for number in self._left():
            if len(reasons) >= most:
                break
            hosts, _, host = self.joined.where(number)
            reasons[hosts.root(host).name] = self._not_decided
        return reasons

    @property
    def undecided(self) -> int:
        """How many hosts were not decided about, since callables were asked about as many as they may be."""
        return self._beyond + sum(1 for _ in self._left())

    def _left(self) -> Iterator[int]:
        return (number for number in np.flatnonzero(self._worth_opening).tolist() if number not in self._opened)

    @property
    def _not_decided(self) -> str:
        return f"not decided within the bound: callables are asked about {self._options.max_hosts} hosts (max_hosts)"

    def _why(self, hosts: HostColumns, host: int, view: HostView) -> str | None:
        for refuse in (*self._kept_filters, *self._own_filters):
            reason = hosts.reason(refuse, host) if over_of(refuse) is None else ask_filter(refuse, view)
            if reason is not None:
                return reason
        return None if self._group is None else self._group.refuses(view.root, self._members)


def _option_of(candidate: Any) -> Option | None:
    return None if candidate is None else Option(allocations=candidate.allocations, mappings=candidate.mappings)


def _any_of(values: NDArray[Any], wanted: Sequence[int]) -> Mask:
    return values == wanted[0] if len(wanted) == 1 else np.isin(values, wanted)


def _first_distinct(portions: Iterable[NDArray[Any]], count: int) -> list[int]:
    """The first *count* distinct values, in their order; so many there are."""
    found: dict[int, None] = {}
    for portion in portions:
        found.update(dict.fromkeys(portion.tolist()))
        if len(found) >= count:
            break
    return list(found)[:count]
