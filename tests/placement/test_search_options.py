"""What goes beyond Placement's query: orders, folding, cells, seeds. None may change which candidates there are."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import InvalidRequest
from cloudcore.placement import Candidate, Inventory, PlacementTree
from cloudcore.placement.search.ordering import Host
from tests.placement import oracle, ours
from tests.placement.peer import identity
from tests.placement.test_scenarios_worked import provider
from tests.placement.worlds import TRAITS, Request, World, cases

ORDERS = ("pack", "spread", {"VCPU": 1.0}, ["pack", {"DISK_GB": -1.0}], lambda host: -len(host.root.name))


def known(candidate: Candidate) -> oracle.Candidate:
    return identity(candidate.allocations, {suffix: list(uuids) for suffix, uuids in candidate.mappings.items()})


@hypothesis.settings(max_examples=max(200, hypothesis.settings().max_examples))
@given(cases(), st.data())
def test_options_change_the_order_alone(case: tuple[World, Request], data: st.DataObject) -> None:
    """Whatever the order, the candidates are those of brute force, each once; the same options give the same order."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    tree = ours.build(world)
    right = oracle.candidates(world, request)
    options = {
        "order_by": data.draw(st.sampled_from((None, *ORDERS[:-1]))),
        "preferred": data.draw(st.sampled_from((None, {TRAITS[0]: 1.0, TRAITS[1]: 0.5}, [TRAITS[2]]))),
        "hosts_first": data.draw(st.booleans()),
        "seed": data.draw(st.sampled_from((None, 0, 1, 12345))),
    }
    found = [known(candidate) for candidate in tree.candidates(request.query(), **options)]
    assert set(found) == right
    assert len(found) == len(right)
    assert found == [known(candidate) for candidate in tree.candidates(request.query(), **options)]
    limited = tree.candidates(f"{request.query()}&limit=2", **options)
    assert [known(candidate) for candidate in limited] == found[:2]


@given(cases(), st.data())
def test_within_looks_at_the_trees_named_and_no_others(case: tuple[World, Request], data: st.DataObject) -> None:
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    tree = ours.build(world)
    chosen = data.draw(st.sets(st.sampled_from([root.name for root in world.roots])))
    right = {
        found for root in world.roots if root.name in chosen for found in oracle.candidates_of(world, request, root)
    }
    for within in (sorted(chosen), lambda root: root.name in chosen):
        search = tree.candidates(request.query(), within=within)
        assert {known(candidate) for candidate in search} == right
        assert search.report().hosts == len(chosen)


@given(cases())
def test_physical_lists_each_set_of_allocations_once(case: tuple[World, Request]) -> None:
    """Permutations of groups over the same devices are one; nothing else is left out."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    right = Counter(held for held, _ in oracle.candidates(world, request))
    found = [known(candidate) for candidate in ours.build(world).candidates(request.query(), distinct="physical")]
    assert set(found) <= oracle.candidates(world, request)
    assert Counter(held for held, _ in found) == Counter(dict.fromkeys(right, 1))


@given(cases())
def test_hosts_are_those_with_a_candidate(case: tuple[World, Request]) -> None:
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    hosts = {host.root.uuid: host for host in ours.build(world).candidates(request.query()).hosts()}
    for root in world.roots:
        right = set(oracle.candidates_of(world, request, root))
        assert (root.uuid in hosts) == bool(right)
        if right:
            assert {known(candidate) for candidate in hosts[root.uuid]} == right


def flat(count: int) -> PlacementTree:
    world = World(tuple(provider(number, f"h{number}", VCPU=8) for number in range(1, count + 1)))
    tree = ours.build(world)
    for number, root in enumerate(tree.roots()):
        tree.set_usage(root, {"VCPU": (number * 5) % 7})
    return tree


@pytest.mark.parametrize(("order", "descending"), [("pack", True), ("spread", False)])
def test_pack_and_spread_order_hosts_by_use(order: str, descending: bool) -> None:
    tree = flat(20)
    used = [tree.usage(candidate.root)["VCPU"] for candidate in tree.candidates("resources=VCPU:1", order_by=order)]
    assert used == sorted(used, reverse=descending)
    assert len(used) == 20


def test_hosts_first_gives_every_host_before_the_second_of_any() -> None:
    """Placement's first ten may all lie on one host."""
    parts = itertools.count(100)
    world = World(
        tuple(
            each
            for host in range(1, 6)
            for each in (
                provider(host, f"h{host}"),
                *(provider(next(parts), f"h{host}-{node}", host, VCPU=4) for node in range(3)),
            )
        )
    )
    tree = ours.build(world)
    plain = [candidate.root for candidate in tree.candidates("resources=VCPU:1&limit=5")]
    spread = [candidate.root for candidate in tree.candidates("resources=VCPU:1&limit=5", hosts_first=True)]
    assert len(set(plain)) == 2
    assert len(set(spread)) == 5


