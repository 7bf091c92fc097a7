"""Claims and beginnings of moves as one compound statement, and so one round trip, on MariaDB.

MariaDB runs a ``BEGIN NOT ATOMIC`` block that is no procedure; MySQL does not. A block is a whole transaction: it takes
the same locks and makes the same writes as the statements one by one, and leaves at the first that is refused. Then it
rolls back and says so, and the statements one by one decide, and explain.

A claim's block also keeps their order. The beginning of a move does not: what the operation answers is known only once
the instance is locked, so its id, and the migration, come after the inventories. Whoever else wants that id or that
migration wants that instance too, and as a block waits for it first; as statements one by one it may be in the way, and
one of the two is repeated.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.database import Outcome, at_rest, translate
from cloudcore.errors import OutcomeUnknown
from cloudcore.placement.ledger.claim_statements import remembered
from cloudcore.placement.ledger.moves import MIGRATION, move_as_json
from cloudcore.placement.ledger.session import Session, to_json
from cloudcore.placement.rules.claims import total_by_class
from cloudcore.placement.rules.moves import MoveKind
from cloudcore.placement.storage.changes import MYSQL_COUNT, MYSQL_SLOT

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from cloudcore.database import Database, Operation
    from cloudcore.placement.ledger.claim_statements import NewClaim
    from cloudcore.placement.ledger.moves import MoveRequest

__all__ = ["begin_in_one_block", "claim_in_one_block", "runs_blocks"]

Key = tuple[int, str]

_DRIVERS = frozenset({"pymysql", "mysqldb"})
"""Those that send text as it is; MariaDB's own prepares it, and a block cannot be prepared."""


def runs_blocks(database: Database) -> bool:
    """Whether the server behind *database* runs compound statements, and the driver passes them on.

    Raises:
        DatabaseUnavailable, DatabaseError: Nobody has connected yet, and the server does not answer.
    """
    dialect: Any = database.engine.dialect
    if database.dialect != "mysql" or dialect.driver not in _DRIVERS:
        return False
    if getattr(dialect, "server_version_info", None) is None:
        with database.read():
            pass
    return bool(dialect.is_mariadb)


# A block leaves `work` at the first refusal. `done` is what it answers.
_FRAME = """
BEGIN NOT ATOMIC
DECLARE v_done TINYINT DEFAULT 0;
{declarations}
START TRANSACTION;
work: BEGIN
{steps}
SET v_done = 1;
END work;
IF v_done THEN COMMIT; ELSE ROLLBACK; END IF;
SELECT v_done{answers};
END
"""
_OR_LEAVE = "IF ROW_COUNT() <> 1 THEN LEAVE work; END IF;"
_GRANT = """
UPDATE inventories SET used = used + ? WHERE provider_id = ? AND resource_class = ?
AND used + ? <= capacity AND min_unit <= ? AND max_unit >= ? AND ? % step_size = 0{and_still_that}; {or_leave}
"""
_AND_STILL_THAT = " AND ? = (SELECT uuid FROM resource_providers WHERE id = ?)"
"""The number that was remembered may be another provider's by now, where a copy of the database took over."""
_HOLD = "INSERT INTO allocations (consumer_id, provider_id, resource_class, amount) VALUES {rows};"
_TELL = "INSERT INTO provider_changes (slot, position, provider_id) VALUES {rows};"


def _block(declarations: str, steps: Sequence[str], answers: str = "") -> str:
    text = _FRAME.replace("{declarations}", declarations).replace("{answers}", answers)
    return text.replace("{steps}", "\n".join(steps)).replace("{or_leave}", _OR_LEAVE)


def _of_rows(sql: str, row: str, count: int) -> str:
    return sql.replace("{rows}", ", ".join([row] * count))


def _grants(rows: Sequence[tuple[Key, int]], providers: Mapping[str, int]) -> tuple[list[str], list[Any]]:
    """Take what *rows* want. A provider of which an inventory is locked stays: each is looked at once."""
    uuids = {number: uuid for uuid, number in providers.items()}
    steps, values = [], []
    for key, amount in rows:
        uuid = uuids.pop(key[0], None)
        steps.append(_GRANT.replace("{and_still_that}", "" if uuid is None else _AND_STILL_THAT))
        values += [amount, *key, amount, amount, amount, amount, *(() if uuid is None else (uuid, key[0]))]
    return steps, values


def _numbers(
    database: Database, allocations: Mapping[str, Mapping[str, int]], known: MutableMapping[str, int]
) -> dict[str, int] | None:
    """Uuid → id of the providers of *allocations*; None if one is not there or two share an id. *known* is filled."""
    providers = remembered(allocations, known)
    if len(providers) < len(allocations):
        with database.read() as connection:
            session = Session(connection)
            with session.errors():
                found = session.provider_ids_around(allocations)
        known.update(found)
        providers = remembered(allocations, found)
    if len(set(providers.values())) < len(providers):  # one of two that share a number is stale
        for provider in providers:
            known.pop(provider, None)
        return None
    return providers if len(providers) == len(allocations) else None


