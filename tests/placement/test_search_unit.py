"""Inside the search: blocks and windows that small forests never fill, what is remembered, and what a limit saves."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.placement import Inventory, PlacementTree
from cloudcore.placement.columns import maintenance as upkeep
from cloudcore.placement.search import search
from cloudcore.placement.search.matching import Matcher
from tests.placement import oracle, ours
from tests.placement.peer import identity
from tests.placement.worlds import cases

A = "aaaaaaaa-0000-0000-0000-000000000001"


@pytest.fixture(scope="module")
def _small() -> Iterator[None]:
    """Blocks of three providers and windows of one tree: what else takes a forest of thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "BLOCK_SIZE", 3)
        patch.setattr(search, "_FIRST_WINDOW", 1)
        patch.setattr(search, "_FIRST_BATCH", 2)
        yield


@pytest.mark.usefixtures("_small")
@hypothesis.settings(max_examples=max(150, hypothesis.settings().max_examples))
@given(cases(), st.integers(0, 5), st.sampled_from([None, "spread", ["pack", {"VCPU": 1.0}]]))
def test_many_blocks_find_what_brute_force_finds(case: tuple, seed: int, order_by: object) -> None:
    """Candidates and refusals, wherever the search begins and whatever decides the order."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    tree = ours.build(world)
    answer = tree.candidates(request.query(), seed=seed, order_by=order_by)
    found = [identity(c.allocations, {s: list(u) for s, u in c.mappings.items()}) for c in answer]
    assert len(found) == len(set(found))
    assert set(found) == oracle.candidates(world, request)
    hosts = {host.root.uuid for host in answer.hosts()}
    report = answer.report()
    assert (report.hosts, report.fits) == (len(tree.roots()), len(hosts))
    refused = {rejection.root for rejection in report}
    assert refused == {root.uuid for root in tree.roots()} - hosts
    tree.check()


def test_groups_of_one_class_are_kept_apart_by_conditions_until_an_edit() -> None:
    """While no device is of use to both groups nothing needs to be summed up; that is remembered, and forgotten."""
    tree = PlacementTree()
    tree.add("cn")
    for name in "ab":
        tree.add(name, parent="cn", inventory={"SRIOV_NET_VF": 1}, traits={f"CUSTOM_{name.upper()}"})
    query = (
        "resources1=SRIOV_NET_VF:1&required1=CUSTOM_A&resources2=SRIOV_NET_VF:1&required2=CUSTOM_B&group_policy=none"
    )

    def found() -> list[list[str]]:
        return [[tree[uuid].name for (uuid,) in c.mappings.values()] for c in tree.candidates(query)]

    assert found() == [["a", "b"]]
    tree.set_traits("b", {"CUSTOM_A", "CUSTOM_B"})
    assert found() == [["a", "b"]], "b has one unit, not two"
    tree.set_inventory("b", {"SRIOV_NET_VF": 2})
    assert found() == [["a", "b"], ["b", "b"]]
    tree.set_traits("b", {"CUSTOM_B"})
    assert found() == [["a", "b"]]


def nested(hosts: int) -> PlacementTree:
    tree = PlacementTree()
    for host in range(hosts):
        tree.add(f"cn{host}", inventory={"VCPU": 8})
    return tree


@pytest.mark.usefixtures("_small")
def test_limit_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of thousands cost ten: the blocks after them are not looked at."""
    tree = nested(600)
    looked_at: list[int] = []
    match = Matcher.match
    monkeypatch.setattr(Matcher, "match", lambda self, *args: looked_at.append(1) or match(self, *args))
    assert len(list(tree.candidates("resources=VCPU:1&limit=10"))) == 10
    few = len(looked_at)
    assert few < 12
    assert len(list(tree.candidates("resources=VCPU:1"))) == 600
    assert len(looked_at) > 10 * few


