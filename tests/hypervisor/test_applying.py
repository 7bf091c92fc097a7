"""Trees brought up to date: in memory, in a database beside other writers, and with allocations that have to move."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterator

import pytest

from cloudcore import _failpoints
from cloudcore.database import Database
from cloudcore.errors import GenerationConflict, InUse, InvalidArgument, ReshapeFailed, ReshapeNeeded
from cloudcore.hypervisor import (
    DeviceRule,
    HostPolicy,
    MemoryHypervisor,
    apply,
    build_tree,
    carry_out,
    diff,
    explain,
    plan_reshape,
    read_current,
    sync,
)
from cloudcore.placement import AllocationLedger, Inventory, PlacementTree
from cloudcore.schema import create_schema
from tests.hypervisor.machines import NAMES, load

FLAT, CELLS = HostPolicy(name="cn1", numa=False), HostPolicy(name="cn1")


@pytest.fixture
def tree() -> Iterator[PlacementTree]:
    with PlacementTree() as tree:
        yield tree
        _failpoints.disarm()
        tree.check()


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_gets_its_tree(tree, name):
    """And a second time nothing changes."""
    policy = HostPolicy(name="cn1", disk_pool="ceph-vms" if name == "storage" else None)
    desired, change = sync(tree, load(name), policy)
    assert len(tree) == len(desired.providers)
    assert "change: add cn1" in explain(desired, change)
    again, nothing = sync(tree, load(name), policy)
    assert not nothing
    assert again == desired
    assert "change: nothing" in explain(again, nothing)


def test_shared_storage_is_added_once_and_searched(tree):
    """Two hosts join one provider, and both can be had with disk from it."""
    for name in ("cn1", "cn2"):
        sync(tree, load("storage"), HostPolicy(name=name, disk_pool="ceph-vms"))
    assert len(tree.roots()) == 3
    found = list(tree.candidates("resources=VCPU:1,DISK_GB:10"))
    assert {candidate.root for candidate in found} == {tree["cn1"].uuid, tree["cn2"].uuid}


def test_leaving_shared_storage_leaves_its_aggregate(tree):
    """Else the host would go on being offered what it no longer reaches; the operator's aggregates stay."""
    sync(tree, load("storage"), HostPolicy(name="cn1", disk_pool="ceph-vms"))
    rack = str(uuid.uuid4())
    tree.set_aggregates("cn1", tree["cn1"].aggregates | {rack})
    sync(tree, load("storage"), HostPolicy(name="cn1", disk_pool="vg0"))
    assert tree["cn1"].aggregates == {rack}
    assert tree["cn1"].inventories["DISK_GB"].total == 1862


def test_devices_hang_below_their_cell_and_move_with_the_shape(tree):
    policy = {"name": "cn1", "devices": [DeviceRule(vendor="15b3", product="101e", physical_network="a")]}
    sync(tree, load("sriov"), HostPolicy(**policy))
    assert tree["cn1_0000:81:00.0"].parent == tree["cn1_numa1"].uuid
    sync(tree, load("sriov"), HostPolicy(**policy, numa=False))
    assert tree["cn1_0000:81:00.0"].parent == tree["cn1"].uuid
    assert "cn1_numa1" not in tree


def test_another_writer_is_noticed(tree):
    """A difference made of what has changed since is refused; sync makes a new one."""
    facts = load("one_socket")
    sync(tree, facts, CELLS)
    current = read_current(tree, "cn1")
    change = diff(current, build_tree(facts, HostPolicy(name="cn1", reserved_cpus=1), current))
    tree.set_traits("cn1_numa0", tree["cn1_numa0"].traits | {"CUSTOM_MINE"})
    with pytest.raises(GenerationConflict):
        apply(tree, change)
    sync(tree, facts, HostPolicy(name="cn1", reserved_cpus=1))
    assert tree["cn1_numa0"].inventories["VCPU"].reserved == 1
    assert "CUSTOM_MINE" in tree["cn1_numa0"].traits


def test_an_interrupted_report_is_finished_by_the_next(tree):
    facts = load("two_sockets")

    def die(_: str) -> None:
        raise KeyboardInterrupt

    _failpoints.arm("hypervisor.apply.after_edit", die)
    try:
        with pytest.raises(KeyboardInterrupt):
            sync(tree, facts, CELLS)
    finally:
        _failpoints.disarm()
    desired, _ = sync(tree, facts, CELLS)
    assert len(tree) == len(desired.providers)


