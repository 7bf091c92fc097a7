"""Deal alternates to the instances of one request, like cards: round by round, each host once while there are enough.

Taking the head of one sorted list for every instance gives a hundred instances the same few alternates, which then
fill up together when a rack is lost. Dealing gives each instance its own for as long as the cell has hosts that were
not selected, prefers hosts in other failure domains than those the instance already has, and only then shares. Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import TYPE_CHECKING

from cloudcore.placement.hosts.contenders import Pick, first_that_fits
from cloudcore.placement.hosts.host_view import AffinityPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts.assignment import Placement
    from cloudcore.placement.hosts.contenders import Option
    from cloudcore.placement.hosts.host_view import HostGroup
    from cloudcore.placement.hosts.remaining_capacity import Residual

__all__ = ["deal", "fall_backs"]

_MOST_OPTIONS = 16
"""Options of a host that are looked at when several instances share it as an alternate."""


def fall_backs(
    placement: Placement, residual: Residual, alternates: int, group: HostGroup | None = None
) -> list[tuple[Pick, ...]]:
    """Deal each pick of *placement* up to *alternates* hosts to fall back on.

    They are in the cell of the pick, can hold the request after all the picks, and are allowed by a hard policy of the
    group: its members do not share them, and a group that is kept together gets none. Hosts that were picked for nobody
    come first; where a cell has too few of them, those picked for other instances follow.

    A single instance gives back what it holds before it takes an alternate: what it has of a pool that both share is
    counted as free for it. Of several instances nobody knows which will fall back: theirs must fit beside each other.
    """
    picks = placement.picks
    members = Counter(group.members if group else {})
    members.update(pick.host.view.root for pick in picks)
    if group is not None and group.policy is AffinityPolicy.AFFINITY and members.total() > 1:
        return [() for _ in picks]
    hard = group if group is not None and group.hard else None
    allowed = None if hard is None else (lambda root: hard.refuses(root, members) is None)
    alone = picks[0].option.allocations if len(picks) == 1 else {}
    residual.take(alone, -1)
    spares = _spares(placement, residual, alternates, allowed)
    residual.take(alone)
    seats = _Seats(residual, most=len(picks))
    dealt = deal(picks, spares, alternates=alternates, fits=None if hard else seats.count)
    return seats.assign(dealt)


def _spares(
    placement: Placement, residual: Residual, alternates: int, allowed: Callable[[str], bool] | None
) -> dict[str, list[Pick]]:
    """For each cell the hosts to deal, best first: as many as its picks may get, of each failure domain."""
    picks = placement.picks
    picked = {pick.host.view.root for pick in picks}
    enough = {cell: alternates * count for cell, count in Counter(pick.host.view.cell for pick in picks).items()}
    spares: dict[str, list[Pick]] = {cell: [] for cell in enough}
    wanted = {cell: _for_each_domain(most) for cell, most in enough.items()}
    short = len(enough) if alternates else 0
    untouched = residual.untouched
    for rank, (host, weight) in enumerate(placement.ranking):
        view = host.view
        domain = view.domain
        if not short and not placement.in_domains:
            break  # every cell has enough, and there are no other domains to look for
        of_domain = wanted.get(view.cell)
        if of_domain is None or view.root in picked or not of_domain[domain]:
            continue
        if allowed is not None and not allowed(view.root):
            continue
        option = host.first
        if option is None or not untouched(option.allocations):
            option, _ = first_that_fits(host, residual)
        if option is not None:
            cards = spares[view.cell]
            cards.append(Pick(host, option, weight, rank))
            of_domain[domain] -= 1
            short -= len(cards) == enough[view.cell]
    for pick in picks:  # the last resort: hosts of the others that would hold one more
        view = pick.host.view
        if len(spares[view.cell]) < enough[view.cell] and view.root in picked and (not allowed or allowed(view.root)):
            option, _ = first_that_fits(pick.host, residual)
            if option is not None:
                spares[view.cell].append(pick._replace(option=option))
                picked.discard(view.root)
    return spares


def _for_each_domain(most: int) -> defaultdict[str | None, int]:
    """``{failure domain: hosts that may still be gathered of it}``."""
    return defaultdict(lambda: most)


def deal(
    picks: Sequence[Pick],
    spares: Mapping[str, Sequence[Pick]],
    *,
    alternates: int,
    fits: Callable[[Pick], int] | None = None,
) -> list[tuple[Pick, ...]]:
    """Give each of *picks* up to *alternates* hosts of its cell.

    The distinct hosts dealt in a cell are as many as there are spares, or as are asked for, whichever is less;
    it may be fewer where the spares include hosts of the picks themselves, since nobody is dealt its own.

    Args:
        picks: The hosts of the instances, in the order in which they were placed.
        spares: For each cell the hosts that may be dealt, each once, best first.
        alternates: How many each instance may get.
        fits: How many instances of the request a host could hold at once: once every host of the cell has been dealt,
            it is dealt again up to that often. None when hosts may not be shared, as under anti-affinity.

    Returns:
        For each pick its alternates, in the order in which to try them; fewer where the cell has no more.
    """
    dealt: list[tuple[Pick, ...]] = [()] * len(picks)
    players: defaultdict[str, list[int]] = defaultdict(list)
    for place, pick in enumerate(picks):
        players[pick.host.view.cell].append(place)
    for cell, places in players.items():
        cards = spares.get(cell, ())
        count = len(places)
        if len(cards) >= alternates * count and _alike(cards, {picks[place].host.view.root for place in places}):
            for turn, place in enumerate(places):
                dealt[place] = tuple(cards[turn : alternates * count : count])
        else:
            _play(picks, places, _Deck(cards, fits), alternates, dealt)
    return dealt


def _alike(cards: Sequence[Pick], own: set[str]) -> bool:
    """Whether one card is as good for a player as another: no need to play where there are enough for all."""
    for card in cards:
        view = card.host.view
        if view.domain is not None or view.root in own:
            return False
    return True


def _play(
    picks: Sequence[Pick], places: Sequence[int], deck: _Deck, alternates: int, dealt: list[tuple[Pick, ...]]
) -> None:
    for _ in range(alternates):
        for place in places:
            card = deck.draw(picks[place], dealt[place])
            if card is not None:
                dealt[place] = (*dealt[place], card)


class _Deck:
    """The spares of one cell: a heap of (times dealt, rank) for each failure domain."""

    def __init__(self, spares: Sequence[Pick], fits: Callable[[Pick], int] | None) -> None:
        self._spares = spares
        self._roots = [spare.host.view.root for spare in spares]
        self._fits = fits
        self._piles: dict[str | None, list[tuple[int, int]]] = {}
        for rank, spare in enumerate(spares):
            self._piles.setdefault(spare.host.view.domain, []).append((0, rank))  # ascending, hence a heap

    def draw(self, pick: Pick, cards: Sequence[Pick]) -> Pick | None:
        """Take the host dealt least often, then in a domain that is new to the instance, then of the best rank."""
        mine = [one.host.view for one in (pick, *cards)]
        held = {view.root for view in mine}
        avoid = {view.domain for view in mine} - {None}
        best: tuple[int, bool, int] | None = None
        for domain, pile in self._piles.items():
            head = self._head(pile, held)
            if head is not None:
                key = (head[0], domain in avoid, head[1])
                best = key if best is None or key < best else best
        return None if best is None else self._take(best[0], best[2])

    def _head(self, pile: list[tuple[int, int]], held: set[str]) -> tuple[int, int] | None:
        if not pile or self._roots[pile[0][1]] not in held:
            return pile[0] if pile else None
        return min((card for card in pile if self._roots[card[1]] not in held), default=None)

    def _take(self, times: int, rank: int) -> Pick:
        spare = self._spares[rank]
        pile = self._piles[spare.host.view.domain]
        again = self._fits is not None and times + 1 < self._fits(spare)
        if pile[0] != (times, rank):  # it lay behind hosts that this instance already has
            pile.remove((times, rank))
            if again:
                pile.append((times + 1, rank))
            heapify(pile)
        elif again:
            heapreplace(pile, (times + 1, rank))
        else:
            heappop(pile)
        return spare


class _Seats:
    """The options of hosts that are dealt, each as often as it fits: instances that share a host must not collide.

    A host that is dealt once gets its best option, and nothing more is asked of it.
    """

    def __init__(self, residual: Residual, *, most: int) -> None:
        self._residual = residual
        self._most = most
        self._seats: dict[str, list[Option]] = {}

    def count(self, spare: Pick) -> int:
        """How many instances the host could hold, at most as many as there are."""
        return len(self._of(spare))

    def assign(self, dealt: list[tuple[Pick, ...]]) -> list[tuple[Pick, ...]]:
        """Give every instance that shares a host another option than those before it."""
        if not self._seats:
            return dealt  # nobody asked whether a host can be shared
        given: Counter[str] = Counter()
        return [tuple(self._next(pick, given) for pick in hand) for hand in dealt]

    def _next(self, pick: Pick, given: Counter[str]) -> Pick:
        root = pick.host.view.root
        given[root] += 1
        return pick if given[root] == 1 else pick._replace(option=self._of(pick)[given[root] - 1])

    def _of(self, spare: Pick) -> list[Option]:
        root = spare.host.view.root
        if root not in self._seats:
            self._seats[root] = list(islice(self._filled(spare), self._most))
        return self._seats[root]

    def _filled(self, spare: Pick) -> Iterator[Option]:
        """Options that fit beside each other, on what is left; what they would take is given back."""
        options = list(islice(spare.host.options, _MOST_OPTIONS))
        taken: list[tuple[Option, int]] = []
        for option in options:
            times = min(self._residual.fits(option.allocations), self._most)
            self._residual.take(option.allocations, times)
            taken.append((option, times))
        for option, times in taken:
            self._residual.take(option.allocations, -times)
        for option, times in taken:
            yield from [option] * times
