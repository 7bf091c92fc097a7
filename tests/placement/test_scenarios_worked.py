"""Worked examples: small worlds, requests, and the candidates counted by hand. Each was also asked of Placement 16.0.0.

The last part holds what that release gets wrong and cloudcore must not.
"""

from __future__ import annotations

import pytest

from tests.placement import oracle, ours
from tests.placement.worlds import AGGREGATES, SHARING, Provider, Request, Stock, World

A, B = AGGREGATES[:2]


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def provider(
    number: int, name: str, parent: int | None = None, traits: str = "", aggregates: str = "", **stock
) -> Provider:
    """`VCPU=8` is a plain inventory of 8."""
    return Provider(
        name=name,
        uuid=uuid(number),
        parent=None if parent is None else uuid(parent),
        stock={key: value if isinstance(value, Stock) else Stock(total=value) for key, value in stock.items()},
        traits=frozenset(traits.split()),
        aggregates=frozenset({"A": A, "B": B}[letter] for letter in aggregates),
    )


def numa(used_of_p0: int = 0) -> World:
    """One compute node, two NUMA nodes, one physical function under each."""
    return World(
        (
            provider(1, "cn1", traits="CUSTOM_ROOT1", aggregates="A", DISK_GB=100),
            provider(2, "n0", 1, "HW_NUMA_ROOT", VCPU=8, MEMORY_MB=4096),
            provider(3, "n1", 1, "HW_NUMA_ROOT CUSTOM_FAST", VCPU=8, MEMORY_MB=4096),
            provider(4, "p0", 2, "CUSTOM_PHYSNET_A", SRIOV_NET_VF=Stock(total=4, used=used_of_p0)),
            provider(5, "p1", 3, "CUSTOM_PHYSNET_B", SRIOV_NET_VF=4),
        )
    )


def pooled(pool_aggregates: str = "A") -> World:
    """Two hosts without disks and a pool of disks."""
    return World(
        (
            provider(1, "h1", aggregates="A", VCPU=8),
            provider(2, "h2", aggregates="A", VCPU=8),
            provider(3, "ss", traits=SHARING, aggregates=pool_aggregates, DISK_GB=100),
        )
    )


def names(world: World, query: str) -> list[str]:
    """Candidates as text: providers with their amounts, then who serves which group. Ours, checked by brute force."""
    found = ours.listed(ours.build(world), query)
    assert set(found) == oracle.candidates(world, Request.from_query(query))
    assert len(set(found)) == len(found)
    called = {p.uuid: p.name for p in world.providers}
    lines = []
    for held, mappings in found:
        parts = sorted(f"{called[who]} {amount} {name}" for who, name, amount in held)
        by = sorted(f"{suffix or '-'}={'+'.join(sorted(called[who] for who in whos))}" for suffix, whos in mappings)
        lines.append(f"{', '.join(parts)}; {' '.join(by)}")
    return sorted(lines)


V, F = "VCPU:1", "SRIOV_NET_VF:1"
TWO_V = f"resources1={V}&resources2={V}"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (f"resources={V},MEMORY_MB:1,DISK_GB:1", 4),
        (f"resources={V},MEMORY_MB:1&required=CUSTOM_FAST", 3),
        (f"resources={V},MEMORY_MB:1&required=!CUSTOM_FAST", 1),
        (f"resources={V}&required=CUSTOM_ROOT1", 0),
        (f"resources={V}&root_required=CUSTOM_ROOT1", 2),
        (f"resources={V}&member_of={A}", 2),
        (f"resources1={V}&member_of1={A}", 0),
        (f"resources={V}&member_of=!{A}", 0),
        (f"resources1={V}&member_of1=!{A}", 2),
        (f"{TWO_V}&group_policy=none", 4),
        (f"{TWO_V}&group_policy=isolate", 2),
        (f"resources=MEMORY_MB:1&resources1={V}&resources2={F}&required2=CUSTOM_PHYSNET_A&group_policy=isolate", 4),
        (f"resources1={F}&required1=CUSTOM_PHYSNET_A&resources2={V}&same_subtree=1,2&group_policy=none", 1),
        (f"resources1={F}&resources2={V}&required_N=HW_NUMA_ROOT&same_subtree=1,2,_N&group_policy=none", 2),
        (f"resources1={F}&resources2={V}&required_N=HW_NUMA_ROOT&same_subtree=1,2,_N&group_policy=isolate", 0),
        ("resources=VCPU:9", 0),
        ("resources=VCPU:8&resources1=VCPU:8&group_policy=none", 2),
    ],
)
def test_numa_node_with_physical_functions(query: str, count: int) -> None:
    """One class never splits, traits are collective, aggregates of the root span its tree."""
    assert len(names(numa(), query)) == count


