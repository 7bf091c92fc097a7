"""What a deployment decides once for all its flavors: PCI aliases, device profiles, the shape of its trees. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs

from cloudcore.placement.forest.names import is_standard_class, is_standard_trait
from cloudcore.placement.forest.values import FrozenDict
from cloudcore.placement.requests.flavors.words import flag, one_of
from cloudcore.placement.requests.groups import elements, refuse
from cloudcore.placement.requests.groups import hashable as texts

__all__ = ["FlavorRules", "PciAlias", "Unhonoured", "custom_name"]

AFFINITIES = ("legacy", "preferred", "required", "socket")


@attrs.frozen
class Unhonoured:
    """A word that the request does not carry.

    Attributes:
        source: ``"flavor"``, ``"image"``, or the port or alias that says it.
        name: The extra spec, property or field.
        value: What it says.
        reason: Why the request cannot carry it, and who could judge it instead.
    """

    source: str
    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}={self.value}: {self.reason}"


def custom_name(text: str) -> str:
    """*text* as a custom class or trait (``os_traits.normalize_name``): others than letters and digits become ``_``."""
    return "CUSTOM_" + re.sub(r"[^0-9A-Za-z]+", "_", text).upper()


def _trait(name: str) -> str:
    """Source: ``nova.compute.pci_placement_translator._normalize_traits``."""
    if is_standard_trait(name):
        return name
    return name.upper() if name.upper().startswith("CUSTOM_") else custom_name(name)


def _alias_traits(given: str | Iterable[str]) -> frozenset[str]:
    """Names parted by commas, as Nova's option has them, or a collection of names."""
    names = given.split(",") if isinstance(given, str) else texts(given, "traits")
    return frozenset(_trait(name) for name in names if name)


@attrs.frozen(kw_only=True)
class PciAlias:
    """A kind of PCI device by name, as ``[pci] alias`` of ``nova.conf`` has it.

    ``device_type`` is no condition here: the class of resources tells kinds of devices apart.

    Attributes:
        name: What flavors say.
        resource_class: The class of one device: the one named, else ``CUSTOM_PCI_{vendor}_{product}``.
        traits: What the device's provider must carry: a collection of names, or text that parts them by commas.
        numa_policy: Legacy, preferred, required or socket, where the flavor says nothing.
        live_migratable: Whether only such devices may serve.
    """

    name: str
    resource_class: str
    traits: frozenset[str] = attrs.field(default=frozenset(), converter=_alias_traits)
    numa_policy: str = "legacy"
    live_migratable: bool | None = None


def _class(name: str) -> str:
    """Source: ``nova.compute.pci_placement_translator._normalize_resource_class``."""
    upper = name.upper()
    return upper if upper.startswith("CUSTOM_") or is_standard_class(upper) else custom_name(upper)


_ALIAS_FIELDS = frozenset(
    {
        "name",
        "capability_type",
        "vendor_id",
        "product_id",
        "device_type",
        "numa_policy",
        "resource_class",
        "traits",
        "live_migratable",
    }
)


def _read_alias(given: Any) -> PciAlias:
    """Source: ``nova.pci.request.get_alias_from_config`` with ``pci_in_placement``."""
    if isinstance(given, PciAlias):
        return given
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise refuse(f"no JSON: {error}", "aliases", given) from error
    if not isinstance(given, Mapping) or not given.get("name"):
        raise refuse(f"expected a mapping with a name, got {given!r}", "aliases", given)
    unknown = sorted(map(str, set(given) - _ALIAS_FIELDS))
    if unknown:
        raise refuse(f"{given['name']} has the unknown field {unknown[0]!r}", "aliases", given)
    named, vendor, product = (given.get(field) for field in ("resource_class", "vendor_id", "product_id"))
    if not named and not (vendor and product):
        raise refuse(f"{given['name']} needs resource_class, or vendor_id and product_id", "aliases", given)
    movable = given.get("live_migratable")
    return PciAlias(
        name=str(given["name"]).strip(),
        resource_class=_class(str(named)) if named else f"CUSTOM_PCI_{vendor}_{product}".upper(),
        traits=given.get("traits") or (),
        numa_policy=one_of(given.get("numa_policy"), AFFINITIES, "numa_policy") or "legacy",
        live_migratable=None if movable is None else flag(str(movable)),
    )


