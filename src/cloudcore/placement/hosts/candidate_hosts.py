"""Hosts that could hold a request, the ways in which each could, and the one that was picked. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts.host_view import HostView
    from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity

__all__ = ["CandidateHost", "Option", "Pick", "first_that_fits"]


@attrs.frozen(kw_only=True)
class Option:
    """One way in which a host can hold the request: ``{provider: {class: amount}}`` and ``{suffix: providers}``."""

    allocations: Mapping[str, Mapping[str, int]]
    mappings: Mapping[str, Sequence[str]] = attrs.field(factory=dict)


class CandidateHost:
    """A host that passed search and filters, with its options: the first one, and others made when asked for.

    Attributes:
        view: What is known of it.
        first: Its first option, None if it has none.
    """

    __slots__ = ("_known", "_more", "first", "view")

    def __init__(self, view: HostView, options: Iterable[Option]) -> None:
        self.view = view
        self._more = iter(options)
        self.first = next(self._more, None)
        self._known = [self.first] if self.first is not None else []

    @property
    def options(self) -> Iterator[Option]:
        """Every option in its order."""
        yield from self._known
        for option in self._more:
            self._known.append(option)
            yield option


class Pick(NamedTuple):
    """A host with one of its options. *rank* counts the hosts that were liked better, 0 is the best."""

    host: CandidateHost
    option: Option
    weight: float
    rank: int


def first_that_fits(host: CandidateHost, remaining: RemainingCapacity) -> tuple[Option, None] | tuple[None, str]:
    """The first option for which there is room, or why the last one has none: a host is not given up before that."""
    reason = "no candidate is left"
    for option in host.options:
        why = remaining.refuses(option.allocations)
        if why is None:
            return option, None
        reason = why
    return None, reason
