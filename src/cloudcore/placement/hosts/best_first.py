"""Numbers in the order of their weights, put in order only as far as anybody reads. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Mask, Positions

__all__ = ["BestFirst"]

_FIRST = 32
"""Numbers that are put in order first; each time that more are read, eight times as many follow."""

_SAMPLE = 1024
"""Weights that are looked at to guess how high the best ones lie."""


class BestFirst:
    """The *chosen* numbers, the highest weight first. Every walk shares what another has put in order.

    Args:
        weights: The weight of each number, finite.
        chosen: Which numbers are meant.
        start: On equal weights the numbers from here on come first, then those before.
    """

    def __init__(self, weights: NDArray[np.float64], chosen: Mask, start: int = 0) -> None:
        self._weights = weights if chosen.all() else np.where(chosen, weights, -np.inf)
        self._count = int(np.count_nonzero(chosen))
        self._start = start
        self._order: Positions = np.empty(0, dtype=np.intp)

    def __iter__(self) -> Iterator[Positions]:
        """The numbers, in portions."""
        done = 0
        while done < self._count:
            if done == len(self._order):
                self._order = self._best(min(self._count, 9 * done or _FIRST))
            portion = self._order[done:]
            done = len(self._order)
            yield portion

    def rank(self, number: int) -> int:
        """How many of the chosen have a higher weight than *number*."""
        weight = self._weights[number]
        known = self._weights[self._order]
        if len(known) and known[-1] <= weight:
            return int(np.searchsorted(-known, -weight))
        return int(np.count_nonzero(self._weights > weight))

    def _best(self, width: int) -> Positions:
        """The *width* best, in order."""
        best = self._good(width)
        weights = self._weights[best]
        if width < len(best):
            least = np.partition(weights, len(best) - width)[len(best) - width]
            better, equal = best[weights > least], best[weights == least]
            first = int(equal.searchsorted(self._start))
            best = np.concatenate((better, equal[first:], equal[:first]))[:width]
        turned = (best - self._start) % len(self._weights)
        ordered: Positions = best[np.lexsort((turned, -self._weights[best]))]
        return ordered

    def _good(self, width: int) -> Positions:
        """Numbers of which the *width* best are some: few, if a sample tells how high these lie, else all."""
        stride = len(self._weights) // _SAMPLE
        if stride > 1 and 8 * width < self._count:
            sample = self._weights[::stride]
            place = max(0, len(sample) - 2 * width // stride - 16)
            guess = np.partition(sample, place)[place]
            good = np.flatnonzero(self._weights >= guess)
            if len(good) >= width:
                return good
        return np.flatnonzero(self._weights > -np.inf)
