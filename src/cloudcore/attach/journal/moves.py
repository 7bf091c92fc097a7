"""The rows of moves: which instance is on its way from where to where, and which verb was last begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.attach.journal.leases import STILL_HELD
from cloudcore.attach.lifecycle.records import Move
from cloudcore.attach.tables import attachment_moves
from cloudcore.errors import CloudcoreError, GenerationConflict, MoveNotFound

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Delete, Update
    from sqlalchemy.engine import Connection, Row

    from cloudcore.attach.journal.leases import Lease
    from cloudcore.database import Database

__all__ = ["MoveStore"]

_M = attachment_moves
_FIND = sa.select(_M).where(_M.c.instance_id == sa.bindparam("instance"))

_SWAPS = sa.select(_M.c.instance_id, _M.c.note).where(_M.c.kind == "swap")


class MoveStore:
    """Reads and writes the rows of moves. May be shared between threads; writes need the lease on the instance."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, instance_id: str) -> Move | None:
        """The instance's move, None if it is in none. Without disks."""
        with self._database.read() as connection:
            return self.in_move(connection, instance_id)

    def require(self, instance_id: str) -> Move:
        """The instance's move.

        Raises:
            MoveNotFound: It is in none.
        """
        move = self.find(instance_id)
        if move is None:
            raise MoveNotFound(f"instance {instance_id} is in no move", identifier=instance_id)
        return move

    def in_move(self, connection: Connection, instance_id: str) -> Move | None:
        """As :meth:`find`, within the caller's transaction."""
        row = connection.execute(_FIND, {"instance": instance_id}).one_or_none()
        return None if row is None else _move(row)

    def swapping(self, connection: Connection, volume_id: str) -> str | None:
        """The instance for which the volume is being swapped, as the old one or as the new one; None if it is not."""
        swaps = connection.execute(_SWAPS)
        return next((row.instance_id for row in swaps if volume_id in row.note.split()[:2]), None)

    def all(self) -> list[Move]:
        """Every move, without legs and disks."""
        with self._database.read() as connection:
            return [_move(row) for row in connection.execute(sa.select(_M))]

    def unfinished(self) -> list[str]:
        """Instances with a move in the middle of a verb."""
        with self._database.read() as connection:
            return list(connection.scalars(sa.select(_M.c.instance_id).where(_M.c.phase != "begun")))

    def begin(self, move: Move, at: datetime) -> None:
        """Write down that *move* begins."""
        row = {
            "instance_id": move.instance_id,
            "kind": move.kind,
            "phase": move.phase,
            "source": move.source,
            "destination": move.destination,
            "note": move.note,
            "created_at": at,
        }
        self._database.run(lambda connection: connection.execute(sa.insert(_M), row))
        failpoint("attach.move.begun")

    def set_phase(self, move: Move, phase: str, lease: Lease | None = None) -> None:
        """Write down which verb is under way, where *move* goes, and its note; if *lease* still holds.

        Raises:
            GenerationConflict: It does not: whoever has it now has gone on with the move. Nothing was written.
        """
        changed = sa.update(_M).where(_M.c.instance_id == move.instance_id)
        values = {"phase": phase, "destination": move.destination, "note": move.note}
        self._run(move, changed.values(**values), lease)
        failpoint("attach.move.phase")

    def end(self, move: Move, lease: Lease | None = None) -> None:
        """The instance is in no move any more; if *lease* still holds.

        Raises:
            GenerationConflict: It does not. Nothing was written.
        """
        failpoint("attach.move.end")
        self._run(move, sa.delete(_M).where(_M.c.instance_id == move.instance_id), lease)

    def _run(self, move: Move, change: Update | Delete, lease: Lease | None) -> None:
        guarded = change if lease is None else change.where(STILL_HELD)

        def work(connection: Connection) -> None:
            found = connection.execute(guarded, {} if lease is None else lease.proof()).rowcount
            if lease is not None and not found:
                raise GenerationConflict(
                    f"the move of instance {move.instance_id}: the lease was lost, and somebody else goes on with it",
                    identifier=move.instance_id,
                )

        try:
            self._database.run(work)
        except CloudcoreError as error:
            error.add_note(
                f"the move of instance {move.instance_id} is left in the journal as it was; repeat the call, or "
                f"recover() goes on with it"
            )
            raise


def _move(row: Row[Any]) -> Move:
    return Move(
        instance_id=row.instance_id,
        kind=row.kind,
        phase=row.phase,
        source=row.source,
        destination=row.destination,
        note=row.note,
    )
