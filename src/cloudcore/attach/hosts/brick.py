"""Host connections made by os-brick: iSCSI, Fibre Channel, NVMe-oF and what else it knows.

Runs on the compute host, with the privileges that os-brick needs (``root_helper``). os-brick is imported on first use:
``pip install "cloudcore[brick]"``.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudcore._extras import require_extra
from cloudcore._values import require_text
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.volumes.sources import LOCAL_KINDS, NETWORK_KINDS
from cloudcore.attach.volumes.values import ConnectionInfo, Connector
from cloudcore.disks import BlockSource, FileSource
from cloudcore.errors import CloudcoreError, Conflict, DeviceNotFound, InvalidArgument, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BrickConnector"]

_KEPT = frozenset({"type", "path", "scsi_wwn", "multipath_id"})


class BrickConnector:
    """Adapts os-brick to :class:`~cloudcore.attach.HostConnector`.

    Kinds that QEMU opens by itself (RBD) and local paths need no connection and are not given to os-brick.
    May be shared between threads: os-brick locks between threads and processes by itself, in *lock_path*, which every
    service of the host that uses os-brick (Cinder's too) must share.

    Args:
        host: Name of this compute host, as the volume service is to know it.
        lock_path: Directory of os-brick's lock files. There is no default: two services with different ones take each
            other's devices away.
        root_helper: The command with which os-brick gains privileges, such as ``"sudo cinder-rootwrap ..."``.
        ip: Address from which the host reaches storage.
        multipath: Use several paths.
        enforce_multipath: Fail where they are not to be had.
        by_qemu: Kinds that QEMU opens on this host without os-brick.
        module: os-brick's ``initiator.connector`` module, for tests; by default it is imported.
    """

    def __init__(
        self,
        host: str,
        *,
        lock_path: str,
        root_helper: str = "sudo",
        ip: str = "127.0.0.1",
        multipath: bool = False,
        enforce_multipath: bool = False,
        by_qemu: frozenset[str] = frozenset({"rbd"}),
        module: Any = None,
    ) -> None:
        self._host = require_text(host, "host")
        self._lock_path = require_text(lock_path, "lock_path", maximum=4000)
        if unknown := sorted(by_qemu - NETWORK_KINDS):
            raise InvalidArgument(f"by_qemu: QEMU cannot open {', '.join(unknown)}", field="by_qemu", value=unknown)
        self._root_helper = root_helper
        self._ip = ip
        self._multipath = multipath
        self._enforce_multipath = enforce_multipath
        self._plain_kinds = by_qemu | LOCAL_KINDS
        self._module = module
        self._mutex = threading.Lock()
        self._described: Connector | None = None

    def describe(self) -> Connector:
        """What os-brick reports of this host; asked once.

        Raises:
            MissingExtra: os-brick is not installed.
        """
        with self._mutex:
            if self._described is None:
                found = self._brick().get_connector_properties(
                    self._root_helper, self._ip, self._multipath, self._enforce_multipath, host=self._host
                )
                self._described = Connector.from_mapping({**found, "host": self._host})
            return self._described

    def acts_on(self, info: ConnectionInfo) -> bool:
        """Unless QEMU opens it by itself, or the path is there already."""
        return info.kind not in self._plain_kinds

    def connect(self, info: ConnectionInfo) -> HostDevice:
        """See :class:`~cloudcore.attach.HostConnector`."""
        if not self.acts_on(info):
            return self._plain().connect(info)
        found = _guarded("connect", info, lambda: self._connector(info).connect_volume(dict(info.data)))
        path = found.get("path") if isinstance(found, dict) else None
        if not isinstance(path, str | Path) or not str(path):
            raise DeviceNotFound(f"os-brick connected a volume of kind {info.kind} and named no path")
        path = str(path)
        source = BlockSource(path) if found.get("type", "block") == "block" else FileSource(path, _format(info))
        return HostDevice(
            source=source,
            size=_size(path),
            serial=found.get("scsi_wwn"),
            connected=True,
            details={name: value for name, value in found.items() if name in _KEPT},
        )

    def disconnect(self, info: ConnectionInfo | None, device: HostDevice, *, force: bool = False) -> None:
        """See :class:`~cloudcore.attach.HostConnector`.

        Raises:
            Conflict: The service no longer knows how the device was connected, so that it cannot be told from others:
                an operator has to look.
            OutcomeUnknown: os-brick failed; it can be repeated.
        """
        if info is None:
            raise Conflict(
                f"the service forgot the connection of {device.details.get('path')}; remove the device by hand, then "
                f"detach again",
                identifier=str(device.details.get("path")),
            )
        if not self.acts_on(info):
            return
        data, details = dict(info.data), dict(device.details)
        _guarded("disconnect", info, lambda: self._connector(info).disconnect_volume(data, details, force=force))

    def extended(self, info: ConnectionInfo, device: HostDevice) -> int | None:
        """See :class:`~cloudcore.attach.HostConnector`."""
        if not self.acts_on(info):
            return self._plain().extended(info, device)
        size = _guarded("extend", info, lambda: self._connector(info).extend_volume(dict(info.data)))
        if not isinstance(size, int):
            raise OutcomeUnknown(f"os-brick could not say the new size of {device.details.get('path')}; repeat")
        return size

    def connections(self) -> tuple[str, ...] | None:
        """Nothing on a host says which volume a device is of."""
        return None

    def _plain(self) -> PlainConnector:
        return PlainConnector(host=self._host)

    def _connector(self, info: ConnectionInfo) -> Any:
        return self._brick().InitiatorConnector.factory(
            info.kind, self._root_helper, use_multipath=self._multipath, device_scan_attempts=5
        )

    def _brick(self) -> Any:
        if self._module is None:
            settings = require_extra("os_brick.opts", "brick").cfg.CONF
            settings.set_default("lock_path", self._lock_path, "os_brick")
            self._module = require_extra("os_brick.initiator.connector", "brick")
        return self._module


def _size(path: str) -> int | None:
    """Size of the device or file in bytes; None where this process may not look."""
    try:
        with Path(path).open("rb") as device:
            return device.seek(0, 2)
    except OSError:
        return None


def _format(info: ConnectionInfo) -> str:
    return str(info.data.get("format") or "raw")


def _guarded(verb: str, info: ConnectionInfo, call: Callable[[], Any]) -> Any:
    """Call os-brick. Its errors may quote what it was given, so only their class is passed on."""
    try:
        return call()
    except CloudcoreError:
        raise
    except Exception as error:  # os-brick raises what its tools raise
        name = type(error).__name__
        if name in {"VolumeDeviceNotFound", "TargetPortalNotFound", "TargetPortalsNotFound", "VolumePathsNotFound"}:
            raise DeviceNotFound(f"os-brick {verb} of kind {info.kind}: {name}") from None
        raise OutcomeUnknown(f"os-brick {verb} of kind {info.kind}: {name}; it can be repeated") from None
