"""Claims that share a transaction are granted and refused as they would be one by one."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from cloudcore import _failpoints
from cloudcore.database import Database
from cloudcore.errors import (
    AlreadyExists,
    CapacityExceeded,
    CloudcoreError,
    DatabaseBusy,
    InventoryNotFound,
    OutcomeUnknown,
)
from cloudcore.placement import AllocationLedger
from cloudcore.placement.ledger.group_commit import Ticket
from cloudcore.placement.ledger.session import Session
from tests import services
from tests.placement import ledger_worlds
from tests.placement.ledger_jobs import OWNER, claim_as_group, claim_tickets, new_claim
from tests.placement.ledger_worlds import add_providers, used, uuid_of

INVENTORY = {"VCPU": {"total": 9, "max_unit": 5}, "MEMORY_MB": {"total": 40, "min_unit": 2, "step_size": 2}}
PROVIDERS = dict.fromkeys(("h1", "h2", "h3"), INVENTORY)
HELD, RETIRED = "held", "retired"

amounts = st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB", "PGPU"]), st.integers(1, 7), min_size=1, max_size=2)
usual = st.dictionaries(st.just("VCPU"), st.integers(1, 5), min_size=1)
odd = st.dictionaries(st.sampled_from(["h1", "h2", "h3", "nowhere"]), amounts, min_size=1, max_size=2)
plain = st.dictionaries(st.sampled_from(["h1", "h2"]), usual, min_size=1, max_size=2)  # soon too much together
asks = st.one_of(
    st.tuples(st.integers(0, 12), odd | plain, st.integers(0, 15)),
    st.tuples(st.integers(100, 10**6), plain, st.integers(100, 10**6)),
)


def world(database: Database) -> AllocationLedger:
    """Three hosts; one consumer that holds something, one that was released for ever."""
    ledger_worlds.empty(database)
    add_providers(database, PROVIDERS)
    ledger = AllocationLedger(database)
    ledger.claim(uuid_of(HELD), {uuid_of("h3"): {"VCPU": 1}}, operation_id="op-15", **OWNER)
    ledger.release(uuid_of(RETIRED), forever=True)
    return ledger


def claim_of(consumer: int, allocations: dict, operation: int):
    name = {11: HELD, 12: RETIRED}.get(consumer, str(consumer))
    return new_claim(uuid_of(name), {uuid_of(host): held for host, held in allocations.items()}, f"op-{operation}")


@contextmanager
def two_databases(urls: list[str], **options):
    """For the group, and for the same claims one by one."""
    databases = [Database(url, **options) for url in urls]
    for database in databases:
        ledger_worlds.create_tables(database)
    yield databases
    for database in databases:
        database.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    with two_databases([f"sqlite:///{folder / name}.db" for name in ("grouped", "alone")], durable=False) as databases:
        yield databases


@pytest.fixture(scope="module")
def pair_on_postgresql():
    server = services.postgresql()
    made = [server.create_database() for _ in range(2)]
    with two_databases(made) as databases:
        yield databases
    for url in made:
        server.drop_database(url)


class Settled(Ticket):
    """Notes when it was settled."""

    order: list[Settled]

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in {"answer", "error"} and value is not None:
            self.order.append(self)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(asks, min_size=2, max_size=14))
def test_group_is_some_order_of_single_claims(pair, asked):
    """In the order in which a group settles them, each of its claims hears what it would hear alone."""
    settles_as_some_order(pair, asked)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(asks, min_size=2, max_size=14))
def test_group_on_postgresql_is_some_order_of_single_claims(pair_on_postgresql, asked):
    """The same for its one statement, and what that leaves to be claimed alone."""
    settles_as_some_order(pair_on_postgresql, asked)


def settles_as_some_order(databases, asked) -> None:
    grouped, alone = (world(database) for database in databases)
    Settled.order = []
    claim_tickets(grouped, [Settled(claim_of(*ask)) for ask in asked])
    assert len(Settled.order) == len(asked)
    for ticket in list(Settled.order):
        single = Ticket(ticket.request)
        try:
            single.answer = alone._claim(ticket.request)
        except CloudcoreError as error:
            single.error = error
        assert single.answer == ticket.answer
        assert type(single.error) is type(ticket.error)
    assert contents(grouped) == contents(alone)
    grouped.check()


def contents(ledger: AllocationLedger) -> list:
    """All that claims write, without what differs from run to run."""
    with ledger.database.read() as connection:
        return [
            connection.execute(sa.text(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3, 4")).all()
            for table, columns in {
                "consumers": "uuid, project_id, user_id, consumer_type, generation, retired_at IS NULL, expires_at",
                "allocations a JOIN consumers c ON c.id = a.consumer_id": "uuid, provider_id, resource_class, amount",
                "inventories": "provider_id, resource_class, used, capacity",
                "allocation_history": "consumer, event, operation_id LIKE 'op-%', CAST(holdings AS TEXT)",
                "operations WHERE id LIKE 'op-%'": "id, name, fingerprint, result",
            }.items()
        ]


def test_group_tells_the_feed_of_every_provider(pair):
    from cloudcore.placement.storage.changes import changes_since

    ledger = world(pair[0])
    with ledger.database.read() as connection:
        _, before = changes_since(connection, None)
        numbers = {ledger_worlds.provider_id(connection, uuid_of(host)) for host in ("h1", "h2")}
    asked = [("1", "h1", 1), ("2", "h2", 5), ("3", "h2", 5)]  # the last two are too much together: done one by one
    tickets = [Ticket(new_claim(uuid_of(f"feed/{n}"), {uuid_of(host): {"VCPU": v}}, f"f{n}")) for n, host, v in asked]
    ledger._claim_group(tickets)
    assert [type(ticket.error) for ticket in tickets] == [type(None), type(None), CapacityExceeded]
    with ledger.database.read() as connection:
        assert changes_since(connection, before)[0] == numbers


def test_whole_group_takes_few_statements(pair):
    """None of a hundred is in the way of another: nothing is done one by one, however many rows they need."""
    ledger = world(pair[0])
    names = ("VCPU", "PCPU", "MEMORY_MB")
    add_providers(ledger.database, {f"large{n}": dict.fromkeys(names, 1000) for n in range(100)})
    passed: list[str] = []
    _failpoints.arm("*", passed.append)
    try:
        wanted = [{uuid_of(f"large{n}"): dict.fromkeys(names, n + 1)} for n in range(100)]
        claim_as_group(ledger, [(uuid_of(f"few/{n}"), held, f"few{n}") for n, held in enumerate(wanted)])
    finally:
        _failpoints.disarm()
    assert [ledger.allocations(uuid_of(f"few/{n}")) for n in range(100)] == wanted
    assert [used(ledger.database, uuid_of(f"large{n}"), "PCPU") for n in range(100)] == list(range(1, 101))
    statements = [f"ledger.bulk.{step}" for step in ("operations", "consumers", "take", "hold", "note")]
    assert passed == [*statements, "ledger.changes.insert", "database.commit.before", "database.commit.after"]
    ledger.check()


def test_those_in_the_way_are_done_by_themselves(pair):
    """A full host, a missing class and a consumer that is there already cost their own callers only."""
    ledger = world(pair[0])
    asked = [
        (uuid_of("fits"), {uuid_of("h1"): {"VCPU": 1}}, "w1"),
        (uuid_of("fills"), {uuid_of("h2"): {"VCPU": 5}}, "w2"),
        (uuid_of("exceeds"), {uuid_of("h2"): {"VCPU": 5}}, "w3"),
        (uuid_of("lacks"), {uuid_of("h1"): {"PGPU": 1}}, "w4"),
        (uuid_of(HELD), {uuid_of("h1"): {"VCPU": 1}}, "w5"),
        (uuid_of("other"), {uuid_of("h1"): {"VCPU": 2}}, "op-15"),
    ]
    tickets = [Ticket(new_claim(*one)) for one in asked]
    ledger._claim_group(tickets)
    kinds = [type(ticket.error).__name__ if ticket.error else "granted" for ticket in tickets]
    exceeded, lacking, existing = CapacityExceeded.__name__, InventoryNotFound.__name__, AlreadyExists.__name__
    assert kinds == ["granted", "granted", exceeded, lacking, existing, "OperationMismatch"]
    assert [used(ledger.database, uuid_of(host), "VCPU") for host in ("h1", "h2")] == [1, 5]
    ledger.check()


def test_pending_claims_of_a_group_have_deadlines_of_their_own(pair):
    """By the database's clock, each counted from now."""
    import attrs

    ledger = world(pair[0])
    claims = [new_claim(uuid_of(f"p{n}"), {uuid_of("h1"): {"VCPU": 1}}, f"p{n}") for n in range(3)]
    tickets = [
        Ticket(attrs.evolve(claim, expires_in=wait)) for claim, wait in zip(claims, (None, 60, 600), strict=True)
    ]
    ledger._claim_group(tickets)
    lasting, soon, late = (ledger.consumer(uuid_of(f"p{n}")).expires_at for n in range(3))
    assert lasting is None
    assert (late - soon).total_seconds() == pytest.approx(540, abs=1)


