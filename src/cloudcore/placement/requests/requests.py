"""What is asked for: groups of resources, and what holds for all of them. Pure values.

Source of the rules: Placement's ``GET /allocation_candidates`` at microversion 1.39.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, Self, cast

import attrs

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.placement.forest.names import require_trait
from cloudcore.placement.forest.values import FrozenDict
from cloudcore.placement.requests.groups import RequestGroup, elements, hashable, refuse
from cloudcore.placement.requests.query import parse_query, write_query

__all__ = ["ResourceRequest"]

GroupPolicy = Literal["none", "isolate"]

_REMEMBERED_LENGTH = 4_000

_SUFFIX = re.compile(r"[a-zA-Z0-9_-]{1,64}\Z")


def _root_required(value: Any) -> frozenset[str]:
    return frozenset(hashable(value, "root_required"))


def _root_forbidden(value: Any) -> frozenset[str]:
    return frozenset(hashable(value, "root_forbidden"))


def _groups(value: Any) -> FrozenDict[str, RequestGroup]:
    if isinstance(value, RequestGroup):
        value = {"": value}
    if not isinstance(value, Mapping):
        raise refuse(f"expected a mapping of suffix to group, got {value!r}", "groups", value)
    groups = {}
    for suffix, group in value.items():
        if not isinstance(suffix, str) or (suffix and not _SUFFIX.match(suffix)):
            raise refuse(f"the suffix {suffix!r} does not match [a-zA-Z0-9_-]{{1,64}}", "groups", suffix)
        if not isinstance(group, RequestGroup | Mapping):
            raise refuse(f"expected a RequestGroup for {suffix!r}, got {group!r}", "groups", group)
        groups[suffix] = group if isinstance(group, RequestGroup) else RequestGroup(group)
    return FrozenDict(groups)


def _subtrees(value: Any) -> tuple[frozenset[str], ...]:
    sets = []
    for element in elements(value, "same_subtree"):
        suffixes = frozenset(hashable(element, "same_subtree"))
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
        if self.group_policy not in (None, "none", "isolate"):  # a tuple: what was given may not be hashable
            raise refuse(f"expected none or isolate, got {self.group_policy!r}", "group_policy", self.group_policy)
        if self.group_policy is None and len(self.groups.keys() - {""}) > 1:
            raise refuse("say none or isolate when there are two or more suffixed groups", "group_policy")
        self._check_subtrees()
        self._check_root()

    def _check_subtrees(self) -> None:
        named: set[str] = set()
        for suffixes in self.same_subtree:
            unknown = sorted(suffixes - (self.groups.keys() - {""}))
            if not suffixes or unknown:
                wrong = f"no group has the suffix {unknown[0]!r}" if unknown else "names no group"
                raise refuse(wrong, "same_subtree", suffixes)
            named |= suffixes
        if not any(group.resources for group in self.groups.values()):
            raise refuse("nothing is asked for: no group has resources", "resources")
        for suffix, group in self.groups.items():
            if not group.resources and suffix not in named:
                raise refuse(
                    "a group without resources must have a suffix that same_subtree names", f"resources{suffix}", suffix
                )

    def _check_root(self) -> None:
        for trait in self.root_required | self.root_forbidden:
            require_trait(trait, "root_required", InvalidRequest)
        both = sorted(self.root_required & self.root_forbidden)
        if both:
            raise refuse(f"{both[0]} is both required and forbidden", "root_required", both[0])

    @classmethod
    def from_query(cls, query: str | Mapping[str, Any] | Iterable[tuple[str, str]]) -> Self:
        """Read the query of ``GET /allocation_candidates`` (microversion 1.39).

        The last thousand texts are remembered, with what they were read as: clouds ask for few flavours, often.

        Args:
            query: The text after ``?``, or its (name, value) pairs, or a mapping of name to value or list of values.

        Raises:
            InvalidRequest: As Placement answers 400; the error names the parameter.
        """
        if cls is ResourceRequest and type(query) is str and len(query) <= _REMEMBERED_LENGTH:
            return cast("Self", _read_text(query))
        return cls(**parse_query(query))

    def to_query(self) -> str:
        """The request in Placement's query language; ``from_query`` of it gives an equal request."""
        return write_query(**attrs.asdict(self, recurse=False))


@lru_cache(maxsize=1000)
def _read_text(query: str) -> ResourceRequest:
    return ResourceRequest(**parse_query(query))
