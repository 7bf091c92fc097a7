"""The values that volume attachments and hypervisors exchange: a disk, where it comes from, and who has it.

Neither area knows the other. An attachment manager turns a volume service's connection information into a
:class:`Disk` and hands it to anything that fulfils :class:`GuestDisks`; hypervisor adapters fulfil it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, runtime_checkable

import attrs

__all__ = [
    "BlockSource",
    "CopyPhase",
    "DetachOutcome",
    "Disk",
    "DiskBus",
    "DiskCopier",
    "DiskCopy",
    "DiskLimits",
    "DiskSource",
    "DiskState",
    "FileSource",
    "GuestDisks",
    "GuestFreezer",
    "IscsiSource",
    "LuksEncryption",
    "OrphanFinder",
    "RbdSource",
]


class DiskBus(StrEnum):
    """The bus on which the guest sees the disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"
    USB = "usb"


@attrs.frozen(kw_only=True)
class RbdSource:
    """A Ceph image, opened by QEMU itself.

    Attributes:
        pool: Name of the pool.
        image: Name of the image in it.
        hosts: (address, port) of each monitor.
        user: Name of the Ceph client, None without authentication.
        secret_id: UUID of the libvirt secret that holds its key, None without authentication.
    """

    pool: str
    image: str
    hosts: tuple[tuple[str, int], ...]
    user: str | None = None
    secret_id: str | None = None


@attrs.frozen(kw_only=True)
class IscsiSource:
    """An iSCSI logical unit, opened by QEMU itself. *secret_id* names the libvirt secret of the CHAP password."""

    host: str
    port: int
    target: str
    lun: int
    user: str | None = None
    secret_id: str | None = None


@attrs.frozen
class BlockSource:
    """A block device on the host."""

    path: str


@attrs.frozen
class FileSource:
    """An image file on the host. *format* is QEMU's name of it, such as ``"raw"`` or ``"qcow2"``."""

    path: str
    format: str = "raw"


DiskSource = RbdSource | IscsiSource | BlockSource | FileSource


@attrs.frozen(kw_only=True)
class DiskLimits:
    """How fast a guest may use a disk: QEMU's ``<iotune>``, named as there and in Cinder's QoS specs. 0 is no limit.

    ``*_bytes_sec`` in bytes each second, ``*_iops_sec`` in operations each second; ``*_max`` is what a burst may reach.
    A *total* excludes its *read* and *write*. *size_iops_sec*: in bytes, how much counts as one operation.
    """

    total_bytes_sec: int = 0
    read_bytes_sec: int = 0
    write_bytes_sec: int = 0
    total_iops_sec: int = 0
    read_iops_sec: int = 0
    write_iops_sec: int = 0
    total_bytes_sec_max: int = 0
    read_bytes_sec_max: int = 0
    write_bytes_sec_max: int = 0
    total_iops_sec_max: int = 0
    read_iops_sec_max: int = 0
    write_iops_sec_max: int = 0
    size_iops_sec: int = 0


@attrs.frozen(kw_only=True)
class LuksEncryption:
    """The bytes are a LUKS container, opened by QEMU with the passphrase in the libvirt secret *secret_id*.

    A secret is one volume's; *key_id*, the passphrase's name at a key manager, may be that of several. It is in no
    definition: a disk that is read back has none, and two that differ in nothing else are equal.
    """

    secret_id: str
    key_id: str | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True)
