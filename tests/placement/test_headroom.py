"""How many more fit: against placing them in every possible way, on small worlds."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given

from cloudcore.errors import InvalidRequest
from cloudcore.placement import Count, Inventory, PlacementTree, ResourceRequest, headroom
from tests.placement.ours import build
from tests.placement.worlds import Request, World, cases


class TooMany(Exception):
    """More ways than a test should try."""


def truth(tree: PlacementTree, request: ResourceRequest) -> int:
    """The most placements of *request*, by trying all orders of all candidates of the search."""
    found = []
    for candidate in tree.candidates(request, distinct="physical"):
        found.append(tuple(sorted((u, c, n) for u, held in candidate.allocations.items() for c, n in held.items())))
        if len(found) > 24:
            raise TooMany
    keys = sorted({(uuid, name) for option in found for uuid, name, _ in option})
    place = {key: number for number, key in enumerate(keys)}
    free = tuple(tree[uuid].inventories[name].capacity - tree.usage(uuid)[name] for uuid, name in keys)
    if any(amount > 40 for amount in free):
        free = tuple(min(amount, 40 * max(1, n)) for amount, n in zip(free, _largest(found, keys), strict=True))
    steps = 0

    @cache
    def most(first: int, room: tuple[int, ...]) -> int:
        nonlocal steps
        steps += 1
        if steps > 20_000:
            raise TooMany
        best = 0
        for number in range(first, len(found)):
            left = list(room)
            for uuid, name, amount in found[number]:
                left[place[uuid, name]] -= amount
            if min(left) >= 0:
                best = max(best, 1 + most(number, tuple(left)))
        return best

    return most(0, free)


def _largest(found: list, keys: list) -> list[int]:
    return [max(n for option in found for u, c, n in option if (u, c) == key) for key in keys]


@given(case=cases())
def test_the_count_is_what_trying_everything_gives(case: tuple[World, Request]) -> None:
    world, asked = case
    tree = build(world)
    request = ResourceRequest.from_query(asked.query())
    unlimited = ResourceRequest.from_query(asked.query() + "&limit=100000") if "limit" not in asked.query() else request
    count = headroom(tree, request).flavors[""].total
    assert 0 <= count.at_least <= count.at_most
    try:
        expected = truth(tree, unlimited)
    except (TooMany, RecursionError):
        return
    if expected < 40:
        assert count.at_least <= expected <= count.at_most, (asked.query(), count, expected)
        if not any(provider.shares for provider in world.providers):
            assert count.exact, (asked.query(), count, expected)


def numa_hosts(tree: PlacementTree, hosts: int, cell: str = "") -> None:
    for number in range(hosts):
        host = tree.add(f"{cell}h{number}", inventory={"DISK_GB": 100})
        for node in range(2):
            numa = tree.add(
                f"{cell}h{number}n{node}",
                parent=host,
                traits={"HW_NUMA_ROOT"},
                inventory={"VCPU": 16, "MEMORY_MB": Inventory(32768, 768)},
            )
            tree.add(f"{cell}h{number}p{node}", parent=numa, inventory={"SRIOV_NET_VF": 3})


def test_per_cell_and_in_all() -> None:
    tree = PlacementTree()
    numa_hosts(tree, 3, "east-")
    numa_hosts(tree, 2, "west-")
    cells = {"east-": "east", "west-": None}
    found = headroom(
        tree,
        {"small": "resources=VCPU:2,MEMORY_MB:2000,DISK_GB:10", "large": "resources1=VCPU:12"},
        cell_of=lambda root: cells[root.name[:5]],
    )
    assert found.flavors["small"].total == Count(50, 50)
    assert found.flavors["small"].cells == {"east": Count(30, 30)}
    assert found.flavors["large"].total == Count(10, 10)
    assert found.bundles is None


def test_groups_that_belong_together_are_combined() -> None:
    tree = PlacementTree()
    numa_hosts(tree, 2)
    near = "resources1=VCPU:4&resources2=SRIOV_NET_VF:1&same_subtree=1,2&group_policy=none"
    assert headroom(tree, near).flavors[""].total == Count(12, 12)
    apart = "resources1=VCPU:4&resources2=VCPU:4&group_policy=isolate"
    assert headroom(tree, apart).flavors[""].total == Count(8, 8)
    hard = headroom(tree, apart, max_steps=1).flavors[""].total
    assert hard.at_least <= 8 <= hard.at_most


def test_a_shared_pool_is_counted_once() -> None:
    tree = PlacementTree()
    aggregate = "aaaaaaaa-0000-4000-8000-000000000001"
    tree.add("pool", inventory={"DISK_GB": 100}, traits={"MISC_SHARES_VIA_AGGREGATE"}, aggregates=[aggregate])
    for number in range(5):
        inventory = {"VCPU": 8} | ({"DISK_GB": 30} if number == 0 else {})
        tree.add(f"h{number}", inventory=inventory, aggregates=[aggregate])
    found = headroom(tree, "resources=VCPU:1,DISK_GB:10", cell_of=lambda root: root.name if root.name < "h2" else None)
    assert found.flavors[""].total == Count(13, 13)  # ten from the pool, three from a disk of its own
    assert found.flavors[""].cells == {"h0": Count(8, 8), "h1": Count(8, 8)}


def test_a_bundle_is_bounded_by_volume_and_by_each_flavor() -> None:
    tree = PlacementTree()
    numa_hosts(tree, 4)
    requests = {"a": "resources=VCPU:2", "b": "resources=VCPU:6,DISK_GB:50"}
    found = headroom(tree, requests, bundle={"a": 3, "b": 1}, cell_of=lambda root: "one")
    assert found.bundles is not None
    assert found.bundles.total.at_most == 8  # of b alone
    assert found.bundles.cells["one"].at_most == 8
    assert headroom(tree, requests, bundle={"a": 10, "b": 1}).bundles.total.at_most == 4  # 26 VCPU each, of 128


def test_nothing_of_the_tree_is_touched() -> None:
    tree = PlacementTree()
    numa_hosts(tree, 1)
    before = tree.as_placement()
    headroom(tree, "resources1=VCPU:4&resources2=VCPU:4&group_policy=isolate&limit=1")
    assert tree.as_placement() == before
    assert headroom(tree, "resources=VCPU:1&limit=1").flavors[""].total == Count(32, 32)
    assert headroom(tree, "resources=PGPU:1").flavors[""].total == Count(0, 0)


@pytest.mark.parametrize(
    "options", [{"bundle": {"x": 1}}, {"bundle": {"": 0}}, {"max_steps": 0}, {"bundle": {"": "1"}}]
)
def test_options_that_cannot_be_meant(options: dict) -> None:
    with pytest.raises(InvalidRequest):
        headroom(PlacementTree(), "resources=VCPU:1", **options)
