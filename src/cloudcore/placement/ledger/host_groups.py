"""Groups of instances in the database: the policy is checked where the claim is granted, not only where it is planned.

Two schedulers may each see a host without a member and each place one there. So the transaction that claims for a
member holds the group's row first and looks at what the other members hold by now. Where a member is, its allocations
say (its own, and during a move those of its migration); nothing else has to be kept in step.

The group's row may be forgotten when no member is left. So whoever waited for it may find nothing, and records it
again: one of several does, the others wait for that one. And whoever forgets members holds the row first, and looks
only then: nobody is joining meanwhile.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from cloudcore._failpoints import failpoint
from cloudcore.database.dialects import tells_other_nodes
from cloudcore.errors import DatabaseBusy, GroupViolation, InvalidRequest
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.rules.groups import MOVING, AffinityPolicy, HostGroup

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database

__all__ = ["count_members", "forget_groups", "group_of", "hosts_of", "join", "keeping_policies", "lock_group"]

_HOLDERS = """
SELECT DISTINCT held.member, COALESCE(provider.root_id, provider.id), held.source FROM (
    SELECT member.instance AS member, consumer.id AS consumer_id, 0 AS source FROM host_group_members member
    JOIN consumers consumer ON consumer.uuid = member.instance WHERE member.group_uuid = ?
    UNION ALL
    SELECT member.instance, consumer.id, 1 FROM host_group_members member
    JOIN moves ON moves.instance = member.instance AND moves.state IN ('held', 'awaiting_proof')
    JOIN consumers consumer ON consumer.uuid = moves.migration WHERE member.group_uuid = ?
) held
JOIN allocations ON allocations.consumer_id = held.consumer_id
JOIN resource_providers provider ON provider.id = allocations.provider_id
"""


_GROUP = "SELECT policy, max_per_host FROM host_groups WHERE uuid = ?"
_LOCK = "SELECT policy, max_per_host, {tells} FROM host_groups WHERE uuid = ? FOR UPDATE"
_HOLD = "UPDATE host_groups SET version = version + 1 WHERE uuid = ?"
_GROUPS_OF = """
SELECT instance, host_groups.uuid, policy, max_per_host FROM host_groups
JOIN host_group_members ON group_uuid = host_groups.uuid WHERE instance IN {marks}
"""
_HELD_BY = """
SELECT DISTINCT provider.uuid FROM consumers JOIN allocations ON consumer_id = consumers.id
JOIN resource_providers provider ON provider.id = provider_id WHERE consumers.uuid = ?
"""
_GONE = """
FROM host_group_members member
LEFT JOIN consumers ON consumers.uuid = member.instance AND consumers.retired_at IS NULL
LEFT JOIN moves ON moves.instance = member.instance AND moves.state IN ('held', 'awaiting_proof')
WHERE consumers.id IS NULL AND moves.migration IS NULL
"""  # an evacuated instance that was released counts on its source until that is proved gone
_TO_FORGET = f"""
SELECT member.group_uuid AS forgettable {_GONE}
UNION SELECT uuid FROM host_groups WHERE uuid NOT IN (SELECT group_uuid FROM host_group_members)
ORDER BY forgettable LIMIT ?
"""  # noqa: S608 - constants
_GONE_OF = f"SELECT member.instance {_GONE} AND member.group_uuid = ?"


def lock_group(session: Session, group: HostGroup) -> None:
    """Take the group for this transaction; one that is new is recorded. Before any consumer is locked.

    Raises:
        InvalidRequest: The group is known with another policy or another bound.
    """
    if group.uuid is None:
        return
    failpoint("ledger.group.lock")
    known = _hold(session, group.uuid)
    if not known:  # looked up first: on MariaDB an insert that is ignored holds a lock that cannot be raised
        session.run(
            "INSERT {ignore} INTO host_groups (uuid, policy, max_per_host) VALUES (?, ?, ?) {nothing}",
            (group.uuid, str(group.policy), group.max_per_host),
        )
        known = _hold(session, group.uuid) or _forgotten(group)
    policy, bound = known[0]
    if (policy, bound) != (str(group.policy), group.max_per_host):
        raise InvalidRequest(
            f"group {group.uuid} is one of {policy} with at most {bound} a host, "
            f"not of {group.policy} with {group.max_per_host}",
            field="group",
            value=group.uuid,
        )


def _hold(session: Session, group: str) -> list[Any]:
    """Keep the group's row for this transaction, and return it: see :func:`cloudcore.database.hold`."""
    if session.dialect == "postgresql":
        return session.all(f"{_HOLD} RETURNING policy, max_per_host", (group,))
    if session.dialect == "sqlite":
        return session.all(_GROUP, (group,))
    rows = session.all(_LOCK.replace("{tells}", tells_other_nodes(session.connection)), (group,))
    if rows and rows[0][2]:
        session.run(_HOLD, (group,))
    return [row[:2] for row in rows]


