"""Calls with a deadline, hints, and what libvirt's errors mean."""

from __future__ import annotations

import threading
import weakref

import attrs
import pytest

from cloudcore import errors
from cloudcore.disks import Disk, FileSource
from cloudcore.errors import CloudcoreError, DeadlineExceeded, HypervisorUnavailable, Transient
from cloudcore.hypervisor import LibvirtHypervisor
from cloudcore.hypervisor.disks.guests import Hint, Scope, TargetTaken, UnplugRunning, Waiter, Waiters
from cloudcore.hypervisor.disks.xml import disk_xml, domain_disks
from cloudcore.hypervisor.libvirt.calls import CallRunner
from cloudcore.hypervisor.libvirt.errors import (
    Failure,
    cloudcore_error,
    connection_lost,
    is_missing_device,
    target_taken,
    unplug_running,
)
from tests.waiting import until

# --- deadlines -------------------------------------------------------------------------------------------------------


def test_results_and_exceptions_come_through():
    runner = CallRunner("test:")
    assert runner.run("add", lambda: 1 + 1, 10) == 2
    with pytest.raises(ZeroDivisionError):
        runner.run("divide", lambda: 1 / 0, 10)


def test_a_call_that_hangs_is_left_and_counted_until_it_returns():
    """The caller goes on; the call holds a slot until it is over."""
    runner, over = CallRunner("test:", limit=1), threading.Event()
    with pytest.raises(DeadlineExceeded, match="no answer from test:"):
        runner.run("hang", over.wait, 0.01)
    assert runner.given_up == 1
    with pytest.raises(HypervisorUnavailable, match="1 of them overdue"):
        runner.run("next", lambda: None, 0.01)
    over.set()
    assert runner.run("next", lambda: "free", 10) == "free"
    assert runner.given_up == 0


def test_an_error_that_is_kept_keeps_nothing_of_the_call():
    """A libvirt guest in a local variable keeps its connection's descriptors open."""

    class Guest:
        pass

    runner, guests = CallRunner("test:"), weakref.WeakSet[Guest]()

    def fail() -> None:
        guest = Guest()
        guests.add(guest)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        runner.run("fail", fail, 10)
    until(lambda: not guests, 10)
    assert caught.traceback


def test_many_callers_at_once():
    runner = CallRunner("test:", limit=4)
    results: list[int] = []
    threads = [threading.Thread(target=lambda n=n: results.append(runner.run("n", lambda: n, 30))) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(50))


# --- hints -----------------------------------------------------------------------------------------------------------


def test_hints_reach_those_who_wait_for_them():
    """By device, by guest, or everyone; nobody else, and none before it began to wait."""
    waiters = Waiters()
    waiters.tell(Hint.REMOVED, "guest", "disk")
    with Waiter(waiters, ("guest", "disk")) as mine, Waiter(waiters, ("guest", "other")) as other:
        waiters.tell(Hint.REMOVED, "guest", "disk")
        assert (mine.wait(5), other.wait(0)) == (Hint.REMOVED, None)
        waiters.tell(Hint.CHANGED, "guest")
        assert (mine.wait(5), other.wait(5)) == (Hint.CHANGED, Hint.CHANGED)
        waiters.tell(Hint.CHANGED)
        assert (mine.wait(5), other.wait(5)) == (Hint.CHANGED, Hint.CHANGED)
        waiters.tell(Hint.REMOVED, "another", "disk")
        assert mine.wait(0) is None
        assert len(waiters) == 2
    assert len(waiters) == 0


def test_a_refusal_is_not_overtaken():
    """By a hint that says less."""
    waiters = Waiters()
    with Waiter(waiters, ("guest", "disk")) as waiter:
        waiters.tell(Hint.REFUSED, "guest", "disk")
        waiters.tell(Hint.CHANGED)
        assert waiter.wait(5) is Hint.REFUSED


def test_a_call_for_which_no_slot_is_free_takes_no_connection_with_it():
    """It is kept for the next one, instead of being closed whenever the collector finds it."""
    pytest.importorskip("libvirt")
    with LibvirtHypervisor("test:///default") as hypervisor:
        hypervisor.disk_states()
        connection = hypervisor._connection
        (kept,), runner = connection._idle, connection._runner
        for _ in range(32):
            assert runner._slots.acquire(timeout=60)
        with pytest.raises(HypervisorUnavailable, match="are under way"):
            connection.call("look", lambda _: None, seconds=0.01)
        assert connection._idle == [kept]
        runner._slots.release(32)
        assert hypervisor.disk_states() == ()
        assert connection._idle == [kept]


# --- errors ----------------------------------------------------------------------------------------------------------

QEMU, RPC = 10, 7
DOMAIN = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # of libvirt's test driver


