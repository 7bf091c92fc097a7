"""Snapshots of embedded volumes: a row, and a copy of the volume's file where it has one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._values import normalise_uuid, require_text
from cloudcore.attach.tables import embedded_snapshots, embedded_volumes
from cloudcore.attach.volumes.embedded_migrations import stored_under
from cloudcore.attach.volumes.values import VolumeSnapshot
from cloudcore.database import hold
from cloudcore.errors import VolumeNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.engine import Connection, Row

    from cloudcore.database import Database

__all__ = ["EmbeddedSnapshots"]

_S = embedded_snapshots
_V = embedded_volumes


class EmbeddedSnapshots:
    """Makes, lists and deletes them. May be shared between threads."""

    def __init__(self, database: Database, directory: Path | None, new_id: Callable[[], str]) -> None:
        self._database = database
        self._directory = directory
        self._new_id = new_id

    def make(self, volume_id: str, name: str) -> VolumeSnapshot:
        """See :meth:`VolumeService.snapshot`. The file is copied while nobody else changes the volume's row."""
        volume_id, name = normalise_uuid(volume_id, "volume_id"), require_text(name, "name", maximum=255)
        identifier = self._new_id()

        def work(connection: Connection) -> VolumeSnapshot:
            volume = hold(connection, _V, _V.c.id == volume_id)
            if volume is None:
                raise VolumeNotFound(f"no volume {volume_id}", identifier=volume_id)
            same = sa.and_(_S.c.volume_id == volume_id, _S.c.name == name)
            found = connection.execute(sa.select(_S).where(same)).one_or_none()
            if found is None:
                if self._directory is not None:
                    stored = self._directory / f"volume-{stored_under(volume)}"
                    shutil.copyfile(stored, self._directory / f"snapshot-{identifier}")
                row = {"id": identifier, "volume_id": volume_id, "name": name, "size": volume.size}
                connection.execute(sa.insert(_S), row)
                found = connection.execute(sa.select(_S).where(same)).one()
            return _snapshot(found)

        return self._database.run(work)

    def of(self, volume_id: str) -> tuple[VolumeSnapshot, ...]:
        """See :meth:`VolumeService.snapshots`."""
        wanted = sa.select(_S).where(_S.c.volume_id == normalise_uuid(volume_id, "volume_id")).order_by(_S.c.name)
        with self._database.read() as connection:
            return tuple(_snapshot(row) for row in connection.execute(wanted))

    def delete(self, snapshot_id: str) -> None:
        """See :meth:`VolumeService.delete_snapshot`."""
        identifier = normalise_uuid(snapshot_id, "snapshot_id")
        self._database.run(lambda connection: connection.execute(sa.delete(_S).where(_S.c.id == identifier)))
        if self._directory is not None:
            (self._directory / f"snapshot-{identifier}").unlink(missing_ok=True)


def _snapshot(row: Row[Any]) -> VolumeSnapshot:
    return VolumeSnapshot(id=row.id, volume_id=row.volume_id, name=row.name, size=row.size, status="available")
