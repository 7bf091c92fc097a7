"""PostgreSQL with a synchronous standby that is promoted in the middle of a storm, and URLs that name several hosts."""

from __future__ import annotations

import threading
import uuid

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.database import Database, RetryPolicy, open_engine
from cloudcore.errors import DatabaseUnavailable, InvalidArgument, OutcomeUnknown
from tests import services
from tests.engines.storm import held
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("standby")
OWNER = {"project_id": "p", "user_id": "u"}


def test_promotion_in_a_storm():
    """What was acknowledged is there, once; the same objects go on at the new primary, and so does a follower."""
    pair = services.postgresql_pair(variant="promoted")
    url = pair.create_database()
    create_schema(url)
    both = url.replace(f"127.0.0.1:{pair.port}", f"127.0.0.1:{pair.port},127.0.0.1:{pair.standby_port}")
    standby = url.replace(f":{pair.port}/", f":{pair.standby_port}/")
    pair.catch_up()
    with Database(standby, retry=RetryPolicy(attempts=1)) as reading, pytest.raises(DatabaseUnavailable):
        reading.run(lambda connection: connection.exec_driver_sql("DELETE FROM operations"))
    with Database(both) as database, PlacementTree.open(database) as follower:
        hosts = [follower.add(name, inventory={"VCPU": 100_000}).uuid for name in "abc"]
        pair.catch_up()
        with PlacementTree.open(standby) as replica:  # reading where a little staleness does no harm
            assert len(replica) == 3
        ledger = AllocationLedger(database)
        acknowledged: dict[str, str] = {}
        over = threading.Event()

        def work(worker: int) -> None:
            number = worker
            while not over.is_set():
                number += 1
                consumer, operation, host = str(uuid.uuid4()), str(uuid.uuid4()), hosts[number % 3]
                while True:
                    try:
                        ledger.claim(consumer, {host: {"VCPU": 1}}, operation_id=operation, **OWNER)
                    except (DatabaseUnavailable, OutcomeUnknown):
                        continue
                    acknowledged[consumer] = host
                    break

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) >= 50 or not any(thread.is_alive() for thread in threads))
        follower.refresh()
        before = len(acknowledged)
        pair.kill()
        pair.promote()
        until(lambda: len(acknowledged) >= before + 50 or not any(thread.is_alive() for thread in threads))
        over.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert held(database) == acknowledged
        ledger.check()
        follower.refresh()
        follower.check()
        with PlacementTree.open(database) as fresh:
            for host in hosts:
                assert follower.usage(host) == fresh.usage(host)
            assert sum(fresh.usage(host).get("VCPU", 0) for host in hosts) == len(acknowledged)


# ---- several hosts in a URL


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "mysqldb", "mariadbconnector"], indirect=True)
@pytest.mark.parametrize("dead", ["127.0.0.1:1,{}", "{},127.0.0.1:1"])
def test_host_that_is_away_is_passed_over(database_url, dead):
    here = sa.make_url(database_url)
    hosts = dead.format(f"127.0.0.1:{here.port}")
    with Database(database_url.replace(f"127.0.0.1:{here.port}", hosts)) as database:
        for _ in range(2):
            database.ping()
            database.engine.dispose()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_all_hosts_away_is_said(database_url):
    here = sa.make_url(database_url)
    url = database_url.replace(f"127.0.0.1:{here.port}", "127.0.0.1:1,127.0.0.1:2")
    with Database(url, retry=RetryPolicy(attempts=1)) as database, pytest.raises(DatabaseUnavailable):
        database.ping()


def test_read_only_host_takes_no_writer():
    """The first host turns read-only: whoever writes goes to the second, by the very objects that used the first."""
    one, two = services.mariadb(variant="readonly"), services.mariadb()
    made = one.create_database()
    name = sa.make_url(made).database
    two.execute(f"CREATE DATABASE {name}")
    for server in (one, two):
        server.execute("CREATE USER IF NOT EXISTS plain@'127.0.0.1' IDENTIFIED BY 'p'")
        server.execute(f"GRANT ALL ON {name}.* TO plain@'127.0.0.1'")
    try:
        with Database(f"mysql://plain:p@127.0.0.1:{one.port},127.0.0.1:{two.port}/{name}") as database:
            database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE here (id integer)"))
            one.execute("SET GLOBAL read_only = 1")
            database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS here (id integer)"))
            database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (1)"))
        assert two.execute(f"SELECT * FROM {name}.here") == [(1,)]
        assert one.execute(f"SELECT * FROM {name}.here") == []
    finally:
        one.execute("SET GLOBAL read_only = 0")
        for server in (one, two):
            server.execute(f"DROP DATABASE {name}")


def test_urls_of_several_hosts():
    engine = open_engine("postgresql://u:p%40ss@a,b:5433,[::1]:5434/d")
    seen = {}

    @sa.event.listens_for(engine, "do_connect")
    def _stop(dialect, record, arguments, named):
        seen.update(named)
        raise dialect.loaded_dbapi.OperationalError("not tried")

    with pytest.raises(sa.exc.OperationalError):
        engine.connect()
    assert (seen["host"], seen["port"], seen["password"]) == ("a,b,::1", ",5433,5434", "p@ss")
    assert seen["target_session_attrs"] == "read-write"
    assert open_engine("mysql://u:p@a:1,b/d").url.host == "a"
    for wrong in ("postgresql://u@a,:x/d", "mysql://u@a:1:2,b/d"):
        with pytest.raises(InvalidArgument):
            open_engine(wrong)
