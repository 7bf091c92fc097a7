"""A whole forest is loaded as written, or refused before anything is there; providers are named in any writing."""

from __future__ import annotations

import threading
import uuid as uuids
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloudcore.errors import InvalidArgument, InvalidInventory, InvalidProvider, InvalidRequest
from cloudcore.placement import Inventory, PlacementTree
from tests.placement import ledger_worlds

A = "aaaaaaaa-0000-0000-0000-00000000000a"
B = "bbbbbbbb-0000-0000-0000-00000000000b"
WRITINGS: list[Callable[[str], str]] = [
    str,
    str.upper,
    lambda uuid: uuid.replace("-", ""),
    lambda uuid: f"{{{uuid.upper()}}}",
    lambda uuid: f"urn:uuid:{uuid}",
]


def data_of(*names: str, **parts: Any) -> dict[str, Any]:
    listed = {name: str(uuids.uuid4()) for name in names}
    return {
        "resource_providers": [{"uuid": uuid, "name": name} for name, uuid in listed.items()],
        "inventories": {uuid: {"VCPU": {"total": 8}} for uuid in listed.values()},
        **parts,
    }


def two(**parts: Any) -> dict[str, Any]:
    return {
        "resource_providers": [{"uuid": A, "name": "cn1"}, {"uuid": B, "name": "cn2", "parent_provider_uuid": A}],
        "inventories": {A: {"VCPU": {"total": 8}}, B: {"inventories": {"VCPU": {"total": 8}}}},
        **parts,
    }


@pytest.fixture(params=["memory", "sqlite", "postgresql", "mariadb"])
def tree(request: pytest.FixtureRequest) -> Iterator[PlacementTree]:
    if request.param == "memory":
        yield PlacementTree()
        return
    database = request.getfixturevalue("_ledger_databases")(request.param)
    ledger_worlds.empty(database)
    with PlacementTree.open(database) as tree:
        yield tree
        with PlacementTree.open(database) as fresh:
            assert tree.as_placement() == fresh.as_placement()


# --- all or nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "error", "field"),
    [
        ({"usages": {A: {"VCPU": 3}, B: {"DISK_GB": 1}}}, InvalidInventory, "usages"),
        ({"usages": {A: {"VCPU": 3}, B: {"usages": {"VCPU": -1}}}}, InvalidInventory, "usages"),
        ({"usages": {B: {"VCPU": 2**63}}}, InvalidInventory, "usages"),
        ({"usages": {B: {"VCPU": True}}}, InvalidInventory, "usages"),
        ({"usages": {B: {"VCPU": "3"}}}, InvalidInventory, "usages"),
        ({"usages": {B: [3]}}, InvalidInventory, "usages"),
        ({"resource_providers": [{"uuid": A, "name": "cn1", "generation": 2**63 - 1}]}, InvalidProvider, "generation"),
        ({"resource_providers": [{"uuid": A, "name": "cn1", "generation": True}]}, InvalidProvider, "generation"),
        ({"traits": {"cn1": ["CUSTOM_A"]}}, InvalidProvider, "traits"),
        ({"traits": {7: ["CUSTOM_A"]}}, InvalidProvider, "traits"),
        ({"traits": {A: ["CUSTOM_A"], A.upper(): ["CUSTOM_B"]}}, InvalidProvider, "traits"),
    ],
)
def test_what_is_refused_has_left_nothing(tree: PlacementTree, parts: dict, error: type, field: str) -> None:
    """So the same data can be loaded once it is mended."""
    tree.add("there before", inventory={"VCPU": 1})
    with pytest.raises(error) as caught:
        tree.load(two(**parts))
    assert type(caught.value) is error
    assert caught.value.field == field
    assert [provider.name for provider in tree] == ["there before"]
    assert tree.load(two(usages={A: {"VCPU": 3}})) == 2
    tree.check()


def test_the_highest_generation_that_is_loaded_can_be_counted_on(tree: PlacementTree) -> None:
    entry = {"uuid": A, "name": "cn1", "generation": 2**62}
    tree.load({"resource_providers": [entry]})
    tree.set_traits(A, {"CUSTOM_A"}, generation=2**62)
    assert tree["cn1"].generation == 2**62 + 1
    tree.check()


class Interrupted(dict):
    """Data of a forest in the reading of which something else happens to the tree, in another thread, once."""

    def __init__(self, data: dict[str, Any], happens: Callable[[], object]) -> None:
        super().__init__(data)
        self.happens: Callable[[], object] | None = happens

    def get(self, key: str, default: Any = None) -> Any:
        happens, self.happens = self.happens, None
        if happens is not None:
            other = threading.Thread(target=happens)
            other.start()
            other.join()
        return super().get(key, default)


@pytest.mark.parametrize(
    "happens",
    [
        lambda tree: tree.add("between", inventory={"VCPU": 1}),
        lambda tree: tree.load(data_of("between", "and another")),
    ],
)
def test_a_load_loses_nothing_to_an_edit_beside_it(
    tree: PlacementTree, happens: Callable[[PlacementTree], object]
) -> None:
    tree.add("before", inventory={"VCPU": 1})
    tree.load(Interrupted(data_of("one", "other"), lambda: happens(tree)))
    tree.check()
    assert len(list(tree)) == len(tree)
    assert len({provider.number for provider in tree}) == len(tree)
    assert {candidate.host.name for candidate in tree.candidates("resources=VCPU:1")} == {each.name for each in tree}
    assert next(iter(tree)).name == "before"
    assert [each.name for each in tree][-2:] == ["one", "other"]


