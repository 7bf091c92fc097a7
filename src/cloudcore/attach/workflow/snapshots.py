"""Snapshots of all volumes of an instance at one instant: its file systems wait while they are made.

A guest that is left frozen is as bad as one that died. So the instance has a row among the moves from before it is
frozen until it is thawed: nothing else is done to its volumes meanwhile, and recovery thaws it and deletes what was
made so far, which is no snapshot of one instant.
"""

from __future__ import annotations

from contextlib import suppress

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.lock_names import instance_lock
from cloudcore.attach.lifecycle.failures import in_a_move
from cloudcore.attach.lifecycle.records import Attachment, InstanceSnapshot, Move
from cloudcore.attach.lifecycle.states import HOLDS, State
from cloudcore.attach.workflow.parts import Workflow
from cloudcore.disks import GuestFreezer
from cloudcore.errors import CloudcoreError, Conflict, GuestAgentUnavailable

__all__ = ["Snapshots"]


class Snapshots(Workflow):
    """Makes them, and undoes those that were interrupted. May be shared between threads."""

    def make(self, instance_id: str, name: str, *, crash_consistent: bool) -> InstanceSnapshot:
        """See :meth:`AttachmentManager.snapshot`."""
        with self._leases.hold([instance_lock(instance_id)]):
            move = self._begin(instance_id, f"{name} {self._new_id()}")
            try:
                quiesced = self._freeze(move, crash_consistent=crash_consistent)
                if quiesced:
                    move = attrs.evolve(move, phase="frozen")
                    self._rows.set_phase(move, move.phase)
                failpoint("attach.snapshot.frozen")
                made = tuple(self._volumes.snapshot(leg.volume_id, str(move.note)) for leg in self._legs(instance_id))
                failpoint("attach.snapshot.made")
                self._thaw(move)
            except CloudcoreError as error:
                self._give_up(move, error)
                raise
            self._rows.end(move)
            return InstanceSnapshot(instance_id=instance_id, name=str(move.note), quiesced=quiesced, snapshots=made)

    def undo(self, move: Move) -> None:
        """Thaw the guest of an interrupted one, and delete what was made of it. The lease on the instance is held.

        Raises:
            WrongHost: Its host is not served here, and not known to be dead.
            CloudcoreError: It could not be thawed, or something could not be deleted; repeat it.
        """
        self._thaw(move)
        self._delete_made(move)
        self._rows.end(move)

    def give_up(self, move: Move) -> None:
        """As :meth:`undo`, of an instance that ends: one that cannot be thawed, being paused, stays so. The row stays.

        Raises:
            CloudcoreError: Something that was made could not be deleted; repeat it.
        """
        with suppress(CloudcoreError):
            self._thaw(move)
        self._delete_made(move)

    def _delete_made(self, move: Move) -> None:
        for leg in self._legs(move.instance_id):
            for made in self._volumes.snapshots(leg.volume_id):
                if made.name == move.note and made.status != "deleting":  # a repeat: Cinder refuses a second time
                    self._volumes.delete_snapshot(made.id)

    def _legs(self, instance_id: str) -> tuple[Attachment, ...]:
        return tuple(leg for leg in self._journal.select(instance_id=instance_id) if leg.role == "main")

    def _begin(self, instance_id: str, name: str) -> Move:
        move = self._rows.find(instance_id)
        if move is not None:
            raise in_a_move(move)
        legs = self._legs(instance_id)
        unsettled = [leg for leg in legs if leg.state is not State.ATTACHED and leg.state not in HOLDS]
        if unsettled or not legs:
            what = f"attachment {unsettled[0].id} is {unsettled[0].state}" if unsettled else "it has no volume"
            raise Conflict(f"instance {instance_id}: no snapshot: {what}", identifier=instance_id)
        hosts = {leg.host: leg for leg in legs if leg.host is not None}
        for leg in hosts.values():
            self._driver.host(leg)  # raises WrongHost
        source = next(iter(hosts), None) or ""
        move = Move(
            instance_id=instance_id, kind="snapshot", phase="freezing", source=source, destination=None, note=name
        )
        self._rows.begin(move, self._journal.now())
        return move

    def _freeze(self, move: Move, *, crash_consistent: bool) -> bool:
        """Let the guest's file systems wait; False if it was taken as it is.

        Raises:
            GuestAgentUnavailable: They cannot be made to, and it is not to be taken as it is.
        """
        if not move.source:
            return True  # it is on no host: nobody writes
        guests = self._driver.host_named(move.source).guests
        try:
            if not isinstance(guests, GuestFreezer):
                raise GuestAgentUnavailable(
                    f"the hypervisor of {move.source} freezes no guests", identifier=move.instance_id
                )
            guests.freeze(move.instance_id)
        except GuestAgentUnavailable as error:
            if crash_consistent:
                return False
            error.add_note("with crash_consistent=True the volumes are taken as after a power cut")
            raise
        return True

    def _thaw(self, move: Move) -> None:
        if not move.source or (not self._driver.serves(move.source) and self._recovery.dead(move.source)):
            return
        guests = self._driver.host_named(move.source).guests
        if not isinstance(guests, GuestFreezer):
            return
        try:
            guests.thaw(move.instance_id)
        except CloudcoreError as error:
            never = isinstance(error, GuestAgentUnavailable) and move.phase != "frozen"
            if not never and not self._recovery.dead(move.source):
                raise

    def _give_up(self, move: Move, error: CloudcoreError) -> None:
        try:
            self.undo(move)
        except CloudcoreError as second:
            error.add_note(
                f"instance {move.instance_id} may be frozen, and snapshots named {move.note!r} may be left ({second}): "
                f"recover() thaws it and deletes them"
            )