def test_full_blocks_are_passed_over_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block whose largest room is too small is not read, nor one without a required trait."""
    tree = nested(50)
    read: list[str] = []
    positions = Matcher.positions
    monkeypatch.setattr(Matcher, "positions", lambda self, *args: read.append("") or positions(self, *args))
    for query in ("resources=VCPU:9", "resources=DISK_GB:1", "resources1=VCPU:1&required1=CUSTOM_A"):
        assert list(tree.candidates(query)) == []
    assert read == []


def test_start_moves_with_the_seed() -> None:
    tree = nested(100)
    first = {seed: tree.candidates("resources=VCPU:1", seed=seed).first().host.name for seed in range(50)}
    assert len(set(first.values())) > 20
    assert first[7] == tree.candidates("resources=VCPU:1", seed=7).first().host.name
    walk = [c.host.name for c in tree.candidates("resources=VCPU:1", seed=7)]
    assert len(set(walk)) == 100
    start = int(walk[0].removeprefix("cn"))
    assert walk == [f"cn{(start + i) % 100}" for i in range(100)]


def test_remembered_conditions_do_not_outlive_an_edit() -> None:
    """Traits and aggregates of a block are remembered by the search; use leaves them true, edits do not."""
    tree = nested(3)
    query = f"resources1=VCPU:1&required1=CUSTOM_A&member_of1=!{A}"
    assert list(tree.candidates(query)) == []
    tree.set_traits("cn1", {"CUSTOM_A"})
    tree.set_traits("cn2", {"CUSTOM_A"})
    assert [c.host.name for c in tree.candidates(query)] == ["cn1", "cn2"]
    tree.set_usage("cn1", {"VCPU": 8})
    assert [c.host.name for c in tree.candidates(query)] == ["cn2"]
    tree.set_aggregates("cn2", {A})
    assert list(tree.candidates(query)) == []
    for number in range(200):
        list(tree.candidates(f"resources1=VCPU:1&required1=CUSTOM_{number}&required1=CUSTOM_A"))
    assert all(len(block.remembered) <= 64 for block in tree._state.columns.blocks)


def test_numbers_of_any_size_are_compared_rightly() -> None:
    """Capacities beyond 2⁶³ are cut off there, use may exceed capacity, and nothing overflows."""
    most = 2**31 - 1
    tree = PlacementTree()
    tree.add("huge", inventory={"VCPU": Inventory(most, allocation_ratio=3e38)})
    tree.add("over", inventory={"VCPU": Inventory(8)})
    tree.set_usage("over", {"VCPU": 2**62})
    tree.set_usage("huge", {"VCPU": 2**62})
    tree.check()
    assert [c.host.name for c in tree.candidates(f"resources=VCPU:{most}")] == ["huge"]
    assert [c.host.name for c in tree.candidates("resources=VCPU:1", order_by="pack")] == ["huge"]
    rejection = tree.candidates("resources=VCPU:1").report().of_host("over")[0]
    assert rejection.missing == 2**62 + 1 - 8


def test_hosts_are_offered_by_score() -> None:
    """Emptiest or fullest first; the second weigher breaks ties; a callable sees the whole host."""
    tree = nested(4)
    for host, used in enumerate((4, 1, 4, 0)):
        tree.set_usage(f"cn{host}", {"VCPU": used})

    def order(**options: object) -> list[str]:
        return [host.root.name for host in tree.candidates("resources=VCPU:1", **options).hosts()]

    assert order(order_by="spread") == ["cn3", "cn1", "cn0", "cn2"]
    assert order(order_by="pack") == ["cn0", "cn2", "cn1", "cn3"]
    assert order(order_by=["pack", lambda host: int(host.root.name[2:])]) == ["cn2", "cn0", "cn1", "cn3"]
    assert order(order_by=lambda host: host.free["VCPU"] % 4) == ["cn1", "cn0", "cn2", "cn3"]
    tree.set_traits("cn2", {"CUSTOM_SSD"})
    assert order(preferred=["CUSTOM_SSD"]) == ["cn2", "cn0", "cn1", "cn3"]
    scored = next(tree.candidates("resources=VCPU:1", order_by="spread").hosts())
    assert scored.scores == (1.0,)
