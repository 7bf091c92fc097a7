"""A search ends: hard hosts are decided or named, whatever order the work is done in, and the answers keep theirs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore import PlacementTree
from cloudcore.errors import InvalidRequest, NoValidHost
from cloudcore.placement import Candidate
from cloudcore.placement.search import combining
from tests.placement import oracle, ours
from tests.placement.worlds import Request, World, cases

COSTLY = 2_000


@pytest.fixture(scope="module")
def looking_ahead() -> Iterator[None]:
    """Every search asks ahead from the first slot on, as it else does only where it went back too often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combining, "_PATIENCE", -1_000_000)
        yield


@pytest.mark.usefixtures("looking_ahead")
@hypothesis.settings(max_examples=max(300, hypothesis.settings().max_examples))
@given(cases())
def test_asking_ahead_changes_no_answer_and_no_order(case: tuple[World, Request]) -> None:
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= COSTLY)
    tree = ours.build(world)
    for options in ({}, {"distinct": "physical"}):
        ahead = ours.listed(tree, request.query(), **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(combining, "_PATIENCE", 10**9)
            assert ours.listed(tree, request.query(), **options) == ahead, request.query()
        if not options:
            assert set(ahead) == oracle.candidates(world, request), request.query()
    report = tree.candidates(request.query()).report()
    for root in world.roots:
        assert bool(report.of_host(root.name)) == (oracle.refusal(world, request, root) is not None)


# --- many groups, many devices ---------------------------------------------------------------------------------------


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[tuple[int, str]], list[tuple[int, str]], str]:
    """(units, network) of devices, (units, network or "") of groups, and the policy."""
    alike = draw(st.booleans())
    networks = ["A"] if alike else ["A", "B", "C"]
    count = draw(st.integers(8, 32))
    sizes = [4] if alike else [1, 2, 3, 4, 5]
    devices = [(draw(st.sampled_from(sizes)), draw(st.sampled_from(networks))) for _ in range(count)]
    groups = [
        (draw(st.integers(1, 4)), draw(st.sampled_from(["", *networks]))) for _ in range(draw(st.integers(3, 10)))
    ]
    used = [draw(st.integers(0, size)) if draw(st.integers(0, 2)) else size for size, _ in devices]
    left = [(size, size - taken, network) for (size, network), taken in zip(devices, used, strict=True)]
    return left, groups, draw(st.sampled_from(["none", "isolate"]))


def host(devices: list[tuple[int, int, str]]) -> PlacementTree:
    tree = PlacementTree()
    root = tree.add("cn0", inventory={"VCPU": 64})
    for number, (size, left, network) in enumerate(devices):
        nic = tree.add(
            f"nic{number}", parent=root, inventory={"SRIOV_NET_VF": size}, traits=[f"CUSTOM_PHYSNET_{network}"]
        )
        tree.set_usage(nic, {"SRIOV_NET_VF": size - left})
    return tree


def query(groups: list[tuple[int, str]], policy: str) -> str:
    parts = ["resources=VCPU:1", f"group_policy={policy}"]
    for number, (amount, network) in enumerate(groups):
        parts.append(f"resources_{number}=SRIOV_NET_VF:{amount}")
        if network:
            parts.append(f"required_{number}=CUSTOM_PHYSNET_{network}")
    return "&".join(parts)


def fits(devices: list[tuple[int, int, str]], groups: list[tuple[int, str]], policy: str) -> bool:
    """All states that filling the groups one after the other can lead to, devices that look alike being the same."""
    states = {tuple(sorted((left, network, False) for _, left, network in devices))}
    for amount, wanted in sorted(groups, key=lambda group: (not group[1], -group[0])):
        after = set()
        for state in states:
            for place, (left, network, taken) in enumerate(state):
                if left >= amount and wanted in ("", network) and not (taken and policy == "isolate"):
                    entry = (left - amount, network, policy == "isolate")
                    after.add(tuple(sorted([*state[:place], entry, *state[place + 1 :]])))
            hypothesis.assume(len(after) < 20_000)
        states = after
    return bool(states)


@hypothesis.settings(max_examples=max(150, hypothesis.settings().max_examples), deadline=None)
@given(crowded())
def test_crowded_hosts_are_decided_as_by_brute_force_or_named(case: tuple) -> None:
    devices, groups, policy = case
    right = fits(devices, groups, policy)
    tree = host(devices)
    search = tree.candidates(query(groups, policy) + "&limit=3")
    found = list(search)
    if search.undecided:
        assert [root.name for root in search.undecided] == ["cn0"]
        return
    assert bool(found) == right
    for candidate in found:
        check(tree, candidate, groups, policy)


def check(tree: PlacementTree, candidate: Candidate, groups: list[tuple[int, str]], policy: str) -> None:
    """A candidate keeps the rules: each group on one device of its network, which has room for all on it."""
    on: dict[str, int] = {}
    for number, (amount, network) in enumerate(groups):
        (uuid,) = candidate.mappings[f"_{number}"]
        assert not network or f"CUSTOM_PHYSNET_{network}" in tree[uuid].traits
        assert policy == "none" or uuid not in on
        on[uuid] = on.get(uuid, 0) + amount
    for uuid, amount in on.items():
        assert candidate.allocations[uuid] == {"SRIOV_NET_VF": amount}
        assert tree.usage(uuid)["SRIOV_NET_VF"] + amount <= tree[uuid].inventories["SRIOV_NET_VF"].total


