"""Which providers changed since when: a feed that is safe to follow while others write.

Every edit of a provider and every claim calls :func:`note_changes` in its own transaction; a tree calls
:func:`changes_since` with the watermark of its last call. A number drawn from a sequence would not do as watermark:
one writer draws 1, another draws 2 and commits, a reader stands at 2, and then 1 commits and is never seen.

* PostgreSQL: a row carries the id of its transaction, and the watermark is a whole snapshot. What the old snapshot
  could not see is new, each row exactly once, whatever the order of commits. Writers share nothing.
* MariaDB and MySQL know no such function. A writer counts up one of a few slots as its last step; the row lock makes
  the numbers within a slot appear in the order of commits, and the watermark holds one number a slot. The slot goes by
  the connection, so writers of one pool rarely wait for each other.
* SQLite has one writer at a time: one slot. What changed in order may be repeated in order, so the feed also says what
  is in use after the change: to look it up, provider by provider, would touch as many pages. Another slot counts edits
  of providers: a reader that finds none since its watermark has all that it needs in the feed (:func:`use_since`).

Writers call :func:`note_changes` last before their commit, so that a slot is held briefly and always after every
other lock, and so that what it says of use is true.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore.database import utc_now
from cloudcore.errors import InvalidArgument, WatermarkLost
from cloudcore.placement.tables import provider_change_slots as slots
from cloudcore.placement.tables import provider_changes as changes
from cloudcore.placement.tables import resource_providers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection

__all__ = ["MYSQL_COUNT", "MYSQL_SLOT", "changes_since", "note_changes", "prune_changes", "record_changes"]

_EDITS = 1  # the slot on SQLite that counts edits
_SLOTS = 16  # on MariaDB/MySQL; more would spread writers better and cost readers more

_POSTGRESQL_RECORD = """
INSERT INTO provider_changes (slot, position, provider_id)
SELECT 0, pg_current_xact_id()::text::bigint, unnest(%s::bigint[]) ON CONFLICT DO NOTHING
"""
_SQLITE_COUNT = """
INSERT INTO provider_change_slots (slot, position, pruned) VALUES (0, 1, 0)
ON CONFLICT (slot) DO UPDATE SET position = position + 1 RETURNING position
"""
_SQLITE_EDITED = f"""
INSERT INTO provider_change_slots (slot, position, pruned) VALUES ({_EDITS}, 1, 0)
ON CONFLICT (slot) DO UPDATE SET position = position + 1
"""  # noqa: S608 - a constant
_READ_SLOTS = "SELECT slot, position, pruned FROM provider_change_slots ORDER BY slot"
_LONG = 10_000  # rows of the feed; beyond, most of them are about the same providers, which are better looked up
_SQLITE_USE = f"""
SELECT provider_id, resource_class, used FROM provider_changes
WHERE slot = 0 AND position > ? AND position <= ? AND used IS NOT NULL ORDER BY position LIMIT {_LONG + 1}
"""  # noqa: S608 - a constant
_SQLITE_RECORD_USE = """
INSERT INTO provider_changes (slot, position, provider_id, resource_class, used)
SELECT 0, ?, changed.value, COALESCE(i.resource_class, ''), i.used
FROM json_each(?) AS changed LEFT JOIN inventories i ON i.provider_id = changed.value
"""  # a provider without inventories, or without anything left of it, has a row too
_SQLITE_RECORD_EDIT = """
INSERT INTO provider_changes (slot, position, provider_id) SELECT 0, ?, value FROM json_each(?)
"""
MYSQL_SLOT = f"MOD(CONNECTION_ID(), {_SLOTS})"
"""The slot of a writer on MariaDB and MySQL."""
MYSQL_COUNT = f"""
INSERT INTO provider_change_slots (slot, position, pruned) VALUES ({MYSQL_SLOT}, LAST_INSERT_ID(1), 0)
ON DUPLICATE KEY UPDATE position = LAST_INSERT_ID(position + 1)
"""  # noqa: S608 - a constant
_MYSQL_RECORD = "INSERT INTO provider_changes (slot, position, provider_id) VALUES {rows}"
_MYSQL_ROW = f"({MYSQL_SLOT}, LAST_INSERT_ID(), %s)"
_MYSQL_ROWS = 500  # in a statement
_NAMED = 1_000  # ids in a statement

_POSTGRESQL_NOW = """
CASE WHEN pg_is_in_recovery() -- a standby's snapshot does not list who is in progress: its lower end is the watermark
     THEN pg_snapshot_xmin(pg_current_snapshot())::text || ':' || pg_snapshot_xmin(pg_current_snapshot())::text || ':'
     ELSE pg_current_snapshot()::text END
