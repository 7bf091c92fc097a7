"""Stretches of an order that one statement reads: NULLs or values of the leading key, or within one tie. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from cloudcore.listing.query.order import Order, Position

__all__ = ["Segment", "segments"]


@attrs.frozen
class Segment:
    """A stretch of an order: all of it, the part where the leading key is NULL throughout, or never; or a single tie.

    ``leading``: "any" when the leading column cannot be NULL, else "values" or "nulls"; within these the order needs
    no NULL rank on the leading key, so an ordinary index serves it on every database. "both" where none does.
    ``tied``: so many leading keys have the values of ``within`` in all rows.
    """

    leading: str
    after: Position | None
    tied: int = 0
    within: Position | None = None

    @property
    def closed(self) -> int:
        """Number of leading keys that are the same in all rows."""
        return max(self.tied, int(self.leading == "nulls"))

    def tie(self, row: Position, keys: int) -> Segment:
        """What remains of the rows that are like *row* in the first *keys* keys."""
        inside = self.after is not None and self.after[:keys] == row[:keys]
        return Segment(self.leading, self.after if inside else None, keys, row)


def segments(order: Order, after: Position | None, *, apart: bool = True) -> list[Segment]:
    """The segments that remain after a position, in order; with NULLs *apart* from values of the leading key or not."""
    first = order.keys[0]
    if not first.nullable:
        return [Segment("any", after)]
    if not apart:
        return [Segment("both", after)]
    both = ["nulls", "values"] if first.nulls_first else ["values", "nulls"]
    if after is None:
        return [Segment(name, None) for name in both]
    current = "nulls" if after[0] is None else "values"
    rest = both[both.index(current) + 1 :]
    return [Segment(current, after), *(Segment(name, None) for name in rest)]
