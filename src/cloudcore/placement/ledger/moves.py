"""Moves in the database: the record of each, and the writes that its steps ask for.

Whoever writes a consumer calls :func:`write` here: it knows which moves the consumers belong to, locks both halves, and
keeps the migration's half and the record in step with what the instance holds. One module, since every step locks,
follows and saves the same record.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._failpoints import failpoint
from cloudcore.errors import AlreadyExists, DatabaseBusy, InUse, InvalidTransition, MoveNotFound
from cloudcore.placement.ledger.session import to_json
from cloudcore.placement.ledger.writes import NEW, Target, apply_targets, check_consumer, in_uuids, missing
from cloudcore.placement.rules.moves import (
    Holds,
    Move,
    MoveEvent,
    MoveKind,
    MoveState,
    Overlap,
    Step,
    decide,
    held_by_migration,
    same_beginning,
    validate_beginning,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cloudcore.placement.ledger.session import ConsumerRow, Session
    from cloudcore.placement.rules.claims import Allocations

__all__ = [
    "MIGRATION",
    "MoveRequest",
    "begin",
    "expire_claim",
    "find_move",
    "held_move",
    "live_moves",
    "lock",
    "move_as_json",
    "move_from_json",
    "overdue",
    "step",
    "write",
]

MIGRATION = "MIGRATION"
"""The consumer type of migrations."""

_COLUMNS = """
SELECT migration, instance, kind, state, source, destination, options, story, expires_at,
       COALESCE(expires_at <= {now}, 1 = 0)
FROM moves
"""


@attrs.frozen(kw_only=True)
class MoveRequest:
    """What ``begin_move`` was asked for, checked."""

    migration: str
    instance: str
    destination: Allocations
    kind: MoveKind
    overlap: Overlap
    shared: tuple[str, ...]
    expires_in: float | None
    generation: int | None

    def of(self, source: Allocations, operation_id: str) -> Move:
        """The move that this begins for an instance that holds *source*."""
        return Move(
            migration=self.migration,
            instance=self.instance,
            kind=self.kind,
            state=MoveState.HELD,
            source=source,
            destination=self.destination,
            asked=self.destination,
            shared=self.shared,
            overlap=self.overlap,
            story=(f"begin ({operation_id})",),
        )


@attrs.frozen(kw_only=True)
class _Record:
    """A move as locked by this transaction, and whether its time is over by the database's clock."""

    move: Move
    overdue: bool


# --- reading ---------------------------------------------------------------------------------------------------------


def _records(session: Session, condition: str, values: Collection[Any], *, lock: bool) -> list[_Record]:
    if not values:
        return []
    if lock:
        failpoint("ledger.moves.lock")
    tail = " ORDER BY migration {lock}" if lock else " ORDER BY migration"
    rows = session.in_parts(_COLUMNS + condition + tail, sorted(values))
    return [_record(session, row) for row in rows]


def _record(session: Session, row: Any) -> _Record:
    options = session.document(row[6])
    move = Move(
        migration=row[0],
        instance=row[1],
        kind=MoveKind(row[2]),
        state=MoveState(row[3]),
        source=session.document(row[4]),
        destination=session.document(row[5]),
        asked=options["asked"],
        shared=tuple(options["shared"]),
        overlap=options["overlap"],
        expires_at=session.instant(row[8]),
        story=tuple(session.document(row[7])),
    )
    return _Record(move=move, overdue=bool(row[9]) and move.state is MoveState.HELD)


def find_move(session: Session, migration: str) -> Move | None:
    """The move of *migration*, unlocked."""
    found = _records(session, "WHERE migration IN {marks}", [migration], lock=False)
    return found[0].move if found else None


def live_moves(session: Session, after: str = "", limit: int | None = None) -> list[Move]:
    """The moves that hold something, unlocked, by migration; those behind *after*, at most *limit* of them."""
    sql = _COLUMNS + "WHERE state IN ('held', 'awaiting_proof') AND migration > ? ORDER BY migration"
    rows = session.all(sql, (after,)) if limit is None else session.all(f"{sql} LIMIT ?", (after, limit))
    return [_record(session, row).move for row in rows]


