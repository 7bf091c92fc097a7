"""Which host is best: filters, weighers, assignment of instances, alternates. Decided on what the tree knows.

Knows hosts, groups of instances and what is left on them; must not claim anything, nor know a database. Pure.
"""

from cloudcore.placement.hosts.by_metadata import (
    aggregate_extra_specs,
    aggregate_flavors,
    aggregate_image_properties,
    below,
    has_metadata,
    in_zone,
    isolated_hosts,
    match_extra_spec,
    metrics,
    prefer_cell,
    tenant_aggregates,
    valued,
)
from cloudcore.placement.hosts.filters import force_hosts, ignore_hosts, in_aggregates, metadata_equals
from cloudcore.placement.hosts.host_columns import HostColumns, Vectorised
from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher, uncached
from cloudcore.placement.hosts.weighers import dot_product, few_devices, free, packed, spread, weigh
from cloudcore.placement.rules.groups import AffinityPolicy, HostGroup

__all__ = [
    "AffinityPolicy",
    "Filter",
    "HostColumns",
    "HostGroup",
    "HostView",
    "Vectorised",
    "Weigher",
    "aggregate_extra_specs",
    "aggregate_flavors",
    "aggregate_image_properties",
    "below",
    "dot_product",
    "few_devices",
    "force_hosts",
    "free",
    "has_metadata",
    "ignore_hosts",
    "in_aggregates",
    "in_zone",
    "isolated_hosts",
    "match_extra_spec",
    "metadata_equals",
    "metrics",
    "packed",
    "prefer_cell",
    "spread",
    "tenant_aggregates",
    "uncached",
    "valued",
    "weigh",
]
