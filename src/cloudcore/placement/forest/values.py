"""Values of the forest: inventories, providers, and an immutable mapping for their parts. Pure.

Source of the rules: Placement's data model (microversion 1.39).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from cloudcore._values import MAX_INTEGER, FrozenDict, require_integer, uuid_in
from cloudcore.errors import InvalidArgument, InvalidInventory

__all__ = ["MAX_CAPACITY", "FrozenDict", "Inventory", "Provider", "keys_of"]

K = TypeVar("K")
V = TypeVar("V")

MAX_CAPACITY = 2**63 - 1
"""A capacity is cut off here, so that every database and every column can hold it."""

_MAX_RATIO = 3.4e38


def _amount(minimum: int) -> Any:
    def check(_: Any, attribute: attrs.Attribute[int], value: int) -> None:
        require_integer(value, attribute.name, minimum=minimum, error=InvalidInventory)

    return check


def _finite_ratio(_: Any, attribute: attrs.Attribute[float], value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_RATIO:
        raise InvalidInventory(
            f"{attribute.name}: expected a number from 0 to {_MAX_RATIO}, got {value!r}",
            field=attribute.name,
            value=value,
        )


def _overdrawn(total: int, reserved: int) -> InvalidInventory:
    return InvalidInventory(
        f"reserved: {reserved} of a total of {total} leaves less than nothing", field="reserved", value=reserved
    )


def _to_float(value: Any) -> Any:
    return float(value) if type(value) is int and abs(value) <= _MAX_RATIO else value


@attrs.frozen
class Inventory:
    """What one provider has of one resource class, in whole units of that class.

    ``Inventory(64)`` is 64 units, all to be given out, in any amount. Source of the rules: Placement 1.39.

    Attributes:
        total: From 1 to 2³¹ - 1.
        reserved: Held back for the host itself; may equal *total*, which gives nothing out, but not exceed it.
        min_unit: The least that one allocation may take.
        max_unit: The most that one allocation may take.
        step_size: Every allocation is a multiple of it.
        allocation_ratio: Over-commit; 0 gives nothing out.

    Raises:
        InvalidInventory: A number is out of its range; the error names the field. What a deployment has stored
            nevertheless is read with :meth:`stored`.
    """

    total: int = attrs.field(validator=_amount(1))
    reserved: int = attrs.field(default=0, validator=_amount(0))
    min_unit: int = attrs.field(default=1, kw_only=True, validator=_amount(1))
    max_unit: int = attrs.field(default=MAX_INTEGER, kw_only=True, validator=_amount(1))
    step_size: int = attrs.field(default=1, kw_only=True, validator=_amount(1))
    allocation_ratio: float = attrs.field(default=1.0, kw_only=True, converter=_to_float, validator=_finite_ratio)

    def __attrs_post_init__(self) -> None:
        if self.reserved > self.total:
            raise _overdrawn(self.total, self.reserved)

    @property
    def capacity(self) -> int:
        """What may be in use at most: ``floor((total - reserved) * allocation_ratio)``, cut off at 2⁶³ - 1.

        0 where that means nothing: more is reserved than there is, or the ratio is negative.
        """
        if self.reserved > self.total or self.allocation_ratio < 0:
            return 0
        return min(math.floor((self.total - self.reserved) * self.allocation_ratio), MAX_CAPACITY)

    def require_sound(self) -> None:
        """Refuse what may be read (see :meth:`stored`) but not be written.

        Raises:
            InvalidInventory: More is reserved than there is, or the ratio is negative.
        """
        if self.reserved > self.total or self.allocation_ratio < 0:
            Inventory(self.total, self.reserved, allocation_ratio=self.allocation_ratio)

    @classmethod
    def stored(
        cls,
        total: int,
        reserved: int = 0,
        *,
        min_unit: int = 1,
        max_unit: int = MAX_INTEGER,
        step_size: int = 1,
        allocation_ratio: float = 1.0,
    ) -> Inventory:
        """An inventory as a deployment has it, even where it could not be written like that.

        Placement refuses to reserve more than there is, and negative ratios, but keeps them in corner cases: when a
        reshape stores them, or a small ratio makes less than one unit of what is missing. Such an inventory gives
        nothing out: its :attr:`capacity` is 0, and a search that it refuses says how much of how much is reserved.

        Raises:
            InvalidInventory: Any other number is out of its range.
        """
        units = {"min_unit": min_unit, "max_unit": max_unit, "step_size": step_size}
        try:
            return cls(total, reserved, allocation_ratio=allocation_ratio, **units)
        except InvalidInventory:
            ratio = allocation_ratio
            if isinstance(ratio, int | float) and ratio < 0:
                ratio = -ratio
            found = cls(total, allocation_ratio=ratio, **units)  # all but the two must be right
            require_integer(reserved, "reserved", minimum=0, error=InvalidInventory)
        object.__setattr__(found, "reserved", reserved)
        object.__setattr__(found, "allocation_ratio", float(allocation_ratio))
        return found

    def as_placement(self) -> dict[str, Any]:
        """The inventory as Placement's JSON writes it."""
        return {
            "total": self.total,
            "reserved": self.reserved,
            "min_unit": self.min_unit,
            "max_unit": self.max_unit,
            "step_size": self.step_size,
            "allocation_ratio": self.allocation_ratio,
        }

    @classmethod
    def from_placement(cls, data: Mapping[str, Any], *, stored: bool = False) -> Inventory:
        """Read Placement's JSON of one inventory; with *stored* one that is there already: see :meth:`stored`.

        Raises:
            InvalidInventory: ``total`` is missing, a key is unknown, or a number is out of range.
        """
        if not isinstance(data, Mapping):
            raise InvalidInventory(f"expected the JSON object of an inventory, got {data!r}", value=data)
        known = {"total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio"}
        unknown = sorted(str(key) for key in data.keys() - known - {"resource_class", "resource_provider_generation"})
        if unknown or "total" not in data:
            field = unknown[0] if unknown else "total"
            raise InvalidInventory(f"{field}: {'unknown' if unknown else 'missing'}", field=field, value=data)
        return (cls.stored if stored else cls)(**{key: data[key] for key in known if key in data})


