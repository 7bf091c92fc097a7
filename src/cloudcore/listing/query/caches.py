"""A cache of bounded size whose look-ups take no lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["GenerationCache"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class GenerationCache(Generic[K, V]):
    """Keeps what was used lately, up to a weight. May be shared between threads: a race costs an entry or two.

    There are two generations. What is new or found in the old one goes to the young one; when that holds half the
    weight it becomes the old one, and what nobody has asked for since is gone.

    Args:
        most: Weight of all entries together, about.
        weigh: The weight of one.
    """

    __slots__ = ("_half", "_old", "_weigh", "_weight", "_young")

    def __init__(self, most: int, weigh: Callable[[V], int]) -> None:
        self._half, self._weigh = most // 2, weigh
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0

    def get(self, key: K) -> V | None:
        """What is kept for *key*."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self[key] = found
        return found

    def __setitem__(self, key: K, value: V) -> None:
        weight = self._weigh(value)
        if weight > self._half:
            return
        if self._weight + weight > self._half:
            self._old, self._young, self._weight = self._young, {}, 0
        self._young[key] = value
        self._weight += weight

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
