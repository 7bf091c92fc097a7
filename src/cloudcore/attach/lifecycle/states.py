"""The state table of an attachment: (state, event) → (state, instruction). Pure.

A state ending in *-ing* says which step may be under way: it is written before the step begins, so that after a crash
the journal names the one thing that may or may not have happened. An *uncertain* state says that nobody is driving that
step any more and its answer is lost; a probe, not an assumption, leads out of it. :data:`TABLE` holds every legal pair;
any other raises :class:`~cloudcore.errors.InvalidTransition` with the story of the attachment.

Rules that the table encodes (checked by :func:`breaches`):

1. A volume is unmapped only after the guest has let it go and the host has, unless the host is fenced.
2. Undoing starts at the step that may have happened, never later: from PLUGGING the guest is asked first.
3. Every state that is not at rest leads to one that is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from cloudcore.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "AT_REST",
    "GROUPS",
    "HOLDS",
    "TABLE",
    "UNDO_UNASKED",
    "USES_HOST",
    "WAITING",
    "Event",
    "Instruction",
    "State",
    "Transition",
    "breaches",
    "diagram",
    "resume",
    "transition",
]


class State(StrEnum):
    """Where an attachment is. Values are what the journal stores."""

    # attach
    RESERVING = "reserving"
    RESERVE_UNCERTAIN = "reserve-uncertain"
    MAPPING = "mapping"
    MAP_UNCERTAIN = "map-uncertain"
    CONNECTING = "connecting"
    PLUGGING = "plugging"
    PLUG_UNCERTAIN = "plug-uncertain"
    COMPLETING = "completing"
    COMPLETE_UNCERTAIN = "complete-uncertain"
    ATTACHED = "attached"
    # the second leg of a live move
    CREATING = "creating"
    CREATE_UNCERTAIN = "create-uncertain"
    JOINING = "joining"
    SETTLING = "settling"
    SETTLE_UNCERTAIN = "settle-uncertain"
    STAGED = "staged"
    # held for an instance that is on no host
    HOLDING = "holding"
    HOLD_UNCERTAIN = "hold-uncertain"
    PARKING = "parking"
    PARK_UNCERTAIN = "park-uncertain"
    HELD = "held"
    # the same by a reservation alone, while what the volume holds is replaced
    CLAIMING = "claiming"
    CLAIM_UNCERTAIN = "claim-uncertain"
    RESERVED = "reserved"
    # detach, and undoing any of the above
    UNPLUGGING = "unplugging"
    UNPLUG_UNCERTAIN = "unplug-uncertain"
    DISCONNECTING = "disconnecting"
    UNMAPPING = "unmapping"
    UNMAP_UNCERTAIN = "unmap-uncertain"
    PENDING = "pending"
    QUARANTINED = "quarantined"
    ABSENT = "absent"

    @property
    def uncertain(self) -> bool:
        """The answer to a step was lost; a probe must tell."""
        return self.value.endswith("-uncertain")


class Event(StrEnum):
    """What happened to an attachment."""

    DONE = "done"  # the step succeeded
    REFUSED = "refused"  # the step failed and had no effect
    LOST = "lost"  # the answer is lost, or whoever drove the step is dead
    FOUND = "found"  # a probe sees the effect
    MISSING = "missing"  # a probe sees no effect
    UNDO = "undo"  # what was begun shall not be finished
    DETACH = "detach"  # somebody asks for it
    PENDING = "pending"  # the guest has been asked, and has not let go yet
    VANISHED = "vanished"  # the volume service no longer knows the attachment
    FENCED = "fenced"  # the host is proven dead
    PLACE = "place"  # a held volume shall go to a host
    ARRIVED = "arrived"  # the guest runs where the leg was staged
    LEFT = "left"  # the guest has gone to the other leg's host


class Instruction(StrEnum):
    """What to do next."""

    RESERVE = "reserve"
    CREATE = "create"
    MAP = "map"
    CONNECT = "connect"
    PLUG = "plug"
    COMPLETE = "complete"
    UNPLUG = "unplug"
    DISCONNECT = "disconnect"
    UNMAP = "unmap"
    FIND_RESERVATION = "find-reservation"  # list by volume and instance
    LOOK_AT_MAPPING = "look-at-mapping"  # show: does it hold a connection?
    LOOK_AT_GUEST = "look-at-guest"  # does the guest have the disk?
    LOOK_AT_STATUS = "look-at-status"  # show: is it attached?
    LOOK_AT_RECORD = "look-at-record"  # show: is it there at all?


@attrs.frozen
class Transition:
    """Where an event leads, and what to do there (None: nothing, until the next event)."""

    state: State
    instruction: Instruction | None = None


S, E, I = State, Event, Instruction  # noqa: E741 - the table below is read more often than this line


def _to(state: State, instruction: Instruction | None = None) -> Transition:
    return Transition(state, instruction)


TABLE: dict[tuple[State, Event], Transition] = {
    # attach
    (S.RESERVING, E.DONE): _to(S.MAPPING, I.MAP),
    (S.RESERVING, E.REFUSED): _to(S.ABSENT),
    (S.RESERVING, E.LOST): _to(S.RESERVE_UNCERTAIN, I.FIND_RESERVATION),
    (S.RESERVE_UNCERTAIN, E.FOUND): _to(S.MAPPING, I.MAP),
    (S.RESERVE_UNCERTAIN, E.MISSING): _to(S.RESERVING, I.RESERVE),
    (S.RESERVE_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.MAPPING, E.DONE): _to(S.CONNECTING, I.CONNECT),
    (S.MAPPING, E.REFUSED): _to(S.UNMAPPING, I.UNMAP),
    (S.MAPPING, E.LOST): _to(S.MAP_UNCERTAIN, I.LOOK_AT_MAPPING),
    (S.MAP_UNCERTAIN, E.FOUND): _to(S.CONNECTING, I.CONNECT),
    (S.MAP_UNCERTAIN, E.MISSING): _to(S.MAPPING, I.MAP),
    (S.MAP_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.MAP_UNCERTAIN, E.VANISHED): _to(S.ABSENT),
    (S.CONNECTING, E.DONE): _to(S.PLUGGING, I.PLUG),
    (S.CONNECTING, E.REFUSED): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.CONNECTING, E.LOST): _to(S.CONNECTING, I.CONNECT),
    (S.CONNECTING, E.UNDO): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.CONNECTING, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.PLUGGING, E.DONE): _to(S.COMPLETING, I.COMPLETE),
    (S.PLUGGING, E.REFUSED): _to(S.UNPLUGGING, I.UNPLUG),
    (S.PLUGGING, E.LOST): _to(S.PLUG_UNCERTAIN, I.LOOK_AT_GUEST),
    (S.PLUG_UNCERTAIN, E.FOUND): _to(S.COMPLETING, I.COMPLETE),
    (S.PLUG_UNCERTAIN, E.MISSING): _to(S.PLUGGING, I.PLUG),
    (S.PLUG_UNCERTAIN, E.UNDO): _to(S.UNPLUGGING, I.UNPLUG),
    (S.PLUG_UNCERTAIN, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.COMPLETING, E.DONE): _to(S.ATTACHED),
    (S.COMPLETING, E.REFUSED): _to(S.UNPLUGGING, I.UNPLUG),
    (S.COMPLETING, E.LOST): _to(S.COMPLETE_UNCERTAIN, I.LOOK_AT_STATUS),
    (S.COMPLETE_UNCERTAIN, E.FOUND): _to(S.ATTACHED),
    (S.COMPLETE_UNCERTAIN, E.MISSING): _to(S.COMPLETING, I.COMPLETE),
    (S.COMPLETE_UNCERTAIN, E.VANISHED): _to(S.QUARANTINED, I.UNPLUG),
    (S.COMPLETE_UNCERTAIN, E.UNDO): _to(S.UNPLUGGING, I.UNPLUG),
    (S.COMPLETE_UNCERTAIN, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    # attached
    (S.ATTACHED, E.DETACH): _to(S.UNPLUGGING, I.UNPLUG),
    (S.ATTACHED, E.LEFT): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.ATTACHED, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.ATTACHED, E.VANISHED): _to(S.QUARANTINED, I.UNPLUG),
    (S.QUARANTINED, E.DONE): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.QUARANTINED, E.PENDING): _to(S.QUARANTINED),
    (S.QUARANTINED, E.REFUSED): _to(S.QUARANTINED),
    (S.QUARANTINED, E.LOST): _to(S.QUARANTINED, I.UNPLUG),
    (S.QUARANTINED, E.DETACH): _to(S.QUARANTINED, I.UNPLUG),
    (S.QUARANTINED, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    # the second leg of a live move
    (S.CREATING, E.DONE): _to(S.JOINING, I.CONNECT),
    (S.CREATING, E.REFUSED): _to(S.ABSENT),
    (S.CREATING, E.LOST): _to(S.CREATE_UNCERTAIN, I.FIND_RESERVATION),
    (S.CREATE_UNCERTAIN, E.FOUND): _to(S.UNMAPPING, I.UNMAP),
    (S.CREATE_UNCERTAIN, E.MISSING): _to(S.CREATING, I.CREATE),
    (S.CREATE_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.JOINING, E.DONE): _to(S.SETTLING, I.COMPLETE),
    (S.JOINING, E.REFUSED): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.JOINING, E.LOST): _to(S.JOINING, I.CONNECT),
    (S.JOINING, E.UNDO): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.JOINING, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.SETTLING, E.DONE): _to(S.STAGED),
    (S.SETTLING, E.REFUSED): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.SETTLING, E.LOST): _to(S.SETTLE_UNCERTAIN, I.LOOK_AT_STATUS),
    (S.SETTLE_UNCERTAIN, E.FOUND): _to(S.STAGED),
    (S.SETTLE_UNCERTAIN, E.MISSING): _to(S.SETTLING, I.COMPLETE),
    (S.SETTLE_UNCERTAIN, E.VANISHED): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.SETTLE_UNCERTAIN, E.UNDO): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.SETTLE_UNCERTAIN, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.STAGED, E.ARRIVED): _to(S.ATTACHED),
    (S.STAGED, E.UNDO): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.STAGED, E.DETACH): _to(S.UNPLUGGING, I.UNPLUG),
    (S.STAGED, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    # held
    (S.HOLDING, E.DONE): _to(S.PARKING, I.COMPLETE),
    (S.HOLDING, E.REFUSED): _to(S.ABSENT),
    (S.HOLDING, E.LOST): _to(S.HOLD_UNCERTAIN, I.FIND_RESERVATION),
    (S.HOLD_UNCERTAIN, E.FOUND): _to(S.PARKING, I.COMPLETE),
    (S.HOLD_UNCERTAIN, E.MISSING): _to(S.HOLDING, I.RESERVE),
    (S.HOLD_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.PARKING, E.DONE): _to(S.HELD),
    (S.PARKING, E.REFUSED): _to(S.UNMAPPING, I.UNMAP),
    (S.PARKING, E.LOST): _to(S.PARK_UNCERTAIN, I.LOOK_AT_STATUS),
    (S.PARK_UNCERTAIN, E.FOUND): _to(S.HELD),
    (S.PARK_UNCERTAIN, E.MISSING): _to(S.PARKING, I.COMPLETE),
    (S.PARK_UNCERTAIN, E.VANISHED): _to(S.ABSENT),
    (S.PARK_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.HELD, E.PLACE): _to(S.MAPPING, I.MAP),
    (S.HELD, E.DETACH): _to(S.UNMAPPING, I.UNMAP),
    (S.HELD, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.HELD, E.VANISHED): _to(S.ABSENT),
    # held by a reservation alone
    (S.CLAIMING, E.DONE): _to(S.RESERVED),
    (S.CLAIMING, E.REFUSED): _to(S.ABSENT),
    (S.CLAIMING, E.LOST): _to(S.CLAIM_UNCERTAIN, I.FIND_RESERVATION),
    (S.CLAIM_UNCERTAIN, E.FOUND): _to(S.RESERVED),
    (S.CLAIM_UNCERTAIN, E.MISSING): _to(S.CLAIMING, I.RESERVE),
    (S.CLAIM_UNCERTAIN, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.RESERVED, E.PLACE): _to(S.MAPPING, I.MAP),
    (S.RESERVED, E.DETACH): _to(S.UNMAPPING, I.UNMAP),
    (S.RESERVED, E.UNDO): _to(S.UNMAPPING, I.UNMAP),
    (S.RESERVED, E.VANISHED): _to(S.ABSENT),
    # detach, and undoing
    (S.UNPLUGGING, E.DONE): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.UNPLUGGING, E.PENDING): _to(S.PENDING),
    (S.UNPLUGGING, E.REFUSED): _to(S.COMPLETING, I.COMPLETE),
    (S.UNPLUGGING, E.LOST): _to(S.UNPLUG_UNCERTAIN, I.LOOK_AT_GUEST),
    (S.PENDING, E.DETACH): _to(S.UNPLUGGING, I.UNPLUG),
    (S.PENDING, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.UNPLUG_UNCERTAIN, E.FOUND): _to(S.UNPLUGGING, I.UNPLUG),
    (S.UNPLUG_UNCERTAIN, E.MISSING): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.UNPLUG_UNCERTAIN, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.DISCONNECTING, E.DONE): _to(S.UNMAPPING, I.UNMAP),
    (S.DISCONNECTING, E.LOST): _to(S.DISCONNECTING, I.DISCONNECT),
    (S.DISCONNECTING, E.REFUSED): _to(S.DISCONNECTING),
    (S.DISCONNECTING, E.FENCED): _to(S.UNMAPPING, I.UNMAP),
    (S.UNMAPPING, E.DONE): _to(S.ABSENT),
    (S.UNMAPPING, E.REFUSED): _to(S.UNMAPPING),
    (S.UNMAPPING, E.LOST): _to(S.UNMAP_UNCERTAIN, I.LOOK_AT_RECORD),
    (S.UNMAP_UNCERTAIN, E.FOUND): _to(S.UNMAPPING, I.UNMAP),
    (S.UNMAP_UNCERTAIN, E.MISSING): _to(S.ABSENT),
}
"""Every legal pair."""

AT_REST = frozenset({S.ATTACHED, S.STAGED, S.HELD, S.RESERVED, S.ABSENT})
"""States in which nothing is under way and nothing is awaited."""

WAITING = frozenset({S.PENDING, S.QUARANTINED})
"""States in which the guest was asked to let go and has not yet. The rest are somebody's unfinished work."""

