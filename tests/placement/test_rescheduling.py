"""Rescheduling: the next alternate in one transaction, the whole story at the end, nothing kept that is not owned."""

from __future__ import annotations

import random

import pytest

from cloudcore import Database, PlacementTree, create_schema
from cloudcore._failpoints import arm, disarm
from cloudcore.errors import (
    ConsumerNotFound,
    GenerationConflict,
    InUse,
    InvalidArgument,
    InvalidSelection,
    InvalidTransition,
    MaxRetriesExceeded,
    MoveNotFound,
    OperationMismatch,
)
from cloudcore.placement import Failure, FailureKind, HostGroup, Selection, reschedule
from cloudcore.placement.hosts import force_hosts
from cloudcore.placement.ledger.host_groups import forget_groups
from cloudcore.placement.scheduling.rescheduling import attempts
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud, rack_of

only_sqlite = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


def test_the_alternates_are_taken_in_their_order_and_then_everything_is_given_back(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    (chosen,) = cloud.select()
    first, second = chosen.alternates
    moved = reschedule(cloud.ledger, chosen, chosen.instance, failed="no kernel")
    assert (moved.choice, moved.remaining) == (first, (second,))
    assert cloud.ledger.allocations(chosen.instance) == first.allocations
    assert reschedule(cloud.ledger, chosen, failed="no network").choice == second
    with pytest.raises(MaxRetriesExceeded, match=r"no kernel; .* no network; .* no luck") as caught:
        reschedule(cloud.ledger, chosen, failed="no luck")
    story = [(attempt.name, attempt.outcome) for attempt in caught.value.attempts]
    primary = chosen.primary.name
    assert story == [
        (primary, "failed"),
        (first.name, "claimed"),
        (first.name, "failed"),
        (second.name, "claimed"),
        (second.name, "failed"),
    ]
    assert cloud.ledger.allocations(chosen.instance) == {}
    assert [(each.name, each.outcome) for each in attempts(cloud.ledger, chosen.instance)] == story


def test_the_selection_travels_and_nothing_but_the_ledger_is_needed(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select()
    text = chosen.to_json(key=b"secret")
    cloud.tree.close()
    moved = reschedule(cloud.ledger, Selection.from_json(text, key=b"secret"), failed="x")
    assert moved.choice == chosen.alternates[0]
    cloud.tree = PlacementTree.open(cloud.database)  # for the look at the whole at the end


def test_a_repeated_call_moves_once(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    (chosen,) = cloud.select()
    first = reschedule(cloud.ledger, chosen, failed="x", operation_id="again-1")
    second = reschedule(cloud.ledger, chosen, failed="x", operation_id="again-1")
    assert (first.repeated, second.repeated) == (False, True)
    assert first.choice == second.choice
    assert cloud.ledger.allocations(chosen.instance) == first.choice.allocations
    with pytest.raises(OperationMismatch):
        reschedule(cloud.ledger, chosen, failed="y", operation_id="again-1")


def test_the_end_is_repeated_too(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    (chosen,) = cloud.select()
    for _ in range(2):
        with pytest.raises(MaxRetriesExceeded):
            reschedule(cloud.ledger, chosen, failed="x", operation_id="end-1")
    assert len(attempts(cloud.ledger, chosen.instance)) == 1


def test_an_alternate_that_is_full_by_now_is_passed_over_and_noted(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select()
    full, free = chosen.alternates
    cloud.select(4, filters=[force_hosts({full.name})])
    moved = reschedule(cloud.ledger, chosen, failed="x")
    assert moved.choice == free
    refused = moved.attempts[1]
    assert (refused.name, refused.outcome) == (full.name, "refused")
    assert "8 of 8 used" in refused.reason
    assert cloud.host_of(chosen.instance) == free.name


def test_a_failure_that_every_host_would_have_ends_at_once(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    (chosen,) = cloud.select()
    with pytest.raises(MaxRetriesExceeded, match="image is damaged"):
        reschedule(cloud.ledger, chosen, failed=Failure("image is damaged", kind=FailureKind.ABORT))
    assert cloud.host_of(chosen.instance) is None


@pytest.mark.parametrize(("allowed", "outcome"), [(1, None), (2, 0), (3, 0)])
@only_sqlite
def test_attempts_are_bounded(cloud: Cloud, allowed: int, outcome: int | None) -> None:
    cloud.add_hosts(1, 4)
    (chosen,) = cloud.select()
    if outcome is None:
        with pytest.raises(MaxRetriesExceeded):
            reschedule(cloud.ledger, chosen, failed="x", max_attempts=allowed)
    else:
        assert reschedule(cloud.ledger, chosen, failed="x", max_attempts=allowed).choice == chosen.alternates[0]


def test_a_deleted_instance_stays_deleted(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select()
    cloud.ledger.release(chosen.instance, forever=True)
    with pytest.raises(ConsumerNotFound):
        reschedule(cloud.ledger, chosen, failed="x")
    assert cloud.host_of(chosen.instance) is None
    assert attempts(cloud.ledger, chosen.instance) == ()


def test_a_late_failure_does_not_touch_a_move_and_a_strange_migration_does_nothing(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    chosen, other = cloud.select(2)
    mine, theirs = uuid_of("mine"), uuid_of("theirs")
    cloud.selector.select_destination(other.instance, theirs, FLAVOUR)
    with pytest.raises(MoveNotFound):
        reschedule(cloud.ledger, chosen, failed="late", migration=theirs)
    with pytest.raises(MoveNotFound):
        reschedule(cloud.ledger, chosen, failed="late", migration=uuid_of("nobody"))
    destination = cloud.selector.select_destination(chosen.instance, mine, FLAVOUR)
    with pytest.raises(InUse, match="is moving"):
        reschedule(cloud.ledger, chosen, failed="late")
    assert cloud.host_of(mine) == chosen.primary.name
    cloud.ledger.confirm_move(mine)
    with pytest.raises(InvalidTransition, match="is confirmed"):
        reschedule(cloud.ledger, destination, failed="late", migration=mine)
    assert cloud.host_of(chosen.instance) == destination.primary.name
    assert cloud.host_of(theirs) == other.primary.name


def test_a_pending_claim_stays_pending(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select(expires_in=3600)
    reschedule(cloud.ledger, chosen, failed="x")
    assert cloud.ledger.consumer(chosen.instance).expires_at is not None


@only_sqlite
def test_wrong_selections_and_reasons_are_refused_before_any_effect(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    chosen, other = cloud.select(2)
    with pytest.raises(InvalidSelection, match="expected a Selection"):
        reschedule(cloud.ledger, None, failed="x")
    with pytest.raises(InvalidSelection, match="not of"):
        reschedule(cloud.ledger, chosen, other.instance, failed="x")
    with pytest.raises(InvalidArgument, match="reason"):
        reschedule(cloud.ledger, chosen, failed="")
    cloud.ledger.replace({chosen.instance: {uuid_of("c0-r0-h0"): {"DISK_GB": 1}}})
    with pytest.raises(GenerationConflict, match="no choice of this selection"):
        reschedule(cloud.ledger, chosen, failed="x")
    assert attempts(cloud.ledger, chosen.instance) == ()


def test_a_group_is_looked_at_again_for_each_alternate(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    (chosen,) = cloud.select(group=group)
    taken, free = chosen.alternates
    cloud.select(group=group, filters=[force_hosts({taken.name})])
    moved = reschedule(cloud.ledger, chosen, failed=Failure("group", kind="policy"))
    assert moved.choice == free
    assert "anti-affinity: holds 1 of at most 1" in moved.attempts[1].reason


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)  # SQLite has one writer at a time
def test_a_group_that_is_made_anew_meanwhile_is_no_mistake_of_the_caller(cloud: Cloud) -> None:
    """Forgotten and recorded with another policy between the look at it and its lock: looked at again."""
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select(group=HostGroup(policy="anti-affinity", uuid=uuid_of("group")))
    other = Cloud(cloud.database)

    def boot_anew(_: str) -> None:
        disarm()
        other.ledger.release(chosen.instance)
        assert forget_groups(cloud.database) == 1
        group = HostGroup(policy="affinity", uuid=uuid_of("group"))
        other.select(instances=[chosen.instance], group=group, filters=[force_hosts({chosen.primary.name})])

    arm("ledger.group.lock", boot_anew)
    try:
        assert reschedule(cloud.ledger, chosen, failed="no kernel").choice == chosen.alternates[0]
    finally:
        disarm()
        other.close()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)  # SQLite has one writer at a time
def test_a_group_that_is_joined_meanwhile_is_looked_at_too(cloud: Cloud) -> None:
    """The instance is deleted and booted anew, into a group, between the look at its group and its lock."""
    cloud.add_hosts(1, 2)
    (chosen,) = cloud.select()
    (taken,) = chosen.alternates
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    cloud.select(group=group, filters=[force_hosts({taken.name})])
    other = Cloud(cloud.database)

    def boot_anew(_: str) -> None:
        disarm()
        other.ledger.release(chosen.instance)
        other.select(instances=[chosen.instance], group=group)
        assert other.ledger.allocations(chosen.instance) == chosen.primary.allocations

    arm("ledger.consumers.lock", boot_anew)
    try:
        with pytest.raises(MaxRetriesExceeded, match="anti-affinity"):
            reschedule(cloud.ledger, chosen, failed="no kernel")
    finally:
        disarm()
        other.close()
    assert cloud.ledger.allocations(chosen.instance) == {}


def test_under_a_migration_the_source_stays_held_and_comes_back_at_the_end(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    (chosen,) = cloud.select()
    migration = uuid_of("migration")
    destination = cloud.selector.select_destination(chosen.instance, migration, FLAVOUR)
    for alternate in destination.alternates:
        moved = reschedule(cloud.ledger, destination, failed="no room on arrival", migration=migration)
        assert moved.choice == alternate
        assert cloud.host_of(chosen.instance) == alternate.name
        assert cloud.host_of(migration) == chosen.primary.name
    with pytest.raises(MaxRetriesExceeded):
        reschedule(cloud.ledger, destination, failed="no room on arrival", migration=migration)
    assert cloud.host_of(chosen.instance) == chosen.primary.name
    assert cloud.host_of(migration) is None
    assert cloud.ledger.usages(project_id="p")["VCPU"] == 4


def test_a_rack_is_lost_and_nearly_all_stay_in_their_cell() -> None:
    """1,000 hosts in 10 cells, 100 instances in one request; every host of one rack of each cell fails."""
    database = Database("sqlite://")
    create_schema(database, areas=["placement"])
    cloud = Cloud(database)
    cloud.add_hosts(10, 100, racks=10, contiguous=True)
    selections = cloud.select(100)
    rng = random.Random(3)
    lost = {f"c{cell}-r{rng.randrange(10)}" for cell in range(10)}
    hit = [chosen for chosen in selections if rack_of(chosen.primary.name) in lost]
    assert hit
    saved = 0
    for chosen in hit:
        try:
            moved = reschedule(cloud.ledger, chosen, failed="power")
            while rack_of(moved.choice.name) in lost:
                moved = reschedule(cloud.ledger, chosen, failed="power")
            saved += 1
            assert moved.choice.cell == chosen.cell
        except MaxRetriesExceeded:
            continue
    assert saved >= 0.99 * len(hit)
    cloud.check()
    cloud.close()
    database.close()
