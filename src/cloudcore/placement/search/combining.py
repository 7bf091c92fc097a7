"""How the slots of a request can be filled together in one tree. Pure.

Slots are filled one after the other, each with the first provider that the conditions still allow; a dead end goes one
slot back. So combinations come out one by one, in lexicographic order, and whoever wants ten pays for ten. Where that
goes back too often, it is asked ahead whether what is there can be completed at all
(:mod:`cloudcore.placement.search.completing`); the order stays.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from cloudcore.placement.search.completing import Completion, Effort
from cloudcore.placement.search.conditions import CONDITIONS, Condition, ConditionType, Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.one_tree import OneTree

__all__ = ["combinations"]

_PATIENCE = 128
"""Providers that are tried in vain, beside some for each slot, before it is asked ahead."""


def combinations(
    compiled: CompiledRequest,
    tree: OneTree,
    effort: Effort,
    *,
    fold: bool = False,
    conditions: Sequence[ConditionType] = CONDITIONS,
) -> Iterator[tuple[int, ...]]:
    """Yield a handle for each slot, for every way to fill them all, in lexicographic order.

    Args:
        compiled: The request.
        tree: The tree, with the options of every slot.
        effort: What it may cost.
        fold: Of ways that differ only in which of several equal groups gets what, yield the first.
        conditions: Those that must hold.

    Raises:
        Undecided: It could not be told within the bound whether there is another one.
    """
    active = [
        condition(compiled, tree)
        for condition in conditions
        if condition.applies(compiled) and not (condition is Room and tree.apart)
    ]
    twins = [slot.twin for slot in compiled.slots]
    folding = fold and any(twin is not None for twin in twins)
    if not active and not folding:
        yield from product(*tree.options)
        return
    kept = twins if folding else [None] * len(twins)
    effort.begin()
    yield from _walk(tree.options, active, kept, effort, lambda: Completion(compiled, tree, conditions, kept, effort))


def _walk(
    options: Sequence[Sequence[int]],
    conditions: Sequence[Condition],
    twins: Sequence[int | None],
    effort: Effort,
    look_ahead: Callable[[], Completion],
) -> Iterator[tuple[int, ...]]:
    """Fill the slots in order, going back at dead ends. No recursion: a request may have many slots."""
    last = len(options) - 1
    chosen = [-1] * len(options)  # per slot, the option in use
    slot = 0
    ahead: Completion | None = None
    patience = 0 if effort.impatient else _PATIENCE + 4 * len(options)
    while slot >= 0:
        if patience <= 0 and ahead is None:
            effort.impatient = True
            ahead = look_ahead()
            if not ahead.possible():
                return
            slot = _back_to_what_is_possible(options, conditions, chosen, slot, ahead)
        handles = options[slot]
        if chosen[slot] >= 0:
            _leave(conditions, slot, handles[chosen[slot]])
            following = chosen[slot] + 1
        else:
            twin = twins[slot]
            following = 0 if twin is None else chosen[twin]
        while following < len(handles):
            patience -= 1
            if _enter(conditions, slot, handles[following]):
                chosen[slot] = following
                if ahead is None or ahead.keeps(slot, chosen):
                    break
                _leave(conditions, slot, handles[following])
            following += 1
        if following == len(handles):
            chosen[slot] = -1
            slot -= 1
            continue
        if slot == last:
            yield tuple(handles[i] for handles, i in zip(options, chosen, strict=True))
            patience = _PATIENCE
            effort.begin(found=True)
        else:
            slot += 1


def _back_to_what_is_possible(
    options: Sequence[Sequence[int]], conditions: Sequence[Condition], chosen: list[int], slot: int, ahead: Completion
) -> int:
    """Give up what can no longer be completed; return the slot to go on with."""
    hopeless = next((one for one in range(slot) if not ahead.keeps(one, chosen)), slot)
    while slot > hopeless:
        if chosen[slot] >= 0:
            _leave(conditions, slot, options[slot][chosen[slot]])
            chosen[slot] = -1
        slot -= 1
    return slot


def _enter(conditions: Sequence[Condition], slot: int, handle: int) -> bool:
    for done, condition in enumerate(conditions):
        if not condition.enter(slot, handle):
            for earlier in reversed(conditions[:done]):
                earlier.leave(slot, handle)
            return False
    return True


def _leave(conditions: Sequence[Condition], slot: int, handle: int) -> None:
    for condition in reversed(conditions):
        condition.leave(slot, handle)
