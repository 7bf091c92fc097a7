"""Compound statements on MariaDB: one round trip for a claim and for the beginning of a move, and the same answers."""

from __future__ import annotations

import random
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
import sqlalchemy as sa

from cloudcore import _failpoints
from cloudcore.database import Database, RetryPolicy
from cloudcore.errors import CapacityExceeded, CloudcoreError
from cloudcore.placement import AllocationLedger, PlacementTree
from cloudcore.placement.ledger import transactions

OWNER = {"project_id": "project", "user_id": "user"}
pytestmark = pytest.mark.parametrize("dialect", ["mariadb"], indirect=True)


@pytest.fixture
def sent(monkeypatch):
    """What clients send to the server while the test runs: commands, each of which waits for its answer."""
    import pymysql.connections

    commands: list[str] = []
    send = pymysql.connections.Connection._execute_command

    def counted(connection, command, sql):
        commands.append(sql if isinstance(sql, str) else sql.decode(errors="replace"))
        return send(connection, command, sql)

    monkeypatch.setattr(pymysql.connections.Connection, "_execute_command", counted)
    return commands


@pytest.fixture
def hosts(ledger_database):
    with PlacementTree.open(ledger_database) as tree:
        made = [tree.add(name, inventory={"VCPU": 8, "MEMORY_MB": 64, "DISK_GB": 100}) for name in ("cn1", "cn2")]
    return [provider.uuid for provider in made]


WANTED = {"VCPU": 2, "MEMORY_MB": 16, "DISK_GB": 10}


def test_a_claim_and_the_beginning_of_a_move_are_one_command_each(ledger_database, hosts, sent):
    ledger = AllocationLedger(ledger_database)
    ledger.claim(str(uuid.uuid4()), {hosts[0]: WANTED, hosts[1]: WANTED}, **OWNER)  # now it knows the providers
    sent.clear()
    instance = str(uuid.uuid4())
    ledger.claim(instance, {hosts[0]: WANTED}, **OWNER)
    assert len(sent) == 1, sent
    ledger.begin_move(instance, str(uuid.uuid4()), {hosts[1]: WANTED})
    assert len(sent) == 2, sent[1:]
    ledger.check()


def test_a_commit_is_not_followed_by_an_idle_rollback(ledger_database, hosts, sent):
    sent.clear()
    with ledger_database.write() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert [sql.split()[0] for sql in sent] == ["SELECT", "COMMIT"]
    with pytest.raises(CloudcoreError), ledger_database.write() as connection:
        connection.execute(sa.text("SELECT nonsense"))
    assert sent[-1] == "ROLLBACK"


def test_a_block_that_fails_leaves_nothing_locked(ledger_database, hosts):
    """The lock of another session outlasts the wait: the connection must not go back with the locks it had."""
    blocked = Database(ledger_database.engine.url, busy_timeout=1)
    ledger = AllocationLedger(blocked)
    ledger.claim(str(uuid.uuid4()), {hosts[0]: WANTED}, **OWNER)
    with ledger_database.write() as connection:
        connection.execute(sa.text("SELECT 1 FROM inventories WHERE resource_class = 'VCPU' FOR UPDATE"))
        blocked.retry = RetryPolicy(attempts=1)
        with pytest.raises(CloudcoreError):
            ledger.claim(str(uuid.uuid4()), {hosts[0]: WANTED}, **OWNER)
    done: list[object] = []
    other = AllocationLedger(ledger_database)
    thread = threading.Thread(target=lambda: done.append(other.claim(str(uuid.uuid4()), {hosts[0]: WANTED}, **OWNER)))
    thread.start()
    thread.join(20)
    assert done, "something is still locked"
    blocked.close()


MOVES = ("cold", "live", "resize", "evacuation")