def test_same_subtree_puts_the_device_below_its_cpus() -> None:
    query = f"resources1={F}&required1=CUSTOM_PHYSNET_A&resources2={V}&same_subtree=1,2&group_policy=none"
    assert names(numa(), query) == ["n0 1 VCPU, p0 1 SRIOV_NET_VF; 1=p0 2=n0"]


def test_groups_may_not_use_more_together_than_is_left() -> None:
    """3 of p0's 4 are used: two groups of one go to both, in either order, or to p1 twice."""
    assert names(numa(used_of_p0=3), f"resources1={F}&resources2={F}&group_policy=none") == [
        "p0 1 SRIOV_NET_VF, p1 1 SRIOV_NET_VF; 1=p0 2=p1",
        "p0 1 SRIOV_NET_VF, p1 1 SRIOV_NET_VF; 1=p1 2=p0",
        "p1 2 SRIOV_NET_VF; 1=p1 2=p1",
    ]


@pytest.mark.parametrize(("first", "second", "count"), [(1, 2, 0), (1, 1, 1)])
def test_max_unit_holds_for_the_sum(first: int, second: int, count: int) -> None:
    world = World((provider(1, "gpus", PGPU=Stock(total=8, max_unit=2)),))
    assert len(names(world, f"resources1=PGPU:{first}&resources2=PGPU:{second}&group_policy=none")) == count


def test_min_unit_and_step_hold_for_each_group() -> None:
    world = World((provider(1, "gpus", PGPU=Stock(total=8, min_unit=2)),))
    assert names(world, "resources1=PGPU:1&resources2=PGPU:1&group_policy=none") == []


def test_capacity_is_cut_to_a_whole_number() -> None:
    """10 × 0.29 is 2.9: two are given, three are not."""
    world = World((provider(1, "gpus", PGPU=Stock(total=10, allocation_ratio=0.29)),))
    assert len(names(world, "resources=PGPU:2")) == 1
    assert names(world, "resources=PGPU:3") == []


@pytest.mark.parametrize(
    ("query", "right"),
    [
        ("resources=VCPU:1,DISK_GB:5", ["h1 1 VCPU, ss 5 DISK_GB; -=h1+ss", "h2 1 VCPU, ss 5 DISK_GB; -=h2+ss"]),
        (f"resources=VCPU:1,DISK_GB:5&in_tree={uuid(1)}", []),
        (
            f"resources1=VCPU:1&in_tree1={uuid(1)}&resources2=DISK_GB:5&group_policy=none",
            ["h1 1 VCPU, ss 5 DISK_GB; 1=h1 2=ss"],
        ),
        (f"resources=DISK_GB:5&in_tree={uuid(3)}&resources1=VCPU:1", []),
        (f"resources=DISK_GB:5&in_tree={uuid(3)}", ["ss 5 DISK_GB; -=ss"]),
        ("resources=DISK_GB:5", ["ss 5 DISK_GB; -=ss"]),
        (f"resources=DISK_GB:5&required={SHARING}", ["ss 5 DISK_GB; -=ss"]),
        ("resources1=VCPU:1&resources2=DISK_GB:5&same_subtree=1,2&group_policy=none", []),
        (f"resources=DISK_GB:5&root_required=!{SHARING}", ["ss 5 DISK_GB; -=ss"]),
    ],
)
def test_hosts_with_a_shared_pool(query: str, right: list[str]) -> None:
    """A pool serves each tree with a member in its aggregates; in_tree keeps it out; the same is listed once."""
    assert names(pooled(), query) == right