"""
_POSTGRESQL_START = sa.text(f"SELECT {_POSTGRESQL_NOW}".replace("::", r"\:\:"))
_POSTGRESQL_NEWS = """
SELECT now.watermark, now.ahead, now.pruned, {columns}
FROM (SELECT {now} AS watermark,
             pg_snapshot_xmax(CAST(%(old)s AS pg_snapshot)) > pg_snapshot_xmax(pg_current_snapshot()) AS ahead,
             pg_snapshot_xmin(CAST(%(old)s AS pg_snapshot))::text::bigint
             < COALESCE((SELECT pruned FROM provider_change_slots WHERE slot = 0), 0) AS pruned) AS now
LEFT JOIN (SELECT DISTINCT provider_id FROM provider_changes
           WHERE slot = 0 AND position >= pg_snapshot_xmin(CAST(%(old)s AS pg_snapshot))::text::bigint
           AND NOT pg_visible_in_snapshot(position::text::xid8, CAST(%(old)s AS pg_snapshot))) AS news ON true {use}
""".replace("{now}", _POSTGRESQL_NOW)
_POSTGRESQL_SINCE = _POSTGRESQL_NEWS.replace("{columns}", "news.provider_id").replace("{use}", "")
_POSTGRESQL_USE_OF_EACH = """
LEFT JOIN LATERAL (SELECT i.resource_class, i.used, p.generation FROM resource_providers p
                   LEFT JOIN inventories i ON i.provider_id = p.id
                   WHERE p.id = news.provider_id OFFSET 0) AS use ON true -- looked up one by one: few of many changed
"""
_POSTGRESQL_USE = _POSTGRESQL_NEWS.replace("{use}", _POSTGRESQL_USE_OF_EACH).replace(
    "{columns}", "news.provider_id, use.resource_class, use.used, use.generation"
)


def record_changes(connection: Connection, provider_ids: Iterable[int], *, edited: bool = True) -> None:
    """Note in the transaction of *connection* that these providers changed: anything that a search would see.

    For whoever writes the tables without a tree or a ledger. Counts the generations of the providers up: by them trees
    that follow tell what to read anew, and an edit that was planned on what was there before is refused. Call it last
    before the commit, in any case after the last write of what is in use, which SQLite's feed repeats.

    Args:
        connection: In the transaction of the change.
        provider_ids: Which providers.
        edited: False when nothing changed but what is in use of them: no generation is counted up, and trees that
            follow read less.
    """
    chosen = sorted(set(provider_ids))
    counted = {"generation": resource_providers.c.generation + 1, "updated_at": utc_now()}
    for first in range(0, len(chosen) if edited else 0, _NAMED):
        held = resource_providers.c.id.in_(chosen[first : first + _NAMED])
        connection.execute(sa.update(resource_providers).where(held).values(counted))
    note_changes(connection, chosen, edited=edited)


def note_changes(connection: Connection, provider_ids: Iterable[int], *, edited: bool = True) -> None:
    """Do as :func:`record_changes` for an edit that has counted the generations up itself.

    Costs one statement on PostgreSQL, two or three on the others.
    """
    chosen = sorted(set(provider_ids))
    if not chosen:
        return
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.exec_driver_sql(_POSTGRESQL_RECORD, (chosen,))
    elif dialect == "sqlite":
        if edited:
            connection.exec_driver_sql(_SQLITE_EDITED)
        position = connection.exec_driver_sql(_SQLITE_COUNT).scalar_one()
        record = _SQLITE_RECORD_EDIT if edited else _SQLITE_RECORD_USE
        connection.exec_driver_sql(record, (position, json.dumps(chosen)))
    else:
        connection.exec_driver_sql(MYSQL_COUNT)
        for statement, part in _mysql_records(chosen):
            connection.exec_driver_sql(statement, part)


def record_changes_raw(cursor: Any, dialect: str, provider_ids: Iterable[int]) -> None:
    """Do as :func:`note_changes` on a cursor of the driver, for what is in use: the ledger's hot path.

    Where the transaction also edits providers, it calls :func:`record_edit_raw` before.
    """
    chosen = sorted(set(provider_ids))
    if not chosen:
        return
    if dialect == "postgresql":
        cursor.execute(_POSTGRESQL_RECORD, (chosen,))
    elif dialect == "sqlite":
        position = cursor.execute(_SQLITE_COUNT).fetchone()[0]
        cursor.execute(_SQLITE_RECORD_USE, (position, json.dumps(chosen)))
    else:
        cursor.execute(MYSQL_COUNT)
        for statement, part in _mysql_records(chosen):
            cursor.execute(statement, part)


def _mysql_records(provider_ids: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Statements of many rows, and their values.

    ``executemany`` would send each row by itself: PyMySQL joins only rows that are nothing but placeholders.
    """
    for start in range(0, len(provider_ids), _MYSQL_ROWS):
        part = tuple(provider_ids[start : start + _MYSQL_ROWS])
        yield _MYSQL_RECORD.replace("{rows}", ", ".join([_MYSQL_ROW] * len(part))), part


