"""Who held what, when: one row for each consumer that a call of the ledger wrote, never changed afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.placement.tables import allocation_history as table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from cloudcore.placement.rules.claims import Allocations

__all__ = ["HistoryEntry", "entries_of", "held_at", "holders_at", "prune"]


@attrs.frozen(kw_only=True)
class HistoryEntry:
    """What a consumer held from an instant on.

    Attributes:
        consumer: Its uuid.
        recorded_at: By the database's clock.
        event: The call: ``claim``, ``begin_move``, ``release``, ...
        operation_id: The id of that call.
        allocations: By provider uuid; empty when it held nothing from then on.
    """

    consumer: str
    recorded_at: datetime
    event: str
    operation_id: str
    allocations: Allocations


def _entry(row: Any) -> HistoryEntry:
    return HistoryEntry(
        consumer=row.consumer,
        recorded_at=row.recorded_at,
        event=row.event,
        operation_id=row.operation_id,
        allocations=row.holdings,
    )


def entries_of(connection: Connection, consumer: str, limit: int) -> list[HistoryEntry]:
    """The newest *limit* entries of *consumer*, oldest first."""
    query = sa.select(table).where(table.c.consumer == consumer).order_by(table.c.id.desc()).limit(limit)
    return [_entry(row) for row in reversed(connection.execute(query).all())]


def held_at(connection: Connection, consumer: str, instant: datetime) -> HistoryEntry | None:
    """The entry that held for *consumer* at *instant*; None if none reaches back so far."""
    query = sa.select(table).where(table.c.consumer == consumer, table.c.recorded_at <= instant)
    row = connection.execute(query.order_by(table.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else _entry(row)


def holders_at(connection: Connection, provider: str, instant: datetime) -> list[HistoryEntry]:
    """The entries of all consumers that held something of *provider* at *instant*. Reads the whole history."""
    newest = (
        sa.select(sa.func.max(table.c.id).label("id"))
        .where(table.c.recorded_at <= instant)
        .group_by(table.c.consumer)
        .subquery()
    )
    query = sa.select(table).join(newest, newest.c.id == table.c.id).order_by(table.c.consumer)
    return [_entry(row) for row in connection.execute(query) if provider in row.holdings]


def prune(connection: Connection, older_than: datetime, limit: int) -> int:
    """Forget at most *limit* entries recorded before *older_than*; return how many.

    What each consumer held at that instant stays known: its newest entry before it is kept, unless it held nothing.
    """
    later = table.alias()
    overtaken = sa.exists().where(
        later.c.consumer == table.c.consumer, later.c.id > table.c.id, later.c.recorded_at < older_than
    )
    nothing = sa.cast(table.c.holdings, sa.String) == "{}"
    old = sa.select(table.c.id).where(table.c.recorded_at < older_than, sa.or_(overtaken, nothing))
    ids: Iterable[int] = list(connection.scalars(old.order_by(table.c.id).limit(limit)))
    return connection.execute(sa.delete(table).where(table.c.id.in_(ids))).rowcount if ids else 0
