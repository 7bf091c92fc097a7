"""The hot path: a claim for a consumer that holds nothing yet, with as few statements as can be.

On SQLite and MariaDB that is a handful of prepared statements, the operation's result stored with its id. On PostgreSQL
it is a single statement, and so a single round trip: the inventories are locked in their order, the verdict is computed
from the locked rows, and everything else is written if it is good. Either way a refusal says what the locked rows say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.database import Operation, Outcome, translate
from cloudcore.errors import (
    AlreadyExists,
    ConsumerRetired,
    DatabaseBusy,
    DatabaseUnavailable,
    OutcomeUnknown,
    ProviderNotFound,
)
from cloudcore.placement.ledger.session import Session, to_json
from cloudcore.placement.rules.claims import InventoryRow, Key, Owner, Take, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.placement.rules.claims import Allocations

__all__ = ["ABORTED", "BOUND", "NewClaim", "claim_by_statements", "claim_in_one_statement", "remembered"]


@attrs.frozen(kw_only=True)
class NewClaim:
    """A claim, checked and ready to be sent. Make it with :meth:`of`.

    Attributes:
        operation: Its operation id and fingerprint.
        consumer: Uuid of who shall hold it; holds nothing yet.
        allocations: Provider uuid → class → amount, sorted.
        stored_holdings: What history keeps: the allocations as JSON.
        owner: Who answers for the consumer.
        expires_in: Seconds until it lapses; None for a lasting claim.
        answer: What the operation answers, JSON, where that is more than what the consumer holds.
    """

    operation: Operation
    consumer: str
    allocations: Allocations
    stored_holdings: str
    owner: Owner
    expires_in: float | None
    answer: Any = None

    @classmethod
    def of(
        cls,
        consumer: str,
        allocations: Allocations,
        owner: Owner,
        expires_in: float | None,
        operation_id: str | None,
        id_factory: Callable[[], str],
    ) -> NewClaim:
        """The claim of checked arguments, with a fresh operation id unless one is given.

        Raises:
            InvalidArgument: *operation_id* is empty or too long.
        """
        holdings = _as_json(allocations)
        arguments = [consumer, holdings, owner.project_id, owner.user_id, owner.consumer_type, expires_in]
        return cls(
            operation=Operation.of("ledger.claim", {"new": arguments}, operation_id, id_factory=id_factory),
            consumer=consumer,
            allocations=allocations,
            stored_holdings=holdings,
            owner=owner,
            expires_in=expires_in,
        )

    @classmethod
    def under(
        cls,
        operation: Operation,
        consumer: str,
        allocations: Allocations,
        owner: Owner,
        expires_in: float | None,
        answer: Any,
    ) -> NewClaim:
        """The claim of checked arguments that a greater *operation* makes, which answers something of its own."""
        return cls(
            operation=operation,
            consumer=consumer,
            allocations=allocations,
            stored_holdings=_as_json(allocations),
            owner=owner,
            expires_in=expires_in,
            answer=answer,
        )

    @property
    def event(self) -> str:
        """What history calls it."""
        return self.operation.name.rpartition(".")[2]

    @property
    def result(self) -> Any:
        """What the operation answers, known beforehand."""
        if self.answer is not None:
            return self.answer
        plain = {provider: dict(classes) for provider, classes in self.allocations.items()}
        return {self.consumer: {"generation": 1, "allocations": plain}}

    @property
    def stored_result(self) -> str:
        """The result as the table of operations keeps it: :attr:`result` as JSON."""
        if self.answer is not None:
            return to_json(self.answer)
        return f'{{"{self.consumer}":{{"generation":1,"allocations":{self.stored_holdings}}}}}'

    def amounts(self) -> Iterator[tuple[str, str, int]]:
        """Provider uuid, class and amount of each row."""
        for provider, classes in self.allocations.items():
            for resource_class, amount in classes.items():
                yield provider, resource_class, amount


def _as_json(allocations: Allocations) -> str:
    """As the json module would write it, in a fraction of the time: uuids and names of classes need no escapes."""
    providers = []
    for provider, classes in allocations.items():
        amounts = ",".join([f'"{name}":{amount}' for name, amount in classes.items()])
        providers.append(f'"{provider}":{{{amounts}}}')
    return f"{{{','.join(providers)}}}"


def _take(key: Key, amount: int) -> Take:
    return Take(key=key, delta=amount, smallest=amount, largest=amount, divisor=amount)


# --- statement by statement ------------------------------------------------------------------------------------------

_TAKE_OPERATION = """
INSERT {ignore} INTO operations (id, name, fingerprint, result, created_at) VALUES (?, ?, ?, ?, {now}) {nothing}
"""
_STORED = "SELECT name, fingerprint, result FROM operations WHERE id = ?"
_GRANT = """
UPDATE inventories SET used = used + ? WHERE provider_id = ? AND resource_class = ?
AND used + ? <= capacity AND min_unit <= ? AND max_unit >= ? AND ? % step_size = 0
AND ? = (SELECT uuid FROM resource_providers WHERE id = ?)
"""  # the number that was remembered may be another provider's by now, where a copy of the database took over
_HOLD = "INSERT INTO allocations (consumer_id, provider_id, resource_class, amount) VALUES (?, ?, ?, ?)"
_NOTE = """
INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings) VALUES (?, {now}, ?, ?, ?)
"""


def claim_by_statements(
    session: Session, claim: NewClaim, known: MutableMapping[str, int], *, history: bool
) -> tuple[Outcome[Any], frozenset[int]]:
    """Do *claim* in the transaction of *session*; return its outcome and the ids of the providers it changed.

    The caller notes those in the change feed before it commits, and rolls back when this raises. *known* maps uuids of
    providers to their ids, and is filled.

    Raises:
        OperationMismatch, AlreadyExists, ConsumerRetired: The operation id or the consumer is taken.
        CapacityExceeded, UnitViolation, InventoryNotFound, ProviderNotFound: An inventory does not give it.
        DatabaseBusy: What was known of the providers was stale; try again.
    """
    stored = _take_operation(session, claim)
    if stored is not None:
        return stored, frozenset()
    consumer_id = session.add_consumer(claim.consumer, claim.owner, claim.expires_in)
    if consumer_id is None:
        raise _taken(session, claim.consumer)
    ids = _ids(session, claim, known)
    held = sorted(((ids[uuid], name), n, uuid) for uuid, name, n in claim.amounts())
    rows = [(key, amount) for key, amount, _ in held]
    for key, amount, provider in held:
        failpoint("ledger.claim.take")
        if not session.run(_GRANT, (amount, *key, amount, amount, amount, amount, provider, key[0])):
            raise _explain(session, ids, _take(key, amount), known)
    failpoint("ledger.claim.hold")
    session.many(_HOLD, [(consumer_id, *key, amount) for key, amount in rows])
    if history:
        failpoint("ledger.claim.note")
        session.run(_NOTE, (claim.consumer, claim.event, claim.operation.id, claim.stored_holdings))
    return Outcome(result=claim.result, repeated=False), frozenset(key[0] for key, _ in rows)


def _take_operation(session: Session, claim: NewClaim) -> Outcome[Any] | None:
    """Take the operation's id, or return what it did before."""
    failpoint("ledger.claim.operation")
    operation = claim.operation
    values = (operation.id, operation.name, operation.fingerprint, claim.stored_result)
    if session.run(_TAKE_OPERATION, values):
        return None
    stored = _stored(session, operation)
    if stored is None:  # going on would have an effect under no id
        raise DatabaseBusy(f"operation {operation.id} was being forgotten just then; repeat the call")
    return stored


