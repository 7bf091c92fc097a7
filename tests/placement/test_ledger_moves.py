"""Moves: the tables of the documentation, carried out; and what the tables leave open."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from cloudcore import errors
from cloudcore.errors import (
    AlreadyExists,
    CapacityExceeded,
    ConsumerNotFound,
    ConsumerRetired,
    GenerationConflict,
    InvalidAllocation,
    InvalidArgument,
    InvalidTransition,
    MoveNotFound,
    UnitViolation,
)
from cloudcore.placement import AllocationLedger, Inventory, MoveKind, MoveState
from cloudcore.placement.rules.moves import TRANSITIONS, MoveEvent
from tests.placement.ledger_worlds import add_providers, overdue, resize, used, uuid_of

OWNER = {"project_id": "project", "user_id": "user"}
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "ledger.md"
INSTANCE, MIGRATION, OTHER = (uuid_of(name) for name in ("instance", "migration", "other-migration"))
SHAPE = {"VCPU": 4, "MEMORY_MB": 128}


def documented_rows() -> list[tuple[str, tuple[str, ...]]]:
    """(kind, (calls, state, instance, migration)) of every row of the page's tables of moves."""
    rows, kinds = [], []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"<!-- moves: (.*) -->", line):
            kinds = found.group(1).split(", ")
        elif not line.startswith("|"):
            kinds = []
        elif kinds and not line.startswith(("| calls", "|---")):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            rows.extend((kind, cells) for kind in kinds)
    return rows


ROWS = documented_rows()


@pytest.fixture
def ledger(ledger_database):
    ledger = AllocationLedger(ledger_database)
    yield ledger
    ledger.check()


@pytest.fixture
def hosts(ledger_database):
    return add_providers(ledger_database, {name: {"VCPU": 8, "MEMORY_MB": 512} for name in ("s", "d", "e")})


class Steps:
    """The words of the tables, as calls."""

    def __init__(self, ledger: AllocationLedger, hosts: dict[str, str], kind: str) -> None:
        self.ledger, self.hosts, self.kind = ledger, hosts, kind

    def take(self, word: str) -> None:
        name, said, _ = word.partition(" with proof")
        getattr(self, name.replace(" ", "_"))(**({"proof": "the rack is off"} if said else {}))

    def begin(self, migration: str = MIGRATION) -> None:
        self.ledger.begin_move(
            INSTANCE,
            migration,
            {self.hosts["d"]: SHAPE},
            kind=self.kind,
            expires_in=None if self.kind == "evacuation" else 60,
        )

    def another_begin(self) -> None:
        self.begin(OTHER)

    def confirm(self, proof: str | None = None) -> None:
        self.ledger.confirm_move(MIGRATION, proof=proof)

    def abandon(self, proof: str | None = None) -> None:
        self.ledger.abandon_move(MIGRATION, proof=proof)

    def revert(self) -> None:
        self.ledger.revert_move(MIGRATION)

    def release(self) -> None:
        self.ledger.release(INSTANCE)

    def retire(self) -> None:
        self.ledger.release(INSTANCE, forever=True)

    def release_migration(self) -> None:
        self.ledger.release(MIGRATION)

    def alternate(self) -> None:
        self.ledger.swap(INSTANCE, {self.hosts["d"]: SHAPE}, {self.hosts["e"]: SHAPE})

    def overdue(self) -> None:
        overdue(self.ledger.database, MIGRATION)

    def expire(self) -> None:
        self.ledger.expire()


def test_the_page_has_the_tables():
    assert len(ROWS) > 100
    assert {kind for kind, _ in ROWS} == set(MoveKind)


