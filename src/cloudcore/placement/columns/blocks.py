"""The forest in columns: immutable blocks of whole trees, for the search. Pure.

A block holds some thousand providers, tree after tree, each tree in depth-first order, so that a tree is a slice and a
subtree is a slice of it. Per resource class there are the positions that have it and, beside them, what is left there.
Traits and aggregates are sets of positions: packed bits where many have them, plain positions where few do.

Blocks never change, so whoever searches goes on with the blocks it has. :mod:`cloudcore.placement.columns.layout`
makes them, :mod:`cloudcore.placement.columns.maintenance` keeps them in step with the forest.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloudcore.placement.forest.values import Provider

__all__ = [
    "Amounts",
    "Block",
    "Column",
    "Columns",
    "Mask",
    "Members",
    "Positions",
    "Sharing",
    "mask_of",
    "members_of",
    "positions_of",
]

Positions = NDArray[np.intp]
Mask = NDArray[np.bool_]
Amounts = NDArray[np.int64]
Members = NDArray[Any]
"""A set of positions: packed bits (uint8), or the positions themselves (intp), sorted."""


def members_of(positions: Positions, size: int) -> Members:
    """Encode a sorted set of positions below *size*, in whichever form is smaller."""
    if len(positions) * 64 < size:
        return positions
    mask = np.zeros(size, dtype=np.bool_)
    mask[positions] = True
    return np.packbits(mask)


def mask_of(members: Members | None, size: int) -> Mask:
    """Decode into one truth value per position."""
    if members is not None and members.dtype == np.uint8:
        return np.unpackbits(members, count=size).view(np.bool_)
    mask = np.zeros(size, dtype=np.bool_)
    if members is not None:
        mask[members] = True
    return mask


def positions_of(members: Members, size: int) -> Positions:
    """Decode into sorted positions."""
    return np.flatnonzero(mask_of(members, size)) if members.dtype == np.uint8 else members


@attrs.frozen(eq=False)
class Column:
    """One resource class in one block; all arrays run along *rows*.

    Attributes:
        rows: Positions of the providers that have this class, sorted.
        capacity: What may be in use.
        used: What is in use.
        max_unit: The most that one allocation may take.
        room: ``min(capacity - used, max_unit)``: what one more allocation may take.
        min_unit, step_size: None where all of them are 1.
        peak: The largest *room*; -1 without rows.
    """

    rows: Positions
    capacity: Amounts
    used: Amounts
    max_unit: NDArray[np.int32]
    room: Amounts
    min_unit: NDArray[np.int32] | None
    step_size: NDArray[np.int32] | None
    peak: int

    @classmethod
    def of(
        cls,
        rows: Positions,
        capacity: Amounts,
        used: Amounts,
        max_unit: NDArray[np.int32],
        min_unit: NDArray[np.int32] | None,
        step_size: NDArray[np.int32] | None,
    ) -> Column:
        """Make a column; *room* follows from the others."""
        room = np.minimum(capacity - used, max_unit)
        peak = int(room.max(initial=-1))
        return cls(rows, capacity, used, max_unit, room, _unless_one(min_unit), _unless_one(step_size), peak)

    def fits(self, amount: int, rows: slice) -> Mask:
        """For each of *rows*: would *amount* more be granted?"""
        fits: Mask = self.room[rows] >= amount
        if self.min_unit is not None:
            fits &= self.min_unit[rows] <= amount
        if self.step_size is not None:
            fits &= amount % self.step_size[rows] == 0
        return fits

    def between(self, begin: int, end: int) -> slice:
        """The rows of the positions from *begin* to *end* (exclusive)."""
        first, last = self.rows.searchsorted((begin, end)).tolist()
        return slice(first, last)

    def with_used(self, positions: Positions, used: Amounts) -> Column:
        """The same column with other use at *positions*.

        Raises:
            KeyError: One of them has not this class.
        """
        rows = self.rows.searchsorted(positions)
        if (self.rows.take(rows, mode="clip") != positions).any():
            raise KeyError("a position that has not this class")
        after, room = self.used.copy(), self.room.copy()
        after[rows] = used
        room[rows] = np.minimum(self.capacity[rows] - used, self.max_unit[rows])
        peak = int(room.max(initial=-1))
        return Column(self.rows, self.capacity, after, self.max_unit, room, self.min_unit, self.step_size, peak)

    def row(self, position: int) -> int:
        """The row of *position*, which has this class."""
        return int(self.rows.searchsorted(position))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.rows, self.capacity, self.used, self.max_unit, self.room, self.min_unit, self.step_size)
        return sum(array.nbytes for array in arrays if array is not None)


def _unless_one(units: NDArray[np.int32] | None) -> NDArray[np.int32] | None:
    return None if units is None or bool((units == 1).all()) else units


@attrs.frozen(eq=False)
class Block:
    """Some whole trees, in the order of the forest.

    Attributes:
        providers: In depth-first order.
        numbers: Their numbers.
        generations: Their generations.
        up: How many positions before it the parent stands; 0 for a root.
        starts: Where each tree begins, and at the end the size of the block.
        tree_of: The tree of each position, counted within the block.
        root_numbers: The numbers of the roots, ascending.
        classes: Resource class → column.
        traits: Trait → positions that carry it.
        aggregates: Aggregate → positions that are in it.
        remembered: What the search worked out about conditions that only an edit of the block could change; bounded.
        apart: The same, of whether conditions leave no provider to two slots.
    """

    providers: list[Provider]
    numbers: Amounts
    generations: Amounts
    up: NDArray[np.int32]
    starts: Positions
    tree_of: NDArray[np.int32]
    root_numbers: Amounts
    classes: dict[str, Column]
    traits: dict[str, Members]
    aggregates: dict[str, Members]
    remembered: dict[Any, Mask] = attrs.field(factory=dict)
    apart: dict[Any, bool] = attrs.field(factory=dict)

    @property
    def size(self) -> int:
        """The number of providers."""
        return len(self.providers)

    @property
    def trees(self) -> int:
        """The number of trees."""
        return len(self.root_numbers)

    def trait_mask(self, trait: str) -> Mask:
        """Which positions carry *trait*."""
        return mask_of(self.traits.get(trait), self.size)

    def aggregate_mask(self, aggregate: str) -> Mask:
        """Which positions are in *aggregate*."""
        return mask_of(self.aggregates.get(aggregate), self.size)

    def trees_with(self, positions: Positions) -> Mask:
        """Which trees have one of *positions*."""
        found = np.zeros(self.trees, dtype=np.bool_)
        found[self.tree_of[positions]] = True
        return found

    def tree_numbered(self, root_number: int) -> int | None:
        """The tree whose root has this number, None when it is not here."""
        tree = int(self.root_numbers.searchsorted(root_number))
        return tree if tree < self.trees and self.root_numbers[tree] == root_number else None

    def positions_numbered(self, numbers: Amounts) -> Positions:
        """The positions of the providers of these numbers, which are all here."""
        if bool((self.numbers[1:] > self.numbers[:-1]).all()):
            return self.numbers.searchsorted(numbers)
        order = np.argsort(self.numbers, kind="stable")
        return order[np.searchsorted(self.numbers, numbers, sorter=order)]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays and of the list of providers; not of the providers themselves."""
        own = (self.numbers, self.generations, self.up, self.starts, self.tree_of, self.root_numbers)
        columns: dict[int, int] = {}
        for column in self.classes.values():
            columns[id(column.rows)] = column.rows.nbytes
            columns[id(column)] = column.nbytes - column.rows.nbytes
        members = (*self.traits.values(), *self.aggregates.values())
        sets = sum(array.nbytes for array in members)
        return sum(array.nbytes for array in own) + sum(columns.values()) + sets + 8 * self.size

    def with_used(self, changes: Mapping[str, tuple[Sequence[int] | Positions, Sequence[int] | Amounts]]) -> Block:
        """The same block with other use: resource class → (positions, amounts in use).

        Raises:
            KeyError: A position has not a class that is given for it.
        """
        classes = dict(self.classes)
        for name, (positions, used) in changes.items():
            places = np.asarray(positions, dtype=np.intp)
            classes[name] = classes[name].with_used(places, np.asarray(used, dtype=np.int64))
        return Block(
            providers=self.providers,
            numbers=self.numbers,
            generations=self.generations,
            up=self.up,
            starts=self.starts,
            tree_of=self.tree_of,
            root_numbers=self.root_numbers,
            classes=classes,
            traits=self.traits,
            aggregates=self.aggregates,
            remembered=self.remembered,
            apart=self.apart,
        )