def held_move(session: Session, instance: str) -> Move | None:
    """The move that *instance* is in, None if in none. Its consumers should be locked."""
    found = (record.move for record in _touching(session, [instance], lock=False).values())
    return next((move for move in found if move.instance == instance and move.state is MoveState.HELD), None)


def _touching(session: Session, consumers: Collection[str], *, lock: bool) -> dict[str, _Record]:
    """Moves that hold something for, or are held by, *consumers*; by migration."""
    live = " AND state IN ('held', 'awaiting_proof')"
    if session.dialect != "mysql":  # which would lock more than it returns
        either = "WHERE (instance IN {marks} OR migration IN {marks})" + live
        return {record.move.migration: record for record in _records(session, either, consumers, lock=lock)}
    found = _records(session, "WHERE instance IN {marks}" + live, consumers, lock=lock)
    found += _records(session, "WHERE migration IN {marks}" + live, consumers, lock=lock)
    return {record.move.migration: record for record in found}


def move_as_json(move: Move) -> dict[str, Any]:
    """A move as an operation's result keeps it."""
    document = attrs.asdict(move, filter=lambda field, _: field.name != "repeated")
    document.update(kind=str(move.kind), state=str(move.state), shared=list(move.shared), story=list(move.story))
    document["expires_at"] = None if move.expires_at is None else move.expires_at.isoformat()
    return document


def move_from_json(document: Mapping[str, Any], *, repeated: bool) -> Move:
    """The inverse of :func:`move_as_json`; ``unchanged`` in it tells a call that had nothing left to do."""
    facts = {name: value for name, value in document.items() if name != "unchanged"}
    facts.update(kind=MoveKind(facts["kind"]), state=MoveState(facts["state"]))
    facts.update(shared=tuple(facts["shared"]), story=tuple(facts["story"]))
    if facts["expires_at"] is not None:
        facts["expires_at"] = datetime.fromisoformat(facts["expires_at"])
    return Move(**facts, repeated=repeated or "unchanged" in document)


# --- writing consumers, moving or not --------------------------------------------------------------------------------


def write(
    session: Session,
    operation_id: str,
    event: str,
    targets: Mapping[str, Target],
    *,
    history: bool,
    must_exist: bool = False,
    reshaping: bool = False,
) -> dict[str, dict[str, Any]]:
    """Make the consumers of *targets* hold what their targets say; the move of an instance follows.

    With *must_exist* each of them must hold something now. *reshaping*: a migration may be named too, whose source has
    another form from now on.

    Raises:
        InUse: A consumer is a migration that holds the source of a move (in a reshape: not whole).
        InvalidTransition: An instance's move is overdue, and it would take something else.
        ConsumerNotFound: *must_exist*, and a consumer holds nothing.
    """
    rows, records = _lock(session, targets)
    for uuid, target in targets.items():
        row = rows.get(uuid)
        if must_exist and (row is None or (row.retired and not target.allocations)):
            raise missing(uuid)
    both = dict(targets)
    settled: list[Move] = []
    for migration, record in records.items():
        move = record.move
        if migration in targets:
            if not (reshaping and _is_whole(move) and targets[migration].allocations):
                raise _held_by(move)
            story = (*move.story, f"reshape of the source ({operation_id})")
            record = attrs.evolve(record, move=attrs.evolve(move, source=targets[migration].allocations, story=story))
        after, source = record.move, None
        if move.instance in targets and move.state is not MoveState.AWAITING_PROOF:
            after, source = _follow(record, targets[move.instance], rows[move.instance], operation_id)
        if after is not move:
            settled.append(after)
        if source is not None:
            both[migration] = source
    result = apply_targets(session, operation_id, event, rows, both, history=history)
    for after in settled:
        _save(session, after)
    return {uuid: result[uuid] for uuid in targets}


def _is_whole(move: Move) -> bool:
    """Whether the migration holds the source as it is, none of it counted together with the destination."""
    return move.overlap == "sum" and not move.shared


def _held_by(move: Move) -> InUse:
    return InUse(
        f"consumer {move.migration} holds the source of a move of instance {move.instance}; confirm, revert or abandon "
        f"the move",
        identifier=move.migration,
        users=(move.instance,),
        kind="move",
    )


def lock(session: Session, consumers: Collection[str]) -> dict[str, ConsumerRow]:
    """Lock *consumers*, the other halves of their moves, and the moves; return the consumers that exist."""
    return _lock(session, consumers)[0]


