"""The tree that should be against the tree that is: what to change, and what cannot be changed just like that. Pure.

Only what cloudcore owns is touched: on the root its own classes and traits; below it providers with the owner trait,
whole. Foreign providers, classes, traits, aggregates, and the ratios that an operator set, stay as they are.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from cloudcore.hypervisor.tree.values import (
    ONE_TIME_TRAIT,
    OWNER_TRAIT,
    CurrentInventory,
    CurrentProvider,
    CurrentTree,
    DesiredInventory,
    DesiredProvider,
    DesiredTree,
    ProviderKind,
    is_device,
    storage_aggregate,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Action", "ProviderEdit", "Refusal", "ResourceMove", "TreeDiff", "applied", "diff", "overtaken"]

_ROOT_CLASSES = frozenset({"VCPU", "PCPU", "MEMORY_MB", "DISK_GB", "VGPU", "MEM_ENCRYPTION_CONTEXT"})
_ROOT_PREFIX = "CUSTOM_MEMORY_MB_PAGES_"
_SHARES = "MISC_SHARES_VIA_AGGREGATE"


class Action(StrEnum):
    """What to do with a provider."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


@attrs.frozen(kw_only=True)
class ProviderEdit:
    """One step.

    *inventories*, *traits* and *aggregates* are complete: what the provider has afterwards, foreign parts included.
    *moved* says that the parent is another than before; *generation* is the one that was seen; *told* says in words
    what changes.
    """

    action: Action
    uuid: str
    name: str
    parent: str | None = None
    inventories: tuple[DesiredInventory, ...] = ()
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    moved: bool = False
    generation: int | None = attrs.field(default=None, eq=False)
    told: tuple[str, ...] = attrs.field(default=(), eq=False)


@attrs.frozen(kw_only=True)
class ResourceMove:
    """Inventory in use that must go elsewhere together with its allocations.

    Attributes:
        source: UUID of the provider that loses it.
        resource_class: What it loses; *used* of it are allocated.
        targets: (provider, class, capacity) of every inventory that may take them over.
    """

    source: str
    resource_class: str
    used: int
    targets: tuple[tuple[str, str, int], ...]


@attrs.frozen(kw_only=True)
class Refusal:
    """A change that would take away what is in use, and is left out of the edits; or came before a claim was seen."""

    provider: str
    name: str
    resource_class: str
    used: int
    capacity: int
    text: str


