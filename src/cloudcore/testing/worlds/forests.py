"""Racks of hosts in Placement's JSON, seeded: the same arguments give the same bytes. Pure."""

from __future__ import annotations

import random
import uuid as uuids
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import attrs

from cloudcore._values import require_integer
from cloudcore.errors import InvalidArgument

__all__ = ["FLAVORS", "Shape", "cell_name", "forest"]

Shape = Literal["flat", "numa", "gpu", "shared"]
"""What a host is.

========== ===========================================================================================================
``flat``   one provider with processors, memory and disk
``numa``   a root with disk, two NUMA nodes with processors and memory, under each a network card with 8 functions on
           one of two networks
``gpu``    the same, and under each NUMA node of every second host a GPU for 4 guests
``shared`` processors and memory; the disk is one pool for each rack
========== ===========================================================================================================
"""

_PLAIN = {
    "small": "resources=VCPU:2,MEMORY_MB:4096,DISK_GB:20",
    "medium": "resources=VCPU:4,MEMORY_MB:8192,DISK_GB:40",
    "large": "resources=VCPU:16,MEMORY_MB:32768,DISK_GB:160",
}
_NUMA = {
    "small": "resources=DISK_GB:20&resources_cpu=VCPU:2,MEMORY_MB:4096",
    "medium": "resources=DISK_GB:40&resources_cpu=VCPU:4,MEMORY_MB:8192",
    "large": "resources=DISK_GB:160&resources_cpu=VCPU:16,MEMORY_MB:32768",
    "network": (
        "resources=DISK_GB:40&resources_cpu=VCPU:4,MEMORY_MB:8192&required_cpu=HW_NUMA_ROOT"
        "&resources_net=SRIOV_NET_VF:1&required_net=CUSTOM_PHYSNET_A&same_subtree=_cpu,_net&group_policy=none"
    ),
    "two-nodes": (
        "resources=DISK_GB:40&resources_cpu0=VCPU:4,MEMORY_MB:8192&resources_cpu1=VCPU:4,MEMORY_MB:8192"
        "&group_policy=isolate"
    ),
}
_GPU = "resources=DISK_GB:40&resources_cpu=VCPU:4,MEMORY_MB:8192&required_cpu=HW_NUMA_ROOT&resources_gpu=VGPU:1"

FLAVORS: Mapping[Shape, Mapping[str, str]] = {
    "flat": _PLAIN,
    "numa": _NUMA,
    "gpu": {**_NUMA, "gpu": f"{_GPU}&same_subtree=_cpu,_gpu&group_policy=none"},
    "shared": _PLAIN,
}
"""Shape of the hosts → name of a flavor → what it asks for, in Placement's query language."""


def cell_name(number: int) -> str:
    """The name of the cell of this number; they count from 1."""
    return f"cell{number}"


def forest(
    seed: int = 0,
    *,
    cells: int = 1,
    racks: int = 2,
    hosts: int = 4,
    shape: Shape = "numa",
    full: float = 0.0,
) -> dict[str, Any]:
    """Racks of hosts, as :meth:`PlacementTree.load <cloudcore.PlacementTree.load>` takes them.

    Hosts are called ``cell1-rack1-host1`` and so on. Those of a rack are alike and share an aggregate; racks differ in
    size by a factor of two.

    Args:
        seed: Another number, other uuids, other sizes, other use.
        cells: Of them.
        racks: Of each cell.
        hosts: Of each rack.
        shape: What each host is; see :data:`Shape`.
        full: The share in use, from 0 to 1, in the mean; it counts for a tree in memory alone.

    Raises:
        InvalidArgument: A number is below 1, *full* is no share, or there is no such shape.
    """
    for name, number in {"cells": cells, "racks": racks, "hosts": hosts}.items():
        require_integer(number, name, minimum=1)
    if not 0 <= full <= 1:
        raise InvalidArgument(f"full: {full!r} is not between 0 and 1", field="full", value=full)
    if shape not in get_args(Shape):
        raise InvalidArgument(
            f"shape: there is no {shape!r}; there are {', '.join(get_args(Shape))}", field="shape", value=shape
        )
    made = _Forest(random.Random(f"forest {seed}"), shape, full)
    for cell in range(1, cells + 1):
        for rack in range(1, racks + 1):
            made.rack(f"{cell_name(cell)}-rack{rack}", hosts)
    return made.as_placement()


