"""libvirt's documents about a host, read into facts. Pure: documents in, values out."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import attrs

from cloudcore.hypervisor._xml import Element, attribute, number, parse, text, to_text
from cloudcore.hypervisor.facts.host import (
    CpuFacts,
    DeviceFunction,
    DomainFacts,
    EncryptionFacts,
    HostDevice,
    HostFacts,
    MdevType,
    MediatedDevice,
    NumaCell,
    PagePool,
    StoragePool,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["HostDocuments", "guest_cpu_model", "guest_emulator", "read_documents"]

_KIB = {"bytes": 1 / 1024, "b": 1 / 1024, "KiB": 1, "k": 1, "MiB": 1024, "M": 1024, "GiB": 1024**2, "TiB": 1024**3}
_BYTES = {"bytes": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_SHARED_POOLS = frozenset({"rbd", "gluster", "netfs", "sheepdog"})


@attrs.frozen(kw_only=True)
class HostDocuments:
    """What libvirt says of a host, as it says it.

    Attributes:
        host_name, hypervisor, hypervisor_version, libvirt_version: Answers of the calls of that name.
        capabilities: XML of the host capabilities.
        domain_capabilities: XML of the domain capabilities, None when the driver has none.
        guest_cpu: XML of the CPU model for guests with every feature expanded, None when it cannot be had.
        node_devices: XML of each node device.
        storage_pools: (XML, active) of each pool.
        cpu_map: For each CPU from 0 whether it is online; may be shorter than the topology, or empty.
        memory: In KiB, used only where the topology names no cells.
        cpus: Number of CPUs, used likewise.
    """

    host_name: str
    capabilities: str
    hypervisor: str = "QEMU"
    hypervisor_version: int = 0
    libvirt_version: int = 0
    domain_capabilities: str | None = None
    guest_cpu: str | None = None
    node_devices: tuple[str, ...] = ()
    storage_pools: tuple[tuple[str, bool], ...] = ()
    cpu_map: tuple[bool, ...] = ()
    memory: int = 0
    cpus: int = 0


def read_documents(documents: HostDocuments) -> HostFacts:
    """The facts in *documents*.

    Raises:
        HypervisorError: A document is not well-formed.
    """
    capabilities = parse(documents.capabilities, "host capabilities")
    cells, described = _cells(capabilities.find("host/topology/cells"), documents)
    devices, mediated = _devices(documents.node_devices)
    pools = (_pool(parse(source, "storage pool"), active) for source, active in documents.storage_pools)
    return HostFacts(
        host_name=documents.host_name,
        host_id=text(capabilities, "host/uuid"),
        hypervisor=documents.hypervisor,
        hypervisor_version=documents.hypervisor_version,
        libvirt_version=documents.libvirt_version,
        architecture=text(capabilities, "host/cpu/arch") or "unknown",
        online_cpus=_online(cells, described, documents.cpu_map),
        cells=cells,
        cpu=_cpu(capabilities.find("host/cpu"), documents.guest_cpu),
        guest_architectures=frozenset(
            element.get("name", "") for element in capabilities.iterfind("guest/arch") if element.get("name")
        ),
        domain=_domain(documents.domain_capabilities),
        devices=devices,
        mediated_devices=mediated,
        storage_pools=tuple(sorted(pools, key=lambda pool: pool.name)),
    )


# --- CPUs and memory -------------------------------------------------------------------------------------------------


def _cells(element: Element | None, documents: HostDocuments) -> tuple[tuple[NumaCell, ...], frozenset[int]]:
    """The cells, and the CPUs that the topology places on a core (it does not place those that are offline)."""
    found = [] if element is None else [_cell(cell) for cell in element.iterfind("cell")]
    if not found:
        cpus = frozenset(range(max(documents.cpus, len(documents.cpu_map))))
        return (NumaCell(id=0, memory=documents.memory, cpus=cpus),), cpus
    placed = (cpu for _, cpus in found for cpu in cpus)
    return tuple(sorted((cell for cell, _ in found), key=lambda cell: cell.id)), frozenset(placed)


def _cell(element: Element) -> tuple[NumaCell, list[int]]:
    cpus = element.findall("cpus/cpu")
    placed = [cpu for cpu in cpus if cpu.get("socket_id") is not None]
    siblings = {_cpu_set(cpu.get("siblings", "")) for cpu in placed}
    memory = element.find("memory")
    pages = (
        PagePool(
            size=round(number(page.get("size")) * _KIB.get(page.get("unit", "KiB"), 1)),
            count=number((page.text or "").strip() or None),
        )
        for page in element.iterfind("pages")
    )
    cell = NumaCell(
        id=number(element.get("id")),
        memory=0 if memory is None else round(number(memory.text) * _KIB.get(memory.get("unit", "KiB"), 1)),
        cpus=frozenset(number(cpu.get("id")) for cpu in cpus),
        siblings=frozenset(group for group in siblings if len(group) > 1),
        sockets=frozenset(number(cpu.get("socket_id")) for cpu in placed),
        pages=tuple(sorted(pages, key=lambda page: page.size)),
    )
    return cell, [number(cpu.get("id")) for cpu in placed]


def _cpu_set(value: str) -> frozenset[int]:
    """``"0-2,8"`` as a set."""
    numbers: set[int] = set()
    for part in filter(None, value.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(number(first), number(last or first) + 1))
    return frozenset(numbers)


def _online(cells: Sequence[NumaCell], placed: frozenset[int], cpu_map: Sequence[bool]) -> frozenset[int]:
    """A CPU is online if the map says so; one that the map does not reach, if the topology places it."""
    every = frozenset[int]().union(*(cell.cpus for cell in cells))
    return frozenset(cpu for cpu in every if (cpu_map[cpu] if cpu < len(cpu_map) else cpu in placed))


def _cpu(host: Element | None, expanded: str | None) -> CpuFacts:
    if expanded is not None:
        element: Element | None = parse(expanded, "guest CPU")
        source = "CPU model for guests, expanded"
    else:
        element, source = host, "host CPU"
    if element is None:
        return CpuFacts()
    names = (
        feature.get("name", "")
        for feature in element.iterfind("feature")
        if feature.get("policy", "require") in {"require", "force"}
    )
    return CpuFacts(
        vendor=text(element, "vendor"),
        model=text(element, "model"),
        features=frozenset(filter(None, names)),
        source=source,
    )


def guest_cpu_model(domain_capabilities: str) -> str | None:
    """The ``host-model`` CPU of *domain_capabilities* as a guest CPU definition, None when there is none."""
    mode = parse(domain_capabilities, "domain capabilities").find("cpu/mode[@name='host-model']")
    if mode is None or mode.get("supported") != "yes" or mode.find("model") is None:
        return None
    cpu = Element("cpu", mode="custom", match="exact")
    cpu.extend(list(mode))
    return to_text(cpu)


def guest_emulator(capabilities: str) -> tuple[str, str] | None:
    """(architecture, domain type) for guests like the host: its own architecture, with KVM where there is any."""
    root = parse(capabilities, "host capabilities")
    architecture = text(root, "host/cpu/arch")
    kinds = {
        kind.get("type")
        for element in root.iterfind("guest/arch")
        if element.get("name") == architecture
        for kind in element.iterfind("domain")
    }
    best = next((kind for kind in ("kvm", "qemu") if kind in kinds), None)
    return None if architecture is None or best is None else (architecture, best)


# --- the emulator ----------------------------------------------------------------------------------------------------


def _domain(source: str | None) -> DomainFacts | None:
    if source is None:
        return None
    root = parse(source, "domain capabilities")
    emulated = "emulator" in _enum(root, "devices/tpm", "backendModel")  # a passed-through TPM serves one guest only
    return DomainFacts(
        type=text(root, "domain") or "unknown",
        machine=text(root, "machine"),
        disk_buses=_enum(root, "devices/disk", "bus"),
        video_models=_enum(root, "devices/video", "modelType"),
        tpm_models=_enum(root, "devices/tpm", "model") if emulated else frozenset(),
        tpm_versions=_enum(root, "devices/tpm", "backendVersion") if emulated else frozenset(),
        secure_boot="yes" in _enum(root, "os/loader", "secure"),
        uefi="efi" in _enum(root, "os", "firmware"),
        file_backed_memory="file" in _enum(root, "memoryBacking", "sourceType"),
        encryption=_encryption(root),
    )


def _enum(root: Element, path: str, name: str) -> frozenset[str]:
    element = root.find(path)
    if element is None or element.get("supported") == "no":
        return frozenset()
    values = element.iterfind(f"enum[@name='{name}']/value")
    return frozenset(value.text.strip() for value in values if value.text)


def _encryption(root: Element) -> EncryptionFacts:
    sev = root.find("features/sev")
    if sev is None or sev.get("supported") != "yes":
        return EncryptionFacts()
    return EncryptionFacts(
        sev_guests=number(text(sev, "maxGuests")),
        sev_es_guests=number(text(sev, "maxESGuests")),
        snp="sev-snp" in _enum(root, "features/launchSecurity", "sectype"),
    )


# --- devices ---------------------------------------------------------------------------------------------------------


def _devices(sources: Iterable[str]) -> tuple[tuple[HostDevice, ...], tuple[MediatedDevice, ...]]:
    elements = {name: root for root in (parse(one, "node device") for one in sources) if (name := text(root, "name"))}
    children: dict[str, list[Element]] = defaultdict(list)
    for root in elements.values():
        children[text(root, "parent") or ""].append(root)
    devices, mediated = [], []
    for name, root in sorted(elements.items()):
        capability = root.find("capability")
        if capability is None:
            continue
        if capability.get("type") == "mdev":
            mediated.append(_mediated(name, root, capability))
        elif capability.get("type") == "pci":
            devices.append(_pci(name, root, capability, children.get(name, [])))
        elif capability.find("capability[@type='mdev_types']") is not None or capability.get("type") == "mdev_types":
            devices.append(HostDevice(name=name, mdev_types=_mdev_types(root), driver=text(root, "driver/name")))
    return tuple(devices), tuple(mediated)


def _address(element: Element) -> str:
    part = {name: number(text(element, name) or element.get(name)) for name in ("domain", "bus", "slot", "function")}
    return f"{part['domain']:04x}:{part['bus']:02x}:{part['slot']:02x}.{part['function']:x}"


def _hex4(value: str | None) -> str | None:
    return None if value is None else f"{number(value):04x}"


def _pci(name: str, root: Element, capability: Element, children: Sequence[Element]) -> HostDevice:
    def kinds(element: Element) -> set[str | None]:
        return {child.get("type") for child in element.iterfind("capability")}

    function, parent = DeviceFunction.PCI, None
    physical = capability.find("capability[@type='phys_function']/address")
    if physical is not None:
        carries_vdpa = any("vdpa" in kinds(child) for child in children)
        function = DeviceFunction.VDPA if carries_vdpa else DeviceFunction.VF
        parent = _address(physical)
    elif "virt_functions" in kinds(capability):
        function = DeviceFunction.PF
    node = attribute(capability, "numa", "node")
    interfaces = (text(child, "capability[@type='net']/interface") for child in children)
    return HostDevice(
        name=name,
        address=_address(capability),
        vendor=_hex4(attribute(capability, "vendor", "id")),
        product=_hex4(attribute(capability, "product", "id")),
        function=function,
        parent=parent,
        cell=number(node) if node is not None and number(node) >= 0 else None,
        driver=text(root, "driver/name"),
        interface=next(filter(None, interfaces), None),
        mdev_types=_mdev_types(root),
    )


def _mdev_types(root: Element) -> tuple[MdevType, ...]:
    found = (
        MdevType(id=kind.get("id", ""), name=text(kind, "name"), available=number(text(kind, "availableInstances")))
        for kind in root.iterfind(".//capability[@type='mdev_types']/type")
    )
    return tuple(sorted(found, key=lambda kind: kind.id))


def _mediated(name: str, root: Element, capability: Element) -> MediatedDevice:
    return MediatedDevice(
        name=name,
        type=attribute(capability, "type", "id") or "",
        parent=text(root, "parent") or "",
        uuid=text(capability, "uuid"),
    )


# --- storage ---------------------------------------------------------------------------------------------------------


def _pool(root: Element, active: bool) -> StoragePool:
    kind = root.get("type", "dir")
    return StoragePool(
        name=text(root, "name") or "",
        type=kind,
        capacity=_size(root.find("capacity")),
        available=_size(root.find("available")),
        active=active,
        identity=_identity(kind, root) if kind in _SHARED_POOLS else None,
    )


def _size(element: Element | None) -> int:
    return 0 if element is None else number((element.text or "").strip()) * _BYTES.get(element.get("unit", "bytes"), 1)


def _identity(kind: str, root: Element) -> str:
    """What every host that uses this storage agrees upon: sorted servers, and the name there."""
    hosts = sorted(
        f"{host.get('name')}:{host.get('port')}" if host.get("port") else str(host.get("name"))
        for host in root.iterfind("source/host")
    )
    place = text(root, "source/name") or attribute(root, "source/dir", "path") or ""
    return f"{kind}:{','.join(hosts)}/{place.strip('/')}"
