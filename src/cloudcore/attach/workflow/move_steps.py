"""The steps of moves: one volume of the instance at a time, under the lease on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.lifecycle.failures import failure
from cloudcore.attach.lifecycle.states import HOLDS, USES_HOST, Event, Instruction, State
from cloudcore.errors import CloudcoreError, Conflict, DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease
    from cloudcore.attach.lifecycle.records import Attachment, Move
    from cloudcore.attach.workflow.driver import Driver, Result
    from cloudcore.attach.workflow.recovery import Recovery

__all__ = ["MoveSteps"]


class MoveSteps:
    """Stages, leaves, arrives, places and returns single volumes. May be shared between threads."""

    def __init__(
        self,
        journal: Journal,
        driver: Driver,
        recovery: Recovery,
        *,
        id_factory: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._driver = driver
        self._recovery = recovery
        self._new_id = id_factory

    # --- leaving ------------------------------------------------------------------------------------------------------

    def stage(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
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
        self._journal.database.run(lambda connection: self._journal.begin(connection, staged))
        failpoint("attach.stage.begun")
        result = self._driver.run(lease, staged, Instruction.CREATE, release=False)
        if result.leg.state is State.STAGED:
            return result.leg
        raise self.failure(result)

    def leave(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
        """Hold the volume for the instance, then take it off the source."""
        leg = self._journal.get(leg.id)
        if leg.interrupted and leg.state not in USES_HOST:
            leg = self._recovery.salvage(lease, leg).leg
        if leg.state in HOLDS or leg.state is State.ABSENT:
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
            settings = attrs.evolve(leg.settings, held_before=False)
            if move.kind == "evacuation" and leg.host == move.source:
                leg, instruction = self._journal.advance(lease, leg, Event.FENCED, note=move.note, settings=settings)
                result = self._driver.run(lease, leg, instruction, release=False)
            else:
                result = self._recovery.lead_away(lease, leg, Event.DETACH, note=move.note, settings=settings)
        if result.error is not None and result.leg.state is not State.ABSENT:
            if result.leg.state is State.ATTACHED:  # the guest refused: as it was, so the hold is not wanted
                self._drop_second_leg(lease, leg)
            raise self.failure(result)
        return result.leg

    def set_aside(self, lease: Lease, move: Move, leg: Attachment) -> Attachment:
        """Take the volume off its host, and hold it by a reservation alone, so that its bytes can be replaced."""
        leg = self.leave(lease, move, leg)
        if leg.state is not State.RESERVED:
            self._driver.hold(lease, leg, bare=True)
            failpoint("attach.aside.reserved")
            result = self._recovery.lead_away(lease, leg, Event.DETACH, note=move.note)
            if result.leg.state is not State.ABSENT:
                raise self.failure(result)
            self._driver.promote(lease, leg.volume_id)
            leg = self._main_leg(leg)
        return leg

    # --- arriving ---------------------------------------------------------------------------------------------------

    def arrive(self, lease: Lease, leg: Attachment) -> None:
        """Swap the two legs in one transaction, then end the source's; its own recover() does if it lives elsewhere."""
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
        reachable = self._driver.serves(leg.host) or self._recovery.dead(leg.host)
        if leg.role == "past" and leg.interrupted and reachable:
            result = self._recovery.salvage(lease, leg)
            if result.leg.interrupted:
                raise self.failure(result)

    def place(self, lease: Lease, move: Move, leg: Attachment, host: str) -> None:
        """Give a held volume to the guest on *host*; take it from where an earlier attempt placed it, if need be."""
        if leg.interrupted:
            result = self._recovery.salvage(lease, leg, forward=leg.host in {None, host})
            leg = result.leg
            if leg.interrupted:  # nobody could be asked: holding the volume would only wait for what stands still
                raise self.failure(result)
            if leg.state is State.ABSENT:  # undone: the volume is held again
                leg = self._main_leg(leg)
        if leg.state is State.ATTACHED and leg.host == host:
            return
        if leg.state not in HOLDS:
            leg = self.leave(lease, move, leg)
        settings = attrs.evolve(leg.settings, held_before=True)
        failpoint("attach.place.before")
        leg, instruction = self._journal.advance(lease, leg, Event.PLACE, host=host, settings=settings)
        result = self._driver.run(lease, leg, instruction, release=False)
        if result.leg.state is not State.ATTACHED:
            raise self.failure(result)

    # --- going back ---------------------------------------------------------------------------------------------------

    def unstage(self, lease: Lease, leg: Attachment) -> None:
        """Take the second attachment back."""
        if leg.state is State.STAGED:
            result = self._recovery.lead_away(lease, leg, Event.UNDO, note="the move is reverted")
        elif leg.interrupted:
            result = self._recovery.salvage(lease, leg)
        else:
            return
        if result.leg.state is not State.ABSENT:
            raise self.failure(result)

    def go_back(self, lease: Lease, move: Move, leg: Attachment) -> None:
        """Give the volume to the guest at the source again, wherever it is by now."""
        if leg.state is State.ATTACHED and leg.host == move.source:
            self._drop_second_leg(lease, leg)
            return
        if leg.state in HOLDS:
            self._drop_second_leg(lease, leg)  # that was to replace a hold by a reservation alone
        elif not leg.settings.held_before:  # it was leaving when somebody died
            result = self._recovery.salvage(lease, leg) if leg.interrupted else None
            if result is not None and result.leg.state is State.ABSENT:
                self._driver.promote(lease, leg.volume_id)
                leg = self._main_leg(leg)
        self.place(lease, move, leg, move.source)

    def _drop_second_leg(self, lease: Lease, leg: Attachment) -> None:
        second = self._second_leg(leg)
        if second is None:
            return
        if second.interrupted:
            result = self._recovery.salvage(lease, second)
        else:
            result = self._recovery.lead_away(lease, second, Event.UNDO, note="the move is reverted")
        if result.leg.state is not State.ABSENT:
            raise self.failure(result)

    # --- looking and writing ------------------------------------------------------------------------------------------

    def legs(self, instance_id: str) -> tuple[Attachment, ...]:
        """All of the instance's legs."""
        return self._journal.select(instance_id=instance_id)

    def main_legs(self, instance_id: str) -> tuple[Attachment, ...]:
        """Those of its uses of volumes."""
        return tuple(leg for leg in self.legs(instance_id) if leg.role == "main")

    def next_legs(self, instance_id: str) -> tuple[Attachment, ...]:
        """Those that are to replace them."""
        return tuple(leg for leg in self.legs(instance_id) if leg.role == "next")

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

    def failure(self, result: Result) -> CloudcoreError:
        """What to raise for a leg that did not get where it should."""
        return failure(result.leg, result.error, "move", self._journal.story(result.leg.id))
