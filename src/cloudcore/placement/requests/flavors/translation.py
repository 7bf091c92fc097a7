"""The whole translation of a flavor, with an image and ports, into the arguments of a request. Pure.

It follows ``ResourceRequest.from_request_spec`` and ``resources_from_request_spec`` (``nova.scheduler.utils``) and the
request filters that need no database (``nova.scheduler.request_filter``) of Nova 34.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from cloudcore.errors import InvalidRequest
from cloudcore.placement.forest.names import is_known_trait, require_resource_class
from cloudcore.placement.requests.flavors.devices import add_accelerators, add_pci, add_port
from cloudcore.placement.requests.flavors.draft import Draft
from cloudcore.placement.requests.flavors.processors import (
    Cell,
    PageSize,
    Processors,
    read_cells,
    read_page_size,
    read_processors,
)
from cloudcore.placement.requests.flavors.rules import FlavorRules, Unhonoured, custom_name
from cloudcore.placement.requests.flavors.words import (
    FlavorWords,
    agreed_flag,
    both,
    flag,
    numbered,
    one_of,
    read_flavor,
    read_image,
    unique,
)
from cloudcore.placement.requests.groups import elements, refuse

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

__all__ = ["translate"]

# Read below, or settings of the guest that any host can give it (nova.api.validation.extra_specs).
_READ = re.compile(
    r"(?:hw:(?:cpu_policy|cpu_thread_policy|emulator_threads_policy|cpu_dedicated_mask|cpu_realtime|cpu_realtime_mask"
    r"|numa_nodes|numa_cpus\.[0-9]+|numa_mem\.[0-9]+|mem_page_size|mem_encryption|mem_encryption_model|pmem"
    r"|pci_numa_affinity_policy|tpm_version|tpm_model|tpm_secret_security|maxphysaddr_mode|virtio_packed_ring"
    r"|sound_model|ephemeral_encryption|ephemeral_encryption_format)"
    r"|os:secure_boot|pci_passthrough:alias|accel:device_profile)\Z"
)
_CELL_WORD = re.compile(r"hw[:_]numa_(?:nodes|cpus\.[0-9]+|mem\.[0-9]+)\Z")
_OF_EACH_CELL = ("hw:numa_cpus", "hw:numa_mem", "hw_numa_cpus", "hw_numa_mem")
_GUEST_ONLY = re.compile(
    r"hw:(cpu_sockets|cpu_cores|cpu_threads|cpu_max_sockets|cpu_max_cores|cpu_max_threads|boot_menu|hide_hypervisor_id"
    r"|locked_memory|pmu|serial_port_count|time_hpet|vif_multiqueue_enabled|viommu_model|watchdog_action|input_bus"
    r"|usb_model|redirected_usb_ports)\Z"
    r"|hide_hypervisor_id\Z|quota:|hw_rng:|hw_video:"
)
_OTHER_FILTERS = {
    "capabilities": "a capability of the host's state, which no provider carries: ask for a trait instead",
    "aggregate_instance_extra_specs": "metadata of aggregates: judge it by a filter",
    "hw:maxphysaddr_bits": "a capability of the host's state: judge it by a filter",
}
_OTHER_PROPERTIES = ("img_hv_type", "img_hv_requested_version", "hw_vm_mode")

_IMAGE_TRAITS = {
    "hw_cdrom_bus": "COMPUTE_STORAGE_BUS",
    "hw_disk_bus": "COMPUTE_STORAGE_BUS",
    "hw_video_model": "COMPUTE_GRAPHICS_MODEL",
    "hw_vif_model": "COMPUTE_NET_VIF_MODEL",
    "hw_architecture": "HW_ARCH",
    "hw_emulation_architecture": "COMPUTE_ARCH",
    "hw_viommu_model": "COMPUTE_VIOMMU",
}
_SOUND = ("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio")
_SAME_ARCHITECTURE = {"amd64": "x86_64", **dict.fromkeys(("i386", "i486", "i586", "x86_32", "x86_32p"), "i686")}
_ENCRYPTION = {
    "amd-sev": "HW_CPU_X86_AMD_SEV",
    "amd-sev-es": "HW_CPU_X86_AMD_SEV_ES",
    "amd-sev-snp": "HW_CPU_X86_AMD_SEV_SNP",
    "intel-tdx": "HW_CPU_X86_INTEL_TDX",
}


def translate(
    flavor: Any,
    image: Mapping[str, Any] | None = None,
    ports: Iterable[Any] = (),
    *,
    rules: FlavorRules,
    boot_from_volume: bool = False,
    multiattach: bool = False,
    member_of: Iterable[Iterable[str] | str] = (),
    not_member_of: Iterable[str] = (),
    in_tree: str | None = None,
) -> tuple[dict[str, Any], tuple[Unhonoured, ...]]:
    """Return the arguments of :class:`ResourceRequest`, and the words that it does not carry.

    Raises:
        InvalidRequest: Words contradict each other, as Nova's API refuses them.
    """
    if not isinstance(rules, FlavorRules):
        raise refuse(f"expected FlavorRules, got {rules!r}", "rules", rules)
    words, properties, draft = read_flavor(flavor), read_image(image), Draft(traits_at_root=rules.numa)
    processors, page_size = read_processors(words, properties), read_page_size(words, properties)
    labels = [label.strip() for label in words.extra_specs.get("hw:pmem", "").split(",") if label.strip()]
    cells = read_cells(words, properties, processors, needed=bool(page_size or labels))
    _read_extra_specs(draft, words)
    granular = len([suffix for suffix in draft.groups if suffix])
    _require_image_traits(draft, properties)
    draft.tell_hosts_traits()
    _pin(draft, words, processors)
    if cells:
        _lay_out(draft, words, properties, rules, processors, page_size, cells)
    else:
        _leave_out_cells(draft, words, properties, "the guest has no NUMA cells: say hw:numa_nodes")
    for port in elements(ports, "ports"):
        add_port(draft, port, rules)
    if words.extra_specs.get("accel:device_profile"):
        add_accelerators(draft, words.extra_specs["accel:device_profile"], rules)
    add_pci(draft, words, properties, rules, cells)
    _add_amounts(draft, words, boot_from_volume=boot_from_volume)
    _encrypt_memory(draft, words, properties)
    for label in labels:  # ResourceRequest._translate_vpmems_request
        draft.group().resources[custom_name("PMEM_NAMESPACE_" + label)] = labels.count(label)
    _add_compute_traits(draft, words, properties)
    if rules.image_traits:
        _add_image_traits(draft, properties, boot_from_volume=boot_from_volume)
    if multiattach:
        draft.root_required.add("COMPUTE_VOLUME_MULTI_ATTACH")
    groups = draft.finish(member_of, not_member_of, in_tree)
    if draft.group_policy is None and len(groups.keys() - {""}) > 1 and granular <= 1:
        draft.group_policy = "none"  # resources_from_request_spec: groups from outside the flavor may share providers
    arguments = {
        "groups": groups,
        "group_policy": draft.group_policy,
        "same_subtree": draft.same_subtree,
        "root_required": draft.root_required,
        "root_forbidden": draft.root_forbidden | {"COMPUTE_STATUS_DISABLED"},  # request_filter.compute_status_filter
    }
    return arguments, tuple(word for word in draft.unhonoured if not rules.judges(word))


def _read_extra_specs(draft: Draft, flavor: FlavorWords) -> None:
    for key, value in flavor.extra_specs.items():
        if key == "group_policy":
            if value in {"none", "isolate"}:
                draft.group_policy = value
            else:
                draft.leave_out("flavor", key, value, "expected none or isolate")
        elif draft.read_granular("flavor", key, value) or _READ.match(key) or _GUEST_ONLY.match(key):
            continue
        else:
            reason = _OTHER_FILTERS.get(key) or _OTHER_FILTERS.get(key.partition(":")[0])
            draft.leave_out("flavor", key, value, reason or "no such extra spec is known here")


def _require_image_traits(draft: Draft, image: Mapping[str, str]) -> None:
    """``trait:NAME=required`` of the image, and what only filters on hosts' state judge."""
    for key, value in image.items():
        if key.startswith("trait:"):
            if value == "required":
                draft.group().required.add(key.removeprefix("trait:"))
            else:
                draft.leave_out("image", key, value, "images can only require traits")
        elif key in _OTHER_PROPERTIES:
            draft.leave_out("image", key, value, "a property of the host's state: judge it by a filter")


