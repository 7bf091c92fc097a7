"""What an administrator, or a machine, may do to one server: other modes of SQL, other levels, other clocks."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid

import pytest
import sqlalchemy as sa
import time_machine

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore._failpoints import arm, disarm
from cloudcore.attach import AttachmentManager
from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.tables import attachment_locks
from cloudcore.database import Database, open_engine
from cloudcore.database.standing import examine_database
from cloudcore.errors import CapacityExceeded, InvalidArgument, VolumeBusy
from cloudcore.listing import Cell, CellRouter, InstanceDirectory, InstanceStore, Query, Sort
from cloudcore.placement.ledger.move_calls import Expired
from cloudcore.placement.tables import consumers
from tests import services

pytestmark = pytest.mark.xdist_group("one-server")
OWNER = {"project_id": "p'\"\\%|", "user_id": "u`"}
NAMES = ["o'hara", 'say "no"', "back\\slash", "back\\' OR 1=1 -- ", "100%s", "a||b", "`tick`", "tab\there"]
ALONE = ["ANSI", "ANSI_QUOTES", "TRADITIONAL", "NO_BACKSLASH_ESCAPES", "PIPES_AS_CONCAT"]
EVERY = "ANSI,TRADITIONAL,NO_BACKSLASH_ESCAPES"  # ANSI has ANSI_QUOTES and PIPES_AS_CONCAT in it
MODES = [("mariadb", ""), *((driver, EVERY) for driver in ("mariadb", "mysqldb", "mariadbconnector"))]
MODES += [pytest.param("mariadb", mode, marks=pytest.mark.slow) for mode in ALONE]


@pytest.fixture
def mariadb_url():
    server = services.mariadb()
    url = server.create_database()
    yield url
    server.drop_database(url)


def exercise(source: str | sa.Engine) -> list:
    """A little of everything, with names that need quoting; what is read back, which must not depend on the setting."""
    database = Database(source)
    create_schema(database)
    told: list = []
    with PlacementTree.open(database) as tree:
        hosts = {name: tree.add(name, inventory={"VCPU": 4}, traits=["CUSTOM_A"]).uuid for name in NAMES}
        inner = tree.add("inner", parent=hosts[NAMES[0]], inventory={"VCPU": 4})
        tree.move(inner.uuid, hosts[NAMES[1]])
        ledger = AllocationLedger(database)
        holders = [str(uuid.UUID(int=number)) for number in range(1, 5)]
        for holder in holders:
            ledger.claim(holder, {hosts[NAMES[0]]: {"VCPU": 1}}, **OWNER)
        with pytest.raises(CapacityExceeded):
            ledger.claim(str(uuid.uuid4()), {hosts[NAMES[0]]: {"VCPU": 1}}, **OWNER)
        ledger.begin_move(holders[0], str(uuid.UUID(int=77)), {hosts[NAMES[2]]: {"VCPU": 2}})
        ledger.confirm_move(str(uuid.UUID(int=77)))
        ledger.replace({holders[1]: {hosts[NAMES[3]]: {"VCPU": 3}}})
        ledger.release(holders[2])
        tree.refresh()
        tree.check()
        ledger.check()
        told += [(name, tree.usage(hosts[name])) for name in NAMES]
        told += [sorted(provider.name for provider in tree), ledger.usages(project_id=OWNER["project_id"])]
    with AttachmentManager(database) as manager:
        volume = manager.volumes.create_volume(name=NAMES[3])
        leg = manager.attach(volume.id, str(uuid.UUID(int=9)))
        told.append(manager.volumes.volume(volume.id).name)
        manager.detach(leg.id)
        manager.check()
    with CellRouter([Cell("c1", source)], directory=InstanceDirectory(Database(source)), deadline=60.0) as router:
        store = InstanceStore(router)
        rows = [{"project_id": name, "display_name": name, "metadata": {"k": name}} for name in NAMES]
        store.create_many("c1", rows)
        for name in NAMES:
            found = router.page(Query(tenant=name, where={"display_name": {"contains": name[1:3]}})).records
            told.append([record.display_name for record in found])
            told.append(router.count(Query(metadata={"k": name})).total)
        page = router.page(Query(sort=[Sort("display_name")], limit=3))
        rest = router.page(Query(sort=[Sort("display_name")]), cursor=page.next_cursor)
        told.append([record.display_name for record in (*page.records, *rest.records)])
        assert store.audit() == []
    database.close()
    return told


@pytest.fixture(scope="module")
def plain():
    """What is told without any setting."""
    server = services.mariadb()
    url = server.create_database()
    yield exercise(url)
    server.drop_database(url)


@pytest.mark.parametrize(("driver", "mode"), MODES)
def test_sql_mode_of_the_callers_engine_changes_nothing(mariadb_url, plain, driver, mode):
    if driver != "mariadb":
        services.require(driver)
    said = {"init_command": f"SET sql_mode = '{mode}'"}
    url = services.address(driver, mariadb_url)
    engine = sa.create_engine(url, isolation_level="READ COMMITTED", connect_args=said)
    assert exercise(engine) == plain
    engine.dispose()


@pytest.mark.parametrize("own", ["mariadb"], indirect=True)
def test_sql_mode_of_the_server_is_not_ours(own, plain):
    server, url = own
    (before,) = server.execute("SELECT @@global.sql_mode")[0]
    server.execute(f"SET GLOBAL sql_mode = '{EVERY}'")
    try:
        assert exercise(url) == plain
    finally:
        server.execute(f"SET GLOBAL sql_mode = '{before}'")


# ---- isolation that the server forces on those who do not say


@pytest.mark.parametrize("own", ["mariadb"], indirect=True)
def test_server_that_reads_what_is_not_committed_is_refused_unless_the_level_is_named(own):
    server, url = own
    server.execute("SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
    silent, saying = sa.create_engine(url), sa.create_engine(url, isolation_level="READ COMMITTED")
    try:
        for way in (Database(silent).read, Database(silent).write):
            with pytest.raises(InvalidArgument, match='isolation_level="READ COMMITTED"'), way():
                pass
        with Database(url) as ours, PlacementTree.open(ours) as tree:
            host = tree.add("h", inventory={"VCPU": 8}).uuid
            AllocationLedger(ours).claim(str(uuid.uuid4()), {host: {"VCPU": 3}}, **OWNER)
            with saying.connect() as connection:
                connection.exec_driver_sql("UPDATE inventories SET used = 7")
                for database in (ours, Database(saying)):
                    for way in (database.read, database.write):
                        with way() as looking:
                            assert looking.exec_driver_sql("SELECT used FROM inventories").scalar() == 3
    finally:
        server.execute("SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        silent.dispose()
        saying.dispose()


@pytest.mark.parametrize("own", ["postgresql"], indirect=True)
@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_isolation_of_the_database_is_not_that_of_a_url(own, level):
    server, url = own
    server.execute(f"ALTER DATABASE {sa.make_url(url).database} SET default_transaction_isolation = '{level}'")
    with Database(url) as database:
        for way in (database.read, database.write):
            with way() as connection:
                assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"


# ---- a client whose clock is an hour off


HOUR = dt.timedelta(hours=1)
OFF = pytest.mark.parametrize("off", [HOUR, -HOUR], ids=["ahead", "behind"])


def far(off: dt.timedelta) -> time_machine.travel:
    """What is done within has this machine's clock so far off; the servers' are right."""
    return time_machine.travel(dt.datetime.now(dt.UTC) + off, tick=True)


@OFF
def test_deadlines_and_changes_are_of_the_databases_clock(database, off):
    """Of claims and of moves; and a follower knows by positions, not by times, what is new."""
    create_schema(database)
    ledger, soon = AllocationLedger(database), sa.select(consumers.c.expires_at)
    with PlacementTree.open(database) as tree, PlacementTree.open(database) as follower:
        host, other = (tree.add(name, inventory={"VCPU": 8}).uuid for name in "ab")
        pending, instance, early = (str(uuid.uuid4()) for _ in range(3))
        ledger.claim(early, {host: {"VCPU": 1}}, expires_in=600, **OWNER)
        with far(off):
            ledger.claim(pending, {host: {"VCPU": 1}}, expires_in=600, **OWNER)
            ledger.claim(instance, {host: {"VCPU": 1}}, **OWNER)
            ledger.begin_move(instance, str(uuid.uuid4()), {other: {"VCPU": 1}}, expires_in=600)
            assert ledger.expire() == Expired(consumers=(), migrations=())
            assert list(ledger.audit()) == []
            follower.refresh()
            made = tree.add("c")
        assert ledger.expire() == Expired(consumers=(), migrations=())
        with database.read() as connection:
            ends = connection.scalar(soon.where(consumers.c.uuid == pending))
        assert 500 < (ends - dt.datetime.now(dt.UTC)).total_seconds() < 700
        follower.refresh()
        assert made.name in follower
        assert follower.usage(host) == {"VCPU": 3}
        ledger.check()


@OFF
def test_leases_are_of_the_databases_clock(database, off):
    """Whoever is an hour off takes nobody's lease before its time, and gives none for longer."""
    create_schema(database)
    with far(off):
        leases = Leases(database, seconds=60.0, patience=0.0)
    try:
        with far(off), leases.hold(["volume/a"]):
            with database.read() as connection:
                expires = connection.scalar(sa.select(attachment_locks.c.expires))
            leases.renew()
        assert expires - dt.datetime.now(dt.UTC).timestamp() == pytest.approx(60, abs=50)
        stranger = {"name": "volume/b", "owner": "elsewhere/1/2/3", "expires": dt.datetime.now(dt.UTC).timestamp() + 60}
        with database.write() as connection:
            connection.execute(sa.insert(attachment_locks), stranger)
        with far(off):
            for _ in range(2):
                with pytest.raises(VolumeBusy), leases.hold(["volume/b"]):
                    pass
            with database.write() as connection:
                assert leases.sweep(connection) == 0
                assert leases.held_by_living(connection) == {"volume/b"}
    finally:
        leases.close()


