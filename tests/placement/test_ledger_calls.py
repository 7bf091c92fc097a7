"""What each call of the ledger does and refuses, on all three databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import sqlalchemy as sa

from cloudcore.errors import (
    AlreadyExists,
    CapacityExceeded,
    ConsumerNotFound,
    ConsumerRetired,
    GenerationConflict,
    InUse,
    InvalidAllocation,
    InvalidArgument,
    InvalidTransition,
    InvariantViolated,
    InventoryNotFound,
    OperationMismatch,
    ProviderNotFound,
    UnitViolation,
    UnsupportedFeature,
)
from cloudcore.placement import AllocationLedger, PlacementTree, tables
from cloudcore.placement.ledger.queries import Usage
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.rules.audit import FindingKind, RepairAction
from tests.placement.ledger_worlds import add_providers, overdue, resize, used, uuid_of

OWNER = {"project_id": "project", "user_id": "user"}
A, B, C, M = (uuid_of(name) for name in ("consumer-a", "consumer-b", "consumer-c", "migration"))


@attrs.define
class World:
    ledger: AllocationLedger
    h1: str
    h2: str

    def claim(self, consumer=A, amounts=None, host=None, **options):
        return self.ledger.claim(consumer, {host or self.h1: amounts or {"VCPU": 4}}, **OWNER, **options)


@pytest.fixture
def world(ledger_database, request):
    inventory = {"VCPU": 8, "MEMORY_MB": {"total": 1024, "min_unit": 64, "max_unit": 512, "step_size": 64}}
    names = add_providers(ledger_database, {"h1": inventory, "h2": inventory})
    ledger = AllocationLedger(ledger_database, group_commit=getattr(request, "param", 0))
    yield World(ledger=ledger, h1=names["h1"], h2=names["h2"])
    ledger.check()


# ---- claims


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_claim_takes_all_it_asks(world):
    held = world.ledger.claim(A, {world.h1: {"VCPU": 4}, world.h2: {"MEMORY_MB": 128}}, **OWNER)
    assert (held.generation, held.repeated) == (1, False)
    assert world.ledger.allocations(A) == held.allocations
    state = world.ledger.consumer(A)
    assert (state.project_id, state.user_id, state.consumer_type) == ("project", "user", "INSTANCE")
    assert world.ledger.usages(provider=world.h1) == {"VCPU": 4, "MEMORY_MB": 0}


def test_claim_takes_anything_that_says_its_allocations(world):
    @attrs.frozen
    class Chosen:
        allocations: dict

    world.ledger.claim(A, Chosen({world.h1: {"VCPU": 1}}), **OWNER)
    assert world.ledger.allocations(A) == {world.h1: {"VCPU": 1}}


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_a_name_where_a_uuid_belongs_is_told_who_knows_names(world):
    calls = [
        lambda name: world.ledger.holders(name),
        lambda name: world.ledger.usages(provider=name),
        lambda name: world.ledger.holders_at(name, datetime.now(UTC)),
        lambda name: world.ledger.claim(A, {name: {"VCPU": 1}}, **OWNER),
        lambda name: world.ledger.begin_move(A, M, {name: {"VCPU": 1}}),
        lambda name: world.ledger.reshape({name: {"VCPU": 8}}, {}),
    ]
    for call in calls:
        with pytest.raises(InvalidAllocation, match=r"'hv03' is not a UUID; a tree knows names: tree\['hv03'\]\.uuid"):
            call("hv03")
        with pytest.raises(InvalidAllocation) as caught:
            call(7)
        assert "tree[" not in str(caught.value)


def test_a_whole_search_is_no_claim(world):
    tree = PlacementTree.open(world.ledger.database)
    search = tree.candidates("resources=VCPU:4")
    with pytest.raises(InvalidAllocation, match=r"a search, not a candidate: claim its \.first\(\)"):
        world.ledger.claim(A, search, **OWNER)
    world.ledger.claim(A, search.first(), **OWNER)


def test_refusal_names_provider_class_and_numbers(world):
    """All or nothing: what fitted elsewhere is not taken either."""
    world.claim(A, {"VCPU": 6})
    with pytest.raises(CapacityExceeded) as refused:
        world.ledger.claim(B, {world.h1: {"VCPU": 3}, world.h2: {"VCPU": 1}}, **OWNER)
    error = refused.value
    assert (error.provider, error.resource_class) == (world.h1, "VCPU")
    assert (error.asked, error.used, error.capacity) == (3, 6, 8)
    assert world.ledger.consumer(B) is None
    assert world.ledger.usages(provider=world.h2)["VCPU"] == 0


@pytest.mark.parametrize(
    ("amount", "rule", "bound"), [(32, "min_unit", 64), (576, "max_unit", 512), (100, "step_size", 64)]
)
def test_unit_rules_are_part_of_the_claim(world, amount, rule, bound):
    with pytest.raises(UnitViolation) as refused:
        world.claim(A, {"VCPU": 1, "MEMORY_MB": amount})
    assert (refused.value.rule, refused.value.bound, refused.value.asked) == (rule, bound, amount)
    assert used(world.ledger.database, world.h1, "VCPU") == 0


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_unknown_provider_and_class_are_told_apart(world):
    with pytest.raises(ProviderNotFound, match=uuid_of("nowhere")):
        world.claim(host=uuid_of("nowhere"))
    with pytest.raises(InventoryNotFound) as refused:
        world.claim(amounts={"PGPU": 1})
    assert (refused.value.provider, refused.value.resource_class) == (world.h1, "PGPU")


MALFORMED = [
    {},
    {"not-a-uuid": {"VCPU": 1}},
    {uuid_of("h1"): {}},
    {uuid_of("h1"): {"VCPU": 0}},
    {uuid_of("h1"): {"VCPU": -1}},
    {uuid_of("h1"): {"VCPU": True}},
    {uuid_of("h1"): {"VCPU": 1.5}},
    {uuid_of("h1"): {"VCPU": 2**31}},
    {uuid_of("h1"): {"vcpu": 1}},
    {uuid_of("h1"): {"VCPU": 1}, uuid_of("h1").upper(): {"VCPU": 1}},
    None,
    7,
]


def test_malformed_claims_change_nothing(world):
    for wanted in MALFORMED:
        with pytest.raises(InvalidAllocation):
            world.ledger.claim(A, wanted, **OWNER)
    assert world.ledger.consumer(A) is None


def test_malformed_arguments_change_nothing(world):
    for options in (
        {"project_id": ""},
        {"project_id": "p" * 256},
        {"consumer_type": "small"},
        {"generation": -1},
        {"expires_in": 0},
        {"generation": 1, "expires_in": 5},
        {"operation_id": ""},
        {"operation_id": "o" * 65},
    ):
        with pytest.raises(InvalidArgument):
            world.ledger.claim(A, {world.h1: {"VCPU": 1}}, **{**OWNER, **options})
    for consumer in ("", "not-a-uuid", None):
        with pytest.raises(InvalidArgument):
            world.ledger.claim(consumer, {world.h1: {"VCPU": 1}}, **OWNER)
    assert world.ledger.consumer(A) is None


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_claim_of_a_consumer_that_holds_something_is_no_silent_doubling(world):
    world.claim()
    with pytest.raises(AlreadyExists):
        world.claim(host=world.h2)
    assert world.ledger.allocations(A) == {world.h1: {"VCPU": 4}}


def test_claim_at_a_generation_replaces(world):
    world.claim()
    held = world.claim(A, {"VCPU": 8}, generation=1)
    assert (held.generation, used(world.ledger.database, world.h1, "VCPU")) == (2, 8)
    with pytest.raises(GenerationConflict) as refused:
        world.claim(A, {"VCPU": 1}, generation=1)
    assert (refused.value.expected, refused.value.found) == (1, 2)
    with pytest.raises(GenerationConflict):
        world.claim(B, {"VCPU": 1}, generation=3)


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_repeated_operation_takes_effect_once(world):
    first = world.claim(operation_id="once")
    again = world.claim(operation_id="once")
    assert (first.repeated, again.repeated) == (False, True)
    assert again.allocations == first.allocations
    assert used(world.ledger.database, world.h1, "VCPU") == 4
    with pytest.raises(OperationMismatch):
        world.claim(B, operation_id="once")
    with pytest.raises(OperationMismatch):
        world.ledger.release(A, operation_id="once")


def test_repeat_answers_even_when_the_host_is_full_by_now(world):
    """The claim that filled the host, repeated after a lost answer, is no refusal."""
    world.claim(A, {"VCPU": 8}, operation_id="filled")
    assert world.claim(A, {"VCPU": 8}, operation_id="filled").repeated


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_refused_operation_may_be_tried_again(world):
    """A refusal is no effect: the id stays free."""
    world.claim(A, {"VCPU": 8})
    with pytest.raises(CapacityExceeded):
        world.claim(B, operation_id="later")
    world.ledger.release(A)
    assert not world.claim(B, operation_id="later").repeated


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_provider_made_anew_under_its_uuid_is_found(world):
    """What the ledger remembers of providers is a hint."""
    world.claim()
    world.ledger.release(A)
    with world.ledger.database.write() as connection:
        for table in (tables.inventories, tables.resource_providers):
            connection.execute(sa.delete(table))
    add_providers(world.ledger.database, {"h1": {"VCPU": 2}})
    assert world.claim(B, {"VCPU": 2}).generation == 1


# ---- release, replace, swap


def test_release_frees_and_a_second_one_says_so(world):
    world.claim()
    assert world.ledger.release(A, operation_id="r").allocations == {}
    assert world.ledger.release(A, operation_id="r").repeated
    with pytest.raises(ConsumerNotFound):
        world.ledger.release(A)
    assert world.claim().generation == 1, "a released consumer may come back"


def test_retired_consumer_never_comes_back(world):
    """A late claim or reschedule for a deleted instance is refused."""
    world.claim()
    world.ledger.release(A, forever=True)
    world.ledger.release(A, forever=True)
    world.ledger.release(B, forever=True)
    for consumer in (A, B):
        with pytest.raises(ConsumerRetired):
            world.claim(consumer)
        with pytest.raises(ConsumerRetired):
            world.ledger.replace({consumer: {world.h1: {"VCPU": 1}}}, **OWNER)
    with pytest.raises(ConsumerRetired):
        world.ledger.swap(A, {world.h1: {"VCPU": 4}}, {world.h2: {"VCPU": 4}})
    with pytest.raises(ConsumerNotFound):
        world.ledger.release(A)


def test_replace_writes_several_consumers_at_once(world):
    """Only the net change counts: a full host can change hands."""
    world.claim(A, {"VCPU": 8})
    result = world.ledger.replace({A: {}, B: {world.h1: {"VCPU": 5}}, C: {world.h1: {"VCPU": 3}}}, **OWNER)
    assert [result[c].generation for c in (A, B, C)] == [0, 1, 1]
    assert used(world.ledger.database, world.h1, "VCPU") == 8
    with pytest.raises(CapacityExceeded):
        world.ledger.replace({B: {world.h1: {"VCPU": 6}}, C: {world.h1: {"VCPU": 3}}})
    assert world.ledger.allocations(B) == {world.h1: {"VCPU": 5}}


def test_replace_checks_generations_and_expectations(world):
    world.claim()
    with pytest.raises(GenerationConflict):
        world.ledger.replace({A: {world.h2: {"VCPU": 1}}}, generations={A: 7})
    with pytest.raises(AlreadyExists):
        world.ledger.replace({A: {world.h2: {"VCPU": 1}}}, generations={A: 0})
    with pytest.raises(GenerationConflict, match="expected"):
        world.ledger.replace({A: {world.h2: {"VCPU": 1}}}, expected={A: {world.h1: {"VCPU": 1}}})
    world.ledger.replace({A: {world.h2: {"VCPU": 1}}}, expected={A: {world.h1: {"VCPU": 4}}}, generations={A: 1})
    assert world.ledger.allocations(A) == {world.h2: {"VCPU": 1}}


def test_replace_refuses_nonsense(world):
    for wanted, options in (
        ({}, {}),
        ({A: {world.h1: {"VCPU": 1}}}, {}),
        ({A: {world.h1: {"VCPU": 1}}}, {"project_id": "p"}),
        ({A: {}}, {"generations": {B: 1}}),
        ({A: {}, A.upper(): {}}, {}),
    ):
        with pytest.raises(InvalidAllocation):
            world.ledger.replace(wanted, **options)
    world.ledger.replace({A: {}})  # nothing held, nothing to hold: nothing to do


def test_swap_gives_up_the_old_iff_the_new_is_granted(world):
    world.claim(B, {"VCPU": 8}, host=world.h2)
    world.claim(A)
    with pytest.raises(CapacityExceeded):
        world.ledger.swap(A, {world.h1: {"VCPU": 4}}, {world.h2: {"VCPU": 1}})
    with pytest.raises(GenerationConflict):
        world.ledger.swap(A, {world.h1: {"VCPU": 3}}, {world.h1: {"VCPU": 1}})
    assert world.ledger.allocations(A) == {world.h1: {"VCPU": 4}}
    world.ledger.swap(A, {world.h1: {"VCPU": 4}}, {world.h1: {"VCPU": 1}})
    with pytest.raises(ConsumerNotFound):
        world.ledger.swap(C, {world.h1: {"VCPU": 4}}, {world.h1: {"VCPU": 1}})


def test_over_full_provider_may_empty_or_change_hands_but_not_grow(world):
    """An inventory shrunk below its use: usage falls, stays or passes on; it never grows."""
    world.claim(A, {"VCPU": 8})
    resize(world.ledger.database, world.h1, "VCPU", 4)
    world.ledger.replace({A: {}, B: {world.h1: {"VCPU": 8}}}, **OWNER)
    world.ledger.begin_move(B, M, {world.h2: {"VCPU": 8}})
    world.ledger.revert_move(M)
    with pytest.raises(CapacityExceeded):
        world.ledger.replace({B: {world.h1: {"VCPU": 9}}})
    with pytest.raises(CapacityExceeded):
        world.claim(C, {"VCPU": 1})
    world.ledger.replace({B: {world.h1: {"VCPU": 6}}})
    with pytest.raises(CapacityExceeded):
        world.ledger.replace({B: {world.h1: {"VCPU": 7}}})
    world.ledger.release(B)
    world.claim(C, {"VCPU": 4})


def test_unit_rules_of_today_do_not_bind_what_is_held_already(world):
    world.claim(A, {"MEMORY_MB": 512})
    with world.ledger.database.write() as connection:
        connection.execute(sa.update(tables.inventories).values(max_unit=128))
    world.ledger.begin_move(A, M, {world.h2: {"VCPU": 1}})
    world.ledger.revert_move(M)
    with pytest.raises(UnitViolation):
        world.ledger.replace({A: {world.h1: {"MEMORY_MB": 256}}})


# ---- pending claims


@pytest.mark.parametrize("world", [0, 16], ids=["alone", "grouped"], indirect=True)
def test_pending_claim_expires_by_the_clock_of_the_database(world):
    world.claim(expires_in=60)
    assert world.ledger.consumer(A).expires_at - datetime.now(UTC) < timedelta(seconds=61)
    assert world.ledger.expire().consumers == ()
    overdue(world.ledger.database, A)
    with pytest.raises(InvalidTransition, match="expired"):
        world.ledger.settle(A)
    with pytest.raises(InvalidTransition, match="expired"):
        world.ledger.swap(A, {world.h1: {"VCPU": 4}}, {world.h2: {"VCPU": 4}})
    assert world.ledger.expire().consumers == (A,)
    assert world.ledger.expire().consumers == ()
    with pytest.raises(ConsumerNotFound):
        world.ledger.settle(A)


def test_settled_claim_lasts(world):
    world.claim(expires_in=60)
    assert world.ledger.settle(A).generation == 2
    assert world.ledger.settle(A).generation == 2, "a second settle has nothing left to do"
    assert world.ledger.consumer(A).expires_at is None
    assert world.ledger.expire().consumers == ()


def test_expiry_loses_against_a_settle_that_was_first(world):
    world.claim(expires_in=60)
    world.ledger.settle(A)
    overdue(world.ledger.database, B)
    assert not world.ledger._expire_claim(A, "late")
    assert world.ledger.allocations(A)


# ---- reshape


def test_reshape_moves_inventory_and_allocations_together(world):
    """From the root to a child, say: neither without the other, and the counters follow."""
    world.claim(A, {"VCPU": 8})
    generations = world.ledger.reshape(
        {world.h1: {"MEMORY_MB": 512}, world.h2: {"VCPU": 16}},
        {A: {world.h2: {"VCPU": 8}}},
        provider_generations={world.h1: 0, world.h2: 0},
        generations={A: 1},
    )
    assert generations == {world.h1: 1, world.h2: 1}
    assert world.ledger.usages(provider=world.h1) == {"MEMORY_MB": 0}
    assert world.ledger.usages(provider=world.h2) == {"VCPU": 8}


def test_reshape_is_all_or_nothing(world):
    world.claim(A, {"VCPU": 8})
    world.claim(B, {"VCPU": 1, "MEMORY_MB": 64}, host=world.h2)
    moved = {A: {world.h2: {"VCPU": 8}}}
    for inventories, options, error in (
        ({world.h1: {}, world.h2: {"VCPU": 16}}, {}, InUse),  # B holds MEMORY_MB and is not named
        ({world.h1: {}, world.h2: {"VCPU": 8, "MEMORY_MB": 64}}, {}, CapacityExceeded),
        ({world.h1: {}, world.h2: {"VCPU": 16}}, {"provider_generations": {world.h1: 5}}, GenerationConflict),
        ({world.h1: {}, world.h2: {"VCPU": 16}}, {"generations": {A: 5}}, GenerationConflict),
        ({uuid_of("nowhere"): {}}, {}, ProviderNotFound),
        ({}, {}, InvalidAllocation),
        ({world.h1: {"VCPU": 0}}, {}, InvalidArgument),
    ):
        with pytest.raises(error):
            world.ledger.reshape(inventories, moved, **options)
    assert world.ledger.allocations(A) == {world.h1: {"VCPU": 8}}
    assert world.ledger.usages(provider=world.h1) == {"VCPU": 8, "MEMORY_MB": 0}


def test_reshape_of_one_provider_in_use_keeps_its_use(world):
    world.claim(A, {"VCPU": 8})
    world.ledger.reshape({world.h1: {"VCPU": 4, "PGPU": 1}}, {})
    assert world.ledger.usages(provider=world.h1) == {"VCPU": 8, "PGPU": 0}


# ---- reading


def test_usages_by_project_user_and_type(world):
    world.ledger.claim(A, {world.h1: {"VCPU": 2}}, project_id="p", user_id="u")
    world.ledger.claim(B, {world.h1: {"VCPU": 1}}, project_id="p", user_id="v", consumer_type=None)
    world.ledger.claim(C, {world.h2: {"VCPU": 4}}, project_id="q", user_id="u")
    assert world.ledger.usages(project_id="p") == {"VCPU": 3}
    assert world.ledger.usages(project_id="p", user_id="u") == {"VCPU": 2}
    assert world.ledger.usages(consumer_type="unknown") == {"VCPU": 1}
    by_type = world.ledger.usages_by_type(project_id="p")
    assert {kind: (usage.consumers, usage.amounts) for kind, usage in by_type.items()} == {
        "INSTANCE": (1, {"VCPU": 2}),
        "unknown": (1, {"VCPU": 1}),
    }
    with pytest.raises(ProviderNotFound):
        world.ledger.usages(provider=uuid_of("nowhere"))
    with pytest.raises(InvalidArgument):
        world.ledger.usages(provider=world.h1, project_id="p")


def test_usages_count_those_who_hold_something(world):
    """Who was released for ever leaves a row, and so does a migration that is over: neither is a consumer."""
    for consumer in (A, B, C):
        world.claim(consumer, {"VCPU": 2})
    world.ledger.release(A, forever=True)
    world.ledger.begin_move(B, M, {world.h2: {"VCPU": 2}})
    world.ledger.confirm_move(M)
    world.ledger.begin_move(C, uuid_of("another"), {world.h2: {"VCPU": 2}})
    found = world.ledger.usages_by_type(project_id="project", user_id="user")
    assert {kind: (usage.consumers, usage.amounts) for kind, usage in found.items()} == {
        "INSTANCE": (2, {"VCPU": 4}),
        "MIGRATION": (1, {"VCPU": 2}),
    }


def test_usages_and_numbers_of_consumers_are_of_one_moment(world, monkeypatch):
    world.claim()
    read = Session.all

    def released_meanwhile(session, sql, parameters=()):
        found = read(session, sql, parameters)
        if "COUNT(*)" not in sql:
            monkeypatch.undo()
            world.ledger.release(A)
        return found

    monkeypatch.setattr(Session, "all", released_meanwhile)
    assert world.ledger.usages_by_type()["INSTANCE"] == Usage(consumers=1, amounts={"VCPU": 4})
    assert world.ledger.usages_by_type() == {}


def test_history_says_who_held_what_when(world):
    world.claim(operation_id="first")
    world.ledger.replace({A: {world.h2: {"VCPU": 1}}})
    world.ledger.release(A)
    entries = world.ledger.history_of(A)
    assert [entry.event for entry in entries] == ["claim", "replace", "release"]
    assert entries[0].operation_id == "first"
    assert [entry.allocations for entry in entries] == [{world.h1: {"VCPU": 4}}, {world.h2: {"VCPU": 1}}, {}]
    assert world.ledger.held_at(A, entries[1].recorded_at) == {world.h2: {"VCPU": 1}}
    assert world.ledger.holders_at(world.h1, entries[0].recorded_at) == {A: {"VCPU": 4}}
    assert world.ledger.holders_at(world.h1, entries[2].recorded_at) == {}
    assert world.ledger.held_at(A, datetime(2001, 1, 1, tzinfo=UTC)) == {}
    assert world.ledger.prune_history(entries[2].recorded_at) >= 1
    assert world.ledger.history_of(A)[-1].event == "release"


def test_history_can_be_left_out(ledger_database):
    names = add_providers(ledger_database, {"h1": {"VCPU": 8}})
    ledger = AllocationLedger(ledger_database, history=False)
    ledger.claim(A, {names["h1"]: {"VCPU": 1}}, **OWNER)
    ledger.release(A)
    assert ledger.history_of(A) == []


# ---- operation ids


def test_ids_of_operations_are_made_once(sqlite_database):
    """Whoever makes them, in whatever thread; new ones sort after old ones, and fit."""
    from concurrent.futures import ThreadPoolExecutor

    ledgers = [AllocationLedger(sqlite_database) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda n: ledgers[n % 3]._id_factory(), range(3000)))
    assert len(set(found)) == 3000
    assert max(map(len, found)) <= 64
    first, second = ledgers[0]._id_factory(), ledgers[1]._id_factory()
    assert first[:16] <= second[:16]


# ---- group commit


def test_group_gives_each_caller_its_own_verdict(ledger_database):
    """Sixteen threads, room for ten: ten take one unit each, six are refused, and nobody hears of another's fate."""
    names = add_providers(ledger_database, {"h1": {"VCPU": 10}})
    ledger = AllocationLedger(ledger_database, group_commit=8)
    outcomes: dict[int, object] = {}
    start = threading.Barrier(16)

    def work(number: int) -> None:
        start.wait()
        try:
            outcomes[number] = ledger.claim(uuid_of(number), {names["h1"]: {"VCPU": 1}}, **OWNER)
        except CapacityExceeded as error:
            outcomes[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes.values() if isinstance(outcome, CapacityExceeded)]
    assert (len(outcomes), len(refused)) == (16, 6)
    assert used(ledger_database, names["h1"], "VCPU") == 10
    for number, outcome in outcomes.items():
        assert (ledger.consumer(uuid_of(number)) is None) == isinstance(outcome, CapacityExceeded)
    ledger.check()