def _pin(draft: Draft, flavor: FlavorWords, processors: Processors) -> None:
    """``ResourceRequest._translate_pinning_policies``."""
    if processors.threads == "required":
        draft.host.required.add("HW_CPU_HYPERTHREADING")
    elif processors.threads == "forbidden":
        draft.host.forbidden.add("HW_CPU_HYPERTHREADING")
    if not processors.implied or processors.policy not in {"dedicated", "mixed"}:
        return
    if processors.policy == "mixed":
        draft.group().resources["VCPU"] = flavor.vcpus - len(processors.dedicated)
    draft.group().resources["PCPU"] = len(processors.dedicated) + processors.emulator


def _lay_out(
    draft: Draft,
    flavor: FlavorWords,
    image: Mapping[str, str],
    rules: FlavorRules,
    processors: Processors,
    page_size: PageSize | None,
    cells: tuple[Cell, ...],
) -> None:
    """A group for each cell of the guest where the trees have cells; Nova's ``NUMATopologyFilter`` judges it there.

    Cells of one guest lie on different cells of the host (``hardware.numa_fit_instance_to_host``): ``isolate``.
    """
    explicit = [key for key in flavor.extra_specs if re.match(r"resources.*:(VCPU|PCPU|MEMORY_MB)\Z", key)]
    memory = _memory_class(draft, flavor, rules, page_size)
    if not rules.numa or explicit:
        reason = "rules.numa is off" if not rules.numa else f"{explicit[0]} says already where to take it from"
        _leave_out_cells(draft, flavor, image, reason)
        return
    read = {"hw:numa_nodes", "hw_numa_nodes"}
    for key, words in itertools.product(_OF_EACH_CELL, (flavor.extra_specs, image)):
        read.update(name for name, _ in numbered(words, key) or ())
    _leave_out_cells(draft, flavor, image, "cells are numbered from 0 on without a gap", but=read)
    others = draft.suffixes
    for name in ("VCPU", "PCPU", "MEMORY_MB"):
        draft.group().resources[name] = 0
    for number, cell in enumerate(cells):
        group = draft.outside(f"numa{number}", source="the guest's NUMA cells")
        dedicated = cell.dedicated + (processors.emulator and number == 0)
        group.resources.update({"VCPU": cell.shared, "PCPU": dedicated, memory: cell.memory_mb})
        group.required.add("HW_NUMA_ROOT")
        draft.cells.append(f"numa{number}")
        if not cell.memory_mb and not cell.shared and not dedicated:
            raise refuse(f"cell {number} of the guest has neither processors nor memory", "hw:numa_nodes")
    if len(cells) > 1:
        if not others and draft.group_policy is None:
            draft.group_policy = "isolate"
        if draft.group_policy != "isolate":
            reason = "the cells may fall together: group_policy is none, or other groups have no policy"
            draft.leave_out("flavor", "hw:numa_nodes", len(cells), reason)


