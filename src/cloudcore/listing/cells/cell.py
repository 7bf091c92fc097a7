"""A cell as callers describe it: a name and the database where one shard of the records is kept."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool

from cloudcore._values import (
    require_flag,
    require_integer,
    require_items,
    require_mapping,
    require_seconds,
    require_text,
)
from cloudcore.database.addresses import parse_url
from cloudcore.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import URL, Engine

    from cloudcore.database import PoolerMode

__all__ = ["Cell", "engines_of", "kept_by_engines"]


def _replicas(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | sa.URL | sa.Engine):  # a URL is a tuple, too
        return (value,)
    return require_items(value, "replicas", "URLs or engines")


@attrs.frozen
class Cell:
    """One cell: a name and a database.

    Attributes:
        name: Unique in its router, up to 64 characters.
        database: A URL, whose connections the router opens, keeps and closes; or an engine of yours, whose pool is
            used for one statement at a time and whose session settings are left as they are. What its pool keeps open
            (``pool_size``) is yours to bound, and is taken off what the router keeps.
        replicas: Databases with the same content, asked when the first is late or away. Their rows may be as stale
            as they are.
        deadline: Seconds within which the cell must answer a page; None for the router's.
        connections: At most so many at once, for each of its databases.
        enabled: False: it is never asked, and pages say so.
        pooler: ``"transaction"`` when the URLs lead to a pooler that lends its sessions for a transaction, as PgBouncer
            does: then no statement is prepared and no time-out set, and a late one is cut off from this side. Give the
            role a ``statement_timeout`` of its own there.
        options: For :func:`sqlalchemy.create_engine`, when *database* is a URL.
    """

    name: str = attrs.field()
    database: str | URL | Engine = attrs.field(repr=False)
    replicas: tuple[str | URL | Engine, ...] = attrs.field(default=(), converter=_replicas, kw_only=True, repr=False)
    deadline: float | None = attrs.field(default=None, kw_only=True)
    connections: int = attrs.field(default=8, kw_only=True)
    enabled: bool = attrs.field(default=True, kw_only=True)
    pooler: PoolerMode | None = attrs.field(default=None, kw_only=True)
    options: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, repr=False)

    @name.validator
    def _check_name(self, _: attrs.Attribute[Any], value: str) -> None:
        require_text(value, "name", maximum=64)

    @deadline.validator
    def _check_deadline(self, _: attrs.Attribute[Any], value: float | None) -> None:
        require_seconds(value, "deadline")

    @connections.validator
    def _check_connections(self, _: attrs.Attribute[Any], value: int) -> None:
        require_integer(value, "connections", minimum=1)

    def __attrs_post_init__(self) -> None:
        """Refuse what is of another type."""
        require_flag(self.enabled, "enabled")
        require_mapping(self.options, "options")
        if self.pooler not in (None, "transaction"):
            raise InvalidArgument(f"pooler: expected 'transaction' or None, got {self.pooler!r:.100}", field="pooler")
        for given in (self.database, *self.replicas):
            if not isinstance(given, sa.Engine):
                parse_url(given)


def engines_of(cell: Cell) -> frozenset[Engine]:
    """Those among its databases that are engines of the caller's."""
    return frozenset(each for each in (cell.database, *cell.replicas) if isinstance(each, sa.Engine))


def kept_by_engines(cells: Iterable[Cell]) -> int:
    """Connections that the pools of the callers' engines keep open once the router has used them."""
    used: Counter[Engine] = Counter()
    for cell in cells:
        for engine in engines_of(cell):
            used[engine] += cell.connections
    return sum(_kept(engine, number) for engine, number in used.items())


def _kept(engine: Engine, used: int) -> int:
    """Of so many that are used at once."""
    if isinstance(engine.pool, NullPool):
        return 0
    size = engine.pool.size() if isinstance(engine.pool, QueuePool) else 0
    return min(size, used) if size else used  # 0 is no bound
