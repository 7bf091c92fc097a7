"""Which trees of a block have something for every slot of a request. Vectorised, and pure.

For each slot: the positions that could give it by themselves. A tree is worth looking at when every slot has a position
in it, or a sharing provider that serves it. Whether the slots can be filled *together* is the next question
(:mod:`cloudcore.placement.search.combining`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore.placement.columns.blocks import mask_of

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Block, Columns, Mask, Positions, Sharing
    from cloudcore.placement.search.compiled import CompiledRequest, Slot

__all__ = ["BlockMatch", "Matcher", "RememberedMatches", "any_member", "slot_positions"]

_NOBODY: Mapping[int, Mask] = {}
_NOWHERE: Positions = np.empty(0, dtype=np.intp)


@attrs.frozen(eq=False)
class BlockMatch:
    """What one block has for a request.

    Attributes:
        block: The block.
        trees: The trees that have something for every slot, ascending.
        positions: Per slot, the positions of the block that could give it, ascending.
        anchors: Per slot, sharing provider that could give it → the trees that it serves from outside.
        apart: Whether no provider could give one class to two slots: then what each may take is there for all.
    """

    block: Block
    trees: Positions
    positions: Sequence[Positions]
    anchors: Sequence[Mapping[int, Mask]]
    apart: bool = False


@attrs.define(eq=False)
class RememberedMatches:
    """What blocks had for one request, on the state that it was asked for last."""

    compiled: CompiledRequest
    state: tuple[Any, dict[int, tuple[Block, BlockMatch | None]]] = (None, {})  # one value: threads share it


_REMEMBERED = 64  # condition masks a block keeps; a byte for each row


def slot_positions(block: Block, slot: Slot, begin: int, end: int, *, shared: bool = False) -> Positions:
    """Positions from *begin* to *end* that could give *slot*, ``in_tree`` apart.

    *shared*: they would give it to other trees, so that their own root does not count.
    """
    if not slot.resources:
        mask = _condition_mask(block, slot, "", np.arange(block.size, dtype=np.intp), shared=shared)
        return np.arange(begin, end, dtype=np.intp) if mask is None else np.flatnonzero(mask[begin:end]) + begin
    name, amount = slot.resources[0]
    column = block.classes.get(name)
    if column is None or column.peak < amount:
        return _NOWHERE
    whole = end - begin == block.size
    rows = slice(None) if whole else column.between(begin, end)
    fits = column.fits(amount, rows)
    for other_name, other_amount in slot.resources[1:]:
        other = block.classes.get(other_name)
        if other is None or other.peak < other_amount:
            return _NOWHERE
        if other.rows is column.rows:
            fits &= other.fits(other_amount, rows)
        else:
            there = np.zeros(block.size, dtype=np.bool_)
            others = slice(None) if whole else other.between(begin, end)
            there[other.rows[others][other.fits(other_amount, others)]] = True
            fits &= there[column.rows[rows]]
    mask = _condition_mask(block, slot, name, column.rows, shared=shared)
    if mask is not None:
        fits &= mask[rows]
    return column.rows[rows][fits]


def _condition_mask(block: Block, slot: Slot, name: str, rows: Positions, *, shared: bool) -> Mask | None:
    """Which of *rows* meet the slot's conditions; None when there are none. Remembered: only edits change it."""
    if slot.conditions is None:
        return None
    key = (name, shared, slot.conditions)
    mask = block.remembered.get(key)
    if mask is None:
        mask = _conditions(block, slot, rows, shared=shared)
        if len(block.remembered) >= _REMEMBERED:
            block.remembered.clear()
        block.remembered[key] = mask
    return mask