def test_what_is_in_use_is_not_taken_away(tree):
    """Half of the CPUs go while all are used: that inventory stays, everything else is brought up to date."""
    facts = load("one_socket")
    sync(tree, facts, CELLS)
    tree.allocate(str(uuid.uuid4()), {"cn1_numa0": {"VCPU": 8}})
    _, change = sync(tree, facts, HostPolicy(name="cn1", shared_cpus=range(4), traits={"CUSTOM_NEW"}))
    (refusal,) = change.refusals
    assert (refusal.resource_class, refusal.used, refusal.capacity) == ("VCPU", 8, 4)
    assert "left as it is" in refusal.text
    assert tree["cn1_numa0"].inventories["VCPU"].total == 8
    assert "CUSTOM_NEW" in tree["cn1"].traits


def test_a_reshape_is_never_done_in_passing(tree):
    facts = load("one_socket")
    sync(tree, facts, FLAT)
    tree.allocate(str(uuid.uuid4()), {"cn1": {"VCPU": 2}})
    before = tree["cn1"]
    with pytest.raises(ReshapeNeeded) as caught:
        sync(tree, facts, CELLS)
    (move,) = caught.value.moves
    assert (move.resource_class, move.used) == ("VCPU", 2)
    assert tree["cn1"] == before
    assert "cn1_numa0" not in tree


# --- with the ledger -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(database: Database) -> Iterator[tuple[PlacementTree, AllocationLedger]]:
    create_schema(database)
    with PlacementTree.open(database) as tree, AllocationLedger(database) as ledger:
        yield tree, ledger
        _failpoints.disarm()
        ledger.check()
        tree.refresh()
        tree.check()


def meanwhile(what: Callable[[], object]) -> None:
    """Let others do *what* right after the first edit of the next report."""

    def once(_: str) -> None:
        _failpoints.disarm()
        what()

    _failpoints.arm("hypervisor.apply.after_edit", once)


def test_two_hosts_that_see_a_pool_for_the_first_time_add_it_once(books):
    tree, ledger = books
    policies = [HostPolicy(name=name, disk_pool="ceph-vms") for name in ("cn1", "cn2")]
    with PlacementTree.open(ledger.database) as other:
        meanwhile(lambda: sync(other, load("storage"), policies[1]))
        sync(tree, load("storage"), policies[0])
    assert len(tree.roots()) == 3
    assert tree["cn1"].aggregates == tree["cn2"].aggregates != frozenset()


@pytest.mark.parametrize("claimed", [True, False])
def test_a_device_that_goes_is_written_to_by_others_too(books_in_a_file, claimed):
    """A guest that took it last, or another report that has the news already: neither makes the report fail."""
    tree, ledger = books_in_a_file
    sync(tree, load("sriov"), HostPolicy(name="cn1", devices=[DeviceRule(vendor="8086", product="0b60")]))
    device, guest = tree["cn1_0000:3b:00.0"], str(uuid.uuid4())
    held = {device.uuid: dict.fromkeys(device.inventories, 1)}
    with PlacementTree.open(ledger.database) as other:
        if claimed:
            meanwhile(lambda: ledger.claim(guest, held, project_id="p", user_id="u"))
        else:
            meanwhile(lambda: sync(other, load("sriov"), HostPolicy(name="cn1")))
        sync(tree, load("sriov"), HostPolicy(name="cn1", traits={"CUSTOM_NEW"}))
    assert "CUSTOM_NEW" in tree["cn1"].traits
    assert (device.name in tree) == claimed
    assert ledger.allocations(guest) == (held if claimed else {})


@pytest.mark.parametrize("claimed", [3, 4, 5, 8])
def test_a_claim_that_comes_while_cpus_go_is_told(tree, claimed):
    """An edit of the provider does not notice it: the report says how much was lost, and nothing if nothing was."""
    sync(tree, load("one_socket"), CELLS)
    tree.allocate(str(uuid.uuid4()), {"cn1_numa0": {"VCPU": 1}})
    meanwhile(lambda: tree.allocate(str(uuid.uuid4()), {"cn1_numa0": {"VCPU": claimed - 1}}))
    policy = HostPolicy(name="cn1", shared_cpus=range(4), traits={"CUSTOM_NEW"})
    _, change = sync(tree, load("one_socket"), policy)
    told = [(one.name, one.resource_class, one.used, one.capacity) for one in change.refusals]
    assert told == ([("cn1_numa0", "VCPU", claimed, 4)] if claimed > 4 else [])
    assert tree.usage("cn1_numa0")["VCPU"] == claimed
    assert not sync(tree, load("one_socket"), policy)[1]


