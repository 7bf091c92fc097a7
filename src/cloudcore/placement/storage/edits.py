"""The forest in the database: write an edit that was planned on what one tree knew. SQL only; the rules are elsewhere.

What an edit builds on without changing it (the parent of a new child, the roots between which a subtree moves) is held
by a write, so that it stays as it is on every node of a cluster until the commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.database import hold, utc_now
from cloudcore.errors import AlreadyExists, GenerationConflict, InUse
from cloudcore.placement.storage.bulk_insert import draw_ids, insert_rows
from cloudcore.placement.storage.changes import note_changes
from cloudcore.placement.tables import inventories, provider_aggregates, provider_traits, resource_providers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from cloudcore.placement.forest.forest import Edit, Forest
    from cloudcore.placement.forest.values import Inventory, Provider

__all__ = ["require_unchanged", "write_edit"]

_NAMED = 1_000  # names in a statement


def write_edit(connection: Connection, forest: Forest, edit: Edit) -> dict[str, int]:
    """Write *edit*, planned on *forest*, in the transaction of *connection*; return uuid → id of what was added.

    Raises:
        GenerationConflict: The database holds another generation of a provider that the edit builds on.
        AlreadyExists: A name or uuid is taken.
        InUse: What would go has children or allocations that this tree does not know of.
    """
    fresh = [provider for provider in edit.put if provider.uuid not in forest.providers]
    changed = [provider for provider in edit.put if provider.uuid in forest.providers]
    _hold_places(connection, forest, edit)
    numbers = _insert(connection, forest, fresh) if fresh else {}
    for provider in changed:
        _update(connection, forest.providers[provider.uuid], provider, forest)
    _check_no_strangers(connection, forest, changed)
    for provider in edit.gone:
        _delete(connection, provider)
    touched = [*numbers.values(), *(provider.number for provider in (*changed, *edit.gone))]
    note_changes(connection, touched)
    return numbers


def require_unchanged(connection: Connection, provider: Provider) -> None:
    """See that *provider* is as this tree knows it, where an edit finds it as it shall be.

    Raises:
        GenerationConflict: It is not.
    """
    found = sa.select(resource_providers.c.generation).where(resource_providers.c.id == provider.number)
    if connection.scalar(found) != provider.generation:
        raise _conflict(provider)


def _conflict(provider: Provider) -> GenerationConflict:
    return GenerationConflict(
        f"{provider.name}: somebody else changed it since generation {provider.generation} was read; "
        f"refresh() the tree, then decide again",
        identifier=provider.uuid,
        expected=provider.generation,
    )


def _hold_places(connection: Connection, forest: Forest, edit: Edit) -> None:
    """Hold new parents still: no other writer moves or removes them, or what is above them, before the commit.

    A child hangs on its parent's row, which whoever moves a tree to another root, or removes, writes too. A subtree
    that moves hangs on the whole chain above it, so it holds the roots that it leaves and joins: all who move within a
    tree queue there, and each looks at what the one before it left.
    """
    moving = [(forest.providers[p.uuid], p) for p in edit.put if p.uuid in forest.providers]
    moving = [(before, after) for before, after in moving if before.parent != after.parent]
    adding = [p for p in edit.put if p.uuid not in forest.providers and p.parent in forest.providers]
    parents = {str(p.parent) for p in (*adding, *(after for _, after in moving)) if p.parent is not None}
    roots = {root for before, after in moving for root in (before.root, after.root)}
    for held in sorted((forest.providers[uuid] for uuid in parents | roots), key=lambda provider: provider.number):
        row = hold(connection, resource_providers, resource_providers.c.id == held.number)
        place = None if row is None else (row.root_id or row.id, row.name)  # by the name somebody may have meant it
        if place is None or (held.uuid in parents and place != (forest.providers[held.root].number, held.name)):
            raise _conflict(held)
    for before, after in moving:
        if after.parent is not None and _is_above(connection, before.number, forest.providers[after.parent].number):
            raise _conflict(forest.providers[after.parent])


_ABOVE = sa.text("""
WITH RECURSIVE above (id, parent_id) AS (
    SELECT id, parent_id FROM resource_providers WHERE id = :below
    UNION ALL SELECT p.id, p.parent_id FROM resource_providers p JOIN above ON p.id = above.parent_id
) SELECT count(*) FROM above WHERE id = :number
""")


def _is_above(connection: Connection, number: int, below: int) -> bool:
    """Whether provider *number* is *below* or above it by now."""
    return bool(connection.scalar(_ABOVE, {"number": number, "below": below}))


def _check_no_strangers(connection: Connection, forest: Forest, changed: Sequence[Provider]) -> None:
    """See that no child that this tree has not seen stays behind with the old root."""
    columns = resource_providers.c
    moved = [p.number for p in changed if forest.providers[p.uuid].root != p.root]
    for first in range(0, len(moved), _NAMED):
        part = moved[first : first + _NAMED]
        below = connection.execute(sa.select(columns.id, columns.parent_id).where(columns.parent_id.in_(part)))
        stranger = next((row for row in below if row.id not in moved), None)
        if stranger is not None:
            raise _conflict(forest.providers[forest.by_number[stranger.parent_id]])


def _insert(connection: Connection, forest: Forest, fresh: Sequence[Provider]) -> dict[str, int]:
    try:
        numbers = _insert_providers(connection, forest, fresh)
    except sa.exc.IntegrityError as error:
        raise AlreadyExists(
            f"{fresh[0].name}: the name or the uuid (or that of another provider added with it) is taken",
            identifier=fresh[0].name,
        ) from error
    numbered = [(numbers[p.uuid], p) for p in fresh]
    stock = [_inventory_row(number, name, inv) for number, p in numbered for name, inv in p.inventories.items()]
    traits = [(number, name) for number, p in numbered for name in sorted(p.traits)]
    groups = [(number, name) for number, p in numbered for name in sorted(p.aggregates)]
    insert_rows(connection, inventories, _INVENTORY, stock)
    insert_rows(connection, provider_traits, ("provider_id", "trait"), traits)
    insert_rows(connection, provider_aggregates, ("provider_id", "aggregate"), groups)
    return numbers


def _insert_providers(connection: Connection, forest: Forest, fresh: Sequence[Provider]) -> dict[str, int]:
    """Insert the providers alone; uuid → id. Where ids come with the rows, places are filled in afterwards."""
    ids = draw_ids(connection, resource_providers, len(fresh))
    if ids is not None:
        numbers = {p.uuid: number for p, number in zip(fresh, ids, strict=True)}
    else:
        rows = [(p.uuid, p.name, p.generation) for p in fresh]
        insert_rows(connection, resource_providers, ("uuid", "name", "generation"), rows)
        numbers = _numbers(connection, [p.uuid for p in fresh])

    def number(uuid: str | None) -> int | None:
        return None if uuid is None else numbers[uuid] if uuid in numbers else forest.providers[uuid].number

    places = [(numbers[p.uuid], p.uuid, p.name, number(p.parent), number(p.root), p.generation) for p in fresh]
    also = "" if ids is not None else "ON DUPLICATE KEY UPDATE parent_id = VALUES(parent_id), root_id = VALUES(root_id)"
    insert_rows(
        connection, resource_providers, ("id", "uuid", "name", "parent_id", "root_id", "generation"), places, also=also
    )
    return numbers


def _numbers(connection: Connection, uuids: Sequence[str]) -> dict[str, int]:
    columns = resource_providers.c
    numbers: dict[str, int] = {}
    for first in range(0, len(uuids), _NAMED):
        query = sa.select(columns.uuid, columns.id).where(columns.uuid.in_(uuids[first : first + _NAMED]))
        numbers.update((row.uuid, row.id) for row in connection.execute(query))
    return numbers


_INVENTORY = (
    "provider_id",
    "resource_class",
    "total",
    "reserved",
    "min_unit",
    "max_unit",
    "step_size",
    "allocation_ratio",
    "capacity",
)


def _inventory_row(number: int, name: str, given: Inventory) -> tuple[Any, ...]:
    """The values of the columns in ``_INVENTORY``."""
    units = (given.min_unit, given.max_unit, given.step_size)
    return (number, name, given.total, given.reserved, *units, given.allocation_ratio, given.capacity)


def _update(connection: Connection, before: Provider, after: Provider, forest: Forest) -> None:
    columns = resource_providers.c
    values: dict[str, Any] = {"generation": columns.generation + 1, "updated_at": utc_now()}
    if before.name != after.name:
        values["name"] = after.name
    if before.parent != after.parent:
        values["parent_id"] = None if after.parent is None else forest.providers[after.parent].number
    if before.root != after.root:
        values["root_id"] = forest.providers[after.root].number
    held = sa.and_(columns.id == before.number, columns.generation == before.generation)
    try:
        written = connection.execute(sa.update(resource_providers).where(held).values(values)).rowcount
    except sa.exc.IntegrityError as error:
        raise AlreadyExists(f"name: {after.name!r} is taken", identifier=after.name) from error
    if not written:
        raise _conflict(before)
    if before.inventories != after.inventories:
        _update_inventories(connection, before, after)
    _update_names(connection, provider_traits, before.number, before.traits, after.traits)
    _update_names(connection, provider_aggregates, before.number, before.aggregates, after.aggregates)


def _update_inventories(connection: Connection, before: Provider, after: Provider) -> None:
    columns = inventories.c
    for name in sorted(before.inventories.keys() - after.inventories.keys()):
        unused = sa.and_(columns.provider_id == before.number, columns.resource_class == name, columns.used == 0)
        if not connection.execute(sa.delete(inventories).where(unused)).rowcount:
            raise InUse(
                f"{before.name}: {name} is in use; release the allocations first",
                identifier=before.uuid,
                kind="allocations",
            )
    added = []
    for name, inventory in after.inventories.items():
        row = _inventory_row(before.number, name, inventory)
        if name not in before.inventories:
            added.append(row)
        elif inventory != before.inventories[name]:
            here = sa.and_(columns.provider_id == before.number, columns.resource_class == name)
            values = dict(zip(_INVENTORY, row, strict=True))
            connection.execute(sa.update(inventories).where(here).values(values))
    insert_rows(connection, inventories, _INVENTORY, added)


def _update_names(
    connection: Connection, table: sa.Table, number: int, before: frozenset[str], after: frozenset[str]
) -> None:
    column = table.c.trait if "trait" in table.c else table.c.aggregate
    gone, new = sorted(before - after), sorted(after - before)
    if gone:
        connection.execute(sa.delete(table).where(table.c.provider_id == number, column.in_(gone)))
    if new:
        connection.execute(sa.insert(table), [{"provider_id": number, column.name: name} for name in new])


def _delete(connection: Connection, provider: Provider) -> None:
    columns = resource_providers.c
    found = sa.select(columns.generation).where(columns.id == provider.number).with_for_update()
    if connection.scalar(found) != provider.generation:
        raise _conflict(provider)
    busy = sa.select(inventories.c.resource_class, inventories.c.used)
    busy = busy.where(inventories.c.provider_id == provider.number).order_by(inventories.c.resource_class)
    users = {row.resource_class: row.used for row in connection.execute(busy.with_for_update()) if row.used}
    if users:
        raise InUse(
            f"{provider.name}: {users} in use; release them first",
            identifier=provider.uuid,
            users=users,
            kind="allocations",
        )
    try:
        for table in (provider_traits, provider_aggregates, inventories):
            connection.execute(sa.delete(table).where(table.c.provider_id == provider.number))
        connection.execute(
            sa.update(resource_providers).where(columns.id == provider.number).values(root_id=None, parent_id=None)
        )
        connection.execute(sa.delete(resource_providers).where(columns.id == provider.number))
    except sa.exc.IntegrityError as error:
        raise InUse(
            f"{provider.name}: has children that this tree has not seen; refresh() it and look again",
            identifier=provider.uuid,
            kind="children",
        ) from error
