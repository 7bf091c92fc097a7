"""What the disk operations see of a guest, and the few primitives that they are made of."""

from __future__ import annotations

import threading
from collections import defaultdict
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Protocol, Self

import attrs

from cloudcore._forks import when_forked
from cloudcore.disks import DiskState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloudcore.disks import Disk
    from cloudcore.hypervisor.disks.monitor import OpenDisks
    from cloudcore.hypervisor.disks.xml import DiskEntry

__all__ = [
    "CopyDriver",
    "Device",
    "GuestDriver",
    "GuestState",
    "GuestView",
    "Hint",
    "Scope",
    "TargetTaken",
    "UnplugRunning",
    "Waiter",
    "Waiters",
]


class GuestState(StrEnum):
    """Whether a guest can do anything."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"


class Scope(StrEnum):
    """Which of the two definitions of a guest."""

    LIVE = "live"
    PERSISTENT = "persistent"


@attrs.frozen(kw_only=True)
class GuestView:
    """A guest as it was a moment ago. *live* is None when it is off, *persistent* when it is transient.

    *removed* are disks as they were in the persistent definition before a detach took them out, or in the live one of a
    transient guest when it was asked: kept until the guest has let them go. *passed_units* are the SCSI units of
    devices of the host, in either definition.
    """

    instance_id: str
    state: GuestState
    live: tuple[DiskEntry, ...] | None
    persistent: tuple[DiskEntry, ...] | None
    removed: tuple[DiskEntry, ...] = ()
    passed_units: frozenset[int] = frozenset()

    def find(self, volume_id: str, scope: Scope) -> DiskEntry | None:
        """The disk of *volume_id* in one definition."""
        return _of_volume(self.live if scope is Scope.LIVE else self.persistent, volume_id)

    def find_removed(self, volume_id: str) -> DiskEntry | None:
        """The disk of *volume_id* as it was in the persistent definition before a detach took it out."""
        return _of_volume(self.removed, volume_id)

    def lets_go(self, volume_id: str) -> bool:
        """Whether a detach of *volume_id* is under way: only the live one of two definitions has it.

        Of a transient guest, that it was asked before.
        """
        live, persistent = (self.find(volume_id, scope) for scope in (Scope.LIVE, Scope.PERSISTENT))
        if self.persistent is None:
            return live is not None and self.find_removed(volume_id) is not None
        return live is not None and persistent is None

    def lacks(self, volume_id: str) -> bool:
        """Whether one of the guest's definitions, or its only one, has no disk of *volume_id*."""
        return any(
            there is not None and self.find(volume_id, scope) is None
            for there, scope in ((self.live, Scope.LIVE), (self.persistent, Scope.PERSISTENT))
        )

    @property
    def targets(self) -> frozenset[str]:
        """Device names that are in use in either definition."""
        return frozenset(one.target for one in (*(self.live or ()), *(self.persistent or ())))

    @property
    def units(self) -> frozenset[int]:
        """Units of the first SCSI controller that are in use in either definition, by volumes and by anything else."""
        entries = (*(self.live or ()), *(self.persistent or ()))
        return self.passed_units | {one.unit for one in entries if one.unit is not None}

    @property
    def volumes(self) -> tuple[str, ...]:
        """Volume ids in either definition, sorted."""
        entries = (*(self.live or ()), *(self.persistent or ()))
        return tuple(sorted({one.disk.volume_id for one in entries if one.disk is not None}))

    def state_of(self, volume_id: str) -> DiskState:
        """The volume as users see it."""
        live, persistent = (self.find(volume_id, scope) for scope in (Scope.LIVE, Scope.PERSISTENT))
        return DiskState(
            instance_id=self.instance_id,
            volume_id=volume_id,
            live=live.disk if live else None,
            persistent=persistent.disk if persistent else None,
            half=(self.live is not None and self.persistent is not None and (live is None) != (persistent is None)),
        )


def _of_volume(entries: Iterable[DiskEntry] | None, volume_id: str) -> DiskEntry | None:
    return next((one for one in entries or () if one.disk is not None and one.disk.volume_id == volume_id), None)


# --- hints -----------------------------------------------------------------------------------------------------------


class Hint(Enum):
    """What an event says. Events get lost and come late, so they only say when to look again."""

    REMOVED = "removed"
    REFUSED = "refused"
    CHANGED = "changed"  # the guest stopped, or the connection was lost: look again


Device = tuple[str, str]
"""UUID of a guest and alias of a device."""


