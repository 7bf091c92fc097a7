"""How the ledger changes what consumers hold: one function for every call, inside one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import (
    AlreadyExists,
    CloudcoreError,
    ConsumerNotFound,
    ConsumerRetired,
    DatabaseBusy,
    GenerationConflict,
    InvalidAllocation,
    InvalidTransition,
    ProviderNotFound,
)
from cloudcore.placement.rules.claims import Allocations, Key, Owner, Rewrite, Take, plan_rewrite, refusal
from cloudcore.placement.storage.generations import count

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from cloudcore.placement.ledger.session import ConsumerRow, Session

__all__ = ["NEW", "Target", "apply_targets", "check_consumer", "in_uuids", "missing", "settle"]

NEW = 0
"""The generation of a consumer that holds nothing yet."""


@attrs.frozen(kw_only=True)
class Target:
    """What one consumer shall hold after a call.

    Attributes:
        allocations: By provider uuid; empty to hold nothing.
        owner: Who answers for it; None keeps who does now.
        generation: What the caller read last; NEW for "must hold nothing yet", None for any.
        retire: It holds nothing, for ever.
        revive: It may be retired now: the half of an open move that held nothing for a while.
        expires_in: Seconds until a new consumer's claim lapses unless it is settled.
        settle: The claim is pending no more.
        expected: Refuse unless it holds exactly this now.
        keeps: What it shall hold was granted to its move before; the rules of units are not asked again.
    """

    allocations: Allocations
    owner: Owner | None = None
    generation: int | None = None
    retire: bool = False
    revive: bool = False
    expires_in: float | None = None
    settle: bool = False
    expected: Allocations | None = None
    keeps: bool = False


def apply_targets(
    session: Session,
    operation_id: str,
    event: str,
    rows: Mapping[str, ConsumerRow],
    targets: Mapping[str, Target],
    *,
    history: bool = True,
    before: Mapping[str, Mapping[Key, int]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make every consumer of *targets* hold what its target says, or raise and leave all as it was.

    *rows* are the consumers of *targets* that exist, locked; *before* is what they hold, if it was read since. Returns,
    as JSON, generation and allocations of each.

    Raises:
        CapacityExceeded, UnitViolation, InventoryNotFound, ProviderNotFound: An inventory does not give it.
        AlreadyExists, GenerationConflict, ConsumerRetired, InvalidTransition: A consumer is not as expected.
        InvalidAllocation: A new consumer has no owner.
        DatabaseBusy: Somebody interfered in a way that a second attempt resolves.
    """
    for uuid, target in sorted(targets.items()):
        check_consumer(uuid, target, rows.get(uuid))
    ids = _ids_of_consumers(session, targets, rows)
    if before is None:
        before = session.holdings([rows[uuid] for uuid in targets if uuid in rows])
    _check_expected(session, targets, before)
    providers = _resolve(session, targets)
    after = {
        uuid: {(providers[p], name): n for p, classes in t.allocations.items() for name, n in classes.items()}
        for uuid, t in targets.items()
    }
    if session.counting and event != "release":
        count(session.connection, dict.fromkeys(_written(after, before), 1))
    rewrite = plan_rewrite(before, after, keeping={uuid for uuid, target in targets.items() if target.keeps})
    refused = session.take_all(_in_lock_order(session, rewrite))
    if refused is not None:
        raise explain(session, refused)
    with session.together():
        session.write_allocations(rewrite, before, ids)
        result = {uuid: _end(session, uuid, target, rows.get(uuid), ids) for uuid, target in sorted(targets.items())}
        if history:
            session.add_history(event, operation_id, {uuid: target.allocations for uuid, target in targets.items()})
        session.add_changes(rewrite.providers)
    return result


def _written(after: Mapping[str, Mapping[Key, int]], before: Mapping[str, Mapping[Key, int]]) -> set[int]:
    """The providers of the rows that Placement would write: what is held afterwards, or all that is given up."""
    return {key[0] for uuid, rows in after.items() for key in (rows or before.get(uuid, {}))}


def _in_lock_order(session: Session, rewrite: Rewrite) -> Iterable[Take]:
    """The takes of *rewrite*, and on MariaDB one that changes nothing for each row that only changes hands.

    There the foreign key of a new row locks its inventory; without this it would do so after all others, out of order.
    """
    if session.dialect != "mysql":
        return rewrite.takes
    takes = {take.key: take for take in rewrite.takes}
    for rows in rewrite.written.values():
        for key in rows:
            takes.setdefault(key, Take(key=key, delta=0))
    return (takes[key] for key in sorted(takes))


def check_consumer(uuid: str, target: Target, row: ConsumerRow | None) -> None:
    """Check that *row*, which is locked, is as *target* expects its consumer.

    Raises:
        AlreadyExists, GenerationConflict, ConsumerRetired, InvalidTransition: It is not.
        InvalidAllocation: It is new, and has no owner.
    """
    if row is not None and row.retired:
        if not target.allocations or target.revive:
            return
        raise ConsumerRetired(f"consumer {uuid} was released for ever and cannot hold anything again", identifier=uuid)
    if row is None:
        if target.generation:
            raise GenerationConflict(
                f"consumer {uuid} holds nothing; the caller expected generation {target.generation}",
                identifier=uuid,
                expected=target.generation,
                found=NEW,
            )
        if target.allocations and target.owner is None:
            raise InvalidAllocation(f"consumer {uuid} is new: project_id and user_id are needed", field="project_id")
        return
    if target.generation == NEW:
        raise AlreadyExists(
            f"consumer {uuid} holds something already, at generation {row.generation}; replace it with that "
            f"generation, or begin a move",
            identifier=uuid,
        )
    if target.generation not in {None, row.generation}:
        raise GenerationConflict(
            f"consumer {uuid} is at generation {row.generation}, the caller read {target.generation}; read it again",
            identifier=uuid,
            expected=target.generation,
            found=row.generation,
        )
    if row.expired and target.allocations:
        raise InvalidTransition(
            f"the pending claim of consumer {uuid} has expired; claim again",
            identifier=uuid,
            state="expired",
            event="settle" if target.settle else "replace",
        )


