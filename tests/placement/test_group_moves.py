"""A member of a group that moves: its group is known to the database, whoever asks, by whatever call."""

from __future__ import annotations

import threading
import uuid

import pytest

from cloudcore import _failpoints
from cloudcore.errors import CloudcoreError, DatabaseBusy, GroupViolation, InvalidRequest, NoValidHost
from cloudcore.placement import AllocationLedger, HostGroup
from cloudcore.placement.hosts import force_hosts
from cloudcore.placement.ledger.host_groups import count_members, join, keeping_policies
from cloudcore.placement.ledger.session import Session
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud

ANTI = HostGroup(policy="anti-affinity", uuid=uuid_of("moving-group"))


def fresh() -> str:
    return str(uuid.uuid4())


def place_like(cloud: Cloud, selection) -> dict:
    """What the host of another selection would hold for one more instance of the flavour, on its other node."""
    root = cloud.tree.provider(selection.primary.root)
    (node,) = [node for node in cloud.tree.children(root) if node.uuid not in selection.primary.allocations]
    return {root.uuid: {"DISK_GB": 10}, node.uuid: {"VCPU": 4, "MEMORY_MB": 1024}}


@pytest.fixture
def pair(cloud: Cloud):
    """Two members on two of three hosts."""
    cloud.add_hosts(1, 3)
    return cloud.select(2, group=ANTI, alternates=0)


def test_a_destination_is_chosen_where_the_group_allows_it(cloud: Cloud, pair):
    one, other = pair
    migration = fresh()
    moved = cloud.selector.select_destination(one.instance, migration, FLAVOUR, alternates=2)
    roots = {one.primary.root, other.primary.root}
    assert moved.primary.root not in roots
    assert not {choice.root for choice in moved.alternates} & roots
    cloud.ledger.confirm_move(migration)
    with pytest.raises(NoValidHost, match="anti-affinity"):
        cloud.selector.select_destination(
            other.instance, fresh(), FLAVOUR, filters=[lambda h: None if h.root == moved.primary.root else "other host"]
        )


@pytest.mark.parametrize(
    ("kind", "expires_in"), [("cold", None), ("cold", 600), ("live", None), ("resize", 600), ("evacuation", None)]
)
def test_the_ledger_refuses_a_move_onto_the_host_of_a_member(cloud: Cloud, pair, kind, expires_in):
    one, other = pair
    before = [cloud.ledger.consumer(each.instance) for each in pair]
    with pytest.raises(GroupViolation, match="anti-affinity") as refused:
        cloud.ledger.begin_move(one.instance, fresh(), place_like(cloud, other), kind=kind, expires_in=expires_in)
    assert refused.value.root == other.primary.root
    assert [cloud.ledger.consumer(each.instance) for each in pair] == before


def test_a_resize_in_place_and_a_way_back_are_no_violation(cloud: Cloud, pair):
    one, _ = pair
    migration = fresh()
    cloud.ledger.begin_move(one.instance, migration, place_like(cloud, one), kind="resize")
    cloud.ledger.revert_move(migration)
    assert cloud.host_of(one.instance) == one.primary.name


def test_a_member_that_moves_keeps_its_source_from_the_others(cloud: Cloud, pair):
    """Until the move has ended the source may be its host again."""
    one, other = pair
    migration = fresh()
    cloud.selector.select_destination(one.instance, migration, FLAVOUR)
    with pytest.raises(GroupViolation):
        cloud.ledger.begin_move(other.instance, fresh(), place_like(cloud, one))
    cloud.ledger.confirm_move(migration)
    cloud.ledger.begin_move(other.instance, fresh(), place_like(cloud, one))


def test_what_replaces_and_swaps_keep_to_the_policy_as_well(cloud: Cloud, pair):
    one, other = pair
    before = [cloud.ledger.consumer(each.instance) for each in pair]
    there, ledger = place_like(cloud, other), cloud.ledger
    held = cloud.ledger.allocations(one.instance)
    generation = before[0].generation
    for write in (
        lambda: ledger.replace({one.instance: there}),
        lambda: ledger.replace({one.instance: there, fresh(): held}, project_id="p", user_id="u"),
        lambda: ledger.swap(one.instance, held, there),
        lambda: ledger.claim(one.instance, there, generation=generation, project_id="p", user_id="u"),
    ):
        with pytest.raises(GroupViolation, match="anti-affinity") as refused:
            write()
        assert refused.value.root == other.primary.root
        assert [cloud.ledger.consumer(each.instance) for each in pair] == before


