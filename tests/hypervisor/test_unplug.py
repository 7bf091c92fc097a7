"""Guests that refuse a detach, for a moment or for good, and adapters that end: on real daemons and guests."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator

import pytest

from cloudcore.disks import DetachOutcome, Disk
from cloudcore.errors import DeadlineExceeded, DetachFailed, HypervisorError, Transient
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from cloudcore.hypervisor.libvirt.calls import CallRunner
from tests import services
from tests.hypervisor.domains import Guests, domain_xml
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("guests")

LIVE, CONFIG, INACTIVE = 1, 2, 2  # VIR_DOMAIN_AFFECT_*, VIR_DOMAIN_XML_INACTIVE


@pytest.fixture(scope="module")
def host() -> services.LibvirtHost:
    services.require("qemu", "guest")
    return services.libvirt_hosts(1, variant="crash")[0]


@pytest.fixture
def guests(host) -> Iterator[Guests]:
    host.start()
    with Guests(host) as guests:
        yield guests
        host.resume()


def new_disk(guests: Guests, **fields: object) -> Disk:
    return Disk(volume_id=str(uuid.uuid4()), source=guests.image(), **fields)


def definition(guests: Guests, instance_id: str) -> str:
    """The persistent one. libvirt leaves an empty element behind where metadata were."""
    return guests.domain(instance_id).XMLDesc(INACTIVE).replace("  <metadata/>\n", "")


# --- refused for a moment --------------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_guest_with_native_hotplug_takes_and_gives_in_quick_succession(host, guests, times):
    """A PCI Express slot refuses for seconds after a plug ("guest is busy"): that is waited for, both ways, and the
    persistent definition stays what it was."""
    instance_id = guests.boot(acpi_hotplug=False)
    before = definition(guests, instance_id)
    with LibvirtHypervisor(host.uri, timeouts=Timeouts(detach=40)) as hypervisor:
        for _ in range(times):
            disk = new_disk(guests)
            assert hypervisor.attach_disk(instance_id, disk).live is not None
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert definition(guests, instance_id) == before


# --- asked twice -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("times", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_repeated_request_that_meets_a_guest_just_letting_go(host, guests, times):
    """libvirt 9.0's own second request reads a disk that it has freed: the daemon dies, now and then. A reset makes the
    guest let go; the second request is sent right after, by an adapter that knows nothing of the first."""
    instance_id = str(uuid.uuid4())
    guests.adopt(instance_id)
    guests.connection.createXML(domain_xml(f"x-{instance_id[:8]}", instance_id, guests.serial(instance_id), image=None))
    alive = guests.domain(instance_id)
    for _ in range(times):
        disk = new_disk(guests)
        with LibvirtHypervisor(host.uri, timeouts=Timeouts(detach=0.1)) as hypervisor:
            hypervisor.attach_disk(instance_id, disk)
            hypervisor.detach_disk(instance_id, disk.volume_id)  # nobody there to answer
        with LibvirtHypervisor(host.uri, timeouts=Timeouts(detach=5)) as another:
            another.disk_states()
            outcome = None
            while outcome is not DetachOutcome.DETACHED:
                alive.reset()
                outcome = another.detach_disk(instance_id, disk.volume_id)
    assert alive.isActive()  # and this connection is the one that it was at the beginning


# --- refused for good ------------------------------------------------------------------------------------------------

OTHERS = """<disk type='file' device='disk'>
  <driver name='qemu' type='raw' cache='none' error_policy='stop' rerror_policy='ignore'/>
  <source file='{path}'/>
  <target dev='sdb' bus='sata'/>
  <iotune><total_iops_sec>500</total_iops_sec><total_iops_sec_max>900</total_iops_sec_max></iotune>
  <serial>{serial}</serial>