@pytest.mark.parametrize(
    ("dialect", "kind"),
    [
        *(("sqlite", kind) for kind in MoveKind),
        ("postgresql", "cold"),  # resize and live share the table of cold
        ("postgresql", "evacuation"),
        ("mariadb", "cold"),
        ("mariadb", "evacuation"),
    ],
    indirect=["dialect"],
)
def test_each_row_of_the_documented_tables_is_true(ledger, hosts, kind):
    """Every sequence of calls leaves the state and the holders that the page says, and raises what it says."""
    for of_kind, (calls, state, instance, migration) in ROWS:
        if of_kind == kind:
            ledger_worlds_empty_but_hosts(ledger)
            ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
            steps = Steps(ledger, hosts, kind)
            for word in calls.split(", "):
                name, _, error = word.partition(": ")
                if error:
                    before = holders(ledger, hosts)
                    with pytest.raises(getattr(errors, error)):
                        steps.take(name)
                    assert holders(ledger, hosts) == before, f"{calls}: a refused call changed something"
                else:
                    steps.take(name)
            ledger.check()
            found = (*state_of(ledger), *holders(ledger, hosts))
            assert found == (state, instance, migration), f"{kind}: {calls}"


def ledger_worlds_empty_but_hosts(ledger) -> None:
    """Forget consumers and moves; inventories are free again."""
    import sqlalchemy as sa

    from cloudcore.placement import tables

    with ledger.database.write() as connection:
        for table in (tables.allocations, tables.consumers, tables.moves):
            connection.execute(sa.delete(table))
        connection.execute(sa.update(tables.inventories).values(used=0))


def state_of(ledger) -> tuple[str]:
    try:
        return (str(ledger.move(MIGRATION).state),)
    except MoveNotFound:
        return ("–",)


def holders(ledger, hosts) -> tuple[str, str]:
    letters = {(hosts[name],): name.upper() for name in hosts} | {(): "–"}
    return tuple(letters[tuple(ledger.allocations(consumer))] for consumer in (INSTANCE, MIGRATION))


def test_every_transition_is_documented():
    """No step of the table in the code is missing on the page."""
    words = {"release", "retire"}
    documented = {(kind, word.partition(":")[0].split(" with")[0]) for kind, row in ROWS for word in row[0].split(", ")}
    for kind, table in TRANSITIONS.items():
        for _, event in table:
            names = words if event is MoveEvent.RELEASE else {str(event)}
            assert any((kind, name) in documented for name in names), (kind, event)


# ---- what the tables leave open


def test_repeats_say_so(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    begun = [ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: SHAPE}) for _ in range(2)]
    ended = [ledger.confirm_move(MIGRATION) for _ in range(2)]
    assert [move.repeated for move in [*begun, *ended]] == [False, True, False, True]
    same = [ledger.confirm_move(MIGRATION, operation_id="c") for _ in range(2)]
    assert same[0].state is same[1].state is MoveState.CONFIRMED
    assert len(ended[1].story) == 2


def test_migration_used_for_another_move_is_refused(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: SHAPE})
    for arguments, options in (
        ((INSTANCE, MIGRATION, {hosts["e"]: SHAPE}), {}),
        ((uuid_of("someone"), MIGRATION, {hosts["d"]: SHAPE}), {}),
        ((INSTANCE, MIGRATION, {hosts["d"]: SHAPE}), {"kind": "live"}),
    ):
        with pytest.raises(AlreadyExists):
            ledger.begin_move(*arguments, **options)
    ledger.claim(OTHER, {hosts["e"]: SHAPE}, **OWNER)
    ledger.confirm_move(MIGRATION)
    with pytest.raises(AlreadyExists):
        ledger.begin_move(INSTANCE, OTHER, {hosts["e"]: SHAPE})


