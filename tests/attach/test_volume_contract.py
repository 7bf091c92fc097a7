"""The contract suite on every volume service."""

import inspect

import pytest

from cloudcore import errors
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
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


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb", "pgbouncer", "galera"], indirect=True)
def test_embedded_on_every_database(database, tmp_path):
    """The same rules hold whatever the database: every promise in turn, on one."""
    create_schema(database, areas=["attach"])
    contract = VolumeServiceContract()
    promises = [name for name in dir(contract) if name.startswith("test_")]
    for name in promises:
        volumes = EmbeddedVolumes(database, directory=tmp_path / "volumes")
        given = {"volumes": volumes, "new_volume": lambda volumes=volumes, **o: volumes.create_volume(**o).id}
        promise = getattr(contract, name)
        promise(**{key: given[key] for key in inspect.signature(promise).parameters})
        volumes.check()
    assert len(promises) > 15


class TestWrapped(VolumeServiceContract):
    """A wrapper without faults changes nothing."""

    @pytest.fixture
    def volumes(self, embedded):
        return FakeVolumes(embedded)

    @pytest.fixture
    def new_volume(self, embedded):
        return lambda **options: embedded.create_volume(**options).id


def test_a_migration_that_is_refused_leaves_no_volume(journal_database, tmp_path):
    """Neither a record nor a file."""
    with EmbeddedVolumes(journal_database, directory=tmp_path / "volumes") as volumes:
        old = volumes.create_volume(2**20).id
        new = volumes.begin_migration(old).id
        with pytest.raises(errors.Conflict, match="already"):
            volumes.begin_migration(old)
        assert {volume.id for volume in volumes.volumes()} == {old, new}
        assert len(list((tmp_path / "volumes").iterdir())) == 2