class Disk:
    """A volume as a guest is to have it.

    Attributes:
        volume_id: UUID of the volume; serial and alias are made from it.
        source: Where the bytes are.
        read_only: The guest may not write, whatever the backend would allow.
        shareable: Several guests use it at once (multi-attach): no host cache, no image lock.
        bus: On which the guest sees it.
        target: Device name such as ``"vdb"``; None lets the adapter pick the next free one.
        boot_order: 1 is booted first; None is not booted from.
        cache, io, discard: QEMU's cache, I/O and discard modes; None is the adapter's choice. Shareable disks always
            get ``cache="none"``.
        logical_block_size, physical_block_size: In bytes; None is the default.
        limits: How fast the guest may use it; None is as fast as it goes.
        encryption: How QEMU opens it; None for bytes that are as the guest sees them.
        unit: SCSI unit on the guest's first controller; None lets the adapter pick the next free one.
        lun: The guest may send the device any SCSI command (libvirt's device ``"lun"``); such a disk has no serial.
        wwn: World Wide Name that the guest sees, 16 hexadecimal digits; SCSI, SATA and IDE only.
        queues, iothread: How many virtqueues it has, and which of the guest's I/O threads (from 1) serves it; virtio
            only.
    """

    volume_id: str
    source: DiskSource
    read_only: bool = False
    shareable: bool = False
    bus: DiskBus = DiskBus.VIRTIO
    target: str | None = None
    boot_order: int | None = None
    cache: str | None = None
    io: str | None = None
    discard: str | None = None
    logical_block_size: int | None = None
    physical_block_size: int | None = None
    limits: DiskLimits | None = None
    encryption: LuksEncryption | None = None
    unit: int | None = None
    lun: bool = False
    wwn: str | None = None
    queues: int | None = None
    iothread: int | None = None


@attrs.frozen(kw_only=True)
class DiskState:
    """Whether a guest has a volume, as read back from the hypervisor.

    Attributes:
        instance_id: UUID of the guest.
        volume_id: UUID of the volume.
        live: The disk of the running guest, None if it has none (or does not run).
        persistent: The disk in the definition used at the next start, None if it has none.
        half: One definition of the guest has it and the other has not: an attach or a detach is on its way, or was
            interrupted. Both can be asked for again.
        orphaned: The running guest has it though its definition has not: the hypervisor has lost track of it. A detach
            takes it out; so does a restart of the guest.
    """

    instance_id: str
    volume_id: str
    live: Disk | None = None
    persistent: Disk | None = None
    half: bool = False
    orphaned: bool = False

    @property
    def present(self) -> bool:
        """The guest has it, live or in its persistent definition, or unknown to both."""
        return self.live is not None or self.persistent is not None or self.orphaned


class DetachOutcome(StrEnum):
    """What came of asking a guest to let a disk go."""

    DETACHED = "detached"  # gone from the live and from the persistent definition, as read back, and closed
    PENDING = "pending"  # not let go by the guest yet, or not closed by the hypervisor; ask again, after a restart too


@runtime_checkable
class GuestDisks(Protocol):
    """What an attachment manager needs of a hypervisor: the disks of the guests on one host.

    Every method may be called from any thread, has a deadline of the adapter's own, and can be repeated: attaching what
    is attached and detaching what is gone succeed. All may raise
    :class:`~cloudcore.errors.HypervisorUnavailable` (nothing is known),
    :class:`~cloudcore.errors.HypervisorError` and :class:`~cloudcore.errors.GuestNotFound`.
    """

    @property
    def host(self) -> str:
        """Name of the compute host, as volume services and journals know it."""

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        """Give the guest the disk, live if it runs or is paused and in its persistent definition; read both back.

        A disk of the same volume that is there already and agrees is success.

        Raises:
            InvalidDisk: The guest cannot have it as described (bus, target in use, block size).
            LimitExceeded: No slot is left.
            Conflict: The guest has this volume with another source or mode.
            DeadlineExceeded: Unknown whether it was attached: ask :meth:`disk_state`.
        """

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """Ask the guest to let the volume go, from both definitions, and wait for it for a while.

        A guest or disk that is not there counts as detached.

        Raises:
            DetachFailed: Refused for good; the persistent definition is as before.
        """

    def disk_state(self, instance_id: str, volume_id: str) -> DiskState:
        """Whether the guest has the volume; a guest that does not exist has none.

        One that it has not is closed: the hypervisor holds it open no longer.

        Raises:
            DeadlineExceeded: The hypervisor is still busy with the guest: it may have it open.
        """

    def disk_states(self) -> tuple[DiskState, ...]:
        """Every disk with a volume id, of every guest on this host, running or not.

        As the definitions have them: one that is not among them may be open still, see :meth:`disk_state`.
        """

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        """Tell the running guest that the volume now has *size* bytes; nothing to do for one that does not run.

        Raises:
            DeviceNotFound: The guest has no such disk.
        """