def test_a_reshape_keeps_to_the_policy_as_well(cloud: Cloud, pair):
    """Within the host of a member anything may be named anew; onto the host of another member nothing goes."""
    one, other = pair
    root = cloud.tree.provider(one.primary.root)
    whole = {root.uuid: dict(root.inventories)}
    before = cloud.ledger.allocations(other.instance)
    with pytest.raises(GroupViolation, match=f"instance {other.instance}, host {root.uuid}: anti-affinity"):
        cloud.ledger.reshape(whole, {other.instance: place_like(cloud, one)})
    assert cloud.ledger.allocations(other.instance) == before
    cloud.ledger.reshape(whole, {one.instance: place_like(cloud, one), other.instance: before})
    assert cloud.ledger.allocations(one.instance) == place_like(cloud, one)
    cloud.ledger.check()


def test_two_members_may_change_places_in_one_call_and_stay_where_they_are(cloud: Cloud, pair):
    one, other = pair
    cloud.ledger.replace({one.instance: place_like(cloud, other), other.instance: place_like(cloud, one)})
    assert [cloud.host_of(each.instance) for each in pair] == [other.primary.name, one.primary.name]
    smaller = {other.primary.root: {"DISK_GB": 5}}
    cloud.ledger.replace({one.instance: smaller})
    assert cloud.ledger.allocations(one.instance) == smaller


def test_a_host_that_breaks_the_policy_already_may_be_kept_but_not_taken(cloud: Cloud, pair):
    """An operator mends one after the other: what others do wrong does not keep an instance from shrinking."""
    one, other = pair
    with cloud.ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM host_group_members")
    cloud.ledger.replace({one.instance: place_like(cloud, other)})
    with cloud.ledger.database.write() as connection:
        for each in pair:
            connection.exec_driver_sql(
                f"INSERT INTO host_group_members (instance, group_uuid) VALUES ('{each.instance}', '{ANTI.uuid}')"
            )
    cloud.ledger.replace({one.instance: {other.primary.root: {"DISK_GB": 5}}})
    (third,) = [root for root in cloud.tree.roots() if root.uuid not in {one.primary.root, other.primary.root}]
    cloud.ledger.replace({one.instance: {third.uuid: {"DISK_GB": 5}}})
    with pytest.raises(GroupViolation):
        cloud.ledger.replace({one.instance: {other.primary.root: {"DISK_GB": 5}}})


def test_an_instance_of_no_group_moves_as_before(cloud: Cloud, pair):
    one, other = pair
    (loner,) = cloud.select(alternates=0, filters=[force_hosts({one.primary.name})])
    there = place_like(cloud, other)
    cloud.ledger.begin_move(loner.instance, fresh(), there)
    assert cloud.ledger.allocations(loner.instance) == there


def test_a_pool_that_members_share_is_no_host(cloud: Cloud):
    """All three hosts get their disk from one pool, which is in a tree of its own."""
    cloud.add_hosts(1, 3)
    pool = cloud.tree.add("pool", inventory={"DISK_GB": 10_000}, traits={"MISC_SHARES_VIA_AGGREGATE"})
    one, other = cloud.select(2, group=ANTI, alternates=0)
    for each in (one, other):
        held = {**cloud.ledger.allocations(each.instance), pool.uuid: {"DISK_GB": 5}}
        cloud.ledger.replace({each.instance: held})
    roots = {one.primary.root, other.primary.root, pool.uuid}
    (third,) = [root for root in cloud.tree.roots() if root.uuid not in roots]
    node = next(iter(cloud.tree.children(third)))
    there = {pool.uuid: {"DISK_GB": 5}, node.uuid: {"VCPU": 4}}
    cloud.ledger.begin_move(one.instance, fresh(), there)
    assert cloud.ledger.allocations(one.instance) == there


