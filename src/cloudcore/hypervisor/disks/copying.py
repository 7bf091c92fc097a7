"""Another place for a disk under a running guest, out of primitives: the same for every hypervisor.

The guest's definitions say where it has its disk. So every call looks there first; a repeat, after a crash or beside
another caller, finds what was done. A copy ends with the guest: that one comes up where its persistent definition says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid
from cloudcore.disks import CopyPhase, Disk, DiskCopy
from cloudcore.errors import CloudcoreError, Conflict, DeviceNotFound, GuestNotFound
from cloudcore.hypervisor.disks.guests import CopyDriver, Scope
from cloudcore.hypervisor.disks.xml import alias_of, check_disk, same_bytes
from cloudcore.hypervisor.timeouts import time_limit

if TYPE_CHECKING:
    from cloudcore.hypervisor.disks.guests import GuestView
    from cloudcore.hypervisor.disks.xml import DiskEntry
    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["CopyOperations"]


class CopyOperations:
    """The methods of :class:`~cloudcore.disks.DiskCopier` over a :class:`CopyDriver`. May be shared by threads."""

    def __init__(self, driver: CopyDriver, timeouts: Timeouts) -> None:
        self._driver = driver
        self._timeouts = timeouts

    def begin(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :meth:`cloudcore.disks.DiskCopier.copy_disk`."""
        check_disk(disk)
        with time_limit(self._timeouts.whole):
            volume_id = normalise_uuid(volume_id, "volume_id")
            view, found = self._look(instance_id, volume_id, disk)
            live = view.find(volume_id, Scope.LIVE)
            if found.phase is not CopyPhase.NONE:
                return found
            if live is None:
                raise Conflict(
                    f"guest {view.instance_id} does not run: nothing was copied", identifier=view.instance_id
                )
            if live.copying is not None and not same_bytes(live.copying.source, disk.source):
                raise Conflict(
                    f"volume {volume_id} of guest {view.instance_id} is copied elsewhere", identifier=volume_id
                )
            self._driver.begin_copy(view.instance_id, live, disk)
            failpoint("hypervisor.copy.begun")
            return self._look(instance_id, volume_id, disk)[1]

    def state(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :meth:`cloudcore.disks.DiskCopier.disk_copy`."""
        with time_limit(self._timeouts.whole):
            return self._look(instance_id, normalise_uuid(volume_id, "volume_id"), disk)[1]

    def pivot(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.pivot_disk`."""
        with time_limit(self._timeouts.whole):
            volume_id = normalise_uuid(volume_id, "volume_id")
            view, found = self._look(instance_id, volume_id, disk)
            live = view.find(volume_id, Scope.LIVE)
            if found.phase not in {CopyPhase.READY, CopyPhase.DONE}:
                raise Conflict(f"volume {volume_id} of guest {view.instance_id} is not copied", identifier=volume_id)
            if live is not None and not _at(live, disk):
                if live.disk is not None and live.alias not in {None, alias_of(volume_id)}:  # it was renamed before
                    moved = attrs.evolve(live.disk, source=disk.source)
                    self._driver.rename(view.instance_id, live, moved)
                self._driver.end_copy(view.instance_id, live, pivot=True)
                failpoint("hypervisor.copy.pivoted")
            self._redefine(self._view(instance_id), volume_id, disk)

    def abort(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.abort_disk_copy`."""
        with time_limit(self._timeouts.whole):
            volume_id = normalise_uuid(volume_id, "volume_id")
            try:
                view, found = self._look(instance_id, volume_id, disk)
            except (DeviceNotFound, GuestNotFound):
                return
            live = view.find(volume_id, Scope.LIVE)
            if live is None or found.phase not in {CopyPhase.COPYING, CopyPhase.READY}:
                return  # what else is done with the disk is somebody else's
            try:
                self._driver.end_copy(view.instance_id, live, pivot=False)
            except CloudcoreError:
                if self._driver.copied(view.instance_id, live) is not None:
                    raise  # else it had ended by itself

    def rename(self, instance_id: str, volume_id: str, new_volume_id: str) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.rename_disk`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        new_volume_id = normalise_uuid(new_volume_id, "new_volume_id")
        with time_limit(self._timeouts.whole):
            view, named = self._view(instance_id), False
            for scope in (Scope.PERSISTENT, Scope.LIVE):
                entry = view.find(volume_id, scope)
                named |= view.find(new_volume_id, scope) is not None
                if entry is not None and entry.disk is not None:
                    disk = attrs.evolve(entry.disk, volume_id=new_volume_id)
                    give = self._driver.redefine if scope is Scope.PERSISTENT else self._driver.rename
                    give(view.instance_id, entry, disk)
                    named = True
            if not named:
                raise DeviceNotFound(f"guest {view.instance_id} has no volume {volume_id}", identifier=volume_id)

    def _view(self, instance_id: str) -> GuestView:
        identifier = normalise_uuid(instance_id, "instance_id")
        view = self._driver.view(identifier)
        if view is None:
            raise GuestNotFound(f"no guest {identifier} on this host", identifier=identifier)
        return view

    def _look(self, instance_id: str, volume_id: str, disk: Disk) -> tuple[GuestView, DiskCopy]:
        """How far the copy is, and the guest as it was then.

        The job is asked for before the definitions are read that count: that question waits for what the hypervisor is
        still doing with the disk, a pivot that nobody waits for any more among it, and "no job" is also the answer
        after that. Read before, the definitions would be those from before the pivot.
        """
        view = self._view(instance_id)
        live = view.find(volume_id, Scope.LIVE)
        told = None
        if live is not None and not _at(live, disk):
            told = self._driver.copied(view.instance_id, live)
            view = self._view(instance_id)
            live = view.find(volume_id, Scope.LIVE)
        present = [entry for entry in (live, view.find(volume_id, Scope.PERSISTENT)) if entry is not None]
        if not present:
            raise DeviceNotFound(f"guest {view.instance_id} has no volume {volume_id}", identifier=volume_id)
        if _at(present[0], disk):  # the running guest's word counts, if it runs
            return view, DiskCopy(phase=CopyPhase.DONE)
        if told is None or live is None or live.copying is None or not same_bytes(live.copying.source, disk.source):
            return view, DiskCopy(phase=CopyPhase.NONE)
        done, total, ready = told
        return view, DiskCopy(phase=CopyPhase.READY if ready else CopyPhase.COPYING, done=done, total=total)

    def _redefine(self, view: GuestView, volume_id: str, disk: Disk) -> None:
        """The persistent definition, if the hypervisor has not seen to it itself."""
        entry = view.find(volume_id, Scope.PERSISTENT)
        if entry is not None and entry.disk is not None and not _at(entry, disk):
            wanted = attrs.evolve(entry.disk, source=disk.source)
            self._driver.redefine(view.instance_id, entry, wanted)


def _at(entry: DiskEntry, disk: Disk) -> bool:
    return entry.disk is not None and same_bytes(entry.disk.source, disk.source)
