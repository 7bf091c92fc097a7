"""AllocationLedger: who holds what. Claim it, move it, give it back, exactly once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_mapping, require_name
from cloudcore.errors import InvalidAllocation, InvalidInventory, MoveNotFound
from cloudcore.observability import observed
from cloudcore.placement.forest.values import Inventory
from cloudcore.placement.ledger.auditing import Writers, apply_repair
from cloudcore.placement.ledger.claim_statements import NewClaim
from cloudcore.placement.ledger.host_groups import keeping_policies
from cloudcore.placement.ledger.move_calls import Expired, LedgerMoves
from cloudcore.placement.ledger.reader import consumer_uuid
from cloudcore.placement.ledger.reshape import Reshape, require_units, reshape
from cloudcore.placement.ledger.transactions import as_held, read_seconds
from cloudcore.placement.ledger.writes import NEW, Target, settle
from cloudcore.placement.rules.audit import plan_repairs
from cloudcore.placement.rules.claims import Held, Owner, normalise_allocations, provider_uuid, require_generation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.placement.ledger.session import Session
    from cloudcore.placement.rules.audit import Finding, Repair
    from cloudcore.placement.rules.claims import Allocations, Candidate

__all__ = ["AllocationLedger", "Expired"]

T = TypeVar("T")


def _told(held: Held) -> dict[str, Any]:
    return {"generation": held.generation, "repeated": held.repeated}


class AllocationLedger(LedgerMoves):
    """Decides who holds what, in a SQL database; what anybody else knows is a hint.

    Capacity is granted by one guarded UPDATE for each inventory, in a fixed order, so writers on one provider wait for
    each other but never refuse each other before it is full. Every call takes an *operation_id* or makes one: repeated
    with the same id it has no second effect and gives the same answer. What is refused leaves everything as it was.

    May be shared between threads; each process opens its own.

    Args:
        source: A database, an engine, or a URL (then :meth:`close` closes it).
        history: Whether to note what each consumer holds after each change.
        group_commit: Claims of many threads may share a transaction, this many at most; 0 for none. Worth while where
            several threads claim: a commit waits for the disk once for all of them, and a few statements do for many.
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

        Who holds nothing yet is no member of a group by this: :meth:`HostSelector.select` lets an instance join one.

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
        seconds = read_seconds(expires_in, "expires_in")
        if generation != NEW:
            if seconds is not None:
                raise InvalidAllocation("expires_in is for a consumer that holds nothing yet", field="expires_in")
            target = Target(allocations=allocations, owner=owner, generation=generation)
            return self._write("claim", {consumer: target}, operation_id)[consumer]
        claim = NewClaim.of(consumer, allocations, owner, seconds, operation_id, self._id_factory)
        outcome = self.claim_new(claim)
        return as_held(consumer, outcome.result[consumer], repeated=outcome.repeated)

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
            consumer_type: See there. None leaves a consumer's type as it is; a new one's is then unknown.
            operation_id: See :meth:`claim`.

        Raises:
            GenerationConflict: A consumer is at another generation, or does not hold what was expected.
            InUse: A consumer is a migration; its allocations belong to its move.
            GroupViolation: A consumer belongs to a group of instances, and its hard policy allows no member on a host
                that is new to the consumer, as all of them stand after the call.
            CloudcoreError: As :meth:`claim` does for everything else.
        """
        owner = None
        if project_id is not None or user_id is not None:
            owner = Owner.of(project_id or "", user_id or "", consumer_type)
        require_mapping(wanted, "wanted", InvalidAllocation)
        read = _generations(generations, "generations", consumer_uuid)
        held = {
            consumer_uuid(c): _or_nothing(a)
            for c, a in require_mapping(expected or {}, "expected", InvalidAllocation).items()
        }
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
            GroupViolation: See :meth:`replace`.
            CloudcoreError: As :meth:`claim` does for everything else.
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
        return as_held(consumer, result, repeated=repeated)

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

    # ---- keeping order

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
            provider_generations: Provider uuid → the generation read last, of those of *inventories*; others may be at
                any.
            generations: The same for consumers; 0 for "holds nothing yet".
            owners: Consumer uuid → who answers for it from now on; needed for those that hold nothing yet.
            operation_id: See :meth:`claim`.

        Returns:
            Provider uuid → its new generation.

        Raises:
            InUse: A class that goes is held by a consumer that is not named.
            InvalidInventory: An inventory is malformed.
            UnitViolation: A consumer shall hold what an inventory named beside it does not give in one piece, be it
                that it holds this already.
            CloudcoreError: As :meth:`replace` does for everything else.
        """
        given = {
            provider_uuid(p): _inventories(classes)
            for p, classes in require_mapping(inventories, "inventories", InvalidAllocation).items()
        }
        require_mapping(allocations, "allocations", InvalidAllocation)
        read = _generations(provider_generations, "provider_generations", provider_uuid)
        counts = _generations(generations, "generations", consumer_uuid)
        named = _owners(owners)
        targets = {
            c: Target(allocations=a, generation=counts.get(c), owner=named.get(c))
            for c, a in ((consumer_uuid(c), _or_nothing(a)) for c, a in allocations.items())
        }
        _check_consumers(targets, allocations, generations=counts, owners=named)
        if not given:
            raise InvalidAllocation("no provider is named", field="inventories")
        if len(given) != len(inventories):
            raise InvalidAllocation("a provider is named twice", field="inventories")
        _check_named(given, "providers", provider_generations=read)
        asked = Reshape(inventories=given, generations=read, targets=targets)
        require_units(asked)

        wanted = {consumer: target.allocations for consumer, target in targets.items() if target.allocations}

        def work(session: Session, operation: str) -> Any:
            with keeping_policies(session, wanted):
                return reshape(session, operation, asked, history=self.history)

        result, _ = self._operate("reshape", attrs.asdict(asked), work, operation_id)
        return dict(result["providers"])

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


