"""Attachments whose devices os-brick's own connectors make: what is left behind is found, and taken away once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudcore import _failpoints, errors
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.hosts.connectors import ConnectionKeeper
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.hosts.ledger import ConnectionLedger, Entry
from cloudcore.disks import DiskState
from tests.attach.conftest import instance
from tests.attach.san.fixtures import SanVolumes, iscsi
from tests.attach.san.host import on_the_host

IQN = "iqn.2010-10.org.openstack:volume-1"


class Died(BaseException):
    """The process is gone."""


class Stopped(MemoryGuests):
    """Guests that are off: only their definitions have disks."""

    def disk_state(self, instance_id, volume_id):
        found = super().disk_state(instance_id, volume_id)
        return DiskState(instance_id=instance_id, volume_id=volume_id, live=None, persistent=found.persistent)


@pytest.fixture
def volumes(san, journal_database):
    san.target(IQN)
    made = SanVolumes(journal_database)
    yield made
    made.check()


@pytest.fixture
def guests():
    return MemoryGuests("compute-1")


@pytest.fixture
def manager(new_manager, volumes, guests, brick):
    return new_manager(volumes, guests, connectors={"compute-1": brick})


@pytest.fixture
def dies_at():
    def die(_):
        raise Died

    yield lambda point: _failpoints.arm(point, die)
    _failpoints.disarm()


def removals(san, device="sda"):
    return len([c for c in san.commands("tee") if c.endswith(f"{device}/device/delete")])


# --- attachments -----------------------------------------------------------------------------------------------------


@on_the_host
def test_two_instances_with_volumes_of_one_target(san, volumes, guests, manager):
    first, second = (volumes.on_the_array(san, IQN, lun) for lun in (1, 2))
    one, two = (manager.attach(volume, instance(), host="compute-1") for volume in (first, second))
    assert [leg.device.source.path for leg in (one, two)] == ["/dev/sda", "/dev/sdb"]
    assert manager.audit().clean
    manager.detach(one.id)
    assert list(san.state["devices"]) == ["sdb"]
    assert manager.audit().clean
    manager.detach(two.id)
    assert not san.state["sessions"]
    assert manager.audit().clean


@on_the_host
def test_two_instances_with_one_volume(san, volumes, manager):
    volume = volumes.on_the_array(san, IQN, 1, multiattach=True)
    one, two = (manager.attach(volume, instance(), host="compute-1") for _ in range(2))
    assert one.device == two.device
    manager.detach(one.id)
    assert list(san.state["devices"]) == ["sda"]
    manager.detach(two.id)
    assert not san.state["sessions"]


@on_the_host
def test_a_volume_that_cannot_be_flushed_stays_mapped(san, volumes, manager):
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    san.fail("flush", "sda")
    with pytest.raises(errors.FlushFailed):
        manager.detach(leg.id)
    assert manager.attachment(leg.id).state == "disconnecting"
    assert volumes.attachments(volume_id=volume)
    san.fail("flush")
    assert manager.recover().complete
    assert manager.attachment(leg.id).state == "absent"
    assert not san.state["sessions"]


@on_the_host
def test_an_instance_ends_with_what_cannot_be_flushed_by_force(san, volumes, manager):
    """As Nova deletes a server: what the guest wrote last is given up."""
    volume, guest = volumes.on_the_array(san, IQN, 1), instance()
    leg = manager.attach(volume, guest, host="compute-1")
    san.fail("flush", "sda")
    with pytest.raises(errors.FlushFailed):
        manager.terminate(guest)
    manager.terminate(guest, force=True)
    assert manager.attachment(leg.id).state == "absent"
    assert not san.state["devices"]
    assert not san.state["sessions"]


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["attach.connect.after", "attach.plug.before"])
@on_the_host
def test_dead_between_connect_and_plug(san, volumes, manager, dies_at, point):
    volume = volumes.on_the_array(san, IQN, 1)
    dies_at(point)
    with pytest.raises(Died):
        manager.attach(volume, instance(), host="compute-1")
    _failpoints.disarm()
    assert list(san.state["devices"]) == ["sda"]
    assert manager.recover().complete
    assert not san.state["sessions"]
    assert removals(san) == 1
    assert manager.audit().clean
    assert manager.recover().complete
    assert removals(san) == 1


@pytest.mark.parametrize("point", ["attach.unplug.after", "attach.disconnect.before", "attach.disconnect.after"])
@on_the_host
def test_dead_between_unplug_and_unmap(san, volumes, manager, dies_at, point):
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    dies_at(point)
    with pytest.raises(Died):
        manager.detach(leg.id)
    _failpoints.disarm()
    assert manager.recover().complete
    assert manager.attachment(leg.id).state == "absent"
    assert not san.state["sessions"]
    assert removals(san) == 1
    assert manager.audit().clean


# --- what is left over, and what is lost -----------------------------------------------------------------------------


@on_the_host
def test_a_connection_that_nobody_uses(san, volumes, manager, brick):
    """Whoever made it is gone, and its journal with it."""
    volume = volumes.on_the_array(san, IQN, 1)
    used = manager.attach(volumes.on_the_array(san, IQN, 2), instance(), host="compute-1")
    brick.connect(iscsi(IQN, 1, volume))
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.volume_id, finding.remedy) == ("leftover-connection", volume, "release")
    assert manager.heal(apply=True).done == (finding,)
    assert manager.audit().clean
    assert list(san.state["devices"]) == [used.device.source.path.removeprefix("/dev/")]


@on_the_host
def test_a_volume_that_migrates(san, volumes, manager, brick):
    """The host counts the new device as the old volume's, whose id the service keeps."""
    volume, guest = volumes.on_the_array(san, IQN, 1), instance()
    manager.attach(volume, guest, host="compute-1")
    new = volumes.begin_migration(volume).id
    san.lun(IQN, 2)
    volumes.connections[new] = iscsi(IQN, 2, new)
    made = manager.swap_volume(guest, volume, new)
    assert made.volume_id == volume
    assert brick.connections() == (volume,)
    assert list(san.state["devices"]) == ["sdb"]
    volumes.connections[volume] = iscsi(IQN, 2, volume)
    assert manager.audit().clean
    manager.detach(made.id)
    assert brick.connections() == ()
    assert not san.state["sessions"]


