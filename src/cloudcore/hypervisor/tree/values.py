"""Provider trees as values: the one that should be, the one that is, and identifiers for new providers."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import normalise_uuid
from cloudcore.errors import InvalidProvider, ProviderNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "ONE_TIME_TRAIT",
    "OWNER_TRAIT",
    "CurrentInventory",
    "CurrentProvider",
    "CurrentTree",
    "DesiredInventory",
    "DesiredProvider",
    "DesiredTree",
    "ProviderKind",
    "child_uuid",
    "derived_uuid",
    "is_device",
    "page_class",
    "page_label",
    "storage_aggregate",
]

OWNER_TRAIT = "CUSTOM_OWNER_CLOUDCORE"
"""On every child provider that cloudcore makes, so that it never touches one that somebody else made."""

ONE_TIME_TRAIT = "HW_PCI_ONE_TIME_USE"
"""On providers of devices that are reserved as soon as they are in use."""

_NAMESPACE = bytes.fromhex("6c1f1c3a0b6d5f0e9d0b3f7f2b8d4a11")


def derived_uuid(*parts: str) -> str:
    """A UUID (RFC 9562, version 5) that is the same whenever the parts are the same."""
    digest = bytearray(hashlib.sha1(_NAMESPACE + "\0".join(parts).encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return normalise_uuid(digest.hex(), "uuid")


def storage_aggregate(provider: str) -> str:
    """UUID of the aggregate that joins the hosts to the shared storage with this UUID."""
    return derived_uuid("storage-aggregate", provider)


class ProviderKind(StrEnum):
    """What a provider stands for."""

    ROOT = "root"
    NUMA = "numa"
    PCI = "pci"
    VGPU = "vgpu"
    ENCRYPTION = "encryption"
    SHARED_DISK = "shared_disk"


@attrs.frozen(kw_only=True)
class DesiredInventory:
    """One inventory as it should be. *because* says which fact gave the numbers.

    *reserved* None leaves what is there (0 for a new one); *allocation_ratio* is what to write, already decided between
    policy, present record and initial value.
    """

    resource_class: str
    total: int
    reserved: int | None = 0
    min_unit: int = 1
    max_unit: int = attrs.field(default=attrs.Factory(lambda self: self.total, takes_self=True))
    step_size: int = 1
    allocation_ratio: float = 1.0
    because: str = attrs.field(default="", eq=False)

    def as_placement(self) -> dict[str, Any]:
        """The inventory in Placement's JSON."""
        return {
            "total": self.total,
            "reserved": self.reserved or 0,
            "min_unit": self.min_unit,
            "max_unit": self.max_unit,
            "step_size": self.step_size,
            "allocation_ratio": self.allocation_ratio,
        }


@attrs.frozen(kw_only=True)
class DesiredProvider:
    """One provider as it should be.

    Attributes:
        uuid, name: Of the provider; those of a present one of the same name, or derived ones.
        parent: UUID of the parent, None for a root.
        kind: What it stands for.
        inventories: In order of class.
        traits: Those that hold.
        owned_traits: Those that cloudcore decides: *traits*, and any that it would remove when they do not hold.
        owned_prefixes: Names that begin so are decided too.
        aggregates: Aggregates it must be in; any other that it is in stays.
        because: For each trait the fact that gave it.
    """

    uuid: str
    name: str
    parent: str | None
    kind: ProviderKind
    inventories: tuple[DesiredInventory, ...] = ()
    traits: frozenset[str] = frozenset()
    owned_traits: frozenset[str] = frozenset()
    owned_prefixes: tuple[str, ...] = ()
    aggregates: frozenset[str] = frozenset()
    because: tuple[tuple[str, str], ...] = attrs.field(default=(), eq=False)

    def owns_trait(self, trait: str) -> bool:
        """Whether cloudcore decides about *trait* on this provider."""
        return trait in self.owned_traits or trait.startswith(self.owned_prefixes or ("\0",))

    def inventory(self, resource_class: str) -> DesiredInventory | None:
        """The inventory of *resource_class*, None without."""
        return next((one for one in self.inventories if one.resource_class == resource_class), None)


