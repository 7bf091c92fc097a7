"""What the manager promises beyond the common scenarios, on embedded volumes and a host with a referee."""

import contextlib
import copy
import datetime as dt
import logging
import re
import threading
import uuid

import attrs
import pytest

from cloudcore import errors
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.lifecycle.rules import Limits
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.values import ConnectionInfo, Connector
from cloudcore.disks import (
    BlockSource,
    DetachOutcome,
    Disk,
    DiskBus,
    DiskLimits,
    FileSource,
    LuksEncryption,
    RbdSource,
)
from cloudcore.testing.stored import StoredHost, StoredWorld, WatchedVolumes
from cloudcore.testing.volumes import GIB, FakeVolumes

from .conftest import instance
from .dying import Fencer, killed_at

BACKEND = "33333333-3333-4333-8333-333333333333"


@pytest.fixture
def world(tmp_path):
    world = StoredWorld(tmp_path / "world.db")
    yield world
    assert world.breaches() == []
    world.close()


@pytest.fixture
def here(world):
    return StoredHost(world, "compute-1")


@pytest.fixture
def there(world):
    return StoredHost(world, "compute-2")


@pytest.fixture
def volumes(embedded, world):
    return FakeVolumes(WatchedVolumes(embedded, world))


@pytest.fixture
def open_manager(new_manager, volumes, here, there):
    """A manager of both hosts, or of those named."""

    def make(*hosts, **options):
        hosts = hosts or (here, there)
        connectors = {host.host: host for host in hosts} | options.pop("connectors", {})
        return new_manager(volumes, hosts, connectors=connectors, **options)

    return make


@pytest.fixture
def manager(open_manager):
    return open_manager()


# --- refused before any effect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"volume_id": "data"}, "volume_id"),
        ({"instance_id": "web-1"}, "instance_id"),
        ({"mode": "w"}, "mode"),
        ({"host": "compute-9"}, "host"),
        ({"host": None}, "host"),
        ({"bus": "floppy"}, "bus"),
        ({"target": ""}, "target"),
        ({"boot_order": 0}, "boot_order"),
        ({"boot_order": True}, "boot_order"),
        ({"operation_id": "x" * 65}, "operation_id"),
    ],
)
def test_malformed_requests(manager, volumes, embedded, arguments, field):
    """Found before the service is asked anything."""
    good = {"volume_id": embedded.create_volume().id, "instance_id": instance(), "host": "compute-1"}
    with pytest.raises(errors.InvalidArgument) as caught:
        manager.attach(**{**good, **arguments})
    assert caught.value.field == field
    assert volumes.calls == []
    assert manager.attachments() == ()


def test_unknown_things(manager):
    with pytest.raises(errors.VolumeNotFound):
        manager.attach(instance(), instance(), host="compute-1")
    with pytest.raises(errors.AttachmentNotFound):
        manager.detach(instance())
    with pytest.raises(errors.AttachmentNotFound):
        manager.attachment(instance())
    with pytest.raises(errors.MoveNotFound):
        manager.confirm_move(instance())
    assert manager.attachments() == ()


@pytest.mark.parametrize("status", ["error", "error_extending", "deleting", "error_deleting", "awaiting-transfer"])
def test_a_volume_in_a_bad_state(manager, embedded, volumes, status):
    volume = embedded.create_volume().id
    embedded.set_status(volume, status)
    with pytest.raises(errors.Conflict, match=status):
        manager.attach(volume, instance(), host="compute-1")
    assert "reserve" not in volumes.calls
    embedded.set_status(volume, "available")


def test_every_violation_is_listed(open_manager, embedded, volumes):
    """The dry run names all of them, the attach raises the first and notes the rest; neither touches anything."""

    class Never:
        def allows(self, rule, request, volume):
            return False

    manager = open_manager(limits=Limits(per_instance=1, per_bus={DiskBus.SCSI: 1}), policy=Never())
    who = instance()
    first = manager.attach(embedded.create_volume().id, who, host="compute-1", bus="scsi", target="sda", boot_order=1)
    volume = embedded.create_volume(multiattach=True, bootable=True, encrypted=True, read_only=True).id
    request = {"host": "compute-1", "bus": "scsi", "target": "sda", "boot_order": 1}
    volumes.calls.clear()
    plan = manager.plan_attach(volume, who, **request)
    assert {violation.code for violation in plan.violations} == {
        "encrypted", "read-only-volume", "policy-multiattach", "policy-multiattach_bootable", "limit-per-instance",
        "limit-per-bus-scsi", "target-taken", "boot-order-taken",
    }  # fmt: skip
    assert not plan.possible
    assert plan.locks == (f"volume/{volume}",)
    assert len(plan.steps) == len(plan.compensations) == 6
    with pytest.raises(errors.UnsupportedFeature) as caught:
        manager.attach(volume, who, **request)
    assert len(caught.value.__notes__) == len(plan.violations) - 1
    assert set(volumes.calls) <= {"volume", "features"}
    assert [leg.id for leg in manager.attachments()] == [first.id]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb", "pgbouncer"], indirect=True)