# ---- audit and heal


def broken(world) -> None:
    """Edit the tables by hand, as nobody should."""
    world.claim(A)
    world.claim(B, {"VCPU": 2}, host=world.h2)
    with world.ledger.database.write() as connection:
        connection.execute(sa.update(tables.inventories).where(tables.inventories.c.used == 4).values(used=7))
        connection.execute(
            sa.insert(tables.consumers).values(
                uuid=C, project_id="p", user_id="u", generation=1, created_at=datetime.now(UTC)
            )
        )


def test_check_and_audit_find_what_was_broken_and_heal_mends_it(world):
    broken(world)
    with pytest.raises(InvariantViolated) as violated:
        world.ledger.check()
    assert len(violated.value.findings) == 2
    found = world.ledger.audit(known=lambda uuids: [uuid for uuid in uuids if uuid == A])
    assert [(finding.kind, finding.subject) for finding in found] == [
        (FindingKind.DRIFTED_USED, f"{world.h1}/VCPU"),
        (FindingKind.EMPTY_CONSUMER, C),
        (FindingKind.UNKNOWN_CONSUMER, B),
    ]
    plan = world.ledger.heal(found)
    assert not any(repair.applied for repair in plan)
    assert world.ledger.audit(known=lambda uuids: [A]) == found, "a plan changes nothing"
    assert all(repair.applied for repair in world.ledger.heal(found, apply=True))
    assert world.ledger.audit(known=lambda uuids: [A]) == ()
    world.ledger.check()
    again = world.ledger.heal(found, apply=True)
    assert {repair.applied for repair in again} == {False}, "what is right by now is left alone"


