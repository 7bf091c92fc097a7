"""The primitives of :mod:`.guests` by libvirt calls."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cloudcore._extras import require_extra
from cloudcore.errors import GuestNotFound
from cloudcore.hypervisor.disks.guests import GuestState, GuestView, Hint, Scope, TargetTaken, UnplugRunning, Waiters
from cloudcore.hypervisor.disks.xml import bootable_xml, disk_xml, domain_disks
from cloudcore.hypervisor.libvirt.errors import (
    ACCESS_DENIED,
    OPERATION_TIMEOUT,
    connection_lost,
    failure_of,
    target_taken,
    unplug_running,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import Disk
    from cloudcore.hypervisor.disks.xml import DiskEntry
    from cloudcore.hypervisor.libvirt.connection import Connection
    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["LibvirtDriver"]

_LIVE, _CONFIG = 1, 2  # VIR_DOMAIN_AFFECT_*
_FLAGS = {Scope.LIVE: _LIVE, Scope.PERSISTENT: _CONFIG}
_SECURE, _INACTIVE = 1 << 0, 1 << 1  # VIR_DOMAIN_XML_*
_BYTES = 1  # VIR_DOMAIN_BLOCK_RESIZE_BYTES
_PAUSED_STATES = frozenset({3, 7})  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PMSUSPENDED


class LibvirtDriver:
    """Guests of one libvirt connection. May be shared between threads."""

    def __init__(self, connection: Connection, waiters: Waiters, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self.waiters = waiters

    def view(self, instance_id: str) -> GuestView | None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        try:
            return self._connection.call(
                f"read guest {instance_id}",
                lambda connection: _view(connection.lookupByUUIDString(instance_id)),
                identifier=instance_id,
                repeat=True,
            )
        except GuestNotFound:
            return None

    def views(self) -> list[GuestView]:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        return self._connection.call("read all guests", _views, seconds=self._timeouts.facts, repeat=True)

    def settle(self, instance_id: str) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`.

        libvirt lets one job at a time work on a guest, and a question to its QEMU is a job: its answer, whatever it is,
        comes after the job that was under way. A driver that has no such question has no such jobs.
        """
        libvirt = require_extra("libvirt", "libvirt")

        def ask(connection: Any) -> None:
            try:
                connection.lookupByUUIDString(instance_id).memoryStats()
            except libvirt.libvirtError as error:
                failure = failure_of(error)
                if connection_lost(failure) or failure.code in {OPERATION_TIMEOUT, ACCESS_DENIED}:
                    raise

        self._connection.call(f"wait for guest {instance_id} to settle", ask, identifier=instance_id, repeat=True)

    def plug(self, instance_id: str, disk: Disk, scope: Scope) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        xml = disk_xml(disk)

        def plug(domain: Any) -> None:
            definition = domain.XMLDesc(_SECURE | _INACTIVE) if disk.boot_order and scope is Scope.PERSISTENT else ""
            if "<boot dev=" in definition:
                domain.connect().defineXML(bootable_xml(definition, disk))
            else:
                domain.attachDeviceFlags(xml, _FLAGS[scope])

        self._change(f"plug volume {disk.volume_id} into guest {instance_id} ({scope})", instance_id, plug)

    def unplug(self, instance_id: str, entry: DiskEntry, scope: Scope) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""

        def unplug(domain: Any) -> None:
            if scope is Scope.LIVE and entry.alias is not None:
                domain.detachDeviceAlias(entry.alias, _LIVE)  # returns at once, unlike the call that takes XML
            else:
                domain.detachDeviceFlags(entry.xml, _FLAGS[scope])

        name = entry.disk.volume_id if entry.disk else entry.target
        self._change(f"unplug volume {name} from guest {instance_id} ({scope})", instance_id, unplug)

    def resize(self, instance_id: str, entry: DiskEntry, size: int) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""

        def resize(domain: Any) -> None:
            domain.blockResize(entry.target, size, _BYTES)

        self._change(f"resize {entry.target} of guest {instance_id} to {size} bytes", instance_id, resize)

    def _change(self, what: str, instance_id: str, change: Callable[[Any], None]) -> None:
        libvirt = require_extra("libvirt", "libvirt")

        def act(connection: Any) -> None:
            domain = connection.lookupByUUIDString(instance_id)
            try:
                change(domain)
            except libvirt.libvirtError as error:
                failure = failure_of(error)
                if unplug_running(failure):
                    raise UnplugRunning(failure.message) from error
                if target_taken(failure):
                    raise TargetTaken(failure.message) from error
                raise

        self._connection.call(what, act, seconds=self._timeouts.change, identifier=instance_id)

    # --- events ------------------------------------------------------------------------------------------------------

    def listen(self, connection: Any) -> None:
        """Register for the events that are hints for us. Drivers that have none do without."""
        libvirt = require_extra("libvirt", "libvirt")
        kinds = (
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, self._refused),
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._changed),
        )
        for kind, handler in kinds:
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventRegisterAny(None, kind, handler, None)

    # These run in the thread of the event loop: they wake who waits and do nothing else.

    def _removed(self, _connection: Any, domain: Any, alias: str, _: object) -> None:
        self.waiters.tell(Hint.REMOVED, domain.UUIDString(), alias)

    def _refused(self, _connection: Any, domain: Any, alias: str, _: object) -> None:
        self.waiters.tell(Hint.REFUSED, domain.UUIDString(), alias)

    def _changed(self, _connection: Any, domain: Any, _event: int, _detail: int, _: object) -> None:
        self.waiters.tell(Hint.CHANGED, domain.UUIDString())


def _view(domain: Any) -> GuestView:
    active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    state = GuestState.OFF
    if active:
        state = GuestState.PAUSED if domain.state()[0] in _PAUSED_STATES else GuestState.RUNNING
    return GuestView(
        instance_id=domain.UUIDString(),
        state=state,
        live=domain_disks(domain.XMLDesc(0)) if active else None,
        persistent=domain_disks(domain.XMLDesc(_INACTIVE)) if persistent else None,
    )


def _views(connection: Any) -> list[GuestView]:
    libvirt = require_extra("libvirt", "libvirt")
    found = []
    for domain in connection.listAllDomains(0):
        try:
            found.append(_view(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # else it is gone meanwhile
                raise
    return found
