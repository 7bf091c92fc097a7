"""The forest in the database: read all of it, read some of it, write an edit. SQL only; the rules are elsewhere.

One module, since what is written must be read back alike: both halves name the same columns.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.errors import AlreadyExists, GenerationConflict, InUse
from cloudcore.placement.forest.values import FrozenDict, Inventory, Provider
from cloudcore.placement.storage.bulk_insert import draw_ids, insert_rows
from cloudcore.placement.storage.changes import changes_since, record_changes, use_since
from cloudcore.placement.tables import inventories, provider_aggregates, provider_traits, resource_providers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.placement.forest.forest import Edit, Forest, Usage

__all__ = ["Watch", "read_all", "read_snapshot", "read_some", "read_usage", "write_edit"]

_CHUNK = 10_000
_NAMED = 1_000  # names in a statement

_PROVIDERS = "SELECT id, uuid, name, parent_id, root_id, generation FROM resource_providers"
_INVENTORIES = (
    "SELECT provider_id, used, resource_class, total, reserved, min_unit, max_unit, step_size, allocation_ratio "
    "FROM inventories"
)
_TRAITS = "SELECT provider_id, trait FROM provider_traits"
_AGGREGATES = "SELECT provider_id, aggregate FROM provider_aggregates"
_USAGE = (
    "SELECT p.id, i.resource_class, i.used, p.generation FROM resource_providers p "
    "LEFT JOIN inventories i ON i.provider_id = p.id"
)
_SQLITE_MAP = "PRAGMA mmap_size=268435456"  # pages in memory need no copy: thousands are read here and there, once each
_SQLITE_USAGE = (
    "SELECT p.id, i.resource_class, i.used, p.generation FROM json_each(?) j CROSS JOIN resource_providers p "
    "ON p.id = j.value LEFT JOIN inventories i ON i.provider_id = p.id"
)


@contextmanager
def read_snapshot(database: Database) -> Iterator[Connection]:
    """Give a connection on which every statement sees one and the same state of the database."""
    with database.read() as connection:
        if database.dialect == "sqlite":  # a read transaction is a snapshot by itself
            connection.exec_driver_sql(_SQLITE_MAP)
        else:
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


class Watch:
    """Tells whether anybody may have written to the database since the last look, and what is in use since then.

    SQLite counts commits, and a connection of one's own reads the count in microseconds. For other databases, and for
    one in memory, it tells nothing: :meth:`version` and :meth:`use_since` are None. Not for several threads at once.
    """

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    @classmethod
    def of(cls, database: Database) -> Watch:
        """Watch *database*."""
        url = database.engine.url
        path = Path(url.database or "")
        if database.dialect != "sqlite" or url.query or not path.is_file():
            return cls(None)
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
            )
            connection.execute(_SQLITE_MAP)
        except sqlite3.Error:
            return cls(None)
        return cls(connection)

    def version(self) -> int | None:
        """A number that differs when somebody committed in between; None when that cannot be told."""
        if self._connection is None:
            return None
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    def use_since(self, watermark: str) -> tuple[list[tuple[int, str, int]], str] | None:
        """See :func:`cloudcore.placement.storage.changes.use_since`; None also when it cannot be told."""
        if self._connection is None:
            return None
        try:
            self._connection.execute("BEGIN")
            return use_since(self._connection, watermark)
        except sqlite3.Error:  # whoever asks in the other way is told what is wrong
            return None
        finally:
            self._connection.rollback()

    def close(self) -> None:
        """Let go of the database. May be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _fetch(connection: Connection, statement: str) -> list[tuple[Any, ...]]:
    """Rows as the driver gives them: these reads are long, and need no conversion."""
    result = connection.exec_driver_sql(statement)
    cursor: Any = result.cursor
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    result.close()
    return rows


def _of_ids(statement: str, column: str, ids: Iterable[int]) -> Iterator[str]:
    """The statement for these ids, some thousand at a time. Ids are whole numbers and written as such."""
    chosen = sorted(ids)
    for first in range(0, len(chosen), _CHUNK):
        numbers = ",".join(map(str, map(int, chosen[first : first + _CHUNK])))
        yield f"{statement} WHERE {column} IN ({numbers}) ORDER BY {column}"


