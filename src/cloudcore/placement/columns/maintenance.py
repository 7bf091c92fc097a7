"""Keep the columns in step with the forest: new blocks where it changed, the old ones everywhere else. Pure."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from typing import TYPE_CHECKING

import attrs
import numpy as np

from cloudcore.placement.columns.blocks import Block, Columns, Sharing
from cloudcore.placement.columns.layout import build_block, join_blocks, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cloudcore.placement.columns.blocks import Amounts, Mask, Positions
    from cloudcore.placement.forest.forest import Forest
    from cloudcore.placement.forest.values import Provider

__all__ = ["NumberIndex", "refresh", "set_used"]

BLOCK_SIZE = 4096
"""Providers in a block that is full; one of twice as many is cut."""


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
        places: The block of each, and in the lower 32 bits its position there: one look at memory instead of two.
        generations: Its generation.
    """

    sources: tuple[Amounts, ...]
    numbers: Amounts
    places: Amounts
    generations: Amounts

    @classmethod
    def of(cls, columns: Columns) -> NumberIndex:
        """Index all providers of *columns*."""
        blocks = columns.blocks
        numbers = joined([block.numbers for block in blocks], np.int64)
        order = numbers.argsort(kind="stable")
        places = [np.arange(block.size, dtype=np.int64) + (owner << 32) for owner, block in enumerate(blocks)]
        return cls(
            sources=tuple(block.numbers for block in blocks),
            numbers=numbers[order],
            places=joined(places, np.int64)[order],
            generations=joined([block.generations for block in blocks], np.int64)[order],
        )

    def fits(self, columns: Columns) -> bool:
        """Whether *columns* hold the same providers at the same places."""
        if len(self.sources) != len(columns.blocks):
            return False
        return all(source is block.numbers for source, block in zip(self.sources, columns.blocks, strict=True))

    def find(self, numbers: Amounts, generations: Amounts | None = None) -> tuple[Positions, Mask]:
        """For each number its place in the index, and whether it is there, at this generation if one is given."""
        if not len(self.numbers):
            return np.zeros(len(numbers), dtype=np.intp), np.zeros(len(numbers), dtype=np.bool_)
        places = np.minimum(self.numbers.searchsorted(numbers), len(self.numbers) - 1)
        known = self.numbers[places] == numbers
        return places, known if generations is None else known & (self.generations[places] == generations)


def set_used(columns: Columns, index: NumberIndex, found: Positions, classes: Sequence[str], used: Amounts) -> Columns:
    """The same columns with other use: of *classes* of what was *found* in *index*, row by row.

    Raises:
        KeyError: One of those has not the class.
    """
    places = index.places[found]
    changes = _few_by_block(places, classes, used) if len(places) <= _FEW else _by_block(places, classes, used)
    blocks = list(columns.blocks)
    for owner, change in changes.items():
        blocks[owner] = blocks[owner].with_used(change)
    return attrs.evolve(columns, blocks=tuple(blocks))


_FEW = 64
"""Rows that are sorted out sooner one by one."""


def _few_by_block(
    places: Amounts, classes: Sequence[str], used: Amounts
) -> dict[int, dict[str, tuple[list[int], list[int]]]]:
    changes: dict[int, dict[str, tuple[list[int], list[int]]]] = {}
    for place, name, amount in zip(places.tolist(), classes, used.tolist(), strict=True):
        positions, amounts = changes.setdefault(place >> 32, {}).setdefault(name, ([], []))
        positions.append(place & 0xFFFFFFFF)
        amounts.append(amount)
    return changes


def _by_block(
    places: Amounts, classes: Sequence[str], used: Amounts
) -> dict[int, dict[str, tuple[Positions, Amounts]]]:
    changes: dict[int, dict[str, tuple[Positions, Amounts]]] = {}
    names = dict.fromkeys(classes)
    for name in names:
        mine, amounts = places, used
        if len(names) > 1:
            chosen = np.asarray([each == name for each in classes], dtype=np.bool_)
            mine, amounts = places[chosen], used[chosen]
        order = mine.argsort(kind="stable")
        mine, amounts = mine[order], amounts[order]
        owners, positions = mine >> 32, mine & 0xFFFFFFFF
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
        for first, last in itertools.pairwise(edges):
            changes.setdefault(int(owners[first]), {})[name] = (positions[first:last], amounts[first:last])
    return changes
