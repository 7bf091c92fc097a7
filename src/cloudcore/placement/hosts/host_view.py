"""Hosts as filters and weighers see them, and the filters and weighers that most clouds want.

A *filter* takes a :class:`HostView` and returns None to let the host pass, or the reason why not, in words that an
operator can act on. A *weigher* takes a HostView and returns a number: higher is better. Both are plain callables, so
a lambda is enough::

    HostSelector(tree, ledger, cell_of=cells, filters=[ignore_hosts({"cn7"})], weighers=[(1.0, free("VCPU"))])

Weights are scaled to 0..1 over the hosts compared before they are multiplied and added, as in Nova, so that a
multiplier means the same for cores and for megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.errors import InvalidRequest

__all__ = [
    "AffinityPolicy",
    "Filter",
    "HostGroup",
    "HostView",
    "Weigher",
    "force_hosts",
    "free",
    "ignore_hosts",
    "in_aggregates",
    "metadata_equals",
    "packed",
    "spread",
    "weigh",
]


@attrs.frozen(kw_only=True)
class HostView:
    """What is known of one host while hosts are chosen. A snapshot: the ledger decides.

    Attributes:
        root: UUID of its root provider.
        name: Name of its root provider.
        cell: Name of the cell that it belongs to.
        traits: Traits of every provider of its tree.
        aggregates: Aggregates (UUIDs) of its root provider.
        capacity: ``{resource class: amount}``, summed over its tree.
        used: ``{resource class: amount}``, summed over its tree; for weighers with the picks of this request.
        metadata: What the caller's ``metadata_of`` gave for it.
        domain: Its failure domain, None where none is known.
        members: How many instances of the request's group it holds; for weighers with the picks of this request.
    """

    root: str
    name: str
    cell: str
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    capacity: Mapping[str, int] = attrs.field(factory=dict)
    used: Mapping[str, int] = attrs.field(factory=dict)
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    domain: str | None = None
    members: int = 0

    def share_free(self, resource_class: str) -> float:
        """The free share of *resource_class*, 0.0 (none, or no inventory) to 1.0 (all)."""
        capacity = self.capacity.get(resource_class, 0)
        return max(0.0, (capacity - self.used.get(resource_class, 0)) / capacity) if capacity else 0.0


Filter = Callable[[HostView], str | None]
Weigher = Callable[[HostView], float]


# --- groups ----------------------------------------------------------------------------------------------------------


class AffinityPolicy(StrEnum):
    """How instances of one group are placed relative to each other."""

    AFFINITY = "affinity"  # all on one host
    ANTI_AFFINITY = "anti-affinity"  # at most max_per_host on any host
    SOFT_AFFINITY = "soft-affinity"  # together where possible
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"  # apart where possible


def _policy(value: AffinityPolicy | str) -> AffinityPolicy:
    try:
        return AffinityPolicy(value)
    except ValueError as error:
        known = ", ".join(AffinityPolicy)
        raise InvalidRequest(f"policy: {value!r} is none of {known}", field="policy", value=value) from error


def _optional_uuid(value: str | None) -> str | None:
    return None if value is None else normalise_uuid(value, "group", InvalidRequest)


@attrs.frozen(kw_only=True)
class HostGroup:
    """The group that the instances of a request belong to.

    Attributes:
        policy: How its members are placed relative to each other.
        uuid: Identity of the group. With it the database keeps who is a member, and checks hard policies again in the
            transaction that claims, so that they hold among any number of schedulers.
        members: ``{root provider uuid: members}`` on each host, for a group without a uuid.
        max_per_host: For :attr:`AffinityPolicy.ANTI_AFFINITY`: members that one host may hold.
    """

    policy: AffinityPolicy = attrs.field(converter=_policy)
    uuid: str | None = attrs.field(default=None, converter=_optional_uuid)
    members: Mapping[str, int] = attrs.field(factory=dict)
    max_per_host: int = 1

    def __attrs_post_init__(self) -> None:
        require_integer(self.max_per_host, "max_per_host", minimum=1, error=InvalidRequest)

    @property
    def hard(self) -> bool:
        """A placement that breaks the policy is refused, not only disliked."""
        return self.policy in {AffinityPolicy.AFFINITY, AffinityPolicy.ANTI_AFFINITY}

    def refuses(self, root: str, members: Mapping[str, int]) -> str | None:
        """Why *root* may not take one more member while *members* counts those on each host; None if it may."""
        here = members.get(root, 0)
        if self.policy is AffinityPolicy.ANTI_AFFINITY and here >= self.max_per_host:
            return f"anti-affinity: holds {here} of at most {self.max_per_host} members of the group"
        if self.policy is AffinityPolicy.AFFINITY and not here and any(members.values()):
            return "affinity: the group is on another host"
        return None

    def preference(self, root: str, members: Mapping[str, int]) -> float:
        """How much a soft policy likes *root*: higher is better, 0 for hard policies."""
        if self.policy is AffinityPolicy.SOFT_AFFINITY:
            return float(members.get(root, 0))
        if self.policy is AffinityPolicy.SOFT_ANTI_AFFINITY:
            return -float(members.get(root, 0))
        return 0.0


# --- filters ---------------------------------------------------------------------------------------------------------


def ignore_hosts(hosts: Collection[str]) -> Filter:
    """Refuse the hosts of these names or root UUIDs."""
    ignored = frozenset(hosts)
    return lambda host: "ignored by the request" if ignored & {host.name, host.root} else None


def force_hosts(hosts: Collection[str]) -> Filter:
    """Refuse every host but those of these names or root UUIDs."""
    forced = frozenset(hosts)
    return lambda host: None if forced & {host.name, host.root} else "not among the hosts that the request forces"


def in_aggregates(aggregates: Collection[str]) -> Filter:
    """Refuse hosts that are in none of these aggregates."""
    wanted = frozenset(aggregates)
    return lambda host: None if wanted & host.aggregates else "in none of the aggregates asked for"


def metadata_equals(key: str, value: Any) -> Filter:
    """Refuse hosts whose metadata *key* is not *value*."""

    def refuse(host: HostView) -> str | None:
        found = host.metadata.get(key)
        return None if found == value else f"metadata {key} is {found!r}, not {value!r}"

    return refuse


# --- weighers --------------------------------------------------------------------------------------------------------


def free(resource_class: str) -> Weigher:
    """Prefer hosts with more of *resource_class* free, in its unit."""
    return lambda host: float(host.capacity.get(resource_class, 0) - host.used.get(resource_class, 0))


def spread(resource_classes: Sequence[str] = ("VCPU", "MEMORY_MB")) -> Weigher:
    """Prefer hosts with the larger free share, on average over *resource_classes*."""
    return lambda host: sum(host.share_free(name) for name in resource_classes) / max(1, len(resource_classes))


def packed(resource_classes: Sequence[str] = ("VCPU", "MEMORY_MB")) -> Weigher:
    """Prefer hosts with the smaller free share: fill one before the next is begun."""
    spreading = spread(resource_classes)
    return lambda host: -spreading(host)


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
