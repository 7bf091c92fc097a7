"""Assign the instances of one request to hosts, one after the other, each pick counting for the next. Pure.

Nothing is claimed here: a :class:`Assignment` is a plan made on a snapshot. What the ledger then refuses is told to the
:class:`~cloudcore.placement.hosts.remaining_capacity.RemainingCapacity`, and the plan is made again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs
from sortedcontainers import SortedList

from cloudcore.placement.hosts.candidate_hosts import Pick, first_that_fits
from cloudcore.placement.hosts.host_view import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option
    from cloudcore.placement.hosts.host_view import HostGroup, HostView, Weigher
    from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity

__all__ = ["Assignment", "assign"]


@attrs.frozen(kw_only=True)
class Assignment:
    """What :func:`assign` decided.

    Attributes:
        picks: In the order of the instances; fewer than asked for when no host was left.
        refused: Then: host name → why it took no more.
        ranking: Every host with its weight after the picks, best first.
        in_domains: Whether the failure domain of any of them is known.
    """

    picks: tuple[Pick, ...]
    refused: Mapping[str, str]
    ranking: tuple[tuple[CandidateHost, float], ...]
    in_domains: bool


class _Order:
    """The hosts in the order of their weights. What a pick changes is kept here; the hosts stay as they are."""

    def __init__(
        self, hosts: Sequence[CandidateHost], weighers: Sequence[tuple[float, Weigher]], group: HostGroup | None
    ) -> None:
        self._group = group
        self._members = Counter(group.members if group else {})
        self._scales: list[tuple[float, Weigher, float, float]] = []
        self.views = [host.view for host in hosts]
        for multiplier, weigher in weighers:
            values = [weigher(view) for view in self.views]
            low, high = min(values, default=0.0), max(values, default=0.0)
            span = high - low or abs(high) or 1.0  # all alike at first: picks will make the difference
            self._scales.append((multiplier, weigher, low, span))
        self.weights = [self._weight(view) for view in self.views]
        self.ranking = SortedList((-weight, number) for number, weight in enumerate(self.weights))

    def _weight(self, view: HostView) -> float:
        weight = sum(multiplier * (weigher(view) - low) / span for multiplier, weigher, low, span in self._scales)
        return weight + (self._group.preference(view.root, self._members) if self._group else 0.0)

    def refuses(self, view: HostView) -> str | None:
        return self._group.refuses(view.root, self._members) if self._group else None

    def picked(self, number: int, option: Option) -> None:
        """Weigh again the one host that changed."""
        self._members[self.views[number].root] += 1
        self.views[number] = _with_one_more(self.views[number], option)
        self.ranking.remove((-self.weights[number], number))
        self.weights[number] = self._weight(self.views[number])
        self.ranking.add((-self.weights[number], number))


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
    order = _Order(hosts, weighers, group)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and not any(group.members.values()):
        picks, refused = _together(hosts, count, order, remaining)
    else:
        picks, refused = _apart(hosts, count, order, remaining, choose, subset)
    ranking = tuple((hosts[number], -negated) for negated, number in order.ranking)
    return Assignment(
        picks=tuple(picks),
        refused={} if len(picks) == count else refused,
        ranking=ranking,
        in_domains=any(host.view.domain is not None for host in hosts),
    )


def _apart(
    hosts: Sequence[CandidateHost],
    count: int,
    order: _Order,
    remaining: RemainingCapacity,
    choose: Callable[[int], int],
    subset: int,
) -> tuple[list[Pick], dict[str, str]]:
    """One instance after the other, each on the best host that has room by then."""
    picks: list[Pick] = []
    refused: dict[str, str] = {}
    for _ in range(count):
        refused = {}
        found = _fitting(hosts, order, remaining, refused, subset)
        if not found:
            break
        number, option, rank = found[choose(len(found))]
        picks.append(Pick(host=hosts[number], option=option, weight=order.weights[number], rank=rank))
        remaining.take(option.allocations)
        order.picked(number, option)
    return picks, refused


def _together(
    hosts: Sequence[CandidateHost], count: int, order: _Order, remaining: RemainingCapacity
) -> tuple[list[Pick], dict[str, str]]:
    """All on one host: the best that holds all of them, else the one that holds the most."""
    best: list[Pick] = []
    refused: dict[str, str] = {}
    for rank, (negated, number) in enumerate(order.ranking):
        picks: list[Pick] = []
        for _ in range(count):
            option, reason = first_that_fits(hosts[number], remaining)
            if option is None:
                refused[hosts[number].view.name] = f"affinity: holds {len(picks)} of {count}; {reason}"
                break
            picks.append(Pick(host=hosts[number], option=option, weight=-negated, rank=rank))
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


def _fitting(
    hosts: Sequence[CandidateHost], order: _Order, remaining: RemainingCapacity, refused: dict[str, str], subset: int
) -> list[tuple[int, Option, int]]:
    found: list[tuple[int, Option, int]] = []
    for rank, (_, number) in enumerate(order.ranking):
        reason = order.refuses(order.views[number])
        if reason is None:
            option, reason = first_that_fits(hosts[number], remaining)
            if option is not None:
                found.append((number, option, rank))
        if reason is not None:
            refused[hosts[number].view.name] = reason
        if len(found) == max(1, subset):
            break
    return found


def _with_one_more(view: HostView, option: Option) -> HostView:
    used = Counter(view.used)
    for amounts in option.allocations.values():
        used.update(amounts)
    return attrs.evolve(view, used=dict(used), members=view.members + 1)
