"""Flavors, images and ports as OpenStack's services write them, read into plain values. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.placement.requests.groups import refuse

__all__ = [
    "FlavorWords",
    "agreed_flag",
    "both",
    "cpu_set",
    "flag",
    "numbered",
    "one_of",
    "read_flavor",
    "read_image",
    "unique",
    "whole",
]

_MAX_CPUS = 65_536
_MAX_CELLS = 128  # nova.objects.image_meta.ImageMetaProps.NUMA_NODES_MAX

_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})  # oslo_utils.strutils.TRUE_STRINGS

_LEGACY = {
    "architecture": "hw_architecture",
    "hypervisor_type": "img_hv_type",
    "hypervisor_version_requires": "img_hv_requested_version",
    "vm_mode": "hw_vm_mode",
}


@attrs.frozen(kw_only=True)
class FlavorWords:
    """A flavor: processors, MiB of memory and swap, GiB of disk, and its extra specs as text."""

    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int
    swap_mb: int
    extra_specs: Mapping[str, str]

    def every_cpu(self, field: str) -> frozenset[int]:
        """The numbers of the guest's processors, for *field*, which tells them apart.

        Raises:
            InvalidRequest: There are more than 65,536.
        """
        if self.vcpus > _MAX_CPUS:
            raise refuse(f"tells at most {_MAX_CPUS} processors apart, the flavor has {self.vcpus}", field, self.vcpus)
        return frozenset(range(self.vcpus))


_SPELLINGS = {
    "vcpus": ("vcpus",),
    "memory_mb": ("ram", "memory_mb"),
    "root_gb": ("disk", "root_gb"),
    "ephemeral_gb": ("OS-FLV-EXT-DATA:ephemeral", "ephemeral", "ephemeral_gb"),
    "swap_mb": ("swap",),
}


def read_flavor(flavor: Any) -> FlavorWords:
    """Read a flavor: the API's JSON, a mapping with Nova's own names, or an object with either as attributes.

    Raises:
        InvalidRequest: Processors or memory are missing, or an amount is no whole number.
    """
    get = _getter(flavor, "flavor")
    amounts = {}
    for field, spellings in _SPELLINGS.items():
        found = [value for value in map(get, spellings) if value is not None and value != ""]
        minimum = 1 if field in {"vcpus", "memory_mb"} else 0
        if not found and minimum:
            raise refuse(f"the flavor has no {' or '.join(spellings)}", field)
        amounts[field] = require_integer(found[0] if found else 0, field, minimum=minimum, error=InvalidRequest)
    specs = get("extra_specs") or {}
    if not isinstance(specs, Mapping):
        raise refuse(f"expected a mapping, got {specs!r}", "extra_specs", specs)
    return FlavorWords(
        name=str(get("name") or get("original_name") or "flavor"),
        extra_specs={str(key): str(value) for key, value in specs.items()},
        **amounts,
    )


def _getter(value: Any, field: str) -> Callable[[str], Any]:
    if value is None or isinstance(value, str | bytes | int | float | list | tuple):
        raise refuse(f"expected a mapping or an object with its fields, got {value!r}", field, value)
    if isinstance(value, Mapping):
        return value.get
    return lambda name: getattr(value, name, None)


def read_image(image: Mapping[str, Any] | None) -> dict[str, str]:
    """The properties of a Glance image as text, those in ``properties`` and those beside it, under today's names.

    Source: ``nova.objects.image_meta.ImageMetaProps.from_dict``; today's name goes before the legacy one.
    """
    if image is None:
        return {}
    if not isinstance(image, Mapping):
        raise refuse(f"expected a mapping, got {image!r}", "image", image)
    nested = image.get("properties") or {}
    if not isinstance(nested, Mapping):
        raise refuse(f"expected a mapping, got {nested!r}", "properties", nested)
    flat = {key: value for key, value in image.items() if key != "properties"}
    properties = {str(k): str(v) for k, v in {**flat, **nested}.items() if v is not None}
    for old, new in _LEGACY.items():
        if old in properties:
            properties.setdefault(new, properties[old])
    adapter = properties.get("vmware_adaptertype")
    if adapter:
        properties.setdefault("hw_disk_bus", "ide" if adapter == "ide" else "scsi")
    return properties


def flag(text: str | None) -> bool | None:
    """Whether *text* says yes, as ``oslo_utils.strutils.bool_from_string`` reads it; None stays None."""
    return None if text is None else text.strip().lower() in _TRUE


def both(key: str, flavor: FlavorWords, image: Mapping[str, str], prefix: str = "hw") -> tuple[str | None, str | None]:
    """What the flavor's ``hw:key`` and the image's ``hw_key`` say (``hardware._get_flavor_image_meta``)."""
    return flavor.extra_specs.get(f"{prefix}:{key}"), image.get(f"{prefix}_{key}")


def unique(key: str, flavor: FlavorWords, image: Mapping[str, str], prefix: str = "hw") -> str | None:
    """The same where the two must not differ (``hardware._get_unique_flavor_image_meta``)."""
    wanted, offered = both(key, flavor, image, prefix)
    if wanted and offered and wanted != offered:
        raise refuse(f"the flavor says {wanted} and the image {offered}", f"{prefix}:{key}", wanted)
    return wanted or offered


def agreed_flag(key: str, flavor: FlavorWords, image: Mapping[str, str]) -> bool:
    """A yes of either; a yes and a no are refused."""
    wanted, offered = map(flag, both(key, flavor, image))
    if wanted is not None and offered is not None and wanted != offered:
        raise refuse(f"the flavor says {wanted} and the image {offered}", f"hw:{key}", wanted)
    return bool(wanted or offered)


def one_of(value: str | None, allowed: Iterable[str], field: str) -> str | None:
    """Return *value* if it is one of *allowed* or missing."""
    names = sorted(allowed)
    if value and value not in names:
        raise refuse(f"expected one of {', '.join(names)}, got {value!r}", field, value)
    return value


def whole(text: str, field: str, *, minimum: int = 0) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text, re.ASCII):
        raise refuse(f"expected a whole number, got {text!r}", field, text)
    return require_integer(int(text), field, minimum=minimum, error=InvalidRequest)


def cpu_set(text: str, field: str) -> frozenset[int]:
    """Read ``0-3,^2,7`` (``hardware.parse_cpu_spec``): numbers and ranges, with ``^`` taken out again.

    Raises:
        InvalidRequest: A part is neither, a range runs backwards, or a number is not below 65,536.
    """
    chosen: set[int] = set()
    rejected: set[int] = set()
    for rule in filter(None, map(str.strip, text.split(","))):
        first, dash, last = rule.removeprefix("^").partition("-")
        start = whole(first, field)
        end = whole(last, field) if dash else start
        if start > end or end >= _MAX_CPUS:
            raise refuse(f"not a range of processors: {rule!r}", field, text)
        (rejected if rule.startswith("^") else chosen).update(range(start, end + 1))
    return frozenset(chosen - rejected)


def numbered(words: Mapping[str, str], key: str) -> list[tuple[str, str]] | None:
    """``key.0``, ``key.1``, … with their values, up to the first that is missing; None without any."""
    found = []
    for cell in range(_MAX_CELLS):
        name = f"{key}.{cell}"
        if name not in words:
            break
        found.append((name, words[name]))
    return found or None
