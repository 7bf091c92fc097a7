"""Hosts that could hold a request, the ways in which each could, and the one that was picked. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cloudcore.placement.hosts.host_view import HostView
    from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity

__all__ = ["CandidateHost", "Option", "Pick", "Ranked", "first_that_fits"]


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
        weight: What the weighers gave it before any pick.
        number: Its place among the hosts of the request; the lower one is taken on equal weights.
    """

    __slots__ = ("_again", "_known", "_more", "first", "number", "view", "weight")

    first: Option | None
    number: int
    view: HostView
    weight: float

    def __init__(
        self,
        view: HostView,
        options: Iterable[Option],
        *,
        again: Callable[[Callable[[str, str], int | None]], Option | None] | None = None,
        weight: float = 0.0,
        number: int = 0,
    ) -> None:
        self.view = view
        self.weight = weight
        self.number = number
        self._again = again
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

    def beside(self, remaining: RemainingCapacity) -> Iterator[Option]:
        """Options that may fit what is left: the first one, and then, searched for or one after the other, others."""
        if self._again is None:
            yield from self.options
            return
        if self.first is not None:
            yield self.first
            again = self._again(remaining.left)
            if again is not None:
                yield again


class Ranked(NamedTuple):
    """A host with its weight. *rank* counts the hosts that were liked better, 0 is the best."""

    host: CandidateHost
    weight: float
    rank: int


class Pick(NamedTuple):
    """A host with one of its options. *rank* counts the hosts that were liked better, 0 is the best."""

    host: CandidateHost
    option: Option
    weight: float
    rank: int


def first_that_fits(host: CandidateHost, remaining: RemainingCapacity) -> tuple[Option, None] | tuple[None, str]:
    """The first option for which there is room, or why the last one has none: a host is not given up before that."""
    reason = "no candidate is left"
    for option in host.beside(remaining):
        why = remaining.refuses(option.allocations)
        if why is None:
            return option, None
        reason = why
    return None, reason
