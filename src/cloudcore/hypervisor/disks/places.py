"""Where a guest has room for a disk: device names and SCSI units. Pure."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from cloudcore.disks import Disk, DiskBus
from cloudcore.errors import InvalidDisk, LimitExceeded
from cloudcore.hypervisor.disks.xml import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["pick_target", "pick_unit"]

_MOST = {DiskBus.IDE: 4, DiskBus.SCSI: 256}
_COLD_ONLY = frozenset({DiskBus.IDE, DiskBus.SATA})


def pick_target(disk: Disk, taken: Collection[str], *, running: bool) -> str:
    """The device name for *disk* in a guest in which *taken* are in use.

    Raises:
        InvalidDisk: The name asked for is taken, or the bus takes disks only while the guest is off.
        LimitExceeded: The bus is full.
    """
    if running and disk.bus in _COLD_ONLY:
        raise InvalidDisk(f"bus: {disk.bus} disks cannot be plugged into a running guest", field="bus", value=disk.bus)
    prefix = PREFIXES[disk.bus]
    used = sum(name.startswith(prefix) for name in taken)
    limit = _MOST.get(disk.bus)
    if limit is not None and used >= limit:
        raise LimitExceeded(f"the guest has {used} of {limit} {disk.bus} disks", what=disk.bus, limit=limit, used=used)
    if disk.target is not None:
        if disk.target in taken:
            raise InvalidDisk(f"target: {disk.target} is in use in the guest", field="target", value=disk.target)
        return disk.target
    return next(name for name in _names(prefix) if name not in taken)


def pick_unit(disk: Disk, taken: Collection[int]) -> int | None:
    """The SCSI unit for *disk* where *taken* are in use: the one asked for, or the lowest free one. None off SCSI.

    Chosen here, because libvirt gives a controller seven units and then wants another controller.

    Raises:
        InvalidDisk: The unit asked for is taken.
        LimitExceeded: The controller is full.
    """
    if disk.bus is not DiskBus.SCSI:
        return None
    if disk.unit is not None:
        if disk.unit in taken:
            raise InvalidDisk(f"unit: {disk.unit} is in use in the guest", field="unit", value=disk.unit)
        return disk.unit
    limit = _MOST[DiskBus.SCSI]
    free = next((unit for unit in range(limit) if unit not in taken), None)
    if free is None:
        raise LimitExceeded(f"the SCSI controller has {limit} of {limit} units in use", what="scsi units", limit=limit)
    return free


def _names(prefix: str) -> Iterator[str]:
    for length in (1, 2, 3):
        suffixes = [""]
        for _ in range(length):
            suffixes = [known + letter for known in suffixes for letter in string.ascii_lowercase]
        yield from (prefix + suffix for suffix in suffixes)
