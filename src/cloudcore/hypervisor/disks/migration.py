"""Live migration by libvirt, managed by us: one call that talks to both daemons."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._extras import require_extra
from cloudcore.hypervisor.disks.migration_xml import destination_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import Disk

__all__ = ["Migration", "cancel"]

_LIVE, _PERSIST_DEST, _UNDEFINE_SOURCE = 1 << 0, 1 << 3, 1 << 4  # VIR_MIGRATE_*
_SECURE, _INACTIVE, _MIGRATABLE = 1 << 0, 1 << 1, 1 << 3  # VIR_DOMAIN_XML_*


@attrs.frozen(kw_only=True)
class Migration:
    """How a guest is to be moved."""

    uri: str | None = None
    listen_address: str | None = None
    disks: tuple[Disk, ...] = ()
    edit: Callable[[str], str] | None = None

    def run(self, here: Any, there: Any, instance_id: str) -> None:
        """Move it from the connection *here* to the connection *there*. Blocks until it has arrived."""
        domain = here.lookupByUUIDString(instance_id)
        flags, parameters = _LIVE, {"destination_xml": self.definition(domain.XMLDesc(_SECURE | _MIGRATABLE))}
        if domain.isPersistent():
            flags |= _PERSIST_DEST | _UNDEFINE_SOURCE
            parameters["persistent_xml"] = self.definition(domain.XMLDesc(_SECURE | _INACTIVE | _MIGRATABLE))
        if self.uri is not None:
            parameters["migrate_uri"] = self.uri
        if self.listen_address is not None:
            parameters["listen_address"] = self.listen_address
        domain.migrate3(there, parameters, flags)

    def definition(self, source: str) -> str:
        """*source* as the destination needs it."""
        changed = destination_xml(source, self.disks)
        return self.edit(changed) if self.edit else changed


def cancel(connection: Any, instance_id: str) -> None:
    """Give a migration up, if it is still under way."""
    libvirt = require_extra("libvirt", "libvirt")
    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByUUIDString(instance_id).abortJob()