class Waiter:
    """Waits for hints about one device, from before the request that causes them. A context manager."""

    def __init__(self, waiters: Waiters, device: Device) -> None:
        self._waiters = waiters
        self.device = device
        self._condition = threading.Condition()
        self._hint: Hint | None = None

    def __enter__(self) -> Self:
        self._waiters.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters.remove(self)

    def give(self, hint: Hint) -> None:
        """Wake who waits. A refusal is kept until it was seen."""
        with self._condition:
            if self._hint is not Hint.REFUSED:
                self._hint = hint
            self._condition.notify_all()

    def wait(self, seconds: float) -> Hint | None:
        """The next hint, None when none came in time."""
        with self._condition:
            self._condition.wait_for(lambda: self._hint is not None, timeout=seconds)
            hint, self._hint = self._hint, None
            return hint


class Waiters:
    """Everyone who waits, by device. Called from event threads: takes a lock for an instant, and does nothing else."""

    def __init__(self) -> None:
        self._start_empty()
        when_forked(self, Waiters._start_empty)

    def _start_empty(self) -> None:
        """Also what a forked child does: those who wait are threads of its parent."""
        self._lock = threading.Lock()
        self._waiting: dict[Device, set[Waiter]] = defaultdict(set)

    def add(self, waiter: Waiter) -> None:
        """Let *waiter* have hints from now on."""
        with self._lock:
            self._waiting[waiter.device].add(waiter)

    def remove(self, waiter: Waiter) -> None:
        """No more hints for *waiter*."""
        with self._lock:
            self._waiting[waiter.device].discard(waiter)
            if not self._waiting[waiter.device]:
                del self._waiting[waiter.device]

    def tell(self, hint: Hint, instance_id: str | None = None, alias: str | None = None) -> None:
        """Give a hint to those who wait for this device, for any of this guest, or for anything at all."""
        with self._lock:
            for (guest, device), waiters in self._waiting.items():
                if instance_id in {None, guest} and alias in {None, device}:
                    for waiter in waiters:
                        waiter.give(hint)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._waiting.values()))


# --- primitives ------------------------------------------------------------------------------------------------------


class UnplugRunning(Exception):
    """The guest was asked before and has not answered yet."""


class TargetTaken(Exception):
    """Another disk got this device name meanwhile."""


class GuestDriver(Protocol):
    """The primitives. Each has a deadline of its own and raises cloudcore's errors; none of them repeats anything."""

    @property
    def waiters(self) -> Waiters:
        """Where hints arrive."""

    def view(self, instance_id: str) -> GuestView | None:
        """The guest, None when there is none."""

    def views(self) -> Iterable[GuestView]:
        """All guests. One that vanishes meanwhile is left out."""

    def settle(self, instance_id: str) -> OpenDisks | None:
        """Wait until the hypervisor is done with what it is doing to the guest; what it has open then.

        None where that cannot be told, or the guest is off. Nothing to wait for is no error.
        """

    def plug(self, instance_id: str, disk: Disk | DiskEntry, scope: Scope) -> None:
        """Add the disk, whose target is set, to one definition; an entry, just as it was read.

        Raises:
            TargetTaken: Its target is in use by now.
            GuestBusy: The guest takes none at this moment.
        """

    def unplug(self, instance_id: str, entry: DiskEntry, scope: Scope) -> None:
        """Take the disk out of the persistent definition, or ask the guest to let it go (returns before it has).

        What is taken out of the persistent definition, or asked of a transient guest, is kept as
        :attr:`GuestView.removed`, if that can be done.

        Raises:
            UnplugRunning: It was asked before.
            GuestBusy: The guest cannot be asked at this moment.
            DeviceNotFound: It has no such disk.
        """

    def forget(self, instance_id: str, volume_id: str) -> None:
        """Keep no longer what was taken out of the persistent definition. Nothing to forget is no error."""

    def release(self, instance_id: str, *, device: str | None = None, nodes: tuple[str, ...] = ()) -> bool:
        """Past the definition: ask the guest to let *device* go (returns before it has), and close *nodes*.

        False when some of the nodes are in use.

        Raises:
            UnplugRunning, GuestBusy, DeviceNotFound: As for :meth:`unplug`.
        """

    def resize(self, instance_id: str, entry: DiskEntry, size: int) -> None:
        """Tell a running guest the size in bytes."""


class CopyDriver(GuestDriver, Protocol):
    """The primitives of copies under a running guest."""

    def begin_copy(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """Copy what *entry* holds to the place of *disk*, and from then on what the guest writes, until it is ended.

        A write goes to both places before the guest hears that it is done.
        """

    def copied(self, instance_id: str, entry: DiskEntry) -> tuple[int, int, bool] | None:
        """Bytes copied, bytes in all, and whether both places hold the same; None if it is copied no more."""

    def end_copy(self, instance_id: str, entry: DiskEntry, *, pivot: bool) -> None:
        """Change over to the new place, in both definitions; or copy no more. Done when it returns."""

    def redefine(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """Give the persistent definition's *entry* the source and the volume id of *disk*; nothing else changes."""

    def rename(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """The running guest's *entry* is the volume of *disk* while it has its bytes there, be that now or later."""
