"""Live migration by libvirt, managed by us: one call that talks to both daemons."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._extras import require_extra
from cloudcore._values import require_text
from cloudcore.errors import DeadlineExceeded, GuestBusy
from cloudcore.hypervisor.disks.migration_xml import destination_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import Disk

__all__ = ["Migration", "abort"]

_LIVE, _PERSIST_DEST, _UNDEFINE_SOURCE = 1 << 0, 1 << 3, 1 << 4  # VIR_MIGRATE_*
_SECURE, _INACTIVE, _MIGRATABLE = 1 << 0, 1 << 1, 1 << 3  # VIR_DOMAIN_XML_*
_UNDER_WAY = frozenset({1, 2})  # VIR_DOMAIN_JOB_BOUNDED, VIR_DOMAIN_JOB_UNBOUNDED
_LOOK_AGAIN = 10.0  # seconds
_LARGEST = 1 << 24  # characters of a definition


@attrs.define(kw_only=True)
class Migration:
    """How a guest is to be moved, and whether it is on its way. Runs once; may be given up by another thread."""

    uri: str | None = None
    listen_address: str | None = None
    disks: tuple[Disk, ...] = ()
    edit: Callable[[str], str] | None = None
    ended: threading.Event = attrs.field(factory=threading.Event, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _begun: bool = attrs.field(default=False, init=False)
    _given_up: bool = attrs.field(default=False, init=False)

    def run(self, here: Any, there: Any, instance_id: str) -> None:
        """Move it from the connection *here* to the connection *there*. Blocks until it has arrived.

        Raises:
            GuestBusy: Something else is done with the guest, another migration perhaps; nothing was begun.
            DeadlineExceeded: It was given up before it began.
        """
        domain = here.lookupByUUIDString(instance_id)
        flags, parameters = _LIVE, {"destination_xml": self.definition(domain.XMLDesc(_SECURE | _MIGRATABLE))}
        if domain.isPersistent():
            flags |= _PERSIST_DEST | _UNDEFINE_SOURCE
            parameters["persistent_xml"] = self.definition(domain.XMLDesc(_SECURE | _INACTIVE | _MIGRATABLE))
        if self.uri is not None:
            parameters["migrate_uri"] = self.uri
        if self.listen_address is not None:
            parameters["listen_address"] = self.listen_address
        _refuse_busy(domain, instance_id)
        self._begin(instance_id)
        try:
            domain.migrate3(there, parameters, flags)
        finally:
            self.ended.set()

    def _begin(self, instance_id: str) -> None:
        with self._lock:
            if self._given_up:
                raise DeadlineExceeded(f"migration of guest {instance_id} was given up before it began")
            self._begun = True

    def give_up(self) -> bool:
        """Let it not begin any more; True when it has begun, and has not ended."""
        with self._lock:
            self._given_up = True
            return self._begun and not self.ended.is_set()

    def definition(self, source: str) -> str:
        """*source* as the destination needs it."""
        changed = destination_xml(source, self.disks)
        return require_text(self.edit(changed), "edit", maximum=_LARGEST) if self.edit else changed


def _refuse_busy(domain: Any, instance_id: str) -> None:
    """While another job is under way libvirt waits for it, and what is cancelled meanwhile is that one."""
    libvirt = require_extra("libvirt", "libvirt")
    try:
        job = domain.jobInfo()[0]
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
        return
    if job in _UNDER_WAY:
        raise GuestBusy(
            f"guest {instance_id} is being migrated, saved or copied already: nothing was begun",
            identifier=instance_id,
            retry_after=_LOOK_AGAIN,
        )


def abort(connection: Any, instance_id: str) -> None:
    """End what is done with the guest; nothing to end, or no guest any more, is no error."""
    libvirt = require_extra("libvirt", "libvirt")
    try:
        connection.lookupByUUIDString(instance_id).abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}:
            raise
