"""libvirtd dies at every step of attach and detach, under a guest that lives on; Cinder and Ceph are real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from cloudcore import _failpoints
from cloudcore.attach import AttachmentManager, State
from cloudcore.errors import CloudcoreError, HypervisorUnavailable
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests.hypervisor.cloud import Cloud, Compute, open_cloud, token

pytestmark = pytest.mark.xdist_group("guests")

ATTACH = ["hypervisor.attach.after_persistent", "hypervisor.attach.after_live"]
DETACH = ["hypervisor.detach.after_persistent", "hypervisor.detach.after_request"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    url = f"sqlite:///{tmp_path_factory.mktemp('journal') / 'attach.db'}"
    with open_cloud(url, variant="crash", count=1) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def instance(cloud: Cloud) -> str:
    return cloud.hosts["host-a"].guests.boot()


@pytest.fixture
def host(cloud: Cloud, instance: str) -> Iterator[Compute]:
    """A host whose daemon may be killed; it runs again at the end, with a new adapter over it."""
    host = cloud.hosts["host-a"]
    yield host
    _failpoints.disarm()
    host.server.start()
    host.guests.reconnect()
    with cloud.manager() as manager:
        manager.recover()
        for attachment in manager.attachments():
            manager.detach(attachment.id)
        manager.check()


@contextlib.contextmanager
def once(point: str, action: Callable[[], None]) -> Iterator[list[str]]:
    """Run *action* the first time that *point* is passed."""
    passed: list[str] = []

    def act(name: str) -> None:
        passed.append(name)
        if len(passed) == 1:
            action()

    _failpoints.arm(point, act)
    try:
        yield passed
    finally:
        _failpoints.disarm()


def restart(host: Compute) -> None:
    host.server.kill()
    host.server.start()


@pytest.fixture(scope="module")
def volume_id(cloud: Cloud) -> str:
    """One volume for all: each test leaves it detached."""
    return cloud.volume()


def test_a_restart_in_the_middle_of_attach_goes_unnoticed(cloud, instance, host, volume_id):
    """The adapter connects again, reads what is there and goes on; the guest has the disk once."""
    with cloud.manager() as manager:
        with once(ATTACH[0], lambda: restart(host)) as passed:
            attachment = manager.attach(volume_id, instance, host="host-a")
        assert passed
        assert attachment.state is State.ATTACHED
        console = host.guests.console(instance)
        disk, text = console.wait_disk(volume_id), token()
        console.write(disk, 1, text)
        assert console.read(disk, 1) == text
        assert cloud.watchers(volume_id, awaited=1) == 1


def test_a_restart_in_the_middle_of_detach_goes_unnoticed(cloud, instance, host, volume_id):
    """Events that came meanwhile are lost; what the definition says is not."""
    with cloud.manager() as manager:
        attachment = manager.attach(volume_id, instance, host="host-a")
        host.guests.console(instance).wait_disk(volume_id)
        with once(DETACH[1], lambda: restart(host)) as passed:
            found = manager.detach(attachment.id)
        assert passed
        if found.state is State.PENDING:
            assert manager.recover().complete
        assert manager.attachment(attachment.id).state is State.ABSENT
    host.guests.console(instance).wait_disk(volume_id, present=False)
    assert not host.hypervisor.disk_state(instance, volume_id).present
    assert (cloud.status(volume_id), cloud.watchers(volume_id, awaited=0)) == ("available", 0)


@pytest.mark.parametrize("point", [*ATTACH, *DETACH])
def test_a_daemon_that_stays_away_is_recovered_from(cloud, instance, host, volume_id, point):
    """The call fails, says so, and guesses nothing; the next process finishes or undoes it when the daemon is back."""
    attachment_id = interrupted(cloud, host, instance, volume_id, point)
    host.server.start()
    with cloud.manager() as manager:
        report = next(filter(lambda report: report.complete, (manager.recover() for _ in range(3))), None)
        assert report, "a guest may take its time, but not this long"
        state = manager.attachment(attachment_id).state
    assert state in ({State.ABSENT, State.ATTACHED} if point in ATTACH else {State.ABSENT})
    attached = state is State.ATTACHED
    found = host.hypervisor.disk_state(instance, volume_id)
    assert (found.live is not None, found.persistent is not None) == (attached, attached)
    assert cloud.status(volume_id) == ("in-use" if attached else "available")
    assert cloud.watchers(volume_id, awaited=attached) == attached


def interrupted(cloud: Cloud, host: Compute, instance: str, volume_id: str, point: str) -> str:
    """Attach, or attach and detach, while the daemon dies at *point* for good; the attachment that is left."""
    timeouts = Timeouts(connect=1.0, detach=15)
    with (
        LibvirtHypervisor(host.server.uri, host="host-a", timeouts=timeouts) as hypervisor,
        AttachmentManager(cloud.url, cloud.volumes, hypervisor) as manager,
    ):
        act = partial(manager.attach, volume_id, instance)
        if point in DETACH:
            act = partial(manager.detach, act().id)
        with once(point, host.server.kill) as passed, pytest.raises(CloudcoreError):
            act()
        assert passed
        with pytest.raises(HypervisorUnavailable):
            hypervisor.disk_state(instance, volume_id)
        (left,) = manager.attachments(volume_id=volume_id)
        assert left.interrupted
        return left.id
