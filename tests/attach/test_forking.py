"""A forked child goes on with its parent's manager and what belongs to it, whatever the parent is about at the fork."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from keystoneauth1.identity import v3
from keystoneauth1.session import Session

from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.tables import attachment_locks
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.disks import Disk, FileSource
from cloudcore.errors import Conflict, VolumeBusy
from cloudcore.hypervisor.disks.guests import Waiter
from cloudcore.hypervisor.disks.xml import alias_of
from cloudcore.hypervisor.memory import MemoryHypervisor
from cloudcore.schema import create_schema
from tests import services
from tests.attach.conftest import instance
from tests.attach.gateway import Gateway, page
from tests.services._host import REPOSITORY
from tests.test_forking import Held, forked, forked_amid

EVERYWHERE = pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)


@pytest.fixture
def tables(database):
    create_schema(database, areas=["attach"])
    return database


@pytest.fixture
def leases(tables):
    opened = Leases(tables, patience=0.0)
    yield opened
    opened.close()


def rows(database) -> dict[str, tuple[str, float]]:
    with database.read() as connection:
        return {row.name: (row.owner, row.expires) for row in connection.execute(sa.select(attachment_locks))}


@EVERYWHERE
def test_child_renews_what_it_holds(tables):
    """Though its copy of the renewing thread is one that does not run."""
    with contextlib.closing(Leases(tables, seconds=0.6)) as leases:
        with leases.hold(["volume/of the parent"]):
            pass

        def hold() -> str:
            with leases.hold(["volume/a"]):
                first = rows(tables)
                while rows(tables) == first:
                    leases.wait(0.01)
            leases.close()
            return str(rows(tables))

        assert leases._renewer is not None
        assert forked(hold) == "{}"


@EVERYWHERE
def test_child_waits_for_no_thread_of_its_parent(leases):
    """One is in the leases' books, others hold names or queue for them."""
    with Held(leases.hold(["volume/a"])), Held(leases._mutex), Held(leases._closing._cond):

        def hold(name: str) -> str:
            try:
                with leases.hold([name]), contextlib.closing(leases):
                    return "held"
            except VolumeBusy as error:
                return str(error)

        assert forked(lambda: hold("volume/b")) == "held"
        [(owner, _)] = rows(leases._database).values()
        assert f"held by {owner}" in forked(lambda: hold("volume/a")), "known by its row, not by the lock of a thread"


@EVERYWHERE
def test_child_neither_renews_nor_gives_back_what_its_parent_holds(tables, leases):
    with leases.hold(["volume/a"]) as lease:
        leases._dropped.add(lease.owner)
        with tables.write() as connection:
            connection.execute(sa.update(attachment_locks).values(expires=1e9))
        assert forked(leases.renew) == "None"
        assert rows(tables) == {"volume/a": (lease.owner, 1e9)}
        leases._dropped.clear()


@EVERYWHERE
def test_child_of_who_holds_has_nothing(tables, leases):
    """The fork is made within the block: there the child may do nothing more, and its end is not the parent's."""
    with contextlib.ExitStack() as stack:
        lease = stack.enter_context(leases.hold(["volume/a", "target/h/b"]))
        held = rows(tables)
        assert forked(lease.require) == Conflict.__name__
        assert forked(lambda: tables.run(lease.release)) == "None"
        assert forked(stack.close) == "None"
        assert rows(tables) == held
        lease.require()
    assert rows(tables) == {}


def test_closed_leases_stay_closed_in_the_child(leases):
    leases.close()
    assert forked(lambda: leases.wait(60)) == "None"


# --- a manager --------------------------------------------------------------------------------------------------------


class Meeting(MemoryGuests):
    """Calls *when_met* each time that a disk has come to a guest."""

    def __init__(self, when_met=lambda: None) -> None:
        super().__init__("compute-1")
        self.when_met = when_met

    def attach_disk(self, instance_id, disk):
        state = super().attach_disk(instance_id, disk)
        self.when_met()
        return state


