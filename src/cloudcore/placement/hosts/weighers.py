"""The weighers that most clouds want; each weighs one host, or many at once. Higher is better. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cloudcore.placement.hosts.host_columns import HostColumns
    from cloudcore.placement.hosts.host_view import HostView, Weigher
    from cloudcore.placement.requests.requests import ResourceRequest

__all__ = ["dot_product", "few_devices", "free", "packed", "spread", "weigh"]


@attrs.frozen
class _Free:
    resource_class: str

    def __call__(self, host: HostView) -> float:
        return float(host.capacity.get(self.resource_class, 0) - host.used.get(self.resource_class, 0))

    def over(self, hosts: HostColumns) -> NDArray[np.float64]:
        return hosts.capacity(self.resource_class) - hosts.used(self.resource_class)


def free(resource_class: str) -> Weigher:
    """Prefer hosts with more of *resource_class* free, in its unit."""
    return _Free(resource_class)


@attrs.frozen
class _Spread:
    resource_classes: tuple[str, ...]
    sign: float = 1.0

    def __call__(self, host: HostView) -> float:
        shares = sum(host.share_free(name) for name in self.resource_classes)
        return self.sign * (shares / max(1, len(self.resource_classes)))

    def over(self, hosts: HostColumns) -> NDArray[np.float64]:
        shares: NDArray[Any] = np.zeros(hosts.size)
        for name in self.resource_classes:
            shares = shares + hosts.share_free(name)
        return self.sign * (shares / max(1, len(self.resource_classes)))


def spread(resource_classes: Sequence[str] = ("VCPU", "MEMORY_MB")) -> Weigher:
    """Prefer hosts with the larger free share, on average over *resource_classes*."""
    return _Spread(tuple(resource_classes))


def packed(resource_classes: Sequence[str] = ("VCPU", "MEMORY_MB")) -> Weigher:
    """Prefer hosts with the smaller free share: fill one before the next is begun."""
    return _Spread(tuple(resource_classes), -1.0)


@attrs.frozen
class _FewDevices:
    resource_classes: tuple[str, ...]

    def __call__(self, host: HostView) -> float:
        left = (host.capacity.get(name, 0) - host.used.get(name, 0) for name in self.resource_classes)
        return -float(sum(max(0, amount) for amount in left))

    def over(self, hosts: HostColumns) -> NDArray[np.float64]:
        left: NDArray[Any] = np.zeros(hosts.size)
        for name in self.resource_classes:
            left = left + np.maximum(0.0, hosts.capacity(name) - hosts.used(name))
        return -left


def few_devices(resource_classes: Sequence[str]) -> Weigher:
    """Prefer hosts with fewer free devices of these classes: keep the others for who needs many (Nova's PCIWeigher)."""
    return _FewDevices(tuple(resource_classes))


@attrs.frozen
class _DotProduct:
    asked: tuple[tuple[str, int], ...]

    def __call__(self, host: HostView) -> float:
        total = 0.0
        for name, amount in self.asked:
            if capacity := host.capacity.get(name, 0):
                total += amount / capacity * host.share_free(name)
        return -total

    def over(self, hosts: HostColumns) -> NDArray[np.float64]:
        total: NDArray[Any] = np.zeros(hosts.size)
        for name, amount in self.asked:
            capacity = hosts.capacity(name)
            share = np.divide(amount, capacity, out=np.zeros(hosts.size), where=capacity > 0)
            total = total + share * hosts.share_free(name)
        return -total


def dot_product(request: ResourceRequest) -> Weigher:
    """Pack by shape: prefer hosts with little left of what *request* asks much of.

    The value is minus the scalar product of what is asked and what is free, both as shares of the host's capacity. Of
    flavors of several shapes it leaves fewer hosts half used than :func:`packed`, which adds the classes up.
    """
    asked: dict[str, int] = {}
    for group in request.groups.values():
        for name, amount in group.resources.items():
            asked[name] = asked.get(name, 0) + amount
    return _DotProduct(tuple(sorted(asked.items())))


def weigh(hosts: Sequence[HostView], weighers: Sequence[tuple[float, Weigher]]) -> list[float]:
    """The weight of each of *hosts*: the values of *weighers*, scaled to 0..1 over *hosts*, times their multipliers."""
    weights = [0.0] * len(hosts)
    for multiplier, weigher in weighers:
        values = [weigher(host) for host in hosts]
        low, high = min(values, default=0.0), max(values, default=0.0)
        if high > low:
            weights = [
                weight + multiplier * (value - low) / (high - low)
                for weight, value in zip(weights, values, strict=True)
            ]
    return weights