@attrs.frozen(kw_only=True)
class Provider:
    """One node of the forest as it was at one generation. Values are immutable: an edit makes a new one.

    Attributes:
        number: Its place in the order of the forest: roots, and the children of one parent, are ordered by it. It
            grows with every provider added; in a bound forest it is the key in the database.
        uuid: Dashed lower case.
        name: Unique in the forest.
        parent: The uuid of the parent, None for a root.
        root: The uuid of the root of its tree, its own for a root.
        generation: Counts the edits of this provider.
        inventories: Resource class → inventory.
        traits: What it carries itself; traits do not flow along the tree.
        aggregates: The uuids of the aggregates that it is in itself.
    """

    number: int
    uuid: str
    name: str
    parent: str | None = None
    root: str
    generation: int = 0
    inventories: FrozenDict[str, Inventory] = attrs.field(factory=FrozenDict)
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()

    def numbered(self, number: int) -> Provider:
        """The same provider with another number; for thousands this is quicker than :func:`attrs.evolve`."""
        return Provider(
            number=number,
            uuid=self.uuid,
            name=self.name,
            parent=self.parent,
            root=self.root,
            generation=self.generation,
            inventories=self.inventories,
            traits=self.traits,
            aggregates=self.aggregates,
        )

    def as_placement(self) -> dict[str, Any]:
        """The provider as Placement's ``/resource_providers`` lists it."""
        return {
            "uuid": self.uuid,
            "name": self.name,
            "generation": self.generation,
            "parent_provider_uuid": self.parent,
            "root_provider_uuid": self.root,
        }


def keys_of(provider: Any) -> tuple[str, ...]:
    """What *provider* may be filed under: its uuid; for text the text itself, and then the uuid that it may be.

    Raises:
        InvalidArgument: It is neither a provider nor text.
    """
    if isinstance(provider, Provider):
        return (provider.uuid,)
    if not isinstance(provider, str):
        message = f"provider: expected the uuid or name of a provider, got {provider!r}"
        raise InvalidArgument(message, field="provider", value=provider)
    uuid = uuid_in(provider)
    return (provider,) if uuid is None or uuid == provider else (provider, uuid)
