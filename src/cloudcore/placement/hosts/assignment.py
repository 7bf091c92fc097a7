"""Assign the instances of one request to hosts, one after the other, each pick counting for the next. Pure.

Nothing is claimed here: a :class:`Assignment` is a plan made on a snapshot. What the ledger then refuses is told to the
:class:`~cloudcore.placement.hosts.remaining_capacity.RemainingCapacity`, and the plan is made again.
"""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING

import attrs
from sortedcontainers import SortedList

from cloudcore.errors import InvalidCallable
from cloudcore.placement.hosts.callables import ask_weigher, raise_it
from cloudcore.placement.hosts.candidate_hosts import Pick, Ranked, first_that_fits
from cloudcore.placement.rules.groups import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option
    from cloudcore.placement.hosts.host_view import HostView, Weigher
    from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity
    from cloudcore.placement.rules.groups import HostGroup

__all__ = ["Assignment", "Scale", "assign", "assign_best"]


@attrs.frozen
class Scale:
    """How the weights of one weigher become comparable: ``multiplier * (weight - low) / span``."""

    multiplier: float
    weigher: Weigher
    low: float
    span: float

    @classmethod
    def of_range(cls, multiplier: float, weigher: Weigher, low: float, high: float) -> Scale:
        """Scale the weights from *low* to *high* to 0..1; all alike at first: picks will make the difference."""
        return cls(multiplier, weigher, low, high - low or abs(high) or 1.0)

    def of(self, view: HostView) -> float:
        """What the weigher gives for a host."""
        return ask_weigher(self.weigher, view)


@attrs.frozen(kw_only=True)
class Assignment:
    """What :func:`assign` decided.

    Attributes:
        picks: In the order of the instances; fewer than asked for when no host was left.
        refused: Then: host name → why it took no more.
        ranking: Hosts with their weights after the picks, best first; to be read once.
        in_domains: Whether the failure domain of any of them is known.
    """

    picks: tuple[Pick, ...]
    refused: Mapping[str, str]
    ranking: Iterable[Ranked]
    in_domains: bool


class _Order:
    """The hosts in the order of their weights. What a pick changes is kept here; the hosts stay as they are.

    Hosts are drawn from *best_first* when they are needed: those that nobody asks for are never opened.
    """

    def __init__(
        self,
        best_first: Iterable[CandidateHost],
        scales: Sequence[Scale],
        group: HostGroup | None,
        bad_weigher: Callable[[InvalidCallable], None],
    ) -> None:
        self._group = group
        self._members = Counter(group.members if group else {})
        self._scales = scales
        self._bad_weigher = bad_weigher
        self._to_come = iter(best_first)
        self._drawn = (-inf, -1, -1)
        self._next: CandidateHost | None = None
        self.hosts: list[CandidateHost] = []
        self.views: list[HostView] = []
        self.weights: list[float] = []
        self._ranking: SortedList[tuple[float, int, int]] = SortedList()
        self._closed: SortedList[tuple[float, int, int]] = SortedList()
        self.refused: dict[str, str] = {}

    def ranked(self) -> Iterator[tuple[int, int]]:
        """(rank, place in :attr:`hosts`) of the hosts that are not closed, best first."""
        at = 0
        while True:
            while self._comes_before(at):
                self._draw()
            if at == len(self._ranking):
                return
            key = self._ranking[at]
            yield at + self._closed.bisect_left(key), key[2]
            at += at < len(self._ranking) and self._ranking[at] is key  # else it was closed, and the next is here

    def everything(self) -> Iterator[Ranked]:
        """All hosts, best first, those that were closed as well."""
        for _ in self.ranked():
            pass  # draw the rest
        for rank, (negated, _, place) in enumerate(sorted([*self._ranking, *self._closed])):
            yield Ranked(self.hosts[place], -negated, rank)

    def close(self, place: int, reason: str) -> None:
        """Do not look at a host again: what picks took from it, or allow no more, does not come back."""
        key = (-self.weights[place], self.hosts[place].number, place)
        self._ranking.remove(key)
        self._closed.add(key)
        self.refused[self.views[place].name] = reason

    def _comes_before(self, at: int) -> bool:
        """Whether there is another host to draw, and it is better than the one ranked *at*."""
        if at < len(self._ranking) and self._ranking[at] <= self._drawn:
            return False  # that one came before all that are to come
        if self._next is None:
            self._next = next(self._to_come, None)
        if self._next is None:
            return False
        return at == len(self._ranking) or (-self._next.weight, self._next.number, -1) < self._ranking[at]

    def _draw(self) -> None:
        host, self._next = self._next, None
        assert host is not None
        self._drawn = (-host.weight, host.number, len(self.hosts))
        self._ranking.add(self._drawn)
        self.hosts.append(host)
        self.views.append(host.view)
        self.weights.append(host.weight)

    def _weight(self, place: int) -> float:
        """The weight after a pick; what it was before where a weigher fails by now, and that is let pass."""
        view = self.views[place]
        try:
            weight = sum(scale.multiplier * (scale.of(view) - scale.low) / scale.span for scale in self._scales)
        except InvalidCallable as error:
            self._bad_weigher(error)
            return self.weights[place]
        return weight + (self._group.preference(view.root, self._members) if self._group else 0.0)

    def refuses(self, view: HostView) -> str | None:
        return self._group.refuses(view.root, self._members) if self._group else None

    def picked(self, place: int, option: Option) -> None:
        """Weigh again the one host that changed."""
        self._members[self.views[place].root] += 1
        self.views[place] = _with_one_more(self.views[place], option)
        number = self.hosts[place].number
        self._ranking.remove((-self.weights[place], number, place))
        self.weights[place] = self._weight(place)
        self._ranking.add((-self.weights[place], number, place))


