"""Reads a host's documents through a libvirt connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from cloudcore._extras import require_extra
from cloudcore.hypervisor.facts.documents import HostDocuments, guest_cpu_model, guest_emulator

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["read_host"]

T = TypeVar("T")

_DEVICES = 1 << 1 | 1 << 4 | 1 << 13 | 1 << 14 | 1 << 17  # PCI, network, parents of mdevs, mdevs, vDPA
_ACTIVE = 1 << 31  # not mediated devices that are defined only: the device that they would be on can hold them still
_EXPAND_FEATURES = 1


def read_host(connection: Any) -> HostDocuments:
    """Everything that *connection* (a ``libvirt.virConnect``) tells of its host. What a driver lacks stays empty.

    Blocks; a few milliseconds, and one round trip for each device. The caller gives it a deadline.
    """
    libvirt = require_extra("libvirt", "libvirt")
    capabilities = connection.getCapabilities()
    info = connection.getInfo()
    domain = _domain_capabilities(libvirt, connection, capabilities)
    return HostDocuments(
        host_name=connection.getHostname(),
        capabilities=capabilities,
        hypervisor=connection.getType(),
        hypervisor_version=connection.getVersion(),
        libvirt_version=connection.getLibVersion(),
        domain_capabilities=domain,
        guest_cpu=_guest_cpu(libvirt, connection, domain, capabilities),
        node_devices=_described(libvirt, _devices(libvirt, connection)),
        storage_pools=_pools(libvirt, _optional(libvirt, connection.listAllStoragePools, [])),
        cpu_map=tuple(_optional(libvirt, lambda: connection.getCPUMap()[1], [])),
        memory=info[1] * 1024,
        cpus=info[2],
    )


def _optional(libvirt: Any, ask: Callable[[], T], default: T) -> T:
    """The answer, or *default* where the driver cannot tell. A lost connection is no such case."""
    lacking = {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_INVALID_ARG,
    }
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() in lacking:
            return default
        raise


def _devices(libvirt: Any, connection: Any) -> list[Any]:
    """Devices that are there now; with an older libvirt, that knows no others, all of them."""
    found: list[Any] | None = _optional(libvirt, lambda: connection.listAllDevices(_DEVICES | _ACTIVE), None)
    if found is not None:
        return found
    return _optional(libvirt, lambda: connection.listAllDevices(_DEVICES), [])


def _domain_capabilities(libvirt: Any, connection: Any, capabilities: str) -> str | None:
    emulator = guest_emulator(capabilities)
    if emulator is None:
        return None
    architecture, kind = emulator
    machine = "q35" if architecture == "x86_64" else None
    ask = connection.getDomainCapabilities
    answer: str | None = _optional(libvirt, lambda: ask(None, architecture, machine, kind, 0), None)
    return answer


def _guest_cpu(libvirt: Any, connection: Any, domain: str | None, capabilities: str) -> str | None:
    model = None if domain is None else guest_cpu_model(domain)
    emulator = guest_emulator(capabilities)
    if model is None or emulator is None:
        return None
    architecture, kind = emulator
    machine = "q35" if architecture == "x86_64" else None
    baseline = connection.baselineHypervisorCPU
    ask = (None, architecture, machine, kind, [model], _EXPAND_FEATURES)
    answer: str | None = _optional(libvirt, lambda: baseline(*ask), None)
    return answer


def _described(libvirt: Any, devices: list[Any]) -> tuple[str, ...]:
    """XML of each device; one that cannot be read any more has gone meanwhile."""
    described = []
    for device in devices:
        try:
            described.append(device.XMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() not in {libvirt.VIR_ERR_NO_NODE_DEVICE, libvirt.VIR_ERR_INTERNAL_ERROR}:
                raise
    return tuple(described)


def _pools(libvirt: Any, pools: list[Any]) -> tuple[tuple[str, bool], ...]:
    described = []
    for pool in pools:
        try:
            described.append((pool.XMLDesc(0), bool(pool.isActive())))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise
    return tuple(described)