# --- uuids in any writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_list", WRITINGS)
@pytest.mark.parametrize("of_parts", WRITINGS)
def test_parts_of_a_provider_are_found_in_any_writing_of_its_uuid(
    of_list: Callable[[str], str], of_parts: Callable[[str], str]
) -> None:
    data = {
        "resource_providers": [
            {"uuid": of_list(A), "name": "cn1"},
            {"uuid": of_list(B), "name": "cn2", "parent_provider_uuid": of_parts(A)},
        ],
        "inventories": {of_parts(A): {"VCPU": {"total": 8}}, B: {"inventories": {"DISK_GB": {"total": 5}}}},
        "traits": {of_parts(A): ["CUSTOM_A"]},
        "aggregates": {of_parts(A): {"aggregates": [of_parts(B)]}},
        "usages": {of_parts(A): {"VCPU": 3}},
    }
    tree = PlacementTree.from_placement(data)
    tree.check()
    host = tree["cn1"]
    assert (host.uuid, host.inventories, host.traits, host.aggregates) == (
        A,
        {"VCPU": Inventory(8)},
        {"CUSTOM_A"},
        {B},
    )
    assert tree.usage("cn1") == {"VCPU": 3}
    assert tree["cn2"].parent == A
    assert tree["cn2"].inventories == {"DISK_GB": Inventory(5)}


def test_parts_of_providers_that_are_not_listed_are_left_alone() -> None:
    """One that went while a running service was read."""
    tree = PlacementTree.from_placement(two(traits={A: ["CUSTOM_A"], str(uuids.uuid4()): None}))
    assert tree["cn1"].traits == {"CUSTOM_A"}


@pytest.mark.parametrize("written", WRITINGS)
def test_a_host_is_meant_in_any_writing_of_its_uuid(written: Callable[[str], str]) -> None:
    tree = PlacementTree()
    tree.add("cn1", uuid=A, inventory={"VCPU": 8})
    tree.add("cn2", uuid=B, inventory={"VCPU": 8})
    found = tree.candidates("resources=VCPU:1", within=[written(B)])
    assert [candidate.host.name for candidate in found] == ["cn2"]
    report = tree.candidates("resources=VCPU:9").report()
    for each in (report, report.record()):
        assert [rejection.host for rejection in each.of_host(written(B))] == ["cn2"]


def test_a_name_that_looks_like_a_uuid_is_a_name_first() -> None:
    tree = PlacementTree()
    tree.add("cn1", uuid=A, inventory={"VCPU": 8})
    named = tree.add(A.upper(), uuid=B, inventory={"VCPU": 8})
    assert tree[A.upper()] == named
    report = tree.candidates("resources=VCPU:9").report()
    for each in (report, report.record()):
        assert [rejection.root for rejection in each.of_host(A.upper())] == [B]


# --- what is meant by nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [uuids.UUID(A), A.encode(), 7, object(), ["cn1"]])
def test_what_names_no_provider_is_refused_alike_bound_or_not(tree: PlacementTree, given: Any) -> None:
    host = tree.add("cn1", uuid=A, inventory={"VCPU": 8})
    calls: list[tuple[str, Callable[[], object]]] = [
        ("provider", lambda: tree.update(given, traits=())),
        ("provider", lambda: tree.put_inventory(given, "VCPU", 3)),
        ("provider", lambda: tree.remove_inventory(given, "VCPU")),
        ("provider", lambda: tree.rename(given, "cn2")),
        ("provider", lambda: tree.move(given, None)),
        ("provider", lambda: tree.remove(given)),
        ("provider", lambda: tree.usage(given)),
        ("parent", lambda: tree.add("cn2", parent=given)),
        ("parent", lambda: tree.move("cn1", given)),
        ("parent", lambda: tree.update("cn1", parent=given)),
        ("generation", lambda: tree.set_traits("cn1", (), generation=given if given != 7 else "0")),
        ("new", lambda: tree.put_inventory("cn1", "VCPU", 3, new=given)),
    ]
    for field, call in calls:
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.field == field
    with pytest.raises(InvalidProvider):
        tree.find(name=given)
    with pytest.raises(InvalidRequest) as caught:
        tree.candidates("resources=VCPU:1", within=[given])
    assert caught.value.field == "within"
    report = tree.candidates("resources=VCPU:9").report()
    for each in (report, report.record()):
        with pytest.raises(InvalidArgument):
            each.of_host(given)
    assert list(tree) == [host]


@pytest.mark.parametrize("ratio", [2**31, 10**20, 3 * 10**38])
def test_a_whole_ratio_is_a_ratio_however_large(tree: PlacementTree, ratio: int) -> None:
    tree.add("cn1", inventory={"VCPU": {"total": 1, "allocation_ratio": ratio}})
    assert tree["cn1"].inventories["VCPU"] == Inventory(1, allocation_ratio=float(ratio))
    tree.refresh()
    tree.check()
    with pytest.raises(InvalidInventory):
        tree.add("cn2", inventory={"VCPU": {"total": 1, "allocation_ratio": 10**400}})
