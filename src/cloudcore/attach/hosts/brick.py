"""Host connections made by os-brick: iSCSI, Fibre Channel, NVMe-oF, NFS and what else it knows.

Runs on the compute host, with the privileges that os-brick needs. os-brick is imported on first use:
``pip install "cloudcore[brick]"``.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._forks import when_forked
from cloudcore._values import require_text
from cloudcore.attach.hosts.brick_calls import Brick, guarded
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.hosts.ledger import ConnectionLedger, Entry
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.volumes.sources import LOCAL_KINDS, NETWORK_KINDS
from cloudcore.attach.volumes.values import Connector
from cloudcore.disks import BlockSource, FileSource
from cloudcore.errors import Conflict, DeviceNotFound, InvalidArgument, OutcomeUnknown, Unavailable, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloudcore.attach.volumes.values import ConnectionInfo

__all__ = ["BrickConnector"]

_KEPT = frozenset({"type", "path", "scsi_wwn", "multipath_id"})
_SHARES = frozenset({"nfs", "glusterfs", "quobyte", "vzstorage", "scality"})
"""Kinds whose volumes are files of a mounted share."""


class BrickConnector:
    """Adapts os-brick to :class:`~cloudcore.attach.HostConnector`.

    Kinds that QEMU opens by itself (RBD) and local paths need no connection and are not given to os-brick.
    May be shared between threads: os-brick locks between threads and processes by itself, in *lock_path*, which every
    service of the host that uses os-brick (Cinder's ``[os_brick] lock_path``) must share. What is connected is written
    down in *state_path*, so that it can be found and ended after a crash, or when the volume service has forgotten it.
    A forked child may go on with it; with a *root_helper* it starts a privileged helper of its own.

    Args:
        host: Name of this compute host, as the volume service is to know it.
        lock_path: Directory of os-brick's lock files, absolute. There is no default: two services with different ones
            take each other's devices away.
        root_helper: The command that starts os-brick's privileged helper, such as ``"sudo"`` or ``"sudo nova-rootwrap
            /etc/nova/rootwrap.conf"``. None: this process is root, and runs the tools itself.
        ip: Address from which the host reaches storage.
        multipath: Use several paths.
        enforce_multipath: Fail where they are not to be had, whether the volume service says so or not.
        scan_attempts: How often a device is looked for.
        mount_point_base: Directory in which shares (NFS) are mounted. None: the volume service's, if it names one.
        state_path: Directory of what is connected; of this host and this journal alone. By default
            ``cloudcore-connections`` in *lock_path*.
        by_qemu: Kinds that QEMU opens on this host without os-brick.
        module: os-brick's ``initiator.connector`` module, for tests; by default it is imported.

    Raises:
        InvalidArgument: An argument is none of these; or, at first use, os-brick was set up otherwise in this process.
    """

    def __init__(
        self,
        host: str,
        *,
        lock_path: str,
        root_helper: str | None = "sudo",
        ip: str = "127.0.0.1",
        multipath: bool = False,
        enforce_multipath: bool = False,
        scan_attempts: int = 5,
        mount_point_base: str | None = None,
        state_path: str | None = None,
        by_qemu: frozenset[str] = frozenset({"rbd"}),
        module: Any = None,
    ) -> None:
        self._host = require_text(host, "host")
        lock_path = require_text(lock_path, "lock_path", maximum=4000)
        if not os.path.isabs(lock_path):
            raise InvalidArgument(f"lock_path must be absolute, not {lock_path!r}", field="lock_path", value=lock_path)
        if unknown := sorted(by_qemu - NETWORK_KINDS):
            raise InvalidArgument(f"by_qemu: QEMU cannot open {', '.join(unknown)}", field="by_qemu", value=unknown)
        self._ip = ip
        self._multipath = multipath
        self._enforce_multipath = enforce_multipath
        self._scan_attempts = scan_attempts
        self._mount_point_base = mount_point_base
        self._plain_kinds = by_qemu | LOCAL_KINDS
        self._brick = Brick(lock_path, root_helper, module)
        self._ledger = ConnectionLedger(state_path or os.path.join(lock_path, "cloudcore-connections"))
        self._described: Connector | None = None
        self._unlock()
        when_forked(self, BrickConnector._unlock)

    def _unlock(self) -> None:
        self._mutex = threading.Lock()

    def describe(self) -> Connector:
        """What os-brick reports of this host; asked once.

        Raises:
            MissingExtra: os-brick is not installed.
            Unavailable: It failed, or its privileged helper did.
        """
        with self._mutex:
            if self._described is None:
                found = self._brick.properties(self._ip, self._multipath, self._enforce_multipath, self._host)
                self._described = Connector.from_mapping({**found, "host": self._host})
            return self._described

    def acts_on(self, info: ConnectionInfo) -> bool:
        """Unless QEMU opens it by itself, or the path is there already."""
        return info.kind not in self._plain_kinds

    # --- connecting ---------------------------------------------------------------------------------------------------

    def connect(self, info: ConnectionInfo) -> HostDevice:
        """See :class:`~cloudcore.attach.HostConnector`.

        Raises:
            UnsupportedFeature: os-brick does not know the kind, or nobody here knows what its address consists of; or
                several paths are a must and not to be had.
            DeviceNotFound: The device did not appear; what had been done for it was undone.
            Unavailable: *state_path* cannot be used; nothing was connected.
            OutcomeUnknown: os-brick failed, or what it made could not be written down; it can be repeated.
        """
        if not self.acts_on(info):
            return self._plain().connect(info)
        entry = None if info.volume_id is None else Entry.of(info.volume_id, info)
        if entry is not None and not entry.where:
            raise UnsupportedFeature(
                f"a volume of kind {info.kind} is at an address that this host cannot write down, and so could not "
                f"disconnect once the service has forgotten it",
                needed=info.kind,
            )
        if entry is not None and entry.place not in {one.place for one in self._ledger.entries(entry.volume_id)}:
            self._ledger.enter(entry)
        try:
            device = self._made(info)
        except DeviceNotFound:
            if entry is not None:  # os-brick has cleaned up behind itself
                self._ledger.strike(entry)
            raise
        if info.volume_id is not None:
            self._enter_made(Entry.of(info.volume_id, info, device))
        return device

    def _enter_made(self, entry: Entry) -> None:
        try:
            self._ledger.enter(entry)
        except Unavailable as error:  # which elsewhere says that nothing was done
            raise OutcomeUnknown(f"volume {entry.volume_id} was connected and not written down: {error}") from error

    def _made(self, info: ConnectionInfo) -> HostDevice:
        connector = self._connector(info)
        enforced = self._multipath and self._enforce_multipath
        found = guarded(
            "connect", info, lambda: connector.connect_volume(self._data(info)), connector if enforced else None
        )
        path = found.get("path") if isinstance(found, dict) else None
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | Path) or not str(path):
            raise DeviceNotFound(f"os-brick connected a volume of kind {info.kind} and named no path")
        path, in_file = str(path), info.kind.lower() in _SHARES
        form = str(info.data.get("format") or "raw")
        return HostDevice(
            source=FileSource(path, form) if in_file else BlockSource(path),
            size=_size(path) if not in_file or form == "raw" else None,
            serial=found.get("scsi_wwn"),
            connected=True,
            details={name: value for name, value in found.items() if name in _KEPT},
        )

    def disconnect(self, info: ConnectionInfo | None, device: HostDevice, *, force: bool = False) -> None:
        """See :class:`~cloudcore.attach.HostConnector`.

        Raises:
            FlushFailed: What was written could not be brought to the volume; the device is still there. Not with
                *force*.
            Conflict: The service no longer knows how the device was connected, and neither does this host, or another
                volume is there now: an operator has to look.
            Unavailable: *state_path* cannot be used; mend it and repeat.
            OutcomeUnknown: os-brick failed; it can be repeated.
        """
        if info is None:
            entry = self._entry_for(device)
            self._end(entry, entry.info, device.details, force=force)
        elif self.acts_on(info):
            self._end(Entry.of(info.volume_id or "", info), info, device.details, force=force)

    def _end(self, entry: Entry, info: ConnectionInfo, found: Mapping[str, Any], *, force: bool) -> None:
        data, details = self._data(info, found), dict(found)
        guarded(
            "disconnect",
            info,
            lambda: self._connector(info).disconnect_volume(data, details, force=force),
            gone_is_done=True,
        )
        self._ledger.strike(entry)

    def _entry_for(self, device: HostDevice) -> Entry:
        """The one entry by which *device* was made, if nobody else is at its place."""
        entries = self._ledger.entries()
        found = [one for one in entries if one.device is not None and one.device.details == device.details]
        path = str(device.details.get("path"))
        if len(found) != 1:
            raise Conflict(
                f"the service forgot the connection of {path}, and this host has no entry of it; remove the device by "
                f"hand, then detach again",
                identifier=path,
            )
        if others := _others_there(found[0], entries):
            raise Conflict(
                f"the service forgot the connection of {path}, and volume {others[0]} is at its address now; look "
                f"which of them the device is, and remove it by hand",
                identifier=path,
            )
        return found[0]

    def extended(self, info: ConnectionInfo, device: HostDevice) -> int | None:
        """See :class:`~cloudcore.attach.HostConnector`."""
        if not self.acts_on(info):
            return self._plain().extended(info, device)
        path = str(device.details.get("path"))
        if isinstance(device.source, FileSource):
            return _size(path) if device.source.format == "raw" else None
        connector = self._connector(info)
        size = guarded("extend", info, lambda: connector.extend_volume(self._data(info, device.details)))
        if not isinstance(size, int):
            raise OutcomeUnknown(f"os-brick could not say the new size of {path}; repeat")
        return size

    # --- what is connected --------------------------------------------------------------------------------------------

    def connections(self) -> tuple[str, ...] | None:
        """Volumes that were connected here and not disconnected, whose device is there or may be.

        Raises:
            Conflict: Somebody else wrote in *state_path*.
            Unavailable: *state_path* cannot be read.
        """
        found = {one.volume_id for one in self._ledger.entries() if one.device is None or self.has(one.device)}
        return tuple(sorted(found))

    def has(self, device: HostDevice) -> bool:
        """See :class:`~cloudcore.attach.ConnectionKeeper`."""
        return os.path.exists(str(device.details.get("path")))

    def devices(self, volume_id: str) -> tuple[HostDevice, ...]:
        """See :class:`~cloudcore.attach.ConnectionKeeper`."""
        return tuple(one.device for one in self._ledger.entries(volume_id) if one.device is not None)

    def rename(self, volume_id: str, new_id: str) -> None:
        """See :class:`~cloudcore.attach.ConnectionKeeper`."""
        for entry in self._ledger.entries(volume_id):
            self._ledger.enter(attrs.evolve(entry, volume_id=new_id))
            self._ledger.strike(entry)

    def release(self, volume_id: str) -> None:
        """See :class:`~cloudcore.attach.ConnectionKeeper`."""
        for entry in self._ledger.entries(volume_id):
            if entry.device is not None:
                self._entry_for(entry.device)
            elif _others_there(entry, self._ledger.entries()):
                self._ledger.strike(entry)  # what is there is theirs: the address was given on
                continue
            self._end(entry, entry.info, {} if entry.device is None else entry.device.details, force=False)

    # --- os-brick -----------------------------------------------------------------------------------------------------

    def _plain(self) -> PlainConnector:
        return PlainConnector(host=self._host)

    def _connector(self, info: ConnectionInfo) -> Any:
        options: dict[str, Any] = {
            "use_multipath": self._multipath,
            "device_scan_attempts": self._scan_attempts,
        }
        if info.kind.lower() in _SHARES:
            base = self._mount_point_base or info.data.get("mount_point_base")
            if not base:
                raise InvalidArgument(
                    f"volumes of kind {info.kind} are mounted: give mount_point_base", field="mount_point_base"
                )
            options["conn"] = {"mount_point_base": base}
        return guarded("open a connector for", info, lambda: self._brick.connector(info.kind, **options))

    def _data(self, info: ConnectionInfo, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What os-brick is told; as by Nova, with the path once there is one."""
        data = dict(info.data)
        if self._enforce_multipath:
            data["enforce_multipath"] = True
        if details and details.get("path"):
            data["device_path"] = details["path"]
        return data


def _others_there(entry: Entry, entries: tuple[Entry, ...]) -> list[str]:
    """Other volumes at the place of *entry*: disconnected by its address, their device would go."""
    return [one.volume_id for one in entries if one.place == entry.place and one.volume_id != entry.volume_id]


def _size(path: str) -> int | None:
    """Size of the device or file in bytes; None where this process may not look."""
    try:
        with Path(path).open("rb") as device:
            return device.seek(0, 2)
    except OSError:
        return None
