"""The rows of moves: which instance is on its way from where to where, and which verb was last begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.attach.lifecycle.records import Move
from cloudcore.attach.tables import attachment_moves
from cloudcore.errors import CloudcoreError, MoveNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.engine import Connection, Row

    from cloudcore.database import Database

__all__ = ["MoveStore"]

_M = attachment_moves
_FIND = sa.select(_M).where(_M.c.instance_id == sa.bindparam("instance"))


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

    def set_phase(self, move: Move, phase: str) -> None:
        """Write down which verb is under way, where *move* goes, and its note."""
        changed = sa.update(_M).where(_M.c.instance_id == move.instance_id)
        values = {"phase": phase, "destination": move.destination, "note": move.note}
        self._run(move, lambda connection: connection.execute(changed.values(**values)))
        failpoint("attach.move.phase")

    def end(self, move: Move) -> None:
        """The instance is in no move any more."""
        failpoint("attach.move.end")
        gone = sa.delete(_M).where(_M.c.instance_id == move.instance_id)
        self._run(move, lambda connection: connection.execute(gone))

    def _run(self, move: Move, work: Callable[[Connection], object]) -> None:
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
