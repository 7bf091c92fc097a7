"""The ledger's statements: text SQL on the driver's own cursor, in lock order.

SQLAlchemy's compiler costs more than SQLite's answer, so the hot path goes without it; connections, pools and errors
stay SQLAlchemy's. One text serves the three databases; what differs is filled in once for each dialect.

Locks are taken in one order by every transaction: the operation id, a group of instances, consumers by uuid,
moves by migration, inventories by (provider id, class), the slot of the change feed.
"""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.database import session_is_lost
from cloudcore.database.statement_events import told
from cloudcore.placement.rules.claims import InventoryRow, Key, Owner, Rewrite, Take
from cloudcore.placement.storage.changes import record_changes_raw

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

__all__ = ["ConsumerRow", "Session", "marks", "to_json"]

_DIALECTS: dict[str, dict[str, str]] = {
    "sqlite": {
        "now": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
        "later": "(strftime('%Y-%m-%d %H:%M:%f', 'now', ? || ' seconds') || '000')",
        "lock": "",
        "ignore": "OR IGNORE",
        "nothing": "",
    },
    "postgresql": {
        "now": "clock_timestamp()",
        "later": "(clock_timestamp() + ? * interval '1 second')",
        "lock": "FOR UPDATE",
        "ignore": "",
        "nothing": "ON CONFLICT DO NOTHING",
    },
    "mysql": {
        "now": "UTC_TIMESTAMP(6)",
        "later": "(UTC_TIMESTAMP(6) + INTERVAL ROUND(? * 1000000) MICROSECOND)",
        "lock": "FOR UPDATE",
        "ignore": "IGNORE",
        "nothing": "",
    },
}


_LOCK_CONSUMERS = """
SELECT id, uuid, project_id, user_id, consumer_type, generation, retired_at IS NOT NULL, expires_at IS NOT NULL,
       COALESCE(expires_at <= {now}, 1 = 0)
FROM consumers WHERE uuid IN {marks} ORDER BY uuid {lock}
"""
_ADD_CONSUMER = """
INSERT {ignore} INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at)
VALUES (?, ?, ?, ?, 1, {now}) {nothing}
"""
_ADD_PENDING_CONSUMER = """
INSERT {ignore} INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at, expires_at)
VALUES (?, ?, ?, ?, 1, {now}, {later}) {nothing}
"""
_BUMP_CONSUMER = """
UPDATE consumers SET generation = generation + 1, project_id = ?, user_id = ?, consumer_type = ? WHERE id = ?
"""
_BUMP_AND_SETTLE_CONSUMER = _BUMP_CONSUMER.replace("generation + 1,", "generation + 1, expires_at = NULL,")
_HOLDINGS = """
SELECT a.consumer_id, a.provider_id, a.resource_class, a.amount, p.uuid FROM allocations a
JOIN resource_providers p ON p.id = a.provider_id WHERE a.consumer_id IN {marks}
"""
_PROVIDERS_AROUND = """
SELECT uuid, id FROM resource_providers WHERE uuid IN {marks}
UNION (SELECT uuid, id FROM resource_providers
       WHERE id > (SELECT MIN(id) FROM resource_providers WHERE uuid IN {marks}) ORDER BY id LIMIT 250)
"""
_TAKE = """
UPDATE inventories SET used = used + ? WHERE provider_id = ? AND resource_class = ?
AND (? <= 0 OR used + ? <= capacity) AND min_unit <= ? AND max_unit >= ? AND ? % step_size = 0
"""
_TAKE_ALL = """
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest((SELECT %s::bigint[]), (SELECT %s::text[]), (SELECT %s::bigint[]), (SELECT %s::bigint[]),
                         (SELECT %s::bigint[]), (SELECT %s::bigint[])) -- hidden from the planner: one plan for all
    AS w (provider_id, resource_class, delta, smallest, largest, divisor)
), locked AS MATERIALIZED (
    SELECT i.provider_id, i.resource_class
    FROM inventories i JOIN wanted w ON w.provider_id = i.provider_id AND w.resource_class = i.resource_class
    ORDER BY i.provider_id, i.resource_class FOR NO KEY UPDATE OF i
)
UPDATE inventories i SET used = i.used + w.delta
FROM wanted w JOIN locked l ON l.provider_id = w.provider_id AND l.resource_class = w.resource_class
WHERE i.provider_id = w.provider_id AND i.resource_class = w.resource_class
AND (w.delta <= 0 OR i.used + w.delta <= i.capacity)
AND i.min_unit <= w.smallest AND i.max_unit >= w.largest AND w.divisor %% i.step_size = 0
RETURNING i.provider_id, i.resource_class
"""