def test_limits_hold_against_ten_at_once(database, tmp_path):
    """Counted in SQL, on every database: ten threads, three places."""
    from concurrent.futures import ThreadPoolExecutor

    from cloudcore.attach.manager import AttachmentManager
    from cloudcore.attach.volumes.embedded import EmbeddedVolumes
    from cloudcore.schema import create_schema

    create_schema(database, areas=["attach"])
    volumes, who = EmbeddedVolumes(database), instance()
    made = [volumes.create_volume().id for _ in range(10)]
    refused = []
    with AttachmentManager(database, volumes, limits=Limits(per_instance=3)) as manager:

        def attach(volume):
            try:
                return manager.attach(volume, who)
            except errors.LimitExceeded as error:
                refused.append((error.limit, error.used))
                return None

        with ThreadPoolExecutor(10) as pool:
            legs = [leg for leg in pool.map(attach, made) if leg]
        assert len(legs) == 3
        assert refused == [(3, 3)] * 7
        assert manager.audit().clean
        for leg in legs:
            manager.detach(leg.id)
        manager.check()


def test_an_operation_id_is_used_once(manager, embedded):
    volume, who = embedded.create_volume().id, instance()
    made = manager.attach(volume, who, host="compute-1", operation_id="o1")
    assert manager.attach(volume, who, host="compute-1", operation_id="o1").id == made.id
    with pytest.raises(errors.OperationMismatch):
        manager.attach(volume, who, "ro", host="compute-1", operation_id="o1")
    manager.detach(made.id)
    with pytest.raises(errors.Conflict, match="new operation id"):
        manager.attach(volume, who, host="compute-1", operation_id="o1")
    assert manager.attachments() == ()


def test_an_operation_that_came_to_nothing_can_be_repeated(manager, embedded, volumes):
    """Its id is as good as new; the attempt before stays in the journal."""
    volume, who = embedded.create_volume().id, instance()
    volumes.fail("update", errors.Conflict("no"))
    with pytest.raises(errors.Conflict):
        manager.attach(volume, who, host="compute-1", operation_id="o1")
    made = manager.attach(volume, who, host="compute-1", operation_id="o1")
    assert made.state is State.ATTACHED
    assert manager.attach(volume, who, host="compute-1", operation_id="o1") == made


def test_an_interrupted_operation_is_settled_by_its_repeat(manager, embedded):
    """The guest has the disk, so the repeat finds it attached."""
    volume, who = embedded.create_volume().id, instance()
    with killed_at("attach.plug.after"):
        manager.attach(volume, who, host="compute-1", operation_id="o1")
    made = manager.attach(volume, who, host="compute-1", operation_id="o1")
    assert made.state is State.ATTACHED
    assert manager.audit().clean


def test_the_next_attach_settles_what_a_dead_one_left(manager, embedded):
    """Otherwise a reservation would keep everybody from the volume."""
    volume = embedded.create_volume(multiattach=True).id
    with killed_at("attach.reserve.after"):
        manager.attach(volume, instance(), host="compute-1")
    assert embedded.volume(volume).status == "reserved"
    made = manager.attach(volume, instance(), host="compute-1")
    assert [record.id for record in embedded.attachments(volume_id=volume)] == [made.service_id]


def test_somebody_else_keeps_the_volume_busy(open_manager, embedded):
    """Waited for as long as the patience lasts, then refused; nothing is left."""
    manager = open_manager(patience=0.0)
    volume = embedded.create_volume(multiattach=True).id
    foreign = embedded.reserve(volume, instance())
    assert [violation.code for violation in manager.plan_attach(volume, instance(), host="compute-1").violations] == [
        "volume-busy"
    ]
    with pytest.raises(errors.VolumeBusy):
        manager.attach(volume, instance(), host="compute-1")
    assert manager.attachments() == ()
    embedded.delete(foreign.id)


