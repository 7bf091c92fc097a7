"""Operations take effect once; transactions are repeated while nothing was committed; errors get their right names."""

from __future__ import annotations

import inspect
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, AttachmentManager, HostSelector, PlacementTree
from cloudcore.database import (
    Database,
    Operation,
    RetryPolicy,
    create_tables,
    insert_ignoring_duplicates,
    open_engine,
    operations,
    retrying,
    transactions,
)
from cloudcore.errors import (
    ConstraintViolated,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    OperationMismatch,
    OutcomeUnknown,
    SchemaMismatch,
)
from tests.faults import Proxy

SCHEMA = sa.MetaData()
COUNTERS = sa.Table(
    "test_counters",
    SCHEMA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Integer, nullable=False),
    sa.CheckConstraint("value < 100", name="ck_value_small"),
)
COMMIT = {"postgresql": b"COMMIT\x00", "mariadb": b"\x03COMMIT"}
QUICK = RetryPolicy(attempts=4, initial=0.001, maximum=0.01)


@pytest.fixture
def counted(new_database):
    """A database with two counters at zero and the table of operations."""
    database = new_database()
    operations.create(database.engine)
    SCHEMA.create_all(database.engine)
    with database.write() as connection:
        connection.execute(sa.insert(COUNTERS), [{"id": 1, "value": 0}, {"id": 2, "value": 0}])
    return database


def add(connection, counter: int = 1, amount: int = 1) -> dict:
    connection.execute(sa.update(COUNTERS).where(COUNTERS.c.id == counter).values(value=COUNTERS.c.value + amount))
    return {"added": amount}


def value(database, counter: int = 1) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(COUNTERS.c.value).where(COUNTERS.c.id == counter))


def operation(identifier: str = "op", /, **arguments) -> Operation:
    return Operation.of("test.add", arguments, identifier)


# ---- once


def test_operation_takes_effect_once(counted):
    outcomes = [counted.operate(operation(), add) for _ in range(3)]
    assert [outcome.repeated for outcome in outcomes] == [False, True, True]
    assert [outcome.result for outcome in outcomes] == [{"added": 1}] * 3
    assert value(counted) == 1


def test_operation_id_is_bound_to_its_arguments(counted):
    counted.operate(operation(amount=1), add)
    for other in (operation(amount=2), Operation.of("test.other", {"amount": 1}, "op")):
        with pytest.raises(OperationMismatch) as mismatch:
            counted.operate(other, add)
        assert mismatch.value.operation_id == "op"
    assert value(counted) == 1


def test_failed_operation_leaves_its_id_free(counted):
    def fail(connection):
        add(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        counted.operate(operation(), fail)
    assert not counted.operate(operation(), add).repeated
    assert value(counted) == 1


def test_threads_with_one_id_have_one_effect(counted):
    """The insert of the id makes the others wait for the first."""
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(counted.operate(operation(), add))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.repeated for outcome in outcomes) == [False, True, True, True, True, True]
    assert value(counted) == 1


def test_pruned_operations_are_forgotten_and_newer_ones_kept(counted):
    counted.operate(operation("old"), add)
    counted.clock = lambda: datetime.now(UTC) + timedelta(days=2)
    counted.operate(operation("new"), add)
    assert counted.prune_operations(datetime.now(UTC) + timedelta(days=1)) == 1
    assert counted.prune_operations(datetime.now(UTC) + timedelta(days=1)) == 0
    assert counted.operate(operation("new"), add).repeated
    assert not counted.operate(operation("old"), add).repeated


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_an_id_that_is_forgotten_while_it_is_looked_up_is_taken_anew(counted, monkeypatch):
    """PostgreSQL locks nothing where an insert does nothing: what was done then must stand under the id again."""
    counted.operate(operation(), add)
    look = Database.stored_operation

    def pruned_meanwhile(database, connection, asked):
        monkeypatch.undo()
        assert database.prune_operations(datetime.now(UTC) + timedelta(days=1)) == 1
        return look(database, connection, asked)

    monkeypatch.setattr(Database, "stored_operation", pruned_meanwhile)
    assert not counted.operate(operation(), add).repeated
    assert counted.operate(operation(), add).repeated
    assert value(counted) == 2


def test_operation_ids_are_checked():
    for identifier in ("", "x" * 65, "x ", "\ud800"):
        with pytest.raises(InvalidArgument):
            Operation.of("test", {}, identifier)
    first, second = Operation.of("test", {"a": 1, "b": 2}), Operation.of("test", {"b": 2, "a": 1})
    assert first.id != second.id
    assert first.fingerprint == second.fingerprint
    made = Operation.of("test", {}, id_factory=lambda: "made")
    assert made.id == "made"


def test_insert_says_whether_it_inserted(counted):
    """What a repeat is told by: 1 for a new row, 0 for a key that is taken."""
    row = {"id": "i", "name": "n", "fingerprint": "f", "created_at": datetime.now(UTC)}
    counts = []
    for _ in range(2):
        with counted.write() as connection:
            counts.append(connection.execute(insert_ignoring_duplicates(operations, counted.dialect), row).rowcount)
    assert counts == [1, 0]