def _leave_out_cells(
    draft: Draft, flavor: FlavorWords, image: Mapping[str, str], reason: str, *, but: Container[str] = ()
) -> None:
    """Name what describes the guest's cells, except *but*, as left out."""
    for source, words in (("flavor", flavor.extra_specs), ("image", image)):
        for key in filter(_CELL_WORD.match, words):
            if key not in but:
                draft.leave_out(source, key, "", reason)


def _memory_class(draft: Draft, flavor: FlavorWords, rules: FlavorRules, page_size: PageSize | None) -> str:
    if page_size is None or page_size in {"any", "small"}:
        return "MEMORY_MB"
    if not rules.numa or rules.page_class is None or page_size == "large":
        reason = "name one size" if page_size == "large" else "needs rules.numa and rules.page_class"
        draft.leave_out("flavor", "hw:mem_page_size", flavor.extra_specs.get("hw:mem_page_size", ""), reason)
        return "MEMORY_MB"
    assert isinstance(page_size, int)
    return require_resource_class(rules.page_class(page_size), "page_class", InvalidRequest)


def _add_amounts(draft: Draft, flavor: FlavorWords, *, boot_from_volume: bool) -> None:
    """Processors, memory and disk of the flavor itself where no extra spec says otherwise (``from_request_spec``).

    Of a guest that boots from a volume the root disk takes nothing; swap counts in whole GiB, rounded up.
    """
    merged = {name: draft.asks_for(name) for name in ("VCPU", "PCPU", "MEMORY_MB", "DISK_GB")}
    resources = draft.group().resources
    if not merged["VCPU"] and not merged["PCPU"]:
        resources["VCPU"] = flavor.vcpus
    if not merged["MEMORY_MB"]:
        resources["MEMORY_MB"] = flavor.memory_mb
    if not merged["DISK_GB"]:
        root = 0 if boot_from_volume else flavor.root_gb
        resources["DISK_GB"] = root + flavor.ephemeral_gb + -(-flavor.swap_mb // 1024)


def _encrypt_memory(draft: Draft, flavor: FlavorWords, image: Mapping[str, str]) -> None:
    """``hw:mem_encryption`` (``hardware.get_mem_encryption_constraint``, ``_translate_mem_encryption_request``)."""
    if not agreed_flag("mem_encryption", flavor, image):
        return
    wanted, offered = both("mem_encryption_model", flavor, image)
    if wanted is not None and offered is not None and wanted != offered:
        raise refuse(f"the flavor says {wanted} and the image {offered}", "hw:mem_encryption_model", wanted)
    model = one_of(wanted or offered or "amd-sev", _ENCRYPTION, "hw:mem_encryption_model") or "amd-sev"
    if image.get("hw_firmware_type") != "uefi":
        raise refuse("the image must have hw_firmware_type=uefi", "hw:mem_encryption", model)
    if "q35" not in image.get("hw_machine_type", "q35"):
        raise refuse("the image's hw_machine_type must be a q35", "hw:mem_encryption", image["hw_machine_type"])
    if model in {"amd-sev-snp", "intel-tdx"} and not flag(image.get("hw_firmware_stateless")):
        raise refuse(f"{model} needs hw_firmware_stateless of the image", "hw:mem_encryption_model", model)
    if model == "intel-tdx" and image.get("hw_video_model") != "none":
        raise refuse("intel-tdx needs hw_video_model=none of the image", "hw:mem_encryption_model", model)
    draft.group().resources["MEM_ENCRYPTION_CONTEXT"] = 1
    draft.group().required.add(_ENCRYPTION[model])


def _add_compute_traits(draft: Draft, flavor: FlavorWords, image: Mapping[str, str]) -> None:
    """Firmware, trusted modules, addresses, rings, sound and encryption of disks."""
    required = draft.host.required
    boot = one_of(unique("secure_boot", flavor, image, "os"), ("required", "disabled", "optional"), "os:secure_boot")
    if boot == "required":
        required.add("COMPUTE_SECURITY_UEFI_SECURE_BOOT")  # _translate_secure_boot_request
    mode = one_of(unique("maxphysaddr_mode", flavor, image), ("passthrough", "emulate"), "hw:maxphysaddr_mode")
    if mode:  # _translate_maxphysaddr_request
        required.add("COMPUTE_ADDRESS_SPACE_" + ("PASSTHROUGH" if mode == "passthrough" else "EMULATED"))
    if image.get("hw_firmware_stateless") is not None:  # _translate_stateless_firmware_request
        if image.get("hw_firmware_type") != "uefi":
            draft.leave_out("image", "hw_firmware_stateless", image["hw_firmware_stateless"], "only UEFI has it")
        elif flag(image["hw_firmware_stateless"]):
            required.add("COMPUTE_SECURITY_STATELESS_FIRMWARE")
    _add_trusted_module(draft, flavor, image)
    if agreed_flag("virtio_packed_ring", flavor, image):  # request_filter.packed_virtqueue_filter
        draft.root_required.add("COMPUTE_NET_VIRTIO_PACKED")
    if (
        one_of(unique("sound_model", flavor, image), _SOUND, "hw:sound_model") == "virtio"
    ):  # request_filter.virtio_sound_filter
        draft.root_required.add("COMPUTE_SOUND_MODEL_VIRTIO")
    if agreed_flag("ephemeral_encryption", flavor, image):  # request_filter.ephemeral_encryption_filter
        draft.root_required.add("COMPUTE_EPHEMERAL_ENCRYPTION")
        field = "hw:ephemeral_encryption_format"
        name = one_of(unique("ephemeral_encryption_format", flavor, image), ("plain", "luks", "luksv2"), field)
        if name:
            draft.root_required.add(f"COMPUTE_EPHEMERAL_ENCRYPTION_{name.upper()}")


def _add_trusted_module(draft: Draft, flavor: FlavorWords, image: Mapping[str, str]) -> None:
    """``_translate_vtpm_request`` and ``request_filter.tpm_secret_security_filter``."""
    version = one_of(unique("tpm_version", flavor, image), ("1.2", "2.0"), "hw:tpm_version")
    if version is None:
        return
    model = one_of(unique("tpm_model", flavor, image), ("tpm-tis", "tpm-crb"), "hw:tpm_model") or "tpm-tis"
    if model == "tpm-crb" and version != "2.0":
        raise refuse("tpm-crb needs version 2.0", "hw:tpm_model", model)
    draft.host.required |= {
        "COMPUTE_SECURITY_TPM_" + ("CRB" if model == "tpm-crb" else "TIS"),
        "COMPUTE_SECURITY_TPM_" + version.replace(".", "_"),
    }
    field = "hw:tpm_secret_security"
    security = one_of(flavor.extra_specs.get(field), ("user", "host", "deployment"), field) or "user"
    draft.root_required.add(f"COMPUTE_SECURITY_TPM_SECRET_SECURITY_{security.upper()}")


def _add_image_traits(draft: Draft, image: Mapping[str, str], *, boot_from_volume: bool) -> None:
    """Buses, models and architectures that the host must offer, and the format of the image.

    Source: ``request_filter.transform_image_metadata``, ``require_image_type_support``. There, one value without a
    trait drops all the others; here it is left out by name.
    """
    wanted = {key: f"{prefix}_{image[key]}" for key, prefix in _IMAGE_TRAITS.items() if key in image}
    for key in ("hw_architecture", "hw_emulation_architecture"):
        if key in image:
            name = image[key].lower()
            wanted[key] = f"{_IMAGE_TRAITS[key]}_{_SAME_ARCHITECTURE.get(name, name)}"
    if image.get("disk_format") and not boot_from_volume:
        wanted["disk_format"] = f"COMPUTE_IMAGE_TYPE_{image['disk_format']}"
    for key, name in wanted.items():
        trait = name.replace("-", "_").upper()
        if is_known_trait(trait):
            draft.root_required.add(trait)
        else:
            draft.leave_out("image", key, image[key], f"no trait {trait}")
