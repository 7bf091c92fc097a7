"""A hypervisor in memory, for notebooks and tests: the same operations as over libvirt, and faults on request."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Self, TypeVar

import attrs

from cloudcore._values import normalise_uuid, require_text
from cloudcore.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DeviceNotFound,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InvalidArgument,
    LimitExceeded,
)
from cloudcore.hypervisor.disks.guests import GuestState, GuestView, Hint, Scope, TargetTaken, UnplugRunning, Watches
from cloudcore.hypervisor.disks.operations import DiskOperations
from cloudcore.hypervisor.disks.xml import DiskEntry, domain_disks, effective
from cloudcore.hypervisor.disks.xml import disk_xml as write_disk
from cloudcore.hypervisor.facts.host import HostFacts, NumaCell, PagePool, StoragePool
from cloudcore.hypervisor.libvirt.connection import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloudcore.disks import DetachOutcome, Disk, DiskState

__all__ = ["Fault", "MemoryFaults", "MemoryHypervisor", "Unplug"]

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
            ``"resize"``), in order; None lets one pass.
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
class _Guest:
    state: GuestState
    transient: bool
    slots: int
    unplug: Unplug = Unplug.WILLING
    live: dict[str, Disk] = attrs.Factory(dict)  # by target
    persistent: dict[str, Disk] = attrs.Factory(dict)
    asked: set[str] = attrs.Factory(set)  # targets that it was asked to let go

    def disks(self, scope: Scope) -> dict[str, Disk]:
        return self.live if scope is Scope.LIVE else self.persistent


class _MemoryDriver:
    """The primitives of :mod:`.guests` over a dictionary."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.guests: dict[str, _Guest] = {}
        self.sizes: dict[tuple[str, str], int] = {}
        self.faults = MemoryFaults()
        self.watches = Watches()
        self.lock = threading.RLock()

    def view(self, instance_id: str) -> GuestView | None:
        def work() -> GuestView | None:
            guest = self.guests.get(instance_id)
            return _view(instance_id, guest) if guest else None

        return self._call("view", work)

    def views(self) -> list[GuestView]:
        return self._call("view", lambda: [_view(name, guest) for name, guest in self.guests.items()])

    def settle(self, instance_id: str) -> None:
        del instance_id  # each call is done when it returns; what takes longer is a fault on request
        self._call("settle", lambda: None)

    def plug(self, instance_id: str, disk: Disk, scope: Scope) -> None:
        def work() -> None:
            guest = self.guest(instance_id)
            disks, target = self._definition(guest, instance_id, scope), disk.target or ""
            if target in disks or disk.volume_id in {one.volume_id for one in disks.values()}:
                raise TargetTaken(target)
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
        def work() -> None:
            guest = self.guest(instance_id)
            disks = self._definition(guest, instance_id, scope)
            if entry.target not in disks:
                raise DeviceNotFound(f"guest {instance_id} has no {entry.target}", identifier=entry.target)
            if scope is Scope.PERSISTENT:
                del disks[entry.target]
            else:
                self._ask(instance_id, guest, entry)

        self._call("unplug", work)

    def _ask(self, instance_id: str, guest: _Guest, entry: DiskEntry) -> None:
        if guest.unplug is Unplug.REFUSES:
            self.tell(Hint.REFUSED, instance_id, entry.alias)
        elif guest.unplug is Unplug.WILLING and guest.state is GuestState.RUNNING:
            del guest.live[entry.target]
            self.tell(Hint.REMOVED, instance_id, entry.alias)
        elif entry.target in guest.asked:
            raise UnplugRunning(entry.target)
        else:
            guest.asked.add(entry.target)

    def resize(self, instance_id: str, entry: DiskEntry, size: int) -> None:
        def work() -> None:
            self.guest(instance_id)
            self.sizes[instance_id, entry.disk.volume_id if entry.disk else entry.target] = size

        self._call("resize", work)

    def let_go(self, instance_id: str) -> None:
        """The guest lets everything go that it was asked for."""
        guest = self.guest(instance_id)
        for target in sorted(guest.asked):
            disk = guest.live.pop(target, None)
            if disk is not None:
                self.tell(Hint.REMOVED, instance_id, f"ua-{disk.volume_id}")
        guest.asked.clear()

    def tell(self, hint: Hint, instance_id: str, alias: str | None = None) -> None:
        if not self.faults.lose_events:
            self.watches.tell(hint, instance_id, alias)

    def guest(self, instance_id: str) -> _Guest:
        guest = self.guests.get(instance_id)
        if guest is None:
            raise GuestNotFound(f"no guest {instance_id} on host {self.host}", identifier=instance_id)
        return guest

    @staticmethod
    def _definition(guest: _Guest, instance_id: str, scope: Scope) -> dict[str, Disk]:
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


