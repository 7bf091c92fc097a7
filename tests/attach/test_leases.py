"""Leases: one holder across threads and processes, freed by release, by expiry, or by the holder's death."""

import os
import signal
import threading

import pytest
import sqlalchemy as sa

from cloudcore import errors
from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.journal.owners import owner_is_dead, process_identity
from cloudcore.attach.tables import attachment_locks
from cloudcore.database import Database
from cloudcore.schema import create_schema


@pytest.fixture
def tables(database):
    create_schema(database, areas=["attach"])
    return database


@pytest.fixture
def open_leases(tables):
    opened = []

    def make(**options):
        opened.append(Leases(tables, **{"patience": 0.0, **options}))
        return opened[-1]

    yield make
    for leases in opened:
        leases.close()


def rows(database):
    with database.read() as connection:
        return {row.name: row.owner for row in connection.execute(sa.select(attachment_locks))}


def test_one_holder_at_a_time(tables, open_leases):
    """Two openers are as two processes; names do not disturb each other."""
    one, two = open_leases(), open_leases()
    with one.hold(["volume/a", "target/h/b"]) as lease:
        assert rows(tables) == {"volume/a": lease.owner, "target/h/b": lease.owner}
        with pytest.raises(errors.VolumeBusy, match="volume/a"), two.hold(["volume/a"]):
            pass
        with two.hold(["volume/c"]):
            pass
        assert rows(tables) == {"volume/a": lease.owner, "target/h/b": lease.owner}
    assert rows(tables) == {}
    with two.hold(["volume/a"]):
        pass


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_threads_queue(open_leases):
    """No thread enters while another is inside, and each gets its turn."""
    leases = open_leases(patience=60)
    inside, most, turns, mutex = 0, 0, 0, threading.Lock()

    def work():
        nonlocal inside, most, turns
        with leases.hold(["volume/a"]):
            with mutex:
                inside += 1
                most = max(most, inside)
            with mutex:
                inside -= 1
                turns += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, turns) == (1, 8)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_first_line_is_written_with_the_lease_or_not_at_all(tables, open_leases):
    """What runs in the transaction that takes the lease is undone with it."""

    def start(connection):
        row = {"name": "witness", "owner": "w", "expires": 0.0}
        connection.execute(sa.insert(attachment_locks), row)
        raise errors.Conflict("no")

    with pytest.raises(errors.Conflict), open_leases().hold(["volume/a"], start=start):
        pass
    assert rows(tables) == {}


def expire(tables, expires=1e9):
    """Let the database's clock be past the end of every lease."""
    with tables.write() as connection:
        connection.execute(sa.update(attachment_locks).values(expires=expires))


def test_it_expires_by_the_databases_clock_and_by_ours(tables, open_leases):
    """Somebody of another machine, of whom nothing is known but the time: no clock alone takes it away."""
    stranger = {"name": "volume/a", "owner": "elsewhere/1/2/3", "expires": 4e9}
    with tables.write() as connection:
        connection.execute(sa.insert(attachment_locks), stranger)
    now = 1000.0
    leases = open_leases(seconds=60.0, monotonic=lambda: now)

    def busy():
        with pytest.raises(errors.VolumeBusy), leases.hold(["volume/a"]):
            pass
        return True

    assert busy()
    with tables.write() as connection:
        assert leases.held_by_living(connection) == {"volume/a"}
        assert leases.sweep(connection) == 0
    now += 600.0
    assert busy()  # by ours alone
    expire(tables)
    assert busy()  # the database's clock may have stepped: from here on it is watched
    with tables.read() as connection:
        assert leases.held_by_living(connection) == set()
        assert leases.seconds_to_watch(connection) == pytest.approx(57.0)
    now += 50.0
    expire(tables, expires=1.5e9)  # renewed, by a clock that lags
    assert busy()
    now += 56.0
    assert busy()
    assert tables.run(leases.sweep) == 0
    now += 2.0
    with tables.read() as connection:
        assert leases.seconds_to_watch(connection) == 0.0
    with leases.hold(["volume/a"]) as lease:
        assert rows(tables) == {"volume/a": lease.owner}


def test_what_is_held_is_renewed_while_the_next_is_waited_for(tables, open_leases):
    """The wait may be longer than a lease; and the time to trust in counts from what was asked for longest ago."""
    now = 1000.0
    other, leases = open_leases(), open_leases(patience=60, seconds=60.0, monotonic=lambda: now)
    found: list[float] = []

    def work():
        with leases.hold(["volume/a", "target/h/b"]) as lease:
            found.append(lease.fresh_until)

    waiting = threading.Thread(target=work)
    with other.hold(["target/h/b"]):
        waiting.start()
        while not leases._held:
            waiting.join(0.001)
            assert waiting.is_alive()
        now += 30.0
        expire(tables)
        leases.renew()
        with tables.read() as connection:
            renewed = sa.select(attachment_locks.c.expires).where(attachment_locks.c.name == "volume/a")
            assert connection.execute(renewed).scalar_one() > 1e9
        now += 10.0
    waiting.join()
    assert found == [1030.0 + 54.0]


