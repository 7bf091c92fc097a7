"""What a compute host is: plain frozen values, read once, serialisable, ignorant of providers.

They are made by :meth:`Hypervisor.facts <cloudcore.hypervisor.Hypervisor.facts>` and turned into resource providers by
:func:`~cloudcore.hypervisor.build_tree`. A report from the field becomes a test with :meth:`HostFacts.to_json`.
"""

from __future__ import annotations

import json
import types
import typing
from enum import StrEnum
from typing import Any

import attrs

from cloudcore.errors import InvalidArgument

__all__ = [
    "CpuFacts",
    "DeviceFunction",
    "DomainFacts",
    "EncryptionFacts",
    "HostDevice",
    "HostFacts",
    "MdevType",
    "MediatedDevice",
    "NumaCell",
    "PagePool",
    "StoragePool",
]

_VERSION = 1


@attrs.frozen(kw_only=True)
class PagePool:
    """Pages of one size in one cell. *size* is in KiB; *count* is what the kernel has set aside, used or not."""

    size: int
    count: int


@attrs.frozen(kw_only=True)
class NumaCell:
    """One NUMA cell. A host without NUMA has exactly one.

    Attributes:
        id: Its number.
        memory: In KiB, huge pages included.
        cpus: Numbers of its CPUs, online or not.
        siblings: Sets of CPUs that are threads of one core; only sets of two and more.
        sockets: Physical sockets that it spans.
        pages: Page pools; the smallest size is the ordinary page.
    """

    id: int
    memory: int
    cpus: frozenset[int]
    siblings: frozenset[frozenset[int]] = frozenset()
    sockets: frozenset[int] = frozenset()
    pages: tuple[PagePool, ...] = ()

    @property
    def huge_pages(self) -> tuple[PagePool, ...]:
        """The pools above the smallest size that hold any page."""
        smallest = min((pool.size for pool in self.pages), default=0)
        return tuple(pool for pool in self.pages if pool.size > smallest and pool.count > 0)


@attrs.frozen(kw_only=True)
class CpuFacts:
    """The CPU that guests can have. *source* says where *features* come from: they differ for emulated guests."""

    vendor: str | None = None
    model: str | None = None
    features: frozenset[str] = frozenset()
    source: str = ""


@attrs.frozen(kw_only=True)
class EncryptionFacts:
    """AMD memory encryption. Numbers are guests at once; *snp* says that SEV-SNP is offered."""

    sev_guests: int = 0
    sev_es_guests: int = 0
    snp: bool = False


@attrs.frozen(kw_only=True)
class DomainFacts:
    """What the emulator offers guests (libvirt's domain capabilities); values are libvirt's own words.

    TPM models and versions are those of emulated ones.
    """

    type: str
    machine: str | None = None
    disk_buses: frozenset[str] = frozenset()
    video_models: frozenset[str] = frozenset()
    tpm_models: frozenset[str] = frozenset()
    tpm_versions: frozenset[str] = frozenset()
    secure_boot: bool = False
    uefi: bool = False
    file_backed_memory: bool = False
    encryption: EncryptionFacts = EncryptionFacts()


class DeviceFunction(StrEnum):
    """The part that a PCI device plays."""

    PCI = "pci"  # a device of its own
    PF = "pf"  # a physical function that has or can have virtual ones
    VF = "vf"  # a virtual function
    VDPA = "vdpa"  # a virtual function that carries a vDPA device


@attrs.frozen(kw_only=True)
class MdevType:
    """A type of mediated device (vGPU) that a device offers; *available* is how many more can be made now."""

    id: str
    name: str | None = None
    available: int = 0


@attrs.frozen(kw_only=True)
class HostDevice:
    """A PCI device, or another parent of mediated devices.

    Attributes:
        name: libvirt's name of the node device.
        address: ``"0000:81:00.0"``; None for what is not on PCI.
        vendor, product: Four hexadecimal digits in lower case, None when unknown.
        function: Its part.
        parent: Address of the physical function, for virtual ones.
        cell: NUMA cell, None when unknown.
        driver: Name of the host driver.
        interface: Name of the network interface that the host has on it.
        mdev_types: What mediated devices it offers.
    """

    name: str
    address: str | None = None
    vendor: str | None = None
    product: str | None = None
    function: DeviceFunction = DeviceFunction.PCI
    parent: str | None = None
    cell: int | None = None
    driver: str | None = None
    interface: str | None = None
    mdev_types: tuple[MdevType, ...] = ()