@attrs.frozen(kw_only=True)
class DesiredTree:
    """The providers that a host should have, parents before children, its shared storage last.

    *warnings* are for the operator: facts that contradict each other, storage that was not chosen.
    """

    providers: tuple[DesiredProvider, ...]
    warnings: tuple[str, ...] = ()

    @property
    def root(self) -> DesiredProvider:
        """The provider of the host itself."""
        return self.providers[0]

    def __iter__(self) -> Iterator[DesiredProvider]:
        return iter(self.providers)

    def __getitem__(self, name: str) -> DesiredProvider:
        for provider in self.providers:
            if provider.name == name:
                return provider
        raise ProviderNotFound(f"no provider {name!r} in the tree of {self.root.name}", identifier=name)


@attrs.frozen(kw_only=True)
class CurrentInventory:
    """One inventory as it is. *used* is the sum of the allocations."""

    resource_class: str
    total: int
    reserved: int = 0
    min_unit: int = 1
    max_unit: int = attrs.field(default=attrs.Factory(lambda self: self.total, takes_self=True))
    step_size: int = 1
    allocation_ratio: float = 1.0
    used: int = 0


@attrs.frozen(kw_only=True)
class CurrentProvider:
    """One provider as it is. *generation* is what its tree said when it was read, None when it has none."""

    uuid: str
    name: str
    parent: str | None
    generation: int | None = attrs.field(default=None, eq=False)
    inventories: tuple[CurrentInventory, ...] = ()
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()

    def inventory(self, resource_class: str) -> CurrentInventory | None:
        """The inventory of *resource_class*, None without."""
        return next((one for one in self.inventories if one.resource_class == resource_class), None)

    @property
    def used(self) -> bool:
        """Whether anything is allocated from it."""
        return any(one.used for one in self.inventories)


def _providers(value: Iterable[CurrentProvider]) -> tuple[CurrentProvider, ...]:
    return tuple(value)


@attrs.frozen
class CurrentTree:
    """The providers that are there: those of one host, and the sharing providers it may know. Order is of no matter.

    ``CurrentTree()`` is that of a host that nothing is known of.
    """

    providers: tuple[CurrentProvider, ...] = attrs.field(default=(), converter=_providers)

    def named(self, name: str) -> CurrentProvider | None:
        """The provider of this name."""
        return next((one for one in self.providers if one.name == name), None)

    def with_uuid(self, uuid: str) -> CurrentProvider | None:
        """The provider with this UUID."""
        return next((one for one in self.providers if one.uuid == uuid), None)

    def children(self, uuid: str) -> tuple[CurrentProvider, ...]:
        """Providers right below."""
        return tuple(one for one in self.providers if one.parent == uuid)

    @property
    def by_uuid(self) -> Mapping[str, CurrentProvider]:
        """All, by UUID."""
        return {one.uuid: one for one in self.providers}


def is_device(provider: CurrentProvider) -> bool:
    """Whether it is one of ours that stands for a device or for encryption: nothing can take over what it gives."""
    return provider.parent is not None and OWNER_TRAIT in provider.traits and "HW_NUMA_ROOT" not in provider.traits


def child_uuid(current: CurrentTree, root: str, name: str) -> str:
    """UUID of our provider *name* below *root*: of the one that is there, else the one that it gets.

    Raises:
        InvalidProvider: Somebody else's has the name. Nova gives its own the very names that ours have.
    """
    present, derived = current.named(name), derived_uuid(root, name)
    if present is None or present.uuid == derived:
        return derived
    if OWNER_TRAIT not in present.traits:
        raise InvalidProvider(
            f"{name} ({present.uuid}) is there and not cloudcore's: take it away, let the policy offer nothing of this "
            f"name, or give it the trait {OWNER_TRAIT} to have it taken over with all its inventories",
            field="name",
            value=name,
        )
    return present.uuid


def page_label(size: int) -> str:
    """``2048`` KiB is ``"2M"``, ``1048576`` is ``"1G"``, ``64`` is ``"64K"``."""
    for unit, letter in ((1024 * 1024, "G"), (1024, "M")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size}K"


def page_class(size: int) -> str:
    """The resource class of memory in pages of *size* KiB; its unit is MiB, like that of ``MEMORY_MB``."""
    return f"CUSTOM_MEMORY_MB_PAGES_{page_label(size)}"
