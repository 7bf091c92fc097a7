"""The libvirt adapter on real daemons and drivers: facts, lost connections, deadlines, threads."""

from __future__ import annotations

import runpy
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from cloudcore.disks import BlockSource, DetachOutcome, Disk, DiskBus, GuestFreezer, LuksEncryption, RbdSource
from cloudcore.errors import (
    DeadlineExceeded,
    GuestAgentUnavailable,
    GuestBusy,
    GuestNotFound,
    HypervisorUnavailable,
    InUse,
    InvalidArgument,
    InvalidDisk,
    LimitExceeded,
    Transient,
    UnsupportedFeature,
)
from cloudcore.hypervisor import HostPolicy, LibvirtHypervisor, Timeouts, build_tree
from cloudcore.hypervisor.disks import libvirt_driver
from cloudcore.hypervisor.disks.guests import Scope
from cloudcore.hypervisor.disks.xml import effective
from tests import services
from tests.hypervisor.domains import Guests
from tests.hypervisor.test_disk_xml import DISKS
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("guests")

EXAMPLE = Path(__file__).parents[2] / "examples" / "attach_to_guest.py"

NODE = """<node>
  <cpu>
    <mhz>2000</mhz><model>x86_64</model><active>8</active>
    <nodes>2</nodes><sockets>1</sockets><cores>4</cores><threads>1</threads>
  </cpu>
  <memory>8388608</memory>
  <domain type='test'>
    <name>vm1</name><uuid>4a64cc71-19c4-2fd0-2323-3050941ea3c3</uuid><memory>1048576</memory><vcpu>1</vcpu>
    <os><type arch='i686'>hvm</type></os>
    <devices>
      <disk type='file' device='disk'><source file='/images/a.img'/><target dev='vda' bus='virtio'/>
        <serial>7c5c3b2a-1111-4222-8333-444455556666</serial></disk>
    </devices>
  </domain>
  <pool type='dir'><name>images</name><uuid>33a5c045-645a-2c00-e56b-927cdf34e17a</uuid>
    <capacity>536870912000</capacity><target><path>/images</path></target></pool>
  <device><name>pci_0000_81_00_0</name><parent>computer</parent>
    <capability type='pci'><class>0x020000</class><domain>0</domain><bus>129</bus><slot>0</slot><function>0</function>
      <product id='0x101d'/><vendor id='0x15b3'/></capability></device>
</node>
"""


@pytest.fixture(autouse=True)
def _libvirt() -> None:
    services.require("libvirt")


# --- drivers inside this process -------------------------------------------------------------------------------------


def test_the_test_driver_gives_a_tree():
    """What it lacks is left empty; CPUs that are offline are not offered."""
    with LibvirtHypervisor("test:///default", host="cn1") as hypervisor:
        facts = hypervisor.facts()
        assert hypervisor.host == "cn1"
        assert (facts.hypervisor, facts.domain, facts.devices) == ("TEST", None, ())
        tree = build_tree(facts, HostPolicy(name="cn1"))
    totals = {one.name: {i.resource_class: i.total for i in one.inventories} for one in tree}
    assert totals == {
        "cn1": {"DISK_GB": 100},
        "cn1_numa0": {"VCPU": 3, "MEMORY_MB": 2048},
        "cn1_numa1": {"VCPU": 8, "MEMORY_MB": 4096},
    }


def test_a_node_file_gives_a_tree(tmp_path: Path):
    """A machine described by hand, through the same code as a real one; its guests' disks are found by serial."""
    path = tmp_path / "node.xml"
    path.write_text(NODE)
    with LibvirtHypervisor(f"test://{path}", host="cn1") as hypervisor:
        facts = hypervisor.facts()
        (state,) = hypervisor.disk_states()
        hypervisor.check()
    assert state.volume_id == "7c5c3b2a-1111-4222-8333-444455556666"
    assert state.live == state.persistent
    tree = build_tree(facts, HostPolicy(name="cn1"))
    assert {i.resource_class: i.total for one in tree for i in one.inventories} == {
        "DISK_GB": 100,  # the driver gives every pool this size
        "VCPU": 3,
        "MEMORY_MB": 8192,
    }
    assert [device.address for device in facts.devices] == ["0000:81:00.0"]


