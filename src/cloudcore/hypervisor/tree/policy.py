"""What an operator wants of a host: sets of CPUs, reserves, ratios, devices to offer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_name, require_text
from cloudcore.errors import InvalidArgument
from cloudcore.hypervisor.facts.host import DeviceFunction, HostDevice

if TYPE_CHECKING:
    from cloudcore.hypervisor.tree.values import CurrentProvider

__all__ = ["DeviceRule", "HostPolicy", "VgpuRule", "allocation_ratio", "trait_name"]

Pairs = tuple[tuple[str, float], ...]

_SHARED_OUT = ("VCPU", "MEMORY_MB", "DISK_GB")
"""Classes that can be given out more than once. A dedicated CPU, a page or a device is one guest's."""

_HEX4 = re.compile(r"[0-9a-f]{4}\Z")


def trait_name(prefix: str, text: str) -> str:
    """``trait_name("CUSTOM_PHYSNET", "rack-a.7")`` is ``"CUSTOM_PHYSNET_RACK_A_7"``."""
    return f"{prefix}_{re.sub(r'[^A-Z0-9_]', '_', text.upper())}"


def _pairs(value: Mapping[str, float] | Pairs, field: str) -> Pairs:
    try:
        items = value.items() if isinstance(value, Mapping) else value
        return tuple(sorted((require_name(name, field), float(ratio)) for name, ratio in items))
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(
            f"{field}: expected numbers by resource class, got {value!r}", field=field, value=value
        ) from error


def _ratios(value: Mapping[str, float] | Pairs) -> Pairs:
    return _pairs(value, "ratios")


def _initial_ratios(value: Mapping[str, float] | Pairs) -> Pairs:
    return _pairs(value, "initial_ratios")


