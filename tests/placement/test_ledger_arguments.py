"""What is no argument of the ledger's calls: refused by a typed error before any effect, on every database alike."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import attrs
import pytest

from cloudcore.errors import CloudcoreError, InvalidArgument
from cloudcore.placement import AllocationLedger, Inventory, prune_attempts, tables
from cloudcore.placement.ledger.session import ConsumerRow, Session
from cloudcore.placement.rules.claims import Owner
from tests.placement.ledger_worlds import add_providers, uuid_of

A, B, M = (uuid_of(name) for name in ("consumer-a", "consumer-b", "migration"))
OWNER = {"project_id": "project", "user_id": "user"}
H1, H2 = uuid_of("h1"), uuid_of("h2")
HERE, THERE = {H1: {"VCPU": 1}}, {H2: {"VCPU": 1}}
LATER = datetime(2100, 1, 1, tzinfo=UTC)
UNREADABLE = ("\ud800", "name\udcff", "nul\0")


@pytest.fixture(params=[0, 8], ids=["alone", "grouped"])
def ledger(ledger_database, request):
    add_providers(ledger_database, {"h1": {"VCPU": 8}, "h2": {"VCPU": 8}})
    ledger = AllocationLedger(ledger_database, group_commit=request.param)
    ledger.claim(A, HERE, **OWNER)
    yield ledger
    ledger.check()


def refused(ledger, *calls) -> None:
    """Each of the calls raises a typed error of an argument, and has no effect."""
    before = everything(ledger)
    for number, call in enumerate(calls):
        with pytest.raises(InvalidArgument):
            print(number, call())
    assert everything(ledger) == before


def everything(ledger) -> list:
    chosen = (tables.consumers, tables.allocations, tables.inventories, tables.moves, tables.allocation_history)
    with ledger.database.read() as connection:
        return [sorted(map(str, connection.execute(table.select()))) for table in chosen]


@pytest.mark.parametrize("text", UNREADABLE, ids=ascii)
def test_text_that_no_database_holds(ledger, text):
    """MariaDB would cut it off where an insert ignores what is there, PostgreSQL refuse the whole group."""
    refused(
        ledger,
        lambda: ledger.claim(B, HERE, project_id=text, user_id="user"),
        lambda: ledger.claim(B, HERE, project_id="project", user_id=text),
        lambda: ledger.claim(B, HERE, **OWNER, operation_id=text),
        lambda: ledger.replace({B: HERE}, project_id=text, user_id="user"),
        lambda: ledger.confirm_move(M, proof=text),
        lambda: ledger.usages(project_id=text),
        lambda: ledger.consumers(user_id=text),
    )


def test_an_operation_id_that_another_database_takes_for_another(ledger):
    """MariaDB pads with spaces to compare: it would have done the first, and not the second."""
    done = ledger.release(A, operation_id="op")
    refused(
        ledger, lambda: ledger.claim(A, HERE, **OWNER, operation_id="op "), lambda: ledger.settle(A, operation_id=" ")
    )
    assert ledger.release(A, operation_id="op").generation == done.generation
    assert ledger.claim(A, HERE, **OWNER, operation_id=" op").generation == 1


@pytest.mark.parametrize("number", ["1", 1.0, True, [1], -1, 2**63, 2**70], ids=repr)
def test_generations_that_are_none(ledger, number):
    refused(
        ledger,
        lambda: ledger.claim(A, THERE, **OWNER, generation=number),
        lambda: ledger.replace({A: THERE}, generations={A: number}),
        lambda: ledger.begin_move(A, M, THERE, generation=number),
        lambda: ledger.reshape({H1: {"VCPU": 8}}, {}, provider_generations={H1: number}),
        lambda: ledger.reshape({H1: {"VCPU": 8}}, {A: HERE}, generations={A: number}),
    )


@pytest.mark.parametrize("thing", [None, 5, "text", [1], object()], ids=lambda thing: type(thing).__name__)
def test_what_has_not_the_form(ledger, thing):
    refused(
        ledger,
        lambda: ledger.claim(B, thing, **OWNER),
        lambda: ledger.claim(B, {H1: {"VCPU": 1, 5: 1}}, **OWNER),
        lambda: ledger.replace(thing),
        lambda: ledger.replace({A: thing}),
        lambda: ledger.replace({A: THERE}, expected=thing or [thing]),
        lambda: ledger.replace({A: THERE}, generations=thing or [thing]),
        lambda: ledger.replace({A: THERE}, owners=thing or [thing]),
        lambda: ledger.begin_move(A, M, THERE, shared=thing),
        lambda: ledger.begin_move(A, M, THERE, overlap=thing),
        lambda: ledger.begin_move(A, M, THERE, kind=thing),
        lambda: ledger.reshape(thing, {}),
        lambda: ledger.reshape({H1: thing}, {}),
        lambda: ledger.reshape({H1: {"VCPU": thing if thing != 5 else -5}}, {}),
        lambda: ledger.reshape({H1: {"VCPU": 8}}, thing),
        lambda: ledger.reshape({H1: {"VCPU": 8}, H1.upper(): {"VCPU": 4}}, {}),
    )


@pytest.mark.parametrize("number", [0, -1, "10", None, 1.5], ids=repr)
def test_numbers_of_rows_that_are_none(ledger, number):
    refused(
        ledger,
        lambda: ledger.expire(limit=number),
        lambda: ledger.history_of(A, limit=number),
        lambda: ledger.prune_history(LATER, limit=number),
        lambda: prune_attempts(ledger, LATER, limit=number),
        lambda: ledger.database.prune_operations(LATER, limit=number),
    )


@pytest.mark.parametrize(
    "options", [{"older_than": datetime(2100, 1, 1)}, {"older_than": "2100"}, {"limit": 70_000}], ids=str
)
def test_pruning_of_what_is_no_instant_or_no_portion(ledger, options):
    """70,000 values are more than PostgreSQL takes in one statement, which it would say as if it were away."""
    asked = {"older_than": LATER, **options}
    refused(
        ledger,
        lambda: ledger.prune_history(**asked),
        lambda: prune_attempts(ledger, **asked),
        lambda: ledger.database.prune_operations(**asked),
    )


@pytest.mark.parametrize("generations", ["cloudcore", "placement"])
def test_a_generation_of_a_provider_that_a_reshape_does_not_write(ledger, generations):
    """It would not have been looked at, though the caller meant that it should be."""
    books = AllocationLedger(ledger.database, generations=generations)
    refused(ledger, lambda: books.reshape({H1: {"VCPU": 8}}, {}, provider_generations={H2: 77}))
    with pytest.raises(CloudcoreError, match="77"):
        books.reshape({H1: {"VCPU": 8}}, {}, provider_generations={H1: 77})
    assert books.reshape({H1: {"VCPU": Inventory(8)}}, {}, provider_generations={H1: 0}).keys() == {H1}


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_more_consumers_than_a_statement_has_room_for(ledger_database):
    """PostgreSQL's protocol counts to 65,535 values: more would look like a server that is away."""
    names = [str(uuid.UUID(int=number)) for number in range(66_000)]
    row = ConsumerRow(
        id=0,
        uuid="",
        owner=Owner(project_id="-", user_id="-"),
        generation=1,
        retired=False,
        pending=False,
        expired=False,
    )
    with ledger_database.write() as connection:
        session = Session(connection)
        with session.errors():
            assert session.lock_consumers(names) == {}
            held = session.holdings([attrs.evolve(row, id=number, uuid=name) for number, name in enumerate(names)])
    assert held == {name: {} for name in names}