def test_what_a_driver_cannot_do_is_said_so():
    """The test driver plugs nothing; a disk that was asked for is then nowhere."""
    instance_id = "6695eb01-f6a4-8304-79aa-97f2502e193f"
    disk = Disk(volume_id=str(uuid.uuid4()), source=RbdSource(pool="p", image="i", hosts=(("m", 1),)))
    with LibvirtHypervisor("test:///default") as hypervisor:
        with pytest.raises(UnsupportedFeature):
            hypervisor.attach_disk(instance_id, disk)
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present
        with pytest.raises(UnsupportedFeature):
            hypervisor.define_secret(str(uuid.uuid4()), kind="ceph", name="x", value=b"")


@pytest.mark.parametrize("refusal", ["guest", "place", "plug", "busy", "answer"])
def test_a_passphrase_stays_only_with_a_volume_that_may_be_there(monkeypatch, refusal):
    """A guest that is not there, or has no place, is found out before it is asked for; and what is refused later takes
    it along, unless nobody knows whether the guest has the disk."""
    instance_id, volume_id = "6695eb01-f6a4-8304-79aa-97f2502e193f", str(uuid.uuid4())
    asked, kept = [], set()

    def give(disk: Disk) -> Disk:
        asked.append(disk.volume_id)
        kept.add(disk.volume_id)
        return disk

    def refuse(*_: object) -> None:
        raise {"busy": GuestBusy, "answer": DeadlineExceeded}.get(refusal, UnsupportedFeature)(refusal)

    bus = DiskBus.SATA if refusal == "place" else DiskBus.VIRTIO
    encryption = LuksEncryption(secret_id=volume_id)
    disk = Disk(volume_id=volume_id, source=BlockSource("/dev/x"), bus=bus, encryption=encryption)
    with LibvirtHypervisor("test:///default", timeouts=Timeouts(detach=0), passphrase=lambda _: b"") as hypervisor:
        monkeypatch.setattr(hypervisor._secrets, "give", give)
        monkeypatch.setattr(hypervisor._secrets, "take", kept.discard)
        monkeypatch.setattr(hypervisor._driver, "plug", refuse)
        expected = {
            "guest": GuestNotFound, "place": InvalidDisk, "plug": UnsupportedFeature,
            "busy": GuestBusy, "answer": DeadlineExceeded,
        }  # fmt: skip
        with pytest.raises(expected[refusal]):
            hypervisor.attach_disk(str(uuid.uuid4()) if refusal == "guest" else instance_id, disk)
    assert asked == ([] if refusal in {"guest", "place"} else [volume_id])
    assert kept == ({volume_id} if refusal == "answer" else set())


def test_file_systems_wait_and_go_on_if_there_is_an_agent():
    """libvirt's test driver has one; of a guest that is not there, or is off, nobody writes."""
    instance_id = "6695eb01-f6a4-8304-79aa-97f2502e193f"
    with LibvirtHypervisor("test:///default") as hypervisor:
        assert isinstance(hypervisor, GuestFreezer)
        for verb in (hypervisor.freeze, hypervisor.thaw, hypervisor.thaw):
            verb(instance_id)
            verb(str(uuid.uuid4()))


def test_a_guest_without_an_agent_says_so(guests):
    """One that has no channel for it, and one that has it with nobody behind it."""
    path = f"{guests.host.folder}/run/{uuid.uuid4().hex[:8]}.agent"
    channel = (
        f"<channel type='unix'><source mode='bind' path='{path}'/>"
        f"<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    )
    with LibvirtHypervisor(guests.host.uri) as hypervisor:
        for more in ("", channel):
            instance_id = guests.define(more=more)
            hypervisor.freeze(instance_id)  # it is off
            guests.domain(instance_id).create()
            with pytest.raises(GuestAgentUnavailable) as caught:
                hypervisor.freeze(instance_id)
            assert caught.value.identifier == instance_id


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path):
    with pytest.raises(InvalidArgument):
        LibvirtHypervisor("")
    with LibvirtHypervisor(f"qemu+unix:///session?socket={tmp_path}/none") as hypervisor:
        assert "none" in repr(hypervisor)
        with pytest.raises(HypervisorUnavailable) as caught:
            hypervisor.facts()
        assert caught.value.code == 38
        assert caught.value.uri == hypervisor.uri
    with pytest.raises(HypervisorUnavailable, match="closed"):
        hypervisor.disk_states()


