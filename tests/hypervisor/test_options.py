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
from cloudcore.errors import InvalidDisk, KeyManagerUnavailable
from cloudcore.hypervisor import LibvirtHypervisor, Timeouts
from tests import services
from tests.attach.dying import killed_at
from tests.hypervisor.cloud import Compute, open_cloud, token
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


def test_units_beside_a_boot_disk_and_what_else_is_no_volume():
    """A guest boots from a SCSI image and has a CD-ROM; one that is off has a device of the host's, too: a volume gets
    the next unit, and one that is asked for is refused where any of them has it."""
    services.require("qemu", "guest")
    (host,) = services.libvirt_hosts(1, variant="crash")
    host.start()
    with Guests(host) as guests, LibvirtHypervisor(host.uri) as hypervisor:
        image = (
            f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{guests.image().path}'/>"
            "<target dev='sda' bus='scsi'/></disk>"
            "<disk type='file' device='cdrom'><target dev='sdb' bus='scsi'/></disk>"
        )
        passed = (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host7'/>"
            "<address bus='0' target='0' unit='0'/></source>"
            "<address type='drive' controller='0' bus='0' target='0' unit='2'/></hostdev>"
        )
        running, off = guests.define(more=SCSI + image), guests.define(more=SCSI + image + passed)
        guests.domain(running).create()
        for instance_id, unit in ((running, 2), (off, 3)):
            disk = Disk(volume_id=str(uuid.uuid4()), source=guests.image(), bus=DiskBus.SCSI)
            state = hypervisor.attach_disk(instance_id, disk)
            assert (state.persistent.target, state.persistent.unit) == ("sdc", unit)
            for taken in range(unit + 1):
                with pytest.raises(InvalidDisk, match=f"unit: {taken} is in use"):
                    hypervisor.attach_disk(instance_id, attrs.evolve(disk, volume_id=str(uuid.uuid4()), unit=taken))
        hypervisor.check()


def place_of(storage: services.CephCluster, image: str) -> str:
    """As qemu-img names it."""
    return f"rbd:{storage.pool}/{image}:id={storage.user}:conf={storage.conf}:keyring={storage.keyring}"


def luks(storage: services.CephCluster, folder: Path, passphrase: bytes) -> RbdSource:
    """A LUKS container in Ceph. qemu-img would measure how fast the machine is, and fails where it is too busy."""
    key, container, image = folder / "key", folder / "container", f"luks-{uuid.uuid4()}"
    key.write_bytes(passphrase)
    with container.open("wb") as made:
        made.truncate(18 << 20)  # of which the header takes 2
    form = ["--type", "luks1", "--pbkdf-force-iterations", "1000"]
    subprocess.run(["cryptsetup", "-q", "luksFormat", *form, str(container), str(key)], check=True)
    copy = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(container), place_of(storage, image)]
    subprocess.run(copy, check=True)
    return RbdSource(pool=storage.pool, image=image, hosts=(("127.0.0.1", storage.port),), user=storage.user)


def of_one_key(source: RbdSource, key_id: str) -> Disk:
    """A volume whose secret is asked for under the key's UUID, as those of its copies are."""
    encryption = LuksEncryption(secret_id=key_id)
    return Disk(volume_id=str(uuid.uuid4()), source=source, shareable=True, limits=LIMITS, encryption=encryption)


def secrets(host: Compute) -> set[str]:
    """UUIDs of a host's secrets; other tests leave some."""
    return set(host.guests.connection.listSecrets())


