"""The primitives of :mod:`.guests` by libvirt calls."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import attrs

from cloudcore._extras import require_extra
from cloudcore.errors import DeviceNotFound, GuestBusy, GuestNotFound, HypervisorError, MissingExtra, UnsupportedFeature
from cloudcore.hypervisor.disks.copy_xml import copy_xml, mirror_ready, replaced_xml
from cloudcore.hypervisor.disks.guests import GuestState, GuestView, Hint, Scope, TargetTaken, UnplugRunning, Waiters
from cloudcore.hypervisor.disks.monitor import OpenDisks, command, failure_text, read_open
from cloudcore.hypervisor.disks.turns import Turns
from cloudcore.hypervisor.disks.xml import (
    KEPT,
    DiskEntry,
    bootable_xml,
    disk_xml,
    domain_disks,
    passed_units,
    removed_disks,
    renamed_space,
    volume_of,
)
from cloudcore.hypervisor.libvirt.errors import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    OPERATION_TIMEOUT,
    Failure,
    connection_lost,
    failure_of,
    guest_busy,
    is_missing_guest,
    target_taken,
    unplug_running,
)
from cloudcore.hypervisor.timeouts import time_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloudcore.disks import Disk
    from cloudcore.hypervisor.libvirt.connection import Connection
    from cloudcore.hypervisor.timeouts import Timeouts

__all__ = ["LibvirtDriver"]

_log = logging.getLogger(__name__)
_LIVE, _CONFIG = 1, 2  # VIR_DOMAIN_AFFECT_*
_FLAGS = {Scope.LIVE: _LIVE, Scope.PERSISTENT: _CONFIG}
_SECURE, _INACTIVE = 1 << 0, 1 << 1  # VIR_DOMAIN_XML_*
_COPY = 1 << 1 | 1 << 2 | 1 << 3  # VIR_DOMAIN_BLOCK_COPY_*: REUSE_EXT, TRANSIENT_JOB, SYNCHRONOUS_WRITES
_PIVOT = 1 << 1  # VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
_BYTES = 1  # VIR_DOMAIN_BLOCK_RESIZE_BYTES
_PAUSED_STATES = frozenset({3, 7})  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PMSUSPENDED


class LibvirtDriver:
    """Guests of one libvirt connection. May be shared between threads."""

    def __init__(self, connection: Connection, waiters: Waiters, timeouts: Timeouts) -> None:
        self._connection = connection
        self._timeouts = timeouts
        self._turns = Turns()
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

    def settle(self, instance_id: str) -> OpenDisks | None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`.

        libvirt lets one job at a time work on a guest, and a question to its QEMU is a job: its answer, whatever it is,
        comes after the job that was under way. A driver that has no such question has no such jobs.
        """
        return self._connection.call(
            f"ask guest {instance_id} for its disks",
            lambda connection: _open_disks(connection.lookupByUUIDString(instance_id)),
            identifier=instance_id,
            repeat=True,
        )

    def plug(self, instance_id: str, disk: Disk | DiskEntry, scope: Scope) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        xml, given = disk_xml(disk), disk.disk if isinstance(disk, DiskEntry) else disk

        def plug(domain: Any) -> None:
            ordered = given is not None and given.boot_order and scope is Scope.PERSISTENT
            definition = domain.XMLDesc(_SECURE | _INACTIVE) if ordered else ""
            with _signal(target_taken, TargetTaken):
                if "<boot dev=" in definition:  # written anew as a whole, since libvirt puts an order of kinds back
                    domain.connect().defineXML(bootable_xml(definition, xml))
                else:
                    domain.attachDeviceFlags(xml, _FLAGS[scope])

        name = given.volume_id if given else "of others"
        self._change(f"plug volume {name} into guest {instance_id} ({scope})", instance_id, plug, scope)

    def unplug(self, instance_id: str, entry: DiskEntry, scope: Scope) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""

        def unplug(domain: Any) -> None:
            if entry.disk is not None and (scope is Scope.PERSISTENT or not domain.isPersistent()):
                _keep(domain, entry.disk.volume_id, entry.xml, _FLAGS[scope])
            with _signal(unplug_running, UnplugRunning):
                if scope is Scope.LIVE and entry.alias is not None:
                    domain.detachDeviceAlias(entry.alias, _LIVE)  # returns at once, unlike the call that takes XML
                else:
                    domain.detachDeviceFlags(entry.xml, _FLAGS[scope])

        name = entry.disk.volume_id if entry.disk else entry.target
        self._change(f"unplug volume {name} from guest {instance_id} ({scope})", instance_id, unplug, scope)

    def forget(self, instance_id: str, volume_id: str) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        self._change(
            f"forget volume {volume_id} of guest {instance_id}",
            instance_id,
            lambda domain: _keep(domain, volume_id, None, _CONFIG if domain.isPersistent() else _LIVE),
            Scope.PERSISTENT,
        )

    def release(self, instance_id: str, *, device: str | None = None, nodes: tuple[str, ...] = ()) -> bool:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""
        closed = True

        def release(domain: Any) -> None:
            nonlocal closed
            if device is not None:
                with _signal(unplug_running, UnplugRunning):
                    _delete_device(domain, device)
            if nodes:
                closed = _close_nodes(domain, nodes)

        self._change(f"release {device or ', '.join(nodes)} of guest {instance_id}", instance_id, release)
        return closed

    def resize(self, instance_id: str, entry: DiskEntry, size: int) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.GuestDriver`."""

        def resize(domain: Any) -> None:
            domain.blockResize(entry.target, size, _BYTES)

        self._change(f"resize {entry.target} of guest {instance_id} to {size} bytes", instance_id, resize)

    # --- copies ------------------------------------------------------------------------------------------------------

    def begin_copy(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.CopyDriver`.

        libvirt wants to be told that the copy may end with the guest, since it cannot go on with it then.
        """
        xml = copy_xml(disk)
        self._change(
            f"copy {entry.target} of guest {instance_id}",
            instance_id,
            lambda domain: domain.blockCopy(entry.target, xml, None, _COPY),
        )

    def copied(self, instance_id: str, entry: DiskEntry) -> tuple[int, int, bool] | None:
        """See :class:`~cloudcore.hypervisor.disks.guests.CopyDriver`."""

        def look(connection: Any) -> tuple[int, int, bool] | None:
            domain = connection.lookupByUUIDString(instance_id)
            found = domain.blockJobInfo(entry.target, 0) if domain.isActive() else None
            if not found:
                return None
            return found["cur"], found["end"], mirror_ready(domain.XMLDesc(0), entry.target)

        what = f"look at the copy of {entry.target} of guest {instance_id}"
        return self._connection.call(what, look, identifier=instance_id, repeat=True)

    def end_copy(self, instance_id: str, entry: DiskEntry, *, pivot: bool) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.CopyDriver`."""
        self._change(
            f"{'pivot' if pivot else 'end the copy of'} {entry.target} of guest {instance_id}",
            instance_id,
            lambda domain: domain.blockJobAbort(entry.target, _PIVOT if pivot else 0),
            Scope.PERSISTENT if pivot else Scope.LIVE,
        )

    def redefine(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.CopyDriver`."""
        xml = replaced_xml(entry, disk)
        self._change(
            f"redefine {entry.target} of guest {instance_id}",
            instance_id,
            lambda domain: domain.updateDeviceFlags(xml, _CONFIG),
            Scope.PERSISTENT,
        )

    def rename(self, instance_id: str, entry: DiskEntry, disk: Disk) -> None:
        """See :class:`~cloudcore.hypervisor.disks.guests.CopyDriver`."""
        alias = volume_of(entry.alias or "") or disk.volume_id
        space, xml = renamed_space(alias, disk.source), disk_xml(attrs.evolve(disk, target=entry.target))
        self._change(
            f"rename {entry.target} of guest {instance_id}",
            instance_id,
            lambda domain: _note(domain, space, xml, _LIVE),
        )

    def _change(self, what: str, instance_id: str, change: Callable[[Any], None], scope: Scope = Scope.LIVE) -> None:
        """Changes of a persistent definition take turns: one may write it as a whole, as it read it."""
        ends = time.monotonic() + min(self._timeouts.change, time_left())

        def act(connection: Any) -> None:
            domain = connection.lookupByUUIDString(instance_id)
            turn = self._turns.take(instance_id, ends) if scope is Scope.PERSISTENT else contextlib.nullcontext()
            with turn:
                change(domain)

        self._connection.call(what, act, seconds=self._timeouts.change, identifier=instance_id)

    # --- events ------------------------------------------------------------------------------------------------------

    def listen(self, connection: Any) -> list[int]:
        """Register for the events that are hints for us; how to deregister. Drivers that have none do without."""
        libvirt = require_extra("libvirt", "libvirt")
        kinds = (
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, self._refused),
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._changed),
        )
        registered = []
        for kind, handler in kinds:
            with contextlib.suppress(libvirt.libvirtError):
                registered.append(connection.domainEventRegisterAny(None, kind, handler, None))
        return registered

    # These run in the thread of the event loop: they wake who waits and do nothing else.

    def _removed(self, _connection: Any, domain: Any, alias: str, _: object) -> None:
        self.waiters.tell(Hint.REMOVED, domain.UUIDString(), alias)

    def _refused(self, _connection: Any, domain: Any, alias: str, _: object) -> None:
        self.waiters.tell(Hint.REFUSED, domain.UUIDString(), alias)

    def _changed(self, _connection: Any, domain: Any, _event: int, _detail: int, _: object) -> None:
        self.waiters.tell(Hint.CHANGED, domain.UUIDString())


@contextlib.contextmanager
def _signal(means: Callable[[Failure], bool], signal: type[Exception]) -> Iterator[None]:
    """Raise *signal* where libvirt's error *means* that; only around calls whose callers know it."""
    libvirt = require_extra("libvirt", "libvirt")
    try:
        yield
    except libvirt.libvirtError as error:
        failure = failure_of(error)
        if means(failure):
            raise signal(failure.message) from error
        raise


# --- past the definition ---------------------------------------------------------------------------------------------


def _monitor(domain: Any, execute: str, **arguments: object) -> str:
    """QEMU's own answer. Needs the library that libvirt has for that; a domain that was asked is marked as such."""
    monitor = require_extra("libvirt_qemu", "libvirt")
    if domain.connect().getType() != "QEMU":
        raise UnsupportedFeature(f"{domain.connect().getType()} has no QEMU monitor", needed="QEMU")
    answer: str = monitor.qemuMonitorCommand(domain, command(execute, **arguments), 0)
    return answer


def _open_disks(domain: Any) -> OpenDisks | None:
    libvirt = require_extra("libvirt", "libvirt")
    try:
        if domain.isActive():
            return read_open(_monitor(domain, "query-block"), _monitor(domain, "query-named-block-nodes", flat=True))
    except libvirt.libvirtError as error:
        if _unanswered(failure_of(error)):
            raise
    except (MissingExtra, UnsupportedFeature):
        pass
    try:
        domain.memoryStats()
    except libvirt.libvirtError as error:
        failure = failure_of(error)
        if _unanswered(failure) or failure.code == ACCESS_DENIED:
            raise
    return None


def _unanswered(failure: Failure) -> bool:
    return connection_lost(failure) or failure.code == OPERATION_TIMEOUT or is_missing_guest(failure)


def _delete_device(domain: Any, device: str) -> None:
    text = failure_text(_monitor(domain, "device_del", id=device))
    if text is None:
        return
    if "DeviceNotFound" in text:
        raise DeviceNotFound(f"QEMU has no {device}", identifier=device)
    failure = Failure(code=INTERNAL_ERROR, domain=0, message=text)
    if unplug_running(failure):
        raise UnplugRunning(text)
    if guest_busy(failure):
        raise GuestBusy(text, identifier=device)
    raise HypervisorError(f"device_del {device}: QEMU: {text}", code=INTERNAL_ERROR)


def _close_nodes(domain: Any, nodes: tuple[str, ...]) -> bool:
    """Close them, readers before what they read; False when some are in use, or a job of libvirt's is under way."""
    if domain.jobInfo()[0]:
        return False
    left = list(nodes)
    for _ in nodes:
        left = [node for node in left if failure_text(_monitor(domain, "blockdev-del", **{"node-name": node}))]
    for name in _secrets(_monitor(domain, "qom-list", path="/objects"), set(nodes) - set(left)):
        _monitor(domain, "object-del", id=name)
    return not left


def _secrets(objects: str, closed: set[str]) -> list[str]:
    """Keys that were given to QEMU for nodes that are closed."""
    names = [one.get("name", "") for one in json.loads(objects).get("return", ())]
    return [name for name in names if any(name.startswith(f"{node}-") for node in closed)]


# --- definitions -----------------------------------------------------------------------------------------------------


def _keep(domain: Any, volume_id: str, xml: str | None, flags: int) -> None:
    """Write *xml* of a disk that is taken out into the metadata of a definition, or forget it."""
    libvirt = require_extra("libvirt", "libvirt")
    try:
        _note(domain, f"{KEPT}{volume_id}", xml, flags)
    except libvirt.libvirtError as error:
        failure = failure_of(error)
        if connection_lost(failure) or is_missing_guest(failure):
            raise
        _log.info("volume %s cannot be kept in the metadata: %s", volume_id, failure.message)


def _note(domain: Any, space: str, xml: str | None, flags: int) -> None:
    """Write *xml* of a disk into the metadata under *space*, or take it out."""
    libvirt = require_extra("libvirt", "libvirt")
    kept = None if xml is None else f"<disk>{escape(xml)}</disk>"
    key = None if xml is None else "cloudcore"
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, kept, key, space, flags)


def _view(domain: Any) -> GuestView:
    active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    state = GuestState.OFF
    if active:
        state = GuestState.PAUSED if domain.state()[0] in _PAUSED_STATES else GuestState.RUNNING
    live = domain.XMLDesc(0) if active else None
    saved = domain.XMLDesc(_INACTIVE) if persistent else None
    with_removed = live if saved is None else saved
    return GuestView(
        instance_id=domain.UUIDString(),
        state=state,
        live=None if live is None else domain_disks(live),
        persistent=None if saved is None else domain_disks(saved),
        removed=removed_disks(with_removed) if with_removed and KEPT in with_removed else (),
        passed_units=frozenset().union(*(passed_units(one) for one in (live, saved) if one is not None)),
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
