"""Encrypted volumes: QEMU opens them with the key that the volume service names, or nobody gets them."""

import attrs
import pytest
from castellan.common.objects import passphrase

from cloudcore import errors
from cloudcore.attach.volumes.cinder_rules import read_encryption
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.disks import LuksEncryption
from cloudcore.hypervisor import CastellanKeys, MemoryHypervisor
from cloudcore.testing.volumes import GIB, FakeVolumes

from .conftest import instance

KEY = "cccccccc-cccc-4ccc-8ccc-cccccccccccc"


class Encrypted(FakeVolumes):
    """Every volume is encrypted; *said* tells whether the connection information says so, as it should."""

    key: str | None = KEY
    said = True

    def features(self):
        return attrs.evolve(self._service.features(), encryption=True)

    def volume(self, volume_id):
        return attrs.evolve(self._service.volume(volume_id), encrypted=True)

    def encryption_key(self, volume_id):
        return self.key

    def update(self, *arguments):
        return self._marked(self._service.update(*arguments))

    def create(self, *arguments, **more):
        return self._marked(self._service.create(*arguments, **more))

    def attachment(self, attachment_id):
        return self._marked(self._service.attachment(attachment_id))

    def _marked(self, record):
        if record.connection is None:
            return record
        data = {**record.connection.data, "encrypted": self.said}
        return attrs.evolve(record, connection=ConnectionInfo(record.connection.kind, data))


@pytest.fixture
def hosts():
    return [MemoryHypervisor("compute-1"), MemoryHypervisor("compute-2")]


@pytest.fixture
def volumes(volume_service):
    return Encrypted(volume_service.service)


@pytest.fixture
def manager(new_manager, volumes, hosts):
    return new_manager(volumes, hosts, patience=20.0)


@pytest.mark.parametrize("said", [True, False])
def test_the_guest_gets_it_with_its_key(manager, volumes, volume_service, hosts, said):
    """Whether volume or connection says that it is encrypted; at the destination of a live migration too."""
    volumes.said = said
    volume, who = volume_service.create_volume(), instance()
    hosts[0].add_guest(who)
    made = manager.attach(volume, who, host="compute-1")
    assert hosts[0].disk_state(who, volume).live.encryption == LuksEncryption(secret_id=volume)
    (disk,) = manager.begin_move(who, "compute-2").disks
    assert (disk.encryption, disk.encryption.key_id) == (LuksEncryption(secret_id=volume), KEY)
    manager.revert_move(who)
    assert KEY not in str(manager.story(made.id))
    manager.detach(made.id)
    assert manager.audit().clean


@pytest.mark.parametrize("why", ["no key", "no LUKS"])
def test_without_a_key_nobody_gets_it(manager, volumes, volume_service, hosts, why):
    """Its raw bytes would be shown, and overwritten. Nothing is left over."""
    volume, who = volume_service.create_volume(), instance()
    hosts[0].add_guest(who)
    volumes.key = None
    if why == "no LUKS":
        volumes.encryption_key = lambda volume_id: read_encryption(
            {"encryption_key_id": KEY, "provider": "x"}, volume_id
        )
    with pytest.raises(errors.UnsupportedFeature):
        manager.attach(volume, who, host="compute-1")
    assert not hosts[0].disk_state(who, volume).present
    assert volume_service.statuses(volume) == ("available", [])


def test_how_much_of_it_a_guest_may_see_is_not_guessed(new_manager, embedded, hosts):
    """Growing it grows the volume; the guest is named as one that was not told."""
    manager, volume, who = new_manager(Encrypted(embedded), hosts), embedded.create_volume(GIB).id, instance()
    hosts[0].add_guest(who)
    made = manager.attach(volume, who, host="compute-1")
    ((identifier, why),) = manager.extend(volume, 2 * GIB).left
    assert identifier == made.id
    assert "next start" in why


def test_a_volume_of_a_real_service_is_not_encrypted(volume_service):
    assert volume_service.service.encryption_key(volume_service.create_volume()) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"encryption_key_id": None, "provider": "luks"}, None),
        ({"encryption_key_id": KEY, "provider": "luks", "control_location": "front-end", "cipher": "aes"}, KEY),
        ({"encryption_key_id": KEY.replace("-", ""), "provider": "luks2"}, KEY),
        ({"encryption_key_id": KEY, "provider": "nova.volume.encryptors.luks.LuksEncryptor"}, KEY),
        ({"encryption_key_id": KEY, "provider": "plain"}, errors.UnsupportedFeature),
        ({"encryption_key_id": KEY, "provider": "luks", "control_location": "back-end"}, errors.UnsupportedFeature),
        ({"encryption_key_id": KEY}, errors.UnsupportedFeature),
        ({"encryption_key_id": "key", "provider": "luks"}, errors.InvalidArgument),
    ],
)
def test_encryption_metadata(body, expected):
    if expected is None or isinstance(expected, str):
        assert read_encryption(body, "v") == expected
    else:
        with pytest.raises(expected):
            read_encryption(body, "v")


class AsksForKeys(MemoryHypervisor):
    """Gets what opens a disk before it does anything, as the adapter for libvirt does."""

    def __init__(self, host, passphrase):
        super().__init__(host)
        self.passphrase = passphrase

    def attach_disk(self, instance_id, disk):
        self.passphrase(disk)
        return super().attach_disk(instance_id, disk)


class KeyManager:
    """castellan's, which is away until it is back."""

    def __init__(self):
        self.away = True

    def get(self, context, key_id):
        if self.away:
            raise ConnectionRefusedError
        return passphrase.Passphrase(b"opens")


def test_a_key_manager_that_is_away_leaves_nothing(new_manager, volumes, volume_service):
    """The caller is told that the same call may succeed later, and then it does."""
    key_manager = KeyManager()
    host = AsksForKeys("compute-1", CastellanKeys("user", manager=key_manager))
    manager, volume, who = new_manager(volumes, host), volume_service.create_volume(), instance()
    host.add_guest(who)
    with pytest.raises(errors.KeyManagerUnavailable) as caught:
        manager.attach(volume, who)
    assert isinstance(caught.value, errors.Transient)
    assert not host.disk_state(who, volume).present
    assert (manager.attachments(), volume_service.statuses(volume)) == ((), ("available", []))
    assert manager.audit().clean
    key_manager.away = False
    made = manager.attach(volume, who)
    assert host.disk_state(who, volume).live.encryption == LuksEncryption(secret_id=volume)
    manager.detach(made.id)
