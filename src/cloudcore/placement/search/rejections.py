"""One reason why one host cannot hold a request, as a value and in words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore.notebook import Table, html_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.placement.search.elimination import Reason

__all__ = ["Rejection", "refusals_html"]


@attrs.frozen(kw_only=True)
class Rejection:
    """One thing that one host lacks. What does not apply is None (or empty).

    Attributes:
        root: The uuid of the host's root provider.
        host: Its name.
        reason: See the table in the documentation of placement.
        suffix: The group that it concerns; None when it concerns them together.
        provider: The uuid of the provider that came nearest.
        provider_name: Its name.
        resource_class: The class that was asked for.
        asked: How much of it.
        used: How much of it is in use there.
        reserved: How much of it the host keeps for itself.
        total: How much of it there is.
        capacity: How much of it may be in use.
        bound: The min_unit, max_unit or step_size that was broken.
        names: The traits or aggregates of which one is missing, or that are forbidden and there.
    """

    root: str
    host: str
    reason: Reason
    suffix: str | None = None
    provider: str | None = None
    provider_name: str | None = None
    resource_class: str | None = None
    asked: int | None = None
    used: int | None = None
    reserved: int | None = None
    total: int | None = None
    capacity: int | None = None
    bound: int | None = None
    names: tuple[str, ...] = ()

    @property
    def missing(self) -> int | None:
        """How many units more would do, where the reason is capacity."""
        if self.asked is None or self.used is None or self.capacity is None or not self.reason.startswith("capacity"):
            return None
        return self.used + self.asked - self.capacity

    @property
    def label(self) -> str:
        """The reason with what it is about, the same for all hosts that lack the same: reports count by it."""
        about = self.resource_class or " or ".join(self.names)
        return f"{self.reason} {about}".rstrip()

    def __str__(self) -> str:
        where = "" if self.provider in {None, self.root} else f" (nearest: {self.provider_name})"
        group = f" for group {self.suffix}" if self.suffix else ""
        return f"{self.host} {_SENTENCES[self.reason](self)}{group}{where}"


def _names(rejection: Rejection) -> str:
    return " or ".join(rejection.names)


def _capacity(rejection: Rejection) -> str:
    numbers = f"asked {rejection.asked}, used {rejection.used} of {rejection.capacity}"
    reserved = f", reserved {rejection.reserved}" if rejection.reserved else ""
    if rejection.reserved is not None and rejection.total is not None and rejection.reserved > rejection.total:
        reserved += f" of only {rejection.total}, so that nothing is given out"
    return f"lacks {rejection.missing} {rejection.resource_class} ({numbers}{reserved})"


def _unit(which: str) -> Callable[[Rejection], str]:
    return lambda r: f"gives {r.resource_class} with {which} {r.bound}, asked {r.asked}"


_SENTENCES: Mapping[str, Callable[[Rejection], str]] = {
    "root_trait": lambda r: f"has a root without, or with a forbidden, {_names(r)}",
    "in_tree": lambda r: "is not the tree that in_tree names",
    "no_inventory": lambda r: f"has no {r.resource_class}",
    "min_unit": _unit("min_unit"),
    "max_unit": _unit("max_unit"),
    "step_size": _unit("step_size"),
    "capacity": _capacity,
    "trait": lambda r: f"lacks trait {_names(r)}",
    "forbidden_trait": lambda r: f"has a forbidden trait ({_names(r)})",
    "aggregate": lambda r: f"is not in aggregate {_names(r)}",
    "forbidden_aggregate": lambda r: f"is in a forbidden aggregate ({_names(r)})",
    "traits_together": lambda r: f"has no providers that have {_names(r)} between them",
    "capacity_together": lambda r: f"cannot give all groups their {_names(r)} together",
    "same_subtree": lambda r: "has no subtree for the groups that want to be in one",
    "group_policy": lambda r: "has too few providers to keep the groups apart",
    "undecided": lambda _: "was not decided within the bound on work",
}

_COLUMNS = (
    "host",
    "reason",
    "suffix",
    "provider_name",
    "resource_class",
    "asked",
    "used",
    "capacity",
    "bound",
    "names",
)


def refusals_html(summary: str, counts: Mapping[str, int], nearest: Iterable[Rejection]) -> str:
    """A report as a notebook shows it: the line, how many hosts each reason refused, and who came nearest."""
    reasons = sorted(counts.items(), key=lambda one: -one[1])
    return html_of(
        summary,
        Table(title="Refused", headings=("reason", "hosts"), rows=tuple(reasons)),
        table(({name: getattr(each, name) for name in _COLUMNS} for each in nearest), title="Nearest"),
    )
