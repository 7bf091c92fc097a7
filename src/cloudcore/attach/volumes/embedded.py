"""A volume service in SQL, with Cinder's rules: for notebooks, tests and single machines.

Statuses, refusals and their order are Cinder's (attachments API, 3.27 and later), with one difference: each call is one
transaction, so a crash leaves no status without its record.

One module, though a long one: each verb is a transaction beside the rule that Cinder applies in it, and the rules read
the rows that the verbs have locked.
"""

from __future__ import annotations

import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_integer
from cloudcore.attach.tables import embedded_attachments, embedded_snapshots, embedded_volumes
from cloudcore.attach.volumes.embedded_migrations import begin_migration, complete_migration, stored_under
from cloudcore.attach.volumes.embedded_snapshots import EmbeddedSnapshots
from cloudcore.attach.volumes.values import (
    MAX_BYTES,
    AttachmentStatus,
    ConnectionInfo,
    Connector,
    Volume,
    VolumeAttachment,
    VolumeFeatures,
    VolumeSnapshot,
)
from cloudcore.database import Database, hold
from cloudcore.errors import (
    AttachmentNotFound,
    Conflict,
    InUse,
    InvalidArgument,
    InvalidConnector,
    InvariantViolated,
    UnsupportedFeature,
    VolumeBusy,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import URL, Connection, Engine, Row

    from cloudcore.attach.volumes.values import AttachMode

__all__ = ["EmbeddedVolumes"]

_V = embedded_volumes
_A = embedded_attachments
_IN_FLIGHT = {"reserved", "attaching", "detaching", "creating", "extending", "maintenance"}
_GIB = 1024**3


class EmbeddedVolumes:
    """Volumes whose records are in a database and whose bytes, if any, are files of a directory.

    May be shared between threads; other processes open their own over the same database.

    Args:
        source: Database, engine or URL with the ``attach`` tables.
        directory: Where each volume is a sparse file. None: volumes are only records, whose connection information
            names an RBD pool ``embedded`` that does not exist; good for rehearsals with an in-memory hypervisor.
        service_uuid: The backend's name for shared-target locks.
        shared_targets: What volumes say of that.
        images: The file of each image, by its id. Without a *directory* any image will do.
        clock, id_factory: For records.
    """

    def __init__(
        self,
        source: Database | str | URL | Engine,
        *,
        directory: str | Path | None = None,
        service_uuid: str | None = None,
        shared_targets: bool | None = False,
        images: Mapping[str, str | Path] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        id_factory: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._owned = not isinstance(source, Database)
        self._database = Database.of(source)
        self._directory = None if directory is None else Path(directory)
        self._backend = {"service_uuid": service_uuid, "shared_targets": shared_targets}
        self._images = images or {}
        self._clock = clock
        self._new_id = id_factory
        self._snapshots = EmbeddedSnapshots(self._database, self._directory, id_factory)

    # --- volumes ------------------------------------------------------------------------------------------------------

    def create_volume(
        self,
        size: int = _GIB,
        *,
        name: str = "",
        multiattach: bool = False,
        bootable: bool = False,
        read_only: bool = False,
        encrypted: bool = False,
        volume_id: str | None = None,
        project_id: str | None = None,
    ) -> Volume:
        """Make a volume of *size* bytes, ``available`` at once.

        Raises:
            InvalidArgument: The size is below one byte, or the id no UUID.
            ConstraintViolated: The id is taken.
        """
        require_integer(size, "size", minimum=1, maximum=MAX_BYTES)
        identifier = self._new_id() if volume_id is None else normalise_uuid(volume_id, "volume_id")
        row = self._row(
            identifier,
            size,
            name,
            multiattach=multiattach,
            bootable=bootable,
            read_only=read_only,
            encrypted=encrypted,
            project_id=project_id,
        )
        self._insert(row)
        return self.volume(identifier)

    def _row(self, identifier: str, size: int, name: str, **settings: Any) -> dict[str, Any]:
        settings |= self._backend
        return {"id": identifier, "name": name, "status": "available", "size": size, "settings": settings}

    def _insert(self, row: dict[str, Any], and_then: Callable[[Connection], None] | None = None) -> None:
        """Make a volume, and in the same transaction what it is made for: refused that, there is no volume."""

        def work(connection: Connection) -> None:
            connection.execute(sa.insert(_V), {**row, "created_at": self._clock()})
            if and_then is not None:
                and_then(connection)

        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._path(row["id"]).open("ab") as file:
                file.truncate(row["size"])
        self._database.run(work)

    def volume(self, volume_id: str) -> Volume:
        """See :meth:`VolumeService.volume`."""
        with self._database.read() as connection:
            return _volume(_require_volume(connection, normalise_uuid(volume_id, "volume_id")))

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume, oldest first."""
        with self._database.read() as connection:
            return tuple(_volume(row) for row in connection.execute(sa.select(_V).order_by(_V.c.created_at, _V.c.id)))

    def encryption_key(self, volume_id: str) -> str | None:
        """See :meth:`VolumeService.encryption_key`; here nobody keeps keys."""
        if self.volume(volume_id).encrypted:
            raise UnsupportedFeature(f"volume {volume_id} is encrypted, and nobody here knows its key", needed="key")
        return None

    def set_status(self, volume_id: str, status: str) -> None:
        """Force a status, as an administrator's reset does.

        Raises:
            VolumeNotFound: There is none.
        """

        def work(connection: Connection) -> None:
            _require_volume(connection, volume_id)
            _set_status(connection, volume_id, status)

        self._database.run(work)

    def extend(self, volume_id: str, size: int) -> Volume:
        """See :meth:`VolumeService.extend`."""
        identifier = normalise_uuid(volume_id, "volume_id")
        require_integer(size, "size", minimum=1, maximum=MAX_BYTES)

        def work(connection: Connection) -> None:
            found = _require_volume(connection, identifier, lock=True)
            if found.status in _IN_FLIGHT:
                raise _busy(found, "extend")
            if found.status not in {"available", "in-use"}:
                raise Conflict(f"volume {identifier} is {found.status}: it cannot be extended", identifier=identifier)
            if size < found.size:
                raise InvalidArgument(
                    f"volume {identifier} has {found.size} bytes and cannot shrink to {size}", field="size", value=size
                )
            connection.execute(sa.update(_V).where(_V.c.id == identifier).values(size=size))

        self._database.run(work)
        if self._directory is not None:
            with self._path(self._stored(identifier)).open("ab") as file:
                file.truncate(size)
        return self.volume(identifier)

    def reimage(self, volume_id: str, image_id: str) -> None:
        """See :meth:`VolumeService.reimage`."""
        identifier, image = normalise_uuid(volume_id, "volume_id"), normalise_uuid(image_id, "image_id")
        with self._database.read() as connection:
            found = _require_volume(connection, identifier)
            records = _records(connection, identifier)
        if found.status in _IN_FLIGHT - {"reserved"}:
            raise _busy(found, "get an image")
        if found.status not in {"available", "error", "reserved"} or len(records) > 1:
            raise Conflict(
                f"volume {identifier} is {found.status}, with {len(records)} attachments: it cannot get an image",
                identifier=identifier,
            )
        if self._directory is not None:
            self._write_image(identifier, image, found.size)

    def _write_image(self, volume_id: str, image_id: str, size: int) -> None:
        source = self._images.get(image_id)
        if source is None or Path(source).stat().st_size > size:
            why = "there is no such image" if source is None else f"it does not fit into {size} bytes"
            raise InvalidArgument(f"image_id: {image_id}: {why}", field="image_id", value=image_id)
        with Path(source).open("rb") as image, self._path(self._stored(volume_id)).open("r+b") as volume:
            shutil.copyfileobj(image, volume)

    def begin_migration(self, volume_id: str) -> Volume:
        """Make a volume that is to take the place of *volume_id*, which then waits, as Cinder's retype does.

        Whoever uses it changes over (:meth:`AttachmentManager.swap_volume`), and says so by
        :meth:`complete_migration`.

        Raises:
            VolumeNotFound: There is none.
            Conflict: It migrates already.
        """
        old, new = self.volume(volume_id), self._new_id()
        row = self._row(
            new,
            old.size,
            old.name,
            multiattach=old.multiattach,
            bootable=old.bootable,
            read_only=old.read_only,
            encrypted=False,
            project_id=old.project_id,
        )
        try:
            self._insert(row, lambda connection: begin_migration(connection, old.id, new))
        except (Conflict, VolumeNotFound):
            self._drop(new)
            raise
        return self.volume(new)

    def complete_migration(self, volume_id: str, new_volume_id: str, *, error: bool = False) -> str:
        """See :meth:`VolumeService.complete_migration`."""
        old, new = normalise_uuid(volume_id, "volume_id"), normalise_uuid(new_volume_id, "new_volume_id")
        unused = self._database.run(lambda connection: complete_migration(connection, old, new, error=error))
        self._drop(unused)
        return old

    def snapshot(self, volume_id: str, name: str) -> VolumeSnapshot:
        """See :meth:`VolumeService.snapshot`."""
        return self._snapshots.make(volume_id, name)

    def snapshots(self, volume_id: str) -> tuple[VolumeSnapshot, ...]:
        """See :meth:`VolumeService.snapshots`."""
        return self._snapshots.of(volume_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """See :meth:`VolumeService.delete_snapshot`."""
        self._snapshots.delete(snapshot_id)

    def delete_volume(self, volume_id: str) -> None:
        """See :meth:`VolumeService.delete_volume`."""
        identifier = normalise_uuid(volume_id, "volume_id")

        def work(connection: Connection) -> str | None:
            found = _find_volume(connection, identifier, lock=True)
            if found is None:
                return None
            records = _records(connection, identifier)
            if records:
                raise InUse(
                    f"volume {identifier} has {len(records)} attachments; detach them first",
                    identifier=identifier,
                    users=[record.instance_id for record in records],
                )
            if found.status in _IN_FLIGHT:
                raise _busy(found, "delete")
            kept = connection.scalar(sa.select(sa.func.count()).where(embedded_snapshots.c.volume_id == identifier))
            if kept:
                raise Conflict(f"volume {identifier} has {kept} snapshots; delete them first", identifier=identifier)
            connection.execute(sa.delete(_V).where(_V.c.id == identifier))
            return stored_under(found)

        self._drop(self._database.run(work))

    def _drop(self, stored: str | None) -> None:
        if stored is not None and self._directory is not None:
            self._path(stored).unlink(missing_ok=True)

    # --- attachments --------------------------------------------------------------------------------------------------

    def features(self) -> VolumeFeatures:
        """Everything."""
        return VolumeFeatures()

    def reserve(self, volume_id: str, instance_id: str, *, mode: AttachMode = "rw") -> VolumeAttachment:
        """See :meth:`VolumeService.reserve`."""
        return self._reserve(volume_id, instance_id, None, mode)

    def create(
        self, volume_id: str, instance_id: str, connector: Connector, *, mode: AttachMode = "rw"
    ) -> VolumeAttachment:
        """See :meth:`VolumeService.create`."""
        _require_connector(connector)
        return self._reserve(volume_id, instance_id, connector, mode)

    def _reserve(self, volume_id: str, instance_id: str, connector: Connector | None, mode: str) -> VolumeAttachment:
        volume_key = normalise_uuid(volume_id, "volume_id")
        row = {
            "id": self._new_id(),
            "volume_id": volume_key,
            "instance_id": normalise_uuid(instance_id, "instance_id"),
            "status": "reserved" if connector is None else "attaching",
            "mode": _require_mode(mode),
            "connector": None if connector is None else connector.as_cinder(),
            "created_at": self._clock(),
        }

        def work(connection: Connection) -> None:
            found = _require_volume(connection, volume_key, lock=True)
            status = _reservable(found, _records(connection, volume_key), str(row["instance_id"]))
            _set_status(connection, volume_key, status if connector is None else "attaching")
            connection.execute(sa.insert(_A), row)

        self._database.run(work)
        failpoint("embedded.reserved")
        return self.attachment(str(row["id"]))

    def update(self, attachment_id: str, connector: Connector) -> VolumeAttachment:
        """See :meth:`VolumeService.update`."""
        _require_connector(connector)

        def work(connection: Connection) -> None:
            record, found = _locked_record(connection, attachment_id)
            if found.status.startswith("error"):
                raise Conflict(f"volume {found.id} is in {found.status}", identifier=found.id)
            records = _records(connection, found.id)
            if not found.settings["multiattach"] and len(records) > 1 and any(r.connector for r in records):
                raise Conflict(
                    f"volume {found.id} is exclusive and another of its {len(records)} attachments is mapped: "
                    f"duplicate connectors",
                    identifier=found.id,
                )
            _set_status(connection, found.id, "attaching")
            changed = sa.update(_A).where(_A.c.id == record.id)
            connection.execute(changed.values(status="attaching", connector=connector.as_cinder()))

        self._database.run(work)
        return self.attachment(attachment_id)

    def complete(self, attachment_id: str) -> None:
        """See :meth:`VolumeService.complete`."""

        def work(connection: Connection) -> None:
            record, _ = _locked_record(connection, attachment_id)
            _set_status(connection, record.volume_id, "in-use")
            changed = sa.update(_A).where(_A.c.id == record.id)
            connection.execute(changed.values(status="attached", attached_at=self._clock()))

        self._database.run(work)

    def attachment(self, attachment_id: str) -> VolumeAttachment:
        """See :meth:`VolumeService.attachment`."""
        with self._database.read() as connection:
            record = _require_record(connection, attachment_id)
            found = _require_volume(connection, record.volume_id)
        return self._attachment(record, found)

    def attachments(
        self, *, volume_id: str | None = None, instance_id: str | None = None
    ) -> tuple[VolumeAttachment, ...]:
        """See :meth:`VolumeService.attachments`."""
        query = sa.select(_A).order_by(_A.c.created_at.desc(), _A.c.id)
        if volume_id is not None:
            query = query.where(_A.c.volume_id == normalise_uuid(volume_id, "volume_id"))
        if instance_id is not None:
            query = query.where(_A.c.instance_id == normalise_uuid(instance_id, "instance_id"))
        with self._database.read() as connection:
            return tuple(self._attachment(record, None) for record in connection.execute(query))

    def delete(self, attachment_id: str) -> None:
        """See :meth:`VolumeService.delete`."""
        identifier = normalise_uuid(attachment_id, "attachment_id")

        def work(connection: Connection) -> None:
            record = connection.execute(sa.select(_A).where(_A.c.id == identifier)).one_or_none()
            if record is None:
                return
            _require_volume(connection, record.volume_id, lock=True)
            connection.execute(sa.delete(_A).where(_A.c.id == identifier))
            statuses = [r.status for r in _records(connection, record.volume_id)]
            _set_status(connection, record.volume_id, _recomputed(statuses))

        self._database.run(work)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _path(self, stored: str) -> Path:
        assert self._directory is not None
        return self._directory / f"volume-{stored}"

    def _stored(self, volume_id: str) -> str:
        """The name under which its bytes are kept."""
        with self._database.read() as connection:
            return stored_under(_require_volume(connection, volume_id))

    def _attachment(self, record: Row[Any], volume: Row[Any] | None) -> VolumeAttachment:
        connection = None
        if record.connector is not None and volume is not None:
            connection, stored = self._connection(record), stored_under(volume)
            if stored != record.volume_id:
                connection = ConnectionInfo(connection.kind, {**connection.data, **self._place(stored)})
        return VolumeAttachment(
            id=record.id,
            volume_id=record.volume_id,
            instance_id=record.instance_id,
            status=AttachmentStatus(record.status),
            mode=record.mode,
            connection=connection,
            attached_at=record.attached_at,
        )

    def _connection(self, record: Row[Any]) -> ConnectionInfo:
        """How the volume is reached, if its bytes are kept under its own id."""
        common = {"volume_id": record.volume_id, "attachment_id": record.id, "access_mode": "rw", "encrypted": False}
        place = self._place(record.volume_id)
        if self._directory is not None:
            return ConnectionInfo("local", {**place, **common})
        return ConnectionInfo("rbd", {**place, "hosts": ["127.0.0.1"], "ports": ["6789"], **common})

    def _place(self, stored: str) -> dict[str, str]:
        if self._directory is not None:
            return {"device_path": str(self._path(stored))}
        return {"name": f"embedded/volume-{stored}"}

    def check(self) -> None:
        """Verify that statuses and records agree.

        Raises:
            InvariantViolated: A volume in flight or in use has no record, an ``available`` one has, or an exclusive
                volume is attached to two instances.
        """
        findings = []
        with self._database.read() as connection:
            for found in connection.execute(sa.select(_V)):
                records = _records(connection, found.id)
                if found.status == "available" and records:
                    findings.append(f"volume {found.id} is available and has {len(records)} attachments")
                if found.status in {"reserved", "attaching", "in-use"} and not records:
                    findings.append(f"volume {found.id} is {found.status} without an attachment")
                users = {r.instance_id for r in records}
                if not found.settings["multiattach"] and len(users) > 1:
                    findings.append(f"exclusive volume {found.id} has {len(users)} users")
        if findings:
            raise InvariantViolated("; ".join(findings), findings=tuple(findings))

    def close(self) -> None:
        """Close the database, unless it is the caller's."""
        if self._owned:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reservable(found: Row[Any], records: list[Row[Any]], instance_id: str) -> str:
    """The status that a reservation gives the volume; Cinder's rule, with its override for the same instance.

    Raises:
        VolumeBusy, Conflict: It cannot be reserved now, or as it is.
    """
    if found.status in {"available", "downloading"} or (found.status == "in-use" and found.settings["multiattach"]):
        return "reserved"
    if found.status in {"in-use", "reserved"} and any(r.instance_id == instance_id for r in records):
        return str(found.status)
    if found.status in _IN_FLIGHT:
        raise _busy(found, "reserve")
    users = ", ".join(sorted({str(r.instance_id) for r in records})) or "nobody"
    raise Conflict(
        f"volume {found.id} is {found.status} (used by {users}): it must be available or downloading to be reserved, "
        f"or in-use and multi-attach",
        identifier=found.id,
    )


def _busy(found: Row[Any], verb: str) -> VolumeBusy:
    return VolumeBusy(
        f"volume {found.id} is {found.status}: it cannot {verb} until that is over",
        identifier=found.id,
        retry_after=0.1,
    )


def _recomputed(statuses: list[str]) -> str:
    """Cinder's rule after a delete: first by alphabet of what is left, ``attached`` shown as ``in-use``."""
    live = sorted(status for status in statuses if not status.startswith("error"))
    if not live:
        return "available"
    return "in-use" if live[0] == "attached" else live[0]


def _require_mode(mode: str) -> str:
    if mode not in {"rw", "ro"}:
        raise InvalidArgument(f"mode: {mode!r} is neither 'rw' nor 'ro'", field="mode", value=mode)
    return mode


def _require_connector(connector: Connector) -> None:
    if not isinstance(connector, Connector):
        raise InvalidConnector(f"connector: expected a Connector, got {type(connector).__name__}", field="connector")


def _find_volume(connection: Connection, volume_id: str, *, lock: bool = False) -> Row[Any] | None:
    if lock:
        return hold(connection, _V, _V.c.id == volume_id)
    return connection.execute(sa.select(_V).where(_V.c.id == volume_id)).one_or_none()


def _require_volume(connection: Connection, volume_id: str, *, lock: bool = False) -> Row[Any]:
    found = _find_volume(connection, volume_id, lock=lock)
    if found is None:
        raise VolumeNotFound(f"no volume {volume_id}", identifier=volume_id)
    return found


def _require_record(connection: Connection, attachment_id: str) -> Row[Any]:
    identifier = normalise_uuid(attachment_id, "attachment_id")
    record = connection.execute(sa.select(_A).where(_A.c.id == identifier)).one_or_none()
    if record is None:
        raise AttachmentNotFound(f"no attachment {identifier}", identifier=identifier)
    return record


def _locked_record(connection: Connection, attachment_id: str) -> tuple[Row[Any], Row[Any]]:
    """The record and its volume, whose row is locked; the record is as it was once the lock was had."""
    volume_id = _require_record(connection, attachment_id).volume_id
    found = _require_volume(connection, volume_id, lock=True)
    return _require_record(connection, attachment_id), found


def _records(connection: Connection, volume_id: str) -> list[Row[Any]]:
    return list(connection.execute(sa.select(_A).where(_A.c.volume_id == volume_id)))


def _set_status(connection: Connection, volume_id: str, status: str) -> None:
    connection.execute(sa.update(_V).where(_V.c.id == volume_id).values(status=status))


def _volume(row: Row[Any]) -> Volume:
    settings = {name: value for name, value in row.settings.items() if name != "name_id"}
    return Volume(id=row.id, name=row.name, status=row.status, size=row.size, **settings)