def test_somebody_elses_attach_is_waited_for(manager, embedded, volumes):
    """Another user of the service reserves, and lets go: the attach goes through."""
    volume, asked = embedded.create_volume(multiattach=True).id, []
    foreign = embedded.reserve(volume, instance())

    def let_go(*_, **__):
        asked.append(1)
        if len(asked) == 3:
            embedded.delete(foreign.id)

    volumes.on("reserve", let_go)
    assert manager.attach(volume, instance(), host="compute-1").state is State.ATTACHED
    assert len(asked) == 3


def test_whoever_lost_the_lease_writes_nothing(open_manager, embedded, volumes, journal_database):
    """A process that was stopped for longer than its lease finds somebody else's hand on the journal, and stops."""
    manager = open_manager(lease=6.0)
    volume = embedded.create_volume().id

    def take_over(*_):
        with journal_database.write() as connection:
            connection.exec_driver_sql("UPDATE attachment_locks SET owner = 'elsewhere/1/2/3'")

    volumes.on("update", take_over)
    with pytest.raises(errors.GenerationConflict, match="lease was lost"):
        manager.attach(volume, instance(), host="compute-1")
    volumes.heal()
    (leg,) = manager.attachments()
    assert leg.state is State.MAPPING
    assert not manager.recover().complete  # somebody of another machine has the lease
    with journal_database.write() as connection:
        connection.exec_driver_sql("UPDATE attachment_locks SET expires = 1")
    assert manager.recover().complete
    assert embedded.volume(volume).status == "available"


