"""What the ledger answers without changing anything, and the check of all that must hold."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore._values import is_storable
from cloudcore.database import translate
from cloudcore.database.sessions import begin_sqlite
from cloudcore.errors import InvalidArgument, InvariantViolated, ProviderNotFound
from cloudcore.placement.ledger.moves import live_moves
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.ledger.writes import in_uuids
from cloudcore.placement.rules.moves import MoveState, held_by_migration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from cloudcore.database import Database
    from cloudcore.placement.rules.claims import Allocations, Key

__all__ = [
    "ConsumerState",
    "Holder",
    "LedgerStatus",
    "Usage",
    "check",
    "consumer",
    "consumers",
    "holders",
    "provider_usages",
    "snapshot",
    "status",
    "sum_usages",
    "usages",
]


@attrs.frozen(kw_only=True)
class ConsumerState:
    """A consumer as it stands.

    Attributes:
        consumer: Its uuid.
        project_id: Who pays.
        user_id: Who asked.
        consumer_type: Such as ``INSTANCE``; None where nobody said.
        generation: Counts its writes.
        allocations: By provider uuid.
        expires_at: When a pending claim lapses; None for a lasting one.
    """

    consumer: str
    project_id: str
    user_id: str
    consumer_type: str | None
    generation: int
    allocations: Allocations
    expires_at: datetime | None


@attrs.frozen(kw_only=True)
class LedgerStatus:
    """How a ledger stands.

    Attributes:
        overdue_claims: Claims that have lapsed and that :meth:`~cloudcore.AllocationLedger.expire` has not taken back.
        overdue_moves: Moves that have, likewise.
    """

    overdue_claims: int
    overdue_moves: int


@attrs.frozen(kw_only=True)
class Holder:
    """What a consumer holds of one provider.

    Attributes:
        consumer: Its uuid.
        project_id: Who pays.
        user_id: Who asked.
        consumer_type: Such as ``INSTANCE``; None where nobody said.
        generation: Counts the writes of the consumer.
        resources: Class → amount.
    """

    consumer: str
    project_id: str
    user_id: str
    consumer_type: str | None
    generation: int
    resources: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Usage:
    """What consumers of one type use together.

    Attributes:
        consumers: How many they are.
        amounts: Class → amount.
    """

    consumers: int
    amounts: Mapping[str, int]


def consumer(session: Session, uuid: str) -> ConsumerState | None:
    """The state of a consumer, in one statement; None if it holds nothing."""
    rows = session.all(
        "SELECT c.project_id, c.user_id, c.consumer_type, c.generation, c.expires_at, p.uuid, a.resource_class, "
        "a.amount FROM consumers c JOIN allocations a ON a.consumer_id = c.id "
        "JOIN resource_providers p ON p.id = a.provider_id WHERE c.uuid = ? ORDER BY p.uuid, a.resource_class",
        (uuid,),
    )
    if not rows:
        return None
    held: dict[str, dict[str, int]] = {}
    for row in rows:
        held.setdefault(row[5], {})[row[6]] = row[7]
    return ConsumerState(
        consumer=uuid,
        project_id=rows[0][0],
        user_id=rows[0][1],
        consumer_type=rows[0][2],
        generation=rows[0][3],
        expires_at=session.instant(rows[0][4]),
        allocations=held,
    )


_STATES = """
SELECT c.uuid, c.project_id, c.user_id, c.consumer_type, c.generation, c.expires_at, p.uuid, a.resource_class, a.amount
FROM ({page}) c JOIN allocations a ON a.consumer_id = c.id JOIN resource_providers p ON p.id = a.provider_id
ORDER BY c.uuid, p.uuid, a.resource_class
"""
_PAGE = """
SELECT c.id, c.uuid, c.project_id, c.user_id, c.consumer_type, c.generation, c.expires_at FROM consumers c
WHERE c.retired_at IS NULL AND c.uuid > ?{conditions} ORDER BY c.uuid LIMIT {limit}
"""


def consumers(session: Session, chosen: Mapping[str, str | None], after: str, limit: int) -> list[ConsumerState]:
    """The states of those consumers that fit all of *chosen*, in the order of uuids, in one statement."""
    conditions, values = _conditions(chosen)
    page = _PAGE.replace("{conditions}", "".join(f" AND {one}" for one in conditions)).replace("{limit}", str(limit))
    found: dict[str, ConsumerState] = {}
    for row in session.all(_STATES.replace("{page}", page), (after, *values)):
        if row[0] not in found:
            found[row[0]] = ConsumerState(
                consumer=row[0],
                project_id=row[1],
                user_id=row[2],
                consumer_type=row[3],
                generation=row[4],
                expires_at=session.instant(row[5]),
                allocations={},
            )
        held: Any = found[row[0]].allocations
        held.setdefault(row[6], {})[row[7]] = row[8]
    return list(found.values())


_HOLDERS = """
SELECT c.uuid, c.project_id, c.user_id, c.consumer_type, c.generation, a.resource_class, a.amount
FROM allocations a JOIN consumers c ON c.id = a.consumer_id
WHERE a.provider_id = ? AND c.uuid > ?{last} ORDER BY c.uuid, a.resource_class
"""
_LAST = """
SELECT MAX(uuid) FROM (SELECT DISTINCT c.uuid FROM allocations a JOIN consumers c ON c.id = a.consumer_id
WHERE a.provider_id = ? AND c.uuid > ? ORDER BY c.uuid LIMIT {limit}) page
"""


def holders(session: Session, provider: str, after: str, limit: int | None) -> list[Holder]:
    """Who holds something of a provider, in the order of uuids; for a session that sees one state throughout.

    Raises:
        ProviderNotFound: There is none of this uuid.
    """
    number = session.provider_ids([provider]).get(provider)
    if number is None:
        raise ProviderNotFound(f"no resource provider {provider}", identifier=provider)
    values: tuple[Any, ...] = (number, after)
    if limit is not None:
        last = session.all(_LAST.replace("{limit}", str(limit)), values)[0][0]
        values = (number, after, last or after)
    rows = session.all(_HOLDERS.replace("{last}", "" if limit is None else " AND c.uuid <= ?"), values)
    found: dict[str, Holder] = {}
    for uuid, project, user, kind, generation, name, amount in rows:
        if uuid not in found:
            found[uuid] = Holder(
                consumer=uuid,
                project_id=project,
                user_id=user,
                consumer_type=kind,
                generation=generation,
                resources={},
            )
        held: Any = found[uuid].resources
        held[name] = amount
    return list(found.values())


def provider_usages(session: Session, uuid: str) -> dict[str, int]:
    """Class → amount in use, for each class of which the provider has inventory.

    Raises:
        ProviderNotFound: There is none of this uuid.
    """
    rows = session.all(
        "SELECT i.resource_class, i.used FROM resource_providers p LEFT JOIN inventories i ON i.provider_id = p.id "
        "WHERE p.uuid = ? ORDER BY i.resource_class",
        (uuid,),
    )
    if not rows:
        raise ProviderNotFound(f"no resource provider {uuid}", identifier=uuid)
    return {name: used for name, used in rows if name is not None}


_AMOUNTS = """
SELECT c.consumer_type, a.resource_class, SUM(a.amount) FROM consumers c JOIN allocations a ON a.consumer_id = c.id
WHERE {conditions} GROUP BY c.consumer_type, a.resource_class ORDER BY c.consumer_type, a.resource_class
"""
_COUNTS = """
SELECT c.consumer_type, COUNT(*) FROM consumers c WHERE {conditions} GROUP BY c.consumer_type
"""


def usages(
    session: Session, project_id: str | None, user_id: str | None, consumer_type: str | None
) -> dict[str, Usage]:
    """Amounts and number of consumers by type, of the consumers that fit all that is given and hold something.

    For a session that sees one state throughout.
    """
    chosen = {"project_id": project_id, "user_id": user_id, "consumer_type": consumer_type}
    conditions, values = _conditions(chosen)
    fitting = " AND ".join(["c.retired_at IS NULL", *conditions])
    amounts: dict[str, dict[str, int]] = {}
    for kind, name, amount in session.all(_AMOUNTS.replace("{conditions}", fitting), values):
        amounts.setdefault(kind or "unknown", {})[name] = int(amount)
    counts = {kind or "unknown": int(n) for kind, n in session.all(_COUNTS.replace("{conditions}", fitting), values)}
    return {kind: Usage(consumers=counts.get(kind, 0), amounts=found) for kind, found in amounts.items()}


def _conditions(chosen: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """What the rows of consumers must fulfil, and its values; a name without a value asks nothing."""
    conditions, values = [], []
    for name, value in chosen.items():
        if (name, value) == ("consumer_type", "unknown"):
            conditions.append("c.consumer_type IS NULL")
        elif value is not None:
            if not isinstance(value, str) or not is_storable(value):
                raise InvalidArgument(f"{name}: {value!r} is no text that databases hold", field=name, value=value)
            conditions.append(f"c.{name} = ?")
            values.append(value)
    return conditions, values


def sum_usages(by_type: Mapping[str, Usage]) -> dict[str, int]:
    """Add the types up."""
    total: Counter[str] = Counter()
    for usage in by_type.values():
        total.update(usage.amounts)
    return dict(sorted(total.items()))


# --- what must hold --------------------------------------------------------------------------------------------------


def check(database: Database) -> None:
    """Compare the tables with each other in one snapshot.

    Raises:
        InvariantViolated: With one line for each breach.
    """
    with snapshot(database) as session:
        breaches = tuple(breach for part in _CHECKS for breach in part(session))
    if breaches:
        raise InvariantViolated(f"{len(breaches)} breaches in the ledger: {'; '.join(breaches[:5])}", findings=breaches)


@contextmanager
def snapshot(database: Database) -> Iterator[Session]:
    """Give a session all of whose statements see the same state. For reading only."""
    level: dict[str, Any] = {} if database.dialect == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    try:
        with database.engine.connect().execution_options(**level) as connection:
            if database.dialect == "sqlite":
                begin_sqlite(connection, "BEGIN")
            else:
                database.catch_up(connection)
            session = Session(connection)
            with session.errors():
                yield session
    except sa.exc.SQLAlchemyError as error:
        raise translate(error, database.engine) from error


def _sums(session: Session) -> Iterator[str]:
    for provider, name, used, total in session.all(
        "SELECT i.provider_id, i.resource_class, i.used, COALESCE(SUM(a.amount), 0) FROM inventories i "
        "LEFT JOIN allocations a ON a.provider_id = i.provider_id AND a.resource_class = i.resource_class "
        "GROUP BY i.provider_id, i.resource_class, i.used HAVING i.used <> COALESCE(SUM(a.amount), 0)"
    ):
        yield f"provider {provider}, {name}: used is {used}, its allocations sum to {total}"


def _strays(session: Session) -> Iterator[str]:
    for consumer_id, provider, name in session.all(
        "SELECT a.consumer_id, a.provider_id, a.resource_class FROM allocations a "
        "LEFT JOIN consumers c ON c.id = a.consumer_id "
        "LEFT JOIN inventories i ON i.provider_id = a.provider_id AND i.resource_class = a.resource_class "
        "WHERE c.id IS NULL OR c.retired_at IS NOT NULL OR i.provider_id IS NULL"
    ):
        yield f"allocation of consumer {consumer_id} on provider {provider}, {name}: no consumer, or no inventory"
    for (uuid,) in session.all(
        "SELECT c.uuid FROM consumers c LEFT JOIN allocations a ON a.consumer_id = c.id "
        "WHERE a.consumer_id IS NULL AND c.retired_at IS NULL"
    ):
        yield f"consumer {uuid} holds nothing and is not retired"


def _moves(session: Session) -> Iterator[str]:
    for (migration,) in session.all(
        "SELECT DISTINCT m.migration FROM moves m JOIN consumers c ON c.uuid = m.migration "
        "JOIN allocations a ON a.consumer_id = c.id WHERE m.state NOT IN ('held', 'awaiting_proof')"
    ):
        yield f"move {migration} is over and its migration still holds something"
    for move in live_moves(session):
        held = _held_by(session, [move.migration, move.instance])
        if held.get(move.migration, {}) != held_by_migration(move):
            yield f"move {move.migration}: the migration does not hold the source"
        if move.state is MoveState.HELD and held.get(move.instance) != move.destination:
            yield f"move {move.migration}: instance {move.instance} does not hold the destination"


def _held_by(session: Session, uuids: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    found: dict[str, dict[Key, int]] = {}
    for uuid, provider, name, amount in session.in_parts(
        "SELECT c.uuid, a.provider_id, a.resource_class, a.amount FROM consumers c "
        "JOIN allocations a ON a.consumer_id = c.id WHERE c.uuid IN {marks}",
        uuids,
    ):
        found.setdefault(uuid, {})[provider, name] = amount
    return in_uuids(session, found)


_CHECKS = (_sums, _strays, _moves)


def status(session: Session) -> LedgerStatus:
    """How many claims and moves are overdue, by the database's clock."""
    ((claims,),) = session.all("SELECT COUNT(*) FROM consumers WHERE expires_at <= {now}")
    ((moves,),) = session.all("SELECT COUNT(*) FROM moves WHERE state = 'held' AND expires_at <= {now}")
    return LedgerStatus(overdue_claims=int(claims), overdue_moves=int(moves))
