"""Which trees of a block have something for every slot of a request. Vectorised, and pure.

For each slot: the positions that could give it by themselves. A tree is worth looking at when every slot has a position
in it, or a sharing provider that serves it. Whether the slots can be filled *together* is the next question
(:mod:`cloudcore.placement.combining`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore.placement.columns import mask_of

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.columns import Block, Columns, Mask, Positions, Sharing
    from cloudcore.placement.compiled import CompiledRequest, Slot
    from cloudcore.placement.requests import RequestGroup

__all__ = ["BlockMatch", "Matcher", "any_member", "fit_positions"]

_NOBODY: Mapping[int, Mask] = {}


@attrs.frozen(eq=False)
class BlockMatch:
    """What one block has for a request.

    Attributes:
        block: The block.
        trees: The trees that have something for every slot, ascending.
        positions: Per slot, the positions of the block that could give it, ascending.
        anchors: Per slot, sharing provider that could give it → the trees that it serves from outside.
    """

    block: Block
    trees: Positions
    positions: Sequence[Positions]
    anchors: Sequence[Mapping[int, Mask]]


def fit_positions(block: Block, resources: Sequence[tuple[str, int]]) -> Positions | None:
    """Positions that could give every amount of *resources*; None when none are asked for, which all could."""
    found: Positions | None = None
    rows: Positions | None = None
    fits: Mask | None = None
    for name, amount in resources:
        column = block.classes.get(name)
        if column is None:
            return np.empty(0, dtype=np.intp)
        if rows is None or fits is None:
            rows, fits = column.rows, column.fits(amount)
        elif rows is column.rows:
            fits = fits & column.fits(amount)
        else:
            other = np.zeros(block.size, dtype=np.bool_)
            other[column.rows[column.fits(amount)]] = True
            found = rows[fits]
            rows, fits = found, other[found]
    return None if rows is None or fits is None else rows[fits]


class Matcher:
    """Matches one request against the blocks of one state of the forest.

    Args:
        columns: The state.
        compiled: The request.
        trees: in_tree uuid → number of the root of that tree, None when there is no such provider.
    """

    def __init__(self, columns: Columns, compiled: CompiledRequest, trees: Mapping[str, int | None]) -> None:
        self.columns = columns
        self.compiled = compiled
        self.trees = trees
        self._shared = [self._sharing_for(slot) for slot in compiled.slots]
        self._relevant = {i for indices in self._shared for i in indices}

    def match(self, block: Block) -> BlockMatch | None:
        """Find what *block* has; None when no tree of it has something for every slot."""
        trees = self.roots(block)
        if trees is not None and not trees.any():
            return None
        anchors = self.anchors(block)
        positions: list[Positions] = []
        for slot, served in zip(self.compiled.slots, anchors, strict=True):
            found = self.positions(block, slot)
            there = block.trees_with(found)
            for mask in served.values():
                there |= mask
            trees = there if trees is None else trees & there
            if not trees.any():
                return None
            positions.append(found)
        if trees is None:
            return None
        self._narrow_by_sums(block, trees, positions, anchors)
        self._narrow_by_traits(block, trees, positions, anchors)
        found = np.flatnonzero(trees)
        return BlockMatch(block, found, positions, anchors) if len(found) else None

    # --- one slot ----------------------------------------------------------------------------------------------------

    def positions(self, block: Block, slot: Slot) -> Positions:
        """Positions of *block* that could give *slot* to their own tree."""
        group = slot.group
        found = fit_positions(block, slot.resources)
        if found is None:
            found = np.arange(block.size, dtype=np.intp)
        if not len(found):
            return found
        if slot.suffix:
            found = _with_traits(block, found, group)
            found = _in_aggregates(block, found, group)
        else:
            found = _without_traits(block, found, group)
            found = _in_aggregates_or_root(block, found, group)
        if group.in_tree is not None:
            found = self._in_tree(block, found, group.in_tree)
        return found

    def _in_tree(self, block: Block, found: Positions, uuid: str) -> Positions:
        number = self.trees[uuid]
        tree = None if number is None else block.tree_numbered(number)
        return found[:0] if tree is None else found[block.tree_of[found] == tree]

    def roots(self, block: Block) -> Mask | None:
        """Trees whose root carries what ``root_required`` asks for; None when it asks for nothing."""
        request = self.compiled.request
        if not request.root_required and not request.root_forbidden:
            return None
        roots = block.starts[:-1]
        good = np.ones(block.trees, dtype=np.bool_)
        for trait in request.root_required:
            good &= block.trait_mask(trait)[roots]
        for trait in request.root_forbidden:
            good &= ~block.trait_mask(trait)[roots]
        return good

    # --- sharing providers -------------------------------------------------------------------------------------------

    def _sharing_for(self, slot: Slot) -> list[int]:
        """The sharing providers that could give *slot* to trees not their own."""
        sharing = self.columns.sharing
        group = slot.group
        if sharing is None or (not slot.suffix and group.in_tree is not None):
            return []
        block = sharing.block
        found = fit_positions(block, slot.resources)
        if found is None:
            found = np.arange(block.size, dtype=np.intp)
        found = _with_traits(block, found, group) if slot.suffix else _without_traits(block, found, group)
        found = _in_aggregates(block, found, group)
        indices: list[int] = found.tolist()
        if group.in_tree is not None:
            number = self.trees[group.in_tree]
            indices = [i for i in indices if sharing.root_numbers[i] == number]
        return indices

    def anchors(self, block: Block) -> list[Mapping[int, Mask]]:
        """Per slot: sharing provider that could give it → the trees of *block*, not its own, that it serves."""
        sharing = self.columns.sharing
        if sharing is None or not self._relevant:
            return [_NOBODY] * len(self.compiled.slots)
        serving = self.serving(block, sharing, self._relevant)
        barred = self.barred(block)
        anchors: list[Mapping[int, Mask]] = []
        for slot, able in zip(self.compiled.slots, self._shared, strict=True):
            there = {i: serving[i] for i in able if i in serving}
            if barred is not None and not slot.suffix:
                there = {i: trees & ~barred for i, trees in there.items()}
            anchors.append(there)
        return anchors

    def serving(self, block: Block, sharing: Sharing, relevant: Container[int]) -> dict[int, Mask]:
        """For each of the *relevant* sharing providers: the trees of *block*, not its own, that it serves."""
        serving: dict[int, Mask] = {}
        for aggregate in block.aggregates.keys() & sharing.by_aggregate.keys():
            able = [index for index in sharing.by_aggregate[aggregate] if index in relevant]
            if able:
                trees = block.trees_with(np.flatnonzero(block.aggregate_mask(aggregate)))
                for index in able:
                    serving[index] = serving[index] | trees if index in serving else trees.copy()
        for index, trees in serving.items():
            own = block.tree_numbered(sharing.root_numbers[index])
            if own is not None:
                trees[own] = False
        return serving

    def barred(self, block: Block) -> Mask | None:
        """Trees whose root is in an aggregate that the spread group forbids: nothing may be used from there."""
        spread = self.compiled.request.groups.get("")
        if spread is None or not spread.not_member_of:
            return None
        return any_member(block.aggregates, spread.not_member_of, block.size)[block.starts[:-1]]

    # --- whole trees -------------------------------------------------------------------------------------------------

    def _narrow_by_sums(
        self, block: Block, trees: Mask, positions: Sequence[Positions], anchors: Sequence[Mapping[int, Mask]]
    ) -> None:
        """Drop trees that have less room for a class, all told, than the slots ask for together."""
        for name, total in self.compiled.shared.items():
            asking = [i for i, slot in enumerate(self.compiled.slots) if any(c == name for c, _ in slot.resources)]
            column = block.classes.get(name)
            room: NDArray[Any] = np.zeros(block.trees)
            if column is not None:
                usable = np.zeros(block.size, dtype=np.bool_)
                for i in asking:
                    usable[positions[i]] = True
                weights = np.minimum(column.room, total) * usable[column.rows]
                room = np.bincount(block.tree_of[column.rows], weights=weights, minlength=block.trees)
            for served in {index: mask for i in asking for index, mask in anchors[i].items()}.values():
                room += served * total
            trees &= room >= total

    def _narrow_by_traits(
        self, block: Block, trees: Mask, positions: Sequence[Positions], anchors: Sequence[Mapping[int, Mask]]
    ) -> None:
        """Drop trees where nothing that the spread group could use carries one of its required traits."""
        collective = self.compiled.collective
        if not collective:
            return
        group = self.compiled.slots[collective[0]].group
        sharing = self.columns.sharing
        for alternatives in group.required:
            carries = _any_trait(block, alternatives)
            there = np.zeros(block.trees, dtype=np.bool_)
            for i in collective:
                there[block.tree_of[positions[i][carries[positions[i]]]]] = True
                for index, served in anchors[i].items():
                    if sharing is not None and alternatives & sharing.block.providers[index].traits:
                        there |= served
            trees &= there


# --- conditions on positions -----------------------------------------------------------------------------------------


def _any_trait(block: Block, names: frozenset[str]) -> Mask:
    return any_member(block.traits, names, block.size)


def any_member(sets: Mapping[str, NDArray[Any]], names: frozenset[str], size: int) -> Mask:
    """Which positions are in one of the sets of these *names*."""
    found: Mask | None = None
    for name in names:
        members = sets.get(name)
        if members is not None:
            mask = mask_of(members, size)
            found = mask if found is None else found | mask
    return np.zeros(size, dtype=np.bool_) if found is None else found


def _with_traits(block: Block, found: Positions, group: RequestGroup) -> Positions:
    for alternatives in group.required:
        if not len(found):
            return found
        found = found[_any_trait(block, alternatives)[found]]
    return _without_traits(block, found, group)


def _without_traits(block: Block, found: Positions, group: RequestGroup) -> Positions:
    present = group.forbidden & block.traits.keys() if group.forbidden else group.forbidden
    return found[~_any_trait(block, present)[found]] if present and len(found) else found


def _in_aggregates(block: Block, found: Positions, group: RequestGroup) -> Positions:
    for alternatives in group.member_of:
        found = found[any_member(block.aggregates, alternatives, block.size)[found]]
    if group.not_member_of:
        found = found[~any_member(block.aggregates, group.not_member_of, block.size)[found]]
    return found


def _in_aggregates_or_root(block: Block, found: Positions, group: RequestGroup) -> Positions:
    """For the spread group a condition on aggregates is met by the provider itself, or by the root of the tree."""
    if not group.member_of and not group.not_member_of:
        return found
    root_of = block.starts[block.tree_of[found]]
    if group.member_of:
        member = np.ones(block.size, dtype=np.bool_)
        for alternatives in group.member_of:
            member &= any_member(block.aggregates, alternatives, block.size)
        good = member[found] | member[root_of]
        found, root_of = found[good], root_of[good]
    if group.not_member_of:
        wrong = any_member(block.aggregates, group.not_member_of, block.size)
        found = found[~(wrong[found] | wrong[root_of])]
    return found
