"""What only some disks have: limits, encryption, raw SCSI, queues; checked, written and read. Pure."""

from __future__ import annotations

import re

import attrs

from cloudcore._values import normalise_uuid
from cloudcore.disks import BlockSource, Disk, DiskBus, DiskLimits, IscsiSource, LuksEncryption
from cloudcore.errors import InvalidDisk
from cloudcore.hypervisor._xml import Element, is_writable, number

__all__ = ["check_options", "encryption_elements", "limits_elements", "read_encryption", "read_limits"]

_WWN = re.compile(r"[0-9a-f]{16}\Z", re.IGNORECASE)
_LIMITS = tuple(field.name for field in attrs.fields(DiskLimits))
_MOST_QUEUES, _LARGEST = 1024, 2**63 - 1


def check_options(disk: Disk) -> None:
    """Refuse what QEMU or libvirt would refuse, or what would silently not be so.

    Raises:
        InvalidDisk: Limits that contradict each other, a WWN that is none, an option that the bus does not have.
    """
    if disk.limits is not None:
        _check_limits(disk.limits)
    if disk.encryption is not None:
        normalise_uuid(disk.encryption.secret_id, "encryption", InvalidDisk)
        if not is_writable(disk.encryption.key_id or ""):
            key_id = disk.encryption.key_id
            raise InvalidDisk(f"encryption: {key_id!r} is no text that a definition holds", field="encryption")
    if disk.wwn is not None and not _WWN.match(disk.wwn):
        raise InvalidDisk(f"wwn: {disk.wwn!r} is not 16 hexadecimal digits", field="wwn", value=disk.wwn)
    virtio = disk.bus is DiskBus.VIRTIO
    _only("wwn", disk.wwn, disk.bus in {DiskBus.SCSI, DiskBus.SATA, DiskBus.IDE}, "scsi, sata and ide disks")
    _only("unit", disk.unit, disk.bus is DiskBus.SCSI, "scsi disks")
    _only("queues", disk.queues, virtio, "virtio disks")
    _only("iothread", disk.iothread, virtio, "virtio disks")
    for field, value, least, most in (
        ("unit", disk.unit, 0, 255),
        ("queues", disk.queues, 1, _MOST_QUEUES),
        ("iothread", disk.iothread, 1, _LARGEST),
    ):
        if value is not None and not least <= value <= most:
            raise InvalidDisk(f"{field}: {value} is not from {least} to {most}", field=field, value=value)
    if disk.lun:
        _check_lun(disk)


def _only(field: str, value: object, possible: bool, where: str) -> None:
    if value is not None and not possible:
        raise InvalidDisk(f"{field}: only {where} have it", field=field, value=value)


def _check_lun(disk: Disk) -> None:
    if disk.bus not in {DiskBus.SCSI, DiskBus.VIRTIO} or not isinstance(disk.source, BlockSource | IscsiSource):
        raise InvalidDisk("lun: only block devices and iSCSI units, on scsi or virtio, take SCSI commands", field="lun")
    for field in ("encryption", "logical_block_size", "physical_block_size"):
        if getattr(disk, field) is not None:
            raise InvalidDisk(f"{field}: a disk that takes SCSI commands has none", field=field)


def _check_limits(limits: DiskLimits) -> None:
    def refuse(field: str, why: str) -> InvalidDisk:
        value = getattr(limits, field)
        return InvalidDisk(f"limits: {field} is {value}: {why}", field=f"limits.{field}", value=value)

    for field in _LIMITS:
        value = getattr(limits, field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
            raise refuse(field, "not a whole number from 0 on")
        base = field.removesuffix("_max")
        if value and not getattr(limits, base):
            raise refuse(field, f"a burst needs {base}")
        if value and field.startswith("total_"):
            parts = (field.replace("total_", one, 1) for one in ("read_", "write_"))
            if told := [part for part in parts if getattr(limits, part)]:
                raise refuse(field, f"a total excludes {' and '.join(told)}")
    if limits.size_iops_sec and not (limits.total_iops_sec or limits.read_iops_sec or limits.write_iops_sec):
        raise refuse("size_iops_sec", "it counts operations, and none of their limits is set")


def encryption_elements(disk: Disk) -> list[Element]:
    """What goes into ``<source>``. It names the secret; the passphrase is nowhere in a definition."""
    if disk.encryption is None:
        return []
    element = Element("encryption", format="luks")
    secret = Element("secret", type="passphrase", uuid=disk.encryption.secret_id)
    element.append(secret)
    return [element]


def limits_elements(disk: Disk) -> list[Element]:
    """``<iotune>``, when there is any limit."""
    element = Element("iotune")
    for field in _LIMITS:
        value = getattr(disk.limits, field, 0)
        if value:
            child = Element(field)
            child.text = str(value)
            element.append(child)
    return [element] if len(element) else []


def read_limits(element: Element) -> DiskLimits | None:
    """The limits of a disk; None when it has none."""
    values = {field: number(element.findtext(f"iotune/{field}")) for field in _LIMITS}
    return DiskLimits(**values) if any(values.values()) else None


def read_encryption(element: Element) -> LuksEncryption | None:
    """How QEMU opens it; older definitions have it beside the source."""
    for path in ("source/encryption", "encryption"):
        found = element.find(path)
        secret = None if found is None else found.find("secret")
        if found is not None and secret is not None and found.get("format") == "luks":
            return LuksEncryption(secret_id=secret.get("uuid", ""))
    return None
