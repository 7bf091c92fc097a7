"""The ledger's calls about moves: begun, confirmed, reverted, abandoned, and ended when their time is over."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_text
from cloudcore.database import Operation
from cloudcore.errors import InvalidAllocation, InvalidArgument, InvalidTransition
from cloudcore.observability import observed
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.transactions import LedgerTransactions, read_seconds
from cloudcore.placement.rules.claims import normalise_allocations, provider_uuid, require_generation
from cloudcore.placement.rules.moves import Move, MoveEvent, MoveKind, MoveState, Overlap, move_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from cloudcore.placement.ledger.session import Session
    from cloudcore.placement.rules.claims import Allocations, Candidate

__all__ = ["Expired", "LedgerMoves"]


@attrs.frozen(kw_only=True)
class Expired:
    """What :meth:`AllocationLedger.expire` ended.

    Attributes:
        consumers: Whose pending claims were released.
        migrations: Whose moves were reverted.
    """

    consumers: tuple[str, ...]
    migrations: tuple[str, ...]


class LedgerMoves(LedgerTransactions):
    """The half of :class:`~cloudcore.placement.AllocationLedger` that moves instances; threads may share it."""

    @observed("placement.begin_move", "instance", "migration", "operation_id", level=logging.INFO)
    def begin_move(
        self,
        instance: str,
        migration: str,
        destination: Candidate | Allocations,
        *,
        kind: MoveKind | str = MoveKind.COLD,
        overlap: Overlap = "sum",
        shared: Collection[str] = (),
        expires_in: float | None = None,
        generation: int | None = None,
        operation_id: str | None = None,
    ) -> Move:
        """Hand what *instance* holds to *migration* and give the instance *destination*, in one transaction.

        The destination may be on the host that the instance is on: then both halves count there, as in Nova's resize to
        the same host, unless *overlap* says otherwise. A search knows nothing of the instance and may well name that
        host; :meth:`HostSelector.select_destination` never does, and refreshes its tree, which ``tree.candidates`` does
        not.

        Args:
            instance: Uuid of the instance; it must hold something.
            migration: Uuid of the migration; it must be unused.
            destination: What the instance shall hold at the destination.
            kind: ``cold``, ``resize``, ``live`` (the shape stays the same) or ``evacuation`` (the source is held until
                it is proved gone).
            overlap: What a provider on both sides must fit: the ``sum`` (safe), or the ``maximum`` of each class, where
                the host guarantees that the two are never live together.
            shared: Providers of the source that hold the same thing for a destination that has them too (shared
                storage): counted as ``maximum``.
            expires_in: Seconds after which the move reverts by itself unless it was ended, by the database's clock.
            generation: The instance's generation read last; None for any.
            operation_id: See :meth:`claim`.

        Raises:
            ConsumerNotFound: The instance holds nothing: there is nothing to move.
            InUse: The instance is moving already.
            AlreadyExists: The migration is known with other arguments, or holds something.
            InvalidTransition: The migration is over, or its time is.
            GroupViolation: The instance belongs to a group, and its policy allows no member on a host of *destination*.
            CloudcoreError: As :meth:`claim` does for everything else.
        """
        wanted = normalise_allocations(destination)
        asked = ledger_moves.MoveRequest(
            migration=normalise_uuid(migration, "migration", InvalidAllocation),
            instance=normalise_uuid(instance, "instance", InvalidAllocation),
            destination=wanted,
            kind=move_kind(kind),
            overlap=_overlap(overlap),
            shared=_shared(shared),
            expires_in=read_seconds(expires_in, "expires_in"),
            generation=None if generation is None else require_generation(generation, "generation"),
        )
        if asked.migration == asked.instance:
            raise InvalidAllocation("the migration needs a uuid of its own", field="migration")

        operation = Operation.of("ledger.begin_move", attrs.asdict(asked), operation_id, id_factory=self._id_factory)
        outcome = self._begin(operation, asked)
        return ledger_moves.move_from_json(outcome.result, repeated=outcome.repeated)

    @observed("placement.confirm_move", "migration", "operation_id", level=logging.INFO)
    def confirm_move(self, migration: str, *, proof: str | None = None, operation_id: str | None = None) -> Move:
        """End a move at the destination: the source is free. A repeat changes nothing.

        Args:
            migration: Uuid of the migration.
            proof: For an evacuation: who proved the source gone, and how. Kept in the story.
            operation_id: See :meth:`claim`.

        Raises:
            MoveNotFound: No such move.
            InvalidTransition: It was reverted, abandoned, has expired, or its instance was released.
            FencingRequired: An evacuation without proof.
        """
        return self._step(MoveEvent.CONFIRM, migration, operation_id, proof)

    @observed("placement.revert_move", "migration", "operation_id", level=logging.INFO)
    def revert_move(self, migration: str, *, operation_id: str | None = None) -> Move:
        """End a move at the source: the instance holds again what it held, the destination is free.

        Never refused for capacity: the source was held all the time. A repeat changes nothing.

        Raises:
            MoveNotFound: No such move.
            InvalidTransition: It was confirmed or abandoned, or its instance was released: nothing is brought back.
        """
        return self._step(MoveEvent.REVERT, migration, operation_id, None)

    @observed("placement.abandon_move", "migration", "operation_id", level=logging.INFO)
    def abandon_move(self, migration: str, *, proof: str | None = None, operation_id: str | None = None) -> Move:
        """Give up a move and its instance: both halves are free. A repeat changes nothing.

        Raises:
            MoveNotFound, InvalidTransition, FencingRequired: As for :meth:`confirm_move`.
        """
        return self._step(MoveEvent.ABANDON, migration, operation_id, proof)

    @observed("placement.expire", "limit", level=logging.INFO)
    def expire(self, *, limit: int = 100, operation_id: str | None = None) -> Expired:
        """Release pending claims and revert moves whose time is over by the database's clock. Call it now and then.

        Each is an operation of its own, so a crash in between loses nothing; what was settled or ended just in time
        is left alone.

        Raises:
            InvalidArgument: *limit* is no number above 0.
        """
        require_integer(limit, "limit", minimum=1)
        consumers, migrations = self._read(lambda session: ledger_moves.overdue(session, limit))
        prefix = operation_id or self._id_factory()
        done = [uuid_ for uuid_ in consumers if self._expire_claim(uuid_, _derived(prefix, uuid_))]
        moved = [uuid_ for uuid_ in migrations if self._expire_move(uuid_, _derived(prefix, uuid_))]
        return Expired(consumers=tuple(done), migrations=tuple(moved))

    def _expire_claim(self, consumer: str, operation_id: str) -> bool:
        def work(session: Session, operation: str) -> Any:
            return ledger_moves.expire_claim(session, operation, consumer, history=self.history)

        return bool(self._operate("expire", {"consumer": consumer}, work, operation_id)[0])

    def _expire_move(self, migration: str, operation_id: str) -> bool:
        try:
            return self._step(MoveEvent.EXPIRE, migration, operation_id, None).state is MoveState.EXPIRED
        except InvalidTransition:
            return False  # somebody ended it just in time

    def _move(
        self, name: str, arguments: Mapping[str, Any], work: Callable[[Session, str], Any], operation_id: str | None
    ) -> Move:
        result, repeated = self._operate(name, arguments, work, operation_id)
        return ledger_moves.move_from_json(result, repeated=repeated)

    def _step(self, event: MoveEvent, migration: str, operation_id: str | None, proof: str | None) -> Move:
        uuid_ = normalise_uuid(migration, "migration", InvalidAllocation)
        if proof is not None:
            require_text(proof, "proof", maximum=2000)

        def work(session: Session, operation: str) -> Any:
            return ledger_moves.step(session, operation, uuid_, event, proof=proof, history=self.history)

        return self._move(f"{event}_move", {"migration": uuid_, "proof": proof}, work, operation_id)


def _derived(operation_id: str, subject: str) -> str:
    """The id of one part of an operation: the same for the same part, and short enough."""
    return hashlib.sha256(f"{operation_id}/{subject}".encode()).hexdigest()


def _shared(providers: Collection[str]) -> tuple[str, ...]:
    if isinstance(providers, str) or not isinstance(providers, Iterable):
        raise InvalidAllocation(
            f"shared: expected a collection of uuids, got {providers!r}", field="shared", value=providers
        )
    return tuple(sorted({provider_uuid(provider, "shared") for provider in providers}))


def _overlap(value: Overlap) -> Overlap:
    if value not in ("sum", "maximum"):  # whatever it is, and be it not hashable
        raise InvalidArgument(f"overlap: {value!r} is neither sum nor maximum", field="overlap", value=value)
    return value