def _inventories(classes: Mapping[str, Inventory | int]) -> dict[str, Inventory]:
    """Checked; what a deployment has stored may be stored again."""
    found: dict[str, Inventory] = {}
    for name, given in require_mapping(classes, "inventories", InvalidInventory).items():
        require_name(name, "resource class", InvalidAllocation)
        if not isinstance(given, Inventory | int):
            raise InvalidInventory(
                f"{name}: expected an Inventory or a total, got {given!r}", field="inventories", value=given
            )
        found[name] = Inventory(given) if isinstance(given, int) else given
    return found


def _generations(given: Mapping[str, int] | None, field: str, normalise: Callable[[str], str]) -> dict[str, int]:
    """Checked and by normal uuids; who is at any generation is left out."""
    numbers = require_mapping(given or {}, field, InvalidAllocation)
    return {normalise(uuid): require_generation(n, field) for uuid, n in numbers.items() if n is not None}


def _or_nothing(wanted: Candidate | Allocations) -> dict[str, dict[str, int]]:
    return {} if wanted == {} else normalise_allocations(wanted)


def _owners(owners: Mapping[str, Owner] | None) -> dict[str, Owner]:
    """Checked and by normal uuids."""
    found = {}
    for consumer, owner in require_mapping(owners or {}, "owners", InvalidAllocation).items():
        if not isinstance(owner, Owner):
            raise InvalidAllocation(f"owners: expected an Owner, got {owner!r}", field="owners", value=owner)
        found[consumer_uuid(consumer)] = Owner.of(owner.project_id, owner.user_id, owner.consumer_type)
    return found


def _check_consumers(targets: Mapping[str, Target], given: Mapping[str, Any], **named: Mapping[str, Any]) -> None:
    """Refuse a consumer that is named twice, or only in one of the arguments *named*."""
    if len(targets) != len(given):
        raise InvalidAllocation("a consumer is named twice", field="wanted")
    _check_named(targets, "consumers", **named)


def _check_named(written: Mapping[str, Any], what: str, **named: Mapping[str, Any]) -> None:
    for field, values in named.items():
        stray = sorted(values.keys() - written.keys())
        if stray:
            raise InvalidAllocation(f"{field}: not among the {what} to write: {', '.join(stray)}", field=field)