@attrs.frozen(kw_only=True)
class TreeDiff:
    """How to get from the present tree to the desired one.

    Attributes:
        edits: In an order in which they can be carried out: parents first, removals last.
        moves: Allocations that have to move with their inventory. If there are any, edits and moves must happen in one
            transaction: see :func:`~cloudcore.hypervisor.plan_reshape`.
        refusals: Changes that were left out; after :func:`~cloudcore.hypervisor.sync` also those that a claim overtook.
    """

    edits: tuple[ProviderEdit, ...] = ()
    moves: tuple[ResourceMove, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def reshape_needed(self) -> bool:
        """Whether allocations have to move."""
        return bool(self.moves)

    def __bool__(self) -> bool:
        return bool(self.edits)


def diff(current: CurrentTree, desired: DesiredTree) -> TreeDiff:
    """What has to change in *current* so that it becomes *desired*. Nothing is done; "no" is in the result."""
    return _Comparison(current, desired).result()


@attrs.define
class _Comparison:
    current: CurrentTree
    desired: DesiredTree
    moves: list[ResourceMove] = attrs.Factory(list)
    refusals: list[Refusal] = attrs.Factory(list)

    def result(self) -> TreeDiff:
        edits = [edit for provider in self.desired if (edit := self._provider(provider))]
        edits += self._removals()
        return TreeDiff(edits=tuple(edits), moves=tuple(self.moves), refusals=tuple(self.refusals))

    # --- one provider ------------------------------------------------------------------------------------------------

    def _provider(self, wanted: DesiredProvider) -> ProviderEdit | None:
        present = self.current.with_uuid(wanted.uuid)
        if present is None:
            return ProviderEdit(
                action=Action.ADD,
                uuid=wanted.uuid,
                name=wanted.name,
                parent=wanted.parent,
                inventories=wanted.inventories,
                traits=wanted.traits,
                aggregates=wanted.aggregates,
                told=(f"add {wanted.name} with {_amounts(wanted.inventories)}",),
            )
        inventories = self._inventories(wanted, present)
        traits = wanted.traits | {trait for trait in present.traits if not wanted.owns_trait(trait)}
        aggregates = wanted.aggregates | (present.aggregates - self._left_aggregates(wanted))
        told = [*_inventory_changes(present, inventories), *_set_changes("trait", present.traits, traits)]
        told += _set_changes("aggregate", present.aggregates, aggregates)
        if present.parent != wanted.parent:
            told.append("moves in the tree")
        if not told:
            return None
        return ProviderEdit(
            action=Action.CHANGE,
            uuid=wanted.uuid,
            name=wanted.name,
            parent=wanted.parent,
            inventories=inventories,
            traits=traits,
            aggregates=aggregates,
            moved=present.parent != wanted.parent,
            generation=present.generation,
            told=tuple(f"{wanted.name}: {one}" for one in told),
        )

    def _left_aggregates(self, wanted: DesiredProvider) -> frozenset[str]:
        """Those that join hosts to shared storage of ours that this host does not use any more; all others stay."""
        if wanted.kind is not ProviderKind.ROOT:
            return frozenset()
        ours = (one for one in self.current.providers if {OWNER_TRAIT, _SHARES} <= one.traits)
        return frozenset(storage_aggregate(one.uuid) for one in ours) - wanted.aggregates

    def _inventories(self, wanted: DesiredProvider, present: CurrentProvider) -> tuple[DesiredInventory, ...]:
        """The complete inventories afterwards."""
        found: dict[str, DesiredInventory] = {}
        for inventory in wanted.inventories:
            recorded = present.inventory(inventory.resource_class)
            if recorded is not None and inventory.reserved is None:
                kept = min(recorded.reserved, inventory.total)
                inventory = attrs.evolve(inventory, reserved=kept)
            found[inventory.resource_class] = self._not_below_use(wanted, inventory, recorded)
        for recorded in present.inventories:
            if recorded.resource_class in found:
                continue
            foreign = wanted.kind is ProviderKind.ROOT and not _owned_on_root(recorded.resource_class)
            if foreign or not self._may_go(present, recorded):
                found[recorded.resource_class] = _as_desired(recorded)
        return tuple(found[name] for name in sorted(found))

    def _not_below_use(
        self, wanted: DesiredProvider, inventory: DesiredInventory, recorded: CurrentInventory | None
    ) -> DesiredInventory:
        if recorded is None or not recorded.used:
            return inventory
        if ONE_TIME_TRAIT in wanted.traits and inventory.total >= recorded.used:  # reserved because of it
            return inventory
        now, then = _capacity(recorded), _capacity(inventory)
        if then >= min(recorded.used, now):
            return inventory
        self._refuse(wanted.uuid, wanted.name, recorded, then, f"{then} would be left")
        return _as_desired(recorded)

    def _may_go(self, provider: CurrentProvider, recorded: CurrentInventory) -> bool:
        """Whether an inventory can be taken away: it is not in use, or its allocations can go elsewhere."""
        if not recorded.used:
            return True
        targets = self._targets(provider, recorded.resource_class)
        if targets:
            self.moves.append(
                ResourceMove(
                    source=provider.uuid,
                    resource_class=recorded.resource_class,
                    used=recorded.used,
                    targets=tuple(targets),
                )
            )
            return True
        self._refuse(provider.uuid, provider.name, recorded, 0, "nothing could take it over")
        return False

    def _targets(self, source: CurrentProvider, resource_class: str) -> list[tuple[str, str, int]]:
        """Who may take over what is in use: nobody a device's, and of a cell that stays only the cell itself.

        A guest has the device that it has, and its CPUs are where its memory is.
        """
        if is_device(source):
            return []
        stays = source.parent is not None and any(one.uuid == source.uuid for one in self.desired)
        for name in (resource_class, "PCPU") if resource_class == "VCPU" else (resource_class,):
            found = [
                (provider.uuid, name, _capacity(inventory))
                for provider in (() if stays else self.desired)
                if provider.uuid != source.uuid and (inventory := provider.inventory(name)) is not None
            ]
            if resource_class != name:  # dedicated CPUs may also be on the provider that had the shared ones
                own = next((one.inventory(name) for one in self.desired if one.uuid == source.uuid), None)
                found += [(source.uuid, name, _capacity(own))] if own else []
            if found:
                return found
        return []

    def _refuse(self, uuid: str, name: str, recorded: CurrentInventory, capacity: int, why: str) -> None:
        self.refusals.append(
            Refusal(
                provider=uuid,
                name=name,
                resource_class=recorded.resource_class,
                used=recorded.used,
                capacity=capacity,
                text=f"{name}: {recorded.used} {recorded.resource_class} are in use, {why}; left as it is",
            )
        )

    # --- removals ----------------------------------------------------------------------------------------------------

    def _removals(self) -> Iterator[ProviderEdit]:
        """Providers of ours below the root that should not be there, deepest first."""
        root, kept = self.desired.root.uuid, {provider.uuid for provider in self.desired}
        for provider in _deepest_first(self.current, root):
            if provider.uuid in kept or OWNER_TRAIT not in provider.traits:
                kept.add(provider.uuid)
                continue
            stays = [one for one in provider.inventories if not self._may_go(provider, one)]
            children = [child for child in self.current.children(provider.uuid) if self._stays_below(child, kept)]
            if not stays and not children:
                yield ProviderEdit(
                    action=Action.REMOVE,
                    uuid=provider.uuid,
                    name=provider.name,
                    generation=provider.generation,
                    told=(f"remove {provider.name}",),
                )
                continue
            kept.add(provider.uuid)
            if len(stays) < len(provider.inventories):
                yield ProviderEdit(
                    action=Action.CHANGE,
                    uuid=provider.uuid,
                    name=provider.name,
                    parent=provider.parent,
                    inventories=tuple(_as_desired(one) for one in stays),
                    traits=provider.traits,
                    aggregates=provider.aggregates,
                    generation=provider.generation,
                    told=(f"{provider.name}: left with {_amounts(tuple(_as_desired(one) for one in stays))}",),
                )

    def _stays_below(self, child: CurrentProvider, kept: set[str]) -> bool:
        """Whether *child* is still a child afterwards: it stays, and is not moved to another parent."""
        wanted = next((one for one in self.desired if one.uuid == child.uuid), None)
        return child.uuid in kept and (wanted is None or wanted.parent == child.parent)


def _deepest_first(tree: CurrentTree, uuid: str) -> Iterator[CurrentProvider]:
    for child in sorted(tree.children(uuid), key=lambda one: one.name):
        yield from _deepest_first(tree, child.uuid)
        yield child


def _owned_on_root(resource_class: str) -> bool:
    return resource_class in _ROOT_CLASSES or resource_class.startswith(_ROOT_PREFIX)


def _capacity(inventory: DesiredInventory | CurrentInventory) -> int:
    return math.floor((inventory.total - (inventory.reserved or 0)) * inventory.allocation_ratio)


def _as_desired(recorded: CurrentInventory) -> DesiredInventory:
    kept = attrs.asdict(recorded)
    del kept["used"]
    return DesiredInventory(**kept, because="as it is")


def _numbers(one: DesiredInventory | CurrentInventory) -> tuple[float, ...]:
    return one.total, one.reserved or 0, one.min_unit, one.max_unit, one.step_size, one.allocation_ratio


def _inventory_changes(present: CurrentProvider, after: tuple[DesiredInventory, ...]) -> Iterator[str]:
    for inventory in after:
        recorded = present.inventory(inventory.resource_class)
        if recorded is None:
            yield f"gets {_amounts((inventory,))}"
        elif _numbers(recorded) != _numbers(inventory):
            yield f"{inventory.resource_class} {recorded.total} becomes {inventory.total} ({inventory.because})"
    left = {one.resource_class for one in after}
    for recorded in present.inventories:
        if recorded.resource_class not in left:
            yield f"loses {recorded.total} {recorded.resource_class}"


def _set_changes(what: str, before: frozenset[str], after: frozenset[str]) -> Iterator[str]:
    for name in sorted(after - before):
        yield f"gets {what} {name}"
    for name in sorted(before - after):
        yield f"loses {what} {name}"


def _amounts(inventories: tuple[DesiredInventory, ...]) -> str:
    return ", ".join(f"{one.total} {one.resource_class}" for one in inventories) or "nothing"


def overtaken(before: CurrentTree, change: TreeDiff, after: CurrentTree) -> Iterator[Refusal]:
    """What *change* has shrunk below its use, since it was claimed between the look and the edit."""
    for edit in change.edits:
        seen, now = before.with_uuid(edit.uuid), after.with_uuid(edit.uuid)
        for one in now.inventories if seen and now else ():
            was, capacity = seen.inventory(one.resource_class) if seen else None, _capacity(one)
            if was and one.used > max(was.used, capacity) and capacity < _capacity(was):
                text = f"{one.used} {one.resource_class} are in use, claimed while it was made to give {capacity}"
                yield Refusal(
                    provider=edit.uuid,
                    name=edit.name,
                    resource_class=one.resource_class,
                    used=one.used,
                    capacity=capacity,
                    text=f"{edit.name}: {text}; what is in use stays, nothing more is given out",
                )


def applied(current: CurrentTree, change: TreeDiff, used: dict[tuple[str, str], int] | None = None) -> CurrentTree:
    """*current* after *change*. *used* gives (provider, class) → allocated afterwards, where allocations moved."""
    found = dict(current.by_uuid)
    for edit in change.edits:
        if edit.action is Action.REMOVE:
            del found[edit.uuid]
            continue
        before = found.get(edit.uuid)
        inventories = []
        for one in edit.inventories:
            recorded = before.inventory(one.resource_class) if before else None
            amount = (used or {}).get((edit.uuid, one.resource_class), recorded.used if recorded else 0)
            kept = attrs.asdict(one, filter=lambda field, _: field.name != "because")
            inventories.append(CurrentInventory(**(kept | {"reserved": one.reserved or 0}), used=amount))
        found[edit.uuid] = CurrentProvider(
            uuid=edit.uuid,
            name=edit.name,
            parent=edit.parent,
            inventories=tuple(inventories),
            traits=edit.traits,
            aggregates=edit.aggregates,
        )
    return CurrentTree(found.values())
