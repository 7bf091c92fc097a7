"""A hypervisor in memory, for notebooks and tests: the same operations as over libvirt, and faults on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from cloudcore._values import normalise_uuid, require_text
from cloudcore.errors import AlreadyExists, HypervisorUnavailable, InvalidArgument
from cloudcore.hypervisor.disks.copying import CopyOperations
from cloudcore.hypervisor.disks.guests import GuestState, Hint
from cloudcore.hypervisor.disks.memory_driver import Fault, LockedGuest, MemoryDriver, MemoryGuest, Unplug
from cloudcore.hypervisor.disks.operations import DiskOperations
from cloudcore.hypervisor.disks.xml import check_secret
from cloudcore.hypervisor.facts.host import HostFacts, NumaCell, PagePool, StoragePool
from cloudcore.hypervisor.timeouts import Timeouts

if TYPE_CHECKING:
    from cloudcore.disks import DetachOutcome, Disk, DiskCopy, DiskState
    from cloudcore.hypervisor.disks.memory_driver import MemoryFaults

__all__ = ["Fault", "MemoryHypervisor"]


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
    :class:`LibvirtHypervisor`. May be shared between threads; a forked child has a copy.
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
        self._driver = MemoryDriver(host)
        self._disks = DiskOperations(self._driver, self._timeouts)
        self._copies = CopyOperations(self._driver, self._timeouts)
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
        agent: bool = True,
    ) -> None:
        """Make a guest.

        Args:
            instance_id: Its UUID.
            state: ``"running"``, ``"paused"`` or ``"off"``.
            transient: It has no persistent definition.
            slots: How many disks it can have.
            unplug: What it does when it is asked to let a disk go.
            agent: Whether somebody in it answers when its file systems are to wait.

        Raises:
            AlreadyExists: There is one.
        """
        instance_id = normalise_uuid(instance_id, "instance_id")
        with self._driver.lock:
            if instance_id in self._driver.guests:
                raise AlreadyExists(f"guest {instance_id} is there already", identifier=instance_id)
            self._driver.guests[instance_id] = MemoryGuest(
                state=GuestState(state), transient=transient, slots=slots, unplug=Unplug(unplug), agent=agent
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
                guest.live, guest.asked, guest.orphans = dict(guest.persistent), set(), {}
            guest.state = GuestState.RUNNING

    def stop(self, instance_id: str) -> None:
        """Switch a guest off. A transient one is gone then."""
        with self._guest(instance_id) as guest:
            guest.state, guest.live, guest.asked, guest.orphans = GuestState.OFF, {}, set(), {}
            guest.copies = {}
            guest.frozen = False
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

    def lose_track(self, instance_id: str, volume_id: str) -> None:
        """The live definition loses a disk that the guest keeps: as if the hypervisor had died while plugging it."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        with self._guest(instance_id) as guest:
            for target, disk in list(guest.live.items()):
                if disk.volume_id == volume_id:
                    guest.orphans[volume_id] = disk
                    guest.lose(target)

    def frozen(self, instance_id: str) -> bool:
        """Whether the guest's file systems wait."""
        with self._guest(instance_id) as guest:
            return guest.frozen

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

    def _guest(self, instance_id: str) -> LockedGuest:
        return LockedGuest(self._driver, normalise_uuid(instance_id, "instance_id"))

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

    def orphaned_disks(self) -> tuple[DiskState, ...]:
        """See :meth:`cloudcore.disks.OrphanFinder.orphaned_disks`."""
        return self._disks.orphaned()

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :meth:`cloudcore.disks.GuestDisks.resize_disk`."""
        self._disks.resize(instance_id, volume_id, size)

    def copy_disk(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :meth:`cloudcore.disks.DiskCopier.copy_disk`."""
        return self._copies.begin(instance_id, volume_id, disk)

    def disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> DiskCopy:
        """See :meth:`cloudcore.disks.DiskCopier.disk_copy`."""
        return self._copies.state(instance_id, volume_id, disk)

    def pivot_disk(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.pivot_disk`."""
        self._copies.pivot(instance_id, volume_id, disk)

    def abort_disk_copy(self, instance_id: str, volume_id: str, disk: Disk) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.abort_disk_copy`."""
        self._copies.abort(instance_id, volume_id, disk)

    def rename_disk(self, instance_id: str, volume_id: str, new_volume_id: str) -> None:
        """See :meth:`cloudcore.disks.DiskCopier.rename_disk`."""
        self._copies.rename(instance_id, volume_id, new_volume_id)

    def freeze(self, instance_id: str) -> None:
        """See :meth:`cloudcore.disks.GuestFreezer.freeze`."""
        self._driver.freeze(normalise_uuid(instance_id, "instance_id"), frozen=True)

    def thaw(self, instance_id: str) -> None:
        """See :meth:`cloudcore.disks.GuestFreezer.thaw`."""
        self._driver.freeze(normalise_uuid(instance_id, "instance_id"), frozen=False)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def define_secret(self, secret_id: str, *, kind: str, name: str, value: bytes) -> None:
        """See :meth:`Hypervisor.define_secret <cloudcore.hypervisor.Hypervisor.define_secret>`."""
        self._secrets[normalise_uuid(secret_id, "secret_id")] = (kind, check_secret(kind, name), value)

    def check(self) -> None:
        """See :meth:`Hypervisor.check <cloudcore.hypervisor.Hypervisor.check>`."""
        self._disks.check()

    def close(self) -> None:
        """Nothing to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
