"""Emptying hosts: plans that are feasible step by step, and carrying them out with failures in between."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from cloudcore.errors import FencingRequired, InvalidArgument, InvalidRequest, ProviderNotFound, UnsupportedFeature
from cloudcore.placement import AllocationLedger, DrainPlan, HostGroup, PlacementTree, ResourceRequest, plan_drain
from tests.placement.ledger_worlds import overdue, uuid_of
from tests.placement.selector_worlds import Cloud, cell_of

OWNER = {"project_id": "p", "user_id": "u"}


@pytest.fixture
def full(cloud: Cloud) -> Cloud:
    """Two cells of three hosts; each host holds four guests at most, ten guests are there."""
    cloud.add_hosts(2, 3)
    cloud.select(10)
    cloud.tree.refresh()
    return cloud


def guests_on(cloud: Cloud, name: str) -> set[str]:
    return {state.consumer for state in cloud.ledger.consumers() if cloud.host_of(state.consumer) == name}


def busiest(cloud: Cloud) -> str:
    counts = Counter(cloud.host_of(state.consumer) for state in cloud.ledger.consumers())
    return min(counts, key=lambda name: (-counts[name], name))


def state_of(cloud: Cloud) -> object:
    return [cloud.ledger.consumers(), {host.name: cloud.tree.usage(host) for host in cloud.tree}]


def test_a_plan_claims_nothing_and_each_step_is_feasible_when_its_turn_comes(full: Cloud) -> None:
    host = busiest(full)
    before, guests = state_of(full), guests_on(full, host)
    plan = plan_drain(full.tree, [host])
    assert state_of(full) == before
    assert {move.consumer for move in plan.moves} == guests
    assert plan.stuck == ()
    for move in plan.moves:
        assert move.source == host != move.destination
        record = full.ledger.begin_move(
            move.consumer, move.migration, move.allocations, kind="live", generation=move.generation
        )
        full.ledger.confirm_move(record.migration)
    assert guests_on(full, host) == set()


def test_a_plan_is_carried_out_with_progress(full: Cloud) -> None:
    host = busiest(full)
    guests = guests_on(full, host)
    plan = DrainPlan.from_json(plan_drain(full.tree, [host]).to_json())
    seen, carried = [], []

    def carry_out(move, record) -> None:
        assert full.ledger.allocations(record.migration) == record.source
        assert full.ledger.allocations(move.consumer) == move.allocations
        carried.append(move.consumer)

    outcomes = list(plan.apply(full.ledger, carry_out, on_progress=lambda *told: seen.append(told)))
    assert [outcome.state for outcome in outcomes] == ["moved"] * len(guests)
    assert set(carried) == guests
    assert seen == [(outcome, n, len(guests)) for n, outcome in enumerate(outcomes, 1)]
    assert guests_on(full, host) == set()
    again = list(plan.apply(full.ledger, carry_out))
    assert [outcome.state for outcome in again] == ["moved"] * len(guests)
    assert len(carried) == len(guests)


class Killed(BaseException):
    """The process ends here."""


def test_a_plan_goes_on_where_it_was_broken_off(full: Cloud) -> None:
    """Wherever it is killed, each guest is carried at most once more, and ends on one host."""
    host = busiest(full)
    guests = guests_on(full, host)
    plan = plan_drain(full.tree, [host])
    carried: Counter[str] = Counter()
    for deaths in range(len(guests)):

        def carry_out(move, record, deaths=deaths) -> None:
            carried[move.consumer] += 1
            if sum(carried.values()) == 2 * deaths + 1:
                raise Killed

        with pytest.raises(Killed):
            list(plan.apply(full.ledger, carry_out))
        full.ledger.check()
    outcomes = list(plan.apply(full.ledger, lambda move, record: carried.update([move.consumer])))
    assert [outcome.state for outcome in outcomes] == ["moved"] * len(guests)
    assert set(carried) == guests
    assert max(carried.values()) <= len(guests)
    assert guests_on(full, host) == set()


def test_a_plan_is_applied_again_when_its_operations_are_pruned(full: Cloud) -> None:
    """The records of moves stay: what ended is passed over, what was reverted is told, as if nothing was pruned."""
    host = busiest(full)
    plan = plan_drain(full.tree, [host])
    failing = plan.moves[0].consumer

    def carry_out(move, record) -> None:
        if move.consumer == failing:
            raise RuntimeError("no route to the host")

    first = [outcome.state for outcome in plan.apply(full.ledger, carry_out)]
    assert first == ["failed"] + ["moved"] * (len(plan.moves) - 1)
    full.database.prune_operations(datetime.now(UTC) + timedelta(days=1))
    carried: list[str] = []
    again = plan.apply(full.ledger, lambda move, record: carried.append(move.consumer))
    assert ([outcome.state for outcome in again], carried) == (first, [])


def test_a_guest_whose_new_claim_lapses_has_changed(full: Cloud) -> None:
    """It was released, and came again for a while: of the generation that the plan has seen."""
    host = busiest(full)
    plan = plan_drain(full.tree, [host])
    first, state = plan.moves[0], full.ledger.consumer(plan.moves[0].consumer)
    full.ledger.release(first.consumer)
    full.ledger.claim(first.consumer, state, expires_in=100, **OWNER)
    overdue(full.database, first.consumer)
    outcomes = [outcome.state for outcome in plan.apply(full.ledger, lambda *_: None)]
    assert outcomes == ["changed"] + ["moved"] * (len(plan.moves) - 1)


def test_dead_hosts_are_left_with_a_proof(full: Cloud) -> None:
    host = busiest(full)
    plan = plan_drain(full.tree, [host], kind="evacuation")
    before = state_of(full)
    with pytest.raises(FencingRequired, match=host):
        next(plan.apply(full.ledger, lambda *_: None))
    for proof in ("", "x" * 2001, 5, "half a pair \ud800"):
        with pytest.raises(InvalidArgument, match="proof"):
            next(plan.apply(full.ledger, lambda *_: pytest.fail("a guest is moved"), proof=proof))
    assert state_of(full) == before
    outcomes = list(plan.apply(full.ledger, lambda *_: None, proof="powered off by the operator"))
    assert [outcome.state for outcome in outcomes] == ["moved"] * len(plan.moves)
    assert guests_on(full, host) == set()
    assert "powered off" in full.ledger.move(plan.moves[0].migration).story[-1]


def test_nothing_to_evacuate_needs_no_proof(full: Cloud) -> None:
    host = busiest(full)
    list(plan_drain(full.tree, [host], kind="live").apply(full.ledger, lambda *_: None))
    plan = plan_drain(full.tree, [host], kind="evacuation")
    assert not plan.moves
    assert list(plan.apply(full.ledger, lambda *_: None)) == []


def test_what_fails_is_reverted_and_the_rest_goes_on(full: Cloud) -> None:
    hosts = sorted({full.host_of(state.consumer) for state in full.ledger.consumers()})[:2]
    plan = plan_drain(full.tree, hosts)
    bad, gone, changed = (move.consumer for move in plan.moves[:3])
    full.ledger.release(gone)
    full.ledger.replace({changed: full.ledger.allocations(changed)})

    def carry_out(move, record) -> None:
        if move.consumer == bad:
            raise RuntimeError("no route to the host")

    outcomes = {outcome.move.consumer: outcome for outcome in plan.apply(full.ledger, carry_out)}
    assert (outcomes[bad].state, outcomes[gone].state, outcomes[changed].state) == ("failed", "gone", "changed")
    assert "no route" in outcomes[bad].error
    assert guests_on(full, hosts[0]) | guests_on(full, hosts[1]) == {bad, changed}
    rest = plan_drain(full.tree, hosts)
    assert {outcome.state for outcome in rest.apply(full.ledger, lambda *_: None)} == {"moved"}
    assert guests_on(full, hosts[0]) | guests_on(full, hosts[1]) == set()


def test_a_destination_that_is_lost_to_somebody_refuses(full: Cloud) -> None:
    host = busiest(full)
    plan = plan_drain(full.tree, [host])
    first = plan.moves[0]
    for provider in full.tree.subtree(first.root):
        free = {n: i.capacity - full.tree.usage(provider)[n] for n, i in provider.inventories.items() if n == "VCPU"}
        if free.get("VCPU"):
            full.ledger.claim(uuid_of(provider.name), {provider.uuid: free}, **OWNER)
    outcomes = list(plan.apply(full.ledger, lambda *_: None))
    assert [outcome.move for outcome in outcomes] == list(plan.moves)
    for outcome in outcomes:
        assert outcome.state == ("refused" if outcome.move.root == first.root else "moved")


def test_what_cannot_leave_is_named_with_the_reason(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    cloud.select(8)
    cloud.tree.refresh()
    host = busiest(cloud)
    plan = plan_drain(cloud.tree, [host])
    assert plan.moves == ()
    assert len(plan.stuck) == 4
    assert all(stuck.source == host and stuck.refusals and "VCPU" in stuck.reason for stuck in plan.stuck)
    everything = plan_drain(cloud.tree, [root.name for root in cloud.tree.roots()])
    assert len(everything.stuck) == 8
    assert everything.moves == ()


def test_one_host_may_be_named_by_itself(full: Cloud) -> None:
    host = busiest(full)
    guests = guests_on(full, host)
    for named in (host, full.tree[host], full.tree[host].uuid):
        assert {move.consumer for move in plan_drain(full.tree, named).moves} == guests
    with pytest.raises(ProviderNotFound, match="'nowhere'"):
        plan_drain(full.tree, "nowhere")


def test_a_reason_speaks_of_what_is_held_and_not_of_groups_that_nobody_wrote(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    cloud.select(8)
    cloud.tree.refresh()
    host = busiest(cloud)
    assert plan_drain(cloud.tree, host).stuck
    for stuck in plan_drain(cloud.tree, host).stuck:
        assert "group" not in stuck.reason
        assert f", for what it holds of {host}-n" in stuck.reason
    asked = ResourceRequest.from_query("resources_boot=VCPU:5")
    for stuck in plan_drain(cloud.tree, host, request_of=lambda _: asked).stuck:
        assert "for group _boot" in stuck.reason, "that one the caller wrote"
    unheard = ResourceRequest.from_query("resources=PGPU:1")
    for stuck in plan_drain(cloud.tree, host, request_of=lambda _: unheard).stuck:
        assert stuck.reason == "no host takes it: 1 × no_inventory PGPU"
    for stuck in plan_drain(cloud.tree, [root.name for root in cloud.tree.roots()]).stuck:
        assert stuck.reason.startswith("no host may take it: ")


def test_pending_claims_and_moves_stay(full: Cloud) -> None:
    host = busiest(full)
    first, second = sorted(guests_on(full, host))[:2]
    destination = plan_drain(full.tree, [host]).moves[0].allocations
    full.ledger.begin_move(first, uuid_of("migration"), destination)
    numa = next(iter(full.ledger.allocations(second)))
    full.ledger.release(second)
    amounts = {"MEMORY_MB": 64} if "-n" in full.tree[numa].name else {"DISK_GB": 1}
    full.ledger.claim(second, {numa: amounts}, expires_in=900, **OWNER)
    plan = plan_drain(full.tree, [host])
    reasons = {stuck.consumer: stuck.reason for stuck in plan.stuck}
    assert reasons.keys() == {uuid_of("migration"), second}
    assert "migration of instance" in reasons[uuid_of("migration")]
    assert "pending" in reasons[second]


def test_cells_and_switched_off_hosts_are_respected(full: Cloud) -> None:
    host = busiest(full)
    cell = cell_of(full.tree[host])
    plan = plan_drain(full.tree, [host], cell_of=cell_of)
    assert plan.moves
    assert {cell_of(full.tree.by_uuid(move.root)) for move in plan.moves} == {cell}
    others = [root.name for root in full.tree.roots() if cell_of(root) == cell and root.name != host]
    plan = plan_drain(full.tree, [host], cell_of=cell_of, may_take=lambda root: root.name == others[0])
    assert {move.destination for move in plan.moves} <= {others[0]}
    for name in others:
        full.tree.update(name, traits=["COMPUTE_STATUS_DISABLED"])
    assert plan_drain(full.tree, [host], cell_of=cell_of).moves == ()


def test_members_of_a_group_stay_apart(cloud: Cloud) -> None:
    cloud.add_hosts(1, 4)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    cloud.select(3, group=group)
    cloud.tree.refresh()
    hosts = {cloud.host_of(state.consumer) for state in cloud.ledger.consumers()}
    drained = min(hosts)
    plan = plan_drain(cloud.tree, [drained])
    assert {move.destination for move in plan.moves} == {root.name for root in cloud.tree.roots()} - hosts
    assert [outcome.state for outcome in plan.apply(cloud.ledger, lambda *_: None)] == ["moved"]
    both = plan_drain(cloud.tree, sorted(hosts - {drained}))
    assert len(both.moves) == 1
    assert len(both.stuck) == 1


def test_a_member_that_came_meanwhile_refuses_the_move(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    cloud.select(1, group=group)
    cloud.tree.refresh()
    plan = plan_drain(cloud.tree, [busiest(cloud)])
    cloud.select(1, group=group)
    assert [outcome.state for outcome in plan.apply(cloud.ledger, lambda *_: None)] == ["refused"]


def test_a_pool_that_is_full_stays_in_use(ledger_database) -> None:
    """The disk stays where it is: a destination on the same pool needs none of the pool, even if nothing is left."""
    aggregate = uuid_of("aggregate")
    with PlacementTree.open(ledger_database) as tree:
        pool = tree.add("pool", inventory={"DISK_GB": 20}, traits={"MISC_SHARES_VIA_AGGREGATE"}, aggregates=[aggregate])
        hosts = [tree.add(f"h{n}", inventory={"VCPU": 4}, aggregates=[aggregate]) for n in range(2)]
        tree.add("apart", inventory={"VCPU": 64})
        ledger = AllocationLedger(ledger_database)
        for number in range(2):
            held = {hosts[0].uuid: {"VCPU": 2}, pool.uuid: {"DISK_GB": 10}}
            ledger.claim(uuid_of(f"guest{number}"), held, **OWNER)
        plan = plan_drain(tree, ["h0"])
        assert [(move.destination, move.shared) for move in plan.moves] == [("h1", (pool.uuid,))] * 2
        assert [outcome.state for outcome in plan.apply(ledger, lambda *_: None)] == ["moved"] * 2
        assert ledger.usages(provider=pool.uuid) == {"DISK_GB": 20}
        assert ledger.usages(provider=hosts[1].uuid) == {"VCPU": 4}
        ledger.check()


def test_the_request_of_a_flavor_goes_before_the_shape(full: Cloud) -> None:
    host = busiest(full)
    never = ResourceRequest.from_query("resources=PGPU:1")
    plan = plan_drain(full.tree, [host], request_of=lambda state: never, kind="cold")
    assert plan.moves == ()
    assert {tuple(stuck.refusals) for stuck in plan.stuck} == {("no_inventory PGPU",)}


def test_random_clouds_are_drained_as_planned(cloud: Cloud) -> None:
    rng = random.Random(11)
    cloud.add_hosts(2, 4)
    cloud.select(14)
    for round_ in range(4):
        names = rng.sample([root.name for root in cloud.tree.roots()], 2)
        plan = plan_drain(cloud.tree, names)
        outcomes = list(plan.apply(cloud.ledger, lambda *_: None))
        assert {outcome.state for outcome in outcomes} == {"moved"}, round_
        left = {stuck.consumer for stuck in plan.stuck}
        assert guests_on(cloud, names[0]) | guests_on(cloud, names[1]) == left


def test_wrong_arguments(cloud: Cloud) -> None:
    cloud.add_hosts(1, 1)
    with pytest.raises(ProviderNotFound):
        plan_drain(cloud.tree, ["nowhere"])
    for hosts, options in (
        ([], {}),
        (None, {}),
        (5, {}),
        (["c0-r0-h0"], {"kind": "x"}),
        (["c0-r0-h0"], {"plan_uuid": "x"}),
    ):
        with pytest.raises(InvalidRequest):
            plan_drain(cloud.tree, hosts, **options)
    with pytest.raises(UnsupportedFeature):
        plan_drain(PlacementTree(), ["c0"])
    plan = {"uuid": uuid_of("plan"), "kind": "cold", "moves": [], "stuck": []}
    assert DrainPlan.from_json(json.dumps(plan)).moves == ()
    move = dict.fromkeys(("consumer", "migration", "source", "destination", "root"), uuid_of("x")) | {"generation": 1}
    of_nothing = {**plan, "moves": [{**move, "allocations": {uuid_of("h"): {"VCPU": -1}}}]}
    for text in ("", "{}", "[]", '{"moves": 1}', "[" * 100_000, json.dumps(of_nothing)):
        with pytest.raises(InvalidRequest):
            DrainPlan.from_json(text)
