"""What is left on providers while the instances of a request are placed. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RemainingCapacity", "Room"]


@attrs.frozen(kw_only=True)
class Room:
    """What one provider has of one resource class, in the unit of the class."""

    used: int
    capacity: int


class RemainingCapacity:
    """What is left on each provider after the picks so far and after what refusals have told.

    Args:
        room_of: Gives the snapshot's room of (provider, class), None where the provider has no such inventory.
        name_of: Gives the name of a provider, for messages.
    """

    def __init__(
        self, room_of: Callable[[str, str], Room | None], name_of: Callable[[str], str] = lambda provider: provider
    ) -> None:
        self._room_of = room_of
        self._name_of = name_of
        self._taken: Counter[tuple[str, str]] = Counter()
        self._told: dict[tuple[str, str], tuple[int, int]] = {}
        self._touched: set[str] = set()
        self._gone: dict[str, str] = {}

    def used(self, provider: str, resource_class: str) -> tuple[int, int]:
        """(used, capacity) by now; (0, 0) where there is no inventory."""
        key = (provider, resource_class)
        told = self._told.get(key)
        if told is None:
            room = self._room_of(provider, resource_class)
            told = (0, 0) if room is None else (room.used, room.capacity)
        return told[0] + self._taken[key], told[1]

    def untouched(self, allocations: Mapping[str, Mapping[str, int]]) -> bool:
        """Whether no pick and no refusal has changed any of these providers: then what the search said holds."""
        return self._touched.isdisjoint(allocations)

    def left(self, provider: str, resource_class: str) -> int | None:
        """What is left there by now; None where no pick and no refusal has changed anything."""
        if provider not in self._touched:
            return None
        if provider in self._gone:
            return -1
        used, capacity = self.used(provider, resource_class)
        return capacity - used

    def refuses(self, allocations: Mapping[str, Mapping[str, int]]) -> str | None:
        """Why these amounts, which the search found to fit, do not fit any more; None if they do."""
        if self.untouched(allocations):
            return None
        for provider, amounts in allocations.items():
            if provider in self._gone:
                return self._gone[provider]
            for resource_class, amount in amounts.items():
                used, capacity = self.used(provider, resource_class)
                if used + amount > capacity:
                    return (
                        f"{resource_class} on {self._name_of(provider)}: {amount} asked, {used} of {capacity} used, "
                        "picks of this request included"
                    )
        return None

    def fits(self, allocations: Mapping[str, Mapping[str, int]]) -> int:
        """How many times these amounts fit into what is left."""
        if not self._gone.keys().isdisjoint(allocations):
            return 0
        times = [
            max(0, capacity - used) // amount
            for provider, amounts in allocations.items()
            for resource_class, amount in amounts.items()
            for used, capacity in [self.used(provider, resource_class)]
        ]
        return min(times, default=0)

    def take(self, allocations: Mapping[str, Mapping[str, int]], times: int = 1) -> None:
        """Count a pick (or with ``times=-1`` its end)."""
        self._touched.update(allocations)
        for provider, amounts in allocations.items():
            for resource_class, amount in amounts.items():
                self._taken[provider, resource_class] += times * amount

    def learn(self, provider: str, resource_class: str, *, used: int, capacity: int) -> None:
        """Believe what a refusal told of an inventory rather than the snapshot."""
        self._touched.add(provider)
        self._told[provider, resource_class] = (used, capacity)

    def avoid(self, provider: str, reason: str) -> None:
        """Take nothing from a provider that is gone, or whose rules refused."""
        self._touched.add(provider)
        self._gone[provider] = reason
