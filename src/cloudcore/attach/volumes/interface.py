"""What an attachment manager needs of a volume service.

The vocabulary and the rules are those of Cinder's attachments API (microversion 3.27 and later): a *reservation* is an
attachment without a connector; giving it a connector *maps* the volume to that host and yields the connection
information; *complete* makes it ``attached``.

Every implementation passes ``cloudcore.testing.volumes``. The division of labour: a service implementation speaks to
its service, repeats what is safe to repeat, and says truthfully whether a failed call had an effect. Waiting for a
busy volume, looking for the effect of a call whose answer was lost, and undoing it are the manager's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from cloudcore.attach.volumes.values import (
        AttachMode,
        Connector,
        Volume,
        VolumeAttachment,
        VolumeFeatures,
        VolumeSnapshot,
    )

__all__ = ["VolumeService"]


@runtime_checkable
class VolumeService(Protocol):
    """The calls that an attachment manager makes. May be shared between threads.

    **Errors.** Except for :class:`~cloudcore.errors.OutcomeUnknown`, every error means that the call had *no effect*:

    ===============================  ==============================================================================
    VolumeNotFound                   no such volume (for this user)
    AttachmentNotFound               no such attachment
    InvalidArgument, or a leaf       malformed, or the service cannot do it; found before anything is sent if possible
    VolumeBusy (transient)           reserved, attaching or detaching for somebody else; multi-attach volumes too
    Conflict                         the state of volume or attachment forbids it and will go on doing so (``error``
                                     status, exclusive and in use, duplicate connectors)
    PolicyDenied, LimitExceeded      not for this user; over quota
    VolumeServiceUnavailable         nothing was sent, or the service said that it did nothing
    VolumeServiceError               the service answered nonsense to a question that changes nothing
    OutcomeUnknown                   the answer was lost, timed out, or was "internal error": it happened, will still
                                     happen, or not. Ask with :meth:`attachment` or :meth:`attachments`
    ===============================  ==============================================================================

    Texts of errors never hold connection information.
    """

    def features(self) -> VolumeFeatures:
        """What the service can do. Asked once, then remembered.

        Raises:
            UnsupportedFeature: The service is older than attachments (3.27).
        """

    def volume(self, volume_id: str) -> Volume:
        """Describe the volume. Changes nothing; may be repeated inside.

        Raises:
            VolumeNotFound, VolumeServiceUnavailable, VolumeServiceError: See the class.
        """

    def volumes(self) -> tuple[Volume, ...]:
        """Every volume that this user may see. Changes nothing; may be repeated inside.

        One that exists throughout is among them; one that is made or deleted meanwhile may be.

        Raises:
            VolumeNotFound, VolumeServiceUnavailable, VolumeServiceError: See the class. The first where the volume that
                marked the place was deleted meanwhile: ask again.
        """

    def encryption_key(self, volume_id: str) -> str | None:
        """The UUID, at the key manager, of what opens the volume's LUKS container; None if its bytes are not encrypted.

        It is no secret. Changes nothing; may be repeated inside.

        Raises:
            UnsupportedFeature: It is encrypted in a way that QEMU does not open; or the service cannot say how.
            VolumeNotFound, VolumeServiceUnavailable, VolumeServiceError: See the class.
        """

    def reserve(self, volume_id: str, instance_id: str, *, mode: AttachMode = "rw") -> VolumeAttachment:
        """Hold the volume for the instance, without a host. Never repeated inside: each success makes a record.

        Allowed while the volume is ``available`` or ``downloading``, while it is ``in-use`` and multi-attach, and for
        an instance that has a record of this volume already (``in-use`` or ``reserved``): that last rule lets moves
        work, and means that the *caller* must keep an instance from getting a volume twice.

        Returns:
            The new record, ``reserved``.

        Raises:
            VolumeNotFound, VolumeBusy, Conflict, PolicyDenied, OutcomeUnknown, VolumeServiceUnavailable: See the class.
        """

    def create(
        self, volume_id: str, instance_id: str, connector: Connector, *, mode: AttachMode = "rw"
    ) -> VolumeAttachment:
        """Reserve and map in one call, under the rules of :meth:`reserve`. Never repeated inside.

        Not atomic: after OutcomeUnknown a record may be there, ``reserved`` without a connection, or mapped. The only
        way to map an exclusive volume to a second host (live migration).

        Returns:
            The new record with its connection; its status is read again, not the stale one of the answer.
        """

    def update(self, attachment_id: str, connector: Connector) -> VolumeAttachment:
        """Map the reservation to the connector's host. Safe to repeat, and repeated inside a few times.

        Returns:
            The record with its connection, ``attaching`` (``attached`` where the service has no complete step).

        Raises:
            AttachmentNotFound: It is gone.
            Conflict: Another record of this exclusive volume is mapped, or the volume is in an error state.
            InvalidConnector, OutcomeUnknown, VolumeServiceUnavailable: See the class.
        """

    def complete(self, attachment_id: str) -> None:
        """Mark it ``attached`` and the volume ``in-use``. Safe to repeat. Checks nothing: a bare reservation passes.

        Does nothing where :attr:`VolumeFeatures.complete` is False.

        Raises:
            AttachmentNotFound, OutcomeUnknown, VolumeServiceUnavailable: See the class.
        """

    def attachment(self, attachment_id: str) -> VolumeAttachment:
        """Describe one attachment, with its connection if it is mapped. Changes nothing; may be repeated inside.

        Raises:
            AttachmentNotFound, VolumeServiceUnavailable, VolumeServiceError: See the class.
        """

    def attachments(
        self, *, volume_id: str | None = None, instance_id: str | None = None
    ) -> tuple[VolumeAttachment, ...]:
        """Every attachment of this volume and instance (of all, where None), whatever its status; without connections.

        All pages are read. Changes nothing; may be repeated inside. An unknown volume or instance has none.

        Raises:
            VolumeServiceUnavailable, VolumeServiceError: See the class.
        """

    def delete(self, attachment_id: str) -> None:
        """Unmap, and remove the record. Safe to repeat, and repeated inside a few times; an absent one is success.

        The volume becomes ``available``, or stays ``in-use`` (or ``reserved``) for the other records.

        Raises:
            Conflict: The service will not let go of what another service uses.
            OutcomeUnknown, VolumeServiceUnavailable, PolicyDenied: See the class.
        """

    def extend(self, volume_id: str, size: int) -> Volume:
        """Make the volume *size* bytes large, in use or not, and wait until it is. Safe to repeat.

        Returns:
            The volume, whose size may be rounded up to the service's unit.

        Raises:
            InvalidArgument: It would shrink.
            UnsupportedFeature: In use, and the service cannot.
            VolumeBusy: It is reserved, attaching or detaching.
            OutcomeUnknown: Asked for, but not seen within the time allowed.
        """

    def reimage(self, volume_id: str, image_id: str) -> None:
        """Write the image over what is in the volume; it is done on return. Twice is as once.

        The volume is ``available``, ``error``, or ``reserved``: its only attachment is a reservation, which stays.

        Args:
            volume_id: UUID.
            image_id: UUID of the image.

        Raises:
            UnsupportedFeature: The service cannot.
            VolumeNotFound, VolumeBusy: See the class.
            InvalidArgument: There is no such image, or it does not fit into the volume.
            Conflict: The volume is used, or the image could not be written: the volume is in ``error`` then, and an
                image can be tried again.
            OutcomeUnknown: It may be written, or still be being written; repeat.
        """

    def complete_migration(self, volume_id: str, new_volume_id: str, *, error: bool = False) -> str:
        """End a migration that the service began and for which it waits: who uses the volume has changed over, or not.

        The service then keeps the id *volume_id* for what *new_volume_id* was, with its attachments, and deletes the
        old bytes; with *error* it deletes the new volume. Safe to repeat.

        Args:
            volume_id: The volume that migrates. Without *error* it has no attachment any more.
            new_volume_id: The one that takes its place.
            error: It was not changed over.

        Returns:
            The id under which the volume goes on.

        Raises:
            NotMigrating: They are in no migration of the one to the other (any more).
            InUse, Conflict: The volume that is to go is used; whether a service looks, is its own affair.
            VolumeNotFound, PolicyDenied, VolumeServiceUnavailable: See the class.
            OutcomeUnknown: Repeat.
        """

    def snapshot(self, volume_id: str, name: str) -> VolumeSnapshot:
        """Keep what the volume holds now, whether it is in use or not; it is ``available`` on return.

        Twice under one name is as once: the first one is returned.

        Raises:
            VolumeNotFound, VolumeBusy, Conflict, LimitExceeded: See the class. There is none of this name.
            OutcomeUnknown: There is one, or there will be; repeat, or look with :meth:`snapshots`.
        """

    def snapshots(self, volume_id: str) -> tuple[VolumeSnapshot, ...]:
        """Those of the volume. Changes nothing; may be repeated inside."""

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete it; one that is gone is success, and so is one that is going.

        Raises:
            Conflict: Its status, or who was made from it, forbids it.
            OutcomeUnknown: Repeat.
        """

    def delete_volume(self, volume_id: str) -> None:
        """Delete the volume; an absent one is success. May return before the bytes are gone.

        Raises:
            InUse: It has attachments.
            VolumeBusy, Conflict, OutcomeUnknown, VolumeServiceUnavailable: See the class.
        """

    def close(self) -> None:
        """Give back connections. May be called twice."""
