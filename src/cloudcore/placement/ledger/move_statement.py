"""The usual beginning of a move in one statement, and so one round trip, on PostgreSQL.

The instance's row is locked, then the destination's inventories in their order; the verdict is computed from what the
locks gave, and if it is good the migration takes the instance's rows over as they are, and the instance gets new ones.
What the statement reads without a lock is as old as the statement. So the verdict is good only if the instance is at
the generation that was seen: whoever changes what a consumer holds, or begins a move of it, counts that up under the
same lock. Whatever is out of the ordinary, a member of a group among it, changes nothing here, and is decided by
:mod:`.moves`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.database import Operation, Outcome, translate
from cloudcore.errors import DatabaseUnavailable, OutcomeUnknown
from cloudcore.placement.ledger.claim_statements import BOUND
from cloudcore.placement.ledger.moves import MIGRATION, MoveRequest, move_as_json
from cloudcore.placement.ledger.session import Session, to_json
from cloudcore.placement.rules.claims import total_by_class
from cloudcore.placement.rules.moves import MoveKind

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from cloudcore.database import Database

__all__ = ["begin_in_one_statement", "is_usual"]

_BOUND_INSTANCE = "FROM bound, consumers WHERE uuid = %(instance)s FOR UPDATE OF consumers"
# Arrays in sub-selects: see the single statement of a claim.
_ONE_STATEMENT = """
WITH wanted AS MATERIALIZED (
    SELECT p.id AS provider_id, w.resource_class, w.amount
    FROM unnest((SELECT %(providers)s::text[]), (SELECT %(classes)s::text[]), (SELECT %(amounts)s::bigint[]))
         AS w (provider, resource_class, amount)
    JOIN resource_providers p ON p.uuid = w.provider
), seen AS MATERIALIZED (
    SELECT id, generation FROM consumers WHERE uuid = %(instance)s
), instance AS MATERIALIZED (
    SELECT id, generation, project_id, user_id, retired_at IS NULL
           AND COALESCE(expires_at > clock_timestamp(), true)
           AND COALESCE(generation = %(generation)s::bigint, true) AS fine
    FROM consumers WHERE uuid = %(instance)s FOR UPDATE
), locked AS MATERIALIZED (
    SELECT i.provider_id, i.resource_class, i.min_unit, i.max_unit, i.step_size, i.capacity, i.used, w.amount
    FROM instance, inventories i JOIN wanted w ON w.provider_id = i.provider_id AND w.resource_class = i.resource_class
    ORDER BY i.provider_id, i.resource_class FOR NO KEY UPDATE OF i
), held AS MATERIALIZED (
    SELECT a.provider_id, a.resource_class, a.amount, p.uuid
    FROM seen JOIN allocations a ON a.consumer_id = seen.id JOIN resource_providers p ON p.id = a.provider_id
), source AS MATERIALIZED (
    SELECT jsonb_object_agg(uuid, amounts) AS source
    FROM (SELECT uuid, jsonb_object_agg(resource_class, amount) AS amounts FROM held GROUP BY uuid) AS by_provider
), shape AS MATERIALIZED (
    SELECT jsonb_object_agg(resource_class, total) AS shape
    FROM (SELECT resource_class, SUM(amount) AS total FROM held GROUP BY resource_class) AS by_class
), deadline AS MATERIALIZED (
    SELECT clock_timestamp() + %(expires_in)s::float8 * interval '1 second' AS expires_at
), verdict AS MATERIALIZED (
    SELECT instance.fine AND instance.generation = seen.generation
       AND (SELECT count(*) = cardinality(%(amounts)s::bigint[]) AND COALESCE(bool_and(used + amount <= capacity
            AND amount BETWEEN min_unit AND max_unit AND amount %% step_size = 0), false) FROM locked)
       AND EXISTS (SELECT FROM held)
       AND COALESCE((SELECT shape FROM shape) = %(shape)s::jsonb, true)
       AND NOT EXISTS (SELECT FROM moves WHERE instance = %(instance)s AND state IN ('held', 'awaiting_proof'))
       AND NOT EXISTS (SELECT FROM moves WHERE migration IN (%(instance)s, %(migration)s))
       AND NOT EXISTS (SELECT FROM host_group_members WHERE instance = %(instance)s) AS good
    FROM instance JOIN seen ON seen.id = instance.id
), operation AS (
    INSERT INTO operations (id, name, fingerprint, result, created_at)
    SELECT %(operation)s, %(name)s, %(fingerprint)s, (%(move)s::jsonb || jsonb_build_object('source', source,
           'expires_at', to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00')))::text,
           clock_timestamp()
    FROM verdict, source, deadline WHERE good ON CONFLICT DO NOTHING RETURNING id
), migrant AS (
    INSERT INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at)
    SELECT %(migration)s, project_id, user_id, %(consumer_type)s, 1, clock_timestamp() FROM instance, operation
    ON CONFLICT DO NOTHING RETURNING id
), recorded AS (
    INSERT INTO moves (migration, instance, kind, state, source, destination, options, story, created_at, updated_at,
                       expires_at)
    SELECT %(migration)s, %(instance)s, %(kind)s, %(state)s, source, %(destination)s::jsonb, %(options)s::jsonb,
           %(story)s::jsonb, clock_timestamp(), clock_timestamp(), expires_at FROM source, deadline, migrant
    ON CONFLICT DO NOTHING RETURNING migration
), taken AS (
    UPDATE inventories i SET used = i.used + l.amount FROM locked l, recorded
    WHERE i.provider_id = l.provider_id AND i.resource_class = l.resource_class AND i.used + l.amount <= i.capacity
    RETURNING i.provider_id
), handed AS (
    UPDATE allocations a SET consumer_id = migrant.id FROM migrant, seen WHERE a.consumer_id = seen.id
    RETURNING a.provider_id
), placed AS ( -- after the old rows have gone: a provider may be on both sides
    INSERT INTO allocations (consumer_id, provider_id, resource_class, amount)
    SELECT instance.id, l.provider_id, l.resource_class, l.amount
    FROM locked l, instance, (SELECT count(*) AS rows FROM handed) AS gone WHERE gone.rows > 0 RETURNING provider_id
), counted_up AS (
    UPDATE consumers c SET generation = c.generation + 1 FROM instance, recorded WHERE c.id = instance.id
    RETURNING c.id
), noted AS (
    INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings)
    SELECT consumer, clock_timestamp(), 'begin_move', operation.id, holdings
    FROM operation, source, LATERAL (VALUES (%(instance)s::text, %(destination)s::jsonb),
         (%(migration)s::text, source.source)) AS v (consumer, holdings) WHERE %(history)s
), told AS (
    INSERT INTO provider_changes (slot, position, provider_id)
    SELECT 0, pg_current_xact_id()::text::bigint, provider_id
    FROM (SELECT provider_id FROM taken UNION SELECT provider_id FROM handed) AS changed
)
SELECT source, expires_at, (SELECT count(*) FROM operation),
       1 / CASE WHEN (SELECT count(*) FROM operation) = 0 OR (
           (SELECT count(*) FROM recorded) = 1 AND (SELECT count(*) FROM counted_up) = 1
           AND (SELECT count(*) FROM taken) = cardinality(%(amounts)s::bigint[])
           AND (SELECT count(*) FROM placed) = cardinality(%(amounts)s::bigint[])
           AND (SELECT count(*) FROM handed) = (SELECT count(*) FROM held)) THEN 1 ELSE 0 END
