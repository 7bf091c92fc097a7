"""The error to raise for an attachment that did not get where it should. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore.attach.lifecycle.states import State
from cloudcore.errors import CloudcoreError, Conflict, OutcomeUnknown, VolumeServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.attach.lifecycle.records import Attachment, Move, StoryLine

__all__ = ["failure", "in_a_move"]


def failure(leg: Attachment, error: CloudcoreError | None, verb: str, story: Sequence[StoryLine]) -> CloudcoreError:
    """What *verb* raises for *leg*, which ended elsewhere because of *error*; its notes tell the story.

    An unknown outcome that was resolved since (the leg is absent) is no unknown outcome any more; any error that left
    an uncertain state behind is one.
    """
    if error is None:
        error = Conflict(f"{verb} of attachment {leg.id} ended as {leg.state}", identifier=leg.id)
    if leg.state is State.ABSENT and isinstance(error, OutcomeUnknown):
        error = _instead(VolumeServiceUnavailable(f"{error}; attachment {leg.id} was undone"), error)
    if leg.state.uncertain and not isinstance(error, OutcomeUnknown):
        text = (
            f"{verb} of volume {leg.volume_id}: attachment {leg.id} is {leg.state} and nobody could be asked "
            f"({error}); recover() resolves it"
        )
        error = _instead(OutcomeUnknown(text, operation_id=leg.operation_id), error)
    if leg.state not in {State.ABSENT, State.ATTACHED}:
        error.add_note(f"attachment {leg.id} is left {leg.state}; recover() goes on with it")
    error.add_note(f"story of attachment {leg.id}: {'; '.join(str(line) for line in story)}")
    return error


def _instead(better: CloudcoreError, error: CloudcoreError) -> CloudcoreError:
    better.__cause__ = error
    return better


def in_a_move(move: Move) -> Conflict:
    """The refusal of what has to wait for *move*, with what ends it."""
    if move.phase == "ending":
        step = "terminate() finishes it"
    elif move.kind == "snapshot":
        step = "wait for it; if who made it died, recover() undoes it"
    elif move.kind == "swap":
        step = "wait for it; if who made it died, recover() goes on with it, and revert_move() keeps the old volume"
    else:
        step = "confirm or revert it first"
    places = f" from {move.source}" + ("" if move.destination is None else f" to {move.destination}")
    return Conflict(
        f"instance {move.instance_id} is in a {move.kind} move{places} ({move.phase}): {step}",
        identifier=move.instance_id,
    )