@attrs.frozen(kw_only=True)
class MediatedDevice:
    """A mediated device that exists. *parent* is libvirt's name of the device it was made on."""

    name: str
    type: str
    parent: str
    uuid: str | None = None


@attrs.frozen(kw_only=True)
class StoragePool:
    """A storage pool. *capacity* and *available* are in bytes.

    *identity* is what hosts that see the same storage agree upon (such as monitors and Ceph pool); None for storage
    that only this host has.
    """

    name: str
    type: str
    capacity: int
    available: int
    active: bool = True
    identity: str | None = None


@attrs.frozen(kw_only=True)
class HostFacts:
    """Everything that is known of one host.

    Attributes:
        host_name: As the hypervisor gives it.
        host_id: UUID that the hypervisor gives the host, None without.
        hypervisor: ``"QEMU"``, ``"TEST"`` …, with its version and libvirt's as libvirt counts them (major × 10^6 …).
        architecture: ``"x86_64"``.
        online_cpus: Numbers of the CPUs that are online.
        cells: NUMA cells in ascending order, at least one.
        cpu: The CPU that guests can have.
        guest_architectures: What guests can be run.
        domain: What the emulator offers, None when it does not tell.
        devices, mediated_devices, storage_pools: In order of name.
    """

    host_name: str
    architecture: str
    online_cpus: frozenset[int]
    cells: tuple[NumaCell, ...]
    host_id: str | None = None
    hypervisor: str = "QEMU"
    hypervisor_version: int = 0
    libvirt_version: int = 0
    cpu: CpuFacts = CpuFacts()
    guest_architectures: frozenset[str] = frozenset()
    domain: DomainFacts | None = None
    devices: tuple[HostDevice, ...] = ()
    mediated_devices: tuple[MediatedDevice, ...] = ()
    storage_pools: tuple[StoragePool, ...] = ()

    @property
    def memory(self) -> int:
        """Of all cells, in KiB."""
        return sum(cell.memory for cell in self.cells)

    def summary(self) -> str:
        """One line for people."""
        cells = f"{len(self.cells)} NUMA cell{'s' * (len(self.cells) > 1)}"
        return (
            f"{self.hypervisor} {_dotted(self.hypervisor_version)} (libvirt {_dotted(self.libvirt_version)}), "
            f"{self.architecture}, {len(self.online_cpus)} CPUs in {cells}, {self.memory // 1024} MiB"
        )

    def to_json(self) -> str:
        """Text that :meth:`from_json` reads; the same facts give the same text."""
        return json.dumps({"version": _VERSION, "facts": _plain(self)}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HostFacts:
        """Read what :meth:`to_json` wrote.

        Raises:
            InvalidArgument: It is not such a text, or of another version.
        """
        try:
            document = json.loads(text)
            version = document["version"]
            if version != _VERSION:
                raise InvalidArgument(f"host facts: version {version!r}, expected {_VERSION}", field="version")
            return typing.cast("HostFacts", _built(document["facts"], cls))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"host facts: not readable: {error}", field="facts") from error


def _dotted(version: int) -> str:
    """``9000000`` is ``"9.0.0"``."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _plain(value: Any) -> Any:
    """*value* in terms of JSON."""
    if attrs.has(type(value)):
        return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _built(value: Any, kind: Any) -> Any:
    """The reverse of :func:`_plain`, checked against the annotation *kind*."""
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        return _built(value, next(one for one in typing.get_args(kind) if one is not types.NoneType))
    if origin in {tuple, frozenset}:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, got {value!r}")
        return origin(_built(item, typing.get_args(kind)[0]) for item in value)
    if attrs.has(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _built(item, hints[name]) for name, item in value.items()})
    if issubclass(kind, StrEnum):
        return kind(value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