FROM source, deadline
"""
_ONE_BOUNDED_STATEMENT = (
    _ONE_STATEMENT.replace("WITH wanted", BOUND, 1)
    .replace("FROM unnest(", "FROM bound, unnest(", 1)
    .replace("FROM consumers WHERE uuid = %(instance)s FOR UPDATE", _BOUND_INSTANCE, 1)
)
_ABORTED = "22012"  # division by zero: the statement took its own writes back


def is_usual(asked: MoveRequest) -> bool:
    """Whether :func:`begin_in_one_statement` knows what *asked* needs: the halves count apart, nothing is refused."""
    return asked.overlap == "sum" and not asked.shared and not (asked.kind is MoveKind.EVACUATION and asked.expires_in)


def begin_in_one_statement(
    database: Database, operation: Operation, asked: MoveRequest, *, history: bool
) -> Outcome[dict[str, Any] | None]:
    """Begin the move in a transaction of its own; a result of None if nothing was changed and it is still to be done.

    For :meth:`Database.resolve`.

    Raises:
        OutcomeUnknown: The connection was lost after the statement was sent.
        DatabaseUnavailable, DatabaseBusy: Nothing was changed.
    """
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            bound = database.lock_timeout_to_say
            begun = _begin_on(connection, operation, asked, history=history, lock_timeout=bound)
            return Outcome(result=begun, repeated=False)
    except sa.exc.SQLAlchemyError as error:  # before the statement was sent, or after it was answered
        raise translate(error, database.engine) from error


def _begin_on(
    connection: Connection, operation: Operation, asked: MoveRequest, *, history: bool, lock_timeout: int | None
) -> dict[str, Any] | None:
    move = move_as_json(asked.of({}, operation.id))
    session = Session(connection)
    failpoint("ledger.begin.statement.before")
    try:
        with session.errors():
            statement = _ONE_STATEMENT if lock_timeout is None else _ONE_BOUNDED_STATEMENT
            parameters = _parameters(move, operation, asked, history=history)
            session.cursor.execute(statement, {**parameters, "lock_timeout": str(lock_timeout)})
            source, expires_at, done, _ = session.cursor.fetchall()[0]
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _ABORTED:
            return None
        found = translate(error, connection.engine)
        if isinstance(found, DatabaseUnavailable):
            raise OutcomeUnknown(str(found), operation_id=operation.id) from error
        raise found from error
    failpoint("ledger.begin.statement.after")
    if not done:
        return None
    deadline = session.instant(expires_at)
    move["source"] = {provider: dict(sorted(held.items())) for provider, held in sorted(source.items())}
    move["expires_at"] = None if deadline is None else deadline.isoformat()
    return move


def _parameters(move: dict[str, Any], operation: Operation, asked: MoveRequest, *, history: bool) -> dict[str, Any]:
    rows = [(provider, name, n) for provider, classes in asked.destination.items() for name, n in classes.items()]
    return {
        "providers": [row[0] for row in rows],
        "classes": [row[1] for row in rows],
        "amounts": [row[2] for row in rows],
        "instance": asked.instance,
        "migration": asked.migration,
        "generation": asked.generation,
        "expires_in": asked.expires_in,
        "shape": to_json(total_by_class(asked.destination)) if asked.kind is MoveKind.LIVE else None,
        "operation": operation.id,
        "name": operation.name,
        "fingerprint": operation.fingerprint,
        "move": json.dumps(move),
        "consumer_type": MIGRATION,
        "kind": move["kind"],
        "state": move["state"],
        "destination": to_json(move["destination"]),
        "options": to_json({name: move[name] for name in ("asked", "shared", "overlap")}),
        "story": to_json(move["story"]),
        "history": history,
    }
