"""What the processes of the ledger's batteries do: functions of a database's URL and JSON, answering JSON."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from cloudcore import database as database_module
from cloudcore.database import Database
from cloudcore.errors import CapacityExceeded, CloudcoreError, ConsumerNotFound, NotFound
from cloudcore.placement import AllocationLedger
from cloudcore.placement.ledger import claim_statements as ledger_claims
from cloudcore.placement.ledger.claim_statements import NewClaim
from cloudcore.placement.ledger.group_commit import Ticket
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.rules.audit import Finding, FindingKind
from cloudcore.placement.rules.claims import Owner, normalise_allocations
from tests.placement import ledger_worlds
from tests.placement.ledger_worlds import uuid_of

OWNER = {"project_id": "project", "user_id": "user"}


@contextmanager
def opened(url: str, **options):
    with Database(url, pool_size=2) as database:
        yield AllocationLedger(database, **options)


# ---- one operation each, for the kill battery: TRIALS[name] = (set up, the operation)


class Trial:
    """One trial of one operation: consumers and providers of its own, by *tag*."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.a, self.b, self.m = (uuid_of(f"{tag}/{name}") for name in ("a", "b", "m"))
        self.h1, self.h2 = (uuid_of(f"{tag}/{name}") for name in ("h1", "h2"))
        self.here = {self.h1: {"VCPU": 2, "MEMORY_MB": 5}, self.h2: {"MEMORY_MB": 5}}
        self.there = {self.h2: {"VCPU": 2, "MEMORY_MB": 5}}

    def build(self, database) -> None:
        inventory = {"VCPU": 4, "MEMORY_MB": 20}
        ledger_worlds.add_providers(database, {f"{self.tag}/{name}": inventory for name in ("h1", "h2")})

    def view(self, ledger) -> list:
        """All that an operation of the trial can change."""
        try:
            state = str(ledger.move(self.m).state)
        except NotFound:
            state = None
        holders = [ledger.allocations(consumer) for consumer in (self.a, self.b, self.m)]
        generations = [getattr(ledger.consumer(c), "generation", 0) for c in (self.a, self.b)]
        pending = getattr(ledger.consumer(self.a), "expires_at", None)
        usages = [ledger.usages(provider=host) for host in (self.h1, self.h2)]
        return [state, holders, generations, pending is not None, usages]


def _claimed(ledger, trial):
    ledger.claim(trial.a, trial.here, **OWNER)


def _moving(ledger, trial):
    _claimed(ledger, trial)
    ledger.begin_move(trial.a, trial.m, trial.there, expires_in=600)


def _resizing(ledger, trial):
    """The migration holds nothing while the larger flavour is on the same host."""
    ledger.claim(trial.a, {trial.h2: {"VCPU": 1}}, **OWNER)
    larger = {trial.h2: {"VCPU": 2, "MEMORY_MB": 5}}
    ledger.begin_move(trial.a, trial.m, larger, kind="resize", overlap="maximum")


def _overdue_claim(ledger, trial):
    ledger.claim(trial.a, trial.here, expires_in=600, **OWNER)
    ledger_worlds.overdue(ledger.database, trial.a)


def _overdue_move(ledger, trial):
    _moving(ledger, trial)
    ledger_worlds.overdue(ledger.database, trial.m)


def _pending(ledger, trial):
    ledger.claim(trial.a, trial.here, expires_in=600, **OWNER)


def _drifted(ledger, trial):
    import sqlalchemy as sa

    from cloudcore.placement import tables

    _claimed(ledger, trial)
    with ledger.database.write() as connection:
        number = ledger_worlds.provider_id(connection, trial.h1)
        connection.execute(
            sa.update(tables.inventories).where(tables.inventories.c.provider_id == number).values(used=9)
        )


def _orphaned(ledger, trial):
    """Allocations of a retired consumer: the orphans that foreign keys allow."""
    import sqlalchemy as sa

    from cloudcore.placement import tables

    _claimed(ledger, trial)
    consumers = tables.consumers
    with ledger.database.write() as connection:
        chosen = sa.update(consumers).where(consumers.c.uuid == trial.a)
        connection.execute(chosen.values(retired_at=consumers.c.created_at))


def _nothing(ledger, trial):
    pass