@OFF
def test_audit_of_records_does_not_take_a_create_under_way_for_a_dead_one(database, off):
    """The entry is there, the record is not yet: whose clock is off, its writer's or the auditor's, does not matter."""
    create_schema(database)
    with CellRouter([Cell("c1", database.engine)], directory=InstanceDirectory(database), deadline=60.0) as router:
        store, found = InstanceStore(router), []

        def audit(_: str) -> None:
            disarm()
            found.append(store.audit())
            with far(off):
                found.append(store.audit())

        for clock in (contextlib.nullcontext(), far(off)):
            arm("listing.create.entered", audit)
            with clock:
                store.create("c1", project_id="p")
        assert found == [[], [], [], []]
        assert len(store.audit(grace=dt.timedelta(seconds=-60))) == 0


@OFF
def test_changes_since_reaches_back_by_as_much_as_clocks_differ(database, off):
    """When a record changed is told by whose clock changed it; by how far that is off, the doctor tells."""
    create_schema(database)
    with CellRouter([Cell("c1", database.engine)], directory=InstanceDirectory(database), deadline=60.0) as router:
        store = InstanceStore(router)
        changed, kept = (store.create("c1", project_id="p", display_name=name) for name in ("a", "b"))
        since = dt.datetime.now(dt.UTC)
        with far(off):
            store.update(changed, display_name="c")
            facts = {fact.name: fact for fact in examine_database(database)}

        def found(moment: dt.datetime) -> set[str]:
            return {record.uuid for record in router.page(Query(changes_since=moment)).records}

        assert found(since) == ({changed} if off > dt.timedelta() else set())
        assert found(since - abs(off)) >= {changed}
        assert found(since - abs(off) - HOUR) == {changed, kept}
        if "clock" in facts:
            assert facts["clock"].advice is not None


