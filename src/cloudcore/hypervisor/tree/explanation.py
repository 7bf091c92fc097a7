"""The desired tree in words: which fact gave which number. What an operator reads before it is applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloudcore.hypervisor.tree.comparison import TreeDiff
    from cloudcore.hypervisor.tree.values import DesiredProvider, DesiredTree

__all__ = ["explain"]


def explain(tree: DesiredTree, change: TreeDiff | None = None) -> str:
    """Each provider, inventory and trait of *tree* with its reason, as indented text; and what *change* would do."""
    depths = {tree.root.uuid: 0}
    lines: list[str] = []
    for provider in tree:
        depth = depths.setdefault(provider.uuid, depths.get(provider.parent or "", -1) + 1)
        lines += [f"{'  ' * depth}{line}" for line in _provider_lines(provider)]
    lines += [f"warning: {warning}" for warning in tree.warnings]
    if change is not None:
        lines += _change_lines(change)
    return "\n".join(lines)


def _provider_lines(provider: DesiredProvider) -> list[str]:
    lines = [f"{provider.name} ({provider.kind}) {provider.uuid}"]
    for one in provider.inventories:
        numbers = f"{one.resource_class} {one.total}"
        if one.reserved:
            numbers += f", {one.reserved} reserved"
        if one.allocation_ratio != 1.0:
            numbers += f", x {one.allocation_ratio:g}"
        lines.append(f"  {numbers}: {one.because}")
    lines += [f"  {trait}: {reason}" for trait, reason in provider.because]
    lines += [f"  aggregate {aggregate}" for aggregate in sorted(provider.aggregates)]
    return lines


def _change_lines(change: TreeDiff) -> list[str]:
    lines = [f"change: {told}" for edit in change.edits for told in edit.told]
    lines += [f"move: {one.used} {one.resource_class} from {one.source}" for one in change.moves]
    lines += [f"refused: {one.text}" for one in change.refusals]
    return lines or ["change: nothing"]