def _reshape(ledger, t, op):
    return ledger.reshape(
        {t.h1: {"MEMORY_MB": 20, "PGPU": 1}, t.h2: {"VCPU": 4, "MEMORY_MB": 40}},
        {t.a: {t.h2: {"VCPU": 2, "MEMORY_MB": 10}}},
        operation_id=op,
    )


def _heal(ledger, t, op):
    findings = [
        Finding(kind=FindingKind.DRIFTED_USED, subject=f"{t.h1}/{name}", text="") for name in ("VCPU", "MEMORY_MB")
    ]
    return ledger.heal(findings, apply=True)


def _heal_orphans(ledger, t, op):
    """Those of the trial's own consumer; other trials have theirs."""
    with ledger.database.read() as connection:
        number = ledger_worlds.consumer_id(connection, t.a)
    return ledger.heal([Finding(kind=FindingKind.ORPHANED_ALLOCATION, subject=str(number), text="")], apply=True)


def _group(ledger, t, op):
    """Two claims of one group: they are committed together, or neither is."""
    half = {t.h1: {"VCPU": 2, "MEMORY_MB": 5}}
    return claim_as_group(ledger, [(t.a, half, op), (t.b, half, f"{op}/b")])


def _group_again(ledger, t, op):
    """A third claim repeats the first one's operation id: it does not fit in, and gets the first one's answer."""
    half = {t.h1: {"VCPU": 2, "MEMORY_MB": 5}}
    return claim_as_group(ledger, [(t.a, half, op), (t.b, half, f"{op}/b"), (t.a, half, op)])


def claim_tickets(ledger, tickets) -> None:
    """Settle each ticket as its caller would find it: what the group leaves alone is claimed by itself."""
    ledger._claim_group(tickets)
    for ticket in tickets:
        if ticket.answer is None and ticket.error is None:
            try:
                ticket.answer = ledger._claim(ticket.request)
            except CloudcoreError as error:
                ticket.error = error


def claim_as_group(ledger, asked) -> list:
    """Claim for (consumer, allocations, operation id) each as one group; the answers, or the first error."""
    tickets = [Ticket(new_claim(*one)) for one in asked]
    claim_tickets(ledger, tickets)
    for ticket in tickets:
        if ticket.error is not None:
            raise ticket.error
    return [ticket.answer for ticket in tickets]


def new_claim(consumer, wanted, operation_id) -> NewClaim:
    owner = Owner.of("project", "user", "INSTANCE")
    return NewClaim.of(consumer, normalise_allocations(wanted), owner, None, operation_id, lambda: "unused")


TRIALS = {
    "claim": (_nothing, lambda to, t, op: to.claim(t.a, t.here, operation_id=op, **OWNER)),
    "claim_anew": (_claimed, lambda to, t, op: to.claim(t.a, t.there, generation=1, operation_id=op, **OWNER)),
    "release": (_claimed, lambda to, t, op: to.release(t.a, operation_id=op)),
    "retire": (_moving, lambda to, t, op: to.release(t.a, forever=True, operation_id=op)),
    "replace": (_claimed, lambda to, t, op: to.replace({t.a: {}, t.b: t.here}, operation_id=op, **OWNER)),
    "swap": (_moving, lambda to, t, op: to.swap(t.a, t.there, t.here, operation_id=op)),
    "swap_back": (_resizing, lambda to, t, op: to.swap(t.a, t.there, t.here, operation_id=op)),
    "settle": (_pending, lambda to, t, op: to.settle(t.a, operation_id=op)),
    "begin": (_claimed, lambda to, t, op: to.begin_move(t.a, t.m, t.there, expires_in=600, operation_id=op)),
    "confirm": (_moving, lambda to, t, op: to.confirm_move(t.m, operation_id=op)),
    "revert": (_moving, lambda to, t, op: to.revert_move(t.m, operation_id=op)),
    "abandon": (_moving, lambda to, t, op: to.abandon_move(t.m, operation_id=op)),
    "expire_claim": (_overdue_claim, lambda to, t, op: to.expire(operation_id=op)),
    "expire_move": (_overdue_move, lambda to, t, op: to.expire(operation_id=op)),
    "reshape": (_claimed, _reshape),
    "heal": (_drifted, _heal),
    "heal_orphans": (_orphaned, _heal_orphans),
    "group": (_nothing, _group),
    "group_again": (_nothing, _group_again),
}