# ---- what a URL says of its sessions


def test_what_a_postgresql_url_says_holds_beside_what_the_library_needs():
    server = services.postgresql()
    url = server.create_database()
    said = url + ("&" if "?" in url else "?") + "options=-csearch_path%3Dtenant&application_name=mine&connect_timeout=7"
    admin = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with admin.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant")
    admin.dispose()
    asked = "SELECT current_setting('search_path'), current_setting('application_name'), current_setting('TimeZone'), "
    asked += "current_setting('lock_timeout')"
    for more in ({}, {"connect_args": {"options": "-c timezone=Asia/Tokyo"}}):
        engine = open_engine(said, **more)
        with engine.connect() as connection:
            path, name, zone, bound = connection.exec_driver_sql(asked).one()
        engine.dispose()
        assert (name, bound) == ("mine", "30s")
        assert (path, zone) == (("tenant", "UTC") if not more else ('"$user", public', "Asia/Tokyo"))
    database = Database(said)
    with database:
        create_schema(database)
        with CellRouter([Cell("c", said)]) as router:
            assert router.page().complete, "the tables are found where the URL says"
    server.drop_database(url)


@pytest.mark.parametrize("url", ["sqlite:///{}/a.db", "postgresql://u@h/d", "mysql://u@h/d"])
def test_a_pool_without_bounds_takes_none(tmp_path, url):
    engine = open_engine(url.format(tmp_path), poolclass=sa.pool.NullPool)
    assert isinstance(engine.pool, sa.pool.NullPool)
    engine = open_engine(url.format(tmp_path), max_overflow=0, pool_size=3)
    assert (engine.pool.size(), engine.pool._max_overflow) == (3, 0)
    engine = open_engine(url.format(tmp_path), poolclass=None)
    assert isinstance(engine.pool, sa.pool.QueuePool)
