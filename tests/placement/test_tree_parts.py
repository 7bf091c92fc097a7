"""Edits of parts of a provider, and of several parts in one edit: in memory and on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cloudcore.errors import (
    AlreadyExists,
    GenerationConflict,
    InUse,
    InvalidProvider,
    InventoryNotFound,
    ProviderNotFound,
)
from cloudcore.placement import AllocationLedger, Inventory, PlacementTree
from tests.placement.ledger_worlds import uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudcore.database import Database


@pytest.fixture
def bound(ledger_database: Database) -> Iterator[PlacementTree]:
    """A bound tree that at the end shows what a fresh one reads."""
    tree = PlacementTree.open(ledger_database)
    grow(tree)
    yield tree
    tree.check()
    with PlacementTree.open(ledger_database) as fresh:
        assert tree.as_placement() == fresh.as_placement()
    tree.close()


@pytest.fixture(params=["memory", "bound"])
def tree(request: pytest.FixtureRequest, bound: PlacementTree) -> PlacementTree:
    return bound if request.param == "bound" else grow(PlacementTree())


def grow(tree: PlacementTree) -> PlacementTree:
    tree.add("rack", inventory={"DISK_GB": 100})
    tree.add("host", inventory={"VCPU": Inventory(8, 2), "MEMORY_MB": 1024}, traits={"CUSTOM_A"})
    tree.add("numa", parent="host", inventory={"PCPU": 4})
    tree.add("other")
    return tree


def test_name_place_and_parts_change_in_one_edit(tree: PlacementTree) -> None:
    before = tree["host"]
    after = tree.update(before, name="host-2", parent="rack", traits={"CUSTOM_B"}, generation=before.generation)
    assert (after.name, after.parent, after.root) == ("host-2", tree["rack"].uuid, tree["rack"].uuid)
    assert (after.traits, after.generation) == ({"CUSTOM_B"}, before.generation + 1)
    assert tree["numa"].root == tree["rack"].uuid
    assert "host" not in tree
    back = tree.update("host-2", name="host", parent=None)
    assert (back.name, back.parent, back.root, back.traits) == ("host", None, back.uuid, {"CUSTOM_B"})


def test_a_parent_that_is_not_named_stays(tree: PlacementTree) -> None:
    tree.update("numa", traits={"HW_NUMA_ROOT"})
    assert tree["numa"].parent == tree["host"].uuid
    assert tree.update("numa", parent="host") == tree["numa"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "host-2", "parent": "numa"}, InvalidProvider),
        ({"name": "host-2", "parent": "nowhere"}, ProviderNotFound),
        ({"name": "other", "parent": "rack"}, AlreadyExists),
        ({"name": "", "parent": "rack"}, InvalidProvider),
        ({"name": "host-2", "parent": "rack", "generation": 99}, GenerationConflict),
    ],
)
def test_of_an_edit_that_is_refused_no_part_happens(tree: PlacementTree, changes: dict, error: type) -> None:
    before = tree.as_placement()
    with pytest.raises(error):
        tree.update("host", **changes)
    assert tree.as_placement() == before


def test_others_follow_a_rename_with_a_new_place(bound: PlacementTree, ledger_database: Database) -> None:
    with PlacementTree.open(ledger_database) as late:
        bound.update("host", name="host-2", parent="rack", operation_id="one")
        bound.update("host-2", name="host-3")
        late.refresh()
        assert late["host-3"].root == late["numa"].root == late["rack"].uuid
        repeated = late.update("host", name="host-2", parent="rack", operation_id="one")
        assert repeated.name == "host-3"


def test_one_class_of_inventory_at_a_time(tree: PlacementTree) -> None:
    generation = tree["host"].generation
    after = tree.put_inventory("host", "DISK_GB", 50, new=True)
    assert (after.inventories["DISK_GB"], after.generation) == (Inventory(50), generation + 1)
    after = tree.put_inventory("host", "VCPU", {"total": 16, "allocation_ratio": 4.0}, new=False)
    assert after.inventories == {
        "VCPU": Inventory(16, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(1024),
        "DISK_GB": Inventory(50),
    }
    after = tree.remove_inventory("host", "DISK_GB", generation=after.generation)
    assert after.inventories.keys() == {"VCPU", "MEMORY_MB"}
    assert tree.put_inventory("host", "VCPU", after.inventories["VCPU"]).generation == after.generation


def test_one_class_is_refused_by_name(tree: PlacementTree) -> None:
    before = tree.as_placement()
    with pytest.raises(AlreadyExists):
        tree.put_inventory("host", "VCPU", 9, new=True)
    for call in (
        lambda: tree.put_inventory("host", "DISK_GB", 9, new=False),
        lambda: tree.remove_inventory("host", "DISK_GB"),
    ):
        with pytest.raises(InventoryNotFound) as caught:
            call()
        assert (caught.value.provider, caught.value.resource_class) == (tree["host"].uuid, "DISK_GB")
    with pytest.raises(GenerationConflict):
        tree.put_inventory("host", "VCPU", 9, generation=7)
    for wrong in ("vcpu", None, [], "NO_SUCH_CLASS"):
        with pytest.raises(InvalidProvider):
            tree.put_inventory("host", wrong, 9)  # type: ignore[arg-type]
        with pytest.raises(InvalidProvider):
            tree.remove_inventory("host", wrong)  # type: ignore[arg-type]
    assert tree.as_placement() == before


def test_a_class_in_use_stays_whoever_has_seen_it(bound: PlacementTree, ledger_database: Database) -> None:
    ledger = AllocationLedger(ledger_database)
    ledger.claim(uuid_of("c"), {bound["host"].uuid: {"VCPU": 2}}, project_id="p", user_id="u")
    for _ in range(2):  # before and after this tree has seen the claim
        with pytest.raises(InUse):
            bound.remove_inventory("host", "VCPU")
        bound.refresh()
    bound.put_inventory("host", "VCPU", 1)
    assert bound.usage("host")["VCPU"] == 2


def test_by_uuid_takes_no_name(tree: PlacementTree) -> None:
    host = tree["host"]
    disguised = uuid_of("disguised")
    tree.add(disguised)
    assert tree.by_uuid(host.uuid.upper()) == host
    assert tree.provider(disguised).name == disguised
    with pytest.raises(ProviderNotFound):
        tree.by_uuid(disguised)
    for wrong in ("host", "", None):
        with pytest.raises(InvalidProvider):
            tree.by_uuid(wrong)  # type: ignore[arg-type]
