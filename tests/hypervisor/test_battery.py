"""A manager whose libvirtd is killed or stopped, at every step and at any moment: afterwards everybody agrees.

The journal, the volume service, both definitions, QEMU and the guest do, after a recovery; or an audit names what does
not, and its remedy works. A daemon that is stopped for longer than calls may take carries them out later, when whoever
asked has drawn its conclusions. With `--long` the machine is kept busy meanwhile, and every step is tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import pytest

from cloudcore import _failpoints
from cloudcore.attach import AttachmentManager, State
from cloudcore.attach.audit.findings import Finding
from cloudcore.errors import CloudcoreError
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests.hypervisor.cloud import Cloud, Compute, EmbeddedCloud, open_cloud, open_embedded_cloud
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("guests")

TIMEOUTS = Timeouts(connect=20, read=2, change=2, detach=8, operation=30)


@pytest.fixture(scope="module", params=["embedded", "cinder"])
def cloud(request, tmp_path_factory) -> Iterator[Cloud | EmbeddedCloud]:
    url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 'attach.db'}"
    opened = open_cloud(url, variant="crash", count=1) if request.param == "cinder" else None
    with opened or open_embedded_cloud(url, variant="crash") as cloud:
        yield cloud


@pytest.fixture(scope="module")
def battery(cloud) -> Battery:
    host = cloud.hosts["host-a"]
    host.server.start()
    host.guests.reconnect()
    return Battery(cloud, host, host.guests.boot(ports=12), cloud.volume())


@pytest.fixture
def busy(request) -> Iterator[None]:
    """No processor idle, where there is time for it."""
    count = os.cpu_count() or 1 if request.config.getoption("--long") else 0
    workers = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@attrs.define
class Hurt:
    """What befalls the daemon, once: it is killed and started again, or stopped for so many *seconds*."""

    host: Compute
    seconds: float = 0.0
    over: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self, _: str = "") -> None:
        _failpoints.disarm()
        if self.seconds:
            self.host.server.pause()
            threading.Timer(self.seconds, self._resume).start()
            return
        self.host.server.kill()
        self.host.server.start()
        self.over.set()

    def _resume(self) -> None:
        self.host.server.resume()
        self.over.set()

    @contextlib.contextmanager
    def at(self, point: str) -> Iterator[None]:
        """The first time that *point* is passed, if it is."""
        _failpoints.arm("*", lambda passed: self() if passed == point else None)
        try:
            yield
        finally:
            passed = not _failpoints._armed
            _failpoints.disarm()
            assert not passed or self.over.wait(60)

    @contextlib.contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """That much later, whatever is going on then."""
        threading.Timer(seconds, self).start()
        try:
            yield
        finally:
            assert self.over.wait(60)


@attrs.define
class Battery:
    """One guest and one volume, attached and detached again and again."""

    cloud: Cloud | EmbeddedCloud
    host: Compute
    instance: str
    volume: str
    found: list[Finding] = attrs.field(factory=list)

    @contextlib.contextmanager
    def manager(self, timeouts: Timeouts = TIMEOUTS) -> Iterator[AttachmentManager]:
        """As a process that starts now would open it; what its daemon still does for it is waited for at the end."""
        with (
            LibvirtHypervisor(self.host.server.uri, host=self.host.name, timeouts=timeouts) as hypervisor,
            AttachmentManager(self.cloud.url, self.cloud.volumes, hypervisor) as manager,
        ):
            yield manager
            until(lambda: not hypervisor._connection.given_up)

    def attach_and_detach(self, hurt: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Both, each hurt once."""
        with self.manager() as manager, contextlib.suppress(CloudcoreError), hurt():
            manager.attach(self.volume, self.instance, host=self.host.name)
        self.settle()
        with self.manager() as manager, contextlib.suppress(CloudcoreError), hurt():
            for leg in manager.attachments(volume_id=self.volume):
                manager.detach(leg.id)
        self.settle()
        with self.manager() as manager:
            for leg in manager.attachments(volume_id=self.volume):
                assert manager.detach(leg.id).state is State.ABSENT
        self.settle()

    def settle(self) -> None:
        """Recover, mend what an audit finds, and ask everybody."""
        self.host.guests.reconnect()
        with self.manager(Timeouts(connect=20, detach=15)) as manager:
            assert any(manager.recover().complete for _ in range(4)), manager.recover()
            findings = manager.audit().findings
            self.found += findings
            assert all(finding.remedy for finding in findings), [str(finding) for finding in findings]
            manager.heal(findings, apply=True)
            report = manager.audit()
            assert report.clean, report
            legs = manager.attachments(volume_id=self.volume)
        assert [leg.state for leg in legs] in ([], [State.ATTACHED])
        self.agree(attached=bool(legs))

    def agree(self, *, attached: bool) -> None:
        """Live and persistent definition, QEMU's own lists, the guest's /dev, the volume service."""
        domain = self.host.guests.domain(self.instance)
        assert [self.volume in domain.XMLDesc(flags) for flags in (0, 2)] == [attached, attached]
        for command in ("query-block", "query-named-block-nodes"):
            assert (self.volume in monitor(domain, command)) == attached, command
        self.host.guests.console(self.instance).wait_disk(self.volume, present=attached)
        assert self.cloud.status(self.volume) == ("in-use" if attached else "available")
        self.host.hypervisor.check()

    def steps(self) -> list[str]:
        """Every point that an attach and a detach pass."""
        passed: dict[str, None] = {}
        _failpoints.arm("*", passed.setdefault)
        try:
            self.attach_and_detach(contextlib.nullcontext)
        finally:
            _failpoints.disarm()
        return list(passed)


def monitor(domain, execute: str) -> str:
    import libvirt_qemu

    return libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": execute}), 0)


def kept() -> Counter[str]:
    """Sockets, other descriptors and threads of this process, by what they are."""
    links = Counter[str]()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            links[os.readlink(f"/proc/self/fd/{name}").split(":[")[0]] += 1
    return links + Counter(f"thread {thread.name}" for thread in threading.enumerate())


@contextlib.contextmanager
def nothing_kept(battery: Battery) -> Iterator[None]:
    """Descriptors and threads are where they were, once everything is closed."""
    battery.attach_and_detach(contextlib.nullcontext)  # what is opened once for the process
    before = kept()
    yield
    try:
        until(lambda: kept() <= before)
    finally:
        print("kept:", kept() - before)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_hurt_at_any_moment(battery, busy, times):
    """Killed, stopped for a moment, or for longer than a call may take."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with nothing_kept(battery):
        for number in range(times):
            seconds = [0.0, moments.uniform(0.1, 1.5), 0.0, moments.uniform(2.5, 5)][number % 4]
            battery.attach_and_detach(lambda: Hurt(battery.host, seconds).after(moments.uniform(0, 0.8)))  # noqa: B023
    print(f"{len(battery.found)} findings:", *battery.found, sep="\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seconds", [0.0, 1.0, 4.0], ids=["killed", "stopped", "stopped for long"])
def test_hurt_at_every_step(battery, busy, seconds):
    with nothing_kept(battery):
        for point in battery.steps():
            battery.attach_and_detach(partial(lambda at: Hurt(battery.host, seconds).at(at), point))
    print(f"{len(battery.found)} findings:", *battery.found, sep="\n")