def played(ledger: AllocationLedger, names: dict[str, str], call) -> str:
    """What a call answers, or what it is refused with, with names in the place of uuids."""
    kind, who, other, host, amounts, generation = call
    consumer, migration, wanted = names[who], names[other], {names[host]: amounts}
    try:
        if kind == "claim":
            found = ledger.claim(consumer, wanted, **OWNER)
        elif kind in MOVES:
            found = ledger.begin_move(consumer, migration, wanted, kind=kind, generation=generation)
            found = (found.state, found.source, found.destination, found.expires_at)
        elif kind == "release":
            found = ledger.release(consumer)
        else:
            found = getattr(ledger, f"{kind}_move")(migration).state
        text = f"{found} {ledger.allocations(consumer)} {ledger.allocations(migration)}"
    except CloudcoreError as error:
        text = f"{type(error).__name__}: {error}"
    for name, identifier in names.items():
        text = text.replace(identifier, name)
    return re.sub(r"begin \([^)]*\)|[0-9a-f]{15,}-\S+", "…", text)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_answer_as_the_statements_do(ledger_database, monkeypatch, seed):
    """The same random calls, by blocks and one by one, on hosts of the same kind: equal answers and equal refusals."""
    rng = random.Random(seed)
    calls = []
    for _ in range(80):
        amounts = {name: rng.choice([1, 2, 2, 5]) for name in rng.sample(sorted(WANTED), rng.randint(1, 2))}
        who, other = rng.sample([f"c{n}" for n in range(8)], 2)
        kind = rng.choice(["claim", "claim", "claim", *MOVES, "confirm", "revert", "release"])
        calls.append((kind, who, other, rng.choice(["h0", "h1"]), amounts, rng.choice([None, None, 1, 2])))
    answers = []
    with PlacementTree.open(ledger_database) as tree:
        for blocks in (True, False):
            inventory = {"VCPU": 9, "MEMORY_MB": 12, "DISK_GB": 15}
            names = {f"c{n}": str(uuid.uuid4()) for n in range(8)}
            names |= {f"h{n}": tree.add(f"{blocks}-{n}", inventory=inventory).uuid for n in (0, 1)}
            with monkeypatch.context() as patch:
                if not blocks:
                    patch.setattr(transactions, "runs_blocks", lambda _: False)
                ledger = AllocationLedger(ledger_database)
                answers.append([played(ledger, names, call) for call in calls])
            ledger.check()
    assert answers[0] == answers[1]
    assert sum(not line.startswith(("Already", "Consumer", "Move", "Invalid")) for line in answers[0]) > 10


def test_a_repeated_beginning_that_expires_gives_the_same_answer(ledger_database, hosts):
    """The result that the server put together is read back as it was given."""
    ledger, instance, migration = AllocationLedger(ledger_database), str(uuid.uuid4()), str(uuid.uuid4())
    ledger.claim(instance, {hosts[0]: WANTED}, **OWNER)
    arguments = {"expires_in": 600.5, "operation_id": f"begin {instance}"}
    begun = ledger.begin_move(instance, migration, {hosts[1]: WANTED}, **arguments)
    again = ledger.begin_move(instance, migration, {hosts[1]: WANTED}, **arguments)
    assert (begun.repeated, again.repeated) == (False, True)
    assert attrs.evolve(again, repeated=False) == begun
    assert begun.expires_at == ledger.move(migration).expires_at


def test_a_claim_is_refused_while_a_refused_move_forgets_its_provider(ledger_database, hosts):
    """What one thread remembers of providers another forgets, to look again; the refusal names the host."""
    ledger = AllocationLedger(ledger_database)
    instance = str(uuid.uuid4())
    ledger.claim(instance, {hosts[1]: WANTED}, **OWNER)
    ledger.claim(str(uuid.uuid4()), {hosts[0]: {"VCPU": 8}}, **OWNER)

    def move(_: str) -> None:
        _failpoints.disarm()
        with ThreadPoolExecutor(1) as another:
            refusal = another.submit(ledger.begin_move, instance, str(uuid.uuid4()), {hosts[0]: WANTED}).exception()
        assert isinstance(refusal, CapacityExceeded)
        assert hosts[0] not in ledger._known_providers

    _failpoints.arm("ledger.claim.take", move)
    try:
        with pytest.raises(CapacityExceeded, match=hosts[0]):
            ledger.claim(str(uuid.uuid4()), {hosts[0]: WANTED}, **OWNER)
    finally:
        _failpoints.disarm()
    ledger.check()
