"""A disk that the hypervisor has lost track of, as a manager of attachments meets it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from cloudcore.attach import AttachmentManager, State
from cloudcore.attach.audit.findings import Kind
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.disks import Disk, FileSource
from cloudcore.errors import CloudcoreError
from cloudcore.hypervisor import MemoryHypervisor, Timeouts, Unplug
from cloudcore.schema import create_schema


@pytest.fixture
def hypervisor() -> Iterator[MemoryHypervisor]:
    with MemoryHypervisor("cn1", timeouts=Timeouts(detach=0.05, paused=0.05)) as hypervisor:
        yield hypervisor


@pytest.fixture
def url(tmp_path) -> str:
    url = f"sqlite:///{tmp_path / 'volumes.db'}"
    create_schema(url, areas=["attach"])
    return url


@pytest.fixture
def volumes(url) -> Iterator[EmbeddedVolumes]:
    with EmbeddedVolumes(url) as volumes:
        yield volumes


@pytest.mark.parametrize("unplug", [Unplug.IGNORES, Unplug.REFUSES])
def test_the_volume_is_not_given_back_before_the_guest_is_restarted(hypervisor, volumes, url, unplug):
    """The journal keeps it as unfinished, the audit shows it with its remedy, and after the restart that works."""
    guest, volume = str(uuid.uuid4()), volumes.create_volume().id
    hypervisor.add_guest(guest)
    with AttachmentManager(url, volumes, hypervisor) as manager:
        made = manager.attach(volume, guest)
        hypervisor.lose_track(guest, volume)
        hypervisor.set_unplug(guest, unplug)
        for _ in range(2):
            if unplug is Unplug.IGNORES:
                assert manager.detach(made.id).state is State.PENDING
            else:
                with pytest.raises(CloudcoreError, match="restart the guest"):
                    manager.detach(made.id)
        assert volumes.volume(volume).status != "available"
        assert not manager.audit().clean
        assert not manager.recover().complete
        hypervisor.stop(guest)
        hypervisor.start(guest)
        manager.recover()
        assert manager.attachment(made.id).state is State.ABSENT
        assert volumes.volume(volume).status == "available"
        assert manager.audit().clean


def test_the_audit_asks_the_hypervisor_itself(hypervisor, volumes, url):
    """A disk whose volume was given back long ago, and one that is to be there: both are found, and healed."""
    guest, volume, stray = str(uuid.uuid4()), volumes.create_volume().id, volumes.create_volume().id
    hypervisor.add_guest(guest)
    with AttachmentManager(url, volumes, hypervisor) as manager:
        manager.attach(volume, guest)
        hypervisor.attach_disk(guest, Disk(volume_id=stray, source=FileSource("/stray")))
        for one in (volume, stray):
            hypervisor.lose_track(guest, one)
        there = hypervisor._driver.guests[guest]
        there.persistent = {name: disk for name, disk in there.persistent.items() if disk.volume_id != stray}
        found = {finding.volume_id: finding for finding in manager.audit().findings}
        assert {volume: found[volume].kind, stray: found[stray].kind} == {
            volume: Kind.PERSISTENT_ONLY,
            stray: Kind.UNKNOWN_DISK,
        }
        assert all("lost track" in dict(finding.evidence)["hypervisor"] for finding in found.values())
        manager.heal(found.values(), apply=True)
        assert manager.audit().clean
        assert hypervisor.disk_state(guest, volume).live is not None
        assert not hypervisor.disk_state(guest, stray).present
        hypervisor.check()


def test_one_that_the_guest_lets_go_is_given_back(hypervisor, volumes, url):
    guest, volume = str(uuid.uuid4()), volumes.create_volume().id
    hypervisor.add_guest(guest)
    with AttachmentManager(url, volumes, hypervisor) as manager:
        made = manager.attach(volume, guest)
        hypervisor.lose_track(guest, volume)
        assert manager.detach(made.id).state is State.ABSENT
        assert not hypervisor.disk_state(guest, volume).present
        again = manager.attach(volume, guest)
        assert again.state is State.ATTACHED