def test_seed_starts_elsewhere_and_says_where() -> None:
    tree = flat(50)
    firsts = {next(iter(tree.candidates("resources=VCPU:1", seed=seed))).root for seed in range(20)}
    assert len(firsts) > 5
    again = {next(iter(tree.candidates("resources=VCPU:1", seed=seed))).root for seed in range(20)}
    assert again == firsts


# ------------------------------------------------------------------------------------------------------ wide trees


def wide(devices: int, units: int = 1) -> World:
    """Identical devices under one root: permutations explode."""
    functions = (provider(2 + n, f"pf{n}", 1, SRIOV_NET_VF=units) for n in range(devices))
    return World((provider(1, "cn", VCPU=64), *functions))


def groups(count: int, policy: str = "none") -> str:
    return "&".join(f"resources{n}=SRIOV_NET_VF:1" for n in range(count)) + f"&group_policy={policy}"


@pytest.mark.parametrize("policy", ["none", "isolate"])
def test_eight_devices_of_one_unit_and_six_groups(policy: str) -> None:
    """8!/2! candidates, of which 28 differ in what is taken. Placement needs 40 s, whatever the limit."""
    tree = ours.build(wide(8))
    query = f"resources=VCPU:1&{groups(6, policy)}"
    every = {known(candidate) for candidate in tree.candidates(query)}
    assert len(every) == 20_160
    folded = [known(candidate) for candidate in tree.candidates(query, distinct="physical")]
    assert len(folded) == 28
    assert set(folded) <= every
    assert [known(candidate) for candidate in tree.candidates(f"{query}&limit=28", distinct="physical")] == folded


@pytest.mark.parametrize(
    ("devices", "units", "count", "policy", "answers", "physical"),
    [
        (8, 8, 3, "none", 8**3, 120),
        (8, 8, 3, "isolate", 8 * 7 * 6, 56),
        (4, 2, 4, "none", 204, 19),
        (2, 8, 8, "none", 2**8, 9),
        (8, 1, 9, "none", 0, 0),
        (3, 1, 3, "isolate", 6, 1),
    ],
)
def test_counts_of_wide_trees(devices: int, units: int, count: int, policy: str, answers: int, physical: int) -> None:
    """The numbers follow from combinatorics; brute force has the last word where it can."""
    world = wide(devices, units)
    tree = ours.build(world)
    query = groups(count, policy)
    assert len({known(candidate) for candidate in tree.candidates(query)}) == answers
    assert len(list(tree.candidates(query, distinct="physical"))) == physical
    request = Request.from_query(query)
    if oracle.cost(world, request) <= 5_000:
        assert len(oracle.candidates(world, request)) == answers


def test_ten_of_a_million_million_cost_ten() -> None:
    """8 devices × 8 units × 12 groups: 8**12 combinations, of which the first ten are there at once."""
    tree = ours.build(wide(8, 16))
    found = [known(candidate) for candidate in tree.candidates(f"{groups(12)}&limit=10")]
    assert len(set(found)) == 10
    assert len(list(tree.candidates(f"{groups(12)}&limit=10", distinct="physical"))) == 10


def unlike(count: int, policy: str) -> str:
    """Groups that differ, so that none stands for another."""
    each = (f"resources{n}=SRIOV_NET_VF:1&required{n}=in:CUSTOM_A,CUSTOM_T{n}" for n in range(count))
    return "&".join(each) + f"&group_policy={policy}"


@pytest.mark.parametrize(("policy", "units"), [("none", 1), ("isolate", 8)])
def test_groups_that_cannot_be_served_together_end_at_once(policy: str, units: int) -> None:
    """Thirteen different groups on twelve devices: trying all ways would take longer than this test may run."""
    devices = (provider(2 + n, f"pf{n}", 1, "CUSTOM_A", SRIOV_NET_VF=units) for n in range(12))
    tree = ours.build(World((provider(1, "cn"), *devices)))
    search = tree.candidates(unlike(13, policy))
    assert list(search) == []
    (reason,) = search.report().counts
    assert reason == ("group_policy" if policy == "isolate" else "capacity_together SRIOV_NET_VF")
    fitting = tree.candidates(f"{unlike(12, policy)}&limit=20")
    assert len({known(candidate) for candidate in fitting}) == 20


