"""The hosts that a request has something on, weighed all at once and opened one by one, best first. Pure.

What can be told from columns is told for all hosts: the match, vectorised filters and weighers, the policy of a group.
Only then a host is opened: whether the groups of the request fit together on it, and what the caller's filters say. So
thousands of hosts cost little, however few are needed, and none is left out because of its place in the forest.

One module: what is told of all hosts and of one must agree on who is left.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore.errors import InvalidCallable
from cloudcore.placement.hosts.assignment import Scale
from cloudcore.placement.hosts.callables import ask_filter, ask_weigher
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Ranked
from cloudcore.placement.hosts.host_columns import over_of
from cloudcore.placement.hosts.host_view import is_uncached
from cloudcore.placement.rules.groups import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Mask, Positions
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.host_columns import HostColumns, HostTable
    from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher
    from cloudcore.placement.rules.groups import HostGroup
    from cloudcore.placement.search.matching import BlockMatch
    from cloudcore.placement.search.search import Search

__all__ = ["HostPool", "PoolOptions", "Segment"]

_FIRST_BEST = 32
"""Hosts that are put in order first; eight times as many follow each time that more are needed."""


@attrs.frozen(eq=False)
class Segment:
    """What was worked out for the matching hosts of one block: it holds as long as hosts and match are the same."""

    hosts: HostColumns
    match: BlockMatch
    values: NDArray[Any]


@attrs.frozen(kw_only=True)
class PoolOptions:
    """What a cloud wants of its hosts.

    Attributes:
        table: The hosts, followed from state to state.
        weighers: (multiplier, weigher) pairs.
        metadata_of: Root provider → what filters want to know of it.
        max_hosts: How many hosts callables are asked about for one request, beside those whose answer is known.
        leave_out: Whether a weigher that fails for a host is left out, and *warn* told, instead of raising.
        warn: Is told of a weigher that was left out.
    """

    table: HostTable
    weighers: Sequence[tuple[float, Weigher]]
    metadata_of: Callable[[Provider], Mapping[str, Any]]
    max_hosts: int
    leave_out: bool
    warn: Callable[[InvalidCallable], None]


class HostPool:
    """The hosts for one request, on one state of the forest.

    Args:
        search: The search of the request.
        matches: What each block has for it.
        options: What the cloud wants.
        filters: Of the cloud, whose answers are remembered, and of the request, whose answers are not.
        group: The group of the instances, with its members.
        start: Given n, a number below n: on equal weights the hosts from there on come first.
        known: What was worked out for an equal request, of each block; brought up to date.
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
        group: HostGroup | None,
        start: Callable[[int], int],
        known: dict[Any, list[Segment]],
    ) -> None:
        self._search = search
        self._known = known
        self._options = options
        self._group = group
        self._members = Counter(group.members) if group is not None else Counter[str]()
        self._kept_filters, self._own_filters = filters
        self._asked = 0
        self._opened: dict[int, CandidateHost | None] = {}
        self.refused: dict[str, str] = {}
        self._of_block = list(matches)
        self._trees = [match.trees for _, match in matches]
        self._firsts = np.concatenate(([0], np.cumsum([len(trees) for trees in self._trees]))).astype(np.intp)
        self.size = int(self._firsts[-1])
        self._passing = self._all(
            "passing", self._mask, np.dtype(np.bool_), keep=all(map(_is_kept, self._kept_filters))
        )
        self._narrow()
        self._cells = self._all("cells", lambda hosts: hosts.cells, np.dtype(np.int32))
        self._domains = self._all("domains", lambda hosts: hosts.domains, np.dtype(np.int32))
        self._beyond = 0
        self.scales: tuple[Scale, ...] = ()
        self.weights = self._weigh()
        self._start = start(self.size) if self.size else 0

    def _all(
        self, key: Any, of: Callable[[HostColumns], NDArray[Any]], kind: np.dtype[Any], *, keep: bool = True
    ) -> NDArray[Any]:
        """One array over all matching hosts from one over each block, worked out where a block changed."""
        if not self._of_block:
            return np.empty(0, dtype=kind)
        before = self._known.get(key, ()) if keep else ()
        known = {id(segment.match): segment for segment in before}
        segments = []
        for hosts, match in self._of_block:
            segment = known.get(id(match))
            if segment is None or segment.hosts is not hosts or segment.match is not match:
                segment = Segment(hosts, match, of(hosts)[match.trees])
            segments.append(segment)
        if keep:
            self._known[key] = segments
        return np.concatenate([segment.values for segment in segments])

    # --- all at once -------------------------------------------------------------------------------------------------

    def _mask(self, hosts: HostColumns) -> Mask:
        """What does not depend on the request."""
        passing: Mask = hosts.cells >= 0
        for refuse in self._kept_filters:
            over = over_of(refuse)
            if over is not None:
                passing = passing & over(hosts)
        return passing

    def _narrow(self) -> None:
        """What the request says beside: its own filters, and its group."""
        for refuse in self._own_filters:
            over = over_of(refuse)
            if over is not None:
                self._passing &= self._all(refuse, over, np.dtype(np.bool_), keep=False)
        hard = self._group if self._group is not None and self._group.hard else None
        if hard is not None and any(self._members.values()):
            self._passing &= self._all("group", partial(self._allowed, hard), np.dtype(np.bool_), keep=False)

    def _allowed(self, group: HostGroup, hosts: HostColumns) -> Mask:
        """Where a hard policy allows one more member."""
        allowed = np.full(hosts.size, group.policy is AffinityPolicy.ANTI_AFFINITY)
        for root in self._members:
            for host in hosts.places([root]):
                allowed[host] = group.refuses(root, self._members) is None
        return allowed

    def _weigh(self) -> NDArray[np.float64]:
        weights = np.zeros(self.size)
        for multiplier, weigher in self._options.weighers:
            try:
                values = self._values(weigher, weights)
            except InvalidCallable as error:
                if not self._options.leave_out:
                    raise
                self._options.warn(error)
                continue
            passing = values[self._passing]
            low, high = (float(passing.min()), float(passing.max())) if len(passing) else (0.0, 0.0)
            scale = Scale.of_range(multiplier, weigher, low, high)
            self.scales += (scale,)
            weights = weights + multiplier * (values - low) / scale.span
        if self._group is not None and not self._group.hard:
            for root in self._members:
                for host in self._numbers_of(root):
                    weights[host] += self._group.preference(root, self._members)
        return weights

    def _numbers_of(self, root: str) -> Iterator[int]:
        for at, (hosts, match) in enumerate(self._of_block):
            for place in hosts.places([root]):
                found = int(match.trees.searchsorted(place))
                if found < len(match.trees) and match.trees[found] == place:
                    yield int(self._firsts[at]) + found

    def _values(self, weigher: Weigher, so_far: NDArray[np.float64]) -> NDArray[np.float64]:
        over = over_of(weigher)
        if over is not None:
            return self._all(weigher, over, np.dtype(np.float64), keep=_is_kept(weigher))
        values = np.full(self.size, np.nan)
        if _is_kept(weigher):
            for at, (hosts, match) in enumerate(self._of_block):
                known = hosts.weights.get(weigher)
                if known is not None:
                    right = known[1][match.trees] == hosts.stamps[match.trees]
                    part = values[self._firsts[at] : self._firsts[at + 1]]
                    part[right] = known[0][match.trees][right]
            for root in self._members:
                values[list(self._numbers_of(root))] = np.nan
        unknown = np.flatnonzero(np.isnan(values) & self._passing)
        if len(unknown) > self._options.max_hosts:
            unknown = unknown[np.argsort(-so_far[unknown], kind="stable")]
            beyond = unknown[self._options.max_hosts :]
            self._passing[beyond] = False
            self._beyond += len(beyond)
            unknown = unknown[: self._options.max_hosts]
        for number in unknown.tolist():
            hosts, host = self._where(number)
            values[number] = self._ask_weigher(weigher, hosts, host)
        values[np.isnan(values)] = 0.0  # of hosts that do not pass
        return values

    def _ask_weigher(self, weigher: Weigher, hosts: HostColumns, host: int) -> float:
        view = self._view(hosts, host)
        weight = ask_weigher(weigher, view)
        if not view.members and _is_kept(weigher):
            known = hosts.weights.get(weigher)
            if known is None:
                known = hosts.weights[weigher] = (np.zeros(hosts.size), np.zeros(hosts.size, dtype=np.int64))
            known[0][host] = weight  # before the stamp that makes it count
            known[1][host] = hosts.stamps[host]
        return weight

    # --- one by one --------------------------------------------------------------------------------------------------

    def _where(self, number: int) -> tuple[HostColumns, int]:
        at = int(self._firsts.searchsorted(number, side="right")) - 1
        hosts, match = self._of_block[at]
        return hosts, int(match.trees[number - int(self._firsts[at])])

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
        hosts, host = self._where(number)
        at = int(self._firsts.searchsorted(number, side="right")) - 1
        opened = self._search.host(self._of_block[at][1], host)
        if opened is None:
            return None
        view = self._view(hosts, host)
        reason = self._reason(hosts, host, view)
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

    def _reason(self, hosts: HostColumns, host: int, view: HostView) -> str | None:
        for refuse in self._kept_filters:
            if over_of(refuse) is None:
                reason = self._remembered(refuse, hosts, host, view)
                if reason is not None:
                    return reason
        for refuse in self._own_filters:
            if over_of(refuse) is None:
                self._asked += 1
                reason = ask_filter(refuse, view)
                if reason is not None:
                    return reason
        return None

    def _remembered(self, refuse: Filter, hosts: HostColumns, host: int, view: HostView) -> str | None:
        stamp = int(hosts.stamps[host])
        kept = _is_kept(refuse) and not view.members
        answers: dict[int, tuple[int, str | None]] = hosts.answers.setdefault(refuse, {}) if kept else {}
        known = answers.get(host)
        if kept and known is not None and known[0] == stamp:
            return known[1]
        self._asked += 1
        answer = ask_filter(refuse, view)
        if kept:
            answers[host] = (stamp, answer)
        return answer

    # --- in order ----------------------------------------------------------------------------------------------------

    def _best(self, chosen: Mask) -> Iterator[int]:
        """The *chosen* hosts, best first; on equal weights those from the start on come first."""
        numbers: Positions = np.flatnonzero(chosen)
        if self._start:
            numbers = np.roll(numbers, -int(numbers.searchsorted(self._start)))
        weights = self.weights[numbers]
        count, done, width = len(numbers), 0, _FIRST_BEST
        while done + width < count:
            width += done
            least = np.partition(weights, count - width)[count - width]
            better = np.flatnonzero(weights > least)
            first = np.sort(np.concatenate((better, np.flatnonzero(weights == least)[: width - len(better)])))
            order = first[np.argsort(-weights[first], kind="stable")]
            yield from numbers[order[done:]].tolist()
            done, width = width, 8 * width
        order = np.argsort(-weights, kind="stable")
        yield from numbers[order[done:]].tolist()

    def best(self) -> Iterator[CandidateHost]:
        """Hosts that can hold the request by themselves, best first, opened one by one."""
        return self._hosts(self._best(self._passing))

    def _hosts(self, numbers: Iterable[int]) -> Iterator[CandidateHost]:
        for number in numbers:
            if self._asked >= self._options.max_hosts:
                return
            host = self.open(number)
            if host is not None:
                yield host

    def ranking(self, picked: Sequence[CandidateHost], alternates: int) -> Iterator[Ranked]:
        """Hosts for alternates of the *picked* ones, in their cells, best first; as few as it takes."""
        table = self._options.table
        chosen = self._passing & np.isin(self._cells, [table.number(host.view.cell) for host in picked])
        chosen[[(host.number + self._start) % self.size for host in picked]] = False
        in_domains = self.in_domains
        numbers = self._in_domains(chosen, len(picked), alternates) if in_domains else self._best(chosen)
        for host in self._hosts(numbers):
            yield Ranked(host, host.weight, int(np.count_nonzero(self.weights[self._passing] > host.weight)))

    @property
    def in_domains(self) -> bool:
        """Whether the failure domain of any host is known."""
        return bool((self._domains >= 0).any())

    def _in_domains(self, chosen: Mask, picks: int, alternates: int) -> Iterator[int]:
        """Best first, as many of each domain of each cell as may be needed, of as many domains as may be needed.

        However hosts are given out, no more than all alternates are gone when one is chosen, and it avoids no more
        domains than an instance has hosts: among the best of so many domains there is always one that is right.
        """
        most = picks * alternates
        queues: dict[tuple[int, int], list[int]] = {}
        numbers = np.flatnonzero(chosen)
        order = numbers[np.lexsort((numbers, -self.weights[numbers], self._domains[numbers], self._cells[numbers]))]
        keys = self._cells[order].astype(np.int64) << 32 | (self._domains[order] + 1)
        edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(order)] if len(order) else [0]
        for first, last in pairwise(edges):
            key = divmod(int(keys[first]), 1 << 32)
            queues[key] = order[first:last].tolist()[::-1]
        heads = [(-float(self.weights[queue[-1]]), queue[-1], key) for key, queue in queues.items()]
        heapify(heads)
        given: Counter[tuple[int, int]] = Counter()
        begun: dict[int, set[int]] = {}
        while heads:
            _, number, key = heappop(heads)
            domains = begun.setdefault(key[0], set())
            if key[1] not in domains and len(domains) > most + alternates:
                continue
            domains.add(key[1])
            queues[key].pop()
            if self.open(number) is not None:
                given[key] += 1
                yield number
            if queues[key] and given[key] < max(1, most):
                head = queues[key][-1]
                heappush(heads, (-float(self.weights[head]), head, key))

    # --- why not -----------------------------------------------------------------------------------------------------

    def reasons(self, most: int) -> dict[str, str]:
        """Why hosts that have something for the request are refused, of *most* hosts at most."""
        reasons = dict(self.refused)
        for number in np.flatnonzero(~self._passing).tolist():
            if len(reasons) >= most:
                break
            hosts, host = self._where(number)
            if hosts.cells[host] < 0:
                continue
            view = self._view(hosts, host)
            every = (*self._kept_filters, *self._own_filters)
            reason = next((r for f in every if over_of(f) is not None and (r := ask_filter(f, view))), None)
            if reason is None and self._group is not None:
                reason = self._group.refuses(view.root, self._members)
            reasons[view.name] = reason or f"not asked about: callables are asked about {self._options.max_hosts} hosts"
        return reasons


def _option_of(candidate: Any) -> Option | None:
    return None if candidate is None else Option(allocations=candidate.allocations, mappings=candidate.mappings)


def _is_kept(function: object) -> bool:
    """Whether the answers of a callable are remembered: unless it says no, or cannot be a key."""
    try:
        hash(function)
    except TypeError:
        return False
    return not is_uncached(function)
