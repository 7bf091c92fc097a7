"""Moves allocations along with the inventory that they are of. Pure: it plans, the ledger's one transaction does it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import attrs

from cloudcore.errors import InvalidArgument, ReshapeFailed
from cloudcore.hypervisor.tree.comparison import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloudcore.hypervisor.tree.comparison import ResourceMove, TreeDiff
    from cloudcore.hypervisor.tree.values import CurrentTree

__all__ = ["Reshape", "plan_reshape"]

Allocations = dict[str, dict[str, dict[str, int]]]
"""consumer → provider → resource class → amount."""


@attrs.frozen(kw_only=True)
class Reshape:
    """A reshape that is ready to be carried out.

    Attributes:
        diff: The edits that go with it.
        allocations: consumer → provider → class → amount, complete, of every consumer whose allocations change.
    """

    diff: TreeDiff
    allocations: Mapping[str, Mapping[str, Mapping[str, int]]]

    @property
    def inventories(self) -> dict[str, dict[str, dict[str, object]]]:
        """Provider → class → inventory in Placement's JSON, of every provider that the edits touch.

        Empty for those that are removed.
        """
        return {
            edit.uuid: {one.resource_class: dict(one.as_placement()) for one in edit.inventories}
            for edit in self.diff.edits
        }


def plan_reshape(
    change: TreeDiff,
    current: CurrentTree,
    allocations: Mapping[str, Mapping[str, Mapping[str, int]]],
    *,
    places: Mapping[str, str] | None = None,
    in_flight: frozenset[str] = frozenset(),
) -> Reshape:
    """New allocations for every consumer that holds what *change* moves. Nothing is lost and nothing added.

    What one consumer holds goes to one provider where it fits (a guest into one NUMA cell), to the fullest such one;
    only what fits nowhere whole is dealt to several. Those whose place is given come first, and go there or nowhere.

    Args:
        change: The difference, with its moves.
        current: The tree that it was made from.
        allocations: consumer → provider → class → amount of all consumers of the sources.
        places: consumer → UUID of the provider that has to take over what it holds, as far as it can be asked to, where
            that is known (a pinned guest).
        in_flight: Consumers that are being moved: migrations, and their instances.

    Raises:
        ReshapeFailed: Consumers in flight hold some of it, the allocations given are not all of it, or a consumer fits
            nowhere, or not where its place is. Nothing was decided.
        InvalidArgument: A place is no provider of either tree.
    """
    places = {consumer: place for consumer, place in (places or {}).items() if consumer in allocations}
    _require_known(places, change, current)
    planner = _Planner(change, current)
    moving = {(move.source, move.resource_class): move for move in change.moves}
    planner.check_complete(moving, allocations)
    after: Allocations = {}
    for consumer in sorted(allocations, key=lambda one: (one not in places, -_size(allocations[one], moving), one)):
        held = {
            (provider, name): amount
            for provider, classes in allocations[consumer].items()
            for name, amount in classes.items()
        }
        leaving = {key: amount for key, amount in held.items() if key in moving}
        if not leaving:
            continue
        if consumer in in_flight:
            raise ReshapeFailed(f"consumer {consumer} is being moved; reshape when it has arrived", identifier=consumer)
        staying = {key: amount for key, amount in held.items() if key not in moving}
        taken = planner.place(consumer, leaving, moving, places.get(consumer))
        for (provider, name), amount in (*staying.items(), *taken.items()):
            classes = after.setdefault(consumer, {}).setdefault(provider, {})
            classes[name] = classes.get(name, 0) + amount
    return Reshape(diff=change, allocations=after)


def _require_known(places: Mapping[str, str], change: TreeDiff, current: CurrentTree) -> None:
    known = {provider.uuid for provider in current.providers} | {edit.uuid for edit in change.edits}
    for consumer, place in places.items():
        if place not in known:
            raise InvalidArgument(
                f"places: {place!r}, of consumer {consumer}, is the UUID of no provider of this host",
                field="places",
                value=place,
            )


def _size(held: Mapping[str, Mapping[str, int]], moving: Mapping[tuple[str, str], ResourceMove]) -> int:
    return sum(
        amount for provider, classes in held.items() for name, amount in classes.items() if (provider, name) in moving
    )


def _needs(
    group: Mapping[tuple[str, str], int], moving: Mapping[tuple[str, str], ResourceMove]
) -> dict[str, dict[str, int]]:
    """Provider → class → amount that it would take over."""
    needs: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for key, amount in group.items():
        for provider, name, _ in moving[key].targets:
            needs[provider][name] += amount
    return needs


class _Planner:
    """What is free on the targets, while consumers are dealt to them."""

    def __init__(self, change: TreeDiff, current: CurrentTree) -> None:
        self._free: dict[tuple[str, str], int] = {}
        self._most: dict[tuple[str, str], int] = {}
        for move in change.moves:
            for provider, name, capacity in move.targets:
                present = current.with_uuid(provider)
                recorded = present.inventory(name) if present else None
                self._free[provider, name] = capacity - (recorded.used if recorded else 0)
        for edit in change.edits:
            if edit.action is not Action.REMOVE:
                self._most.update({(edit.uuid, one.resource_class): one.max_unit for one in edit.inventories})

    @staticmethod
    def check_complete(
        moving: Mapping[tuple[str, str], ResourceMove], allocations: Mapping[str, Mapping[str, Mapping[str, int]]]
    ) -> None:
        given: dict[tuple[str, str], int] = defaultdict(int)
        for held in allocations.values():
            for provider, classes in held.items():
                for name, amount in classes.items():
                    given[provider, name] += amount
        for key, move in moving.items():
            if given[key] != move.used:
                raise ReshapeFailed(
                    f"{move.used} {move.resource_class} of {move.source} are in use, the allocations given hold "
                    f"{given[key]}: read both again",
                    identifier=move.source,
                )

    def place(
        self,
        consumer: str,
        leaving: Mapping[tuple[str, str], int],
        moving: Mapping[tuple[str, str], ResourceMove],
        preferred: str | None,
    ) -> dict[tuple[str, str], int]:
        """(provider, class) → amount for what the consumer holds; taken from what is free."""
        taken: dict[tuple[str, str], int] = defaultdict(int)
        groups = self._groups(leaving, moving)
        fits = Counter(provider for group in groups for provider in self._fitting(_needs(group, moving)))
        for group in groups:
            home = self._home(consumer, _needs(group, moving), preferred, fits)
            for key, amount in sorted(group.items()):
                parts = self._dealt(consumer, moving[key], amount, home)
                for target, part in parts.items():
                    self._free[target] -= part
                    taken[target] += part
        return taken

    @staticmethod
    def _groups(
        leaving: Mapping[tuple[str, str], int], moving: Mapping[tuple[str, str], ResourceMove]
    ) -> list[dict[tuple[str, str], int]]:
        """Parts that go together: those that the same providers can take over."""
        groups: dict[frozenset[str], dict[tuple[str, str], int]] = defaultdict(dict)
        for key, amount in leaving.items():
            groups[frozenset(provider for provider, _, _ in moving[key].targets)][key] = amount
        return [groups[providers] for providers in sorted(groups, key=sorted)]

    def _home(
        self, consumer: str, needs: Mapping[str, Mapping[str, int]], preferred: str | None, fits: Mapping[str, int]
    ) -> str | None:
        """A provider that takes the whole group: the *preferred* one where it is one that could.

        Else one that takes as many groups as any does, so that a guest's CPUs and memory come from one cell.
        """
        fitting = self._fitting(needs)
        if preferred is not None and preferred in needs and preferred not in fitting:
            wanted = ", ".join(
                f"{amount} {name} ({self._free[preferred, name]} free)" for name, amount in needs[preferred].items()
            )
            raise ReshapeFailed(
                f"consumer {consumer} belongs on {preferred}, which has no room for its {wanted}", identifier=consumer
            )
        if preferred in fitting:
            return preferred
        return min(
            fitting, key=lambda one: (-fits[one], sum(self._free[one, name] for name in needs[one])), default=None
        )

    def _fitting(self, needs: Mapping[str, Mapping[str, int]]) -> list[str]:
        return [
            provider
            for provider, amounts in needs.items()
            if all(
                amount <= min(self._free[provider, name], self._most.get((provider, name), amount))
                for name, amount in amounts.items()
            )
        ]

    def _dealt(self, consumer: str, move: ResourceMove, amount: int, home: str | None) -> dict[tuple[str, str], int]:
        targets = [(provider, name) for provider, name, _ in move.targets]
        if home is not None:
            return {next(target for target in targets if target[0] == home): amount}
        parts, left = {}, amount
        for target in sorted(targets, key=lambda one: (-self._free[one], one)):
            part = max(min(left, self._free[target], self._most.get(target, left)), 0)
            if part:
                parts[target] = part
                left -= part
        if left:
            raise ReshapeFailed(
                f"consumer {consumer} holds {amount} {move.resource_class} of {move.source}; "
                f"{left} of them fit nowhere in the new tree",
                identifier=consumer,
            )
        return parts