def _conditions(block: Block, slot: Slot, rows: Positions, *, shared: bool) -> Mask:
    group = slot.group
    good = np.ones(len(rows), dtype=np.bool_)
    if slot.suffix:
        for alternatives in group.required:
            good &= any_member(block.traits, alternatives, block.size)[rows]
    if group.forbidden:
        good &= ~any_member(block.traits, group.forbidden, block.size)[rows]
    by_root = not slot.suffix and not shared  # the spread group: the provider itself or the root of its tree
    root_of = block.starts[block.tree_of[rows]] if by_root else rows
    if group.member_of:
        member = np.ones(block.size, dtype=np.bool_)
        for alternatives in group.member_of:
            member &= any_member(block.aggregates, alternatives, block.size)
        good &= member[rows] | member[root_of]
    if group.not_member_of:
        wrong = any_member(block.aggregates, group.not_member_of, block.size)
        good &= ~(wrong[rows] | wrong[root_of])
    return good


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

    def matches(self, remembered: RememberedMatches) -> list[BlockMatch | None]:
        """What each block has, in the order of the forest; blocks that have not changed are not looked at again."""
        sharing = self.columns.sharing
        about = (self.trees, self._shared, sharing and (sharing.index, sharing.by_aggregate, sharing.root_numbers))
        known_about, known_blocks = remembered.state
        before = known_blocks if known_about == about else {}
        after: dict[int, tuple[Block, BlockMatch | None]] = {}
        for block in self.columns.blocks:
            known = before.get(id(block))
            after[id(block)] = known if known is not None and known[0] is block else (block, self.match(block))
        remembered.state = (about, after)
        return [match for _, match in after.values()]

    def match(self, block: Block, first: int = 0, last: int | None = None) -> BlockMatch | None:
        """Find what the trees *first* to *last* (exclusive) of *block* have; None when none has something for all."""
        last = block.trees if last is None else last
        if self._hopeless(block):
            return None
        trees = self.roots(block)
        anchors = self.anchors(block)
        begin, end = int(block.starts[first]), int(block.starts[last])
        positions: list[Positions] = []
        for slot, served in zip(self.compiled.slots, anchors, strict=True):
            found = self.positions(block, slot, begin, end)
            if not len(found) and not served:
                return None
            positions.append(found)
        for found, served in zip(positions, anchors, strict=True):
            there = block.trees_with(found)
            for mask in served.values():
                there |= mask
            if trees is not None:
                there &= trees
            trees = there
        if trees is None or not trees.any():
            return None
        apart = self._apart(block, anchors)
        if not apart:
            self._narrow_by_sums(block, trees, positions, anchors)
        if self.compiled.collective:
            self._narrow_by_traits(block, trees, positions, anchors)
        found = np.flatnonzero(trees[first:last]) + first
        return BlockMatch(block, found, positions, anchors, apart) if len(found) else None

    def _hopeless(self, block: Block) -> bool:
        """Whether a glance tells that nothing in the block can give some slot, and no sharing provider can either."""
        for slot, able in zip(self.compiled.slots, self._shared, strict=True):
            if able:
                continue
            for name, amount in slot.resources:
                column = block.classes.get(name)
                if column is None or column.peak < amount:
                    return True
            if slot.suffix and any(names.isdisjoint(block.traits) for names in slot.group.required):
                return True
        return False

    # --- one slot ----------------------------------------------------------------------------------------------------

    def positions(self, block: Block, slot: Slot, begin: int, end: int) -> Positions:
        """Positions of *block*, from *begin* to *end*, that could give *slot* to their own tree."""
        found = slot_positions(block, slot, begin, end)
        return found if slot.group.in_tree is None else self._in_tree(block, found, slot.group.in_tree)

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
        found = slot_positions(block, slot, 0, block.size, shared=True)
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

    def short_together(self, block: Block) -> Mask:
        """Trees that have less room for some class, all told, than the slots ask for together."""
        enough = np.ones(block.trees, dtype=np.bool_)
        positions = [self.positions(block, slot, 0, block.size) for slot in self.compiled.slots]
        self._narrow_by_sums(block, enough, positions, self.anchors(block))
        return ~enough

    def _apart(self, block: Block, anchors: Sequence[Mapping[int, Mask]]) -> bool:
        """Whether conditions (different networks, say) leave no provider of *block* to two slots of a class."""
        for name, slots, conditions in self.compiled.rivals:
            if conditions is None or any(anchors[i] for i in slots):
                return False
            apart = block.apart.get((name, conditions))
            if apart is None:
                apart = self._no_rivals(block, name, slots)
                if len(block.apart) >= _REMEMBERED:
                    block.apart.clear()
                block.apart[name, conditions] = apart
            if not apart:
                return False
        return True

    def _no_rivals(self, block: Block, name: str, slots: Sequence[int]) -> bool:
        rows = block.classes[name].rows if name in block.classes else _NOWHERE
        taken = np.zeros(len(rows), dtype=np.bool_)
        for i in slots:
            mask = _conditions(block, self.compiled.slots[i], rows, shared=False)
            if (taken & mask).any():
                return False
            taken |= mask
        return True

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
                places = np.flatnonzero(usable)
                weights = np.minimum(column.room[column.rows.searchsorted(places)], total)
                amounts = {amount for i in asking for c, amount in self.compiled.slots[i].resources if c == name}
                if len(amounts) == 1:  # what is left over beside equal amounts is of no use
                    weights -= weights % amounts.pop()
                room = np.bincount(block.tree_of[places], weights=weights, minlength=block.trees)
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
            carries = any_member(block.traits, alternatives, block.size)
            there = np.zeros(block.trees, dtype=np.bool_)
            for i in collective:
                there[block.tree_of[positions[i][carries[positions[i]]]]] = True
                for index, served in anchors[i].items():
                    if sharing is not None and alternatives & sharing.block.providers[index].traits:
                        there |= served
            trees &= there


# --- conditions on positions -----------------------------------------------------------------------------------------


def any_member(sets: Mapping[str, NDArray[Any]], names: frozenset[str], size: int) -> Mask:
    """Which positions are in one of the sets of these *names*."""
    found: Mask | None = None
    for name in names:
        members = sets.get(name)
        if members is not None:
            mask = mask_of(members, size)
            found = mask if found is None else found | mask
    return np.zeros(size, dtype=np.bool_) if found is None else found
