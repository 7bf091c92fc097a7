"""Several owners in one call, and reading the ledger from the side of providers and of owners."""

from __future__ import annotations

import random

import attrs
import pytest

from cloudcore.errors import (
    CapacityExceeded,
    GenerationConflict,
    InUse,
    InvalidAllocation,
    InvalidArgument,
    ProviderNotFound,
)
from cloudcore.placement import AllocationLedger, Holder, Owner, PlacementTree
from tests.placement.ledger_worlds import add_providers, uuid_of

INSTANCE, MIGRATION, OTHER = (uuid_of(name) for name in ("instance", "migration", "other"))
TENANT = Owner(project_id="tenant", user_id="alice", consumer_type="INSTANCE")
ADMIN = Owner(project_id="admin", user_id="nova", consumer_type="MIGRATION")


@attrs.define
class World:
    ledger: AllocationLedger
    h1: str
    h2: str


@pytest.fixture
def world(ledger_database):
    names = add_providers(ledger_database, {"h1": {"VCPU": 8, "DISK_GB": 100}, "h2": {"VCPU": 8}})
    ledger = AllocationLedger(ledger_database)
    yield World(ledger=ledger, h1=names["h1"], h2=names["h2"])
    ledger.check()


def test_one_call_gives_each_consumer_its_owner(world):
    owners = {INSTANCE.upper(): TENANT, MIGRATION: ADMIN}
    world.ledger.replace({INSTANCE: {world.h2: {"VCPU": 2}}, MIGRATION: {world.h1: {"VCPU": 2}}}, owners=owners)
    assert owner_of(world, INSTANCE) == TENANT
    assert owner_of(world, MIGRATION) == ADMIN
    assert world.ledger.usages(project_id="tenant") == {"VCPU": 2}


def owner_of(world, consumer):
    state = world.ledger.consumer(consumer)
    return Owner(project_id=state.project_id, user_id=state.user_id, consumer_type=state.consumer_type)


def test_those_not_named_take_the_owner_of_all_or_keep_theirs(world):
    world.ledger.replace({OTHER: {world.h1: {"VCPU": 1}}}, owners={OTHER: ADMIN})
    world.ledger.replace(
        {INSTANCE: {world.h1: {"VCPU": 1}}, MIGRATION: {world.h1: {"VCPU": 1}}},
        owners={MIGRATION: ADMIN},
        project_id="p",
        user_id="u",
    )
    world.ledger.replace({OTHER: {world.h1: {"VCPU": 2}}})
    assert owner_of(world, INSTANCE) == Owner(project_id="p", user_id="u")
    assert (owner_of(world, MIGRATION), owner_of(world, OTHER)) == (ADMIN, ADMIN)
    world.ledger.replace({OTHER: {world.h1: {"VCPU": 2}}}, owners={OTHER: TENANT})
    assert owner_of(world, OTHER) == TENANT


def test_the_owner_is_part_of_what_an_operation_id_stands_for(world):
    from cloudcore.errors import OperationMismatch

    wanted = {INSTANCE: {world.h1: {"VCPU": 1}}}
    world.ledger.replace(wanted, owners={INSTANCE: TENANT}, operation_id="one")
    assert world.ledger.replace(wanted, owners={INSTANCE: TENANT}, operation_id="one")[INSTANCE].repeated
    with pytest.raises(OperationMismatch):
        world.ledger.replace(wanted, owners={INSTANCE: ADMIN}, operation_id="one")


@pytest.mark.parametrize(
    "owners",
    [{OTHER: TENANT}, {INSTANCE: {"project_id": "p", "user_id": "u"}}, {INSTANCE: Owner(project_id="", user_id="u")}],
    ids=["stray", "mapping", "empty"],
)
def test_owners_that_cannot_be_meant_change_nothing(world, owners):
    with pytest.raises(InvalidAllocation):
        world.ledger.replace({INSTANCE: {world.h1: {"VCPU": 1}}}, owners=owners)
    with pytest.raises(InvalidAllocation):
        world.ledger.reshape({world.h1: {"VCPU": 8}}, {INSTANCE: {world.h1: {"VCPU": 1}}}, owners=owners)
    assert world.ledger.consumers() == []


def test_a_reshape_makes_consumers_of_several_owners(world):
    world.ledger.claim(OTHER, {world.h1: {"VCPU": 2}}, project_id="p", user_id="u")
    world.ledger.reshape(
        {world.h1: {"DISK_GB": 100}, world.h2: {"VCPU": 16}},
        {
            OTHER: {world.h2: {"VCPU": 2}},
            INSTANCE: {world.h2: {"VCPU": 10}},
            MIGRATION: {world.h1: {"DISK_GB": 5}},
        },
        generations={OTHER: 1, INSTANCE: 0, MIGRATION: 0},
        owners={INSTANCE: TENANT, MIGRATION: ADMIN},
    )
    assert (owner_of(world, INSTANCE), owner_of(world, MIGRATION)) == (TENANT, ADMIN)
    assert owner_of(world, OTHER) == Owner(project_id="p", user_id="u", consumer_type="INSTANCE")
    with pytest.raises(GenerationConflict):
        world.ledger.reshape({world.h1: {"DISK_GB": 9}}, {INSTANCE: {}}, generations={INSTANCE: 7})
    with pytest.raises(InvalidAllocation, match="is new"):
        world.ledger.reshape({world.h1: {"DISK_GB": 90}}, {uuid_of("new"): {world.h1: {"DISK_GB": 1}}})
    with pytest.raises(CapacityExceeded):
        world.ledger.reshape(
            {world.h2: {"VCPU": 16}}, {uuid_of("new"): {world.h2: {"VCPU": 5}}}, owners={uuid_of("new"): TENANT}
        )


