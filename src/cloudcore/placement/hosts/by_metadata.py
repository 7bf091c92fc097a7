"""Filters and weighers that Nova's schedulers have and that no request expresses: by metadata of hosts and aggregates.

Hosts bring their metadata with them (``metadata_of`` of the selector: numbers of instances, I/O operations, versions,
metrics). Aggregates have metadata of their own, given to a filter as ``{aggregate uuid: {key: text}}``, as Nova's host
aggregates have; it counts for a host that is a member by its root. What each does in Nova stands in the table of
``docs/reference/alternates.md``. Answers are remembered for each host: where metadata change without the host,
``metadata_of`` is marked :func:`~cloudcore.placement.hosts.uncached`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest

if TYPE_CHECKING:
    from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher

__all__ = [
    "aggregate_extra_specs",
    "aggregate_flavors",
    "aggregate_image_properties",
    "below",
    "has_metadata",
    "in_zone",
    "isolated_hosts",
    "match_extra_spec",
    "metrics",
    "prefer_cell",
    "tenant_aggregates",
    "valued",
]

AggregateMetadata = Mapping[str, Mapping[str, str]]
"""Aggregate uuid → its metadata."""


# --- filters ---------------------------------------------------------------------------------------------------------


def in_zone(zone: str, metadata: AggregateMetadata, *, default: str | None = "nova") -> Filter:
    """Refuse hosts of other availability zones; those of none are in *default* (AvailabilityZone).

    Quicker as part of the request: ``member_of`` the zone's aggregates.
    """

    def refuse(host: HostView) -> str | None:
        zones = _values(host, metadata, "availability_zone") or ({default} if default is not None else set())
        return None if zone in zones else f"in availability zone {', '.join(map(str, sorted(zones))) or 'none'}"

    return refuse


def aggregate_extra_specs(extra_specs: Mapping[str, str], metadata: AggregateMetadata) -> Filter:
    """Refuse hosts whose aggregates do not have what the flavor asks for (AggregateInstanceExtraSpecsFilter).

    Read are keys with the scope ``aggregate_instance_extra_specs:``, and those without any scope.
    """
    wanted = {}
    for key, requirement in extra_specs.items():
        scope, colon, rest = key.partition(":")
        if not colon or scope == "aggregate_instance_extra_specs":
            wanted[rest if colon else scope] = requirement

    def refuse(host: HostView) -> str | None:
        for key, requirement in wanted.items():
            values = _values(host, metadata, key)
            if not any(match_extra_spec(value, requirement) for value in values):
                return f"its aggregates have {key} {', '.join(sorted(values)) or 'nowhere'}, not {requirement}"
        return None

    return refuse


def aggregate_image_properties(image: Mapping[str, Any], metadata: AggregateMetadata) -> Filter:
    """Refuse hosts whose aggregates say another value for a property of the image (AggregateImagePropertiesIsolation).

    Isolation by traits needs no filter: require the trait, and forbid the aggregates of others by ``not_member_of``.
    """
    properties = {str(key): str(value) for key, value in image.items() if value is not None and value != ""}

    def refuse(host: HostView) -> str | None:
        for key, value in properties.items():
            allowed = _values(host, metadata, key)
            if allowed and value not in allowed:
                return f"its aggregates are for images with {key} {', '.join(sorted(allowed))}, not {value}"
        return None

    return refuse


def tenant_aggregates(project_id: str, metadata: AggregateMetadata) -> Filter:
    """Refuse hosts kept for other projects by ``filter_tenant_id…`` (AggregateMultiTenancyIsolation)."""

    def refuse(host: HostView) -> str | None:
        kept = {
            tenant
            for aggregate in host.aggregates
            for key, values in metadata.get(aggregate, {}).items()
            if key.startswith("filter_tenant_id")
            for tenant in _split(values)
        }
        return None if not kept or project_id in kept else "its aggregates are kept for other projects"

    return refuse


def aggregate_flavors(flavor: str, metadata: AggregateMetadata) -> Filter:
    """Refuse hosts whose aggregates name flavors by ``instance_type``, but not this one (AggregateTypeAffinity)."""

    def refuse(host: HostView) -> str | None:
        named = _values(host, metadata, "instance_type")
        return None if not named or flavor in named else f"its aggregates are for flavors {', '.join(sorted(named))}"

    return refuse


def below(key: str, most: int, metadata: AggregateMetadata | None = None, aggregate_key: str | None = None) -> Filter:
    """Refuse hosts whose metadata *key* is not below *most* (NumInstancesFilter, IoOpsFilter).

    With *metadata* the smallest whole number that the host's aggregates say for *aggregate_key* goes before *most*
    (AggregateNumInstancesFilter, AggregateIoOpsFilter). A host without *key* has 0.
    """
    require_integer(most, "most", minimum=0, error=InvalidRequest)

    def refuse(host: HostView) -> str | None:
        said = _values(host, metadata, aggregate_key) if metadata is not None and aggregate_key else set()
        bound = min((int(value) for value in said if value.isascii() and value.isdigit()), default=most)
        found = host.metadata.get(key, 0)
        return None if found < bound else f"{key} is {found}, at most {bound - 1} may be"

    return refuse


def isolated_hosts(hosts: Collection[str], *, image_isolated: bool, restrict: bool = True) -> Filter:
    """Keep isolated images on *hosts* (names or root uuids), and with *restrict* others off them.

    Nova's IsolatedHostsFilter.
    """
    isolated = frozenset(hosts)

    def refuse(host: HostView) -> str | None:
        here = bool(isolated & {host.name, host.root})
        if image_isolated and not here:
            return "not among the isolated hosts"
        return "isolated, and the image is not" if restrict and here and not image_isolated else None

    return refuse


def has_metadata(keys: Collection[str]) -> Filter:
    """Refuse hosts that lack one of these keys (MetricsFilter, before :func:`metrics`)."""
    wanted = frozenset(keys)

    def refuse(host: HostView) -> str | None:
        missing = sorted(wanted - host.metadata.keys())
        return f"no {missing[0]} is known of it" if missing else None

    return refuse


def _values(host: HostView, metadata: AggregateMetadata, key: str) -> set[str]:
    """What the host's aggregates say for *key*; a comma parts several."""
    said = (metadata.get(aggregate, {}).get(key) for aggregate in host.aggregates)
    return {value for text in said if text is not None for value in _split(text)}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