def test_the_event_loop_ends_with_its_last_user():
    def loops() -> int:
        return sum(thread.name == "cloudcore libvirt events" for thread in threading.enumerate())

    before = loops()
    first, second = LibvirtHypervisor("test:///default"), LibvirtHypervisor("test:///default")
    first.disk_states()
    second.disk_states()
    assert loops() == 1
    first.close()
    assert loops() == 1
    second.close()
    assert loops() == before
    with LibvirtHypervisor("test:///default") as again:  # and starts anew
        assert again.disk_states() == ()
        assert loops() == 1


def test_a_loop_of_the_callers_own():
    """Then none is started: whoever runs one may go on doing so."""
    before = {thread.name for thread in threading.enumerate()}
    with LibvirtHypervisor("test:///default", own_event_loop=False) as hypervisor:
        assert hypervisor.facts().hypervisor == "TEST"
        assert "cloudcore libvirt events" not in {thread.name for thread in threading.enumerate()} - before


# --- QEMU ------------------------------------------------------------------------------------------------------------


def test_the_machines_own_qemu_gives_a_tree(guest_host):
    """This very machine: CPUs, memory, features of emulated guests, disk buses."""
    with LibvirtHypervisor(guest_host.uri) as hypervisor:
        facts = hypervisor.facts()
    tree = build_tree(facts, HostPolicy(name="here", reserved_memory_mb=100, disk_gb=10))
    assert facts.hypervisor == "QEMU"
    assert facts.host_id == guest_host.host_uuid
    vcpus = [one.inventory("VCPU") for one in tree if one.kind == "numa"]
    assert sum(one.total for one in vcpus if one) == len(facts.online_cpus) > 0
    assert {"COMPUTE_STORAGE_BUS_VIRTIO", "COMPUTE_VOLUME_MULTI_ATTACH"} <= tree.root.traits
    if facts.architecture == "x86_64":
        assert {"HW_ARCH_X86_64", "COMPUTE_ARCH_X86_64", "HW_CPU_X86_SSE2"} <= tree.root.traits


@pytest.fixture(scope="module")
def fragile() -> services.LibvirtHost:
    """A daemon of our own, to be hurt."""
    services.require("qemu", "guest")
    return services.libvirt_hosts(1, variant="crash")[0]


@pytest.fixture
def guests(fragile) -> Iterator[Guests]:
    fragile.start()
    with Guests(fragile) as guests:
        yield guests
        fragile.resume()
        fragile.start()
        guests.reconnect()


def test_a_restarted_daemon_is_connected_to_again(fragile, guests):
    """The next call finds it, and events arrive on the new connection too."""
    instance_id = guests.define()
    with LibvirtHypervisor(fragile.uri) as hypervisor:
        disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
        hypervisor.attach_disk(instance_id, disk)
        for stop in (fragile.kill, fragile.stop):
            stop()
            fragile.start()
            assert hypervisor.disk_state(instance_id, disk.volume_id).present
        fragile.kill()
        with pytest.raises(HypervisorUnavailable), LibvirtHypervisor(fragile.uri) as another:
            another.disk_states()
        fragile.start()
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_a_daemon_that_hangs_costs_a_deadline(fragile, guests):
    """No call outlasts it, and everything works again when the daemon does."""
    instance_id = guests.define()
    disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
    with LibvirtHypervisor(fragile.uri, timeouts=Timeouts(read=0.5, change=0.5, connect=0.5)) as hypervisor:
        hypervisor.attach_disk(instance_id, disk)
        fragile.pause()
        for ask in (
            lambda: hypervisor.disk_state(instance_id, disk.volume_id),
            lambda: hypervisor.detach_disk(instance_id, disk.volume_id),
        ):
            with pytest.raises(Transient):
                ask()
        fragile.resume()
        for _ in range(20):  # calls given up are still being answered
            try:
                assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
                break
            except Transient:
                continue
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present