def test_encrypted_and_limited_volumes_are_shared_and_move(tmp_path, caplog):
    """Two guests on two hosts write and read LUKS containers in Ceph. One moves live: the limits go with it, and so do
    the keys. What is stored cannot be read, and the keys are gone with the last guest.

    One volume is a copy of the other, so both have one key; on each host another of them has the secret of its UUID.
    """
    passphrase, key_id, asked = token().encode(), str(uuid.uuid4()), []
    away: set[str] = set()

    def key_of(disk: Disk) -> bytes:
        if disk.volume_id in away:
            raise KeyManagerUnavailable("the key manager is away")
        asked.append((disk.volume_id, disk.encryption.key_id or disk.encryption.secret_id))
        return passphrase

    with open_cloud(f"sqlite:///{tmp_path / 'journal.db'}") as cloud:
        source = attrs.evolve(luks(cloud.ceph, tmp_path, passphrase), secret_id=cloud.cinder.secret_uuid)
        copy = attrs.evolve(source, image=f"{source.image}-copy")
        cloud.ceph.rbd("cp", source.image, f"{source.pool}/{copy.image}")
        one, two = of_one_key(source, key_id), of_one_key(copy, key_id)
        here, there = cloud.hosts.values()
        before = {host.name: secrets(host) for host in (here, there)}
        with (
            LibvirtHypervisor(here.server.uri, timeouts=Timeouts(detach=60), passphrase=key_of) as first,
            LibvirtHypervisor(there.server.uri, timeouts=Timeouts(detach=60), passphrase=key_of) as second,
        ):
            mover, stayer = here.guests.boot(), there.guests.boot()
            there.guests.adopt(mover)
            for hypervisor, instance, disk, secret_id in (
                (first, mover, one, key_id),
                (first, mover, two, two.volume_id),
                (second, stayer, two, key_id),
            ):
                state = hypervisor.attach_disk(instance, disk)
                assert hypervisor.attach_disk(instance, disk) == state
                assert (state.live.limits, state.persistent.limits) == (LIMITS, LIMITS)
                assert state.live.encryption == state.persistent.encryption == LuksEncryption(secret_id=secret_id)
            text = token()
            console, other = here.guests.console(mover), there.guests.console(stayer)
            for sector, disk in enumerate((one, two)):
                console.write(console.wait_disk(disk.volume_id), sector, text)
            assert other.read(other.wait_disk(two.volume_id), 1) == text
            here.guests.drop_console(mover)
            away.add(two.volume_id)
            kept = secrets(there)
            with pytest.raises(KeyManagerUnavailable):  # asked for the second; the first has its key there by then
                first.migrate(mover, second)
            assert secrets(there) == kept
            assert first.disk_state(mover, one.volume_id).live is not None
            away.clear()
            first.migrate(
                mover,
                second,
                uri=f"tcp://127.0.0.1:{there.server.migration_port}",
                listen_address="127.0.0.1",
                edit=lambda xml: xml.replace(here.server.folder, there.server.folder),
                seconds=120,
            )
            console = there.guests.console(mover, booting=False)
            for sector, (disk, secret_id) in enumerate(((one, one.volume_id), (two, key_id))):
                moved = second.disk_state(mover, disk.volume_id)
                assert (moved.live.limits, moved.persistent.limits) == (LIMITS, LIMITS)
                assert moved.live.encryption == moved.persistent.encryption == LuksEncryption(secret_id=secret_id)
                assert console.read(console.wait_disk(disk.volume_id), sector) == text
            assert secrets(here) == before[here.name]
            written = [there.guests.domain(guest).XMLDesc(flags) for guest in (mover, stayer) for flags in (0, 1, 2, 3)]
            secret = there.guests.connection.secretLookupByUUIDString(key_id)
            written.append(secret.XMLDesc())
            for instance, disk, left in ((mover, two, 2), (mover, one, 1), (stayer, two, 0)):
                assert second.detach_disk(instance, disk.volume_id) is DetachOutcome.DETACHED
                assert len(secrets(there) - before[there.name]) == left
        logs = [Path(host.server.folder, "libvirtd.log").read_text(errors="replace") for host in (here, there)]
        stored = tmp_path / "stored"
        place = place_of(cloud.ceph, one.source.image)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", place, str(stored)], check=True)
        assert text.encode() not in stored.read_bytes()
        for disk in (one, two):
            cloud.ceph.rbd("rm", disk.source.image)
    assert set(asked) == {(one.volume_id, key_id), (two.volume_id, key_id)}
    for told in (*written, *logs, caplog.text):
        assert passphrase.decode() not in told
        assert base64.b64encode(passphrase).decode() not in told


def test_volumes_of_one_key_on_one_host(tmp_path):
    """Cinder's own key manager has one key for all. One volume is detached, and the other is opened at the next start;
    what a process died over in the middle of an attach is finished by the next one."""
    with open_cloud(f"sqlite:///{tmp_path / 'journal.db'}", count=1) as cloud:
        (here,) = cloud.hosts.values()
        before = secrets(here)
        one, two = (cloud.cinder.create_volume(encrypted=True) for _ in range(2))
        assert cloud.volumes.encryption_key(one) == cloud.volumes.encryption_key(two)
        asked = []

        def key_of(disk: Disk) -> bytes:
            asked.append(disk.encryption.key_id)
            return cloud.cinder.passphrase

        with (
            LibvirtHypervisor(
                here.server.uri, host=here.name, timeouts=Timeouts(detach=60), passphrase=key_of
            ) as hypervisor,
            AttachmentManager(cloud.url, cloud.volumes, hypervisor) as manager,
        ):
            instance = here.guests.define()
            for volume_id in (one, two):
                with killed_at("attach.plug.after"):
                    manager.attach(volume_id, instance)
                assert manager.recover().complete
            legs = {leg.volume_id: leg for leg in manager.attachments(instance_id=instance)}
            assert {leg.state for leg in legs.values()} == {State.ATTACHED}
            assert secrets(here) - before == {one, two}
            assert manager.detach(legs[one].id).state is State.ABSENT
            assert secrets(here) - before == {two}
            here.guests.domain(instance).create()
            assert hypervisor.disk_state(instance, two).live.encryption == LuksEncryption(secret_id=two)
            here.guests.domain(instance).destroy()
            assert manager.terminate(instance) == ()
            assert secrets(here) == before
            assert set(asked) == {cloud.volumes.encryption_key(one)}


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
            assert hypervisor.disk_state(instance, volume_id).live.encryption == LuksEncryption(secret_id=volume_id)
            console, text = here.guests.console(instance), token()
            disk = console.wait_disk(volume_id)
            console.write(disk, 3, text)
            assert console.read(disk, 3) == text
            written = [here.guests.domain(instance).XMLDesc(flags) for flags in (0, 1, 2, 3)]
            assert manager.detach(made.id).state is State.ABSENT
            assert volume_id not in here.guests.connection.listSecrets()
            written.append(str(manager.story(made.id)))
        place = place_of(cloud.ceph, f"volume-{volume_id}")
        found = subprocess.run(["qemu-img", "info", place], capture_output=True, text=True, check=True)
        assert "file format: luks" in found.stdout
        log = Path(here.server.folder, "libvirtd.log").read_text(errors="replace")
    for told in (*written, log, caplog.text):
        assert cloud.cinder.passphrase.decode() not in told