</disk>"""


def test_a_definition_that_others_wrote_survives_a_refused_detach(host, guests):
    """To the byte, and with what only the persistent one has: it is what the guest is started with next time."""
    instance_id, volume_id, secret = guests.define(), str(uuid.uuid4()), str(uuid.uuid4())
    domain, source = guests.domain(instance_id), guests.image()
    domain.attachDeviceFlags(OTHERS.format(path=source.path, serial=volume_id), CONFIG)
    domain.create()
    encryption = f"<encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>"
    changed = domain.XMLDesc(INACTIVE).replace(
        f"<source file='{source.path}'/>", f"<source file='{source.path}'>{encryption}</source>"
    )
    guests.connection.defineXML(changed)
    before = definition(guests, instance_id)
    assert "luks" in before
    with LibvirtHypervisor(host.uri, timeouts=Timeouts(detach=2)) as hypervisor:
        for _ in range(2):
            with pytest.raises(DetachFailed) as caught:
                hypervisor.detach_disk(instance_id, volume_id)
            assert not getattr(caught.value, "__notes__", ())
            assert definition(guests, instance_id) == before


def test_what_is_taken_out_is_kept_until_the_guest_has_let_go(host, guests):
    """In the definition itself, so that another process can put it back; gone without a trace at the end."""
    instance_id = guests.define()
    domain, disk = guests.domain(instance_id), new_disk(guests)
    before = domain.XMLDesc(INACTIVE)
    with LibvirtHypervisor(host.uri, timeouts=Timeouts(detach=0.3)) as hypervisor:
        hypervisor.attach_disk(instance_id, disk)
        with_disk = domain.XMLDesc(INACTIVE)
        domain.create()
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING  # nobody there to answer
        (kept,) = hypervisor._driver.view(instance_id).removed
        assert kept.disk.volume_id == disk.volume_id
        hypervisor._driver.plug(instance_id, kept, "persistent")
        hypervisor._driver.forget(instance_id, disk.volume_id)
        assert definition(guests, instance_id) == with_disk
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
        domain.reset()
    with LibvirtHypervisor(host.uri) as patient:
        assert patient.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        assert definition(guests, instance_id) == before


# --- ends of adapters and processes ----------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_closed_adapters_leave_nothing_open(host, guests):
    """Descriptors and threads are back where they were, whether the daemon lived or was killed meanwhile."""
    instance_id, disk = guests.define(), new_disk(guests)

    def use(killed: bool) -> None:
        with LibvirtHypervisor(host.uri) as hypervisor:
            hypervisor.attach_disk(instance_id, disk)
            if killed:
                host.kill()
                host.start()
            hypervisor.disk_states()
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED

    use(False)  # what libvirt opens once for the process
    before = descriptors(), threading.active_count()
    for round_ in range(8):
        use(killed=round_ % 4 == 3)
    # A daemon that is killed is noticed by the event loop in its own time; the test's own connection went with it.
    until(lambda: descriptors() <= before[0] and threading.active_count() <= before[1])
    guests.reconnect()


def test_an_adapter_closed_while_the_daemon_hangs_leaves_nothing_open(host, guests):
    """Its calls come back when the daemon goes on, long after the last adapter has given the event loop back."""
    LibvirtHypervisor(host.uri).close()
    with LibvirtHypervisor(host.uri) as first:
        first.disk_states()
    before = descriptors(), threading.active_count()
    for _ in range(3):
        with LibvirtHypervisor(host.uri, timeouts=Timeouts(connect=1, read=0.3, facts=0.3)) as hypervisor:
            hypervisor.disk_states()
            host.pause()
            for _ in range(2):
                with pytest.raises(Transient):
                    hypervisor.disk_states()
        host.resume()
        until(lambda: not hypervisor._connection.given_up)
    until(lambda: descriptors() <= before[0] and threading.active_count() <= before[1], 20)


def in_child(work) -> str:
    """What *work* returns, or raises, in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = str(work())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        told = answer.read()
    os.waitpid(pid, 0)
    return told


def test_a_forked_child_is_refused_at_once_and_its_parent_unharmed(host, guests):
    """Its copy of the adapter shares the parent's sockets; one of its own works, without events."""
    instance_id, disk = guests.define(), new_disk(guests)
    with LibvirtHypervisor(host.uri) as hypervisor, LibvirtHypervisor(host.uri) as unused:
        hypervisor.attach_disk(instance_id, disk)

        def refused() -> str:
            hypervisor._connection._runner = None  # nothing is asked, so nothing is waited for
            with pytest.raises(HypervisorError, match="new adapter after the fork"):
                hypervisor.detach_disk(instance_id, disk.volume_id)
            hypervisor.close()
            return "refused"

        def own() -> bool:
            with LibvirtHypervisor(host.uri) as another:
                return another.disk_state(instance_id, disk.volume_id).present

        assert in_child(refused) == "refused"
        assert in_child(own) == "True"
        assert in_child(lambda: unused.disk_state(instance_id, disk.volume_id).present) == "True"
        assert hypervisor.disk_state(instance_id, disk.volume_id).present
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


@pytest.mark.parametrize("operation", [None, 1.0])
def test_no_operation_outlasts_its_deadline(host, guests, operation, monkeypatch):
    """Several calls, each within its own, would: a daemon that hangs, and every call waits to the end of its patience.

    What the calls of one operation have waited in vain is added up; a busy machine adds nothing to that.
    """
    instance_id, disk, other = guests.define(), new_disk(guests), new_disk(guests)
    guests.domain(instance_id).create()
    timeouts = Timeouts(read=2.0, change=2.0, connect=2.0, detach=2.0, operation=operation)
    run, in_vain = CallRunner.run, []

    def recording(runner: CallRunner, *arguments: object) -> object:
        try:
            return run(runner, *arguments)
        except DeadlineExceeded as error:
            in_vain.append(error.seconds)
            raise

    with LibvirtHypervisor(host.uri, timeouts=timeouts) as hypervisor:
        hypervisor.attach_disk(instance_id, disk)
        host.pause()
        with pytest.raises(Transient):
            hypervisor.disk_state(instance_id, disk.volume_id)
        monkeypatch.setattr(CallRunner, "run", recording)
        for ask in (
            lambda: hypervisor.detach_disk(instance_id, disk.volume_id),
            lambda: hypervisor.attach_disk(instance_id, other),
            lambda: hypervisor.resize_disk(instance_id, disk.volume_id, 8 << 20),
            lambda: hypervisor.disk_state(instance_id, disk.volume_id),
        ):
            in_vain.clear()
            with pytest.raises(Transient):
                ask()
            assert 0 < sum(in_vain) <= timeouts.whole + 0.01  # the clock has its grain
        host.resume()


def test_the_driver_in_this_process_keeps_no_connection():
    """What libvirt-python keeps alive as long as a callback is registered."""
    import gc

    import libvirt

    def connections() -> list[libvirt.virConnect]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, libvirt.virConnect)]

    before = connections()  # held, so that none of an earlier test goes meanwhile
    for _ in range(10):
        with LibvirtHypervisor("test:///default") as hypervisor:
            hypervisor.disk_states()
    del hypervisor
    assert [one for one in connections() if all(one is not old for old in before)] == []