def test_the_moves_under_way_are_listed_in_pages(ledger, hosts):
    """Held ones and evacuations whose source nobody proved gone; none that has ended."""
    assert ledger.moves() == []
    made = {}
    for number in range(6):
        instance, migration = uuid_of(f"guest-{number}"), uuid_of(f"move-{number}")
        ledger.claim(instance, {hosts["s"]: {"VCPU": 1}}, **OWNER)
        kind = "evacuation" if number == 5 else "cold"
        expires_in = 900 if number == 4 else None
        made[migration] = ledger.begin_move(
            instance, migration, {hosts["d"]: {"VCPU": 1}}, kind=kind, expires_in=expires_in
        )
    ledger.confirm_move(uuid_of("move-0"))
    ledger.revert_move(uuid_of("move-1"))
    ledger.abandon_move(uuid_of("move-2"))
    ledger.release(uuid_of("guest-5"))
    under_way = sorted(uuid_of(f"move-{number}") for number in (3, 4, 5))
    found = ledger.moves()
    assert found == [ledger.move(migration) for migration in under_way]
    assert {move.migration: move.state for move in found}[uuid_of("move-5")] == "awaiting_proof"
    assert {move.expires_at for move in found} == {None, made[uuid_of("move-4")].expires_at}
    for limit in (1, 2, 3, 10_000):
        seen, after = [], None
        while page := ledger.moves(after=after, limit=limit):
            assert len(page) <= limit
            seen += page
            after = page[-1].migration
        assert seen == found
    for limit in (0, 10_001, True, "many"):
        with pytest.raises(InvalidArgument, match="limit"):
            ledger.moves(limit=limit)
    with pytest.raises(InvalidAllocation, match="after"):
        ledger.moves(after="somewhere")


def test_full_destination_changes_nothing(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    ledger.claim(OTHER, {hosts["d"]: {"VCPU": 6}}, **OWNER)
    with pytest.raises(CapacityExceeded):
        ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: SHAPE})
    assert ledger.allocations(INSTANCE) == {hosts["s"]: SHAPE}
    with pytest.raises(MoveNotFound):
        ledger.move(MIGRATION)
    with pytest.raises(MoveNotFound):
        ledger.revert_move(MIGRATION)


def test_same_host_resize_needs_the_sum_unless_told_otherwise(ledger, hosts):
    """The migration holds the old flavour, the instance the new one."""
    ledger.claim(INSTANCE, {hosts["s"]: {"VCPU": 4}}, **OWNER)
    with pytest.raises(CapacityExceeded):
        ledger.begin_move(INSTANCE, MIGRATION, {hosts["s"]: {"VCPU": 6}}, kind="resize")
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["s"]: {"VCPU": 6}}, kind="resize", overlap="maximum")
    assert used(ledger.database, hosts["s"], "VCPU") == 6
    assert ledger.allocations(MIGRATION) == {}
    ledger.check()
    ledger.revert_move(MIGRATION)
    assert ledger.allocations(INSTANCE) == {hosts["s"]: {"VCPU": 4}}
    ledger.begin_move(INSTANCE, OTHER, {hosts["s"]: {"VCPU": 1}}, kind="resize", overlap="maximum")
    assert (used(ledger.database, hosts["s"], "VCPU"), ledger.allocations(OTHER)) == (4, {hosts["s"]: {"VCPU": 3}})
    ledger.check()
    ledger.confirm_move(OTHER)
    assert used(ledger.database, hosts["s"], "VCPU") == 1


def test_shared_pool_is_counted_once(ledger, hosts):
    """Both halves use the same disk: the pool is not charged twice while the instance moves."""
    pool = hosts["e"]
    ledger.claim(INSTANCE, {hosts["s"]: {"VCPU": 4}, pool: {"MEMORY_MB": 300}}, **OWNER)
    destination = {hosts["d"]: {"VCPU": 4}, pool: {"MEMORY_MB": 300}}
    with pytest.raises(CapacityExceeded):
        ledger.begin_move(INSTANCE, MIGRATION, destination)
    with pytest.raises(InvalidAllocation):
        ledger.begin_move(INSTANCE, MIGRATION, destination, shared=[hosts["d"]])
    ledger.begin_move(INSTANCE, MIGRATION, destination, shared=[pool])
    assert used(ledger.database, pool, "MEMORY_MB") == 300
    ledger.check()
    ledger.swap(INSTANCE, destination, {hosts["d"]: {"VCPU": 4}})
    assert ledger.allocations(MIGRATION) == {hosts["s"]: {"VCPU": 4}, pool: {"MEMORY_MB": 300}}
    ledger.check()
    ledger.revert_move(MIGRATION)
    assert used(ledger.database, pool, "MEMORY_MB") == 300


