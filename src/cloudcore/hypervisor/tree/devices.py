"""The providers of PCI devices, physical GPUs and memory encryption. Pure, like the tree they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from cloudcore.errors import InvalidArgument
from cloudcore.hypervisor.facts.host import DeviceFunction, HostDevice, HostFacts
from cloudcore.hypervisor.tree.policy import DeviceRule, HostPolicy, VgpuRule, trait_name
from cloudcore.hypervisor.tree.values import (
    ONE_TIME_TRAIT,
    OWNER_TRAIT,
    CurrentInventory,
    CurrentProvider,
    CurrentTree,
    DesiredInventory,
    DesiredProvider,
    ProviderKind,
    child_uuid,
)

__all__ = ["device_providers", "encryption_providers", "vgpu_providers"]

_PHYSNET = "CUSTOM_PHYSNET"
_PART = frozenset({DeviceFunction.VF, DeviceFunction.VDPA})

Parents = Mapping[int, str]
"""UUID of the provider of each NUMA cell that has one."""


def _child(
    current: CurrentTree,
    root: DesiredProvider,
    suffix: str,
    kind: ProviderKind,
    parent: str,
    inventories: Sequence[DesiredInventory],
    because: Mapping[str, str],
    prefixes: tuple[str, ...] = (),
) -> DesiredProvider:
    name = f"{root.name}_{suffix}"
    traits = {**because, OWNER_TRAIT: "made by cloudcore"}
    return DesiredProvider(
        uuid=child_uuid(current, root.uuid, name),
        name=name,
        parent=parent,
        kind=kind,
        inventories=tuple(sorted(inventories, key=lambda one: one.resource_class)),
        traits=frozenset(traits),
        owned_traits=frozenset(traits),
        owned_prefixes=prefixes,
        because=tuple(sorted(traits.items())),
    )


# --- PCI -------------------------------------------------------------------------------------------------------------


def device_providers(
    facts: HostFacts,
    policy: HostPolicy,
    current: CurrentTree,
    root: DesiredProvider,
    parents: Parents,
    warnings: list[str],
) -> Iterator[DesiredProvider]:
    """A provider for each PCI device that is offered whole, or whose virtual functions are.

    Raises:
        InvalidArgument: Rules offer a physical function both whole and in parts, or its parts in different ways.
    """
    known = {device.address: device for device in facts.devices if device.address is not None}
    groups: dict[str, list[tuple[HostDevice, DeviceRule]]] = defaultdict(list)
    for device, rule in _matched(facts, policy):
        groups[_place(device)].append((device, rule))
    for address, members in sorted(groups.items()):
        _refuse_mixture(address, members)
        physical = known.get(address, members[0][0])
        name = f"{root.name}_{address}"
        present = current.with_uuid(child_uuid(current, root.uuid, name))
        inventories = _device_inventories(members, present, name, warnings)
        parent = parents.get(physical.cell, root.uuid) if physical.cell is not None else root.uuid
        because = _device_traits(members)
        yield _child(
            current, root, address, ProviderKind.PCI, parent, inventories, because, (f"{_PHYSNET}_", "HW_PCI_")
        )


def _matched(facts: HostFacts, policy: HostPolicy) -> Iterator[tuple[HostDevice, DeviceRule]]:
    """The devices that are offered, each with its rule."""
    for device in facts.devices:
        rule = next((rule for rule in policy.devices if rule.matches(device)), None)
        if rule is not None:
            yield device, rule


def _place(device: HostDevice) -> str:
    """Address of the device whose provider counts it: a virtual function is its physical one's."""
    return (device.parent if device.function in _PART and device.parent else device.address) or ""


def _refuse_mixture(address: str, members: Sequence[tuple[HostDevice, DeviceRule]]) -> None:
    functions = {device.function in _PART for device, _ in members}
    if len(functions) > 1:
        raise InvalidArgument(
            f"devices: {address} is offered whole and its virtual functions too; "
            "narrow one rule by functions, address or product",
            field="devices",
            value=address,
        )
    traits = {(rule.physical_network, rule.traits, rule.one_time_use, rule.live_migratable) for _, rule in members}
    classes = {(device.function, rule.resource_class_of(device)) for device, rule in members}
    if len(traits) > 1 or len(classes) > len({function for function, _ in classes}):
        raise InvalidArgument(
            f"devices: virtual functions of {address} must be offered alike (class, network, traits)",
            field="devices",
            value=address,
        )


def _device_inventories(
    members: Sequence[tuple[HostDevice, DeviceRule]], present: CurrentProvider | None, name: str, warnings: list[str]
) -> list[DesiredInventory]:
    counts: dict[str, list[HostDevice]] = defaultdict(list)
    for device, rule in members:
        counts[rule.resource_class_of(device)].append(device)
    one_time = members[0][1].one_time_use
    found = []
    for resource_class, devices in counts.items():
        recorded = present.inventory(resource_class) if present else None
        used = recorded.used if recorded else 0
        if used > len(devices):
            warnings.append(f"{name}: {used} {resource_class} are in use, {len(devices)} devices are left")
        total = max(len(devices), used)
        what = f"{len(devices)} x {devices[0].function.upper()} {devices[0].vendor}:{devices[0].product}"
        found.append(
            DesiredInventory(
                resource_class=resource_class,
                total=total,
                reserved=_reserved(recorded, total) if one_time else None,
                because=f"{what} (node devices, policy)",
            )
        )
    return found