@pytest.mark.parametrize(
    ("code", "domain", "message", "kind"),
    [
        (42, QEMU, "Domain not found: no domain with matching uuid", "GuestNotFound"),
        (99, QEMU, "device not found: no target device vdb", "DeviceNotFound"),
        (9, QEMU, "disk vdb not found", "DeviceNotFound"),
        (1, QEMU, "internal error: no device found with alias ua-1", "DeviceNotFound"),
        (1, QEMU, 'internal error: unable to execute QEMU command: Failed to get "write" lock', "InUse"),
        (1, QEMU, 'internal error: unable to execute QEMU command: Failed to get shared "write" lock', "InUse"),
        (1, QEMU, "internal error: No more available PCI slots", "LimitExceeded"),
        (27, QEMU, "XML error: target 'vdb' duplicated for disk sources", "InvalidDisk"),
        (55, QEMU, "Requested operation is not valid: target vdb already exists", "InvalidDisk"),
        (66, QEMU, "Secret not found: no secret with matching uuid", "InvalidDisk"),
        (67, QEMU, "unsupported configuration: disk bus 'ide' cannot be hotplugged", "InvalidDisk"),
        (68, QEMU, "Timed out during operation: cannot acquire state change lock", "DeadlineExceeded"),
        (3, QEMU, "this function is not supported by the connection driver", "UnsupportedFeature"),
        (38, QEMU, "Cannot access storage file '/x': No such file or directory", "HypervisorError"),
        (38, RPC, "Cannot recv data: Connection reset by peer", "HypervisorUnavailable"),
        (38, RPC, "Failed to connect socket to '/run/libvirt/libvirt-sock'", "HypervisorUnavailable"),
        (1, RPC, "internal error: client socket is closed", "HypervisorUnavailable"),
        (6, 0, "invalid connection pointer in virGetDomain", "HypervisorUnavailable"),
        (1, QEMU, "internal error: something else", "HypervisorError"),
        (1, QEMU, "Could not open '/srv/guest is busy/no free slot/client socket is closed'", "HypervisorError"),
        (9, QEMU, "Could not open '/srv/not found/1.img': Permission denied", "HypervisorError"),
        (4711, QEMU, "an error of the future", "HypervisorError"),
    ],
)
def test_what_libvirt_says_and_what_it_means(code, domain, message, kind):
    """Codes and texts as libvirt 9.0 with QEMU 7.2 gives them; the code is kept, the text is quoted."""
    failure = Failure(code=code, domain=domain, message=message)
    error = cloudcore_error(failure, "do it", uri="qemu:///system", identifier="x")
    assert type(error) is getattr(errors, kind)
    assert f"(code {code})" in str(error)
    assert message in str(error)
    if hasattr(error, "code"):
        assert error.code == code
    assert isinstance(error, Transient) == (kind in {"HypervisorUnavailable", "DeadlineExceeded"})
    assert connection_lost(failure) == (kind == "HypervisorUnavailable")
    assert is_missing_device(failure) == (kind == "DeviceNotFound")


def test_signals_for_the_operations():
    """Not errors for users: somebody else was first, or the guest was asked before."""
    assert target_taken(
        Failure(code=67, domain=QEMU, message="unsupported configuration: non unique alias detected: ua-1")
    )
    assert target_taken(Failure(code=55, domain=QEMU, message="target vdb already exists"))
    assert not target_taken(Failure(code=67, domain=QEMU, message="another reason"))
    assert not target_taken(Failure(code=9, domain=QEMU, message="cannot open '/srv/already exists/1.img'"))
    assert unplug_running(
        Failure(code=1, domain=QEMU, message="Device virtio-disk1 is already in the process of unplug")
    )
    power = "PCI device unplug already in progress for device ua-1"
    assert unplug_running(Failure(code=1, domain=QEMU, message=power))
    for other in (
        "no",
        "Could not open '/srv/pending/1.img': No such file or directory",
        "Job 'copy-vda-libvirt-1-format' in state 'pending' cannot accept command verb 'complete'",
    ):
        assert not unplug_running(Failure(code=1, domain=QEMU, message=other))


SIGNALS = {
    TargetTaken: (55, "Requested operation is not valid: target vdb already exists"),
    UnplugRunning: (1, "internal error: Device ua-1 is already in the process of unplug"),
}
PRIMITIVES = {
    "plug": (TargetTaken, "attachDeviceFlags", lambda driver, one, disk: driver.plug(DOMAIN, disk, Scope.LIVE)),
    "unplug": (
        UnplugRunning,
        "detachDeviceFlags",
        lambda driver, one, disk: driver.unplug(DOMAIN, one, Scope.LIVE),
    ),
    "resize": (None, "blockResize", lambda driver, one, disk: driver.resize(DOMAIN, one, 4096)),
    "begin_copy": (None, "blockCopy", lambda driver, one, disk: driver.begin_copy(DOMAIN, one, disk)),
    "end_copy": (None, "blockJobAbort", lambda driver, one, disk: driver.end_copy(DOMAIN, one, pivot=True)),
    "redefine": (None, "updateDeviceFlags", lambda driver, one, disk: driver.redefine(DOMAIN, one, disk)),
    "rename": (None, "setMetadata", lambda driver, one, disk: driver.rename(DOMAIN, one, disk)),
}


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("signal", SIGNALS)
def test_no_signal_gets_to_whom_it_is_not_meant_for(monkeypatch, primitive, signal):
    """Only who plugs hears that a name is taken, and only who unplugs that the guest was asked; others get an error."""
    libvirt = pytest.importorskip("libvirt")
    expected, function, call = PRIMITIVES[primitive]

    class Refused(libvirt.libvirtError):
        def get_error_code(self) -> int:
            return SIGNALS[signal][0]

        def get_error_domain(self) -> int:
            return QEMU

        def get_error_message(self) -> str:
            return SIGNALS[signal][1]

    def refuse(*_: object) -> None:
        raise Refused("refused")

    monkeypatch.setattr(libvirt.virDomain, function, refuse)
    disk = Disk(volume_id=DOMAIN, source=FileSource("/a"), target="vdb")
    (entry,) = domain_disks(f"<domain><devices>{disk_xml(disk)}</devices></domain>")
    with (
        LibvirtHypervisor("test:///default") as hypervisor,
        pytest.raises(signal if signal is expected else CloudcoreError),
    ):
        call(hypervisor._driver, attrs.evolve(entry, alias=None), disk)