def group_of(session: Session, instance: str) -> HostGroup | None:
    """The group that *instance* belongs to, None if to none."""
    return _groups_of(session, [instance]).get(instance)


def count_members(session: Session, group: HostGroup, *, without: Iterable[str] = ()) -> Counter[str]:
    """How many members, those of *without* aside, hold something in the tree of each root provider (uuid).

    One that moves may end at either side: it keeps others off both, and draws others to neither (:data:`MOVING`).
    """
    if group.uuid is None:
        return Counter(group.members)
    aside = set(without)
    rows = [row for row in session.all(_HOLDERS, (group.uuid, group.uuid)) if row[0] not in aside]
    names = session.provider_uuids({row[1] for row in rows})
    sides: defaultdict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for member, number, source in rows:
        sides[member][source].add(names[number])
    if group.policy is AffinityPolicy.AFFINITY:
        return Counter(root for held, source in sides.values() for root in _certain(held, source))
    return Counter(root for held, source in sides.values() for root in held | source)


def _certain(held: set[str], source: set[str]) -> Collection[str]:
    """Where a member is, however its move ends."""
    return (held & source or {MOVING}) if held and source else held | source


_HOSTS = """
SELECT DISTINCT root.uuid FROM resource_providers provider
JOIN resource_providers root ON root.id = COALESCE(provider.root_id, provider.id)
WHERE provider.uuid IN {marks} AND NOT EXISTS (
    SELECT 1 FROM provider_traits WHERE provider_id = provider.id AND trait = 'MISC_SHARES_VIA_AGGREGATE'
)
"""


def hosts_of(session: Session, providers: Iterable[str]) -> set[str]:
    """The roots (uuid) of *providers*; pools that hosts share are none."""
    return {root for (root,) in session.in_parts(_HOSTS, sorted(providers))}


@contextmanager
def keeping_policies(session: Session, wanted: Mapping[str, Iterable[str]]) -> Iterator[None]:
    """While the block gives each instance of *wanted* what it holds of these providers, groups keep their policies.

    Groups are held before any consumer is locked, in the order of their uuids. What all members hold is looked at after
    the block; a host that an instance has before it is no new one, and not asked about.

    Raises:
        GroupViolation: A policy is a hard one, and a host that an instance is new on breaks it.
        DatabaseBusy: An instance changed its group just then.
    """
    groups = _groups_of(session, wanted)
    for group in sorted({group.uuid: group for group in groups.values()}.values(), key=lambda group: str(group.uuid)):
        lock_group(session, group)
    if groups and (changes := _changes(groups, _groups_of(session, wanted))):
        raise DatabaseBusy(f"groups changed just then: {'; '.join(changes)}; repeat the call")
    hard = {instance: group for instance, group in groups.items() if group.hard}
    before = {instance: hosts_of(session, _held_by(session, instance)) for instance in hard}
    yield
    for instance, group in hard.items():
        members = count_members(session, group, without=[instance])
        for root in sorted(hosts_of(session, wanted[instance]) - before[instance]):
            if (reason := group.refuses(root, members)) is not None:
                raise GroupViolation(f"instance {instance}, host {root}: {reason}", root=root, rule=str(group.policy))