def _reserved(recorded: CurrentInventory | None, total: int) -> int | None:
    """Once one of the provider's one-time devices was given out, all are reserved: nobody knows which one it was."""
    given_out = recorded is not None and (recorded.used or recorded.reserved)
    return total if given_out else None


def _device_traits(members: Sequence[tuple[HostDevice, DeviceRule]]) -> dict[str, str]:
    rule = members[0][1]
    because = {"COMPUTE_MANAGED_PCI_DEVICE": "libvirt binds and unbinds its driver"}
    if rule.physical_network is not None:
        because[trait_name(_PHYSNET, rule.physical_network)] = f"policy: physical network {rule.physical_network}"
    if rule.live_migratable:
        because["HW_PCI_LIVE_MIGRATABLE"] = "policy: live_migratable"
    if rule.one_time_use:
        because[ONE_TIME_TRAIT] = "policy: one_time_use"
    return because | dict.fromkeys(rule.traits, "policy: traits")


# --- GPUs ------------------------------------------------------------------------------------------------------------


def vgpu_providers(
    facts: HostFacts, policy: HostPolicy, current: CurrentTree, root: DesiredProvider, parents: Parents
) -> Iterator[DesiredProvider]:
    """A provider for each device that offers mediated devices of a type that the policy names.

    Raises:
        InvalidArgument: Two rules want different types of one device, or it is offered as a PCI device too.
    """
    whole = {device.address for device, _ in _matched(facts, policy)}
    offered = whole | {_place(device) for device, _ in _matched(facts, policy)}
    left = {rule: rule.maximum for rule in policy.vgpus}
    for device in facts.devices:
        rules = [rule for rule in policy.vgpus if rule.matches(device)]
        if len({rule.type for rule in rules}) > 1:
            types = ", ".join(sorted(rule.type for rule in rules))
            raise InvalidArgument(
                f"vgpus: {device.name} offers one type at a time, rules ask for {types}", field="vgpus", value=types
            )
        if not rules:
            continue
        if device.address is not None and (device.address in offered or device.parent in whole):
            raise InvalidArgument(
                f"vgpus: {device.address} is offered as a PCI device too, whole or by its functions; narrow one rule",
                field="vgpus",
                value=device.address,
            )
        rule = rules[0]
        created = sum(one.parent == device.name and one.type == rule.type for one in facts.mediated_devices)
        available = sum(kind.available for kind in device.mdev_types if kind.id == rule.type)
        bound = left[rule]
        total = created + available if bound is None else min(created + available, bound)
        if bound is not None:
            left[rule] = bound - total
        if total:
            because = f"{created} {rule.type} exist on {device.name}, {available} more can be made (node devices)"
            yield _gpu(current, root, parents, device, rule, total, because)


def _gpu(
    current: CurrentTree,
    root: DesiredProvider,
    parents: Parents,
    device: HostDevice,
    rule: VgpuRule,
    total: int,
    because: str,
) -> DesiredProvider:
    parent = parents.get(device.cell, root.uuid) if device.cell is not None else root.uuid
    inventory = DesiredInventory(resource_class=rule.resource_class, total=total, because=because)
    traits = dict.fromkeys(rule.traits, "policy: traits")
    return _child(current, root, device.name, ProviderKind.VGPU, parent, [inventory], traits)


# --- memory encryption -----------------------------------------------------------------------------------------------


def encryption_providers(
    facts: HostFacts, policy: HostPolicy, current: CurrentTree, root: DesiredProvider
) -> Iterator[DesiredProvider]:
    """One provider for SEV, and one for SEV-SNP or SEV-ES, which draw on the same range of identifiers."""
    limits = facts.domain.encryption if facts.domain else None
    if limits is None:
        return
    offers = [("amd_sev", "HW_CPU_X86_AMD_SEV", limits.sev_guests)]
    if limits.snp:
        offers.append(("amd_sev_snp", "HW_CPU_X86_AMD_SEV_SNP", limits.sev_es_guests))
    else:
        offers.append(("amd_sev_es", "HW_CPU_X86_AMD_SEV_ES", limits.sev_es_guests))
    for suffix, trait, guests in offers:
        total = guests if policy.encryption_guests is None else min(guests, policy.encryption_guests)
        if total:
            because = f"at most {guests} such guests (domain capabilities)"
            inventory = DesiredInventory(
                resource_class="MEM_ENCRYPTION_CONTEXT", total=total, max_unit=1, because=because
            )
            traits = {trait: "domain capabilities"}
            yield _child(current, root, suffix, ProviderKind.ENCRYPTION, root.uuid, [inventory], traits)
