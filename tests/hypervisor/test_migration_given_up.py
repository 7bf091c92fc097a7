"""Live migrations that are not finished in time, or meet another: what has begun is cancelled, and nothing else is."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cloudcore.disks import Disk, FileSource, LuksEncryption
from cloudcore.errors import CloudcoreError, DeadlineExceeded, GuestBusy
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from cloudcore.hypervisor.disks.guests import GuestView
from cloudcore.hypervisor.disks.xml import disk_xml, domain_disks
from tests import services
from tests.hypervisor.domains import Guests
from tests.waiting import until

libvirt = pytest.importorskip("libvirt")

DOMAIN = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # of libvirt's test driver, which cannot migrate


class Refused(libvirt.libvirtError):
    """What libvirt has against it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"refused with {code}")
        self.code = code

    def get_error_code(self) -> int:
        return self.code

    def get_error_domain(self) -> int:
        return 10  # VIR_FROM_QEMU


class Daemon:
    """What the daemon of the source does with a migration, and what was asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.job = 0
        self.migrate: Callable[[], None] = lambda: None
        self.abort: Callable[[], None] = lambda: None
        monkeypatch.setattr("libvirt.virDomain.migrate3", lambda *_: self._ask("migrate"))
        monkeypatch.setattr("libvirt.virDomain.abortJob", lambda *_: self._ask("abort"))
        monkeypatch.setattr("libvirt.virDomain.jobInfo", lambda *_: [self.job, *[0] * 11])

    def _ask(self, verb: str) -> None:
        self.asked.append(verb)
        getattr(self, verb)()


@pytest.fixture
def daemon(monkeypatch) -> Daemon:
    monkeypatch.setattr("cloudcore.hypervisor.libvirt_adapter._CANCEL_AGAIN", 0.01)
    return Daemon(monkeypatch)


@contextlib.contextmanager
def deadline_at(hypervisor: LibvirtHypervisor, time_is_up: threading.Event) -> Iterator[None]:
    """Let the deadline of a migration pass then, however busy the machine is; at the end the migration has ended."""
    connection, calls = hypervisor._connection, []

    def leaving(what: str, function: Callable[[Any], Any], **options: Any) -> Any:
        if not what.startswith("migrate guest"):
            return type(connection).call(connection, what, function, **options)

        def call() -> None:
            with contextlib.suppress(CloudcoreError):
                type(connection).call(connection, what, function, **options)

        calls.append(threading.Thread(target=call))
        calls[-1].start()
        time_is_up.wait()
        raise DeadlineExceeded(what)

    connection.call = leaving
    try:
        yield
    finally:
        time_is_up.set()
        del connection.call
        for thread in calls:
            thread.join()


@pytest.fixture
def pair() -> Iterator[tuple[LibvirtHypervisor, LibvirtHypervisor]]:
    with LibvirtHypervisor("test:///default") as here, LibvirtHypervisor("test:///default") as there:
        here.disk_states()
        there.disk_states()
        yield here, there
        until(lambda: here._connection.given_up == there._connection.given_up == 0)


@pytest.mark.parametrize("late", ["destination", "edit"])
def test_what_was_given_up_before_it_began_never_begins(daemon, pair, monkeypatch, late):
    """The destination answers, or the caller's own function returns, only after the deadline."""
    here, there = pair
    told, take = threading.Event(), there._connection._take

    def slowly(xml: str = "") -> Any:
        told.wait()
        return take() if late == "destination" else xml

    if late == "destination":
        monkeypatch.setattr(there._connection, "_take", slowly)
    with pytest.raises(DeadlineExceeded) as caught:
        here.migrate(DOMAIN, there, edit=slowly if late == "edit" else None, seconds=0.2)
    assert not hasattr(caught.value, "__notes__")
    told.set()
    until(lambda: here._connection.given_up == there._connection.given_up == 0)
    assert daemon.asked == []


def test_the_migration_of_another_caller_goes_on(daemon, pair):
    """Seen before ours begins, nothing is begun; where libvirt waited for it in vain, only ours ends."""
    here, there = pair
    daemon.job = libvirt.VIR_DOMAIN_JOB_UNBOUNDED
    with pytest.raises(GuestBusy) as caught:
        here.migrate(DOMAIN, there)
    assert (caught.value.identifier, daemon.asked) == (DOMAIN, [])
    daemon.job = libvirt.VIR_DOMAIN_JOB_COMPLETED

    def busy() -> None:
        raise Refused(libvirt.VIR_ERR_OPERATION_TIMEOUT)

    daemon.migrate = busy
    with pytest.raises(DeadlineExceeded):
        here.migrate(DOMAIN, there)
    assert daemon.asked == ["migrate"]


