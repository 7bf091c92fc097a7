"""The audit's queries and the repairs' writes; what they mean is decided in :mod:`cloudcore.placement.rules.audit`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.errors import CloudcoreError, ConsumerNotFound
from cloudcore.placement.ledger.moves import live_moves
from cloudcore.placement.ledger.writes import Target
from cloudcore.placement.rules.audit import Finding, FindingKind, Repair, RepairAction, judge_consumers, judge_moves

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from cloudcore.placement.ledger.session import Session

__all__ = [
    "Directory",
    "Known",
    "Writers",
    "apply_repair",
    "consumer_target",
    "findings",
    "known_among",
    "recount",
    "without_allocations",
]


class Directory(Protocol):
    """Whatever knows in which cell an instance is, such as the directory of the listing."""

    def cells_of(self, uuids: Collection[str], /) -> Mapping[str, str]:
        """Uuid → cell, for those of *uuids* that exist."""
        ...


Known = Directory | Callable[[Collection[str]], Collection[str]]
"""A directory, or a function that returns those of the given uuids that exist, as instance or as migration."""


def known_among(known: Any, uuids: Collection[str]) -> frozenset[str]:
    """Ask *known* in portions which of *uuids* exist."""
    ask = known.cells_of if hasattr(known, "cells_of") else known
    chosen = sorted(uuids)
    return frozenset(uuid for start in range(0, len(chosen), 1000) for uuid in ask(chosen[start : start + 1000]))


def findings(session: Session, known: Any) -> list[Finding]:
    """Everything that is wrong, as the transaction of *session* sees it. Consumers are judged if *known* is given."""
    found = [*_drifted(session), *_orphans(session), *_empty(session), *_finished(session), *_overdue(session)]
    found += _over_capacity(session)
    if known is not None:
        moves = live_moves(session)
        consumers = dict(session.all("SELECT uuid, generation FROM consumers WHERE retired_at IS NULL"))
        empty = {finding.subject for finding in found if finding.kind is FindingKind.EMPTY_CONSUMER}
        halves = {uuid for move in moves for uuid in (move.migration, move.instance)}
        there = known_among(known, {*consumers, *halves})
        judged = {uuid: generation for uuid, generation in consumers.items() if uuid not in empty}
        found += judge_consumers(judged, there, halves)
        found += judge_moves(moves, there)
    return found


def without_allocations(
    reading: Callable[[], AbstractContextManager[Session]], instances: Iterable[str]
) -> Iterator[Finding]:
    """Those of *instances* that hold nothing, and have no move that does.

    Each part is looked up when it has been read, by a transaction of its own: what is claimed meanwhile is seen.
    """
    chosen = iter(instances)
    while part := list(islice(chosen, 500)):
        with reading() as session:
            holding = {uuid for (uuid,) in session.in_parts(_HOLDING, part)}
            moving = {uuid for (uuid,) in session.in_parts(_MOVING, part)}
        for uuid in part:
            if uuid not in holding and uuid not in moving:
                yield Finding(
                    kind=FindingKind.NO_ALLOCATIONS, subject=uuid, text=f"instance {uuid} exists and holds nothing"
                )


_HOLDING = """
SELECT uuid FROM consumers WHERE uuid IN {marks} AND retired_at IS NULL
AND EXISTS (SELECT 1 FROM allocations WHERE consumer_id = consumers.id)
"""
_MOVING = "SELECT instance FROM moves WHERE instance IN {marks} AND state IN ('held', 'awaiting_proof')"


def _drifted(session: Session) -> Iterator[Finding]:
    for provider, name, used, total in session.all(
        "SELECT p.uuid, i.resource_class, i.used, s.total FROM inventories i "
        "JOIN resource_providers p ON p.id = i.provider_id "
        "JOIN (SELECT n.provider_id, n.resource_class, COALESCE(SUM(a.amount), 0) AS total FROM inventories n "
        "LEFT JOIN allocations a ON a.provider_id = n.provider_id AND a.resource_class = n.resource_class "
        "GROUP BY n.provider_id, n.resource_class) s "
        "ON s.provider_id = i.provider_id AND s.resource_class = i.resource_class WHERE i.used <> s.total "
        "ORDER BY p.uuid, i.resource_class"
    ):
        yield Finding(
            kind=FindingKind.DRIFTED_USED,
            subject=f"{provider}/{name}",
            text=f"provider {provider}: {name} counts {used} as used, its allocations sum to {total}",
            expected=int(total),
            found=int(used),
        )


def _orphans(session: Session) -> Iterator[Finding]:
    for consumer_id, rows in session.all(
        "SELECT a.consumer_id, COUNT(*) FROM allocations a LEFT JOIN consumers c ON c.id = a.consumer_id "
        "WHERE c.id IS NULL OR c.retired_at IS NOT NULL GROUP BY a.consumer_id ORDER BY a.consumer_id"
    ):
        yield Finding(
            kind=FindingKind.ORPHANED_ALLOCATION,
            subject=str(consumer_id),
            text=f"{rows} allocations belong to consumer number {consumer_id}, which is not there or is retired",
        )


def _empty(session: Session) -> Iterator[Finding]:
    for uuid, generation in session.all(
        "SELECT c.uuid, c.generation FROM consumers c LEFT JOIN allocations a ON a.consumer_id = c.id "
        "WHERE a.consumer_id IS NULL AND c.retired_at IS NULL ORDER BY c.uuid"
    ):
        yield Finding(
            kind=FindingKind.EMPTY_CONSUMER,
            subject=uuid,
            text=f"consumer {uuid} holds nothing",
            generation=generation,
        )


def _finished(session: Session) -> Iterator[Finding]:
    for uuid, state, generation in session.all(
        "SELECT DISTINCT m.migration, m.state, c.generation FROM moves m JOIN consumers c ON c.uuid = m.migration "
        "JOIN allocations a ON a.consumer_id = c.id WHERE m.state NOT IN ('held', 'awaiting_proof') "
        "AND c.retired_at IS NULL ORDER BY m.migration"
    ):
        yield Finding(
            kind=FindingKind.FINISHED_MOVE,
            subject=uuid,
            text=f"move {uuid} is {state} and its migration still holds allocations",
            generation=generation,
        )


def _overdue(session: Session) -> Iterator[Finding]:
    for (uuid,) in session.all("SELECT uuid FROM consumers WHERE expires_at <= {now} ORDER BY uuid"):
        yield Finding(kind=FindingKind.OVERDUE, subject=uuid, text=f"the pending claim of {uuid} has expired")
    sql = "SELECT migration FROM moves WHERE state = 'held' AND expires_at <= {now} ORDER BY migration"
    for (uuid,) in session.all(sql):
        yield Finding(kind=FindingKind.OVERDUE, subject=uuid, text=f"the time of move {uuid} is over")


def _over_capacity(session: Session) -> Iterator[Finding]:
    for provider, name, used, capacity in session.all(
        "SELECT p.uuid, i.resource_class, i.used, i.capacity FROM inventories i "
        "JOIN resource_providers p ON p.id = i.provider_id WHERE i.used > i.capacity ORDER BY p.uuid, i.resource_class"
    ):
        yield Finding(
            kind=FindingKind.OVER_CAPACITY,
            subject=f"{provider}/{name}",
            text=f"provider {provider}: {used} of {name} are used, {capacity} are granted by now",
            expected=int(capacity),
            found=int(used),
        )


# --- repairs ---------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Writers:
    """How a repair writes: functions of the ledger, each an operation of its own."""

    transact: Callable[[str, Mapping[str, Any], Callable[[Session, str], Any]], Any]
    release: Callable[[str, Target], Any]
    expire: Callable[[str], bool]


def apply_repair(repair: Repair, writers: Writers) -> Repair:
    """Do *repair* and say what came of it; what changed since the audit is left alone."""
    if repair.action is RepairAction.NONE:
        return repair
    try:
        done = _apply(repair, writers)
    except CloudcoreError as error:
        return attrs.evolve(repair, outcome=f"{type(error).__name__}: {error}")
    return attrs.evolve(repair, applied=done, outcome="done" if done else "no longer so")


def _apply(repair: Repair, writers: Writers) -> bool:
    finding = repair.finding
    arguments = {"kind": str(finding.kind), "subject": finding.subject}
    if repair.action is RepairAction.EXPIRE:
        return writers.expire(finding.subject)
    if repair.action is RepairAction.RELEASE:
        try:
            writers.release(finding.subject, consumer_target(finding))
        except ConsumerNotFound:
            return False
        return True
    work: Callable[[Session, str], Any]
    if repair.action is RepairAction.RECOUNT:
        provider, _, name = finding.subject.partition("/")
        work = lambda session, _: recount(session, provider, name)  # noqa: E731 - it is passed on
    elif finding.kind is FindingKind.EMPTY_CONSUMER:
        work = lambda session, _: _delete_empty(session, finding.subject)  # noqa: E731
    else:
        work = lambda session, _: _delete_orphans(session, int(finding.subject))  # noqa: E731
    return bool(writers.transact("heal", arguments, work))


def consumer_target(finding: Finding) -> Target:
    """What a consumer that should not be there shall hold: nothing, if it is still as the audit saw it."""
    return Target(allocations={}, generation=finding.generation, retire=finding.kind is FindingKind.FINISHED_MOVE)


def recount(session: Session, provider: str, name: str) -> bool:
    """Set an inventory's counter to the sum of its allocations, under its lock; False if it is right by now."""
    failpoint("ledger.heal.recount")
    rows = session.all(
        "SELECT i.provider_id, i.used FROM inventories i JOIN resource_providers p ON p.id = i.provider_id "
        "WHERE p.uuid = ? AND i.resource_class = ? {lock}",
        (provider, name),
    )
    if not rows:
        return False
    number, used = rows[0]
    sums = session.all(
        "SELECT COALESCE(SUM(amount), 0) FROM allocations WHERE provider_id = ? AND resource_class = ?", (number, name)
    )
    total = int(sums[0][0])
    if total == used:
        return False
    session.run("UPDATE inventories SET used = ? WHERE provider_id = ? AND resource_class = ?", (total, number, name))
    session.add_changes([number])
    return True


def _delete_empty(session: Session, uuid: str) -> bool:
    row = session.lock_consumers([uuid]).get(uuid)
    if row is None or row.retired or session.holdings([row])[uuid]:
        return False
    session.end_consumer(row.id, retire=False)
    return True


def _delete_orphans(session: Session, consumer_id: int) -> bool:
    """Delete the rows of a consumer that is not there; the counters follow, each under its lock."""
    keys = session.all(
        "SELECT p.uuid, a.resource_class FROM allocations a JOIN resource_providers p ON p.id = a.provider_id "
        "LEFT JOIN consumers c ON c.id = a.consumer_id "
        "WHERE a.consumer_id = ? AND (c.id IS NULL OR c.retired_at IS NOT NULL) "
        "ORDER BY a.provider_id, a.resource_class",
        (consumer_id,),
    )
    if not keys:
        return False
    failpoint("ledger.heal.delete")
    session.run("DELETE FROM allocations WHERE consumer_id = ?", (consumer_id,))
    for provider, name in keys:
        recount(session, provider, name)
    return True
