"""PgBouncer in transaction pooling: with `pooler="transaction"` everything works, without it the error says so."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.database import Database, RetryPolicy
from cloudcore.errors import DatabaseBusy, DatabaseError, InvalidArgument
from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore, Query
from cloudcore.placement.ledger.group_commit import Ticket
from tests import services
from tests.placement.ledger_jobs import new_claim

OWNER = {"project_id": "p", "user_id": "u"}


@pytest.fixture
def pooled():
    """URL of an empty database through the pooler, and of the same without it."""
    pooler = services.pgbouncer()
    url = pooler.create_database()
    yield url, pooler.direct(url)
    pooler.drop_database(url)


def test_without_the_option_the_error_names_it(pooled):
    with Database(pooled[0]) as database, pytest.raises(DatabaseError, match='pooler="transaction"'):
        database.ping()


def test_option_is_for_postgresql():
    for url in ("sqlite://", "mysql://u@localhost/d"):
        with pytest.raises(InvalidArgument, match="pooler"):
            Database(url, pooler="transaction")
    with pytest.raises(InvalidArgument, match="pooler"):
        Database("postgresql://u@localhost/d?pooler=session")


def ends_by_itself(call: Callable[[], object], holder: sa.Connection) -> BaseException | None:
    """What *call* raises while *holder* keeps it from a row; a failure, and no hanging test, if it waits for ever."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call)
        try:
            return waiting.exception(60)
        except TimeoutError:
            holder.rollback()
            pytest.fail("the wait for a lock has no bound")


def test_wait_for_a_lock_is_bounded_and_nothing_leaks(pooled):
    """The bound is said in each transaction; the sessions, which others use next, keep nothing of it."""
    with Database(pooled[0], pooler="transaction", busy_timeout=0.3, retry=RetryPolicy(attempts=1)) as database:
        database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE here (id integer)"))
        database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (1)"))
        for way in (database.read, database.write):
            with way() as connection:
                assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "300ms"
        with database.write() as holder:
            holder.exec_driver_sql("UPDATE here SET id = 2")
            update = lambda connection: connection.exec_driver_sql("UPDATE here SET id = 3")  # noqa: E731
            assert isinstance(ends_by_itself(lambda: database.run(update), holder), DatabaseBusy)
        level = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        with level.connect() as connection:
            shown = {connection.exec_driver_sql("SHOW lock_timeout").scalar_one() for _ in range(20)}
            named = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
        assert (shown, named) == ({"0"}, 0)


def without_joins_but_loops(url: str) -> None:
    """For each session of this database that begins from now on."""
    with Database(url) as direct, direct.write() as connection:
        name = connection.exec_driver_sql("SELECT quote_ident(current_database())").scalar_one()
        for join in ("hashjoin", "mergejoin"):
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET enable_{join} = off")


@pytest.mark.parametrize("plan", ["usual", "loops"])
@pytest.mark.parametrize("call", ["claim", "group", "begin_move"])
def test_single_statement_bounds_its_wait_too(pooled, call, plan):
    """A claim, a group of claims and the beginning of a move are one statement each, in whatever session is free.

    Whatever the plan: with loops alone, a group's locks are taken before its claims are looked at.
    """
    create_schema(pooled[1])
    if plan == "loops":
        without_joins_but_loops(pooled[1])
    options = {"pooler": "transaction", "busy_timeout": 0.3, "retry": RetryPolicy(attempts=1)}
    with Database(pooled[0], **options) as database, PlacementTree.open(database) as tree:
        host, other = (tree.add(name, inventory={"VCPU": 100}).uuid for name in "ab")
        ledger = AllocationLedger(database)
        instance = str(uuid.uuid4())
        ledger.claim(instance, {other: {"VCPU": 1}}, **OWNER)
        pair = [Ticket(new_claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, f"of group {n}")) for n in (1, 2)]
        calls = {
            "group": lambda: ledger._claim_group(pair),
            "claim": lambda: ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, **OWNER),
            "begin_move": lambda: ledger.begin_move(instance, str(uuid.uuid4()), {host: {"VCPU": 1}}),
        }
        with database.write() as holder:
            holder.exec_driver_sql("UPDATE inventories SET used = used")
            assert isinstance(ends_by_itself(calls[call], holder), DatabaseBusy)
        ledger.check()


def test_crowd_of_claims_shares_a_few_sessions(pooled):
    create_schema(pooled[1])
    with Database(pooled[0], pooler="transaction") as database, PlacementTree.open(database) as tree:
        hosts = [tree.add(name, inventory={"VCPU": 100}).uuid for name in "ab"]
        ledger = AllocationLedger(database)
        failed = []

        def work() -> None:
            try:
                for number in range(15):
                    consumer = str(uuid.uuid4())
                    ledger.claim(consumer, {hosts[number % 2]: {"VCPU": 1}}, **OWNER)
                    if number % 3 == 0:
                        ledger.begin_move(consumer, str(uuid.uuid4()), {hosts[(number + 1) % 2]: {"VCPU": 1}})
                    elif number % 3 == 1:
                        ledger.release(consumer)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not failed
        ledger.check()
        tree.refresh()
        tree.check()


@pytest.mark.parametrize("said", ["by the cell", "by the URL"])
def test_cell_behind_the_pooler_answers_every_page(pooled, said):
    pooled_url, direct = pooled
    cell = Cell("c1", pooled_url, pooler="transaction") if said == "by the cell" else None
    cell = cell or Cell("c1", f"{pooled_url}?pooler=transaction")
    with CellRouter([cell], directory=InstanceDirectory("sqlite://"), deadline=10.0) as router:
        store = InstanceStore(router)
        store.create_tables()
        store.create_many("c1", [{"project_id": f"t{number % 3}"} for number in range(60)])
        seen = []

        def ask(limit: int) -> None:
            for number in range(15):
                page = router.page(Query(tenant=f"t{number % 3}", limit=limit))
                report = page.cells["c1"]
                seen.append((str(report.state), {record.project_id for record in page.records} == {f"t{number % 3}"}))

        threads = [threading.Thread(target=ask, args=(5 + number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert set(seen) == {("answered", True)}
    with Database(direct) as plain, plain.read() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"
