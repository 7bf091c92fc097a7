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
5. A running guest that may have been asked is given time before it is asked again. A request that meets a guest which
   is just letting go makes libvirt (9.0 at least) take "no such device" for the end of it: it asks QEMU to close the
   image too early, is told that it is in use, and never asks again, so that the image stays open until the guest stops.
   That it was asked is known by rule 4; of a transient guest, only within one call.
6. When the guest refuses for good, the persistent definition gets the disk back, lest it be missing at the next start.
7. No lock is held; two callers at once get what one after the other would have got.
"""

from __future__ import annotations

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
    DeadlineExceeded,
    DetachFailed,
    DeviceNotFound,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InvariantViolated,
    Transient,
)
from cloudcore.hypervisor.disks.guests import (
    GuestDriver,
    GuestState,
    GuestView,
    Hint,
    Scope,
    TargetTaken,
    UnplugRunning,
    Waiter,
)
from cloudcore.hypervisor.disks.xml import DiskEntry, alias_of, check_disk, differences, effective, pick_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["DiskOperations"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0  # seconds between looks at a guest that was asked to let go
_ASK_AGAIN = 5.0  # seconds after which the guest is asked once more, if that is not too long a part of its deadline


@attrs.define
class _Request:
    """To let a disk go: whether the guest may have got it, from this call or from another."""

    sent: bool = False


class DiskOperations:
    """The methods of :class:`~cloudcore.disks.GuestDisks` over a :class:`GuestDriver`. May be shared by threads."""

    def __init__(self, driver: GuestDriver, timeouts: Timeouts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._driver = driver
        self._timeouts = timeouts
        self._clock = clock

    # --- attach ------------------------------------------------------------------------------------------------------

    def attach(self, instance_id: str, disk: Disk) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.attach_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        check_disk(disk)
        return self._patiently(self._attach_once, instance_id, effective(disk), disk)

    def _attach_once(self, instance_id: str, wanted: Disk, asked: Disk) -> DiskState:
        target = None
        for _ in range(16):  # each time round, somebody else took the name or plugged this very disk a moment ago
            view = self._view(instance_id)
            self._refuse_other(view, asked)
            live, persistent = (view.find(wanted.volume_id, scope) for scope in (Scope.LIVE, Scope.PERSISTENT))
            if view.lets_go(wanted.volume_id):
                raise Conflict(
                    f"volume {wanted.volume_id} is being detached from guest {instance_id}: finish that first",
                    identifier=wanted.volume_id,
                )
            present = live or persistent
            if present is not None:
                target = present.target
            else:
                target = pick_target(asked, view.targets, running=view.state is not GuestState.OFF)
            try:
                self._plug_where_missing(view, attrs.evolve(wanted, target=target))
            except TargetTaken:
                continue
            return self._confirmed(instance_id, asked)
        raise HypervisorError(f"guest {instance_id}: {target} was free, and taken when it was to be used, 16 times")

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
            self._driver.plug(instance_id, attrs.evolve(disk, boot_order=None), Scope.LIVE)  # it has booted already
        except Transient:
            raise  # nobody knows whether the guest has it: the reservation stays, and a repeat finds out
        except (CloudcoreError, TargetTaken) as error:
            if added:
                self._take_back(instance_id, disk.volume_id, error)
            raise
        failpoint("hypervisor.attach.after_live")

    def _take_back(self, instance_id: str, volume_id: str, error: Exception) -> None:
        """Undo the persistent half of an attach whose live half was refused."""
        try:
            view = self._driver.view(instance_id)
            entry = view.find(volume_id, Scope.PERSISTENT) if view else None
            if view is not None and entry is not None and view.find(volume_id, Scope.LIVE) is None:
                self._driver.unplug(instance_id, entry, Scope.PERSISTENT)
        except CloudcoreError as second:
            error.add_note(f"the persistent definition still has volume {volume_id}: {second}")

    def _confirmed(self, instance_id: str, asked: Disk) -> DiskState:
        """What is there now; only that counts."""
        view = self._view(instance_id)
        state = view.state_of(normalise_uuid(asked.volume_id, "volume_id"))
        self._refuse_other(view, asked)
        if (view.live is not None and state.live is None) or (view.persistent is not None and state.persistent is None):
            raise HypervisorError(
                f"volume {state.volume_id} was plugged into guest {instance_id}, but is not in its definition: "
                f"live {state.live is not None}, persistent {state.persistent is not None}"
            )
        return state

    # --- detach ------------------------------------------------------------------------------------------------------

    def detach(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :meth:`cloudcore.disks.GuestDisks.detach_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        return self._patiently(self._detach_once, instance_id, volume_id, _Request())

    def _detach_once(self, instance_id: str, volume_id: str, request: _Request) -> DetachOutcome:
        view = self._driver.view(instance_id)
        if view is None:
            return DetachOutcome.DETACHED
        entry = view.find(volume_id, Scope.LIVE)
        alias = entry.alias if entry and entry.alias else alias_of(volume_id)
        with Waiter(self._driver.waiters, (instance_id, alias)) as waiter:
            request.sent |= view.lets_go(volume_id) | self._unplug_persistent(view, volume_id)
            failpoint("hypervisor.detach.after_persistent")
            if entry is None:
                return self._gone(instance_id, volume_id)
            return self._let_go(view, volume_id, waiter, request)

    def _unplug_persistent(self, view: GuestView, volume_id: str) -> bool:
        """Take it out of the persistent definition; True if somebody else just did."""
        entry = view.find(volume_id, Scope.PERSISTENT)
        if entry is not None:
            try:
                self._driver.unplug(view.instance_id, entry, Scope.PERSISTENT)
            except (DeviceNotFound, GuestNotFound):
                return True
        return False

    def _gone(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """Gone from both definitions, as read again, and let go of by the hypervisor."""
        try:
            present = self.state(instance_id, volume_id).present
        except DeadlineExceeded:
            present = True  # it may be open still
        return DetachOutcome.PENDING if present else DetachOutcome.DETACHED

    def _let_go(self, view: GuestView, volume_id: str, waiter: Waiter, request: _Request) -> DetachOutcome:
        """Ask the guest and look, until the disk is out of its definition or the time is up."""
        patience = min(_ASK_AGAIN, self._timeouts.detach / 4)
        started = self._clock()
        wait_first = request.sent and view.state is GuestState.RUNNING  # a paused guest lets nothing go just now
        ask_at = started + patience if wait_first else started
        pause = _FIRST_LOOK
        while (left := started + self._limit(view) - self._clock()) > 0:
            entry = view.find(volume_id, Scope.LIVE)
            if entry is not None and self._clock() >= ask_at:
                request.sent = True
                if not self._ask(view, entry):
                    break
                ask_at = self._clock() + patience
                failpoint("hypervisor.detach.after_request")
            hint = waiter.wait(min(pause, left, ask_at - self._clock()))
            pause = min(pause * 2, _LAST_LOOK)
            found = self._driver.view(view.instance_id)
            if found is None or found.find(volume_id, Scope.LIVE) is None:
                return self._gone(view.instance_id, volume_id)
            if hint is Hint.REFUSED:
                self._give_up(found, volume_id, None)
            view = found
        return DetachOutcome.PENDING

    def _limit(self, view: GuestView) -> float:
        """How long to wait: a paused guest cannot answer before it is resumed."""
        return self._timeouts.paused if view.state is GuestState.PAUSED else self._timeouts.detach

    def _ask(self, view: GuestView, entry: DiskEntry) -> bool:
        """Send the request; False when nobody knows whether it arrived."""
        volume_id = entry.disk.volume_id if entry.disk else ""
        try:
            self._driver.unplug(view.instance_id, entry, Scope.LIVE)
        except (UnplugRunning, DeviceNotFound, GuestNotFound):
            pass  # asked before, or gone meanwhile: the next look tells
        except DeadlineExceeded:
            return False
        except Transient:
            raise
        except CloudcoreError as error:
            found = self._driver.view(view.instance_id)
            if found is not None and found.find(volume_id, Scope.LIVE) is not None:
                self._give_up(found, volume_id, error)
        return True

    def _give_up(self, view: GuestView, volume_id: str, cause: CloudcoreError | None) -> None:
        """The guest refuses for good: restore the persistent definition, then say so."""
        error = DetachFailed(
            f"guest {view.instance_id} refuses to let volume {volume_id} go" + (f": {cause}" if cause else ""),
            identifier=volume_id,
        )
        entry = view.find(volume_id, Scope.LIVE)
        if entry is not None and entry.disk is not None and view.persistent is not None:
            try:
                if view.find(volume_id, Scope.PERSISTENT) is None:
                    self._driver.plug(view.instance_id, entry.disk, Scope.PERSISTENT)
            except (CloudcoreError, TargetTaken) as second:
                error.add_note(f"the persistent definition did not get it back: {second}")
        raise error from cause

    # --- look, resize ------------------------------------------------------------------------------------------------

    def state(self, instance_id: str, volume_id: str) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.disk_state`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        view = self._driver.view(instance_id)
        if view is not None and view.live is not None and view.find(volume_id, Scope.LIVE) is None:
            self._driver.settle(instance_id)  # QEMU may still be closing it, or opening it
            view = self._driver.view(instance_id)
        return view.state_of(volume_id) if view else DiskState(instance_id=instance_id, volume_id=volume_id)

    def states(self) -> tuple[DiskState, ...]:
        """See :meth:`cloudcore.disks.GuestDisks.disk_states`."""
        views = sorted(self._driver.views(), key=lambda view: view.instance_id)
        return tuple(view.state_of(volume_id) for view in views for volume_id in view.volumes)

    def resize(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :meth:`cloudcore.disks.GuestDisks.resize_disk`."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        volume_id = normalise_uuid(volume_id, "volume_id")
        require_integer(size, "size", minimum=1, maximum=2**63 - 1)
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
            findings += _disagreements(view)
        if findings:
            raise InvariantViolated("; ".join(findings), findings=tuple(findings))

    # --- patience ----------------------------------------------------------------------------------------------------

    def _patiently(self, operation: Callable[..., T], *arguments: object) -> T:
        """Repeat an operation whose connection was lost: each reads first what is there, so nothing happens twice."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1),
            retry=tenacity.retry_if_exception_type(HypervisorUnavailable),
            before_sleep=tenacity.before_sleep_log(_log, logging.INFO),
            reraise=True,
        )
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
