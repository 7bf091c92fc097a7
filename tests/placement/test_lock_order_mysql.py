"""MariaDB: transactions that want the same rows wait for each other, and what they read then is what was left there."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from cloudcore import _failpoints
from cloudcore.database import Database, RetryPolicy
from cloudcore.errors import CapacityExceeded, CloudcoreError, DatabaseError, DatabaseUnavailable, OutcomeUnknown
from cloudcore.placement import AllocationLedger, PlacementTree
from cloudcore.placement.ledger import compound_blocks, transactions
from cloudcore.placement.ledger.group_commit import Ticket
from cloudcore.placement.storage.generations import count
from cloudcore.placement.tables import provider_generations, resource_providers
from tests.placement.ledger_jobs import new_claim

OWNER = {"project_id": "project", "user_id": "user"}
pytestmark = pytest.mark.parametrize("dialect", ["mariadb"], indirect=True)


@pytest.fixture
def hosts(ledger_database):
    with PlacementTree.open(ledger_database) as tree:
        return [tree.add(name, inventory={"VCPU": 8}).uuid for name in ("cn1", "cn2", "cn3")]


@pytest.mark.parametrize("there", [True, False], ids=["counted before", "never counted"])
def test_counts_of_one_provider_wait_for_each_other(ledger_database, hosts, there):
    """One attempt each, all at once: a shared lock that all would raise would end in a deadlock."""
    with ledger_database.read() as connection:
        numbers = list(connection.scalars(sa.select(resource_providers.c.id)))
    if there:
        with ledger_database.write() as connection:
            count(connection, dict.fromkeys(numbers, 0))
    start = threading.Barrier(4)

    def counted(_: int) -> None:
        start.wait(20)
        for _ in range(10):
            with ledger_database.write() as connection:
                count(connection, dict.fromkeys(numbers, 1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(counted, range(4)))
    with ledger_database.read() as connection:
        counts = list(connection.scalars(sa.select(provider_generations.c.generation)))
        firsts = list(connection.scalars(sa.select(resource_providers.c.generation)))
    assert counts == [first + 40 for first in firsts]


def test_group_with_one_left_over_keeps_the_order_of_inventories(ledger_database, hosts):
    """The host that is full comes first, and another claim has it while it wants what the group's others take."""
    ledger = AllocationLedger(ledger_database)
    ledger.claim(str(uuid.uuid4()), {hosts[0]: {"VCPU": 8}}, **OWNER)
    ledger.claim(str(uuid.uuid4()), {hosts[1]: {"VCPU": 1}}, **OWNER)
    wanted = [{hosts[0]: {"VCPU": 1}}, {hosts[1]: {"VCPU": 1}}, {hosts[2]: {"VCPU": 1}}]
    tickets = [Ticket(new_claim(str(uuid.uuid4()), held, f"order-{n}")) for n, held in enumerate(wanted)]
    ledger._known_providers.update(_ids(ledger_database))
    statement = sa.text("UPDATE inventories SET used = used WHERE provider_id = :number")
    first, last = (_ids(ledger_database)[host] for host in (hosts[0], hosts[2]))
    passed: list[str] = []
    locked, failures = threading.Event(), []

    def beside() -> None:
        try:
            with ledger_database.write() as connection:
                connection.execute(statement, {"number": first})
                locked.set()
                connection.execute(statement, {"number": last})
        except CloudcoreError as error:
            failures.append(error)

    other = threading.Thread(target=beside)

    def pass_by(point: str) -> None:
        passed.append(point)
        if point == "ledger.group.lock":
            other.start()
            assert locked.wait(20)

    _failpoints.arm("*", pass_by)
    try:
        ledger_database.retry, kept = RetryPolicy(attempts=1), ledger_database.retry
        ledger._claim_group(tickets)
    finally:
        _failpoints.disarm()
        ledger_database.retry = kept
    other.join(20)
    assert not failures
    assert [type(ticket.error) for ticket in tickets] == [CapacityExceeded, type(None), type(None)]
    assert passed.count("ledger.group.lock") == 1
    ledger.check()


def _ids(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return dict(connection.execute(sa.select(resource_providers.c.uuid, resource_providers.c.id)).all())


@pytest.mark.parametrize("number", [1142, 1064, 1690])
def test_block_that_fails_for_good_says_so_and_holds_nothing(ledger_database, hosts, monkeypatch, number):
    """In the block, after its first write, on an engine whose pool does not reset what comes back."""
    engine = sa.create_engine(ledger_database.engine.url, pool_reset_on_return=None, isolation_level="READ COMMITTED")
    ledger = AllocationLedger(Database(engine, retry=RetryPolicy(attempts=1)))
    ledger.claim(str(uuid.uuid4()), {hosts[0]: {"VCPU": 1}}, **OWNER)
    signal = f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'for good';"
    monkeypatch.setattr(compound_blocks, "_HOLD", compound_blocks._HOLD + signal)
    with pytest.raises(DatabaseError) as caught:
        ledger.claim(str(uuid.uuid4()), {hosts[0]: {"VCPU": 1}}, **OWNER)
    assert not isinstance(caught.value, OutcomeUnknown)
    with ledger_database.write() as connection:
        connection.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
        connection.exec_driver_sql("UPDATE inventories SET used = used")
        connection.exec_driver_sql("SET innodb_lock_wait_timeout = DEFAULT")
    engine.dispose()


def test_first_move_is_begun_though_nobody_answers_at_first(ledger_database, hosts, monkeypatch):
    instance = str(uuid.uuid4())
    AllocationLedger(ledger_database).claim(instance, {hosts[0]: {"VCPU": 1}}, **OWNER)
    asked: list[int] = []

    def away_at_first(database: Database) -> bool:
        asked.append(1)
        if len(asked) == 1:
            raise DatabaseUnavailable("away", database="here")
        return compound_blocks.runs_blocks(database)

    monkeypatch.setattr(transactions, "runs_blocks", away_at_first)
    move = AllocationLedger(ledger_database).begin_move(instance, str(uuid.uuid4()), {hosts[1]: {"VCPU": 1}})
    assert move.state == "held"


@pytest.mark.parametrize("said", [{}, {"isolation_level": "REPEATABLE READ"}], ids=["default", "said"])
def test_engine_that_keeps_to_a_snapshot_reads_what_is_committed(ledger_database, hosts, said):
    engine = sa.create_engine(ledger_database.engine.url, **said)
    query = sa.text("SELECT SUM(used) FROM inventories")
    with Database(engine).write() as connection:
        before = connection.scalar(query)
        AllocationLedger(ledger_database).claim(str(uuid.uuid4()), {hosts[0]: {"VCPU": 3}}, **OWNER)
        assert connection.scalar(query) == before + 3
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "REPEATABLE READ"  # the caller's own
    engine.dispose()
