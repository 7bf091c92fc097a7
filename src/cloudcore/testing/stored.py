"""A compute host that lives in a file: its guests, its devices, and what must never happen to them.

It outlives the death of the process that drives it, and is shared by as many processes as wish. Every breach of a
safety rule is written down at the moment it happens, so that a battery of crashes and races can ask afterwards:

* an exclusive volume has two users;
* a guest gets a disk whose device is not on its host, or loses the device while it has the disk;
* a backend unmaps a volume from a host that still has its device, or whose guest still has the disk.
"""

from __future__ import annotations

import pickle
import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.volumes.values import Connector
from cloudcore.disks import BlockSource, DetachOutcome, Disk, DiskState
from cloudcore.errors import Conflict, DeviceNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import AttachMode, ConnectionInfo, VolumeAttachment

__all__ = ["StoredHost", "StoredWorld", "WatchedVolumes"]

_SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE IF NOT EXISTS disks (
    host TEXT, instance TEXT, volume TEXT, live BLOB, persistent BLOB, PRIMARY KEY (host, instance, volume));
CREATE TABLE IF NOT EXISTS devices (host TEXT, volume TEXT, PRIMARY KEY (host, volume));
CREATE TABLE IF NOT EXISTS mappings (attachment TEXT PRIMARY KEY, host TEXT, instance TEXT, volume TEXT);
CREATE TABLE IF NOT EXISTS stubborn (instance TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS dead (host TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS breaches (text TEXT);
"""


class StoredWorld:
    """The file, and what the referee sees in it. May be shared between threads; other processes open their own."""

    def __init__(self, path: Path) -> None:
        self._mutex = threading.RLock()
        self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
        self._connection.executescript(_SCHEMA)
        self._connection.execute("PRAGMA synchronous=OFF")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction; nothing else happens meanwhile, in any process."""
        with self._mutex:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def breaches(self) -> list[str]:
        """Every rule that was broken, in order."""
        with self.transaction() as connection:
            return [text for (text,) in connection.execute("SELECT text FROM breaches")]

    def make_stubborn(self, instance_id: str, *, stubborn: bool = True) -> None:
        """Let a guest not let go of its disks, until it is told otherwise."""
        with self.transaction() as connection:
            if stubborn:
                connection.execute("INSERT OR IGNORE INTO stubborn VALUES (?)", (instance_id,))
            else:
                connection.execute("DELETE FROM stubborn WHERE instance = ?", (instance_id,))

    def migrate(self, instance_id: str, source: str, destination: str) -> None:
        """Move the running guest with its disks, as a hypervisor does."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE disks SET host = ? WHERE host = ? AND instance = ?", (destination, source, instance_id)
            )
            breach(connection, _missing_devices(connection, destination))

    def kill_host(self, host: str) -> None:
        """Its guests and devices are gone, and so is what it could do to the volumes."""
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO dead VALUES (?)", (host,))
            connection.execute("DELETE FROM disks WHERE host = ?", (host,))
            connection.execute("DELETE FROM devices WHERE host = ?", (host,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def breach(connection: sqlite3.Connection, texts: list[str]) -> None:
    """Write down what was broken."""
    connection.executemany("INSERT INTO breaches VALUES (?)", [(text,) for text in texts])


def _missing_devices(connection: sqlite3.Connection, host: str) -> list[str]:
    rows = connection.execute(
        "SELECT instance, volume FROM disks WHERE host = ? "
        "AND volume NOT IN (SELECT volume FROM devices WHERE host = ?)",
        (host, host),
    )
    return [f"guest {instance} has volume {volume} on {host}, which has no such device" for instance, volume in rows]


class StoredHost:
    """One host of a :class:`StoredWorld`: both :class:`~cloudcore.disks.GuestDisks` and a host connector."""

    def __init__(self, world: StoredWorld, name: str = "compute-1") -> None:
        self._world = world
        self._name = name

    @property
    def host(self) -> str:
        """Its name."""
        return self._name

    # --- guests -------------------------------------------------------------------------------------------------------

    def attach_disk(self, instance_id: str, disk: Disk) -> DiskState:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        stored = pickle.dumps(disk)
        with self._world.transaction() as connection:
            found = self._row(connection, instance_id, disk.volume_id)
            if found is not None and found[0] is not None and _disk(found[0]) != disk:
                raise Conflict(f"guest {instance_id} has volume {disk.volume_id} otherwise")
            connection.execute(
                "INSERT OR REPLACE INTO disks VALUES (?, ?, ?, ?, ?)",
                (self._name, instance_id, disk.volume_id, stored, stored),
            )
            breach(connection, _missing_devices(connection, self._name))
            if not disk.shareable:
                others = connection.execute(
                    "SELECT instance FROM disks WHERE volume = ? AND instance != ?", (disk.volume_id, instance_id)
                ).fetchall()
                breach(connection, [f"exclusive volume {disk.volume_id}: {instance_id} and {o[0]}" for o in others])
        return self.disk_state(instance_id, disk.volume_id)

    def detach_disk(self, instance_id: str, volume_id: str) -> DetachOutcome:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._world.transaction() as connection:
            if self._row(connection, instance_id, volume_id) is None:
                return DetachOutcome.DETACHED
            if connection.execute("SELECT 1 FROM stubborn WHERE instance = ?", (instance_id,)).fetchone():
                return DetachOutcome.PENDING
            connection.execute(
                "DELETE FROM disks WHERE host = ? AND instance = ? AND volume = ?", (self._name, instance_id, volume_id)
            )
        return DetachOutcome.DETACHED

    def disk_state(self, instance_id: str, volume_id: str) -> DiskState:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._world.transaction() as connection:
            found = self._row(connection, instance_id, volume_id)
        live, persistent = found or (None, None)
        return DiskState(instance_id=instance_id, volume_id=volume_id, live=_disk(live), persistent=_disk(persistent))

    def disk_states(self) -> tuple[DiskState, ...]:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        with self._world.transaction() as connection:
            rows = connection.execute(
                "SELECT instance, volume, live, persistent FROM disks WHERE host = ?", (self._name,)
            ).fetchall()
        return tuple(
            DiskState(instance_id=i, volume_id=v, live=_disk(live), persistent=_disk(persistent))
            for i, v, live, persistent in rows
        )

    def resize_disk(self, instance_id: str, volume_id: str, size: int) -> None:
        """See :class:`~cloudcore.disks.GuestDisks`."""
        if not self.disk_state(instance_id, volume_id).present:
            raise DeviceNotFound(f"guest {instance_id} has no volume {volume_id}", identifier=volume_id)

    def forget(self, instance_id: str, volume_id: str, *, persistent_only: bool = False) -> None:
        """Lose the disk behind everybody's back; with *persistent_only*, the running guest keeps it."""
        where = "WHERE host = ? AND instance = ? AND volume = ?"
        verb = "UPDATE disks SET persistent = NULL" if persistent_only else "DELETE FROM disks"
        with self._world.transaction() as connection:
            connection.execute(f"{verb} {where}", (self._name, instance_id, volume_id))

    def _row(self, connection: sqlite3.Connection, instance_id: str, volume_id: str) -> Any:
        return connection.execute(
            "SELECT live, persistent FROM disks WHERE host = ? AND instance = ? AND volume = ?",
            (self._name, instance_id, volume_id),
        ).fetchone()

    # --- devices ------------------------------------------------------------------------------------------------------

    def describe(self) -> Connector:
        """See :class:`~cloudcore.attach.HostConnector`."""
        return Connector(host=self._name, ip="127.0.0.1")

    def acts_on(self, info: ConnectionInfo) -> bool:
        """Always."""
        return True

    def connect(self, info: ConnectionInfo) -> HostDevice:
        """See :class:`~cloudcore.attach.HostConnector`."""
        volume = str(info.data["volume_id"])
        with self._world.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO devices VALUES (?, ?)", (self._name, volume))
        return HostDevice(source=BlockSource(f"/dev/stored/{volume}"), connected=True, details={"volume": volume})

    def disconnect(self, info: ConnectionInfo | None, device: HostDevice, *, force: bool = False) -> None:
        """See :class:`~cloudcore.attach.HostConnector`."""
        with self._world.transaction() as connection:
            connection.execute(
                "DELETE FROM devices WHERE host = ? AND volume = ?", (self._name, device.details["volume"])
            )
            breach(connection, _missing_devices(connection, self._name))

    def extended(self, info: ConnectionInfo, device: HostDevice) -> int | None:
        """Nothing to see."""
        return None

    def connections(self) -> tuple[str, ...] | None:
        """See :class:`~cloudcore.attach.HostConnector`."""
        with self._world.transaction() as connection:
            rows = connection.execute("SELECT volume FROM devices WHERE host = ?", (self._name,))
            return tuple(volume for (volume,) in rows)


class WatchedVolumes:
    """Any volume service, watched: an unmapping that comes too early is a breach. Everything else is passed on."""

    def __init__(self, service: VolumeService, world: StoredWorld) -> None:
        self._service = service
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions are of this object, and a copy is asked before it is filled
            raise AttributeError(name)
        return getattr(self._service, name)

    def create(
        self, volume_id: str, instance_id: str, connector: Connector, *, mode: AttachMode = "rw"
    ) -> VolumeAttachment:
        """See :class:`~cloudcore.attach.VolumeService`."""
        made = self._service.create(volume_id, instance_id, connector, mode=mode)
        self._mapped(made, connector)
        return made

    def update(self, attachment_id: str, connector: Connector) -> VolumeAttachment:
        """See :class:`~cloudcore.attach.VolumeService`."""
        made = self._service.update(attachment_id, connector)
        self._mapped(made, connector)
        return made

    def _mapped(self, made: VolumeAttachment, connector: Connector) -> None:
        row = (made.id, connector.host, made.instance_id, made.volume_id)
        with self._world.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO mappings VALUES (?, ?, ?, ?)", row)

    def delete(self, attachment_id: str) -> None:
        """See :class:`~cloudcore.attach.VolumeService`; the referee looks before the service acts."""
        with self._world.transaction() as connection:
            row = connection.execute(
                "SELECT host, instance, volume FROM mappings WHERE attachment = ?", (attachment_id,)
            ).fetchone()
            if row is not None:
                breach(connection, _too_early(connection, attachment_id, *row))
                connection.execute("DELETE FROM mappings WHERE attachment = ?", (attachment_id,))
        self._service.delete(attachment_id)


def _too_early(connection: sqlite3.Connection, attachment: str, host: str, instance: str, volume: str) -> list[str]:
    if connection.execute("SELECT 1 FROM dead WHERE host = ?", (host,)).fetchone():
        return []
    found = []
    key = (host, instance, volume)
    if connection.execute("SELECT 1 FROM disks WHERE host = ? AND instance = ? AND volume = ?", key).fetchone():
        found.append(f"volume {volume} was unmapped from {host} while guest {instance} has it")
    others = connection.execute(
        "SELECT 1 FROM mappings WHERE host = ? AND volume = ? AND attachment != ?", (host, volume, attachment)
    ).fetchone()
    device = connection.execute("SELECT 1 FROM devices WHERE host = ? AND volume = ?", (host, volume)).fetchone()
    if device and not others:
        found.append(f"volume {volume} was unmapped from {host} while the host has its device")
    return found


def _disk(stored: bytes | None) -> Disk | None:
    found: Disk | None = None if stored is None else pickle.loads(stored)  # noqa: S301 - this module wrote it
    return found
