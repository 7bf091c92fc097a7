"""Taking volumes back: one at a user's wish, or all of an instance that ends.

The two differ in what becomes of the volume. A user who detaches keeps it. Termination deletes those volumes that the
instance *has* when it ends and that were attached to go with it; the wish is written together with the first step, so a
crash in between loses neither the wish nor a volume that somebody wants.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.lock_names import instance_lock, volume_lock
from cloudcore.attach.lifecycle.failures import failure, in_a_move
from cloudcore.attach.lifecycle.fencing import judged, require_evidence
from cloudcore.attach.lifecycle.states import Event, State
from cloudcore.attach.workflow.parts import Workflow
from cloudcore.errors import CloudcoreError, Conflict, InUse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cloudcore.attach.journal.leases import Lease
    from cloudcore.attach.lifecycle.records import Attachment, Move, WhenGone
    from cloudcore.attach.workflow.driver import Result
    from cloudcore.attach.workflow.parts import Parts
    from cloudcore.attach.workflow.snapshots import Snapshots
    from cloudcore.attach.workflow.swaps import Swaps

__all__ = ["Detacher"]


class Detacher(Workflow):
    """Detaches, terminates, and changes what termination will do. May be shared between threads."""

    def __init__(self, parts: Parts, snapshots: Snapshots, swaps: Swaps) -> None:
        super().__init__(parts)
        self._snapshots = snapshots
        self._swaps = swaps

    # --- one attachment -----------------------------------------------------------------------------------------------

    def detach(self, attachment_id: str, *, force: bool, boot_volume: bool) -> Attachment:
        """See :meth:`AttachmentManager.detach`."""
        leg = self._journal.get(attachment_id)
        if leg.state is State.ABSENT:
            return leg
        evidence = str(require_evidence(self._fencer, str(leg.host))) if force and leg.host is not None else None
        if leg.host is not None and not force:
            self._driver.host(leg)
        with self._at_rest(leg), self._leases.hold([volume_lock(leg.volume_id)]) as lease:
            leg = self._journal.get(leg.id)
            if not force and not boot_volume:
                self._require_spare(leg)
            result = self._take_back(lease, leg, evidence, "keep", release=True)
        return self._told(result)

    @contextmanager
    def _at_rest(self, leg: Attachment) -> Iterator[None]:
        """Check that the instance is in no move, or shelved: then keep it so meanwhile.

        A snapshot that is not under way any more is undone: whoever made it is dead, and its guest may be frozen.

        Raises:
            Conflict: It is on its way.
        """
        move = self._rows.find(leg.instance_id)
        if move is None:
            yield
            return
        with self._leases.hold([instance_lock(leg.instance_id)]):
            move = self._rows.find(leg.instance_id)
            if move is not None and move.kind == "snapshot" and move.phase != "ending":
                self._snapshots.undo(move)
                move = None
            if move is not None and not (move.shelved and leg.host is None):
                raise in_a_move(move)
            yield

    def _require_spare(self, leg: Attachment) -> None:
        """Check that no running guest loses what it booted from, as Nova does.

        Raises:
            Conflict: It would.
        """
        if leg.settings.boot_order != 1 or leg.state is not State.ATTACHED:
            return
        if self._driver.host(leg).guests.disk_state(leg.instance_id, leg.volume_id).live is not None:
            raise Conflict(
                f"instance {leg.instance_id} runs from volume {leg.volume_id}: stop it first, or say boot_volume=True",
                identifier=leg.id,
            )

    def _take_back(
        self,
        lease: Lease,
        leg: Attachment,
        evidence: str | None,
        wish: WhenGone,
        *,
        release: bool,
        force: bool = False,
    ) -> Result:
        """Lead one leg away; a wish that it is on its way out with already stands."""
        if leg.interrupted:
            leg = self._give_up_hold(lease, leg)
            result = self._recovery.salvage(lease, leg, evidence=evidence, force=force)
            if result.leg.interrupted or result.leg.state is State.ABSENT:
                return result
            leg = result.leg
        event = Event.DETACH if evidence is None or leg.host is None else Event.FENCED
        settings = attrs.evolve(leg.settings, held_before=False)
        leg, instruction = self._journal.advance(
            lease, leg, event, note=evidence, settings=settings, when_gone=leg.when_gone or wish
        )
        return self._driver.run(lease, leg, instruction, release=release, force=force)

    def _give_up_hold(self, lease: Lease, leg: Attachment) -> Attachment:
        """An attach that began with a held volume would hold it again when it is undone; nobody wants that any more."""
        if not leg.settings.held_before:
            return leg
        settings = attrs.evolve(leg.settings, held_before=False)
        after = attrs.evolve(leg, settings=settings, version=leg.version + 1, updated_at=self._journal.now())
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, "not-held"))
        return after

    def _told(self, result: Result) -> Attachment:
        leg = result.leg
        if leg.state is State.ABSENT or (leg.pending and result.error is None):
            return leg
        raise failure(leg, result.error, "detach", self._journal.story(leg.id))

    # --- an instance that ends ----------------------------------------------------------------------------------------

    def set_delete_on_termination(self, attachment_id: str, *, delete: bool) -> Attachment:
        """See :meth:`AttachmentManager.set_delete_on_termination`."""
        leg = self._journal.get(attachment_id)
        with self._leases.hold([volume_lock(leg.volume_id)]) as lease:
            leg = self._journal.get(leg.id)
            if leg.state is State.ABSENT:
                raise Conflict(
                    f"attachment {leg.id} is absent: what becomes of volume {leg.volume_id} is not its instance's "
                    f"business any more",
                    identifier=leg.id,
                )
            for one in self._journal.select(volume_id=leg.volume_id, instance_id=leg.instance_id):
                self._set_flag(lease, one, delete=delete)
        return self._journal.get(leg.id)

    def _set_flag(self, lease: Lease, leg: Attachment, *, delete: bool) -> None:
        if leg.settings.delete_on_termination == delete:
            return
        after = attrs.evolve(
            leg,
            settings=attrs.evolve(leg.settings, delete_on_termination=delete),
            version=leg.version + 1,
            updated_at=self._journal.now(),
        )
        event = f"delete-on-termination-{'on' if delete else 'off'}"
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, event))

    def terminate(self, instance_id: str, *, force: bool) -> tuple[Attachment, ...]:
        """See :meth:`AttachmentManager.terminate`."""
        failures: list[CloudcoreError] = []
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._rows.find(instance_id)
            swap = move if move is not None and move.kind == "swap" else None
            if swap is not None:
                if self._end_swap(swap, failures, force=force):
                    swap = None
                move = None
            if move is not None:
                if move.kind == "snapshot":
                    self._snapshots.give_up(move)
                self._rows.set_phase(move, "ending")  # nobody confirms or reverts it any more
            for volume_id in sorted({leg.volume_id for leg in self._journal.select(instance_id=instance_id)}):
                try:
                    self._end(volume_id, instance_id, force=force)
                except CloudcoreError as error:
                    failures.append(error)
            left = self._journal.select(instance_id=instance_id)
            if move is not None and not left:
                self._rows.end(move)
            if swap is not None and not left:
                self._rows.end(swap)
        for volume_id in self._journal.going_with(instance_id):
            try:
                self._delete_volume(instance_id, volume_id)
            except CloudcoreError as error:
                failures.append(error)
        _raise_first(failures)
        return tuple(leg for leg in left if leg.pending)

    def _end_swap(self, swap: Move, failures: list[CloudcoreError], *, force: bool) -> bool:
        """Finish or undo it, for the service waits to hear what came of it; with *force* what failed stops nobody."""
        try:
            self._swaps.end(swap, force=force)
        except CloudcoreError as error:
            if not force:
                raise
            error.add_note(
                f"instance {swap.instance_id} was to end by force, so its swap ({swap.note}) was given up as it was; "
                f"if that is a migration, the volume service was not told"
            )
            failures.append(error)
            return False
        return True

    def _end(self, volume_id: str, instance_id: str, *, force: bool) -> None:
        """End every leg of the pair: that in use before that which was to replace it."""
        with self._leases.hold([volume_lock(volume_id)]) as lease:
            legs = self._journal.select(volume_id=volume_id, instance_id=instance_id)
            for leg in sorted(legs, key=lambda leg: leg.role):
                evidence = self._evidence(leg, force=force)
                self._told(self._take_back(lease, leg, evidence, _wish(leg), release=False, force=force))

    def _evidence(self, leg: Attachment, *, force: bool) -> str | None:
        """Why the leg's host is skipped; None if it is not."""
        if leg.host is None or leg.state is State.ABSENT:
            return None
        found = judged(self._fencer, leg.host) if force else None
        if found is not None:
            return str(found)
        if force and not self._driver.serves(leg.host):
            require_evidence(self._fencer, leg.host)
        self._driver.host(leg)
        return None

    def _delete_volume(self, instance_id: str, volume_id: str) -> None:
        """Delete a volume that went with its instance, unless somebody has, or had, it since: then it is theirs."""
        with self._leases.hold([volume_lock(volume_id)]):
            if volume_id not in self._journal.going_with(instance_id):
                return
            failpoint("attach.terminate.before")
            try:
                self._volumes.delete_volume(volume_id)
            except InUse as error:
                self._journal.database.run(lambda connection: self._journal.spare(connection, volume_id))
                error.add_note(f"instance {instance_id} has ended; the volume is left to those who use it")
                raise
            self._journal.database.run(lambda connection: self._journal.spare(connection, volume_id))


def _wish(leg: Attachment) -> WhenGone:
    """What termination does with the volume of *leg*, which the instance has."""
    if leg.state is State.QUARANTINED:
        return "keep"  # somebody took the volume away from the instance already
    return "delete" if leg.settings.delete_on_termination else "keep"


def _raise_first(failures: Sequence[CloudcoreError]) -> None:
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"also: {other}")
        raise failures[0]