@on_the_host
def test_a_device_that_an_attachment_has_is_not_left_over(san, volumes, manager, brick):
    """Though it was connected under another name, as while its volume migrated."""
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    before = instance()
    brick.rename(volume, before)
    assert (brick.connections(), brick.devices(before)) == ((before,), (leg.device,))
    assert manager.audit().clean
    for _ in range(2):
        brick.rename(before, volume)
    assert brick.connections() == (volume,)
    manager.detach(leg.id)
    assert brick.connections() == ()
    assert manager.audit().clean


@on_the_host
def test_a_connection_that_was_interrupted(san, volumes, manager, brick, monkeypatch):
    """It is written down before anything is done."""
    volume = volumes.on_the_array(san, IQN, 1)
    monkeypatch.setattr(BrickConnector, "_made", lambda *_: (_ for _ in ()).throw(Died))
    with pytest.raises(Died):
        brick.connect(iscsi(IQN, 1, volume))
    (finding,) = manager.audit().findings
    assert finding.remedy == "release"
    assert manager.heal(apply=True).done == (finding,)
    assert manager.audit().clean


@on_the_host
def test_an_attachment_that_the_service_forgot(san, volumes, manager):
    """The host knows by itself how to disconnect it: it is taken away at once."""
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    volumes.delete(leg.service_id)
    (finding,) = manager.audit().findings
    assert finding.remedy == "quarantine"
    report = manager.heal(apply=True)
    assert report.done == (finding,), report.failed
    assert not san.state["sessions"]
    assert manager.audit().clean