def test_two_processes_recover_at_once(open_manager, embedded):
    """Each settles what the other has not; neither disturbs the other."""
    for point in ("attach.map.after", "attach.plug.after", "attach.reserve.after"):
        with killed_at(point):
            open_manager().attach(embedded.create_volume().id, instance(), host="compute-1")
    managers, reports = [open_manager() for _ in range(4)], []
    threads = [threading.Thread(target=lambda m=manager: reports.append(m.recover())) for manager in managers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled = [leg.id for report in reports for leg in report.settled]
    assert len(settled) == len(set(settled)) == 3
    assert managers[0].recover().complete
    assert managers[0].audit().clean


# --- guests ----------------------------------------------------------------------------------------------------------


def test_a_guest_that_does_not_let_go(manager, embedded, world, open_manager):
    """The detach stays pending, blocks nothing, survives a restart, and ends when the guest is willing."""
    volume, who = embedded.create_volume(multiattach=True).id, instance()
    made = manager.attach(volume, who, host="compute-1")
    world.make_stubborn(who)
    assert manager.detach(made.id).state is State.PENDING
    other = manager.attach(volume, instance(), host="compute-1")
    assert manager.detach(made.id).pending
    restarted = open_manager()
    assert [leg.id for leg in restarted.recover().waiting] == [made.id]
    world.make_stubborn(who, stubborn=False)
    assert [leg.id for leg in restarted.recover().settled] == [made.id]
    assert [record.id for record in embedded.attachments(volume_id=volume)] == [other.service_id]


def test_a_guest_that_refuses_for_good(new_manager, volumes, embedded):
    """It is attached as before, and the caller knows."""

    class Refusing(MemoryGuests):
        def detach_disk(self, instance_id, volume_id):
            raise errors.DetachFailed("no", identifier=volume_id)

    manager = new_manager(volumes, Refusing())
    volume = embedded.create_volume().id
    made = manager.attach(volume, instance())
    with pytest.raises(errors.DetachFailed):
        manager.detach(made.id)
    assert manager.attachment(made.id).state is State.ATTACHED
    assert embedded.volume(volume).status == "in-use"
    assert manager.audit().clean


@pytest.mark.parametrize(
    "error", [errors.InvalidDisk("no bus"), errors.LimitExceeded("no slot"), errors.HypervisorError("internal")]
)
def test_a_guest_that_cannot_have_it(new_manager, volumes, embedded, error):
    """Everything is undone, and the reason is raised with the story."""

    class Refusing(MemoryGuests):
        def attach_disk(self, instance_id, disk):
            raise error

    manager = new_manager(volumes, Refusing())
    volume = embedded.create_volume().id
    with pytest.raises(type(error)) as caught:
        manager.attach(volume, instance())
    assert any("refused -> unplugging" in note for note in caught.value.__notes__)
    assert embedded.volume(volume).status == "available"
    assert manager.attachments() == ()
    assert manager.audit().clean


@pytest.mark.parametrize("plugged", [False, True])
def test_a_hypervisor_that_does_not_answer(new_manager, volumes, embedded, plugged):
    """Uncertain, and so it stays until somebody can be asked: no guess in either direction."""

    class Silent(MemoryGuests):
        silent = True

        def attach_disk(self, instance_id, disk):
            if plugged:
                super().attach_disk(instance_id, disk)
            raise errors.DeadlineExceeded("no answer in 30 s")

        def disk_state(self, instance_id, volume_id):
            if self.silent:
                raise errors.HypervisorUnavailable("no answer")
            return super().disk_state(instance_id, volume_id)

    guests = Silent()
    manager = new_manager(volumes, guests)
    volume = embedded.create_volume().id
    with pytest.raises(errors.OutcomeUnknown, match="recover"):
        manager.attach(volume, instance())
    (leg,) = manager.attachments()
    assert leg.state is State.PLUG_UNCERTAIN
    assert not manager.recover().complete
    guests.silent = False
    assert manager.recover().complete
    assert manager.attachment(leg.id).state is (State.ATTACHED if plugged else State.ABSENT)
    assert manager.audit().clean


@pytest.mark.parametrize(
    "options",
    [
        {"limits": DiskLimits(read_iops_sec=5), "bus": DiskBus.SCSI, "cache": "none"},
        {"source": FileSource("/x", format="qcow2")},
        {"source": RbdSource(pool="volumes", image="v", hosts=(("mon1", 6789),), user="cinder")},
        {"encryption": LuksEncryption(secret_id=str(uuid.uuid4()))},
    ],
)
def test_a_stored_host_gives_back_the_disk_that_it_was_given(tmp_path, options):
    """Whatever the disk has; and the same disk again is no conflict."""
    here = StoredHost(StoredWorld(tmp_path / "other.db"))
    guest = instance()
    disk = Disk(volume_id=str(uuid.uuid4()), **{"source": BlockSource("/dev/x"), **options})
    for _ in range(2):
        state = here.attach_disk(guest, disk)
        assert (state.live, state.persistent) == (disk, disk)
    assert here.disk_states() == (state,)
    with pytest.raises(errors.Conflict):
        here.attach_disk(guest, attrs.evolve(disk, read_only=True))
    here._world.close()


def test_what_watches_a_volume_service_can_be_copied(embedded, here):
    for watching in (WatchedVolumes(embedded, here._world), FakeVolumes(embedded)):
        assert copy.copy(watching).volumes() == embedded.volumes()


def test_a_device_that_is_another_one(open_manager, embedded, here):
    """A stale device under a reused address has another size: no guest gets it."""

    class Stale(StoredHost):
        def connect(self, info):
            return HostDevice(
                source=BlockSource("/dev/sdx"), size=GIB // 2, connected=True, details=super().connect(info).details
            )

    stale = Stale(here._world, "compute-1")
    manager = open_manager(stale)
    volume = embedded.create_volume().id
    with pytest.raises(errors.Conflict, match="stale"):
        manager.attach(volume, instance())
    assert stale.disk_states() == ()
    assert stale.connections() == ()
    assert embedded.volume(volume).status == "available"


def test_a_device_that_changed(open_manager, embedded, here):
    """Between the crash and the recovery the address was given to another device: the guest does not get it."""

    class Changing(StoredHost):
        serial = "one"

        def connect(self, info):
            import attrs

            return attrs.evolve(super().connect(info), serial=self.serial)

    host = Changing(here._world, "compute-1")
    manager = open_manager(host)
    volume, who = embedded.create_volume().id, instance()
    made = manager.attach(volume, who)
    host.forget(who, volume, persistent_only=True)
    host.serial = "two"
    (finding,) = manager.audit().findings
    assert finding.remedy == "replug"
    ((_, why),) = manager.heal(apply=True).failed
    assert "another one" in why
    manager.detach(made.id)


# --- hosts -----------------------------------------------------------------------------------------------------------


def test_only_the_last_user_disconnects(manager, embedded, here):
    """Three instances on a host share its one device; the first two to leave do not take it away."""
    volume = embedded.create_volume(multiattach=True).id
    legs = [manager.attach(volume, instance(), host="compute-1") for _ in range(3)]
    assert legs[0].device.source == BlockSource(f"/dev/stored/{volume}")
    for leg in legs:
        assert here.connections() == (volume,)
        manager.detach(leg.id)
    assert here.connections() == ()


def test_an_arriving_user_counts(manager, embedded, here):
    """One has connected and no more when its process dies; the other leaves; the device stays for the first."""
    volume, arriving = embedded.create_volume(multiattach=True).id, instance()
    other = manager.attach(volume, instance(), host="compute-1")
    with killed_at("attach.plug.before"):
        manager.attach(volume, arriving, host="compute-1")
    manager.detach(other.id)
    assert here.connections() == (volume,)
    assert manager.recover().complete
    assert here.connections() == ()


def test_a_user_that_only_the_hypervisor_knows_counts(manager, embedded, here):
    """Somebody gave a guest the disk by hand: its host keeps device and mapping until it is gone."""
    volume, unknown = embedded.create_volume(multiattach=True).id, instance()
    leg = manager.attach(volume, instance(), host="compute-1")
    here.attach_disk(unknown, leg.disk(leg.device.source))
    with pytest.raises(errors.InUse, match=unknown):
        manager.detach(leg.id)
    assert here.connections() == (volume,)
    assert embedded.attachment(leg.service_id).connection is not None
    assert {finding.kind for finding in manager.audit().findings} == {"interrupted", "unknown-disk"}
    assert len(manager.heal(apply=True).done) >= 1
    manager.recover()
    assert here.connections() == ()
    assert manager.audit().clean


def test_a_leftover_connection(manager, embedded, here):
    """Nobody there uses it; whose it is, an operator has to find out."""
    volume = embedded.create_volume().id
    leg = manager.attach(volume, instance(), host="compute-1")
    info = embedded.attachment(leg.service_id).connection
    manager.detach(leg.id)
    device = here.connect(info)
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.host, finding.remedy) == ("leftover-connection", "compute-1", None)
    here.disconnect(info, device)


