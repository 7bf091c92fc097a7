"""Volumes of a real Cinder, through its attachments API: one class, a method for each call of the interface.

One module because it is one class.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

import attrs

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.attach.volumes.cinder_calls import LOST, Calls, listed
from cloudcore.attach.volumes.cinder_http import Http, noauth_session
from cloudcore.attach.volumes.cinder_migrations import CinderMigrations
from cloudcore.attach.volumes.cinder_rules import (
    BUSY,
    GIB,
    PASSING,
    Call,
    Effect,
    read_attachment,
    read_encryption,
    read_volume,
)
from cloudcore.attach.volumes.cinder_snapshots import CinderSnapshots
from cloudcore.attach.volumes.values import AttachmentStatus, Connector
from cloudcore.errors import (
    AttachmentNotFound,
    Conflict,
    InUse,
    InvalidArgument,
    InvalidConnector,
    OutcomeUnknown,
    UnsupportedFeature,
    VolumeBusy,
    VolumeNotFound,
    VolumeServiceError,
    VolumeServiceUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keystoneauth1.plugin import BaseAuthPlugin
    from keystoneauth1.session import Session

    from cloudcore.attach.volumes.values import AttachMode, Volume, VolumeAttachment, VolumeFeatures, VolumeSnapshot

__all__ = ["CinderVolumes"]

log: logging.Logger = logging.getLogger("cloudcore.attach.cinder")

Answer = TypeVar("Answer")


class CinderVolumes:
    """A volume service that is a Cinder: implements :class:`~cloudcore.attach.VolumeService`.

    ::

        with CinderVolumes(session, service_auth=plugin) as volumes:
            manager = AttachmentManager(engine, volumes=volumes, hypervisor=...)

    Nothing is sent before the first call; that call also negotiates the microversion, once. Needs the extra
    ``cinder``. May be shared between threads.

    What is repeated here: whatever only reads; and ``update``, ``complete``, ``delete``, ``extend`` and
    ``delete_volume``, which have the same effect twice as once. ``reserve`` and ``create`` are sent once (again only if
    no connection came about at all), since each success is one more record: look with :meth:`attachments` instead.

    Deleting what is attached needs the role ``service``: Cinder refuses it to plain users, because a user who removes
    a record while a host still has the device opens the next volume at that address to it (CVE-2023-2088). Hence
    *service_auth*. A Cinder without Keystone (``auth_strategy = noauth``) believes a header, which is sent instead.

    Args:
        session: keystoneauth's session: of a user whom no tenant can act as, who owns the volumes or is an admin.
        service_auth: Plugin of the service account; its token goes along with every delete.
        microversion: Upper bound for the version spoken; None for the newest that both sides know, at most 3.71.
        timeout: Seconds for one request. More than Cinder's ``rpc_response_timeout`` (60 s by default), so that its
            verdict is heard.
        deadline: Seconds for one call of this class, with all its repetitions.
        attempts: How often, at most, a request that may be repeated is made.
        all_projects: Look at the attachments of every project (an admin's session only).
        page_size: Rows asked for at a time by :meth:`attachments`.
        clock: Monotonic seconds.
        sleep: Waits between repetitions.
        client_options: For ``cinderclient.client.Client``: ``region_name``, ``service_type``, ``endpoint_type``,
            ``os_endpoint``, ...

    Raises:
        MissingExtra: python-cinderclient is not installed.
    """

    def __init__(
        self,
        session: Session,
        *,
        service_auth: BaseAuthPlugin | None = None,
        microversion: str | None = None,
        timeout: float = 75.0,
        deadline: float = 240.0,
        attempts: int = 4,
        all_projects: bool = False,
        page_size: int = 500,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        **client_options: Any,
    ) -> None:
        for name, value in (("timeout", timeout), ("deadline", deadline)):
            if not value > 0:
                raise InvalidArgument(f"{name}: {value!r} is not above 0", field=name, value=value)
        require_integer(attempts, "attempts", minimum=1)
        self._page_size = require_integer(page_size, "page_size", minimum=1)
        http = Http(session, timeout=timeout, service_auth=service_auth, clock=clock, **client_options)
        self._calls = Calls(http, wanted=microversion, deadline=deadline, attempts=attempts, clock=clock, sleep=sleep)
        self._deadline = deadline
        self._all_projects = all_projects
        self._snapshots = CinderSnapshots(self._calls, all_projects=all_projects, page_size=page_size)
        self._migrations = CinderMigrations(self._calls, self.volume)
        self._own: Session | None = None

    @classmethod
    def noauth(cls, endpoint: str, *, project_id: str, user_id: str = "cloudcore", **options: Any) -> Self:
        """Volumes of a Cinder that runs without Keystone.

        Args:
            endpoint: Such as ``"http://127.0.0.1:8776/v3"``, without a project.
            project_id: 32 hexadecimal digits; Cinder answers 404 to anything else.
            user_id: Any name.
            options: As for the class.
        """
        project = normalise_uuid(project_id, "project_id").replace("-", "")
        session = noauth_session(endpoint, user_id=user_id, project_id=project)
        volumes = cls(session, **options)
        volumes._own = session
        return volumes

    # ------------------------------------------------------------------------------------------------------- life

    def close(self) -> None:
        """Give back the connections of a session made by :meth:`noauth`. One that was passed in stays open."""
        if self._own is not None:
            self._own.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------- negotiation

    def features(self) -> VolumeFeatures:
        """What the service can do. Asked once, then remembered.

        Raises:
            UnsupportedFeature: The service is older than attachments (3.27), or than the bound allows.
            VolumeServiceUnavailable: It does not answer.
        """
        return self._calls.speak()[1]

    # ------------------------------------------------------------------------------------------------------ volumes

    def volume(self, volume_id: str) -> Volume:
        """As :meth:`VolumeService.volume <cloudcore.attach.VolumeService.volume>`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        return self._volume(volume_id, read_volume)

    def attached_hosts(self, volume_id: str) -> Mapping[str, str]:
        """Attachment → compute host, of those that are complete. Cinder tells this to admins and services alone.

        Returns:
            Empty for anybody else.

        Raises:
            VolumeNotFound, VolumeServiceUnavailable, VolumeServiceError: As :meth:`volume`.
        """
        volume_id = normalise_uuid(volume_id, "volume_id")
        return self._volume(
            volume_id,
            lambda body, _: {
                row["attachment_id"]: row["host_name"] for row in body["attachments"] if row.get("host_name")
            },
        )

    def _volume(self, volume_id: str, read: Callable[[Mapping[str, Any], VolumeFeatures], Answer]) -> Answer:
        _, features = self._calls.speak()
        return self._calls.make(
            Call("show", Effect.NONE, volume_id=volume_id),
            lambda client: client.volumes.get(volume_id),
            lambda answer: read(_about(answer.to_dict(), id=volume_id), features),
        )

    def encryption_key(self, volume_id: str) -> str | None:
        """As :meth:`VolumeService.encryption_key <cloudcore.attach.VolumeService.encryption_key>`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        said = self._calls.make(
            Call("show encryption", Effect.NONE, volume_id=volume_id),
            lambda client: client.volumes.get_encryption_metadata(volume_id),
            dict,
        )
        try:
            return read_encryption(said, volume_id)
        except (InvalidArgument, TypeError, ValueError):
            pass
        raise VolumeServiceError(f"volume {volume_id}: its encryption metadata are not what Cinder answers")

    def volumes(self) -> tuple[Volume, ...]:
        """As :meth:`VolumeService.volumes <cloudcore.attach.VolumeService.volumes>`; of every project, if so set up."""
        return tuple(listed("volumes", self._page_of_volumes))

    def _page_of_volumes(self, marker: str | None) -> list[Volume]:
        _, features = self._calls.speak()
        query = {"limit": str(self._page_size), "sort": "created_at:asc", "marker": marker}
        query["all_tenants"] = "1" if self._all_projects else None
        url = f"/volumes/detail?{urlencode({name: value for name, value in query.items() if value})}"
        return self._calls.make(
            Call("list", Effect.NONE, volume_id=marker),
            lambda client: client.client.get(url),
            lambda answer: [read_volume(row, features) for row in answer[1]["volumes"]],
        )

    def extend(self, volume_id: str, size: int) -> Volume:
        """As :meth:`VolumeService.extend <cloudcore.attach.VolumeService.extend>`; rounded up to whole GiB."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        gib = -(-require_integer(size, "size", minimum=1, maximum=2**63 - 1) // GIB)
        before = self.volume(volume_id)
        if before.size > gib * GIB:
            raise InvalidArgument(
                f"volume {volume_id} has {before.size} bytes and cannot shrink to {size}", field="size", value=size
            )
        asked = False

        def step() -> Volume | None:
            nonlocal asked
            volume = self.volume(volume_id)
            if volume.size >= gib * GIB and volume.status != "extending":
                return volume
            if volume.status.startswith("error") or (asked and volume.status != "extending"):
                raise Conflict(
                    f"volume {volume_id} did not grow to {gib} GiB; it is {volume.status}", identifier=volume_id
                )
            asked = asked or volume.status == "extending" or self._ask_to_extend(volume, gib)
            return None

        if grown := self._calls.watch(step):
            return grown
        raise OutcomeUnknown(f"extend of volume {volume_id} to {gib} GiB: not done after {self._deadline:g} s")

    def _ask_to_extend(self, volume: Volume, gib: int) -> bool:
        """Ask once; False if the answer was lost. Cinder marks the volume before it answers, so a look will tell."""
        if volume.status == "in-use" and not self.features().extend_in_use:
            raise UnsupportedFeature(
                f"volume {volume.id} is in use; growing it needs microversion 3.42",
                needed="3.42",
                available=self.features().microversion,
            )
        call = Call("extend", Effect.ONCE, volume_id=volume.id)
        try:
            self._calls.make(call, lambda client: client.volumes.extend(volume.id, gib), _nothing)
        except OutcomeUnknown:
            log.warning("volume %s: the answer to extend was lost; looking", volume.id)
            return False
        log.info("volume %s extends to %d GiB", volume.id, gib)
        return True

    def reimage(self, volume_id: str, image_id: str) -> None:
        """As :meth:`VolumeService.reimage <cloudcore.attach.VolumeService.reimage>`."""
        volume_id, image_id = normalise_uuid(volume_id, "volume_id"), normalise_uuid(image_id, "image_id")
        if not self.features().reimage:
            version = self.features().microversion
            raise UnsupportedFeature(f"volume {volume_id}: reimage needs 3.68", needed="3.68", available=version)
        asked, lost = False, 0

        def step() -> bool | None:
            nonlocal asked, lost
            volume = self.volume(volume_id)
            if asked and volume.status.startswith("error"):
                raise Conflict(
                    f"image {image_id} could not be written to volume {volume_id}, which Cinder calls {volume.status}: "
                    f"the log of its volume service says why; name another image, or mend that and repeat",
                    identifier=volume_id,
                )
            if asked and volume.status != "downloading":
                return True
            asked = volume.status == "downloading" or self._ask_to_reimage(volume, image_id)
            lost += not asked
            if lost > LOST:
                raise OutcomeUnknown(f"image {image_id} onto volume {volume_id}: {lost} answers were lost")
            return None

        if not self._calls.watch(step):
            raise OutcomeUnknown(f"image {image_id} onto volume {volume_id}: not done after {self._deadline:g} s")

    def _ask_to_reimage(self, volume: Volume, image_id: str) -> bool:
        """Ask once; False if the answer was lost."""
        call = Call("reimage", Effect.ONCE, volume_id=volume.id, image_id=image_id)
        try:
            self._calls.make(
                call, lambda client: client.volumes.reimage(volume.id, image_id, reimage_reserved=True), _nothing
            )
        except OutcomeUnknown:
            log.warning("volume %s: the answer to reimage was lost; looking", volume.id)
            return False
        log.info("volume %s gets image %s", volume.id, image_id)
        return True

    def complete_migration(self, volume_id: str, new_volume_id: str, *, error: bool = False) -> str:
        """As :meth:`VolumeService.complete_migration <cloudcore.attach.VolumeService.complete_migration>`.

        Cinder lets admins alone.
        """
        return self._migrations.complete(volume_id, new_volume_id, error=error)

    def snapshot(self, volume_id: str, name: str) -> VolumeSnapshot:
        """As :meth:`VolumeService.snapshot <cloudcore.attach.VolumeService.snapshot>`."""
        return self._snapshots.make(volume_id, name)

    def snapshots(self, volume_id: str) -> tuple[VolumeSnapshot, ...]:
        """As :meth:`VolumeService.snapshots <cloudcore.attach.VolumeService.snapshots>`."""
        return self._snapshots.of(volume_id)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """As :meth:`VolumeService.delete_snapshot <cloudcore.attach.VolumeService.delete_snapshot>`."""
        self._snapshots.delete(snapshot_id)

    def delete_volume(self, volume_id: str) -> None:
        """As :meth:`VolumeService.delete_volume <cloudcore.attach.VolumeService.delete_volume>`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        call = Call("delete volume", Effect.SAME, volume_id=volume_id)
        try:
            self._calls.make(call, lambda client: client.volumes.delete(volume_id), _nothing)
        except VolumeNotFound:
            return
        except Conflict as refusal:
            self._why_not_deleted(volume_id, refusal)
        log.info("volume %s deleted", volume_id)

    def _why_not_deleted(self, volume_id: str, refusal: Conflict) -> None:
        """Cinder has one text for a dozen reasons not to delete; look which one it is."""
        try:
            volume = self.volume(volume_id)
        except VolumeNotFound:
            return
        if volume.status == "deleting":
            return
        if users := self.attachments(volume_id=volume_id):
            raise InUse(
                f"volume {volume_id} has {len(users)} attachments", identifier=volume_id, users=len(users)
            ) from refusal
        if volume.status in BUSY | PASSING:
            raise VolumeBusy(f"volume {volume_id} is {volume.status}", identifier=volume_id) from refusal
        raise refusal

    # -------------------------------------------------------------------------------------------------- attachments

    def reserve(self, volume_id: str, instance_id: str, *, mode: AttachMode = "rw") -> VolumeAttachment:
        """As :meth:`VolumeService.reserve <cloudcore.attach.VolumeService.reserve>`."""
        return self._create("reserve", volume_id, instance_id, None, mode)

    def create(
        self, volume_id: str, instance_id: str, connector: Connector, *, mode: AttachMode = "rw"
    ) -> VolumeAttachment:
        """As :meth:`VolumeService.create <cloudcore.attach.VolumeService.create>`."""
        return self._look_again(self._create("create", volume_id, instance_id, _as_cinder(connector), mode))

    def _create(
        self, name: str, volume_id: str, instance_id: str, connector: dict[str, Any] | None, mode: AttachMode
    ) -> VolumeAttachment:
        volume_id = normalise_uuid(volume_id, "volume_id")
        instance_id = normalise_uuid(instance_id, "instance_id")
        if mode not in ("rw", "ro"):
            raise InvalidArgument(f"mode: {mode!r} is neither rw nor ro", field="mode", value=mode)
        made = self._calls.make(
            Call(name, Effect.ONCE, volume_id=volume_id),
            lambda client: client.attachments.create(volume_id, connector, instance_id, mode=mode),
            lambda answer: read_attachment(_about(answer, volume_id=volume_id, instance=instance_id)),
        )
        fields = {"volume": volume_id, "instance": instance_id, "attachment": made.id}
        log.info("%s: volume %s, instance %s, attachment %s", name, volume_id, instance_id, made.id, extra=fields)
        return made

    def update(self, attachment_id: str, connector: Connector) -> VolumeAttachment:
        """As :meth:`VolumeService.update <cloudcore.attach.VolumeService.update>`.

        After a lost answer the record is looked at before the request is repeated: one that has got its connection
        meanwhile is the answer, and repeating would be refused where the volume has another record.
        """
        attachment_id = normalise_uuid(attachment_id, "attachment_id")
        wanted = _as_cinder(connector)
        mapped = self._calls.make(
            Call("update", Effect.SAME, attachment_id=attachment_id),
            lambda client: client.attachments.update(attachment_id, wanted),
            lambda answer: read_attachment(_about(answer.to_dict(), id=attachment_id)),
            probe=lambda until: self._mapped(attachment_id, until),
        )
        log.info("attachment %s mapped to host %s", attachment_id, connector.host)
        return self._look_again(mapped)

    def _mapped(self, attachment_id: str, until: float) -> VolumeAttachment | None:
        """The record, if it has its connection; it never has while the backend is still at work."""
        found = self._show(attachment_id, until)
        return found if found.connection is not None and found.status is AttachmentStatus.ATTACHING else None

    def _look_again(self, answered: VolumeAttachment) -> VolumeAttachment:
        """Cinder's answer to create and update shows the status from before the call: read it again.

        If that cannot be read the answer itself still proves that the record is there and mapped.
        """
        try:
            return self.attachment(answered.id)
        except (VolumeServiceUnavailable, VolumeServiceError):
            return attrs.evolve(answered, status=AttachmentStatus.ATTACHING)

    def complete(self, attachment_id: str) -> None:
        """As :meth:`VolumeService.complete <cloudcore.attach.VolumeService.complete>`."""
        attachment_id = normalise_uuid(attachment_id, "attachment_id")
        if not self.features().complete:
            return
        call = Call("complete", Effect.SAME, attachment_id=attachment_id)
        self._calls.make(call, lambda client: client.attachments.complete(attachment_id), _nothing)
        log.info("attachment %s complete", attachment_id)

    def attachment(self, attachment_id: str) -> VolumeAttachment:
        """As :meth:`VolumeService.attachment <cloudcore.attach.VolumeService.attachment>`."""
        return self._show(normalise_uuid(attachment_id, "attachment_id"))

    def _show(self, attachment_id: str, until: float | None = None) -> VolumeAttachment:
        return self._calls.make(
            Call("show", Effect.NONE, attachment_id=attachment_id),
            lambda client: client.attachments.show(attachment_id),
            lambda answer: read_attachment(_about(answer.to_dict(), id=attachment_id)),
            until=until,
        )

    def delete(self, attachment_id: str) -> None:
        """As :meth:`VolumeService.delete <cloudcore.attach.VolumeService.delete>`."""
        attachment_id = normalise_uuid(attachment_id, "attachment_id")
        call = Call("delete", Effect.SAME, attachment_id=attachment_id)
        try:
            self._calls.make(call, lambda client: client.attachments.delete(attachment_id), _nothing)
        except AttachmentNotFound:
            return
        log.info("attachment %s deleted", attachment_id)

    def attachments(
        self, *, volume_id: str | None = None, instance_id: str | None = None
    ) -> tuple[VolumeAttachment, ...]:
        """As :meth:`VolumeService.attachments <cloudcore.attach.VolumeService.attachments>`.

        Newest first. A row that exists throughout is returned once, whatever is made or deleted meanwhile: if the row
        that marks the place is deleted, the walk starts again.
        """
        filters = {
            "volume_id": volume_id and normalise_uuid(volume_id, "volume_id"),
            "instance_id": instance_id and normalise_uuid(instance_id, "instance_id"),
            "all_tenants": "1" if self._all_projects else None,
        }
        query = {name: value for name, value in filters.items() if value}
        found = listed("attachments", partial(self._page, query))
        # A filter that somebody on the way forgot must not make others' records look like ours.
        return tuple(row for row in found if _matches(row, filters))

    def _page(self, query: Mapping[str, str], marker: str | None) -> list[VolumeAttachment]:
        """One page. Not by ``attachments.list``: that writes a cache file for the shell, one for all threads."""
        position = {"limit": str(self._page_size), **({"marker": marker} if marker else {})}
        url = f"/attachments?{urlencode({**query, **position})}"
        return self._calls.make(
            Call("list", Effect.NONE, attachment_id=marker),
            lambda client: client.client.get(url),
            lambda answer: [read_attachment(row) for row in answer[1]["attachments"]],
        )


def _as_cinder(connector: Connector) -> dict[str, Any]:
    """Cinder takes a connector without a host when it creates, and answers 500 when it updates: let none through."""
    if not isinstance(connector, Connector):
        raise InvalidConnector(f"connector: expected a Connector, got {type(connector).__name__}", field="connector")
    return connector.as_cinder()


def _about(body: Mapping[str, Any], **wanted: str) -> Mapping[str, Any]:
    """The answer, if it is about what was asked for.

    Raises:
        ValueError: It is about something else, a cache's say.
    """
    for name, value in wanted.items():
        if str(body[name]).replace("-", "") != value.replace("-", ""):
            raise ValueError(name)
    return body


def _matches(row: VolumeAttachment, filters: Mapping[str, str | None]) -> bool:
    wanted = filters["volume_id"] or row.volume_id, filters["instance_id"] or row.instance_id
    return (row.volume_id, row.instance_id) == wanted


def _nothing(_: Any) -> None:
    """For answers without content of interest."""
