"""The beginning of a move in one statement does what the beginning step by step does, and waits like it."""

from __future__ import annotations

import json
import threading

import pytest
import sqlalchemy as sa

from cloudcore import _failpoints
from cloudcore.database import Database
from cloudcore.errors import CloudcoreError
from cloudcore.placement import AllocationLedger, tables
from cloudcore.placement.ledger import transactions
from tests.placement import ledger_worlds
from tests.placement.ledger_jobs import OWNER, Trial
from tests.placement.ledger_worlds import uuid_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)]


def held(ledger, t):
    ledger.claim(t.a, t.here, **OWNER)


def nothing(ledger, t):
    pass


def moving(ledger, t):
    held(ledger, t)
    ledger.begin_move(t.a, t.b, t.there)


def moved_back(ledger, t):
    moving(ledger, t)
    ledger.revert_move(t.b)


def retired(ledger, t):
    held(ledger, t)
    ledger.release(t.a, forever=True)


def pending(ledger, t):
    ledger.claim(t.a, t.here, expires_in=600, **OWNER)


def lapsed(ledger, t):
    pending(ledger, t)
    ledger_worlds.overdue(ledger.database, t.a)


def migration_holds(ledger, t):
    held(ledger, t)
    ledger.claim(t.m, t.there, **OWNER)


def migration_is_over(ledger, t):
    held(ledger, t)
    ledger.begin_move(t.a, t.m, t.there, operation_id=f"begun {t.tag}")
    ledger.revert_move(t.m, operation_id=f"over {t.tag}")


def instance_is_migration(ledger, t):
    """The instance of the new move is the migration of another."""
    ledger.claim(t.b, t.here, **OWNER)
    ledger.begin_move(t.b, t.a, t.there)


def full(ledger, t):
    held(ledger, t)
    ledger.claim(uuid_of(f"{t.tag}/other"), {t.h2: {"VCPU": 3}}, **OWNER)


