"""The shell that carries out the state table's instructions for one leg, and feeds back what came of them.

Each step: check that the lease is still ours, act, translate the answer into an event, write the event. Nothing here
decides what happens next; :mod:`cloudcore.attach.states` does. No transaction is open while anything outside is called.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import attrs
import tenacity

from cloudcore._failpoints import failpoint
from cloudcore.attach.hosts import verify_device
from cloudcore.attach.rules import needs_target_lock
from cloudcore.attach.states import TABLE, UNDO_UNASKED, USES_HOST, WAITING, Event, Instruction, State, resume
from cloudcore.disks import DetachOutcome
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    DeadlineExceeded,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InUse,
    OutcomeUnknown,
    Transient,
    VolumeBusy,
    VolumeServiceError,
    WrongHost,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection

    from cloudcore.attach.hosts import Host
    from cloudcore.attach.journal import Journal
    from cloudcore.attach.leases import Lease, Leases
    from cloudcore.attach.records import Attachment, HostDevice
    from cloudcore.attach.volumes import ConnectionInfo, VolumeService
    from cloudcore.disks import Disk

__all__ = ["ATTEMPTS", "Driver", "Result"]

ATTEMPTS = 3
"""How often a step whose effect a probe found missing is done again before it is undone."""

_ON_HOST = frozenset(
    {Instruction.CONNECT, Instruction.PLUG, Instruction.UNPLUG, Instruction.DISCONNECT, Instruction.LOOK_AT_GUEST}
)
_GUARDED = frozenset(
    {
        Instruction.MAP, Instruction.CREATE, Instruction.CONNECT,
        Instruction.UNPLUG, Instruction.DISCONNECT, Instruction.UNMAP,
    }
)  # fmt: skip
_PROBES = frozenset(
    {
        Instruction.FIND_RESERVATION, Instruction.LOOK_AT_MAPPING, Instruction.LOOK_AT_GUEST,
        Instruction.LOOK_AT_STATUS, Instruction.LOOK_AT_RECORD,
    }
)  # fmt: skip
_UNDOABLE = (UNDO_UNASKED - {State.CONNECTING, State.JOINING}) | {State.PLUG_UNCERTAIN, State.COMPLETE_UNCERTAIN}


@attrs.frozen
class _Outcome:
    """What came of a step: the event, the journal's changes, a note, and the error behind it."""

    event: Event
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    note: str | None = None
    error: CloudcoreError | None = None


@attrs.define
class Result:
    """Where a leg ended up, and the first error on the way."""

    leg: Attachment
    error: CloudcoreError | None = None


@attrs.define
class _Work:
    """What one run knows of a leg beyond the journal. The connection lives only here."""

    leg: Attachment
    lease: Lease
    info: ConnectionInfo | None = None
    device: HostDevice | None = None
    error: CloudcoreError | None = None
    repeats: int = 0


