"""What a provider must meet to give a slot, one condition after the other: the order of an explanation. Pure.

The reason why a tree has nothing for a slot is the condition at which its last provider fell; the providers that stood
until then are the near misses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np

from cloudcore.placement.search.matching import any_member

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloudcore.placement.columns.blocks import Block, Mask, Positions
    from cloudcore.placement.search.compiled import Slot

__all__ = ["Reason", "Stage", "stages"]

Reason = Literal[
    "root_trait",
    "in_tree",
    "no_inventory",
    "min_unit",
    "max_unit",
    "step_size",
    "capacity",
    "trait",
    "forbidden_trait",
    "aggregate",
    "forbidden_aggregate",
    "traits_together",
    "capacity_together",
    "same_subtree",
    "group_policy",
    "undecided",
]


@attrs.frozen(kw_only=True)
class Stage:
    """One condition of one slot.

    Attributes:
        reason: What a provider that falls here lacks.
        resource_class, amount: Where the condition is about an amount.
        names: Where it is about traits or aggregates: one of them is required, or none is allowed.
        or_root: The condition may be met by (or is also broken by) the root of the tree.
        tree_root: Where it is about the tree: the number of its root, None when there is no such tree.
    """

    reason: Reason
    resource_class: str = ""
    amount: int = 0
    names: frozenset[str] = frozenset()
    or_root: bool = False
    tree_root: int | None = None

    def passes(self, block: Block, positions: Positions, *, shared: bool = False) -> Mask:
        """For each of *positions*: does it meet the condition? *shared*: the roots of their trees do not count."""
        if self.resource_class:
            return self._amounts(block, positions)
        if self.reason == "in_tree":
            tree = None if self.tree_root is None else block.tree_numbered(self.tree_root)
            return np.full(len(positions), False) if tree is None else block.tree_of[positions] == tree
        sets = block.traits if "trait" in self.reason else block.aggregates
        members = any_member(sets, self.names, block.size)
        found = members[positions]
        if self.or_root and not shared:
            found = found | members[block.starts[block.tree_of[positions]]]
        return ~found if self.reason.startswith("forbidden") else found

    def _amounts(self, block: Block, positions: Positions) -> Mask:
        passing = np.zeros(block.size, dtype=np.bool_)
        column = block.classes.get(self.resource_class)
        if column is not None:
            passing[column.rows] = True
            if self.reason == "min_unit" and column.min_unit is not None:
                passing[column.rows] = column.min_unit <= self.amount
            elif self.reason == "max_unit":
                passing[column.rows] = column.max_unit >= self.amount
            elif self.reason == "step_size" and column.step_size is not None:
                passing[column.rows] = self.amount % column.step_size == 0
            elif self.reason == "capacity":
                passing[column.rows] = column.capacity - column.used >= self.amount
        return passing[positions]


@attrs.frozen(kw_only=True)
class _AllOrRoot(Stage):
    """``member_of`` of the spread group: the provider, or else the root, meets every set."""

    sets: tuple[frozenset[str], ...] = ()

    def passes(self, block: Block, positions: Positions, *, shared: bool = False) -> Mask:
        member = np.ones(block.size, dtype=np.bool_)
        for names in self.sets:
            member &= any_member(block.aggregates, names, block.size)
        found = member[positions]
        return found if shared else found | member[block.starts[block.tree_of[positions]]]


def stages(slot: Slot, tree_root: int | None) -> list[Stage]:
    """The conditions of *slot* in the order in which they are tried."""
    return list(_stages(slot, tree_root))


def _stages(slot: Slot, tree_root: int | None) -> Iterator[Stage]:
    group = slot.group
    if group.in_tree is not None:
        yield Stage(reason="in_tree", tree_root=tree_root)
    reasons: tuple[Reason, ...] = ("no_inventory", "min_unit", "max_unit", "step_size", "capacity")
    for reason in reasons:
        for name, amount in slot.resources:
            yield Stage(reason=reason, resource_class=name, amount=amount)
    if slot.suffix:
        for names in group.required:
            yield Stage(reason="trait", names=names)
    if group.forbidden:
        yield Stage(reason="forbidden_trait", names=group.forbidden)
    if slot.suffix:
        for names in group.member_of:
            yield Stage(reason="aggregate", names=names)
    elif group.member_of:
        yield _AllOrRoot(reason="aggregate", names=frozenset().union(*group.member_of), sets=group.member_of)
    if group.not_member_of:
        yield Stage(reason="forbidden_aggregate", names=group.not_member_of, or_root=not slot.suffix)
