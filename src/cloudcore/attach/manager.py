"""Attach and detach volumes, and survive a crash at any point: :class:`AttachmentManager`.

The façade over every wing, in one module because it is one class: a verb's page of promises here, its work below.
"""

from __future__ import annotations

import logging
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from sqlalchemy.engine import Engine

from cloudcore._values import normalise_uuid, require_text, require_utc
from cloudcore.attach.audit.auditor import Auditor, HealReport
from cloudcore.attach.audit.findings import AuditReport, Finding
from cloudcore.attach.hosts.connectors import Host, PlainConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.journal.journal import Journal
from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.journal.lock_names import volume_lock
from cloudcore.attach.journal.moves import MoveStore
from cloudcore.attach.lifecycle.records import Attachment, Extension, ManagerStatus, MoveKind, RecoveryReport
from cloudcore.attach.lifecycle.rules import AttachPlan, Limits
from cloudcore.attach.lifecycle.swapping import SwapRequest
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.attach.workflow.attaching import Attacher
from cloudcore.attach.workflow.detaching import Detacher
from cloudcore.attach.workflow.driver import Driver
from cloudcore.attach.workflow.moves import Moves
from cloudcore.attach.workflow.parts import Parts
from cloudcore.attach.workflow.recovery import Recovery
from cloudcore.attach.workflow.restart import recover_all
from cloudcore.attach.workflow.snapshots import Snapshots
from cloudcore.attach.workflow.swaps import Swaps
from cloudcore.database import Database, RetryPolicy
from cloudcore.disks import DiskBus, GuestDisks
from cloudcore.errors import (
    Closed,
    CloudcoreError,
    Conflict,
    InvalidArgument,
    InvariantViolated,
)
from cloudcore.observability import observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.engine import URL

    from cloudcore.attach.hosts.connectors import HostConnector
    from cloudcore.attach.lifecycle.fencing import Fencer
    from cloudcore.attach.lifecycle.records import HostRefresh, InstanceSnapshot, Move, StoryLine
    from cloudcore.attach.lifecycle.rules import Policy
    from cloudcore.attach.lifecycle.swapping import SwapPlan
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import AttachMode
    from cloudcore.observability import Observer

__all__ = ["AttachmentManager"]


def _told(attachment: Attachment) -> dict[str, str]:
    return {"attachment": attachment.id, "state": attachment.state.value}