@pytest.mark.parametrize("dialect", ["postgresql", "pgbouncer"], indirect=True)
def test_group_on_postgresql_is_one_statement(ledger_database):
    """A hundred claims, some of one host: one statement grants all that fit; the others are left alone."""
    ledger = AllocationLedger(ledger_database)
    room = {"VCPU": 1000, "MEMORY_MB": {"total": 1000, "step_size": 2}}
    add_providers(ledger_database, {**{f"wide{n}": room for n in range(50)}, "full": {"VCPU": 3}})
    wanted = [{uuid_of(f"wide{n % 50}"): {"VCPU": n + 1, "MEMORY_MB": 2}} for n in range(100)]
    wanted += [{uuid_of("full"): {"VCPU": 2}}, {uuid_of("full"): {"VCPU": 1}}, {uuid_of("full"): {"VCPU": 2}}]
    wanted += [{uuid_of("wide0"): {"MEMORY_MB": 3}}]
    tickets = [Ticket(new_claim(uuid_of(f"one/{n}"), held, f"one{n}")) for n, held in enumerate(wanted)]
    ledger.claim(uuid_of("there"), {uuid_of("wide1"): {"VCPU": 1}}, operation_id="done", **OWNER)
    tickets += [Ticket(new_claim(uuid_of("there"), wanted[0], "one104"))]
    tickets += [Ticket(new_claim(uuid_of("one/105"), wanted[0], "done"))]
    tickets += [Ticket(new_claim(uuid_of("one/0"), wanted[0], "one106"))]
    sent: list[str] = []
    event.listen(ledger_database.engine, "checkout", lambda *_: sent.append("connection"))
    _failpoints.arm("*", sent.append)
    try:
        ledger._claim_group(tickets)
    finally:
        _failpoints.disarm()
    assert sent == ["connection", "ledger.bulk.statement.before", "ledger.bulk.statement.after"]
    left = [number for number, ticket in enumerate(tickets) if ticket.answer is None]
    assert left == [102, 103, 104, 105, 106]
    assert not any(ticket.error for ticket in tickets)
    assert [ledger.allocations(uuid_of(f"one/{n}")) for n in range(102)] == wanted[:102]
    assert used(ledger_database, uuid_of("wide7"), "VCPU") == 8 + 58
    assert used(ledger_database, uuid_of("full"), "VCPU") == 3
    ledger.check()


