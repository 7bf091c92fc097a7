"""Migrations of embedded volumes: as Cinder does them, one volume takes another's place and its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.attach.tables import embedded_attachments, embedded_volumes
from cloudcore.database import hold
from cloudcore.errors import Conflict, InUse, NotMigrating, VolumeNotFound

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Row

__all__ = ["begin_migration", "complete_migration", "stored_under"]

_V = embedded_volumes
_A = embedded_attachments


def stored_under(row: Row[Any]) -> str:
    """The id that the bytes of a volume are kept under: its own, or that of the volume whose place it took."""
    return str(row.settings.get("name_id") or row.id)


def begin_migration(connection: Connection, volume_id: str, new_volume_id: str) -> None:
    """Let the one volume wait for its user to change over to the other.

    Raises:
        Conflict: It waits already.
    """
    old, new = _held(connection, volume_id), _held(connection, new_volume_id)
    if old is None or new is None:
        raise VolumeNotFound(f"no volume {volume_id if old is None else new_volume_id}", identifier=volume_id)
    if old.settings.get("migration_status") == "migrating":
        raise Conflict(f"volume {volume_id} migrates already", identifier=volume_id)
    _set(connection, old, migration_status="migrating")
    _set(connection, new, migration_status=f"target:{volume_id}")


def complete_migration(connection: Connection, volume_id: str, new_volume_id: str, *, error: bool) -> str | None:
    """See :meth:`VolumeService.complete_migration`; the id under which bytes are kept that nobody needs any more.

    Raises:
        VolumeNotFound, NotMigrating: As there.
        InUse: The volume that is to go has attachments.
    """
    old, new = _held(connection, volume_id), _held(connection, new_volume_id)
    if old is None:
        raise VolumeNotFound(f"no volume {volume_id}", identifier=volume_id)
    status = old.settings.get("migration_status")
    if new is None and status == ("error" if error else "success"):
        return None
    if new is None or status != "migrating" or new.settings.get("migration_status") != f"target:{volume_id}":
        raise NotMigrating(
            f"volume {volume_id} ({status}) is in no migration to volume {new_volume_id}", identifier=volume_id
        )
    going = new if error else old
    users = sorted(set(map(str, connection.scalars(sa.select(_A.c.instance_id).where(_A.c.volume_id == going.id)))))
    if users:
        text = f"volume {going.id} is used by {', '.join(users)}; detach it first"
        raise InUse(text, identifier=going.id, users=users)
    if error:
        _set(connection, old, migration_status="error")
    else:
        connection.execute(sa.update(_A).where(_A.c.volume_id == new.id).values(volume_id=old.id))
        settings = {**new.settings, "name_id": stored_under(new), "migration_status": "success"}
        values = {"settings": settings, "size": new.size, "status": new.status}
        connection.execute(sa.update(_V).where(_V.c.id == old.id).values(**values))
    connection.execute(sa.delete(_V).where(_V.c.id == new.id))
    return stored_under(going)


def _held(connection: Connection, volume_id: str) -> Row[Any] | None:
    return hold(connection, _V, _V.c.id == volume_id)


def _set(connection: Connection, row: Row[Any], **settings: str) -> None:
    connection.execute(sa.update(_V).where(_V.c.id == row.id).values(settings={**row.settings, **settings}))
