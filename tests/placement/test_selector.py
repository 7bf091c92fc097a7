"""Selections: a claimed primary, alternates in its cell, all or nothing, the same answer to a repeated call."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter

import pytest

from cloudcore.errors import AlreadyExists, ConsumerNotFound, InvalidRequest, NoValidHost, OperationMismatch
from cloudcore.placement import (
    AllocationLedger,
    HostGroup,
    HostSelector,
    PlacementTree,
    Selection,
    SelectionReport,
    reschedule,
)
from cloudcore.placement.hosts import ignore_hosts
from cloudcore.placement.hosts.planner import Planner
from tests.placement.ledger_worlds import overdue, uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud, cell_of, rack_of

only_sqlite = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


def test_primaries_are_claimed_and_alternates_are_not(cloud: Cloud) -> None:
    cloud.add_hosts(2, 4)
    selections = cloud.select(4)
    assert len({chosen.instance for chosen in selections}) == 4
    for chosen in selections:
        assert cloud.ledger.allocations(chosen.instance) == chosen.primary.allocations
        assert cloud.host_of(chosen.instance) == chosen.primary.name
        assert len(chosen.alternates) == 2
        assert {choice.cell for choice in chosen.choices} == {chosen.cell}
    assert cloud.ledger.usages(project_id="p") == {"DISK_GB": 40, "MEMORY_MB": 4096, "VCPU": 16}
    dealt = Counter(choice.root for chosen in selections for choice in chosen.alternates)
    assert set(dealt.values()) <= {1, 2}


def test_a_repeated_call_gives_the_same_selections_and_claims_once(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    first = cloud.select(3, operation_id="boot-1")
    assert cloud.select(3, operation_id="boot-1") == first
    assert cloud.ledger.usages(project_id="p")["VCPU"] == 12
    with pytest.raises(OperationMismatch):
        cloud.select(2, operation_id="boot-1")
    with pytest.raises(OperationMismatch):
        cloud.selector.select(FLAVOUR, 3, project_id="another", user_id="u", operation_id="boot-1")


def test_all_or_nothing_and_the_report_says_why(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    with pytest.raises(NoValidHost) as caught:
        cloud.select(9)
    report = caught.value.report
    assert isinstance(report, SelectionReport)
    assert report.placed == 8
    assert set(report.filtered) == {"c0-r0-h0", "c0-r1-h1"}
    assert all("VCPU" in reason for reason in report.filtered.values())
    assert cloud.ledger.usages(project_id="p") == {}
    assert len(cloud.select(9, partial=True)) == 8
    with pytest.raises(NoValidHost):
        cloud.select(1, partial=True)


@only_sqlite
def test_filters_and_hosts_without_a_cell_are_left_out_with_their_reasons(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    cloud.tree.add("stray", inventory={"DISK_GB": 1000, "VCPU": 64, "MEMORY_MB": 65536})
    (chosen,) = cloud.select(filters=[ignore_hosts({"c0-r0-h0"})])
    assert chosen.primary.name == "c0-r1-h1"
    assert chosen.alternates == ()
    with pytest.raises(NoValidHost) as caught:
        cloud.select(filters=[ignore_hosts({"c0-r0-h0", "c0-r1-h1"})])
    assert caught.value.report.filtered == dict.fromkeys(("c0-r0-h0", "c0-r1-h1"), "ignored by the request")


@only_sqlite
def test_the_summary_counts_hosts_by_what_refused_them(cloud: Cloud) -> None:
    cloud.add_hosts(1, 7)
    why = {f"c0-r{n % 2}-h{n}": "closed for stocktaking" for n in range(5)} | {"c0-r1-h5": "on fire"}
    with pytest.raises(NoValidHost) as caught:
        cloud.select(filters=[lambda host: why.get(host.name, "on fire" if host.name.endswith("h5") else "leased")])
    report = caught.value.report
    assert report.refusals == {"closed for stocktaking": 5, "leased": 1, "on fire": 1}
    said = report.summary()
    assert said == (
        "7 of 7 hosts have what is asked for; refused: 5 × closed for stocktaking; c0-r0-h6: leased; c0-r1-h5: on fire"
    )
    assert said in str(caught.value)


@only_sqlite
def test_the_summary_of_many_reasons_ends_with_how_many_hosts_are_left_out(cloud: Cloud) -> None:
    cloud.add_hosts(1, 9)
    with pytest.raises(NoValidHost, match=r"refused: c0-r0-h0: no c0-r0-h0; .*; and 4 more hosts$"):
        cloud.select(filters=[lambda host: f"no {host.name}"])


@only_sqlite
def test_a_weigher_of_the_call_may_know_whose_instances_are_where(cloud: Cloud) -> None:
    """What a weigher of the selector cannot: it is not told for whom it weighs."""
    cloud.add_hosts(1, 4)

    def away_from(project: str):
        theirs = {cloud.host_of(s.consumer) for s in cloud.ledger.consumers() if s.project_id == project}
        return [(100.0, lambda host: 0.0 if host.name in theirs else 1.0)]

    seen = {cloud.select(weighers=away_from("p"))[0].primary.name for _ in range(4)}
    assert len(seen) == 4
    (chosen,) = cloud.select(weighers=[(100.0, lambda host: float(host.name == "c0-r0-h2"))])
    assert chosen.primary.name == "c0-r0-h2"
    moved = cloud.selector.select_destination(
        chosen.instance, uuid_of("m"), FLAVOUR, weighers=[(100.0, lambda host: float(host.name == "c0-r1-h3"))]
    )
    assert moved.primary.name == "c0-r1-h3"
    with pytest.raises(InvalidRequest, match="weighers"):
        cloud.selector.select_destination(chosen.instance, uuid_of("n"), FLAVOUR, weighers=[len])


@only_sqlite
def test_alternates_are_in_other_failure_domains_first(cloud: Cloud) -> None:
    cloud.add_hosts(1, 6, racks=3)
    (chosen,) = cloud.select()
    assert len({rack_of(choice.name) for choice in chosen.choices}) == 3


@only_sqlite
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: 0"),
        ({"alternates": -1}, "alternates: -1"),
        ({"expires_in": "soon"}, "expires_in: expected a positive number of seconds"),
        ({"instances": []}, "name at least one"),
        ({"instances": ["x"]}, "'x' is not a UUID"),
        ({"instances": uuid_of(1)}, "instances: expected a list of uuids, got the text"),
        ({"instances": [uuid_of(1), uuid_of(1)]}, "each once"),
        ({"instances": 5}, "instances: expected a list of uuids, got 5"),
    ],
)
def test_bad_input_is_refused_before_any_effect(cloud: Cloud, arguments: dict, message: str) -> None:
    cloud.add_hosts(1, 1)
    with pytest.raises(InvalidRequest, match=message):
        cloud.select(**arguments)
    assert cloud.ledger.usages(project_id="p") == {}


@only_sqlite
@pytest.mark.parametrize("racks", [1, 3])
def test_more_alternates_than_hosts_are_all_hosts(cloud: Cloud, racks: int) -> None:
    cloud.add_hosts(1, 6, racks=racks)
    few = cloud.selector.preview(FLAVOUR, 3, alternates=6)
    assert cloud.selector.preview(FLAVOUR, 3, alternates=2**31 - 1) == few
    (chosen,) = cloud.select(alternates=2**31 - 1)
    assert len({choice.name for choice in chosen.choices}) == 6


@only_sqlite
def test_more_instances_than_a_transaction_takes_are_refused_before_any_has_a_name(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    made: list[str] = []

    def name() -> str:
        made.append(uuid_of(len(made)))
        return made[-1]

    selector = HostSelector(cloud.tree, cloud.ledger, cell_of=cell_of, id_factory=name)
    for count in (10_001, 2**31 - 1):
        for call in (functools.partial(selector.select, project_id="p", user_id="u"), selector.preview):
            with pytest.raises(InvalidRequest, match="count: more than 10000 instances") as refused:
                call(FLAVOUR, count)
            assert (refused.value.field, made) == ("count", [])
    endless = map(uuid_of, itertools.count())
    with pytest.raises(InvalidRequest, match="instances: more than 10000"):
        cloud.select(instances=endless)
    with pytest.raises(InvalidRequest, match="id_factory: makes the same uuid twice"):
        selector_with(cloud, uuid_of("vm")).select(FLAVOUR, 2, project_id="p", user_id="u")
    assert cloud.ledger.consumers() == []


@only_sqlite
def test_members_are_counted_by_whatever_form_of_a_uuid_and_by_nothing_else(cloud: Cloud) -> None:
    """By another form, or by a name, nobody would have been found there, and the policy not been kept."""
    cloud.add_hosts(1, 1)
    (root,) = cloud.tree.roots()
    for form in (root.uuid, root.uuid.upper(), root.uuid.replace("-", "")):
        with pytest.raises(NoValidHost, match="anti-affinity: holds 1"):
            cloud.select(group=HostGroup(policy="anti-affinity", members={form: 1}))
    for members in ({root.name: 1}, {root.uuid: "1"}, {root.uuid: -1}, [root.uuid]):
        group = HostGroup(policy="anti-affinity", members=members)
        for call in (cloud.select, lambda group: cloud.selector.preview(FLAVOUR, group=group)):
            with pytest.raises(InvalidRequest, match="members"):
                call(group=group)
    assert cloud.ledger.consumers() == []


@only_sqlite
def test_uuids_of_a_factory_are_those_by_which_the_ledger_knows_them(cloud: Cloud) -> None:
    """Another form of a uuid could not be settled, nor released; what is none could not be given back at all."""
    cloud.add_hosts(1, 1)
    for made in (uuid_of("vm").upper(), uuid_of("other").replace("-", "")):
        (chosen,) = selector_with(cloud, made).select(FLAVOUR, project_id="p", user_id="u", expires_in=100)
        assert cloud.ledger.settle(chosen.instance).allocations == chosen.primary.allocations
        assert cloud.ledger.release(chosen.instance).generation == 0
    for made in ('bad"id', "", None):
        with pytest.raises(InvalidRequest, match="id_factory"):
            selector_with(cloud, made).select(FLAVOUR, project_id="p", user_id="u")
    assert cloud.ledger.consumers() == []


def selector_with(cloud: Cloud, made: object) -> HostSelector:
    return HostSelector(cloud.tree, cloud.ledger, cell_of=cell_of, id_factory=lambda: made)


def test_an_instance_that_holds_something_is_not_placed_again(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    cloud.select(instances=[uuid_of("vm")])
    with pytest.raises(AlreadyExists):
        cloud.select(instances=[uuid_of("other"), uuid_of("vm")])
    assert cloud.host_of(uuid_of("other")) is None


def test_what_is_never_settled_expires(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    (chosen,) = cloud.select(expires_in=3600)
    state = cloud.ledger.consumer(chosen.instance)
    assert state.expires_at is not None
    cloud.ledger.settle(chosen.instance)
    assert cloud.ledger.consumer(chosen.instance).expires_at is None
    (never,) = cloud.select(expires_in=3600)
    overdue(cloud.database, never.instance)
    cloud.ledger.expire()
    assert cloud.host_of(never.instance) is None
    assert cloud.host_of(chosen.instance) is not None


def test_a_lost_claim_is_planned_again_with_what_the_refusal_told(cloud: Cloud, monkeypatch) -> None:
    """Another scheduler takes the best host between our search and our claim."""
    cloud.add_hosts(1, 2)
    rival = Cloud(cloud.database)
    plan = Planner.plan
    lost_seen: list[int] = []

    def planned(self, asked, lost):
        made = plan(self, asked, lost)
        if self.tree is not cloud.tree:
            return made
        lost_seen.append(len(lost))
        if not lost:
            target = made.assignment.picks[0].host.view.name
            rival.select(4, filters=[ignore_hosts({"c0-r0-h0", "c0-r1-h1"} - {target})])
        return made

    monkeypatch.setattr(Planner, "plan", planned)
    monkeypatch.setattr(cloud.tree, "refresh", lambda: 0)  # stays blind: only the refusal tells
    (chosen,) = cloud.select()
    assert lost_seen[:2] == [0, 1]
    assert cloud.host_of(chosen.instance) == chosen.primary.name
    monkeypatch.undo()
    rival.close()


def test_schedulers_side_by_side_fill_the_cloud_and_never_more(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)  # room for 16
    clouds = [Cloud(cloud.database, subset=2) for _ in range(4)]
    placed: list[Selection] = []
    refused: list[NoValidHost] = []

    def boot(mine: Cloud) -> None:
        for _ in range(6):
            try:
                placed.extend(mine.select())
            except NoValidHost as error:
                refused.append(error)

    threads = [threading.Thread(target=boot, args=[mine]) for mine in clouds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(placed) == 16
    assert len(refused) == 8
    assert Counter(cloud.host_of(chosen.instance) for chosen in placed) == dict.fromkeys(
        [root.name for root in cloud.tree.roots()], 4
    )
    for mine in clouds:
        mine.close()


# --- groups ----------------------------------------------------------------------------------------------------------


def test_anti_affinity_holds_between_instances_and_their_alternates(cloud: Cloud) -> None:
    cloud.add_hosts(1, 6)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    selections = cloud.select(2, group=group)
    choices = [choice.root for chosen in selections for choice in chosen.choices]
    assert len(choices) == len(set(choices)) == 6


def test_anti_affinity_holds_between_requests_and_schedulers(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    clouds = [Cloud(cloud.database) for _ in range(4)]
    placed: list[str] = []

    def boot(mine: Cloud) -> None:
        for _ in range(2):
            try:
                placed.extend(chosen.instance for chosen in mine.select(group=group))
            except NoValidHost:
                continue

    threads = [threading.Thread(target=boot, args=[mine]) for mine in clouds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hosts = [cloud.host_of(instance) for instance in placed]
    assert len(hosts) == len(set(hosts)) == 4
    for mine in clouds:
        mine.close()


def test_a_member_that_was_deleted_makes_room(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    (first,) = cloud.select(group=group)
    with pytest.raises(NoValidHost, match="anti-affinity"):
        cloud.select(group=group)
    cloud.ledger.release(first.instance, forever=True)
    assert len(cloud.select(group=group)) == 1


def test_affinity_follows_the_first_member(cloud: Cloud) -> None:
    cloud.add_hosts(2, 2)
    group = HostGroup(policy="affinity", uuid=uuid_of("group"))
    (first,) = cloud.select(group=group)
    rest = cloud.select(3, group=group)
    assert {chosen.primary.name for chosen in rest} == {first.primary.name}
    assert all(chosen.alternates == () for chosen in rest)
    with pytest.raises(NoValidHost, match="affinity: the group is on another host"):
        cloud.select(group=group)


def test_a_group_is_one_thing_and_an_instance_is_in_one_group(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (first,) = cloud.select(group=HostGroup(policy="anti-affinity", uuid=uuid_of("group")))
    with pytest.raises(InvalidRequest, match="one of anti-affinity with at most 1 a host"):
        cloud.select(group=HostGroup(policy="affinity", uuid=uuid_of("group")))
    other = HostGroup(policy="affinity", uuid=uuid_of("other"))
    with pytest.raises(InvalidRequest, match="belongs to group"):
        cloud.selector.select_destination(first.instance, uuid_of("migration"), FLAVOUR, group=other)


@only_sqlite
def test_a_host_that_is_gone_is_not_picked_again(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    blind = PlacementTree.from_placement(cloud.tree.as_placement())  # never hears of edits
    selector = HostSelector(blind, cloud.ledger, cell_of=cell_of)
    cloud.tree.remove("c0-r0-h0", recursive=True)
    (chosen,) = selector.select(FLAVOUR, project_id="p", user_id="u")
    assert chosen.primary.name == "c0-r1-h1"


# --- moves -----------------------------------------------------------------------------------------------------------


def test_a_destination_is_in_the_cell_elsewhere_and_held_beside_the_source(cloud: Cloud) -> None:
    cloud.add_hosts(2, 3)
    (chosen,) = cloud.select()
    migration = uuid_of("migration")
    destination = cloud.selector.select_destination(chosen.instance, migration, FLAVOUR, operation_id="move-1")
    assert destination.primary.name != chosen.primary.name
    assert {choice.cell for choice in destination.choices} == {chosen.cell}
    assert chosen.primary.root not in {choice.root for choice in destination.choices}
    assert cloud.host_of(migration) == chosen.primary.name
    assert cloud.host_of(chosen.instance) == destination.primary.name
    again = cloud.selector.select_destination(chosen.instance, migration, FLAVOUR, operation_id="move-1")
    assert again == destination
    cloud.ledger.confirm_move(migration)
    assert cloud.host_of(chosen.instance) == destination.primary.name
    cloud.ledger.release(chosen.instance)
    again = cloud.selector.select_destination(chosen.instance, migration, FLAVOUR, operation_id="move-1")
    assert again == destination, "what was done once is told for ever"


def test_a_moving_member_counts_on_both_hosts(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    (first,) = cloud.select(group=group)
    cloud.selector.select_destination(first.instance, uuid_of("migration"), FLAVOUR, group=group)
    (second,) = cloud.select(group=group)
    assert cloud.host_of(second.instance) not in {first.primary.name, cloud.host_of(first.instance)}
    cloud.ledger.revert_move(uuid_of("migration"))


def test_no_destination_changes_nothing(cloud: Cloud) -> None:
    cloud.add_hosts(2, 1)
    (chosen,) = cloud.select()
    with pytest.raises(NoValidHost) as caught:
        cloud.selector.select_destination(chosen.instance, uuid_of("migration"), FLAVOUR)
    assert set(caught.value.report.filtered.values()) == {
        "the instance is on it",
        f"in cell c{1 - int(chosen.cell[1])}, not in the instance's",
    }
    assert cloud.host_of(chosen.instance) == chosen.primary.name
    with pytest.raises(ConsumerNotFound):
        cloud.selector.select_destination(uuid_of("nobody"), uuid_of("migration"), FLAVOUR)
    with pytest.raises(InvalidRequest, match="kind: 'warm' is none of"):
        cloud.selector.select_destination(chosen.instance, uuid_of("migration"), FLAVOUR, kind="warm")


def test_shared_storage_is_counted_once_during_a_move(cloud: Cloud) -> None:
    pool = uuid_of("pool")
    rack = uuid_of("rack")
    cloud.tree.add(
        "pool", uuid=pool, inventory={"DISK_GB": 15}, traits={"MISC_SHARES_VIA_AGGREGATE"}, aggregates={rack}
    )
    for number in range(2):
        cloud.tree.add(f"c0-r0-h{number}", inventory={"VCPU": 8}, aggregates={rack})
    (chosen,) = cloud.selector.select("resources=VCPU:2,DISK_GB:10", project_id="p", user_id="u")
    migration = uuid_of("migration")
    cloud.selector.select_destination(chosen.instance, migration, "resources=VCPU:2,DISK_GB:10")
    assert cloud.ledger.usages(provider=pool) == {"DISK_GB": 10}
    cloud.ledger.confirm_move(migration)
    assert cloud.ledger.usages(provider=pool) == {"DISK_GB": 10}


def test_shared_storage_is_counted_once_by_an_alternate_too(cloud: Cloud) -> None:
    """The primary has disks of its own, the alternate those of the pool that the source is on."""
    pool, rack = uuid_of("pool"), uuid_of("rack")
    shares = {"traits": {"MISC_SHARES_VIA_AGGREGATE"}, "aggregates": {rack}}
    cloud.tree.add("pool", uuid=pool, inventory={"DISK_GB": 15}, **shares)
    for number in range(2):
        cloud.tree.add(f"c0-r0-h{number}", inventory={"VCPU": 8}, aggregates={rack})
    flavour = "resources=VCPU:2,DISK_GB:10"
    (chosen,) = cloud.selector.select(flavour, project_id="p", user_id="u")
    cloud.tree.add("c0-r1-h2", inventory={"VCPU": 8, "DISK_GB": 1000})
    other = {cloud.tree.provider("c0-r0-h1").uuid: {"VCPU": 1}}  # so that the new host is liked better
    cloud.ledger.claim(uuid_of("other"), other, project_id="p", user_id="u")
    migration = uuid_of("migration")
    destination = cloud.selector.select_destination(chosen.instance, migration, flavour)
    assert destination.primary.name == "c0-r1-h2"
    moved = reschedule(cloud.ledger, destination, failed="x", migration=migration)
    assert pool in moved.choice.allocations
    assert cloud.ledger.usages(provider=pool) == {"DISK_GB": 10}
    cloud.ledger.revert_move(migration)
    assert cloud.ledger.allocations(chosen.instance) == chosen.primary.allocations


@pytest.mark.parametrize(("asked", "moves"), [(30, True), (20, True), (31, False)])
def test_an_instance_leaves_its_host_though_a_shared_pool_is_over_its_capacity(ledger_database, asked, moves) -> None:
    """The pool was made smaller. What the instance holds of it may move along; nothing more is given."""
    rack = uuid_of("rack")
    tree, ledger = PlacementTree.open(ledger_database), AllocationLedger(ledger_database)
    for name in ("cn1", "cn2", "cn3"):
        tree.add(name, inventory={"VCPU": 8}, aggregates=[rack])
    tree.add("pool", inventory={"DISK_GB": 100}, traits=["MISC_SHARES_VIA_AGGREGATE"], aggregates=[rack])
    selector = HostSelector(tree, ledger, cell_of=lambda root: None if root.name == "pool" else "cell1")
    one, _ = (
        selector.select("resources=VCPU:2,DISK_GB:30", project_id="p", user_id="u", alternates=0)[0] for _ in range(2)
    )
    tree.refresh()
    tree.set_inventory("pool", {"DISK_GB": 50})
    request, migration = f"resources=VCPU:2,DISK_GB:{asked}", uuid_of(f"migration-{asked}")
    if moves:
        moved = selector.select_destination(one.instance, migration, request)
        assert moved.primary.root != one.primary.root
        ledger.confirm_move(migration)
        assert ledger.allocations(one.instance)[tree.provider("pool").uuid] == {"DISK_GB": asked}
    else:
        with pytest.raises(NoValidHost, match="counted as free: 30 DISK_GB of pool, which the instance itself holds"):
            selector.select_destination(one.instance, migration, request)
    ledger.check()
    tree.close()
