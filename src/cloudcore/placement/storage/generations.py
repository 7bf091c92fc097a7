"""Provider generations as Placement counts them, for clients that compare numbers across calls.

cloudcore's own generation counts edits of a provider, and nothing else. Placement's also grows with every write of
allocations on the provider and with writes that change nothing, and does not grow when a provider is renamed or hung
elsewhere. A deployment whose clients rely on that (Nova's report client keeps the numbers that it has seen) says
``generations="placement"`` to its trees and its ledgers, to all of them; the count then stands in a table of its own,
written in the transaction of what is counted. Until a provider is first written so, its count is cloudcore's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from cloudcore.errors import GenerationConflict, InvalidArgument
from cloudcore.placement.tables import provider_generations, resource_providers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.engine import Connection

    from cloudcore.placement.forest.forest import Edit
    from cloudcore.placement.forest.values import Provider

__all__ = ["Generations", "count", "read_generations", "require_policy", "steps_of"]

Generations = Literal["cloudcore", "placement"]
"""Who counts: see the docstring of this module."""

_CHUNK = 500
_HOLD = """
INSERT INTO provider_generations (provider_id, generation)
SELECT id, generation FROM resource_providers WHERE id IN :ids ORDER BY id {kept}
"""
_KEPT = "ON CONFLICT DO NOTHING"
_KEPT_ON_MYSQL = "ON DUPLICATE KEY UPDATE provider_id = provider_generations.provider_id"
"""An INSERT IGNORE would share the lock of a row that is there: two could both have it, and neither then write."""
_COUNTS = provider_generations.c
_READ = (
    sa.select(resource_providers.c.uuid, sa.func.coalesce(_COUNTS.generation, resource_providers.c.generation))
    .select_from(resource_providers.outerjoin(provider_generations))
    .where(resource_providers.c.uuid.in_(sa.bindparam("uuids", expanding=True)))
)


def require_policy(value: str) -> bool:
    """Whether *value* is ``placement``.

    Raises:
        InvalidArgument: It is neither that nor ``cloudcore``.
    """
    if value not in {"cloudcore", "placement"}:
        raise InvalidArgument(
            f"generations: {value!r} is neither cloudcore nor placement", field="generations", value=value
        )
    return value == "placement"


def steps_of(name: str, arguments: Mapping[str, Any], edit: Edit, about: Provider) -> dict[int, int]:
    """By id, how much the count of each provider that is there grows by the edit *name*. Pure.

    Inventories count whenever they are written, traits when they change, aggregates when the caller named a generation
    (before microversion 1.19 nobody could); names and parents do not count.
    """
    steps = {provider.number: 0 for provider in edit.put if provider.number and provider.generation}
    if name in {"placement.put_inventory", "placement.remove_inventory"}:
        steps[about.number] = 1
    if name == "placement.update":
        changes = arguments["changes"]
        written = "inventories" in changes
        traits = "traits" in changes and changes["traits"] != about.traits
        aggregates = "aggregates" in changes and arguments["generation"] is not None
        steps[about.number] = int(written or traits or aggregates)
    return steps


def count(connection: Connection, steps: Mapping[int, int], expected: Mapping[int, int] | None = None) -> None:
    """Add to the counts of providers (by id), in the transaction of *connection* and in the order of ids.

    Every provider that is named has a row afterwards, so that cloudcore's own count no longer shows through.

    Raises:
        GenerationConflict: A count is not the one *expected*; nothing may be committed.
    """
    chosen = sorted(steps)
    if not chosen:
        return
    kept = _KEPT_ON_MYSQL if connection.dialect.name in {"mysql", "mariadb"} else _KEPT
    hold = sa.text(_HOLD.format(kept=kept)).bindparams(sa.bindparam("ids", expanding=True))
    for start in range(0, len(chosen), _CHUNK):
        connection.execute(hold, {"ids": chosen[start : start + _CHUNK]})
    for number in chosen:
        row = sa.update(provider_generations).where(_COUNTS.provider_id == number)
        wanted = None if expected is None else expected.get(number)
        if wanted is not None:
            row = row.where(_COUNTS.generation == wanted)
        done = connection.execute(row.values(generation=_COUNTS.generation + steps[number])).rowcount
        if not done and wanted is not None:
            raise _conflict(connection, number, wanted)


def _conflict(connection: Connection, number: int, wanted: int) -> GenerationConflict:
    columns = resource_providers.c
    query = sa.select(columns.uuid, columns.name, _COUNTS.generation).where(columns.id == number)
    row = connection.execute(query.select_from(resource_providers.outerjoin(provider_generations))).one_or_none()
    name, found = (f"provider {number}", None) if row is None else (row.name, row.generation)
    return GenerationConflict(
        f"{name}: at generation {found} as Placement counts, not {wanted}; read it again, then decide",
        identifier=None if row is None else row.uuid,
        expected=wanted,
        found=found,
    )


def read_generations(connection: Connection, uuids: Iterable[str]) -> dict[str, int]:
    """Uuid → count, of those that are there."""
    chosen = list(uuids)
    found: dict[str, int] = {}
    for start in range(0, len(chosen), _CHUNK):
        rows = connection.execute(_READ, {"uuids": chosen[start : start + _CHUNK]})
        found.update((uuid, int(generation)) for uuid, generation in rows)
    return found