class AttachmentManager:
    """Gives volumes to instances and takes them back, through a volume service, a host and a hypervisor.

    Every step is written to a journal before it begins. Whatever dies at whatever point, :meth:`recover` finishes or
    undoes it. May be shared between threads; other processes, on this host or others, open their own over the same
    database and are serialised with it volume by volume.

    Args:
        source: Database, engine or URL with the ``attach`` tables (``cloudcore.create_schema``).
        volumes: The volume service; by default :class:`EmbeddedVolumes` in the same database.
        hypervisor: The guests' disks on one host, or on each of several; by default guests that exist only in memory.
        connectors: For each host by name, what connects it to volumes; by default :class:`PlainConnector`, which serves
            network disks and local paths.
        limits: Of volumes per instance and bus.
        policy: Asked before multi-attach volumes are given out; by default everything is allowed.
        fencer: Asked for evidence that a host is dead before anything is forced; by default there is none.
        lease: Seconds after which the work of a process that died on another machine may be taken over.
        patience: Seconds to wait for a volume on which somebody else is at work; and for a journal that somebody else
            keeps locked, unless *source* is a :class:`~cloudcore.database.Database` with patience of its own.
        clock, id_factory: For the journal.
        observer: Is told of every call; see :mod:`cloudcore.observability`.

    Example:
        >>> manager = AttachmentManager("sqlite://")                                          # doctest: +SKIP
        >>> attachment = manager.attach(volume.id, instance_id, mode="ro")                    # doctest: +SKIP
        >>> manager.detach(attachment.id)                                                     # doctest: +SKIP
    """

    def __init__(
        self,
        source: Database | str | URL | Engine,
        volumes: VolumeService | None = None,
        hypervisor: GuestDisks | Iterable[GuestDisks] | None = None,
        *,
        connectors: Mapping[str, HostConnector] | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        fencer: Fencer | None = None,
        lease: float = 60.0,
        patience: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        id_factory: Callable[[], str] = lambda: str(uuid.uuid4()),
        observer: Observer | None = None,
    ) -> None:
        self.observer = observer
        self._closed = False
        self._owns_database = not isinstance(source, Database)
        self._database = source if isinstance(source, Database) else _opened(source, patience)
        self.volumes: VolumeService = EmbeddedVolumes(self._database) if volumes is None else volumes
        self.hosts: Mapping[str, Host] = MappingProxyType(_hosts(hypervisor, connectors or {}))
        self._journal = Journal(self._database, clock)
        self._move_rows = MoveStore(self._database)
        self._leases = Leases(self._database, seconds=lease, patience=patience)
        self._fencer = fencer
        self._driver = Driver(
            self._journal, self.volumes, self.hosts, self._leases, patience=patience, id_factory=id_factory
        )
        self._recovery = Recovery(self._journal, self._driver, self._leases, fencer)
        parts = Parts(
            journal=self._journal,
            rows=self._move_rows,
            driver=self._driver,
            leases=self._leases,
            recovery=self._recovery,
            volumes=self.volumes,
            fencer=fencer,
            id_factory=id_factory,
        )
        self._snapshots = Snapshots(parts)
        self._swaps = Swaps(parts)
        self._moves = Moves(parts, self._snapshots, self._swaps)
        self._detacher = Detacher(parts, self._snapshots, self._swaps)
        self._attacher = Attacher(
            self._journal,
            self._driver,
            self._leases,
            self._recovery,
            self._move_rows,
            self.volumes,
            self.hosts,
            limits=limits or Limits(),
            policy=policy,
            id_factory=id_factory,
        )
        self._auditor = Auditor(
            self._journal, self._driver, self._leases, self._recovery, self._move_rows, self.volumes, self.hosts
        )

    # --- attach -------------------------------------------------------------------------------------------------------

    @observed(
        "attach.attach", "volume_id", "instance_id", "mode", "host", "operation_id", level=logging.INFO, answer=_told
    )
    def attach(
        self,
        volume_id: str,
        instance_id: str,
        mode: AttachMode = "rw",
        *,
        host: str | None = None,
        bus: DiskBus | str = DiskBus.VIRTIO,
        target: str | None = None,
        boot_order: int | None = None,
        cache: str | None = None,
        delete_on_termination: bool = False,
        operation_id: str | None = None,
    ) -> Attachment:
        """Give the instance the volume; on return its guest has the disk and the service counts it as attached.

        Waits for others who are at work on the volume, in this process, in others, or outside of cloudcore. A failure
        is undone before it is raised; if even that fails, the journal keeps it for :meth:`recover`, and the error says
        so in a note.

        To boot from the volume, attach it with ``boot_order=1`` to a guest that is defined and not yet started. What is
        reserved for the instance (:meth:`reserve`) is taken from there, and reserved again if that fails. For a
        shelved instance it is held until that comes back.

        Args:
            volume_id: UUID of the volume.
            instance_id: UUID of the instance.
            mode: ``"ro"`` makes the guest's disk read-only, whatever the service would allow.
            host: On which the instance is; needed if this manager serves several, None for a shelved instance.
            bus: See :class:`~cloudcore.disks.Disk`; so *target*, *boot_order* and *cache*.
            target: Device name; None for the next free one.
            boot_order: 1 is booted first.
            cache: QEMU's cache mode; multi-attach volumes always get ``"none"``.
            delete_on_termination: :meth:`terminate` deletes the volume, if the instance has it then;
                :meth:`set_delete_on_termination` changes it.
            operation_id: Chosen by the caller; a repeat under the same id returns what the first call made.

        Raises:
            InvalidArgument, UnsupportedFeature: Malformed, or impossible; nothing was done.
            VolumeNotFound, AlreadyExists, InUse, Conflict, PolicyDenied, LimitExceeded, InvalidDisk: A rule forbids it;
                nothing was done. :meth:`plan_attach` lists all of them.
            OperationMismatch: The operation id was used for something else.
            VolumeBusy: Others kept the volume for longer than the patience; nothing was done. If what they kept are the
                targets of its backend, a note says what is left to a repeat or :meth:`recover`.
            OutcomeUnknown: Nobody could be asked what became of a step; the attachment is uncertain until
                :meth:`recover`.
            CloudcoreError: What the service, the host or the hypervisor said; it was undone.
        """
        self._require_open()
        request = self._attacher.request(
            volume_id=volume_id,
            instance_id=instance_id,
            mode=mode,
            host=host,
            bus=bus,
            target=target,
            boot_order=boot_order,
            cache=cache,
            delete_on_termination=delete_on_termination,
        )
        return self._attacher.attach(request, operation_id)

    @observed("attach.reserve", "volume_id", "instance_id", "operation_id", level=logging.INFO, answer=_told)
    def reserve(
        self,
        volume_id: str,
        instance_id: str,
        mode: AttachMode = "rw",
        *,
        bus: DiskBus | str = DiskBus.VIRTIO,
        target: str | None = None,
        boot_order: int | None = None,
        cache: str | None = None,
        delete_on_termination: bool = False,
        operation_id: str | None = None,
    ) -> Attachment:
        """Hold the volume for an instance that is on no host yet: nobody else gets it while a host is being chosen.

        :meth:`attach` names the host later; a build that fails there leaves it reserved, for the next host.
        :meth:`detach` and :meth:`terminate` give it back. Arguments and errors are those of :meth:`attach`; the
        settings that count are those given there.

        Returns:
            The attachment, ``held``.
        """
        self._require_open()
        request = self._attacher.request(
            volume_id=volume_id,
            instance_id=instance_id,
            mode=mode,
            host=None,
            anywhere=True,
            bus=bus,
            target=target,
            boot_order=boot_order,
            cache=cache,
            delete_on_termination=delete_on_termination,
        )
        return self._attacher.attach(request, operation_id)

    def plan_attach(
        self,
        volume_id: str,
        instance_id: str,
        mode: AttachMode = "rw",
        *,
        host: str | None = None,
        bus: DiskBus | str = DiskBus.VIRTIO,
        target: str | None = None,
        boot_order: int | None = None,
        cache: str | None = None,
        delete_on_termination: bool = False,
    ) -> AttachPlan:
        """Say what :meth:`attach` would do with these arguments, and every rule that it would break. Touches nothing.

        Raises:
            InvalidArgument, VolumeNotFound: There is nothing to plan.
        """
        self._require_open()
        request = self._attacher.request(
            volume_id=volume_id,
            instance_id=instance_id,
            mode=mode,
            host=host,
            bus=bus,
            target=target,
            boot_order=boot_order,
            cache=cache,
            delete_on_termination=delete_on_termination,
        )
        return self._attacher.plan(request)

    # --- detach -------------------------------------------------------------------------------------------------------

    @observed("attach.detach", "attachment_id", "force", level=logging.INFO, answer=_told)
    def detach(self, attachment_id: str, *, force: bool = False, boot_volume: bool = False) -> Attachment:
        """Take the volume back: out of the guest, off the host if nobody else there uses it, then from the service.

        May be called again at any time, by anybody; what is detached already is success.

        Args:
            attachment_id: Of :meth:`attach`.
            force: The host is dead: skip the guest and the host, on the fencer's evidence.
            boot_volume: Even if the guest runs, and boots from it.

        Returns:
            The attachment: ``absent``; or ``pending`` if the guest was asked and has not let go yet, in which case it
            goes on with the next :meth:`detach` or :meth:`recover`, also after a restart.

        Raises:
            AttachmentNotFound: There never was one of this id.
            WrongHost: Its host is not served here; nothing was touched.
            Conflict: The instance is moving (and not shelved); confirm or revert that first. Or its guest runs from the
                volume. Nothing was touched.
            FencingRequired: *force* without evidence that the host is dead; nothing was touched.
            DetachFailed: The guest refuses for good; it is attached as before.
            OutcomeUnknown: Somebody could not be asked; :meth:`recover` goes on.
            CloudcoreError: What failed; the journal has how far it came, and :meth:`recover` goes on from there.
        """
        self._require_open()
        return self._detacher.detach(
            normalise_uuid(attachment_id, "attachment_id"), force=force, boot_volume=boot_volume
        )

    @observed("attach.terminate", "instance_id", level=logging.INFO)
    def terminate(self, instance_id: str, *, force: bool = False) -> tuple[Attachment, ...]:
        """Detach everything from an instance that ends, and delete the volumes that go with it.

        Those are the ones that it has now and that were attached with ``delete_on_termination``: what was detached
        before, or never arrived, is kept, and so is what others have or had since. Its guest should be off. A move that
        it is in, and a shelved one, ends with it. May be repeated until nothing is returned.

        Args:
            instance_id: UUID.
            force: Skip the guests and hosts that the fencer has evidence of being dead; on living hosts give up what
                cannot be brought to the volume any more (see :class:`~cloudcore.errors.FlushFailed`), as Nova does.

        Returns:
            The attachments whose guest has not let go yet: one that is frozen never does. Stop it, and repeat.

        Raises:
            FencingRequired: With *force*: a host that is not served here is not known to be dead.
            InUse: Another instance uses a volume that was to be deleted. It is theirs now; a repeat says nothing of it.
            CloudcoreError: The first failure, once everything else was done; as :meth:`detach`.
        """
        self._require_open()
        return self._detacher.terminate(normalise_uuid(instance_id, "instance_id"), force=force)

    @observed("attach.set_delete_on_termination", "attachment_id", level=logging.INFO, answer=_told)
    def set_delete_on_termination(self, attachment_id: str, delete: bool) -> Attachment:
        """Change whether :meth:`terminate` deletes the volume (what Nova allows from 2.85 on). May be repeated.

        Raises:
            AttachmentNotFound: There never was one of this id.
            Conflict: It is absent: its instance does not have the volume any more.
            VolumeBusy: Others kept the volume for longer than the patience.
        """
        self._require_open()
        if not isinstance(delete, bool):
            raise InvalidArgument(f"delete: {delete!r} is neither True nor False", field="delete", value=delete)
        return self._detacher.set_delete_on_termination(normalise_uuid(attachment_id, "attachment_id"), delete=delete)

    @observed("attach.swap_volume", "instance_id", "volume_id", "new_volume_id", level=logging.INFO, answer=_told)
    def swap_volume(
        self,
        instance_id: str,
        volume_id: str,
        new_volume_id: str,
        *,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> Attachment:
        """Let the instance's guest go on with another volume while it runs: what it holds is copied, then changed over.

        For a retype or a migration that the volume service has begun, and for which it waits: then the service is told
        how it ended, keeps *volume_id* for what was the new volume, and deletes the old bytes. Otherwise the instance
        has *new_volume_id* afterwards, and the old volume is kept.

        Takes as long as the copy: other verbs on the two volumes, and on the instance, wait or are refused meanwhile.
        What failed is undone, and the guest goes on with the old volume. What died in the middle is finished or undone
        by :meth:`recover`, by :meth:`revert_move`, or goes on when this is called again. If nobody can say any more
        which volume the guest has, :meth:`revert_move` keeps the old one and :meth:`confirm_move` the new one.

        Args:
            instance_id: UUID.
            volume_id: UUID of a volume that it has.
            new_volume_id: UUID of an available volume that is no smaller.
            on_progress: Called while it is copied with how many bytes are, and how many are to be. What it raises ends
                the copy, is raised again, and everything is as before.

        Returns:
            The instance's new attachment; the old one is absent.

        Raises:
            AttachmentNotFound, VolumeNotFound: There is no such volume, or the instance does not have it.
            InUse: Others use one of the volumes, or came to use it meanwhile. When a migration
                has brought the guest over already, it is finished once they do not use the old one.
            Conflict, VolumeBusy, InvalidArgument: A rule forbids it (:meth:`plan_swap` lists them), or the instance is
                in a move. Nothing was done.
            UnsupportedFeature: A volume is encrypted, or the hypervisor cannot. Nothing was done.
            WrongHost: Its host is not served here. Nothing was touched.
            CloudcoreError: What failed; a note says if it could not be undone.
        """
        self._require_open()
        request = SwapRequest(instance_id=instance_id, volume_id=volume_id, new_volume_id=new_volume_id)
        return self._swaps.swap(request, on_progress)

    def plan_swap(self, instance_id: str, volume_id: str, new_volume_id: str) -> SwapPlan:
        """Say every rule that :meth:`swap_volume` would break with these arguments. Touches nothing.

        Raises:
            InvalidArgument, AttachmentNotFound, VolumeNotFound, WrongHost, UnsupportedFeature: Nothing can be planned.
        """
        self._require_open()
        return self._swaps.plan(SwapRequest(instance_id=instance_id, volume_id=volume_id, new_volume_id=new_volume_id))

    @observed("attach.extend", "volume_id", "size", level=logging.INFO)
    def extend(self, volume_id: str, size: int) -> Extension:
        """Make the volume *size* bytes large, and tell every host and guest that has it.

        May be repeated with the same size, to tell those who could not be told before.

        Raises:
            VolumeNotFound, VolumeBusy, InvalidArgument, UnsupportedFeature: Nothing was done.
            Conflict: The service forbids it, or the volume is in a swap. Nothing was done.
            OutcomeUnknown: The service did not answer; repeat.
        """
        self._require_open()
        identifier = normalise_uuid(volume_id, "volume_id")
        told, left = [], []
        with self._leases.hold([volume_lock(identifier)]) as lease:
            self._require_no_swap(identifier)
            volume = self.volumes.extend(identifier, size)
            for leg in self._journal.select(volume_id=identifier):
                try:
                    told.append(self._driver.extend(lease, leg, volume.size))
                except CloudcoreError as error:
                    left.append((leg.id, f"{type(error).__name__}: {error}"))
        return Extension(volume=volume, told=tuple(told), left=tuple(left))

    def _require_no_swap(self, volume_id: str) -> None:
        with self._database.read() as connection:
            instance_id = self._move_rows.swapping(connection, volume_id)
        if instance_id is not None:
            raise Conflict(
                f"volume {volume_id} is in a swap of instance {instance_id}; try again when that is finished or "
                f"reverted",
                identifier=volume_id,
            )

    # --- moves --------------------------------------------------------------------------------------------------------

    @observed("attach.begin_move", "instance_id", "destination", "kind", level=logging.INFO)
    def begin_move(self, instance_id: str, destination: str | None, *, kind: MoveKind = "live") -> Move:
        """Begin to take the instance's volumes to another host. Compose it with the ledger's ``begin_move``.

        * ``"live"``: the destination is connected too; migrate the guest with ``move.disks``, then confirm or revert.
        * ``"cold"``: the volumes leave the source and are held for the instance; the guest should be off.
        * ``"shelve"``: the same with no destination; :meth:`confirm_move` names it when the instance comes back.
        * ``"evacuation"``: the source is skipped, on the fencer's evidence that it is dead.

        May be repeated until it succeeds. A live move that fails is undone; of the others, a volume is either still on
        the source or held for the instance, never free for somebody else.

        Raises:
            Conflict: An attachment is not at rest, or the instance is in another move.
            FencingRequired: An evacuation without evidence. Nothing was touched.
            WrongHost: The host to act on is not served here. Nothing was touched.
            CloudcoreError: What failed.
        """
        self._require_open()
        identifier = normalise_uuid(instance_id, "instance_id")
        if kind not in {"live", "cold", "shelve", "evacuation"}:
            raise InvalidArgument(f"kind: {kind!r} is no kind of move", field="kind", value=kind)
        if (destination is None) != (kind == "shelve"):
            raise InvalidArgument(f"destination: a {kind} move has {destination!r}", field="destination")
        return self._moves.begin(identifier, kind, destination)

    @observed("attach.confirm_move", "instance_id", "destination", level=logging.INFO)
    def confirm_move(self, instance_id: str, destination: str | None = None) -> tuple[Attachment, ...]:
        """End a begun move at its destination; for a shelved instance, at the one named here.

        A live move is confirmed once the guest runs at the destination: the source's attachments are removed, by
        :meth:`recover` of the source's own process if its host is not served here. Otherwise the volumes are given to
        the guest that is defined at the destination; a failure leaves them held.

        Of a swap that is ``pivoting``, and whose guest cannot be asked any more which volume it has, this says that the
        new one stays.

        Returns:
            The instance's attachments.

        Raises:
            MoveNotFound: It is in none.
            Conflict: The guest has not arrived, or still runs at the source; or it has the old volume of a swap.
            WrongHost: The destination is not served here. Nothing was touched.
            CloudcoreError: What failed; repeat it.
        """
        self._require_open()
        return self._moves.confirm(normalise_uuid(instance_id, "instance_id"), destination)

    @observed("attach.revert_move", "instance_id", level=logging.INFO)
    def revert_move(self, instance_id: str) -> tuple[Attachment, ...]:
        """Take a begun move back: the volumes are at the source afterwards, as before.

        A cold move whose confirmation failed halfway can be taken back too; a live one has to be confirmed. A swap is
        finished if the guest has changed over, and undone if not; if it cannot be asked, the old volume stays.

        Raises:
            MoveNotFound: It is in none.
            Conflict: The guest runs at the destination.
            Refused: An evacuation: the source is dead.
            WrongHost: The host to act on is not served here. Nothing was touched.
            CloudcoreError: What failed; repeat it.
        """
        self._require_open()
        return self._moves.revert(normalise_uuid(instance_id, "instance_id"))

    @observed("attach.refresh", "instance_id", level=logging.INFO)
    def refresh(self, instance_id: str) -> tuple[Attachment, ...]:
        """Let the volume service say anew how the instance's host reaches its volumes, and define its disks by that.

        For addresses of monitors or portals that have changed (``nova-manage volume_attachment refresh``). The guest
        has to be off. Each volume is held for the instance, taken off the host and given back to it, so nobody else can
        get it meanwhile. What died in the middle goes on when this is called again; :meth:`revert_move` ends it too.

        Returns:
            The instance's attachments.

        Raises:
            Conflict: The guest runs, an attachment is not at rest, or the instance is in another move.
            WrongHost: Its host is not served here. Nothing was touched.
            CloudcoreError: What failed; repeat it.
        """
        self._require_open()
        return self._moves.refresh(normalise_uuid(instance_id, "instance_id"))

    @observed("attach.refresh_host", "host", level=logging.INFO)
    def refresh_host(self, host: str) -> HostRefresh:
        """:meth:`refresh` for every instance on the host that is off; the others are named.

        One instance after the other, so one that cannot be refreshed does not keep the next from it.

        Raises:
            WrongHost: The host is not served here. Nothing was touched.
        """
        self._require_open()
        return self._moves.refresh_host(require_text(host, "host"))

    @observed("attach.rebuild", "instance_id", "image_id", level=logging.INFO)
    def rebuild(self, instance_id: str, image_id: str) -> tuple[Attachment, ...]:
        """Let the volume service write an image over the volume that the instance boots from (Nova's 2.93).

        The guest has to be off. The volume is reserved for the instance, taken off the host, written and given back, so
        nobody else can get it meanwhile; other volumes stay where they are. What died in the middle goes on when this
        is called again with the same image, or by :meth:`recover`; while the image is not written, another one can be
        named. :meth:`revert_move` gives the volume back with whatever is in it.

        Args:
            instance_id: UUID.
            image_id: UUID of the image, at the volume service's image service.

        Returns:
            The instance's attachments.

        Raises:
            Conflict: The instance boots from no volume (``boot_order=1``), others use that too, the guest runs, an
                attachment is not at rest, it is in another move, or the image could not be written: name another.
            UnsupportedFeature: The service cannot (Cinder: 3.68).
            WrongHost: Its host is not served here. Nothing was touched.
            OutcomeUnknown: The image is still being written, or nobody answered; repeat it.
            CloudcoreError: What failed; repeat it.
        """
        self._require_open()
        return self._moves.rebuild(normalise_uuid(instance_id, "instance_id"), normalise_uuid(image_id, "image_id"))

    @observed("attach.snapshot", "instance_id", "name", "crash_consistent", level=logging.INFO)
    def snapshot(self, instance_id: str, name: str, *, crash_consistent: bool = False) -> InstanceSnapshot:
        """Keep what all volumes of the instance hold at one instant, while its file systems wait.

        The guest's agent writes out what is held back and lets them wait until every snapshot is made; a guest that is
        off, and an instance on no host, needs none. Volumes that others use too are written on by those. If this fails,
        or dies, the guest goes on and what was made is deleted: at once, or by :meth:`recover`.

        Args:
            instance_id: UUID.
            name: Of the snapshots; an id is appended, so that each call makes its own.
            crash_consistent: Take the volumes as after a power cut, if nobody in the guest answers.

        Raises:
            GuestAgentUnavailable: Nobody in the guest answers. Nothing is left over.
            Conflict: It has no volume, an attachment is not at rest, or it is in a move.
            WrongHost: Its host is not served here. Nothing was touched.
            CloudcoreError: What failed; a note says if it could not be undone.
        """
        self._require_open()
        identifier = normalise_uuid(instance_id, "instance_id")
        require_text(name, "name", maximum=200)
        return self._snapshots.make(identifier, name, crash_consistent=crash_consistent)

    def move(self, instance_id: str) -> Move | None:
        """The move that the instance is in, None if it is in none."""
        self._require_open()
        return self._move_rows.find(normalise_uuid(instance_id, "instance_id"))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    @observed("attach.recover", level=logging.INFO)
    def recover(self) -> RecoveryReport:
        """Finish or undo everything that was interrupted, by looking at the service, the host and the guest.

        Interrupted detaches are finished; interrupted attaches are finished if the guest has the disk and undone if
        not; guests that had not let go are asked again. What somebody alive is at work on is left alone, and so is what
        happened on hosts that are not served here or cannot be reached, unless the fencer has evidence that they are
        dead.

        May be called at any time, twice, and by several processes at once. Where a lease of another machine has expired
        it waits once, for about as long as a lease lasts, to see that nobody renews it.

        Returns:
            What was settled, what had to be left and why.
        """
        self._require_open()
        return recover_all(self._journal, self._leases, self._recovery, self._moves, self._move_rows)

    @observed("attach.audit", "volume_id")
    def audit(self, volume_id: str | None = None) -> AuditReport:
        """Compare the journal, the volume service, the guests' definitions and the hosts' connections. Changes nothing.

        Volumes on which somebody is at work are skipped. A store that cannot be asked is named, not guessed at.

        Args:
            volume_id: Only this volume; None for every volume that the journal or a guest knows.
        """
        self._require_open()
        return self._auditor.audit(None if volume_id is None else normalise_uuid(volume_id, "volume_id"))

    @observed("attach.heal", "apply", level=logging.INFO)
    def heal(
        self,
        findings: AuditReport | Iterable[Finding] | None = None,
        *,
        apply: bool = False,
        limit: int = 10,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> HealReport:
        """Say what would mend the findings; with *apply*, mend them.

        Each is looked at again under the lease on its volume, and mended only if it still holds. Without at least two
        stores that speak for a remedy there is none, and the finding is left to the operator.

        Args:
            findings: Of :meth:`audit`, all or some; by default those of a fresh one.
            apply: Do it.
            limit: How many at most in one call.
            on_progress: Called after each with its number from 1, and how many are tried.
        """
        self._require_open()
        chosen = self.audit() if findings is None else findings
        if isinstance(chosen, AuditReport):
            chosen = chosen.findings
        return self._auditor.heal(chosen, apply=apply, limit=limit, on_progress=on_progress)

    # --- looking ------------------------------------------------------------------------------------------------------

    def attachment(self, attachment_id: str) -> Attachment:
        """The attachment, absent ones included.

        Raises:
            AttachmentNotFound: There never was one of this id.
        """
        self._require_open()
        return self._journal.get(normalise_uuid(attachment_id, "attachment_id"))

    def attachments(
        self, *, volume_id: str | None = None, instance_id: str | None = None, host: str | None = None
    ) -> tuple[Attachment, ...]:
        """The attachments that are not absent, of this volume, instance and host, oldest first."""
        self._require_open()
        return self._journal.select(
            volume_id=None if volume_id is None else normalise_uuid(volume_id, "volume_id"),
            instance_id=None if instance_id is None else normalise_uuid(instance_id, "instance_id"),
            host=host,
        )

    def story(self, attachment_id: str) -> tuple[StoryLine, ...]:
        """Everything that happened to the attachment, oldest first."""
        self._require_open()
        return self._journal.story(normalise_uuid(attachment_id, "attachment_id"))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    @observed("attach.prune", "limit", level=logging.INFO)
    def prune(self, older_than: datetime, *, limit: int = 10_000) -> int:
        """Forget attachments that have been absent since before *older_than*, at most *limit*; return how many.

        A forgotten one is unknown to :meth:`detach`, its operation id can be used anew, and :meth:`audit` no longer
        knows that its volume and instance ever belonged together. What ended with an instance, and whose volume could
        not be deleted yet, is kept: :meth:`terminate`, repeated, has to know of it.

        Raises:
            InvalidArgument: *older_than* has no time zone.
        """
        self._require_open()
        return self._journal.prune(require_utc(older_than, "older_than"), limit=limit)

    def status(self) -> ManagerStatus:
        """How things stand, for a readiness probe: one statement.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The journal cannot be read: not ready.
        """
        self._require_open()
        return ManagerStatus.of(self._journal.count_by_state())

    def check(self) -> None:
        """Verify what must always hold of the journal.

        Raises:
            InvariantViolated: An exclusive volume has two users, or an instance has a volume twice.
        """
        self._require_open()
        findings = []
        legs_of: dict[str, list[Attachment]] = defaultdict(list)
        for leg in self._journal.select():
            for other in legs_of[leg.volume_id]:
                stranger = other.instance_id != leg.instance_id
                if stranger and not leg.settings.shareable:
                    findings.append(f"exclusive volume {leg.volume_id} has attachments {leg.id} and {other.id}")
                if not stranger and leg.role == other.role == "main":
                    findings.append(
                        f"instance {leg.instance_id} has volume {leg.volume_id} twice: {leg.id}, {other.id}"
                    )
            legs_of[leg.volume_id].append(leg)
        if findings:
            raise InvariantViolated("; ".join(findings), findings=tuple(findings))

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the manager is closed; make a new one", field="manager")

    def close(self) -> None:
        """Stop renewing leases, and close the database if it was opened here. May be called twice.

        Later calls raise Closed, over a database of the caller's too: a lease that nobody renews protects nothing. One
        under way ends with its answer, or, over a database that was opened here, with Closed.
        """
        self._closed = True
        self._leases.close()
        if self._owns_database:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AttachmentManager {self._database!r}, {type(self.volumes).__name__}, hosts {', '.join(self.hosts)}>"


def _opened(source: str | URL | Engine, patience: float) -> Database:
    """The journal's database. Half of the patience is for one attempt, half for beginning others."""
    half = min(30.0, max(patience, 0.2) / 2)
    retry = RetryPolicy(deadline=half)
    if isinstance(source, Engine):
        return Database(source, retry=retry)
    return Database(source, retry=retry, busy_timeout=half)


def _hosts(
    hypervisor: GuestDisks | Iterable[GuestDisks] | None, connectors: Mapping[str, HostConnector]
) -> dict[str, Host]:
    if hypervisor is None:
        several: list[GuestDisks] = [MemoryGuests()]
    else:
        several = [hypervisor] if isinstance(hypervisor, GuestDisks) else list(hypervisor)
    found = {
        guests.host: Host(guests, connectors.get(guests.host) or PlainConnector(host=guests.host)) for guests in several
    }
    if len(found) != len(several):
        raise InvalidArgument("hypervisor: two of them have the same host name", field="hypervisor")
    for name, host in found.items():
        described = host.connector.describe()
        if described.host != name:
            raise InvalidArgument(
                f"connectors: that of host {name} describes host {described.host}",
                field="connectors",
                value=described.host,
            )
    if unknown := sorted(connectors.keys() - found.keys()):
        raise InvalidArgument(f"connectors: no hypervisor serves {', '.join(unknown)}", field="connectors")
    return found
