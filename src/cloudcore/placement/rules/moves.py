"""Moves: who holds what after each step, as a table.

A move hands what an instance holds (the *source*) to a migration and gives the instance the *destination*, in one
transaction. From then on the move ends once, in one of the ways of :data:`TRANSITIONS`:

1. Confirm: the guest runs at the destination, the source is free.
2. Revert: the guest runs at the source, the destination is free.
3. Expire: nobody ended the move in time, by the database's clock; as revert.
4. Abandon: the instance is gone or given up; both halves are free.
5. Release of the instance: it was deleted; both halves are free.
6. In an evacuation the source host is dead, not proved dead: whoever frees the source must say who proved it gone, and
   a release of the instance leaves the source held. Time passed proves nothing, so an evacuation never expires.

A call that repeats what has happened changes nothing and gives the same answer. A call that contradicts it raises
:class:`~cloudcore.errors.InvalidTransition` with the state and the story. Nothing is ever brought back from an end.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import attrs

from cloudcore.errors import FencingRequired, InvalidAllocation, InvalidArgument, InvalidTransition
from cloudcore.notebook import Table, html_of
from cloudcore.placement.rules.claims import Allocations, total_by_class

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "TRANSITIONS",
    "Holds",
    "Move",
    "MoveEvent",
    "MoveKind",
    "MoveState",
    "Overlap",
    "Step",
    "decide",
    "held_by_migration",
    "move_kind",
    "same_beginning",
    "validate_beginning",
]


Overlap = Literal["sum", "maximum"]
"""How a provider on both sides of a move is counted."""


class MoveKind(StrEnum):
    """What is being done with the instance."""

    COLD = "cold"
    RESIZE = "resize"
    LIVE = "live"
    EVACUATION = "evacuation"


def move_kind(value: MoveKind | str, error: type[InvalidArgument] = InvalidArgument) -> MoveKind:
    """*value* as a kind of move.

    Raises:
        InvalidArgument: It is none (or the subclass given as *error*).
    """
    try:
        return MoveKind(value)
    except ValueError as wrong:
        known = ", ".join(MoveKind)
        raise error(f"kind: {value!r} is none of {known}", field="kind", value=value) from wrong


class MoveState(StrEnum):
    """Where a move stands. All but the first two are final."""

    HELD = "held"
    AWAITING_PROOF = "awaiting_proof"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    EXPIRED = "expired"
    ABANDONED = "abandoned"
    ENDED = "ended"

    @property
    def final(self) -> bool:
        """Nothing is held for the move any more, and nothing will be."""
        return self not in {MoveState.HELD, MoveState.AWAITING_PROOF}


class MoveEvent(StrEnum):
    """What is asked of a move."""

    BEGIN = "begin"
    CONFIRM = "confirm"
    REVERT = "revert"
    EXPIRE = "expire"
    ABANDON = "abandon"
    RELEASE = "release"


class Holds(StrEnum):
    """What one of the two consumers holds."""

    NOTHING = "nothing"
    SOURCE = "source"
    DESTINATION = "destination"
    UNTOUCHED = "untouched"
    """Whatever it holds by now: the move is over and does not concern itself with it."""


@attrs.frozen(kw_only=True)
class Step:
    """What an event makes of a move.

    Attributes:
        state: The state afterwards.
        instance: What the instance holds afterwards.
        migration: What the migration holds afterwards.
        changes: False for a repeat, which writes nothing.
        needs_proof: Somebody must say who proved the source gone.
    """

    state: MoveState
    instance: Holds
    migration: Holds
    changes: bool = True
    needs_proof: bool = False


def _repeat(state: MoveState) -> Step:
    return Step(state=state, instance=Holds.UNTOUCHED, migration=Holds.NOTHING, changes=False)


_ORDINARY: dict[tuple[MoveState | None, MoveEvent], Step] = {
    (None, MoveEvent.BEGIN): Step(state=MoveState.HELD, instance=Holds.DESTINATION, migration=Holds.SOURCE),
    (MoveState.HELD, MoveEvent.BEGIN): Step(
        state=MoveState.HELD, instance=Holds.DESTINATION, migration=Holds.SOURCE, changes=False
    ),
    (MoveState.HELD, MoveEvent.CONFIRM): Step(
        state=MoveState.CONFIRMED, instance=Holds.DESTINATION, migration=Holds.NOTHING
    ),
    (MoveState.HELD, MoveEvent.REVERT): Step(state=MoveState.REVERTED, instance=Holds.SOURCE, migration=Holds.NOTHING),
    (MoveState.HELD, MoveEvent.EXPIRE): Step(state=MoveState.EXPIRED, instance=Holds.SOURCE, migration=Holds.NOTHING),
    (MoveState.HELD, MoveEvent.ABANDON): Step(
        state=MoveState.ABANDONED, instance=Holds.NOTHING, migration=Holds.NOTHING
    ),
    (MoveState.HELD, MoveEvent.RELEASE): Step(state=MoveState.ENDED, instance=Holds.NOTHING, migration=Holds.NOTHING),
    (MoveState.CONFIRMED, MoveEvent.CONFIRM): _repeat(MoveState.CONFIRMED),
    (MoveState.REVERTED, MoveEvent.REVERT): _repeat(MoveState.REVERTED),
    (MoveState.EXPIRED, MoveEvent.EXPIRE): _repeat(MoveState.EXPIRED),
    (MoveState.EXPIRED, MoveEvent.REVERT): _repeat(MoveState.EXPIRED),
    (MoveState.ABANDONED, MoveEvent.ABANDON): _repeat(MoveState.ABANDONED),
    (MoveState.ENDED, MoveEvent.ABANDON): _repeat(MoveState.ENDED),
}

_EVACUATION: dict[tuple[MoveState | None, MoveEvent], Step] = {
    (MoveState.HELD, MoveEvent.CONFIRM): Step(
        state=MoveState.CONFIRMED, instance=Holds.DESTINATION, migration=Holds.NOTHING, needs_proof=True
    ),
    (MoveState.HELD, MoveEvent.ABANDON): Step(
        state=MoveState.ABANDONED, instance=Holds.NOTHING, migration=Holds.NOTHING, needs_proof=True
    ),
    (MoveState.HELD, MoveEvent.RELEASE): Step(
        state=MoveState.AWAITING_PROOF, instance=Holds.NOTHING, migration=Holds.SOURCE
    ),
    (MoveState.AWAITING_PROOF, MoveEvent.CONFIRM): Step(
        state=MoveState.CONFIRMED, instance=Holds.UNTOUCHED, migration=Holds.NOTHING, needs_proof=True
    ),
    (MoveState.AWAITING_PROOF, MoveEvent.ABANDON): Step(
        state=MoveState.ABANDONED, instance=Holds.UNTOUCHED, migration=Holds.NOTHING, needs_proof=True
    ),
}

TRANSITIONS: Mapping[MoveKind, Mapping[tuple[MoveState | None, MoveEvent], Step]] = {
    MoveKind.COLD: _ORDINARY,
    MoveKind.RESIZE: _ORDINARY,
    MoveKind.LIVE: _ORDINARY,
    MoveKind.EVACUATION: {
        **{key: step for key, step in _ORDINARY.items() if MoveEvent.EXPIRE not in key},
        **_EVACUATION,
    },
}
"""For each kind: (state, event) → step. What is not listed is refused. The state None stands for no record."""


_HOLDERS = {
    MoveState.HELD: ("the migration", "the instance"),
    MoveState.AWAITING_PROOF: ("the migration", "nobody"),
    MoveState.CONFIRMED: ("nobody", "the instance"),
    MoveState.REVERTED: ("the instance", "nobody"),
    MoveState.EXPIRED: ("the instance", "nobody"),
}
"""State → who holds the source and who the destination; nobody holds either after the other states."""


@attrs.frozen(kw_only=True)
class Move:
    """A move as recorded.

    Attributes:
        migration: Uuid of the migration, the consumer that holds the source.
        instance: Uuid of the instance.
        kind: What is being done.
        state: Where it stands.
        source: What the instance held when the move began, and holds again after a revert.
        destination: What the instance held last at the destination.
        asked: The destination that the move began with; another one follows when an alternate is taken.
        shared: Providers of the source that hold the same thing for a destination that has them too, counted once.
        overlap: How a provider on both sides is counted: the ``sum`` of the halves, or their ``maximum``.
        expires_at: When it reverts by itself, by the database's clock; None for never.
        story: One line for each step, oldest first.
        repeated: The call changed nothing, because it had been done before.
    """

    migration: str
    instance: str
    kind: MoveKind
    state: MoveState
    source: Allocations
    destination: Allocations
    asked: Allocations
    shared: tuple[str, ...] = ()
    overlap: Overlap = "sum"
    expires_at: datetime | None = None
    story: tuple[str, ...] = ()
    repeated: bool = False

    def _table_row_(self) -> dict[str, Any]:
        return {
            "migration": self.migration,
            "instance": self.instance,
            "kind": self.kind,
            "state": self.state,
            "source": self.source,
            "destination": self.destination,
            "expires_at": self.expires_at,
        }

    def _twice(self) -> str:
        """That both halves count on one provider, while they do: a destination on the instance's own host, mostly."""
        both = sorted(self.source.keys() & self.destination.keys() - set(self.shared))
        if not both or self.state is not MoveState.HELD:
            return ""
        return f". Source and destination are both on {', '.join(both)}, where their {self.overlap} is in use"

    def _repr_html_(self) -> str:
        of_source, of_destination = _HOLDERS.get(self.state, ("nobody", "nobody"))
        rows = (("the source", self.source, of_source), ("the destination", self.destination, of_destination))
        return html_of(
            f"{self.kind} move of instance {self.instance} by migration {self.migration}: {self.state}{self._twice()}",
            Table(title="After the last step", headings=("", "allocations", "held by"), rows=rows),
            Table(title="Story", headings=("step",), rows=tuple((step,) for step in self.story)),
        )