@on_the_host
def test_a_forgotten_address_that_is_another_volumes_now(san, volumes, manager, brick):
    """Disconnected by its address, somebody else's device would go."""
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    volumes.delete(leg.service_id)
    other = volumes.create_volume().id
    volumes.connections[other] = iscsi(IQN, 1, other)
    manager.attach(other, instance(), host="compute-1")
    assert manager.heal(apply=True).failed
    assert list(san.state["devices"]) == ["sda"]


@pytest.mark.parametrize("manner", [{}, {"enforce_multipath": False}], ids=["alike", "otherwise"])
@on_the_host
def test_an_interrupted_connect_whose_address_is_another_volumes_now(san, volumes, manager, brick, monkeypatch, manner):
    """It is struck out, and nothing is disconnected: the device there is that of a running guest."""
    volume = volumes.on_the_array(san, IQN, 1)
    with monkeypatch.context() as patch:
        patch.setattr(BrickConnector, "_made", lambda *_: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            brick.connect(iscsi(IQN, 1, volume))
    other = volumes.create_volume().id
    volumes.connections[other] = iscsi(IQN, 1, other, **manner)
    leg = manager.attach(other, instance(), host="compute-1")
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.volume_id, finding.remedy) == ("leftover-connection", volume, "release")
    assert manager.heal(apply=True).done == (finding,)
    assert (list(san.state["devices"]), removals(san)) == (["sda"], 0)
    assert manager.audit().clean
    manager.detach(leg.id)
    assert not san.state["sessions"]


def lose(device):
    subprocess.run(["tee", "-a", f"/sys/block/{device}/device/delete"], input=b"1", check=True, capture_output=True)


@on_the_host
def test_a_device_that_is_lost(san, new_manager, volumes, brick):
    manager = new_manager(volumes, Stopped("compute-1"), connectors={"compute-1": brick})
    leg = manager.attach(volumes.on_the_array(san, IQN, 1), instance(), host="compute-1")
    lose("sda")
    found = [one for one in manager.audit().findings if one.kind == "device-lost"]
    assert [(one.attachment_id, one.remedy) for one in found] == [(leg.id, "reconnect")]
    assert manager.heal(found, apply=True).done == tuple(found)
    assert list(san.state["devices"]) == ["sda"]
    assert not [one for one in manager.audit().findings if one.kind == "device-lost"]


@on_the_host
def test_a_device_that_a_running_guest_has_lost(san, volumes, manager):
    """The host gets it back; the guest only when it is started anew."""
    leg = manager.attach(volumes.on_the_array(san, IQN, 1), instance(), host="compute-1")
    lose("sda")
    ((_, why),) = manager.heal(apply=True).failed
    assert "stop and start" in why
    assert manager.audit().clean
    manager.detach(leg.id)
    assert not san.state["sessions"]


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_entries_are_of_one_boot(tmp_path):
    entry = Entry.of(instance(), iscsi(IQN, 1, auth_password="s3cret"))
    ledger = ConnectionLedger(str(tmp_path / "ledger"), boot_id="this")
    assert ledger.entries() == ()
    ledger.enter(entry)
    ledger.enter(entry)
    assert ledger.entries() == (entry,)
    assert "s3cret" not in "".join(path.read_text() for path in (tmp_path / "ledger").iterdir())
    assert ConnectionLedger(str(tmp_path / "ledger"), boot_id="next").entries() == ()
    assert ledger.entries() == ()


def test_two_connections_of_one_volume_are_two_entries(tmp_path):
    """As while it migrates from one backend to another."""
    ledger, volume = ConnectionLedger(str(tmp_path), boot_id="this"), instance()
    first, second = Entry.of(volume, iscsi(IQN, 1)), Entry.of(volume, iscsi(IQN, 2))
    ledger.enter(first)
    ledger.enter(second)
    ledger.strike(first)
    ledger.strike(first)
    assert ledger.entries() == (second,)


