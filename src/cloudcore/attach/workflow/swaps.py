"""Another volume under a running guest: copied, changed over, and the old one given back.

One module, because forward and back are the same few steps. The row among the moves says how far it came, the legs of
the two volumes what has to be ended:

===============  ======================================================================================================
phase            what holds, and what leads out
===============  ======================================================================================================
``copying``      the guest lives on the old volume, a second leg (``next``) holds the new one. Undone, whoever died; or
                 gone on with when the same swap is asked for again
``pivoting``     both volumes held the same, and every write went to both, until the guest changed over or the copy
                 ended. It is asked which it has. If it cannot be, its host being dead or it being gone, nobody knows:
                 somebody who does may have started it again, with the old volume. An operator says which one stays
``completing``   the guest lives on the new volume. Finished: the old leg is ended, the service told, the row deleted
``undoing``      the new leg is being taken back, and the service told that nothing came of it
===============  ======================================================================================================
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.attach.hosts.connectors import ConnectionKeeper
from cloudcore.attach.journal.lock_names import instance_lock, volume_lock
from cloudcore.attach.lifecycle.failures import failure, in_a_move
from cloudcore.attach.lifecycle.records import Attachment, Move
from cloudcore.attach.lifecycle.states import Event, Instruction, State
from cloudcore.attach.lifecycle.swapping import (
    SwapPlan,
    SwapRequest,
    lasting_violations,
    swap_violations,
    takes_place,
)
from cloudcore.attach.workflow.parts import Workflow
from cloudcore.disks import CopyPhase, DiskCopier
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    DeviceNotFound,
    GuestNotFound,
    InUse,
    NotMigrating,
    UnsupportedFeature,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection

    from cloudcore.attach.journal.leases import Lease
    from cloudcore.attach.lifecycle.rules import Violation
    from cloudcore.attach.workflow.driver import Result
    from cloudcore.disks import Disk

    OnProgress = Callable[[int, int], object]
    Side = Literal["old", "new"]

__all__ = ["Swaps"]

_FIRST_LOOK, _LAST_LOOK = 0.02, 1.0
"""Seconds between looks at how far a copy is."""


class Swaps(Workflow):
    """Swaps volumes, and finishes or undoes what was interrupted. May be shared between threads."""

    # --- the verb -----------------------------------------------------------------------------------------------------

    def plan(self, request: SwapRequest) -> SwapPlan:
        """See :meth:`AttachmentManager.plan_swap`."""
        leg = self._leg_of(request)
        old, new = self._volumes.volume(request.volume_id), self._volumes.volume(request.new_volume_id)
        running = False
        if leg.state is State.ATTACHED:
            self._copier(leg.host)
            guests = self._driver.host(leg).guests
            running = guests.disk_state(leg.instance_id, leg.volume_id).live is not None
        found = swap_violations(
            leg,
            old,
            new,
            old_users=self._users(old.id, besides=leg.instance_id),
            new_users=self._users(new.id, besides=None),
            running=running,
        )
        return SwapPlan(
            request=attrs.evolve(request, migration=takes_place(old, new)), old=old, new=new, violations=found
        )

    def swap(self, request: SwapRequest, on_progress: OnProgress | None) -> Attachment:
        """See :meth:`AttachmentManager.swap_volume`."""
        with self._leases.hold([instance_lock(request.instance_id)]), self._volumes_of(request) as lease:
            move = self._rows.find(request.instance_id)
            if move is None:
                move = self._start(request)
            elif not _same(move, request) or move.phase == "undoing":
                raise in_a_move(move)
            elif move.phase == "pivoting" and not self._changed_over(lease, move):
                move = self._enter(lease, move, "copying")
            return self._run(lease, move, on_progress)

    def _run(self, lease: Lease, move: Move, on_progress: OnProgress | None) -> Attachment:
        try:
            if move.phase == "copying":
                self._require_alone(move)
                self._copy(lease, move, on_progress)
                self._require_alone(move)
                move = self._enter(lease, move, "pivoting")
                failpoint("attach.swap.pivoting")
                self._pivot(lease, move)
                failpoint("attach.swap.pivoted")
        except Exception as error:
            self._give_up(lease, move, error)
            raise
        return self._finish(lease, move)

    def _require_alone(self, move: Move) -> None:
        """Check that nobody else uses the volumes by now, and that the one is still no larger than the other.

        Others than the manager may have seen to that; and rules were last asked before somebody died, perhaps.

        Raises:
            InUse, InvalidArgument: They do, or it is.
        """
        request = SwapRequest.of(move)
        _raise_first(
            lasting_violations(
                self._volumes.volume(request.volume_id),
                self._volumes.volume(request.new_volume_id),
                old_users=self._users(request.volume_id, besides=move.instance_id),
                new_users=self._users(request.new_volume_id, besides=move.instance_id),
            )
        )

    def _start(self, request: SwapRequest) -> Move:
        plan = self.plan(request)
        _raise_first(plan.violations)
        leg = self._leg_of(request)
        move = Move(
            instance_id=request.instance_id,
            kind="swap",
            phase="copying",
            source=str(leg.host),
            destination=leg.host,
            note=plan.request.note,
        )
        self._rows.begin(move, self._journal.now())
        return move

    def _give_up(self, lease: Lease, move: Move, error: Exception) -> None:
        """It failed: undo it, unless the guest has changed over, or nobody knows."""
        try:
            if self._left(lease, move):
                error.add_note(
                    f"the guest of instance {move.instance_id} has the new volume: recover() finishes the swap"
                )
            else:
                self._undo(lease, move)
        except CloudcoreError as second:
            error.add_note(
                f"the swap of instance {move.instance_id} is {move.phase} ({second}): recover() goes on with it"
            )

    # --- what was interrupted -----------------------------------------------------------------------------------------

    def settle(self, move: Move, *, keep: Side | None = None, force: bool = False) -> bool:
        """Finish or undo a swap whose process died. The lease on the instance is held.

        Args:
            move: Of :meth:`MoveStore.find`.
            keep: Which volume stays if nobody knows which one the guest has.
            force: Give up what a host cannot bring to a volume that it leaves.

        Returns:
            Whether the guest has the new volume now.

        Raises:
            Conflict: Nobody knows, and *keep* does not say. Or the new one was to be kept, and the guest has the old.
            CloudcoreError: It could not be; repeat it.
        """
        with self._volumes_of(SwapRequest.of(move)) as lease:
            if keep == "new" and not self._changed_over(lease, move, keep):
                raise Conflict(
                    f"the guest of instance {move.instance_id} has the old volume still ({move.phase}): swap it again, "
                    f"or revert the move",
                    identifier=move.instance_id,
                )
            if self._left(lease, move, keep):
                self._finish(lease, move, force=force)
                return True
            self._undo(lease, move, force=force)
            return False

    def end(self, move: Move, *, force: bool) -> None:
        """As :meth:`settle`, for an instance that ends. Nobody is asked which bytes stay where that decides nothing.

        That is so unless the service would delete bytes of a volume that is to outlive the instance.
        """
        request = SwapRequest.of(move)
        legs = self._journal.select(instance_id=move.instance_id)
        two = {request.volume_id, request.new_volume_id}
        outlives = not any(leg.settings.delete_on_termination for leg in legs if leg.volume_id in two)
        self.settle(move, keep=None if request.migration and outlives else "old", force=force)

    def _changed_over(self, lease: Lease, move: Move, keep: Side | None = None) -> bool:
        """Whether the guest lives on the new volume; if nobody knows, whether that is to be kept.

        Raises:
            Conflict: Nobody knows, and *keep* does not say.
        """
        new = self._new_leg(move)
        if move.phase == "completing" or (new is not None and new.role == "main"):
            return True
        if self._lost(move):
            return self._told_by(move, keep)
        if new is None or new.state is not State.STAGED:
            return False
        try:
            copy = self._copier(move.source).disk_copy(
                move.instance_id, SwapRequest.of(move).volume_id, self._disk(lease, move, new)
            )
        except (DeviceNotFound, GuestNotFound):
            return self._told_by(move, keep)
        return copy.phase is CopyPhase.DONE

    @staticmethod
    def _told_by(move: Move, keep: Side | None) -> bool:
        """Which one stays, of a guest that cannot be asked. Before the pivot it has the old one."""
        if move.phase == "pivoting" and keep is None:
            request = SwapRequest.of(move)
            raise Conflict(
                f"nobody can say whether instance {move.instance_id} had changed over from volume {request.volume_id} "
                f"to {request.new_volume_id}; nothing was done. Look which one it was started with last, or which "
                f"holds what was written last: revert_move() keeps the old one, confirm_move() the new one",
                identifier=move.instance_id,
            )
        return move.phase == "pivoting" and keep == "new"

    def _left(self, lease: Lease, move: Move, keep: Side | None = None) -> bool:
        """As :meth:`_changed_over`; if not, the guest stays where it is: nothing is copied any more.

        A pivot that nobody waits for may still end meanwhile, so it is asked again once the copy has ended.

        Raises:
            Conflict: The copy goes on.
            CloudcoreError: Nobody knows.
        """
        lease.require()
        if self._changed_over(lease, move, keep):
            return True
        new = self._new_leg(move)
        if self._lost(move) or new is None or new.state is not State.STAGED:
            return False  # nothing was copied yet, or is any more
        request, copier, disk = SwapRequest.of(move), self._copier(move.source), self._disk(lease, move, new)
        try:
            copier.abort_disk_copy(move.instance_id, request.volume_id, disk)
            failpoint("attach.swap.aborted")
            copy = copier.disk_copy(move.instance_id, request.volume_id, disk)
        except (DeviceNotFound, GuestNotFound):
            return False
        if copy.phase in {CopyPhase.COPYING, CopyPhase.READY}:
            raise Conflict(
                f"volume {request.volume_id} of instance {move.instance_id} is still copied to "
                f"{request.new_volume_id} ({copy.done} of {copy.total} bytes), though that was ended; look at the "
                f"guest's block jobs, then recover() undoes the swap",
                identifier=request.volume_id,
            )
        return copy.phase is CopyPhase.DONE

    # --- copying ------------------------------------------------------------------------------------------------------

    def _copy(self, lease: Lease, move: Move, on_progress: OnProgress | None) -> None:
        request, copier = SwapRequest.of(move), self._copier(move.source)
        disk = self._disk(lease, move, self._stage(lease, move))
        copy = copier.copy_disk(move.instance_id, request.volume_id, disk)
        failpoint("attach.swap.copying")
        pause = _FIRST_LOOK
        while copy.phase is CopyPhase.COPYING:
            if on_progress is not None:
                on_progress(copy.done, copy.total)
            self._leases.wait(pause)
            lease.require()
            pause = min(2 * pause, _LAST_LOOK)
            copy = copier.disk_copy(move.instance_id, request.volume_id, disk)
        if copy.phase is CopyPhase.NONE:
            raise Conflict(
                f"volume {request.volume_id} of instance {move.instance_id} is copied to {request.new_volume_id} no "
                f"more: the copy failed, somebody ended it, or the guest stopped. The guest keeps the old volume; once "
                f"it runs, swap it again",
                identifier=request.volume_id,
            )
        if on_progress is not None:
            on_progress(copy.done, copy.total)

    def _stage(self, lease: Lease, move: Move) -> Attachment:
        """The new volume's leg: mapped to the host and connected, and not yet the guest's."""
        existing = self._new_leg(move)
        if existing is not None and existing.interrupted:
            self._recovery.salvage(lease, existing)
            existing = self._new_leg(move)
        if existing is not None:
            return existing
        request, now = SwapRequest.of(move), self._journal.now()
        old, new = self._leg_of(request), self._volumes.volume(request.new_volume_id)
        settings = attrs.evolve(
            old.settings,
            size=new.size,
            service_uuid=new.service_uuid,
            shared_targets=new.shared_targets,
            held_before=False,
            delete_on_termination=False,  # the instance does not have it yet
        )
        staged = attrs.evolve(
            old,
            id=self._new_id(),
            volume_id=new.id,
            role="next",
            state=State.CREATING,
            service_id=None,
            operation_id=None,
            fingerprint=None,
            version=0,
            settings=settings,
            device=None,
            note=None,
            created_at=now,
            updated_at=now,
        )
        self._journal.database.run(lambda connection: self._journal.begin(connection, staged))
        failpoint("attach.swap.begun")
        result = self._driver.run(lease, staged, Instruction.CREATE, release=False)
        if result.leg.state is State.STAGED:
            return result.leg
        raise self._failure(result)

    def _pivot(self, lease: Lease, move: Move) -> None:
        disk = self._disk(lease, move, self._require_new_leg(move))
        self._copier(move.source).pivot_disk(move.instance_id, SwapRequest.of(move).volume_id, disk)

    def _disk(self, lease: Lease, move: Move, leg: Attachment) -> Disk:
        """The guest's disk, as before, with the bytes of *leg*."""
        return attrs.evolve(self._driver.disk(lease, leg), volume_id=SwapRequest.of(move).volume_id)

    # --- forward ------------------------------------------------------------------------------------------------------

    def _finish(self, lease: Lease, move: Move, *, force: bool = False) -> Attachment:
        """The guest has changed over: end what was, and say so."""
        lease.require()
        if move.phase != "completing":
            if not self._lost(move):
                with suppress(DeviceNotFound, GuestNotFound):
                    self._pivot(lease, move)  # so that both definitions have it, whatever died in between
            move = self._enter(lease, move, "completing")
        new = self._take_over(lease, move)
        self._end_old(lease, move, force=force)
        failpoint("attach.swap.ended")
        new = self._settle_name(lease, move, new)
        self._tell_size(move, new)
        self._rows.end(move, lease)
        return new

    def _take_over(self, lease: Lease, move: Move) -> Attachment:
        """Let the new leg be the instance's and the old one be past, in one transaction."""
        new = self._require_new_leg(move)
        if new.role == "main":
            return new
        old = self._leg_of(SwapRequest.of(move))

        def leave(connection: Connection) -> None:
            past = attrs.evolve(
                old,
                role="past",
                state=State.DISCONNECTING,
                settings=attrs.evolve(old.settings, held_before=False),  # nobody wants the old volume any more
                version=old.version + 1,
                updated_at=self._journal.now(),
            )
            self._journal.replace(connection, lease, old, past, Event.LEFT)

        failpoint("attach.swap.take_over")
        wish = attrs.evolve(new.settings, delete_on_termination=old.settings.delete_on_termination)
        new, _ = self._journal.advance(lease, new, Event.ARRIVED, role="main", settings=wish, with_others=leave)
        failpoint("attach.swap.taken_over")
        return new

    def _end_old(self, lease: Lease, move: Move, *, force: bool) -> None:
        request = SwapRequest.of(move)
        for leg in self._journal.select(volume_id=request.volume_id, instance_id=move.instance_id):
            if leg.role == "past" and leg.interrupted:
                result = self._recovery.salvage(lease, leg, force=force)
                if result.leg.state is not State.ABSENT:
                    raise self._failure(result)

    def _settle_name(self, lease: Lease, move: Move, new: Attachment) -> Attachment:
        """Under which id the volume goes on: of a migration the old one, by the service's word."""
        request = SwapRequest.of(move)
        if request.migration:
            self._require_left(request)
            try:
                kept = self._volumes.complete_migration(request.volume_id, request.new_volume_id)
            except (
                NotMigrating,
                VolumeNotFound,
            ):  # somebody has given the migration up: the new volume is one like others
                kept = request.new_volume_id
            failpoint("attach.swap.told")
            if kept == request.volume_id:
                return self._renamed(lease, new, kept)
        if not self._lost(move):
            with suppress(DeviceNotFound, GuestNotFound):
                copier = self._copier(move.source)
                copier.rename_disk(move.instance_id, request.volume_id, request.new_volume_id)
        return new

    def _require_left(self, request: SwapRequest) -> None:
        """Check that nobody uses the bytes that the service will delete.

        Raises:
            InUse: Somebody does.
        """
        users = self._users(request.volume_id, besides=request.instance_id)
        if users:
            raise InUse(
                f"the guest of instance {request.instance_id} has left volume {request.volume_id} for "
                f"{request.new_volume_id}, and {', '.join(users)} use it: the service would delete it under them. "
                f"Detach it there; then recover() finishes the swap",
                identifier=request.volume_id,
                users=users,
            )

    def _renamed(self, lease: Lease, leg: Attachment, volume_id: str) -> Attachment:
        if leg.volume_id == volume_id:
            return leg
        if self._driver.serves(leg.host):
            keeper = self._driver.host(leg).connector
            if isinstance(keeper, ConnectionKeeper):
                keeper.rename(leg.volume_id, volume_id)
        after = attrs.evolve(leg, volume_id=volume_id, version=leg.version + 1, updated_at=self._journal.now())
        self._journal.database.run(lambda c: self._journal.replace(c, lease, leg, after, "migrated"))
        failpoint("attach.swap.renamed")
        return after

    def _tell_size(self, move: Move, leg: Attachment) -> None:
        """A larger volume: the guest is told."""
        volume_id, size = SwapRequest.of(move).volume_id, leg.settings.size
        legs = self._journal.select(volume_id=volume_id, instance_id=move.instance_id, absent=True)
        before = next((old.settings.size for old in reversed(legs) if old.role == "past"), size)
        if size > before and not self._lost(move):
            with suppress(DeviceNotFound, GuestNotFound):
                self._driver.host(leg).guests.resize_disk(leg.instance_id, leg.volume_id, size)

    # --- back ---------------------------------------------------------------------------------------------------------

    def _undo(self, lease: Lease, move: Move, *, force: bool = False) -> None:
        """The guest has not changed over, and will not: end the new leg, and say so."""
        lease.require()
        move = self._enter(lease, move, "undoing")
        request = SwapRequest.of(move)
        new = self._new_leg(move)
        if new is not None:
            if new.interrupted:
                result = self._recovery.salvage(lease, new, force=force)
            else:
                result = self._recovery.lead_away(lease, new, Event.UNDO, note="the swap is undone", force=force)
            if result.leg.state is not State.ABSENT:
                raise self._failure(result)
        failpoint("attach.swap.undone")
        if request.migration:
            with suppress(NotMigrating, VolumeNotFound):  # somebody has given it up already
                self._volumes.complete_migration(request.volume_id, request.new_volume_id, error=True)
        self._rows.end(move, lease)

    # --- looking ------------------------------------------------------------------------------------------------------

    def _volumes_of(self, request: SwapRequest) -> AbstractContextManager[Lease]:
        return self._leases.hold(sorted(map(volume_lock, (request.volume_id, request.new_volume_id))))

    def _enter(self, lease: Lease, move: Move, phase: str) -> Move:
        if move.phase != phase:
            self._rows.set_phase(move, phase, lease)
        return attrs.evolve(move, phase=phase)

    def _lost(self, move: Move) -> bool:
        """Whether the host is dead. It is asked first.

        Raises:
            WrongHost: It is not served here, and not known to be dead.
            CloudcoreError: It cannot be reached, and is not known to be dead.
        """
        legs = self._journal.select(instance_id=move.instance_id)
        return not legs or self._recovery.guest_says(move.source, legs[0]) is None

    def _leg_of(self, request: SwapRequest) -> Attachment:
        found = self._journal.select(volume_id=request.volume_id, instance_id=request.instance_id)
        main = next((leg for leg in found if leg.role == "main"), None)
        if main is None:
            raise AttachmentNotFound(
                f"instance {request.instance_id} does not have volume {request.volume_id}", identifier=request.volume_id
            )
        return main

    def _new_leg(self, move: Move) -> Attachment | None:
        """The new volume's, wherever it is; after the service has renamed it, too."""
        request = SwapRequest.of(move)
        found = self._journal.select(volume_id=request.new_volume_id, instance_id=move.instance_id)
        if not found and move.phase == "completing":
            found = self._journal.select(volume_id=request.volume_id, instance_id=move.instance_id)
        return next((leg for leg in found if leg.role != "past"), None)

    def _require_new_leg(self, move: Move) -> Attachment:
        found = self._new_leg(move)
        if found is None:
            raise Conflict(
                f"instance {move.instance_id} has no attachment of the volume that its swap was for ({move.note}), "
                f"though it is {move.phase}; audit() says what it has instead",
                identifier=move.instance_id,
            )
        return found

    def _users(self, volume_id: str, *, besides: str | None) -> list[str]:
        """Instances that have the volume, by the journal or by the service."""
        users = {leg.instance_id for leg in self._journal.select(volume_id=volume_id)}
        users |= {str(record.instance_id) for record in self._volumes.attachments(volume_id=volume_id)}
        return sorted(users - {besides})

    def _copier(self, host: str | None) -> DiskCopier:
        guests = self._driver.host_named(str(host)).guests
        if not isinstance(guests, DiskCopier):
            raise UnsupportedFeature(
                f"the hypervisor of {host} copies no disks under running guests", needed="block copy"
            )
        return guests

    def _failure(self, result: Result) -> CloudcoreError:
        return failure(result.leg, result.error, "swap", self._journal.story(result.leg.id))


def _raise_first(found: Sequence[Violation]) -> None:
    if found:
        error = found[0].as_error()
        for violation in found[1:]:
            error.add_note(f"also: {violation.code}: {violation.message}")
        raise error


def _same(move: Move, request: SwapRequest) -> bool:
    return move.kind == "swap" and SwapRequest.of(move) == attrs.evolve(
        request, migration=SwapRequest.of(move).migration
    )
