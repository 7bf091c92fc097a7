"""An image is written over the volume that an instance boots from, without that ever being free for somebody else."""

import re
import subprocess
import uuid
from pathlib import Path

import pytest

from cloudcore import errors
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.testing.volumes import FakeVolumes
from tests import services

from .conftest import instance
from .dying import killed_at

HERE, THERE = "compute-1", "compute-2"


class Cloud:
    """Two hosts, and an instance that is off with the volume that it boots from and another."""

    def __init__(self, new_manager, volume_service):
        self.under_test = volume_service
        self.volumes = FakeVolumes(volume_service.service)
        self.hosts = {name: MemoryHypervisor(name) for name in (HERE, THERE)}
        self.manager = new_manager(self.volumes, self.hosts.values(), patience=20.0)
        self.root, self.data, self.who = volume_service.create_volume(), volume_service.create_volume(), instance()
        self.hosts[HERE].add_guest(self.who, state="off")
        self.manager.attach(self.root, self.who, host=HERE, boot_order=1)
        self.manager.attach(self.data, self.who, host=HERE)

    def as_before(self):
        """Both volumes are attached, used by nobody else, and in the guest as they were."""
        assert self.manager.move(self.who) is None
        legs = {leg.volume_id: leg for leg in self.manager.attachments(instance_id=self.who)}
        assert {leg.state for leg in legs.values()} == {State.ATTACHED}
        assert legs.keys() == {self.root, self.data}
        assert legs[self.root].settings.boot_order == 1
        for volume in legs:
            assert self.under_test.statuses(volume) == ("in-use", ["attached"])
            assert self.hosts[HERE].disk_state(self.who, volume).present
        assert self.manager.audit().clean


BOTH = pytest.mark.parametrize(
    "volume_service",
    [
        "embedded",
        pytest.param("cinder", marks=pytest.mark.services),
        pytest.param("cinder-rbd", marks=pytest.mark.services),
    ],
    indirect=True,
)


def first_bytes(volume):
    """Of an image in Ceph."""
    storage = services.ceph()
    place = f"rbd:{storage.pool}/volume-{volume}:id={storage.user}:conf={storage.conf}:keyring={storage.keyring}"
    read = ["qemu-io", "-f", "raw", "-r", "-c", "read -v 0 512", place]
    lines = subprocess.run(read, check=True, capture_output=True, text=True).stdout.splitlines()
    return b"".join(bytes.fromhex(line[11:58]) for line in lines if re.match(r"[0-9a-f]{8}:", line))


@pytest.fixture
def cloud(new_manager, volume_service):
    return Cloud(new_manager, volume_service)


@BOTH
def test_the_root_volume_gets_the_image(cloud):
    """While it is reserved for the instance, and only it; the other volume stays where it is."""
    seen = []
    cloud.volumes.on("reimage", lambda volume, _: seen.append((volume, *cloud.under_test.statuses(volume))))
    kept = next(leg for leg in cloud.manager.attachments(volume_id=cloud.data))
    cloud.manager.rebuild(cloud.who, cloud.under_test.image())
    if cloud.under_test.kind == "cinder-rbd":
        assert first_bytes(cloud.root).startswith(b"an operating system.")
    assert seen == [(cloud.root, "reserved", ["reserved"])]
    assert cloud.manager.attachment(kept.id).version == kept.version
    cloud.as_before()


def test_the_bytes_are_the_images(new_manager, journal_database, tmp_path):
    """And what does not fit, or is not there, leaves them; another image can be named then."""
    small, large = tmp_path / "small.raw", tmp_path / "large.raw"
    small.write_bytes(b"an operating system")
    large.write_bytes(bytes(2**20 + 1))
    images = {str(uuid.uuid4()): small, str(uuid.uuid4()): large}
    with EmbeddedVolumes(journal_database, directory=tmp_path / "volumes", images=images) as volumes:
        host, who = MemoryHypervisor(HERE), instance()
        host.add_guest(who, state="off")
        manager = new_manager(volumes, host)
        root = volumes.create_volume(2**20)
        manager.attach(root.id, who, boot_order=1)
        for wrong in (str(uuid.uuid4()), list(images)[1]):
            with pytest.raises(errors.InvalidArgument, match=wrong):
                manager.rebuild(who, wrong)
        assert manager.move(who).phase == "reimaging"
        assert volumes.volume(root.id).status == "reserved"
        manager.rebuild(who, next(iter(images)))
        disk = host.disk_state(who, root.id).persistent
        assert Path(disk.source.path).read_bytes().startswith(b"an operating system\0")
        assert Path(disk.source.path).stat().st_size == 2**20