@on_the_host
def test_a_file_that_is_no_entry(san, volumes, manager):
    """The audit says what it could not see, and goes on."""
    volume = volumes.on_the_array(san, IQN, 1)
    leg = manager.attach(volume, instance(), host="compute-1")
    (folder,) = san.locks.glob("cloudcore-connections")
    for text in ("", "[]", "{}", '{"device": 1, "boot": 2}'):
        (folder / "x.json").write_text(text)
        report = manager.audit()
        ((store, why),) = report.blind
        assert (store, "x.json" in why, report.findings) == ("connections of compute-1", True, ())
    (folder / "x.json").unlink()
    manager.detach(leg.id)
    assert manager.audit().clean


def test_it_keeps_connections(brick):
    assert isinstance(brick, ConnectionKeeper)


# --- one os-brick for a process, one lock path for a host ------------------------------------------------------------


def test_a_process_has_one_lock_path(san, brick):
    brick.describe()
    other = BrickConnector("compute-1", lock_path=str(san.folder / "other"), root_helper=None)
    with pytest.raises(errors.InvalidArgument, match="one for a process"):
        other.describe()


def test_the_process_is_configured_otherwise(san):
    from oslo_config import cfg

    cfg.CONF.set_default("lock_path", str(san.folder / "cinders"), "os_brick")
    with pytest.raises(errors.InvalidArgument, match="cinders"):
        BrickConnector("compute-1", lock_path=str(san.locks), root_helper=None).describe()


CINDER = """
import sys
import os_brick
from os_brick.initiator import connector
from os_brick import privileged
from oslo_concurrency import lockutils
from oslo_config import cfg
privileged.default.set_client_mode(False)
cfg.CONF([], project="cinder")
cfg.CONF.set_override("lock_path", sys.argv[1], "oslo_concurrency")
os_brick.setup(cfg.CONF)
made = connector.InitiatorConnector.factory("iscsi", "")
info = {"target_portal": "10.0.0.1:3260", "target_iqn": sys.argv[2], "target_lun": 1, "target_discovered": False}
print("ready", flush=True)
sys.stdin.readline()
device = made.connect_volume(info)
made.disconnect_volume(info, device)
"""
OURS = """
import sys
from cloudcore.attach import BrickConnector, ConnectionInfo
made = BrickConnector("compute-1", lock_path=sys.argv[1], root_helper="helper --of-root")
info = {"target_portal": "10.0.0.1:3260", "target_iqn": sys.argv[2], "target_lun": 2, "target_discovered": False}
info = ConnectionInfo("iscsi", info)
print(made.describe().initiator, flush=True)
sys.stdin.readline()
made.disconnect(info, made.connect(info))
"""


def start(program, who, *arguments):
    environment = {**os.environ, "SAN_WHO": str(who), "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
    )  # fmt: skip


@on_the_host
def test_cinder_and_we_take_turns(san):
    """Two processes: os-brick as Cinder sets it up, and ours behind a privileged helper."""
    san.target(IQN)
    san.lun(IQN, 1)
    san.lun(IQN, 2)
    helper = san.folder / "bin" / "helper"
    helper.write_text('#!/bin/sh\necho "$@" >> "$SAN/helped"\nshift\nexec "$@"\n')
    helper.chmod(0o755)
    processes = [start(program, who, str(san.locks), IQN) for who, program in ((1, CINDER), (2, OURS))]
    for process in processes:
        assert process.stdout.readline().strip()
    (san.folder / "slowness").write_text("0.01")
    before = len(san.log())
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert "privsep-helper" in (san.folder / "helped").read_text()
    who = [who for _, who, _ in san.log()[before:]]
    assert set(who) == {1, 2}
    turns = [one for one, previous in zip(who, [None, *who], strict=False) if one != previous]
    assert len(turns) <= 4, turns  # each connects and disconnects once, and is alone while it does
    assert not san.state["sessions"]
