"""What is in use of devices stays in the tree, although they are gone or offered otherwise. Pure, like the tree."""

from __future__ import annotations

import re
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
    ProviderKind,
    is_device,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["with_what_is_in_use"]

_PCI_ADDRESS = re.compile(r"_[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_ENCRYPTION = "HW_CPU_X86_AMD_SEV"


def with_what_is_in_use(
    offered: Sequence[DesiredProvider],
    current: CurrentTree,
    root: DesiredProvider,
    parents: Mapping[int, str],
    warnings: list[str],
) -> Iterator[DesiredProvider]:
    """The *offered* devices and, of them and of others that are there, what is in use and not offered any more.

    No guest can take another device than the one it has, so its allocation stays where it is; of what is gone nothing
    more is given out. A one-time device keeps its record also when its use is over: without it, it would be new when
    it comes back.
    """
    for provider in offered:
        present = current.with_uuid(provider.uuid)
        kept = _kept(present, {one.resource_class for one in provider.inventories}, warnings) if present else []
        inventories = sorted((*provider.inventories, *kept), key=lambda one: one.resource_class)
        yield attrs.evolve(provider, inventories=tuple(inventories))
    known, possible = {provider.uuid for provider in offered}, {root.uuid, *parents.values()}
    for present in sorted(current.providers, key=lambda one: one.name):
        if present.uuid in known or not is_device(present):
            continue
        if kept := _kept(present, (), warnings):
            yield DesiredProvider(
                uuid=present.uuid,
                name=present.name,
                parent=present.parent if present.parent in possible else root.uuid,
                kind=_kind(present),
                inventories=tuple(kept),
                traits=present.traits,
                owned_traits=frozenset({OWNER_TRAIT}),
                because=((OWNER_TRAIT, "made by cloudcore"),),
            )


def _kept(present: CurrentProvider, offered: Collection[str], warnings: list[str]) -> list[DesiredInventory]:
    one_time = ONE_TIME_TRAIT in present.traits
    kept = []
    for recorded in present.inventories:
        if recorded.resource_class in offered or not (recorded.used or (one_time and recorded.reserved)):
            continue
        why = f"{recorded.used} are in use" if recorded.used else "its one use is over"
        warnings.append(f"{present.name}: {recorded.resource_class} is not offered any more, kept because {why}")
        kept.append(_no_more_than_used(recorded, one_time, why))
    return kept


def _no_more_than_used(recorded: CurrentInventory, one_time: bool, why: str) -> DesiredInventory:
    """Room for what is in use and for the operator's reserve, and no more."""
    total = recorded.used + (0 if one_time else recorded.reserved) or recorded.total
    return DesiredInventory(
        resource_class=recorded.resource_class,
        total=total,
        reserved=total if one_time else recorded.reserved,
        min_unit=recorded.min_unit,
        max_unit=recorded.max_unit,
        step_size=recorded.step_size,
        because=f"not offered any more, but {why}",
    )


def _kind(present: CurrentProvider) -> ProviderKind:
    if _PCI_ADDRESS.search(present.name):
        return ProviderKind.PCI
    encryption = any(trait.startswith(_ENCRYPTION) for trait in present.traits)
    return ProviderKind.ENCRYPTION if encryption else ProviderKind.VGPU
