"""cloudcore's search in the form in which the tests compare it."""

from __future__ import annotations

from typing import Any

from cloudcore.placement import Inventory, PlacementTree, ResourceRequest
from tests.placement.oracle import Candidate
from tests.placement.peer import identity
from tests.placement.worlds import World


def build(world: World) -> PlacementTree:
    """The world as a forest in memory."""
    tree = PlacementTree()
    fill(tree, world)
    return tree


def fill(tree: PlacementTree, world: World) -> None:
    """Add the world to a tree."""
    for provider in world.providers:
        tree.add(
            provider.name,
            uuid=provider.uuid,
            parent=provider.parent,
            inventory={name: Inventory(**stock.limits) for name, stock in provider.stock.items()},
            traits=provider.traits,
            aggregates=provider.aggregates,
        )
        used = {name: stock.used for name, stock in provider.stock.items() if stock.used}
        if used:
            tree.set_usage(provider.uuid, used)


def listed(tree: PlacementTree, query: str, **options: Any) -> list[Candidate]:
    """Every candidate, in the order of the search."""
    found = tree.candidates(ResourceRequest.from_query(query), **options)
    return [
        identity(
            {uuid: dict(held) for uuid, held in candidate.allocations.items()},
            {suffix: list(uuids) for suffix, uuids in candidate.mappings.items()},
        )
        for candidate in found
    ]
