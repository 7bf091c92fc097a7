"""What a compute host does for a volume before a guest can have it: often nothing.

A :class:`HostConnector` speaks for one host. :class:`PlainConnector` serves everything that needs no connection:
network disks, which QEMU opens by itself, and paths that are there already. ``cloudcore.attach.hosts.brick`` adapts
os-brick.
"""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.volumes.sources import source_of
from cloudcore.attach.volumes.values import Connector
from cloudcore.disks import BlockSource, FileSource
from cloudcore.errors import Conflict, DeviceNotFound, InvalidConnector

if TYPE_CHECKING:
    from cloudcore.attach.volumes.values import ConnectionInfo
    from cloudcore.disks import GuestDisks

__all__ = ["ConnectionKeeper", "Host", "HostConnector", "PlainConnector", "verify_device"]


@runtime_checkable
class HostConnector(Protocol):
    """Makes and ends the connections of one host. May be shared between threads; runs on that host.

    Both verbs can be repeated: connecting what is connected returns the same device, disconnecting what is gone
    succeeds. Errors never hold connection information.
    """

    def describe(self) -> Connector:
        """What the host says of itself, for the volume service."""

    def acts_on(self, info: ConnectionInfo) -> bool:
        """Whether :meth:`connect` does anything on the host for this connection, or only says where the bytes are."""

    def connect(self, info: ConnectionInfo) -> HostDevice:
        """Make the volume reachable for QEMU on this host.

        Raises:
            UnsupportedFeature: This connector does not know the kind of connection.
            DeviceNotFound: The device did not appear.
            DeadlineExceeded: It may still appear.
        """

    def disconnect(self, info: ConnectionInfo | None, device: HostDevice, *, force: bool = False) -> None:
        """End the connection: flush, then remove the device. Only called for the last user on the host.

        Args:
            info: What the service says of it; None if the service no longer knows.
            device: What :meth:`connect` returned.
            force: Go on past errors of flushing, for devices whose backend is gone.

        Raises:
            Conflict: The device is in use.
            DeadlineExceeded: Unknown whether it is gone.
        """

    def extended(self, info: ConnectionInfo, device: HostDevice) -> int | None:
        """Make the host see the new size of the volume; return it in bytes, None where the host has nothing to see."""

    def connections(self) -> tuple[str, ...] | None:
        """Volume ids of what is connected on the host, None where that cannot be told."""


@runtime_checkable
class ConnectionKeeper(Protocol):
    """What a :class:`HostConnector` may have beside: it knows what it connected, and can end what nobody uses.

    :meth:`AttachmentManager.audit` finds what is left over, and what was lost, only by one.
    """

    def has(self, device: HostDevice) -> bool:
        """Whether *device*, of an earlier connect, is still there."""

    def devices(self, volume_id: str) -> tuple[HostDevice, ...]:
        """The devices that were made for the volume and not ended; without those whose making was interrupted."""

    def rename(self, volume_id: str, new_id: str) -> None:
        """Count what is connected as *volume_id* as volume *new_id*, which it is after a migration. Can be repeated."""

    def release(self, volume_id: str) -> None:
        """End every connection of the volume on this host. Only called where nobody uses it.

        Raises:
            CloudcoreError: As of :meth:`HostConnector.disconnect`.
        """


class PlainConnector:
    """For volumes that need no connection: RBD and iSCSI by QEMU, files and block devices that are there.

    Args:
        connector: What the host says of itself; by default only its name and the address 127.0.0.1.
        check_paths: Look whether a local path is there, and read its size.
    """

    def __init__(
        self, connector: Connector | None = None, *, host: str | None = None, check_paths: bool = True
    ) -> None:
        if connector is not None and host is not None and connector.host != host:
            raise InvalidConnector(
                f"the connector is of host {connector.host}, not {host}", field="connector.host", value=connector.host
            )
        self._connector = connector or Connector(host=host or socket.gethostname(), ip="127.0.0.1")
        self._check_paths = check_paths

    def describe(self) -> Connector:
        """See :class:`HostConnector`."""
        return self._connector

    def acts_on(self, info: ConnectionInfo) -> bool:
        """Never."""
        return False

    def connect(self, info: ConnectionInfo) -> HostDevice:
        """See :class:`HostConnector`."""
        source = source_of(info)
        size = self._size(source.path) if isinstance(source, BlockSource | FileSource) else None
        return HostDevice(source=source, size=size)

    def _size(self, path: str) -> int | None:
        if not self._check_paths:
            return None
        try:
            found = Path(path).stat()
        except FileNotFoundError:
            raise DeviceNotFound(f"{path} is not there", identifier=path) from None
        return None if stat.S_ISBLK(found.st_mode) else found.st_size

    def disconnect(self, info: ConnectionInfo | None, device: HostDevice, *, force: bool = False) -> None:
        """Nothing to do."""

    def extended(self, info: ConnectionInfo, device: HostDevice) -> int | None:
        """The size of a local file; None otherwise."""
        return self.connect(info).size

    def connections(self) -> tuple[str, ...] | None:
        """None are ever made."""
        return ()


@attrs.frozen
class Host:
    """A compute host: its guests, and what connects volumes to it."""

    guests: GuestDisks
    connector: HostConnector

    @property
    def name(self) -> str:
        """Of the host."""
        return self.guests.host


def verify_device(device: HostDevice, recorded: HostDevice | None, size: int, volume_id: str) -> None:
    """Check that *device* can be the volume of *size* bytes, and is the one *recorded* before, if any.

    It comes before any guest gets it.

    A stale device under a reused address shows another size or serial; giving it to a guest would hand out somebody
    else's bytes.

    Raises:
        Conflict: It cannot.
    """
    if device.size is not None and size and device.size < size:
        raise Conflict(
            f"the device of volume {volume_id} has {device.size} bytes, the volume {size}: it is another one, or "
            f"stale; no guest got it",
            identifier=volume_id,
        )
    if recorded is not None and None not in {device.serial, recorded.serial} and device.serial != recorded.serial:
        raise Conflict(
            f"the device of volume {volume_id} has serial {device.serial}, and {recorded.serial} was recorded: it is "
            f"another one; no guest got it",
            identifier=volume_id,
        )
