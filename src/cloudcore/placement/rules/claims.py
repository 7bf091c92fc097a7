"""What a claim asks and what it changes, decided without a database.

A call of the ledger names consumers and what each shall hold afterwards. :func:`plan_rewrite` compares that with what
they hold now and gives the change of ``used`` for every inventory, the unit rules to check and the rows to write, all
in the one order in which every transaction locks. :func:`refusal` turns an inventory that did not give into the error
that says why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import attrs

from cloudcore._values import MAX_INTEGER, normalise_uuid, require_integer, require_name, require_text
from cloudcore.errors import CapacityExceeded, CloudcoreError, InvalidAllocation, InventoryNotFound, UnitViolation
from cloudcore.notebook import Table, html_of

__all__ = [
    "Allocations",
    "Candidate",
    "Held",
    "InventoryRow",
    "Key",
    "Owner",
    "Rewrite",
    "Take",
    "normalise_allocations",
    "plan_rewrite",
    "provider_uuid",
    "refusal",
    "require_generation",
    "sum_takes",
    "total_by_class",
]

Allocations = Mapping[str, Mapping[str, int]]
"""Provider uuid → resource class → amount."""

Key = tuple[int, str]
"""Provider id and resource class: an inventory. Locks are taken in the order of keys."""


@runtime_checkable
class Candidate(Protocol):
    """Anything that says what is to be held: an allocation candidate of a search, or a stored selection."""

    @property
    def allocations(self) -> Allocations:
        """Provider uuid → resource class → amount."""
        ...


@attrs.frozen(kw_only=True)
class Owner:
    """Who answers for a consumer.

    Attributes:
        project_id: Up to 255 characters.
        user_id: Up to 255 characters.
        consumer_type: Upper case, digits and underscores, such as ``INSTANCE``; None where nobody said.
    """

    project_id: str
    user_id: str
    consumer_type: str | None = None

    @classmethod
    def of(cls, project_id: str, user_id: str, consumer_type: str | None) -> Owner:
        """Check and make.

        Raises:
            InvalidAllocation: A name is empty, too long, or a type has other characters.
        """
        return cls(
            project_id=require_text(project_id, "project_id", error=InvalidAllocation),
            user_id=require_text(user_id, "user_id", error=InvalidAllocation),
            consumer_type=None
            if consumer_type is None
            else require_name(consumer_type, "consumer_type", InvalidAllocation),
        )


@attrs.frozen(kw_only=True)
class Held:
    """What a consumer holds after a call.

    Attributes:
        consumer: Its uuid.
        generation: Counts its writes; 0 when it holds nothing any more. Give it back to be told of other writers.
        allocations: Provider uuid → resource class → amount; empty when it holds nothing.
        repeated: An earlier call with the same operation id had done this already.
    """

    consumer: str
    generation: int
    allocations: Allocations
    repeated: bool = False

    def _repr_html_(self) -> str:
        rows = tuple(
            (provider, name, amount)
            for provider, amounts in self.allocations.items()
            for name, amount in amounts.items()
        )
        again = "; this was done before" if self.repeated else ""
        return html_of(
            f"Consumer {self.consumer}, generation {self.generation}{again}{'' if rows else ': holds nothing'}",
            Table(title="Holds", headings=("provider", "class", "amount"), rows=rows),
        )


def normalise_allocations(source: Candidate | Allocations) -> dict[str, dict[str, int]]:
    """Return a checked copy of what *source* asks for, providers and classes sorted.

    Raises:
        InvalidAllocation: It is empty, a provider is named twice or is no uuid, a class is ill-formed, or an amount
            is not a whole number from 1 to 2**31 - 1.
    """
    given = source if isinstance(source, Mapping) else getattr(source, "allocations", None)
    if given is None and hasattr(source, "first"):
        raise InvalidAllocation(
            "allocations: this is a search, not a candidate: claim its .first(), or one that it iterates over",
            field="allocations",
            value=source,
        )
    if not isinstance(given, Mapping) or not given:
        raise InvalidAllocation(
            f"nothing to hold: expected {{provider: {{class: amount}}}} with at least one provider, got {given!r}",
            field="allocations",
            value=given,
        )
    result: dict[str, dict[str, int]] = {}
    for provider, resources in given.items():
        uuid = provider_uuid(provider)
        if uuid in result:
            raise InvalidAllocation(f"provider {uuid} is named twice", field="allocations", value=uuid)
        result[uuid] = _normalise_resources(uuid, resources)
    return dict(sorted(result.items()))


def provider_uuid(value: str, field: str = "provider") -> str:
    """The normal form of a provider's uuid: books know no names, for these may change.

    Raises:
        InvalidAllocation: It is not the text of a uuid; if it may be a name, it says who knows names.
    """
    try:
        return normalise_uuid(value, field, InvalidAllocation)
    except InvalidAllocation as error:
        if not isinstance(value, str):
            raise
        raise InvalidAllocation(
            f"{error}; a tree knows names: tree[{value!r}].uuid", field=field, value=value
        ) from None


def require_generation(value: int, field: str) -> int:
    """*value*, if a consumer or provider may be at that generation: a whole number from 0 to 2**63 - 1.

    Raises:
        InvalidAllocation: It is not.
    """
    return require_integer(value, field, minimum=0, maximum=2**63 - 1, error=InvalidAllocation)


def _normalise_resources(provider: str, resources: Any) -> dict[str, int]:
    if not isinstance(resources, Mapping) or not resources:
        raise InvalidAllocation(f"provider {provider}: no resources are named", field="allocations", value=resources)
    checked = {
        require_name(name, "resource class", InvalidAllocation): require_integer(
            amount, f"{provider}: {name}", minimum=1, error=InvalidAllocation
        )
        for name, amount in resources.items()
    }
    return dict(sorted(checked.items()))


def total_by_class(allocations: Allocations) -> dict[str, int]:
    """Sum over the providers: the shape of what is held."""
    totals: Counter[str] = Counter()
    for resources in allocations.values():
        totals.update(resources)
    return dict(sorted(totals.items()))


@attrs.frozen(kw_only=True)
class Take:
    """One inventory's change of ``used`` and the unit rules to be met in the same statement.

    Attributes:
        key: Provider id and class.
        delta: Added to ``used``; zero or less never meets the capacity rule, so that an over-full provider can empty.
        smallest: The smallest amount newly granted from it; MAX_INTEGER when none is.
        largest: The largest one; 0 when none is.
        divisor: The greatest common divisor of the amounts newly granted: a step divides all of them iff it divides
            this; 0 when none is.
    """

    key: Key
    delta: int
    smallest: int = MAX_INTEGER
    largest: int = 0
    divisor: int = 0


@attrs.frozen(kw_only=True)
class Rewrite:
    """What has to be written.

    Attributes:
        takes: In the order of keys; inventories that nothing changes are left out.
        removed: Consumer → keys of the rows that go.
        written: Consumer → key → amount of the rows that are new or differ.
    """

    takes: tuple[Take, ...]
    removed: Mapping[str, tuple[Key, ...]]
    written: Mapping[str, Mapping[Key, int]]

    @property
    def providers(self) -> frozenset[int]:
        """The providers whose usage changes, or changes hands."""
        keys = {take.key[0] for take in self.takes}
        keys.update(key[0] for rows in self.removed.values() for key in rows)
        keys.update(key[0] for rows in self.written.values() for key in rows)
        return frozenset(keys)


def plan_rewrite(
    before: Mapping[str, Mapping[Key, int]],
    after: Mapping[str, Mapping[Key, int]],
    *,
    keeping: Collection[str] = (),
) -> Rewrite:
    """Compare what each consumer of *after* holds now with what it shall hold.

    Only the net change counts: rows that change hands ask nothing of the inventory, whatever its capacity or units say
    by now. A row is newly granted if no consumer of the call held that amount of that inventory before; what those of
    *keeping* hold was granted to a move, whose halves share it out anew, so units ask nothing of it either.
    """
    deltas: Counter[Key] = Counter()
    old: Counter[tuple[Key, int]] = Counter()
    new: Counter[tuple[Key, int]] = Counter()
    for consumer, rows in after.items():
        held = before.get(consumer, {})
        deltas.subtract(held)
        deltas.update(rows)
        old.update(held.items())
        if consumer not in keeping:
            new.update(rows.items())
    granted: dict[Key, list[int]] = {}
    for key, amount in new - old:
        granted.setdefault(key, []).append(amount)
    takes = tuple(_take(key, deltas[key], granted.get(key)) for key in sorted(deltas) if deltas[key] or key in granted)
    removed = {c: tuple(sorted(before.get(c, {}).keys() - rows.keys())) for c, rows in after.items()}
    written = {
        c: {key: n for key, n in sorted(rows.items()) if before.get(c, {}).get(key) != n} for c, rows in after.items()
    }
    return Rewrite(
        takes=takes,
        removed={c: keys for c, keys in removed.items() if keys},
        written={c: rows for c, rows in written.items() if rows},
    )


def _take(key: Key, delta: int, granted: list[int] | None) -> Take:
    if not granted:
        return Take(key=key, delta=delta)
    return Take(key=key, delta=delta, smallest=min(granted), largest=max(granted), divisor=math.gcd(*granted))


def sum_takes(rows: Iterable[tuple[Key, int]]) -> list[tuple[int, str, int, int, int, int]]:
    """What several new claims take together: one change for each inventory, granted iff all of them may be.

    Plain rows in the order of keys, made in their hundreds: provider id, class, and delta, smallest, largest and
    divisor of a :class:`Take`.
    """
    granted: dict[Key, list[int]] = {}
    for key, amount in rows:
        granted.setdefault(key, []).append(amount)
    return [
        (*key, sum(n), min(n), max(n), math.gcd(*n)) if len(n) > 1 else (*key, n[0], n[0], n[0], n[0])
        for key, n in sorted(granted.items())
    ]


@attrs.frozen(kw_only=True)
class InventoryRow:
    """An inventory as the ledger found it. Amounts are in the unit of the class."""

    min_unit: int
    max_unit: int
    step_size: int
    capacity: int
    used: int


def refusal(provider: str, take: Take, row: InventoryRow | None) -> CloudcoreError | None:
    """Say why the inventory *row* of *provider* does not give *take*; None if it would.

    Missing inventory comes first, then the unit rules, then capacity.
    """
    name = take.key[1]
    if row is None:
        return InventoryNotFound(
            f"provider {provider} has no inventory of {name}; search again",
            identifier=f"{provider}/{name}",
            provider=provider,
            resource_class=name,
        )
    for rule, bound, asked, broken in (
        ("min_unit", row.min_unit, take.smallest, take.largest and take.smallest < row.min_unit),
        ("max_unit", row.max_unit, take.largest, take.largest > row.max_unit),
        ("step_size", row.step_size, take.divisor, take.divisor % row.step_size),
    ):
        if broken:
            return UnitViolation(
                f"provider {provider} gives {name} with {rule} {bound}; {asked} was asked",
                provider=provider,
                resource_class=name,
                asked=asked,
                rule=rule,
                bound=bound,
            )
    if take.delta > 0 and row.used + take.delta > row.capacity:
        return CapacityExceeded(
            f"provider {provider}, {name}: {take.delta} asked, {row.used} of {row.capacity} used; "
            f"{max(row.capacity - row.used, 0)} are free",
            provider=provider,
            resource_class=name,
            asked=take.delta,
            used=row.used,
            capacity=row.capacity,
        )
    return None