def _groups_of(session: Session, instances: Iterable[str]) -> dict[str, HostGroup]:
    """Instance → its group, of those that belong to one."""
    rows = session.in_parts(_GROUPS_OF, sorted(instances))
    return {row[0]: HostGroup(uuid=row[1], policy=row[2], max_per_host=row[3]) for row in rows}


def _changes(before: Mapping[str, HostGroup], now: Mapping[str, HostGroup]) -> list[str]:
    """What has become of the group of each instance that is in another by now."""
    pairs = {instance: (before.get(instance), now.get(instance)) for instance in sorted({*before, *now})}
    return [
        f"instance {instance}: {' -> '.join('no group' if group is None else f'group {group.uuid}' for group in pair)}"
        for instance, pair in pairs.items()
        if pair[0] != pair[1]
    ]


def _held_by(session: Session, instance: str) -> list[str]:
    return [provider for (provider,) in session.all(_HELD_BY, (instance,))]


def join(session: Session, group: HostGroup, instance: str, root: str, members: Counter[str]) -> None:
    """Record *instance* as a member on its way to *root*, and count it in *members*.

    Raises:
        GroupViolation: The policy is a hard one, and members are where it allows none, or not where it wants them.
        InvalidRequest: The instance belongs to another group.
    """
    reason = group.refuses(root, members) if group.hard else None
    if reason is not None:
        raise GroupViolation(f"host {root}: {reason}", root=root, rule=str(group.policy))
    if group.uuid is not None:
        failpoint("ledger.group.join")
        session.run(
            "INSERT {ignore} INTO host_group_members (instance, group_uuid) VALUES (?, ?) {nothing}",
            (instance, group.uuid),
        )
        known = session.all("SELECT group_uuid FROM host_group_members WHERE instance = ?", (instance,))
        belongs = (known or _forgotten(group))[0][0]  # what was in the way may be a forgotten member of another group
        if belongs != group.uuid:
            raise InvalidRequest(f"instance {instance} belongs to group {belongs}", field="group", value=group.uuid)
    members[root] += 1


def _forgotten(group: HostGroup) -> NoReturn:
    """Let the transaction be repeated: a row that an insert found in its way was deleted before it could be read."""
    raise DatabaseBusy(f"group {group.uuid} was being forgotten just then; repeat the call")


def forget_groups(database: Database, *, limit: int = 10_000) -> int:
    """Forget members that hold nothing, and groups without members, of at most *limit* groups.

    Each group is a transaction of its own, so that a claim waits for one at most. A group that comes back is recorded
    again by the claim that brings it.

    Returns:
        How many groups were forgotten.
    """
    with database.read() as connection:
        session = Session(connection)
        with session.errors():
            groups = [row[0] for row in session.all(_TO_FORGET, (limit,))]
    return sum(database.run(functools.partial(_forget, group=group)) for group in groups)


def _forget(connection: Connection, group: str) -> bool:
    """Forget what *group* has no use for any more; True if that is all of it."""
    session = Session(connection)
    with session.errors():
        failpoint("ledger.group.forget.before")
        if not _hold(session, group):  # from here on nobody joins, and who joined has ended
            return False
        gone = session.all(_GONE_OF, (group,))
        session.many("DELETE FROM host_group_members WHERE instance = ?", gone)
        if session.all("SELECT 1 FROM host_group_members WHERE group_uuid = ? LIMIT 1", (group,)):
            return False
        session.run("DELETE FROM host_groups WHERE uuid = ?", (group,))
        failpoint("ledger.group.forget.after")
        return True
