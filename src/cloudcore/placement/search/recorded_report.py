"""A report that stands by itself, without the forest: what a report becomes when it is pickled. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import ProviderNotFound
from cloudcore.placement.forest.values import keys_of
from cloudcore.placement.search.rejections import refusals_html

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.rejections import Rejection

__all__ = ["RecordedReport"]


@attrs.frozen(kw_only=True)
class RecordedReport:
    """Which hosts fitted, which did not, and why not: the same questions as the report's, answered from a record.

    Attributes:
        hosts: The number of hosts that were looked at.
        fits: The number of hosts that had a candidate.
        counts: Reason → number of hosts that it refused.
        rejections: All of the first hosts, in the order of the forest.
        complete: Whether those of every host are recorded.
        near: The nearest misses.
        line: The summary.
        text: The report for people.
    """

    hosts: int
    fits: int
    counts: Mapping[str, int]
    rejections: tuple[Rejection, ...]
    complete: bool
    near: tuple[Rejection, ...]
    line: str
    text: str

    def __iter__(self) -> Iterator[Rejection]:
        return iter(self.rejections)

    def of_host(self, root: str | Provider) -> tuple[Rejection, ...]:
        """The rejections of the host whose root has this uuid or name; none when it fits (or is not there).

        Raises:
            ProviderNotFound: The host is not among the recorded, and not all were recorded: it may fit or not.
            InvalidArgument: *root* is neither a provider nor text.
        """
        wanted, *other = keys_of(root)
        found = tuple(each for each in self.rejections if wanted in (each.root, each.host))
        found = found or tuple(each for each in self.rejections if each.root in other)
        if not found and not self.complete:
            recorded = len({each.root for each in self.rejections})
            raise ProviderNotFound(
                f"host {wanted} is not among the {recorded} hosts whose refusals were recorded, of {self.hosts} that "
                "were looked at: ask the report itself, or record more (record(rejections=...))",
                identifier=wanted,
            )
        return found

    def record(self, *, rejections: int = 1_000) -> RecordedReport:
        """Itself, with what was recorded."""
        return self

    def nearest(self, count: int = 3) -> list[Rejection]:
        """The nearest misses, as far as they were recorded."""
        return list(self.near[:count])

    def summary(self) -> str:
        """One line: how many hosts fitted, what refused the others, and the nearest misses."""
        return self.line

    def as_fields(self) -> dict[str, Any]:
        """The counts, for structured logs."""
        return {"hosts": self.hosts, "fits": self.fits, "refused": dict(self.counts)}

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return refusals_html(self.line, self.counts, self.nearest(5))
