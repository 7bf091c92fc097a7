"""The forest in the database: read all of it, or some of it. SQL only; the rules are elsewhere."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.database import translate
from cloudcore.placement.forest.values import FrozenDict, Inventory, Provider
from cloudcore.placement.storage.changes import changes_since, use_since, use_since_snapshot
from cloudcore.placement.tables import resource_providers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.placement.forest.forest import Usage

__all__ = [
    "ProviderTimes",
    "Watch",
    "read_all",
    "read_holdings",
    "read_snapshot",
    "read_some",
    "read_times",
    "read_usage",
    "read_use_since",
]

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


_abandoned: list[Watch] = []  # to close a file that was opened before a fork would end locks of SQLite's


class Watch:
    """Tells whether anybody may have written to the database since the last look, and what is in use since then.

    SQLite counts commits, and a connection of one's own reads the count in microseconds. For one in memory, which no
    other connection reaches, :meth:`version` tells nothing and :meth:`use_since` borrows a connection of the pool. For
    other databases both tell nothing. Only :meth:`close` may come from another thread; it waits.
    """

    def __init__(self, connection: sqlite3.Connection | None, database: Database | None = None) -> None:
        self._connection = connection
        self._database = database
        self._using = threading.RLock()  # SQLite's library crashes where a connection is closed that is in use

    @classmethod
    def of(cls, database: Database) -> Watch:
        """Watch *database*."""
        url = database.engine.url
        path = Path(url.database or "")
        if database.dialect != "sqlite":
            return cls(None)
        if url.query or not path.is_file():
            return cls(None, database)
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
            )
            connection.execute(_SQLITE_MAP)
        except sqlite3.Error:
            return cls(None)
        return cls(connection)

    def parted(self, database: Database) -> Watch:
        """What a forked child takes in the place of this one, whose connection is its parent's."""
        if self._connection is None:
            return Watch(None, self._database)
        _abandoned.append(self)
        return Watch.of(database)

    def version(self) -> int | None:
        """A number that differs when somebody committed in between; None when that cannot be told."""
        with self._using:
            if self._connection is None:
                return None
            try:
                return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.Error:
                return None

    def use_since(self, watermark: str) -> tuple[list[tuple[int, str, int]], str] | None:
        """See :func:`cloudcore.placement.storage.changes.use_since`; None also when it cannot be told."""
        with self._using:
            if self._connection is None:
                return self._borrowed_use_since(watermark)
            try:
                self._connection.execute("BEGIN")
                return use_since(self._connection, watermark)
            except sqlite3.Error:  # whoever asks in the other way is told what is wrong
                return None
            finally:
                self._connection.rollback()

    def _borrowed_use_since(self, watermark: str) -> tuple[list[tuple[int, str, int]], str] | None:
        if self._database is None:
            return None
        with self._database.read() as connection:
            lent: Any = connection.connection.driver_connection
            try:
                return use_since(lent, watermark)
            except sqlite3.Error:
                return None

    def close(self) -> None:
        """Let go of the database. May be called twice."""
        self._database = None
        with self._using:
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


def read_use_since(database: Database, watermark: str) -> tuple[list[tuple[Any, ...]], str]:
    """On PostgreSQL in one round trip what :func:`changes_since` and then :func:`read_usage` tell, and of one moment.

    Those that are gone have a row without a class and without a generation.

    Raises:
        WatermarkLost, InvalidArgument: See :func:`changes_since`.
        DatabaseUnavailable, DatabaseBusy, DatabaseError: It does not answer.
    """
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return use_since_snapshot(connection, watermark)
    except sa.exc.SQLAlchemyError as error:
        raise translate(error, database.engine) from error


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


@attrs.frozen(kw_only=True)
class ProviderTimes:
    """When a provider was added, and when it was edited last: instants in UTC, by the database's clock."""

    created_at: datetime
    updated_at: datetime


_TIMES = sa.select(resource_providers.c.uuid, resource_providers.c.created_at, resource_providers.c.updated_at).where(
    resource_providers.c.uuid.in_(sa.bindparam("uuids", expanding=True))
)


def read_times(connection: Connection, uuids: Sequence[str]) -> dict[str, ProviderTimes]:
    """Uuid → times, of those that are there."""
    found: dict[str, ProviderTimes] = {}
    for first in range(0, len(uuids), _NAMED):
        for row in connection.execute(_TIMES, {"uuids": uuids[first : first + _NAMED]}):
            found[row.uuid] = ProviderTimes(created_at=row.created_at, updated_at=row.updated_at)
    return found


_HOLDINGS = """
SELECT c.uuid, p.uuid, a.resource_class, a.amount FROM allocations a
JOIN consumers c ON c.id = a.consumer_id JOIN resource_providers p ON p.id = a.provider_id
"""


def read_holdings(connection: Connection) -> dict[str, dict[str, dict[str, int]]]:
    """Consumer → provider → class → amount, of all that hold something. Use :func:`read_snapshot`."""
    holdings: dict[str, dict[str, dict[str, int]]] = {}
    for consumer, provider, name, amount in _fetch(connection, _HOLDINGS):
        holdings.setdefault(consumer, {}).setdefault(provider, {})[name] = amount
    return holdings