_NUMBERS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}
_TEXTS: Mapping[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}


def match_extra_spec(value: str, requirement: str) -> bool:
    """Whether *value* meets *requirement*, a value or an operator with one: ``>= 4``, ``s== x``, ``<or> a <or> b``.

    Source: ``nova.scheduler.filters.extra_specs_ops``; what is no number there raises, and does not match here.
    """
    words = requirement.split()
    sign, operands = (words[0], words[1:]) if words else ("", [])
    if sign == "<or>":
        return value in operands[::2]
    if sign in {"<in>", "<all-in>"} and operands:
        return all(word in value for word in (operands if sign == "<all-in>" else operands[:1]))
    if sign in _TEXTS:
        return bool(operands) and _TEXTS[sign](value, operands[0])
    if sign in _NUMBERS:
        try:
            return bool(operands) and _NUMBERS[sign](float(value), float(operands[0]))
        except ValueError:
            return False
    return value == requirement if sign not in {"<in>", "<all-in>"} else False


# --- weighers --------------------------------------------------------------------------------------------------------


def valued(key: str, default: float = 0.0) -> Weigher:
    """Prefer hosts with more of the metadata *key*; a negative multiplier prefers less.

    NumInstancesWeigher, IoOpsWeigher and BuildFailureWeigher with negative multipliers, HypervisorVersionWeigher.
    """
    return lambda host: float(host.metadata.get(key) or default)


def metrics(weights: Mapping[str, float], *, unavailable: float = -10_000.0) -> Weigher:
    """Prefer hosts by the weighted sum of these keys; a host that lacks one gets *unavailable* (MetricsWeigher)."""

    def weigh(host: HostView) -> float:
        if any(weight and key not in host.metadata for key, weight in weights.items()):
            return unavailable
        return float(sum(weight * host.metadata[key] for key, weight in weights.items() if weight))

    return weigh


def prefer_cell(cell: str) -> Weigher:
    """Prefer hosts of *cell* where a move may leave it (CrossCellWeigher)."""
    return lambda host: 1.0 if host.cell == cell else -1.0