def new_uuid(rng: random.Random) -> str:
    """A uuid that depends on the generator alone."""
    return str(uuids.UUID(int=rng.getrandbits(128), version=4))


@attrs.frozen(kw_only=True)
class _Made:
    uuid: str
    name: str
    parent: str | None
    inventories: Mapping[str, Mapping[str, Any]]
    traits: tuple[str, ...]
    aggregates: tuple[str, ...]
    used: Mapping[str, int]


class _Forest:
    """Collects providers, parents first."""

    def __init__(self, rng: random.Random, shape: Shape, full: float) -> None:
        self._rng, self._shape, self._full = rng, shape, full
        self._providers: list[_Made] = []

    def rack(self, name: str, hosts: int) -> None:
        aggregate, size = new_uuid(self._rng), self._rng.choice((1, 1, 2))
        if self._shape == "shared":
            traits = ("MISC_SHARES_VIA_AGGREGATE",)
            self._add(f"{name}-pool", None, {"DISK_GB": _stock(4000 * hosts)}, traits, (aggregate,))
        for number in range(1, hosts + 1):
            self._host(f"{name}-host{number}", size, aggregate, gpu=self._shape == "gpu" and number % 2 == 0)

    def _host(self, name: str, size: int, aggregate: str, *, gpu: bool) -> None:
        disk = {"DISK_GB": _stock(2000 * size, reserved=50)}
        if self._shape in {"flat", "shared"}:
            stock = _cores(32 * size, 131072 * size) | (disk if self._shape == "flat" else {})
            self._add(name, None, stock, ("COMPUTE_NODE",), (aggregate,))
            return
        root = self._add(name, None, disk, ("COMPUTE_NODE",), (aggregate,))
        for node in (0, 1):
            numa = self._add(f"{name}-numa{node}", root, _cores(16 * size, 65536 * size), ("HW_NUMA_ROOT",))
            network = "CUSTOM_PHYSNET_" + "AB"[node]
            self._add(f"{name}-pf{node}", numa, {"SRIOV_NET_VF": _stock(8)}, (network,))
            if gpu:
                self._add(f"{name}-gpu{node}", numa, {"VGPU": _stock(4)}, ("CUSTOM_GPU",))

    def _add(
        self,
        name: str,
        parent: str | None,
        inventories: Mapping[str, Mapping[str, Any]],
        traits: tuple[str, ...],
        aggregates: tuple[str, ...] = (),
    ) -> str:
        uuid = new_uuid(self._rng)
        used = {each: self._use(stock) for each, stock in inventories.items()} if self._full else {}
        self._providers.append(
            _Made(
                uuid=uuid,
                name=name,
                parent=parent,
                inventories=inventories,
                traits=traits,
                aggregates=aggregates,
                used=used,
            )
        )
        return uuid

    def _use(self, stock: Mapping[str, Any]) -> int:
        """Around the wanted share of the capacity, as far to both sides as there is room on both."""
        capacity = int((stock["total"] - stock["reserved"]) * stock["allocation_ratio"])
        swing = min(self._full, 1 - self._full)
        return round(capacity * (self._full + self._rng.uniform(-swing, swing)))

    def as_placement(self) -> dict[str, Any]:
        return {
            "resource_providers": [
                {"uuid": made.uuid, "name": made.name, "parent_provider_uuid": made.parent, "generation": 0}
                for made in self._providers
            ],
            "inventories": dict(self._each("inventories")),
            "traits": dict(self._each("traits")),
            "aggregates": dict(self._each("aggregates")),
            "usages": {made.uuid: dict(made.used) for made in self._providers},
        }

    def _each(self, name: str) -> Iterator[tuple[str, Any]]:
        for made in self._providers:
            value = getattr(made, name)
            yield made.uuid, dict(value) if isinstance(value, Mapping) else list(value)


def _stock(total: int, *, reserved: int = 0, ratio: float = 1.0) -> dict[str, Any]:
    return {
        "total": total,
        "reserved": reserved,
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": ratio,
    }


def _cores(cores: int, memory: int) -> dict[str, dict[str, Any]]:
    return {"VCPU": _stock(cores, ratio=2.0), "MEMORY_MB": _stock(memory, reserved=2048)}