USES_HOST = frozenset(
    {
        S.CONNECTING, S.PLUGGING, S.PLUG_UNCERTAIN, S.COMPLETING, S.COMPLETE_UNCERTAIN, S.ATTACHED,
        S.JOINING, S.SETTLING, S.SETTLE_UNCERTAIN, S.STAGED,
        S.UNPLUGGING, S.UNPLUG_UNCERTAIN, S.PENDING, S.QUARANTINED, S.DISCONNECTING,
    }
)  # fmt: skip
"""States in which the host may be connected to the volume: its users, arriving and leaving ones too."""

UNDO_UNASKED = frozenset(
    {
        S.RESERVE_UNCERTAIN, S.MAP_UNCERTAIN, S.CONNECTING, S.CREATE_UNCERTAIN, S.JOINING, S.SETTLE_UNCERTAIN,
        S.HOLD_UNCERTAIN, S.PARK_UNCERTAIN, S.CLAIM_UNCERTAIN,
    }
)  # fmt: skip
"""States that recovery undoes without a probe: no guest can have the disk yet, and undoing absent things succeeds."""

HOLDS = frozenset({S.HELD, S.RESERVED})
"""States at rest in which the volume is its instance's, on no host."""

_GUEST_MAY_HAVE_IT = USES_HOST - {S.CONNECTING, S.JOINING, S.SETTLING, S.SETTLE_UNCERTAIN, S.STAGED, S.DISCONNECTING}