@pytest.mark.parametrize("taken", ["consumer", "operation"])
@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_who_is_added_beside_a_group_on_postgresql_takes_all_of_it_back(ledger_database, taken):
    """Somebody else adds the consumer, or does the operation, and commits while the group's statement waits for it."""
    ledger = AllocationLedger(ledger_database)
    add_providers(ledger_database, {"h1": {"VCPU": 8}, "h2": {"VCPU": 8}})
    asked = [(uuid_of(f"beside/{n}"), {uuid_of(f"h{n}"): {"VCPU": 1}}, f"beside{n}") for n in (1, 2)]
    tickets = [Ticket(new_claim(*one)) for one in asked]
    consumer, operation = (asked[1][0], "other") if taken == "consumer" else (uuid_of("another"), "beside2")
    other = new_claim(consumer, asked[1][1], operation)
    group = threading.Thread(target=ledger._claim_group, args=(tickets,))
    with ledger_database.write() as connection:
        session = Session(connection)
        session.run("UPDATE inventories SET used = used + 1 WHERE provider_id = 0")  # no row: only to begin
        number = session.add_consumer(other.consumer, other.owner) if taken == "consumer" else None
        if number is None:
            ledger_database.begin_operation(connection, other.operation)
        group.start()
        wait_until_somebody_waits(ledger_database)
    group.join(20)
    assert [(ticket.answer, ticket.error) for ticket in tickets] == [(None, None)] * 2
    assert [used(ledger_database, uuid_of(host), "VCPU") for host in ("h1", "h2")] == [0, 0]
    assert ledger.consumer(uuid_of("beside/1")) is None