def _names(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        raise InvalidArgument(f"traits: expected a set of names, got the text {value!r}", field="traits", value=value)
    return frozenset(require_name(name, "traits") for name in value)


def _possible_ratios(_instance: object, field: attrs.Attribute[Pairs], value: Pairs) -> None:
    for name, ratio in value:
        if not 0 < ratio < float("inf"):
            raise InvalidArgument(f"{field.name}: {name}: {ratio} is no ratio above 0", field=field.name, value=ratio)
        if name not in _SHARED_OUT:
            known = ", ".join(_SHARED_OUT)
            raise InvalidArgument(
                f"{field.name}: {name} is given out once; ratios are for {known}", field=field.name, value=name
            )


def _not_negative(_instance: object, field: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None:
        require_integer(value, field.name, minimum=0)


def _class_name(_instance: object, field: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        require_name(value, field.name)


def _hex4(value: str | None, field: str) -> str | None:
    if value is None:
        return None
    digits = value.lower() if isinstance(value, str) else ""
    if not _HEX4.match(digits):
        raise InvalidArgument(f"{field}: expected four hexadecimal digits, got {value!r}", field=field, value=value)
    return digits


def _vendor(value: str | None) -> str | None:
    return _hex4(value, "vendor")


def _product(value: str | None) -> str | None:
    return _hex4(value, "product")


def _lower(value: str | None) -> str | None:
    return None if value is None else require_text(value, "address").lower()


def _functions(value: Iterable[str]) -> frozenset[DeviceFunction]:
    try:
        return frozenset(map(DeviceFunction, [value] if isinstance(value, str) else value))
    except (TypeError, ValueError) as error:
        known = ", ".join(DeviceFunction)
        raise InvalidArgument(f"functions: {error}; there are {known}", field="functions", value=value) from error


@attrs.frozen(kw_only=True)
class DeviceRule:
    """PCI devices to offer, and as what. Everything that is given must match; the first rule that matches counts.

    Attributes:
        vendor, product: Four hexadecimal digits, in either case; None matches any.
        address: Pattern such as ``"0000:81:*"``, in either case; None matches any.
        functions: Which parts match. Virtual functions are counted on the provider of their physical function.
        resource_class: None makes ``CUSTOM_PCI_<vendor>_<product>``; with *physical_network*, virtual functions become
            ``SRIOV_NET_VF``.
        physical_network: Name of the network behind it, given as the trait ``CUSTOM_PHYSNET_<name>``.
        traits: Further traits of the provider. As with Nova's provider files, one that is not listed any more stays
            until somebody takes it off.
        one_time_use: A device is not given out again after its first use: the first report that finds one in use
            reserves all of its provider, for good. Whoever has cleaned it sets ``reserved`` back to 0.
        live_migratable: Guests with it can be migrated live.
    """

    vendor: str | None = attrs.field(default=None, converter=_vendor)
    product: str | None = attrs.field(default=None, converter=_product)
    address: str | None = attrs.field(default=None, converter=_lower)
    functions: frozenset[DeviceFunction] = attrs.field(default=frozenset(DeviceFunction), converter=_functions)
    resource_class: str | None = attrs.field(default=None, validator=_class_name)
    physical_network: str | None = None
    traits: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    one_time_use: bool = False
    live_migratable: bool = False

    def matches(self, device: HostDevice) -> bool:
        """Whether the rule speaks of *device*."""
        return (
            device.address is not None
            and device.function in self.functions
            and self.vendor in {None, device.vendor}
            and self.product in {None, device.product}
            and (self.address is None or fnmatch.fnmatchcase(device.address, self.address))
        )

    def resource_class_of(self, device: HostDevice) -> str:
        """The class that *device* is offered as."""
        if self.resource_class is not None:
            return self.resource_class
        if self.physical_network is not None and device.function is DeviceFunction.VF:
            return "SRIOV_NET_VF"
        kind = "CUSTOM_VDPA" if device.function is DeviceFunction.VDPA else "CUSTOM_PCI"
        return trait_name(kind, f"{device.vendor or 'unknown'}_{device.product or 'unknown'}")


@attrs.frozen(kw_only=True)
class VgpuRule:
    """A type of mediated device to offer. A physical GPU offers one type only.

    Attributes:
        type: libvirt's id of it, such as ``"nvidia-35"``.
        device: Pattern of address or libvirt name of the GPUs concerned; None matches all that offer the type.
        maximum: At most so many on this host, dealt to the GPUs in order of name; None is no bound.
        resource_class: What they are offered as.
        traits: Further traits of the provider; see :class:`DeviceRule`.
    """

    type: str
    device: str | None = None
    maximum: int | None = attrs.field(default=None, validator=_not_negative)
    resource_class: str = attrs.field(default="VGPU", validator=_class_name)
    traits: frozenset[str] = attrs.field(default=frozenset(), converter=_names)

    def matches(self, device: HostDevice) -> bool:
        """Whether *device* is to offer this type."""
        if self.type not in {kind.id for kind in device.mdev_types}:
            return False
        if self.device is None or fnmatch.fnmatchcase(device.name, self.device):
            return True
        return device.address is not None and fnmatch.fnmatchcase(device.address, self.device.lower())


def _uuid(value: str | None) -> str | None:
    return None if value is None else normalise_uuid(value, "uuid")


def _cpus(value: Any) -> frozenset[int] | None:
    return None if value is None else frozenset(value)


@attrs.frozen(kw_only=True)
class HostPolicy:
    """How a host is to be offered. The default offers every online CPU, all memory and the only local storage pool.

    Attributes:
        name: Of the root provider; None takes the hypervisor's host name.
        uuid: Of the root provider; None derives one from the host, the same each time.
        numa: Cells become providers of CPUs and memory. False puts them on the root, as Nova does.
        shared_cpus: Offered as ``VCPU``. None is every online CPU, or none when *dedicated_cpus* is given.
        dedicated_cpus: Offered as ``PCPU``, one guest CPU each.
        reserved_cpus, reserved_memory_mb, reserved_disk_mb: For the host itself. CPUs and memory are taken from the
            cells in proportion to their size; disk is rounded up to GB. Of a shared pool the last report counts: its
            hosts should reserve alike.
        ratios: Allocation ratios of ``VCPU``, ``MEMORY_MB`` and ``DISK_GB`` that are enforced on each report; all else
            is given out once.
        initial_ratios: Their ratios for inventories that do not exist yet; what an operator changed later stays.
        disk_pool: Storage pool behind ``DISK_GB``; None takes the only one there is.
        disk_gb: Instead of a pool, a number.
        devices: PCI devices to offer; none by default. Offering is a one-way step for devices that get allocated.
        vgpus: Mediated devices to offer.
        encryption_guests: Bound for memory-encrypted guests instead of the host's own.
        traits: Further traits of the root, put back by each report; see :class:`DeviceRule`.
    """

    name: str | None = None
    uuid: str | None = attrs.field(default=None, converter=_uuid)
    numa: bool = True
    shared_cpus: frozenset[int] | None = attrs.field(default=None, converter=_cpus)
    dedicated_cpus: frozenset[int] = attrs.field(default=frozenset(), converter=frozenset)
    reserved_cpus: int = attrs.field(default=0, validator=_not_negative)
    reserved_memory_mb: int = attrs.field(default=0, validator=_not_negative)
    reserved_disk_mb: int = attrs.field(default=0, validator=_not_negative)
    ratios: Pairs = attrs.field(default=(), converter=_ratios, validator=_possible_ratios)
    initial_ratios: Pairs = attrs.field(default=(), converter=_initial_ratios, validator=_possible_ratios)
    disk_pool: str | None = None
    disk_gb: int | None = attrs.field(default=None, validator=_not_negative)
    devices: tuple[DeviceRule, ...] = attrs.field(default=(), converter=tuple)
    vgpus: tuple[VgpuRule, ...] = attrs.field(default=(), converter=tuple)
    encryption_guests: int | None = attrs.field(default=None, validator=_not_negative)
    traits: frozenset[str] = attrs.field(default=frozenset(), converter=_names)

    def __attrs_post_init__(self) -> None:
        if self.name is not None:
            require_text(self.name, "name", maximum=120)  # names of children are longer, and 200 is the limit
        both = (self.shared_cpus or frozenset()) & self.dedicated_cpus
        if both:
            raise InvalidArgument(
                f"shared_cpus and dedicated_cpus: CPUs {_listed(both)} are in both", field="shared_cpus", value=both
            )


def allocation_ratio(policy: HostPolicy, name: str, present: Iterable[CurrentProvider | None]) -> float:
    """Of the class *name*: configured beats recorded (on the first of *present* that has it) beats initial."""
    configured = dict(policy.ratios).get(name)
    if configured is not None:
        return configured
    for provider in present:
        recorded = provider.inventory(name) if provider else None
        if recorded is not None:
            return recorded.allocation_ratio
    return dict(policy.initial_ratios).get(name, 1.0)


def _listed(cpus: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))
