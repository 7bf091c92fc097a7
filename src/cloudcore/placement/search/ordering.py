"""In which order the trees are offered: weighers, preferred traits, and a start that a seed moves. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from cloudcore.errors import InvalidRequest
from cloudcore.placement.forest.names import require_resource_class, require_trait
from cloudcore.placement.requests.groups import hashable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Block
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.matching import BlockMatch

__all__ = ["Host", "OrderBy", "Weigher", "read_weighers", "scores", "starting_tree"]


@attrs.frozen(eq=False)
class Host:
    """A tree as a weigher sees it.

    Attributes:
        root: The root provider.
        providers: All providers of the tree, in order.
        capacity: Resource class → what may be in use, over the whole tree.
        used: Resource class → what is in use.
    """

    root: Provider
    providers: tuple[Provider, ...]
    capacity: dict[str, int]
    used: dict[str, int]

    @property
    def free(self) -> dict[str, int]:
        """Resource class → what is left, over the whole tree; never below 0."""
        return {name: max(0, self.capacity[name] - self.used[name]) for name in self.capacity}


Weigher = Callable[[Host], float]
"""Gives a host its score; the highest is offered first."""

OrderBy = Literal["pack", "spread"] | Mapping[str, float] | Weigher
"""``"spread"``: the emptiest first; ``"pack"``: the fullest first; a mapping of resource class to weight: by the
weighted share that is free; a callable: by what it returns."""


def read_weighers(order_by: OrderBy | Sequence[OrderBy] | None) -> tuple[OrderBy, ...]:
    """Return the weighers, the deciding one first.

    Raises:
        InvalidRequest: One is neither "pack", "spread", a mapping of class to number, nor callable.
    """
    if order_by is None:
        return ()
    weighers: Sequence[Any] = order_by if isinstance(order_by, list | tuple) else [order_by]
    for weigher in weighers:
        if isinstance(weigher, Mapping):
            for name, weight in weigher.items():
                require_resource_class(name, "order_by", InvalidRequest)
                _require_number(weight, f"order_by {name}")
        elif not callable(weigher) and not (isinstance(weigher, str) and weigher in ("pack", "spread")):
            raise InvalidRequest(
                f"order_by: expected 'pack', 'spread', resource class → weight, or a callable, got {weigher!r}",
                field="order_by",
                value=weigher,
            )
    return tuple(weighers)


def weighed_classes(weighers: Sequence[OrderBy]) -> set[str]:
    """The resource classes that *weighers* name."""
    return {name for weigher in weighers if isinstance(weigher, Mapping) for name in weigher}


def _require_number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        raise InvalidRequest(f"{field}: expected a number, got {value!r}", field=field, value=value)
    return float(value)


def read_preferred(preferred: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    """Return trait → weight; a bare collection of traits weighs 1 each.

    Raises:
        InvalidRequest: It is no collection of traits, or a weight is no number.
    """
    if preferred is None:
        return {}
    weights = preferred if isinstance(preferred, Mapping) else dict.fromkeys(hashable(preferred, "preferred"), 1.0)
    return {
        require_trait(name, "preferred", InvalidRequest): _require_number(weight, f"preferred {name}")
        for name, weight in weights.items()
    }


def scores(
    match: BlockMatch,
    compiled: CompiledRequest,
    weighers: Sequence[OrderBy],
    preferred: Mapping[str, float],
) -> list[NDArray[np.float64]]:
    """Per criterion, preferred traits first: the score of each matching tree. Higher is better."""
    criteria = [_preference(match, preferred)] if preferred else []
    for weigher in weighers:
        if callable(weigher):
            criteria.append(np.asarray([weigher(host_of(match.block, tree)) for tree in match.trees.tolist()], float))
        else:
            criteria.append(_free_share(match, _weights(weigher, compiled)))
    return criteria


def _weights(weigher: str | Mapping[str, float], compiled: CompiledRequest) -> Mapping[str, float]:
    if not isinstance(weigher, str):
        return weigher
    sign = 1.0 if weigher == "spread" else -1.0
    return {name: sign for slot in compiled.slots for name, _ in slot.resources}


def _free_share(match: BlockMatch, weights: Mapping[str, float]) -> NDArray[np.float64]:
    block = match.block
    total = np.zeros(len(match.trees))
    for name in sorted(weights):
        column = block.classes.get(name)
        if column is None:
            continue
        trees = block.tree_of[column.rows]
        capacity = np.bincount(trees, weights=column.capacity, minlength=block.trees)[match.trees]
        used = np.bincount(trees, weights=column.used, minlength=block.trees)[match.trees]
        share = np.divide(capacity - used, capacity, out=np.zeros_like(capacity), where=capacity > 0)
        total += weights[name] * share
    return total


def _preference(match: BlockMatch, preferred: Mapping[str, float]) -> NDArray[np.float64]:
    """The weights of the preferred traits that something usable in the tree carries."""
    block = match.block
    total = np.zeros(len(match.trees))
    for trait in sorted(preferred):
        mask = block.trait_mask(trait)
        there = np.zeros(block.trees, dtype=np.bool_)
        for positions in match.positions:
            there[block.tree_of[positions[mask[positions]]]] = True
        total += preferred[trait] * there[match.trees]
    return total


def host_of(block: Block, tree: int) -> Host:
    """The tree as a :class:`Host`."""
    begin, end = int(block.starts[tree]), int(block.starts[tree + 1])
    providers = tuple(block.providers[begin:end])
    capacity: dict[str, int] = {}
    used: dict[str, int] = {}
    for name in dict.fromkeys(name for provider in providers for name in provider.inventories):
        column = block.classes[name]
        first, last = column.rows.searchsorted((begin, end))
        capacity[name] = sum(column.capacity[first:last].tolist())  # beyond 64 bits: each of them may be cut off there
        used[name] = sum(column.used[first:last].tolist())
    return Host(providers[0], providers, capacity, used)


def starting_tree(seed: int, trees: int) -> int:
    """Where to start among *trees*: the same for the same seed in every process (splitmix64)."""
    mixed = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 31)) % trees if trees else 0
