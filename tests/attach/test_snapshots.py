"""Snapshots of all volumes of an instance at one instant, its file systems waiting; and no guest is left frozen."""

import time

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.hypervisor.disks.memory_driver import Fault
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance
from .dying import killed_at


class Cloud:
    """An instance with two volumes, and whether it was frozen while each was taken."""

    def __init__(self, new_manager, volume_service, **guest):
        self.under_test = volume_service
        self.volumes = FakeVolumes(volume_service.service)
        self.host, self.who = MemoryHypervisor("compute-1"), instance()
        self.host.add_guest(self.who, **guest)
        self.manager = new_manager(self.volumes, [self.host, MemoryHypervisor("compute-2")], patience=20.0)
        self.made = [volume_service.create_volume() for _ in range(2)]
        for volume in self.made:
            self.manager.attach(volume, self.who, host="compute-1")
        self.seen = []
        self.volumes.on("snapshot", lambda *_: self.seen.append(self.host.frozen(self.who)))

    def snapshots(self):
        return self.under_test.snapshots()

    def clear(self):
        for one in self.snapshots():
            self.under_test.service.delete_snapshot(one.id)
        deadline = time.monotonic() + 60
        while any(self.under_test.service.snapshots(volume) for volume in self.under_test.made):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def nothing_left(self):
        assert not self.host.frozen(self.who)
        assert self.manager.move(self.who) is None
        assert self.snapshots() == []


@pytest.fixture
def new_cloud(new_manager, volume_service):
    made = []

    def make(**guest):
        made.append(Cloud(new_manager, volume_service, **guest))
        return made[-1]

    yield make
    for cloud in made:
        cloud.clear()


@pytest.fixture
def cloud(new_cloud):
    return new_cloud()


BOTH = pytest.mark.parametrize(
    "volume_service", ["embedded", pytest.param("cinder-rbd", marks=pytest.mark.services)], indirect=True
)
EMBEDDED = pytest.mark.parametrize("volume_service", ["embedded"], indirect=True)


@BOTH
def test_all_volumes_while_the_guest_waits(cloud):
    first = cloud.manager.snapshot(cloud.who, "nightly")
    assert (first.quiesced, cloud.seen) == (True, [True, True])
    assert [one.volume_id for one in first.snapshots] == cloud.made
    assert {(one.name, one.status) for one in first.snapshots} == {(first.name, "available")}
    second = cloud.manager.snapshot(cloud.who, "nightly")
    assert {one.id for one in first.snapshots}.isdisjoint(one.id for one in second.snapshots)
    assert not cloud.host.frozen(cloud.who)
    assert cloud.manager.move(cloud.who) is None
    assert cloud.manager.audit().clean


@EMBEDDED
@pytest.mark.parametrize("guest", [{"agent": False}, {"state": "paused"}])
def test_without_an_agent_it_is_refused_unless_asked(new_cloud, guest):
    cloud = new_cloud(**guest)
    with pytest.raises(errors.GuestAgentUnavailable) as caught:
        cloud.manager.snapshot(cloud.who, "nightly")
    assert any("crash_consistent" in note for note in caught.value.__notes__)
    cloud.nothing_left()
    made = cloud.manager.snapshot(cloud.who, "nightly", crash_consistent=True)
    assert (made.quiesced, len(made.snapshots), cloud.manager.move(cloud.who)) == (False, 2, None)


@EMBEDDED
def test_nobody_has_to_wait_where_nobody_writes(cloud):
    """A guest that is off, and an instance on no host."""
    cloud.host.stop(cloud.who)
    assert cloud.manager.snapshot(cloud.who, "off").quiesced
    cloud.manager.begin_move(cloud.who, None, kind="shelve")
    with pytest.raises(errors.Conflict, match="shelve"):
        cloud.manager.snapshot(cloud.who, "shelved")
    cloud.manager.revert_move(cloud.who)
    with pytest.raises(errors.Conflict, match="no volume"):
        cloud.manager.snapshot(instance(), "nothing")
    reserved = instance()
    held = cloud.manager.reserve(cloud.under_test.create_volume(), reserved)
    assert cloud.manager.snapshot(reserved, "reserved").quiesced
    cloud.manager.detach(held.id)


@EMBEDDED
@pytest.mark.parametrize("error", [errors.LimitExceeded("quota"), errors.OutcomeUnknown("lost")])
@pytest.mark.parametrize("after", [False, True])
def test_what_failed_leaves_nothing(cloud, error, after):
    """The guest goes on, and what was made of the other volume is deleted."""

    def fail(volume, name):
        if volume == cloud.made[1]:
            if after:
                cloud.under_test.service.snapshot(volume, name)
            raise error

    cloud.volumes.on("snapshot", fail)
    with pytest.raises(type(error)):
        cloud.manager.snapshot(cloud.who, "nightly")
    cloud.nothing_left()
    assert cloud.manager.recover().complete


@BOTH
@pytest.mark.parametrize(
    ("point", "way"),
    [
        ("attach.move.begun", "recover"),
        ("attach.snapshot.frozen", "recover"),
        ("attach.snapshot.frozen", "revert"),
        ("attach.snapshot.made", "recover"),
    ],
)
def test_a_guest_whose_process_died_is_thawed(cloud, point, way):
    """And what was made is no snapshot of one instant, so it goes."""

    with killed_at(point):
        cloud.manager.snapshot(cloud.who, "nightly")
    assert cloud.host.frozen(cloud.who) == (point != "attach.move.begun")
    assert len(cloud.snapshots()) == (2 if point == "attach.snapshot.made" else 0)
    with pytest.raises(errors.Conflict):
        cloud.manager.begin_move(cloud.who, "compute-2")
    if way == "recover":
        assert cloud.manager.recover().complete
    else:
        assert len(cloud.manager.revert_move(cloud.who)) == 2
    cloud.nothing_left()


@EMBEDDED
@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.ERROR_BEFORE])
def test_a_guest_that_cannot_be_thawed_is_not_forgotten(cloud, fault):
    """The error says so; recovery tries again, for as long as it takes."""
    cloud.host.faults.plan("thaw", fault, fault, fault)
    with pytest.raises(errors.CloudcoreError) as caught:
        cloud.manager.snapshot(cloud.who, "nightly")
    assert any("may be frozen" in note for note in caught.value.__notes__)
    assert cloud.host.frozen(cloud.who)
    assert not cloud.manager.recover().complete
    assert cloud.host.frozen(cloud.who)
    assert cloud.manager.recover().complete
    cloud.nothing_left()


def test_the_bytes_are_those_of_that_instant(journal_database, tmp_path, new_manager):
    with EmbeddedVolumes(journal_database, directory=tmp_path) as volumes:
        volume = volumes.create_volume(4096)
        (tmp_path / f"volume-{volume.id}").write_bytes(b"before".ljust(4096, b"."))
        manager, who = new_manager(volumes, MemoryGuests()), instance()
        made = manager.attach(volume.id, who)
        (kept,) = manager.snapshot(who, "now").snapshots
        (tmp_path / f"volume-{volume.id}").write_bytes(b"after".ljust(4096, b"."))
        assert (tmp_path / f"snapshot-{kept.id}").read_bytes().startswith(b"before")
        manager.detach(made.id)
        with pytest.raises(errors.Conflict, match="1 snapshots"):
            volumes.delete_volume(volume.id)
        volumes.delete_snapshot(kept.id)
        volumes.delete_snapshot(kept.id)
        volumes.delete_volume(volume.id)
