"""A plan for several instances: each pick counts for the next, groups hold, more than one candidate is tried."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import InvalidRequest
from cloudcore.placement.hosts import (
    AffinityPolicy,
    HostGroup,
    HostView,
    force_hosts,
    free,
    ignore_hosts,
    in_aggregates,
    metadata_equals,
    packed,
    spread,
    weigh,
)
from cloudcore.placement.hosts.alternates import choose_alternates
from cloudcore.placement.hosts.assignment import Assignment, assign
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Ranked
from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity, Room


def view(name: str, free_cores: int = 8, **facts: object) -> HostView:
    return HostView(root=name, name=name, cell="c1", capacity={"VCPU": 8}, used={"VCPU": 8 - free_cores}, **facts)


def plan(free_cores: list[int], count: int, amount: int = 2, **arguments: object) -> Assignment:
    """The plan alone: see :func:`prepared`."""
    return prepared(free_cores, count, amount, **arguments)[0]


def prepared(
    free_cores: list[int], count: int, amount: int = 2, **arguments: object
) -> tuple[Assignment, RemainingCapacity]:
    """Hosts h0, h1, ... with so many cores free of 8, and a request of *amount* cores."""
    hosts = [
        CandidateHost(view(f"h{number}", cores), [Option(allocations={f"h{number}": {"VCPU": amount}})])
        for number, cores in enumerate(free_cores)
        if cores >= amount  # the search lets no other pass
    ]
    remaining = RemainingCapacity(lambda provider, _: Room(used=8 - free_cores[int(provider[1:])], capacity=8))
    return assign(hosts, count, remaining, **arguments), remaining


@given(st.lists(st.integers(0, 8), max_size=6), st.integers(0, 20), st.integers(1, 8))
def test_never_more_than_fits_and_never_less(free_cores: list[int], count: int, amount: int) -> None:
    assignment = plan(free_cores, count, amount, weighers=[(1.0, spread(["VCPU"]))])
    placed = Counter(pick.host.view.name for pick in assignment.picks)
    for number, cores in enumerate(free_cores):
        assert placed[f"h{number}"] * amount <= cores
    possible = sum(cores // amount for cores in free_cores)
    assert len(assignment.picks) == min(count, possible)
    assert bool(assignment.refused) == (count > possible and any(cores >= amount for cores in free_cores))


@given(st.lists(st.integers(0, 8), max_size=6), st.integers(0, 8), st.integers(1, 3))
def test_anti_affinity_counts_members_that_were_there(free_cores: list[int], count: int, allowed: int) -> None:
    group = HostGroup(policy="anti-affinity", members={"h0": 1}, max_per_host=allowed)
    placed = Counter(pick.host.view.name for pick in plan(free_cores, count, 1, group=group).picks)
    assert all(placed[name] + group.members.get(name, 0) <= allowed for name in placed)


def test_affinity_keeps_all_on_the_best_host_that_holds_them() -> None:
    assignment = plan([2, 4, 8], 3, group=HostGroup(policy="affinity"))
    assert [pick.host.view.name for pick in assignment.picks] == ["h2"] * 3
    short = plan([2, 4], 3, group=HostGroup(policy="affinity"))
    assert [pick.host.view.name for pick in short.picks] == ["h1"] * 2
    assert short.refused["h0"].startswith("affinity: holds 1 of 3; VCPU on h0: 2 asked, 8 of 8 used")


def test_other_failure_domains_are_found_behind_better_hosts() -> None:
    hosts = [
        CandidateHost(view(name, domain=name[0]), [Option(allocations={name: {"VCPU": 1}})])
        for name in ("a1", "a2", "a3", "a4", "b1", "b2")
    ]
    remaining = RemainingCapacity(lambda *_: Room(used=0, capacity=8))
    (hand,) = choose_alternates(assign(hosts, 1, remaining), remaining, 2)
    assert [pick.host.view.name for pick in hand] == ["b1", "a2"]


def test_soft_policies_yield_when_they_cannot_be_met() -> None:
    together = plan([4, 8], 3, group=HostGroup(policy=AffinityPolicy.SOFT_AFFINITY))
    assert [pick.host.view.name for pick in together.picks] == ["h0", "h0", "h1"]
    apart = plan([8, 8], 3, group=HostGroup(policy=AffinityPolicy.SOFT_ANTI_AFFINITY))
    assert [pick.host.view.name for pick in apart.picks] == ["h0", "h1", "h0"]


def test_spreading_alternates_between_hosts_and_packing_fills_one() -> None:
    spreading = plan([8, 8], 4, weighers=[(1.0, spread(["VCPU"]))])
    assert Counter(pick.host.view.name for pick in spreading.picks) == {"h0": 2, "h1": 2}
    uneven = plan([8, 6], 4, weighers=[(1.0, spread(["VCPU"]))])
    assert Counter(pick.host.view.name for pick in uneven.picks) == {"h0": 3, "h1": 1}
    packing = plan([8, 6], 4, weighers=[(1.0, packed(["VCPU"]))])
    assert [pick.host.view.name for pick in packing.picks] == ["h1", "h1", "h1", "h0"]


def test_a_second_candidate_of_a_host_is_tried_before_the_host_is_given_up() -> None:
    options = [Option(allocations={"pf0": {"SRIOV_NET_VF": 1}}), Option(allocations={"pf1": {"SRIOV_NET_VF": 1}})]
    rooms = {"pf0": Room(used=4, capacity=4), "pf1": Room(used=3, capacity=4)}
    remaining = RemainingCapacity(lambda provider, _: rooms[provider])
    remaining.learn("pf0", "SRIOV_NET_VF", used=4, capacity=4)
    assignment = assign([CandidateHost(view("h0"), iter(options))], 2, remaining)
    assert [dict(pick.option.allocations) for pick in assignment.picks] == [{"pf1": {"SRIOV_NET_VF": 1}}]
    assert "pf1: 1 asked, 4 of 4 used" in assignment.refused["h0"]


def test_what_a_refusal_told_is_believed_and_picks_are_added_to_it() -> None:
    remaining = RemainingCapacity(lambda *_: Room(used=0, capacity=8))
    remaining.learn("h0", "VCPU", used=6, capacity=8)
    asked = {"h0": {"VCPU": 2}}
    assert remaining.fits(asked) == 1
    remaining.take(asked)
    assert remaining.refuses(asked) == "VCPU on h0: 2 asked, 8 of 8 used, picks of this request included"
    remaining.take(asked, times=-1)
    assert remaining.refuses(asked) is None


def test_a_provider_without_the_class_has_no_room() -> None:
    assert RemainingCapacity(lambda *_: None).fits({"h0": {"VCPU": 1}}) == 0


def test_one_of_the_best_is_chosen() -> None:
    assignment = plan([8, 8, 8], 2, subset=2, choose=lambda n: n - 1)
    assert [(pick.host.view.name, pick.rank) for pick in assignment.picks] == [("h1", 1), ("h1", 1)]


@pytest.mark.parametrize(
    ("refuse", "passes", "reason"),
    [
        (ignore_hosts({"h1"}), "h0", "ignored by the request"),
        (force_hosts({"h0"}), "h0", "not among the hosts that the request forces"),
        (in_aggregates({"rack0"}), "h0", "in none of the aggregates asked for"),
        (metadata_equals("zone", "a"), "h0", "metadata zone is 'b', not 'a'"),
    ],
)
def test_filters_say_why(refuse: object, passes: str, reason: str) -> None:
    hosts = {
        "h0": view("h0", aggregates=frozenset({"rack0"}), metadata={"zone": "a"}),
        "h1": view("h1", aggregates=frozenset({"rack1"}), metadata={"zone": "b"}),
    }
    assert refuse(hosts[passes]) is None
    assert refuse(hosts["h1"]) == reason


def test_weights_are_scaled_before_they_are_multiplied() -> None:
    hosts = [view("h0", 0), view("h1", 4), view("h2", 8)]
    assert weigh(hosts, [(2.0, free("VCPU")), (1.0, packed(["VCPU"]))]) == [1.0, 1.5, 2.0]
    assert weigh([], [(1.0, free("VCPU"))]) == []


def test_a_group_must_allow_one_member() -> None:
    with pytest.raises(InvalidRequest, match="max_per_host: 0 is not between 1"):
        HostGroup(policy="anti-affinity", max_per_host=0)


def test_hosts_of_other_instances_are_the_last_resort() -> None:
    assignment, remaining = prepared([8, 8, 2], 2, weighers=[(1.0, spread(["VCPU"]))])
    assert [pick.host.view.name for pick in assignment.picks] == ["h0", "h1"]
    dealt = [[pick.host.view.name for pick in hand] for hand in choose_alternates(assignment, remaining, 2)]
    assert dealt == [["h2", "h1"], ["h0"]], "h2 holds one more and no second one"


def test_members_of_a_hard_group_share_no_alternate_and_affinity_has_none() -> None:
    for policy, expected in (("anti-affinity", [["h2"], []]), ("affinity", [[], []])):
        group = HostGroup(policy=policy)
        assignment, remaining = prepared([8, 8, 8], 2, group=group)
        dealt = choose_alternates(assignment, remaining, 2, group)
        assert [[pick.host.view.name for pick in hand] for hand in dealt] == expected


def test_instances_that_share_an_alternate_do_not_share_its_room() -> None:
    """Two options of a host take from one provider: it is dealt as often as they fit together, not each by itself."""
    pool = {"h2": {"VCPU": 1}, "pool": {"DISK_GB": 2}}
    other = {"h2": {"VCPU": 1, "MEMORY_MB": 1}, "pool": {"DISK_GB": 2}}
    hosts = [
        CandidateHost(view("h0"), [Option(allocations={"h0": {"VCPU": 1}})]),
        CandidateHost(view("h1"), [Option(allocations={"h1": {"VCPU": 1}})]),
        CandidateHost(view("h2"), [Option(allocations=pool), Option(allocations=other)]),
    ]
    rooms = {"pool": Room(used=0, capacity=3)}
    remaining = RemainingCapacity(lambda provider, _: rooms.get(provider, Room(used=0, capacity=1)))
    assignment = assign(hosts[:2], 2, remaining)
    assignment = attrs.evolve(assignment, ranking=[Ranked(host, 0.0, rank) for rank, host in enumerate(hosts)])
    dealt = choose_alternates(assignment, remaining, 1)
    assert [[pick.host.view.name for pick in hand] for hand in dealt] == [["h2"], []]


def test_a_host_in_no_known_domain_does_not_end_the_search_for_others() -> None:
    domains = {"a": "r1", "b": "r1", "c": "r1", "d": None, "e": "r2", "f": "r3"}
    hosts = [
        CandidateHost(view(name, domain=domain), [Option(allocations={name: {"VCPU": 1}})])
        for name, domain in domains.items()
    ]
    remaining = RemainingCapacity(lambda *_: Room(used=0, capacity=8))
    (hand,) = choose_alternates(assign(hosts, 1, remaining), remaining, 3)
    assert [pick.host.view.name for pick in hand] == ["d", "e", "f"], "none in the rack of the primary"


def test_one_instance_needs_no_more_of_a_pool_that_it_has_a_part_of() -> None:
    hosts = [
        CandidateHost(view(name), [Option(allocations={name: {"VCPU": 1}, "pool": {"DISK_GB": 10}})]) for name in "abc"
    ]
    remaining = RemainingCapacity(lambda provider, _: Room(used=0, capacity=15 if provider == "pool" else 8))
    assignment = assign(hosts, 1, remaining)
    (hand,) = choose_alternates(assignment, remaining, 2)
    assert [pick.host.view.name for pick in hand] == ["b", "c"]
    assert remaining.used("pool", "DISK_GB") == (10, 15), "it holds its own again"
