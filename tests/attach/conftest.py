"""Fixtures of the attachment tests: volume services of each kind behind one handle."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Iterator

import attrs
import pytest

from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.attach.volumes.interface import VolumeService
from cloudcore.attach.volumes.values import VolumeSnapshot
from cloudcore.database import Database
from cloudcore.errors import VolumeNotFound
from cloudcore.schema import create_schema
from tests import services
from tests.attach.cinder_pool import VolumePool, pool
from tests.attach.san.fixtures import brick, san  # noqa: F401 - fixtures


@attrs.define
class ServiceUnderTest:
    """A volume service, and how to make volumes in it. What a test leaves behind is removed at its end."""

    kind: str
    service: VolumeService
    pool: VolumePool | None = None
    made: list[str] = attrs.field(factory=list)

    def create_volume(self, *, multiattach: bool = False) -> str:
        """An available volume of 1 GiB."""
        if self.kind == "embedded":
            made = self.service.create_volume(multiattach=multiattach).id
        else:
            made = self.pool.take(multiattach=multiattach)
        self.made.append(made)
        return made

    def image(self) -> str:
        """Id of an image that the service can write over a volume."""
        if self.kind == "embedded":
            return str(uuid.uuid4())
        return _cinder(self.kind).add_image(b"an operating system".ljust(4096, b"."))

    def snapshots(self) -> list[VolumeSnapshot]:
        """Of the volumes that there are; not those that a real service is deleting."""
        found = []
        for volume in self.made:
            with contextlib.suppress(VolumeNotFound):
                found += [one for one in self.service.snapshots(volume) if one.status != "deleting"]
        return found

    def statuses(self, volume_id: str) -> tuple[str, list[str]]:
        """Status of the volume and of its attachments."""
        found = self.service.attachments(volume_id=volume_id)
        return self.service.volume(volume_id).status, sorted(str(record.status) for record in found)

    def clear(self) -> None:
        """Remove every attachment and volume; Cinder's volumes are used again."""
        for volume in self.made:
            if self.pool is not None:
                self.pool.give_back(volume)
                continue
            for record in self.service.attachments(volume_id=volume):
                self.service.delete(record.id)
            self.service.delete_volume(volume)


@pytest.fixture
def journal_database(sqlite_database):
    """A database with the attachment tables."""
    create_schema(sqlite_database, areas=["attach"])
    return sqlite_database


def _cinder(kind: str) -> services.CinderService:
    return services.cinder("rbd" if kind == "cinder-rbd" else "file")


def open_service(kind: str, database: object) -> ServiceUnderTest:
    if kind == "embedded":
        return ServiceUnderTest(kind, EmbeddedVolumes(database))
    server = _cinder(kind)
    return ServiceUnderTest(kind, CinderVolumes.noauth(server.endpoint, project_id=services.PROJECT), pool(server))


@pytest.fixture(
    params=[
        "embedded",
        # Answers as on Ceph; what is peculiar to Cinder is tested with files in test_cinder*.py in any case.
        pytest.param("cinder", marks=[pytest.mark.services, pytest.mark.slow]),
        pytest.param("cinder-rbd", marks=pytest.mark.services),
    ]
)
def volume_service(request, journal_database) -> Iterator[ServiceUnderTest]:
    """Embedded volumes; a real Cinder with a driver of files; a real Cinder on a real Ceph."""
    found = open_service(request.param, journal_database)
    yield found
    found.clear()
    found.service.close()


@pytest.fixture
def embedded(journal_database) -> Iterator[EmbeddedVolumes]:
    """Embedded volumes; statuses and records are checked at the end."""
    volumes = EmbeddedVolumes(journal_database)
    yield volumes
    volumes.check()


@pytest.fixture
def places(journal_database) -> Iterator[Database]:
    """The database, or one node of it after the other, that each manager works at."""
    return itertools.repeat(journal_database)


@pytest.fixture
def new_manager(places):
    """Opens managers over the test's journal; each is checked and closed at the end."""
    opened: list[AttachmentManager] = []

    def make(volumes=None, hypervisor=None, **options) -> AttachmentManager:
        options = {"patience": 240.0, **options}  # a loaded machine is no reason to fail
        opened.append(AttachmentManager(next(places), volumes, hypervisor, **options))
        return opened[-1]

    yield make
    for manager in opened:
        manager.check()
        manager.close()


def instance() -> str:
    """A new instance's id."""
    return str(uuid.uuid4())
