"""The journal of attachments in SQL: every step is written before it begins, guarded by version and lease.

A write that finds another version, or its lease taken over, changes nothing and raises: whoever lost the race stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import sqlalchemy as sa

from cloudcore.attach.journal.leases import STILL_HELD
from cloudcore.attach.lifecycle.records import Attachment, HostDevice, Settings, StoryLine
from cloudcore.attach.lifecycle.states import AT_REST, TABLE, WAITING, Event, State, transition
from cloudcore.attach.tables import attachment_events, attachment_legs
from cloudcore.errors import AttachmentNotFound, GenerationConflict

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

    from cloudcore.attach.journal.leases import Lease
    from cloudcore.attach.lifecycle.states import Instruction, Transition
    from cloudcore.database import Database

__all__ = ["Journal"]

_T = attachment_legs
_E = attachment_events
_NOTE = 1000
_SETTLED = sorted(AT_REST | WAITING)

_BY_ID = sa.select(_T).where(_T.c.id == sa.bindparam("the_id"))
_BY_VOLUME = sa.select(_T).where(_T.c.volume_id == sa.bindparam("volume"), _T.c.state != State.ABSENT)
_BY_INSTANCE = sa.select(_T).where(_T.c.instance_id == sa.bindparam("instance"), _T.c.state != State.ABSENT)
_BY_OPERATION = sa.select(_T).where(_T.c.operation_id == sa.bindparam("operation"))
_EVENT = sa.insert(_E)
_BEGIN = sa.insert(_T)
_SPARE = (
    sa.update(_T)
    .where(_T.c.volume_id == sa.bindparam("volume"), _T.c.state == State.ABSENT, _T.c.when_gone == "delete")
    .values(when_gone=None)
)
_CHANGING = (
    "operation_id", "fingerprint", "volume_id",
    "role", "host", "state", "service_id", "consumer_key", "exclusive_key", "version", "settings", "device",
    "when_gone", "note",
    "updated_at",
)  # fmt: skip
_REPLACE = (
    sa.update(_T)
    .where(_T.c.id == sa.bindparam("the_id"), _T.c.version == sa.bindparam("before"), STILL_HELD)
    .values({name: sa.bindparam(f"new_{name}", type_=_T.c[name].type) for name in _CHANGING})
)  # one statement for every step: built once, compiled once


class Journal:
    """Reads and writes legs. May be shared between threads; its writes need the lease on the leg's volume.

    Args:
        database: Where the attachment tables are.
        clock: Gives the instants that the journal shows; nothing is decided by them.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self.database = database
        self._clock = clock

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, attachment_id: str) -> Attachment:
        """The leg of this id.

        Raises:
            AttachmentNotFound: There never was one, or it was pruned.
        """
        with self.database.read() as connection:
            row = connection.execute(_BY_ID, {"the_id": attachment_id}).one_or_none()
        if row is None:
            raise self._unknown(attachment_id)
        return _attachment(row)

    def _unknown(self, attachment_id: str) -> AttachmentNotFound:
        """What to say of an id that no attachment has: often it is that of a volume, or of an instance."""
        hint = "attach() returns it, and attachments(volume_id=…) lists those of a volume"
        with self.database.read() as connection:
            for what, column in {"a volume": _T.c.volume_id, "an instance": _T.c.instance_id}.items():
                if connection.execute(sa.select(_T.c.id).where(column == attachment_id).limit(1)).first():
                    hint = f"this is the id of {what}: attachments({column.name}=…) lists its attachments"
        return AttachmentNotFound(f"no attachment {attachment_id} in the journal; {hint}", identifier=attachment_id)

    def of_volume(self, connection: Connection, volume_id: str) -> list[Attachment]:
        """Its legs that are not absent."""
        return [_attachment(row) for row in connection.execute(_BY_VOLUME, {"volume": volume_id})]

    def of_instance(self, connection: Connection, instance_id: str) -> list[Attachment]:
        """Its legs that are not absent."""
        return [_attachment(row) for row in connection.execute(_BY_INSTANCE, {"instance": instance_id})]

    def of_operation(self, connection: Connection, operation_id: str) -> Attachment | None:
        """The leg that was made under this operation id."""
        row = connection.execute(_BY_OPERATION, {"operation": operation_id}).one_or_none()
        return None if row is None else _attachment(row)

    def select(
        self,
        *,
        volume_id: str | None = None,
        instance_id: str | None = None,
        host: str | None = None,
        interrupted: bool = False,
        absent: bool = False,
    ) -> tuple[Attachment, ...]:
        """Legs by what they belong to, oldest first.

        *interrupted* leaves out those at rest and those that wait for a guest; *absent* adds the past ones.
        """
        query = sa.select(_T).order_by(_T.c.created_at, _T.c.id)
        wanted = {_T.c.volume_id: volume_id, _T.c.instance_id: instance_id, _T.c.host: host}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(column == value)
        if interrupted:
            query = query.where(_T.c.state.not_in(_SETTLED))
        elif not absent:
            query = query.where(_T.c.state != State.ABSENT)
        with self.database.read() as connection:
            return tuple(_attachment(row) for row in connection.execute(query))

    def count_by_state(self) -> dict[State, int]:
        """How many legs are in each state, absent ones left out."""
        query = sa.select(_T.c.state, sa.func.count()).where(_T.c.state != State.ABSENT).group_by(_T.c.state)
        with self.database.read() as connection:
            return {State(state): number for state, number in connection.execute(query)}

    def unsettled_volumes(self) -> list[str]:
        """Volumes with legs whose work is unfinished, or with a second leg that replaced nothing yet."""
        with self.database.read() as connection:
            open_ones = _T.c.state.not_in(_SETTLED)
            waiting = sa.and_(_T.c.role == "next", _T.c.state != State.ABSENT)
            query = sa.select(_T.c.volume_id).where(sa.or_(open_ones, waiting)).distinct()
            return sorted(connection.scalars(query))

    def service_ids(self, volume_id: str, instance_id: str) -> set[str]:
        """Every id that the volume service ever gave us for this pair, absent legs included."""
        mine = sa.select(_T.c.service_id).where(_T.c.volume_id == volume_id, _T.c.instance_id == instance_id)
        with self.database.read() as connection:
            return {found for found in connection.scalars(mine) if found}

    def story(self, attachment_id: str) -> tuple[StoryLine, ...]:
        """Everything that happened to the leg, oldest first."""
        query = sa.select(_E).where(_E.c.attachment_id == attachment_id).order_by(_E.c.version)
        with self.database.read() as connection:
            return tuple(
                StoryLine(version=r.version, event=r.event, state=State(r.state), note=r.note, at=r.at)
                for r in connection.execute(query)
            )

    def going_with(self, instance_id: str) -> list[str]:
        """Volumes whose last attachment to the instance ended with its termination, and that go with it."""
        query = sa.select(_T.c.volume_id, _T.c.state, _T.c.when_gone).where(_T.c.instance_id == instance_id)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        staying = {row.volume_id for row in rows if row.state != State.ABSENT}
        return sorted({row.volume_id for row in rows if row.when_gone == "delete"} - staying)

    def spare(self, connection: Connection, volume_id: str) -> None:
        """Whatever ended with the volume earlier, it is not to be deleted for that any more."""
        connection.execute(_SPARE, {"volume": volume_id})

    # --- writing ------------------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, leg: Attachment) -> None:
        """Write a new leg and the first line of its story, in the caller's transaction."""
        connection.execute(_BEGIN, _row(leg))
        connection.execute(_EVENT, self._line(leg, "begin", None))

    def now(self) -> datetime:
        """The present, for new legs."""
        return self._clock()

    def advance(
        self,
        lease: Lease,
        leg: Attachment,
        event: Event,
        *,
        also: Event | None = None,
        note: str | None = None,
        release: bool = False,
        with_others: Callable[[Connection], None] | None = None,
        **changes: Any,
    ) -> tuple[Attachment, Instruction | None]:
        """Apply *event*, write the new state with *changes* to the leg's fields, and say what to do next.

        *also* is a second event that follows at once. *release* gives the lease back in the same transaction if nothing
        is left to do. *with_others* writes beside it.

        Raises:
            InvalidTransition: The table has no such pair; with the story.
            GenerationConflict: Somebody else has moved the leg, or the lease was lost. Nothing was written.
        """
        target = self._target(leg, event)
        changes = _wish(leg, target.state, changes)
        text = note[:_NOTE] if note else None
        step = {"note": text, "updated_at": self.now(), **changes}
        after = attrs.evolve(leg, state=target.state, version=leg.version + 1, **step)
        between = None
        if also is not None:
            between, target = after, self._target(after, also)
            after = attrs.evolve(after, state=target.state, version=after.version + 1)
        leave = release and target.instruction is None

        def work(connection: Connection) -> None:
            if with_others is not None:
                with_others(connection)
            if between is not None:
                connection.execute(_EVENT, self._line(between, event, text))
            self.replace(connection, lease, leg, after, also or event)
            if leave:
                lease.release(connection)

        self.database.run(work)
        if leave:
            lease.forget()
        return after, target.instruction

    def _target(self, leg: Attachment, event: Event) -> Transition:
        found = TABLE.get((leg.state, event))
        if found is not None:
            return found
        return transition(leg.state, event, [str(line) for line in self.story(leg.id)], identifier=leg.id)

    def replace(self, connection: Connection, lease: Lease, before: Attachment, after: Attachment, event: str) -> None:
        """Write *after* over *before*, in the caller's transaction.

        Raises:
            GenerationConflict: *before* is not what is there, or the lease was lost.
        """
        values = {f"new_{name}": value for name, value in _row(after).items() if name in _CHANGING}
        guard = {"the_id": before.id, "before": before.version, **lease.proof()}
        if not connection.execute(_REPLACE, {**values, **guard}).rowcount:
            raise GenerationConflict(
                f"attachment {before.id}: somebody else went on with it, or the lease was lost; nothing was written. "
                f"recover() settles it",
                identifier=before.id,
                expected=before.version,
            )
        connection.execute(_EVENT, self._line(after, event, after.note))

    def free_operation(self, leg: Attachment) -> bool:
        """Let the operation id of a leg that was undone be used again; False if the leg is, or ever was, attached."""
        if leg.state is not State.ABSENT or any(line.state in AT_REST - {State.ABSENT} for line in self.story(leg.id)):
            return False
        forgotten = sa.update(_T).where(_T.c.id == leg.id, _T.c.state == State.ABSENT).values(operation_id=None)
        return bool(self.database.run(lambda connection: connection.execute(forgotten).rowcount))

    def prune(self, older_than: datetime, *, limit: int = 10_000) -> int:
        """Forget absent legs last touched before *older_than*, with their stories; return how many.

        Not those whose volume is still to be deleted: nothing else knows that it is.
        """
        done = sa.or_(_T.c.when_gone.is_(None), _T.c.when_gone != "delete")
        old = sa.select(_T.c.id).where(_T.c.state == State.ABSENT, done, _T.c.updated_at < older_than).limit(limit)

        def work(connection: Connection) -> int:
            ids = list(connection.scalars(old))
            if ids:
                connection.execute(sa.delete(_E).where(_E.c.attachment_id.in_(ids)))
                connection.execute(sa.delete(_T).where(_T.c.id.in_(ids)))
            return len(ids)

        return self.database.run(work)

    def _line(self, leg: Attachment, event: str, note: str | None) -> dict[str, Any]:
        return {
            "attachment_id": leg.id,
            "version": leg.version,
            "event": str(event),
            "state": str(leg.state),
            "note": note,
            "at": leg.updated_at,
        }