def test_an_unreachable_ceph_blocks_nobody_else(fragile, guests):
    """A monitor that answers nothing makes QEMU wait for minutes: the caller leaves at its deadline, other guests are
    served meanwhile, and the volume can be asked for again."""
    stuck, other = guests.define(), guests.define()
    guests.domain(stuck).create()
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        source = RbdSource(pool="p", image="i", hosts=(hole.getsockname(),))
        disk = Disk(volume_id=str(uuid.uuid4()), source=source)
        with LibvirtHypervisor(fragile.uri, timeouts=Timeouts(change=4.0)) as hypervisor:
            with pytest.raises(DeadlineExceeded):
                hypervisor.attach_disk(stuck, disk)
            file = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
            assert hypervisor.attach_disk(other, file).present
            assert hypervisor.detach_disk(other, file.volume_id) is DetachOutcome.DETACHED
            guests.kill(stuck)
            assert hypervisor.detach_disk(stuck, disk.volume_id) is DetachOutcome.DETACHED


def test_two_guests_and_one_exclusive_image(fragile, guests):
    """QEMU's own lock refuses the second; nothing is left behind in its definitions."""
    first, second = guests.define(), guests.define()
    for instance_id in (first, second):
        guests.domain(instance_id).create()
    source = guests.image()
    with LibvirtHypervisor(fragile.uri) as hypervisor:
        disk = Disk(volume_id=str(uuid.uuid4()), source=source)
        hypervisor.attach_disk(first, disk)
        with pytest.raises(InUse, match="lock"):
            hypervisor.attach_disk(second, disk)
        assert not hypervisor.disk_state(second, disk.volume_id).present


def test_a_transient_guest_has_a_live_definition_only(fragile, guests):
    from tests.hypervisor.domains import domain_xml

    instance_id = str(uuid.uuid4())
    guests.adopt(instance_id)
    guests.connection.createXML(domain_xml(f"x-{instance_id[:8]}", instance_id, guests.serial(instance_id), image=None))
    with LibvirtHypervisor(fragile.uri, timeouts=Timeouts(detach=0.5)) as hypervisor:
        disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image())
        state = hypervisor.attach_disk(instance_id, disk)
        assert (state.live is not None, state.persistent, state.half) == (True, None, False)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING  # nobody in it answers
        guests.domain(instance_id).reset()  # which lets go what was asked for
    with LibvirtHypervisor(fragile.uri) as patient:
        assert patient.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_a_disk_that_others_plugged_is_found_by_its_serial(fragile, guests):
    """It has no alias of ours, in the persistent definition none at all; it is let go like any other."""
    instance_id, volume_id, source = guests.define(), str(uuid.uuid4()), guests.image()
    domain = guests.domain(instance_id)
    domain.attachDeviceFlags(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{source.path}'/>"
        f"<target dev='vdb' bus='virtio'/><serial>{volume_id}</serial></disk>",
        2,  # VIR_DOMAIN_AFFECT_CONFIG
    )
    domain.create()
    with LibvirtHypervisor(fragile.uri, timeouts=Timeouts(detach=0.5)) as hypervisor:
        (state,) = [one for one in hypervisor.disk_states() if one.instance_id == instance_id]
        assert (state.volume_id, state.live.source, state.live.target) == (volume_id, source, "vdb")
        assert hypervisor.attach_disk(instance_id, Disk(volume_id=volume_id, source=source)) == state
        assert hypervisor.detach_disk(instance_id, volume_id) is DetachOutcome.PENDING
        assert hypervisor.disk_state(instance_id, volume_id).half
        domain.reset()
    with LibvirtHypervisor(fragile.uri) as patient:
        assert patient.detach_disk(instance_id, volume_id) is DetachOutcome.DETACHED


def test_a_disk_to_boot_from_keeps_what_else_is_attached_meanwhile(fragile, guests, monkeypatch):
    """libvirt's own order of boot devices gives way, for which the definition is written as a whole. While that is so,
    another caller attaches, and an earlier disk is let go: neither is lost."""
    instance_id = guests.define()
    boot, other, old = (Disk(volume_id=str(uuid.uuid4()), source=guests.image()) for _ in range(3))
    with LibvirtHypervisor(fragile.uri) as hypervisor:
        hypervisor.attach_disk(instance_id, old)
        driver, meanwhile = hypervisor._driver, []
        take, write = driver._turns.take, libvirt_driver.bootable_xml
        waiting = threading.Semaphore(0)

        def taking(*arguments):
            if meanwhile:
                waiting.release()
            return take(*arguments)

        def writing(*arguments):
            for ask in (
                lambda: hypervisor.attach_disk(instance_id, other),
                lambda: hypervisor.detach_disk(instance_id, old.volume_id),
            ):
                meanwhile.append(threading.Thread(target=lambda ask=ask: (ask(), waiting.release())))
                meanwhile[-1].start()
                waiting.acquire()  # it waits for its turn; or is done, if there are none
            return write(*arguments)

        monkeypatch.setattr(driver._turns, "take", taking)
        monkeypatch.setattr(libvirt_driver, "bootable_xml", writing)
        state = hypervisor.attach_disk(instance_id, attrs.evolve(boot, boot_order=1))
        for thread in meanwhile:
            thread.join()
        assert (state.persistent.boot_order, state.persistent.target) == (1, "vdb")
        assert hypervisor.disk_state(instance_id, other.volume_id).present
        assert not hypervisor.disk_state(instance_id, old.volume_id).present
        assert len(meanwhile) == 2
        assert len(driver._turns) == 0  # no lock outlives its use
        hypervisor.check()