def test_another_group_than_its_own_is_refused(cloud: Cloud, pair):
    one, _ = pair
    other = HostGroup(policy="anti-affinity", uuid=uuid_of("another-group"))
    with pytest.raises((InvalidRequest, NoValidHost)):
        cloud.selector.select_destination(one.instance, fresh(), FLAVOUR, group=other)


@pytest.mark.parametrize("joins", [True, False], ids=["another group", "no group"])
def test_whose_group_changes_while_it_is_waited_for_is_named_alone(cloud: Cloud, pair, joins):
    one, other = (each.instance for each in pair)
    another = HostGroup(policy="anti-affinity", uuid=uuid_of("another-group"))
    (member,) = (each.instance for each in cloud.select(group=another, alternates=0))
    new = another.uuid if joins else None
    with cloud.database.write() as connection:
        session = Session(connection)

        def change(_: str) -> None:
            session.run("DELETE FROM host_group_members WHERE instance = ?", (one,))
            if joins:
                session.run("INSERT INTO host_group_members (instance, group_uuid) VALUES (?, ?)", (one, new))

        _failpoints.arm("ledger.group.lock", change)
        try:
            with (
                pytest.raises(DatabaseBusy) as refused,
                keeping_policies(session, dict.fromkeys((one, other, member), ())),
            ):
                pytest.fail("the groups are not what was locked")
        finally:
            _failpoints.disarm()
            connection.rollback()
    assert f"instance {one}: group {ANTI.uuid} -> {f'group {new}' if joins else 'no group'}; repeat" in str(
        refused.value
    )
    assert other not in str(refused.value)
    assert member not in str(refused.value)


@pytest.mark.parametrize("round_", range(4))
def test_two_members_that_move_at_once_do_not_meet(cloud: Cloud, pair, round_):
    """Both are sent to the third host at the same time, by ledgers of their own: one arrives."""
    roots = {each.primary.root for each in pair}
    (third,) = [root for root in cloud.tree.roots() if root.uuid not in roots]
    nodes = list(cloud.tree.children(third))
    barrier, outcomes = threading.Barrier(2), []

    def move(number: int) -> None:
        ledger = AllocationLedger(cloud.database)
        wanted = {third.uuid: {"DISK_GB": 10}, nodes[number].uuid: {"VCPU": 4, "MEMORY_MB": 1024}}
        barrier.wait(30)
        try:
            ledger.begin_move(pair[number].instance, fresh(), wanted)
            outcomes.append("moved")
        except CloudcoreError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=move, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["GroupViolation", "moved"]


@pytest.mark.parametrize("end", ["confirm_move", "revert_move"])
def test_nobody_joins_a_member_that_may_yet_end_on_another_host(cloud: Cloud, end):
    """On either of its hosts another member would be alone when the move ends at the other."""
    cloud.add_hosts(1, 2)
    group = HostGroup(policy="affinity", uuid=uuid_of("together"))
    (one,) = cloud.select(group=group)
    migration = fresh()
    moved = cloud.selector.select_destination(one.instance, migration, FLAVOUR)
    with pytest.raises(NoValidHost, match="moving"):
        cloud.select(group=group)
    for root in (one.primary.root, moved.primary.root):
        with cloud.database.write() as connection:
            session = Session(connection)
            members = count_members(session, group)
            with pytest.raises(GroupViolation, match="end that move first"):
                join(session, group, fresh(), root, members)
    getattr(cloud.ledger, end)(migration)
    here = moved if end == "confirm_move" else one
    (joined,) = cloud.select(group=group)
    assert joined.primary.root == here.primary.root
    cloud.ledger.check()


def test_a_member_that_is_resized_where_it_is_stays_there(cloud: Cloud):
    cloud.add_hosts(1, 2)
    group = HostGroup(policy="affinity", uuid=uuid_of("together"))
    (one,) = cloud.select(group=group)
    cloud.ledger.begin_move(one.instance, fresh(), place_like(cloud, one), kind="resize")
    with cloud.database.read() as connection:
        assert count_members(Session(connection), group) == {one.primary.root: 1}
    (joined,) = cloud.select(group=group)
    assert joined.primary.root == one.primary.root
