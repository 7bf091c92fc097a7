"""Devices beside processors, memory and disk: PCI aliases, accelerator profiles, ports. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cloudcore._values import require_integer, require_mapping
from cloudcore.errors import InvalidRequest
from cloudcore.placement.requests.flavors.draft import MAX_GROUPS, Draft, GroupDraft
from cloudcore.placement.requests.flavors.rules import AFFINITIES, FlavorRules
from cloudcore.placement.requests.flavors.words import FlavorWords, both, one_of, whole
from cloudcore.placement.requests.groups import elements, refuse
from cloudcore.placement.requests.groups import hashable as texts

if TYPE_CHECKING:
    from cloudcore.placement.requests.flavors.processors import Cell

__all__ = ["add_accelerators", "add_pci", "add_port"]

_PCI_PORTS = frozenset({"direct", "macvtap", "direct-physical", "virtio-forwarder", "vdpa", "remote-managed"})


def add_pci(
    draft: Draft, flavor: FlavorWords, image: Mapping[str, str], rules: FlavorRules, cells: tuple[Cell, ...]
) -> None:
    """One group for each device of ``pci_passthrough:alias``, and ``hw:pci_numa_affinity_policy``.

    Source: ``nova.pci.request._translate_alias_to_requests``,
    ``RequestSpec.generate_request_groups_from_pci_requests`` (one group for each device, so that each can come from
    another provider) and ``ResourceRequest._translate_pci_numa_affinity_policy``. Suffixes are ``pci{alias}-{device}``
    by number, where Nova takes a random uuid.
    """
    wanted, offered = both("pci_numa_affinity_policy", flavor, image)
    if wanted and offered and wanted != offered:
        raise refuse(f"the flavor says {wanted} and the image {offered}", "hw:pci_numa_affinity_policy", wanted)
    said = one_of(wanted or offered, AFFINITIES, "hw:pci_numa_affinity_policy")
    if said == "socket":
        draft.host.required.add("COMPUTE_SOCKET_PCI_NUMA_AFFINITY")
    text = flavor.extra_specs.get("pci_passthrough:alias")
    if text is None:
        return
    for number, (name, count) in enumerate(_alias_counts(text)):
        alias = rules.aliases.get(name)
        if alias is None:
            known = ", ".join(sorted(rules.aliases)) or "none"
            draft.leave_out("flavor", "pci_passthrough:alias", name, f"no alias of this name in the rules ({known})")
            continue
        if alias.live_migratable:
            draft.leave_out(f"alias {name}", "live_migratable", "true", "devices do not say so in their traits")
        suffixes = [f"pci{number}-{device}" for device in range(count)]
        for suffix in suffixes:
            group = draft.outside(suffix, source=f"alias {name}")
            group.resources[alias.resource_class] = 1
            group.required |= alias.traits
        if cells and suffixes:
            _keep_near(draft, rules, cells, suffixes, said, said or alias.numa_policy)


def _alias_counts(text: str) -> list[tuple[str, int]]:
    found = []
    for part in text.split(","):
        name, colon, count = part.partition(":")
        if not colon:
            raise refuse(f"expected alias:count, got {part!r}", "pci_passthrough:alias", text)
        number = whole(count, "pci_passthrough:alias")
        require_integer(number, "pci_passthrough:alias", minimum=0, maximum=MAX_GROUPS, error=InvalidRequest)
        found.append((name.strip(), number))
    return found


def _keep_near(
    draft: Draft, rules: FlavorRules, cells: tuple[Cell, ...], suffixes: list[str], said: str | None, policy: str
) -> None:
    """Tie devices to the guest's cell where that can be said; *said* is what flavor or image ask for by name."""
    if policy == "required" and rules.numa and len(cells) == 1 and "numa0" in draft.groups:
        draft.same_subtree.append(frozenset({"numa0", *suffixes}))
    elif policy in {"required", "socket"} or said == "legacy":
        reason = "a request ties devices to a cell only where rules.numa holds and the guest has one cell"
        draft.leave_out("flavor", "hw:pci_numa_affinity_policy", policy, reason)


def add_accelerators(draft: Draft, name: str, rules: FlavorRules, *, owner: str = "") -> None:
    """The groups of an accelerator profile, for the flavor or for the port *owner*.

    Source: ``nova.accelerator.cyborg`` (``get_device_request_groups``), and ``request_filter.accelerators_filter``
    for the flavor's trait.
    """
    source = f"port {owner}" if owner else "flavor"
    word = "device_profile" if owner else "accel:device_profile"
    if not owner:
        draft.root_required.add("COMPUTE_ACCELERATORS")
    profile = rules.device_profiles.get(name)
    if profile is None:
        draft.leave_out(source, word, name, "no device profile of this name in the rules")
        return
    for number, words in enumerate(profile):
        suffix = f"device_profile_{number}{owner}"
        draft.outside(suffix, source=f"device profile {name}")
        for key, value in words.items():
            if not draft.read_granular(f"device profile {name}", str(key), str(value), suffix):
                draft.leave_out(f"device profile {name}", str(key), value, "the accelerator service judges it")


def add_port(draft: Draft, port: Any, rules: FlavorRules) -> None:
    """The groups that a Neutron port asks for: its ``resource_request`` in either form, or its device profile.

    Source: ``RequestGroup.from_port_request`` and ``from_extended_port_request``,
    ``RequestLevelParams.from_port_request`` (``same_subtree``) and ``request_filter.remote_managed_ports_filter``.
    """

    def get(name: str) -> Any:
        return port.get(name) if isinstance(port, Mapping) else getattr(port, name.replace(":", "_"), None)

    port_id = get("id")
    if not port_id:
        raise refuse(f"a port without an id: {port!r}", "ports", port)
    source, field = f"port {port_id}", f"ports {port_id}"
    wanted = require_mapping(get("resource_request") or {}, field, InvalidRequest)
    if "request_groups" in wanted:
        for group in elements(wanted["request_groups"] or (), field):
            suffix = str(require_mapping(group, field, InvalidRequest).get("id") or "")
            _read_port_group(draft.outside(suffix, source=source), group, field)
        if wanted.get("same_subtree"):
            draft.same_subtree.append(frozenset(texts(wanted["same_subtree"], field)))
    elif wanted:
        _read_port_group(draft.outside(str(port_id), source=source), wanted, field)
    kind = str(get("binding:vnic_type") or "normal")
    if kind == "remote-managed":
        draft.root_required.add("COMPUTE_REMOTE_MANAGED_PORTS")
    if kind in _PCI_PORTS:
        draft.leave_out(source, "binding:vnic_type", kind, "its PCI device is tracked by no class of resources")
    if get("device_profile"):
        add_accelerators(draft, str(get("device_profile")), rules, owner=str(port_id))


def _read_port_group(group: GroupDraft, wanted: Mapping[str, Any], field: str) -> None:
    resources: Any = wanted.get("resources")
    for name, amount in require_mapping(resources, field, InvalidRequest).items():
        group.resources[name] = require_integer(amount, f"{field} {name}", minimum=0, error=InvalidRequest)
    group.required.update(texts(wanted.get("required") or (), field))