# ---- lost answers


@pytest.fixture
def proxied(counted, dialect):
    with Proxy(counted.engine.url.port) as proxy, Database(counted.engine.url.set(port=proxy.port), retry=QUICK) as far:
        with far.engine.connect():
            pass  # one fresh connection, set up before anything is cut
        yield proxy, far


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize(("cut", "repeated"), [("cut_when", False), ("cut_after", True)])
def test_connection_cut_at_commit_is_resolved(counted, proxied, dialect, cut, repeated):
    """COMMIT lost on its way, or its answer: the id tells which, and the effect is there once."""
    proxy, far = proxied
    getattr(proxy, cut)(COMMIT[dialect])
    assert far.operate(operation(), add).repeated == repeated
    assert proxy.cuts == 1
    assert value(counted) == 1


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_run_cannot_know_and_says_so(counted, proxied, dialect):
    proxy, far = proxied
    proxy.cut_after(COMMIT[dialect])
    with pytest.raises(OutcomeUnknown):
        far.run(add)
    assert value(counted) == 1


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_database_that_stays_away_leaves_the_outcome_unknown(counted, proxied, dialect):
    proxy, far = proxied
    proxy.cut_after(COMMIT[dialect])
    proxy.refuse()
    with pytest.raises(OutcomeUnknown) as unknown:
        far.operate(operation(), add)
    assert unknown.value.operation_id == "op"
    with pytest.raises(DatabaseUnavailable):
        far.operate(operation("other"), add)
    proxy.accept()
    assert far.operate(operation(), add).repeated
    assert not far.operate(operation("other"), add).repeated
    assert value(counted) == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_crash_at_commit_of_sqlite_is_resolved(counted, monkeypatch):
    """The process that dies right after COMMIT never answers; the repeat in the next one finds the effect."""
    real = transactions.failpoint

    def die(name):
        if name == "database.commit.after":
            raise SystemExit
        real(name)

    monkeypatch.setattr(transactions, "failpoint", die)
    with pytest.raises(SystemExit):
        counted.operate(operation(), add)
    monkeypatch.setattr(transactions, "failpoint", real)
    assert counted.operate(operation(), add).repeated
    assert value(counted) == 1


