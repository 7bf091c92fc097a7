"""The contract suite on every volume service."""

import pytest

from cloudcore.attach.embedded import EmbeddedVolumes
from cloudcore.schema import create_schema
from cloudcore.testing.volumes import FakeVolumes, VolumeServiceContract


class TestEveryService(VolumeServiceContract):
    """Embedded, Cinder with files, Cinder on Ceph."""

    @pytest.fixture
    def volumes(self, volume_service):
        return volume_service.service

    @pytest.fixture
    def new_volume(self, volume_service):
        return volume_service.create_volume


class TestEmbeddedOnEveryDatabase(VolumeServiceContract):
    """The same rules hold whatever the database."""

    @pytest.fixture
    def volumes(self, database, tmp_path):
        create_schema(database, areas=["attach"])
        service = EmbeddedVolumes(database, directory=tmp_path / "volumes")
        yield service
        service.check()

    @pytest.fixture
    def new_volume(self, volumes):
        return lambda **options: volumes.create_volume(**options).id


class TestWrapped(VolumeServiceContract):
    """A wrapper without faults changes nothing."""

    @pytest.fixture
    def volumes(self, embedded):
        return FakeVolumes(embedded)

    @pytest.fixture
    def new_volume(self, embedded):
        return lambda **options: embedded.create_volume(**options).id
