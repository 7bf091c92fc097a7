"""One group of a request: resources that belong together, with their conditions. Pure values.

Source of the rules: Placement's ``GET /allocation_candidates`` at microversion 1.39.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.placement.forest.names import require_resource_class, require_trait
from cloudcore.placement.forest.values import FrozenDict

__all__ = ["RequestGroup", "elements", "hashable", "refuse"]


def refuse(message: str, field: str, value: object = None) -> InvalidRequest:
    """The error of a malformed field."""
    return InvalidRequest(f"{field}: {message}", field=field, value=value)


def elements(value: Any, field: str) -> list[Any]:
    """The elements of a collection; one text is a mistake that would else be read letter by letter."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise refuse(f"expected a collection, got {value!r}", field, value)
    return list(value)


def _resources(value: Any) -> FrozenDict[str, int]:
    if isinstance(value, FrozenDict):
        return value
    if not isinstance(value, Mapping):
        raise refuse(f"expected a mapping of resource class to amount, got {value!r}", "resources", value)
    return FrozenDict(value)


def _trait_sets(value: Any) -> tuple[frozenset[str], ...]:
    """A trait stands for itself, a collection for "one of these"."""
    sets = []
    for element in elements(value, "required"):
        alternatives = frozenset([element] if isinstance(element, str) else hashable(element, "required"))
        if alternatives not in sets:
            sets.append(alternatives)
    return tuple(sets)


def _aggregate_sets(value: Any) -> tuple[frozenset[str], ...]:
    sets = []
    for element in elements(value, "member_of"):
        names = [element] if isinstance(element, str) else elements(element, "member_of")
        alternatives = frozenset(normalise_uuid(name, "member_of", InvalidRequest) for name in names)
        if alternatives not in sets:
            sets.append(alternatives)
    return tuple(sets)


def hashable(value: Any, field: str) -> list[str]:
    """The elements of a collection of texts."""
    found = elements(value, field)
    for element in found:
        if not isinstance(element, str):
            raise refuse(f"expected text, got {element!r}", field, element)
    return found


def _forbidden(value: Any) -> frozenset[str]:
    return frozenset(hashable(value, "forbidden"))


def _aggregates(value: Any) -> frozenset[str]:
    field = "not_member_of"
    return frozenset(normalise_uuid(name, field, InvalidRequest) for name in elements(value, field))


def _optional_uuid(value: Any) -> str | None:
    return None if value is None else normalise_uuid(value, "in_tree", InvalidRequest)


@attrs.frozen(cache_hash=True)
class RequestGroup:
    """Resources that belong together, with their conditions.

    The group without a suffix may be spread over the providers of one tree and the pools shared with it; a group with a
    suffix comes from one provider. Conditions of the group without a suffix hold for what it *uses*: the required
    traits collectively, the forbidden ones one by one, ``member_of`` for a provider or its root.

    Attributes:
        resources: Resource class → amount, 1 to 2³¹ - 1. Empty only for a suffixed group that ``same_subtree`` names
            and that asks for something else.
        required: Sets of traits; of each, one must be there. A trait given as text stands for a set of its own.
        forbidden: Traits that must not be there.
        member_of: Sets of aggregates (uuids); of each, one must be there.
        not_member_of: Aggregates that must not be there.
        in_tree: The uuid of any provider of the tree that it must come from.

    Raises:
        InvalidRequest: A field is malformed or contradicts another; the error names it.
    """

    resources: FrozenDict[str, int] = attrs.field(factory=FrozenDict, converter=_resources)
    required: tuple[frozenset[str], ...] = attrs.field(default=(), converter=_trait_sets)
    forbidden: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, converter=_forbidden)
    member_of: tuple[frozenset[str], ...] = attrs.field(default=(), kw_only=True, converter=_aggregate_sets)
    not_member_of: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, converter=_aggregates)
    in_tree: str | None = attrs.field(default=None, kw_only=True, converter=_optional_uuid)

    def __attrs_post_init__(self) -> None:
        for resource_class, amount in self.resources.items():
            require_resource_class(resource_class, "resources", InvalidRequest)
            require_integer(amount, f"resources {resource_class}", minimum=1, error=InvalidRequest)
        for alternatives in self.required:
            if not alternatives:
                raise refuse("an empty set of traits can never be met", "required", alternatives)
            for trait in alternatives:
                require_trait(trait, "required", InvalidRequest)
            if alternatives <= self.forbidden:
                raise refuse(f"{_either(alternatives)} is both required and forbidden", "required", alternatives)
        for trait in self.forbidden:
            require_trait(trait, "forbidden", InvalidRequest)
        if not all(self.member_of):
            raise refuse("an empty set of aggregates can never be met", "member_of")


def _either(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))