def test_a_step_belongs_to_its_host(open_manager, embedded, here, there):
    """A manager of another host does not touch it; its own does."""
    local, remote = open_manager(here), open_manager(there)
    volume = embedded.create_volume().id
    made = local.attach(volume, instance())
    with pytest.raises(errors.WrongHost) as caught:
        remote.detach(made.id)
    assert (caught.value.expected, caught.value.found) == ("compute-1", "compute-2")
    assert local.attachment(made.id) == made
    local.detach(made.id)


def test_interrupted_work_of_another_host_is_left_to_it(open_manager, embedded, here, there):
    local, remote = open_manager(here), open_manager(there)
    with killed_at("attach.plug.before"):
        local.attach(embedded.create_volume().id, instance())
    assert "compute-1" in remote.recover().left[0][1]
    assert local.recover().complete


def test_a_live_move_between_two_processes(open_manager, embedded, here, there, world):
    """Each acts on its own host only; the source ends its part when it recovers."""
    source, destination = open_manager(here), open_manager(there)
    volume, who = embedded.create_volume().id, instance()
    source.attach(volume, who)
    with pytest.raises(errors.WrongHost):
        source.begin_move(who, "compute-2")
    destination.begin_move(who, "compute-2")
    world.migrate(who, "compute-1", "compute-2")
    assert destination.confirm_move(who)[-1].host == "compute-2"
    assert here.connections() == (volume,)
    assert source.recover().complete
    assert here.connections() == ()
    assert destination.audit().clean
    assert [found.host for found in source.attachments(instance_id=who)] == ["compute-2"]


