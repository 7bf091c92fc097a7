"""What an answer lacks, and where to go on. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore.errors import CellUnavailable
from cloudcore.listing.query.cursors import Cursor
from cloudcore.listing.values import CellState, Require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloudcore.listing.query.order import Position
    from cloudcore.listing.query.prepared import PreparedQuery
    from cloudcore.listing.values import CellReport, Query

__all__ = ["cursor_after", "insist", "missing"]

_AWAY = frozenset({CellState.SLOW, CellState.DOWN})


def missing(reports: Mapping[str, CellReport]) -> list[str]:
    """The cells that should have answered and did not."""
    return [name for name, report in reports.items() if report.state in _AWAY]


def insist(query: Query, reports: Mapping[str, CellReport]) -> None:
    """Raise when the query requires every cell and some are missing.

    Raises:
        CellUnavailable: With the reason for each.
    """
    if query.require is Require.ALL and (away := missing(reports)):
        text = "; ".join(f"{name}: {reports[name].error}" for name in away)
        raise CellUnavailable(f"not every cell answered: {text}", cells={name: reports[name].error for name in away})


def cursor_after(
    prepared: PreparedQuery, positions: Mapping[str, Position | None], start: Cursor, away: frozenset[str]
) -> Cursor:
    """The furthest position reached, and the cells that lag behind it; those that are away always stand by name."""
    reached = {each for each in (*positions.values(), start.position) if each is not None}
    furthest = max(reached, key=prepared.order.sort_key) if len(reached) > 1 else next(iter(reached), None)
    lagging = {name: position for name, position in positions.items() if position != furthest or name in away}
    return Cursor(digest=prepared.digest, position=furthest, lagging=lagging, tail=start.tail)