def _view(instance_id: str, guest: _Guest) -> GuestView:
    off = guest.state is GuestState.OFF
    return GuestView(
        instance_id=instance_id,
        state=guest.state,
        live=None if off else tuple(_entries(guest.live)),
        persistent=None if guest.transient else tuple(_entries(guest.persistent)),
    )


def _entries(disks: dict[str, Disk]) -> Iterator[DiskEntry]:
    """Through XML and back, so that nothing is promised that libvirt would not keep."""
    for disk in disks.values():
        yield from domain_disks(f"<domain><devices>{write_disk(disk)}</devices></domain>")


def _default_facts(host: str) -> HostFacts:
    """A host of two cells with four CPUs and 8 GiB each."""
    cells = tuple(
        NumaCell(
            id=number,
            memory=8 * 1024 * 1024,
            cpus=frozenset(range(number * 4, number * 4 + 4)),
            sockets=frozenset({number}),
            pages=(PagePool(size=4, count=2 * 1024 * 1024),),
        )
        for number in (0, 1)
    )
    pool = StoragePool(name="default", type="dir", capacity=100 * 1024**3, available=100 * 1024**3)
    return HostFacts(
        host_name=host,
        architecture="x86_64",
        hypervisor="memory",
        online_cpus=frozenset(range(8)),
        cells=cells,
        guest_architectures=frozenset({"x86_64"}),
        storage_pools=(pool,),
    )


