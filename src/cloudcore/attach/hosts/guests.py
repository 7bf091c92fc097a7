"""Guests that exist only in memory: the hypervisor of an attachment manager that was given none."""

from __future__ import annotations

import threading
from operator import attrgetter
from typing import TYPE_CHECKING

import attrs

from cloudcore._forks import at_rest_when_forked
from cloudcore.disks import CopyPhase, DetachOutcome, DiskCopy, DiskState
from cloudcore.errors import Conflict, DeviceNotFound

if TYPE_CHECKING:
    from cloudcore.disks import Disk

__all__ = ["MemoryGuests"]


class MemoryGuests:
    """Fulfils :class:`~cloudcore.disks.GuestDisks` with a dictionary: any instance id is a running guest.

    For rehearsals and notebooks; the hypervisor adapters know more. May be shared between threads; a forked child has
    a copy.
    """

    def __init__(self, host: str = "localhost") -> None:
        self._host = host
        self._disks: dict[tuple[str, str], Disk] = {}
        self._copies: dict[tuple[str, str], Disk] = {}
        self._unlock()
        at_rest_when_forked(self, attrgetter("_mutex"), MemoryGuests._unlock)

    def _unlock(self) -> None:
        self._mutex = threading.RLock()

    @property
    def host(self) -> str:
        """Name of the host."""
        return self._host

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._mutex:
            found = self._disks.setdefault((instance_id, disk.volume_id), disk)
        if found != disk:
            raise Conflict(f"guest {instance_id} has volume {disk.volume_id} otherwise", identifier=disk.volume_id)
        return self.disk_state(instance_id, disk.volume_id)

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :class:`~cloudcore.disks.GuestDisks`; the guest lets go at once."""
        with self._mutex:
            self._disks.pop((instance_id, volume_id), None)
        return DetachOutcome.DETACHED

    def disk_state(self, instance_id: str, volume_id: str) -> DiskState:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._mutex:
            disk = self._disks.get((instance_id, volume_id))
        return DiskState(instance_id=instance_id, volume_id=volume_id, live=disk, persistent=disk)

    def disk_states(self) -> tuple[DiskState, ...]:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._mutex:
            disks = dict(self._disks)
        return tuple(
            DiskState(instance_id=instance_id, volume_id=volume_id, live=disk, persistent=disk)
            for (instance_id, volume_id), disk in sorted(disks.items())
        )

    def freeze(self, instance_id: str) -> None:
        """See :class:`~cloudcore.disks.GuestFreezer`; there is nothing to write out."""

    def thaw(self, instance_id: str) -> None:
        """See :class:`~cloudcore.disks.GuestFreezer`."""

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :class:`~cloudcore.disks.GuestDisks`; there is nothing to resize."""
        with self._mutex:
            if (instance_id, volume_id) not in self._disks:
                raise DeviceNotFound(f"guest {instance_id} has no volume {volume_id}", identifier=volume_id)

    # --- copies -------------------------------------------------------------------------------------------------------

    def copy_disk(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :class:`~cloudcore.disks.DiskCopier`; there are no bytes, so it is ready at once."""
        with self._mutex:
            found = self._require(instance_id, volume_id)
            other = self._copies.setdefault((instance_id, volume_id), disk)
            if found.source != disk.source and other.source != disk.source:
                raise Conflict(f"volume {volume_id} of guest {instance_id} is copied elsewhere", identifier=volume_id)
        return self.disk_copy(instance_id, volume_id, disk)

    def disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :class:`~cloudcore.disks.DiskCopier`."""
        with self._mutex:
            if self._require(instance_id, volume_id).source == disk.source:
                return DiskCopy(phase=CopyPhase.DONE)
            copied = (instance_id, volume_id) in self._copies
        return DiskCopy(phase=CopyPhase.READY if copied else CopyPhase.NONE)

    def pivot_disk(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :class:`~cloudcore.disks.DiskCopier`."""
        with self._mutex:
            found = self._require(instance_id, volume_id)
            if self._copies.pop((instance_id, volume_id), None) is None and found.source != disk.source:
                raise Conflict(f"volume {volume_id} of guest {instance_id} is not copied", identifier=volume_id)
            self._disks[instance_id, volume_id] = attrs.evolve(found, source=disk.source)

    def abort_disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :class:`~cloudcore.disks.DiskCopier`."""
        with self._mutex:
            copied = self._copies.get((instance_id, volume_id))
            if copied is not None and copied.source == disk.source:
                del self._copies[instance_id, volume_id]

    def rename_disk(self, instance_id: str, volume_id: str, new_volume_id: str) -> None:
        """See :class:`~cloudcore.disks.DiskCopier`."""
        with self._mutex:
            if (instance_id, new_volume_id) in self._disks:
                return
            found = self._require(instance_id, volume_id)
            del self._disks[instance_id, volume_id]
            self._disks[instance_id, new_volume_id] = attrs.evolve(found, volume_id=new_volume_id)

    def _require(self, instance_id: str, volume_id: str) -> Disk:
        found = self._disks.get((instance_id, volume_id))
        if found is None:
            raise DeviceNotFound(f"guest {instance_id} has no volume {volume_id}", identifier=volume_id)
        return found