def test_a_change_of_a_definition_waits_no_longer_than_its_operation(monkeypatch):
    """The one before it hangs: the caller leaves at its deadline, readers are served, and nothing is done later."""
    instance_id, plugged = "6695eb01-f6a4-8304-79aa-97f2502e193f", []
    monkeypatch.setattr("libvirt.virDomain.attachDeviceFlags", lambda _, xml, flags: plugged.append(flags))
    disk = Disk(volume_id=str(uuid.uuid4()), source=BlockSource("/dev/x"), target="vdq")
    with LibvirtHypervisor("test:///default", timeouts=Timeouts(operation=0.2)) as hypervisor:
        assert hypervisor.disk_states() == ()
        driver = hypervisor._driver
        with driver._turns.take(instance_id, time.monotonic() + 60):
            with pytest.raises(DeadlineExceeded):
                hypervisor.attach_disk(instance_id, disk)
            assert hypervisor.disk_states() == ()
            until(lambda: hypervisor._connection.given_up == 0)
        assert len(driver._turns) == 0
        assert plugged == []
        driver.plug(instance_id, disk, Scope.PERSISTENT)
        assert plugged == [2]


@pytest.mark.parametrize("name", DISKS)
def test_libvirt_keeps_what_is_written(fragile, guests, name):
    """Every kind of disk through libvirt's own parser and back: sources, secrets, modes, block sizes, boot order."""
    instance_id, disk = guests.define(), DISKS[name]
    with LibvirtHypervisor(fragile.uri) as hypervisor:
        state = hypervisor.attach_disk(instance_id, disk)
        chosen = {} if disk.bus != "scsi" or disk.unit is not None else {"unit": 0}
        assert state.persistent == attrs.evolve(effective(disk), **chosen)
        assert hypervisor.attach_disk(instance_id, disk) == state
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_the_example_attaches_to_a_real_guest(fragile, guests, monkeypatch, capsys):
    """As it is called from a shell; without arguments it needs no libvirt."""
    main = runpy.run_path(str(EXAMPLE))["main"]
    instance_id = guests.define()
    monkeypatch.setattr("sys.argv", ["attach_to_guest.py", fragile.uri, instance_id, guests.image().path])
    main()
    assert capsys.readouterr().out.split() == ["live", "-", "persistent", "vda", "detached"]
    monkeypatch.setattr("sys.argv", ["attach_to_guest.py"])
    main()
    assert capsys.readouterr().out.split() == ["live", "vda", "persistent", "vda", "detached"]


def test_buses_and_slots(fragile, guests):
    """SCSI disks are plugged too; the last PCI slot is the last."""
    instance_id = guests.define(ports=2)
    guests.domain(instance_id).create()
    with LibvirtHypervisor(fragile.uri) as hypervisor:
        for bus in ("sata", "ide"):
            with pytest.raises(InvalidDisk):
                hypervisor.attach_disk(instance_id, Disk(volume_id=str(uuid.uuid4()), source=guests.image(), bus=bus))
        disks = [Disk(volume_id=str(uuid.uuid4()), source=guests.image()) for _ in range(3)]
        for disk in disks[:2]:
            hypervisor.attach_disk(instance_id, disk)
        with pytest.raises(LimitExceeded):
            hypervisor.attach_disk(instance_id, disks[2])
        assert not hypervisor.disk_state(instance_id, disks[2].volume_id).present
        hypervisor.check()