def _stored(session: Session, operation: Operation) -> Outcome[Any] | None:
    rows = session.all(_STORED, (operation.id,))
    if not rows:
        return None
    operation.matches(rows[0][0], rows[0][1])
    return Outcome(result=json.loads(rows[0][2]), repeated=True)


def _ids(session: Session, claim: NewClaim, known: MutableMapping[str, int]) -> dict[str, int]:
    """Uuid → id of the providers of *claim*. Other threads may take out of *known* what is stale, at any time."""
    ids = remembered(claim.allocations, known)
    if len(ids) < len(claim.allocations):
        ids = session.provider_ids(claim.allocations)
        known.update(ids)
    for provider in claim.allocations:
        if provider not in ids:
            raise ProviderNotFound(f"no resource provider {provider}; search again", identifier=provider)
    return ids


def remembered(providers: Iterable[str], known: Mapping[str, int]) -> dict[str, int]:
    """Uuid → id of those of *providers* that are *known*, each looked up once: another thread may forget it then."""
    return {provider: number for provider in providers if (number := known.get(provider)) is not None}


def _explain(session: Session, ids: Mapping[str, int], take: Take, known: MutableMapping[str, int]) -> Exception:
    """Why an inventory did not give: read in the same transaction, under its lock where there is one."""
    now = session.provider_ids(ids)
    if ids != now:
        for provider in ids:
            known.pop(provider, None)
        return DatabaseBusy("a provider of this claim was deleted or made anew meanwhile")
    provider = next(uuid for uuid, number in now.items() if number == take.key[0])
    found = refusal(provider, take, session.inventory(take.key))
    return found or DatabaseBusy(f"provider {provider}, {take.key[1]}: its inventory changed meanwhile")


