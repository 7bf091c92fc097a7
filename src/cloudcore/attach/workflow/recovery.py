"""Finishing or undoing, on one volume, what a dead process left: probe, then act, whatever the point of death."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.lock_names import volume_lock
from cloudcore.attach.lifecycle.fencing import judged
from cloudcore.attach.lifecycle.records import RecoveryReport
from cloudcore.attach.lifecycle.states import AT_REST, TABLE, UNDO_UNASKED, USES_HOST, WAITING, Event, State, resume
from cloudcore.errors import CloudcoreError, VolumeBusy, WrongHost

if TYPE_CHECKING:
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease, Leases
    from cloudcore.attach.lifecycle.fencing import Fencer
    from cloudcore.attach.lifecycle.records import Attachment
    from cloudcore.attach.lifecycle.states import Instruction
    from cloudcore.attach.workflow.driver import Driver, Result
    from cloudcore.disks import DiskState

__all__ = ["Recovery", "Tally"]


@attrs.define
class Tally:
    """What came of each leg, for a :class:`RecoveryReport`."""

    settled: list[Attachment] = attrs.field(factory=list)
    waiting: list[Attachment] = attrs.field(factory=list)
    left: list[tuple[str, str]] = attrs.field(factory=list)

    def count(self, leg: Attachment, error: CloudcoreError | None) -> None:
        """Enter where *leg* ended."""
        if leg.pending:
            self.waiting.append(leg)
        elif leg.interrupted:
            self.left.append((leg.id, f"{leg.state}: {error}"))
        else:
            self.settled.append(leg)

    def report(self) -> RecoveryReport:
        """What was entered."""
        return RecoveryReport(settled=tuple(self.settled), waiting=tuple(self.waiting), left=tuple(self.left))


class Recovery:
    """Settles interrupted legs. May be shared between threads, and run by several processes at once."""

    def __init__(self, journal: Journal, driver: Driver, leases: Leases, fencer: Fencer | None) -> None:
        self._journal = journal
        self._driver = driver
        self._leases = leases
        self._fencer = fencer

    def ask_again(self, volume_id: str) -> None:
        """Ask the guests that have not let the volume go yet."""
        for leg in self._journal.select(volume_id=volume_id):
            if leg.state in WAITING:
                self.ask_again_into(Tally(), leg)

    def settle(self, volume_id: str) -> None:
        """Settle one volume before something new is done to it, as far as it goes; what is left, is left."""
        self.settle_into(Tally(), volume_id, patience=None)

    def settle_into(self, tally: Tally, volume_id: str, *, patience: float | None) -> None:
        """As :meth:`settle`; enter what came of it."""
        try:
            with self._leases.hold([volume_lock(volume_id)], patience=patience) as lease:
                failpoint("attach.recover.begin")
                self._settle_legs(lease, volume_id, tally)
        except VolumeBusy as error:
            tally.left.append((volume_lock(volume_id), str(error)))
        except CloudcoreError as error:
            tally.left.append((volume_lock(volume_id), f"{type(error).__name__}: {error}"))

    def _settle_legs(self, lease: Lease, volume_id: str, tally: Tally) -> None:
        with self._journal.database.read() as connection:
            legs = self._journal.of_volume(connection, volume_id)
        for leg in sorted(legs, key=lambda leg: leg.role):  # main before next before past
            if not leg.interrupted:
                continue
            try:
                result = self.salvage(lease, leg, forward=self._goes_on(leg, legs))
            except CloudcoreError as error:
                tally.left.append((leg.id, f"{leg.state}: {error}"))
            else:
                tally.count(result.leg, result.error)
        self._driver.promote(lease, volume_id)

    @staticmethod
    def _goes_on(leg: Attachment, legs: list[Attachment]) -> bool:
        """Whether an interrupted hold is to be finished: the leg that it replaces has begun to go already."""
        if leg.role != "next" or leg.host is not None:
            return False
        mains = [o for o in legs if o.role == "main" and o.instance_id == leg.instance_id]
        return not any(main.state is State.ATTACHED for main in mains)

    def salvage(
        self,
        lease: Lease,
        leg: Attachment,
        *,
        forward: bool = False,
        evidence: str | None = None,
        force: bool = False,
    ) -> Result:
        """Finish or undo one interrupted leg. The lease on its volume is held, so whoever drove it is dead.

        A host that is served here is asked first, and the fencer only where it could not be reached.

        Args:
            lease: On the leg's volume.
            leg: As the journal has it.
            forward: Finish it, even where that takes a step that nobody waits for.
            evidence: Why its host counts as dead; None to look.
            force: Give up what cannot be brought to the volume.

        Raises:
            WrongHost: Its next step belongs to a host that is not served here, and that is not known to be dead.
        """
        evidence = evidence or self._evidence(leg)
        leg, instruction = self._lost(lease, leg)
        if evidence is not None and (leg.state, Event.FENCED) in TABLE:
            leg, instruction = self._journal.advance(lease, leg, Event.FENCED, note=evidence)
        elif leg.state in UNDO_UNASKED and not forward:
            leg, instruction = self._journal.advance(
                lease, leg, Event.UNDO, note="interrupted, and nobody waits for it"
            )
        result = self._driver.run(lease, leg, instruction, undo=not forward, release=False, force=force)
        return self._past_a_dead_host(lease, result)

    def lead_away(
        self, lease: Lease, leg: Attachment, event: Event, *, note: str | None, force: bool = False, **changes: Any
    ) -> Result:
        """Begin to end a leg that is at rest by *event*, and go on as far as it goes; past its host, if that is dead.

        Raises:
            WrongHost: Its host is not served here, and not known to be dead. Nothing was touched.
        """
        evidence = self._evidence(leg)
        if evidence is not None:
            event, note = Event.FENCED, evidence
        leg, instruction = self._journal.advance(lease, leg, event, note=note, **changes)
        return self._past_a_dead_host(lease, self._driver.run(lease, leg, instruction, release=False, force=force))

    def dead(self, host: str | None) -> bool:
        """Whether the fencer has evidence that *host* is dead."""
        return host is not None and judged(self._fencer, host) is not None

    def guest_says(self, host: str, leg: Attachment) -> DiskState | None:
        """Whether the instance has the volume on *host*; None if that host is dead, so that nothing there has anything.

        It is asked; the fencer is, where it cannot be.

        Raises:
            WrongHost: It is not served here, and not known to be dead.
            CloudcoreError: It cannot be reached, and is not known to be dead.
        """
        if not self._driver.serves(host) and self.dead(host):
            return None
        guests = self._driver.host(attrs.evolve(leg, host=host)).guests
        try:
            return guests.disk_state(leg.instance_id, leg.volume_id)
        except CloudcoreError:
            if not self.dead(host):
                raise
            return None

    def _past_a_dead_host(self, lease: Lease, result: Result) -> Result:
        """Go on without the host that could not be reached, if the fencer has evidence that it is dead."""
        leg = result.leg
        if result.error is None or leg.host is None or (leg.state, Event.FENCED) not in TABLE or leg.state in AT_REST:
            return result
        found = judged(self._fencer, leg.host)
        if found is None:
            return result
        leg, instruction = self._journal.advance(lease, leg, Event.FENCED, note=str(found))
        return self._driver.run(lease, leg, instruction, release=False)

    def _lost(self, lease: Lease, leg: Attachment) -> tuple[Attachment, Instruction | None]:
        if leg.state.uncertain:
            return leg, resume(leg.state)
        failpoint("attach.recover.lost")
        return self._journal.advance(lease, leg, Event.LOST, note="whoever drove it is gone")

    def _evidence(self, leg: Attachment) -> str | None:
        """None if the leg's host is served here or not needed; else why it counts as dead."""
        if leg.state not in USES_HOST or leg.host is None or self._driver.serves(leg.host):
            return None
        found = judged(self._fencer, leg.host)
        if found is None:
            self._driver.host(leg)  # raises WrongHost
        return str(found)

    def ask_again_into(self, tally: Tally, leg: Attachment) -> None:
        """Ask the guest of *leg* to let go, if it has not yet; enter what came of it."""
        try:
            with self._leases.hold([volume_lock(leg.volume_id)], patience=0.0) as lease:
                leg = self._journal.get(leg.id)
                if leg.state not in WAITING:
                    return
                evidence = self._evidence(leg)
                event = Event.DETACH if evidence is None else Event.FENCED
                leg, instruction = self._journal.advance(lease, leg, event, note=evidence)
                result = self._past_a_dead_host(lease, self._driver.run(lease, leg, instruction, release=False))
                self._driver.promote(lease, leg.volume_id)
        except (VolumeBusy, WrongHost) as error:
            tally.left.append((leg.id, str(error)))
        except CloudcoreError as error:
            tally.left.append((leg.id, f"{type(error).__name__}: {error}"))
        else:
            tally.count(result.leg, result.error)
