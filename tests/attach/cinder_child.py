"""What the kill tests run in a process of its own, and guests that outlive it."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

from cloudcore import _failpoints
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.disks import DetachOutcome, Disk, DiskState
from cloudcore.errors import Conflict, DeviceNotFound
from tests.services import PROJECT


class FileGuests:
    """Guests whose disks are files, one for each: what they have, they have, whoever dies."""

    def __init__(self, folder: Path, host: str = "localhost") -> None:
        self.host = host
        self._folder = Path(folder) / host
        self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, instance_id: str, volume_id: str) -> Path:
        return self._folder / f"{instance_id}.{volume_id}"

    def _read(self, path: Path) -> Disk | None:
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        path = self._path(instance_id, disk.volume_id)
        if (found := self._read(path)) not in (None, disk):
            raise Conflict(f"{instance_id} has {disk.volume_id} as {found}", identifier=disk.volume_id)
        scratch = path.with_suffix(f".{os.getpid()}.new")
        scratch.write_bytes(pickle.dumps(disk))
        scratch.rename(path)
        return self.disk_state(instance_id, disk.volume_id)

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        self._path(instance_id, volume_id).unlink(missing_ok=True)
        return DetachOutcome.DETACHED

    def disk_state(self, instance_id: str, volume_id: str) -> DiskState:
        disk = self._read(self._path(instance_id, volume_id))
        return DiskState(instance_id=instance_id, volume_id=volume_id, live=disk, persistent=disk)

    def disk_states(self) -> tuple[DiskState, ...]:
        names = [path.name.split(".") for path in self._folder.iterdir() if not path.name.endswith(".new")]
        return tuple(self.disk_state(instance_id, volume_id) for instance_id, volume_id in sorted(names))

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        if not self.disk_state(instance_id, volume_id).present:
            raise DeviceNotFound(f"{instance_id} has no {volume_id}", identifier=volume_id)


def open_manager(database: str, endpoint: str, folder: str, **options: object) -> AttachmentManager:
    """A manager over this journal, this Cinder and the guests in this folder, on hosts "a" and "b"."""
    volumes = CinderVolumes.noauth(endpoint, project_id=PROJECT)
    hosts = [FileGuests(Path(folder), name) for name in ("a", "b")]
    return AttachmentManager(database, volumes, hosts, **options)


def run(
    point: str, action: str, arguments: tuple[object, ...], options: dict[str, object], place: tuple[str, str, str]
) -> None:
    """Call this method of a manager and die by kill -9 when *point* is passed. Ends with 0 if it never is.

    Args:
        point: Of the failpoints.
        action: Name of the method.
        arguments: For it.
        options: For it, by keyword.
        place: For `open_manager`.
    """

    def die(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    manager = open_manager(*place)
    _failpoints.arm("*", die)
    method: Callable[..., object] = getattr(manager, action)
    try:
        method(*arguments, **options)
    finally:
        os._exit(0)
