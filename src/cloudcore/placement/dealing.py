"""Deal alternates to the instances of one request, like cards: round by round, each host once while there are enough.

Taking the head of one sorted list for every instance gives a hundred instances the same few alternates, which then
fill up together when a rack is lost. Dealing gives each instance its own for as long as the cell has hosts that were
not selected, prefers hosts in other failure domains than those the instance already has, and only then shares.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Hand", "Spare", "deal"]


class Spare(NamedTuple):
    """A host that could serve as an alternate.

    Attributes:
        host: Identity of the host; unique within its cell.
        domain: Its failure domain (rack, power feed), None where none is known.
    """

    host: str
    domain: str | None = None


@attrs.frozen(kw_only=True)
class Hand:
    """An instance that is to get alternates: the cell, the host and the failure domain of its primary."""

    cell: str
    host: str | None = None
    domain: str | None = None


def deal(
    hands: Sequence[Hand],
    spares: Mapping[str, Sequence[Spare]],
    *,
    alternates: int,
    fits: Callable[[Spare], int] | None = None,
) -> list[tuple[Spare, ...]]:
    """Give each of *hands* up to *alternates* hosts of its cell.

    The distinct hosts dealt in a cell are as many as there are spares, or as are asked for, whichever is less;
    it may be fewer where the spares include primaries of the hands themselves, since nobody is dealt its own.

    Args:
        hands: The instances, in the order in which they were placed.
        spares: For each cell the hosts that may be dealt, best first; nobody is dealt its own primary.
        alternates: How many each instance may get.
        fits: How many instances of the request a host could hold at once: once every host of the cell has been dealt,
            it is dealt again up to that often. None when hosts may not be shared, as under anti-affinity.

    Returns:
        For each hand its alternates, in the order in which to try them; fewer where the cell has no more.
    """
    dealt: list[tuple[Spare, ...]] = [()] * len(hands)
    players: dict[str, list[int]] = {}
    for place, hand in enumerate(hands):
        players.setdefault(hand.cell, []).append(place)
    for cell, places in players.items():
        cards = spares.get(cell, ())
        own = {hands[place].host for place in places}
        plain = all(card.domain is None and card.host not in own for card in cards)
        if plain and len(cards) >= alternates * len(places):
            for turn, place in enumerate(places):  # enough for all, and one as good as another: no need to play
                dealt[place] = tuple(cards[turn :: len(places)][:alternates])
        else:
            _play([hands[place] for place in places], places, _Deck(cards, fits), alternates, dealt)
    return dealt


def _play(
    hands: Sequence[Hand], places: Sequence[int], deck: _Deck, alternates: int, dealt: list[tuple[Spare, ...]]
) -> None:
    for _ in range(alternates):
        for hand, place in zip(hands, places, strict=True):
            card = deck.draw(hand, dealt[place])
            if card is not None:
                dealt[place] = (*dealt[place], card)


class _Deck:
    """The spares of one cell: a heap of (times dealt, rank) for each failure domain."""

    def __init__(self, spares: Sequence[Spare], fits: Callable[[Spare], int] | None) -> None:
        self._spares = spares
        self._fits = fits
        self._piles: dict[str | None, list[tuple[int, int]]] = {}
        for rank, spare in enumerate(spares):
            self._piles.setdefault(spare.domain, []).append((0, rank))  # ascending, hence a heap

    def draw(self, hand: Hand, cards: Sequence[Spare]) -> Spare | None:
        """Take the host dealt least often, then in a domain that is new to the hand, then of the best rank."""
        held = {hand.host, *(card.host for card in cards)}
        avoid = {hand.domain, *(card.domain for card in cards)} - {None}
        best: tuple[int, bool, int] | None = None
        for pile_domain, pile in self._piles.items():
            head = self._head(pile, held)
            if head is not None:
                key = (head[0], pile_domain in avoid, head[1])
                best = key if best is None or key < best else best
        return None if best is None else self._take(best[0], best[2])

    def _head(self, pile: list[tuple[int, int]], held: set[str | None]) -> tuple[int, int] | None:
        if not pile or self._spares[pile[0][1]].host not in held:
            return pile[0] if pile else None
        return min((card for card in pile if self._spares[card[1]].host not in held), default=None)

    def _take(self, times: int, rank: int) -> Spare:
        spare = self._spares[rank]
        pile = self._piles[spare.domain]
        again = self._fits is not None and times + 1 < self._fits(spare)
        if pile[0] != (times, rank):  # it lay behind hosts that this hand already holds
            pile.remove((times, rank))
            if again:
                pile.append((times + 1, rank))
            heapify(pile)
        elif again:
            heapreplace(pile, (times + 1, rank))
        else:
            heappop(pile)
        return spare
