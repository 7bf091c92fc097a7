"""libvirtd is killed at any moment of a plug or an unplug, and at every step between, under a guest that lives on."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from cloudcore import _failpoints
from cloudcore.disks import DetachOutcome, Disk
from cloudcore.errors import CloudcoreError, InvariantViolated, OrphanedDevice
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests import services
from tests.hypervisor.domains import Guests
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("guests")

POINTS = [
    "hypervisor.attach.after_persistent",
    "hypervisor.attach.after_live",
    "hypervisor.detach.after_persistent",
    "hypervisor.detach.after_request",
    "hypervisor.connection.before_call",
    "hypervisor.connection.after_call",
]
TIMEOUTS = Timeouts(connect=20, detach=30)


@pytest.fixture(scope="module")
def host() -> services.LibvirtHost:
    services.require("qemu", "guest")
    return services.libvirt_hosts(1, variant="crash")[0]


@pytest.fixture(scope="module")
def guests(host) -> Iterator[Guests]:
    host.start()
    with Guests(host) as guests:
        yield guests
        host.start()
        guests.reconnect()


@pytest.fixture(scope="module")
def instance_id(guests) -> str:
    return guests.boot(ports=12)


def in_qemu(guests: Guests, instance_id: str, disk: Disk) -> tuple[bool, bool]:
    """Whether QEMU has the device, and whether it has the image open: asked by the test itself."""
    import libvirt_qemu

    def ask(execute: str, **arguments: object) -> list[dict]:
        command = json.dumps({"execute": execute, "arguments": arguments})
        return json.loads(libvirt_qemu.qemuMonitorCommand(guests.domain(instance_id), command, 0))["return"]

    device = any(disk.volume_id in (one.get("qdev") or "") for one in ask("query-block"))
    return device, any(one.get("file") == disk.source.path for one in ask("query-named-block-nodes", flat=True))


def agreed(guests: Guests, instance_id: str, disk: Disk, *, present: bool) -> None:
    """Live and persistent definition, QEMU's own lists, and what the guest sees."""
    guests.reconnect()
    domain = guests.domain(instance_id)
    found = [disk.volume_id in domain.XMLDesc(flags) for flags in (0, 2)]
    assert found == [present, present]
    assert in_qemu(guests, instance_id, disk) == (present, present)
    guests.console(instance_id).wait_disk(disk.volume_id, present=present)


def until_done(ask, tries: int = 5) -> object:
    """The same request again, as anyone would; each failure is a typed error."""
    for number in range(tries):
        try:
            return ask()
        except CloudcoreError:
            if number == tries - 1:
                raise
    raise AssertionError


def attach_and_detach(host, guests, instance_id, hurt) -> None:
    """Both, each hurt once; afterwards everybody agrees, and nothing is left that a later disk would run into."""
    disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
    with LibvirtHypervisor(host.uri, timeouts=TIMEOUTS) as hypervisor:
        with hurt():
            until_done(lambda: hypervisor.attach_disk(instance_id, disk))
        host.start()
        until_done(lambda: hypervisor.attach_disk(instance_id, disk))
        agreed(guests, instance_id, disk, present=True)
        with hurt():
            until_done(lambda: hypervisor.detach_disk(instance_id, disk.volume_id))
        host.start()
        for _ in range(5):
            if until_done(lambda: hypervisor.detach_disk(instance_id, disk.volume_id)) is DetachOutcome.DETACHED:
                break
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present
        agreed(guests, instance_id, disk, present=False)
        hypervisor.check()


class At:
    """Kills the daemon after so many seconds, or the first time that a point is passed, and starts it again.

    With *stopped*, it is stopped for so many seconds instead, and goes on.
    """

    def __init__(self, host, seconds: float | None = None, point: str | None = None, stopped: float = 0) -> None:
        self.host, self.seconds, self.point, self.stopped = host, seconds, point, stopped

    def __call__(self) -> At:
        return self

    def _kill(self, _: str = "") -> None:
        _failpoints.disarm()
        if self.stopped:
            self.host.pause()
            threading.Timer(self.stopped, self.host.resume).start()
        else:
            self.host.kill()
            self.host.start()

    def __enter__(self) -> None:
        if self.point is not None:
            _failpoints.arm(self.point, self._kill)
        else:
            self._thread = threading.Thread(target=lambda: (time.sleep(self.seconds), self._kill()))
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        _failpoints.disarm()
        if self.point is None:
            self._thread.join()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stopped", [0, 1.0])
