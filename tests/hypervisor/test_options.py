"""What some disks have, on real guests: many on one bus, limits, LUKS; and no passphrase where it can be read."""

from __future__ import annotations

import base64
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from cloudcore.attach import AttachmentManager, State
from cloudcore.disks import DetachOutcome, Disk, DiskBus, DiskLimits, LuksEncryption, RbdSource
from cloudcore.errors import InvalidDisk
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests import services
from tests.hypervisor.cloud import open_cloud, token
from tests.hypervisor.domains import Guests

pytestmark = pytest.mark.xdist_group("guests")

SCSI = "<controller type='scsi' index='0' model='virtio-scsi'/>"
LIMITS = DiskLimits(total_iops_sec=2000, write_bytes_sec=50 << 20)


def test_sixty_disks_on_one_guest():
    """Names go on after sdz, units are dealt from one controller, by four callers at once; the limit is told."""
    services.require("qemu", "guest")
    (host,) = services.libvirt_hosts(1, variant="crash")
    host.start()
    with Guests(host) as guests, LibvirtHypervisor(host.uri) as hypervisor:
        instance_id = guests.define(more=SCSI)
        guests.domain(instance_id).create()
        disks = [Disk(volume_id=str(uuid.uuid4()), source=guests.image(), bus=DiskBus.SCSI) for _ in range(60)]
        with ThreadPoolExecutor(4) as callers:
            states = list(callers.map(lambda disk: hypervisor.attach_disk(instance_id, disk), disks))
        names = {state.live.target for state in states}
        assert len(names) == 60
        assert {"sda", "sdz", "sdaa", "sdbh"} <= names
        assert {state.live.unit for state in states} == set(range(60))
        assert all(state.live == state.persistent for state in states)
        hypervisor.check()
        more = Disk(volume_id=str(uuid.uuid4()), source=guests.image(), bus=DiskBus.SCSI, unit=7)
        with pytest.raises(InvalidDisk, match="unit: 7 is in use"):
            hypervisor.attach_disk(instance_id, more)
        assert not hypervisor.disk_state(instance_id, more.volume_id).present
        for disk in disks[:5]:
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def place_of(storage: services.CephCluster, image: str) -> str:
    """As qemu-img names it."""
    return f"rbd:{storage.pool}/{image}:id={storage.user}:conf={storage.conf}:keyring={storage.keyring}"


def luks(storage: services.CephCluster, folder: Path, passphrase: bytes) -> RbdSource:
    """A LUKS container in Ceph."""
    key = folder / "key"
    key.write_bytes(passphrase)
    image = f"luks-{uuid.uuid4()}"
    place = place_of(storage, image)
    command = ["qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=k,file={key}"]
    subprocess.run([*command, "-o", "key-secret=k,iter-time=10", place, "16M"], check=True)
    return RbdSource(pool=storage.pool, image=image, hosts=(("127.0.0.1", storage.port),), user=storage.user)


