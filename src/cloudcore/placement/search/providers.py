"""Which providers, each by itself, could give a group: a filter over all of them by the rules of the search. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore.placement.search.compiled import Slot
from cloudcore.placement.search.matching import slot_positions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudcore.placement.columns.blocks import Columns
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.requests.groups import RequestGroup

__all__ = ["providers_that_could"]

_BY_ITSELF = "_"  # any suffix: the group comes from one provider, and the root of its tree does not count


def providers_that_could(columns: Columns, group: RequestGroup, root: int | None = None) -> Iterator[Provider]:
    """The providers that meet all conditions of *group* but ``in_tree``, in the order of the forest.

    *root*: the number of the root of the only tree to look at; None for all.
    """
    slot = Slot(suffix=_BY_ITSELF, group=group, resources=tuple(group.resources.items()))
    if root is None:
        places = [(block, 0, block.size) for block in columns.blocks]
    else:
        found = columns.locate(root)
        if found is None:
            return
        block, tree = found
        places = [(block, int(block.starts[tree]), int(block.starts[tree + 1]))]
    for block, begin, end in places:
        for position in slot_positions(block, slot, begin, end):
            yield block.providers[position]