def test_a_cell_that_others_take_away_is_put_back_with_what_hangs_below_it(tree):
    """A thread beside this one still has the old shape in its policy: the last report counts, and none fails."""
    sync(tree, load("sriov"), CELLS)
    policy = HostPolicy(name="cn1", traits={"CUSTOM_NEW"}, devices=[DeviceRule(vendor="15b3", functions={"pf"})])
    meanwhile(lambda: sync(tree, load("sriov"), FLAT))
    sync(tree, load("sriov"), policy)
    assert tree["cn1_0000:81:00.0"].parent == tree["cn1_numa1"].uuid


@pytest.fixture
def books(database: Database) -> Iterator[tuple[PlacementTree, AllocationLedger]]:
    with opened(database) as books:
        yield books


@pytest.fixture
def books_in_a_file(sqlite_database: Database) -> Iterator[tuple[PlacementTree, AllocationLedger]]:
    """Where one database stands for all."""
    with opened(sqlite_database) as books:
        yield books


def in_use(books: tuple[PlacementTree, AllocationLedger]) -> dict[str, dict[str, dict[str, int]]]:
    """A flat host of two cells of 4 CPUs, 3 of them taken by each of two instances, and half of its disk."""
    tree, ledger = books
    facts = MemoryHypervisor("cn1").facts()
    sync(tree, facts, FLAT)
    root, held = tree["cn1"].uuid, {}
    for n in range(2):
        instance = str(uuid.uuid4())
        held[instance] = {root: {"VCPU": 3, "MEMORY_MB": 6000 + n, "DISK_GB": 25}}
        ledger.claim(instance, held[instance], project_id="p", user_id="u")
    tree.refresh()
    return held


def totals_of(held: dict[str, dict[str, int]]) -> dict[str, int]:
    """Class → amount on all providers."""
    return dict(sum((collections.Counter(classes) for classes in held.values()), collections.Counter()))


def totals(ledger: AllocationLedger, instance: str) -> dict[str, int]:
    return totals_of(ledger.allocations(instance))


def plan(tree: PlacementTree, allocations, **options):
    facts = MemoryHypervisor("cn1").facts()
    current = read_current(tree, "cn1")
    return plan_reshape(diff(current, build_tree(facts, CELLS, current)), current, allocations, **options)


def test_a_host_in_use_is_reshaped_and_loses_no_allocation(books):
    """From one flat root to NUMA cells: each instance ends in one cell, its disk stays on the root."""
    tree, ledger = books
    held = in_use(books)
    before = {instance: totals(ledger, instance) for instance in held}
    generations = {instance: ledger.consumer(instance).generation for instance in held}
    root = tree["cn1"].uuid
    reshape = plan(tree, held)
    carry_out(tree, ledger, reshape, inventory=Inventory.from_placement, generations=generations)
    assert {instance: totals(ledger, instance) for instance in held} == before
    cells = [tree["cn1_numa0"].uuid, tree["cn1_numa1"].uuid]
    places = [ledger.allocations(instance).keys() - {root} for instance in held]
    assert sorted(cell for place in places for cell in place) == sorted(cells)  # one each
    _, rest = sync(tree, MemoryHypervisor("cn1").facts(), CELLS)
    assert not rest.moves
    assert set(tree["cn1"].inventories) == {"DISK_GB"}
    assert not sync(tree, MemoryHypervisor("cn1").facts(), CELLS)[1]
    holders = ledger.holders_at(root, dt.datetime.now(dt.UTC))
    assert {instance: set(classes) for instance, classes in holders.items()} == {key: {"DISK_GB"} for key in held}


@pytest.mark.parametrize("point", ["hypervisor.carry_out.before", "hypervisor.carry_out.after"])
def test_dying_in_a_reshape_loses_no_allocation(books, point):
    """Before the ledger's transaction nothing has moved, after it everything has; the next attempt gets there."""
    tree, ledger = books
    held = in_use(books)
    before = {instance: totals(ledger, instance) for instance in held}

    def die(_: str) -> None:
        raise KeyboardInterrupt

    _failpoints.arm(point, die)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tree, ledger, plan(tree, held), inventory=Inventory.from_placement)
    _failpoints.disarm()
    ledger.check()
    assert {instance: totals(ledger, instance) for instance in held} == before
    tree.refresh()
    now = {instance: ledger.allocations(instance) for instance in held}
    if any(tree["cn1"].uuid in held and "VCPU" in held[tree["cn1"].uuid] for held in now.values()):
        carry_out(tree, ledger, plan(tree, now), inventory=Inventory.from_placement)
    sync(tree, MemoryHypervisor("cn1").facts(), CELLS)
    assert {instance: totals(ledger, instance) for instance in held} == before
    assert set(tree["cn1"].inventories) == {"DISK_GB"}