def test_hurt_between_two_steps(host, guests, instance_id, point, stopped):
    attach_and_detach(host, guests, instance_id, At(host, point=point, stopped=stopped))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_hurt_at_any_moment(host, guests, instance_id, times):
    """In the middle of what libvirt and QEMU do, too: a daemon that forgets what QEMU has is made up for."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(times):
        stopped = moments.choice([0, 0, moments.uniform(0.1, 2)])
        attach_and_detach(host, guests, instance_id, At(host, seconds=moments.uniform(0, 0.08), stopped=stopped))


# --- what only QEMU has, made on purpose -----------------------------------------------------------------------------


def monitor(guests: Guests, instance_id: str, execute: str, **arguments: object) -> None:
    import libvirt_qemu

    command = json.dumps({"execute": execute, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(guests.domain(instance_id), command, 0))
    assert "error" not in answer, answer


def give_behind_libvirts_back(guests: Guests, instance_id: str, disk: Disk, *, bus: str, number: int = 90) -> None:
    """The disk as libvirt gives it, node by node; only libvirt does not know."""
    storage, image = f"libvirt-{number}-storage", f"libvirt-{number}-format"
    monitor(guests, instance_id, "blockdev-add", driver="file", filename=disk.source.path, node_name=storage)
    monitor(guests, instance_id, "blockdev-add", driver="raw", file=storage, node_name=image)
    alias = f"ua-{disk.volume_id}"
    monitor(
        guests,
        instance_id,
        "device_add",
        driver="virtio-blk-pci",
        bus=bus,
        drive=image,
        id=alias,
        serial=disk.volume_id,
    )


@pytest.fixture
def small(guests) -> str:
    """A guest that has room for one disk."""
    return guests.boot(ports=1)


def test_what_only_qemu_has_is_found_and_taken_out(host, guests, small):
    disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
    give_behind_libvirts_back(guests, small, disk, bus="pci.1")
    guests.console(small).wait_disk(disk.volume_id)
    with LibvirtHypervisor(host.uri, timeouts=TIMEOUTS) as hypervisor:
        state = hypervisor.disk_state(small, disk.volume_id)
        assert (state.live, state.persistent, state.orphaned) == (None, None, True)
        assert hypervisor.orphaned_disks() == (state,)
        with pytest.raises(InvariantViolated, match=f"lost track of volume {disk.volume_id}"):
            hypervisor.check()
        guests.domain(small).suspend()
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.PENDING
        guests.domain(small).resume()
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.DETACHED
        agreed(guests, small, disk, present=False)


def test_images_of_a_lost_disk_are_closed_though_the_guest_lets_it_go_between_two_looks(
    host, guests, small, monkeypatch
):
    """The first look sees the device, which reads them; only the second sees that none does."""
    disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
    give_behind_libvirts_back(guests, small, disk, bus="pci.1")
    guests.console(small).wait_disk(disk.volume_id)
    with LibvirtHypervisor(host.uri, timeouts=TIMEOUTS) as hypervisor:
        guests.domain(small).suspend()
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.PENDING
        settle, looks = hypervisor._driver.settle, []

        def overtaken(instance_id):
            looks.append(found := settle(instance_id))
            if len(looks) == 1:
                guests.domain(small).resume()
                until(lambda: not in_qemu(guests, small, disk)[0])
            return found

        monkeypatch.setattr(hypervisor._driver, "settle", overtaken)
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.DETACHED
        assert [bool(found.devices) for found in looks[:2]] == [True, False]
        agreed(guests, small, disk, present=False)


def test_the_place_of_a_lost_disk_is_free_for_the_same_volume_and_named_for_another(host, guests, small):
    disk, other = (Disk(volume_id=str(uuid.uuid4()), source=guests.image()) for _ in range(2))
    give_behind_libvirts_back(guests, small, disk, bus="pci.1")
    guests.console(small).wait_disk(disk.volume_id)
    with LibvirtHypervisor(host.uri, timeouts=TIMEOUTS) as hypervisor:
        with pytest.raises(OrphanedDevice, match=disk.volume_id) as caught:
            hypervisor.attach_disk(small, other)
        assert caught.value.identifier == other.volume_id
        assert not hypervisor.disk_state(small, other.volume_id).present
        assert not hypervisor.attach_disk(small, disk).half
        agreed(guests, small, disk, present=True)
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.DETACHED


def test_images_that_no_device_reads_are_closed(host, guests, small):
    """libvirtd died between opening the image and giving the device; the volume may not be used elsewhere before."""
    disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
    monitor(
        guests,
        small,
        "blockdev-add",
        driver="file",
        filename=disk.source.path,
        node_name="libvirt-1-storage",  # the very number that libvirt will take next
    )
    with LibvirtHypervisor(host.uri, timeouts=TIMEOUTS) as hypervisor:
        with pytest.raises(InvariantViolated, match="libvirt-1-storage"):
            hypervisor.check()
        hypervisor.attach_disk(small, disk)
        agreed(guests, small, disk, present=True)
        assert hypervisor.detach_disk(small, disk.volume_id) is DetachOutcome.DETACHED
        agreed(guests, small, disk, present=False)
