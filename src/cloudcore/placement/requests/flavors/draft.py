"""A request while it grows out of a flavor's words. Not shared between threads."""

from __future__ import annotations

import re
from typing import Any

import attrs

from cloudcore.placement.forest.names import is_standard_class
from cloudcore.placement.requests.flavors.rules import Unhonoured
from cloudcore.placement.requests.groups import RequestGroup, elements, refuse

__all__ = ["Draft", "GroupDraft"]

_GRANULAR = re.compile(r"(resources|trait)([a-zA-Z0-9_-]{1,64})?:(.*)\Z", re.DOTALL)
MAX_GROUPS = 1_000
_OF_THE_HOST = frozenset({"VCPU", "PCPU", "MEMORY_MB", "DISK_GB"})


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

    def take_traits(self, other: GroupDraft, *, but: str | None = None) -> None:
        """Take the traits of *other* over, except those that begin with *but*."""
        for own, given in ((self.required, other.required), (self.forbidden, other.forbidden)):
            taken = {trait for trait in given if but is None or not trait.startswith(but)}
            own |= taken
            given -= taken


@attrs.define
class Draft:
    """Groups by suffix, what holds for the root, and what could not be said.

    Attributes:
        traits_at_root: Whether processors and memory are below the root, which has the traits of the host.
        host: Traits of the host as a whole.
        cells: Suffixes of the groups that are cells of the guest.
    """

    traits_at_root: bool = False
    host: GroupDraft = attrs.field(factory=GroupDraft)
    cells: list[str] = attrs.field(factory=list)
    groups: dict[str, GroupDraft] = attrs.field(factory=dict)
    group_policy: str | None = None
    same_subtree: list[frozenset[str]] = attrs.field(factory=list)
    root_required: set[str] = attrs.field(factory=set)
    root_forbidden: set[str] = attrs.field(factory=set)
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

    def tell_hosts_traits(self) -> None:
        """Take the traits that flavor and image ask for without a suffix for the host's.

        In Nova's trees the root has the processors, so the group without a suffix uses the root and its traits may
        stand there. Where the root has none, that group may use a shared disk only, or nothing: such traits are of the
        provider, not of what it gives, and belong into ``root_required`` (Placement's specification "Getting On The
        Nested Magic Train 1"). They stay with a class that the group asks for by name (``resources:VGPU`` and the trait
        of a GPU), and ``STORAGE_*`` stays with the disk.
        """
        plain = self.groups.get("", GroupDraft())
        by_name = any(plain.resources[name] for name in plain.resources.keys() - _OF_THE_HOST)
        if self.traits_at_root and not by_name:
            self.host.take_traits(plain, but="STORAGE_")

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

    def finish(self, member_of: Any, not_member_of: Any, in_tree: str | None) -> dict[str, RequestGroup]:
        """The groups that ask for something, with the conditions of the host; those of the root stay in the draft."""
        if self.traits_at_root:
            if not any(self.group().resources.values()):
                self.host.take_traits(self.groups.pop(""))
            self.root_required |= self.host.required
            self.root_forbidden |= self.host.forbidden
        else:
            self.group().take_traits(self.host)
        finished = {suffix: group.finish() for suffix, group in self.groups.items()}
        groups = {suffix: group for suffix, group in finished.items() if group is not None}
        self._narrow(groups, elements(member_of, "member_of"), elements(not_member_of, "not_member_of"), in_tree)
        return groups

    def _narrow(
        self, groups: dict[str, RequestGroup], sets: list[Any], without: list[Any], in_tree: str | None
    ) -> None:
        """Add the aggregates and the tree: where the guest has cells, to these and to the host above them.

        The host is a group without resources there: the providers of the cells are in no aggregate.
        """
        plain = groups.get("")
        if self.cells:
            if in_tree is not None:
                groups |= {suffix: attrs.evolve(groups[suffix], in_tree=in_tree) for suffix in self.cells}
            if sets:
                self.outside("host", source="the guest's NUMA cells")
                groups["host"] = RequestGroup(member_of=sets)
                self.same_subtree.append(frozenset({"host", *self.cells}))
            if without and plain is None:
                reason = "the guest takes nothing of the host beside its cells, which are in no aggregate"
                self.leave_out("request", "not_member_of", ", ".join(map(str, without)), reason)
            elif without and plain is not None:
                groups[""] = attrs.evolve(plain, not_member_of=without)
        elif sets or without or in_tree is not None:
            plain = plain or RequestGroup()
            groups[""] = attrs.evolve(plain, member_of=sets, not_member_of=without, in_tree=in_tree)