def _taken(session: Session, consumer: str) -> Exception:
    """Why a consumer's uuid could not be inserted."""
    rows = session.all("SELECT generation, retired_at IS NOT NULL FROM consumers WHERE uuid = ?", (consumer,))
    if not rows:
        return DatabaseBusy(f"consumer {consumer} was released while this claim was under way")
    if rows[0][1]:
        return ConsumerRetired(
            f"consumer {consumer} was released for ever and cannot hold anything again", identifier=consumer
        )
    return AlreadyExists(
        f"consumer {consumer} holds something already, at generation {rows[0][0]}; replace it with that "
        f"generation, or begin a move",
        identifier=consumer,
    )


# --- one statement, on PostgreSQL ------------------------------------------------------------------------------------

# The arrays come out of sub-selects: if the planner knew their lengths it would plan each claim anew, and that takes
# longer than to carry it out.
_ONE_STATEMENT = """
WITH wanted AS MATERIALIZED (
    SELECT w.provider, w.resource_class, w.amount, p.id AS provider_id
    FROM unnest((SELECT %(providers)s::text[]), (SELECT %(classes)s::text[]), (SELECT %(amounts)s::bigint[]))
         AS w (provider, resource_class, amount)
    LEFT JOIN resource_providers p ON p.uuid = w.provider
), locked AS MATERIALIZED (
    SELECT i.provider_id, i.resource_class, i.min_unit, i.max_unit, i.step_size, i.capacity, i.used, w.amount
    FROM inventories i JOIN wanted w ON w.provider_id = i.provider_id AND w.resource_class = i.resource_class
    ORDER BY i.provider_id, i.resource_class FOR NO KEY UPDATE OF i
), verdict AS MATERIALIZED (
    SELECT count(*) AS rows, count(*) = cardinality(%(amounts)s::bigint[]) AND COALESCE(bool_and(
        used + amount <= capacity AND amount BETWEEN min_unit AND max_unit AND amount %% step_size = 0), false) AS good
    FROM locked
), operation AS (
    INSERT INTO operations (id, name, fingerprint, result, created_at)
    SELECT %(operation)s, %(name)s, %(fingerprint)s, %(result)s, clock_timestamp() FROM verdict WHERE good
    ON CONFLICT DO NOTHING RETURNING id
), consumer AS (
    INSERT INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at, expires_at)
    SELECT %(consumer)s, %(project_id)s, %(user_id)s, %(consumer_type)s, 1, clock_timestamp(),
           clock_timestamp() + %(expires_in)s::float8 * interval '1 second'
    FROM operation ON CONFLICT DO NOTHING RETURNING id
), taken AS (
    UPDATE inventories i SET used = i.used + l.amount FROM locked l, consumer
    WHERE i.provider_id = l.provider_id AND i.resource_class = l.resource_class AND i.used + l.amount <= i.capacity
    RETURNING i.provider_id
), held AS (
    INSERT INTO allocations (consumer_id, provider_id, resource_class, amount)
    SELECT consumer.id, l.provider_id, l.resource_class, l.amount FROM locked l, consumer
), noted AS (
    INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings)
    SELECT %(consumer)s, clock_timestamp(), %(event)s, operation.id, %(holdings)s::jsonb
    FROM operation WHERE %(history)s
), told AS (
    INSERT INTO provider_changes (slot, position, provider_id)
    SELECT DISTINCT 0, pg_current_xact_id()::text::bigint, provider_id FROM taken
), counted AS (
    SELECT (SELECT good FROM verdict) AS good, (SELECT count(*) FROM operation) AS operations,
           (SELECT count(*) FROM consumer) AS consumers, (SELECT count(*) FROM taken) AS inventories
)
SELECT good, operations,
       CASE WHEN good THEN NULL ELSE (
           SELECT json_agg(json_build_array(w.provider, w.provider_id, w.resource_class, w.amount,
                  l.min_unit, l.max_unit, l.step_size, l.capacity, l.used) ORDER BY w.provider_id, w.resource_class)
           FROM wanted w LEFT JOIN locked l
           ON l.provider_id = w.provider_id AND l.resource_class = w.resource_class) END,
       1 / CASE WHEN operations = 1 AND (consumers = 0 OR inventories <> (SELECT rows FROM verdict)) THEN 0 ELSE 1 END
FROM counted
"""
BOUND = "WITH bound AS MATERIALIZED (SELECT set_config('lock_timeout', %(lock_timeout)s, true)), wanted"
"""Before all else: how long this one statement waits for a lock, in a session that is another's in a moment."""

