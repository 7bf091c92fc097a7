"""What a combination must meet beyond each slot by itself, told slot by slot in their order. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.one_tree import OneTree

__all__ = ["CONDITIONS", "Collective", "Condition", "ConditionType", "Isolation", "Room", "Subtrees"]


class Condition(Protocol):
    """Something that a combination must meet, told slot by slot."""

    def enter(self, slot: int, handle: int) -> bool:
        """Take *handle* for *slot*; False, and nothing taken, when that can lead nowhere."""

    def leave(self, slot: int, handle: int) -> None:
        """Give it back; the last one entered leaves first."""


class Isolation:
    """``group_policy=isolate``: no two suffixed groups on one provider.

    A matching gives every group a provider of its own, those to come included, and is mended whenever a provider is
    taken; where it cannot be mended the way is a dead end. So isolation by itself never leads into one, however the
    groups overlap.
    """

    def __init__(self, compiled: CompiledRequest, tree: OneTree) -> None:
        self._slots = frozenset(compiled.isolated)
        self._options = tree.options
        self._taken: set[int] = set()
        self._giver: dict[int, int] = {}
        self._holder: dict[int, int] = {}
        self._hopeless = not all(self._find_giver(slot) for slot in compiled.isolated)

    @staticmethod
    def applies(compiled: CompiledRequest) -> bool:
        """Whether the request asks for it."""
        return bool(compiled.isolated)

    def enter(self, slot: int, handle: int) -> bool:
        """Refuse a provider that is taken, or that a later group cannot do without."""
        if slot not in self._slots:
            return True
        if handle in self._taken or self._hopeless:
            return False
        before = self._giver[slot]
        self._taken.add(handle)
        if before != handle:
            other = self._holder.get(handle)
            del self._holder[before]
            self._giver[slot], self._holder[handle] = handle, slot
            if other is not None and not self._find_giver(other):
                self._giver[slot], self._holder[before], self._holder[handle] = before, slot, other
                self._taken.discard(handle)
                return False
        return True

    def leave(self, slot: int, handle: int) -> None:
        """Free the provider; the matching stays as it is, which is as good as any."""
        if slot in self._slots:
            self._taken.discard(handle)

    def _find_giver(self, slot: int) -> bool:
        """Match *slot*, moving others where that helps: a breadth-first search for an augmenting path."""
        came_from: dict[int, int] = {}
        waiting = [slot]
        for seeker in waiting:
            for handle in self._options[seeker]:
                if handle in self._taken or handle in came_from:
                    continue
                came_from[handle] = seeker
                holder = self._holder.get(handle)
                if holder is None:
                    self._hand_over(slot, handle, came_from)
                    return True
                waiting.append(holder)
        return False

    def _hand_over(self, slot: int, handle: int, came_from: dict[int, int]) -> None:
        """Give *handle*, which is free, to the slot that sought it, that one's to the slot before, up to *slot*."""
        while True:
            seeker = came_from[handle]
            given_up = self._giver.get(seeker)
            self._giver[seeker], self._holder[handle] = handle, seeker
            if seeker == slot:
                return
            assert given_up is not None
            handle = given_up


class Room:
    """The sum of what the slots take of one class from one provider must be there, and within its max_unit."""

    def __init__(self, compiled: CompiledRequest, tree: OneTree) -> None:
        self._tree = tree
        self._asked = [
            [(name, amount) for name, amount in slot.resources if name in compiled.shared] for slot in compiled.slots
        ]
        self._left: dict[tuple[int, str], int] = {}

    @staticmethod
    def applies(compiled: CompiledRequest) -> bool:
        """Whether two slots ask for one class."""
        return bool(compiled.shared)

    def enter(self, slot: int, handle: int) -> bool:
        """Refuse a provider that has too little left."""
        asked = self._asked[slot]
        left = self._left
        for name, amount in asked:
            key = (handle, name)
            if key not in left:
                left[key] = self._tree.room(handle, name)
            if left[key] < amount:
                return False
        for name, amount in asked:
            left[handle, name] -= amount
        return True

    def leave(self, slot: int, handle: int) -> None:
        """Give the amounts back."""
        for name, amount in self._asked[slot]:
            self._left[handle, name] += amount


