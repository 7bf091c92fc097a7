"""Alternates are dealt evenly: distinct while there are enough, in the primary's cell, in other failure domains."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.placement.hosts import HostView
from cloudcore.placement.hosts.alternates import _Hand, _SparePool, distribute
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Pick

CELLS = ("c1", "c2")


def card(host: str, cell: str = "c1", domain: str | None = None) -> Pick:
    """A host with one option."""
    option = Option(allocations={host: {"VCPU": 1}})
    return Pick(CandidateHost(HostView(root=host, name=host, cell=cell, domain=domain), [option]), option, 0.0, 0)


def name(pick: Pick) -> str:
    return pick.host.view.root


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Pick], dict[str, list[Pick]]]:
    """Picks, on hosts that may be among the spares and on others; and the spares of each cell."""
    domains = st.sampled_from([None, "r1", "r2", "r3"])
    hosts = st.sampled_from(["elsewhere", *range(8)])
    picked = draw(st.lists(st.tuples(st.sampled_from(CELLS), hosts, domains), max_size=12))
    picks = [card(f"{cell}-h{number}", cell, domain) for cell, number, domain in picked]
    spares = {
        cell: [card(f"{cell}-h{number}", cell, draw(domains)) for number in range(draw(st.integers(0, 8)))]
        for cell in CELLS
    }
    return picks, spares


def room(spare: Pick) -> int:
    """How often a host fits: anything from 1 to 4, the same at every question."""
    return 1 + sum(map(ord, name(spare))) % 4


@given(tables(), st.integers(0, 4), st.booleans())
def test_what_is_dealt_is_distinct_fits_and_stays_in_the_cell(
    table: tuple[list[Pick], dict[str, list[Pick]]], alternates: int, share: bool
) -> None:
    picks, spares = table
    dealt = distribute(picks, spares, alternates=alternates, fits=room if share else None)
    assert len(dealt) == len(picks)
    times = Counter(name(one) for cards in dealt for one in cards)
    for pick, cards in zip(picks, dealt, strict=True):
        assert len({name(one) for one in cards} - {name(pick)}) == len(cards) <= alternates
        assert all(one in spares[pick.host.view.cell] for one in cards)
    for cell in CELLS:
        own = [pick for pick in picks if pick.host.view.cell == cell]
        distinct = sum(name(one) in times for one in spares[cell])
        if {name(pick) for pick in own}.isdisjoint(map(name, spares[cell])):
            assert distinct == min(len(spares[cell]), alternates * len(own))
        for one in spares[cell]:
            assert times[name(one)] <= (room(one) if share else 1)


@given(tables(), st.integers(1, 4))
def test_a_hand_is_short_only_when_nothing_it_lacks_has_room(
    table: tuple[list[Pick], dict[str, list[Pick]]], alternates: int
) -> None:
    picks, spares = table
    dealt = distribute(picks, spares, alternates=alternates, fits=room)
    times = Counter(name(one) for cards in dealt for one in cards)
    for pick, cards in zip(picks, dealt, strict=True):
        if len(cards) < alternates:
            held = {name(pick), *map(name, cards)}
            cell = pick.host.view.cell
            assert all(name(one) in held or times[name(one)] == room(one) for one in spares[cell])


@given(tables(), st.booleans())
def test_however_many_are_asked_for_the_work_ends_with_the_hosts(
    table: tuple[list[Pick], dict[str, list[Pick]]], share: bool
) -> None:
    """Steps are counted: each gives a host to an instance, or is the last that this instance waits for."""
    picks, spares = table
    fits = room if share else None
    most = max(map(len, spares.values()))
    with pytest.MonkeyPatch.context() as patched:
        give, steps = _SparePool.give, itertools.count(1)

        def counted(pool: _SparePool, hand: _Hand) -> bool:
            assert next(steps) <= len(picks) * (most + 1)
            return give(pool, hand)

        patched.setattr(_SparePool, "give", counted)
        dealt = distribute(picks, spares, alternates=2**31 - 1, fits=fits)
    assert dealt == distribute(picks, spares, alternates=most, fits=fits)


def test_another_failure_domain_is_preferred_to_a_better_rank() -> None:
    spares = {"c1": [card("a", domain="r1"), card("b", domain="r2"), card("c", domain="r3")]}
    (cards,) = distribute([card("p", domain="r1")], spares, alternates=3)
    assert [name(one) for one in cards] == ["b", "c", "a"]


def test_hosts_are_shared_only_after_every_one_was_dealt() -> None:
    spares = {"c1": [card(host) for host in "abc"]}
    dealt = distribute([card("p"), card("q")], spares, alternates=2, fits=lambda _: 2)
    assert [[name(one) for one in cards] for cards in dealt] == [["a", "c"], ["b", "a"]]
