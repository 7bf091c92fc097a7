"""An instance's volumes on their way to another host, or to none.

A *live* move stages a second attachment for the destination and removes the source's once the guest has arrived. The
others leave the source first: the volume is held for the instance by a second, bare attachment while the first is taken
away, so that it is never free for somebody else; then it is placed on the destination. A *shelved* instance stays in
between. An *evacuation* skips what only the source could do, on evidence that the source is dead.

The row in ``attachment_moves`` says what was asked for; each volume's legs say how far it came.

One module, because begin, confirm, revert and recover are four ways through the same few steps, and have to agree on
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.lock_names import instance_lock, volume_lock
from cloudcore.attach.lifecycle.failures import failure
from cloudcore.attach.lifecycle.fencing import require_evidence
from cloudcore.attach.lifecycle.records import Attachment, Move, MoveKind
from cloudcore.attach.lifecycle.states import USES_HOST, Event, Instruction, State
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    Refused,
    WrongHost,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease, Leases
    from cloudcore.attach.journal.moves import MoveStore
    from cloudcore.attach.lifecycle.fencing import Fencer
    from cloudcore.attach.workflow.driver import Driver, Result
    from cloudcore.attach.workflow.recovery import Recovery
    from cloudcore.disks import Disk

__all__ = ["Moves"]


class Moves:
    """Begins, confirms and reverts moves; each verb can be repeated. May be shared between threads."""

    def __init__(
        self,
        journal: Journal,
        rows: MoveStore,
        driver: Driver,
        leases: Leases,
        recovery: Recovery,
        *,
        fencer: Fencer | None,
        id_factory: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._database = journal.database
        self._rows = rows
        self._driver = driver
        self._leases = leases
        self._recovery = recovery
        self._fencer = fencer
        self._new_id = id_factory

    # --- the verbs ----------------------------------------------------------------------------------------------------

    def begin(self, instance_id: str, kind: MoveKind, destination: str | None) -> Move:
        """See :meth:`AttachmentManager.begin_move`."""
        if kind == "live":
            self._require_served(destination)
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.find(instance_id) or self._start(instance_id, kind, destination)
            if (move.kind, move.destination) != (kind, destination) or move.phase not in {"beginning", "begun"}:
                raise Conflict(
                    f"instance {instance_id} is in a {move.kind} move to {move.destination} ({move.phase}); confirm or "
                    f"revert that first",
                    identifier=instance_id,
                )
            self._settle(instance_id)
            return self._begin(move)

    def confirm(self, instance_id: str, destination: str | None = None) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.confirm_move`."""
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.require(instance_id)
            if move.phase not in {"begun", "confirming"}:
                raise Conflict(f"the move of instance {instance_id} is {move.phase}", identifier=instance_id)
            target = move.destination or destination
            if destination is not None and destination != target:
                raise Conflict(f"instance {instance_id} is moving to {target}", identifier=instance_id)
            self._require_served(target)
            begun, move = move, attrs.evolve(move, destination=target)
            if move.kind == "live":
                self._require_arrived(move)
            self._settle(instance_id)
            self._rows.set_phase(move, "confirming")
            try:
                return self._confirm(move)
            except CloudcoreError:
                if all(leg.state is State.HELD for leg in self._main_legs(instance_id)):
                    self._rows.set_phase(begun, "begun")  # nothing was placed: as before the call
                raise

    def revert(self, instance_id: str) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.revert_move`."""
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.require(instance_id)
            if move.kind == "evacuation":
                raise Refused(
                    f"instance {instance_id} cannot go back: {move.source} was fenced ({move.note}). Confirm the move, "
                    f"or begin another when it has arrived"
                )
            if move.phase == "confirming" and move.kind == "live":
                raise Conflict(f"the move of instance {instance_id} is being confirmed", identifier=instance_id)
            self._require_served(move.destination if move.kind == "live" else move.source)
            if move.kind == "live":
                self._require_not_arrived(move)
            self._settle(instance_id)
            self._rows.set_phase(move, "reverting")
            return self._revert(move)

    def recover(self, instance_id: str) -> bool:
        """Go on with a move whose process died in the middle of a verb; a begun one waits for its caller.

        Returns:
            Whether anything was left to do.

        Raises:
            VolumeBusy: Its process lives.
            CloudcoreError: It could not be finished.
        """
        with self._leases.hold([instance_lock(instance_id)], patience=0.0):
            move = self._rows.find(instance_id)
            if move is None or move.phase == "begun":
                return False
            self._settle(instance_id)
            if move.phase == "beginning" and move.kind == "live":
                self._rows.set_phase(move, "reverting")
                self._revert(move)
            elif move.phase == "beginning":
                self._begin(move)
            elif move.phase == "confirming":
                self._confirm(move)
            else:
                self._revert(move)
            return True

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _start(self, instance_id: str, kind: MoveKind, destination: str | None) -> Move:
        """Check that it can be begun at all, then write it down."""
        legs = self._main_legs(instance_id)
        hosts = {leg.host for leg in legs}
        unsettled = [leg for leg in legs if leg.state is not State.ATTACHED]
        if unsettled or len(hosts) > 1:
            what = f"attachment {unsettled[0].id} is {unsettled[0].state}" if unsettled else f"it is on {hosts}"
            raise Conflict(f"instance {instance_id} cannot move: {what}", identifier=instance_id)
        source = next(iter(hosts), None) or ""
        if destination is not None and destination == source:
            raise InvalidArgument(f"destination: instance {instance_id} is on {source}", field="destination")
        note = str(require_evidence(self._fencer, source)) if kind == "evacuation" else None
        if kind in {"cold", "shelve"} and legs:
            self._require_served(source)
        move = Move(
            instance_id=instance_id, kind=kind, phase="beginning", source=source, destination=destination, note=note
        )
        self._rows.begin(move, self._journal.now())
        return move

    def _begin(self, move: Move) -> Move:
        legs: list[Attachment] = []
        disks: list[Disk] = []
        try:
            for leg in self._main_legs(move.instance_id):
                with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                    if move.kind == "live":
                        legs.append(self._stage(lease, move, leg))
                        disks.append(self._driver.disk(lease, legs[-1]))
                    else:
                        legs.append(self._leave(lease, move, leg))
        except CloudcoreError as error:
            self._give_up(move, error)
            raise
        self._rows.set_phase(move, "begun")
        return attrs.evolve(move, phase="begun", legs=tuple(legs), disks=tuple(disks))

    def _give_up(self, move: Move, error: CloudcoreError) -> None:
        """A begin failed: undo a live one; leave others where they are if a volume has left its host already."""
        untouched = all(leg.state is State.ATTACHED for leg in self._main_legs(move.instance_id))
        if move.kind != "live" and not untouched:
            error.add_note(f"the move of instance {move.instance_id} is half begun: begin it again, or revert it")
            return
        try:
            self._rows.set_phase(move, "reverting")
            self._revert(move)
        except CloudcoreError as second:
            error.add_note(f"undoing the move failed too ({second}); recover() goes on with it")

    def _stage(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
        """A second attachment, on the destination."""
        existing = self._second_leg(leg)
        if existing is not None and existing.interrupted:
            self._recovery.salvage(lease, existing)
            existing = self._second_leg(leg)
        if existing is not None:
            return existing
        now = self._journal.now()
        staged = attrs.evolve(
            leg,
            id=self._new_id(),
            role="next",
            host=move.destination,
            state=State.CREATING,
            service_id=None,
            operation_id=None,
            fingerprint=None,
            version=0,
            device=None,
            note=None,
            created_at=now,
            updated_at=now,
        )
        self._database.run(lambda connection: self._journal.begin(connection, staged))
        failpoint("attach.stage.begun")
        result = self._driver.run(lease, staged, Instruction.CREATE, release=False)
        if result.leg.state is State.STAGED:
            return result.leg
        raise self._failure(result)

    def _leave(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
        """Hold the volume for the instance, then take it off the source."""
        leg = self._journal.get(leg.id)
        if leg.interrupted and leg.state not in USES_HOST:
            leg = self._recovery.salvage(lease, leg).leg
        if leg.state is State.HELD or leg.state is State.ABSENT:
            self._driver.promote(lease, leg.volume_id)
            return self._main_leg(leg)
        self._driver.hold(lease, leg)
        failpoint("attach.leave.held")
        after = self._take_away(lease, move, leg)
        if after.pending:
            raise DeadlineExceeded(
                f"the guest of instance {leg.instance_id} has not let volume {leg.volume_id} go yet; begin it again"
            )
        if after.state is not State.ABSENT:
            raise Conflict(f"attachment {leg.id} could not leave {leg.host}: it is {after.state}", identifier=leg.id)
        self._driver.promote(lease, leg.volume_id)
        return self._main_leg(leg)

    def _take_away(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
        if leg.interrupted:
            result = self._recovery.salvage(lease, leg)
        else:
            event = Event.FENCED if move.kind == "evacuation" else Event.DETACH
            settings = attrs.evolve(leg.settings, held_before=False)
            leg, instruction = self._journal.advance(lease, leg, event, note=move.note, settings=settings)
            result = self._driver.run(lease, leg, instruction, release=False)
        if result.error is not None and result.leg.state is not State.ABSENT:
            if result.leg.state is State.ATTACHED:  # the guest refused: as it was, so the hold is not wanted
                self._drop_second_leg(lease, leg)
            raise self._failure(result)
        return result.leg

    # --- confirming ---------------------------------------------------------------------------------------------------

    def _require_arrived(self, move: Move) -> None:
        """Check that the guest runs at the destination and not at the source, as far as they can be asked.

        Raises:
            Conflict: It does not.
        """
        for leg in self._next_legs(move.instance_id):
            there = self._driver.host(leg).guests.disk_state(leg.instance_id, leg.volume_id)
            if not there.present:
                raise Conflict(
                    f"instance {leg.instance_id} has no disk of volume {leg.volume_id} on {leg.host}: not arrived",
                    identifier=leg.instance_id,
                )
            if self._driver.serves(move.source) and self._live_at(move.source, leg):
                raise Conflict(
                    f"instance {leg.instance_id} still runs on {move.source} with volume {leg.volume_id}",
                    identifier=leg.instance_id,
                )

    def _live_at(self, host: str, leg: Attachment) -> bool:
        here = self._driver.host(attrs.evolve(leg, host=host))
        return here.guests.disk_state(leg.instance_id, leg.volume_id).live is not None

    def _confirm(self, move: Move) -> tuple[Attachment, ...]:
        for leg in self._legs(move.instance_id):
            with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                leg = self._journal.get(leg.id)
                if move.kind == "live":
                    self._arrive(lease, leg)
                else:
                    self._place(lease, leg, str(move.destination))
        self._rows.end(move)
        return self._main_legs(move.instance_id)

    def _arrive(self, lease: Lease, leg: Attachment) -> None:
        """Swap the two legs in one transaction, then end the source's; its own recover() does if not served."""
        if leg.role == "next" and leg.state is State.STAGED:
            main = self._main_leg(leg)

            def leave(connection: Connection) -> None:
                state, now = State.DISCONNECTING, self._journal.now()
                past = attrs.evolve(main, role="past", state=state, version=main.version + 1, updated_at=now)
                self._journal.replace(connection, lease, main, past, Event.LEFT)

            failpoint("attach.arrive.before")
            self._journal.advance(lease, leg, Event.ARRIVED, role="main", with_others=leave)
            failpoint("attach.arrive.after")
            leg = self._journal.get(main.id)
        if leg.role == "past" and leg.interrupted and self._driver.serves(leg.host):
            result = self._recovery.salvage(lease, leg)
            if result.leg.interrupted:
                raise self._failure(result)

    def _place(self, lease: Lease, leg: Attachment, host: str) -> None:
        if leg.interrupted:
            leg = self._recovery.salvage(lease, leg, forward=True).leg
            if leg.state is State.ABSENT:  # undone: the volume is held again
                leg = self._main_leg(leg)
        if leg.state is State.ATTACHED:
            return
        settings = attrs.evolve(leg.settings, held_before=True)
        failpoint("attach.place.before")
        leg, instruction = self._journal.advance(lease, leg, Event.PLACE, host=host, settings=settings)
        result = self._driver.run(lease, leg, instruction, release=False)
        if result.leg.state is not State.ATTACHED:
            raise self._failure(result)

    # --- reverting ----------------------------------------------------------------------------------------------------

    def _revert(self, move: Move) -> tuple[Attachment, ...]:
        for leg in self._legs(move.instance_id):
            with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                leg = self._journal.get(leg.id)
                if move.kind == "live":
                    if leg.role == "next":
                        self._unstage(lease, leg)
                elif leg.role == "main":
                    self._return(lease, move, leg)
        self._rows.end(move)
        return self._main_legs(move.instance_id)

    def _require_not_arrived(self, move: Move) -> None:
        for leg in self._next_legs(move.instance_id):
            if self._live_at(str(leg.host), leg):
                raise Conflict(
                    f"instance {leg.instance_id} runs on {leg.host} with volume {leg.volume_id}: confirm the move",
                    identifier=leg.instance_id,
                )

    def _unstage(self, lease: Lease, leg: Attachment) -> None:
        if leg.state is State.STAGED:
            leg, instruction = self._journal.advance(lease, leg, Event.UNDO, note="the move is reverted")
            result = self._driver.run(lease, leg, instruction, release=False)
        elif leg.interrupted:
            result = self._recovery.salvage(lease, leg)
        else:
            return
        if result.leg.state is not State.ABSENT:
            raise self._failure(result)

    def _return(self, lease: Lease, move: Move, leg: Attachment) -> None:
        if leg.state is State.ATTACHED and leg.host == move.source:
            self._drop_second_leg(lease, leg)
            return
        if leg.state is State.ATTACHED:  # placed at the destination before the confirmation failed
            leg = self._leave(lease, move, leg)
        if leg.state is not State.HELD and not leg.settings.held_before:  # it was leaving when somebody died
            result = self._recovery.salvage(lease, leg) if leg.interrupted else None
            if result is not None and result.leg.state is State.ABSENT:
                self._driver.promote(lease, leg.volume_id)
                leg = self._main_leg(leg)
        self._place(lease, leg, move.source)

    def _drop_second_leg(self, lease: Lease, leg: Attachment) -> None:
        second = self._second_leg(leg)
        if second is None:
            return
        if second.interrupted:
            result = self._recovery.salvage(lease, second)
        else:
            second, instruction = self._journal.advance(lease, second, Event.UNDO, note="the move is reverted")
            result = self._driver.run(lease, second, instruction, release=False)
        if result.leg.state is not State.ABSENT:
            raise self._failure(result)

    def _settle(self, instance_id: str) -> None:
        """Finish or undo, volume by volume, what an earlier attempt left in the middle."""
        legs = self._legs(instance_id)
        replaced = {leg.volume_id for leg in legs if leg.role == "main"}
        for leg in legs:
            if leg.interrupted or (leg.state is State.HELD and leg.volume_id not in replaced):
                self._recovery.settle(leg.volume_id)

    def _failure(self, result: Result) -> CloudcoreError:
        return failure(result.leg, result.error, "move", self._journal.story(result.leg.id))

    # --- looking and writing ------------------------------------------------------------------------------------------

    def _legs(self, instance_id: str) -> tuple[Attachment, ...]:
        return self._journal.select(instance_id=instance_id)

    def _main_legs(self, instance_id: str) -> tuple[Attachment, ...]:
        return tuple(leg for leg in self._legs(instance_id) if leg.role == "main")

    def _next_legs(self, instance_id: str) -> tuple[Attachment, ...]:
        return tuple(leg for leg in self._legs(instance_id) if leg.role == "next")

    def _of_pair(self, leg: Attachment, role: str) -> Attachment | None:
        found = self._journal.select(volume_id=leg.volume_id, instance_id=leg.instance_id)
        return next((o for o in found if o.role == role), None)

    def _second_leg(self, leg: Attachment) -> Attachment | None:
        return self._of_pair(leg, "next")

    def _main_leg(self, leg: Attachment) -> Attachment:
        found = self._of_pair(leg, "main")
        if found is None:
            raise Conflict(
                f"instance {leg.instance_id} has lost volume {leg.volume_id}: attachment {leg.id} is {leg.state}",
                identifier=leg.id,
            )
        return found

    def _require_served(self, host: str | None) -> None:
        if host is None:
            raise InvalidArgument("destination: say which host", field="destination")
        if not self._driver.serves(host):
            raise WrongHost(f"this process does not act on {host}; nothing was touched", expected=host)
