"""The filters that most clouds want; each says for one host why not, and for many at once which pass. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection

    from cloudcore.placement.columns.blocks import Mask
    from cloudcore.placement.hosts.host_columns import HostColumns
    from cloudcore.placement.hosts.host_view import Filter, HostView

__all__ = ["force_hosts", "ignore_hosts", "in_aggregates", "metadata_equals"]


@attrs.frozen
class _IgnoreHosts:
    hosts: frozenset[str]

    def __call__(self, host: HostView) -> str | None:
        return "ignored by the request" if self.hosts & {host.name, host.root} else None

    def over(self, hosts: HostColumns) -> Mask:
        return ~hosts.named(self.hosts)


def ignore_hosts(hosts: Collection[str]) -> Filter:
    """Refuse the hosts of these names or root UUIDs."""
    return _IgnoreHosts(frozenset(hosts))


@attrs.frozen
class _ForceHosts:
    hosts: frozenset[str]

    def __call__(self, host: HostView) -> str | None:
        return None if self.hosts & {host.name, host.root} else "not among the hosts that the request forces"

    def over(self, hosts: HostColumns) -> Mask:
        return hosts.named(self.hosts)


def force_hosts(hosts: Collection[str]) -> Filter:
    """Refuse every host but those of these names or root UUIDs."""
    return _ForceHosts(frozenset(hosts))


@attrs.frozen
class _InAggregates:
    aggregates: frozenset[str]

    def __call__(self, host: HostView) -> str | None:
        return None if self.aggregates & host.aggregates else "in none of the aggregates asked for"

    def over(self, hosts: HostColumns) -> Mask:
        return hosts.in_aggregates(self.aggregates)


def in_aggregates(aggregates: Collection[str]) -> Filter:
    """Refuse hosts that are in none of these aggregates."""
    return _InAggregates(frozenset(aggregates))


def metadata_equals(key: str, value: Any) -> Filter:
    """Refuse hosts whose metadata *key* is not *value*."""

    def refuse(host: HostView) -> str | None:
        found = host.metadata.get(key)
        return None if found == value else f"metadata {key} is {found!r}, not {value!r}"

    return refuse