def wait_until_somebody_waits(database: Database) -> None:
    """For a lock, in this database."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    tick = threading.Event()
    for _ in range(20_000):
        with database.read() as connection:
            if connection.scalar(query):
                return
        tick.wait(0.001)
    raise AssertionError("nobody waits")


@pytest.mark.parametrize("dialect", ["sqlite", "mariadb"], indirect=True)
def test_verdicts_of_an_attempt_that_was_not_committed_are_void(ledger_database):
    """Refused, then the whole group is done again, and by now there is room: granted means granted."""
    ledger = AllocationLedger(ledger_database)
    add_providers(ledger_database, {"small": {"VCPU": 1}})
    asked = [(uuid_of(f"again/{n}"), {uuid_of("small"): {"VCPU": 1}}, f"again {n}") for n in range(2)]
    tickets = [Ticket(new_claim(*one)) for one in asked]

    def busy(_: str) -> None:
        raise DatabaseBusy("deadlock")

    _failpoints.arm("database.commit.before", busy)
    try:
        with pytest.raises(DatabaseBusy):
            ledger._claim_together(tickets)
    finally:
        _failpoints.disarm()
    assert [type(ticket.error) for ticket in tickets].count(CapacityExceeded) == 1
    ledger_worlds.resize(ledger_database, uuid_of("small"), "VCPU", 2)
    ledger._claim_together(tickets)
    assert [(ticket.error, ticket.answer.repeated) for ticket in tickets] == [(None, False)] * 2
    assert used(ledger_database, uuid_of("small"), "VCPU") == 2
    ledger.check()


class Interrupted(BaseException):
    """A signal in the leader's thread."""


def test_who_shares_a_lost_answer_is_told_the_own_operation_id(pair):
    """Not that of the leader, and not none: with it the claim is repeated safely."""
    ledger = AllocationLedger(pair[0], group_commit=8)
    world(pair[0])
    begun, go_on = threading.Event(), threading.Event()
    errors: dict[str, BaseException] = {}

    def claim(name: str) -> None:
        try:
            ledger.claim(uuid_of(name), {uuid_of("h1"): {"VCPU": 1}}, operation_id=f"op-{name}", **OWNER)
        except BaseException as error:
            errors[name] = error

    def hold(_: str) -> None:
        begun.set()
        assert go_on.wait(20)

    def interrupt(_: str) -> None:
        _failpoints.disarm()
        raise Interrupted

    _failpoints.arm("ledger.claim.take", hold)  # the first claim is a group of its own
    _failpoints.arm("ledger.bulk.hold", interrupt)
    threads = [threading.Thread(target=claim, args=(name,), daemon=True) for name in ("one", "two", "three")]
    try:
        threads[0].start()
        assert begun.wait(20)
        for number, thread in enumerate(threads[1:], 1):
            thread.start()
            while len(ledger._group._waiting) < number:
                thread.join(0.001)
        go_on.set()
        for thread in threads:
            thread.join(20)
    finally:
        _failpoints.disarm()
    assert {name: type(error) for name, error in errors.items()} == {"two": Interrupted, "three": OutcomeUnknown}
    assert errors["three"].operation_id == "op-three"
    assert "op-three" in str(errors["three"])
    for name in ("two", "three"):
        again = ledger.claim(uuid_of(name), {uuid_of("h1"): {"VCPU": 1}}, operation_id=f"op-{name}", **OWNER)
        assert not again.repeated
    assert used(pair[0], uuid_of("h1"), "VCPU") == 3
    ledger.check()
