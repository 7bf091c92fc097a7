"""The shell that carries out the state table's instructions for one leg, and feeds back what came of them.

Each step: check that the lease is still ours, act (:mod:`cloudcore.attach.workflow.instructions`), write the event that
came of it. Nothing here decides what happens next; :mod:`cloudcore.attach.lifecycle.states` does. No transaction is
open while anything outside is called. One module, because there is one loop, and one way to touch a leg's host.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.lifecycle.states import AT_REST, HOLDS, TABLE, UNDO_UNASKED, Event, Instruction, State, resume
from cloudcore.attach.workflow.instructions import PROBES, Instructions, Work
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    GenerationConflict,
    UnsupportedFeature,
    VolumeBusy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection

    from cloudcore.attach.hosts.connectors import Host
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease, Leases
    from cloudcore.attach.lifecycle.records import Attachment, Settings
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import ConnectionInfo, Volume
    from cloudcore.attach.workflow.instructions import Outcome
    from cloudcore.disks import Disk

__all__ = ["ATTEMPTS", "Driver", "Result"]

ATTEMPTS = 3
"""How often a step whose effect a probe found missing is done again before it is undone."""

_GUARDED = frozenset(
    {
        Instruction.MAP, Instruction.CREATE, Instruction.CONNECT,
        Instruction.UNPLUG, Instruction.DISCONNECT, Instruction.UNMAP,
    }
)  # fmt: skip
_TAKES_OVER = HOLDS | {State.ATTACHED, State.PENDING}
"""States in which a second leg takes the place of one that is gone; used by a guest only where termination failed."""

_SURPLUS = {
    Instruction.RESERVE: State.UNMAPPING,
    Instruction.CREATE: State.UNMAPPING,
    Instruction.CONNECT: State.DISCONNECTING,
    Instruction.PLUG: State.UNPLUGGING,
}
"""Steps whose effect nobody would undo if their driver lost its lease meanwhile, and where undoing it starts."""
_UNDOABLE = (UNDO_UNASKED - {State.CONNECTING, State.JOINING}) | {State.PLUG_UNCERTAIN, State.COMPLETE_UNCERTAIN}


@attrs.define
class Result:
    """Where a leg ended up, and the first error on the way."""

    leg: Attachment
    error: CloudcoreError | None = None


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
        self._leases = leases
        self._instructions = Instructions(journal, volumes, hosts, patience=patience)
        self._new_id = id_factory

    def host(self, leg: Attachment) -> Host:
        """The host of *leg*.

        Raises:
            WrongHost: This process does not act on it; nothing was touched.
        """
        return self._instructions.host(leg)

    def host_named(self, host: str) -> Host:
        """The host of this name.

        Raises:
            WrongHost: This process does not act on it; nothing was touched.
        """
        return self._instructions.host_named(host)

    def serves(self, host: str | None) -> bool:
        """Whether this process acts on *host*."""
        return self._instructions.serves(host)

    def turn(self, host: str | None, *backends: Settings | Volume) -> AbstractContextManager[object]:
        """The leases under which *host* touches what *backends* share of their targets, if they do.

        Raises:
            VolumeBusy: Others kept one for longer than the patience; nothing was done.
        """
        names = {self._instructions.target_lock(host, backend) for backend in backends} - {None}
        return self._leases.hold(sorted(map(str, names))) if names else nullcontext()

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(
        self,
        lease: Lease,
        leg: Attachment,
        instruction: Instruction | None,
        *,
        undo: bool = False,
        release: bool = True,
        info: ConnectionInfo | None = None,
        force: bool = False,
    ) -> Result:
        """Follow the table from *instruction* until nothing is left to do.

        Args:
            lease: On the leg's volume.
            leg: As the journal has it.
            instruction: What to do first.
            undo: Nobody waits for it any more: undo it if the guest turns out not to have the disk.
            release: Give the lease back together with the last write.
            info: The connection, if it is known; else the service is asked.
            force: Give up what cannot be brought to the volume.

        Returns:
            The leg where it ended: at rest, waiting for its guest, or stuck where a probe or an undo found nobody to
            talk to. The first error on the way is in the result, not raised.
        """
        work = Work(leg, lease, info, force=force)
        with work.turn:
            guarded = False
            while instruction is not None:
                if instruction not in _GUARDED:
                    work.turn.close()
                elif not guarded:
                    self._begin_turn(work)
                guarded = instruction in _GUARDED
                step = self._next(work, instruction, undo=undo, release=release)
                if step is None:
                    break
                instruction = step
        if work.leg.state is State.ABSENT and work.leg.settings.held_before:
            self.promote(lease, work.leg.volume_id)
        return Result(work.leg, work.error)

    def _begin_turn(self, work: Work) -> None:
        leg = work.leg
        try:
            work.turn.enter_context(self.turn(leg.host, leg.settings))
        except VolumeBusy as error:
            error.add_note(
                f"attachment {leg.id} is left {leg.state} in the journal; repeat the call, or recover() settles it"
            )
            raise

    def _next(self, work: Work, instruction: Instruction, *, undo: bool, release: bool) -> Instruction | None:
        """Do one instruction and write what came of it; None when there is nothing more to do."""
        work.lease.require()
        if instruction is Instruction.UNMAP and work.leg.settings.held_before:
            self._keep_hold(work)
        outcome = self._instructions.perform(work, instruction)
        if outcome.error is not None and work.error is None:
            work.error = outcome.error
        event = self._bounded(work, instruction, outcome, undo=undo)
        if event is None:
            return None
        also, changes = self._connect_at_once(work, event, outcome)
        try:
            work.leg, following = self._journal.advance(
                work.lease, work.leg, event, also=also, note=outcome.note, release=release, **changes
            )
        except GenerationConflict as error:
            self._take_back(work, instruction, outcome, error)
            raise
        except CloudcoreError as error:
            error.add_note(
                f"{instruction} of volume {work.leg.volume_id} came to {event}, and that could not be written: "
                f"attachment {work.leg.id} is left {work.leg.state} in the journal; recover() settles it"
            )
            raise
        return following

    # --- a race that was lost -----------------------------------------------------------------------------------------

    def _take_back(self, work: Work, instruction: Instruction, outcome: Outcome, error: GenerationConflict) -> None:
        """Whoever has the lease now went on from before this step, so its effect is nobody's: undo it, by the journal.

        It becomes a leg of its own, ``past``, so that a crash in between leaves it to recovery.
        """
        start = _SURPLUS.get(instruction)
        if start is None or outcome.event not in {Event.DONE, Event.LOST}:
            return
        work.turn.close()  # what undoes it takes its own
        try:
            self._leases.regain(work.lease)
            surplus = self._surplus(work, start, outcome)
            if surplus is None:
                return
            self._journal.database.run(lambda connection: self._journal.begin(connection, surplus))
            failpoint("attach.surplus.begun")
            result = self.run(work.lease, surplus, resume(start), release=False, info=work.info)
        except CloudcoreError as trouble:
            error.add_note(f"the effect of {instruction} could not be undone ({trouble}): audit() shows it")
            return
        error.add_note(f"the effect of {instruction} was undone as attachment {surplus.id}, now {result.leg.state}")

    def _surplus(self, work: Work, start: State, outcome: Outcome) -> Attachment | None:
        """The leg that undoes the step, None if it is in use: by whoever went on, or by what came later."""
        leg, now = work.leg, self._journal.now()
        service_id = outcome.changes.get("service_id")
        with self._journal.database.read() as connection:
            living = self._journal.of_volume(connection, leg.volume_id)
        mine = [one for one in living if one.instance_id == leg.instance_id]
        if service_id is None and any(one.host == leg.host for one in mine):
            return None
        if service_id is not None and service_id in self._journal.service_ids(leg.volume_id, leg.instance_id):
            return None
        return attrs.evolve(
            leg,
            id=self._new_id(),
            role="past",
            state=start,
            service_id=service_id,
            operation_id=None,
            fingerprint=None,
            version=0,
            settings=attrs.evolve(leg.settings, held_before=False),
            device=work.device if work.device is not None and work.device.connected else None,
            when_gone=None,
            note=f"{leg.id} was settled by somebody else meanwhile",
            created_at=now,
            updated_at=now,
        )

    def _connect_at_once(self, work: Work, event: Event, outcome: Outcome) -> tuple[Event | None, Mapping[str, Any]]:
        """Where nothing happens on the host, mapped and connected are one write: there is no effect to announce."""
        if (work.leg.state, event) != (State.MAPPING, Event.DONE) or work.info is None:
            return None, outcome.changes
        if self.host(work.leg).connector.acts_on(work.info):
            return None, outcome.changes
        connected = self._instructions.perform(work, Instruction.CONNECT)
        if connected.event is not Event.DONE:
            return None, outcome.changes  # it is tried again, and fails, as a step of its own
        return Event.DONE, {**outcome.changes, **connected.changes}

    def _bounded(self, work: Work, instruction: Instruction, outcome: Outcome, *, undo: bool) -> Event | None:
        """The event to write: repeats are counted, and become an undo, or the end of this run where none is left."""
        event = outcome.event
        again = event is Event.LOST if instruction not in PROBES else event is not Event.FOUND
        if instruction in PROBES and event is Event.LOST:
            return None  # nobody to ask: the uncertain state stands
        if undo and work.leg.state is State.PLUG_UNCERTAIN and event is Event.MISSING:
            return Event.UNDO
        if again or (event is Event.FOUND and work.leg.state in {State.UNPLUG_UNCERTAIN, State.UNMAP_UNCERTAIN}):
            work.repeats += 1
        if work.repeats <= 2 * ATTEMPTS:
            return event
        if event is Event.LOST and TABLE[work.leg.state, event].instruction in PROBES:
            return event  # the probe that follows ends it, with an undo where there is one
        if instruction in PROBES and work.leg.state in _UNDOABLE and event is Event.MISSING:
            work.repeats = 0
            return Event.UNDO
        return None

    # --- holding ------------------------------------------------------------------------------------------------------

    def hold(self, lease: Lease, leg: Attachment, *, bare: bool = False) -> Attachment:
        """Make sure that a second leg, on no host, holds the volume for the instance of *leg*; return it.

        With *bare* by a reservation alone, which lets the service replace what is in the volume.

        Raises:
            CloudcoreError: It could not be had; what was begun for it was undone, or is left to recovery.
        """
        with self._journal.database.read() as connection:
            legs = self._journal.of_volume(connection, leg.volume_id)
        found = [o for o in legs if o.role == "next" and o.instance_id == leg.instance_id]
        if not found:
            result = self._new_hold(lease, leg, State.CLAIMING if bare else State.HOLDING)
        elif found[0].interrupted:
            result = self._resume_hold(lease, found[0])
        else:
            result = Result(found[0])
        if result.leg.state in HOLDS:
            return result.leg
        raise result.error or Conflict(
            f"volume {leg.volume_id}: its second attachment {result.leg.id} is {result.leg.state}, not held",
            identifier=result.leg.id,
        )

    def _new_hold(self, lease: Lease, leg: Attachment, state: State) -> Result:
        now = self._journal.now()
        held = attrs.evolve(
            leg,
            id=self._new_id(),
            role="next",
            host=None,
            state=state,
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

    def _keep_hold(self, work: Work) -> None:
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
            if leg.role == "next" and leg.state in _TAKES_OVER and leg.instance_id not in taken:
                after = attrs.evolve(leg, role="main", version=leg.version + 1, updated_at=self._journal.now())

                def work(connection: Connection, before: Attachment = leg, after: Attachment = after) -> None:
                    self._journal.replace(connection, lease, before, after, "promoted")

                failpoint("attach.promote.before")
                self._journal.database.run(work)

    def disk(self, lease: Lease, leg: Attachment) -> Disk:
        """The disk of a connected leg, as a guest's definition on its host must have it."""
        with self.turn(leg.host, leg.settings):
            return self._instructions.disk(Work(leg, lease))

    def replug(self, lease: Lease, leg: Attachment) -> None:
        """Give the guest again what it should have, in both of its definitions."""
        disk = self.disk(lease, leg)
        self.host(leg).guests.attach_disk(leg.instance_id, disk)

    def reconnect(self, lease: Lease, leg: Attachment) -> Attachment:
        """Connect the leg's host again, which has lost the device, and write down which one it is now.

        Raises:
            Conflict: What is there now is another one.
        """
        with self.turn(leg.host, leg.settings):
            device = self._instructions.device(Work(leg, lease))
        after = attrs.evolve(leg, device=device, version=leg.version + 1, updated_at=self._journal.now())
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, "reconnected"))
        return after

    def extend(self, lease: Lease, leg: Attachment, size: int) -> Attachment:
        """Tell the host and the guest of *leg* that its volume has *size* bytes now, and write it down.

        A staged leg has a host and no guest yet, a held one neither.

        Raises:
            Conflict: It is in a state in which there is nobody to tell; or the host sees another size.
        """
        if leg.state not in AT_REST:
            raise Conflict(f"attachment {leg.id} is {leg.state}; repeat when it is settled", identifier=leg.id)
        if leg.settings.encrypted and leg.state is State.ATTACHED:
            raise UnsupportedFeature(
                f"volume {leg.volume_id} is encrypted: how much of it the guest may see, its next start finds out",
                needed="restart",
            )
        if leg.host is not None:
            self._tell_host(lease, leg, size)
        failpoint("attach.extend.before")
        if leg.state is State.ATTACHED:
            self.host(leg).guests.resize_disk(leg.instance_id, leg.volume_id, size)
        settings = attrs.evolve(leg.settings, size=size)
        after = attrs.evolve(leg, settings=settings, version=leg.version + 1, updated_at=self._journal.now())
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, "extended"))
        return after

    def _tell_host(self, lease: Lease, leg: Attachment, size: int) -> None:
        host = self.host(leg)
        if leg.device is not None:
            seen = host.connector.extended(self._instructions.connection(Work(leg, lease)), leg.device)
            if seen is not None and seen < size:
                raise Conflict(f"host {host.name} sees {seen} bytes of volume {leg.volume_id}, not {size}")