def test_an_instance_that_came_meanwhile_stops_the_reshape(books):
    """It is not in the plan: nothing happens, and with it the plan is made anew."""
    tree, ledger = books
    held = in_use(books)
    reshape = plan(tree, held)
    late = str(uuid.uuid4())
    ledger.claim(late, {tree["cn1"].uuid: {"VCPU": 1}}, project_id="p", user_id="u")
    with pytest.raises(InUse):
        carry_out(tree, ledger, reshape, inventory=Inventory.from_placement)
    assert all(ledger.allocations(instance) == held[instance] for instance in held)
    tree.refresh()
    with pytest.raises(ReshapeFailed, match="7 VCPU"):
        plan(tree, held)
    carry_out(tree, ledger, plan(tree, held | {late: ledger.allocations(late)}), inventory=Inventory.from_placement)
    assert totals(ledger, late) == {"VCPU": 1}


def test_plans_that_cannot_be(books):
    """A consumer in flight, or one that fits nowhere; a pinned guest goes where it is pinned."""
    tree, ledger = books
    held = in_use(books)
    first, second = held
    with pytest.raises(ReshapeFailed, match="is being moved"):
        plan(tree, held, in_flight=frozenset({first}))
    cells = plan(tree, held).diff.moves[0].targets
    places = {first: cells[0][0], second: cells[1][0]}
    for pinned in (places, {first: cells[1][0], second: cells[0][0]}):
        after = plan(tree, held, places=pinned).allocations
        assert all("VCPU" in after[instance][place] for instance, place in pinned.items())
    big = str(uuid.uuid4())
    ledger.claim(big, {tree["cn1"].uuid: {"MEMORY_MB": 4383}}, project_id="p", user_id="u")
    tree.refresh()
    spread = plan(tree, held | {big: ledger.allocations(big)}).allocations[big]
    assert sum(classes["MEMORY_MB"] for classes in spread.values()) == 4383  # dealt to both cells
    assert len(spread) == 2


def flat_host(tree: PlacementTree, **cpus: int) -> dict[str, dict[str, dict[str, int]]]:
    """A flat host of two cells of 4 CPUs, and consumers that hold so many of them."""
    sync(tree, MemoryHypervisor("cn1").facts(), FLAT)
    held = {consumer: {tree["cn1"].uuid: {"VCPU": amount}} for consumer, amount in cpus.items()}
    for consumer, classes in held.items():
        tree.allocate(consumer, classes)
    return held


@pytest.mark.parametrize("cell", [0, 1])
@pytest.mark.parametrize("others", [{"a": 3}, {"a": 4}, {"a": 2, "b": 2, "z": 1}])
def test_a_pinned_guest_goes_where_it_is_pinned_whatever_else_is_there(tree, cell, others):
    """Bigger ones, and those that come first by name, make room."""
    held = flat_host(tree, pinned=2, **others)
    place = sorted(plan(tree, held).diff.moves[0].targets)[cell][0]
    after = plan(tree, held, places={"pinned": place, "elsewhere": "another host"}).allocations
    assert after["pinned"] == {place: {"VCPU": 2}}
    assert {name: totals_of(after[name]) for name in others} == {name: {"VCPU": cpus} for name, cpus in others.items()}


def test_a_pinned_guest_that_has_no_room_where_it_is_pinned_stops_the_reshape(tree):
    """It is booked nowhere else without a word; nor is one whose place is misspelt."""
    held = flat_host(tree, first=3, second=2)
    (place, _, _), _ = plan(tree, held).diff.moves[0].targets
    with pytest.raises(ReshapeFailed, match=rf"second belongs on {place}.* 2 VCPU \(1 free\)"):
        plan(tree, held, places={"first": place, "second": place})
    with pytest.raises(InvalidArgument, match="of consumer first") as caught:
        plan(tree, held, places={"first": "cn1_numa0"})
    assert (caught.value.field, caught.value.value) == ("places", "cn1_numa0")


def test_cpus_and_memory_of_a_guest_come_from_one_cell_though_others_lack_one_of_them(tree):
    """A cell without memory, one without CPUs, and one that has both."""
    facts = load("odd_cells")
    sync(tree, facts, FLAT)
    held = {"guest": {tree["cn1"].uuid: {"VCPU": 2, "MEMORY_MB": 1024}}}
    tree.allocate("guest", held["guest"])
    current = read_current(tree, "cn1")
    desired = build_tree(facts, CELLS, current)
    after = plan_reshape(diff(current, desired), current, held).allocations
    assert after["guest"] == {desired["cn1_numa0"].uuid: {"VCPU": 2, "MEMORY_MB": 1024}}