def test_an_encrypted_and_limited_volume_is_shared_and_moves(tmp_path, caplog):
    """Two guests on two hosts write and read one LUKS container in Ceph. One moves live: the limits go with it, and so
    does the key. What is stored cannot be read, and the key is gone with the last guest."""
    passphrase, asked = token().encode(), []

    def key_of(disk: Disk) -> bytes:
        asked.append(disk.volume_id)
        return passphrase

    with open_cloud(f"sqlite:///{tmp_path / 'journal.db'}") as cloud:
        source = attrs.evolve(luks(cloud.ceph, tmp_path, passphrase), secret_id=cloud.cinder.secret_uuid)
        disk = Disk(
            volume_id=str(uuid.uuid4()),
            source=source,
            shareable=True,
            limits=LIMITS,
            encryption=LuksEncryption(secret_id=str(uuid.uuid4())),
        )
        here, there = cloud.hosts.values()
        with (
            LibvirtHypervisor(here.server.uri, timeouts=Timeouts(detach=60), passphrase=key_of) as first,
            LibvirtHypervisor(there.server.uri, timeouts=Timeouts(detach=60), passphrase=key_of) as second,
        ):
            mover, stayer = here.guests.boot(), there.guests.boot()
            there.guests.adopt(mover)
            for hypervisor, instance in ((first, mover), (second, stayer)):
                state = hypervisor.attach_disk(instance, disk)
                assert (state.live.limits, state.persistent.limits) == (LIMITS, LIMITS)
                assert state.live.encryption == disk.encryption
            text = token()
            console, other = here.guests.console(mover), there.guests.console(stayer)
            console.write(console.wait_disk(disk.volume_id), 3, text)
            assert other.read(other.wait_disk(disk.volume_id), 3) == text
            here.guests.drop_console(mover)
            first.migrate(
                mover,
                second,
                uri=f"tcp://127.0.0.1:{there.server.migration_port}",
                listen_address="127.0.0.1",
                edit=lambda xml: xml.replace(here.server.folder, there.server.folder),
                seconds=120,
            )
            moved = second.disk_state(mover, disk.volume_id)
            assert (moved.live.limits, moved.persistent.limits) == (LIMITS, LIMITS)
            console = there.guests.console(mover, booting=False)
            assert console.read(console.wait_disk(disk.volume_id), 3) == text
            written = [there.guests.domain(one).XMLDesc(flags) for one in (mover, stayer) for flags in (0, 1, 2, 3)]
            secret = there.guests.connection.secretLookupByUUIDString(disk.encryption.secret_id)
            written.append(secret.XMLDesc())
            for instance in (mover, stayer):
                assert second.detach_disk(instance, disk.volume_id) is DetachOutcome.DETACHED
            for host in (here, there):
                assert disk.encryption.secret_id not in host.guests.connection.listSecrets()
        logs = [Path(host.server.folder, "libvirtd.log").read_text(errors="replace") for host in (here, there)]
        stored = tmp_path / "stored"
        place = place_of(cloud.ceph, source.image)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", place, str(stored)], check=True)
        assert text.encode() not in stored.read_bytes()
        cloud.ceph.rbd("rm", source.image)
    assert set(asked) == {disk.volume_id}
    for told in (*written, *logs, caplog.text):
        assert passphrase.decode() not in told
        assert base64.b64encode(passphrase).decode() not in told


def test_a_volume_of_an_encrypted_type_of_cinder(tmp_path, caplog):
    """Cinder makes the container and names its key; the guest writes and reads what nobody else can."""
    with open_cloud(f"sqlite:///{tmp_path / 'journal.db'}", count=1) as cloud:
        (here,) = cloud.hosts.values()
        volume_id = cloud.cinder.create_volume(encrypted=True)
        with (
            LibvirtHypervisor(
                here.server.uri,
                host=here.name,
                timeouts=Timeouts(detach=60),
                passphrase=lambda _: cloud.cinder.passphrase,
            ) as hypervisor,
            AttachmentManager(cloud.url, cloud.volumes, hypervisor) as manager,
        ):
            instance = here.guests.boot()
            made = manager.attach(volume_id, instance)
            key = cloud.volumes.encryption_key(volume_id)
            assert hypervisor.disk_state(instance, volume_id).live.encryption == LuksEncryption(secret_id=key)
            console, text = here.guests.console(instance), token()
            disk = console.wait_disk(volume_id)
            console.write(disk, 3, text)
            assert console.read(disk, 3) == text
            written = [here.guests.domain(instance).XMLDesc(flags) for flags in (0, 1, 2, 3)]
            assert manager.detach(made.id).state is State.ABSENT
            assert key not in here.guests.connection.listSecrets()
            written.append(str(manager.story(made.id)))
        place = place_of(cloud.ceph, f"volume-{volume_id}")
        found = subprocess.run(["qemu-img", "info", place], capture_output=True, text=True, check=True)
        assert "file format: luks" in found.stdout
        log = Path(here.server.folder, "libvirtd.log").read_text(errors="replace")
    for told in (*written, log, caplog.text):
        assert cloud.cinder.passphrase.decode() not in told
