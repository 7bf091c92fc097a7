"""Groups of instances in the database: the policy is checked where the claim is granted, not only where it is planned.

Two schedulers may each see a host without a member and each place one there. So the transaction that claims for a
member locks the group first and looks at what the other members hold by now. Where a member is, its allocations say
(its own, and during a move those of its migration); nothing else has to be kept in step.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cloudcore._failpoints import failpoint
from cloudcore.errors import GroupViolation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloudcore.placement.hosts import HostGroup
    from cloudcore.placement.ledger_session import Session

__all__ = ["count_members", "join", "lock_group"]

_HOLDERS = """
SELECT DISTINCT held.member, COALESCE(provider.root_id, provider.id) FROM (
    SELECT member.instance AS member, consumer.id AS consumer_id FROM host_group_members member
    JOIN consumers consumer ON consumer.uuid = member.instance WHERE member.group_uuid = ?
    UNION ALL
    SELECT member.instance, consumer.id FROM host_group_members member
    JOIN moves ON moves.instance = member.instance AND moves.state IN ('held', 'awaiting_proof')
    JOIN consumers consumer ON consumer.uuid = moves.migration WHERE member.group_uuid = ?
) held
JOIN allocations ON allocations.consumer_id = held.consumer_id
JOIN resource_providers provider ON provider.id = allocations.provider_id
"""


def lock_group(session: Session, group: HostGroup) -> None:
    """Take the group for this transaction; one that is new is recorded."""
    if group.uuid is None:
        return
    failpoint("ledger.group.lock")
    session.run("INSERT {ignore} INTO host_groups (uuid) VALUES (?) {nothing}", (group.uuid,))
    session.all("SELECT uuid FROM host_groups WHERE uuid = ? {lock}", (group.uuid,))


def count_members(session: Session, group: HostGroup, *, without: Iterable[str] = ()) -> Counter[str]:
    """How many members, those of *without* aside, hold something in the tree of each root provider (uuid)."""
    if group.uuid is None:
        return Counter(group.members)
    aside = set(without)
    rows = [row for row in session.all(_HOLDERS, (group.uuid, group.uuid)) if row[0] not in aside]
    names = session.provider_uuids({row[1] for row in rows})
    return Counter(names[row[1]] for row in rows)


def join(session: Session, group: HostGroup, instance: str, root: str, members: Counter[str]) -> None:
    """Record *instance* as a member on its way to *root*, and count it in *members*.

    Raises:
        GroupViolation: The policy is a hard one, and members are where it allows none, or not where it wants them.
    """
    reason = group.refuses(root, members) if group.hard else None
    if reason is not None:
        raise GroupViolation(f"host {root}: {reason}", root=root, rule=str(group.policy))
    if group.uuid is not None:
        failpoint("ledger.group.join")
        session.run(
            "INSERT {ignore} INTO host_group_members (group_uuid, instance) VALUES (?, ?) {nothing}",
            (group.uuid, instance),
        )
    members[root] += 1
