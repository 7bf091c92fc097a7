"""Attach and detach volumes, and survive a crash at any point: :class:`AttachmentManager`."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import attrs

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_text
from cloudcore.attach.auditing import AuditReport, Finding
from cloudcore.attach.embedded import EmbeddedVolumes
from cloudcore.attach.failures import failure
from cloudcore.attach.fencing import require_evidence
from cloudcore.attach.guests import MemoryGuests
from cloudcore.attach.healing import Auditor, HealReport
from cloudcore.attach.hosts import Host, PlainConnector
from cloudcore.attach.journal import Journal
from cloudcore.attach.leases import Leases
from cloudcore.attach.moves import Moves
from cloudcore.attach.records import Attachment, Extension, MoveKind
from cloudcore.attach.recovery import Recovery, RecoveryReport, volume_lock
from cloudcore.attach.rules import AttachPlan, AttachRequest, Limits, needs_target_lock, plan, violations
from cloudcore.attach.states import Event, Instruction, State
from cloudcore.attach.steps import Driver, Result, target_lock
from cloudcore.database import Database
from cloudcore.disks import DiskBus, GuestDisks
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    InvalidArgument,
    InvariantViolated,
    OperationMismatch,
    UnsupportedFeature,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.attach.fencing import Fencer
    from cloudcore.attach.hosts import HostConnector
    from cloudcore.attach.leases import Lease
    from cloudcore.attach.records import Move, StoryLine
    from cloudcore.attach.rules import Policy, Violation
    from cloudcore.attach.volumes import AttachMode, Volume, VolumeFeatures, VolumeService

__all__ = ["AttachmentManager"]

_log = logging.getLogger("cloudcore.attach")


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
        patience: Seconds to wait for a volume on which somebody else is at work.
        clock, id_factory: For the journal.

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
    ) -> None:
        self._owns_database = not isinstance(source, Database)
        self._database = Database.of(source)
        self.volumes: VolumeService = EmbeddedVolumes(self._database) if volumes is None else volumes
        self.hosts: Mapping[str, Host] = MappingProxyType(_hosts(hypervisor, connectors or {}))
        self._limits = limits or Limits()
        self._policy = policy
        self._new_id = id_factory
        self._journal = Journal(self._database, clock)
        self._leases = Leases(self._database, seconds=lease, patience=patience)
        self._fencer = fencer
        self._driver = Driver(
            self._journal, self.volumes, self.hosts, self._leases, patience=patience, id_factory=id_factory
        )
        self._recovery = Recovery(self._journal, self._driver, self._leases, fencer)
        self._moves = Moves(
            self._journal,
            self._driver,
            self._leases,
            self._recovery,
            fencer=fencer,
            id_factory=id_factory,
        )
        self._auditor = Auditor(
            self._journal, self._driver, self._leases, self._recovery, self._moves, self.volumes, self.hosts
        )

    # --- attach -------------------------------------------------------------------------------------------------------

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

        To boot from the volume, attach it with ``boot_order=1`` to a guest that is defined and not yet started.

        Args:
            volume_id: UUID of the volume.
            instance_id: UUID of the instance.
            mode: ``"ro"`` makes the guest's disk read-only, whatever the service would allow.
            host: On which the instance is; needed if this manager serves several.
            bus: See :class:`~cloudcore.disks.Disk`; so *target*, *boot_order* and *cache*.
            target: Device name; None for the next free one.
            boot_order: 1 is booted first.
            cache: QEMU's cache mode; multi-attach volumes always get ``"none"``.
            delete_on_termination: :meth:`terminate` deletes the volume.
            operation_id: Chosen by the caller; a repeat under the same id returns what the first call made.

        Raises:
            InvalidArgument, UnsupportedFeature: Malformed, or impossible; nothing was done.
            VolumeNotFound, AlreadyExists, InUse, Conflict, PolicyDenied, LimitExceeded, InvalidDisk: A rule forbids it;
                nothing was done. :meth:`plan_attach` lists all of them.
            OperationMismatch: The operation id was used for something else.
            VolumeBusy: Others kept the volume for longer than the patience; nothing was done.
            OutcomeUnknown: Nobody could be asked what became of a step; the attachment is uncertain until
                :meth:`recover`.
            CloudcoreError: What the service, the host or the hypervisor said; it was undone.
        """
        request = self._request(
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
        fingerprint = None
        if operation_id is not None:
            require_text(operation_id, "operation_id", maximum=64)
            fingerprint = hashlib.sha256(json.dumps(request.as_json(), sort_keys=True).encode()).hexdigest()
            repeated = self._repeated(operation_id, fingerprint)
            if repeated is not None:
                return repeated
        return self._attach(request, operation_id, fingerprint)

    def _attach(self, request: AttachRequest, operation_id: str | None, fingerprint: str | None) -> Attachment:
        settled = refreshed = False
        features = self.volumes.features()
        while True:
            volume = self.volumes.volume(request.volume_id)
            denied = self._denied(request, volume)
            leg = self._new_leg(request, volume, operation_id, fingerprint)

            def start(
                connection: Connection,
                volume: Volume = volume,
                denied: Sequence[str] = denied,
                leg: Attachment = leg,
                settled: bool = settled,
            ) -> None:
                legs = self._journal.of_volume(connection, volume.id)
                if not settled and any(other.interrupted for other in legs):
                    raise _Unsettled
                self._permit(connection, request, volume, legs, denied=denied, features=features)
                self._journal.begin(connection, leg)
                failpoint("attach.begin.commit")

            try:
                with self._leases.hold([volume_lock(volume.id)], start=start) as lease:
                    failpoint("attach.begin.after")
                    return self._drive_attach(lease, leg)
            except _Unsettled:
                self._recovery.settle(volume.id)
                settled = True
            except _Denied as denial:
                if refreshed or not denial.stale:
                    raise denial.error from None
                refreshed = True  # the volume was described before the lease was had

    def _drive_attach(self, lease: Lease, leg: Attachment) -> Attachment:
        result = self._driver.run(lease, leg, Instruction.RESERVE)
        if result.leg.state is State.ATTACHED:
            _log.info("attached", extra={"attachment": leg.id, "volume": leg.volume_id, "instance": leg.instance_id})
            return result.leg
        raise self._failure(result, "attach")

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
        request = self._request(
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
        volume, features = self.volumes.volume(request.volume_id), self.volumes.features()
        denied = self._denied(request, volume)
        with self._database.read() as connection:
            legs = self._journal.of_volume(connection, volume.id)
            mine = self._journal.of_instance(connection, request.instance_id)
            moving = self._moves.in_move(connection, request.instance_id) is not None
        found = violations(
            request,
            volume,
            volume_legs=legs,
            instance_legs=mine,
            limits=self._limits,
            features=features,
            denied=denied,
            moving=moving,
        )
        manual = self.hosts[request.host].connector.describe().manual_scan
        locked = needs_target_lock(request.settings(volume), manual_scan=manual)
        return plan(
            request, volume, found, target_lock=target_lock(request.host, volume.service_uuid) if locked else None
        )

    # --- detach -------------------------------------------------------------------------------------------------------

    def detach(self, attachment_id: str, *, force: bool = False) -> Attachment:
        """Take the volume back: out of the guest, off the host if nobody else there uses it, then from the service.

        May be called again at any time, by anybody; what is detached already is success.

        Args:
            attachment_id: Of :meth:`attach`.
            force: The host is dead: skip the guest and the host, on the fencer's evidence.

        Returns:
            The attachment: ``absent``; or ``pending`` if the guest was asked and has not let go yet, in which case it
            goes on with the next :meth:`detach` or :meth:`recover`, also after a restart.

        Raises:
            AttachmentNotFound: There never was one of this id.
            WrongHost: Its host is not served here; nothing was touched.
            Conflict: The instance is moving; confirm or revert that first.
            FencingRequired: *force* without evidence that the host is dead; nothing was touched.
            DetachFailed: The guest refuses for good; it is attached as before.
            OutcomeUnknown: Somebody could not be asked; :meth:`recover` goes on.
            CloudcoreError: What failed; the journal has how far it came, and :meth:`recover` goes on from there.
        """
        identifier = normalise_uuid(attachment_id, "attachment_id")
        leg = self._journal.get(identifier)
        if leg.state is State.ABSENT:
            return leg
        evidence = str(require_evidence(self._fencer, str(leg.host))) if force else None
        if leg.host is not None and not force:
            self._driver.host(leg)
        self._require_still(leg)
        with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
            leg = self._journal.get(identifier)
            if leg.interrupted:
                leg = self._recovery.salvage(lease, leg).leg
            if leg.state is State.ABSENT:
                return leg
            result = self._take_back(lease, leg, evidence)
        if result.leg.state is State.ABSENT or (result.leg.pending and result.error is None):
            _log.info("detached", extra={"attachment": leg.id, "state": str(result.leg.state)})
            return result.leg
        raise self._failure(result, "detach")

    def _take_back(self, lease: Lease, leg: Attachment, evidence: str | None) -> Result:
        event = Event.DETACH if evidence is None or leg.host is None else Event.FENCED
        settings = attrs.evolve(leg.settings, held_before=False)
        leg, instruction = self._journal.advance(lease, leg, event, note=evidence, settings=settings)
        return self._driver.run(lease, leg, instruction)

    def _require_still(self, leg: Attachment) -> None:
        move = self._moves.find(leg.instance_id)
        if move is not None:
            raise Conflict(
                f"instance {leg.instance_id} is in a {move.kind} move from {move.source}; confirm or revert it first",
                identifier=leg.instance_id,
            )

    def terminate(self, instance_id: str) -> tuple[Attachment, ...]:
        """Detach everything from an instance that ends, and delete the volumes that go with it.

        Its guest should be off. May be repeated until nothing is returned.

        Returns:
            The attachments whose guest has not let go yet.

        Raises:
            CloudcoreError: The first failure, once everything else was done; as :meth:`detach`.
        """
        identifier = normalise_uuid(instance_id, "instance_id")
        failures: list[CloudcoreError] = []
        waiting = []
        for leg in self._journal.select(instance_id=identifier):
            try:
                found = self.detach(leg.id)
                if found.pending:
                    waiting.append(found)
            except CloudcoreError as error:
                failures.append(error)
        for volume_id in self._journal.going_with(identifier):
            try:
                self.volumes.delete_volume(volume_id)
                self._journal.gone(identifier, volume_id)
            except CloudcoreError as error:
                failures.append(error)
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"also: {other}")
            raise failures[0]
        return tuple(waiting)

    def swap(self, attachment_id: str, new_volume_id: str) -> Attachment:
        """Refuse to replace the volume under a running guest; *new_volume_id* is only looked up.

        Raises:
            Conflict: One of the two volumes is multi-attach: its other users would go on with the old bytes.
            UnsupportedFeature: Copying under a running guest is not part of :class:`~cloudcore.disks.GuestDisks`.
        """
        leg = self._journal.get(normalise_uuid(attachment_id, "attachment_id"))
        new = self.volumes.volume(new_volume_id)
        if leg.settings.shareable or new.multiattach:
            raise Conflict(
                f"attachment {leg.id} cannot swap volume {leg.volume_id} for {new.id}: multi-attach volumes have users "
                f"who would go on with the old one",
                identifier=leg.id,
            )
        raise UnsupportedFeature(
            f"attachment {leg.id}: copying under a running guest is not supported; detach, copy, attach",
            needed="block copy",
        )

    def extend(self, volume_id: str, size: int) -> Extension:
        """Make the volume *size* bytes large, and tell every host and guest that has it.

        May be repeated with the same size, to tell those who could not be told before.

        Raises:
            VolumeNotFound, VolumeBusy, InvalidArgument, Conflict, UnsupportedFeature: Nothing was done.
            OutcomeUnknown: The service did not answer; repeat.
        """
        identifier = normalise_uuid(volume_id, "volume_id")
        told, left = [], []
        with self._leases.hold([volume_lock(identifier)]) as lease:
            volume = self.volumes.extend(identifier, size)
            for leg in self._journal.select(volume_id=identifier):
                if leg.state is not State.ATTACHED:
                    continue
                try:
                    told.append(self._driver.extend(lease, leg, volume.size))
                except CloudcoreError as error:
                    left.append((leg.id, f"{type(error).__name__}: {error}"))
        return Extension(volume=volume, told=tuple(told), left=tuple(left))

    # --- moves --------------------------------------------------------------------------------------------------------

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
        identifier = normalise_uuid(instance_id, "instance_id")
        if kind not in {"live", "cold", "shelve", "evacuation"}:
            raise InvalidArgument(f"kind: {kind!r} is no kind of move", field="kind", value=kind)
        if (destination is None) != (kind == "shelve"):
            raise InvalidArgument(f"destination: a {kind} move has {destination!r}", field="destination")
        return self._moves.begin(identifier, kind, destination)

    def confirm_move(self, instance_id: str, destination: str | None = None) -> tuple[Attachment, ...]:
        """End a begun move at its destination; for a shelved instance, at the one named here.

        A live move is confirmed once the guest runs at the destination: the source's attachments are removed, by
        :meth:`recover` of the source's own process if its host is not served here. Otherwise the volumes are given to
        the guest that is defined at the destination; a failure leaves them held.

        Returns:
            The instance's attachments.

        Raises:
            MoveNotFound: It is in none.
            Conflict: The guest has not arrived, or still runs at the source.
            WrongHost: The destination is not served here. Nothing was touched.
            CloudcoreError: What failed; repeat it.
        """
        return self._moves.confirm(normalise_uuid(instance_id, "instance_id"), destination)

    def revert_move(self, instance_id: str) -> tuple[Attachment, ...]:
        """Take a begun move back: the volumes are at the source afterwards, as before.

        A cold move whose confirmation failed halfway can be taken back too; a live one has to be confirmed.

        Raises:
            MoveNotFound: It is in none.
            Conflict: The guest runs at the destination.
            Refused: An evacuation: the source is dead.
            WrongHost: The host to act on is not served here. Nothing was touched.
            CloudcoreError: What failed; repeat it.
        """
        return self._moves.revert(normalise_uuid(instance_id, "instance_id"))

    def move(self, instance_id: str) -> Move | None:
        """The move that the instance is in, None if it is in none."""
        return self._moves.find(normalise_uuid(instance_id, "instance_id"))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def recover(self) -> RecoveryReport:
        """Finish or undo everything that was interrupted, by looking at the service, the host and the guest.

        Interrupted detaches are finished; interrupted attaches are finished if the guest has the disk and undone if
        not; guests that had not let go are asked again. What somebody alive is at work on is left alone, and so is what
        happened on hosts that are not served here, unless the fencer has evidence that they are dead.

        May be called at any time, twice, and by several processes at once.

        Returns:
            What was settled, what had to be left and why.
        """
        return self._recovery.recover(self._moves)

    def audit(self, volume_id: str | None = None) -> AuditReport:
        """Compare the journal, the volume service, the guests' definitions and the hosts' connections. Changes nothing.

        Volumes on which somebody is at work are skipped. A store that cannot be asked is named, not guessed at.

        Args:
            volume_id: Only this volume; None for every volume that the journal or a guest knows.
        """
        return self._auditor.audit(None if volume_id is None else normalise_uuid(volume_id, "volume_id"))

    def heal(
        self, findings: AuditReport | Iterable[Finding] | None = None, *, apply: bool = False, limit: int = 10
    ) -> HealReport:
        """Say what would mend the findings; with *apply*, mend them.

        Each is looked at again under the lease on its volume, and mended only if it still holds. Without at least two
        stores that speak for a remedy there is none, and the finding is left to the operator.

        Args:
            findings: Of :meth:`audit`, all or some; by default those of a fresh one.
            apply: Do it.
            limit: How many at most in one call.
        """
        chosen = self.audit() if findings is None else findings
        if isinstance(chosen, AuditReport):
            chosen = chosen.findings
        return self._auditor.heal(chosen, apply=apply, limit=limit)

    # --- looking ------------------------------------------------------------------------------------------------------

    def attachment(self, attachment_id: str) -> Attachment:
        """The attachment, absent ones included.

        Raises:
            AttachmentNotFound: There never was one of this id.
        """
        return self._journal.get(normalise_uuid(attachment_id, "attachment_id"))

    def attachments(
        self, *, volume_id: str | None = None, instance_id: str | None = None, host: str | None = None
    ) -> tuple[Attachment, ...]:
        """The attachments that are not absent, of this volume, instance and host, oldest first."""
        return self._journal.select(
            volume_id=None if volume_id is None else normalise_uuid(volume_id, "volume_id"),
            instance_id=None if instance_id is None else normalise_uuid(instance_id, "instance_id"),
            host=host,
        )

    def story(self, attachment_id: str) -> tuple[StoryLine, ...]:
        """Everything that happened to the attachment, oldest first."""
        return self._journal.story(normalise_uuid(attachment_id, "attachment_id"))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _request(self, *, host: str | None, bus: DiskBus | str, **given: Any) -> AttachRequest:
        if host is None:
            if len(self.hosts) != 1:
                raise InvalidArgument(
                    f"host: this manager serves {', '.join(sorted(self.hosts))}; say which one the instance is on",
                    field="host",
                )
            host = next(iter(self.hosts))
        if host not in self.hosts:
            raise InvalidArgument(
                f"host: {host!r} is not served here; served: {', '.join(sorted(self.hosts))}", field="host", value=host
            )
        try:
            bus = DiskBus(bus)
        except ValueError:
            raise InvalidArgument(f"bus: {bus!r} is none of {', '.join(DiskBus)}", field="bus", value=bus) from None
        return AttachRequest(host=host, bus=bus, **given)

    def _new_leg(
        self, request: AttachRequest, volume: Volume, operation_id: str | None, fingerprint: str | None
    ) -> Attachment:
        now = self._journal.now()
        return Attachment(
            id=self._new_id(),
            volume_id=volume.id,
            instance_id=request.instance_id,
            host=request.host,
            state=State.RESERVING,
            mode=request.mode,
            operation_id=operation_id,
            fingerprint=fingerprint,
            settings=request.settings(volume),
            created_at=now,
            updated_at=now,
        )

    def _denied(self, request: AttachRequest, volume: Volume) -> list[str]:
        """The policy rules that say no. Asked outside of transactions: a hook may do as it likes."""
        if self._policy is None or not volume.multiattach:
            return []
        rules = ["multiattach", "multiattach_bootable"] if volume.bootable else ["multiattach"]
        return [rule for rule in rules if not self._policy.allows(rule, request, volume)]

    def _permit(
        self,
        connection: Connection,
        request: AttachRequest,
        volume: Volume,
        legs: Sequence[Attachment],
        *,
        denied: Sequence[str],
        features: VolumeFeatures,
    ) -> None:
        self._leases.serialise(connection, f"places/{request.instance_id}")
        mine = self._journal.of_instance(connection, request.instance_id)
        moving = self._moves.in_move(connection, request.instance_id) is not None
        broken = violations(
            request,
            volume,
            volume_legs=legs,
            instance_legs=mine,
            limits=self._limits,
            features=features,
            denied=denied,
            moving=moving,
        )
        found = [violation for violation in broken if not violation.passing]
        if found:
            raise _Denied(found)

    def _repeated(self, operation_id: str, fingerprint: str) -> Attachment | None:
        """What an earlier call under this id made, if it stands or stood; None if nothing came of it."""
        with self._database.read() as connection:
            found = self._journal.of_operation(connection, operation_id)
        if found is None:
            return None
        if found.fingerprint != fingerprint:
            raise OperationMismatch(
                f"operation {operation_id} was used for attachment {found.id} with other arguments; nothing was done. "
                f"Use a new operation id for a new call",
                operation_id=operation_id,
                identifier=found.id,
            )
        if found.interrupted:
            self._recovery.settle(found.volume_id)
            found = self._journal.get(found.id)
        if found.state is State.ATTACHED:
            return found
        raise Conflict(
            f"operation {operation_id} made attachment {found.id}, which is {found.state} "
            f"({found.note or 'no error'}); use a new operation id to attach again",
            identifier=found.id,
        )

    def _failure(self, result: Result, verb: str) -> CloudcoreError:
        return failure(result.leg, result.error, verb, self._journal.story(result.leg.id))

    # --- upkeep -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Verify what must always hold of the journal.

        Raises:
            InvariantViolated: An exclusive volume has two users, or an instance has a volume twice.
        """
        legs = self._journal.select()
        findings = []
        for leg in legs:
            others = [o for o in legs if o.volume_id == leg.volume_id and o.id < leg.id]
            strangers = [o for o in others if o.instance_id != leg.instance_id]
            if strangers and not leg.settings.shareable:
                findings.append(f"exclusive volume {leg.volume_id} has attachments {leg.id} and {strangers[0].id}")
            twins = [o for o in others if o.instance_id == leg.instance_id and o.role == leg.role == "main"]
            if twins:
                findings.append(f"instance {leg.instance_id} has volume {leg.volume_id} twice: {leg.id}, {twins[0].id}")
        if findings:
            raise InvariantViolated("; ".join(findings), findings=tuple(findings))

    def close(self) -> None:
        """Stop renewing leases, and close the database if it was opened here. May be called twice."""
        self._leases.close()
        if self._owns_database:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Unsettled(Exception):
    """The volume has interrupted legs."""


class _Denied(Exception):
    """Rules forbid it."""

    def __init__(self, found: Sequence[Violation]) -> None:
        super().__init__()
        self.error = found[0].as_error()
        for violation in found[1:]:
            self.error.add_note(f"also: {violation.code}: {violation.message}")
        self.stale = any(violation.code in {"volume-status", "exclusive"} for violation in found)


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
