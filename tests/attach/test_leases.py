"""Leases: one holder across threads and processes, freed by release, by expiry, or by the holder's death."""

import os
import threading

import pytest
import sqlalchemy as sa

from cloudcore import errors
from cloudcore.attach.journal.leases import Leases, owner_is_dead, process_identity
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


def test_it_expires_by_the_databases_clock(tables, open_leases):
    """Somebody of another machine, of whom nothing is known but the time."""
    stranger = {"name": "volume/a", "owner": "elsewhere/1/2/3", "expires": 4e9}
    with tables.write() as connection:
        connection.execute(sa.insert(attachment_locks), stranger)
    leases = open_leases()
    with pytest.raises(errors.VolumeBusy), leases.hold(["volume/a"]):
        pass
    with tables.write() as connection:
        assert leases.held_by_living(connection) == {"volume/a"}
        assert leases.sweep(connection) == 0
        connection.execute(sa.update(attachment_locks).values(expires=1e9))
        assert leases.held_by_living(connection) == set()
    with leases.hold(["volume/a"]) as lease:
        assert rows(tables) == {"volume/a": lease.owner}


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
