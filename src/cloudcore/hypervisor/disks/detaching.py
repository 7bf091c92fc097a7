"""Having a guest let a disk go. The rules are those of :mod:`.operations`."""

from __future__ import annotations

import contextlib
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.disks import DetachOutcome, DiskSource
from cloudcore.errors import (
    CloudcoreError,
    DeadlineExceeded,
    DetachFailed,
    DeviceNotFound,
    GuestBusy,
    GuestNotFound,
    MissingExtra,
    Transient,
    UnsupportedFeature,
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
from cloudcore.hypervisor.disks.xml import DiskEntry, alias_of, same_bytes
from cloudcore.hypervisor.timeouts import time_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.hypervisor.disks.orphans import OrphanRepair
    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["Detacher", "Request"]

_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0  # seconds between looks at a guest that was asked to let go
_ASK_AGAIN = 5.0  # seconds after which the guest is asked once more, if that is not too long a part of its deadline
_BUSY_AGAIN = 1.0  # the same, of a guest that could not be asked


@attrs.define
class Request:
    """To let a disk go: *sent* when the guest may have got it, from this call or another; *source* of the disk."""

    sent: bool = False
    source: DiskSource | None = None


class _Answer(Enum):
    SENT = "sent"
    BUSY = "busy"  # not sent: the guest takes no request at this moment
    UNKNOWN = "unknown"  # whether it was sent


class Detacher:
    """One detach over a :class:`GuestDriver`. May be shared by threads."""

    def __init__(
        self, driver: GuestDriver, timeouts: Timeouts, orphans: OrphanRepair, *, clock: Callable[[], float]
    ) -> None:
        self._driver = driver
        self._timeouts = timeouts
        self._orphans = orphans
        self._clock = clock

    def detach(self, instance_id: str, volume_id: str, request: Request) -> DetachOutcome:
        """Have the guest let it go; *request* is kept over repetitions of the call."""
        view = self._driver.view(instance_id)
        if view is None:
            return DetachOutcome.DETACHED
        entry = view.find(volume_id, Scope.LIVE)
        known = entry or view.find(volume_id, Scope.PERSISTENT) or view.find_removed(volume_id)
        if known is not None and known.disk is not None:
            request.source = known.disk.source
        alias = entry.alias if entry and entry.alias else alias_of(volume_id)
        with Waiter(self._driver.waiters, (instance_id, alias)) as waiter:
            request.sent |= view.lets_go(volume_id) | self._unplug_persistent(view, volume_id)
            failpoint("hypervisor.detach.after_persistent")
            if entry is None:
                return self._gone(view, volume_id, request)
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

    def _gone(self, view: GuestView, volume_id: str, request: Request) -> DetachOutcome:
        """Gone from both definitions, as read again, and let go of by the hypervisor itself."""
        try:
            if not self._orphans.remove(view, volume_id, request.source):
                return DetachOutcome.PENDING
            left = self._driver.view(view.instance_id)
            if left is None:
                return DetachOutcome.DETACHED
            if left.find(volume_id, Scope.LIVE) or left.find(volume_id, Scope.PERSISTENT):
                return DetachOutcome.PENDING
            if left.find_removed(volume_id):
                self._driver.forget(view.instance_id, volume_id)
        except DeadlineExceeded:
            return DetachOutcome.PENDING  # it may be open still
        except GuestNotFound:
            pass
        return DetachOutcome.DETACHED

    def _let_go(self, view: GuestView, volume_id: str, waiter: Waiter, request: Request) -> DetachOutcome:
        """Ask the guest and look, until the disk is out of its definition or the time is up."""
        patience = min(_ASK_AGAIN, self._timeouts.detach / 4)
        started = self._clock()
        wait_first = request.sent and view.state is GuestState.RUNNING  # a paused guest lets nothing go just now
        ask_at = started + patience if wait_first else started
        pause = _FIRST_LOOK
        asked = False  # at least once in each call, however long the waiting before took
        while (left := started + self._limit(view) - self._clock()) > 0 or not asked:
            if time_left() <= 0:
                break
            entry = view.find(volume_id, Scope.LIVE)
            if entry is not None and (self._clock() >= ask_at or left <= 0):
                again, request.sent, asked = request.sent, True, True
                answer = self._ask(view, entry, again=again)
                if answer is _Answer.UNKNOWN:
                    break
                if answer is _Answer.BUSY:
                    request.sent = again
                ask_at = self._clock() + (min(_BUSY_AGAIN, patience) if answer is _Answer.BUSY else patience)
                failpoint("hypervisor.detach.after_request")
            hint = waiter.wait(max(min(pause, left, ask_at - self._clock(), time_left()), 0))
            pause = min(pause * 2, _LAST_LOOK)
            try:
                found = self._driver.view(view.instance_id)
            except DeadlineExceeded:
                if request.sent:
                    break
                raise
            if found is None or found.find(volume_id, Scope.LIVE) is None:
                return self._gone(view, volume_id, request)
            if hint is Hint.REFUSED:
                self._give_up(found, volume_id, None)
            view = found
        return DetachOutcome.PENDING

    def _limit(self, view: GuestView) -> float:
        """How long to wait: a paused guest cannot answer before it is resumed."""
        return self._timeouts.paused if view.state is GuestState.PAUSED else self._timeouts.detach

    def _ask(self, view: GuestView, entry: DiskEntry, *, again: bool) -> _Answer:
        """Send the request. A repeated one goes past the definition where that can be done: see rule 5."""
        volume_id = entry.disk.volume_id if entry.disk else ""
        try:
            if not again or entry.alias is None or not self._sent_past(view, entry.alias):
                self._driver.unplug(view.instance_id, entry, Scope.LIVE)
        except (UnplugRunning, DeviceNotFound, GuestNotFound):
            pass  # asked before, or gone meanwhile: the next look tells
        except GuestBusy:
            return _Answer.BUSY
        except DeadlineExceeded:
            return _Answer.UNKNOWN
        except Transient:
            raise
        except CloudcoreError as error:
            found = self._driver.view(view.instance_id)
            if found is not None and found.find(volume_id, Scope.LIVE) is not None:
                self._give_up(found, volume_id, error)
        return _Answer.SENT

    def _sent_past(self, view: GuestView, alias: str) -> bool:
        try:
            return self._driver.release(view.instance_id, device=alias)
        except (UnsupportedFeature, MissingExtra):
            return False

    def _give_up(self, view: GuestView, volume_id: str, cause: CloudcoreError | None) -> None:
        """The guest refuses for good: put back what was taken out of the persistent definition, then say so."""
        error = DetachFailed(
            f"guest {view.instance_id} refuses to let volume {volume_id} go" + (f": {cause}" if cause else ""),
            identifier=volume_id,
        )
        entry = self._taken_out(view, volume_id)
        if entry is not None:
            try:
                self._driver.plug(view.instance_id, entry, Scope.PERSISTENT)
            except (CloudcoreError, TargetTaken) as second:
                error.add_note(f"the persistent definition did not get it back: {second}")
                raise error from cause
        if view.find_removed(volume_id):
            with contextlib.suppress(CloudcoreError):
                self._driver.forget(view.instance_id, volume_id)
        raise error from cause

    @staticmethod
    def _taken_out(view: GuestView, volume_id: str) -> DiskEntry | None:
        """What the persistent definition must get back: what was kept when it was taken out, else what runs."""
        live, kept = view.find(volume_id, Scope.LIVE), view.find_removed(volume_id)
        if view.persistent is None or view.find(volume_id, Scope.PERSISTENT) is not None or live is None:
            return None
        ours = kept is not None and kept.disk and live.disk and same_bytes(kept.disk.source, live.disk.source)
        return kept if ours else live