def record_edit_raw(cursor: Any, dialect: str) -> None:
    """Note that the transaction edits providers, besides what is in use of them."""
    if dialect == "sqlite":
        cursor.execute(_SQLITE_EDITED)


def changes_since(connection: Connection, watermark: str | None) -> tuple[frozenset[int], str]:
    """Return the ids of the providers that changed since *watermark*, and the new watermark.

    With None nothing is returned but the watermark: read it **before** loading everything, then follow.
    Every change committed before this call, and after the call that gave *watermark*, is in the answer; a deleted
    provider is named too. The watermark is opaque text, valid in any process, and belongs to this database.

    Raises:
        WatermarkLost: The feed was pruned beyond it, or the database was restored; load everything again.
        InvalidArgument: It is no watermark.
    """
    if connection.dialect.name == "postgresql":
        return _since_snapshot(connection, watermark)
    return _since_positions(connection, watermark)


def use_since(connection: sqlite3.Connection, watermark: str) -> tuple[list[tuple[int, str, int]], str] | None:
    """What is in use of all that changed since *watermark*, and the new watermark, when nothing else changed.

    Rows are (provider id, class, units), one for each class of such a provider. None when providers were edited, or a
    great deal happened: then ask :func:`changes_since`. Only SQLite can tell, and it is asked without SQLAlchemy, in a
    transaction of *connection*: this is what a tree does before every search.

    Raises:
        InvalidArgument: It is no watermark.
        sqlite3.Error: The database does not answer.
    """
    old = _decode_positions(watermark)
    now = {slot: (position, pruned) for slot, position, pruned in connection.execute(_READ_SLOTS)}
    edits, (position, pruned) = now.get(_EDITS, (None, 0))[0], now.get(0, (0, 0))
    begin = old.get(0, 0)
    if edits != old.get(_EDITS) or not pruned <= begin <= position:
        return None
    rows = connection.execute(_SQLITE_USE, (begin, position)).fetchall() if begin < position else []
    if len(rows) > _LONG:
        return None
    latest = {(number, name): used for number, name, used in rows}  # those that come later stand
    return [(number, name, used) for (number, name), used in latest.items()], _encode_positions(now)


def _since_snapshot(connection: Connection, watermark: str | None) -> tuple[frozenset[int], str]:
    if watermark is None:
        return frozenset(), str(connection.execute(_POSTGRESQL_START).scalar_one())
    rows = _news(connection, _POSTGRESQL_SINCE, watermark)
    return frozenset(row[3] for row in rows if row[3] is not None), str(rows[0][0])


def use_since_snapshot(connection: Connection, watermark: str) -> tuple[list[tuple[Any, ...]], str]:
    """On PostgreSQL: what is in use of all that changed since *watermark*, and the new watermark.

    One statement, which sees one moment, be it outside any transaction. Rows are (provider id, class, units,
    generation), one for each class of such a provider; without a class for a provider that has none, and without a
    generation for one that is gone.

    Raises:
        WatermarkLost, InvalidArgument: As :func:`changes_since` does.
    """
    rows = _news(connection, _POSTGRESQL_USE, watermark)
    return [row[3:] for row in rows if row[3] is not None], str(rows[0][0])


def _news(connection: Connection, statement: str, watermark: str) -> list[tuple[Any, ...]]:
    if not watermark or watermark.strip("0123456789:,"):
        raise _not_a_watermark(watermark)
    cursor: Any = connection.exec_driver_sql(statement, {"old": watermark}).cursor
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    if rows[0][1] or rows[0][2]:
        raise _lost(watermark)
    return rows


