"""Rows that came in the order of the leading keys alone: putting those that tie in the whole order. Pure."""

from __future__ import annotations

import contextlib
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.listing.query.order import Unfit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudcore.listing.query.order import Order

__all__ = ["Settled", "settle"]

Row = tuple[Any, ...]


@attrs.frozen
class Settled:
    """Rows in their whole order, and what is missing of them.

    Attributes:
        rows: As many as are certain, at most as many as were wanted.
        cut: A row of the tie in which reading ended too early to know which of its rows come first; None when nothing
            is missing. The *rows* are those before the tie.
    """

    rows: list[Row]
    cut: Row | None


def settle(rows: list[Row], wanted: int, order: Order, places: Sequence[int], keys: int) -> Settled:
    """Put *rows* in order.

    Args:
        rows: In the order of the first *keys* keys; one more than wanted was asked for, to see where the last tie ends.
        wanted: Rows wanted.
        order: The whole order.
        places: Where in a row the columns of the order are.
        keys: Number of leading keys by which the rows came.
    """
    shared = itemgetter(*places[:keys])
    whole = len(rows)
    if whole > wanted:
        last, whole = shared(rows[-1]), whole - 1
        while whole and shared(rows[whole - 1]) == last:
            whole -= 1
    certain = _sorted(rows[:whole], order, places, shared)
    return Settled(certain, None if len(rows) <= wanted or whole == wanted else rows[-1])


def _sorted(rows: list[Row], order: Order, places: Sequence[int], shared: itemgetter[Any]) -> list[Row]:
    """The rows with each tie in order. Most rows tie with no other: they stay as they are."""
    values = list(map(shared, rows))
    start = 0
    for end in range(1, len(rows) + 1):
        if end < len(rows) and values[end] == values[start]:
            continue
        if end - start > 1:
            tie = rows[start:end]
            with contextlib.suppress(Unfit):  # the merge will say which row it is
                sort_keys = order.sort_keys(order.read([list(map(itemgetter(place), tie)) for place in places]))
                rows[start:end] = [row for _, row in sorted(zip(sort_keys, tie, strict=True), key=itemgetter(0))]
        start = end
    return rows
