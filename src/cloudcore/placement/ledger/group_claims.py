"""Claims of a group: one transaction, a verdict for each.

On SQLite, MariaDB and MySQL the claims are written together, a handful of statements for all of them, which run beside
the callers' Python because the driver lets go of the interpreter meanwhile. Whatever does not fit in (an operation id
that is taken, a full inventory) takes that attempt back, and is done by itself once the others are written. The guard
is the same as a single claim's: an inventory gives all that the group wants of it, in one UPDATE, or nothing.

On PostgreSQL a group is one statement and one round trip, as a claim is. It grants what it can and leaves alone what
does not fit in: that, each caller then claims by itself, beside the others.

One module, since both ways must grant by the same rules, to the same claims.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.database import Outcome, translate
from cloudcore.errors import CloudcoreError, DatabaseUnavailable, OutcomeUnknown, Transient
from cloudcore.placement.ledger.claim_statements import ABORTED, BOUND, NewClaim, claim_by_statements, remembered
from cloudcore.placement.ledger.session import Session, marks
from cloudcore.placement.rules.claims import Key, sum_takes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping, Sequence

    from cloudcore.database import Database
    from cloudcore.placement.ledger.group_commit import Ticket

    ClaimTicket = Ticket[NewClaim, Outcome[Any]]

__all__ = ["claim_group", "claim_group_in_one_statement"]

_LOCK_ALL = """
SELECT 1 FROM inventories WHERE provider_id IN {marks} ORDER BY provider_id, resource_class FOR UPDATE
"""  # no join: it would lock in the order in which it reads, and the providers too


def claim_group(
    session: Session, tickets: Sequence[ClaimTicket], known: MutableMapping[str, int], *, history: bool
) -> None:
    """Do the claims of *tickets* in the transaction of *session*, each with a verdict of its own.

    Where writers run side by side, inventories are locked in their order, and consumers come in theirs: two groups then
    wait for each other instead of blocking each other. So all inventories of a group are locked first, unless the
    group can be written at once.

    Raises:
        DatabaseBusy, DatabaseUnavailable: None of them was done; try all again.
    """
    order: list[ClaimTicket] = list(tickets)
    for ticket in order:  # what an attempt said that was not committed is void
        ticket.answer = ticket.error = None
    changed: set[int] = set()
    if session.dialect != "sqlite":
        order.sort(key=lambda ticket: ticket.request.consumer)
    order, changed = _in_bulk(session, order, known, history=history)
    for ticket in order:
        session.run("SAVEPOINT claim")
        try:
            ticket.answer, providers = claim_by_statements(session, ticket.request, known, history=history)
            changed.update(providers)
        except Transient:
            raise
        except CloudcoreError as error:
            ticket.error = error
            session.run("ROLLBACK TO SAVEPOINT claim")
        session.run("RELEASE SAVEPOINT claim")
    session.add_changes(changed)


def _lock_all(session: Session, tickets: Iterable[ClaimTicket], known: MutableMapping[str, int]) -> None:
    """Lock the inventories of all providers of *tickets* that are *known*, on MariaDB and MySQL."""
    failpoint("ledger.group.lock")
    uuids = {provider for ticket in tickets for provider in ticket.request.allocations}
    for _ in session.in_parts(_LOCK_ALL, sorted(remembered(uuids, known).values())):
        pass


# --- few statements for many claims, on SQLite, MariaDB and MySQL ----------------------------------------------------


@attrs.frozen(eq=False)
class _Row:
    """A claim, the inventories that it takes from, and whose those are: id → uuid of their providers."""

    ticket: ClaimTicket
    takes: tuple[tuple[Key, int], ...]
    providers: dict[int, str]

    @property
    def claim(self) -> NewClaim:
        return self.ticket.request


def _in_bulk(
    session: Session, tickets: Sequence[ClaimTicket], known: MutableMapping[str, int], *, history: bool
) -> tuple[list[ClaimTicket], set[int]]:
    """Do those of *tickets* that can be done together.

    What one attempt has locked stays locked when it is taken back to a savepoint, and those left over may need what
    comes before. So the first that fails on MariaDB and MySQL is the end of that transaction; the next locks all first.

    Returns those that are left over, and the ids of the providers that were changed.
    """
    rows, left = _plain(session, tickets, known)
    ordered = session.dialect == "sqlite"  # nobody else writes meanwhile
    if left and not ordered:
        _lock_all(session, tickets, known)
        ordered = True
    while rows:
        session.run("SAVEPOINT bulk")
        done = _write(session, rows, history=history)
        if not (done or ordered):
            session.run("ROLLBACK")
            _lock_all(session, tickets, known)
            ordered = True
        else:
            if not done:
                session.run("ROLLBACK TO SAVEPOINT bulk")
            session.run("RELEASE SAVEPOINT bulk")
        if done:
            break
        refused = _in_the_way(session, rows) or {row.ticket for row in rows}
        left += [row.ticket for row in rows if row.ticket in refused]
        rows = [row for row in rows if row.ticket not in refused]
    for row in rows:
        row.ticket.answer = Outcome(result=row.claim.result, repeated=False)
    return left, {key[0] for row in rows for key, _ in row.takes}


def _plain(
    session: Session, tickets: Iterable[ClaimTicket], known: MutableMapping[str, int]
) -> tuple[list[_Row], list[ClaimTicket]]:
    """Those of the :func:`_distinct` whose providers are known, each under a number of its own; the others."""
    chosen, left = _distinct(tickets)
    unknown = {p for ticket in chosen for p in ticket.request.allocations if p not in known}
    if unknown:
        known.update(session.provider_ids(unknown))
    rows: list[_Row] = []
    owners: dict[int, str] = {}
    for ticket in chosen:
        claim = ticket.request
        numbers = remembered(claim.allocations, known)
        providers = {number: uuid for uuid, number in numbers.items()}
        if len(providers) < len(claim.allocations) or any(owners.setdefault(n, p) != p for n, p in providers.items()):
            for provider in claim.allocations:  # one of two that share a number is stale
                known.pop(provider, None)
            left.append(ticket)
            continue
        takes = tuple([((numbers[p], name), amount) for p, name, amount in claim.amounts()])
        rows.append(_Row(ticket, takes, providers))
    return rows, left


def _distinct(tickets: Iterable[ClaimTicket]) -> tuple[list[ClaimTicket], list[ClaimTicket]]:
    """Those that share neither operation id nor consumer with one before; the others."""
    chosen: list[ClaimTicket] = []
    left: list[ClaimTicket] = []
    operations: set[str] = set()
    consumers: set[str] = set()
    for ticket in tickets:
        claim = ticket.request
        again = claim.operation.id in operations or claim.consumer in consumers
        (left if again else chosen).append(ticket)
        operations.add(claim.operation.id)
        consumers.add(claim.consumer)
    return chosen, left


_TAKE_OPERATIONS = "INSERT {ignore} INTO operations (id, name, fingerprint, result, created_at) {rows}"
_ADD_NUMBERED_CONSUMERS = """
INSERT {ignore} INTO consumers (id, uuid, project_id, user_id, consumer_type, generation, created_at, expires_at) {rows}
"""
_ADD_CONSUMERS = """
INSERT {ignore} INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at, expires_at) {rows}
"""
_CONSUMER = "(?, ?, ?, ?, 1, ?, {later})"  # no deadline: NULL
_NUMBERED_CONSUMER = "(?, ?, ?, ?, ?, 1, ?, {later})"
_RULES = """
i.provider_id = w.column1 AND i.resource_class = w.column2 AND i.used + w.column3 <= i.capacity
AND i.min_unit <= w.column4 AND i.max_unit >= w.column5 AND w.column6 % i.step_size = 0
AND w.column7 = (SELECT p.uuid FROM resource_providers p WHERE p.id = w.column1)
"""  # a number that was remembered may be another provider's by now, where a copy of the database took over
_GRANT = {
    "sqlite": f"UPDATE inventories AS i SET used = i.used + w.column3 FROM ({{rows}}) w WHERE {_RULES}",  # noqa: S608 - constants
    "mysql": f"UPDATE ({{rows}}) w STRAIGHT_JOIN inventories i ON {_RULES} SET i.used = i.used + w.column3",  # noqa: S608 - constants
}
"""On MariaDB and MySQL the join is in the order of the rows, which is that of the locks."""
_GRANTABLE = f"SELECT i.provider_id, i.resource_class FROM inventories i JOIN ({{rows}}) w ON {_RULES}"  # noqa: S608 - constants
_HOLD = "INSERT INTO allocations (consumer_id, provider_id, resource_class, amount) {rows}"
_NOTE = "INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings) {rows}"


def _write(session: Session, rows: Sequence[_Row], *, history: bool) -> bool:
    """Write all *rows*; False if something is in the way, and what was written so far is to be taken back."""
    claims = [row.claim for row in rows]
    ((now,),) = session.all("SELECT {now}")
    failpoint("ledger.bulk.operations")
    operations = [(c.operation.id, c.operation.name, c.operation.fingerprint, c.stored_result, now) for c in claims]
    if _run(session, _TAKE_OPERATIONS, operations) < len(rows):
        return False
    failpoint("ledger.bulk.consumers")
    numbers = _add_consumers(session, claims, now)
    if len(numbers) < len(rows):
        return False
    failpoint("ledger.bulk.take")
    takes = _takes(rows)
    if _run(session, _GRANT[session.dialect], takes, joined=True) < len(takes):
        return False
    failpoint("ledger.bulk.hold")
    held = [(numbers[row.claim.consumer], *key, amount) for row in rows for key, amount in row.takes]
    if _run(session, _HOLD, held) < len(held):
        return False
    if history:
        failpoint("ledger.bulk.note")
        _run(session, _NOTE, [(c.consumer, now, c.event, c.operation.id, c.stored_holdings) for c in claims])
    return True


def _add_consumers(session: Session, claims: Sequence[NewClaim], now: Any) -> dict[str, int]:
    """Insert the consumers of *claims*; return their ids, or fewer if some are there already."""
    if session.dialect == "sqlite":  # nobody else writes meanwhile: the ids after the last are free
        ((last,),) = session.all("SELECT COALESCE(MAX(id), 0) FROM consumers")
        ids = {claim.consumer: number for number, claim in enumerate(claims, last + 1)}
        numbered = [(ids[claim.consumer], *_as_row(claim, now)) for claim in claims]
        return ids if _run(session, _ADD_NUMBERED_CONSUMERS, numbered, _NUMBERED_CONSUMER) == len(claims) else {}
    if _run(session, _ADD_CONSUMERS, [_as_row(claim, now) for claim in claims], _CONSUMER) < len(claims):
        return {}
    return dict(session.in_parts("SELECT uuid, id FROM consumers WHERE uuid IN {marks}", [c.consumer for c in claims]))


def _as_row(claim: NewClaim, now: Any) -> tuple[Any, ...]:
    owner = claim.owner
    return (claim.consumer, owner.project_id, owner.user_id, owner.consumer_type, now, claim.expires_in)


def _takes(rows: Sequence[_Row]) -> list[tuple[int, str, int, int, int, int, str]]:
    providers = {number: uuid for row in rows for number, uuid in row.providers.items()}
    return [(*take, providers[take[0]]) for take in sum_takes(take for row in rows for take in row.takes)]


def _in_the_way(session: Session, rows: Sequence[_Row]) -> set[ClaimTicket]:
    """Those whose operation id or consumer is taken, or whose inventories do not give what all want together."""
    operations = [row.claim.operation.id for row in rows]
    used = {found for (found,) in session.in_parts("SELECT id FROM operations WHERE id IN {marks}", operations)}
    consumers = [row.claim.consumer for row in rows]
    there = {found for (found,) in session.in_parts("SELECT uuid FROM consumers WHERE uuid IN {marks}", consumers)}
    granted = {tuple(found) for found in _joined(session, _GRANTABLE, _takes(rows))}
    return {
        row.ticket
        for row in rows
        if row.claim.operation.id in used
        or row.claim.consumer in there
        or any(key not in granted for key, _ in row.takes)
    }


_LARGEST = 256  # rows in a statement


_TYPED_TEXT = "CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin"
_TYPED = f"SELECT ? AS column1, {_TYPED_TEXT} AS column2" + ", ? AS column{}" * 4 + f", {_TYPED_TEXT} AS column7"
_TYPED = _TYPED.format(3, 4, 5, 6)
"""A row of what is taken, on MariaDB and MySQL: text of no column has the connection's character set."""