class Driver:
    """Carries legs from state to state. May be shared between threads.

    Args:
        journal: Where each step is written.
        volumes: The volume service.
        hosts: The hosts that this process can act on, by name.
        leases: For locks of shared targets.
        patience: Seconds to wait for a volume that somebody else keeps busy.
        id_factory: For second legs.
    """

    def __init__(
        self,
        journal: Journal,
        volumes: VolumeService,
        hosts: Mapping[str, Host],
        leases: Leases,
        *,
        patience: float,
        id_factory: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._volumes = volumes
        self._hosts = hosts
        self._leases = leases
        self._patience = patience
        self._new_id = id_factory
        self._steps: dict[Instruction, Callable[[_Work], _Outcome]] = {
            Instruction.RESERVE: self._reserve,
            Instruction.CREATE: self._create,
            Instruction.MAP: self._map,
            Instruction.CONNECT: self._connect,
            Instruction.PLUG: self._plug,
            Instruction.COMPLETE: self._complete,
            Instruction.UNPLUG: self._unplug,
            Instruction.DISCONNECT: self._disconnect,
            Instruction.UNMAP: self._unmap,
            Instruction.FIND_RESERVATION: self._find_reservation,
            Instruction.LOOK_AT_MAPPING: self._look_at_mapping,
            Instruction.LOOK_AT_GUEST: self._look_at_guest,
            Instruction.LOOK_AT_STATUS: self._look_at_status,
            Instruction.LOOK_AT_RECORD: self._look_at_record,
        }

    def host(self, leg: Attachment) -> Host:
        """The host of *leg*.

        Raises:
            WrongHost: This process does not act on it; nothing was touched.
        """
        found = self._hosts.get(leg.host or "")
        if found is None:
            served = ", ".join(sorted(self._hosts))
            raise WrongHost(
                f"attachment {leg.id} is on host {leg.host}, and this process acts on {served}; run it there",
                identifier=leg.id,
                expected=leg.host,
                found=served,
            )
        return found

    def serves(self, host: str | None) -> bool:
        """Whether this process acts on *host*."""
        return host in self._hosts

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(
        self,
        lease: Lease,
        leg: Attachment,
        instruction: Instruction | None,
        *,
        undo: bool = False,
        release: bool = True,
    ) -> Result:
        """Follow the table from *instruction* until nothing is left to do.

        Args:
            lease: On the leg's volume.
            leg: As the journal has it.
            instruction: What to do first.
            undo: Nobody waits for it any more: undo it if the guest turns out not to have the disk.
            release: Give the lease back together with the last write.

        Returns:
            The leg where it ended: at rest, waiting for its guest, or stuck where a probe or an undo found nobody to
            talk to. The first error on the way is in the result, not raised.
        """
        work = _Work(leg, lease)
        with ExitStack() as guard:
            guarded = False
            while instruction is not None:
                wanted = instruction in _GUARDED and self._target_lock(work.leg) is not None
                if wanted and not guarded:
                    guard.enter_context(self._leases.hold([str(self._target_lock(work.leg))]))
                elif guarded and not wanted:
                    guard.close()
                guarded = wanted
                step = self._next(work, instruction, undo=undo, release=release)
                if step is None:
                    break
                instruction = step
        if work.leg.state is State.ABSENT and work.leg.settings.held_before:
            self.promote(lease, work.leg.volume_id)
        return Result(work.leg, work.error)

    def _next(self, work: _Work, instruction: Instruction, *, undo: bool, release: bool) -> Instruction | None:
        """Do one instruction and write what came of it; None when there is nothing more to do."""
        work.lease.require()
        if instruction is Instruction.UNMAP and work.leg.settings.held_before:
            self._keep_hold(work)
        outcome = self._perform(work, instruction)
        if outcome.error is not None and work.error is None:
            work.error = outcome.error
        event = self._bounded(work, instruction, outcome, undo=undo)
        if event is None:
            return None
        also, changes = self._connect_at_once(work, event, outcome)
        work.leg, following = self._journal.advance(
            work.lease, work.leg, event, also=also, note=outcome.note, release=release, **changes
        )
        return following

    def _connect_at_once(self, work: _Work, event: Event, outcome: _Outcome) -> tuple[Event | None, Mapping[str, Any]]:
        """Where nothing happens on the host, mapped and connected are one write: there is no effect to announce."""
        if (work.leg.state, event) != (State.MAPPING, Event.DONE) or work.info is None:
            return None, outcome.changes
        if self.host(work.leg).connector.acts_on(work.info):
            return None, outcome.changes
        connected = self._perform(work, Instruction.CONNECT)
        if connected.event is not Event.DONE:
            return None, outcome.changes  # it is tried again, and fails, as a step of its own
        return Event.DONE, {**outcome.changes, **connected.changes}

    def _bounded(self, work: _Work, instruction: Instruction, outcome: _Outcome, *, undo: bool) -> Event | None:
        """The event to write: repeats are counted, and become an undo, or the end of this run where none is left."""
        event = outcome.event
        again = event is Event.LOST if instruction not in _PROBES else event is not Event.FOUND
        if instruction in _PROBES and event is Event.LOST:
            return None  # nobody to ask: the uncertain state stands
        if undo and work.leg.state is State.PLUG_UNCERTAIN and event is Event.MISSING:
            return Event.UNDO
        if again or (event is Event.FOUND and work.leg.state in {State.UNPLUG_UNCERTAIN, State.UNMAP_UNCERTAIN}):
            work.repeats += 1
        if work.repeats <= 2 * ATTEMPTS:
            return event
        if event is Event.LOST and TABLE[work.leg.state, event].instruction in _PROBES:
            return event  # the probe that follows ends it, with an undo where there is one
        if instruction in _PROBES and work.leg.state in _UNDOABLE and event is Event.MISSING:
            work.repeats = 0
            return Event.UNDO
        return None

    # --- holding ------------------------------------------------------------------------------------------------------

    def hold(self, lease: Lease, leg: Attachment) -> Attachment:
        """Make sure that a second leg, on no host, holds the volume for the instance of *leg*; return it.

        Raises:
            CloudcoreError: It could not be had; what was begun for it was undone, or is left to recovery.
        """
        with self._journal.database.read() as connection:
            legs = self._journal.of_volume(connection, leg.volume_id)
        found = [o for o in legs if o.role == "next" and o.instance_id == leg.instance_id]
        if not found:
            result = self._new_hold(lease, leg)
        elif found[0].interrupted:
            result = self._resume_hold(lease, found[0])
        else:
            result = Result(found[0])
        if result.leg.state is State.HELD:
            return result.leg
        raise result.error or Conflict(
            f"volume {leg.volume_id}: its second attachment {result.leg.id} is {result.leg.state}, not held",
            identifier=result.leg.id,
        )

    def _new_hold(self, lease: Lease, leg: Attachment) -> Result:
        now = self._journal.now()
        held = attrs.evolve(
            leg,
            id=self._new_id(),
            role="next",
            host=None,
            state=State.HOLDING,
            service_id=None,
            operation_id=None,
            fingerprint=None,
            version=0,
            settings=attrs.evolve(leg.settings, held_before=False),
            device=None,
            note=None,
            created_at=now,
            updated_at=now,
        )
        self._journal.database.run(lambda connection: self._journal.begin(connection, held))
        failpoint("attach.hold.begun")
        return self.run(lease, held, Instruction.RESERVE, release=False)

    def _resume_hold(self, lease: Lease, held: Attachment) -> Result:
        instruction = resume(held.state)
        if not held.state.uncertain:
            held, instruction = self._journal.advance(lease, held, Event.LOST)
        return self.run(lease, held, instruction, release=False)

    def _keep_hold(self, work: _Work) -> None:
        """Before a leg that began as a held one is unmapped: hold the volume again, or it could be lost to others.

        The service reserves for the same instance only while the volume is in use, so the record is completed first.
        """
        if work.leg.service_id is not None:
            with suppress(AttachmentNotFound):
                self._volumes.complete(work.leg.service_id)
        self.hold(work.lease, work.leg)

    def promote(self, lease: Lease, volume_id: str) -> None:
        """Let a held second leg take the place of one that is gone."""
        with self._journal.database.read() as connection:
            legs = self._journal.of_volume(connection, volume_id)
        taken = {leg.instance_id for leg in legs if leg.role == "main"}
        for leg in legs:
            if leg.role == "next" and leg.state is State.HELD and leg.instance_id not in taken:
                after = attrs.evolve(leg, role="main", version=leg.version + 1, updated_at=self._journal.now())

                def work(connection: Connection, before: Attachment = leg, after: Attachment = after) -> None:
                    self._journal.replace(connection, lease, before, after, "promoted")

                failpoint("attach.promote.before")
                self._journal.database.run(work)

    def disk(self, lease: Lease, leg: Attachment) -> Disk:
        """The disk of a connected leg, as a guest's definition on its host must have it."""
        return leg.disk(self.device(_Work(leg, lease)).source)

    def replug(self, lease: Lease, leg: Attachment) -> None:
        """Give the guest again what it should have, in both of its definitions."""
        work = _Work(leg, lease)
        self.host(leg).guests.attach_disk(leg.instance_id, leg.disk(self.device(work).source))

    def extend(self, lease: Lease, leg: Attachment, size: int) -> Attachment:
        """Tell the host and the guest of *leg* that its volume has *size* bytes now, and write it down."""
        work = _Work(leg, lease)
        host = self.host(leg)
        if leg.device is not None:
            seen = host.connector.extended(self._connection(work), leg.device)
            if seen is not None and seen < size:
                raise Conflict(f"host {host.name} sees {seen} bytes of volume {leg.volume_id}, not {size}")
        failpoint("attach.extend.before")
        host.guests.resize_disk(leg.instance_id, leg.volume_id, size)
        settings = attrs.evolve(leg.settings, size=size)
        after = attrs.evolve(leg, settings=settings, version=leg.version + 1, updated_at=self._journal.now())
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, "extended"))
        return after

    # --- performing ---------------------------------------------------------------------------------------------------

    def _perform(self, work: _Work, instruction: Instruction) -> _Outcome:
        if instruction in _ON_HOST:
            self.host(work.leg)  # raises outside of the try: a step on the wrong host is no event
        try:
            return self._steps[instruction](work)
        except (OutcomeUnknown, DeadlineExceeded, HypervisorUnavailable) as error:
            return _Outcome(Event.LOST, note=_note(error), error=error)
        except CloudcoreError as error:
            event = Event.LOST if instruction in _PROBES else Event.REFUSED
            return _Outcome(event, note=_note(error), error=error)

    def _target_lock(self, leg: Attachment) -> str | None:
        if leg.host is None or not self.serves(leg.host):
            return None
        manual = self._hosts[leg.host].connector.describe().manual_scan
        if not needs_target_lock(leg.settings, manual_scan=manual):
            return None
        return target_lock(leg.host, leg.settings.service_uuid)

    # --- the volume service -------------------------------------------------------------------------------------------

    def _reserve(self, work: _Work) -> _Outcome:
        leg = work.leg
        failpoint("attach.reserve.before")
        made = self._waiting(lambda: self._volumes.reserve(leg.volume_id, leg.instance_id, mode=leg.mode))
        failpoint("attach.reserve.after")
        return _Outcome(Event.DONE, {"service_id": made.id})

    def _create(self, work: _Work) -> _Outcome:
        leg = work.leg
        connector = self.host(leg).connector.describe()
        failpoint("attach.create.before")
        made = self._waiting(lambda: self._volumes.create(leg.volume_id, leg.instance_id, connector, mode=leg.mode))
        failpoint("attach.create.after")
        work.info = made.connection
        return _Outcome(Event.DONE, {"service_id": made.id})

    def _waiting(self, call: Callable[[], Any]) -> Any:
        """Repeat *call* while the volume is busy for somebody who is not in the journal."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(VolumeBusy),
            stop=tenacity.stop_after_delay(self._patience),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=2.0),
            reraise=True,
        )
        return retrying(call)

    def _map(self, work: _Work) -> _Outcome:
        connector = self.host(work.leg).connector.describe()
        failpoint("attach.map.before")
        mapped = self._volumes.update(_service_id(work.leg), connector)
        failpoint("attach.map.after")
        work.info = mapped.connection
        return _Outcome(Event.DONE)

    def _complete(self, work: _Work) -> _Outcome:
        failpoint("attach.complete.before")
        self._volumes.complete(_service_id(work.leg))
        failpoint("attach.complete.after")
        return _Outcome(Event.DONE)

    def _unmap(self, work: _Work) -> _Outcome:
        failpoint("attach.unmap.before")
        ids = [work.leg.service_id] if work.leg.service_id else self._unknown_records(work.leg)
        for service_id in ids:
            self._volumes.delete(service_id)
        failpoint("attach.unmap.after")
        return _Outcome(Event.DONE)

    def _unknown_records(self, leg: Attachment) -> list[str]:
        """Records of this volume and instance that no leg accounts for: what a lost answer may have left."""
        known = self._journal.service_ids(leg.volume_id, leg.instance_id)
        found = self._volumes.attachments(volume_id=leg.volume_id, instance_id=leg.instance_id)
        return [record.id for record in found if record.id not in known]

    def _find_reservation(self, work: _Work) -> _Outcome:
        failpoint("attach.find.before")
        found = self._unknown_records(work.leg)
        if not found:
            return _Outcome(Event.MISSING)
        for surplus in found[1:]:
            self._volumes.delete(surplus)
        return _Outcome(Event.FOUND, {"service_id": found[0]})

    def _look_at_mapping(self, work: _Work) -> _Outcome:
        failpoint("attach.look.before")
        try:
            record = self._volumes.attachment(_service_id(work.leg))
        except AttachmentNotFound as error:
            return _Outcome(Event.VANISHED, note=_note(error), error=error)
        work.info = record.connection
        return _Outcome(Event.MISSING if record.connection is None else Event.FOUND)

    def _look_at_status(self, work: _Work) -> _Outcome:
        failpoint("attach.look.before")
        try:
            record = self._volumes.attachment(_service_id(work.leg))
        except AttachmentNotFound as error:
            return _Outcome(Event.VANISHED, note=_note(error), error=error)
        return _Outcome(Event.FOUND if record.status == "attached" else Event.MISSING)

    def _look_at_record(self, work: _Work) -> _Outcome:
        failpoint("attach.look.before")
        if work.leg.service_id is None:
            return _Outcome(Event.FOUND if self._unknown_records(work.leg) else Event.MISSING)
        try:
            self._volumes.attachment(work.leg.service_id)
        except AttachmentNotFound:
            return _Outcome(Event.MISSING)
        return _Outcome(Event.FOUND)

    # --- the host and the guest ---------------------------------------------------------------------------------------

    def _connection(self, work: _Work) -> ConnectionInfo:
        """The connection, asked again if this run does not know it: the journal never does."""
        if work.info is None:
            work.info = self._volumes.attachment(_service_id(work.leg)).connection
        if work.info is None:
            raise VolumeServiceError(f"attachment {work.leg.service_id} is not mapped, though the journal says so")
        return work.info

    def device(self, work: _Work) -> HostDevice:
        """The device on the host, made (again) if need be, and verified."""
        if work.device is None:
            device = self.host(work.leg).connector.connect(self._connection(work))
            verify_device(device, work.leg.device, work.leg.settings.size, work.leg.volume_id)
            work.device = device
        return work.device

    def _connect(self, work: _Work) -> _Outcome:
        failpoint("attach.connect.before")
        device = self.device(work)
        failpoint("attach.connect.after")
        return _Outcome(Event.DONE, {"device": device if device.connected else None})

    def _plug(self, work: _Work) -> _Outcome:
        disk = work.leg.disk(self.device(work).source)
        failpoint("attach.plug.before")
        state = self.host(work.leg).guests.attach_disk(work.leg.instance_id, disk)
        failpoint("attach.plug.after")
        for there in (state.live, state.persistent):
            if there is not None and there.read_only != disk.read_only:
                raise Conflict(
                    f"volume {disk.volume_id} was asked for {work.leg.mode} and the guest has it otherwise",
                    identifier=disk.volume_id,
                )
        return _Outcome(Event.DONE)

    def _look_at_guest(self, work: _Work) -> _Outcome:
        failpoint("attach.look.before")
        state = self.host(work.leg).guests.disk_state(work.leg.instance_id, work.leg.volume_id)
        found = state.present
        if work.leg.state is State.PLUG_UNCERTAIN and state.half:  # plugging again completes it
            found = False
        return _Outcome(Event.FOUND if found else Event.MISSING)

    def _unplug(self, work: _Work) -> _Outcome:
        leg = work.leg
        failpoint("attach.unplug.before")
        try:
            outcome = self.host(leg).guests.detach_disk(leg.instance_id, leg.volume_id)
        except GuestNotFound:
            return _Outcome(Event.DONE, note="the guest is gone")
        except HypervisorError as error:
            return _Outcome(Event.LOST, note=_note(error), error=error)
        failpoint("attach.unplug.after")
        if outcome is DetachOutcome.PENDING:
            return _Outcome(Event.PENDING, note="the guest was asked and has not let go yet")
        return _Outcome(Event.DONE)

    def _disconnect(self, work: _Work) -> _Outcome:
        leg, host = work.leg, self.host(work.leg)
        failpoint("attach.disconnect.before")
        device = leg.device or self._unrecorded_device(work)
        if device is None or not device.connected:
            return _Outcome(Event.DONE)
        others = self._other_users(leg, host)
        if others:
            return _Outcome(Event.DONE, {"device": None}, note=f"still used on {host.name} by {', '.join(others)}")
        try:
            info = self._connection(work)
        except (AttachmentNotFound, VolumeServiceError):
            info = None
        host.connector.disconnect(info, device, force=leg.state is State.QUARANTINED or info is None)
        failpoint("attach.disconnect.after")
        return _Outcome(Event.DONE, {"device": None})

    def _unrecorded_device(self, work: _Work) -> HostDevice | None:
        """A device that a connect may have made before it was written down: connecting again names it."""
        if work.device is not None:
            return work.device
        if not any(line.state is State.CONNECTING or line.state is State.JOINING for line in self._tail(work.leg)):
            return None
        try:
            return self.host(work.leg).connector.connect(self._connection(work))
        except (Transient, OutcomeUnknown):
            raise
        except CloudcoreError:
            return None  # it cannot be connected, so it is not

    def _tail(self, leg: Attachment) -> Any:
        """The last lines of the story before this state: the interruption may lie between connect and its record."""
        return self._journal.story(leg.id)[-4:-1]

    def _other_users(self, leg: Attachment, host: Host) -> list[str]:
        """Instances on the host that use the volume too: by the journal (arriving ones count) or by the hypervisor."""
        legs = self._journal.select(volume_id=leg.volume_id, host=host.name)
        users = {o.instance_id for o in legs if o.id != leg.id and (o.state in USES_HOST or o.state in WAITING)}
        for state in host.guests.disk_states():
            if state.volume_id == leg.volume_id and state.instance_id != leg.instance_id and state.present:
                self._require_mapping_of_its_own(leg, host, state.instance_id, users)
                users.add(state.instance_id)
        return sorted(users)

    def _require_mapping_of_its_own(self, leg: Attachment, host: Host, instance_id: str, known: set[str]) -> None:
        """Check that a guest that only the hypervisor knows does not live on this leg's mapping.

        Raises:
            InUse: It does: unmapping would pull the volume from under it.
        """
        if instance_id in known or self._volumes.attachments(volume_id=leg.volume_id, instance_id=instance_id):
            return
        raise InUse(
            f"guest {instance_id} on {host.name} has volume {leg.volume_id}, and neither the journal nor the volume "
            f"service knows why; attachment {leg.id} keeps the mapping. audit() shows it; recover() goes on afterwards",
            identifier=leg.volume_id,
            users=[instance_id],
        )


def target_lock(host: str, service_uuid: str | None) -> str:
    """Name of the lease under which a host touches a backend whose volumes share targets."""
    return f"target/{host}/{service_uuid}"


def _service_id(leg: Attachment) -> str:
    if leg.service_id is None:
        raise AssertionError(f"{leg.id} is {leg.state} without an id of the volume service")
    return leg.service_id


def _note(error: CloudcoreError) -> str:
    return f"{type(error).__name__}: {error}"