SAME = lambda t: t.here  # noqa: E731 - as short as what they say
ONE = lambda t: {t.h2: {"VCPU": 1}}  # noqa: E731
SCENARIOS = {
    "moves": (held, {}),
    "moves back and forth": (moved_back, {}),
    "stays on its host": (held, {"to": SAME}),
    "lives": (held, {"to": SAME, "kind": "live"}),
    "lives in another shape": (held, {"to": ONE, "kind": "live"}),
    "grows": (held, {"to": lambda t: {t.h1: {"VCPU": 2, "MEMORY_MB": 12}}, "kind": "resize"}),
    "is evacuated": (held, {"kind": "evacuation"}),
    "expires": (held, {"expires_in": 600}),
    "evacuation that expires": (held, {"kind": "evacuation", "expires_in": 600}),
    "pending": (pending, {}),
    "lapsed": (lapsed, {}),
    "right generation": (held, {"generation": 1}),
    "stale generation": (moved_back, {"generation": 1}),
    "expected to be new": (held, {"generation": 0}),
    "holds nothing": (nothing, {}),
    "retired": (retired, {}),
    "moving already": (moving, {}),
    "migration holds": (migration_holds, {}),
    "migration is over": (migration_is_over, {}),
    "is a migration": (instance_is_migration, {}),
    "full": (full, {}),
    "beyond max_unit": (held, {"to": lambda t: {t.h2: {"VCPU": 4}, t.h1: {"MEMORY_MB": 18}}}),
    "unknown provider": (held, {"to": lambda t: {uuid_of("nowhere"): {"VCPU": 1}}}),
    "unknown class": (held, {"to": lambda t: {t.h2: {"VCPU": 1, "PGPU": 1}}}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_statement_and_many_agree(ledger_database, dialect, monkeypatch, name):
    ledger = AllocationLedger(ledger_database)
    seen = []
    for way in ("one", "many"):
        if way == "many":
            monkeypatch.setattr(transactions, "is_usual", lambda _: False)
        trial = Trial(f"{name}/{way}")
        trial.build(ledger_database)
        SCENARIOS[name][0](ledger, trial)
        seen.append(begin(ledger, trial, **SCENARIOS[name][1]))
    assert seen[0] == seen[1]
    ledger.check()


def begin(ledger: AllocationLedger, t: Trial, *, to=lambda t: t.there, **options) -> list:
    """What it answered, said again, and left behind, with names in the place of what differs between trials."""
    answers = []
    for _ in range(2):
        try:
            move = ledger.begin_move(t.a, t.m, to(t), operation_id=f"op {t.tag}", **options)
            facts = [move.kind, move.state, move.source, move.destination, move.asked, move.story, move.repeated]
            answers.append([*facts, move.expires_at is None])
            assert ledger.move(t.m).expires_at == move.expires_at
        except CloudcoreError as error:
            answers.append([type(error).__name__, str(error)])
    histories = [[(e.event, e.allocations) for e in ledger.history_of(c)] for c in (t.a, t.m)]
    consumers = [ledger.consumer(uuid) for uuid in (t.a, t.m)]
    owners = [c and [c.project_id, c.user_id, c.consumer_type, c.generation, c.expires_at is None] for c in consumers]
    with ledger.database.read() as connection:
        numbers = {ledger_worlds.provider_id(connection, host): n for n, host in enumerate((t.h1, t.h2))}
        marks = connection.exec_driver_sql(
            "SELECT provider_id FROM provider_changes ORDER BY position DESC, provider_id LIMIT 2"
        )
        told = [numbers.get(number, "another") for (number,) in marks]
    text = json.dumps([answers, histories, owners, t.view(ledger), told])
    for place in ("h1", "h2", "a", "b", "m", "tag"):
        text = text.replace(getattr(t, place), place)
    return json.loads(text)


def test_usual_beginning_is_one_statement(ledger_database, dialect):
    ledger = AllocationLedger(ledger_database)
    trial = Trial("alone")
    trial.build(ledger_database)
    held(ledger, trial)
    passed: list[str] = []
    _failpoints.arm("*", passed.append)
    try:
        ledger.begin_move(trial.a, trial.m, trial.there)
    finally:
        _failpoints.disarm()
    assert passed == ["ledger.begin.statement.before", "ledger.begin.statement.after"]


WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.mark.parametrize("what", ["swap", "begin", "release", "claim anew"])
def test_what_is_written_while_it_waits_for_the_lock_is_seen(ledger_database, dialect, what):
    """The statement began before the other's commit and reads the past; its verdict must not rest on that."""
    ledger = AllocationLedger(ledger_database)
    trial = Trial(what)
    trial.build(ledger_database)
    held(ledger, trial)
    change = {
        "swap": lambda: ledger.swap(trial.a, trial.here, {trial.h1: {"VCPU": 1}}),
        "begin": lambda: ledger.begin_move(trial.a, trial.b, trial.there),
        "release": lambda: ledger.release(trial.a),
        "claim anew": lambda: ledger.claim(trial.a, {trial.h1: {"MEMORY_MB": 1}}, generation=1, **OWNER),
    }[what]
    outcomes: list[object] = []

    def late() -> None:
        try:
            outcomes.append(ledger.begin_move(trial.a, trial.m, {trial.h2: {"VCPU": 1}}).source)
        except CloudcoreError as error:
            outcomes.append(type(error).__name__)

    thread = threading.Thread(target=late)

    def before_the_commit(_: str) -> None:
        _failpoints.disarm("ledger.changes.insert")
        thread.start()
        with ledger_database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.exec_driver_sql(WAITING).scalar_one():
                assert thread.is_alive(), "it did not wait"

    _failpoints.arm("ledger.changes.insert", before_the_commit)
    try:
        if what == "begin":  # step by step, to stop it before its commit
            ledger.transact(*step_by_step(ledger, trial))
        else:
            change()
    finally:
        _failpoints.disarm()
        thread.join()
    expected = {
        "swap": {trial.h1: {"VCPU": 1}},
        "begin": "InUse",
        "release": "ConsumerNotFound",
        "claim anew": {trial.h1: {"MEMORY_MB": 1}},
    }[what]
    assert outcomes == [expected]
    ledger.check()


def step_by_step(ledger: AllocationLedger, trial: Trial):
    from cloudcore.database import Operation
    from cloudcore.placement.ledger import moves as ledger_moves
    from cloudcore.placement.rules.moves import MoveKind

    asked = ledger_moves.MoveRequest(
        migration=trial.b,
        instance=trial.a,
        destination=trial.there,
        kind=MoveKind.COLD,
        overlap="sum",
        shared=(),
        expires_in=None,
        generation=None,
    )
    operation = Operation.of("test", {}, "other")
    return operation, lambda session: ledger_moves.begin(session, "other", asked, history=True)


PLANS = "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE strpos(statement, 'WITH wanted') > 0"


def many_providers(database: Database, count: int) -> None:
    """So many that the planner sees a difference between three look-ups and ten."""
    providers, numbers = tables.resource_providers, range(10**6, 10**6 + count)
    with database.write() as connection:
        rows = [{"id": n, "uuid": uuid_of(f"h{n - 10**6}"), "name": f"h{n}", "generation": 0} for n in numbers]
        connection.execute(sa.insert(providers), rows)
        inventory = ledger_worlds.row("VCPU", {"total": 1000})
        connection.execute(sa.insert(tables.inventories), [{"provider_id": n, **inventory} for n in numbers])


def test_single_statements_are_planned_once(ledger_database, dialect):
    """Planning one takes longer than carrying it out: after a few trials the server must keep a plan for all."""
    with Database(ledger_database.engine.url, pool_size=1) as database:
        many_providers(database, 5000)
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")
        ledger = AllocationLedger(database)
        for n in range(20):
            ledger.claim(uuid_of(n), {uuid_of("h1"): {"VCPU": 1}}, **OWNER)
        for n in range(20):
            ledger.begin_move(uuid_of(n), uuid_of(f"m{n}"), {uuid_of("h2"): {"VCPU": 1}})
        with database.read() as connection:
            plans = connection.exec_driver_sql(PLANS).all()
    assert len(plans) == 2
    assert all(generic > custom for generic, custom in plans)


@pytest.mark.parametrize("rival", ["repeat", "another migration"])
def test_beginnings_that_race(ledger_database, dialect, rival):
    """Repeats: one takes effect and all hear of it. Rivals: one begins, the others are told of it."""
    ledger = AllocationLedger(ledger_database)
    trial = Trial(f"race/{rival}")
    trial.build(ledger_database)
    held(ledger, trial)
    start, outcomes = threading.Barrier(6), []

    def work(number: int) -> None:
        migration = trial.m if rival == "repeat" else uuid_of(f"{trial.tag}/{number}")
        operation = "the same" if rival == "repeat" else f"op {number}"
        start.wait()
        try:
            outcomes.append(ledger.begin_move(trial.a, migration, trial.there, operation_id=operation).repeated)
        except CloudcoreError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(False) == 1
    assert outcomes.count(True if rival == "repeat" else "InUse") == 5
    assert ledger.allocations(trial.a) == trial.there
    ledger.check()