def _wish(leg: Attachment, target: State, changes: dict[str, Any]) -> dict[str, Any]:
    """What has come to rest anywhere but in absence is on its way out no longer, and nobody's wish outlives that."""
    stays = leg.when_gone is not None and target in AT_REST and target is not State.ABSENT
    return {**changes, "when_gone": None} if stays else changes


def _keys(leg: Attachment) -> dict[str, str | None]:
    present = leg.state is not State.ABSENT
    exclusive = present and leg.role == "main" and not leg.settings.shareable
    return {
        "consumer_key": f"{leg.volume_id}/{leg.instance_id}/{leg.role}" if present and leg.role != "past" else None,
        "exclusive_key": leg.volume_id if exclusive else None,
    }


def _row(leg: Attachment) -> dict[str, Any]:
    return {
        "id": leg.id,
        "volume_id": leg.volume_id,
        "instance_id": leg.instance_id,
        "role": leg.role,
        "host": leg.host,
        "state": str(leg.state),
        "mode": leg.mode,
        "service_id": leg.service_id,
        "operation_id": leg.operation_id,
        "fingerprint": leg.fingerprint,
        "version": leg.version,
        "settings": leg.settings.as_json(),
        "device": leg.device.as_json() if leg.device else None,
        "when_gone": leg.when_gone,
        "note": leg.note,
        "created_at": leg.created_at,
        "updated_at": leg.updated_at,
        **_keys(leg),
    }


def _attachment(row: Row[Any]) -> Attachment:
    return Attachment(
        id=row.id,
        volume_id=row.volume_id,
        instance_id=row.instance_id,
        role=row.role,
        host=row.host,
        state=State(row.state),
        mode=row.mode,
        service_id=row.service_id,
        operation_id=row.operation_id,
        fingerprint=row.fingerprint,
        version=row.version,
        settings=Settings.from_json(row.settings),
        device=HostDevice.from_json(row.device),
        when_gone=row.when_gone,
        note=row.note,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
