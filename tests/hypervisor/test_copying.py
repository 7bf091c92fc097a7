"""Another volume under a real running guest: its bytes are there, it ran on, and the old image is closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudcore import _failpoints
from cloudcore.attach import State
from cloudcore.errors import CloudcoreError
from tests.hypervisor.cloud import HOSTS, EmbeddedCloud, open_embedded_cloud, token

pytestmark = [pytest.mark.xdist_group("guests"), pytest.mark.services]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCloud]:
    url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 'attach.db'}"
    with open_embedded_cloud(url, variant="") as cloud:
        yield cloud


@pytest.fixture(scope="module")
def instance(cloud) -> str:
    return cloud.hosts[HOSTS[0]].guests.boot()


@pytest.fixture
def manager(cloud):
    with cloud.manager() as manager:
        yield manager
        manager.check()
        for attachment in manager.attachments():
            manager.detach(attachment.id)


class Swap:
    """A volume that the guest has written to, and the one that is to take its place."""

    def __init__(self, cloud, instance, manager, *, migration):
        self.cloud, self.who, self.manager = cloud, instance, manager
        self.old = cloud.volume()
        self.new = cloud.migrate(self.old) if migration else cloud.volume()
        self.name = self.old if migration else self.new
        self.console = cloud.hosts[HOSTS[0]].guests.console(instance)
        self.first = manager.attach(self.old, instance)
        self.disk = self.console.wait_disk(self.old)
        self.text = token()
        self.console.write(self.disk, 5, self.text)

    def swap(self):
        return self.manager.swap_volume(self.who, self.old, self.new)

    def open_images(self):
        """The files of volumes that QEMU has open."""
        domain = self.cloud.hosts[HOSTS[0]].guests.domain(self.who)
        (process,) = [
            path.parent
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if domain.UUIDString() in _text(path) and "qemu-system" in _text(path)
        ]
        return {file.resolve().name for file in (process / "fd").iterdir() if "/volume-" in str(file.resolve())}

    def definitions(self):
        domain = self.cloud.hosts[HOSTS[0]].guests.domain(self.who)
        return domain.XMLDesc(0), domain.XMLDesc(2)

    def bytes_follow(self, image):
        """What was written is read, what is written now arrives in *image*, and nothing else is open."""
        assert self.console.read(self.disk, 5) == self.text
        fresh = token()
        self.console.write(self.disk, 6, fresh)
        assert self.console.read(self.disk, 6) == fresh
        assert self.open_images() == {f"volume-{image}"}
        stored = Path(self.cloud.volumes._directory, f"volume-{image}").read_bytes()
        assert stored[5 * 4096 :].startswith(self.text.encode())
        assert stored[6 * 4096 :].startswith(fresh.encode())
        for definition in self.definitions():
            assert f"volume-{image}" in definition
            assert "<mirror" not in definition


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("migration", [False, True])
def test_the_guest_runs_on_with_its_bytes(cloud, instance, manager, migration):
    swap = Swap(cloud, instance, manager, migration=migration)
    uptime = float(swap.console.run("cut -d' ' -f1 /proc/uptime"))
    told = []
    made = manager.swap_volume(instance, swap.old, swap.new, on_progress=lambda done, total: told.append((done, total)))
    assert (made.volume_id, made.state) == (swap.name, State.ATTACHED)
    assert told[-1][0] == told[-1][1]
    swap.bytes_follow(swap.new)
    assert float(swap.console.run("cut -d' ' -f1 /proc/uptime")) > uptime
    assert manager.audit().clean
    again = cloud.volume()
    manager.swap_volume(instance, swap.name, again)  # a disk that was renamed is found
    swap.bytes_follow(again)
    assert manager.detach(manager.attachments(instance_id=instance)[0].id).state is State.ABSENT
    assert swap.open_images() == set()
    assert manager.audit().clean


def test_everything_else_of_the_definition_stays(cloud, instance, manager):
    """To the byte, apart from the volume's id, where its bytes are, and a remark of libvirt's."""
    swap = Swap(cloud, instance, manager, migration=False)
    before = swap.definitions()[1]
    swap.swap()
    after = swap.definitions()[1].replace("      <backingStore/>\n", "")
    assert after == before.replace(swap.old, swap.new)


@pytest.mark.parametrize(
    ("point", "changed"),
    [
        ("hypervisor.copy.begun", False),
        ("attach.swap.pivoting", False),
        ("hypervisor.copy.pivoted", True),
        ("attach.swap.taken_over", True),
        ("attach.swap.ended", True),
    ],
)
def test_what_died_in_the_middle_is_led_out(cloud, instance, manager, point, changed):
    swap = Swap(cloud, instance, manager, migration=True)

    def die(_):
        _failpoints.disarm()
        raise Killed

    _failpoints.arm(point, die)
    try:
        with pytest.raises(Killed):
            swap.swap()
    finally:
        _failpoints.disarm()
    with cloud.manager() as second:
        second.recover()
        assert second.move(instance) is None
        swap.bytes_follow(swap.new if changed else swap.old)
        assert second.audit().clean
        assert [leg.volume_id for leg in second.attachments(instance_id=instance)] == [swap.old]


def test_a_copy_that_somebody_ends_is_undone(cloud, instance, manager):
    """The guest goes on with the old volume, and a second try succeeds."""
    swap = Swap(cloud, instance, manager, migration=False)
    domain = cloud.hosts[HOSTS[0]].guests.domain(instance)

    def end(_):
        _failpoints.disarm()
        domain.blockJobAbort(swap.disk, 0)

    _failpoints.arm("attach.swap.pivoting", end)
    try:
        with pytest.raises(CloudcoreError):
            swap.swap()
    finally:
        _failpoints.disarm()
    swap.bytes_follow(swap.old)
    assert manager.move(instance) is None
    swap.swap()
    swap.bytes_follow(swap.new)
