"""A request made ready for the search: slots in the order in which they are filled. Pure.

A slot is what one provider gives: a suffixed group is one slot, the group without a suffix is one slot per class.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.placement.requests.groups import RequestGroup
    from cloudcore.placement.requests.requests import ResourceRequest

__all__ = ["CompiledRequest", "Slot", "compile_request"]


@attrs.frozen(kw_only=True)
class Slot:
    """What one provider gives to one group.

    Attributes:
        suffix: Of the group; empty for the group that may be spread.
        group: The group.
        resources: Classes and amounts that this one provider gives.
        subtrees: The sets of ``same_subtree`` that the group is in, by index.
        twin: The last slot before this one that asks for exactly the same, None when there is none.
        conditions: What it asks of a provider besides amounts and ``in_tree``: equal for slots that ask the same; None
            when it asks nothing.
    """

    suffix: str
    group: RequestGroup
    resources: tuple[tuple[str, int], ...]
    subtrees: tuple[int, ...] = ()
    twin: int | None = None
    conditions: tuple[Any, ...] | None = attrs.field(init=False)

    @conditions.default
    def _conditions(self) -> tuple[Any, ...] | None:
        group = self.group
        required = group.required if self.suffix else ()
        asked = (required, group.forbidden, group.member_of, group.not_member_of)
        return (bool(self.suffix), *asked) if any(asked) else None


@attrs.frozen(kw_only=True)
class CompiledRequest:
    """A request with everything that does not depend on the forest worked out.

    Attributes:
        request: What was asked.
        slots: The group without a suffix first, class by class; then the suffixed groups as given.
        shared: Classes that more than one slot asks for, with the sum over the slots.
        rivals: For each of these, the slots that ask for it, and their conditions; None when one of them has none.
        isolated: Slots of which no two may be on one provider.
        collective: Slots of the group without a suffix, when it requires traits.
    """

    request: ResourceRequest
    slots: tuple[Slot, ...]
    shared: dict[str, int]
    rivals: tuple[tuple[str, tuple[int, ...], tuple[Any, ...] | None], ...]
    isolated: tuple[int, ...]
    collective: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether any combination of what each slot may take is a candidate."""
        return not (self.shared or self.isolated or self.collective or self.request.same_subtree)


def compile_request(request: ResourceRequest) -> CompiledRequest:
    """Work out the slots of *request*."""
    return _compile(request, tuple((suffix, tuple(group.resources)) for suffix, group in request.groups.items()))


@lru_cache(maxsize=512)
def _compile(request: ResourceRequest, _: object) -> CompiledRequest:
    """As given: requests that are equal but for the order of their groups and classes give candidates in theirs."""
    slots: list[Slot] = []
    spread = request.groups.get("")
    if spread is not None:
        slots += [Slot(suffix="", group=spread, resources=(item,)) for item in spread.resources.items()]
    for suffix, group in request.groups.items():
        if suffix:
            subtrees = tuple(i for i, suffixes in enumerate(request.same_subtree) if suffix in suffixes)
            resources = tuple(group.resources.items())
            slots.append(
                Slot(
                    suffix=suffix,
                    group=group,
                    resources=resources,
                    subtrees=subtrees,
                    twin=_twin(slots, group, subtrees),
                )
            )
    suffixed = tuple(i for i, slot in enumerate(slots) if slot.suffix)
    isolated = suffixed if request.group_policy == "isolate" and len(suffixed) > 1 else ()
    collective = tuple(i for i, slot in enumerate(slots) if not slot.suffix and slot.group.required)
    shared = _shared(slots)
    return CompiledRequest(
        request=request,
        slots=tuple(slots),
        shared=shared,
        rivals=tuple((name, *_rivals(slots, name)) for name in shared),
        isolated=isolated,
        collective=collective,
    )


def _twin(slots: Sequence[Slot], group: RequestGroup, subtrees: tuple[int, ...]) -> int | None:
    for i in range(len(slots) - 1, -1, -1):
        if slots[i].suffix and slots[i].group == group and slots[i].subtrees == subtrees:
            return i
    return None


def _rivals(slots: Sequence[Slot], name: str) -> tuple[tuple[int, ...], tuple[Any, ...] | None]:
    asking = tuple(i for i, slot in enumerate(slots) if any(c == name for c, _ in slot.resources))
    conditions = tuple(slots[i].conditions for i in asking)
    return asking, None if None in conditions else conditions


def _shared(slots: Sequence[Slot]) -> dict[str, int]:
    asked: dict[str, list[int]] = {}
    for slot in slots:
        for name, amount in slot.resources:
            asked.setdefault(name, []).append(amount)
    return {name: sum(amounts) for name, amounts in asked.items() if len(amounts) > 1}
