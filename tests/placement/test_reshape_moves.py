"""A host is reshaped while an instance is on its way from it, or has alternates elsewhere: what is held moves along."""

from __future__ import annotations

import uuid

import pytest

from cloudcore.errors import CapacityExceeded, GenerationConflict, InUse
from cloudcore.placement import AllocationLedger, HostSelector, PlacementTree, reschedule
from tests.placement.ledger_worlds import uuid_of

OWNER = {"project_id": "p", "user_id": "u"}
HELD = {"VCPU": 2, "MEMORY_MB": 8}
A, B, M = (uuid_of(name) for name in ("reshaped-a", "reshaped-b", "reshaped-m"))


@pytest.fixture
def world(ledger_database):
    with PlacementTree.open(ledger_database) as tree, AllocationLedger(ledger_database) as ledger:
        for name in ("cn1", "cn2", "cn3"):
            tree.add(name, uuid=uuid_of(name), inventory={"VCPU": 4, "MEMORY_MB": 32})
        yield tree, ledger
        ledger.check()
        tree.refresh()
        tree.check()


def split(tree, ledger, host: str, consumers: dict) -> str:
    """The host's processors go to a NUMA node of its own, and so do those that *consumers* hold; the node's uuid."""
    tree.refresh()
    node = tree.add(f"{host}-numa0", parent=host).uuid
    held = {c: {uuid_of(host): {"MEMORY_MB": n["MEMORY_MB"]}, node: {"VCPU": n["VCPU"]}} for c, n in consumers.items()}
    ledger.reshape({uuid_of(host): {"MEMORY_MB": 32}, node: {"VCPU": 4}}, held)
    return node


@pytest.mark.parametrize("end", ["confirm", "revert"])
def test_the_source_of_a_held_move_is_reshaped_with_the_host(world, end):
    tree, ledger = world
    ledger.claim(A, {uuid_of("cn1"): HELD}, **OWNER)
    ledger.claim(B, {uuid_of("cn1"): HELD}, **OWNER)
    ledger.begin_move(A, M, {uuid_of("cn2"): HELD})
    with pytest.raises(InUse, match=M):
        split(tree, ledger, "cn1", {B: HELD})
    tree.remove("cn1-numa0")
    node = split(tree, ledger, "cn1", {B: HELD, M: HELD})
    shape = {uuid_of("cn1"): {"MEMORY_MB": 8}, node: {"VCPU": 2}}
    assert ledger.allocations(M) == shape
    assert ledger.move(M).source == shape
    if end == "confirm":
        ledger.confirm_move(M)
        assert (ledger.allocations(A), ledger.allocations(M)) == ({uuid_of("cn2"): HELD}, {})
    else:
        ledger.revert_move(M)
        assert (ledger.allocations(A), ledger.allocations(M)) == (shape, {})


def test_an_evacuation_that_waits_for_proof_stands_in_nobodys_way(world):
    """Its instance is gone; the source stays held, in its new form, until it is proved gone."""
    tree, ledger = world
    ledger.claim(A, {uuid_of("cn1"): HELD}, **OWNER)
    ledger.begin_move(A, M, {uuid_of("cn2"): HELD}, kind="evacuation")
    ledger.release(A)
    assert ledger.move(M).state == "awaiting_proof"
    node = split(tree, ledger, "cn1", {M: HELD})
    assert ledger.allocations(M) == {uuid_of("cn1"): {"MEMORY_MB": 8}, node: {"VCPU": 2}}
    ledger.abandon_move(M, proof="the rack burnt down")
    assert ledger.allocations(M) == {}


def test_destination_and_source_on_one_host_are_reshaped_together(world):
    tree, ledger = world
    ledger.claim(A, {uuid_of("cn1"): HELD}, **OWNER)
    ledger.begin_move(A, M, {uuid_of("cn1"): HELD}, kind="resize")
    node = split(tree, ledger, "cn1", {A: HELD, M: HELD})
    shape = {uuid_of("cn1"): {"MEMORY_MB": 8}, node: {"VCPU": 2}}
    assert (ledger.move(M).source, ledger.move(M).destination) == (shape, shape)
    ledger.revert_move(M)
    assert ledger.allocations(A) == shape


def test_a_half_that_is_counted_once_with_the_other_is_not_reshaped(world):
    tree, ledger = world
    ledger.claim(A, {uuid_of("cn1"): HELD}, **OWNER)
    larger = {"VCPU": 3, "MEMORY_MB": 4}
    ledger.begin_move(A, M, {uuid_of("cn1"): larger}, kind="resize", overlap="maximum")
    with pytest.raises(InUse, match="confirm, revert or abandon"):
        split(tree, ledger, "cn1", {M: {"VCPU": 1, "MEMORY_MB": 4}})
    tree.remove("cn1-numa0")


def test_a_migration_cannot_be_replaced_nor_emptied(world):
    _, ledger = world
    ledger.claim(A, {uuid_of("cn1"): HELD}, **OWNER)
    ledger.begin_move(A, M, {uuid_of("cn2"): HELD})
    with pytest.raises(InUse):
        ledger.replace({M: {uuid_of("cn3"): HELD}})
    with pytest.raises(InUse):
        ledger.reshape({uuid_of("cn1"): {"VCPU": 4, "MEMORY_MB": 32}}, {M: {}})
    with pytest.raises(CapacityExceeded):
        ledger.reshape({uuid_of("cn1"): {"VCPU": 4, "MEMORY_MB": 32}}, {M: {uuid_of("cn1"): {"VCPU": 5}}})
    assert ledger.move(M).source == {uuid_of("cn1"): HELD}


def test_an_alternate_is_taken_after_the_primarys_host_was_reshaped(world):
    tree, ledger = world
    selector = HostSelector(tree, ledger, cell_of=lambda root: "cell1")
    (selection,) = selector.select("resources=VCPU:2,MEMORY_MB:8", **OWNER, alternates=2)
    split(tree, ledger, selection.primary.name, {selection.instance: HELD})
    taken = reschedule(ledger, selection, failed="the guest did not start")
    assert taken.choice.root == selection.alternates[0].root
    assert ledger.allocations(selection.instance) == taken.choice.allocations


def test_an_instance_that_holds_something_else_was_moved_by_somebody(world):
    """Other amounts on the same host, or the same amounts elsewhere, are no reshape."""
    tree, ledger = world
    selector = HostSelector(tree, ledger, cell_of=lambda root: "cell1")
    (selection,) = selector.select("resources=VCPU:2,MEMORY_MB:8", **OWNER, alternates=1)
    others = {uuid_of(name) for name in ("cn1", "cn2", "cn3")} - {choice.root for choice in selection.choices}
    for held in ({selection.primary.root: {"VCPU": 1, "MEMORY_MB": 8}}, {others.pop(): HELD}):
        ledger.replace({selection.instance: held})
        with pytest.raises(GenerationConflict, match="somebody else"):
            reschedule(ledger, selection, failed="x", operation_id=str(uuid.uuid4()))