GROUPS: dict[str, tuple[State, ...]] = {
    "Attach": (
        S.RESERVING, S.RESERVE_UNCERTAIN, S.MAPPING, S.MAP_UNCERTAIN, S.CONNECTING, S.PLUGGING, S.PLUG_UNCERTAIN,
        S.COMPLETING, S.COMPLETE_UNCERTAIN,
    ),
    "Detach": (
        S.ATTACHED, S.UNPLUGGING, S.UNPLUG_UNCERTAIN, S.PENDING, S.QUARANTINED, S.DISCONNECTING, S.UNMAPPING,
        S.UNMAP_UNCERTAIN,
    ),
    "The second leg of a live move": (
        S.CREATING, S.CREATE_UNCERTAIN, S.JOINING, S.SETTLING, S.SETTLE_UNCERTAIN, S.STAGED,
    ),
    "Held for an instance that is on no host": (
        S.HOLDING, S.HOLD_UNCERTAIN, S.PARKING, S.PARK_UNCERTAIN, S.HELD, S.CLAIMING, S.CLAIM_UNCERTAIN, S.RESERVED,
    ),
}  # fmt: skip
"""The states in groups that fit into one diagram each; every state that anything leads out of is in one."""


def transition(state: State, event: Event, story: Sequence[str] = (), *, identifier: str | None = None) -> Transition:
    """Where *event* leads from *state*.

    Raises:
        InvalidTransition: The pair is not in the table; carries *story*, what happened to the attachment so far.
    """
    found = TABLE.get((state, event))
    if found is None:
        legal = ", ".join(sorted(e for s, e in TABLE if s is state)) or "nothing"
        raise InvalidTransition(
            f"attachment {identifier}: {event} is not possible while it is {state}; possible: {legal}",
            identifier=identifier,
            state=str(state),
            event=str(event),
            story=tuple(story),
        )
    return found


