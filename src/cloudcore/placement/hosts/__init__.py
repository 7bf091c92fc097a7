"""Which host is best: filters, weighers, assignment of instances, alternates. Decided on what the tree knows.

Knows hosts, groups of instances and what is left on them; must not claim anything, nor know a database. Pure.
"""

from cloudcore.placement.hosts.host_view import (
    AffinityPolicy,
    Filter,
    HostGroup,
    HostView,
    Weigher,
    force_hosts,
    free,
    ignore_hosts,
    in_aggregates,
    metadata_equals,
    packed,
    spread,
    weigh,
)

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
