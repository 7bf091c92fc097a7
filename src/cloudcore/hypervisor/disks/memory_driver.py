"""Guests in memory: the primitives of :mod:`.guests` over a dictionary, and faults on request."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

import attrs

from cloudcore._forks import at_rest_when_forked
from cloudcore.errors import (
    DeadlineExceeded,
    DeviceNotFound,
    GuestAgentUnavailable,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    LimitExceeded,
)
from cloudcore.hypervisor.disks.guests import GuestState, GuestView, Hint, Scope, TargetTaken, UnplugRunning, Waiters
from cloudcore.hypervisor.disks.monitor import OpenDisks
from cloudcore.hypervisor.disks.xml import DiskEntry, alias_of, disk_xml, domain_disks, effective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cloudcore.disks import Disk

__all__ = ["Fault", "LockedGuest", "MemoryDriver", "MemoryFaults", "MemoryGuest", "Unplug"]

T = TypeVar("T")


class Unplug(StrEnum):
    """What a guest does when it is asked to let a disk go."""

    WILLING = "willing"
    IGNORES = "ignores"  # no answer, until release() or until it is stopped
    REFUSES = "refuses"


class Fault(StrEnum):
    """What happens to a call, instead of or after its work."""

    LOST_BEFORE = "lost before"  # the connection breaks, nothing was done
    LOST_AFTER = "lost after"  # the connection breaks, it was done
    TIMEOUT_BEFORE = "timeout before"
    TIMEOUT_AFTER = "timeout after"
    ERROR_BEFORE = "error before"  # the hypervisor says no
    ERROR_AFTER = "error after"  # it says no, and has done it


@attrs.define
class MemoryFaults:
    """Faults on request. May be changed while calls run.

    Attributes:
        lose_events: No event arrives.
        away: No connection: every call fails, nothing is done.
        planned: Faults of the next calls of a primitive (``"view"``, ``"settle"``, ``"plug"``, ``"unplug"``,
            ``"release"``, ``"forget"``, ``"resize"``, ``"freeze"``, ``"thaw"``, ``"begin_copy"``, ``"copied"``,
            ``"end_copy"``, ``"redefine"``, ``"rename"``), in order; None lets one pass.
    """

    lose_events: bool = False
    away: bool = False
    planned: dict[str, list[Fault | None]] = attrs.Factory(dict)

    def plan(self, primitive: str, *faults: Fault | None) -> None:
        """Give the next calls of *primitive* these faults."""
        self.planned.setdefault(primitive, []).extend(faults)

    def take(self, primitive: str) -> Fault | None:
        """The fault of the call that is made now."""
        waiting = self.planned.get(primitive)
        return waiting.pop(0) if waiting else None


@attrs.define
class MemoryGuest:
    """A guest: its disks by target, and how it answers."""

    state: GuestState
    transient: bool
    slots: int
    unplug: Unplug = Unplug.WILLING
    agent: bool = True
    frozen: bool = False
    live: dict[str, Disk] = attrs.Factory(dict)  # by target
    persistent: dict[str, Disk] = attrs.Factory(dict)
    asked: set[str] = attrs.Factory(set)  # targets that it was asked to let go
    removed: dict[str, Disk] = attrs.Factory(dict)  # by volume: taken out of the persistent definition by a detach
    copies: dict[str, Disk] = attrs.Factory(dict)  # by target: where its live disk is copied to
    orphans: dict[str, Disk] = attrs.Factory(dict)  # by volume: it has them, and its live definition has lost them

    def disks(self, scope: Scope) -> dict[str, Disk]:
        """One of its two definitions."""
        return self.live if scope is Scope.LIVE else self.persistent

    def lose(self, target: str) -> Disk | None:
        """Its live definition has the disk no more; what gets the device name next was not asked for."""
        self.asked.discard(target)
        return self.live.pop(target, None)


class MemoryDriver:
    """The primitives of :mod:`.guests` over a dictionary."""

    faults: MemoryFaults
    waiters: Waiters
    lock: threading.RLock

    def __init__(self, host: str) -> None:
        self.host = host
        self.guests: dict[str, MemoryGuest] = {}
        self.sizes: dict[tuple[str, str], int] = {}
        self.faults = MemoryFaults()
        self.waiters = Waiters()
        self._unlock()
        at_rest_when_forked(self, lambda driver: driver.lock, MemoryDriver._unlock)

    def _unlock(self) -> None:
        self.lock = threading.RLock()

    def view(self, instance_id: str) -> GuestView | None:
        """See :meth:`.GuestDriver.view`."""

        def work() -> GuestView | None:
            guest = self.guests.get(instance_id)
            return _view(instance_id, guest) if guest else None

        return self._call("view", work)

    def views(self) -> list[GuestView]:
        """See :meth:`.GuestDriver.views`."""
        return self._call("view", lambda: [_view(name, guest) for name, guest in self.guests.items()])

    def settle(self, instance_id: str) -> OpenDisks | None:
        """See :meth:`.GuestDriver.settle`. A call is done when it returns; what takes longer is a fault on request."""

        def work() -> OpenDisks | None:
            guest = self.guests.get(instance_id)
            if guest is None or guest.state is GuestState.OFF:
                return None
            volumes = [*guest.orphans, *(disk.volume_id for disk in guest.live.values())]
            return OpenDisks(devices={alias_of(volume): "" for volume in volumes})

        return self._call("settle", work)

    def plug(self, instance_id: str, disk: Disk | DiskEntry, scope: Scope) -> None:
        """See :meth:`.GuestDriver.plug`."""
        given = disk.disk if isinstance(disk, DiskEntry) else disk
        if given is not None:
            self._plug(instance_id, given, scope)

    def _plug(self, instance_id: str, disk: Disk, scope: Scope) -> None:
        def work() -> None:
            guest = self.guest(instance_id)
            if scope is Scope.LIVE and disk.volume_id in guest.orphans:
                raise HypervisorError(f"guest {instance_id}: duplicate device {alias_of(disk.volume_id)}", code=1)
            disks, target = self._definition(guest, instance_id, scope), disk.target or ""
            if target in disks or disk.volume_id in {one.volume_id for one in disks.values()}:
                raise TargetTaken(target)
            if disk.unit is not None and disk.unit in {one.unit for one in disks.values()}:
                raise TargetTaken(f"unit {disk.unit}")
            if len(disks) >= guest.slots:
                raise LimitExceeded(
                    f"guest {instance_id} has {len(disks)} of {guest.slots} disks",
                    what="disks of the guest",
                    limit=guest.slots,
                    used=len(disks),
                )
            disks[target] = effective(disk)

        self._call("plug", work)

    def unplug(self, instance_id: str, entry: DiskEntry, scope: Scope) -> None:
        """See :meth:`.GuestDriver.unplug`."""

        def work() -> None:
            guest = self.guest(instance_id)
            disks = self._definition(guest, instance_id, scope)
            if entry.target not in disks:
                raise DeviceNotFound(f"guest {instance_id} has no {entry.target}", identifier=entry.target)
            if scope is Scope.PERSISTENT:
                disk = disks.pop(entry.target)
                guest.removed[disk.volume_id] = disk
            else:
                if guest.transient:
                    guest.removed[disks[entry.target].volume_id] = disks[entry.target]
                self._ask(instance_id, guest, entry)

        self._call("unplug", work)

    def _ask(self, instance_id: str, guest: MemoryGuest, entry: DiskEntry) -> None:
        if guest.unplug is Unplug.REFUSES:
            guest.asked.discard(entry.target)
            self.tell(Hint.REFUSED, instance_id, entry.alias)
        elif guest.unplug is Unplug.WILLING and guest.state is GuestState.RUNNING:
            guest.lose(entry.target)
            self.tell(Hint.REMOVED, instance_id, entry.alias)
        elif entry.target in guest.asked:
            raise UnplugRunning(entry.target)
        else:
            guest.asked.add(entry.target)

    def forget(self, instance_id: str, volume_id: str) -> None:
        """See :meth:`.GuestDriver.forget`."""

        def work() -> None:
            self.guest(instance_id).removed.pop(volume_id, None)

        self._call("forget", work)

    def release(self, instance_id: str, *, device: str | None = None, nodes: tuple[str, ...] = ()) -> bool:
        """See :meth:`.GuestDriver.release`. A guest in memory has no nodes apart from its devices."""
        del nodes

        def work() -> bool:
            guest = self.guest(instance_id)
            for entry in _entries(guest.live):
                if entry.alias == device:
                    self._ask(instance_id, guest, entry)
                    return True
            if guest.unplug is Unplug.REFUSES:
                raise HypervisorError(f"guest {instance_id} refuses to let {device} go", code=1)
            if guest.unplug is Unplug.WILLING and guest.state is GuestState.RUNNING:
                guest.orphans.pop((device or "").removeprefix("ua-"), None)
            return True

        return self._call("release", work)

    def resize(self, instance_id: str, entry: DiskEntry, size: int) -> None:
        """See :meth:`.GuestDriver.resize`."""

        def work() -> None:
            self.guest(instance_id)
            self.sizes[instance_id, entry.disk.volume_id if entry.disk else entry.target] = size

        self._call("resize", work)

    def begin_copy(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :meth:`.CopyDriver.begin_copy`. There are no bytes, so both places hold the same at once."""

        def work() -> None:
            guest = self.guest(instance_id)
            if entry.target not in guest.live:
                raise HypervisorError(f"guest {instance_id} is not running")
            guest.copies[entry.target] = disk

        self._call("begin_copy", work)

    def copied(self, instance_id: str, entry: DiskEntry) -> tuple[int, int, bool] | None:
        """See :meth:`.CopyDriver.copied`."""
        known = self._call("copied", lambda: entry.target in self.guest(instance_id).copies)
        return (1, 1, True) if known else None

    def end_copy(self, instance_id: str, entry: DiskEntry, *, pivot: bool) -> None:
        """See :meth:`.CopyDriver.end_copy`."""

        def work() -> None:
            guest = self.guest(instance_id)
            copy = guest.copies.pop(entry.target, None)
            if copy is None:
                raise HypervisorError(f"guest {instance_id} has no copy of {entry.target} under way", code=1)
            for disks in (guest.live, guest.persistent) if pivot else ():
                if entry.target in disks:
                    disks[entry.target] = attrs.evolve(disks[entry.target], source=copy.source)

        self._call("end_copy", work)

    def redefine(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :meth:`.CopyDriver.redefine`."""
        self._call("redefine", lambda: self._exchange(self.guest(instance_id).persistent, entry, disk))

    def rename(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :meth:`.CopyDriver.rename`."""
        self._call("rename", lambda: self._exchange(self.guest(instance_id).live, entry, disk))

    @staticmethod
    def _exchange(disks: dict[str, Disk], entry: DiskEntry, disk: Disk) -> None:
        disks[entry.target] = attrs.evolve(disks[entry.target], source=disk.source, volume_id=disk.volume_id)

    def freeze(self, instance_id: str, *, frozen: bool) -> None:
        """Let the guest's file systems wait, or go on."""

        def work() -> None:
            guest = self.guests.get(instance_id)
            if guest is None or guest.state is GuestState.OFF:
                return
            if not guest.agent or guest.state is GuestState.PAUSED:
                raise GuestAgentUnavailable(f"nobody in guest {instance_id} answers", identifier=instance_id)
            guest.frozen = frozen

        self._call("freeze" if frozen else "thaw", work)

    def let_go(self, instance_id: str) -> None:
        """The guest lets everything go that it was asked for."""
        guest = self.guest(instance_id)
        for target in sorted(guest.asked):
            disk = guest.lose(target)
            if disk is not None:
                self.tell(Hint.REMOVED, instance_id, f"ua-{disk.volume_id}")

    def tell(self, hint: Hint, instance_id: str, alias: str | None = None) -> None:
        """An event, unless events get lost."""
        if not self.faults.lose_events:
            self.waiters.tell(hint, instance_id, alias)

    def guest(self, instance_id: str) -> MemoryGuest:
        """The guest; :class:`GuestNotFound` when there is none."""
        guest = self.guests.get(instance_id)
        if guest is None:
            raise GuestNotFound(f"no guest {instance_id} on host {self.host}", identifier=instance_id)
        return guest

    @staticmethod
    def _definition(guest: MemoryGuest, instance_id: str, scope: Scope) -> dict[str, Disk]:
        if scope is Scope.LIVE and guest.state is GuestState.OFF:
            raise HypervisorError(f"guest {instance_id} is not running")
        if scope is Scope.PERSISTENT and guest.transient:
            raise HypervisorError(f"guest {instance_id} is transient")
        return guest.disks(scope)

    def _call(self, primitive: str, work: Callable[[], T]) -> T:
        with self.lock:
            fault = self.faults.take(primitive)
            if self.faults.away or fault is Fault.LOST_BEFORE:
                raise HypervisorUnavailable(f"{primitive}: no connection to {self.host}", uri=f"memory:{self.host}")
            if fault is Fault.TIMEOUT_BEFORE:
                raise DeadlineExceeded(f"{primitive}: no answer from {self.host}")
            if fault is Fault.ERROR_BEFORE:
                raise HypervisorError(f"{primitive}: refused by {self.host}", code=1)
            result = work()
        if fault is Fault.LOST_AFTER:
            raise HypervisorUnavailable(f"{primitive}: connection to {self.host} lost", uri=f"memory:{self.host}")
        if fault is Fault.TIMEOUT_AFTER:
            raise DeadlineExceeded(f"{primitive}: no answer from {self.host}")
        if fault is Fault.ERROR_AFTER:
            raise HypervisorError(f"{primitive}: refused by {self.host}", code=1)
        return result


def _view(instance_id: str, guest: MemoryGuest) -> GuestView:
    off = guest.state is GuestState.OFF
    return GuestView(
        instance_id=instance_id,
        state=guest.state,
        live=None if off else tuple(_entries(guest.live, guest.copies)),
        persistent=None if guest.transient else tuple(_entries(guest.persistent)),
        removed=tuple(_entries(guest.removed)),
    )


def _entries(disks: dict[str, Disk], copies: Mapping[str, Disk] | None = None) -> Iterator[DiskEntry]:
    """Through XML and back, so that nothing is promised that libvirt would not keep."""
    for target, disk in disks.items():
        (entry,) = domain_disks(f"<domain><devices>{disk_xml(disk)}</devices></domain>")
        yield attrs.evolve(entry, copying=(copies or {}).get(target))


class LockedGuest:
    """A guest, while nobody else touches it."""

    def __init__(self, driver: MemoryDriver, instance_id: str) -> None:
        self._driver = driver
        self._instance_id = instance_id

    def __enter__(self) -> MemoryGuest:
        self._driver.lock.acquire()
        try:
            return self._driver.guest(self._instance_id)
        except BaseException:
            self._driver.lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._driver.tell(Hint.CHANGED, self._instance_id)
        self._driver.lock.release()
