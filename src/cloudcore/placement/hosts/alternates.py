"""Alternates for the instances of one request: given out round by round, each host once while there are enough.

Taking the head of one sorted list for every instance gives a hundred instances the same few alternates, which then
fill up together when a rack is lost. Giving them out in rounds leaves each instance its own for as long as the cell has
hosts that were not selected, prefers hosts in other failure domains than those the instance already has, and only then
shares. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import TYPE_CHECKING

from cloudcore.placement.hosts.candidate_hosts import Pick, first_that_fits
from cloudcore.placement.rules.groups import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts.assignment import Assignment
    from cloudcore.placement.hosts.candidate_hosts import Option
    from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity
    from cloudcore.placement.rules.groups import HostGroup

__all__ = ["choose_alternates", "distribute"]

_MOST_OPTIONS = 16
"""Options of a host that are looked at when several instances share it as an alternate."""


def choose_alternates(
    assignment: Assignment, remaining: RemainingCapacity, alternates: int, group: HostGroup | None = None
) -> list[tuple[Pick, ...]]:
    """Give each pick of *assignment* up to *alternates* hosts to fall back on.

    They are in the cell of the pick, can hold the request after all the picks, and are allowed by a hard policy of the
    group: its members do not share them, and a group that is kept together gets none. Hosts that were picked for nobody
    come first; where a cell has too few of them, those picked for other instances follow.

    A single instance gives back what it holds before it takes an alternate: what it has of a pool that both share is
    counted as free for it. Of several instances nobody knows which will fall back: theirs must fit beside each other.
    """
    picks = assignment.picks
    members = Counter(group.members if group else {})
    members.update(pick.host.view.root for pick in picks)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and members.total() > 1:
        return [() for _ in picks]
    hard = group if group is not None and group.hard else None
    allowed = None if hard is None else (lambda root: hard.refuses(root, members) is None)
    alone = picks[0].option.allocations if len(picks) == 1 else {}
    remaining.take(alone, -1)
    spares = _spares(assignment, remaining, alternates, allowed)
    remaining.take(alone)
    shared = _SharedOptions(remaining, most=len(picks))
    given = distribute(picks, spares, alternates=alternates, fits=None if hard else shared.count)
    return shared.assign(given)


def _spares(
    assignment: Assignment, remaining: RemainingCapacity, alternates: int, allowed: Callable[[str], bool] | None
) -> dict[str, list[Pick]]:
    """For each cell the hosts to give out, best first: as many as its picks may get, of each failure domain."""
    picks = assignment.picks
    picked = {pick.host.view.root for pick in picks}
    enough = {cell: alternates * count for cell, count in Counter(pick.host.view.cell for pick in picks).items()}
    spares: dict[str, list[Pick]] = {cell: [] for cell in enough}
    wanted = {cell: _for_each_domain(most) for cell, most in enough.items()}
    short = len(enough) if alternates else 0
    untouched = remaining.untouched
    ranking = iter(assignment.ranking)
    while short or assignment.in_domains:  # else every cell has enough, and there are no other domains to look for
        found = next(ranking, None)
        if found is None:
            break
        host, weight, rank = found
        view = host.view
        domain = view.domain
        of_domain = wanted.get(view.cell)
        if of_domain is None or view.root in picked or not of_domain[domain]:
            continue
        if allowed is not None and not allowed(view.root):
            continue
        option = host.first
        if option is None or not untouched(option.allocations):
            option, _ = first_that_fits(host, remaining)
        if option is not None:
            hosts = spares[view.cell]
            hosts.append(Pick(host, option, weight, rank))
            of_domain[domain] -= 1
            short -= len(hosts) == enough[view.cell]
    for pick in picks:  # the last resort: hosts of the others that would hold one more
        view = pick.host.view
        if len(spares[view.cell]) < enough[view.cell] and view.root in picked and (not allowed or allowed(view.root)):
            option, _ = first_that_fits(pick.host, remaining)
            if option is not None:
                spares[view.cell].append(pick._replace(option=option))
                picked.discard(view.root)
    return spares


def _for_each_domain(most: int) -> defaultdict[str | None, int]:
    """``{failure domain: hosts that may still be gathered of it}``."""
    return defaultdict(lambda: most)


def distribute(
    picks: Sequence[Pick],
    spares: Mapping[str, Sequence[Pick]],
    *,
    alternates: int,
    fits: Callable[[Pick], int] | None = None,
) -> list[tuple[Pick, ...]]:
    """Give each of *picks* up to *alternates* hosts of its cell.

    The distinct hosts given in a cell are as many as there are spares, or as are asked for, whichever is less;
    it may be fewer where the spares include hosts of the picks themselves, since nobody is given its own.

    Args:
        picks: The hosts of the instances, in the order in which they were placed.
        spares: For each cell the hosts that may be given, each once, best first.
        alternates: How many each instance may get.
        fits: How many instances of the request a host could hold at once: once every host of the cell has been given,
            it is given again up to that often. None when hosts may not be shared, as under anti-affinity.

    Returns:
        For each pick its alternates, in the order in which to try them; fewer where the cell has no more.
    """
    given: list[tuple[Pick, ...]] = [()] * len(picks)
    by_cell: defaultdict[str, list[int]] = defaultdict(list)
    for place, pick in enumerate(picks):
        by_cell[pick.host.view.cell].append(place)
    for cell, places in by_cell.items():
        hosts = spares.get(cell, ())
        count = len(places)
        if len(hosts) >= alternates * count and _alike(hosts, {picks[place].host.view.root for place in places}):
            for turn, place in enumerate(places):
                given[place] = tuple(hosts[turn : alternates * count : count])
        else:
            hands = _in_rounds([picks[place] for place in places], _SparePool(hosts, fits), alternates)
            for place, hand in zip(places, hands, strict=True):
                given[place] = hand
    return given


def _alike(hosts: Sequence[Pick], own: set[str]) -> bool:
    """Whether one spare is as good for an instance as another: no need of rounds where there are enough for all."""
    for spare in hosts:
        view = spare.host.view
        if view.domain is not None or view.root in own:
            return False
    return True


class _Hand:
    """What one instance has been given, and what that rules out for it."""

    __slots__ = ("domains", "roots", "spares")

    def __init__(self, pick: Pick) -> None:
        view = pick.host.view
        self.spares: list[Pick] = []
        self.roots = {view.root}
        self.domains = {view.domain} - {None}

    def add(self, spare: Pick) -> None:
        view = spare.host.view
        self.spares.append(spare)
        self.roots.add(view.root)
        if view.domain is not None:
            self.domains.add(view.domain)


def _in_rounds(picks: Sequence[Pick], pool: _SparePool, alternates: int) -> list[tuple[Pick, ...]]:
    hands = [_Hand(pick) for pick in picks]
    waiting = hands
    for _ in range(alternates):
        waiting = [hand for hand in waiting if pool.give(hand)]  # who gets none gets none later: there is only less
        if not waiting:
            break
    return [tuple(hand.spares) for hand in hands]


class _SparePool:
    """The spares of one cell: a heap of (times given, rank) for each failure domain."""

    def __init__(self, spares: Sequence[Pick], fits: Callable[[Pick], int] | None) -> None:
        self._spares = spares
        self._roots = [spare.host.view.root for spare in spares]
        self._fits = fits
        self._heaps: dict[str | None, list[tuple[int, int]]] = {}
        for rank, spare in enumerate(spares):
            self._heaps.setdefault(spare.host.view.domain, []).append((0, rank))  # ascending, hence a heap

    def give(self, hand: _Hand) -> bool:
        """Give the host given least often, then in a domain that is new to the instance, then of the best rank."""
        best: tuple[int, bool, int] | None = None
        for domain, heap in self._heaps.items():
            head = self._head(heap, hand.roots)
            if head is not None:
                key = (head[0], domain in hand.domains, head[1])
                best = key if best is None or key < best else best
        if best is None:
            return False
        hand.add(self._take(best[0], best[2]))
        return True

    def _head(self, heap: list[tuple[int, int]], held: set[str]) -> tuple[int, int] | None:
        if not heap or self._roots[heap[0][1]] not in held:
            return heap[0] if heap else None
        return min((spare for spare in heap if self._roots[spare[1]] not in held), default=None)

    def _take(self, times: int, rank: int) -> Pick:
        spare = self._spares[rank]
        heap = self._heaps[spare.host.view.domain]
        again = self._fits is not None and times + 1 < self._fits(spare)
        if heap[0] != (times, rank):  # it lay behind hosts that this instance already has
            heap.remove((times, rank))
            if again:
                heap.append((times + 1, rank))
            heapify(heap)
        elif again:
            heapreplace(heap, (times + 1, rank))
        else:
            heappop(heap)
        return spare


class _SharedOptions:
    """The options of hosts that are given, each as often as it fits: instances that share a host must not collide.

    A host that is given once gets its best option, and nothing more is asked of it.
    """

    def __init__(self, remaining: RemainingCapacity, *, most: int) -> None:
        self._remaining = remaining
        self._most = most
        self._shared: dict[str, list[Option]] = {}

    def count(self, spare: Pick) -> int:
        """How many instances the host could hold, at most as many as there are."""
        return len(self._of(spare))

    def assign(self, given: list[tuple[Pick, ...]]) -> list[tuple[Pick, ...]]:
        """Give every instance that shares a host another option than those before it."""
        if not self._shared:
            return given  # nobody asked whether a host can be shared
        times: Counter[str] = Counter()
        return [tuple(self._next(pick, times) for pick in fallbacks) for fallbacks in given]

    def _next(self, pick: Pick, times: Counter[str]) -> Pick:
        root = pick.host.view.root
        times[root] += 1
        return pick if times[root] == 1 else pick._replace(option=self._of(pick)[times[root] - 1])

    def _of(self, spare: Pick) -> list[Option]:
        root = spare.host.view.root
        if root not in self._shared:
            self._shared[root] = list(islice(self._filled(spare), self._most))
        return self._shared[root]

    def _filled(self, spare: Pick) -> Iterator[Option]:
        """Options that fit beside each other, on what is left; what they would take is given back."""
        options = list(islice(spare.host.options, _MOST_OPTIONS))
        taken: list[tuple[Option, int]] = []
        for option in options:
            times = min(self._remaining.fits(option.allocations), self._most)
            self._remaining.take(option.allocations, times)
            taken.append((option, times))
        for option, times in taken:
            self._remaining.take(option.allocations, -times)
        for option, times in taken:
            yield from [option] * times