def _lock(session: Session, consumers: Collection[str]) -> tuple[dict[str, ConsumerRow], dict[str, _Record]]:
    """Lock *consumers*, the other halves of their moves, and the moves."""
    seen = _touching(session, consumers, lock=False)
    halves = {uuid for record in seen.values() for uuid in (record.move.migration, record.move.instance)}
    rows = session.lock_consumers({*consumers, *halves})
    if not rows:
        return rows, {}
    records = _touching(session, consumers, lock=True)
    if records.keys() - seen.keys():
        raise DatabaseBusy("a move of one of these consumers began while this call was under way")
    return rows, records


def _follow(record: _Record, target: Target, row: ConsumerRow, operation_id: str) -> tuple[Move, Target | None]:
    """The move after its instance was written to hold *target*, and what its migration shall hold, if that changes."""
    move = record.move
    if not target.allocations:
        done = decide(move, MoveEvent.RELEASE)
        after = attrs.evolve(move, state=done.state, story=(*move.story, f"release of the instance ({operation_id})"))
        return after, None if done.migration is Holds.SOURCE else Target(allocations={}, retire=True)
    if record.overdue:
        raise InvalidTransition(
            f"move {move.migration} of instance {move.instance} has expired and takes no other destination",
            identifier=move.migration,
            state=str(MoveState.EXPIRED),
            event="replace",
            story=move.story,
        )
    after = attrs.evolve(
        move,
        destination=target.allocations,
        story=(*move.story, f"another destination ({operation_id})"),
    )
    held = held_by_migration(after)
    if held == held_by_migration(move):
        return after, None
    owner = attrs.evolve(row.owner, consumer_type=MIGRATION)
    return after, Target(allocations=held, owner=owner, retire=not held, revive=True, keeps=True)


def _save(session: Session, move: Move) -> None:
    failpoint("ledger.moves.update")
    session.run(
        "UPDATE moves SET state = ?, source = ?, destination = ?, story = ?, updated_at = {now} WHERE migration = ?",
        (str(move.state), to_json(move.source), to_json(move.destination), to_json(move.story), move.migration),
    )


def expire_claim(session: Session, operation_id: str, consumer: str, *, history: bool) -> bool:
    """Release a pending claim whose time is over by the database's clock; False if there is none any more."""
    rows, _ = _lock(session, [consumer])
    row = rows.get(consumer)
    if row is None or row.retired or not row.expired:
        return False
    write(session, operation_id, "expire", {consumer: Target(allocations={})}, history=history)
    return True


def overdue(session: Session, limit: int) -> tuple[list[str], list[str]]:
    """Consumers with a pending claim and migrations whose time is over, at most *limit* of each, oldest first."""
    consumers = session.all(
        "SELECT uuid FROM consumers WHERE expires_at <= {now} ORDER BY expires_at LIMIT ?", (limit,)
    )
    migrations = session.all(
        "SELECT migration FROM moves WHERE state = 'held' AND expires_at <= {now} ORDER BY expires_at LIMIT ?", (limit,)
    )
    return [row[0] for row in consumers], [row[0] for row in migrations]


# --- the steps of a move ---------------------------------------------------------------------------------------------


def begin(session: Session, operation_id: str, asked: MoveRequest, *, history: bool) -> dict[str, Any]:
    """Hand over in this transaction, and record the move. Returns the move as JSON."""
    rows = session.lock_consumers({asked.instance, asked.migration})
    known = _records(session, "WHERE migration IN {marks}", [asked.migration], lock=True)
    if known:
        return _begin_again(known[0], asked)
    row = rows.get(asked.instance)
    if row is None or row.retired:
        raise missing(asked.instance)
    for migration, record in _touching(session, [asked.instance], lock=True).items():
        if record.move.state is MoveState.HELD or record.move.migration == asked.instance:
            raise InUse(
                f"instance {asked.instance} is moving already, by migration {migration} ({record.move.state})",
                identifier=asked.instance,
                users=(migration,),
                kind="move",
            )
    check_consumer(asked.instance, Target(allocations=asked.destination, generation=asked.generation), row)
    before = session.holdings([found for uuid, found in rows.items() if not found.retired])
    move = asked.of(in_uuids(session, before)[asked.instance], operation_id)
    validate_beginning(move, expires=asked.expires_in is not None)
    held = held_by_migration(move)
    owner = attrs.evolve(row.owner, consumer_type=MIGRATION)
    targets = {
        asked.instance: Target(allocations=move.destination, generation=asked.generation),
        asked.migration: Target(allocations=held, generation=NEW, owner=owner, retire=not held, keeps=True),
    }
    apply_targets(session, operation_id, "begin_move", rows, targets, history=history, before=before)
    return move_as_json(_insert(session, move, asked.expires_in))


