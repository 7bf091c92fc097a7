"""The hypervisor that libvirt drives."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

import attrs

from cloudcore._extras import require_extra
from cloudcore._values import normalise_uuid, require_text
from cloudcore.disks import DetachOutcome
from cloudcore.errors import (
    CloudcoreError,
    DeadlineExceeded,
    GuestBusy,
    GuestNotFound,
    HypervisorError,
    Transient,
)
from cloudcore.hypervisor.disks.copying import CopyOperations
from cloudcore.hypervisor.disks.guests import Hint, Waiters
from cloudcore.hypervisor.disks.libvirt_driver import LibvirtDriver
from cloudcore.hypervisor.disks.migration import Migration, abort
from cloudcore.hypervisor.disks.operations import DiskOperations
from cloudcore.hypervisor.disks.secrets import VolumeSecrets
from cloudcore.hypervisor.disks.xml import check_disk, check_secret, secret_xml
from cloudcore.hypervisor.facts.documents import read_documents
from cloudcore.hypervisor.libvirt.connection import Connection
from cloudcore.hypervisor.libvirt.host_documents import read_host
from cloudcore.hypervisor.timeouts import Timeouts, time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cloudcore.disks import Disk, DiskCopy, DiskState
    from cloudcore.hypervisor.disks.guests import GuestView
    from cloudcore.hypervisor.facts.host import HostFacts

__all__ = ["LibvirtHypervisor"]

_CANCEL_AGAIN = 0.5  # seconds


class LibvirtHypervisor:
    """One host through libvirt: :class:`~cloudcore.hypervisor.Hypervisor` over any libvirt URI.

    ::

        with LibvirtHypervisor("qemu:///system") as hypervisor:
            hypervisor.attach_disk(instance_id, Disk(volume_id=volume_id, source=BlockSource("/dev/sdb")))

    Nothing is opened before the first call. Connections are opened by calls that need them, and again when they were
    lost. libvirt's calls run in threads of their own, so that none outlasts its deadline, and each on a connection of
    its own, so that one that hangs keeps no other waiting; libvirt's event loop runs in one more thread, shared by all
    adapters of the process, unless the caller's process runs one (*own_event_loop* False). May be shared between
    threads, not with a forked child: there every call is refused at once, and a new adapter has to be made.
    """

    uri: str

    def __init__(
        self,
        uri: str,
        *,
        host: str | None = None,
        timeouts: Timeouts | None = None,
        own_event_loop: bool = True,
        passphrase: Callable[[Disk], bytes] | None = None,
    ) -> None:
        """Name the host; nothing is opened.

        Args:
            uri: Such as ``"qemu:///system"``, ``"qemu+ssh://host/system"`` or ``"test:///default"``.
            host: Name of the compute host, as volume services and journals know it; libvirt's host name by default.
            timeouts: Deadlines.
            own_event_loop: Run libvirt's event loop. False where something else in this process runs it already.
            passphrase: Called for a disk with ``encryption`` before it is plugged, or arrives here with its guest: what
                opens it. It is put into the libvirt secret that the disk names, private and under the volume's id, and
                taken out when no guest of this host has the volume any more, or got it. It is in no definition, log or
                error.
                None leaves that to others: they define the secret, for the manager's disks under the volume's id.

        Raises:
            MissingExtra: libvirt-python is not installed.
            InvalidArgument: *uri* is empty.
        """
        require_extra("libvirt", "libvirt")
        self.uri = require_text(uri, "uri", maximum=1024)
        self._host = host
        self._timeouts = timeouts or Timeouts()
        self._passphrase = passphrase
        self._waiters = Waiters()
        self._connection = Connection(
            self.uri,
            timeouts=self._timeouts,
            own_event_loop=own_event_loop,
            listen=self._listen,
            lost=lambda: self._waiters.tell(Hint.CHANGED),
        )
        self._driver = LibvirtDriver(self._connection, self._waiters, self._timeouts)
        self._disks = DiskOperations(self._driver, self._timeouts)
        self._copies = CopyOperations(self._driver, self._timeouts)
        self._secrets = VolumeSecrets(self._connection, passphrase, seconds=self._timeouts.change)

    def _listen(self, connection: Any) -> list[int]:
        return self._driver.listen(connection)

    def __repr__(self) -> str:
        return f"<LibvirtHypervisor {self.uri}{f' host {self._host}' if self._host else ''}>"

    @property
    def host(self) -> str:
        """Name of the compute host. Asks libvirt once if none was given."""
        if self._host is None:
            self._host = self._connection.call("read host name", lambda open_: str(open_.getHostname()), repeat=True)
        return self._host

    def facts(self) -> HostFacts:
        """See :meth:`Hypervisor.facts <cloudcore.hypervisor.Hypervisor.facts>`."""
        with time_limit(self._timeouts.facts):
            documents = self._connection.call("read host facts", read_host, seconds=self._timeouts.facts, repeat=True)
        return read_documents(documents)

    # --- disks -------------------------------------------------------------------------------------------------------

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        """See :meth:`cloudcore.disks.GuestDisks.attach_disk`."""
        check_disk(disk)
        if disk.encryption is None or self._passphrase is None:
            return self._disks.attach(instance_id, disk)
        self._disks.require_place(instance_id, disk)
        try:
            return self._disks.attach(instance_id, self._secrets.give(disk))
        except CloudcoreError as error:
            if isinstance(error, GuestBusy) or not isinstance(error, Transient):  # else the guest may have it
                with contextlib.suppress(CloudcoreError):  # this says why
                    self._forget_unused(normalise_uuid(disk.volume_id, "volume_id"))
            raise

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :meth:`cloudcore.disks.GuestDisks.detach_disk`."""
        outcome = self._disks.detach(instance_id, volume_id)
        if outcome is DetachOutcome.DETACHED:
            self._forget_unused(normalise_uuid(volume_id, "volume_id"))
        return outcome

    def _forget_unused(self, volume_id: str) -> None:
        """What opens the volume, unless another guest here has it: that needs it at its next start."""
        if self._passphrase is not None and not any(one.volume_id == volume_id for one in self._disks.states()):
            self._secrets.take(volume_id)

    def _forget_all(self, disks: Iterable[Disk]) -> None:
        for disk in disks:
            self._forget_unused(disk.volume_id)

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
        """See :meth:`cloudcore.disks.GuestFreezer.freeze`; by QEMU's guest agent."""
        self._ask_agent(instance_id, "freeze", lambda domain: domain.fsFreeze())

    def thaw(self, instance_id: str) -> None:
        """See :meth:`cloudcore.disks.GuestFreezer.thaw`."""
        self._ask_agent(instance_id, "thaw", lambda domain: domain.fsThaw())

    def _ask_agent(self, instance_id: str, verb: str, ask: Callable[[Any], object]) -> None:
        identifier = normalise_uuid(instance_id, "instance_id")

        def act(connection: Any) -> None:
            domain = connection.lookupByUUIDString(identifier)
            if domain.isActive():
                ask(domain)

        with contextlib.suppress(GuestNotFound):
            self._connection.call(
                f"{verb} guest {identifier}", act, seconds=self._timeouts.change, identifier=identifier
            )

    # --- moving ------------------------------------------------------------------------------------------------------

    def migrate(
        self,
        instance_id: str,
        destination: LibvirtHypervisor,
        *,
        uri: str | None = None,
        listen_address: str | None = None,
        disks: Iterable[Disk] = (),
        edit: Callable[[str], str] | None = None,
        seconds: float = 600.0,
    ) -> None:
        """Move a running guest, with its persistent definition, to another host, live.

        Shared disks only: nothing is copied. The volumes must be reachable at the destination beforehand. Afterwards
        the guest runs there and is gone here, as read back.

        Args:
            instance_id: UUID of the guest.
            destination: The host that it goes to.
            uri: Where QEMU sends it, such as ``"tcp://10.0.0.2"``; None lets libvirt choose.
            listen_address: On which the destination's QEMU listens.
            disks: How the destination reaches volumes that it reaches in another way.
            edit: Changes the definition further, such as paths of serial ports.
            seconds: Its deadline; then the migration is cancelled, and waited for as long as for a read.

        Raises:
            InvalidDisk, InvalidArgument: One of *disks*, or another argument, cannot be as described.
            GuestNotFound: It is not here. If it is at the destination already, nothing is raised.
            DeviceNotFound: It has no disk of one of the volumes.
            DeadlineExceeded: Cancelled after *seconds*, or not begun; the guest runs on here, unless it had just
                arrived. A note says so if it could not be cancelled.
            GuestBusy: It is being migrated by another caller, or saved. That is left alone, and nothing was begun.
            HypervisorError: libvirt refused; the guest runs on here.
        """
        identifier, named = normalise_uuid(instance_id, "instance_id"), tuple(disks)
        for disk in named:
            check_disk(disk)
        for field, told in (("uri", uri), ("listen_address", listen_address)):
            if told is not None:
                require_text(told, field, maximum=1024)
        view = self._driver.view(identifier)
        if view is None and (arrived := destination._driver.view(identifier)) is not None:
            self._forget_all(_encrypted(arrived))  # a repeat after a lost answer
            return
        encrypted = _encrypted(view) if view else []
        try:
            given = self._give_at(destination, encrypted, named)
        except BaseException:  # whatever the function for passphrases raises
            with contextlib.suppress(CloudcoreError):  # a destination that went away has them still; this says why
                destination._forget_all(encrypted)
            raise
        plan = Migration(uri=uri, listen_address=listen_address, disks=given, edit=edit)
        try:
            self._connection.call(
                f"migrate guest {identifier}",
                lambda here: destination._connection.call(
                    f"receive guest {identifier}", lambda there: plan.run(here, there, identifier), seconds=seconds
                ),
                seconds=seconds,
                identifier=identifier,
            )
        except DeadlineExceeded as error:
            self._give_up(plan, identifier, error)
            raise
        except CloudcoreError as error:
            if not isinstance(error, Transient):  # else the guest may be on its way still
                destination._forget_all(encrypted)
            raise
        if destination._driver.view(identifier) is None:
            raise HypervisorError(f"guest {identifier} was moved to {destination.host}, and is not there")
        self._forget_all(encrypted)

    def _give_up(self, plan: Migration, identifier: str, error: DeadlineExceeded) -> None:
        """Cancel what has begun, until it has ended: one that waits in libvirt for its turn cannot be cancelled yet."""
        ends = time.monotonic() + self._timeouts.read
        try:
            while plan.give_up() and time.monotonic() < ends:
                self._connection.call(f"cancel migration of guest {identifier}", lambda here: abort(here, identifier))
                plan.ended.wait(_CANCEL_AGAIN)
        except CloudcoreError as second:
            error.add_note(str(second))
        if plan.give_up():
            error.add_note(f"guest {identifier} may still be on its way: look where it is before it is moved again")

    def _give_at(
        self, destination: LibvirtHypervisor, encrypted: list[Disk], given: tuple[Disk, ...]
    ) -> tuple[Disk, ...]:
        """Give *destination* what opens the guest's disks; *given*, and those that another secret opens there."""
        told = {normalise_uuid(one.volume_id, "volume_id"): one for one in given}
        opened = {}
        for disk in encrypted:
            named = told.get(disk.volume_id, disk)
            there = destination._secrets.give(self._secrets.name_key(disk if named.encryption is None else named))
            if disk.volume_id in told or there.encryption != disk.encryption:
                opened[disk.volume_id] = attrs.evolve(named, encryption=there.encryption)
        return (
            *(opened.get(normalise_uuid(one.volume_id, "volume_id"), one) for one in given),
            *(one for volume_id, one in opened.items() if volume_id not in told),
        )

    # --- the rest ----------------------------------------------------------------------------------------------------

    def define_secret(self, secret_id: str, *, kind: str, name: str, value: bytes) -> None:
        """See :meth:`Hypervisor.define_secret <cloudcore.hypervisor.Hypervisor.define_secret>`."""
        secret_id = normalise_uuid(secret_id, "secret_id")
        xml = secret_xml(secret_id, kind, check_secret(kind, name))

        def define(connection: Any) -> None:
            connection.secretDefineXML(xml).setValue(value)

        self._connection.call(f"define secret {secret_id}", define, seconds=self._timeouts.change, identifier=secret_id)

    def check(self) -> None:
        """See :meth:`Hypervisor.check <cloudcore.hypervisor.Hypervisor.check>`."""
        self._disks.check()

    def close(self) -> None:
        """End the connections and the share in the event loop; guests are not touched. Repeated calls do nothing.

        Descriptors and threads are given back on return, except those of calls that are still under way.
        """
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _encrypted(view: GuestView) -> list[Disk]:
    """The disks of a guest that a passphrase opens."""
    entries = (view.persistent if view.live is None else view.live) or ()
    return [one.disk for one in entries if one.disk is not None and one.disk.encryption is not None]
