"""A report that stands by itself, without the forest: what a report becomes when it is pickled. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cloudcore.placement.search.rejections import Rejection

__all__ = ["RecordedReport"]


@attrs.frozen(kw_only=True)
class RecordedReport:
    """Which hosts fitted, which did not, and why not: the same questions as the report's, answered from a record.

    Attributes:
        hosts: The number of hosts that were looked at.
        fits: The number of hosts that had a candidate.
        counts: Reason → number of hosts that it refused.
        rejections: Of the first hosts, in the order of the forest.
        near: The nearest misses.
        line: The summary.
        text: The report for people.
    """

    hosts: int
    fits: int
    counts: Mapping[str, int]
    rejections: tuple[Rejection, ...]
    near: tuple[Rejection, ...]
    line: str
    text: str

    def __iter__(self) -> Iterator[Rejection]:
        return iter(self.rejections)

    def of_host(self, root: str) -> tuple[Rejection, ...]:
        """The rejections of the host whose root has this uuid or name, if it is among the recorded."""
        return tuple(each for each in self.rejections if root in (each.root, each.host))

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
