"""Whether allocations can be noted in memory: the checks behind ``PlacementTree.allocate``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cloudcore.errors import CapacityExceeded, InvalidAllocation, UnitViolation

if TYPE_CHECKING:
    from cloudcore.placement.forest.forest import Forest
    from cloudcore.placement.forest.values import Provider

__all__ = ["read_allocations"]


def read_allocations(forest: Forest, given: Any) -> dict[str, dict[str, int]]:
    """Return *given* (provider → class → amount) by uuid, if every provider can give it now.

    Raises:
        InvalidAllocation, ProviderNotFound: It is malformed.
        CapacityExceeded, UnitViolation: A provider cannot give it.
    """
    if not isinstance(given, Mapping) or not given:
        raise InvalidAllocation(f"expected provider → class → amount, got {given!r}", field="allocations")
    wanted: dict[str, dict[str, int]] = {}
    for key, amounts in given.items():
        provider = forest.find(key)
        if provider.uuid in wanted:
            raise InvalidAllocation(f"{provider.name}: given twice", field="allocations", value=key)
        if not isinstance(amounts, Mapping) or not amounts:
            raise InvalidAllocation(f"{provider.name}: no class → amount: {amounts!r}", field="allocations")
        for name, amount in amounts.items():
            if type(amount) is not int or amount < 1:
                raise InvalidAllocation(f"{provider.name} {name}: {amount!r} is no amount", field="allocations")
            _check_room(forest, provider, name, amount)
        wanted[provider.uuid] = dict(amounts)
    return wanted


def _check_room(forest: Forest, provider: Provider, name: str, amount: int) -> None:
    inventory = provider.inventories.get(name)
    used = forest.used(provider.uuid).get(name, 0)
    if inventory is None or used + amount > inventory.capacity:
        capacity = 0 if inventory is None else inventory.capacity
        raise CapacityExceeded(
            f"{provider.name}: {amount} {name} asked, {used} of {capacity} in use",
            provider=provider.uuid,
            resource_class=name,
            asked=amount,
            used=used,
            capacity=capacity,
        )
    rules = {
        "min_unit": amount < inventory.min_unit,
        "max_unit": amount > inventory.max_unit,
        "step_size": amount % inventory.step_size != 0,
    }
    for rule, broken in rules.items():
        if broken:
            bound = getattr(inventory, rule)
            raise UnitViolation(
                f"{provider.name}: {amount} {name} asked, {rule} is {bound}",
                provider=provider.uuid,
                resource_class=name,
                asked=amount,
                rule=rule,
                bound=bound,
            )