def test_the_living_keep_what_they_hold(tables, open_leases):
    """However late: another thread, by another object, of this process."""
    now = 1000.0
    mine, others = open_leases(), open_leases(monotonic=lambda: now)
    with mine.hold(["volume/a"]) as lease:
        expire(tables)
        for _ in range(2):
            with pytest.raises(errors.VolumeBusy, match="held by"), others.hold(["volume/a"]):
                pass
            now += 1e6
        assert tables.run(others.sweep) == 0
        with tables.read() as connection:
            assert others.held_by_living(connection) == {"volume/a"}
            assert others.seconds_to_watch(connection) == 0.0
        assert rows(tables) == {"volume/a": lease.owner}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_stopped_process_keeps_what_it_holds(tables, open_leases):
    """It may go on at any moment; killed, it holds nothing."""
    url, now = tables.engine.url, 1000.0
    child = os.fork()
    if child == 0:
        with Leases(Database(url), patience=0.0).hold(["volume/a"]):
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    expire(tables)
    leases = open_leases(monotonic=lambda: now)
    for _ in range(2):
        with pytest.raises(errors.VolumeBusy), leases.hold(["volume/a"]):
            pass
        now += 1e6
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with leases.hold(["volume/a"]):
        pass


def test_what_could_not_be_given_back_is_free(tables, open_leases):
    """The database was away at the end: others of this process may have it at once, and it is given back later."""
    leases, others, run = open_leases(), open_leases(), Database.run

    def away(self, work, *arguments, **more):
        if getattr(work, "__name__", "") == "release":
            raise errors.DatabaseUnavailable("away")
        return run(self, work, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Database, "run", away)
        with leases.hold(["volume/a", "volume/b"]):
            pass
    assert set(rows(tables)) == {"volume/a", "volume/b"}
    with others.hold(["volume/a"]):
        leases.renew()
        assert set(rows(tables)) == {"volume/a"}


def test_what_was_lost_can_be_had_again(tables, open_leases):
    """Under another name: what was written under the old one no longer counts."""
    leases = open_leases()
    with leases.hold(["volume/a"]) as lease:
        before = lease.owner
        with tables.write() as connection:
            connection.execute(sa.delete(attachment_locks))
        leases.regain(lease)
        assert rows(tables) == {"volume/a": lease.owner}
        assert lease.owner != before
        lease.require()
    assert rows(tables) == {}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_dead_process_holds_nothing(tables):
    """Its leases are free at once, not after they expire."""
    url = tables.engine.url
    child = os.fork()
    if child == 0:
        leases = Leases(Database(url), patience=0.0)
        with leases.hold(["volume/a"]):
            os._exit(0)
    os.waitpid(child, 0)
    ((name, owner),) = rows(tables).items()
    assert owner_is_dead(owner)
    leases = Leases(tables, patience=0.0)
    with leases.hold([name]) as lease:
        assert rows(tables) == {name: lease.owner}
    leases.close()


def test_the_living_are_not_dead():
    assert not owner_is_dead(f"{process_identity()}/x")
    assert not owner_is_dead("elsewhere/1/2/3")
    assert not owner_is_dead("nonsense")
    machine, pid, started = process_identity().split("/")
    assert owner_is_dead(f"{machine}/{pid}/{int(started) - 1}/x")  # the number was given to another process


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_renewal(tables, open_leases):
    """A renewed lease lasts longer; without renewal the holder stops by itself, before anybody can take over."""
    now = 1000.0
    leases = open_leases(seconds=60.0, monotonic=lambda: now)
    with leases.hold(["volume/a"]) as lease:
        with tables.write() as connection:
            connection.execute(sa.update(attachment_locks).values(expires=1.0))
        leases.renew()
        with tables.read() as connection:
            assert leases.held_by_living(connection) == {"volume/a"}
        now += 53.0
        lease.require()
        now += 2.0
        with pytest.raises(errors.Conflict, match="may have expired"):
            lease.require()
        leases.renew()
        lease.require()


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_dead_rows_are_swept(tables, open_leases):
    machine, pid, started = process_identity().split("/")
    dead = {"name": "volume/b", "owner": f"{machine}/{pid}/{int(started) - 1}/x", "expires": 4e9}
    leases = open_leases()
    with tables.write() as connection:
        connection.execute(sa.insert(attachment_locks), dead)
    with leases.hold(["volume/a"]) as lease:
        assert tables.run(leases.sweep) == 1
        assert rows(tables) == {"volume/a": lease.owner}