def _in_order(allocations: Mapping[str, Mapping[str, int]], providers: Mapping[str, int]) -> list[tuple[Key, int]]:
    """The rows of *allocations* in lock order."""
    return sorted(
        ((providers[p], name), amount) for p, classes in allocations.items() for name, amount in classes.items()
    )


def _send(database: Database, operation: Operation, block: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Run *block* in its own transaction, and return its answer.

    Raises:
        OutcomeUnknown: The connection was lost after the block was sent.
        DatabaseUnavailable, DatabaseBusy, DatabaseError: Nothing was changed.
    """
    try:
        with database.engine.connect() as connection:
            session = Session(connection, within=False)
            failpoint("ledger.block.before")
            try:
                with session.errors():
                    session.run(block, values)
                    (answer,) = session.cursor.fetchall()
                    while session.cursor.nextset():  # the end of the block comes as an answer of its own
                        pass
            except sa.exc.DBAPIError as error:
                if not connection.invalidated:  # the block is over, its transaction is not; nor need the pool end it
                    with contextlib.suppress(Exception):
                        connection.connection.rollback()
                found = translate(error, database.engine, committing=True)
                if isinstance(found, OutcomeUnknown):
                    raise OutcomeUnknown(str(found), operation_id=operation.id) from error
                raise found from error
            failpoint("ledger.block.after")
            at_rest(connection)
            return tuple(answer)
    except sa.exc.SQLAlchemyError as error:  # before the block was sent, or after it was answered
        raise translate(error, database.engine) from error


# --- claims ----------------------------------------------------------------------------------------------------------

_TAKE_OPERATION = """
INSERT IGNORE INTO operations (id, name, fingerprint, result, created_at) VALUES (?, ?, ?, ?, {now}); {or_leave}
"""
_ADD_CONSUMER = """
INSERT IGNORE INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at, expires_at)
VALUES (?, ?, ?, ?, 1, {now}, {later}); {or_leave}
SET v_consumer = LAST_INSERT_ID();
"""
_NOTE = """
INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings)
VALUES (?, {now}, ?, ?, ?);
"""


def claim_in_one_block(
    database: Database, claim: NewClaim, known: MutableMapping[str, int], *, history: bool
) -> Outcome[Any] | None:
    """Do *claim* in one round trip; None if it was not granted as it stands, and nothing was changed.

    *known* maps uuids of providers to their ids, and is filled.
    """
    providers = _numbers(database, claim.allocations, known)
    if providers is None:
        return None
    rows = _in_order(claim.allocations, providers)
    operation, owner = claim.operation, claim.owner
    grants, granted = _grants(rows, providers)
    changed = sorted({key[0] for key, _ in rows})
    steps = [
        _TAKE_OPERATION,
        _ADD_CONSUMER,
        *grants,
        _of_rows(_HOLD, "(v_consumer, ?, ?, ?)", len(rows)),
        *([_NOTE] if history else []),
        f"{MYSQL_COUNT};",
        _of_rows(_TELL, f"({MYSQL_SLOT}, LAST_INSERT_ID(), ?)", len(changed)),
    ]
    values = [
        *(operation.id, operation.name, operation.fingerprint, claim.stored_result),
        *(claim.consumer, owner.project_id, owner.user_id, owner.consumer_type, claim.expires_in),
        *granted,
        *(value for key, amount in rows for value in (*key, amount)),
        *((claim.consumer, claim.event, operation.id, claim.stored_holdings) if history else ()),
        *changed,
    ]
    (done,) = _send(database, operation, _block("DECLARE v_consumer BIGINT;", steps), values)
    return Outcome(result=claim.result, repeated=False) if done else None


# --- the beginning of a move -----------------------------------------------------------------------------------------

_BEGIN_VARIABLES = """
DECLARE v_instance, v_generation, v_migrant BIGINT;
DECLARE v_project, v_user VARCHAR(255) CHARACTER SET utf8mb4;
DECLARE v_source LONGTEXT CHARACTER SET utf8mb4;
DECLARE v_expires DATETIME(6);
"""
_LOCK_INSTANCE = """
SELECT id, generation, project_id, user_id INTO v_instance, v_generation, v_project, v_user FROM consumers
WHERE uuid = ? AND retired_at IS NULL AND COALESCE(expires_at > {now}, TRUE) FOR UPDATE;
IF v_instance IS NULL OR v_generation <> COALESCE(?, v_generation) THEN LEAVE work; END IF;
IF EXISTS (SELECT 1 FROM moves WHERE instance = ? AND state IN ('held', 'awaiting_proof'))
OR EXISTS (SELECT 1 FROM moves WHERE migration IN (?, ?))
OR EXISTS (SELECT 1 FROM host_group_members WHERE instance = ?) THEN LEAVE work; END IF;
"""
_READ_SOURCE = """
SELECT JSON_OBJECTAGG(p.uuid, JSON_COMPACT((
    SELECT JSON_OBJECTAGG(a.resource_class, a.amount) FROM allocations a
    WHERE a.consumer_id = v_instance AND a.provider_id = p.id
))) INTO v_source FROM resource_providers p
WHERE p.id IN (SELECT provider_id FROM allocations WHERE consumer_id = v_instance);
IF v_source IS NULL THEN LEAVE work; END IF;
SET v_expires = {later};
"""
_SAME_SHAPE = """
IF (SELECT COUNT(*) <> {count} OR SUM((resource_class, total) IN ({totals})) <> {count} FROM (
    SELECT resource_class, SUM(amount) AS total FROM allocations WHERE consumer_id = v_instance GROUP BY resource_class
) AS shape) THEN LEAVE work; END IF;
"""
_RECORD_OPERATION = """
INSERT IGNORE INTO operations (id, name, fingerprint, result, created_at)
VALUES (?, ?, ?, JSON_SET(?, '$.source', JSON_COMPACT(v_source), '$.expires_at',
                          DATE_FORMAT(v_expires, ?)), {now}); {or_leave}