def resume(state: State) -> Instruction | None:
    """The instruction that was under way in *state*, None for a state at rest.

    It is the one that every transition into *state* gives, apart from those that only wait.
    """
    return _RESUME.get(state)


def _resume_table() -> dict[State, Instruction]:
    found: dict[State, Instruction] = dict.fromkeys((S.RESERVING, S.HOLDING, S.CLAIMING), I.RESERVE)
    found[S.CREATING] = I.CREATE
    for target in TABLE.values():
        if target.instruction is not None:
            previous = found.setdefault(target.state, target.instruction)
            assert previous is target.instruction, f"{target.state} is entered with two different instructions"
    return found


_RESUME = _resume_table()


def breaches(table: Iterable[tuple[tuple[State, Event], Transition]] | None = None) -> list[str]:
    """What the table breaks of the rules in this module's text; an empty list, unless somebody edits it badly."""
    rows = list(TABLE.items() if table is None else table)
    found = []
    for (state, event), target in rows:
        jumps = target.state in {S.UNMAPPING, S.ABSENT} and event is not E.FENCED
        if jumps and state in USES_HOST and state is not S.DISCONNECTING:
            found.append(f"rule 1: {state} + {event} unmaps while the host may be connected")
        skips = target.state is S.DISCONNECTING and event not in {E.DONE, E.MISSING, E.LEFT}
        if skips and state in _GUEST_MAY_HAVE_IT:
            found.append(f"rule 2: {state} + {event} disconnects while the guest may have the disk")
    sources = {state for (state, _), _ in rows}
    reaches = set(AT_REST)
    while grown := {s for (s, _), t in rows if t.state in reaches} - reaches:
        reaches |= grown
    found += [f"rule 3: {state} leads nowhere" for state in sorted(sources - reaches)]
    return found


def diagram(states: Iterable[State] | None = None) -> str:
    """The table as a Mermaid state diagram; with *states*, only the transitions that begin in one of them."""
    chosen = set(State if states is None else states)
    lines = ["stateDiagram-v2"]
    for (state, event), target in TABLE.items():
        if state in chosen:
            action = f" / {target.instruction}" if target.instruction else ""
            lines.append(f"    {_name(state)} --> {_name(target.state)}: {event}{action}")
    return "\n".join(lines) + "\n"


def _name(state: State) -> str:
    return state.value.replace("-", "_")
