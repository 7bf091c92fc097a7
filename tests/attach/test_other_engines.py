"""The contracts of leases and attachments behind a pooler and over a cluster: the very tests of the plain ones.

On the cluster each manager, and each holder of leases, works at another node than the one before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from cloudcore.attach.journal.leases import Leases
from cloudcore.database import Database
from cloudcore.schema import create_schema
from tests import services
from tests.attach import test_leases, test_manager, test_swapping

pytestmark = pytest.mark.xdist_group("attachments-elsewhere")
FROM = {
    test_leases: """
        test_it_expires_by_the_databases_clock_and_by_ours
        test_one_holder_at_a_time
        test_the_living_keep_what_they_hold
        test_what_could_not_be_given_back_is_free
        test_what_was_lost_can_be_had_again
    """,
    test_manager: """
        world
        here
        there
        volumes
        open_manager
        manager
        test_a_half_confirmed_cold_move_goes_back
        test_a_live_move_between_two_processes
        test_a_move_is_one_at_a_time
        test_an_instance_ends
        test_an_interrupted_operation_is_settled_by_its_repeat
        test_an_operation_id_is_used_once
        test_evacuation
        test_force_needs_evidence
        test_growing_tells_everybody_it_can
        test_interrupted_work_of_another_host_is_left_to_it
        test_somebody_elses_attach_is_waited_for
        test_the_next_attach_settles_what_a_dead_one_left
        test_two_processes_recover_at_once
        test_what_an_audit_finds
    """,
    test_swapping: """
        test_what_began_as_a_reservation_is_held_no_more
    """,
}
globals().update({name: getattr(module, name) for module, names in FROM.items() for name in names.split()})


@pytest.fixture(scope="module", params=["pgbouncer", "galera"])
def databases(request: pytest.FixtureRequest) -> Iterator[list[Database]]:
    """One `Database` behind the pooler, or one at each node, on the same tables."""
    kind = request.param
    server = services.database_server(kind)
    made = server.create_database()
    create_schema(services.address(kind, made), areas=["attach"])
    urls = [server.at(node, made) for node in range(3)] if kind == "galera" else [services.address(kind, made)]
    opened = [Database(url) for url in urls]
    yield opened
    held = [database.engine.pool.checkedout() for database in opened]
    for database in opened:
        database.close()
    server.drop_database(made)
    assert not any(held)


@pytest.fixture
def places(databases: list[Database]) -> Iterator[Iterator[Database]]:
    """Where the next one works; at the end every table is empty."""
    yield itertools.cycle(databases)
    tables = ("events", "legs", "locks", "moves")
    statements = [f"DELETE FROM attachment_{name}" for name in tables]
    statements += ["DELETE FROM embedded_attachments", "DELETE FROM embedded_volumes"]
    databases[0].run(lambda connection: [connection.exec_driver_sql(statement).close() for statement in statements])


@pytest.fixture
def journal_database(places: Iterator[Database]) -> Database:
    return next(places)


@pytest.fixture
def tables(journal_database: Database) -> Database:
    return journal_database


@pytest.fixture
def open_leases(tables: Database, places: Iterator[Database]) -> Iterator[object]:
    opened: list[Leases] = []
    there = itertools.chain([tables], places)  # the first where the test writes: a writer may read of a moment ago

    def make(**options: object) -> Leases:
        opened.append(Leases(next(there), **{"patience": 0.0, **options}))
        return opened[-1]

    yield make
    for leases in opened:
        leases.close()