def eighteen(devices: int, hosts: int = 1) -> PlacementTree:
    tree = PlacementTree()
    for number in range(hosts):
        root = tree.add(f"cn{number}", inventory={"VCPU": 64})
        for device in range(devices):
            tree.add(f"cn{number}-nic{device}", parent=root, inventory={"SRIOV_NET_VF": 4})
    return tree


EIGHTEEN = query([(2 + number % 2, "") for number in range(18)], "none")


@pytest.mark.parametrize("devices", [12, 13])
def test_equal_devices_are_one_choice(devices: int) -> None:
    """Nine of 3 leave 1 on nine devices: the others have no room for nine of 2. A few steps tell."""
    search = eighteen(devices, hosts=50).candidates(EIGHTEEN, max_steps_per_host=500, max_steps=500)
    assert not list(search)
    assert not search.undecided
    assert search.report().counts == {"capacity_together SRIOV_NET_VF": 50}
    assert len(list(eighteen(14).candidates(EIGHTEEN + "&limit=5"))) == 5


def test_groups_that_have_nothing_to_do_with_each_other_are_decided_apart() -> None:
    """Any of 16 devices for each of five groups, and two that can never be below one provider."""
    tree = PlacementTree()
    root = tree.add("cn0", inventory={"VCPU": 64})
    for number, name in enumerate(("PGPU", "CUSTOM_SSD")):
        numa = tree.add(f"numa{number}", parent=root, traits=["HW_NUMA_ROOT"])
        tree.add(name, parent=numa, inventory={name: 1})
    for number in range(16):
        tree.add(f"nic{number}", parent=root, inventory={"SRIOV_NET_VF": 100})
    ports = "&".join(f"resources_p{n}=SRIOV_NET_VF:{n + 1}" for n in range(5))
    pair = "resources_g=PGPU:1&resources_s=CUSTOM_SSD:1&same_subtree=_g,_s,_N&required_N=HW_NUMA_ROOT"
    for text in (f"{ports}&{pair}", f"{pair}&{ports}"):
        search = tree.candidates(f"resources=VCPU:1&{text}&group_policy=none", max_steps_per_host=100)
        assert not list(search)
        assert not search.undecided
        assert search.report().counts == {"same_subtree": 1}


def puzzle(seed: int) -> tuple[PlacementTree, str]:
    """Numbers that do not go into each other: a real bin packing, for which no look tells."""
    choose = random.Random(seed)
    tree = PlacementTree()
    root = tree.add("cn0", inventory={"VCPU": 64})
    for number in range(20):
        tree.add(f"nic{number}", parent=root, inventory={"SRIOV_NET_VF": 100 + choose.randrange(50)})
    tree.add("easy", inventory={"VCPU": 64, "SRIOV_NET_VF": 10_000})
    return tree, query([(choose.randrange(31, 71), "") for _ in range(49)], "none")


def test_a_host_beyond_the_bound_is_named_and_the_others_answer() -> None:
    tree, text = puzzle(5)
    search = tree.candidates(text + "&limit=1", max_steps_per_host=50)
    assert [candidate.host.name for candidate in search] == ["easy"]
    assert [root.name for root in search.undecided] == ["cn0"]
    report = search.report()
    assert report.counts == {"undecided": 1}
    assert report.of_host("cn0")[0].reason == "undecided"
    assert "was not decided within the bound" in str(report.of_host("cn0")[0])
    tree.remove("easy")
    with pytest.raises(NoValidHost, match="undecided"):
        tree.candidates(text, max_steps_per_host=50).first()


def test_the_search_has_a_bound_beside_that_of_each_host() -> None:
    tree, text = puzzle(5)
    search = tree.candidates(text, max_steps=20, within=["cn0"])
    assert not list(search)
    assert [root.name for root in search.undecided] == ["cn0"]


class Cleared(dict[Any, "bool | None"]):
    """What another thread of the same search empties after every look: the memory of parts is bounded."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.clear()
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        self.clear()
        return found


def test_a_verdict_that_another_thread_forgets_meanwhile_still_holds() -> None:
    tree, text = puzzle(5)
    search = tree.candidates(text, max_steps_per_host=50, within=["cn0"])
    assert not list(search)
    search._known = Cleared(search._known)
    assert search._known
    assert not list(search)
    assert [root.name for root in search.undecided] == ["cn0"]


@pytest.mark.parametrize("bound", ["max_steps", "max_steps_per_host"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "9"])
def test_bounds_are_whole_numbers(bound: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=bound):
        PlacementTree().candidates("resources=VCPU:1", **{bound: value})


def test_a_hopeless_part_is_not_tried_again_with_every_way_to_fill_another() -> None:
    """Ports on NICs of different sizes can be filled in thousands of ways; the disks cannot be filled in any."""
    tree = PlacementTree()
    root = tree.add("cn0", inventory={"VCPU": 64})
    for number in range(8):
        tree.add(f"nic{number}", parent=root, inventory={"SRIOV_NET_VF": 40 + number})
    for number in range(12):
        tree.add(f"disk{number}", parent=root, inventory={"CUSTOM_NVME": 4})
    ports = "&".join(f"resources_p{n}=SRIOV_NET_VF:{11 + n}" for n in range(6))
    disks = "&".join(f"resources_d{n}=CUSTOM_NVME:{2 + n % 2}" for n in range(18))
    search = tree.candidates(f"resources=VCPU:1&{ports}&{disks}&group_policy=none", max_steps_per_host=400)
    assert not list(search)
    assert not search.undecided