"""
_ISO_8601 = "%Y-%m-%dT%H:%i:%s.%f+00:00"  # a parameter: the session words a percent sign in a text anew
_ADD_MIGRANT = """
INSERT IGNORE INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at)
VALUES (?, v_project, v_user, ?, 1, {now}); {or_leave}
SET v_migrant = LAST_INSERT_ID();
"""
_RECORD_MOVE = """
INSERT IGNORE INTO moves (migration, instance, kind, state, source, destination, options, story, created_at, updated_at,
                          expires_at) VALUES (?, ?, ?, ?, v_source, ?, ?, ?, {now}, {now}, v_expires); {or_leave}
"""
_HAND_OVER = "UPDATE allocations SET consumer_id = v_migrant WHERE consumer_id = v_instance;"
_COUNT_UP = "UPDATE consumers SET generation = generation + 1 WHERE id = v_instance;"
_NOTE_BOTH = """
INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings)
VALUES (?, {now}, 'begin_move', ?, ?), (?, {now}, 'begin_move', ?, v_source);
"""
_TELL_BOTH = f"""
INSERT INTO provider_changes (slot, position, provider_id)
SELECT {MYSQL_SLOT}, LAST_INSERT_ID(), provider_id FROM (
    SELECT DISTINCT provider_id FROM allocations WHERE consumer_id IN (v_instance, v_migrant)
) AS changed;
"""  # noqa: S608 - a constant


def begin_in_one_block(
    database: Database, operation: Operation, asked: MoveRequest, known: MutableMapping[str, int], *, history: bool
) -> Outcome[dict[str, Any] | None]:
    """Begin a usual move in one round trip; a result of None if nothing was changed and it is still to be done."""
    providers = _numbers(database, asked.destination, known)
    if providers is None:
        return Outcome(result=None, repeated=False)
    rows = _in_order(asked.destination, providers)
    move = move_as_json(asked.of({}, operation.id))
    destination = to_json(move["destination"])
    shape = sorted(total_by_class(asked.destination).items()) if asked.kind is MoveKind.LIVE else []
    totals = ", ".join(["(?, ?)"] * len(shape))
    same_shape = _SAME_SHAPE.replace("{count}", str(len(shape))).replace("{totals}", totals)
    grants, granted = _grants(rows, providers)
    steps = [
        _LOCK_INSTANCE,
        _READ_SOURCE,
        *([same_shape] if shape else []),
        *grants,
        _RECORD_OPERATION,
        _ADD_MIGRANT,
        _RECORD_MOVE,
        _HAND_OVER,
        _of_rows(_HOLD, "(v_instance, ?, ?, ?)", len(rows)),
        _COUNT_UP,
        *([_NOTE_BOTH] if history else []),
        f"{MYSQL_COUNT};",
        _TELL_BOTH,
    ]
    values = [
        *(asked.instance, asked.generation, asked.instance, asked.instance, asked.migration, asked.instance),
        asked.expires_in,
        *(value for pair in shape for value in pair),
        *granted,
        *(operation.id, operation.name, operation.fingerprint, json.dumps(move), _ISO_8601),
        *(asked.migration, MIGRATION),
        *(asked.migration, asked.instance, move["kind"], move["state"], destination),
        to_json({name: move[name] for name in ("asked", "shared", "overlap")}),
        to_json(move["story"]),
        *(value for key, amount in rows for value in (*key, amount)),
        *((asked.instance, operation.id, destination, asked.migration, operation.id) if history else ()),
    ]
    block = _block(_BEGIN_VARIABLES, steps, ", v_source, v_expires")
    done, source, expires_at = _send(database, operation, block, values)
    if not done:  # perhaps since a provider is another by now
        for provider in providers:
            known.pop(provider, None)
        return Outcome(result=None, repeated=False)
    held = json.loads(source)
    move["source"] = {provider: dict(sorted(classes.items())) for provider, classes in sorted(held.items())}
    move["expires_at"] = None if expires_at is None else expires_at.replace(tzinfo=UTC).isoformat()
    return Outcome(result=move, repeated=False)