@runtime_checkable
class OrphanFinder(Protocol):
    """What a hypervisor may offer beside :class:`GuestDisks`: disks that it has lost track of."""

    def orphaned_disks(self) -> tuple[DiskState, ...]:
        """Every disk with a volume id that a running guest has and its live definition has not.

        Asks each guest's emulator, so it is for audits, not for each call.

        Raises:
            DeadlineExceeded: A guest could not be asked.
        """


@runtime_checkable
class GuestFreezer(Protocol):
    """What a hypervisor may offer beside :class:`GuestDisks`: a guest whose file systems stand still for a while."""

    def freeze(self, instance_id: str) -> None:
        """Have the guest's agent write out what its file systems hold back, and let them wait until :meth:`thaw`.

        Nothing to do for a guest that does not run. One that is frozen already is success.

        Raises:
            GuestAgentUnavailable: There is no agent, or it does not answer. They do not wait.
            DeadlineExceeded: They may wait: thaw it.
        """

    def thaw(self, instance_id: str) -> None:
        """Let them go on. Nothing to do for a guest that does not run, or is not frozen.

        Raises:
            GuestAgentUnavailable, DeadlineExceeded: They may still wait: repeat it, or restart the guest.
        """


class CopyPhase(StrEnum):
    """How far the copy of a running guest's disk to another place has come."""

    NONE = "none"  # the guest has the disk where it was, and nothing is copied
    COPYING = "copying"
    READY = "ready"  # both places hold the same, and every write goes to both before the guest hears of its end
    DONE = "done"  # the guest has the disk at the new place; `pivot_disk` sees to both of its definitions


@attrs.frozen(kw_only=True)
class DiskCopy:
    """The copy of a disk under a running guest.

    Attributes:
        phase: See :class:`CopyPhase`.
        done, total: In bytes; *total* may grow while the guest writes. Both 0 where there is nothing to tell.
    """

    phase: CopyPhase
    done: int = 0
    total: int = 0


@runtime_checkable
class DiskCopier(Protocol):
    """What a hypervisor may offer beside :class:`GuestDisks`: another place for a disk, under a running guest.

    Every method can be repeated. *disk* says where the bytes are to be (its source); how the guest sees the disk stays.
    """

    def copy_disk(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """Begin to copy what the guest's disk of *volume_id* holds to the place of *disk*, or go on with that.

        Raises:
            DeviceNotFound, GuestNotFound: There is nothing to copy.
            Conflict: The guest is off; or something else is done with the disk.
            InvalidDisk, UnsupportedFeature: It cannot be copied there.
        """

    def disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """How far that is. Of a guest that is off, its definition says where the disk is.

        Raises:
            DeviceNotFound, GuestNotFound: There is no such disk.
        """

    def pivot_disk(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """Give the guest the disk at the new place, in both of its definitions, and close the old one.

        Raises:
            Conflict: The copy is not ready; nothing was done.
            DeadlineExceeded, HypervisorUnavailable: Unknown: ask :meth:`disk_copy`.
        """

    def abort_disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """Copy no more to the place of *disk*; the guest goes on with the disk where it is.

        No copy, no disk and no guest are no errors. What else is done with the disk, a copy to another place among it,
        is left alone. The guest may have changed over just before: ask :meth:`disk_copy`.

        Raises:
            HypervisorError: It is being ended already: ask :meth:`disk_copy` what came of it.
        """

    def rename_disk(self, instance_id: str, volume_id: str, new_volume_id: str) -> None:
        """The guest's disk of *volume_id* is the one of *new_volume_id* from now on.

        A running guest goes on seeing the old id as its serial until it is started again.

        Raises:
            DeviceNotFound, GuestNotFound: It has neither.
        """