def test_heal_leaves_a_consumer_alone_that_was_written_since(world):
    world.claim(A)
    found = world.ledger.audit(known=lambda uuids: [])
    world.ledger.replace({A: {world.h2: {"VCPU": 1}}})
    (repair,) = world.ledger.heal(found, apply=True)
    assert not repair.applied
    assert "GenerationConflict" in repair.outcome
    assert world.ledger.allocations(A)


def test_audit_never_gives_up_the_only_hold_on_a_guest(world):
    """A live move of which nobody knows the migration, the instance or both is for the operator, whatever is known."""
    world.claim(A)
    world.ledger.begin_move(A, M, {world.h2: {"VCPU": 4}})
    found = world.ledger.audit(known=lambda uuids: [A])
    assert [finding.kind for finding in found] == [FindingKind.UNKNOWN_MIGRATION]
    assert world.ledger.heal(found, apply=True)[0].action is RepairAction.NONE
    assert world.ledger.allocations(M)
    for known in ([M], []):
        found = world.ledger.audit(known=lambda uuids, known=known: known)
        assert [(finding.kind, finding.subject) for finding in found] == [(FindingKind.UNKNOWN_MOVE, M)]
        assert world.ledger.heal(found, apply=True)[0].action is RepairAction.NONE
        assert world.ledger.allocations(A)
        assert world.ledger.allocations(M)
    world.ledger.abandon_move(M)
    assert (world.ledger.allocations(A), world.ledger.allocations(M)) == ({}, {})