def test_a_move_whose_time_is_over_does_not_begin_again(ledger, hosts):
    """Whoever asks again after a crash would move the guest, and be told by the confirm that it came too late."""
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    asked = (INSTANCE, MIGRATION, {hosts["d"]: SHAPE})
    begun = ledger.begin_move(*asked, expires_in=600, operation_id="op")
    assert ledger.begin_move(*asked, expires_in=600).repeated
    overdue(ledger.database, MIGRATION)
    with pytest.raises(InvalidTransition, match="is expired: begin is too late"):
        ledger.begin_move(*asked, expires_in=600)
    assert attrs.evolve(ledger.begin_move(*asked, expires_in=600, operation_id="op"), repeated=False) == begun
    assert ledger.revert_move(MIGRATION).state is MoveState.EXPIRED


def test_what_a_migration_keeps_of_a_shared_pool_need_be_no_piece_that_the_pool_gives(ledger, ledger_database):
    """40 of the 50 are the instance's by now: the other 10 are held, not granted, be it that 20 is the least."""
    pool = shared_pool(ledger_database, min_unit=20, step_size=10)
    ledger.claim(INSTANCE, {uuid_of("s"): {"VCPU": 4}, pool: {"DISK_GB": 50}}, **OWNER)
    there = {uuid_of("d"): {"VCPU": 2}, pool: {"DISK_GB": 40}}
    with pytest.raises(UnitViolation, match="step_size"):
        ledger.begin_move(INSTANCE, MIGRATION, {pool: {"DISK_GB": 35}}, kind="resize", shared=[pool])
    ledger.begin_move(INSTANCE, MIGRATION, there, kind="resize", shared=[pool])
    assert ledger.allocations(MIGRATION)[pool] == {"DISK_GB": 10}
    ledger.check()
    ledger.swap(INSTANCE, there, {uuid_of("e"): {"VCPU": 2}, pool: {"DISK_GB": 50}})
    ledger.swap(INSTANCE, {uuid_of("e"): {"VCPU": 2}, pool: {"DISK_GB": 50}}, there)
    ledger.confirm_move(MIGRATION)
    assert (used(ledger.database, pool, "DISK_GB"), ledger.allocations(INSTANCE)) == (40, there)


@pytest.mark.parametrize("end", ["revert", "expire"])
@pytest.mark.parametrize("units", [{"min_unit": 60}, {"max_unit": 40}, {"step_size": 7}], ids=str)
def test_a_source_comes_back_whatever_the_units_are_by_now(ledger, ledger_database, end, units):
    """It was held all the time, in part by either half. A sweep goes on to those that come after it."""
    pool = shared_pool(ledger_database)
    source = {uuid_of("s"): {"VCPU": 4}, pool: {"DISK_GB": 50}}
    ledger.claim(INSTANCE, source, **OWNER)
    there = {uuid_of("d"): {"VCPU": 4}, pool: {"DISK_GB": 80}}
    ledger.begin_move(INSTANCE, MIGRATION, there, kind="resize", shared=[pool], expires_in=100)
    ledger.reshape({pool: {"DISK_GB": Inventory(1000, **units)}}, {})
    if end == "revert":
        assert ledger.revert_move(MIGRATION).state is MoveState.REVERTED
    else:
        overdue(ledger_database, MIGRATION)
        assert ledger.expire().migrations == (MIGRATION,)
    assert (ledger.allocations(INSTANCE), used(ledger_database, pool, "DISK_GB")) == (source, 50)


def shared_pool(database, **rules) -> str:
    """Three hosts, and the uuid of a pool of disk with these rules."""
    inventories = {name: {"VCPU": 8} for name in ("s", "d", "e")}
    return add_providers(database, {**inventories, "pool": {"DISK_GB": {"total": 1000, **rules}}})["pool"]


