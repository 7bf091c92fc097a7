"""Which host is best: filters, weighers, assignment of instances, alternates. Decided on what the tree knows.

Knows hosts, groups of instances and what is left on them; must not claim anything, nor know a database. Pure.
"""

from cloudcore.placement.hosts.filters import force_hosts, ignore_hosts, in_aggregates, metadata_equals
from cloudcore.placement.hosts.groups import AffinityPolicy, HostGroup
from cloudcore.placement.hosts.host_columns import HostColumns, Vectorised
from cloudcore.placement.hosts.host_view import Filter, HostView, Weigher, uncached
from cloudcore.placement.hosts.weighers import free, packed, spread, weigh

__all__ = [
    "AffinityPolicy",
    "Filter",
    "HostColumns",
    "HostGroup",
    "HostView",
    "Vectorised",
    "Weigher",
    "force_hosts",
    "free",
    "ignore_hosts",
    "in_aggregates",
    "metadata_equals",
    "packed",
    "spread",
    "uncached",
    "weigh",
]
