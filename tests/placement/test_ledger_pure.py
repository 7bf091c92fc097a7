"""The ledger's decisions without a database: what a rewrite needs, why an inventory refuses, how a move steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import CapacityExceeded, FencingRequired, InvalidTransition, InventoryNotFound, UnitViolation
from cloudcore.placement.rules.audit import Finding, FindingKind, RepairAction, plan_repairs
from cloudcore.placement.rules.claims import InventoryRow, Take, plan_rewrite, refusal
from cloudcore.placement.rules.moves import (
    TRANSITIONS,
    Move,
    MoveEvent,
    MoveKind,
    MoveState,
    decide,
    held_by_migration,
)

keys = st.tuples(st.integers(1, 4), st.sampled_from(["DISK_GB", "VCPU"]))
rows = st.dictionaries(keys, st.integers(1, 9), max_size=4)
worlds = st.dictionaries(st.sampled_from("abc"), rows, max_size=3)


def sums(world) -> dict:
    total: dict = {}
    for held in world.values():
        for key, amount in held.items():
            total[key] = total.get(key, 0) + amount
    return total


@given(before=worlds, after=worlds)
def test_rewrite_carried_out_gives_what_was_asked(before, after):
    """Its rows turn what is held into what shall be; its deltas turn the sums alike, in lock order."""
    plan = plan_rewrite(before, after)
    held = {consumer: dict(before.get(consumer, {})) for consumer in after}
    for consumer, gone in plan.removed.items():
        for key in gone:
            del held[consumer][key]
    for consumer, written in plan.written.items():
        held[consumer].update(written)
    assert held == after
    concerned = {consumer: before.get(consumer, {}) for consumer in after}
    total = sums(concerned)
    for take in plan.takes:
        total[take.key] = total.get(take.key, 0) + take.delta
    assert {key: n for key, n in total.items() if n} == sums(after)
    assert [take.key for take in plan.takes] == sorted({take.key for take in plan.takes})


@given(held=rows)
def test_what_only_changes_hands_asks_nothing(held):
    assert plan_rewrite({"a": held}, {"a": {}, "b": held}).takes == ()


@given(take_amounts=st.lists(st.integers(1, 60), min_size=1, max_size=3), step=st.integers(1, 7))
def test_step_rule_by_the_greatest_common_divisor(take_amounts, step):
    """Checking the divisor once is checking each amount."""
    plan = plan_rewrite({}, {str(i): {(1, "X"): amount} for i, amount in enumerate(take_amounts)})
    (take,) = plan.takes
    row = InventoryRow(min_unit=1, max_unit=100, step_size=step, capacity=1000, used=0)
    assert (refusal("p", take, row) is None) == all(amount % step == 0 for amount in take_amounts)
    assert (take.smallest, take.largest) == (min(take_amounts), max(take_amounts))


@given(used=st.integers(0, 20), capacity=st.integers(0, 20), delta=st.integers(-20, 20))
def test_over_full_may_shrink_and_never_grow(used, capacity, delta):
    take = Take(key=(1, "X"), delta=delta)
    row = InventoryRow(min_unit=1, max_unit=100, step_size=1, capacity=capacity, used=used)
    refused = refusal("p", take, row)
    assert (refused is None) == (delta <= 0 or used + delta <= capacity)
    if refused is not None:
        assert isinstance(refused, CapacityExceeded)
        assert (refused.asked, refused.used, refused.capacity) == (delta, used, capacity)


def test_missing_inventory_and_units_come_before_capacity():
    take = Take(key=(1, "X"), delta=50, smallest=50, largest=50, divisor=50)
    row = InventoryRow(min_unit=1, max_unit=10, step_size=1, capacity=1, used=0)
    assert isinstance(refusal("p", take, None), InventoryNotFound)
    assert isinstance(refusal("p", take, row), UnitViolation)


def move(kind=MoveKind.COLD, state=MoveState.HELD, **facts) -> Move:
    holdings = {"source": {"s": {"VCPU": 4}}, "destination": {"d": {"VCPU": 4}}, "asked": {"d": {"VCPU": 4}}}
    return Move(migration="m", instance="i", kind=kind, state=state, **{**holdings, **facts})


@pytest.mark.parametrize("kind", list(MoveKind))
@pytest.mark.parametrize("state", list(MoveState))
@pytest.mark.parametrize("event", list(MoveEvent))
def test_every_pair_of_state_and_event_has_one_outcome(kind, state, event):
    """A step of the table, or a refusal that names both; final states are never left."""
    one = move(kind, state)
    if (step := TRANSITIONS[kind].get((state, event))) is None:
        with pytest.raises(InvalidTransition) as refused:
            decide(one, event, proof="seen")
        assert (refused.value.state, refused.value.event) == (str(state), str(event))
        return
    assert decide(one, event, proof="seen") == step
    assert not (state.final and (step.changes or step.state is not state))
    if step.needs_proof:
        with pytest.raises(FencingRequired):
            decide(one, event)


amounts = st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB"]), st.integers(1, 9), min_size=1)
sides = st.dictionaries(st.sampled_from("xyz"), amounts, min_size=1)


@given(source=sides, destination=sides, overlap=st.sampled_from(["sum", "maximum"]))
def test_both_halves_together_hold_the_sum_or_the_maximum(source, destination, overlap):
    held = held_by_migration(move(source=source, destination=destination, overlap=overlap))
    for provider in source.keys() | destination.keys():
        for name in ("VCPU", "MEMORY_MB"):
            old = source.get(provider, {}).get(name, 0)
            new = destination.get(provider, {}).get(name, 0)
            together = held.get(provider, {}).get(name, 0) + new
            assert together == (old + new if overlap == "sum" else max(old, new))


def test_repairs_come_in_a_safe_order():
    """Rows go first; counters are set to what is left."""
    kinds = [FindingKind.DRIFTED_USED, FindingKind.OVER_CAPACITY, FindingKind.ORPHANED_ALLOCATION]
    plan = plan_repairs([Finding(kind=kind, subject="s", text="t") for kind in kinds])
    assert [repair.action for repair in plan] == [RepairAction.DELETE_ROWS, RepairAction.NONE, RepairAction.RECOUNT]