def _aliases(given: Iterable[Any]) -> FrozenDict[str, PciAlias]:
    if isinstance(given, FrozenDict):
        return given
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise refuse(f"expected a collection, got {given!r}", "aliases", given)
    table: dict[str, PciAlias] = {}
    for alias in map(_read_alias, given.values() if isinstance(given, Mapping) else given):
        if alias.name in table:
            raise refuse(f"{alias.name} stands there twice: one kind of device each", "aliases", alias.name)
        table[alias.name] = alias
    return FrozenDict(table)


def _profiles(given: Mapping[str, Iterable[Mapping[str, Any]]]) -> FrozenDict[str, tuple[FrozenDict[str, str], ...]]:
    if not isinstance(given, Mapping):
        raise refuse(f"expected name → groups, got {given!r}", "device_profiles", given)
    table: dict[str, tuple[FrozenDict[str, str], ...]] = {}
    for name, groups in given.items():
        read = elements(groups, "device_profiles")
        if not isinstance(name, str) or not all(isinstance(group, Mapping) for group in read):
            raise refuse(f"expected a list of mappings for {name!r}, got {groups!r}", "device_profiles", groups)
        table[name] = tuple(FrozenDict({str(key): str(value) for key, value in group.items()}) for group in read)
    return FrozenDict(table)


def _patterns(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(texts(given, "judged_elsewhere"))


@attrs.frozen(kw_only=True)
class FlavorRules:
    """How a deployment reads its flavors. Make one and keep it; immutable, may be shared between threads.

    Attributes:
        aliases: ``[pci] alias`` of ``nova.conf``: mappings, JSON texts or :class:`PciAlias`.
        device_profiles: Name → groups of an accelerator profile, as Cyborg's API gives them
            (``{"resources:FPGA": "1", "trait:CUSTOM_X": "required"}``).
        numa: Whether the trees have NUMA cells as providers with ``HW_NUMA_ROOT`` that hold processors and memory.
            Then each cell of the guest becomes a group of its own, and traits of the host are asked of the root.
        page_class: KiB of a page → the class of memory in such pages, where trees have one (for trees of libvirt's
            adapter, :func:`cloudcore.hypervisor.page_class`).
        image_traits: Whether hosts carry the ``COMPUTE_*`` and ``HW_ARCH_*`` traits of what images ask for (Nova's
            ``image_metadata_prefilter`` and ``query_placement_for_image_type_support``).
        judged_elsewhere: Patterns (``"aggregate_instance_extra_specs:*"``) of words that filters of the caller judge;
            they do not count as unhonoured.

    Raises:
        InvalidRequest: A rule is malformed; the error names it.
    """

    aliases: FrozenDict[str, PciAlias] = attrs.field(default=(), converter=_aliases)
    device_profiles: Mapping[str, Iterable[Mapping[str, Any]]] = attrs.field(factory=dict, converter=_profiles)
    numa: bool = False
    page_class: Callable[[int], str] | None = attrs.field(default=None)
    image_traits: bool = True
    judged_elsewhere: tuple[str, ...] = attrs.field(default=(), converter=_patterns)

    @page_class.validator
    def _check_page_class(self, _: object, value: object) -> None:
        if value is not None and not callable(value):
            raise refuse(f"expected a callable, got {value!r}", "page_class", value)

    def judges(self, word: Unhonoured) -> bool:
        """Whether a filter of the caller judges *word*."""
        return any(fnmatchcase(word.name, pattern) for pattern in self.judged_elsewhere)
