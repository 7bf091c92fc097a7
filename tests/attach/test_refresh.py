"""Connection information that has gone stale is made anew, for guests that are off, without ever being free."""

import attrs
import pytest

from cloudcore import errors
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.disks import RbdSource
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.hypervisor.disks.memory_driver import Fault
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance
from .dying import killed_at


class Moving(FakeVolumes):
    """A backend whose monitors move: records keep the address of the time when they were mapped."""

    monitor = "mon-1"

    def __init__(self, service):
        super().__init__(service)
        self._mapped = {}

    def update(self, attachment_id, connector):
        self._mapped[attachment_id] = self.monitor
        return self._said(self._service.update(attachment_id, connector))

    def attachment(self, attachment_id):
        return self._said(self._service.attachment(attachment_id))

    def _said(self, record):
        if record.connection is None:
            return record
        data = {"name": f"pool/{record.volume_id}", "hosts": [self._mapped[record.id]], "ports": [6789]}
        return attrs.evolve(record, connection=ConnectionInfo("rbd", data))


@pytest.fixture
def volumes(volume_service):
    return Moving(volume_service.service)


@pytest.fixture
def host():
    return MemoryHypervisor("compute-1")


@pytest.fixture
def manager(new_manager, volumes, host):
    manager = new_manager(volumes, [host, MemoryHypervisor("compute-2")], patience=20.0)
    yield manager
    assert manager.audit().clean


@pytest.fixture
def off(manager, volume_service, host):
    """An instance that is off, with two volumes."""
    who, made = instance(), [volume_service.create_volume() for _ in range(2)]
    host.add_guest(who, state="off")
    for volume in made:
        manager.attach(volume, who, host="compute-1", boot_order=1 if volume is made[0] else None)
    return who, made


def monitors(host, who, volumes):
    sources = [host.disk_state(who, volume).persistent.source for volume in volumes]
    assert all(isinstance(source, RbdSource) for source in sources)
    return {source.hosts[0][0] for source in sources}


def test_every_disk_is_defined_anew(manager, volumes, volume_service, host, off):
    """In place, with the settings that it had; in use all the time."""
    who, made = off
    before = manager.attachments(instance_id=who)
    volumes.monitor = "mon-2"
    seen = []
    volumes.on("delete", lambda *_: seen.extend(volume_service.service.volume(one).status for one in made))
    legs = manager.refresh(who)
    assert set(seen) == {"in-use"}
    assert monitors(host, who, made) == {"mon-2"}
    assert [(leg.volume_id, leg.host, leg.state) for leg in legs] == [
        (leg.volume_id, leg.host, State.ATTACHED) for leg in before
    ]
    assert {leg.settings.boot_order for leg in legs} == {1, None}
    assert manager.move(who) is None
    for volume in made:
        assert volume_service.statuses(volume) == ("in-use", ["attached"])


def test_a_running_guest_keeps_what_it_has(manager, host, off):
    who, _ = off
    host.start(who)
    with pytest.raises(errors.Conflict, match="stop it first"):
        manager.refresh(who)
    assert manager.move(who) is None
    host.stop(who)
    manager.begin_move(who, "compute-2", kind="cold")
    with pytest.raises(errors.Conflict, match="cold move"):
        manager.refresh(who)
    manager.revert_move(who)
    assert manager.refresh(instance()) == ()


@pytest.mark.parametrize(
    "point", ["attach.move.begun", "attach.unmap.after", "attach.move.phase", "attach.plug.before"]
)
@pytest.mark.parametrize("back", [False, True])
def test_what_died_in_the_middle_goes_on_or_back(manager, volumes, volume_service, host, off, point, back):
    who, made = off
    volumes.monitor = "mon-2"
    with killed_at(point):
        manager.refresh(who)
    manager.recover()
    if back and manager.move(who) is not None:
        manager.revert_move(who)
    else:
        manager.refresh(who)
        assert monitors(host, who, made) == {"mon-2"}
    assert manager.move(who) is None
    for volume in made:
        assert volume_service.statuses(volume) == ("in-use", ["attached"])
        assert host.disk_state(who, volume).present


@pytest.mark.parametrize("volume_service", ["embedded"], indirect=True)
def test_a_whole_host(manager, volumes, volume_service, host, off):
    """Who is off is refreshed, also one that died in the middle; who runs is named, and keeps what it has."""
    who, made = off
    running, third, fourth = instance(), instance(), volume_service.create_volume()
    host.add_guest(running)
    host.add_guest(third, state="off")
    kept = volume_service.create_volume()
    manager.attach(kept, running, host="compute-1")
    manager.attach(fourth, third, host="compute-1")
    volumes.monitor = "mon-2"
    host.faults.plan("plug", Fault.ERROR_BEFORE)
    with pytest.raises(errors.HypervisorError):
        manager.refresh(third)
    assert all(leg.host is None for leg in manager.attachments(instance_id=third))
    done = manager.refresh_host("compute-1")
    assert {leg.instance_id for leg in done.refreshed} == {who, third}
    ((left, why),) = done.left
    assert left == running
    assert "stop it first" in why
    assert monitors(host, who, made) == monitors(host, third, [fourth]) == {"mon-2"}
    assert monitors(host, running, [kept]) == {"mon-1"}
    with pytest.raises(errors.WrongHost):
        manager.refresh_host("compute-9")