# ---- holders and consumers


def test_holders_of_a_provider_now(world):
    world.ledger.replace(
        {INSTANCE: {world.h1: {"VCPU": 2, "DISK_GB": 7}, world.h2: {"VCPU": 1}}, MIGRATION: {world.h2: {"VCPU": 3}}},
        owners={INSTANCE: TENANT, MIGRATION: ADMIN},
    )
    expected = Holder(
        consumer=INSTANCE,
        project_id="tenant",
        user_id="alice",
        consumer_type="INSTANCE",
        generation=1,
        resources={"DISK_GB": 7, "VCPU": 2},
    )
    assert world.ledger.holders(world.h1) == [expected]
    assert {holder.consumer: holder.resources for holder in world.ledger.holders(world.h2.upper())} == {
        INSTANCE: {"VCPU": 1},
        MIGRATION: {"VCPU": 3},
    }
    world.ledger.release(INSTANCE)
    assert world.ledger.holders(world.h1) == []
    with pytest.raises(ProviderNotFound):
        world.ledger.holders(uuid_of("nowhere"))


def test_pages_meet_everybody_once(world):
    rng = random.Random(7)
    owners = [TENANT, ADMIN, Owner(project_id="tenant", user_id="bob")]
    made = {}
    for number in range(37):
        made[uuid_of(f"c{number}")] = owner = rng.choice(owners)
        held = {world.h1: {"DISK_GB": 1}} if number % 3 else {world.h1: {"DISK_GB": 2}, world.h2: {"VCPU": 1}}
        if world.h2 in held and number > 20:
            del held[world.h2]
        world.ledger.replace({uuid_of(f"c{number}"): held}, owners={uuid_of(f"c{number}"): owner})
    world.ledger.release(uuid_of("c3"), forever=True)
    del made[uuid_of("c3")]

    def walk(ask, limit):
        seen, after = [], None
        while page := ask(after=after, limit=limit):
            assert len(page) <= limit
            seen += page
            after = page[-1].consumer
        return seen

    for limit in (1, 5, 36, 37, 1000):
        everybody = walk(world.ledger.consumers, limit)
        assert [state.consumer for state in everybody] == sorted(made)
        assert all(state.allocations == world.ledger.allocations(state.consumer) for state in everybody)
        assert [holder.consumer for holder in walk(lambda **o: world.ledger.holders(world.h1, **o), limit)] == sorted(
            made
        )
        tenants = walk(lambda **o: world.ledger.consumers(project_id="tenant", **o), limit)
        assert {state.consumer for state in tenants} == {c for c, o in made.items() if o.project_id == "tenant"}
        unknown = walk(lambda **o: world.ledger.consumers(consumer_type="unknown", user_id="bob", **o), limit)
        assert {state.consumer for state in unknown} == {c for c, o in made.items() if o.user_id == "bob"}


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 10_001}, {"after": "x"}])
def test_pages_have_bounds(world, options):
    with pytest.raises(InvalidArgument):
        world.ledger.consumers(**options)
    with pytest.raises(InvalidArgument):
        world.ledger.holders(world.h1, **options)


# ---- who is in the way


def test_a_removal_says_whether_children_or_allocations_are_in_the_way(ledger_database):
    tree, late = PlacementTree.open(ledger_database), PlacementTree.open(ledger_database)
    host = tree.add("host", inventory={"VCPU": 4, "DISK_GB": 4})
    late.refresh()
    child = tree.add("child", parent=host)
    ledger = AllocationLedger(ledger_database)
    kinds = []

    def refused(call, *args, **options):
        with pytest.raises(InUse) as caught:
            call(*args, **options)
        kinds.append(caught.value.kind)

    refused(tree.remove, host)
    refused(late.remove, host)  # which has not seen the child
    tree.remove(child)
    ledger.claim(INSTANCE, {host.uuid: {"VCPU": 1}}, project_id="p", user_id="u")
    refused(tree.remove, host)  # which has not seen the claim
    refused(tree.set_inventory, host, {"DISK_GB": 4})
    tree.refresh()
    refused(tree.remove, host)
    refused(tree.set_inventory, host, {"DISK_GB": 4})
    refused(ledger.reshape, {host.uuid: {"DISK_GB": 4}}, {})
    ledger.begin_move(INSTANCE, MIGRATION, {host.uuid: {"VCPU": 1}})
    refused(ledger.begin_move, INSTANCE, OTHER, {host.uuid: {"VCPU": 1}})
    refused(ledger.release, MIGRATION)
    assert kinds == ["children"] * 2 + ["allocations"] * 5 + ["move"] * 2
    tree.close()
    late.close()