@attrs.frozen(eq=False)
class Sharing:
    """Every provider that shares through an aggregate, in a block of its own where each counts as one tree.

    Attributes:
        block: One position per sharing provider.
        index: uuid → position.
        by_aggregate: Aggregate → positions.
        lineage: Per position: the uuids of the provider and all above it.
        root_numbers: Per position: the number of the root of its tree.
    """

    block: Block
    index: dict[str, int]
    by_aggregate: dict[str, list[int]]
    lineage: list[frozenset[str]]
    root_numbers: list[int]


@attrs.frozen(eq=False)
class Columns:
    """One state of the whole forest, for ever: what a search works on.

    Attributes:
        blocks: In the order of the forest.
        firsts: The number of each block's first root.
        sharing: The providers that share, None when there are none.
    """

    blocks: tuple[Block, ...] = ()
    firsts: tuple[int, ...] = ()
    sharing: Sharing | None = None

    @property
    def size(self) -> int:
        """The number of providers."""
        return sum(block.size for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that the columns take."""
        return sum(block.nbytes for block in self.blocks)

    def locate(self, root_number: int) -> tuple[Block, int] | None:
        """The block and the tree of the root of this number, None when there is none."""
        where = bisect_right(self.firsts, root_number) - 1
        if where < 0:
            return None
        tree = self.blocks[where].tree_numbered(root_number)
        return None if tree is None else (self.blocks[where], tree)