def decide(move: Move, event: MoveEvent, *, proof: str | None = None) -> Step:
    """Return what *event* makes of *move*.

    Raises:
        InvalidTransition: It contradicts what has happened.
        FencingRequired: The source of an evacuation would be freed and nobody says who proved it gone.
    """
    step = TRANSITIONS[move.kind].get((move.state, event))
    if step is None:
        raise InvalidTransition(
            f"move {move.migration} of instance {move.instance} is {move.state}: {event} is too late and changed "
            f"nothing ({'; '.join(move.story)})",
            identifier=move.migration,
            state=str(move.state),
            event=str(event),
            story=move.story,
        )
    if step.needs_proof and not proof:
        raise FencingRequired(
            f"move {move.migration}: the source host of an evacuation keeps its allocation until it is proved gone; "
            f"give proof= (who fenced it, or saw that it has destroyed the guest)",
            host=", ".join(move.source),
        )
    return step


def validate_beginning(move: Move, *, expires: bool) -> None:
    """Check what a move may begin with.

    Raises:
        InvalidAllocation: A live migration would change the shape, or *shared* names a provider not in the source.
        InvalidArgument: An evacuation would expire.
    """
    if move.kind is MoveKind.EVACUATION and expires:
        raise InvalidArgument(
            "an evacuation cannot expire: time passed does not prove that the source host is dead",
            field="expires_in",
        )
    old, new = total_by_class(move.source), total_by_class(move.destination)
    if move.kind is MoveKind.LIVE and old != new:
        raise InvalidAllocation(
            f"a live migration keeps the shape: the instance holds {old}, the destination is {new}",
            field="destination",
        )
    stray = sorted(set(move.shared) - move.source.keys())  # the destination may change, and share it later
    if stray:
        raise InvalidAllocation(
            f"shared providers must be in the source; not so {', '.join(stray)}",
            field="shared",
            value=stray,
        )


def held_by_migration(move: Move) -> dict[str, dict[str, int]]:
    """What the migration holds while the instance holds the destination.

    That is the source. From a provider counted once the two together hold the larger of the two amounts of each class,
    not the sum, so the migration holds only what the destination lacks.
    """
    result: dict[str, dict[str, int]] = {}
    for provider, resources in move.source.items():
        once = move.overlap == "maximum" or provider in move.shared
        there = move.destination.get(provider, {}) if once else {}
        left = {name: amount - there.get(name, 0) for name, amount in resources.items()}
        if kept := {name: amount for name, amount in left.items() if amount > 0}:
            result[provider] = kept
    return result


def same_beginning(recorded: Move, asked: Move) -> bool:
    """Whether a repeated ``begin_move`` asks for what a move began with."""
    return all(
        getattr(recorded, name) == getattr(asked, name) for name in ("instance", "kind", "asked", "shared", "overlap")
    )
