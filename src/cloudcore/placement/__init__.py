"""Where an instance may run, and who holds what.

Names load on first use. The ledger: :class:`AllocationLedger`, what it answers, and the feed that trees follow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.placement.changes import changes_since, prune_changes, record_changes
    from cloudcore.placement.claims import Held
    from cloudcore.placement.ledger import AllocationLedger
    from cloudcore.placement.ledger_reads import ConsumerState, Usage
    from cloudcore.placement.moves import Move, MoveKind, MoveState

_EXPORTS = {
    "AllocationLedger": "cloudcore.placement.ledger",
    "ConsumerState": "cloudcore.placement.ledger_reads",
    "Held": "cloudcore.placement.claims",
    "Move": "cloudcore.placement.moves",
    "MoveKind": "cloudcore.placement.moves",
    "MoveState": "cloudcore.placement.moves",
    "Usage": "cloudcore.placement.ledger_reads",
    "changes_since": "cloudcore.placement.changes",
    "prune_changes": "cloudcore.placement.changes",
    "record_changes": "cloudcore.placement.changes",
}

__all__ = [
    "AllocationLedger",
    "ConsumerState",
    "Held",
    "Move",
    "MoveKind",
    "MoveState",
    "Usage",
    "changes_since",
    "prune_changes",
    "record_changes",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
