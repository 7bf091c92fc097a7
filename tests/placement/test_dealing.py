"""Alternates are dealt evenly: distinct while there are enough, in the primary's cell, in other failure domains."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cloudcore.placement.dealing import Hand, Spare, deal

CELLS = ("c1", "c2")


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Hand], dict[str, list[Spare]]]:
    domains = st.sampled_from([None, "r1", "r2", "r3"])
    hosts = st.none() | st.integers(0, 7)
    dealt_to = st.tuples(st.sampled_from(CELLS), hosts, domains)
    hands = [
        Hand(cell=cell, host=None if number is None else f"{cell}-h{number}", domain=domain)
        for cell, number, domain in draw(st.lists(dealt_to, max_size=12))
    ]
    spares = {
        cell: [Spare(host=f"{cell}-h{number}", domain=draw(domains)) for number in range(draw(st.integers(0, 8)))]
        for cell in CELLS
    }
    return hands, spares


def room(spare: Spare) -> int:
    """How often a host fits: anything from 1 to 4, the same at every question."""
    return 1 + sum(map(ord, spare.host)) % 4


@given(tables(), st.integers(0, 4), st.booleans())
def test_what_is_dealt_is_distinct_fits_and_stays_in_the_cell(
    table: tuple[list[Hand], dict[str, list[Spare]]], alternates: int, share: bool
) -> None:
    hands, spares = table
    dealt = deal(hands, spares, alternates=alternates, fits=room if share else None)
    assert len(dealt) == len(hands)
    times = Counter(card.host for cards in dealt for card in cards)
    for hand, cards in zip(hands, dealt, strict=True):
        assert len({card.host for card in cards} - {hand.host}) == len(cards) <= alternates
        assert all(card in spares[hand.cell] for card in cards)
    for cell in CELLS:
        asked = alternates * sum(hand.cell == cell for hand in hands)
        distinct = sum(card.host in times for card in spares[cell])
        if all(hand.host is None for hand in hands):
            assert distinct == min(len(spares[cell]), asked)
        for card in spares[cell]:
            assert times[card.host] <= (room(card) if share else 1)


@given(tables(), st.integers(1, 4))
def test_a_hand_is_short_only_when_nothing_it_lacks_has_room(
    table: tuple[list[Hand], dict[str, list[Spare]]], alternates: int
) -> None:
    hands, spares = table
    dealt = deal(hands, spares, alternates=alternates, fits=room)
    times = Counter(card.host for cards in dealt for card in cards)
    for hand, cards in zip(hands, dealt, strict=True):
        if len(cards) < alternates:
            held = {hand.host, *(card.host for card in cards)}
            assert all(card.host in held or times[card.host] == room(card) for card in spares[hand.cell])


def test_another_failure_domain_is_preferred_to_a_better_rank() -> None:
    spares = {"c1": [Spare(host="a", domain="r1"), Spare(host="b", domain="r2"), Spare(host="c", domain="r3")]}
    (cards,) = deal([Hand(cell="c1", domain="r1")], spares, alternates=3)
    assert [card.host for card in cards] == ["b", "c", "a"]


def test_hosts_are_shared_only_after_every_one_was_dealt() -> None:
    spares = {"c1": [Spare(host=name) for name in "abc"]}
    dealt = deal([Hand(cell="c1")] * 2, spares, alternates=2, fits=lambda _: 2)
    assert [[card.host for card in cards] for cards in dealt] == [["a", "c"], ["b", "a"]]
