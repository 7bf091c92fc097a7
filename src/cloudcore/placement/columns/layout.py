"""Lay trees out in blocks of columns, and join slices of blocks. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore.placement.columns.blocks import Block, Column, members_of, positions_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Members, Positions
    from cloudcore.placement.forest.values import Inventory, Provider

__all__ = ["build_block", "join_blocks", "joined"]

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
        numbers=joined([piece.block.numbers[piece.begin : piece.end] for piece in pieces], np.int64),
        generations=joined([piece.block.generations[piece.begin : piece.end] for piece in pieces], np.int64),
        up=joined([piece.block.up[piece.begin : piece.end] for piece in pieces], np.int32),
        starts=bounds,
        tree_of=np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds)),
        root_numbers=joined([piece.block.root_numbers[piece.first : piece.last] for piece in pieces], np.int64),
        classes=_join_columns(pieces),
        traits=_join_members(pieces, size, "traits"),
        aggregates=_join_members(pieces, size, "aggregates"),
    )


def joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """One array of all *arrays*; of *dtype* when there are none."""
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