@functools.cache
def _text(sql: str, row: str, count: int, server: str, *, joined: bool) -> str:
    plain = ", ".join([row] * count)
    if server == "sqlite":
        rows = f"SELECT * FROM (VALUES {plain}) WHERE column1 IS NOT NULL"  # noqa: S608 - constants
    elif not joined:
        rows = f"VALUES {plain}"
    elif server == "mariadb" and count > 1:  # a list is planned at once, each SELECT of a union by itself
        rows = f"{_TYPED} UNION ALL VALUES {', '.join([row] * (count - 1))}"
    else:
        rows = " UNION ALL ".join([_TYPED] * count)
    return sql.replace("{rows}", rows)


def _parts(
    session: Session, sql: str, rows: Sequence[Sequence[Any]], row: str = "", *, joined: bool = False
) -> Iterator[tuple[str, list[Any]]]:
    """*sql* with its ``{rows}``, and their values.

    As few statements as can be, since each waits for the interpreter among the callers; and few texts, to be prepared
    and kept on SQLite: room for a power of two of rows, or for some times 64, and NULLs where there are fewer.
    """
    width = len(rows[0])
    server = "mariadb" if getattr(session.connection.dialect, "is_mariadb", False) else session.dialect
    for start in range(0, len(rows), _LARGEST):
        part = rows[start : start + _LARGEST]
        room = len(part)
        if session.dialect == "sqlite":
            room = 1 << (room - 1).bit_length() if room <= 64 else -(-room // 64) * 64
        values = [value for one in part for value in one]
        values += [None] * (width * (room - len(part)))
        yield _text(sql, row or marks(width), room, server, joined=joined), values


def _run(session: Session, sql: str, rows: Sequence[Sequence[Any]], row: str = "", *, joined: bool = False) -> int:
    return sum(session.run(text, values) for text, values in _parts(session, sql, rows, row, joined=joined))


def _joined(session: Session, sql: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [found for text, values in _parts(session, sql, rows, joined=True) for found in session.all(text, values)]


# --- one statement for many claims, on PostgreSQL -------------------------------------------------------------------

# A claim is granted as far as the running sum of what those before it and it want of each inventory may be granted.
# Arrays out of sub-selects, as in the statement of one claim: one plan for groups of every size.
_GROUP_STATEMENT = """
WITH claims AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT %(operations)b::text[]), (SELECT %(names)b::text[]), (SELECT %(fingerprints)b::text[]),
        (SELECT %(results)b::text[]), (SELECT %(consumers)b::text[]), (SELECT %(projects)b::text[]),
        (SELECT %(users)b::text[]), (SELECT %(types)b::text[]), (SELECT %(waits)b::float8[]),
        (SELECT %(events)b::text[]), (SELECT %(holdings)b::text[])
    ) WITH ORDINALITY
    AS c (operation, name, fingerprint, result, consumer, project_id, user_id, consumer_type, expires_in, event,
          holdings, number)
), wanted AS MATERIALIZED (
    SELECT w.number, w.consumer, p.id AS provider_id, w.resource_class, w.amount,
           sum(w.amount) OVER (PARTITION BY p.id, w.resource_class ORDER BY w.number) AS so_far
    FROM unnest((SELECT %(numbers)b::bigint[]), (SELECT %(holders)b::text[]), (SELECT %(providers)b::text[]),
                (SELECT %(classes)b::text[]), (SELECT %(amounts)b::bigint[]))
         AS w (number, consumer, provider, resource_class, amount)
    LEFT JOIN resource_providers p ON p.uuid = w.provider
), locked AS MATERIALIZED (
    SELECT i.provider_id, i.resource_class, i.min_unit, i.max_unit, i.step_size, i.capacity - i.used AS free
    FROM inventories i JOIN (SELECT DISTINCT provider_id, resource_class FROM wanted) w
    ON w.provider_id = i.provider_id AND w.resource_class = i.resource_class
    ORDER BY i.provider_id, i.resource_class FOR NO KEY UPDATE OF i
), granted AS MATERIALIZED (
    SELECT w.number FROM wanted w
    LEFT JOIN locked l ON l.provider_id = w.provider_id AND l.resource_class = w.resource_class
    GROUP BY w.number HAVING bool_and(COALESCE(
        w.so_far <= l.free AND w.amount BETWEEN l.min_unit AND l.max_unit AND w.amount %% l.step_size = 0, false))
), fitting AS MATERIALIZED (
    SELECT c.* FROM claims c JOIN granted g ON g.number = c.number
), chosen AS MATERIALIZED (
    SELECT * FROM fitting c
    WHERE COALESCE((SELECT false FROM operations o WHERE o.id = c.operation), true)
    AND COALESCE((SELECT false FROM consumers o WHERE o.uuid = c.consumer), true)
), totals AS MATERIALIZED (
    SELECT w.provider_id, w.resource_class, sum(w.amount)::bigint AS amount
    FROM wanted w JOIN chosen c ON c.number = w.number GROUP BY w.provider_id, w.resource_class
), operation AS (
    INSERT INTO operations (id, name, fingerprint, result, created_at)
    SELECT operation, name, fingerprint, result, clock_timestamp() FROM chosen ORDER BY operation
    ON CONFLICT DO NOTHING RETURNING id
), consumer AS (
    INSERT INTO consumers (uuid, project_id, user_id, consumer_type, generation, created_at, expires_at)
    SELECT consumer, project_id, user_id, consumer_type, 1, clock_timestamp(),
           clock_timestamp() + expires_in * interval '1 second'
    FROM chosen WHERE (SELECT count(*) FROM operation) > 0 ORDER BY consumer
    ON CONFLICT DO NOTHING RETURNING id, uuid
), taken AS (
    UPDATE inventories i SET used = i.used + t.amount FROM totals t
    WHERE i.provider_id = t.provider_id AND i.resource_class = t.resource_class AND i.used + t.amount <= i.capacity
    RETURNING i.provider_id
), held AS (
    INSERT INTO allocations (consumer_id, provider_id, resource_class, amount)
    SELECT k.id, w.provider_id, w.resource_class, w.amount
    FROM consumer k JOIN wanted w ON w.consumer = k.uuid
), noted AS (
    INSERT INTO allocation_history (consumer, recorded_at, event, operation_id, holdings)
    SELECT consumer, clock_timestamp(), event, operation, holdings::jsonb FROM chosen WHERE %(history)s
), told AS (
    INSERT INTO provider_changes (slot, position, provider_id)
    SELECT DISTINCT 0, pg_current_xact_id()::text::bigint, provider_id FROM taken
)
SELECT (SELECT array_agg(number) FROM chosen),
       1 / CASE WHEN (SELECT count(*) FROM operation) = (SELECT count(*) FROM chosen)
                 AND (SELECT count(*) FROM consumer) = (SELECT count(*) FROM chosen)
                 AND (SELECT count(*) FROM taken) = (SELECT count(*) FROM totals) THEN 1 ELSE 0 END
"""
_BOUNDED_GROUP_STATEMENT = _GROUP_STATEMENT.replace("WITH claims", BOUND.replace("wanted", "claims"), 1).replace(
    "FROM unnest(",
    "FROM bound, unnest(",  # the claims, and what they want: either may be read first
)


def claim_group_in_one_statement(database: Database, tickets: Sequence[ClaimTicket], *, history: bool) -> Outcome[None]:
    """Do those claims of *tickets* that fit together, in one round trip; the others are left without an answer.

    A claim that somebody else makes, or whose consumer somebody else adds, at the same time leaves them all so.

    Raises:
        OutcomeUnknown: The connection was lost after the statement was sent; try all again.
        DatabaseBusy, DatabaseUnavailable: None of them was done; try all again.
    """
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            chosen, _ = _distinct(tickets)
            _send_group(Session(connection), chosen, history=history, lock_timeout=database.lock_timeout_to_say)
    except sa.exc.SQLAlchemyError as error:  # before the statement was sent, or after it was answered
        raise translate(error, database.engine) from error
    return Outcome(result=None, repeated=False)


def _send_group(session: Session, tickets: Sequence[ClaimTicket], *, history: bool, lock_timeout: int | None) -> None:
    text = _GROUP_STATEMENT if lock_timeout is None else _BOUNDED_GROUP_STATEMENT
    claims = [ticket.request for ticket in tickets]
    failpoint("ledger.bulk.statement.before")
    try:
        with session.errors():
            session.cursor.execute(text, _group_values(claims, history=history, lock_timeout=lock_timeout))
            ((numbers, _),) = session.cursor.fetchall()
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == ABORTED:
            return
        found = translate(error, session.connection.engine)
        if isinstance(found, DatabaseUnavailable):
            raise OutcomeUnknown(str(found), operation_id=claims[0].operation.id) from error
        raise found from error
    failpoint("ledger.bulk.statement.after")
    for number in numbers or ():
        ticket = tickets[number - 1]
        ticket.answer = Outcome(result=ticket.request.result, repeated=False)


def _group_values(claims: Sequence[NewClaim], *, history: bool, lock_timeout: int | None) -> dict[str, Any]:
    takes = [(number, claim.consumer, *amount) for number, claim in enumerate(claims, 1) for amount in claim.amounts()]
    return {
        "operations": [claim.operation.id for claim in claims],
        "names": [claim.operation.name for claim in claims],
        "fingerprints": [claim.operation.fingerprint for claim in claims],
        "results": [claim.stored_result for claim in claims],
        "consumers": [claim.consumer for claim in claims],
        "projects": [claim.owner.project_id for claim in claims],
        "users": [claim.owner.user_id for claim in claims],
        "types": [claim.owner.consumer_type for claim in claims],
        "waits": [claim.expires_in for claim in claims],
        "events": [claim.event for claim in claims],
        "holdings": [claim.stored_holdings for claim in claims],
        "numbers": [take[0] for take in takes],
        "holders": [take[1] for take in takes],
        "providers": [take[2] for take in takes],
        "classes": [take[3] for take in takes],
        "amounts": [take[4] for take in takes],
        "history": history,
        "lock_timeout": str(lock_timeout),
    }
