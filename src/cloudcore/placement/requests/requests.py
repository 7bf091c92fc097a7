"""What is asked for: groups of resources, and what holds for all of them. Pure values.

Source of the rules: Placement's ``GET /allocation_candidates`` at microversion 1.39.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, Self, cast

import attrs

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest, UnhonouredRequest
from cloudcore.placement.forest.names import require_trait
from cloudcore.placement.forest.values import FrozenDict
from cloudcore.placement.requests.flavors.rules import FlavorRules, Unhonoured
from cloudcore.placement.requests.flavors.translation import translate
from cloudcore.placement.requests.groups import RequestGroup, elements, hashable, refuse
from cloudcore.placement.requests.microversions import NEWEST, read_microversion
from cloudcore.placement.requests.query import parse_query, write_query

__all__ = ["ResourceRequest", "read_request"]

GroupPolicy = Literal["none", "isolate"]

_REMEMBERED_LENGTH = 4_000
_NOTHING = RequestGroup()

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
                raise refuse(self._without_resources(suffix), f"resources{suffix}", suffix)
            if not group.resources and group == _NOTHING:
                raise refuse("a group that asks for nothing: no query can say it", f"resources{suffix}", suffix)

    def _without_resources(self, suffix: str) -> str:
        """Why a group that asks for nothing is refused: mostly a suffix was forgotten, or is another one."""
        group = self.groups[suffix]
        said = {
            "required": group.required or group.forbidden,
            "member_of": group.member_of or group.not_member_of,
            "in_tree": group.in_tree,
        }
        words = [name for name, value in said.items() if value]
        others = [other for other in self.groups if self.groups[other].resources]
        hint = ", or ".join(f"{name}{other} beside resources{other}" for name in words for other in others[:3])
        return (
            "a group without resources must have a suffix that same_subtree names"
            f"{f'; {words[0]}{suffix} stands alone: did you mean {hint}?' if hint else ''}"
        )

    def _check_root(self) -> None:
        for trait in self.root_required | self.root_forbidden:
            require_trait(trait, "root_required", InvalidRequest)
        both = sorted(self.root_required & self.root_forbidden)
        if both:
            raise refuse(f"{both[0]} is both required and forbidden", "root_required", both[0])

    @classmethod
    def from_query(
        cls, query: str | Mapping[str, Any] | Iterable[tuple[str, str]], *, microversion: str = "1.39"
    ) -> Self:
        """Read the query of ``GET /allocation_candidates``.

        The last thousand texts are remembered, with what they were read as: clouds ask for few flavours, often.

        Args:
            query: The text after ``?``, or its (name, value) pairs, or a mapping of name to value or list of values.
            microversion: ``1.10`` to ``1.39``: what came later is unknown, as a client of that time is told. Only the
                words: the answer is that of 1.39.

        Raises:
            InvalidRequest: As Placement answers 400; the error names the parameter.
        """
        version = NEWEST if microversion == "1.39" else read_microversion(microversion)
        if cls is ResourceRequest and type(query) is str and len(query) <= _REMEMBERED_LENGTH:
            return cast("Self", _read_text(query, version))
        return cls(**parse_query(query, version))

    @classmethod
    def from_flavor(
        cls,
        flavor: Any,
        image: Mapping[str, Any] | None = None,
        ports: Iterable[Any] = (),
        *,
        rules: FlavorRules | None = None,
        boot_from_volume: bool = False,
        multiattach: bool = False,
        member_of: Iterable[Iterable[str] | str] = (),
        not_member_of: Iterable[str] = (),
        in_tree: str | None = None,
        limit: int | None = None,
        on_unhonoured: Callable[[Unhonoured], object] | None = None,
    ) -> Self:
        """Make the request of a server by the rules of Nova 34.

        ========================================================  =====================================================
        word                                                      what becomes of it
        ========================================================  =====================================================
        vcpus, ram                                                ``VCPU``, ``MEMORY_MB``, unless extra specs say so
        disk, ephemeral, swap                                     ``DISK_GB``; swap in whole GiB, rounded up
        ``resources[S]:CLASS``, ``trait[S]:NAME``                 the group *S*; 0 takes a class out
        ``group_policy``                                          as it is; ``none`` where groups come from outside
        ``hw:cpu_policy``, masks, ``hw:emulator_threads_policy``  ``PCPU`` instead of ``VCPU``, one more for emulators
        ``hw:cpu_thread_policy``                                  ``HW_CPU_HYPERTHREADING``
        ``hw:numa_nodes``, ``hw:numa_cpus.N``, ``hw:numa_mem.N``  groups ``numa0``, … (``rules.numa``)
        ``hw:mem_page_size``                                      the class of such memory (``rules.page_class``)
        ``hw:mem_encryption``                                     ``MEM_ENCRYPTION_CONTEXT`` and the processor's trait
        ``hw:pmem``                                               ``CUSTOM_PMEM_NAMESPACE_*``
        ``pci_passthrough:alias``                                 a group for each device (``rules.aliases``)
        ``hw:pci_numa_affinity_policy``                           ``socket``: a trait; ``required``: ``same_subtree``
        ``accel:device_profile``                                  the profile's groups (``rules.device_profiles``)
        ``hw:tpm_*``, ``os:secure_boot``, ``hw:maxphysaddr_*``    ``COMPUTE_SECURITY_*``, ``COMPUTE_ADDRESS_SPACE_*``
        image: ``trait:NAME``, ``hw_*_bus``, ``hw_*_model``, …    required traits, of the root where hosts carry them
        ports: ``resource_request``, ``device_profile``           their groups and ``same_subtree``
        ========================================================  =====================================================

        Hosts that are switched off (``COMPUTE_STATUS_DISABLED``) are left out always, as in Nova. What Nova takes from
        its databases comes as an argument: availability zones, tenants' and isolated aggregates and routed networks
        are *member_of* and *not_member_of*. Settings of the guest that any host can give it ask for nothing. Dedicated
        processors without ``rules.numa`` may come from several NUMA cells.

        Args:
            flavor: As Nova's API gives it, or a mapping or an object with Nova's own field names.
            image: A Glance image; its properties beside the other fields, or below ``properties``.
            ports: Neutron ports with their ``resource_request``.
            rules: What the deployment decides once.
            boot_from_volume: The root disk is a volume, so it takes no ``DISK_GB``.
            multiattach: A volume to attach is shared: the host must offer ``COMPUTE_VOLUME_MULTI_ATTACH``.
            member_of: Sets of aggregates, of each of which the host must be a member.
            not_member_of: Aggregates that it must not be in.
            in_tree: A provider of the only tree that may serve.
            limit: As in :class:`ResourceRequest`.
            on_unhonoured: Called with each word that the request cannot carry. Without it such a word is refused.

        Raises:
            UnhonouredRequest: A word cannot be carried; the error lists all.
            InvalidRequest: A word is malformed or contradicts another, or a policy or NUMA cells tell more than 65,536
                processors apart; the error names it.
        """
        arguments, unhonoured = translate(
            flavor,
            image,
            ports,
            rules=FlavorRules() if rules is None else rules,
            boot_from_volume=boot_from_volume,
            multiattach=multiattach,
            member_of=member_of,
            not_member_of=not_member_of,
            in_tree=in_tree,
        )
        if unhonoured and on_unhonoured is None:
            said = "; ".join(map(str, unhonoured))
            raise UnhonouredRequest(
                f"the request cannot carry: {said}", field=unhonoured[0].name, unhonoured=unhonoured
            )
        request = cls(limit=limit, **arguments)
        for word in unhonoured:
            assert on_unhonoured is not None
            on_unhonoured(word)
        return request

    def to_query(self) -> str:
        """The request in Placement's query language; ``from_query`` of it gives an equal request."""
        return write_query(**attrs.asdict(self, recurse=False))


@lru_cache(maxsize=1000)
def _read_text(query: str, version: tuple[int, int]) -> ResourceRequest:
    return ResourceRequest(**parse_query(query, version))


def read_request(request: ResourceRequest | str) -> ResourceRequest:
    """The request that a caller gave, or wrote in Placement's query language.

    Raises:
        InvalidRequest: It is neither, or malformed.
    """
    if isinstance(request, ResourceRequest):
        return request
    if isinstance(request, str):
        return ResourceRequest.from_query(request)
    raise InvalidRequest(
        "request: expected a query such as 'resources=VCPU:1', or a ResourceRequest, "
        f"such as ResourceRequest({{'': {{'VCPU': 1}}}}); got {request!r}",
        field="request",
        value=request,
    )
