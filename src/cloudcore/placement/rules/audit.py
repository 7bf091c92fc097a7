"""What an audit finds wrong, and what would put it right: values and decisions, no database.

An audit only reads. Each finding says what was seen; :func:`plan_repairs` says what would be done about it, and what
nobody but the operator can decide. Whoever applies a repair looks again under the lock: what changed meanwhile stays.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from cloudcore.placement.rules.moves import Move

__all__ = [
    "Finding",
    "FindingKind",
    "Repair",
    "RepairAction",
    "judge_consumers",
    "judge_moves",
    "plan_repairs",
]


class FindingKind(StrEnum):
    """What is wrong."""

    DRIFTED_USED = "drifted_used"  # an inventory's counter is not the sum of its allocations
    ORPHANED_ALLOCATION = "orphaned_allocation"  # a row whose consumer is not there, or is retired
    EMPTY_CONSUMER = "empty_consumer"  # a consumer that holds nothing
    UNKNOWN_CONSUMER = "unknown_consumer"  # nobody knows an instance of this uuid
    UNKNOWN_MIGRATION = "unknown_migration"  # a move is held, its instance is there, its migration is not
    UNKNOWN_MOVE = "unknown_move"  # a move is held, and its instance is not known
    NO_ALLOCATIONS = "no_allocations"  # an instance is there and holds nothing
    FINISHED_MOVE = "finished_move"  # the move is over and its migration still holds something
    OVERDUE = "overdue"  # a pending claim or a move whose time is over
    OVER_CAPACITY = "over_capacity"  # more is used than the inventory grants by now


class RepairAction(StrEnum):
    """What puts a finding right."""

    RECOUNT = "recount"
    DELETE_ROWS = "delete_rows"
    RELEASE = "release"
    EXPIRE = "expire"
    NONE = "none"


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: What.
        subject: The consumer's or migration's uuid, or ``provider/class``.
        text: In words, with the numbers.
        generation: The consumer's generation as seen; a repair refuses to act on another one.
        expected: What the counter should be, where that is the matter.
        found: What it is.
    """

    kind: FindingKind
    subject: str
    text: str
    generation: int | None = None
    expected: int | None = None
    found: int | None = None


@attrs.frozen(kw_only=True)
class Repair:
    """What would be, or was, done about a finding.

    Attributes:
        finding: What it is for.
        action: What is done; NONE where only the operator can decide.
        reason: Why so.
        applied: It has been done.
        outcome: What came of it, where it was tried.
    """

    finding: Finding
    action: RepairAction
    reason: str
    applied: bool = False
    outcome: str | None = None


_ACTIONS: Mapping[FindingKind, tuple[RepairAction, str]] = {
    FindingKind.DRIFTED_USED: (RepairAction.RECOUNT, "set the counter to the sum of the allocations"),
    FindingKind.ORPHANED_ALLOCATION: (RepairAction.DELETE_ROWS, "nobody is left who could release them"),
    FindingKind.EMPTY_CONSUMER: (RepairAction.DELETE_ROWS, "a consumer exists as long as it holds something"),
    FindingKind.UNKNOWN_CONSUMER: (RepairAction.RELEASE, "no instance of this uuid is known"),
    FindingKind.UNKNOWN_MIGRATION: (
        RepairAction.NONE,
        "its rows may be the only hold on a running guest: find the guest, then confirm or revert the move",
    ),
    FindingKind.UNKNOWN_MOVE: (
        RepairAction.NONE,
        "a directory that lacks something for a moment must not cost a guest its hosts; abandon the move if it is gone",
    ),
    FindingKind.NO_ALLOCATIONS: (RepairAction.NONE, "claim for it what it uses on its host"),
    FindingKind.FINISHED_MOVE: (RepairAction.RELEASE, "the move is over: its migration has nothing to hold"),
    FindingKind.OVERDUE: (RepairAction.EXPIRE, "its time is over by the database's clock"),
    FindingKind.OVER_CAPACITY: (
        RepairAction.NONE,
        "usage may fall, stay or change hands there, and does not grow; move something away",
    ),
}


def plan_repairs(findings: Iterable[Finding]) -> tuple[Repair, ...]:
    """What would be done about each of *findings*, in the order in which it is safe: rows first, counters last."""
    order = list(RepairAction)
    repairs = [
        Repair(finding=finding, action=_ACTIONS[finding.kind][0], reason=_ACTIONS[finding.kind][1])
        for finding in findings
    ]
    return tuple(
        sorted(repairs, key=lambda repair: (repair.action is RepairAction.RECOUNT, order.index(repair.action)))
    )


def judge_consumers(consumers: Mapping[str, int], known: Collection[str], moving: Collection[str]) -> list[Finding]:
    """Consumers (uuid → generation) that nobody knows. Of *moving*, the halves of live moves, the move is judged."""
    return [
        Finding(
            kind=FindingKind.UNKNOWN_CONSUMER,
            subject=uuid,
            text=f"consumer {uuid} holds allocations, and no instance or migration of this uuid is known",
            generation=generation,
        )
        for uuid, generation in sorted(consumers.items())
        if uuid not in known and uuid not in moving
    ]


def judge_moves(moves: Iterable[Move], known: Collection[str]) -> list[Finding]:
    """Live moves of which nobody knows the migration, or the instance."""
    found = []
    for move in moves:
        if move.instance not in known:
            text = f"instance {move.instance}, which migration {move.migration} moves ({move.state}), is not known"
            found.append(Finding(kind=FindingKind.UNKNOWN_MOVE, subject=move.migration, text=text))
        elif move.migration not in known:
            text = f"migration {move.migration} holds the source of instance {move.instance}, and nobody knows it"
            found.append(Finding(kind=FindingKind.UNKNOWN_MIGRATION, subject=move.migration, text=text))
    return found
