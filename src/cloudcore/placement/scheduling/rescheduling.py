"""Reschedule inside the cell: give up the host that failed and take the next alternate, in one transaction.

Needs the ledger's database and the selection, nothing else: no tree, no scheduler, no call to anything above the cell.
Which hosts were tried, and why each was given up, is kept in the same transaction.
One module: the values, the one transaction, and the story that it keeps.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_integer, require_portion, require_text, require_utc
from cloudcore.database import Operation
from cloudcore.errors import (
    CapacityExceeded,
    DatabaseBusy,
    GenerationConflict,
    GroupViolation,
    InUse,
    InvalidArgument,
    InvalidRequest,
    InvalidSelection,
    InvalidTransition,
    InventoryNotFound,
    MaxRetriesExceeded,
    MoveNotFound,
    ProviderNotFound,
    UnitViolation,
)
from cloudcore.placement.hosts.selection import Selection
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.writes import Target, in_uuids, missing
from cloudcore.placement.rules.claims import normalise_allocations, total_by_class
from cloudcore.placement.rules.moves import MoveEvent
from cloudcore.placement.tables import host_attempts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.placement.allocation_ledger import AllocationLedger
    from cloudcore.placement.hosts.selection import HostChoice
    from cloudcore.placement.ledger.session import Session
    from cloudcore.placement.rules.claims import Allocations
    from cloudcore.placement.rules.groups import HostGroup

__all__ = [
    "Attempt",
    "Failure",
    "FailureKind",
    "Rescheduled",
    "attempts",
    "forget_attempts",
    "next_choices",
    "prune_attempts",
    "reschedule",
]


class FailureKind(StrEnum):
    """Whether another host would do any better."""

    HOST = "host"  # the host could not: another one may
    POLICY = "policy"  # the group's policy was found broken on arrival: another one may
    ABORT = "abort"  # the request is at fault (bad image, no addresses left): every host would fail


def _kind(value: FailureKind | str) -> FailureKind:
    try:
        return FailureKind(value)
    except ValueError as error:
        raise InvalidArgument(
            f"kind: {value!r} is none of {', '.join(FailureKind)}", field="kind", value=value
        ) from error


@attrs.frozen
class Failure:
    """Why the instance does not run on the host that was claimed for it.

    Attributes:
        reason: In words, for the story of the instance; up to 2,000 characters.
        kind: Whether another host is worth a try.
    """

    reason: str = attrs.field()
    kind: FailureKind = attrs.field(default=FailureKind.HOST, converter=_kind, kw_only=True)

    @reason.validator
    def _check_reason(self, _: Any, value: str) -> None:
        require_text(value, "reason", maximum=2000)


@attrs.frozen(kw_only=True)
class Attempt:
    """One host of a selection that was tried.

    Attributes:
        root, name: The host's root provider.
        outcome: ``"failed"`` (claimed, and the instance did not start), ``"refused"`` (the claim was not granted) or
            ``"claimed"``.
        reason: In words.
        at: When, by the database's clock; None in the answer of the call that made it.
    """

    root: str
    name: str
    outcome: str
    reason: str
    at: datetime | None = None


@attrs.frozen(kw_only=True)
class Rescheduled:
    """Where the instance goes next.

    Attributes:
        choice: The alternate that is claimed now.
        remaining: Alternates that are left after it.
        attempts: Every host of the selection that was tried so far, oldest first.
        repeated: An earlier call with the same operation id had done this already.
    """

    choice: HostChoice
    remaining: tuple[HostChoice, ...]
    attempts: tuple[Attempt, ...]
    repeated: bool = False


_REFUSALS = (CapacityExceeded, UnitViolation, ProviderNotFound, InventoryNotFound, GroupViolation)


def next_choices(
    selection: Selection, held: Mapping[str, Mapping[str, int]], tried: Sequence[str] = (), hosts: Collection[str] = ()
) -> tuple[HostChoice, tuple[HostChoice, ...]]:
    """The choice whose allocations are *held*, and those after it whose roots are not among *tried*. Pure.

    A host that was reshaped since gives the same amounts by other providers: *hosts* are the roots of what is held.

    Raises:
        GenerationConflict: What is held is no choice of the selection.
    """
    for place, choice in enumerate(selection.choices):
        if choice.allocations == held or (choice.root in hosts and _same_amounts(choice.allocations, held)):
            later = selection.choices[place + 1 :]
            return choice, tuple(other for other in later if other.root not in tried)
    raise GenerationConflict(
        f"instance {selection.instance} holds {dict(held)}, which is no choice of this selection; "
        "it was rescheduled or moved by somebody else",
        identifier=selection.instance,
    )


def _same_amounts(one: Allocations, other: Allocations) -> bool:
    return total_by_class(one) == total_by_class(other)


def reschedule(
    ledger: AllocationLedger,
    selection: Selection,
    instance: str | None = None,
    *,
    failed: Failure | str,
    migration: str | None = None,
    max_attempts: int | None = None,
    operation_id: str | None = None,
) -> Rescheduled:
    """Give up the host that the instance holds and claim the next alternate of its selection.

    A hard policy of the group that the instance belongs to is checked again for each alternate.

    All in one transaction: the failed host's allocation is freed if and only if the next one is granted, or nothing is
    left to try. Then the instance gives everything back, or with *migration* returns to its source.

    Args:
        ledger: Where the instance's allocation is. May be shared between threads.
        selection: As the scheduler gave it, from :meth:`Selection.from_json <.selection.Selection.from_json>` say.
        instance: Its uuid, to be sure that the selection is the right one.
        failed: Why the present host is given up; text means that another host may do.
        migration: Uuid of the migration, when the instance is moving: its hold of the source stays.
        max_attempts: Hosts that may be tried in all, the primary included; None for all of them.
        operation_id: To repeat the call safely.

    Raises:
        MaxRetriesExceeded: No alternate is left, or the failure is not worth another host; ``attempts`` is the whole
            story. Everything was given back (with *migration*: the source is held again).
        ConsumerNotFound: The instance holds nothing: it was deleted meanwhile, and stays so.
        GenerationConflict: It holds something that is no choice of this selection.
        InvalidSelection: The selection is another instance's.
        InUse: The instance is moving, and *migration* was not given: this failure is out of date.
        MoveNotFound: No move of *migration* is recorded, or it is another instance's.
        InvalidTransition: The move is over, or the pending claim has expired.
    """
    if not isinstance(selection, Selection):
        raise InvalidSelection(
            f"selection: expected a Selection, such as Selection.from_json(text), got {selection!r}", field="selection"
        )
    uuid = selection.instance
    if instance is not None and normalise_uuid(instance, "instance") != uuid:
        raise InvalidSelection(f"the selection is that of instance {uuid}, not of {instance}", field="instance")
    failure = failed if isinstance(failed, Failure) else Failure(failed)
    moving = None if migration is None else normalise_uuid(migration, "migration")
    digest = hashlib.sha256(selection.to_json().encode()).hexdigest()
    if max_attempts is not None:
        require_integer(max_attempts, "max_attempts", minimum=1)
    work = _Work(ledger, selection, digest, failure, moving, max_attempts)
    arguments = {
        "selection": digest,
        "reason": failure.reason,
        "kind": str(failure.kind),
        "migration": moving,
        "max_attempts": max_attempts,
    }
    operation = Operation.of("ledger.reschedule", arguments, operation_id)
    outcome = ledger.transact(operation, lambda session: work(session, operation.id))
    return _answer(selection, outcome.result, repeated=outcome.repeated)


def attempts(ledger: AllocationLedger, instance: str) -> tuple[Attempt, ...]:
    """Every host that was tried for *instance*, over all its selections, oldest first."""
    uuid = normalise_uuid(instance, "instance")
    chosen = sa.select(host_attempts).where(host_attempts.c.instance == uuid).order_by(host_attempts.c.id)
    with ledger.database.read() as connection:
        return tuple(
            Attempt(root=row.root, name=row.name, outcome=row.outcome, reason=row.reason, at=row.recorded_at)
            for row in connection.execute(chosen)
        )


@attrs.frozen
class _Work:
    """What one call does in its transaction."""

    ledger: AllocationLedger
    selection: Selection
    digest: str
    failure: Failure
    migration: str | None
    max_attempts: int | None

    def __call__(self, session: Session, operation_id: str) -> dict[str, Any]:
        """Try the alternates that are left, in their order; return the answer as JSON."""
        group = self._lock_group(session)
        held = self._held(session)
        if host_groups.group_of(session, self.selection.instance) != group:
            raise self._regrouped()
        story = self._story(session)
        tried = [attempt.root for attempt in story]
        present, later = next_choices(self.selection, held, tried, host_groups.hosts_of(session, held))
        story.append(self._note(session, operation_id, present, "failed", self.failure.reason))
        if self.failure.kind is FailureKind.ABORT:
            later = ()
        elif self.max_attempts is not None:
            later = later[: max(0, self.max_attempts - self.selection.choices.index(present) - 1)]
        for number, choice in enumerate(later):
            reason = self._try(session, operation_id, choice, held, group)
            if reason is None:
                story.append(self._note(session, operation_id, choice, "claimed", ""))
                return self._result(choice, later[number + 1 :], story)
            story.append(self._note(session, operation_id, choice, "refused", reason))
        self._give_up(session, operation_id)
        return self._result(None, (), story)

    def _lock_group(self, session: Session) -> HostGroup | None:
        """The group of the instance; it is locked before the instance, as by whoever joins it."""
        group = host_groups.group_of(session, self.selection.instance)
        if group is not None:
            try:
                host_groups.lock_group(session, group)
            except InvalidRequest as error:  # it was forgotten and made anew with another policy
                raise self._regrouped() from error
        return group

    def _regrouped(self) -> DatabaseBusy:
        return DatabaseBusy(f"instance {self.selection.instance} changed its group just then; repeat the call")

    def _held(self, session: Session) -> Mapping[str, Mapping[str, int]]:
        """What the instance holds, locked with the other half of its move, which must be the one that was named."""
        uuid = self.selection.instance
        row = ledger_moves.lock(session, [uuid]).get(uuid)
        if row is None or row.retired:
            raise missing(uuid)
        self._check_move(session)
        return in_uuids(session, session.holdings([row]))[uuid]

    def _check_move(self, session: Session) -> None:
        uuid = self.selection.instance
        held = ledger_moves.held_move(session, uuid)
        if self.migration is None:
            if held is not None:
                raise InUse(
                    f"instance {uuid} is moving, by migration {held.migration}: this failure is out of date, or "
                    "belongs to the move; then give migration=",
                    identifier=uuid,
                    users=(held.migration,),
                    kind="move",
                )
            return
        move = ledger_moves.find_move(session, self.migration)
        if move is None or move.instance != uuid:
            raise MoveNotFound(f"no move of instance {uuid} by migration {self.migration}", identifier=self.migration)
        if held is None or held.migration != self.migration:
            raise InvalidTransition(
                f"move {self.migration} of instance {uuid} is {move.state}: it takes no other destination",
                identifier=self.migration,
                state=str(move.state),
                event="reschedule",
                story=move.story,
            )

    def _story(self, session: Session) -> list[Attempt]:
        rows = session.all(
            "SELECT root, name, outcome, reason FROM host_attempts WHERE instance = ? AND selection = ? ORDER BY id",
            (self.selection.instance, self.digest),
        )
        return [Attempt(root=row[0], name=row[1], outcome=row[2], reason=row[3]) for row in rows]

    def _try(
        self,
        session: Session,
        operation_id: str,
        choice: HostChoice,
        held: Mapping[str, Mapping[str, int]],
        group: HostGroup | None,
    ) -> str | None:
        """Swap what is held for *choice*; on a refusal undo what the try wrote, and say why."""
        uuid = self.selection.instance
        target = Target(allocations=normalise_allocations(choice), expected=held)
        failpoint("ledger.reschedule.try")
        savepoint = session.connection.begin_nested()  # ended by hand: after a deadlock MariaDB has none to go back to
        try:
            if group is not None:
                members = host_groups.count_members(session, group, without=[uuid])
                host_groups.join(session, group, uuid, choice.root, members)
            history = self.ledger.history
            ledger_moves.write(session, operation_id, "reschedule", {uuid: target}, history=history, must_exist=True)
        except _REFUSALS as refusal:
            savepoint.rollback()
            return str(refusal)
        savepoint.commit()
        return None

    def _give_up(self, session: Session, operation_id: str) -> None:
        """Give everything back; an instance that is moving holds its source again."""
        failpoint("ledger.reschedule.give_up")
        history = self.ledger.history
        if self.migration is not None:
            ledger_moves.step(session, operation_id, self.migration, MoveEvent.REVERT, proof=None, history=history)
            return
        targets = {self.selection.instance: Target(allocations={})}
        ledger_moves.write(session, operation_id, "reschedule", targets, history=history, must_exist=True)

    def _note(self, session: Session, operation_id: str, choice: HostChoice, outcome: str, reason: str) -> Attempt:
        failpoint("ledger.reschedule.note")
        session.run(
            "INSERT INTO host_attempts (instance, selection, root, name, outcome, reason, operation_id, recorded_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, {now})",
            (
                self.selection.instance,
                self.digest,
                choice.root,
                choice.name,
                outcome,
                reason,
                operation_id,
            ),
        )
        return Attempt(root=choice.root, name=choice.name, outcome=outcome, reason=reason)

    def _result(
        self, choice: HostChoice | None, remaining: Sequence[HostChoice], story: Sequence[Attempt]
    ) -> dict[str, Any]:
        places = {other.root: place for place, other in enumerate(self.selection.choices)}
        return {
            "choice": None if choice is None else places[choice.root],
            "remaining": [places[other.root] for other in remaining],
            "attempts": [attrs.asdict(attempt, filter=lambda field, _: field.name != "at") for attempt in story],
        }


def prune_attempts(ledger: AllocationLedger, older_than: datetime, *, limit: int = 10_000) -> int:
    """Forget attempts made before *older_than*, at most *limit*, and of as many groups what holds nothing any more.

    A member is forgotten when neither it nor a move of it holds anything, whatever its age; a group, when it has no
    member. Claims go on meanwhile: see :func:`~cloudcore.placement.ledger.host_groups.forget_groups`.

    Returns:
        How many attempts were forgotten.

    Raises:
        InvalidArgument: See :func:`forget_attempts`; nothing was forgotten.
    """
    require_utc(older_than, "older_than")
    require_portion(limit)
    host_groups.forget_groups(ledger.database, limit=limit)
    return forget_attempts(ledger.database, older_than, limit=limit)


def forget_attempts(database: Database, older_than: datetime, *, limit: int = 10_000) -> int:
    """Forget attempts made before *older_than*, at most *limit*; return how many.

    Raises:
        InvalidArgument: *older_than* has no time zone, or *limit* is not from 1 to 30,000.
    """
    instant = require_utc(older_than, "older_than")
    old = sa.select(host_attempts.c.id).where(host_attempts.c.recorded_at < instant).limit(require_portion(limit))

    def work(connection: Connection) -> int:
        ids = list(connection.scalars(old))
        if not ids:
            return 0
        return connection.execute(sa.delete(host_attempts).where(host_attempts.c.id.in_(ids))).rowcount

    return database.run(work)


def _answer(selection: Selection, result: Mapping[str, Any], *, repeated: bool) -> Rescheduled:
    story = tuple(Attempt(**attempt) for attempt in result["attempts"])
    place = result["choice"]
    if place is None:
        told = "; ".join(f"{attempt.name}: {attempt.reason}" for attempt in story if attempt.reason)
        raise MaxRetriesExceeded(
            f"instance {selection.instance}: no alternate is left in cell {selection.cell} ({told})", attempts=story
        )
    return Rescheduled(
        choice=selection.choices[place],
        remaining=tuple(selection.choices[number] for number in result["remaining"]),
        attempts=story,
        repeated=repeated,
    )