@functools.cache
def _adapt(sql: str, dialect: str) -> str:
    for token, text in _DIALECTS[dialect].items():
        sql = sql.replace("{" + token + "}", text)
    if dialect == "sqlite":
        return sql
    # MariaDB's drivers do not agree on how to escape a percent sign.
    return sql.replace("%", "MOD" if dialect == "mysql" else "%%").replace("?", "%s")


to_json: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":")).encode
"""Compact JSON, by an encoder made once."""


def marks(count: int) -> str:
    """A bracketed list of *count* placeholders."""
    return f"({', '.join('?' * count)})"


@attrs.frozen(kw_only=True)
class ConsumerRow:
    """A consumer as locked by this transaction."""

    id: int
    uuid: str
    owner: Owner
    generation: int
    retired: bool
    pending: bool
    expired: bool


def _consumer(row: Sequence[Any]) -> ConsumerRow:
    return ConsumerRow(
        id=row[0],
        uuid=row[1],
        owner=Owner(project_id=row[2], user_id=row[3], consumer_type=row[4]),
        generation=row[5],
        retired=bool(row[6]),
        pending=bool(row[7]),
        expired=bool(row[8]),
    )


class Session:
    """One transaction of the ledger. Belongs to one thread; ends with the transaction.

    Args:
        connection: In a transaction that :meth:`cloudcore.database.Database.write` began.
        counting: Whether claims count in the generations of providers: see ``storage/generations.py``.
        within: Whether the statements belong to a transaction; False for one that is a transaction by itself.
    """

    dialect: str
    cursor: Any

    def __init__(self, connection: Connection, *, counting: bool = False, within: bool = True) -> None:
        self.connection = connection
        self.counting = counting
        name = connection.dialect.name
        self.dialect = "mysql" if name == "mariadb" else name
        if within and not connection.in_transaction():
            connection.begin()
        self.cursor = told(connection.connection.cursor(), "placement.statement", name)
        self._uuids: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    # ---- plumbing

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute and return the number of rows matched."""
        self.cursor.execute(_adapt(sql, self.dialect), parameters)
        return int(self.cursor.rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Execute for each row."""
        if rows:
            self.cursor.executemany(_adapt(sql, self.dialect), rows)

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Execute and return the rows."""
        self.cursor.execute(_adapt(sql, self.dialect), parameters)
        return list(self.cursor.fetchall())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Give the driver's errors the form that the database module translates; drop a broken connection."""
        dialect = self.connection.dialect
        driver = dialect.loaded_dbapi
        try:
            yield
        except driver.Error as error:
            pooled = self.connection.connection
            broken = dialect.is_disconnect(error, pooled.driver_connection, self.cursor)
            broken = broken or session_is_lost(error, dialect.name)
            wrapped = sa.exc.DBAPIError.instance(
                None, None, error, driver.Error, connection_invalidated=broken, dialect=dialect, hide_parameters=True
            )
            if broken:
                self.connection.invalidate(error)
            raise wrapped from error

    # ---- consumers

    def lock_consumers(self, uuids: Collection[str]) -> dict[str, ConsumerRow]:
        """Lock those of *uuids* that exist, in the order of uuids, and return them."""
        if not uuids:
            return {}
        failpoint("ledger.consumers.lock")
        return {row[1]: _consumer(row) for row in self.in_parts(_LOCK_CONSUMERS, sorted(uuids))}

    def add_consumer(self, uuid: str, owner: Owner, expires_in: float | None = None) -> int | None:
        """Insert a consumer at generation 1 and return its id; None if the uuid is taken.

        Waits for a transaction that holds the same uuid and has not ended.
        """
        failpoint("ledger.consumer.insert")
        values: list[Any] = [uuid, owner.project_id, owner.user_id, owner.consumer_type]
        sql = _ADD_CONSUMER
        if expires_in is not None:
            sql = _ADD_PENDING_CONSUMER
            values.append(expires_in)
        if self.dialect == "postgresql":
            rows = self.all(sql + " RETURNING id", values)
            return int(rows[0][0]) if rows else None
        return int(self.cursor.lastrowid) if self.run(sql, values) else None

    def bump_consumer(self, row: ConsumerRow, owner: Owner, *, settle: bool = False) -> None:
        """Count one more write of a consumer, with its owner as of now. *settle* ends a pending claim's deadline."""
        failpoint("ledger.consumer.bump")
        self.run(
            _BUMP_AND_SETTLE_CONSUMER if settle else _BUMP_CONSUMER,
            (owner.project_id, owner.user_id, owner.consumer_type, row.id),
        )

    def end_consumer(self, consumer_id: int, *, retire: bool) -> None:
        """Delete a consumer that holds nothing any more, or keep its row so that it never comes back."""
        failpoint("ledger.consumer.end")
        if retire:
            self.run("UPDATE consumers SET retired_at = {now}, expires_at = NULL WHERE id = ?", (consumer_id,))
        else:
            self.run("DELETE FROM consumers WHERE id = ?", (consumer_id,))

    def revive_consumer(self, row: ConsumerRow) -> None:
        """Let a retired consumer hold something again."""
        failpoint("ledger.consumer.revive")
        self.run("UPDATE consumers SET retired_at = NULL WHERE id = ?", (row.id,))

    # ---- holdings

    def holdings(self, rows: Collection[ConsumerRow]) -> dict[str, dict[Key, int]]:
        """What locked consumers hold."""
        result: dict[str, dict[Key, int]] = {row.uuid: {} for row in rows}
        names = {row.id: row.uuid for row in rows}
        for consumer, provider, name, amount, uuid in self.in_parts(_HOLDINGS, tuple(names)):
            result[names[consumer]][provider, name] = amount
            self._know(uuid, provider)
        return result

    def provider_ids(self, uuids: Collection[str]) -> dict[str, int]:
        """Uuid → id of those that exist."""
        sql = "SELECT uuid, id FROM resource_providers WHERE uuid IN {marks}"
        for uuid, number in self.in_parts(sql, sorted(uuid for uuid in uuids if uuid not in self._ids)):
            self._know(uuid, number)
        return {uuid: self._ids[uuid] for uuid in uuids if uuid in self._ids}

    def provider_ids_around(self, uuids: Collection[str]) -> dict[str, int]:
        """Uuid → id of those that exist, and of some more: the next hosts were mostly made next."""
        for uuid, number in self.all(_PROVIDERS_AROUND.replace("{marks}", marks(len(uuids))), [*uuids, *uuids]):
            self._know(uuid, number)
        return dict(self._ids)

    def provider_uuids(self, ids: Collection[int]) -> dict[int, str]:
        """Id → uuid of those that exist."""
        sql = "SELECT uuid, id FROM resource_providers WHERE id IN {marks}"
        for uuid, number in self.in_parts(sql, sorted(number for number in ids if number not in self._uuids)):
            self._know(uuid, number)
        return {number: self._uuids[number] for number in ids if number in self._uuids}

    def _know(self, uuid: str, number: int) -> None:
        """Remember a provider for the rest of the transaction."""
        self._ids[uuid], self._uuids[number] = number, uuid

    def in_parts(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        """Rows of *sql* for all *values*, which stand for its ``{marks}``, a few hundred at a time, in their order.

        No statement has room for any number of values: PostgreSQL's protocol ends at 65,535.
        """
        for start in range(0, len(values), 500):
            part = list(values[start : start + 500])
            yield from self.all(sql.replace("{marks}", marks(len(part))), part * sql.count("{marks}"))

    # ---- capacity

    def take_all(self, takes: Iterable[Take]) -> Take | None:
        """Change every inventory's ``used`` if its rules grant it, in the order given: the guard.

        Returns the first that was not granted; the transaction must then be rolled back.
        """
        chosen = list(takes)
        if self.dialect == "postgresql":
            return self._take_at_once(chosen)
        for take in chosen:
            failpoint("ledger.inventory.take")
            amounts = (take.delta, take.delta, take.smallest, take.largest, take.divisor)
            if not self.run(_TAKE, (take.delta, *take.key, *amounts)):
                return take
        return None

    def _take_at_once(self, takes: Sequence[Take]) -> Take | None:
        if not takes:
            return None
        failpoint("ledger.inventory.take")
        columns = zip(*((*t.key, t.delta, t.smallest, t.largest, t.divisor) for t in takes), strict=True)
        self.cursor.execute(_TAKE_ALL, [list(column) for column in columns])
        granted = {(number, name) for number, name in self.cursor.fetchall()}
        return next((take for take in takes if take.key not in granted), None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Statements whose answers nobody needs: on PostgreSQL they share one round trip."""
        if self.dialect != "postgresql":
            yield
            return
        with self.connection.connection.driver_connection.pipeline():  # type: ignore[union-attr]  # psycopg's own
            yield

    def inventory(self, key: Key) -> InventoryRow | None:
        """An inventory, read to explain a refusal."""
        rows = self.all(
            "SELECT min_unit, max_unit, step_size, capacity, used FROM inventories "
            "WHERE provider_id = ? AND resource_class = ?",
            key,
        )
        if not rows:
            return None
        return InventoryRow(
            min_unit=rows[0][0],
            max_unit=rows[0][1],
            step_size=rows[0][2],
            capacity=rows[0][3],
            used=rows[0][4],
        )

    def write_allocations(
        self, rewrite: Rewrite, before: Mapping[str, Mapping[Key, int]], ids: Mapping[str, int]
    ) -> None:
        """Write the rows of *rewrite*; *before* tells updates from inserts, *ids* are the consumers'."""
        failpoint("ledger.allocations.delete")
        self.many(
            "DELETE FROM allocations WHERE consumer_id = ? AND provider_id = ? AND resource_class = ?",
            [(ids[consumer], *key) for consumer, keys in rewrite.removed.items() for key in keys],
        )
        new, changed = [], []
        for consumer, rows in rewrite.written.items():
            for key, amount in rows.items():
                if key in before.get(consumer, {}):
                    changed.append((amount, ids[consumer], *key))
                else:
                    new.append((ids[consumer], *key, amount))
        failpoint("ledger.allocations.update")
        self.many(
            "UPDATE allocations SET amount = ? WHERE consumer_id = ? AND provider_id = ? AND resource_class = ?",
            changed,
        )
        failpoint("ledger.allocations.insert")
        self.many("INSERT INTO allocations (consumer_id, provider_id, resource_class, amount) VALUES (?, ?, ?, ?)", new)

    # ---- what is noted with every change

    def add_history(
        self, event: str, operation_id: str, holdings: Mapping[str, Mapping[str, Mapping[str, int]]]
    ) -> None:
        """Note what each consumer holds from now on."""
        failpoint("ledger.history.insert")
        self.many(
            "INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings) "
            "VALUES (?, {now}, ?, ?, ?)",
            [(consumer, event, operation_id, to_json(held)) for consumer, held in sorted(holdings.items())],
        )

    def add_changes(self, provider_ids: Iterable[int]) -> None:
        """Tell the trees, last."""
        failpoint("ledger.changes.insert")
        record_changes_raw(self.cursor, self.dialect, provider_ids)

    def instant(self, value: Any) -> datetime | None:
        """An instant as a driver returns it."""
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def document(self, value: Any) -> Any:
        """A JSON document as a driver returns it."""
        return json.loads(value) if isinstance(value, str | bytes) else value