_ONE_BOUNDED_STATEMENT = _ONE_STATEMENT.replace("WITH wanted", BOUND, 1).replace(
    "FROM unnest(", "FROM bound, unnest(", 1
)
ABORTED = "22012"  # division by zero: the statement took its own writes back


def claim_in_one_statement(database: Database, claim: NewClaim, *, history: bool) -> Outcome[Any]:
    """Do *claim* on PostgreSQL in one round trip, its own transaction. For :meth:`Database.resolve`.

    Raises:
        OutcomeUnknown: The connection was lost after the statement was sent.
        See :func:`claim_by_statements` for the others.
    """
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            return _claim_on(connection, claim, history=history, lock_timeout=database.lock_timeout_to_say)
    except sa.exc.SQLAlchemyError as error:  # before the statement was sent, or after it was answered
        raise translate(error, database.engine) from error


def _claim_on(connection: Connection, claim: NewClaim, *, history: bool, lock_timeout: int | None) -> Outcome[Any]:
    failpoint("ledger.claim.statement.before")
    try:
        good, taken, rows, _ = _send(connection, claim, history=history, lock_timeout=lock_timeout)
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == ABORTED:
            raise _why_aborted(connection, claim) from error
        found = translate(error, connection.engine)
        if isinstance(found, DatabaseUnavailable):
            raise OutcomeUnknown(str(found), operation_id=claim.operation.id) from error
        raise found from error
    failpoint("ledger.claim.statement.after")
    if good and taken:
        return Outcome(result=claim.result, repeated=False)
    session = Session(connection)
    with session.errors():
        stored = _stored(session, claim.operation)
    if stored is not None:
        return stored
    raise _refused(rows) if not good else DatabaseBusy(f"operation {claim.operation.id} was undone meanwhile")


def _send(
    connection: Connection, claim: NewClaim, *, history: bool, lock_timeout: int | None
) -> tuple[bool, int, Any, int]:
    amounts = list(claim.amounts())
    session = Session(connection)
    with session.errors():
        session.cursor.execute(
            _ONE_STATEMENT if lock_timeout is None else _ONE_BOUNDED_STATEMENT,
            {
                "lock_timeout": str(lock_timeout),
                "providers": [row[0] for row in amounts],
                "classes": [row[1] for row in amounts],
                "amounts": [row[2] for row in amounts],
                "operation": claim.operation.id,
                "name": claim.operation.name,
                "fingerprint": claim.operation.fingerprint,
                "result": claim.stored_result,
                "event": claim.event,
                "consumer": claim.consumer,
                "project_id": claim.owner.project_id,
                "user_id": claim.owner.user_id,
                "consumer_type": claim.owner.consumer_type,
                "expires_in": claim.expires_in,
                "holdings": claim.stored_holdings,
                "history": history,
            },
        )
        answer: tuple[bool, int, Any, int] = session.cursor.fetchall()[0]
    return answer


def _why_aborted(connection: Connection, claim: NewClaim) -> Exception:
    session = Session(connection)
    with session.errors():
        stored = _stored(session, claim.operation)
        if stored is not None:
            return DatabaseBusy(f"operation {claim.operation.id} ended just now; ask again")
        return _taken(session, claim.consumer)


def _refused(rows: list[list[Any]]) -> Exception:
    """The first of the rows, in lock order, that does not give."""
    for provider, number, name, amount, *found in rows:
        if number is None:
            return ProviderNotFound(f"no resource provider {provider}; search again", identifier=provider)
        row = None
        if found[0] is not None:
            names = ("min_unit", "max_unit", "step_size", "capacity", "used")
            row = InventoryRow(**dict(zip(names, found, strict=True)))
        if (error := refusal(provider, _take((number, name), amount), row)) is not None:
            return error
    return DatabaseBusy("the inventories of this claim changed meanwhile")