def trial(url: str, *, name: str, tag: str) -> str:
    """Do one operation under the trial's operation id; the answer is the acknowledgement."""
    with opened(url) as ledger:
        TRIALS[name][1](ledger, Trial(tag), f"op-{uuid_of(tag)}")
    return "acknowledged"


# ---- many operations, for the races


class _Deadlocks:
    """Counts what the database reported as deadlock, in this process."""

    def __init__(self) -> None:
        self.count = 0
        real = database_module.translate

        def translate(error, engine):
            self.count += "deadlock" in str(error).lower()
            return real(error, engine)

        database_module.translate = translate


def fill(url: str, *, worker: int, hosts: list[str], amount: int, group: int) -> dict:
    """Claim *amount* on random hosts until every host refuses (or 200 times); answer what was granted where.

    With *group* four threads do so, whose claims share transactions.
    """
    deadlocks = _Deadlocks()
    with opened(url, group_commit=group) as ledger:
        names = [f"{worker}/{number}" for number in range(4)] if group else [str(worker)]
        with ThreadPoolExecutor(len(names)) as pool:
            parts = list(pool.map(lambda name: _fill(ledger, name, hosts, amount), names))
    granted = {host: sum(part[host] for part, _ in parts) for host in hosts}
    return {"granted": granted, "deadlocks": deadlocks.count, "false_refusals": sum(part[1] for part in parts)}


def _fill(ledger, name: str, hosts: list[str], amount: int) -> tuple[dict[str, int], int]:
    rng = random.Random(name)
    granted: dict[str, int] = dict.fromkeys(hosts, 0)
    left, number, false_refusals = list(hosts), 0, 0
    while left and number < 200:
        host, number = rng.choice(left), number + 1
        try:
            ledger.claim(uuid_of(f"fill/{name}/{number}"), {host: {"VCPU": amount}}, **OWNER)
            granted[host] += amount
        except CapacityExceeded as refused:
            false_refusals += refused.used + amount <= refused.capacity
            left.remove(host)
    return granted, false_refusals


def churn(url: str, *, worker: int, hosts: list[str], rounds: int, shrink: str | None) -> dict:
    """Claim, move, replace, swap and release at the edge of capacity; shrink and grow one host now and then."""
    rng, deadlocks = random.Random(worker), _Deadlocks()
    done = {"granted": 0, "refused": 0}
    mine: list[str] = []

    def two_hosts(amount: int) -> dict:
        return {host: {"VCPU": amount, "MEMORY_MB": amount} for host in rng.sample(hosts, 2)}

    with opened(url) as ledger:
        for number in range(rounds):
            tag = f"churn/{worker}/{number}"
            try:
                _churn_once(ledger, rng, tag, mine, two_hosts)
                done["granted"] += 1
            except CapacityExceeded:
                done["refused"] += 1
            if shrink and rng.random() < 0.1:
                ledger_worlds.resize(ledger.database, shrink, "VCPU", rng.randint(1, 8))
        for consumer in mine:
            ledger.release(consumer)
    return {**done, "deadlocks": deadlocks.count}


def _churn_once(ledger, rng, tag, mine, two_hosts) -> None:
    chance = rng.random()
    if chance < 0.5 or not mine:
        consumer = uuid_of(tag)
        ledger.claim(consumer, two_hosts(rng.randint(1, 2)), **OWNER)
        mine.append(consumer)
    elif chance < 0.65:
        ledger.release(mine.pop(rng.randrange(len(mine))))
    elif chance < 0.8:
        consumer, migration = rng.choice(mine), uuid_of(f"{tag}/migration")
        ledger.begin_move(consumer, migration, two_hosts(1))
        if rng.random() < 0.5:
            if rng.random() < 0.3:
                with contextlib.suppress(CapacityExceeded):  # then it stays where it is, and the move must still end
                    ledger.swap(consumer, ledger.allocations(consumer), two_hosts(1))
            ledger.confirm_move(migration)
        else:
            ledger.revert_move(migration)
    elif chance < 0.9:
        ledger.replace({consumer: two_hosts(1) for consumer in rng.sample(mine, min(2, len(mine)))})
    else:
        consumer = rng.choice(mine)
        ledger.swap(consumer, ledger.allocations(consumer), two_hosts(rng.randint(1, 3)))


