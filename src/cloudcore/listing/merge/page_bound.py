"""Where a page over many cells will end, learnt from the cells that were read first. Pure.

What a batch asks for is a guess with a margin, and every cell needs its own: together they would decode nearly twice
the page. But the rows of a cell that lies in this process are decoded one by one, and reading may stop at any of them.
All cells together end far more evenly than each of them: once a few have been read, it is known fairly well where the
page will end, and the others need be read only so far and a row beyond.

The bound is a guess too: a cell that was left too early is simply asked again.
"""

from __future__ import annotations

from itertools import islice
from math import ceil, floor, inf, sqrt
from operator import gt, lt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PageBound"]


class PageBound:
    """How far the cells of one page need be read. May be shared by threads: a race costs a few rows.

    Args:
        limit: Rows wanted.
        cells: Number of cells asked.
        place: Where in a row the leading column of the order is.
        descending: Whether its largest values come first.
    """

    MARGIN = 1.5
    """Standard deviations by which the bound lies behind the expected end."""
    GROWTH = 1.25
    """After so many times as many answers it is reckoned anew."""

    __slots__ = (
        "_answers", "_beyond", "_bound", "_cells", "_descending", "_due", "_least", "_limit", "_most", "_place",
        "_seen",
    )  # fmt: skip

    def __init__(self, limit: int, cells: int, place: int, *, descending: bool) -> None:
        self._limit, self._cells, self._place, self._descending = limit, cells, place, descending
        self._beyond = lt if descending else gt
        share = limit / cells
        self._least = max(2, floor(share - self.MARGIN * sqrt(share)))
        self._most = self._rank(share) + 1
        self._seen: list[Any] = []
        """Values of the leading column, as the driver gave them."""
        self._answers = 0
        self._due = 1.0
        self._bound: Any = None

    def take(self, rows: Iterator[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], bool]:
        """Rows of the next cell, up to the first that lies beyond the bound; and whether that is why they end.

        Two at least, and what is less than its share by more than the margin is not believed at once: rows that come in
        a wrong order shall be seen to. While there is no bound: its share of the page, a margin and one.
        """
        bound, cut = self._bound, False
        taken: list[tuple[Any, ...]] = []
        if bound is None:
            taken.extend(islice(rows, self._most))
            cut = len(taken) == self._most
        else:
            place, beyond, least = self._place, self._beyond, self._least
            try:
                for row in rows:
                    taken.append(row)
                    if beyond(row[place], bound) and len(taken) >= least:
                        cut = True
                        break
            except TypeError:  # SQLite holds any kind of value in a column
                taken.extend(rows)
        self._learn(taken)
        return taken, cut

    def _learn(self, taken: list[tuple[Any, ...]]) -> None:
        place = self._place
        self._seen += [row[place] for row in taken]
        self._answers += 1
        if self._answers >= self._due:
            self._due = self._answers * self.GROWTH
            self._reckon()

    def _rank(self, share: float) -> int:
        return ceil(share + self.MARGIN * sqrt(share))

    def _reckon(self) -> None:
        """Put the bound where the cells read so far have given their share of the page, and the margin."""
        share = self._limit * self._answers / self._cells
        rank = self._rank(share)
        try:
            self._seen = sorted(self._seen, reverse=self._descending)
        except TypeError:
            self._bound, self._due = None, inf
        else:
            self._bound = self._seen[rank] if rank < len(self._seen) else None