# --- reading ---------------------------------------------------------------------------------------------------------


class _Parts:
    """Shares equal parts: thousands of hosts have the same inventories and the same traits."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], int] = {}
        self._inventories: list[tuple[str, Inventory]] = []
        self._mappings: dict[tuple[int, ...], FrozenDict[str, Inventory]] = {}
        self._sets: dict[tuple[str, ...], frozenset[str]] = {}

    def inventory(self, numbers: tuple[Any, ...]) -> int:
        """What stands for the inventory of these values: class, total, reserved, units, ratio."""
        found = self._known.get(numbers)
        if found is None:
            name, total, reserved, least, most, step, ratio = numbers
            inventory = Inventory.stored(
                total, reserved, min_unit=least, max_unit=most, step_size=step, allocation_ratio=float(ratio)
            )
            found = self._known[numbers] = len(self._inventories)
            self._inventories.append((name, inventory))
        return found

    def mapping(self, known: Iterable[int]) -> FrozenDict[str, Inventory]:
        key = tuple(known)
        found = self._mappings.get(key)
        if found is None:
            found = self._mappings[key] = FrozenDict(self._inventories[number] for number in key)
        return found

    def names(self, names: Iterable[str]) -> frozenset[str]:
        key = tuple(names)
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = frozenset(key)
        return found


def _grouped(
    rows: Iterable[tuple[Any, ...]], parts: _Parts
) -> tuple[dict[int, FrozenDict[str, Inventory]], dict[int, dict[str, int]]]:
    """By provider: its inventories, and what is in use. Rows of a provider stand together."""
    groups: dict[int, FrozenDict[str, Inventory]] = {}
    usage: dict[int, dict[str, int]] = {}
    current = -1
    known: list[int] = []  # one for all: what lives on is shared, and the garbage collector has little to look at
    for row in rows:
        if row[0] != current:
            if known:
                groups[current] = parts.mapping(known)
            current = row[0]
            known.clear()
        known.append(parts.inventory(row[2:]))
        if row[1]:
            usage.setdefault(current, {})[row[2]] = int(row[1])
    if known:
        groups[current] = parts.mapping(known)
    return groups, usage


def _named(rows: Iterable[tuple[int, str]], parts: _Parts) -> dict[int, frozenset[str]]:
    """By provider: its traits, or its aggregates. Rows of a provider stand together."""
    groups: dict[int, frozenset[str]] = {}
    current = -1
    names: list[str] = []
    for provider, name in rows:
        if provider != current:
            if names:
                groups[current] = parts.names(names)
            current = provider
            names.clear()
        names.append(name)
    if names:
        groups[current] = parts.names(names)
    return groups


def _assemble(
    providers: Sequence[tuple[Any, ...]],
    inventory_rows: Iterable[tuple[Any, ...]],
    trait_rows: Iterable[tuple[int, str]],
    aggregate_rows: Iterable[tuple[int, str]],
    uuids: Mapping[int, str],
) -> tuple[list[Provider], dict[str, Usage]]:
    """Put the rows together. *uuids* knows the uuid of every parent and root that is not among *providers*."""
    parts = _Parts()
    stock_of, used_of = _grouped(inventory_rows, parts)
    traits_of, aggregates_of = _named(trait_rows, parts), _named(aggregate_rows, parts)
    nothing, nowhere = parts.mapping(()), parts.names(())
    names = {**uuids, **{row[0]: row[1] for row in providers}}
    found: list[Provider] = []
    for number, uuid, name, parent, root, generation in providers:
        found.append(
            Provider(
                number=number,
                uuid=uuid,
                name=name,
                parent=None if parent is None else names[parent],
                root=uuid if root is None else names[root],
                generation=generation,
                inventories=stock_of.get(number, nothing),
                traits=traits_of.get(number, nowhere),
                aggregates=aggregates_of.get(number, nowhere),
            )
        )
    return found, {names[number]: used for number, used in used_of.items() if number in names}


def read_all(connection: Connection) -> tuple[list[Provider], dict[str, Usage], str]:
    """Every provider, what is in use, and the watermark from which to follow. Use :func:`read_snapshot`."""
    _, watermark = changes_since(connection, None)
    providers, usage = _assemble(
        _fetch(connection, f"{_PROVIDERS} ORDER BY id"),
        _fetch(connection, f"{_INVENTORIES} ORDER BY provider_id, resource_class"),
        _fetch(connection, f"{_TRAITS} ORDER BY provider_id, trait"),
        _fetch(connection, f"{_AGGREGATES} ORDER BY provider_id, aggregate"),
        {},
    )
    return providers, usage, watermark


def read_usage(connection: Connection, ids: Iterable[int]) -> list[tuple[int, str | None, int | None, int]]:
    """(id, class, in use, generation) of these providers, in the order of the ids; those that are gone are left out."""
    if connection.dialect.name == "sqlite":  # one lookup for each, which beats a list of numbers twice over
        cursor: Any = connection.exec_driver_sql(_SQLITE_USAGE, (json.dumps(sorted(ids)),)).cursor
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found
    rows: list[tuple[Any, ...]] = []
    for statement in _of_ids(_USAGE, "p.id", ids):
        rows += _fetch(connection, statement)
    return rows


def read_some(
    connection: Connection, ids: Iterable[int], uuids: Mapping[int, str]
) -> tuple[list[Provider], dict[str, Usage]]:
    """These providers and what is in use of them. *uuids*: number → uuid of the providers known so far."""
    chosen = sorted(ids)
    reads = [(_PROVIDERS, "id"), (_INVENTORIES, "provider_id"), (_TRAITS, "provider_id"), (_AGGREGATES, "provider_id")]
    parts = []
    for statement, column in reads:
        parts.append([row for chunk in _of_ids(statement, column, chosen) for row in _fetch(connection, chunk)])
    return _assemble(parts[0], parts[1], parts[2], parts[3], uuids)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_edit(connection: Connection, forest: Forest, edit: Edit) -> dict[str, int]:
    """Write *edit*, planned on *forest*, in the transaction of *connection*; return uuid → id of what was added.

    Raises:
        GenerationConflict: The database holds another generation of a provider that the edit builds on.
        AlreadyExists: A name or uuid is taken.
        InUse: What would go has children or allocations that this tree does not know of.
    """
    fresh = [provider for provider in edit.put if provider.uuid not in forest.providers]
    changed = [provider for provider in edit.put if provider.uuid in forest.providers]
    _lock_parents(connection, forest, edit)
    numbers = _insert(connection, forest, fresh) if fresh else {}
    for provider in changed:
        _update(connection, forest.providers[provider.uuid], provider, forest)
    for provider in edit.gone:
        _delete(connection, provider)
    touched = [*numbers.values(), *(provider.number for provider in (*changed, *edit.gone))]
    record_changes(connection, touched)
    return numbers


def _conflict(provider: Provider) -> GenerationConflict:
    return GenerationConflict(
        f"{provider.name}: somebody else changed it since generation {provider.generation} was read; "
        f"refresh() the tree, then decide again",
        identifier=provider.uuid,
        expected=provider.generation,
    )


def _lock_parents(connection: Connection, forest: Forest, edit: Edit) -> None:
    """Hold new parents still: no other writer moves or removes them, or what is above them, before the commit."""
    adopting: dict[str, bool] = {}  # uuid of a parent → whether a subtree moves there, for which nothing may have moved
    for provider in edit.put:
        before = forest.providers.get(provider.uuid)
        known = provider.parent is not None and provider.parent in forest.providers
        if known and (before is None or before.parent != provider.parent):
            adopting[str(provider.parent)] = adopting.get(str(provider.parent), False) or before is not None
    columns = resource_providers.c
    for parent in sorted((forest.providers[uuid] for uuid in adopting), key=lambda parent: parent.number):
        query = sa.select(columns.generation, columns.root_id).where(columns.id == parent.number).with_for_update()
        row = connection.execute(query).one_or_none()
        moved = row is None or row.root_id != forest.providers[parent.root].number
        if row is None or moved or (adopting[parent.uuid] and row.generation != parent.generation):
            raise _conflict(parent)


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
    values: dict[str, Any] = {"generation": columns.generation + 1}
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
    busy = busy.where(inventories.c.provider_id == provider.number, inventories.c.used > 0).with_for_update()
    users = {row.resource_class: row.used for row in connection.execute(busy)}
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
