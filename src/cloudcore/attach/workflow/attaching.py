"""Attaching: the request is checked, the rules are asked, the intent is written, and the driver does the rest."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_text
from cloudcore.attach.journal.lock_names import target_lock, volume_lock
from cloudcore.attach.lifecycle.failures import failure
from cloudcore.attach.lifecycle.records import Attachment
from cloudcore.attach.lifecycle.rules import AttachPlan, AttachRequest, needs_target_lock, plan, takes_over, violations
from cloudcore.attach.lifecycle.states import Event, Instruction, State
from cloudcore.disks import DiskBus
from cloudcore.errors import Conflict, InvalidArgument, OperationMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from cloudcore.attach.hosts.connectors import Host
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease, Leases
    from cloudcore.attach.journal.moves import MoveStore
    from cloudcore.attach.lifecycle.rules import Limits, Policy, Violation
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import Volume, VolumeFeatures
    from cloudcore.attach.workflow.driver import Driver
    from cloudcore.attach.workflow.recovery import Recovery

__all__ = ["Attacher"]


class Attacher:
    """Attaches, and plans attaching. May be shared between threads."""

    def __init__(
        self,
        journal: Journal,
        driver: Driver,
        leases: Leases,
        recovery: Recovery,
        moves: MoveStore,
        volumes: VolumeService,
        hosts: Mapping[str, Host],
        *,
        limits: Limits,
        policy: Policy | None,
        id_factory: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._driver = driver
        self._leases = leases
        self._recovery = recovery
        self._moves = moves
        self._volumes = volumes
        self._hosts = hosts
        self._limits = limits
        self._policy = policy
        self._new_id = id_factory

    def attach(self, request: AttachRequest, operation_id: str | None) -> Attachment:
        """See :meth:`AttachmentManager.attach`."""
        fingerprint = None
        if operation_id is not None:
            require_text(operation_id, "operation_id", maximum=64)
            fingerprint = hashlib.sha256(json.dumps(request.as_json(), sort_keys=True).encode()).hexdigest()
            repeated = self._repeated(operation_id, fingerprint)
            if repeated is not None:
                return repeated
        return self._attach(request, operation_id, fingerprint)

    def plan(self, request: AttachRequest) -> AttachPlan:
        """See :meth:`AttachmentManager.plan_attach`."""
        volume, features = self._volumes.volume(request.volume_id), self._volumes.features()
        denied = self._denied(request, volume)
        with self._journal.database.read() as connection:
            legs = self._journal.of_volume(connection, volume.id)
            found = self._violations(connection, request, volume, legs, denied=denied, features=features)
        return plan(request, volume, found, target_lock=self._target_lock(request, volume))

    def _target_lock(self, request: AttachRequest, volume: Volume) -> str | None:
        if request.host is None:
            return None
        manual = self._hosts[request.host].connector.describe().manual_scan
        locked = needs_target_lock(volume, manual_scan=manual)
        return target_lock(request.host, volume.service_uuid) if locked else None

    def request(self, *, host: str | None, bus: DiskBus | str, anywhere: bool = False, **given: Any) -> AttachRequest:
        """Check what was asked for; *given* are the other fields of :class:`AttachRequest`.

        Without *host* the only one that is served is meant; with *anywhere*, or for a shelved instance, none.

        Raises:
            InvalidArgument: Something is malformed, or the host is not served here.
        """
        if host is None and not anywhere and self._shelved(given["instance_id"]):
            anywhere = True
        if host is None and not anywhere:
            if len(self._hosts) != 1:
                raise InvalidArgument(
                    f"host: this manager serves {', '.join(sorted(self._hosts))}; say which one the instance is on",
                    field="host",
                )
            host = next(iter(self._hosts))
        if host is not None and host not in self._hosts:
            raise InvalidArgument(
                f"host: {host!r} is not served here; served: {', '.join(sorted(self._hosts))}", field="host", value=host
            )
        try:
            bus = DiskBus(bus)
        except ValueError:
            raise InvalidArgument(f"bus: {bus!r} is none of {', '.join(DiskBus)}", field="bus", value=bus) from None
        return AttachRequest(host=host, bus=bus, **given)

    def _shelved(self, instance_id: str) -> bool:
        move = self._moves.find(normalise_uuid(instance_id, "instance_id"))
        return move is not None and move.shelved

    def _attach(self, request: AttachRequest, operation_id: str | None, fingerprint: str | None) -> Attachment:
        settled = refreshed = False
        reserved: list[Attachment] = []
        features = self._volumes.features()
        while True:
            volume = self._volumes.volume(request.volume_id)
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
                self._journal.spare(connection, volume.id)
                reserved[:] = [other for other in legs if takes_over(request, other)]
                if not reserved:
                    self._journal.begin(connection, leg)
                failpoint("attach.begin.commit")

            try:
                with self._leases.hold([volume_lock(volume.id)], start=start) as lease:
                    failpoint("attach.begin.after")
                    return self._drive_attach(lease, request, leg, reserved)
            except _Unsettled:
                self._recovery.settle(volume.id)
                settled = True
            except _Denied as denial:
                if refreshed or not denial.stale:
                    raise denial.error from None
                refreshed = True  # the volume was described before the lease was had

    def _drive_attach(
        self, lease: Lease, request: AttachRequest, leg: Attachment, reserved: Sequence[Attachment]
    ) -> Attachment:
        if not reserved:
            result = self._driver.run(lease, leg, Instruction.RESERVE)
        else:
            leg, instruction = self._journal.advance(
                lease,
                reserved[0],
                Event.PLACE,
                host=request.host,
                settings=attrs.evolve(leg.settings, held_before=True),
                operation_id=leg.operation_id,
                fingerprint=leg.fingerprint,
            )
            result = self._driver.run(lease, leg, instruction, release=False)
        if result.leg.state is (State.ATTACHED if request.host is not None else State.HELD):
            return result.leg
        raise failure(result.leg, result.error, "attach", self._journal.story(leg.id))

    def _new_leg(
        self, request: AttachRequest, volume: Volume, operation_id: str | None, fingerprint: str | None
    ) -> Attachment:
        now = self._journal.now()
        return Attachment(
            id=self._new_id(),
            volume_id=volume.id,
            instance_id=request.instance_id,
            host=request.host,
            state=State.RESERVING if request.host is not None else State.HOLDING,
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
        broken = self._violations(connection, request, volume, legs, denied=denied, features=features)
        found = [violation for violation in broken if not violation.passing]
        if found:
            raise _Denied(found)

    def _violations(
        self,
        connection: Connection,
        request: AttachRequest,
        volume: Volume,
        legs: Sequence[Attachment],
        *,
        denied: Sequence[str],
        features: VolumeFeatures,
    ) -> tuple[Violation, ...]:
        move = self._moves.in_move(connection, request.instance_id)
        return violations(
            request,
            volume,
            volume_legs=legs,
            instance_legs=self._journal.of_instance(connection, request.instance_id),
            limits=self._limits,
            features=features,
            denied=denied,
            moving=move is not None and not move.shelved,
            shelved=move is not None and move.shelved,
            swapped_by=self._moves.swapping(connection, request.volume_id),
        )

    def _repeated(self, operation_id: str, fingerprint: str) -> Attachment | None:
        """What an earlier call under this id made, if it stands; None if nothing came of it.

        Raises:
            OperationMismatch: It was another call.
            Conflict: It was attached, and is not any more.
        """
        with self._journal.database.read() as connection:
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
        if found.state in {State.ATTACHED, State.HELD}:
            return found
        if self._journal.free_operation(found):
            return None  # it never came to be: the id is as good as new
        raise Conflict(
            f"operation {operation_id} made attachment {found.id}, which is {found.state} "
            f"({found.note or 'no error'}); use a new operation id to attach again",
            identifier=found.id,
        )


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
