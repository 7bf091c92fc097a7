"""Real Cinder, real Ceph, real libvirt, real guests: what the disk operations promise, seen from inside the guests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudcore import _failpoints
from cloudcore.attach import State
from cloudcore.errors import Conflict, InUse
from tests.hypervisor.cloud import Cloud, open_cloud, token

pytestmark = pytest.mark.xdist_group("guests")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with open_cloud(f"sqlite:///{tmp_path_factory.mktemp('journal') / 'attach.db'}") as cloud:
        yield cloud


@pytest.fixture(scope="module")
def pair(cloud: Cloud) -> tuple[str, str]:
    """Two guests, one on each host, which boot side by side."""
    hosts = list(cloud.hosts.values())
    instances = [host.guests.launch() for host in hosts]
    for host, instance_id in zip(hosts, instances, strict=True):
        host.guests.console(instance_id)
    return instances[0], instances[1]


@pytest.fixture
def manager(cloud: Cloud):
    with cloud.manager() as manager:
        yield manager
        manager.check()
        for attachment in manager.attachments():
            manager.detach(attachment.id)


def consoles(cloud: Cloud, pair: tuple[str, str]):
    hosts = list(cloud.hosts.values())
    return [host.guests.console(instance) for host, instance in zip(hosts, pair, strict=True)]


def test_one_volume_on_two_guests_on_two_hosts(cloud, pair, manager):
    """Bytes go from A to B and back; detached from one, the other goes on; sizes grow under both."""
    volume_id = cloud.volume(multiattach=True)
    first, second = (manager.attach(volume_id, one, host=host) for one, host in zip(pair, cloud.hosts, strict=True))
    a, b = consoles(cloud, pair)
    disk_a, disk_b = a.wait_disk(volume_id), b.wait_disk(volume_id)
    assert cloud.watchers(volume_id, awaited=2) == 2
    for writer, wrote, reader, read in ((a, disk_a, b, disk_b), (b, disk_b, a, disk_a)):
        text = token()
        writer.write(wrote, 7, text)
        assert reader.read(read, 7) == text
    state = cloud.hosts["host-a"].hypervisor.disk_state(pair[0], volume_id)
    assert state.live.shareable
    assert state.live.cache == "none"

    extension = manager.extend(volume_id, 2 << 30)
    assert not extension.left
    assert (a.size(disk_a), b.size(disk_b)) == (2 << 30, 2 << 30)

    assert manager.detach(first.id).state is State.ABSENT
    a.wait_disk(volume_id, present=False)
    assert cloud.status(volume_id) == "in-use"
    assert cloud.watchers(volume_id, awaited=1) == 1
    text = token()
    b.write(disk_b, 9, text)
    assert b.read(disk_b, 9) == text
    assert not cloud.hosts["host-a"].hypervisor.disk_state(pair[0], volume_id).present

    assert manager.detach(second.id).state is State.ABSENT
    assert cloud.status(volume_id) == "available"
    assert cloud.watchers(volume_id, awaited=0) == 0


def test_an_exclusive_volume_has_one_user(cloud, pair, manager):
    """The second instance is refused, by us before Cinder is asked; RBD itself would refuse nobody."""
    volume_id = cloud.volume()
    attachment = manager.attach(volume_id, pair[0], host="host-a")
    with pytest.raises((InUse, Conflict)):
        manager.attach(volume_id, pair[1], host="host-b")
    assert not cloud.hosts["host-b"].hypervisor.disk_state(pair[1], volume_id).present
    assert cloud.watchers(volume_id, awaited=1) == 1
    a, _ = consoles(cloud, pair)
    a.wait_disk(volume_id)
    manager.detach(attachment.id)
    moved = manager.attach(volume_id, pair[1], host="host-b")
    assert manager.detach(moved.id).state is State.ABSENT


def test_read_only_is_read_only(cloud, pair, manager):
    """Beside a writer: the guest's disk refuses writes, and what the writer wrote arrives."""
    volume_id = cloud.volume(multiattach=True)
    manager.attach(volume_id, pair[0], host="host-a")
    manager.attach(volume_id, pair[1], mode="ro", host="host-b")
    a, b = consoles(cloud, pair)
    disk_a, disk_b = a.wait_disk(volume_id), b.wait_disk(volume_id)
    text = token()
    a.write(disk_a, 3, text)
    assert b.run(f"cat /sys/block/{disk_b}/ro") == "1"
    code, _ = b.try_run(f"echo {token()} > /tmp/x; dd if=/tmp/x of=/dev/{disk_b} bs=4096 seek=3 conv=sync,fsync")
    assert code != 0
    assert b.read(disk_b, 3) == text == a.read(disk_a, 3)


def test_a_paused_guest_keeps_its_disk_until_it_goes_on(cloud, pair, manager):
    """Pending survives the process: the next one's recovery finishes it after the guest was resumed."""
    volume_id = cloud.volume()
    attachment = manager.attach(volume_id, pair[0], host="host-a")
    domain = cloud.hosts["host-a"].guests.domain(pair[0])
    domain.suspend()
    try:
        assert manager.detach(attachment.id).state is State.PENDING
        assert cloud.status(volume_id) == "in-use"  # nothing was taken away behind the guest
        assert cloud.watchers(volume_id, awaited=1) == 1
        with cloud.manager() as second:
            report = second.recover()
            assert [leg.id for leg in report.waiting] == [attachment.id]
    finally:
        domain.resume()
    with cloud.manager() as third:
        assert third.recover().complete
        assert third.attachment(attachment.id).state is State.ABSENT
    assert cloud.status(volume_id) == "available"
    assert cloud.watchers(volume_id, awaited=0) == 0


def test_another_volume_under_a_running_guest(cloud, pair, manager):
    """From one image of Ceph to another: the bytes follow, those written meanwhile too; the old one is closed."""
    old, new = cloud.volume(), cloud.volume()
    manager.attach(old, pair[0], host="host-a")
    a, _ = consoles(cloud, pair)
    disk = a.wait_disk(old)
    texts = [token() for _ in range(3)]
    a.write(disk, 1, texts[0])

    def write(point, block):
        def act(_):
            _failpoints.disarm()
            a.write(disk, block, texts[block - 1])

        _failpoints.arm(point, act)

    write("attach.swap.copying", 2)
    try:
        made = manager.swap_volume(pair[0], old, new)
    finally:
        _failpoints.disarm()
    a.write(disk, 3, texts[2])
    assert (made.volume_id, cloud.status(old), cloud.status(new)) == (new, "available", "in-use")
    assert [a.read(disk, block) for block in (1, 2, 3)] == texts
    assert (cloud.watchers(old, awaited=0), cloud.watchers(new, awaited=1)) == (0, 1)
    assert manager.detach(made.id).state is State.ABSENT
    a.wait_disk(old, present=False)
    assert cloud.watchers(new, awaited=0) == 0
    manager.attach(new, pair[0], host="host-a")
    disk = a.wait_disk(new)
    assert [a.read(disk, block) for block in (1, 2, 3)] == texts
