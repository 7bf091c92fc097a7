"""Groups of instances that want to be together or apart. Pure values."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from cloudcore._values import normalise_uuid, require_integer
from cloudcore.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOVING", "AffinityPolicy", "HostGroup"]

MOVING = ""
"""The root under which members are counted of which nobody knows yet on which host they will be."""


class AffinityPolicy(StrEnum):
    """How instances of one group are placed relative to each other."""

    AFFINITY = "affinity"  # all on one host
    ANTI_AFFINITY = "anti-affinity"  # at most max_per_host on any host
    SOFT_AFFINITY = "soft-affinity"  # together where possible
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"  # apart where possible


def _policy(value: AffinityPolicy | str) -> AffinityPolicy:
    try:
        return AffinityPolicy(value)
    except ValueError as error:
        known = ", ".join(AffinityPolicy)
        raise InvalidRequest(f"policy: {value!r} is none of {known}", field="policy", value=value) from error


def _optional_uuid(value: str | None) -> str | None:
    return None if value is None else normalise_uuid(value, "group", InvalidRequest)


@attrs.frozen(kw_only=True)
class HostGroup:
    """The group that the instances of a request belong to.

    Attributes:
        policy: How its members are placed relative to each other.
        uuid: Identity of the group. With it the database keeps who is a member, and checks hard policies again in the
            transaction that claims, so that they hold among any number of schedulers.
        members: ``{root provider uuid: members}`` on each host, for a group without a uuid.
        max_per_host: For :attr:`AffinityPolicy.ANTI_AFFINITY`: members that one host may hold.
    """

    policy: AffinityPolicy = attrs.field(converter=_policy)
    uuid: str | None = attrs.field(default=None, converter=_optional_uuid)
    members: Mapping[str, int] = attrs.field(factory=dict)
    max_per_host: int = 1

    def __attrs_post_init__(self) -> None:
        require_integer(self.max_per_host, "max_per_host", minimum=1, error=InvalidRequest)

    @property
    def hard(self) -> bool:
        """A placement that breaks the policy is refused, not only disliked."""
        return self.policy in {AffinityPolicy.AFFINITY, AffinityPolicy.ANTI_AFFINITY}

    def refuses(self, root: str, members: Mapping[str, int]) -> str | None:
        """Why *root* may not take one more member while *members* counts those on each host; None if it may."""
        here = members.get(root, 0)
        if self.policy is AffinityPolicy.ANTI_AFFINITY and here >= self.max_per_host:
            return f"anti-affinity: holds {here} of at most {self.max_per_host} members of the group"
        if self.policy is AffinityPolicy.AFFINITY and not here and any(members.values()):
            moving = "a member of the group is moving, and may end on another host; end that move first"
            return f"affinity: {moving if members.get(MOVING) else 'the group is on another host'}"
        return None

    def preference(self, root: str, members: Mapping[str, int]) -> float:
        """How much a soft policy likes *root*: higher is better, 0 for hard policies."""
        if self.policy is AffinityPolicy.SOFT_AFFINITY:
            return float(members.get(root, 0))
        if self.policy is AffinityPolicy.SOFT_ANTI_AFFINITY:
            return -float(members.get(root, 0))
        return 0.0
