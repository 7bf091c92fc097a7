"""AllocationLedger: who holds what. Claim it, move it, give it back, exactly once."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_name, require_text
from cloudcore.database import Database, Operation, Outcome
from cloudcore.errors import InvalidAllocation, InvalidArgument, InvalidTransition, MoveNotFound, OutcomeUnknown
from cloudcore.observability import observed
from cloudcore.placement.forest.values import Inventory
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.auditing import Writers, apply_repair
from cloudcore.placement.ledger.claim_statements import NewClaim, claim_by_statements, claim_in_one_statement
from cloudcore.placement.ledger.compound_blocks import begin_in_one_block, claim_in_one_block, runs_blocks
from cloudcore.placement.ledger.group_claims import claim_group
from cloudcore.placement.ledger.group_commit import GroupCommit
from cloudcore.placement.ledger.move_statement import begin_in_one_statement, is_usual
from cloudcore.placement.ledger.reader import LedgerReader, consumer_uuid
from cloudcore.placement.ledger.reshape import Reshape, reshape
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.ledger.writes import NEW, Target, settle
from cloudcore.placement.rules.audit import plan_repairs
from cloudcore.placement.rules.claims import Held, Owner, normalise_allocations
from cloudcore.placement.rules.moves import Move, MoveEvent, MoveKind, MoveState, Overlap
from cloudcore.placement.storage.generations import require_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.observability import Observer
    from cloudcore.placement.ledger.group_commit import Ticket
    from cloudcore.placement.rules.audit import Finding, Repair
    from cloudcore.placement.rules.claims import Allocations, Candidate
    from cloudcore.placement.storage.generations import Generations

__all__ = ["AllocationLedger", "Expired"]

T = TypeVar("T")


def _told(held: Held) -> dict[str, Any]:
    return {"generation": held.generation, "repeated": held.repeated}


class AllocationLedger(LedgerReader):
    """Decides who holds what, in a SQL database; what anybody else knows is a hint.

    Capacity is granted by one guarded UPDATE for each inventory, in a fixed order, so writers on one provider wait for
    each other but never refuse each other before it is full. Every call takes an *operation_id* or makes one: repeated
    with the same id it has no second effect and gives the same answer. What is refused leaves everything as it was.

    May be shared between threads; each process opens its own.

    Args:
        source: A database, an engine, or a URL (then :meth:`close` closes it).
        history: Whether to note what each consumer holds after each change.
        group_commit: Claims of many threads may share a transaction, this many at most; 0 for none. Worth while where
            a commit waits for the disk.
        generations: ``placement`` counts claims in the generations of providers, as Placement does; see
            :meth:`PlacementTree.open`. Claims cost a few statements more.
        id_factory: Makes operation ids, up to 64 characters; by default they begin with the time, so that new ones lie
            close together in the table and a commit touches few pages.
        observer: Is told of every call that writes; see :mod:`cloudcore.observability`.

    Example:
        >>> ledger = AllocationLedger("sqlite:///cloud.db")  # doctest: +SKIP
        >>> held = ledger.claim(instance, candidate, project_id="p", user_id="u")  # doctest: +SKIP
        >>> ledger.release(instance)  # doctest: +SKIP
    """

    def __init__(
        self,
        source: Database | str | URL | Engine,
        *,
        history: bool = True,
        group_commit: int = 0,
        generations: Generations = "cloudcore",
        id_factory: Callable[[], str] | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(source)
        self._counting = require_policy(generations)
        self.observer = observer
        self.history = history
        self._id_factory = id_factory or _operation_ids()
        self._known_providers: dict[str, int] = {}
        limit = require_integer(group_commit, "group_commit", minimum=0, maximum=10_000)
        self._group = GroupCommit(self._claim_group, limit=limit) if limit else None

    # ---- claims

    @observed("placement.claim", "consumer", "project_id", "user_id", "operation_id", level=logging.INFO, answer=_told)
    def claim(
        self,
        consumer: str,
        wanted: Candidate | Allocations,
        *,
        project_id: str,
        user_id: str,
        consumer_type: str | None = "INSTANCE",
        generation: int = NEW,
        expires_in: float | None = None,
        operation_id: str | None = None,
    ) -> Held:
        """Take *wanted* for *consumer*: all of it or nothing.

        Args:
            consumer: Uuid of who shall hold it.
            wanted: A candidate of a search, or ``{provider uuid: {class: amount}}``.
            project_id: Who pays.
            user_id: Who asked.
            consumer_type: Such as ``INSTANCE``; None for unknown.
            generation: 0 if the consumer must hold nothing yet; else the generation read last, and *wanted* takes the
                place of what it holds.
            expires_in: Seconds after which the claim lapses unless :meth:`settle` is called before, by the database's
                clock. For a consumer that holds nothing yet.
            operation_id: Chosen by the caller to repeat the call safely.

        Raises:
            CapacityExceeded: An inventory is full; the error names it, what was asked, used and its capacity.
            UnitViolation: An amount breaks min_unit, max_unit or step_size.
            ProviderNotFound, InventoryNotFound: The search that gave *wanted* was stale.
            AlreadyExists: The consumer holds something already, and *generation* is 0.
            GenerationConflict: Somebody wrote the consumer since *generation* was read.
            ConsumerRetired: The consumer was released for ever.
            InvalidAllocation: An argument is malformed.
            OperationMismatch: The operation id was used for something else.
        """
        consumer = normalise_uuid(consumer, "consumer", InvalidAllocation)
        require_integer(generation, "generation", minimum=0, error=InvalidAllocation)
        allocations = normalise_allocations(wanted)
        owner = Owner.of(project_id, user_id, consumer_type)
        seconds = _seconds(expires_in, "expires_in")
        if generation != NEW or self._counting:
            if seconds is not None and generation != NEW:
                raise InvalidAllocation("expires_in is for a consumer that holds nothing yet", field="expires_in")
            target = Target(allocations=allocations, owner=owner, generation=generation, expires_in=seconds)
            return self._write("claim", {consumer: target}, operation_id)[consumer]
        claim = NewClaim.of(consumer, allocations, owner, seconds, operation_id, self._id_factory)
        outcome = self._claim(claim) if self._group is None else self._claim_in_group(self._group, claim)
        return _held(consumer, outcome.result[consumer], repeated=outcome.repeated)

    @observed("placement.replace", "operation_id", level=logging.INFO)
    def replace(
        self,
        wanted: Mapping[str, Candidate | Allocations],
        *,
        generations: Mapping[str, int] | None = None,
        expected: Mapping[str, Allocations] | None = None,
        owners: Mapping[str, Owner] | None = None,
        project_id: str | None = None,
        user_id: str | None = None,
        consumer_type: str | None = None,
        operation_id: str | None = None,
    ) -> dict[str, Held]:
        """Make each consumer hold what *wanted* says, in one transaction; an empty mapping empties it.

        Only the net change of each inventory counts, so what passes from one consumer to another is never refused for
        capacity. An instance that is moving changes its destination; the migration goes on holding the source.

        Args:
            wanted: Consumer uuid → what it shall hold.
            generations: Consumer uuid → the generation read last (0 for "holds nothing"); others may be at any.
            expected: Consumer uuid → exactly what it must hold before the call.
            owners: Consumer uuid → who answers for it from now on: an instance and its migration may have several.
            project_id: For all that *owners* does not name, together with *user_id*. A consumer that holds nothing yet
                needs an owner, by either way; others keep theirs.
            user_id: See there.
            consumer_type: See there.
            operation_id: See :meth:`claim`.

        Raises:
            GenerationConflict: A consumer is at another generation, or does not hold what was expected.
            InUse: A consumer is a migration; its allocations belong to its move.
            See :meth:`claim` for the others.
        """
        owner = None
        if project_id is not None or user_id is not None:
            owner = Owner.of(project_id or "", user_id or "", consumer_type)
        read = {consumer_uuid(c): n for c, n in (generations or {}).items()}
        held = {consumer_uuid(c): _or_nothing(a) for c, a in (expected or {}).items()}
        named = _owners(owners)
        targets = {
            c: Target(
                allocations=a,
                owner=named.get(c, owner),
                generation=read.get(c),
                expected=held.get(c),
                settle=c in held,
            )
            for c, a in ((consumer_uuid(c), _or_nothing(a)) for c, a in wanted.items())
        }
        if not targets:
            raise InvalidAllocation("no consumer is named", field="wanted")
        _check_consumers(targets, wanted, generations=read, expected=held, owners=named)
        return self._write("replace", targets, operation_id)

    @observed("placement.swap", "consumer", "operation_id", level=logging.INFO, answer=_told)
    def swap(
        self,
        consumer: str,
        expected: Candidate | Allocations,
        wanted: Candidate | Allocations,
        *,
        operation_id: str | None = None,
    ) -> Held:
        """Give up exactly *expected* and take *wanted*, in one transaction.

        The step of a reschedule: the host that failed is freed iff the next one is granted. Works alike for an instance
        that boots and for one that moves (its migration keeps the source).

        Raises:
            ConsumerNotFound: The consumer holds nothing: it was deleted meanwhile, and stays so.
            GenerationConflict: It holds something else than *expected*.
            See :meth:`claim` for the others.
        """
        consumer = consumer_uuid(consumer)
        target = Target(allocations=normalise_allocations(wanted), expected=normalise_allocations(expected))
        return self._write("swap", {consumer: target}, operation_id, must_exist=True)[consumer]

    @observed("placement.settle", "consumer", "operation_id", level=logging.INFO)
    def settle(self, consumer: str, *, operation_id: str | None = None) -> Held:
        """Turn a pending claim into a lasting one. A claim that is lasting already stays as it is.

        Raises:
            ConsumerNotFound: It holds nothing: it was released, or expired and was swept.
            InvalidTransition: It expired before this call, by the database's clock.
        """
        consumer = consumer_uuid(consumer)

        def work(session: Session, operation: str) -> Any:
            return settle(session, operation, consumer, history=self.history)

        result, repeated = self._operate("settle", {"consumer": consumer}, work, operation_id)
        return _held(consumer, result, repeated=repeated)

    @observed("placement.release", "consumer", "forever", "operation_id", level=logging.INFO, answer=_told)
    def release(self, consumer: str, *, forever: bool = False, operation_id: str | None = None) -> Held:
        """Give back all that *consumer* holds.

        A move of it ends with both halves free; in an evacuation the migration goes on holding the source until that is
        proved gone.

        Args:
            consumer: Its uuid.
            forever: It was deleted: nothing may ever claim for it again. Needs not hold anything.
            operation_id: See :meth:`claim`.

        Raises:
            ConsumerNotFound: It holds nothing.
            InUse: It is a migration; confirm, revert or abandon its move.
        """
        consumer = consumer_uuid(consumer)
        target = Target(allocations={}, retire=forever)
        return self._write("release", {consumer: target}, operation_id, must_exist=not forever)[consumer]

    # ---- moves

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
            InvalidTransition: The migration is over.
            See :meth:`claim` for the others.
        """
        wanted = normalise_allocations(destination)
        asked = ledger_moves.MoveRequest(
            migration=normalise_uuid(migration, "migration", InvalidAllocation),
            instance=normalise_uuid(instance, "instance", InvalidAllocation),
            destination=wanted,
            kind=_kind(kind),
            overlap=_overlap(overlap),
            shared=tuple(sorted({normalise_uuid(p, "shared", InvalidAllocation) for p in shared})),
            expires_in=_seconds(expires_in, "expires_in"),
            generation=generation,
        )
        if asked.migration == asked.instance:
            raise InvalidAllocation("the migration needs a uuid of its own", field="migration")

        operation = Operation.of("ledger.begin_move", attrs.asdict(asked), operation_id, id_factory=self._id_factory)
        outcome = self._begin(operation, asked)
        return ledger_moves.move_from_json(outcome.result, repeated=outcome.repeated)

    def _begin(self, operation: Operation, asked: ledger_moves.MoveRequest) -> Outcome[Any]:
        database = self.database
        begin = self._begin_at_once(operation, asked) if is_usual(asked) and not self._counting else None
        if begin is not None:
            outcome = database.resolve(operation, begin)
            if outcome.result is not None:
                return outcome
        return self.transact(
            operation, lambda session: ledger_moves.begin(session, operation.id, asked, history=self.history)
        )

    def _begin_at_once(
        self, operation: Operation, asked: ledger_moves.MoveRequest
    ) -> Callable[[], Outcome[dict[str, Any] | None]] | None:
        """What begins a usual move in one round trip on this database, if anything does."""
        database, known, history = self.database, self._known_providers, self.history
        if database.dialect == "postgresql":
            return lambda: begin_in_one_statement(database, operation, asked, history=history)
        if runs_blocks(database):
            return lambda: begin_in_one_block(database, operation, asked, known, history=history)
        return None

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
        """
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

    @observed("placement.reshape", "operation_id", level=logging.INFO)
    def reshape(
        self,
        inventories: Mapping[str, Mapping[str, Inventory | int]],
        allocations: Mapping[str, Candidate | Allocations],
        *,
        provider_generations: Mapping[str, int] | None = None,
        generations: Mapping[str, int] | None = None,
        owners: Mapping[str, Owner] | None = None,
        operation_id: str | None = None,
    ) -> dict[str, int]:
        """Replace inventories and allocations together, in one transaction.

        Args:
            inventories: Provider uuid → its whole new set, class → inventory or total.
            allocations: Consumer uuid → all that it shall hold; consumers not named keep what they hold.
            provider_generations: Provider uuid → the generation read last; others may be at any.
            generations: The same for consumers; 0 for "holds nothing yet".
            owners: Consumer uuid → who answers for it from now on; needed for those that hold nothing yet.
            operation_id: See :meth:`claim`.

        Returns:
            Provider uuid → its new generation.

        Raises:
            InUse: A class that goes is held by a consumer that is not named.
            InvalidInventory: An inventory is malformed.
            See :meth:`replace` for the others.
        """
        given = {
            normalise_uuid(p, "provider", InvalidAllocation): {
                require_name(name, "resource class", InvalidAllocation): Inventory(i) if isinstance(i, int) else i
                for name, i in classes.items()
            }
            for p, classes in inventories.items()
        }
        read = {normalise_uuid(p, "provider"): n for p, n in (provider_generations or {}).items()}
        counts = {consumer_uuid(c): n for c, n in (generations or {}).items()}
        named = _owners(owners)
        targets = {
            c: Target(allocations=a, generation=counts.get(c), owner=named.get(c))
            for c, a in ((consumer_uuid(c), _or_nothing(a)) for c, a in allocations.items())
        }
        _check_consumers(targets, allocations, generations=counts, owners=named)
        if not given:
            raise InvalidAllocation("no provider is named", field="inventories")
        asked = Reshape(inventories=given, generations=read, targets=targets)

        def work(session: Session, operation: str) -> Any:
            return reshape(session, operation, asked, history=self.history)

        result, _ = self._operate("reshape", attrs.asdict(asked), work, operation_id)
        return dict(result["providers"])

    # ---- keeping order

    @observed("placement.heal", "apply", level=logging.INFO)
    def heal(self, found: Iterable[Finding], *, apply: bool = False) -> tuple[Repair, ...]:
        """Say what would be done about *found*; with *apply* do it, each an operation of its own.

        A repair looks again under the lock, and leaves alone what has changed since the audit. What only the operator
        can decide stays a plan.
        """
        plan = plan_repairs(found)
        if not apply:
            return plan
        writers = Writers(
            transact=lambda name, arguments, work: self._operate(name, arguments, work, None)[0],
            release=lambda uuid_, target: self._write("heal", {uuid_: target}, None, must_exist=True),
            expire=self._expire_either,
        )
        return tuple(apply_repair(repair, writers) for repair in plan)

    def _expire_either(self, subject: str) -> bool:
        if self._expire_claim(subject, self._id_factory()):
            return True
        try:
            return self._expire_move(subject, self._id_factory())
        except MoveNotFound:
            return False

    # ---- inside

    def _operate(
        self, name: str, arguments: Mapping[str, Any], work: Callable[[Session, str], Any], operation_id: str | None
    ) -> tuple[Any, bool]:
        operation = Operation.of(f"ledger.{name}", arguments, operation_id, id_factory=self._id_factory)
        outcome = self.transact(operation, lambda session: work(session, operation.id))
        return outcome.result, outcome.repeated

    def transact(self, operation: Operation, work: Callable[[Session], T]) -> Outcome[T]:
        """Do *work* in one transaction of the ledger, once for ever under *operation*'s id.

        For what is built on the ledger and must take effect together with its writes. *work* returns JSON.

        Raises:
            See :meth:`cloudcore.database.Database.operate`, and whatever *work* raises.
        """

        def inside(connection: Connection) -> T:
            session = Session(connection, counting=self._counting)
            with session.errors():
                return work(session)

        return self.database.operate(operation, inside)

    def _claim(self, claim: NewClaim) -> Outcome[Any]:
        database = self.database
        if database.dialect == "postgresql":
            return database.resolve(
                claim.operation, lambda: claim_in_one_statement(database, claim, history=self.history)
            )
        return database.resolve(claim.operation, lambda: self._claim_alone(claim))

    def _claim_alone(self, claim: NewClaim) -> Outcome[Any]:
        if runs_blocks(self.database):
            granted = claim_in_one_block(self.database, claim, self._known_providers, history=self.history)
            if granted is not None:
                return granted
        with self.database.write() as connection:
            session = Session(connection)
            with session.errors():
                outcome, changed = claim_by_statements(session, claim, self._known_providers, history=self.history)
                session.add_changes(changed)
            return outcome

    def _claim_in_group(self, group: GroupCommit[NewClaim, Outcome[Any]], claim: NewClaim) -> Outcome[Any]:
        try:
            return group.submit(claim)
        except OutcomeUnknown as error:  # of the whole group, under another caller's operation id if under any
            raise OutcomeUnknown(
                f"claim of consumer {claim.consumer}: the answer of the group that it was committed with was lost; "
                f"repeat it with operation_id={claim.operation.id!r}",
                operation_id=claim.operation.id,
            ) from error

    def _claim_group(self, tickets: Sequence[Ticket[NewClaim, Outcome[Any]]]) -> None:
        if len(tickets) == 1:
            tickets[0].answer = self._claim(tickets[0].request)
            return
        first = tickets[0].request.operation
        self.database.resolve(first, lambda: self._claim_together(tickets))

    def _claim_together(self, tickets: Sequence[Ticket[NewClaim, Outcome[Any]]]) -> Outcome[None]:
        with self.database.write() as connection:
            session = Session(connection)
            with session.errors():
                claim_group(session, tickets, self._known_providers, history=self.history)
        return Outcome(result=None, repeated=False)

    def _write(
        self, name: str, targets: Mapping[str, Target], operation_id: str | None, *, must_exist: bool = False
    ) -> dict[str, Held]:
        def work(session: Session, operation: str) -> Any:
            return ledger_moves.write(session, operation, name, targets, history=self.history, must_exist=must_exist)

        arguments = {consumer: attrs.asdict(target) for consumer, target in targets.items()}
        result, repeated = self._operate(name, arguments, work, operation_id)
        return {consumer: _held(consumer, state, repeated=repeated) for consumer, state in result.items()}

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


def _operation_ids() -> Callable[[], str]:
    """A maker of ids that nobody else makes. A uuid for each would let go of the interpreter to ask the system."""
    origin, count = uuid.uuid4().hex[:20], itertools.count()
    return lambda: f"{time.time_ns():x}-{origin}-{os.getpid():x}-{next(count):x}"


def _held(consumer: str, state: Mapping[str, Any], *, repeated: bool) -> Held:
    return Held(consumer=consumer, generation=state["generation"], allocations=state["allocations"], repeated=repeated)


@attrs.frozen(kw_only=True)
class Expired:
    """What :meth:`AllocationLedger.expire` ended.

    Attributes:
        consumers: Whose pending claims were released.
        migrations: Whose moves were reverted.
    """

    consumers: tuple[str, ...]
    migrations: tuple[str, ...]


def _derived(operation_id: str, subject: str) -> str:
    """The id of one part of an operation: the same for the same part, and short enough."""
    return hashlib.sha256(f"{operation_id}/{subject}".encode()).hexdigest()


def _or_nothing(wanted: Candidate | Allocations) -> dict[str, dict[str, int]]:
    return {} if wanted == {} else normalise_allocations(wanted)


def _owners(owners: Mapping[str, Owner] | None) -> dict[str, Owner]:
    """Checked and by normal uuids."""
    found = {}
    for consumer, owner in (owners or {}).items():
        if not isinstance(owner, Owner):
            raise InvalidAllocation(f"owners: expected an Owner, got {owner!r}", field="owners", value=owner)
        found[consumer_uuid(consumer)] = Owner.of(owner.project_id, owner.user_id, owner.consumer_type)
    return found


def _check_consumers(targets: Mapping[str, Target], given: Mapping[str, Any], **named: Mapping[str, Any]) -> None:
    """Refuse a consumer that is named twice, or only in one of the arguments *named*."""
    if len(targets) != len(given):
        raise InvalidAllocation("a consumer is named twice", field="wanted")
    for field, values in named.items():
        stray = sorted(values.keys() - targets.keys())
        if stray:
            raise InvalidAllocation(f"{field}: not among the consumers to write: {', '.join(stray)}", field=field)


def _kind(value: MoveKind | str) -> MoveKind:
    try:
        return MoveKind(value)
    except ValueError as error:
        raise InvalidArgument(
            f"kind: {value!r} is not one of {', '.join(MoveKind)}", field="kind", value=value
        ) from error


def _overlap(value: Overlap) -> Overlap:
    if value not in {"sum", "maximum"}:
        raise InvalidArgument(f"overlap: {value!r} is neither sum nor maximum", field="overlap", value=value)
    return value


def _seconds(value: float | None, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
        raise InvalidArgument(
            f"{field}: expected a positive number of seconds, got {value!r}", field=field, value=value
        )
    return float(value)