@EVERYWHERE
def test_child_attaches_while_its_parent_does(tables):
    """Another volume, and detaches it. That on which a thread of the parent is at work is busy, and attached then."""
    met, go_on = threading.Event(), threading.Event()
    guests = Meeting()
    with AttachmentManager(tables, hypervisor=guests, patience=0.5) as manager:
        mine, theirs = (manager.volumes.create_volume().id for _ in range(2))

        def stop() -> None:
            met.set()
            assert go_on.wait(60)

        def child() -> str:
            guests.when_met = lambda: None
            manager.detach(manager.attach(theirs, instance()).id)
            with pytest.raises(VolumeBusy, match="held by"):
                manager.attach(mine, instance())
            manager.check()
            manager.close()
            return manager.volumes.volume(theirs).status

        guests.when_met = stop
        attaching = threading.Thread(target=manager.attach, args=(mine, instance()))
        try:
            attaching.start()
            assert met.wait(60)
            assert forked(child, patience=60) == "available"
        finally:
            go_on.set()
            attaching.join()
        assert [one.state for one in manager.attachments(volume_id=mine)] == ["attached"]
        manager.check()
    assert rows(tables) == {}


@EVERYWHERE
def test_child_of_a_call_under_way_leaves_it_to_its_parent(tables):
    """The fork is made within the call, by what it calls: there it fails, and at the parent it succeeds."""
    children: list[int] = []

    def fork() -> None:
        children.append(os.fork())
        signal.alarm(0 if children[0] else 60)

    failed = False
    with AttachmentManager(tables, hypervisor=Meeting(fork), patience=0.5) as manager:
        volume = manager.volumes.create_volume().id
        try:
            attachment = manager.attach(volume, instance())
        except Conflict:
            failed = True
        finally:
            if children == [0]:
                os._exit(7 if failed else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
        assert manager.attachment(attachment.id).state == "attached"
        assert manager.recover().complete
        manager.check()
    assert rows(tables) == {}


# --- volumes of a Cinder ----------------------------------------------------------------------------------------------

VERSIONS = {"id": "v3.0", "status": "CURRENT", "version": "3.71", "min_version": "3.0"}


@pytest.fixture
def cinder():
    """A Cinder's answers to a client that looks at volumes, over connections that are kept."""

    def rule(_: str, path: str):
        last = path.rpartition("/")[2]
        if "/volumes/" not in path:
            return page(body=json.dumps({"versions": [VERSIONS]}).encode(), kind="application/json")
        body = {"volume": {"id": last, "status": "available", "size": 1, "attachments": []}}
        return page(body=json.dumps(body).encode(), kind="application/json")

    with Gateway(0) as gateway:
        gateway.rule = rule
        yield gateway


def of_noauth(gateway) -> CinderVolumes:
    return CinderVolumes.noauth(f"http://127.0.0.1:{gateway.port}/v3", project_id=services.PROJECT)


def askers(gateway, volume_id: str) -> set[int]:
    return {port for path, port in gateway.asked if path.endswith(volume_id)}


def test_child_asks_cinder_over_connections_of_its_own(cinder):
    """Both ask at once, again and again, and each gets its answers; the parent's connection outlives the children."""
    mine, theirs = str(uuid.uuid4()), str(uuid.uuid4())
    with of_noauth(cinder) as volumes:
        volumes.volume(mine)
        over, wrong = threading.Event(), []

        def ask() -> None:
            while not over.is_set():
                if volumes.volume(mine).id != mine:
                    wrong.append(mine)

        asking = threading.Thread(target=ask)
        asking.start()

        def child() -> bool:
            fine = all(volumes.volume(theirs).id == theirs for _ in range(20))
            volumes.close()
            return fine

        try:
            assert [forked(child) for _ in range(2)] == ["True", "True"]
        finally:
            over.set()
            asking.join()
        volumes.volume(mine)
    assert (len(askers(cinder, mine)), len(askers(cinder, theirs)), wrong) == (1, 2, [])


def locks_of(volumes):
    """Of its client, its cookies, its connection pools, and the pool to its Cinder; not what they belong to."""
    requests = volumes._calls._http._original.session
    pools = requests.get_adapter("http://").poolmanager.pools
    [pool] = pools._container.values()
    client, _ = volumes._calls.speak()
    return client.client._rate_semaphore._lock, requests.cookies._cookies_lock, pools.lock, pool.pool.mutex


def test_child_of_who_asks_cinder_waits_for_no_thread(cinder):
    """They are in the midst of a request, or of logging in."""
    plugin = v3.Password("http://127.0.0.1:1/v3", "open sesame")
    other = v3.Password("http://127.0.0.1:1/v3", "open sesame")
    with of_noauth(cinder) as volumes:
        volumes.volume(str(uuid.uuid4()))
        of_users = CinderVolumes(Session(auth=plugin), service_auth=other)
        with contextlib.ExitStack() as held:
            for lock in [*locks_of(volumes), plugin._lock, other._lock]:
                held.enter_context(Held(lock))
            assert forked(lambda: volumes.volume(str(uuid.uuid4())).status) == "available"
            assert forked(lambda: plugin._lock.acquire(timeout=0) and other._lock.acquire(timeout=0)) == "True"
        of_users.close()


# --- os-brick ---------------------------------------------------------------------------------------------------------

PRIVILEGED = """
import contextlib, sys
from cloudcore.attach import BrickConnector
from tests.test_forking import Held, forked

def describe():
    return BrickConnector("compute-1", lock_path=sys.argv[1], root_helper="env").describe().host

connector = BrickConnector("compute-1", lock_path=sys.argv[1], root_helper="env")
assert connector.describe().host == "compute-1"
from os_brick.initiator.connectors.base import synchronized
from os_brick.privileged import default, rootwrap
from cloudcore.attach.hosts import brick_calls
channel = default.channel
assert channel.running

def child():
    with synchronized("connect_volume", external=True)(contextlib.nullcontext)():
        assert connector.describe().host == describe() == "compute-1"
    rootwrap.execute_root("true")
    return default.channel not in {None, channel}, channel.writer.writesock.fileno()

@contextlib.contextmanager
def at_work():
    with default.start_lock, connector._mutex, brick_calls._mutex, semaphore:
        yield

from oslo_concurrency import lockutils
semaphore = lockutils.internal_lock("connect_volume")
with Held(at_work()):
    print(forked(child))
rootwrap.execute_root("true")
assert default.channel is channel and channel.running
print("the parent's lives")
"""


def test_child_starts_a_privileged_helper_of_its_own(tmp_path):
    """Whatever threads of the parent do with os-brick; the parent's helper serves the parent on."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-W", "ignore", "-c", PRIVILEGED, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, env=environment)
    assert ended.stdout == "(True, -1)\nthe parent's lives\n", ended.stderr[-3000:]


# --- guests in memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemoryGuests, MemoryHypervisor])
def test_guests_in_memory_are_copied_whole(kind):
    """The fork waits for a thread that is about to change them, unless it forks itself."""
    guests, volume = kind("compute-1"), str(uuid.uuid4())
    instances = [str(uuid.uuid4()) for _ in range(3)]
    owner = guests if kind is MemoryGuests else guests._driver
    if kind is MemoryHypervisor:
        for instance in instances:
            guests.add_guest(instance)

    def attach(instance: str) -> None:
        guests.attach_disk(instance, Disk(volume_id=volume, source=FileSource("/v", "raw")))

    def child() -> int:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(attach, instances[2]).result()
        guests.detach_disk(instances[0], volume)
        return len([one for one in guests.disk_states() if one.live])

    first, second, _ = instances
    assert forked_amid(owner, [lambda: attach(first), lambda: attach(second)], child) == "2"
    with owner._mutex if kind is MemoryGuests else owner.lock:
        assert forked(child) == "2"
    assert {one.instance_id for one in guests.disk_states() if one.live} == {first, second}


def test_child_gives_no_hint_to_threads_of_its_parent():
    """One waits for its guest to let go, another is about to."""
    hypervisor, instance, volume = MemoryHypervisor(), str(uuid.uuid4()), str(uuid.uuid4())
    hypervisor.add_guest(instance)
    hypervisor.attach_disk(instance, Disk(volume_id=volume, source=FileSource("/v", "raw")))
    waiters = hypervisor._driver.waiters
    waiter = Waiter(waiters, (instance, alias_of(volume)))
    with waiter, Held(waiter._condition):
        assert forked(lambda: hypervisor.detach_disk(instance, volume)) == "detached"
    with Held(waiters._lock):
        assert forked(lambda: hypervisor.detach_disk(instance, volume)) == "detached"