def _ids_of_consumers(
    session: Session, targets: Mapping[str, Target], rows: Mapping[str, ConsumerRow]
) -> dict[str, int]:
    """Ids of all consumers that will hold something, or must leave a tombstone; new ones are inserted."""
    ids = {uuid: row.id for uuid, row in rows.items()}
    for uuid, target in sorted(targets.items()):
        if uuid in ids or not (target.allocations or target.retire):
            continue
        owner = target.owner or Owner(project_id="-", user_id="-")
        number = session.add_consumer(uuid, owner, target.expires_in)
        if number is None:
            if target.generation == NEW:
                raise AlreadyExists(f"consumer {uuid} was claimed by somebody else just now", identifier=uuid)
            raise DatabaseBusy(f"consumer {uuid} appeared while this call was under way")
        ids[uuid] = number
    return ids


def _check_expected(session: Session, targets: Mapping[str, Target], before: Mapping[str, Mapping[Key, int]]) -> None:
    watched = {uuid: target for uuid, target in targets.items() if target.expected is not None}
    if not watched:
        return
    found = in_uuids(session, {uuid: before.get(uuid, {}) for uuid in watched})
    for uuid, target in watched.items():
        if found[uuid] != target.expected:
            raise GenerationConflict(
                f"consumer {uuid} holds {found[uuid] or 'nothing'}, the caller expected {target.expected or 'nothing'}",
                identifier=uuid,
            )


def in_uuids(session: Session, holdings: Mapping[str, Mapping[Key, int]]) -> dict[str, dict[str, dict[str, int]]]:
    """Holdings by provider uuid instead of provider id, sorted."""
    names = session.provider_uuids({key[0] for rows in holdings.values() for key in rows})
    result: dict[str, dict[str, dict[str, int]]] = {}
    for consumer, rows in holdings.items():
        mine: dict[str, dict[str, int]] = {}
        for (provider, resource_class), amount in sorted((((names[k[0]], k[1]), n) for k, n in rows.items())):
            mine.setdefault(provider, {})[resource_class] = amount
        result[consumer] = mine
    return result


def _resolve(session: Session, targets: Mapping[str, Target]) -> dict[str, int]:
    wanted: Collection[str] = {provider for target in targets.values() for provider in target.allocations}
    known = session.provider_ids(wanted) if wanted else {}
    for provider in sorted(wanted):
        if provider not in known:
            raise ProviderNotFound(f"no resource provider {provider}; search again", identifier=provider)
    return known


def explain(session: Session, take: Take) -> CloudcoreError:
    """The error for an inventory that did not give *take*."""
    provider = session.provider_uuids([take.key[0]]).get(take.key[0], f"with id {take.key[0]}")
    found = refusal(provider, take, session.inventory(take.key))
    return found or DatabaseBusy(f"provider {provider}, {take.key[1]}: its inventory changed meanwhile")


def _end(
    session: Session, uuid: str, target: Target, row: ConsumerRow | None, ids: Mapping[str, int]
) -> dict[str, Any]:
    """Write the consumer's own row last, when its allocations are; return its new state."""
    if not target.allocations:
        if uuid in ids and not (row and row.retired):
            session.end_consumer(ids[uuid], retire=target.retire)
        return {"generation": NEW, "allocations": {}}
    if row is None:
        return {"generation": 1, "allocations": _plain(target.allocations)}
    if row.retired:
        session.revive_consumer(row)
    session.bump_consumer(row, _next_owner(row.owner, target.owner), settle=target.settle)
    return {"generation": row.generation + 1, "allocations": _plain(target.allocations)}


def _next_owner(now: Owner, given: Owner | None) -> Owner:
    """Who answers from now on; a type that is not said stays as it is."""
    if given is None:
        return now
    return given if given.consumer_type is not None else attrs.evolve(given, consumer_type=now.consumer_type)


def _plain(allocations: Allocations) -> dict[str, dict[str, int]]:
    return {provider: dict(classes) for provider, classes in allocations.items()}


def settle(session: Session, operation_id: str, uuid: str, *, history: bool) -> dict[str, Any]:
    """End the deadline of a pending claim; return the consumer's state as JSON.

    Raises:
        ConsumerNotFound, InvalidTransition: It holds nothing, or expired before.
    """
    row = session.lock_consumers([uuid]).get(uuid)
    if row is None or row.retired:
        raise missing(uuid)
    held = in_uuids(session, session.holdings([row]))[uuid]
    if not row.pending:
        return {"generation": row.generation, "allocations": held}
    check_consumer(uuid, Target(allocations=held, settle=True), row)
    session.bump_consumer(row, row.owner, settle=True)
    if history:
        session.add_history("settle", operation_id, {uuid: held})
    return {"generation": row.generation + 1, "allocations": held}


def missing(uuid: str) -> ConsumerNotFound:
    """The error for a consumer that holds nothing."""
    return ConsumerNotFound(f"consumer {uuid} holds nothing", identifier=uuid)
