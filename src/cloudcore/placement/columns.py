"""The forest in columns: immutable blocks of whole trees, for the search. Pure.

A block holds some thousand providers, tree after tree, each tree in depth-first order, so that a tree is a slice and a
subtree is a slice of it. Per resource class there are the positions that have it and, beside them, what is left there.
Traits and aggregates are sets of positions: packed bits where many have them, plain positions where few do.

Blocks never change. An edit makes new blocks for the trees that it touched and keeps all others, so whoever searches
goes on with the blocks it has.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cloudcore.placement.forest import Forest
    from cloudcore.placement.values import Inventory, Provider

__all__ = [
    "Block",
    "Column",
    "Columns",
    "Members",
    "NumberIndex",
    "Sharing",
    "mask_of",
    "members_of",
    "refresh",
    "set_used",
]

Positions = NDArray[np.intp]
Mask = NDArray[np.bool_]
Amounts = NDArray[np.int64]
Members = NDArray[Any]
"""A set of positions: packed bits (uint8), or the positions themselves (intp), sorted."""

BLOCK_SIZE = 4096
"""Providers in a block that is full; one of twice as many is cut."""


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
        """The same column with other use at *positions*, which all have this class."""
        after = self.used.copy()
        after[np.searchsorted(self.rows, positions)] = used
        return Column.of(self.rows, self.capacity, after, self.max_unit, self.min_unit, self.step_size)

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
        """The same block with other use: resource class → (positions, amounts in use)."""
        classes = dict(self.classes)
        for name, (positions, used) in changes.items():
            places = np.asarray(positions, dtype=np.intp)
            classes[name] = classes[name].with_used(places, np.asarray(used, dtype=np.int64))
        return attrs.evolve(self, classes=classes)


# --- making blocks ---------------------------------------------------------------------------------------------------


_UNUSED: Mapping[str, int] = {}


def build_block(trees: Sequence[Sequence[Provider]], usage: Mapping[str, Mapping[str, int]]) -> Block:
    """Lay out *trees* (each in depth-first order) in a block."""
    providers = [provider for tree in trees for provider in tree]
    sizes = np.fromiter((len(tree) for tree in trees), dtype=np.intp, count=len(trees))
    place = {provider.uuid: position for position, provider in enumerate(providers)}
    up = [
        0 if provider.parent is None else position - place.get(provider.parent, position)
        for position, provider in enumerate(providers)
    ]
    return Block(
        providers=providers,
        numbers=np.fromiter((provider.number for provider in providers), dtype=np.int64, count=len(providers)),
        generations=np.fromiter((provider.generation for provider in providers), dtype=np.int64, count=len(providers)),
        up=np.asarray(up, dtype=np.int32),
        starts=np.concatenate((np.zeros(1, dtype=np.intp), np.cumsum(sizes, dtype=np.intp))),
        tree_of=np.repeat(np.arange(len(trees), dtype=np.int32), sizes),
        root_numbers=np.fromiter((tree[0].number for tree in trees), dtype=np.int64, count=len(trees)),
        classes=_build_columns(providers, usage),
        traits=_build_members([provider.traits for provider in providers]),
        aggregates=_build_members([provider.aggregates for provider in providers]),
    )


def _build_columns(providers: Sequence[Provider], usage: Mapping[str, Mapping[str, int]]) -> dict[str, Column]:
    alike: dict[int, list[int]] = {}  # hosts alike share one mapping; it lives as long as its provider
    for position, provider in enumerate(providers):
        key = id(provider.inventories)
        if key in alike:
            alike[key].append(position)
        else:
            alike[key] = [position]
    parts: dict[str, list[tuple[Inventory, list[int]]]] = {}
    for positions in alike.values():
        for name, inventory in providers[positions[0]].inventories.items():
            parts.setdefault(name, []).append((inventory, positions))
    used: dict[str, list[tuple[int, int]]] = {}
    for position, provider in enumerate(providers):
        for name, amount in usage.get(provider.uuid, _UNUSED).items():
            used.setdefault(name, []).append((position, amount))
    return _share_rows({name: _build_column(groups, used.get(name, ())) for name, groups in parts.items()})


def _build_column(groups: Sequence[tuple[Inventory, list[int]]], used: Sequence[tuple[int, int]]) -> Column:
    rows = np.concatenate([np.asarray(positions, dtype=np.intp) for _, positions in groups])
    order = rows.argsort(kind="stable")
    rows = rows[order]
    counts = [len(positions) for _, positions in groups]

    def spread(values: list[int], dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
        return np.repeat(np.asarray(values, dtype=dtype), counts)[order]

    in_use = np.zeros(len(rows), dtype=np.int64)
    if used:
        pairs = np.asarray(used, dtype=np.int64)
        in_use[rows.searchsorted(pairs[:, 0])] = pairs[:, 1]
    return Column.of(
        rows=rows,
        capacity=spread([inventory.capacity for inventory, _ in groups], np.int64),
        used=in_use,
        max_unit=spread([inventory.max_unit for inventory, _ in groups], np.int32),
        min_unit=spread([inventory.min_unit for inventory, _ in groups], np.int32),
        step_size=spread([inventory.step_size for inventory, _ in groups], np.int32),
    )


def _share_rows(columns: dict[str, Column]) -> dict[str, Column]:
    """Classes that the same providers have (VCPU and MEMORY_MB, mostly) share one array of positions."""
    seen: dict[bytes, Positions] = {}
    return {
        name: attrs.evolve(column, rows=seen.setdefault(column.rows.tobytes(), column.rows))
        for name, column in columns.items()
    }


def _build_members(sets: Sequence[frozenset[str]]) -> dict[str, Members]:
    alike: dict[int, list[int]] = {}
    for position, names in enumerate(sets):
        if names:
            alike.setdefault(id(names), []).append(position)
    positions: dict[str, list[int]] = {}
    for places in alike.values():
        for name in sets[places[0]]:
            positions.setdefault(name, []).extend(places)
    return {name: members_of(np.unique(np.asarray(p, dtype=np.intp)), len(sets)) for name, p in positions.items()}


@attrs.frozen(eq=False)
class _Piece:
    """The trees *first* to *last* (exclusive) of a block, to be laid at *offset*."""

    block: Block
    first: int
    last: int
    offset: int

    @property
    def begin(self) -> int:
        return int(self.block.starts[self.first])

    @property
    def end(self) -> int:
        return int(self.block.starts[self.last])


def _pieces(parts: Iterable[tuple[Block, int, int]]) -> list[_Piece]:
    pieces: list[_Piece] = []
    offset = 0
    for block, first, last in parts:
        if last > first:
            pieces.append(_Piece(block, first, last, offset))
            offset += pieces[-1].end - pieces[-1].begin
    return pieces


def join_blocks(parts: Iterable[tuple[Block, int, int]]) -> Block:
    """Lay slices of blocks (block, first tree, last tree exclusive) one after the other."""
    pieces = _pieces(parts)
    starts = [piece.block.starts[piece.first : piece.last] - (piece.begin - piece.offset) for piece in pieces]
    providers = [p for piece in pieces for p in piece.block.providers[piece.begin : piece.end]]
    size = len(providers)
    bounds = np.concatenate([*starts, np.asarray([size], dtype=np.intp)])
    return Block(
        providers=providers,
        numbers=_joined([piece.block.numbers[piece.begin : piece.end] for piece in pieces], np.int64),
        generations=_joined([piece.block.generations[piece.begin : piece.end] for piece in pieces], np.int64),
        up=_joined([piece.block.up[piece.begin : piece.end] for piece in pieces], np.int32),
        starts=bounds,
        tree_of=np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds)),
        root_numbers=_joined([piece.block.root_numbers[piece.first : piece.last] for piece in pieces], np.int64),
        classes=_join_columns(pieces),
        traits=_join_members(pieces, size, "traits"),
        aggregates=_join_members(pieces, size, "aggregates"),
    )


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def _join_columns(pieces: Sequence[_Piece]) -> dict[str, Column]:
    parts: dict[str, list[tuple[Column, slice, int]]] = {}
    for piece in pieces:
        for name, column in piece.block.classes.items():
            first, last = column.rows.searchsorted((piece.begin, piece.end))
            if last > first:
                parts.setdefault(name, []).append((column, slice(first, last), piece.offset - piece.begin))
    return _share_rows({name: _join_column(slices) for name, slices in parts.items()})


def _join_column(parts: Sequence[tuple[Column, slice, int]]) -> Column:
    def units(which: str) -> NDArray[np.int32] | None:
        if all(getattr(column, which) is None for column, _, _ in parts):
            return None
        arrays = []
        for column, rows, _ in parts:
            array: NDArray[np.int32] | None = getattr(column, which)
            arrays.append(np.ones(len(column.rows), dtype=np.int32)[rows] if array is None else array[rows])
        return np.concatenate(arrays)

    return Column.of(
        rows=np.concatenate([column.rows[rows] + shift for column, rows, shift in parts]),
        capacity=np.concatenate([column.capacity[rows] for column, rows, _ in parts]),
        used=np.concatenate([column.used[rows] for column, rows, _ in parts]),
        max_unit=np.concatenate([column.max_unit[rows] for column, rows, _ in parts]),
        min_unit=units("min_unit"),
        step_size=units("step_size"),
    )


def _join_members(pieces: Sequence[_Piece], size: int, which: str) -> dict[str, Members]:
    parts: dict[str, list[Positions]] = {}
    for piece in pieces:
        sets: dict[str, Members] = getattr(piece.block, which)
        for name, members in sets.items():
            positions = positions_of(members, piece.block.size)
            first, last = positions.searchsorted((piece.begin, piece.end))
            if last > first:
                parts.setdefault(name, []).append(positions[first:last] + (piece.offset - piece.begin))
    return {name: members_of(np.concatenate(positions), size) for name, positions in parts.items()}


# --- the whole forest ------------------------------------------------------------------------------------------------


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


def _with_blocks(blocks: Iterable[Block], sharing: Sharing | None) -> Columns:
    kept = tuple(block for block in blocks if block.trees)
    return Columns(kept, tuple(int(block.root_numbers[0]) for block in kept), sharing)


def _gather_sharing(forest: Forest) -> Sharing | None:
    providers = sorted(forest.sharing.values(), key=lambda provider: provider.number)
    if not providers:
        return None
    by_aggregate: dict[str, list[int]] = {}
    for position, provider in enumerate(providers):
        for aggregate in provider.aggregates:
            by_aggregate.setdefault(aggregate, []).append(position)
    return Sharing(
        block=build_block([[provider] for provider in providers], forest.usage),
        index={provider.uuid: position for position, provider in enumerate(providers)},
        by_aggregate=by_aggregate,
        lineage=[
            frozenset([provider.uuid, *(above.uuid for above in forest.ancestors(provider.uuid))])
            for provider in providers
        ],
        root_numbers=[forest.providers[provider.root].number for provider in providers],
    )


def refresh(columns: Columns, forest: Forest) -> Columns:
    """Return columns that show *forest*, keeping every block of *columns* that is still true, and forget what changed.

    O(what changed), with a floor of the blocks that it lies in.
    """
    if not forest.touched and not forest.reused and not forest.sharing_changed:
        return columns
    sharing = _gather_sharing(forest) if forest.sharing_changed else columns.sharing
    if 2 * len(forest.touched) > len(forest.roots) or not columns.blocks:
        blocks = _build_all(forest)
    else:
        blocks = _patch_use(_patch_trees(columns, forest) if forest.touched else list(columns.blocks), forest)
    forest.touched.clear()
    forest.reused.clear()
    forest.sharing_changed = False
    return _with_blocks(blocks, sharing)


def _build_all(forest: Forest) -> list[Block]:
    blocks: list[Block] = []
    trees: list[list[Provider]] = []
    size = 0
    for root in forest.roots.values():
        trees.append(list(forest.subtree(root)))
        size += len(trees[-1])
        if size >= BLOCK_SIZE:
            blocks.append(build_block(trees, forest.usage))
            trees, size = [], 0
    if trees:
        blocks.append(build_block(trees, forest.usage))
    return blocks


def _patch_trees(columns: Columns, forest: Forest) -> list[Block]:
    by_block: dict[int, list[int]] = {}
    for number in sorted(forest.touched):
        by_block.setdefault(max(0, bisect_right(columns.firsts, number) - 1), []).append(number)
    blocks: list[Block] = []
    for place, block in enumerate(columns.blocks):
        numbers = by_block.get(place)
        blocks.extend([block] if numbers is None else _cut(_patch_block(block, numbers, forest)))
    return [block for block in blocks if block.trees]  # blocks are found by their first tree: each must have one


def _patch_block(block: Block, numbers: Sequence[int], forest: Forest) -> Block:
    """Put the trees of these root numbers as they are now in the place of what the block has of them."""
    fresh: list[list[Provider]] = []
    parts: list[tuple[Block | None, int, int]] = []
    done = 0
    for number in numbers:
        place = int(block.root_numbers.searchsorted(number))
        parts.append((block, done, place))
        if number in forest.roots:
            fresh.append(list(forest.subtree(forest.roots[number])))
            parts.append((None, len(fresh) - 1, len(fresh)))
        here = place < block.trees and block.root_numbers[place] == number
        done = place + 1 if here else place
    parts.append((block, done, block.trees))
    built = build_block(fresh, forest.usage)
    return join_blocks((source or built, first, last) for source, first, last in parts)


def _cut(block: Block) -> list[Block]:
    """The block, or pieces of it when it has grown too large."""
    if block.size <= 2 * BLOCK_SIZE:
        return [block]
    cuts = np.searchsorted(block.starts, np.arange(BLOCK_SIZE, block.size - BLOCK_SIZE // 2, BLOCK_SIZE))
    edges = sorted({0, *cuts.tolist(), block.trees})
    return [join_blocks([(block, first, last)]) for first, last in itertools.pairwise(edges)]


def _patch_use(blocks: list[Block], forest: Forest) -> list[Block]:
    providers = forest.providers
    changed = [providers[uuid] for uuid in forest.reused if uuid in providers]
    if not changed:
        return blocks
    count = len(changed)
    firsts = np.asarray([int(block.root_numbers[0]) if block.trees else -1 for block in blocks], dtype=np.int64)
    roots = np.fromiter((providers[provider.root].number for provider in changed), dtype=np.int64, count=count)
    numbers = np.fromiter((provider.number for provider in changed), dtype=np.int64, count=count)
    owners = np.maximum(firsts.searchsorted(roots, side="right") - 1, 0)
    order = owners.argsort(kind="stable")
    edges = np.flatnonzero(np.diff(owners[order])) + 1
    patched = list(blocks)
    for chosen in np.split(order, edges):
        place = int(owners[chosen[0]])
        positions = blocks[place].positions_numbered(numbers[chosen]).tolist()
        patched[place] = _patch_block_use(blocks[place], [changed[i] for i in chosen.tolist()], positions, forest)
    return patched


def _patch_block_use(block: Block, providers: Sequence[Provider], positions: Sequence[int], forest: Forest) -> Block:
    changes: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in block.classes}
    usage = forest.usage
    for provider, position in zip(providers, positions, strict=True):
        used = usage.get(provider.uuid)
        for name in provider.inventories:
            rows, amounts = changes[name]
            rows.append(position)
            amounts.append(used.get(name, 0) if used else 0)
    return block.with_used({name: change for name, change in changes.items() if change[0]})


# --- following by number ---------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class NumberIndex:
    """Where the provider of a number stands, for many at once. Good as long as no tree was edited.

    Attributes:
        sources: The arrays of numbers that it was made of, block by block.
        numbers: All numbers, ascending.
        owners: The block of each.
        positions: Its position there.
        generations: Its generation.
    """

    sources: tuple[Amounts, ...]
    numbers: Amounts
    owners: Positions
    positions: Positions
    generations: Amounts

    @classmethod
    def of(cls, columns: Columns) -> NumberIndex:
        """Index all providers of *columns*."""
        blocks = columns.blocks
        numbers = _joined([block.numbers for block in blocks], np.int64)
        order = numbers.argsort(kind="stable")
        sizes = [block.size for block in blocks]
        return cls(
            sources=tuple(block.numbers for block in blocks),
            numbers=numbers[order],
            owners=np.repeat(np.arange(len(blocks)), sizes)[order],
            positions=_joined([np.arange(size) for size in sizes], np.intp)[order],
            generations=_joined([block.generations for block in blocks], np.int64)[order],
        )

    def fits(self, columns: Columns) -> bool:
        """Whether *columns* hold the same providers at the same places."""
        if len(self.sources) != len(columns.blocks):
            return False
        return all(source is block.numbers for source, block in zip(self.sources, columns.blocks, strict=True))

    def find(self, numbers: Amounts, generations: Amounts) -> tuple[Positions, Mask]:
        """For each number its place in the index, and whether it is there at this generation."""
        if not len(self.numbers):
            return np.zeros(len(numbers), dtype=np.intp), np.zeros(len(numbers), dtype=np.bool_)
        places = np.minimum(self.numbers.searchsorted(numbers), len(self.numbers) - 1)
        return places, (self.numbers[places] == numbers) & (self.generations[places] == generations)


def set_used(columns: Columns, index: NumberIndex, places: Positions, classes: Sequence[str], used: Amounts) -> Columns:
    """The same columns with other use: of *classes* at *places* in *index*, row by row."""
    changes: dict[int, dict[str, tuple[Positions, Amounts]]] = {}
    named = np.asarray(classes, dtype=object)
    for name in sorted(set(classes)):
        chosen = np.flatnonzero(named == name)
        owners = index.owners[places[chosen]]
        order = owners.argsort(kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1):
            rows = chosen[part]
            changes.setdefault(int(owners[part[0]]), {})[name] = (index.positions[places[rows]], used[rows])
    blocks = list(columns.blocks)
    for owner, change in changes.items():
        blocks[owner] = blocks[owner].with_used(change)
    return attrs.evolve(columns, blocks=tuple(blocks))
