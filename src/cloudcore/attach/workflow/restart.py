"""Restart recovery: every volume and every move that a dead process left in the middle, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore.attach.lifecycle.states import WAITING
from cloudcore.attach.workflow.recovery import Tally
from cloudcore.errors import CloudcoreError

if TYPE_CHECKING:
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Leases
    from cloudcore.attach.journal.moves import MoveStore
    from cloudcore.attach.lifecycle.records import RecoveryReport
    from cloudcore.attach.workflow.moves import Moves
    from cloudcore.attach.workflow.recovery import Recovery

__all__ = ["recover_all"]


def recover_all(
    journal: Journal, leases: Leases, recovery: Recovery, moves: Moves, unfinished: MoveStore
) -> RecoveryReport:
    """See :meth:`AttachmentManager.recover`."""
    tally = Tally()
    with journal.database.read() as connection:
        left = leases.seconds_to_watch(connection)
    if left > 0:
        leases.wait(left)  # expired leases of other machines: renewed meanwhile, or free
    for volume_id in journal.unsettled_volumes():
        recovery.settle_into(tally, volume_id, patience=0.0)
    for instance_id in unfinished.unfinished():
        try:
            moves.recover(instance_id)
        except CloudcoreError as error:
            tally.left.append((f"move of {instance_id}", f"{type(error).__name__}: {error}"))
    for leg in journal.select():
        if leg.state in WAITING:
            recovery.ask_again_into(tally, leg)
    journal.database.run(leases.sweep)
    return tally.report()
