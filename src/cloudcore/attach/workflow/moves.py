"""An instance's volumes on their way to another host, or to none.

A *live* move stages a second attachment for the destination and removes the source's once the guest has arrived. The
others leave the source first: the volume is held for the instance by a second, bare attachment while the first is taken
away, so that it is never free for somebody else; then it is placed on the destination. A *shelved* instance stays in
between. An *evacuation* skips what only the source could do, on evidence that the source is dead.

The row in ``attachment_moves`` says what was asked for; each volume's legs say how far it came.

One module, because every verb ends in the same two: a *refresh* and a *rebuild* are moves that come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.lock_names import instance_lock, volume_lock
from cloudcore.attach.lifecycle.failures import failure, in_a_move
from cloudcore.attach.lifecycle.fencing import require_evidence
from cloudcore.attach.lifecycle.records import Attachment, HostRefresh, Move, MoveKind
from cloudcore.attach.lifecycle.states import HOLDS, State
from cloudcore.attach.workflow.move_steps import MoveSteps
from cloudcore.attach.workflow.parts import Workflow
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    InvalidArgument,
    Refused,
    WrongHost,
)

if TYPE_CHECKING:
    from cloudcore.attach.workflow.driver import Result
    from cloudcore.attach.workflow.parts import Parts
    from cloudcore.attach.workflow.snapshots import Snapshots
    from cloudcore.attach.workflow.swaps import Swaps
    from cloudcore.disks import Disk

__all__ = ["Moves"]


class Moves(Workflow):
    """Begins, confirms and reverts moves; each verb can be repeated. May be shared between threads."""

    def __init__(self, parts: Parts, snapshots: Snapshots, swaps: Swaps) -> None:
        super().__init__(parts)
        self._snapshots = snapshots
        self._swaps = swaps
        self._steps = MoveSteps(parts.journal, parts.driver, parts.recovery, id_factory=parts.id_factory)

    # --- the verbs ----------------------------------------------------------------------------------------------------

    def begin(self, instance_id: str, kind: MoveKind, destination: str | None) -> Move:
        """See :meth:`AttachmentManager.begin_move`."""
        if kind == "live":
            self._require_served(destination)
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.find(instance_id) or self._start(instance_id, kind, destination)
            if (move.kind, move.destination) != (kind, destination) or move.phase not in {"beginning", "begun"}:
                raise in_a_move(move)
            self._settle(instance_id)
            return self._begin(move)

    def refresh(self, instance_id: str) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.refresh`."""
        with self._leases.hold([instance_lock(instance_id)]):
            if not self._steps.main_legs(instance_id):
                return ()
            move = self._rows.find(instance_id) or self._start(instance_id, "refresh", None)
            if move.kind != "refresh" or move.phase not in {"beginning", "begun", "confirming"}:
                raise in_a_move(move)
            self._settle(instance_id)
            if move.phase == "beginning":
                move = self._begin(move)
            self._rows.set_phase(move, "confirming")
            return self._confirm(move)

    def refresh_host(self, host: str) -> HostRefresh:
        """See :meth:`AttachmentManager.refresh_host`."""
        self._require_served(host)
        instances = {leg.instance_id for leg in self._journal.select(host=host)}
        instances |= {move.instance_id for move in self._rows.all() if (move.kind, move.source) == ("refresh", host)}
        refreshed: list[Attachment] = []
        left: list[tuple[str, str]] = []
        for instance_id in sorted(instances):
            try:
                refreshed += self.refresh(instance_id)
            except CloudcoreError as error:
                left.append((instance_id, f"{type(error).__name__}: {error}"))
        return HostRefresh(refreshed=tuple(refreshed), left=tuple(left))

    def rebuild(self, instance_id: str, image_id: str) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.rebuild`."""
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.find(instance_id)
            if move is None:
                self._require_alone(instance_id)
                move = self._start(instance_id, "rebuild", None, note=image_id)
            another = move.note != image_id and move.phase not in {"beginning", "reimaging"}
            if move.kind != "rebuild" or another or move.phase not in {"beginning", "reimaging", "confirming"}:
                raise in_a_move(move)
            self._settle(instance_id)
            if move.note != image_id:
                move = attrs.evolve(move, note=image_id)
                self._rows.set_phase(move, move.phase)
            return self._rebuild(move)

    def _rebuild(self, move: Move) -> tuple[Attachment, ...]:
        """Go on from the phase that was reached. Twice the same image is as once."""
        if move.phase == "beginning":
            move = self._begin(move)
        if move.phase == "reimaging":
            for leg in self._steps.main_legs(move.instance_id):
                if leg.state is State.RESERVED:
                    with self._leases.hold([volume_lock(leg.volume_id)]):
                        self._volumes.reimage(leg.volume_id, str(move.note))
            failpoint("attach.reimaged")
            self._rows.set_phase(move, "confirming")
        return self._confirm(move)

    def _require_alone(self, instance_id: str) -> None:
        """Check that the instance boots from a volume, and that this is nobody else's too.

        Raises:
            Conflict: It does not, or it is.
        """
        boots = [leg for leg in self._steps.main_legs(instance_id) if _boots(leg)]
        if not boots:
            raise Conflict(f"instance {instance_id} boots from no volume (boot_order=1)", identifier=instance_id)
        for leg in boots:
            users = sorted({one.instance_id for one in self._journal.select(volume_id=leg.volume_id)} - {instance_id})
            if users:
                raise Conflict(
                    f"volume {leg.volume_id} cannot get another image: {', '.join(users)} use it too",
                    identifier=leg.volume_id,
                )

    def _require_off(self, legs: tuple[Attachment, ...]) -> None:
        """Check that no running guest has any of the disks: it would lose them for a while.

        Raises:
            Conflict: One has.
        """
        for leg in legs:
            state = self._driver.host(leg).guests.disk_state(leg.instance_id, leg.volume_id)
            if state.live is not None:
                raise Conflict(
                    f"instance {leg.instance_id} runs with volume {leg.volume_id}; stop it first",
                    identifier=leg.instance_id,
                )

    def confirm(self, instance_id: str, destination: str | None = None) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.confirm_move`."""
        with self._leases.hold([instance_lock(instance_id)]):
            begun = self._rows.require(instance_id)
            if begun.kind == "swap" and begun.phase == "pivoting":
                self._swaps.settle(begun, keep="new")
                return self._steps.main_legs(instance_id)
            move = attrs.evolve(begun, destination=self._target(begun, destination))
            self._require_reachable(move.destination)
            if move.kind == "live":
                self._require_arrived(move)
            self._settle(instance_id)
            self._rows.set_phase(move, "confirming")
            try:
                return self._confirm(move)
            except CloudcoreError:
                if all(leg.state in HOLDS for leg in self._steps.main_legs(instance_id)):
                    self._rows.set_phase(begun, "begun")  # nothing was placed: as before the call
                raise

    def _target(self, move: Move, destination: str | None) -> str | None:
        """Where *move* is to be confirmed.

        Another host than before only if that one is dead; and one that is being reverted only if its source is.

        Raises:
            Conflict: The move is in another verb, or goes somewhere else.
        """
        sourceless = move.phase == "reverting" and move.kind != "live" and self._recovery.dead(move.source)
        if move.phase not in {"begun", "confirming"} and not sourceless:
            raise in_a_move(move)
        if move.destination is None or destination in {None, move.destination}:
            return move.destination or destination
        if move.kind == "live" or not self._recovery.dead(move.destination):
            raise Conflict(f"instance {move.instance_id} is moving to {move.destination}", identifier=move.instance_id)
        return destination

    def revert(self, instance_id: str) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.revert_move`."""
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.require(instance_id)
            if move.kind == "snapshot":
                self._snapshots.undo(move)
                return self._steps.main_legs(instance_id)
            if move.kind == "swap":
                self._swaps.settle(move, keep="old")
                return self._steps.main_legs(instance_id)
            if move.kind == "evacuation":
                raise Refused(
                    f"instance {instance_id} cannot go back: {move.source} was fenced ({move.note}). Confirm the move, "
                    f"or begin another when it has arrived"
                )
            if move.phase == "ending" or (move.phase == "confirming" and move.kind == "live"):
                raise Conflict(f"the move of instance {instance_id} is {move.phase}", identifier=instance_id)
            if move.kind == "live":
                self._require_reachable(move.destination)
                self._require_not_arrived(move)
            else:
                self._require_served(move.source)
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
            if move.phase == "ending":  # termination goes on when it is called again
                if not self._steps.legs(instance_id):
                    self._rows.end(move)
                return False
            if move.kind == "snapshot":
                self._snapshots.undo(move)
                return True
            if move.kind == "swap":
                self._swaps.settle(move)
                return True
            self._settle(instance_id)
            if move.phase == "beginning" and move.kind == "live":
                self._rows.set_phase(move, "reverting")
                self._revert(move)
            elif move.phase == "beginning" and move.kind != "rebuild":
                self._begin(move)
            elif move.kind == "rebuild" and move.phase != "reverting":
                self._rebuild(move)
            elif move.phase == "confirming":
                self._confirm(move)
            else:
                self._revert(move)
            return True

    # --- beginning ----------------------------------------------------------------------------------------------------

    def _start(self, instance_id: str, kind: MoveKind, destination: str | None, *, note: str | None = None) -> Move:
        """Check that it can be begun at all, then write it down."""
        legs = self._steps.main_legs(instance_id)
        hosts = {leg.host for leg in legs}
        unsettled = [leg for leg in legs if leg.state is not State.ATTACHED]
        if unsettled or len(hosts) > 1:
            what = f"attachment {unsettled[0].id} is {unsettled[0].state}" if unsettled else f"it is on {hosts}"
            raise Conflict(f"instance {instance_id} cannot move: {what}", identifier=instance_id)
        source = next(iter(hosts), None) or ""
        if kind in {"refresh", "rebuild"}:
            destination = source
            self._require_off(legs)
        elif destination is not None and destination == source:
            raise InvalidArgument(f"destination: instance {instance_id} is on {source}", field="destination")
        if kind == "evacuation":
            note = str(require_evidence(self._fencer, source))
        if kind in {"cold", "shelve", "refresh", "rebuild"} and legs:
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
            for leg in self._steps.main_legs(move.instance_id):
                with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                    if move.kind == "live":
                        legs.append(self._steps.stage(lease, move, leg))
                        disks.append(self._driver.disk(lease, legs[-1]))
                    elif move.kind == "rebuild":
                        legs += [self._steps.set_aside(lease, move, leg)] if _boots(leg) else []
                    else:
                        legs.append(self._steps.leave(lease, move, leg))
        except CloudcoreError as error:
            self._give_up(move, error)
            raise
        phase = "reimaging" if move.kind == "rebuild" else "begun"
        self._rows.set_phase(move, phase)
        return attrs.evolve(move, phase=phase, legs=tuple(legs), disks=tuple(disks))

    def _give_up(self, move: Move, error: CloudcoreError) -> None:
        """A begin failed: undo a live one; leave others where they are if a volume has left its host already."""
        untouched = all(leg.state is State.ATTACHED for leg in self._steps.main_legs(move.instance_id))
        if move.kind != "live" and not untouched:
            error.add_note(f"the move of instance {move.instance_id} is half begun: begin it again, or revert it")
            return
        try:
            self._rows.set_phase(move, "reverting")
            self._revert(move)
        except CloudcoreError as second:
            error.add_note(f"undoing the move failed too ({second}); recover() goes on with it")

    # --- confirming ---------------------------------------------------------------------------------------------------

    def _require_arrived(self, move: Move) -> None:
        """Check that the guest runs at the destination and not at the source, as far as they can be asked.

        A destination that died cannot say; then the guest counts as arrived if the source does not have it any more.

        Raises:
            Conflict: It does not.
        """
        for leg in self._steps.next_legs(move.instance_id):
            there = self._recovery.guest_says(str(leg.host), leg)
            if there is not None and not there.present:
                raise Conflict(
                    f"instance {leg.instance_id} has no disk of volume {leg.volume_id} on {leg.host}: not arrived",
                    identifier=leg.instance_id,
                )
            here = self._recovery.guest_says(move.source, leg) if self._driver.serves(move.source) else None
            if here is not None and (here.live is not None or (there is None and here.present)):
                raise Conflict(
                    f"instance {leg.instance_id} still runs on {move.source} with volume {leg.volume_id}",
                    identifier=leg.instance_id,
                )

    def _confirm(self, move: Move) -> tuple[Attachment, ...]:
        for leg in self._steps.legs(move.instance_id):
            with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                leg = self._journal.get(leg.id)
                if move.kind == "live":
                    self._steps.arrive(lease, leg)
                else:
                    self._steps.place(lease, move, leg, str(move.destination))
        self._rows.end(move)
        return self._steps.main_legs(move.instance_id)

    # --- reverting ----------------------------------------------------------------------------------------------------

    def _revert(self, move: Move) -> tuple[Attachment, ...]:
        for leg in self._steps.legs(move.instance_id):
            with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
                leg = self._journal.get(leg.id)
                if move.kind == "live":
                    if leg.role == "next":
                        self._steps.unstage(lease, leg)
                elif leg.role == "main":
                    self._steps.go_back(lease, move, leg)
        self._rows.end(move)
        return self._steps.main_legs(move.instance_id)

    def _require_not_arrived(self, move: Move) -> None:
        """Check that the guest is not at the destination; of one that died, that the source has it still.

        Raises:
            Conflict: It is, or was.
        """
        for leg in self._steps.next_legs(move.instance_id):
            there = self._recovery.guest_says(str(leg.host), leg)
            if there is not None and there.live is not None:
                raise Conflict(
                    f"instance {leg.instance_id} runs on {leg.host} with volume {leg.volume_id}: confirm the move",
                    identifier=leg.instance_id,
                )
            if there is None and move.phase != "reverting" and self._driver.serves(move.source):
                here = self._recovery.guest_says(move.source, leg)
                if here is not None and not here.present:
                    raise Conflict(
                        f"instance {leg.instance_id} had left {move.source} for {leg.host}, which is dead: confirm the "
                        f"move, then evacuate it from there",
                        identifier=leg.instance_id,
                    )

    def _settle(self, instance_id: str) -> None:
        """Finish or undo, volume by volume, what an earlier attempt left in the middle."""
        legs = self._steps.legs(instance_id)
        replaced = {leg.volume_id for leg in legs if leg.role == "main"}
        for leg in legs:
            if leg.interrupted or (leg.state in HOLDS and leg.volume_id not in replaced):
                self._recovery.settle(leg.volume_id)

    def _failure(self, result: Result) -> CloudcoreError:
        return failure(result.leg, result.error, "move", self._journal.story(result.leg.id))

    def _require_reachable(self, host: str | None) -> None:
        """Check that what has to be done on *host* can be done here, or is nobody's any more because it is dead."""
        if not self._recovery.dead(host):
            self._require_served(host)

    def _require_served(self, host: str | None) -> None:
        if host is None:
            raise InvalidArgument("destination: say which host", field="destination")
        if not self._driver.serves(host):
            raise WrongHost(f"this process does not act on {host}; nothing was touched", expected=host)


def _boots(leg: Attachment) -> bool:
    return leg.settings.boot_order == 1