def _since_positions(connection: Connection, watermark: str | None) -> tuple[frozenset[int], str]:
    now = _read_slots(connection)
    new = _encode_positions(now)
    if watermark is None:
        return frozenset(), new
    if new == watermark:
        return frozenset(), new
    old = _decode_positions(watermark)
    if any(slot not in now or position > now[slot][0] for slot, position in old.items()):
        raise _lost(watermark)
    moved = {slot: old.get(slot, 0) for slot, (position, _) in now.items() if position > old.get(slot, 0)}
    found: set[int] = set()
    for slot, position in moved.items():
        bounds = f"slot = {slot} AND position > {position} AND position <= {now[slot][0]}"  # whole numbers, all three
        rows = _fetch(connection, f"SELECT DISTINCT provider_id FROM provider_changes WHERE {bounds}")  # noqa: S608 - they are
        found.update(itertools.chain.from_iterable(rows))
    # Pruning may have run between the two looks; what it took away must not be missed.
    if moved and any(pruned > moved.get(slot, pruned) for slot, (_, pruned) in _read_slots(connection).items()):
        raise _lost(watermark)
    return frozenset(found), new


def _read_slots(connection: Connection) -> dict[int, tuple[int, int]]:
    return {slot: (position, pruned) for slot, position, pruned in _fetch(connection, _READ_SLOTS)}


def _fetch(connection: Connection, statement: str) -> list[tuple[Any, ...]]:
    """Rows as the driver gives them: a follower reads thousands, of numbers that need no conversion."""
    cursor: Any = connection.exec_driver_sql(statement).cursor
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _encode_positions(now: Mapping[int, tuple[int, int]]) -> str:
    return json.dumps({str(slot): position for slot, (position, _) in now.items()}, separators=(",", ":"))


def _decode_positions(watermark: str) -> dict[int, int]:
    try:
        decoded = json.loads(watermark)
        return {int(slot): int(position) for slot, position in decoded.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _not_a_watermark(watermark) from error


def _not_a_watermark(watermark: str) -> InvalidArgument:
    return InvalidArgument(f"{watermark!r} is no watermark of this database", field="watermark", value=watermark)


def _lost(watermark: str) -> WatermarkLost:
    return WatermarkLost(
        "the change feed no longer reaches back to this watermark; load everything again", identifier=watermark
    )


def prune_changes(connection: Connection, *, keep: int = 100_000, limit: int | None = None) -> int:
    """Forget all but about the newest *keep* changes; return how many rows went.

    With *limit*, at most so many changes of each slot, the oldest: call again until nothing goes. A writer waits for
    the end of this transaction.

    A reader whose watermark lies before that gets :class:`~cloudcore.errors.WatermarkLost`. On MariaDB and MySQL
    *keep* counts for each slot; there and on SQLite it counts transactions, which have a row for each provider, on
    SQLite for each class of it.
    """
    if connection.dialect.name == "postgresql":
        return _prune_snapshot(connection, keep, limit)
    gone = 0
    for slot, (position, pruned) in _read_slots(connection).items():
        horizon = position - keep
        if limit is not None:
            oldest = connection.scalar(sa.select(sa.func.min(changes.c.position)).where(changes.c.slot == slot))
            horizon = min(horizon, (oldest or 0) + limit - 1)
        if horizon > pruned:
            connection.execute(sa.update(slots).where(slots.c.slot == slot).values(pruned=horizon))
            old = sa.delete(changes).where(changes.c.slot == slot, changes.c.position <= horizon)
            gone += connection.execute(old).rowcount
    return gone


_POSTGRESQL_CUT = sa.text(
    """
SELECT LEAST((SELECT position FROM provider_changes WHERE slot = 0 ORDER BY position DESC OFFSET :keep LIMIT 1),
             pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)
""".replace("::", r"\:\:")
)
_POSTGRESQL_PRUNED = sa.text("""
INSERT INTO provider_change_slots (slot, position, pruned) VALUES (0, 0, :cut)
ON CONFLICT (slot) DO UPDATE SET pruned = GREATEST(provider_change_slots.pruned, EXCLUDED.pruned)
""")


def _prune_snapshot(connection: Connection, keep: int, limit: int | None) -> int:
    if connection.execute(sa.select(changes.c.position).offset(keep).limit(1)).first() is None:
        return 0
    cut = connection.execute(_POSTGRESQL_CUT, {"keep": keep}).scalar_one()
    if limit is not None:
        portion = sa.select(changes.c.position).order_by(changes.c.position).offset(limit - 1).limit(1)
        cut = min(cut, connection.scalar(portion) or cut)
    connection.execute(_POSTGRESQL_PRUNED, {"cut": cut + 1})
    old = sa.delete(changes).where(changes.c.slot == 0, changes.c.position <= cut)
    return connection.execute(old).rowcount
