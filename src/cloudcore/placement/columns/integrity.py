"""Whether the columns show what the forest holds: the check behind ``PlacementTree.check``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudcore.placement.columns.blocks import Block, Columns, Sharing
    from cloudcore.placement.forest.forest import Forest

__all__ = ["column_breaches"]


def column_breaches(columns: Columns, forest: Forest) -> Iterator[str]:
    """Say where *columns* differ from *forest*; nothing when they agree."""
    expected = [provider for root in forest.roots.values() for provider in forest.subtree(root)]
    found = [provider for block in columns.blocks for provider in block.providers]
    if found != expected:
        yield f"columns hold {len(found)} providers, not these {len(expected)} in this order"
        return
    for block in columns.blocks:
        yield from _block_breaches(block, forest)
    shared = {} if columns.sharing is None else columns.sharing.index
    if set(shared) != set(forest.sharing):
        yield f"{len(shared)} sharing providers in the columns, {len(forest.sharing)} in the forest"
    elif columns.sharing is not None:
        yield from _sharing_breaches(columns.sharing, forest)
        yield from _amount_breaches(columns.sharing.block, forest)


def _sharing_breaches(sharing: Sharing, forest: Forest) -> Iterator[str]:
    members: set[tuple[str, int]] = set()
    for position, provider in enumerate(sharing.block.providers):
        now = forest.providers[provider.uuid]
        above = frozenset([provider.uuid, *(each.uuid for each in forest.ancestors(provider.uuid))])
        root = forest.providers[now.root].number
        place = (sharing.index[provider.uuid], sharing.lineage[position], sharing.root_numbers[position])
        if provider != now or place != (position, above, root):
            yield f"{provider.name}: it, its ancestors or its root among the sharing providers is wrong"
        members.update((aggregate, position) for aggregate in now.aggregates)
    if members != {(name, position) for name, held in sharing.by_aggregate.items() for position in held}:
        yield "aggregates of the sharing providers in the columns are wrong"


def _block_breaches(block: Block, forest: Forest) -> Iterator[str]:
    for position, provider in enumerate(block.providers):
        root = block.providers[int(block.starts[block.tree_of[position]])]
        up = int(block.up[position])
        above = block.providers[position - up].uuid if up else None
        if root.uuid != provider.root or above != provider.parent or block.numbers[position] != provider.number:
            yield f"{provider.name}: parent, root or number in the columns is wrong"
    for which in ("traits", "aggregates"):
        held: set[tuple[int, str]] = {(i, name) for i, p in enumerate(block.providers) for name in getattr(p, which)}
        masks = {
            name: (block.trait_mask if which == "traits" else block.aggregate_mask)(name)
            for name in getattr(block, which)
        }
        if held != {(int(i), name) for name, mask in masks.items() for i in np.flatnonzero(mask)}:
            yield f"{which} in the columns are wrong"
    yield from _amount_breaches(block, forest)


def _amount_breaches(block: Block, forest: Forest) -> Iterator[str]:
    rows = sum(len(column.rows) for column in block.classes.values())
    if rows != sum(len(provider.inventories) for provider in block.providers):
        yield f"{rows} inventories in the columns of one block"
        return
    for position, provider in enumerate(block.providers):
        for name, inventory in provider.inventories.items():
            column = block.classes[name]
            row = column.row(position)
            used = forest.used(provider.uuid).get(name, 0)
            units = tuple(1 if unit is None else int(unit[row]) for unit in (column.min_unit, column.step_size))
            shown = (
                int(column.rows[row]),
                int(column.capacity[row]),
                int(column.used[row]),
                int(column.max_unit[row]),
                *units,
            )
            expected = (position, inventory.capacity, used, inventory.max_unit, inventory.min_unit, inventory.step_size)
            if shown != expected or int(column.room[row]) != min(inventory.capacity - used, inventory.max_unit):
                yield f"{provider.name}: {name} in the columns is {shown}, not {expected}"
