"""Attaching and detaching, out of primitives: the same for every hypervisor.

Rules, each with its reason:

1. Persistent before live, both ways. Attaching, the persistent definition reserves the device name against another
   thread. Detaching, it is certain at once, so that a guest that restarts meanwhile comes up without the disk.
2. Each definition is asked for by itself: libvirt's "both at once" does nothing when only one of them has the disk.
3. Gone is what the definition does not have, read again after the hypervisor has settled: libvirt takes a disk out of
   the live definition before it has QEMU close it. Return values and events are hints.
4. A disk that only the live definition of a guest with two has is one that is being let go, since rule 1 makes it so.
   Attaching it again is refused until that has ended; asking for the detach again goes on with it, also after a restart
   of ours.
5. A running guest that may have been asked is given time before it is asked again, and then it is asked through QEMU's
   monitor. A request of libvirt's own that meets a guest which is just letting go makes libvirt (9.0 at least) take "no
   such device" for the end of it: it asks QEMU to close the image too early, is told that it is in use, and never asks
   again, so that the image stays open until the guest stops; or it reads what it has freed and dies. That a guest was
   asked is known by rule 4; of a transient guest, by a mark in its definition.
6. When the guest refuses for good, the persistent definition gets the disk back, lest it be missing at the next start:
   what is put back is what was taken out, to the byte, since others may have put things there that we know nothing of.
7. A guest that is still taking in an earlier change refuses for a moment, not for good: it is asked again.
8. The hypervisor itself has the last word. A daemon that died at a bad moment has lost disks that the guest has: these
   are taken out past the definition (:mod:`.orphans`).
9. A guest may start or stop at any moment, and late news of an orphan take a disk of its name out of the definition:
   what a definition lacks after it was plugged is plugged again, a few times.
10. No lock is held; two callers at once get what one after the other would have got. An operation as a whole has a
    deadline, which is no later than that of its longest part (:class:`~cloudcore.hypervisor.Timeouts`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import attrs
import tenacity

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_integer
from cloudcore.disks import DetachOutcome, Disk, DiskState
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    DeviceNotFound,
    GuestBusy,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InvariantViolated,
    OrphanedDevice,
    Transient,
)
from cloudcore.hypervisor.disks.detaching import Detacher, Request
from cloudcore.hypervisor.disks.guests import GuestDriver, GuestState, GuestView, Scope, TargetTaken
from cloudcore.hypervisor.disks.orphans import OrphanRepair
from cloudcore.hypervisor.disks.places import pick_target, pick_unit
from cloudcore.hypervisor.disks.xml import check_disk, differences, effective, volume_of
from cloudcore.hypervisor.timeouts import time_left, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["DiskOperations"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_PAUSES = tenacity.wait_exponential(multiplier=0.05, max=1)
_LOST_AGAIN = 3  # times that a disk is plugged again which a definition lacks that was to have it
_BUSY_AGAIN = 0.5  # seconds after which a guest that is busy is given the disk again


class DiskOperations:
    """The methods of :class:`~cloudcore.disks.GuestDisks` over a :class:`GuestDriver`. May be shared by threads."""

    def __init__(self, driver: GuestDriver, timeouts: Timeouts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._driver = driver
        self._timeouts = timeouts
        self._clock = clock
        self._orphans = OrphanRepair(driver, timeouts)
        self._detacher = Detacher(driver, timeouts, self._orphans, clock=clock)

    # --- attach ------------------------------------------------------------------------------------------------------

    def attach(self, instance_id: str, disk: Disk) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.attach_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        check_disk(disk)
        return self._patiently(self._attach_once, instance_id, effective(disk), disk)

    def require_place(self, instance_id: str, disk: Disk) -> None:
        """Raise what :meth:`attach` would, of a guest that is not there or has no place for *disk*; nothing is done."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        check_disk(disk)
        self._patiently(lambda: self._placed(self._view(instance_id), effective(disk), disk))

    def _attach_once(self, instance_id: str, wanted: Disk, asked: Disk) -> DiskState:
        placed, lost = wanted, 0
        for _ in range(16):  # each time round, somebody else took the name or plugged this very disk a moment ago
            view = self._view(instance_id)
            self._refuse_other(view, asked)
            if view.lets_go(wanted.volume_id):
                raise Conflict(
                    f"volume {wanted.volume_id} is being detached from guest {instance_id}: finish that first",
                    identifier=wanted.volume_id,
                )
            placed = self._placed(view, wanted, asked)
            try:
                self._plug_where_missing(view, placed)
            except TargetTaken:
                continue
            view = self._view(instance_id)
            if lost < _LOST_AGAIN and view.lacks(wanted.volume_id):
                lost += 1
                continue
            return self._confirmed(view, asked)
        raise HypervisorError(
            f"guest {instance_id}: {placed.target} was free, and taken when it was to be used, 16 times"
        )

    @staticmethod
    def _placed(view: GuestView, wanted: Disk, asked: Disk) -> Disk:
        """*wanted* where the guest has it already, or else where there is room for it."""
        volume_id = wanted.volume_id
        present = view.find(volume_id, Scope.LIVE) or view.find(volume_id, Scope.PERSISTENT)
        if present is not None:
            return attrs.evolve(wanted, target=present.target, unit=present.disk.unit if present.disk else None)
        target = pick_target(asked, view.targets, running=view.state is not GuestState.OFF)
        return attrs.evolve(wanted, target=target, unit=pick_unit(asked, view.units))

    def _view(self, instance_id: str) -> GuestView:
        view = self._driver.view(instance_id)
        if view is None:
            raise GuestNotFound(f"no guest {instance_id} on this host", identifier=instance_id)
        return view

    @staticmethod
    def _refuse_other(view: GuestView, asked: Disk) -> None:
        """The volume may be there already, but then as the disk that is asked for."""
        volume_id = normalise_uuid(asked.volume_id, "volume_id")
        for scope in Scope:
            entry = view.find(volume_id, scope)
            told = differences(asked, entry.disk) if entry and entry.disk else ()
            if told:
                raise Conflict(
                    f"guest {view.instance_id} has volume {volume_id} ({scope}) in another way: {'; '.join(told)}",
                    identifier=volume_id,
                )

    def _plug_where_missing(self, view: GuestView, disk: Disk) -> None:
        instance_id, added = view.instance_id, False
        if view.persistent is not None and view.find(disk.volume_id, Scope.PERSISTENT) is None:
            self._driver.plug(instance_id, disk, Scope.PERSISTENT)
            added = True
        failpoint("hypervisor.attach.after_persistent")
        if view.live is None or view.find(disk.volume_id, Scope.LIVE) is not None:
            return
        try:
            if view.find_removed(disk.volume_id) is not None:  # of an earlier detach, which has ended: see lets_go()
                self._driver.forget(instance_id, disk.volume_id)
            self._plug_live(view, attrs.evolve(disk, boot_order=None))  # it has booted already
        except (CloudcoreError, TargetTaken) as error:
            if isinstance(error, Transient) and not isinstance(error, GuestBusy):
                raise  # nobody knows whether the guest has it: the reservation stays, and a repeat finds out
            if self._stopped(instance_id):
                return  # its next start needs what its definition has now
            if added:
                self._take_back(instance_id, disk.volume_id, error)
            raise
        failpoint("hypervisor.attach.after_live")

    def _plug_live(self, view: GuestView, disk: Disk) -> None:
        """Into the running guest: again while it is busy, and once more when an orphan was in the way."""
        deadline = self._clock() + (self._timeouts.paused if view.state is GuestState.PAUSED else self._timeouts.detach)
        repaired = False
        while True:
            try:
                return self._driver.plug(view.instance_id, disk, Scope.LIVE)
            except GuestBusy:
                if min(deadline - self._clock(), time_left()) <= _BUSY_AGAIN:
                    raise
                time.sleep(_BUSY_AGAIN)
            except Transient:
                raise
            except (CloudcoreError, TargetTaken) as error:
                if repaired or not self._clear_the_way(view, disk, error):
                    raise
                repaired = True

    def _clear_the_way(self, view: GuestView, disk: Disk, error: Exception) -> bool:
        """Take out what the hypervisor has of this volume and the definition has lost; False when there is none.

        Raises:
            OrphanedDevice: There is, and it stays; or one of another volume has the place.
        """
        found = self._orphans.look(view.instance_id)
        if found.nodes or found.of(disk.volume_id, disk.source):
            if self._orphans.remove(view, disk.volume_id, disk.source):
                return True
        elif not found or type(error) is not HypervisorError:
            return False
        named = ", ".join(sorted(map(volume_of, found.devices))) or disk.volume_id
        raise OrphanedDevice(
            f"guest {view.instance_id} still has devices that the hypervisor has lost track of (volumes {named}), and "
            f"cannot get volume {disk.volume_id}: detach those volumes, or restart the guest",
            identifier=disk.volume_id,
        ) from error

    def _stopped(self, instance_id: str) -> bool:
        """Whether the guest does not run any more."""
        with contextlib.suppress(CloudcoreError):
            view = self._driver.view(instance_id)
            return view is None or view.live is None
        return False

    def _take_back(self, instance_id: str, volume_id: str, error: Exception) -> None:
        """Undo the persistent half of an attach whose live half was refused."""
        try:
            view = self._driver.view(instance_id)
            entry = view.find(volume_id, Scope.PERSISTENT) if view else None
            if view is not None and entry is not None and view.find(volume_id, Scope.LIVE) is None:
                self._driver.unplug(instance_id, entry, Scope.PERSISTENT)
        except CloudcoreError as second:
            error.add_note(f"the persistent definition still has volume {volume_id}: {second}")

    def _confirmed(self, view: GuestView, asked: Disk) -> DiskState:
        """What is there now; only that counts."""
        state = view.state_of(normalise_uuid(asked.volume_id, "volume_id"))
        self._refuse_other(view, asked)
        if view.lacks(state.volume_id):
            raise HypervisorError(
                f"volume {state.volume_id} was plugged into guest {view.instance_id}, but is not in its definition: "
                f"live {state.live is not None}, persistent {state.persistent is not None}"
            )
        return state

    # --- detach ------------------------------------------------------------------------------------------------------

    def detach(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :meth:`cloudcore.disks.GuestDisks.detach_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        return self._patiently(self._detacher.detach, instance_id, volume_id, Request())

    # --- look, resize ------------------------------------------------------------------------------------------------

    def state(self, instance_id: str, volume_id: str) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.disk_state`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        with time_limit(self._timeouts.whole):
            return self._state(instance_id, volume_id)

    def _state(self, instance_id: str, volume_id: str) -> DiskState:
        view, orphaned = self._driver.view(instance_id), False
        if view is not None and view.live is not None and view.find(volume_id, Scope.LIVE) is None:
            known = view.find(volume_id, Scope.PERSISTENT) or view.find_removed(volume_id)
            found = self._orphans.look(instance_id)  # waits, too: QEMU may still be closing it, or opening it
            orphaned = found.of(volume_id, known.disk.source if known and known.disk else None)
            view = self._driver.view(instance_id)
        state = view.state_of(volume_id) if view else DiskState(instance_id=instance_id, volume_id=volume_id)
        if orphaned and state.live is None:
            return attrs.evolve(state, orphaned=True, half=True)
        return state

    def states(self) -> tuple[DiskState, ...]:
        """See :meth:`cloudcore.disks.GuestDisks.disk_states`."""
        with time_limit(self._timeouts.facts):
            views = sorted(self._driver.views(), key=lambda view: view.instance_id)
        return tuple(view.state_of(volume_id) for view in views for volume_id in view.volumes)

    def orphaned(self) -> tuple[DiskState, ...]:
        """See :meth:`cloudcore.disks.OrphanFinder.orphaned_disks`."""
        with time_limit(self._timeouts.facts):
            views = sorted(self._driver.views(), key=lambda view: view.instance_id)
            return tuple(
                attrs.evolve(view.state_of(volume_id), live=None, orphaned=True, half=True)
                for view in views
                if view.live is not None
                for volume_id in sorted(map(volume_of, self._orphans.look(view.instance_id).devices))
            )

    def resize(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :meth:`cloudcore.disks.GuestDisks.resize_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        require_integer(size, "size", minimum=1, maximum=2**63 - 1)
        with time_limit(self._timeouts.whole):
            self._resize(instance_id, volume_id, size)

    def _resize(self, instance_id: str, volume_id: str, size: int) -> None:
        view = self._view(instance_id)
        entry = view.find(volume_id, Scope.LIVE)
        if entry is not None:
            self._driver.resize(instance_id, entry, size)
        elif view.live is not None or view.find(volume_id, Scope.PERSISTENT) is None:
            raise DeviceNotFound(f"guest {instance_id} has no volume {volume_id}", identifier=volume_id)

    def check(self) -> None:
        """Raise InvariantViolated if a guest has a volume or a device name twice, or has one volume in two ways."""
        findings: list[str] = []
        for view in self._driver.views():
            for scope, entries in (("live", view.live or ()), ("persistent", view.persistent or ())):
                targets = [f"target {one.target}" for one in entries]
                volumes = [f"volume {one.disk.volume_id}" for one in entries if one.disk is not None]
                for name, count in sorted(Counter(targets + volumes).items()):
                    if count > 1:
                        findings.append(f"guest {view.instance_id}: {name} twice in the {scope} definition")
            findings += _disagreements(view) + self._orphaned(view)
        if findings:
            raise InvariantViolated("; ".join(findings), findings=tuple(findings))

    def _orphaned(self, view: GuestView) -> list[str]:
        if view.live is None:
            return []
        found = self._orphans.look(view.instance_id)
        text = f"guest {view.instance_id}: the hypervisor has lost track of"
        return [
            *(f"{text} volume {volume_of(alias)}, detach it or restart the guest" for alias in found.devices),
            *(f"{text} {node.name} ({node.file}), restart the guest" for node in found.nodes),
        ]

    # --- patience ----------------------------------------------------------------------------------------------------

    def _patiently(self, operation: Callable[..., T], *arguments: object) -> T:
        """Repeat an operation whose connection was lost: each reads first what is there, so nothing happens twice."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(3),
            wait=lambda state: min(_PAUSES(state), time_left()),
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, HypervisorUnavailable) and time_left() > 0
            ),
            before_sleep=tenacity.before_sleep_log(_log, logging.INFO),
            reraise=True,
        )
        with time_limit(self._timeouts.whole):
            return retrying(operation, *arguments)


def _disagreements(view: GuestView) -> list[str]:
    told = []
    for volume_id in view.volumes:
        state = view.state_of(volume_id)
        if state.live is not None and state.persistent is not None:
            found = differences(state.live, state.persistent)
            told += [
                f"guest {view.instance_id}: volume {volume_id}: live and persistent differ: {one}" for one in found
            ]
    return told
