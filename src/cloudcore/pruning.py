"""Forget what is old in every table that grows with use: one call for all areas of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from cloudcore._values import require_integer, require_portion, require_utc
from cloudcore.attach.journal.journal import Journal
from cloudcore.attach.tables import attachment_legs
from cloudcore.database import Database, operations
from cloudcore.placement import AllocationLedger, prune_changes
from cloudcore.placement.ledger.host_groups import forget_groups
from cloudcore.placement.scheduling.rescheduling import forget_attempts
from cloudcore.placement.tables import host_attempts

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.engine import URL, Engine

__all__ = ["Upkeep", "upkeep"]

_GROUPS = 1_000_000  # each is a transaction of its own


@attrs.frozen(kw_only=True)
class Upkeep:
    """How many rows were forgotten.

    Attributes:
        operations: Operation ids; one that is forgotten can take effect again.
        history: Entries of who held what; what was held at the cut stays known.
        changes: Rows of the change feed.
        attempts: Hosts that were tried, in reschedules.
        groups: Groups of instances without a member that holds anything.
        attachments: Attachments that are absent, with their stories.
    """

    operations: int = 0
    history: int = 0
    changes: int = 0
    attempts: int = 0
    groups: int = 0
    attachments: int = 0


def upkeep(
    database: Database | str | URL | Engine, *, older_than: datetime, keep_changes: int = 100_000, limit: int = 10_000
) -> Upkeep:
    """Forget what is older than *older_than* in the tables of *database*; areas that are not there are skipped.

    Runs beside writers and followers: each transaction forgets a bounded number of rows. Groups without members go
    whatever their age. The records of moves and the uuids of retired consumers stay: they are what refuses the late.

    Args:
        database: A Database, an engine or a URL, which is opened and closed.
        older_than: Later than any caller may still repeat a call with its operation id.
        keep_changes: Changes of the feed that are kept; a tree that is further behind reads everything anew.
        limit: Rows in one transaction, at most; up to 30,000. A transaction on the change feed keeps writers waiting.

    Raises:
        InvalidArgument: *older_than* has no time zone, or a number is out of range.
        DatabaseUnavailable, DatabaseBusy, DatabaseError: What was forgotten so far is forgotten; call again.
    """
    older_than = require_utc(older_than, "older_than")
    require_integer(keep_changes, "keep_changes", minimum=0)
    require_portion(limit)
    opened = Database.of(database)
    try:
        with opened.read() as connection:
            there = set(sa.inspect(connection).get_table_names())
        done = Upkeep()
        if operations.name in there:
            done = attrs.evolve(done, operations=_all(lambda: opened.prune_operations(older_than, limit=limit)))
        if host_attempts.name in there:
            ledger = AllocationLedger(opened)
            done = attrs.evolve(
                done,
                history=_all(lambda: ledger.prune_history(older_than, limit=limit)),
                attempts=_all(lambda: forget_attempts(opened, older_than, limit=limit)),
                groups=forget_groups(opened, limit=_GROUPS),
                changes=_all(lambda: opened.run(lambda c: prune_changes(c, keep=keep_changes, limit=limit))),
            )
        if attachment_legs.name in there:
            journal = Journal(opened, opened.clock)
            done = attrs.evolve(done, attachments=_all(lambda: journal.prune(older_than, limit=limit)))
        return done
    finally:
        if opened is not database:
            opened.close()


def _all(forget: Callable[[], int]) -> int:
    """Forget until nothing is left to forget."""
    total = 0
    while gone := forget():
        total += gone
    return total