# ---- deadlocks and serialization failures


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_deadlock_is_repeated_and_both_take_effect_once(counted):
    """Two transactions lock two rows the other way round; the victim starts afresh."""
    meet = threading.Barrier(2)
    attempts = []

    def cross(first: int, second: int) -> None:
        def work(connection):
            attempts.append(first)
            add(connection, first)
            if len(attempts) <= 2:
                meet.wait(10)
            add(connection, second)
            return {}

        counted.operate(operation(f"cross-{first}"), work)

    threads = [threading.Thread(target=cross, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) > 2, "there was no deadlock: the test tests nothing"
    assert (value(counted, 1), value(counted, 2)) == (2, 2)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_serialization_failure_is_repeated(new_database_url):
    url = new_database_url()
    engine = open_engine(url, isolation_level="SERIALIZABLE")
    database = Database(engine)
    operations.create(engine)
    SCHEMA.create_all(engine)
    with database.write() as connection:
        connection.execute(sa.insert(COUNTERS), [{"id": 1, "value": 0}])
    tries = []

    def work(connection):
        seen = connection.scalar(sa.select(COUNTERS.c.value).where(COUNTERS.c.id == 1))
        tries.append(seen)
        if len(tries) == 1:
            with Database(url) as other:
                other.run(lambda inner: add(inner))
        connection.execute(sa.update(COUNTERS).where(COUNTERS.c.id == 1).values(value=seen + 1))
        return {}

    database.operate(operation(), work)
    assert (tries, value(database)) == ([0, 1], 2)
    engine.dispose()


def test_busy_after_all_attempts_is_said_with_nothing_committed(counted):
    """A writer that never ends: bounded attempts, then DatabaseBusy."""
    with Database(counted.engine.url, retry=QUICK, busy_timeout=1.0 if counted.dialect != "sqlite" else 0.01) as other:
        other.retry = RetryPolicy(attempts=2, initial=0.001, maximum=0.01)
        with counted.write() as connection:
            add(connection)
            with pytest.raises(DatabaseBusy):
                other.operate(operation("waits"), add)
    assert value(counted) == 1
    assert not counted.operate(operation("waits"), add).repeated


# ---- names of errors


def test_constraints_are_named(counted):
    for statement, expected in (
        (sa.insert(COUNTERS).values(id=1, value=0), None),
        (sa.update(COUNTERS).values(value=1000), "ck_value_small"),
    ):
        with pytest.raises(ConstraintViolated) as violated:
            counted.run(lambda connection, s=statement: connection.execute(s))
        assert expected is None or expected in f"{violated.value.constraint} {violated.value}"
    assert value(counted) == 0


def test_missing_tables_say_what_creates_them(new_database):
    database = new_database()
    with pytest.raises(SchemaMismatch, match="schema"):
        database.operate(operation(), add)


def test_wrong_sql_is_no_passing_fault(counted):
    with pytest.raises(DatabaseError):
        counted.run(lambda connection: connection.execute(sa.text("SELEKT 1")))


def test_password_is_in_no_message(new_database_url, dialect):
    url = sa.make_url(new_database_url())
    url = url.set(database="/nowhere/at/all.db") if dialect == "sqlite" else url.set(port=1)
    with Database(url, retry=RetryPolicy(attempts=1)) as database:
        with pytest.raises(DatabaseUnavailable) as away:
            database.ping()
        assert (url.password or "no password") not in str(away.value)
        assert (url.password or "no password") not in repr(database)


def test_exhausted_pool_is_busy(database_url):
    engine = open_engine(database_url, pool_size=1, pool_timeout=0.05)
    engine.pool._max_overflow = 0
    database = Database(engine)
    with engine.connect(), pytest.raises(DeadlineExceeded):
        database.ping()
    engine.dispose()


def test_full_disk_is_an_error_and_the_next_call_works(sqlite_database):
    """No half effect, no passing fault, nothing broken afterwards."""
    operations.create(sqlite_database.engine)
    with sqlite_database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

    def fill(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}")
        for number in range(1000):
            connection.execute(
                sa.insert(operations),
                {"id": str(number), "name": "n" * 60, "fingerprint": "f", "created_at": datetime.now(UTC)},
            )

    with pytest.raises(DatabaseError, match="full"):
        sqlite_database.run(fill)
    with sqlite_database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        assert connection.scalar(sa.select(sa.func.count()).select_from(operations)) == 0


def test_unknown_databases_and_urls_are_refused():
    for url in ("oracle://x/y", "not a url"):
        with pytest.raises(InvalidArgument):
            open_engine(url)


def test_retry_policy_stops():
    calls = []

    def attempt():
        calls.append(1)
        raise DatabaseBusy("still busy")

    policy = RetryPolicy(attempts=3, initial=0.0001, maximum=0.001)
    with Database("sqlite://", retry=policy) as database, pytest.raises(DatabaseBusy):
        database.resolve(operation(), attempt)
    assert len(calls) == 3


def test_first_attempt_counts_against_the_deadline(monkeypatch):
    """It runs before the retry loop is made; what it took is over all the same."""
    now, calls = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    def attempt():
        calls.append(1)
        now[0] += 31.0
        raise DatabaseBusy("waited for a lock in vain")

    monkeypatch.setattr(retrying, "time", Clock)
    with pytest.raises(DatabaseBusy):
        RetryPolicy(attempts=5, deadline=30.0, initial=0.0001, maximum=0.001).call(attempt)
    assert len(calls) == 1


def test_only_what_is_named_is_repeated():
    """An unknown outcome is not repeated where nobody could resolve it."""
    policy = RetryPolicy(attempts=3, initial=0.0001, maximum=0.001)
    outcomes = [DatabaseUnavailable("away"), OutcomeUnknown("lost"), None]

    def attempt():
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        return "done"

    with pytest.raises(OutcomeUnknown):
        policy.call(attempt, (DatabaseBusy, DatabaseUnavailable))
    assert policy.call(attempt) == "done"


def test_results_are_json(counted):
    with pytest.raises(TypeError):
        counted.operate(operation(), lambda _: {1, 2})
    outcome = counted.operate(operation(), lambda _: {"a": [1, None, "é"]})
    assert json.loads(json.dumps(outcome.result)) == outcome.result


@pytest.mark.parametrize(
    ("kind", "repeatable"),
    [
        (
            PlacementTree,
            (
                "add load move put_inventory remove remove_inventory rename set_aggregates set_inventory "
                "set_traits update"
            ),
        ),
        (
            AllocationLedger,
            ("abandon_move begin_move claim confirm_move expire release replace reshape revert_move settle swap"),
        ),
        (HostSelector, "select select_destination"),
        (AttachmentManager, "attach reserve"),
    ],
)
def test_the_calls_that_take_an_operation_id_are_those_of_the_documents(kind, repeatable):
    """README and the page on databases name them by kind: whoever adds one, or takes one away, mends these, too."""
    calls = {name: call for name, call in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    assert {name for name, call in calls.items() if "operation_id" in inspect.signature(call).parameters} == {
        *repeatable.split()
    }


def test_no_tables_are_made_of_none(tmp_path):
    """A caller's list may be empty: nothing is asked of the database, not even whether it is there."""
    with Database(f"sqlite:///{tmp_path}/none.db") as database:
        create_tables(database.engine, [])
        database.run(lambda connection: create_tables(connection, []))
        with database.read() as connection:
            assert sa.inspect(connection).get_table_names() == []
    with Database("postgresql://u:p@127.0.0.1:1/x") as away:
        create_tables(away.engine, [])
        with pytest.raises(sa.exc.OperationalError):
            create_tables(away.engine, [COUNTERS])