def test_a_migration_that_holds_nothing_for_a_while_holds_the_source_again(ledger, hosts):
    """A smaller flavour fits into the larger of the same host, and then the instance goes elsewhere, and back."""
    ledger.claim(INSTANCE, {hosts["s"]: {"VCPU": 2}}, **OWNER)
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["s"]: {"VCPU": 4}}, kind="resize", overlap="maximum")
    assert ledger.allocations(MIGRATION) == {}
    with pytest.raises(ConsumerRetired):
        ledger.claim(MIGRATION, {hosts["d"]: {"VCPU": 1}}, **OWNER)
    for there, kept in (("d", {hosts["s"]: {"VCPU": 2}}), ("s", {}), ("d", {hosts["s"]: {"VCPU": 2}})):
        ledger.replace({INSTANCE: {hosts[there]: {"VCPU": 4}}})
        assert ledger.allocations(MIGRATION) == kept
        ledger.check()
    ledger.confirm_move(MIGRATION)
    assert (ledger.allocations(MIGRATION), used(ledger.database, hosts["s"], "VCPU")) == ({}, 0)


def test_a_stale_generation_is_told_before_what_follows_from_it(ledger, hosts):
    """What is shared was read with the generation: it is no wrong argument when somebody else was faster."""
    pool = hosts["e"]
    ledger.claim(INSTANCE, {hosts["s"]: {"VCPU": 4}, pool: {"MEMORY_MB": 300}}, **OWNER)
    ledger.replace({INSTANCE: {hosts["s"]: {"VCPU": 4}}})
    with pytest.raises(GenerationConflict):
        ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: {"VCPU": 4}}, shared=[pool], generation=1)


def test_over_full_source_blocks_no_hand_over(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: {"VCPU": 8}}, **OWNER)
    resize(ledger.database, hosts["s"], "VCPU", 4)
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: {"VCPU": 8}})
    assert ledger.allocations(MIGRATION) == {hosts["s"]: {"VCPU": 8}}
    ledger.revert_move(MIGRATION)
    assert ledger.allocations(INSTANCE) == {hosts["s"]: {"VCPU": 8}}


def test_bad_moves_are_refused(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    good = {hosts["d"]: SHAPE}
    for arguments, options, error in (
        ((INSTANCE, INSTANCE, good), {}, InvalidAllocation),
        ((INSTANCE, MIGRATION, {}), {}, InvalidAllocation),
        ((INSTANCE, "m", good), {}, InvalidAllocation),
        ((INSTANCE, MIGRATION, good), {"kind": "sideways"}, InvalidArgument),
        ((INSTANCE, MIGRATION, good), {"overlap": "none"}, InvalidArgument),
        ((INSTANCE, MIGRATION, good), {"kind": "evacuation", "expires_in": 5}, InvalidArgument),
        ((INSTANCE, MIGRATION, {hosts["d"]: {"VCPU": 1}}), {"kind": "live"}, InvalidAllocation),
        ((INSTANCE, MIGRATION, good), {"generation": 9}, errors.GenerationConflict),
        ((uuid_of("nobody"), MIGRATION, good), {}, ConsumerNotFound),
    ):
        with pytest.raises(error):
            ledger.begin_move(*arguments, **options)
    assert ledger.allocations(INSTANCE) == {hosts["s"]: SHAPE}


def test_finished_migration_never_holds_again(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: SHAPE})
    ledger.revert_move(MIGRATION)
    with pytest.raises(errors.ConsumerRetired):
        ledger.claim(MIGRATION, {hosts["d"]: SHAPE}, **OWNER)


def test_refusal_tells_the_story(ledger, hosts):
    ledger.claim(INSTANCE, {hosts["s"]: SHAPE}, **OWNER)
    ledger.begin_move(INSTANCE, MIGRATION, {hosts["d"]: SHAPE}, operation_id="op-begin")
    ledger.revert_move(MIGRATION, operation_id="op-revert")
    with pytest.raises(InvalidTransition) as refused:
        ledger.confirm_move(MIGRATION)
    assert refused.value.story == ("begin (op-begin)", "revert (op-revert)")
    assert (refused.value.state, refused.value.event) == ("reverted", "confirm")
