"""Hosts as filters and weighers see them.

A *filter* takes a :class:`HostView` and returns None to let the host pass, or the reason why not, in words that an
operator can act on. A *weigher* takes a HostView and returns a number: higher is better. Both are plain callables, so
a lambda is enough::

    HostSelector(tree, ledger, cell_of=cells, filters=[ignore_hosts({"cn7"})], weighers=[(1.0, free("VCPU"))])

What they answer is remembered until the host's *view* changes: a provider of its tree is edited, or the use of a class
differs from what the tree saw last; a claim that is released again is no change, since the view is the same as before.
One that looks at anything else (a clock, a count of the caller's, another service) says so: :func:`uncached`. So does a
``metadata_of`` whose answers change by themselves; then whatever sees a view is asked each time. A callable that also
has a method ``over(hosts)``, as those of :mod:`cloudcore.placement.hosts` have, is asked once for thousands of hosts:
see :class:`~cloudcore.placement.hosts.host_columns.Vectorised`.

Weights are scaled to 0..1 over the hosts compared before they are multiplied and added, as in Nova, so that a
multiplier means the same for cores and for megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

__all__ = ["Filter", "HostView", "Weigher", "is_uncached", "uncached"]


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
T = TypeVar("T", bound=Callable[..., Any])


def uncached(function: T) -> T:
    """Mark a callable whose answer may change while the host does not: it is asked each time. Use as a decorator.

    For filters, weighers, ``cell_of``, ``domain_of`` and ``metadata_of``. Marking ``metadata_of`` is enough for the
    filters and weighers that read ``host.metadata``: they are asked each time, too.
    """
    function.uncached = True  # type: ignore[attr-defined] # the mark is an attribute of the caller's function
    return function


def is_uncached(function: object) -> bool:
    """Whether *function* was marked by :func:`uncached`."""
    return bool(getattr(function, "uncached", False))
