"""Which volumes a host was connected to, written down on that host: nothing else there says whose a device is.

An entry is made before anything is done on the host and struck out when the device is gone, so a crash in between
leaves an entry too many, never one too few. It holds the address of the volume, without which it cannot be disconnected
once the volume service has forgotten it, and no secret. Devices do not outlive a boot: entries of an earlier one are
none.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["ConnectionLedger", "Entry"]

_ADDRESS = frozenset(
    {
        "addressing_mode", "alias", "encrypted", "enforce_multipath", "export", "format", "host_nqn",
        "initiator_target_lun_map", "initiator_target_map", "mount_point_base", "name", "nqn", "ns_id", "portals",
        "replica_count", "target_iqn", "target_iqns", "target_lun", "target_luns", "target_nqn", "target_port",
        "target_portal", "target_portals", "target_wwn", "target_wwns", "transport_type", "vol_uuid", "volume_nguid",
        "volume_replicas",
    }
)  # fmt: skip
"""What os-brick needs to find a volume's devices again. No password is among it, and of users only ScaleIO's, below."""
_ADDRESS_OF_KIND = {
    "gpfs": frozenset({"device_path"}),
    "huaweisdshypervisor": frozenset({"volume_id"}),
    "lightos": frozenset({"lightos_nodes", "subsysnqn", "uuid"}),
    "scaleio": frozenset(
        {
            "bandwidthLimit", "certificate_path", "config_group", "failed_over", "hostIP", "iopsLimit",
            "scaleIO_volname", "scaleIO_volume_id", "sdc_guid", "serverIP", "serverPort", "serverUsername",
            "verify_certificate",
        }
    ),
    "storpool": frozenset({"access_mode", "client_id", "volume"}),
}  # fmt: skip
"""The same for kinds whose connectors go by names of their own; elsewhere these words may mean something else."""
_MANNER = frozenset({"addressing_mode", "encrypted", "enforce_multipath", "format", "host_nqn", "mount_point_base"})
"""How a volume is connected, not where it is: two that differ in nothing else are at the same place."""


@attrs.frozen(kw_only=True)
class Entry:
    """One connection.

    Attributes:
        volume_id: UUID.
        kind: Of the connection.
        address: Where the volume is; the part of the connection information that is no secret.
        device: What was made of it; None while it is being made, or if that was interrupted.
    """

    volume_id: str
    kind: str
    address: Mapping[str, Any]
    device: HostDevice | None = None

    @classmethod
    def of(cls, volume_id: str, info: ConnectionInfo, device: HostDevice | None = None) -> Entry:
        """The entry for a connection."""
        keys = _ADDRESS | _ADDRESS_OF_KIND.get(info.kind.lower(), frozenset())
        address = {key: value for key, value in info.data.items() if key in keys}
        return cls(
            volume_id=volume_id, kind=info.kind, address=json.loads(json.dumps(address, default=str)), device=device
        )

    @property
    def info(self) -> ConnectionInfo:
        """The connection, without its secrets: enough to disconnect."""
        return ConnectionInfo(self.kind, self.address, volume_id=self.volume_id)

    @property
    def where(self) -> Mapping[str, Any]:
        """The part of *address* that tells one volume from another; empty for a kind that is not known here."""
        return {key: value for key, value in self.address.items() if key not in _MANNER}

    @property
    def place(self) -> str:
        """What two connections to the same place have in common."""
        return hashlib.sha256(json.dumps([self.kind, self.where], sort_keys=True).encode()).hexdigest()[:16]


class ConnectionLedger:
    """The entries of one host, a file each. May be shared between threads and processes.

    Args:
        folder: Made on first use. Everybody who may write in it may have this host disconnected.
        boot_id: Of the host's present operation; by default the kernel's.
    """

    def __init__(self, folder: str, *, boot_id: str | None = None) -> None:
        self._folder = Path(folder)
        self._boot_id = boot_id

    def enter(self, entry: Entry) -> None:
        """Write *entry* down, in place of one for the same volume at the same place.

        Raises:
            Unavailable: The directory cannot be written; what it held before is still there.
        """
        with self._usable():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = json.dumps(
                {
                    "boot": self._boot(),
                    "volume_id": entry.volume_id,
                    "kind": entry.kind,
                    "address": entry.address,
                    "device": None if entry.device is None else entry.device.as_json(),
                }
            )
            _write(self._path(entry), text)

    def strike(self, entry: Entry) -> None:
        """The connection is gone.

        Raises:
            Unavailable: The directory cannot be written; the entry is still there.
        """
        with self._usable():
            self._path(entry).unlink(missing_ok=True)

    def entries(self, volume_id: str | None = None) -> tuple[Entry, ...]:
        """Those of this boot, by volume id; those of earlier ones are removed.

        Args:
            volume_id: Only its entries; the files of other volumes are not opened.

        Raises:
            Conflict: A file is no entry: it was written by somebody else.
            Unavailable: The directory, or a file of it, cannot be read.
        """
        found = []
        with self._usable():
            for path in self._files("" if volume_id is None else f"{volume_id}."):
                with suppress(FileNotFoundError):  # struck out meanwhile
                    boot, entry = _read(path)
                    if boot != self._boot():
                        path.unlink()
                    elif volume_id in {None, entry.volume_id}:
                        found.append(entry)
        return tuple(found)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Unavailable(f"connection ledger {self._folder}: {why}; mend the directory, then repeat") from error

    def _files(self, prefix: str) -> list[Path]:
        """By their names. Not by a glob, to which a directory that cannot be read is an empty one."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:  # nothing was entered yet
            return []
        return [self._folder / name for name in sorted(names) if name.startswith(prefix) and name.endswith(".json")]

    def _path(self, entry: Entry) -> Path:
        return self._folder / f"{entry.volume_id}.{entry.place}.json"

    def _boot(self) -> str:
        if self._boot_id is None:
            self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return self._boot_id


def _write(path: Path, text: str) -> None:
    """All of it or nothing. The scratch file is this call's own: others may be writing the same entry."""
    with NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.stem}.", suffix=".new", delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _read(path: Path) -> tuple[str, Entry]:
    try:
        told = json.loads(path.read_text())
        device = HostDevice.from_json(told["device"])
        return told["boot"], Entry(
            volume_id=told["volume_id"], kind=told["kind"], address=told["address"], device=device
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise Conflict(f"{path} is no entry of a connection: look at it, and remove it", identifier=str(path))
