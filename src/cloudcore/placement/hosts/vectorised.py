"""Filters and weighers that answer for thousands of hosts at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from cloudcore.placement.hosts.host_columns import HostColumns

__all__ = ["Vectorised", "over_of"]


class Vectorised(Protocol):
    """A filter or weigher that answers for many hosts at once, exactly as it would for each."""

    def over(self, hosts: HostColumns) -> NDArray[Any]:
        """For each of *hosts*: whether it passes (a filter, bool), or its weight (a weigher, float64)."""


def over_of(function: object) -> Callable[[HostColumns], NDArray[Any]] | None:
    """How a filter or weigher answers for many hosts at once; None when it must be asked about each."""
    return cast("Callable[[HostColumns], NDArray[Any]] | None", getattr(function, "over", None))