@pytest.mark.parametrize("volume_service", ["embedded"], indirect=True)
def test_who_cannot_be_rebuilt(cloud, new_manager):
    """Nothing is touched."""
    image, before = cloud.under_test.image(), cloud.manager.attachments()
    cloud.hosts[HERE].start(cloud.who)
    with pytest.raises(errors.Conflict, match="stop it first"):
        cloud.manager.rebuild(cloud.who, image)
    cloud.hosts[HERE].stop(cloud.who)
    other = instance()
    cloud.hosts[HERE].add_guest(other, state="off")
    shared = cloud.under_test.create_volume(multiattach=True)
    with pytest.raises(errors.Conflict, match="boots from no volume"):
        cloud.manager.rebuild(other, image)
    cloud.manager.attach(shared, other, host=HERE, boot_order=1)
    third = cloud.manager.attach(shared, cloud.who, host=HERE)
    with pytest.raises(errors.Conflict, match="use it too"):
        cloud.manager.rebuild(other, image)
    with pytest.raises(errors.InvalidArgument, match="image_id"):
        cloud.manager.rebuild(cloud.who, "an image")
    cloud.manager.detach(third.id)
    cloud.manager.terminate(other)
    assert cloud.manager.attachments() == before
    cloud.manager.begin_move(cloud.who, THERE, kind="cold")
    with pytest.raises(errors.Conflict, match="cold move"):
        cloud.manager.rebuild(cloud.who, image)
    cloud.manager.revert_move(cloud.who)
    cloud.as_before()


POINTS = [
    "attach.move.begun", "attach.reserve.after", "attach.unmap.before", "attach.aside.reserved",
    "attach.promote.before", "attach.move.phase", "attach.reimaged", "attach.place.before", "attach.map.after",
    "attach.plug.after",
]  # fmt: skip


OFTEN = {("attach.aside.reserved", "revert"), ("attach.reimaged", "recover"), ("attach.map.after", "again")}


def cases():
    """Each on embedded volumes; three on a real Cinder, the rest there with ``--long``."""
    for point in POINTS:
        for way in ("again", "recover", "revert", "terminate"):
            yield pytest.param("embedded", point, way, id=f"embedded-{point}-{way}")
            marks = [pytest.mark.services] if (point, way) in OFTEN else [pytest.mark.services, pytest.mark.slow]
            yield pytest.param("cinder", point, way, id=f"cinder-{point}-{way}", marks=marks)


@pytest.mark.parametrize(("volume_service", "point", "way"), list(cases()), indirect=["volume_service"])
def test_what_died_in_the_middle(cloud, point, way):
    """Goes on, goes back or ends, and nobody else got the volume meanwhile."""
    image = cloud.under_test.image()
    with killed_at(point):
        cloud.manager.rebuild(cloud.who, image)
    with pytest.raises(errors.CloudcoreError):
        cloud.volumes.reserve(cloud.root, instance())
    if way == "terminate":
        assert cloud.manager.terminate(cloud.who) == ()
        assert cloud.under_test.statuses(cloud.root) == cloud.under_test.statuses(cloud.data) == ("available", [])
        return
    if way == "again":
        cloud.manager.rebuild(cloud.who, image)
    elif way == "recover":
        assert cloud.manager.recover().complete
    else:
        cloud.manager.revert_move(cloud.who)
    cloud.as_before()


@pytest.mark.parametrize(
    "error", [errors.Conflict("no"), errors.OutcomeUnknown("?"), errors.VolumeServiceUnavailable("!")]
)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("volume_service", ["embedded"], indirect=True)
def test_an_image_that_could_not_be_written(cloud, error, after):
    """The volume stays reserved; the call repeated goes on, also with another image."""
    cloud.volumes.fail("reimage", error, after=after)
    with pytest.raises(type(error)):
        cloud.manager.rebuild(cloud.who, cloud.under_test.image())
    assert cloud.under_test.statuses(cloud.root) == ("reserved", ["reserved"])
    assert cloud.manager.audit().clean
    cloud.manager.rebuild(cloud.who, cloud.under_test.image())
    cloud.as_before()