def in_order(
    hosts: Sequence[CandidateHost], weighers: Sequence[tuple[float, Weigher]], group: HostGroup | None
) -> tuple[list[CandidateHost], tuple[Scale, ...]]:
    """Weigh *hosts*; return them best first, and how each weigher was scaled."""
    members = Counter(group.members if group else {})
    scales = []
    for multiplier, weigher in weighers:
        values = [ask_weigher(weigher, host.view) for host in hosts]
        scales.append(Scale.of_range(multiplier, weigher, min(values, default=0.0), max(values, default=0.0)))
    for number, host in enumerate(hosts):
        host.number = number
        host.weight = sum(scale.multiplier * (scale.of(host.view) - scale.low) / scale.span for scale in scales)
        host.weight += group.preference(host.view.root, members) if group else 0.0
    return sorted(hosts, key=lambda host: (-host.weight, host.number)), tuple(scales)


def assign(
    hosts: Sequence[CandidateHost],
    count: int,
    remaining: RemainingCapacity,
    *,
    weighers: Sequence[tuple[float, Weigher]] = (),
    group: HostGroup | None = None,
    choose: Callable[[int], int] = lambda _: 0,
    subset: int = 1,
) -> Assignment:
    """Pick a host for each of *count* instances of the same request.

    Args:
        hosts: Those that passed search and filters; on equal weights the earlier one is taken.
        count: Number of instances.
        remaining: What is left; every pick is taken from it.
        weighers: (multiplier, weigher) pairs. Each is scaled once, by its range over *hosts* before the first pick.
        group: The group that all of them belong to.
        choose: Given n, a number below n: which of the n best hosts to take.
        subset: How many of the best hosts *choose* chooses from; more than 1 keeps schedulers that work side by side
            out of each other's way.
    """
    ordered, scales = in_order(hosts, weighers, group)
    made = assign_best(ordered, count, remaining, scales=scales, group=group, choose=choose, subset=subset)
    return attrs.evolve(made, in_domains=any(host.view.domain is not None for host in hosts))


def assign_best(
    best_first: Iterable[CandidateHost],
    count: int,
    remaining: RemainingCapacity,
    *,
    scales: Sequence[Scale],
    group: HostGroup | None = None,
    choose: Callable[[int], int] = lambda _: 0,
    subset: int = 1,
    bad_weigher: Callable[[InvalidCallable], None] = raise_it,
) -> Assignment:
    """The same for hosts that are weighed already: they come best first, and are drawn when they are needed.

    *bad_weigher* is told of a weigher that fails for a host after a pick.
    """
    order = _Order(best_first, scales, group, bad_weigher)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and not any(group.members.values()):
        picks, refused = _together(count, order, remaining)
    else:
        picks, refused = _apart(count, order, remaining, choose, subset)
    return Assignment(
        picks=tuple(picks),
        refused={} if len(picks) == count else refused,
        ranking=order.everything(),
        in_domains=any(view.domain is not None for view in order.views),
    )


def _apart(
    count: int, order: _Order, remaining: RemainingCapacity, choose: Callable[[int], int], subset: int
) -> tuple[list[Pick], dict[str, str]]:
    """One instance after the other, each on the best host that has room by then."""
    picks: list[Pick] = []
    for _ in range(count):
        found = _fitting(order, remaining, subset)
        if not found:
            break
        place, option, rank = found[choose(len(found))]
        picks.append(Pick(host=order.hosts[place], option=option, weight=order.weights[place], rank=rank))
        remaining.take(option.allocations)
        order.picked(place, option)
    return picks, order.refused


def _together(count: int, order: _Order, remaining: RemainingCapacity) -> tuple[list[Pick], dict[str, str]]:
    """All on one host: the best that holds all of them, else the one that holds the most."""
    best: list[Pick] = []
    refused: dict[str, str] = {}
    for rank, place in order.ranked():
        picks: list[Pick] = []
        host = order.hosts[place]
        for _ in range(count):
            option, reason = first_that_fits(host, remaining)
            if option is None:
                refused[host.view.name] = f"affinity: holds {len(picks)} of {count}; {reason}"
                break
            picks.append(Pick(host=host, option=option, weight=order.weights[place], rank=rank))
            remaining.take(option.allocations)
        for pick in picks:
            remaining.take(pick.option.allocations, times=-1)
        if len(picks) > len(best):
            best = picks
        if len(best) == count:
            break
    for pick in best:
        remaining.take(pick.option.allocations)
    return best, refused


def _fitting(order: _Order, remaining: RemainingCapacity, subset: int) -> list[tuple[int, Option, int]]:
    """The best hosts that have room: (place, option, rank) of each."""
    found: list[tuple[int, Option, int]] = []
    for rank, place in order.ranked():
        reason = order.refuses(order.views[place])
        if reason is None:
            option, reason = first_that_fits(order.hosts[place], remaining)
            if option is not None:
                found.append((place, option, rank))
        if reason is not None:
            order.close(place, reason)
        if len(found) == max(1, subset):
            break
    return found


def _with_one_more(view: HostView, option: Option) -> HostView:
    used = Counter(view.used)
    for amounts in option.allocations.values():
        used.update(amounts)
    return attrs.evolve(view, used=dict(used), members=view.members + 1)