def race_for_one_move(url: str, *, migration: str, event: str) -> str:
    """End the same move as others do, in another way."""
    with opened(url) as ledger:
        try:
            if event == "release":
                ledger.release(ledger.move(migration).instance)
                return "ended"
            return str(getattr(ledger, f"{event}_move")(migration).state)
        except ConsumerNotFound:
            return "ConsumerNotFound"
        except Exception as error:
            return type(error).__name__


def record(url: str, *, worker: int, host: str, operations: int) -> list:
    """Claim and release one host at random; answer the history: [kind, amount, outcome, begun ns, ended ns]."""
    rng = random.Random(worker)
    history, mine = [], []
    with opened(url) as ledger:
        ledger.usages(provider=host)  # connected before the race
        for number in range(operations):
            begun = time.monotonic_ns()
            if mine and rng.random() < 0.5:
                consumer, amount = mine.pop(rng.randrange(len(mine)))
                ledger.release(consumer)
                kind, outcome = "release", "ok"
            else:
                consumer, amount = uuid_of(f"record/{worker}/{number}"), rng.randint(1, 3)
                kind = "claim"
                try:
                    ledger.claim(consumer, {host: {"VCPU": amount}}, **OWNER)
                    mine.append((consumer, amount))
                    outcome = "ok"
                except CapacityExceeded:
                    outcome = "refused"
            history.append([kind, amount, outcome, begun, time.monotonic_ns()])
    return history


# ---- one hot provider, for the benchmark


def hot_guarded(url: str, *, worker: int, host: str, claims: int) -> dict:
    """Claims of one provider as the ledger makes them."""
    conflicts = 0
    with opened(url) as ledger:
        ledger.usages(provider=host)
        begun = time.monotonic()
        for number in range(claims):
            try:
                ledger.claim(uuid_of(f"hot/{worker}/{number}"), {host: {"DISK_GB": 1}}, **OWNER)
            except CapacityExceeded:
                conflicts += 1
        return {"begun": begun, "ended": time.monotonic(), "conflicts": conflicts}


def hot_swapped(url: str, *, worker: int, host: str, claims: int) -> dict:
    """The same claims and the same writes, but guarded by the provider's generation: read, compare and swap, again."""
    conflicts = 0
    with opened(url) as ledger, ledger.database.engine.connect() as connection:
        cursor = connection.connection.cursor()
        ledger.usages(provider=host)
        begun = time.monotonic()
        for number in range(claims):
            tag = uuid_of(f"swap/{worker}/{number}")
            while True:
                cursor.execute("SELECT generation FROM resource_providers WHERE uuid = %s", (host,))
                generation = cursor.fetchone()[0]
                connection.connection.commit()
                cursor.execute(
                    "UPDATE resource_providers SET generation = generation + 1 WHERE uuid = %s AND generation = %s",
                    (host, generation),
                )
                if cursor.rowcount:
                    break
                connection.connection.rollback()
                conflicts += 1
            _write_hot(connection, cursor, tag, host)
            connection.connection.commit()
        return {"begun": begun, "ended": time.monotonic(), "conflicts": conflicts}


def _write_hot(connection, cursor, tag: str, host: str) -> None:
    """What a claim writes, in the transaction of *connection*."""
    if connection.dialect.name == "postgresql":
        cursor.execute(ledger_claims._ONE_STATEMENT, _hot_parameters(tag, host))
        return
    session = Session(connection, within=False)
    _, changed = ledger_claims.claim_by_statements(
        session, new_claim(tag, {host: {"DISK_GB": 1}}, tag), {}, history=True
    )
    session.add_changes(changed)


def _hot_parameters(tag: str, host: str) -> dict:
    return {
        "providers": [host],
        "classes": ["DISK_GB"],
        "amounts": [1],
        "operation": tag,
        "name": "ledger.claim",
        "fingerprint": "f",
        "result": "{}",
        "consumer": tag,
        "project_id": "project",
        "user_id": "user",
        "consumer_type": "INSTANCE",
        "expires_in": None,
        "holdings": "{}",
        "event": "claim",
        "history": True,
    }