def test_audit_finds_instances_that_hold_nothing(world):
    """What Nova's heal_allocations is mostly run for. An instance on its way holds something, whatever its half."""
    world.claim(A)
    world.ledger.begin_move(A, M, {world.h2: {"VCPU": 4}})
    many = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(1200)]
    found = world.ledger.audit(instances=iter([*many, A.upper(), B]))
    assert {finding.kind for finding in found} == {FindingKind.NO_ALLOCATIONS}
    assert [finding.subject for finding in found] == [*many, B]
    assert world.ledger.heal(found[-1:], apply=True)[0].action is RepairAction.NONE
    with pytest.raises(InvalidArgument, match="instances"):
        world.ledger.audit(instances=["web-1"])


def test_an_instance_that_is_claimed_while_the_listing_runs_is_no_finding(world):
    def listing():
        yield A
        world.claim(A)

    assert world.ledger.audit(instances=listing()) == ()


def test_replace_without_a_type_leaves_it(world):
    world.claim(A)
    world.ledger.replace({A: {world.h2: {"VCPU": 1}}}, project_id="other", user_id="u")
    state = world.ledger.consumer(A)
    assert (state.project_id, state.consumer_type) == ("other", "INSTANCE")
    world.ledger.replace({B: {world.h2: {"VCPU": 1}}}, project_id="other", user_id="u")
    assert world.ledger.consumer(B).consumer_type is None
    world.ledger.replace({B: {world.h2: {"VCPU": 2}}}, project_id="o", user_id="u", consumer_type="VOLUME")
    assert world.ledger.consumer(B).consumer_type == "VOLUME"


