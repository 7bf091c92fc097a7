"""What is asked for: groups of resources with their conditions. Pure values.

Source of the rules: Placement's ``GET /allocation_candidates`` at microversion 1.39.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, Self, cast

import attrs

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.placement.forest.names import require_resource_class, require_trait
from cloudcore.placement.forest.values import FrozenDict

__all__ = ["RequestGroup", "ResourceRequest"]

GroupPolicy = Literal["none", "isolate"]

_REMEMBERED_LENGTH = 4_000

_SUFFIX = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")


def _refuse(message: str, field: str, value: object = None) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", field=field, value=value)


def _elements(value: Any, field: str) -> list[Any]:
    """The elements of a collection; one text is a mistake that would else be read letter by letter."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _refuse(f"expected a collection, got {value!r}", field, value)
    return list(value)


def _resources(value: Any) -> FrozenDict[str, int]:
    if isinstance(value, FrozenDict):
        return value
    if not isinstance(value, Mapping):
        raise _refuse(f"expected a mapping of resource class to amount, got {value!r}", "resources", value)
    return FrozenDict(value)


def _trait_sets(value: Any) -> tuple[frozenset[str], ...]:
    """A trait stands for itself, a collection for "one of these"."""
    sets = []
    for element in _elements(value, "required"):
        alternatives = frozenset([element] if isinstance(element, str) else _hashable(element, "required"))
        if alternatives not in sets:
            sets.append(alternatives)
    return tuple(sets)


def _aggregate_sets(value: Any) -> tuple[frozenset[str], ...]:
    sets = []
    for element in _elements(value, "member_of"):
        names = [element] if isinstance(element, str) else _elements(element, "member_of")
        alternatives = frozenset(normalise_uuid(name, "member_of", InvalidRequest) for name in names)
        if alternatives not in sets:
            sets.append(alternatives)
    return tuple(sets)


def _hashable(value: Any, field: str) -> list[str]:
    elements = _elements(value, field)
    for element in elements:
        if not isinstance(element, str):
            raise _refuse(f"expected text, got {element!r}", field, element)
    return elements


def _forbidden(value: Any) -> frozenset[str]:
    return frozenset(_hashable(value, "forbidden"))


def _root_required(value: Any) -> frozenset[str]:
    return frozenset(_hashable(value, "root_required"))


def _root_forbidden(value: Any) -> frozenset[str]:
    return frozenset(_hashable(value, "root_forbidden"))


def _aggregates(value: Any) -> frozenset[str]:
    field = "not_member_of"
    return frozenset(normalise_uuid(name, field, InvalidRequest) for name in _elements(value, field))


def _optional_uuid(value: Any) -> str | None:
    return None if value is None else normalise_uuid(value, "in_tree", InvalidRequest)