class Subtrees:
    """``same_subtree``: of each set of groups, one provider must be above (or be) all others.

    Per set: the providers above all those taken so far, and those that may still be the one: taken, or an option of a
    slot to come. When the two have nothing in common, the way is a dead end.
    """

    def __init__(self, compiled: CompiledRequest, tree: OneTree) -> None:
        self._of_slot = [slot.subtrees for slot in compiled.slots]
        handles = {
            h for slot, options in zip(compiled.slots, tree.options, strict=True) if slot.subtrees for h in options
        }
        bits = {tree.provider(handle).uuid: 1 << i for i, handle in enumerate(sorted(handles))}
        self._bit = {handle: bits[tree.provider(handle).uuid] for handle in handles}
        self._above = {handle: sum(bits[name] for name in tree.lineage(handle) if name in bits) for handle in handles}
        count = len(compiled.request.same_subtree)
        self._common = [[-1] for _ in range(count)]
        self._chosen = [[0] for _ in range(count)]
        self._to_come = self._count_to_come(compiled, tree, count)

    def _count_to_come(self, compiled: CompiledRequest, tree: OneTree, count: int) -> list[list[int]]:
        """Per set and slot: the options of all later slots of the set."""
        to_come = [[0] * len(compiled.slots) for _ in range(count)]
        for subtree in range(count):
            later = 0
            for slot in range(len(compiled.slots) - 1, -1, -1):
                to_come[subtree][slot] = later
                if subtree in self._of_slot[slot]:
                    for handle in tree.options[slot]:
                        later |= self._bit[handle]
        return to_come

    @staticmethod
    def applies(compiled: CompiledRequest) -> bool:
        """Whether the request asks for it."""
        return bool(compiled.request.same_subtree)

    def enter(self, slot: int, handle: int) -> bool:
        """Refuse a provider that no provider of the set can be above together with the others."""
        subtrees = self._of_slot[slot]
        for subtree in subtrees:
            common = self._common[subtree][-1] & self._above[handle]
            if not common & (self._chosen[subtree][-1] | self._bit[handle] | self._to_come[subtree][slot]):
                return False
        for subtree in subtrees:
            self._common[subtree].append(self._common[subtree][-1] & self._above[handle])
            self._chosen[subtree].append(self._chosen[subtree][-1] | self._bit[handle])
        return True

    def leave(self, slot: int, handle: int) -> None:
        """Forget the provider."""
        for subtree in self._of_slot[slot]:
            self._common[subtree].pop()
            self._chosen[subtree].pop()


class Collective:
    """The traits that the group without a suffix requires: the providers that it uses must have them between them."""

    def __init__(self, compiled: CompiledRequest, tree: OneTree) -> None:
        self._slots = compiled.collective
        required = compiled.slots[self._slots[0]].group.required
        self._all = (1 << len(required)) - 1
        self._met: dict[int, int] = {}
        self._later = [0] * (len(compiled.slots) + 1)
        for slot in self._slots:
            for handle in tree.options[slot]:
                traits = tree.provider(handle).traits
                self._met[handle] = sum(1 << i for i, names in enumerate(required) if not names.isdisjoint(traits))
        for slot in reversed(self._slots):
            self._later[slot] = self._later[slot + 1]
            for handle in tree.options[slot]:
                self._later[slot] |= self._met[handle]
        self._so_far = [0]

    @staticmethod
    def applies(compiled: CompiledRequest) -> bool:
        """Whether the request asks for it."""
        return bool(compiled.collective)

    def enter(self, slot: int, handle: int) -> bool:
        """Refuse a provider after which the traits can no longer come together."""
        if slot not in self._slots:
            return True
        met = self._so_far[-1] | self._met[handle]
        if (met | self._later[slot + 1]) != self._all:
            return False
        self._so_far.append(met)
        return True

    def leave(self, slot: int, handle: int) -> None:
        """Forget the provider."""
        if slot in self._slots:
            self._so_far.pop()


ConditionType = type[Collective | Room | Subtrees | Isolation]

CONDITIONS: tuple[ConditionType, ...] = (Collective, Room, Subtrees, Isolation)
"""In the order in which an explanation adds them: the first that leaves nothing is the reason."""