def test_pruned_history_knows_what_is_held_after_the_cut(world):
    """A claim from long ago that still holds: the cut must not take it from history."""
    world.claim(A)
    world.claim(B)
    world.ledger.replace({A: {world.h2: {"VCPU": 1}}})
    world.claim(C, {"VCPU": 1}, host=world.h2)
    world.ledger.release(B)
    cut = world.ledger.history_of(B)[-1].recorded_at + timedelta(microseconds=1)
    later = cut + timedelta(seconds=1)
    before = [(world.ledger.held_at(c, later), world.ledger.held_at(c, cut)) for c in (A, B, C)]
    holders = world.ledger.holders_at(world.h2, later)
    gone = sum(iter(lambda: world.ledger.prune_history(cut, limit=2), 0))
    assert gone == 3  # the first entry of A, and both of B
    assert [(world.ledger.held_at(c, later), world.ledger.held_at(c, cut)) for c in (A, B, C)] == before
    assert world.ledger.holders_at(world.h2, later) == holders
    assert world.ledger.history_of(B) == []


def test_a_ledger_without_history_says_so(world):
    plain = AllocationLedger(world.ledger.database, history=False)
    for call in (
        lambda: plain.held_at(A, datetime.now(UTC)),
        lambda: plain.holders_at(world.h1, datetime.now(UTC)),
    ):
        with pytest.raises(UnsupportedFeature, match="history=False"):
            call()


