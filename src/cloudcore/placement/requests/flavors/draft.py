"""A request while it grows out of a flavor's words. Not shared between threads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from cloudcore.placement.forest.names import is_standard_class
from cloudcore.placement.requests.flavors.rules import Unhonoured
from cloudcore.placement.requests.groups import RequestGroup, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Draft", "GroupDraft"]

_GRANULAR = re.compile(r"(resources|trait)([a-zA-Z0-9_-]{1,64})?:(.*)\Z", re.DOTALL)
MAX_GROUPS = 1_000


@attrs.define
class GroupDraft:
    """One group: amounts, zeros included until the end, and traits."""

    resources: dict[str, int] = attrs.field(factory=dict)
    required: set[str] = attrs.field(factory=set)
    forbidden: set[str] = attrs.field(factory=set)

    def finish(self) -> RequestGroup | None:
        """The group without its zeros; None if nothing is left."""
        resources = {name: amount for name, amount in self.resources.items() if amount}
        if not (resources or self.required or self.forbidden):
            return None
        return RequestGroup(resources, sorted(self.required), forbidden=self.forbidden)


@attrs.define
class Draft:
    """Groups by suffix, what holds for the root, and what could not be said."""

    groups: dict[str, GroupDraft] = attrs.field(factory=dict)
    group_policy: str | None = None
    same_subtree: list[frozenset[str]] = attrs.field(factory=list)
    root_required: set[str] = attrs.field(factory=set)
    unhonoured: list[Unhonoured] = attrs.field(factory=list)

    def group(self, suffix: str = "") -> GroupDraft:
        """The group with this suffix, made when it is missing."""
        return self.groups.setdefault(suffix, GroupDraft())

    def outside(self, suffix: str, *, source: str) -> GroupDraft:
        """A new group of something beside the flavor (``ResourceRequest._add_request_group``)."""
        if not suffix or suffix in self.groups:
            raise refuse(f"{source}: the suffix {suffix!r} is empty or taken", "groups", suffix)
        if len(self.groups) >= MAX_GROUPS:
            raise refuse(f"more than {MAX_GROUPS} groups", "groups", suffix)
        return self.group(suffix)

    def asks_for(self, *names: str) -> bool:
        """Whether any group names one of these classes, even with zero (``merged_resources``)."""
        return any(name in group.resources for group in self.groups.values() for name in names)

    @property
    def suffixes(self) -> set[str]:
        """The suffixes of groups that have something to ask for."""
        return {suffix for suffix, group in self.groups.items() if suffix and group.finish()}

    def leave_out(self, source: str, name: str, value: object, reason: str) -> None:
        """Note a word that the request does not carry."""
        self.unhonoured.append(Unhonoured(source, name, str(value), reason))

    def read_granular(self, source: str, key: str, value: str, suffix: str | None = None) -> bool:
        """Read ``resources[S]:CLASS`` or ``trait[S]:NAME`` into its group, or into that of *suffix*; False if neither.

        Source: ``ResourceRequest._process_extra_specs``, ``RequestGroup.add_resource`` and ``add_trait``; what these
        drop with a warning in a log is left out by name here.
        """
        match = _GRANULAR.match(key)
        if match is None:
            return False
        kind, named, name = match.groups()
        suffix = (named or "") if suffix is None else suffix
        if kind == "trait":
            self._add_trait(source, key, value, name, suffix)
        else:
            self._add_resource(source, key, value, name, suffix)
        return True

    def _add_trait(self, source: str, key: str, value: str, name: str, suffix: str) -> None:
        group = self.group(suffix)
        if value == "required":
            group.required.add(name)
        elif value == "forbidden":
            group.forbidden.add(name)
        else:
            self.leave_out(source, key, value, "expected required or forbidden")

    def _add_resource(self, source: str, key: str, value: str, name: str, suffix: str) -> None:
        group = self.group(suffix)
        if not (name.startswith("CUSTOM_") or is_standard_class(name)):
            self.leave_out(source, key, value, "no resource class of this name")
        elif not re.fullmatch(r"\s*\+?[0-9]{1,18}\s*", value, re.ASCII):
            self.leave_out(source, key, value, "expected a whole number, 0 or more")
        else:
            group.resources[name] = int(value)

    def finish(
        self, member_of: Iterable[Iterable[str] | str], not_member_of: Iterable[str], in_tree: str | None
    ) -> Mapping[str, RequestGroup]:
        """The groups that ask for something; the aggregates and the tree go to the one without a suffix."""
        finished = {suffix: group.finish() for suffix, group in self.groups.items()}
        groups = {suffix: group for suffix, group in finished.items() if group is not None}
        sets, without = list(member_of), list(not_member_of)
        if sets or without or in_tree is not None:
            plain = groups.get("") or RequestGroup()
            groups[""] = attrs.evolve(plain, member_of=sets, not_member_of=without, in_tree=in_tree)
        return groups
