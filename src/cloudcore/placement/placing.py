"""Place the instances of one request on hosts, one after the other, each pick counting for the next. Pure.

Nothing is claimed here: a :class:`Placement` is a plan made on a snapshot. What the ledger then refuses is told to the
:class:`Residual`, and the plan is made again.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import attrs
from sortedcontainers import SortedList

from cloudcore.placement.dealing import Hand, Spare, deal
from cloudcore.placement.hosts import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts import HostGroup, HostView, Weigher

__all__ = ["Contender", "Option", "Pick", "Placement", "Residual", "Room", "fall_backs", "place"]


_MOST_OPTIONS = 16
"""Options of a host that are looked at when several instances share it as an alternate."""


@attrs.frozen(kw_only=True)
class Option:
    """One way in which a host can hold the request: ``{provider: {class: amount}}`` and ``{suffix: providers}``."""

    allocations: Mapping[str, Mapping[str, int]]
    mappings: Mapping[str, Sequence[str]] = attrs.field(factory=dict)


class Contender:
    """A host that passed search and filters, with its options, the first ones cheap and the rest made on demand."""

    def __init__(self, view: HostView, options: Iterable[Option]) -> None:
        self.view = view
        self._known: list[Option] = []
        self._more = iter(options)

    @property
    def options(self) -> Iterator[Option]:
        """Every option in its order; each is made once, when first asked for."""
        yield from self._known
        for option in self._more:
            self._known.append(option)
            yield option


@attrs.frozen(kw_only=True)
class Room:
    """What one provider has of one resource class, in the unit of the class."""

    used: int
    capacity: int


class Residual:
    """What is left on each provider after the picks so far and after what refusals have told.

    Args:
        room_of: Gives the snapshot's room of (provider, class), None where the provider has no such inventory.
    """

    def __init__(self, room_of: Callable[[str, str], Room | None]) -> None:
        self._room_of = room_of
        self._taken: Counter[tuple[str, str]] = Counter()
        self._told: dict[tuple[str, str], tuple[int, int]] = {}
        self._touched: set[str] = set()
        self._gone: dict[str, str] = {}

    def used(self, provider: str, resource_class: str) -> tuple[int, int]:
        """(used, capacity) by now; (0, 0) where there is no inventory."""
        key = (provider, resource_class)
        told = self._told.get(key)
        if told is None:
            room = self._room_of(provider, resource_class)
            told = (0, 0) if room is None else (room.used, room.capacity)
        return told[0] + self._taken[key], told[1]

    def refuses(self, allocations: Mapping[str, Mapping[str, int]]) -> str | None:
        """Why these amounts, which the search found to fit, do not fit any more; None if they do."""
        if self._touched.isdisjoint(allocations):
            return None
        for provider, amounts in allocations.items():
            if provider in self._gone:
                return self._gone[provider]
            for resource_class, amount in amounts.items():
                used, capacity = self.used(provider, resource_class)
                if used + amount > capacity:
                    return (
                        f"{resource_class} on {provider}: {amount} asked, {used} of {capacity} used, "
                        "picks of this request included"
                    )
        return None

    def fits(self, allocations: Mapping[str, Mapping[str, int]]) -> int:
        """How many times these amounts fit into what is left."""
        times = [
            max(0, capacity - used) // amount
            for provider, amounts in allocations.items()
            for resource_class, amount in amounts.items()
            for used, capacity in [self.used(provider, resource_class)]
        ]
        return min(times, default=0)

    def take(self, allocations: Mapping[str, Mapping[str, int]], times: int = 1) -> None:
        """Count a pick (or with ``times=-1`` its end)."""
        self._touched.update(allocations)
        for provider, amounts in allocations.items():
            for resource_class, amount in amounts.items():
                self._taken[provider, resource_class] += times * amount

    def learn(self, provider: str, resource_class: str, *, used: int, capacity: int) -> None:
        """Believe what a refusal told of an inventory rather than the snapshot."""
        self._touched.add(provider)
        self._told[provider, resource_class] = (used, capacity)

    def avoid(self, provider: str, reason: str) -> None:
        """Take nothing from a provider that is gone, or whose rules refused."""
        self._touched.add(provider)
        self._gone[provider] = reason


class Pick(NamedTuple):
    """A host with one of its options. *rank* counts the hosts that were liked better, 0 is the best."""

    host: Contender
    option: Option
    weight: float
    rank: int


@attrs.frozen(kw_only=True)
class Placement:
    """What :func:`place` decided.

    Attributes:
        picks: In the order of the instances; fewer than asked for when no host was left.
        refused: Then: host name → why it took no more.
        ranking: Every host with its weight after the picks, best first.
    """

    picks: tuple[Pick, ...]
    refused: Mapping[str, str]
    ranking: tuple[tuple[Contender, float], ...]


class _Order:
    """The hosts in the order of their weights. What a pick changes is kept here; the hosts stay as they are."""

    def __init__(
        self, hosts: Sequence[Contender], weighers: Sequence[tuple[float, Weigher]], group: HostGroup | None
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


def place(
    hosts: Sequence[Contender],
    count: int,
    residual: Residual,
    *,
    weighers: Sequence[tuple[float, Weigher]] = (),
    group: HostGroup | None = None,
    choose: Callable[[int], int] = lambda _: 0,
    subset: int = 1,
) -> Placement:
    """Pick a host for each of *count* instances of the same request.

    Args:
        hosts: Those that passed search and filters; on equal weights the earlier one is taken.
        count: Number of instances.
        residual: What is left; every pick is taken from it.
        weighers: (multiplier, weigher) pairs. Each is scaled once, by its range over *hosts* before the first pick.
        group: The group that all of them belong to.
        choose: Given n, a number below n: which of the n best hosts to take.
        subset: How many of the best hosts *choose* chooses from; more than 1 keeps schedulers that work side by side
            out of each other's way.
    """
    order = _Order(hosts, weighers, group)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and not any(group.members.values()):
        picks, refused = _together(hosts, count, order, residual)
    else:
        picks, refused = _apart(hosts, count, order, residual, choose, subset)
    ranking = tuple((hosts[number], -negated) for negated, number in order.ranking)
    return Placement(picks=tuple(picks), refused={} if len(picks) == count else refused, ranking=ranking)


def _apart(
    hosts: Sequence[Contender],
    count: int,
    order: _Order,
    residual: Residual,
    choose: Callable[[int], int],
    subset: int,
) -> tuple[list[Pick], dict[str, str]]:
    """One instance after the other, each on the best host that has room by then."""
    picks: list[Pick] = []
    refused: dict[str, str] = {}
    for _ in range(count):
        refused = {}
        found = _fitting(hosts, order, residual, refused, subset)
        if not found:
            break
        number, option, rank = found[choose(len(found))]
        picks.append(Pick(host=hosts[number], option=option, weight=order.weights[number], rank=rank))
        residual.take(option.allocations)
        order.picked(number, option)
    return picks, refused


def _together(
    hosts: Sequence[Contender], count: int, order: _Order, residual: Residual
) -> tuple[list[Pick], dict[str, str]]:
    """All on one host: the best that holds all of them, else the one that holds the most."""
    best: list[Pick] = []
    refused: dict[str, str] = {}
    for rank, (negated, number) in enumerate(order.ranking):
        picks: list[Pick] = []
        for _ in range(count):
            option, reason = _first_that_fits(hosts[number], residual)
            if option is None:
                refused[hosts[number].view.name] = f"affinity: holds {len(picks)} of {count}; {reason}"
                break
            picks.append(Pick(host=hosts[number], option=option, weight=-negated, rank=rank))
            residual.take(option.allocations)
        for pick in picks:
            residual.take(pick.option.allocations, times=-1)
        if len(picks) > len(best):
            best = picks
        if len(best) == count:
            break
    for pick in best:
        residual.take(pick.option.allocations)
    return best, refused


def fall_backs(
    placement: Placement, residual: Residual, alternates: int, group: HostGroup | None = None
) -> list[tuple[Pick, ...]]:
    """Deal each pick of *placement* up to *alternates* hosts to fall back on.

    They are in the cell of the pick, can hold the request after all the picks, and are allowed by a hard policy of the
    group: its members do not share them, and a group that is kept together gets none. Hosts that were picked for nobody
    come first; where a cell has too few of them, those picked for other instances follow.
    """
    picks = placement.picks
    picked = {pick.host.view.root for pick in picks}
    members = Counter(group.members if group else {})
    members.update(pick.host.view.root for pick in picks)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and members.total() > 1:
        return [() for _ in picks]
    hard = group if group is not None and group.hard else None
    wanted = Counter(pick.host.view.cell for pick in picks)
    spares: dict[str, list[Spare]] = {cell: [] for cell in wanted}
    enough = {cell: alternates * count for cell, count in wanted.items()}
    gathered: Counter[tuple[str, str | None]] = Counter()
    found: dict[str, Pick] = {}
    unsatisfied = len(enough) if alternates else 0
    for rank, (host, weight) in enumerate(placement.ranking):
        view = host.view
        cell, root = view.cell, view.root
        if not unsatisfied and view.domain is None:
            break  # every cell has enough, and there are no domains to look for
        if cell not in enough or root in picked or gathered[cell, view.domain] >= enough[cell]:
            continue
        if hard is not None and hard.refuses(root, members) is not None:
            continue
        option, _ = _first_that_fits(host, residual)
        if option is not None:
            found[root] = Pick(host, option, weight, rank)
            spares[cell].append(Spare(root, view.domain))
            gathered[cell, view.domain] += 1
            unsatisfied -= len(spares[cell]) == enough[cell]
    for pick in picks:  # the last resort: hosts of the others that would hold one more
        view = pick.host.view
        short = len(spares[view.cell]) < enough[view.cell]
        if short and view.root not in found and not (hard and hard.refuses(view.root, members)):
            option, _ = _first_that_fits(pick.host, residual)
            if option is not None:
                found[view.root] = Pick(pick.host, option, pick.weight, pick.rank)
                spares[view.cell].append(Spare(view.root, view.domain))
    hands = [Hand(cell=view.cell, host=view.root, domain=view.domain) for view in (pick.host.view for pick in picks)]
    seats = _Seats(found, residual)
    dealt = deal(hands, spares, alternates=alternates, fits=None if hard else seats.count)
    return [tuple(seats.next(spare) for spare in hand) for hand in dealt]


class _Seats:
    """The options of hosts that are dealt, each as often as it fits: instances that share a host must not collide.

    A host that is dealt once gets its best option, and nothing more is asked of it.
    """

    def __init__(self, found: Mapping[str, Pick], residual: Residual) -> None:
        self._found = found
        self._residual = residual
        self._options: dict[str, list[Option]] = {}
        self._given: Counter[str] = Counter()

    def count(self, spare: Spare) -> int:
        """How many instances the host could hold."""
        return len(self._of(spare.host))

    def next(self, spare: Spare) -> Pick:
        """The host with the option that the next instance is to claim there."""
        pick = self._found[spare.host]
        given = self._given[spare.host]
        self._given[spare.host] = given + 1
        return pick._replace(option=self._of(spare.host)[given]) if given else pick

    def _of(self, root: str) -> list[Option]:
        if root not in self._options:
            options = islice(self._found[root].host.options, _MOST_OPTIONS)
            self._options[root] = [o for o in options for _ in range(self._residual.fits(o.allocations))]
        return self._options[root]


def _fitting(
    hosts: Sequence[Contender], order: _Order, residual: Residual, refused: dict[str, str], subset: int
) -> list[tuple[int, Option, int]]:
    found: list[tuple[int, Option, int]] = []
    for rank, (_, number) in enumerate(order.ranking):
        reason = order.refuses(order.views[number])
        if reason is None:
            option, reason = _first_that_fits(hosts[number], residual)
            if option is not None:
                found.append((number, option, rank))
        if reason is not None:
            refused[hosts[number].view.name] = reason
        if len(found) == max(1, subset):
            break
    return found


def _first_that_fits(host: Contender, residual: Residual) -> tuple[Option, None] | tuple[None, str]:
    """Try more than one candidate before the host is given up."""
    reason = "no candidate is left"
    for option in host.options:
        why = residual.refuses(option.allocations)
        if why is None:
            return option, None
        reason = why
    return None, reason


def _with_one_more(view: HostView, option: Option) -> HostView:
    used = Counter(view.used)
    for amounts in option.allocations.values():
        used.update(amounts)
    return attrs.evolve(view, used=dict(used), members=view.members + 1)