def test_audit_asks_a_directory_and_tells_what_is_overdue_and_over_full(world):
    class Directory:
        def cells_of(self, uuids):
            return {uuid: "cell1" for uuid in uuids if uuid in {A, B}}

    world.claim(A, expires_in=60)
    world.claim(B, {"VCPU": 8}, host=world.h2)
    overdue(world.ledger.database, A)
    resize(world.ledger.database, world.h2, "VCPU", 2)
    found = world.ledger.audit(known=Directory())
    assert [finding.kind for finding in found] == [FindingKind.OVERDUE, FindingKind.OVER_CAPACITY]
    repairs = world.ledger.heal(found, apply=True)
    assert {repair.finding.kind: repair.applied for repair in repairs} == {
        FindingKind.OVERDUE: True,
        FindingKind.OVER_CAPACITY: False,
    }
    assert world.ledger.consumer(A) is None


def test_ledger_opened_by_url_closes_its_database(ledger_database):
    names = add_providers(ledger_database, {"h1": {"VCPU": 1}})
    with AllocationLedger(ledger_database.engine.url) as ledger:
        ledger.claim(A, {names["h1"]: {"VCPU": 1}}, **OWNER)
        database = ledger.database
        assert "AllocationLedger" in repr(ledger)
    assert database.engine.pool.checkedout() == 0