def test_what_waits_in_libvirt_is_cancelled_when_its_turn_has_come(daemon, pair):
    """Until then libvirt has nothing to cancel, and would begin it later."""
    here, there = pair
    begun, cancelled = threading.Event(), threading.Event()

    def waiting() -> None:
        begun.set()
        cancelled.wait()
        raise Refused(libvirt.VIR_ERR_OPERATION_ABORTED)

    def aborting() -> None:
        if daemon.asked.count("abort") < 3:
            raise Refused(libvirt.VIR_ERR_OPERATION_INVALID)
        cancelled.set()

    daemon.migrate, daemon.abort = waiting, aborting
    with deadline_at(here, begun):
        with pytest.raises(DeadlineExceeded) as caught:
            here.migrate(DOMAIN, there)
        was_cancelled = cancelled.is_set()
        cancelled.set()
    assert was_cancelled
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("code", [0, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INTERNAL_ERROR])
def test_what_cannot_be_cancelled_is_said(daemon, pair, code):
    """Its destination hangs, or libvirt refuses: then nobody may take it for ended."""
    here, there = pair
    begun, ended = threading.Event(), threading.Event()

    def hanging() -> None:
        begun.set()
        ended.wait()

    def refusing() -> None:
        if code:
            raise Refused(code)

    daemon.migrate, daemon.abort = hanging, refusing
    here._timeouts = Timeouts(read=0.1)
    with deadline_at(here, begun):
        with pytest.raises(DeadlineExceeded) as caught:
            here.migrate(DOMAIN, there)
        ended.set()
    assert "abort" in daemon.asked
    assert "may still be on its way" in caught.value.__notes__[-1]


def test_a_repeat_after_a_lost_answer_takes_the_passphrases_along(pair, monkeypatch):
    """The guest is at the destination, and the call that moved it did not live to clear up at the source."""
    here, there = pair
    taken: list[str] = []
    disk = Disk(volume_id=DOMAIN, source=FileSource("/a"), target="vda", encryption=LuksEncryption(secret_id=DOMAIN))
    (entry,) = domain_disks(f"<domain><devices>{disk_xml(disk)}</devices></domain>")
    here._passphrase = lambda _: b""
    monkeypatch.setattr(here._secrets, "take", taken.append)
    monkeypatch.setattr(here._driver, "view", lambda _: None)
    for live, persistent in (((entry,), (entry,)), ((entry,), None), (None, (entry,))):
        view = GuestView(instance_id=DOMAIN, state="off", live=live, persistent=persistent)
        monkeypatch.setattr(there._driver, "view", lambda _, view=view: view)
        assert here.migrate(DOMAIN, there) is None
        assert taken.pop() == DOMAIN


@pytest.mark.xdist_group("guests")
def test_two_callers_move_one_guest_and_the_first_gives_up():
    """It takes longer than the first has time for. The second is told that the guest is busy, and does no harm; then
    the guest runs where it was, and the destination has nothing of it."""
    services.require("qemu", "guest")
    first, second = services.libvirt_hosts(2)
    time_is_up = threading.Event()
    with (
        Guests(first) as guests,
        Guests(second) as arrived,
        LibvirtHypervisor(first.uri, timeouts=Timeouts(read=120)) as here,
        LibvirtHypervisor(first.uri) as other_process,
        LibvirtHypervisor(second.uri) as there,
        ThreadPoolExecutor(1) as caller,
        deadline_at(here, time_is_up),
    ):
        instance = guests.define()
        arrived.adopt(instance)
        domain = guests.domain(instance)
        domain.create()
        domain.migrateSetMaxSpeed(1, 0)  # MiB/s
        way = {
            "uri": f"tcp://127.0.0.1:{second.migration_port}",
            "listen_address": "127.0.0.1",
            "edit": lambda xml: xml.replace(first.folder, second.folder),
        }
        moving = caller.submit(here.migrate, instance, there, **way)
        until(lambda: domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
        with pytest.raises(GuestBusy, match="already"):
            other_process.migrate(instance, there, **way)
        assert domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_UNBOUNDED
        time_is_up.set()
        with pytest.raises(DeadlineExceeded) as caught:
            moving.result()
        assert not hasattr(caught.value, "__notes__")
        assert domain.isActive()
        assert domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE
        assert there._driver.view(instance) is None