def _begin_again(record: _Record, asked: MoveRequest) -> dict[str, Any]:
    move = record.move
    if not same_beginning(move, asked.of(move.source, "")):
        raise AlreadyExists(
            f"migration {move.migration} moves instance {move.instance} with other arguments ({move.state}); "
            f"use a new uuid for a new move",
            identifier=move.migration,
        )
    decide(attrs.evolve(move, state=MoveState.EXPIRED) if record.overdue else move, MoveEvent.BEGIN)
    return {**move_as_json(move), "unchanged": True}


def _insert(session: Session, move: Move, expires_in: float | None) -> Move:
    failpoint("ledger.moves.insert")
    values = [
        move.migration,
        move.instance,
        str(move.kind),
        str(move.state),
        to_json(move.source),
        to_json(move.destination),
        to_json({"asked": move.asked, "shared": move.shared, "overlap": move.overlap}),
        to_json(move.story),
    ]
    sql = (
        "INSERT INTO moves (migration, instance, kind, state, source, destination, options, story, created_at, "
        "updated_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, {now}, {now}, DEADLINE)"
    )
    if expires_in is None:
        session.run(sql.replace("DEADLINE", "NULL"), values)
        return move
    session.run(sql.replace("DEADLINE", "{later}"), [*values, expires_in])
    rows = session.all("SELECT expires_at FROM moves WHERE migration = ?", (move.migration,))
    return attrs.evolve(move, expires_at=session.instant(rows[0][0]))


def step(
    session: Session, operation_id: str, migration: str, event: MoveEvent, *, proof: str | None, history: bool
) -> dict[str, Any]:
    """Do *event* to the move of *migration* in this transaction. Returns the move as JSON.

    Raises:
        MoveNotFound: No such move is recorded.
        InvalidTransition, FencingRequired: See :func:`cloudcore.placement.rules.moves.decide`.
    """
    seen = find_move(session, migration)
    if seen is None:
        raise MoveNotFound(f"no move of migration {migration} is recorded", identifier=migration)
    rows = session.lock_consumers({seen.instance, migration})
    record = _records(session, "WHERE migration IN {marks}", [migration], lock=True)[0]
    move = record.move
    if record.overdue:
        move, event = _overdue(move, event)
    done = decide(move, event, proof=proof)
    if not done.changes:
        return {**move_as_json(move), "unchanged": True}
    if event is MoveEvent.EXPIRE and not record.overdue:
        return {**move_as_json(move), "unchanged": True}
    after = attrs.evolve(move, state=done.state, story=(*move.story, _line(event, operation_id, proof)))
    apply_targets(session, operation_id, f"{event}_move", rows, _targets(move, done), history=history)
    _save(session, after)
    return move_as_json(after)


def _overdue(move: Move, event: MoveEvent) -> tuple[Move, MoveEvent]:
    """A move whose time is over: a revert is its expiry, a confirm comes too late."""
    if event is MoveEvent.REVERT:
        return move, MoveEvent.EXPIRE
    if event is MoveEvent.CONFIRM:
        return attrs.evolve(move, state=MoveState.EXPIRED), event
    return move, event


def _line(event: MoveEvent, operation_id: str, proof: str | None) -> str:
    return f"{event} ({operation_id})" + (f", proof: {proof}" if proof else "")


def _targets(move: Move, done: Step) -> dict[str, Target]:
    targets = {move.migration: Target(allocations={}, retire=True)}
    if done.instance is Holds.SOURCE:
        targets[move.instance] = Target(allocations=move.source, keeps=True)
    elif done.instance is Holds.NOTHING:
        targets[move.instance] = Target(allocations={})
    return targets
