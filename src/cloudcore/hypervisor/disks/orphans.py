"""Disks that the guest has and its live definition has lost: found by asking the hypervisor itself, and removed.

Nothing that libvirt does to a guest leaves this state behind, except dying at a bad moment (see :mod:`.monitor`). The
definition cannot be made to know the device again, so what is left is to take it out, as a detach does: the guest is
asked, then the image is closed. It is safe because nobody else can own it: libvirt itself refuses the name to others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cloudcore.errors import CloudcoreError, DeviceNotFound, GuestBusy, GuestNotFound, OrphanedDevice, Transient
from cloudcore.hypervisor.disks.guests import GuestState, UnplugRunning
from cloudcore.hypervisor.disks.monitor import Orphans, orphans
from cloudcore.hypervisor.disks.xml import alias_of
from cloudcore.hypervisor.timeouts import time_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import DiskSource
    from cloudcore.hypervisor.disks.guests import GuestDriver, GuestView
    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["OrphanRepair"]

_LOOK_AGAIN = 0.1  # seconds
_ASK_AGAIN = 2.0
_EVENT = 0.3  # for libvirt to hear that the device is gone: it would take the news for that of a new one of the name


class OrphanRepair:
    """Looks for orphaned disks and takes them out. May be shared by threads."""

    def __init__(self, driver: GuestDriver, timeouts: Timeouts, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._driver = driver
        self._timeouts = timeouts
        self._sleep = sleep

    def look(self, instance_id: str) -> Orphans:
        """The orphans of a guest. Of a hypervisor that cannot be asked, and of a guest that is off, none.

        Asked twice, with the definition read in between: a device that is just being plugged or unplugged is not both
        times there without the definition knowing it. The question also waits for what is being done to the guest.
        Where the guest lets an orphan go in between, its images count as orphans only in the second answer, which then
        is the first of two: else they would be open still, and nobody would close them.
        """
        found = self._once(instance_id)
        if not found:
            return found
        again = self._once(instance_id)
        while found.devices - again.devices:
            found, again = again, self._once(instance_id)
        return found.both(again)

    def _once(self, instance_id: str) -> Orphans:
        has = self._driver.settle(instance_id)
        view = self._driver.view(instance_id)
        if has is None or view is None or view.live is None:
            return Orphans()
        return orphans(has, view.live)

    def remove(self, view: GuestView, volume_id: str, source: DiskSource | None) -> bool:
        """Have the guest let the orphaned disk of *volume_id* go; True when nothing of it is left.

        Images that no device reads are closed with it, whosever they are: they can only be in the way. Where nobody
        knows the *source*, each of them may be the volume's, so all have to be closed.

        Raises:
            OrphanedDevice: It cannot be taken out; only a restart of the guest ends it.
        """
        instance_id, alias = view.instance_id, alias_of(volume_id)
        limit = self._timeouts.paused if view.state is GuestState.PAUSED else self._timeouts.detach
        asked_at = None
        started = time.monotonic()
        while True:
            found = self.look(instance_id)
            waited = time.monotonic() - started
            just_asked = False  # then it is looked at once more, however long the first look took
            if alias in found.devices:
                if asked_at is None or time.monotonic() - asked_at > _ASK_AGAIN:
                    self._ask(instance_id, volume_id)
                    asked_at, just_asked = time.monotonic(), True
            else:
                closed, ours = self._close(instance_id, found), found.of(volume_id, source)
                if not ours and (closed or source is not None):
                    if asked_at is not None:
                        self._sleep(_EVENT)
                    return True
                if not closed and waited > self._timeouts.paused:
                    raise self._in_use(instance_id, volume_id, found, ours=ours)
            if (waited > limit and not just_asked) or time_left() <= _LOOK_AGAIN:
                return False
            self._sleep(_LOOK_AGAIN)

    def _ask(self, instance_id: str, volume_id: str) -> None:
        try:
            self._driver.release(instance_id, device=alias_of(volume_id))
        except (UnplugRunning, GuestBusy, DeviceNotFound, GuestNotFound):
            pass  # asked before, or gone meanwhile: the next look tells
        except Transient:
            raise
        except CloudcoreError as error:
            raise self._stuck(instance_id, volume_id, str(error)) from error

    def _close(self, instance_id: str, found: Orphans) -> bool:
        """Close what no device reads; False when something of it is in use."""
        try:
            return not found.nodes or self._driver.release(instance_id, nodes=tuple(node.name for node in found.nodes))
        except (GuestNotFound, DeviceNotFound):
            return True
        except Transient:
            raise
        except CloudcoreError:
            return False

    def _in_use(self, instance_id: str, volume_id: str, found: Orphans, *, ours: bool) -> OrphanedDevice:
        if ours:
            return self._stuck(instance_id, volume_id, "its image is in use")
        files = ", ".join(sorted({node.file for node in found.nodes}))
        return OrphanedDevice(
            f"guest {instance_id} has no disk of volume {volume_id} any more, but its hypervisor keeps images in use "
            f"that are of no disk ({files}), and nobody knows whether one is the volume's; restart the guest, then "
            f"detach again",
            identifier=volume_id,
        )

    @staticmethod
    def _stuck(instance_id: str, volume_id: str, why: str) -> OrphanedDevice:
        return OrphanedDevice(
            f"the hypervisor has lost track of volume {volume_id}, which guest {instance_id} still has, and cannot "
            f"take it out ({why}); restart the guest, then detach again",
            identifier=volume_id,
        )