@attrs.frozen(cache_hash=True)
class RequestGroup:
    """Resources that belong together, with their conditions.

    The group without a suffix may be spread over the providers of one tree and the pools shared with it; a group with a
    suffix comes from one provider. Conditions of the group without a suffix hold for what it *uses*: the required
    traits collectively, the forbidden ones one by one, ``member_of`` for a provider or its root.

    Attributes:
        resources: Resource class → amount, 1 to 2³¹ - 1. Empty only for a suffixed group named in ``same_subtree``.
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
                raise _refuse("an empty set of traits can never be met", "required", alternatives)
            for trait in alternatives:
                require_trait(trait, "required", InvalidRequest)
            if alternatives <= self.forbidden:
                raise _refuse(f"{_either(alternatives)} is both required and forbidden", "required", alternatives)
        for trait in self.forbidden:
            require_trait(trait, "forbidden", InvalidRequest)
        if not all(self.member_of):
            raise _refuse("an empty set of aggregates can never be met", "member_of")


def _either(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))


def _groups(value: Any) -> FrozenDict[str, RequestGroup]:
    if isinstance(value, RequestGroup):
        value = {"": value}
    if not isinstance(value, Mapping):
        raise _refuse(f"expected a mapping of suffix to group, got {value!r}", "groups", value)
    groups = {}
    for suffix, group in value.items():
        if not isinstance(suffix, str) or (suffix and not _SUFFIX.match(suffix)):
            raise _refuse(f"the suffix {suffix!r} does not match [a-zA-Z0-9_-]{{1,64}}", "groups", suffix)
        if not isinstance(group, RequestGroup | Mapping):
            raise _refuse(f"expected a RequestGroup for {suffix!r}, got {group!r}", "groups", group)
        groups[suffix] = group if isinstance(group, RequestGroup) else RequestGroup(group)
    return FrozenDict(groups)


def _subtrees(value: Any) -> tuple[frozenset[str], ...]:
    sets = []
    for element in _elements(value, "same_subtree"):
        suffixes = frozenset(_hashable(element, "same_subtree"))
        if suffixes not in sets:
            sets.append(suffixes)
    return tuple(sets)


@attrs.frozen(cache_hash=True)
class ResourceRequest:
    """A whole request: groups by suffix, and what holds for all of them.

    A plain mapping of amounts may stand for a group: ``ResourceRequest({"": {"VCPU": 2, "MEMORY_MB": 2048}})``.
    :meth:`from_query` reads Placement's query language. Immutable and hashable; may be shared between threads.

    Attributes:
        groups: Suffix → group; the empty suffix is the group that may be spread.
        limit: The number of candidates after which the search ends; None for all.
        group_policy: ``"isolate"``: no two suffixed groups on one provider; ``"none"``: they may share. Must be said
            when there are two or more.
        same_subtree: Sets of suffixes; the providers of each set must lie below (or be) one of them.
        root_required: Traits that the root of the tree must carry.
        root_forbidden: Traits that the root must not carry.

    Raises:
        InvalidRequest: A field is malformed or contradicts another; the error names it.
    """

    groups: FrozenDict[str, RequestGroup] = attrs.field(converter=_groups)
    limit: int | None = None
    group_policy: GroupPolicy | None = attrs.field(default=None, kw_only=True)
    same_subtree: tuple[frozenset[str], ...] = attrs.field(default=(), kw_only=True, converter=_subtrees)
    root_required: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, converter=_root_required)
    root_forbidden: frozenset[str] = attrs.field(default=frozenset(), kw_only=True, converter=_root_forbidden)

    def __attrs_post_init__(self) -> None:
        if self.limit is not None:
            require_integer(self.limit, "limit", minimum=1, maximum=2**63 - 1, error=InvalidRequest)
        if self.group_policy not in {None, "none", "isolate"}:
            raise _refuse(f"expected none or isolate, got {self.group_policy!r}", "group_policy", self.group_policy)
        if self.group_policy is None and len(self.groups.keys() - {""}) > 1:
            raise _refuse("say none or isolate when there are two or more suffixed groups", "group_policy")
        self._check_subtrees()
        self._check_root()

    def _check_subtrees(self) -> None:
        named: set[str] = set()
        for suffixes in self.same_subtree:
            unknown = sorted(suffixes - (self.groups.keys() - {""}))
            if not suffixes or unknown:
                wrong = f"no group has the suffix {unknown[0]!r}" if unknown else "names no group"
                raise _refuse(wrong, "same_subtree", suffixes)
            named |= suffixes
        if not any(group.resources for group in self.groups.values()):
            raise _refuse("nothing is asked for: no group has resources", "resources")
        for suffix, group in self.groups.items():
            if not group.resources and suffix not in named:
                raise _refuse(
                    "a group without resources must have a suffix that same_subtree names", f"resources{suffix}", suffix
                )

    def _check_root(self) -> None:
        for trait in self.root_required | self.root_forbidden:
            require_trait(trait, "root_required", InvalidRequest)
        both = sorted(self.root_required & self.root_forbidden)
        if both:
            raise _refuse(f"{both[0]} is both required and forbidden", "root_required", both[0])

    @classmethod
    def from_query(cls, query: str | Mapping[str, Any] | Iterable[tuple[str, str]]) -> Self:
        """Read the query of ``GET /allocation_candidates`` (microversion 1.39).

        The last thousand texts are remembered, with what they were read as: clouds ask for few flavours, often.

        Args:
            query: The text after ``?``, or its (name, value) pairs, or a mapping of name to value or list of values.

        Raises:
            InvalidRequest: As Placement answers 400; the error names the parameter.
        """
        from cloudcore.placement.requests.query import parse_query

        if cls is ResourceRequest and type(query) is str and len(query) <= _REMEMBERED_LENGTH:
            return cast("Self", _read_text(query))
        return cls(**parse_query(query))

    def to_query(self) -> str:
        """The request in Placement's query language; ``from_query`` of it gives an equal request."""
        from cloudcore.placement.requests.query import write_query

        return write_query(self)


@lru_cache(maxsize=1000)
def _read_text(query: str) -> ResourceRequest:
    from cloudcore.placement.requests.query import parse_query

    return ResourceRequest(**parse_query(query))