def test_late_group_keeps_the_only_device_that_serves_it() -> None:
    """The first eleven groups could take any of twelve; the last two need the first two, and get them."""
    devices = (
        provider(2 + n, f"pf{n}", 1, "CUSTOM_A CUSTOM_B" if n < 2 else "CUSTOM_A", SRIOV_NET_VF=8) for n in range(13)
    )
    tree = ours.build(World((provider(1, "cn"), *devices)))
    rare = "&".join(f"resources_b{n}=SRIOV_NET_VF:{n + 1}&required_b{n}=CUSTOM_B" for n in range(2))
    first = next(iter(tree.candidates(f"{unlike(11, 'isolate')}&{rare}")))
    served = {tree.provider(first.mappings[suffix][0]).name for suffix in ("_b0", "_b1")}
    assert served == {"pf0", "pf1"}


WRONG_OPTIONS = [
    ("preferred", "CUSTOM_FAST"),
    ("preferred", b"CUSTOM_FAST"),
    ("preferred", ""),
    ("preferred", 5),
    ("preferred", [5]),
    ("preferred", [["CUSTOM_FAST"]]),
    ("preferred", ["fast"]),
    ("preferred", {"fast": 1.0}),
    ("preferred", {5: 1.0}),
    ("preferred CUSTOM_FAST", {"CUSTOM_FAST": "much"}),
    ("preferred CUSTOM_FAST", {"CUSTOM_FAST": float("nan")}),
    ("within", "cn1"),
    ("within", 5),
    ("within", [5]),
    ("within", [["cn1"]]),
    ("order_by", "pcak"),
    ("order_by", 5),
    ("order_by", [["pack"]]),
    ("order_by", np.zeros(2)),
    ("order_by", {"vcpu": 1.0}),
    ("distinct", "physically"),
    ("seed", 1.5),
    ("max_steps", 0),
]


@pytest.mark.parametrize(("field", "value"), WRONG_OPTIONS, ids=str)
def test_an_option_of_another_kind_is_refused_by_name(field: str, value: object) -> None:
    tree = PlacementTree()
    tree.add("cn1", inventory={"VCPU": 8}, traits={"CUSTOM_FAST"})
    options: dict[str, Any] = {field.partition(" ")[0]: value}
    with pytest.raises(InvalidRequest) as caught:
        tree.candidates("resources=VCPU:1", **options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "options",
    [
        {"preferred": ["CUSTOM_FAST"]},
        {"preferred": ("CUSTOM_FAST",)},
        {"preferred": {"CUSTOM_FAST"}},
        {"preferred": {"CUSTOM_FAST": 2}},
        {"preferred": iter(["CUSTOM_FAST"])},
        {"within": {"cn2": "a mapping by root"}},
        {"within": iter(["cn2"])},
    ],
)
def test_any_collection_will_do(options: dict[str, Any]) -> None:
    tree = PlacementTree()
    tree.add("cn1", inventory={"VCPU": 8})
    tree.add("cn2", inventory={"VCPU": 8}, traits={"CUSTOM_FAST"})
    assert tree.candidates("resources=VCPU:1", **options).first().host.name == "cn2"


def test_a_host_adds_up_beyond_64_bits() -> None:
    """What each provider has may be cut off there, and a weigher is shown all of them together."""
    tree = PlacementTree()
    tree.add("cn1")
    for cell in range(4):
        tree.add(f"numa{cell}", parent="cn1", inventory={"VCPU": Inventory(2**31 - 1, allocation_ratio=3e38)})
        tree.set_usage(f"numa{cell}", {"VCPU": 2**62})
    seen: list[Host] = []

    def weigh(host: Host) -> float:
        seen.append(host)
        return 1.0

    assert len(list(tree.candidates("resources=VCPU:1", order_by=weigh))) == 4
    assert seen[0].capacity == {"VCPU": 4 * (2**63 - 1)}
    assert seen[0].used == {"VCPU": 4 * 2**62}
    assert seen[0].free == {"VCPU": 4 * (2**63 - 1 - 2**62)}
