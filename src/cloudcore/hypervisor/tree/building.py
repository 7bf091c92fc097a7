"""Facts and policy become the provider tree that a host should have. Pure, deterministic, complete.

The shape: the root holds the disk and the traits of the whole host; each NUMA cell is a child with its CPUs, memory and
huge pages; PCI devices and GPUs hang below their cell (below the root where it is unknown); storage that several hosts
share is a provider of its own, joined by an aggregate, so that it is counted once. Pages of each size are an inventory
of their own and add up to the memory of the cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore.errors import InvalidArgument
from cloudcore.hypervisor.facts.traits import OWNED_ROOT_TRAITS, root_traits
from cloudcore.hypervisor.tree.devices import device_providers, encryption_providers, vgpu_providers
from cloudcore.hypervisor.tree.in_use import with_what_is_in_use
from cloudcore.hypervisor.tree.policy import HostPolicy, allocation_ratio
from cloudcore.hypervisor.tree.storage import disk_of_host
from cloudcore.hypervisor.tree.values import (
    OWNER_TRAIT,
    CurrentProvider,
    CurrentTree,
    DesiredInventory,
    DesiredProvider,
    DesiredTree,
    ProviderKind,
    child_uuid,
    derived_uuid,
    page_class,
    page_label,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.hypervisor.facts.host import HostFacts, NumaCell

__all__ = ["apportion", "build_tree"]

_MIB = 1024  # in KiB
_PAGE_TRAIT, _SOCKET_TRAIT = "CUSTOM_MEMORY_PAGE_SIZE", "CUSTOM_CPU_SOCKET"


def build_tree(facts: HostFacts, policy: HostPolicy | None = None, current: CurrentTree | None = None) -> DesiredTree:
    """The tree that the host of *facts* should have under *policy*.

    *current* is what is there now: it gives the identifiers of providers that exist, the allocation ratios that an
    operator set, and what is in use. The same arguments give the same tree.

    Raises:
        InvalidArgument: The policy asks for what the host has not (CPUs that are not online, a device both whole and in
            parts, a pool that does not exist, more reserved than there is). Refused, never guessed.
        InvalidProvider: A provider that others made has the name of one of ours.
    """
    return _Builder(facts, policy or HostPolicy(), current or CurrentTree()).build()


def apportion(amount: int, weights: Sequence[int]) -> list[int]:
    """*amount* dealt in proportion to *weights* (largest remainder), never more than the weight to anyone.

    Raises:
        InvalidArgument: *amount* is more than all weights.
    """
    whole = sum(weights)
    if amount > whole:
        raise InvalidArgument(f"{amount} cannot be taken from {whole}", value=amount)
    if not amount:
        return [0] * len(weights)
    dealt = [amount * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % whole), i))
    for i in order[: amount - sum(dealt)]:
        dealt[i] += 1
    return dealt


@attrs.define
class _Builder:
    facts: HostFacts
    policy: HostPolicy
    current: CurrentTree
    warnings: list[str] = attrs.Factory(list)

    def build(self) -> DesiredTree:
        shared, dedicated = self._cpu_sets()
        root = self._root_identity()
        cells = self._cell_inventories(shared, dedicated, root)
        disk, sharing = disk_of_host(self.facts, self.policy, self.current, root, self.warnings)
        numa = [self._cell_provider(root, cell, found) for cell, found in cells if found] if self.policy.numa else []
        parents = {cell.id: provider.uuid for (cell, found), provider in zip(_filled(cells), numa, strict=False)}
        devices = (
            *device_providers(self.facts, self.policy, self.current, root, parents, self.warnings),
            *vgpu_providers(self.facts, self.policy, self.current, root, parents),
            *encryption_providers(self.facts, self.policy, self.current, root),
        )
        children = (*numa, *with_what_is_in_use(devices, self.current, root, parents, self.warnings))
        own = disk if self.policy.numa else disk + _summed([found for _, found in cells])
        aggregates = sharing.aggregates if sharing else frozenset[str]()
        whole = attrs.evolve(
            root, inventories=tuple(sorted(own, key=lambda one: one.resource_class)), aggregates=aggregates
        )
        shared_providers = (sharing,) if sharing else ()
        return DesiredTree(providers=(whole, *children, *shared_providers), warnings=tuple(self.warnings))

    # --- the root ----------------------------------------------------------------------------------------------------

    def _root_identity(self) -> DesiredProvider:
        name = self.policy.name or self.facts.host_name
        present = self.current.named(name)
        if self.policy.uuid and present and present.uuid != self.policy.uuid:
            raise InvalidArgument(
                f"uuid: the policy says {self.policy.uuid}, but {name} is there as {present.uuid}",
                field="uuid",
                value=self.policy.uuid,
            )
        uuid = present.uuid if present else self.policy.uuid
        foreign = self.policy.traits & (OWNED_ROOT_TRAITS | {OWNER_TRAIT})
        if foreign:
            names = ", ".join(sorted(foreign))
            raise InvalidArgument(f"traits: {names}: decided by facts, not by policy", field="traits", value=foreign)
        because = root_traits(self.facts) | dict.fromkeys(sorted(self.policy.traits), "policy: traits")
        return DesiredProvider(
            uuid=uuid or derived_uuid("host", self.facts.host_id or "", name),
            name=name,
            parent=None,
            kind=ProviderKind.ROOT,
            traits=frozenset(because),
            owned_traits=OWNED_ROOT_TRAITS | self.policy.traits,
            because=tuple(sorted(because.items())),
        )

    # --- CPUs and memory ---------------------------------------------------------------------------------------------

    def _cpu_sets(self) -> tuple[frozenset[int], frozenset[int]]:
        online, dedicated, shared = self.facts.online_cpus, self.policy.dedicated_cpus, self.policy.shared_cpus
        for field, cpus in (("dedicated_cpus", dedicated), ("shared_cpus", shared or frozenset())):
            if missing := cpus - online:
                listed = ", ".join(map(str, sorted(missing)))
                raise InvalidArgument(f"{field}: CPUs {listed} are not online on this host", field=field, value=missing)
        if shared is None:
            shared = frozenset() if dedicated else online
        if self.policy.reserved_cpus > len(shared):
            raise InvalidArgument(
                f"reserved_cpus: {self.policy.reserved_cpus} of {len(shared)} shared CPUs",
                field="reserved_cpus",
                value=self.policy.reserved_cpus,
            )
        return shared, dedicated

    def _cell_inventories(
        self, shared: frozenset[int], dedicated: frozenset[int], root: DesiredProvider
    ) -> list[tuple[NumaCell, tuple[DesiredInventory, ...]]]:
        cells = self.facts.cells
        small = [self._ordinary_memory(cell) for cell in cells]
        reserved_cpus = apportion(self.policy.reserved_cpus, [len(shared & cell.cpus) for cell in cells])
        if self.policy.reserved_memory_mb > sum(small):
            raise InvalidArgument(
                f"reserved_memory_mb: {self.policy.reserved_memory_mb} of {sum(small)} MiB outside huge pages",
                field="reserved_memory_mb",
                value=self.policy.reserved_memory_mb,
            )
        reserved_memory = apportion(self.policy.reserved_memory_mb, small)
        found = []
        for cell, memory, cpus_kept, memory_kept in zip(cells, small, reserved_cpus, reserved_memory, strict=True):
            present = self._present_cell(cell, root)
            found.append(
                (
                    cell,
                    (
                        *self._cpus("VCPU", cell, shared, cpus_kept, present),
                        *self._cpus("PCPU", cell, dedicated, 0, present),
                        *self._memory(cell, memory, memory_kept, present),
                    ),
                )
            )
        return found

    def _present_cell(self, cell: NumaCell, root: DesiredProvider) -> tuple[CurrentProvider | None, ...]:
        """Where ratios of this cell's classes may be recorded: on the cell, else on the root of an older shape."""
        own = self.current.named(_cell_name(root, cell)) if self.policy.numa else None
        cells = () if self.policy.numa else self.current.children(root.uuid)
        return own, self.current.with_uuid(root.uuid), *cells

    def _cpus(
        self, name: str, cell: NumaCell, cpus: frozenset[int], reserved: int, present: Sequence[CurrentProvider | None]
    ) -> tuple[DesiredInventory, ...]:
        here = cpus & cell.cpus
        if not here:
            return ()
        what = "dedicated" if name == "PCPU" else "shared"
        ratio = 1.0 if name == "PCPU" else allocation_ratio(self.policy, name, present)  # a dedicated CPU is one CPU
        because = f"{what} CPUs {_ranges(here)} of cell {cell.id} (topology, CPU map, policy)"
        return (
            DesiredInventory(
                resource_class=name, total=len(here), reserved=reserved, allocation_ratio=ratio, because=because
            ),
        )

    def _ordinary_memory(self, cell: NumaCell) -> int:
        whole = cell.memory // _MIB
        huge = sum(pool.size * pool.count // _MIB for pool in cell.huge_pages)
        if huge > whole:
            self.warnings.append(
                f"cell {cell.id}: {huge} MiB of huge pages in {whole} MiB of memory; MEMORY_MB left out"
            )
        return max(whole - huge, 0)

    def _memory(
        self, cell: NumaCell, small: int, reserved: int, present: Sequence[CurrentProvider | None]
    ) -> tuple[DesiredInventory, ...]:
        found = []
        if small:
            because = f"memory of cell {cell.id}: {cell.memory} KiB (topology), without huge pages"
            ratio = allocation_ratio(self.policy, "MEMORY_MB", present)
            found.append(
                DesiredInventory(
                    resource_class="MEMORY_MB", total=small, reserved=reserved, allocation_ratio=ratio, because=because
                )
            )
        for pool in cell.huge_pages:
            total, step = pool.size * pool.count // _MIB, max(pool.size // _MIB, 1)
            if total:
                because = f"{pool.count} pages of {pool.size} KiB in cell {cell.id} (topology)"
                found.append(
                    DesiredInventory(
                        resource_class=page_class(pool.size),
                        total=total,
                        min_unit=step,
                        step_size=step,
                        because=because,
                    )
                )
        return tuple(found)

    def _cell_provider(
        self, root: DesiredProvider, cell: NumaCell, inventories: tuple[DesiredInventory, ...]
    ) -> DesiredProvider:
        name = _cell_name(root, cell)
        because = {"HW_NUMA_ROOT": "a NUMA cell", OWNER_TRAIT: "made by cloudcore"}
        for pool in cell.huge_pages:
            because[f"{_PAGE_TRAIT}_{page_label(pool.size)}"] = f"pages of {pool.size} KiB are set aside (topology)"
        if len(cell.sockets) == 1:  # a cell that spans sockets cannot be asked for by socket
            because[f"{_SOCKET_TRAIT}_{min(cell.sockets)}"] = "all CPUs are on one socket (topology)"
        return DesiredProvider(
            uuid=child_uuid(self.current, root.uuid, name),
            name=name,
            parent=root.uuid,
            kind=ProviderKind.NUMA,
            inventories=tuple(sorted(inventories, key=lambda one: one.resource_class)),
            traits=frozenset(because),
            owned_traits=frozenset(because),
            owned_prefixes=(f"{_PAGE_TRAIT}_", f"{_SOCKET_TRAIT}_"),
            because=tuple(sorted(because.items())),
        )


def _cell_name(root: DesiredProvider, cell: NumaCell) -> str:
    return f"{root.name}_numa{cell.id}"


def _filled(
    cells: Sequence[tuple[NumaCell, tuple[DesiredInventory, ...]]],
) -> list[tuple[NumaCell, tuple[DesiredInventory, ...]]]:
    return [(cell, found) for cell, found in cells if found]


def _summed(cells: Sequence[tuple[DesiredInventory, ...]]) -> tuple[DesiredInventory, ...]:
    """The inventories of all cells added up by class: the flat shape."""
    whole: dict[str, DesiredInventory] = {}
    for one in (inventory for cell in cells for inventory in cell):
        known = whole.get(one.resource_class)
        if known is None:
            whole[one.resource_class] = one
            continue
        total = known.total + one.total
        whole[one.resource_class] = attrs.evolve(
            known,
            total=total,
            reserved=(known.reserved or 0) + (one.reserved or 0),
            max_unit=total,
            because=f"{known.because}; {one.because}",
        )
    return tuple(whole.values())


def _ranges(cpus: frozenset[int]) -> str:
    """``{0, 1, 2, 8}`` is ``"0-2,8"``."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