@pytest.mark.parametrize(
    ("shared_targets", "manual_scan", "locked"),
    [(False, False, False), (True, False, True), (True, True, False), (None, False, True), (None, True, True)],
)
def test_shared_targets(new_manager, embedded, world, shared_targets, manual_scan, locked):
    """One volume of the backend connects on a host at a time, where the three-valued rule asks for it."""
    embedded._backend.update(service_uuid=BACKEND, shared_targets=shared_targets)
    inside, most, mutex, both = 0, 0, threading.Lock(), threading.Barrier(2)

    class Host(StoredHost):
        def describe(self):
            return Connector(host=self.host, manual_scan=manual_scan)

        def connect(self, info):
            nonlocal inside, most
            with mutex:
                inside += 1
                most = max(most, inside)
            with contextlib.suppress(threading.BrokenBarrierError):  # with the lock nobody comes to meet the first
                both.wait(1 if locked else 60)
            with mutex:
                inside -= 1
            return super().connect(info)

    host = Host(world, "compute-1")
    managers = [new_manager(embedded, host, connectors={"compute-1": host}) for _ in range(2)]
    made = [embedded.create_volume().id for _ in range(2)]
    plan = managers[0].plan_attach(made[0], instance())
    assert (f"target/compute-1/{BACKEND}" in plan.locks) == locked
    threads = [threading.Thread(target=m.attach, args=(v, instance())) for m, v in zip(managers, made, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == (1 if locked else 2)


# --- dead hosts ------------------------------------------------------------------------------------------------------


def test_force_needs_evidence(open_manager, embedded, world, there):
    volume, who = embedded.create_volume().id, instance()
    manager = open_manager()
    made = manager.attach(volume, who, host="compute-1")
    world.kill_host("compute-1")
    for blind in (open_manager(there), open_manager(there, fencer=Fencer("compute-9"))):
        with pytest.raises(errors.FencingRequired) as caught:
            blind.detach(made.id, force=True)
        assert caught.value.host == "compute-1"
        with pytest.raises(errors.FencingRequired):
            blind.begin_move(who, "compute-2", kind="evacuation")
    assert manager.attachment(made.id) == made
    fenced = open_manager(there, fencer=Fencer("compute-1"))
    assert fenced.detach(made.id, force=True).state is State.ABSENT
    assert any("operator" in (line.note or "") for line in fenced.story(made.id))
    assert embedded.volume(volume).status == "available"


def test_evacuation(open_manager, embedded, world, there):
    """From a dead host, of which this process serves nothing, to its own; there is no way back."""
    volume, who = embedded.create_volume().id, instance()
    open_manager().attach(volume, who, host="compute-1")
    world.kill_host("compute-1")
    manager = open_manager(there, fencer=Fencer("compute-1"))
    manager.begin_move(who, "compute-2", kind="evacuation")
    with pytest.raises(errors.Refused, match="fenced"):
        manager.revert_move(who)
    (leg,) = manager.confirm_move(who)
    assert (leg.host, leg.state) == ("compute-2", State.ATTACHED)
    assert manager.audit().clean


def test_interrupted_work_of_a_dead_host(open_manager, embedded, world, here, there):
    """Whoever has the evidence may end it."""
    with killed_at("attach.plug.after"):
        open_manager(here).attach(embedded.create_volume().id, instance())
    world.kill_host("compute-1")
    manager = open_manager(there, fencer=Fencer("compute-1"))
    assert [leg.state for leg in manager.recover().settled] == [State.ABSENT]
    assert manager.audit().clean


# --- moves that fail -------------------------------------------------------------------------------------------------


def test_a_failed_unshelve_keeps_the_hold(new_manager, embedded, volumes):
    """The destination cannot have the disk: the volume is held for the instance as before, never free."""

    class Refusing(MemoryGuests):
        def attach_disk(self, instance_id, disk):
            raise errors.InvalidDisk("no slot of this kind")

    manager = new_manager(volumes, [MemoryGuests("a"), Refusing("b")])
    volume, who = embedded.create_volume().id, instance()
    manager.attach(volume, who, host="a")
    manager.begin_move(who, None, kind="shelve")
    statuses = []
    volumes.on("delete", lambda *_: statuses.append(len(embedded.attachments(volume_id=volume))))
    with pytest.raises(errors.InvalidDisk):
        manager.confirm_move(who, "b")
    assert statuses == [2]
    (leg,) = manager.attachments(instance_id=who)
    assert (leg.state, leg.role) == (State.HELD, "main")
    assert embedded.volume(volume).status == "in-use"
    assert (manager.move(who).phase, manager.move(who).destination) == ("begun", None)
    (leg,) = manager.confirm_move(who, "a")
    assert (leg.state, leg.host) == (State.ATTACHED, "a")
    assert manager.audit().clean


def test_a_half_confirmed_cold_move_goes_back(new_manager, embedded, volumes):
    """The destination takes one of two volumes; reverting brings both home."""

    class Full(MemoryGuests):
        def attach_disk(self, instance_id, disk):
            if self.disk_states():
                raise errors.LimitExceeded("one slot", what="slots", limit=1, used=1)
            return super().attach_disk(instance_id, disk)

    home, full = MemoryGuests("a"), Full("b")
    manager, who = new_manager(volumes, [home, full]), instance()
    for _ in range(2):
        manager.attach(embedded.create_volume().id, who, host="a")
    manager.begin_move(who, "b", kind="cold")
    with pytest.raises(errors.LimitExceeded):
        manager.confirm_move(who)
    assert {leg.state for leg in manager.attachments(instance_id=who)} == {State.HELD, State.ATTACHED}
    assert {leg.host for leg in manager.revert_move(who)} == {"a"}
    assert (len(home.disk_states()), len(full.disk_states())) == (2, 0)
    assert manager.audit().clean


def test_a_live_move_that_fails_halfway_is_undone(manager, embedded, volumes):
    """Two volumes; the second cannot be staged, so the first is taken back."""
    who, made = instance(), [embedded.create_volume().id for _ in range(2)]
    legs = [manager.attach(volume, who, host="compute-1") for volume in made]
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        if len(calls) == 2:
            raise errors.PolicyDenied("no more", rule="quota")

    volumes.on("create", refuse)
    with pytest.raises(errors.PolicyDenied):
        manager.begin_move(who, "compute-2")
    assert manager.move(who) is None
    assert sorted(leg.id for leg in manager.attachments(instance_id=who)) == sorted(leg.id for leg in legs)
    assert manager.audit().clean


def test_a_move_is_one_at_a_time(manager, embedded):
    who = instance()
    made = manager.attach(embedded.create_volume().id, who, host="compute-1")
    manager.begin_move(who, "compute-2")
    with pytest.raises(errors.Conflict, match="live move"):
        manager.begin_move(who, None, kind="shelve")
    with pytest.raises(errors.Conflict, match="live move"):
        manager.detach(made.id)
    with pytest.raises(errors.InvalidArgument):
        manager.begin_move(instance(), None)
    manager.revert_move(who)


# --- audit -----------------------------------------------------------------------------------------------------------


def test_what_an_audit_finds(manager, embedded, here):
    """One disagreement of each kind; each is mended on request, and nothing is left."""
    who = instance()

    def attach(mode="rw"):
        return manager.attach(embedded.create_volume().id, who, mode, host="compute-1", bus="scsi")

    lost, live, incomplete, gone = (attach() for _ in range(4))
    here.forget(who, lost.volume_id)
    here.forget(who, live.volume_id, persistent_only=True)
    embedded.update(incomplete.service_id, Connector(host="compute-1"))
    here.forget(who, gone.volume_id)
    embedded.delete(gone.service_id)
    found = {finding.kind: finding for finding in manager.audit().findings}
    assert {kind: finding.attachment_id for kind, finding in found.items()} == {
        "guest-lost-it": lost.id, "live-only": live.id, "incomplete": incomplete.id, "gone": gone.id,
    }  # fmt: skip
    assert all(len({store for store, _ in finding.evidence}) >= 2 for finding in found.values())
    report = manager.heal(apply=True, limit=2)
    assert (len(report.done), len(report.failed)) == (2, 2)
    assert manager.heal(report.plan, apply=True).failed[0][1].startswith("it no longer holds")
    assert manager.audit().clean
    assert {leg.id for leg in manager.attachments()} == {live.id, incomplete.id}


def test_an_unknown_disk(manager, embedded, here):
    """A guest has what neither the journal nor the service knows: it can be taken away."""
    volume, who = embedded.create_volume(multiattach=True).id, instance()
    leg = manager.attach(volume, instance(), host="compute-1")
    here.attach_disk(who, leg.disk(leg.device.source))
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.instance_id, finding.remedy) == ("unknown-disk", who, "unplug")
    assert manager.heal(apply=True).done == (finding,)
    assert not here.disk_state(who, volume).present


def test_a_store_that_cannot_be_asked_is_named(manager, embedded, volumes):
    """No finding rests on its silence."""
    manager.attach(embedded.create_volume().id, instance(), host="compute-1")
    volumes.fail("attachments", errors.VolumeServiceUnavailable("away"))
    report = manager.audit()
    assert (report.findings, report.clean) == ((), False)
    assert report.blind[0][0] == "service"


def test_what_somebody_is_at_is_skipped(manager, embedded, volumes):
    """An audit in the middle of an attach reports nothing about it."""
    volume = embedded.create_volume().id
    reports = []
    volumes.on("update", lambda *_: reports.append(manager.audit()))
    manager.attach(volume, instance(), host="compute-1")
    assert [(report.findings, report.skipped) for report in reports] == [((), (volume,))]


# --- growing, ending -------------------------------------------------------------------------------------------------


def test_growing_tells_everybody_it_can(open_manager, embedded, here, there):
    """A guest elsewhere is named, and can be told later by whoever serves its host."""
    volume = embedded.create_volume(multiattach=True).id
    both, local = open_manager(), open_manager(here)
    near, far = both.attach(volume, instance(), host="compute-1"), both.attach(volume, instance(), host="compute-2")
    done = local.extend(volume, 2 * GIB)
    assert [leg.id for leg in done.told] == [near.id]
    assert [identifier for identifier, _ in done.left] == [far.id]
    assert both.extend(volume, 2 * GIB).left == ()
    with pytest.raises(errors.InvalidArgument):
        both.extend(volume, GIB)


def test_an_instance_ends(manager, embedded, world):
    """Everything is detached, what goes with it is deleted; a guest that does not let go is named and waited for."""
    who = instance()
    root = manager.attach(embedded.create_volume().id, who, host="compute-1", delete_on_termination=True)
    data = manager.attach(embedded.create_volume().id, who, host="compute-1")
    world.make_stubborn(who)
    assert {leg.id for leg in manager.terminate(who)} == {root.id, data.id}
    world.make_stubborn(who, stubborn=False)
    assert manager.terminate(who) == ()
    assert [volume.id for volume in embedded.volumes()] == [data.volume_id]
    assert manager.terminate(who) == ()


def test_an_id_of_something_else_is_told_apart(manager, embedded):
    """Whoever detaches by the volume or the instance hears how to find the attachment."""
    volume, who = embedded.create_volume().id, instance()
    attached = manager.attach(volume, who, host="compute-1")
    for wrong, told in (
        (volume, "the id of a volume: attachments(volume_id=…)"),
        (who, "the id of an instance: attachments(instance_id=…)"),
        (instance(), "attach() returns it"),
    ):
        for call in (manager.detach, manager.attachment):
            with pytest.raises(errors.AttachmentNotFound, match=re.escape(told)):
                call(wrong)
    assert manager.attachments() == (attached,)


def test_old_stories_are_forgotten(manager, embedded):
    """Only those of attachments that are gone, and only when asked."""
    volume, who = embedded.create_volume().id, instance()
    old = manager.attach(volume, who, host="compute-1")
    manager.detach(old.id)
    kept = manager.attach(volume, who, host="compute-1")
    assert manager.prune(dt.datetime(2020, 1, 1, tzinfo=dt.UTC)) == 0
    assert manager.prune(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == 1
    with pytest.raises(errors.AttachmentNotFound):
        manager.detach(old.id)
    assert manager.attachment(kept.id) == kept
    with pytest.raises(errors.InvalidArgument):
        manager.prune(dt.datetime(2020, 1, 1))
    assert manager.audit().clean


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_nowhere(new_manager, volumes, embedded, journal_database, tmp_path, caplog):
    """Not in logs, not in errors, not in any value's text, not in a byte of the journal's database."""
    secret = f"s3cret-{uuid.uuid4()}"
    caplog.set_level(logging.DEBUG)
    told = []

    class Leaky(PlainConnector):
        fail = False

        def acts_on(self, info):
            return True

        def connect(self, info):
            told.append(info)
            if self.fail:
                raise errors.DeviceNotFound("the device did not appear")
            return HostDevice(source=BlockSource("/dev/sdy"), connected=True, details={"path": "/dev/sdy"})

    class Secretive(FakeVolumes):
        def _dress(self, made):
            import attrs

            data = {"target_iqn": "iqn", "auth_username": secret, "auth_password": secret, "data": {"keyring": secret}}
            return attrs.evolve(made, connection=ConnectionInfo("iscsi", data)) if made.connection else made

        def update(self, *arguments):
            return self._dress(self._service.update(*arguments))

        def attachment(self, *arguments):
            return self._dress(self._service.attachment(*arguments))

    connector = Leaky(host="localhost")
    manager = new_manager(Secretive(embedded), MemoryGuests(), connectors={"localhost": connector})
    texts = []
    made = manager.attach(embedded.create_volume().id, instance())
    texts += [repr(made), repr(manager.audit()), repr(told)]
    manager.detach(made.id)
    connector.fail = True
    with pytest.raises(errors.DeviceNotFound) as caught:
        manager.attach(embedded.create_volume().id, instance())
    texts += [repr(caught.value), str(caught.value.__notes__), str(caught.value.as_fields()), caplog.text]
    texts += [repr(manager.story(leg.id)) for leg in manager._journal.select(absent=True)]
    assert told
    assert told[0].data["auth_password"] == secret
    assert not [text for text in texts if secret in text]
    with journal_database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    for file in tmp_path.rglob("*.db*"):
        assert secret.encode() not in file.read_bytes(), file


def test_detaching_is_a_word_of_the_interface():
    """The in-memory guests answer as the interface says, absent things included."""
    guests = MemoryGuests()
    assert guests.detach_disk(instance(), instance()) is DetachOutcome.DETACHED
