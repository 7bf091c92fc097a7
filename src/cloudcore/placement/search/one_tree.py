"""The providers that one tree may use for a request, and what a combination needs to know of them. Pure.

A provider is known by a *handle*: its position in the block, or ``-1 - i`` for sharing provider ``i``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore.placement.forest.names import SHARES_VIA_AGGREGATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloudcore.placement.columns.blocks import Block, Sharing
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.compiled import Slot

__all__ = ["OneTree"]


class OneTree:
    """The providers that a tree may use, by handle, and what a combination needs to know of them.

    Args:
        block: Where the tree lies.
        tree: Its place in the block.
        options: Per slot, the handles that could give it.
        sharing: The sharing providers, None when there are none.
        apart: Whether it is known that no provider could give one class to two slots.
    """

    options: Sequence[Sequence[int]]

    def __init__(
        self,
        block: Block,
        tree: int,
        options: Sequence[Sequence[int]],
        sharing: Sharing | None,
        *,
        apart: bool = False,
    ) -> None:
        self.block = block
        self.tree = tree
        self.sharing = sharing
        self.apart = apart
        self.options = _by_handle(block, options, sharing)
        self._left: Callable[[str, str], int | None] | None = None

    def beside(self, left: Callable[[str, str], int | None], slots: Sequence[Slot]) -> OneTree:
        """The same tree when *left* says of a provider and a class what is left there, None where nothing changed."""
        tree = OneTree(self.block, self.tree, self.options, self.sharing, apart=self.apart)
        tree._left = left
        tree.options = [
            [h for h in handles if all(tree.room(h, name) >= amount for name, amount in slot.resources)]
            for slot, handles in zip(slots, self.options, strict=True)
        ]
        return tree

    @property
    def root(self) -> Provider:
        """The root of the tree."""
        return self.block.providers[int(self.block.starts[self.tree])]

    def provider(self, handle: int) -> Provider:
        """The provider of this handle."""
        if handle >= 0 or self.sharing is None:
            return self.block.providers[handle]
        return self.sharing.block.providers[-1 - handle]

    def room(self, handle: int, resource_class: str) -> int:
        """What one more allocation may take there."""
        if handle >= 0 or self.sharing is None:
            block, position = self.block, handle
        else:
            block, position = self.sharing.block, -1 - handle
        column = block.classes[resource_class]
        room = int(column.room[column.row(position)])
        left = None if self._left is None else self._left(block.providers[position].uuid, resource_class)
        return room if left is None else min(room, left)

    def lineage(self, handle: int) -> frozenset[str]:
        """The uuids of the provider and of all above it."""
        if handle < 0 and self.sharing is not None:
            return self.sharing.lineage[-1 - handle]
        names = []
        up = self.block.up
        position = handle
        while True:
            names.append(self.block.providers[position].uuid)
            step = int(up[position])
            if not step:
                return frozenset(names)
            position -= step


def _by_handle(block: Block, options: Sequence[Sequence[int]], sharing: Sharing | None) -> Sequence[Sequence[int]]:
    """Know a sharing provider by one handle, in its own tree too."""
    if sharing is None or SHARES_VIA_AGGREGATE not in block.traits:
        return options
    index = sharing.index
    return [
        [-1 - index[block.providers[h].uuid] if h >= 0 and block.providers[h].uuid in index else h for h in handles]
        for handles in options
    ]