class MemoryHypervisor:
    """One host that exists in memory only: :class:`~cloudcore.hypervisor.Hypervisor` for notebooks and tests.

    Guests are made with :meth:`add_guest` and driven with :meth:`stop`, :meth:`pause` and so on; :attr:`faults` and
    *unplug* make things go wrong. Disks go through the same operations, and through the same XML, as those of
    :class:`LibvirtHypervisor`. May be shared between threads.
    """

    def __init__(
        self, host: str = "memory", *, facts: HostFacts | None = None, timeouts: Timeouts | None = None
    ) -> None:
        """Make a host without guests.

        Args:
            host: Its name.
            facts: What it is; two cells with four CPUs and 8 GiB each by default.
            timeouts: Only ``detach`` and ``paused`` are used, both 0.2 s by default.
        """
        self._host = require_text(host, "host")
        self._facts = facts or _default_facts(host)
        self._timeouts = timeouts or Timeouts(detach=0.2, paused=0.2)
        self._driver = _MemoryDriver(host)
        self._disks = DiskOperations(self._driver, self._timeouts)
        self._secrets: dict[str, tuple[str, str, bytes]] = {}

    def __repr__(self) -> str:
        return f"<MemoryHypervisor {self._host}, {len(self._driver.guests)} guests>"

    @property
    def host(self) -> str:
        """Name of the host."""
        return self._host

    @property
    def faults(self) -> MemoryFaults:
        """What goes wrong."""
        return self._driver.faults

    def facts(self) -> HostFacts:
        """See :meth:`Hypervisor.facts <cloudcore.hypervisor.Hypervisor.facts>`."""
        if self.faults.away:
            raise HypervisorUnavailable(f"no connection to {self._host}", uri=f"memory:{self._host}")
        return self._facts

    # --- guests ------------------------------------------------------------------------------------------------------

    def add_guest(
        self,
        instance_id: str,
        *,
        state: GuestState | str = GuestState.RUNNING,
        transient: bool = False,
        slots: int = 26,
        unplug: Unplug | str = Unplug.WILLING,
    ) -> None:
        """Make a guest.

        Args:
            instance_id: Its UUID.
            state: ``"running"``, ``"paused"`` or ``"off"``.
            transient: It has no persistent definition.
            slots: How many disks it can have.
            unplug: What it does when it is asked to let a disk go.

        Raises:
            AlreadyExists: There is one.
        """
        instance_id = normalise_uuid(instance_id, "instance_id")
        with self._driver.lock:
            if instance_id in self._driver.guests:
                raise AlreadyExists(f"guest {instance_id} is there already", identifier=instance_id)
            self._driver.guests[instance_id] = _Guest(
                state=GuestState(state), transient=transient, slots=slots, unplug=Unplug(unplug)
            )

    def remove_guest(self, instance_id: str) -> None:
        """Destroy and undefine a guest; one that is not there is no error."""
        instance_id = normalise_uuid(instance_id, "instance_id")
        with self._driver.lock:
            self._driver.guests.pop(instance_id, None)
            self._driver.tell(Hint.CHANGED, instance_id)

    def start(self, instance_id: str) -> None:
        """Start a guest with what its persistent definition says."""
        with self._guest(instance_id) as guest:
            if guest.state is GuestState.OFF:
                guest.live, guest.asked = dict(guest.persistent), set()
            guest.state = GuestState.RUNNING

    def stop(self, instance_id: str) -> None:
        """Switch a guest off. A transient one is gone then."""
        with self._guest(instance_id) as guest:
            guest.state, guest.live, guest.asked = GuestState.OFF, {}, set()
            if guest.transient:
                del self._driver.guests[normalise_uuid(instance_id, "instance_id")]

    def pause(self, instance_id: str) -> None:
        """Pause a guest: it answers nothing any more. One that is off stays off."""
        with self._guest(instance_id) as guest:
            if guest.state is not GuestState.OFF:
                guest.state = GuestState.PAUSED

    def resume(self, instance_id: str) -> None:
        """Let it go on; it lets go what it was asked for meanwhile."""
        with self._guest(instance_id) as guest:
            if guest.state is GuestState.PAUSED:
                guest.state = GuestState.RUNNING
            if guest.state is GuestState.RUNNING and guest.unplug is Unplug.WILLING:
                self._driver.let_go(normalise_uuid(instance_id, "instance_id"))

    def set_unplug(self, instance_id: str, unplug: Unplug | str) -> None:
        """Change what the guest does when it is asked to let a disk go."""
        with self._guest(instance_id) as guest:
            guest.unplug = Unplug(unplug)

    def release(self, instance_id: str) -> None:
        """The guest lets everything go now that it was asked for."""
        with self._guest(instance_id):
            self._driver.let_go(normalise_uuid(instance_id, "instance_id"))

    def size(self, instance_id: str, volume_id: str) -> int | None:
        """What the guest was last told of a volume's size, in bytes."""
        key = normalise_uuid(instance_id, "instance_id"), normalise_uuid(volume_id, "volume_id")
        return self._driver.sizes.get(key)

    def migrate(self, instance_id: str, destination: MemoryHypervisor) -> None:
        """Move a guest with its disks to another host at once.

        Raises:
            GuestNotFound: It is not here.
            AlreadyExists: The destination has it.
        """
        instance_id = normalise_uuid(instance_id, "instance_id")
        if destination is self:
            raise InvalidArgument("destination: the guest is there already", field="destination")
        first, second = sorted((self._driver, destination._driver), key=id)
        with first.lock, second.lock, self._guest(instance_id) as guest:
            if instance_id in destination._driver.guests:
                raise AlreadyExists(f"guest {instance_id} is on host {destination.host}", identifier=instance_id)
            destination._driver.guests[instance_id] = guest
            del self._driver.guests[instance_id]

    def _guest(self, instance_id: str) -> _Locked:
        return _Locked(self._driver, normalise_uuid(instance_id, "instance_id"))

    # --- disks -------------------------------------------------------------------------------------------------------

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.attach_disk`."""
        return self._disks.attach(instance_id, disk)

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :meth:`cloudcore.disks.GuestDisks.detach_disk`."""
        return self._disks.detach(instance_id, volume_id)

    def disk_state(self, instance_id: str, volume_id: str) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.disk_state`."""
        return self._disks.state(instance_id, volume_id)

    def disk_states(self) -> tuple[DiskState, ...]:
        """See :meth:`cloudcore.disks.GuestDisks.disk_states`."""
        return self._disks.states()

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :meth:`cloudcore.disks.GuestDisks.resize_disk`."""
        self._disks.resize(instance_id, volume_id, size)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def define_secret(self, secret_id: str, *, kind: str, name: str, value: bytes) -> None:
        """See :meth:`Hypervisor.define_secret <cloudcore.hypervisor.Hypervisor.define_secret>`."""
        if kind not in {"ceph", "iscsi"}:
            raise InvalidArgument(f"kind: {kind!r} is neither ceph nor iscsi", field="kind", value=kind)
        self._secrets[normalise_uuid(secret_id, "secret_id")] = (kind, require_text(name, "name"), value)

    def check(self) -> None:
        """See :meth:`Hypervisor.check <cloudcore.hypervisor.Hypervisor.check>`."""
        self._disks.check()

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Locked:
    """A guest, while nobody else touches it."""

    def __init__(self, driver: _MemoryDriver, instance_id: str) -> None:
        self._driver = driver
        self._instance_id = instance_id

    def __enter__(self) -> _Guest:
        self._driver.lock.acquire()
        try:
            return self._driver.guest(self._instance_id)
        except BaseException:
            self._driver.lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._driver.tell(Hint.CHANGED, self._instance_id)
        self._driver.lock.release()
