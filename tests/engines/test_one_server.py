"""Faults and settings of one server: restarted in a storm, in another time zone, forced to another isolation."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree
from cloudcore.database import Database
from cloudcore.errors import CapacityExceeded, SchemaMismatch
from cloudcore.placement.tables import consumers
from tests.engines.storm import held
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("one-server")
OWNER = {"project_id": "p", "user_id": "u"}
KINDS = ["postgresql", "mariadb"]


OWN = pytest.mark.parametrize("own", KINDS, indirect=True)


def fill(ledgers, hosts, granted: list[tuple[str, str]], *, over=None) -> None:
    """Claims of one unit by a thread for each of *ledgers*, until *hosts* are full or *over* is set, into *granted*."""

    def work(number: int) -> None:
        full: set[str] = set()
        count = number
        while len(full) < len(hosts) and not (over is not None and over.is_set()):
            count += 1
            consumer, host = str(uuid.uuid4()), hosts[count % len(hosts)]
            try:
                ledgers[number].claim(consumer, {host: {"VCPU": 1}}, **OWNER)
                granted.append((consumer, host))
            except CapacityExceeded:
                full.add(host)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(ledgers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


@OWN
def test_restart_in_a_storm_surfaces_no_error(own):
    """kill -9 and recovery within the time that the library repeats for: callers notice nothing but the wait."""
    server, url = own
    with Database(url) as database, PlacementTree.open(database) as tree:
        hosts = [tree.add(name, inventory={"VCPU": 100_000}).uuid for name in "ab"]
        over, granted = threading.Event(), []

        def restart() -> None:
            try:
                for _ in range(2):
                    enough = len(granted) + 20
                    until(lambda: len(granted) >= enough)  # noqa: B023
                    server.kill()
                    server.start()
                until(lambda: len(granted) > enough)
            finally:
                over.set()

        restarter = threading.Thread(target=restart)
        restarter.start()
        fill([AllocationLedger(database) for _ in range(4)], hosts, granted, over=over)
        restarter.join()
        assert held(database) == dict(granted)
        AllocationLedger(database).check()


@OWN
def test_isolation_that_is_forced_costs_attempts_only(own):
    """SERIALIZABLE by the caller's engine: filled to the last unit, none beyond."""
    _, url = own
    engine = sa.create_engine(url, isolation_level="SERIALIZABLE")
    with Database(url) as plain, PlacementTree.open(plain) as tree:
        hosts = [tree.add(name, inventory={"VCPU": 12}).uuid for name in "ab"]
        ledgers = [AllocationLedger(Database(engine)) for _ in range(3)]
        granted: list[tuple[str, str]] = []
        fill(ledgers, hosts, granted)
        assert len(granted) == 24
        ledgers[0].check()
    engine.dispose()


@OWN
def test_server_in_another_time_zone(own):
    """An engine of the caller's, whose sessions have the server's zone, and one of a URL agree on when a claim ends."""
    server, url = own
    name = sa.make_url(url).database
    if "postgresql" in url:
        server.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    else:
        server.execute("SET GLOBAL time_zone = '+09:00'")
    engine = sa.create_engine(url, isolation_level="READ COMMITTED")
    try:
        with Database(url) as ours, PlacementTree.open(ours) as tree:
            host = tree.add("h", inventory={"VCPU": 8}).uuid
            for database in (ours, Database(engine)):
                consumer = str(uuid.uuid4())
                AllocationLedger(database).claim(consumer, {host: {"VCPU": 1}}, expires_in=600, **OWNER)
                with ours.read() as connection:
                    ends = connection.scalar(sa.select(consumers.c.expires_at).where(consumers.c.uuid == consumer))
                assert 500 < (ends - datetime.now(UTC)).total_seconds() < 700
                AllocationLedger(database).check()
    finally:
        engine.dispose()
        if "mysql" in url:
            server.execute("SET GLOBAL time_zone = '+00:00'")


@OWN
def test_tables_of_another_release_are_named(own):
    """A column that is missing is told from a broken statement, by every area's first use of it."""
    _, url = own
    with Database(url) as database:
        with PlacementTree.open(database) as tree:
            host = tree.add("h", inventory={"VCPU": 8}).uuid
        database.run(lambda connection: connection.exec_driver_sql("ALTER TABLE inventories DROP COLUMN step_size"))
        with pytest.raises(SchemaMismatch, match="schema upgrade"):
            AllocationLedger(database).claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, **OWNER)
        with pytest.raises(SchemaMismatch, match="schema upgrade"):
            PlacementTree.open(database)