def test_forbidden_aggregate_of_a_root_keeps_pools_away_from_it() -> None:
    """!member_of of the unsuffixed group looks at the provider used and at the root that it is used from."""
    world = World(
        (
            provider(1, "h1", aggregates="AB", VCPU=8),
            provider(2, "h2", aggregates="A", VCPU=8),
            provider(3, "ss", traits=SHARING, aggregates="A", DISK_GB=100),
        )
    )
    assert names(world, f"resources=DISK_GB:5&member_of=!{B}&resources1=VCPU:1") == [
        "h2 1 VCPU, ss 5 DISK_GB; -=ss 1=h2"
    ]


def test_pool_without_an_aggregate_shares_with_nobody() -> None:
    assert names(pooled(pool_aggregates=""), "resources=VCPU:1,DISK_GB:5") == []


def test_pools_of_two_aggregates_meet_in_a_tree_that_gives_nothing() -> None:
    """The connecting tree is an anchor, though it appears nowhere in the candidate."""
    world = World(
        (
            provider(1, "link", aggregates="AB"),
            provider(2, "cpus", traits=SHARING, aggregates="A", VCPU=8),
            provider(3, "disks", traits=SHARING, aggregates="B", DISK_GB=100),
        )
    )
    assert names(world, "resources=VCPU:1,DISK_GB:1") == ["cpus 1 VCPU, disks 1 DISK_GB; -=cpus+disks"]


# ------------------------------------------------------------------------------------- what Placement 16.0.0 gets wrong


def test_shared_class_is_added_up_for_each_candidate_alone() -> None:
    """Placement adds in objects that several candidates hold: it answers {n0: 1, n1: 2}."""
    assert names(numa(), "resources=VCPU:1&resources1=VCPU:1") == [
        "n0 1 VCPU, n1 1 VCPU; -=n0 1=n1",
        "n0 1 VCPU, n1 1 VCPU; -=n1 1=n0",
        "n0 2 VCPU; -=n0 1=n0",
        "n1 2 VCPU; -=n1 1=n1",
    ]


@pytest.mark.parametrize("policy", ["none", "isolate"])
def test_amounts_of_three_groups_always_add_up(policy: str) -> None:
    lines = names(numa(), f"resources=VCPU:1&resources1=VCPU:2&resources2=VCPU:3&group_policy={policy}")
    assert lines
    for line in lines:
        assert sum(int(part.split()[1]) for part in line.split(";")[0].split(", ")) == 6


def test_pool_alone_for_the_unsuffixed_group_keeps_every_root() -> None:
    """Placement takes the pool under h1 and under h2 for the same, and finds neither."""
    assert names(pooled(), "resources=DISK_GB:5&resources1=VCPU:1") == [
        "h1 1 VCPU, ss 5 DISK_GB; -=ss 1=h1",
        "h2 1 VCPU, ss 5 DISK_GB; -=ss 1=h2",
    ]


def test_pool_that_is_a_child_serves_other_trees() -> None:
    """Placement answers with error 500 when the pool's own tree does not qualify."""
    world = World(
        (
            provider(1, "h1", aggregates="A", VCPU=8),
            provider(2, "shelf"),
            provider(3, "ss", 2, traits=SHARING, aggregates="A", DISK_GB=100),
        )
    )
    assert names(world, "resources=VCPU:1,DISK_GB:5") == ["h1 1 VCPU, ss 5 DISK_GB; -=h1+ss"]


def test_group_without_resources_that_only_forbids_matches_the_others() -> None:
    """Placement reads "no positive filter" as "no match"."""
    query = f"resources1={V}&required_N=!CUSTOM_FAST&same_subtree=1,_N&group_policy=none"
    assert names(numa(), query) == [
        "n0 1 VCPU; 1=n0 _N=cn1",
        "n0 1 VCPU; 1=n0 _N=n0",
        "n0 1 VCPU; 1=n0 _N=p0",
        "n1 1 VCPU; 1=n1 _N=cn1",
        "n1 1 VCPU; 1=n1 _N=p1",
    ]


def test_in_tree_counts_in_a_group_without_resources() -> None:
    """Placement ignores it there."""
    world = World((provider(1, "h1", traits="CUSTOM_A", VCPU=8), provider(2, "h2", traits="CUSTOM_A", VCPU=8)))
    query = f"resources1={V}&required_N=CUSTOM_A&in_tree_N={uuid(2)}&same_subtree=1,_N&group_policy=none"
    assert names(world, query) == ["h2 1 VCPU; 1=h2 _N=h2"]
