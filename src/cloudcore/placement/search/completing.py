"""Whether the slots that are still empty can be filled: asked where filling them in order goes back too often. Pure.

Slots that have nothing to do with each other are decided apart. Within a part the slot with the fewest choices comes
first, providers that are alike count as one choice, and a state that was refused is not tried again, whichever alike
providers led to it. It is bin packing all the same, so each step costs, and :class:`Effort` sets a bound.

One module: the bound, the memory of refused states and the descent share their state.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.placement.search.conditions import Collective, Isolation, Room, Subtrees

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.conditions import ConditionType
    from cloudcore.placement.search.one_tree import OneTree

__all__ = ["Completion", "Effort", "Undecided"]

_REMEMBERED = 4096


class Undecided(Exception):
    """The bound on work was reached. Stays inside the search."""


@attrs.define
class Effort:
    """What deciding may cost: steps for each host, and for all hosts of a search together.

    Attributes:
        per_host: Steps for one host; a step is one provider tried for one slot.
        left: Steps that are left to the search.
        known: Verdicts on parts of hosts, by what the part looks like: False, or None for undecided.
        steps: What the present host has cost since its last answer.
        impatient: Whether some host was hard, so that the next ones are looked at before they are filled in order.
    """

    per_host: int
    left: int
    known: dict[Any, bool | None] = attrs.field(factory=dict)
    steps: int = 0
    impatient: bool = False

    def begin(self, *, found: bool = False) -> None:
        """Turn to another host, or to its next answer; what led to an answer is not counted."""
        if found:
            self.left += self.steps
        self.steps = 0

    def step(self) -> None:
        """Count one.

        Raises:
            Undecided: There is none left.
        """
        self.steps += 1
        self.left -= 1
        if self.steps > self.per_host or self.left < 0:
            raise Undecided

    def remember(self, key: Any, verdict: bool | None) -> None:
        """Keep a verdict that hosts of the same shape need not find again."""
        if len(self.known) >= _REMEMBERED:
            self.known.clear()
        self.known[key] = verdict


class Completion:
    """Tells whether the first slots can keep what they have.

    Args:
        compiled: The request.
        tree: The tree, with the options of every slot.
        conditions: Those that must hold.
        twins: Per slot, the equal slot before it that must not have a later option; None where there is none.
        effort: What it may cost.
    """

    def __init__(
        self,
        compiled: CompiledRequest,
        tree: OneTree,
        conditions: Sequence[ConditionType],
        twins: Sequence[int | None],
        effort: Effort,
    ) -> None:
        active = [c for c in conditions if c.applies(compiled) and not (c is Room and tree.apart)]
        groups = _independent(compiled, tree, active)
        self._parts = [_Part(compiled, tree, active, slots, twins, effort) for slots in groups]
        self._part_of = {slot: part for part in self._parts for slot in part.slots}

    def possible(self) -> bool:
        """Whether there is any way at all; the part with the fewest choices is asked first.

        Raises:
            Undecided: No part is hopeless, and of one it could not be told.
        """
        unsure = False
        for part in sorted(self._parts, key=lambda part: part.choices):
            try:
                if not part.possible():
                    return False
            except Undecided:
                unsure = True
        if unsure:
            raise Undecided
        return True

    def keeps(self, slot: int, places: Sequence[int]) -> bool:
        """Whether all can be filled while the slots up to *slot* have their options at *places*.

        Raises:
            Undecided: It could not be told.
        """
        return self._part_of[slot].completes(slot, places)


def _independent(compiled: CompiledRequest, tree: OneTree, active: Sequence[ConditionType]) -> list[list[int]]:
    """The slots in parts: those of one part compete for a provider, or must meet a condition between them."""
    leader = list(range(len(compiled.slots)))

    def find(slot: int) -> int:
        while leader[slot] != slot:
            leader[slot] = leader[leader[slot]]
            slot = leader[slot]
        return slot

    first: dict[Any, int] = {}
    alike: dict[Any, int] = {}  # slots that ask the same and have the same options need not be looked at again
    for index, slot in enumerate(compiled.slots):
        own = _own_ties(compiled, index, active)
        like = (slot.suffix == "", own, tuple(tree.options[index]))
        other = alike.setdefault(like, index)
        if other != index and own:
            leader[find(index)] = find(other)
            continue
        for key in _with_providers(own, tree.options[index]):
            leader[find(index)] = find(first.setdefault(key, index))
    parts: dict[int, list[int]] = {}
    for number in range(len(leader)):
        parts.setdefault(find(number), []).append(number)
    return list(parts.values())


def _own_ties(compiled: CompiledRequest, index: int, active: Sequence[ConditionType]) -> frozenset[Any]:
    """What a slot has to do with others: a class or isolation (on each of its providers), a subtree, the traits."""
    slot = compiled.slots[index]
    ties: set[Any] = set()
    if Room in active:
        ties.update(("class", name) for name, _ in slot.resources if name in compiled.shared)
    if Isolation in active and index in compiled.isolated:
        ties.add(("isolated", ""))
    if Subtrees in active:
        ties.update(("subtree", number) for number in slot.subtrees)
    if Collective in active and index in compiled.collective:
        ties.add(("traits", ""))
    return frozenset(ties)


def _with_providers(ties: frozenset[Any], options: Sequence[int]) -> Iterator[Any]:
    """Keys: two slots that have one in common belong together."""
    for tie in ties:
        if tie[0] in {"class", "isolated"}:
            for handle in options:
                yield tie, handle
        else:
            yield tie


@attrs.frozen(kw_only=True)
class _Shape:
    """What a part looks like, whichever tree it lies in. Providers are numbered within the part.

    Attributes:
        options: Per slot of the part: its providers.
        lists: Per slot: equal for slots that have the same options.
        amounts: Per slot: (number of the class, amount) of the classes that slots compete for.
        room: Per provider: what there is of these classes.
        met: Per provider: the required traits that it carries, as bits.
        above: Per provider: itself and those above it, as bits.
        kinds: Per provider: equal for providers that may change places.
        inner: Providers that are above others, as bits.
    """

    options: list[list[int]]
    lists: list[int]
    amounts: list[list[tuple[int, int]]]
    room: list[tuple[int, ...]]
    met: list[int]
    above: list[int]
    kinds: list[Any]
    inner: int


class _Part:
    """Slots of one tree that must be filled with regard to each other."""

    def __init__(
        self,
        compiled: CompiledRequest,
        tree: OneTree,
        active: Sequence[ConditionType],
        slots: list[int],
        twins: Sequence[int | None],
        effort: Effort,
    ) -> None:
        self.slots = slots
        self._twins = twins
        self._compiled = compiled
        self._tree = tree
        self._active = active
        self._effort = effort
        self._options = tree.options
        self._classes = [name for name in compiled.shared if Room in active]
        self._isolated = [Isolation in active and slot in compiled.isolated for slot in slots]
        self._subtrees = [compiled.slots[slot].subtrees if Subtrees in active else () for slot in slots]
        self._collective = [Collective in active and slot in compiled.collective for slot in slots]
        self._all_met = (1 << len(compiled.slots[slots[0]].group.required)) - 1 if any(self._collective) else 0
        handles = {handle for slot in slots for handle in self._options[slot]}
        self._handles = sorted(handles, key=lambda handle: (handle < 0, abs(handle)))
        self._number = {handle: number for number, handle in enumerate(self._handles)}
        self._shape: _Shape | None = None
        self._witness: dict[int, int] | None = None
        self.choices = min(len(self._options[slot]) for slot in slots)

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def possible(self) -> bool:
        if len(self.slots) == 1 and not self._all_met:
            self._witness = {self.slots[0]: 0} if self._options[self.slots[0]] else None
            return self._witness is not None
        key = self._key()
        verdict = self._effort.known.get(key, True)  # one look: other threads of the same search may clear it
        if verdict is None:
            raise Undecided
        if not verdict:
            return False
        try:
            found = self._solve({}, {})
        except Undecided:
            self._effort.remember(key, None)
            raise
        if found is None:
            self._effort.remember(key, verdict=False)
            return False
        self._witness = found
        return True

    def completes(self, slot: int, places: Sequence[int]) -> bool:
        """Whether the part can be filled while its slots up to *slot* have their options at *places*."""
        given = {one: places[one] for one in self.slots if one <= slot}
        witness = self._witness
        if witness is not None and all(witness[one] == place for one, place in given.items()):
            return True
        if len(given) == len(self.slots):
            return True  # the conditions let all of them in
        least: dict[int, int] = {}
        for one in self.slots[len(given) :]:
            twin = self._twins[one]
            least[one] = 0 if twin is None else given.get(twin, least.get(twin, 0))
        found = self._solve(given, least)
        self._witness = found or self._witness
        return found is not None

    # --- what it looks like ------------------------------------------------------------------------------------------

    def _look(self) -> _Shape:
        if self._shape is None:
            self._shape = self._describe()
        return self._shape

    def _describe(self) -> _Shape:
        number = self._number
        known: dict[tuple[int, ...], int] = {}
        lists = [known.setdefault(tuple(self._options[slot]), len(known)) for slot in self.slots]
        numbered = [[number[handle] for handle in handles] for handles in known]
        members = [0] * len(self._handles)
        for at, providers in enumerate(numbered):
            for here in providers:
                members[here] |= 1 << at
        options = [numbered[at] for at in lists]
        amounts, room = self._amounts(options)
        met, (above, inner) = self._traits(), self._lineages()
        kinds = [h if inner >> h & 1 else (members[h], room[h], met[h], above[h] & ~(1 << h)) for h in range(len(met))]
        return _Shape(
            options=options, lists=lists, amounts=amounts, room=room, met=met, above=above, kinds=kinds, inner=inner
        )

    def _amounts(self, options: list[list[int]]) -> tuple[list[list[tuple[int, int]]], list[tuple[int, ...]]]:
        """Per slot what it asks of the classes that slots compete for; per provider what there is of them."""
        resources = [self._compiled.slots[slot].resources for slot in self.slots]
        classes = sorted({name for asked in resources for name, _ in asked if name in self._classes})
        index = {name: at for at, name in enumerate(classes)}
        able: list[set[int]] = [set() for _ in classes]
        for asked, providers in zip(resources, options, strict=True):
            for name, _ in asked:
                if name in index:
                    able[index[name]].update(providers)
        room = [
            tuple(self._tree.room(handle, name) if here in able[at] else 0 for at, name in enumerate(classes))
            for here, handle in enumerate(self._handles)
        ]
        return [[(index[name], amount) for name, amount in asked if name in index] for asked in resources], room

    def _traits(self) -> list[int]:
        if not self._all_met:
            return [0] * len(self._handles)
        required = self._compiled.slots[self.slots[self._collective.index(True)]].group.required
        traits = [self._tree.provider(handle).traits for handle in self._handles]
        return [sum(1 << i for i, names in enumerate(required) if not names.isdisjoint(own)) for own in traits]

    def _lineages(self) -> tuple[list[int], int]:
        """Per provider: itself and those of the part above it; and all that are above others."""
        own = [1 << here for here in range(len(self._handles))]
        if not any(self._subtrees):
            return own, 0
        bits = {self._tree.provider(handle).uuid: own[here] for here, handle in enumerate(self._handles)}
        above = [sum(bits[name] for name in self._tree.lineage(handle) if name in bits) for handle in self._handles]
        inner = 0
        for here, mask in enumerate(above):
            inner |= mask & ~own[here]
        return above, inner

    def _key(self) -> Any:
        """Equal for parts of which one can be filled if and only if the other can."""
        shape = self._look()
        described: Any = (tuple(shape.kinds), tuple(shape.above), tuple(shape.room), tuple(map(tuple, shape.options)))
        if not shape.inner:
            described = frozenset(Counter(shape.kinds).items())
        return tuple(self._active), tuple(self.slots), tuple(shape.lists), described

    # --- solving -----------------------------------------------------------------------------------------------------

    def _solve(self, given: Mapping[int, int], least: Mapping[int, int]) -> dict[int, int] | None:
        """A place in its options for each slot, those of *given* as given and others from *least* on; None if none."""
        shape = self._look()
        rest = [at for at, slot in enumerate(self.slots) if slot not in given]
        choices = {at: shape.options[at][least.get(self.slots[at], 0) :] for at in rest}
        state = _State(shape, self, _told_apart(shape, choices) if any(least.values()) else shape.kinds)
        for at, slot in enumerate(self.slots):
            if slot in given and not state.take(at, shape.options[at][given[slot]]):
                return None
        rest.sort(key=lambda at: (len(choices[at]), [-amount for _, amount in shape.amounts[at]], at))
        found = _fill(state, rest, choices, self._effort)
        if found is None:
            return None
        ways = dict(given) | {self.slots[at]: shape.options[at].index(here) for at, here in found.items()}
        return self._in_order_of_twins(ways, given)

    def _in_order_of_twins(self, ways: dict[int, int], given: Mapping[int, int]) -> dict[int, int]:
        """The same with equal slots, which may change places, in ascending order."""
        chains: dict[int, list[int]] = {}
        for slot in self.slots:
            if slot not in given:
                twin = self._twins[slot]
                chain = chains.get(twin, []) if twin is not None else []
                chain.append(slot)
                chains[slot] = chain
        for chain in {id(chain): chain for chain in chains.values()}.values():
            ways.update(zip(chain, sorted(ways[slot] for slot in chain), strict=True))
        return ways


def _told_apart(shape: _Shape, choices: Mapping[int, Sequence[int]]) -> list[Any]:
    """The kinds of the providers, where some slots may no longer have some of them."""
    lists = {tuple(handles) for handles in choices.values()}
    members = [0] * len(shape.kinds)
    for at, handles in enumerate(sorted(lists)):
        for here in handles:
            members[here] |= 1 << at
    return list(zip(shape.kinds, members, strict=True))


class _State:
    """What is taken so far in a part."""

    def __init__(self, shape: _Shape, part: _Part, kinds: Sequence[Any]) -> None:
        self._shape = shape
        self._kinds = kinds
        self._isolated = part._isolated  # noqa: SLF001 - a part and its state are one thing
        self._subtrees = part._subtrees  # noqa: SLF001
        self._collective = part._collective  # noqa: SLF001
        self._all_met = part._all_met  # noqa: SLF001
        self.left = [list(room) for room in shape.room]
        self.taken = 0
        self.touched: dict[int, int] = {}  # provider → slots on it
        sets = {number for subtrees in self._subtrees for number in subtrees}
        self.common = dict.fromkeys(sets, -1)
        self.chosen = dict.fromkeys(sets, 0)
        self.met = 0
        self._undo: list[tuple[dict[int, int], dict[int, int], int]] = []

    def take(self, at: int, here: int) -> bool:
        """Take provider *here* for slot *at* of the part; False, and nothing taken, when there is no room."""
        left = self.left[here]
        if self._isolated[at] and self.taken >> here & 1:
            return False
        if any(left[index] < amount for index, amount in self._shape.amounts[at]):
            return False
        subtrees = self._subtrees[at]
        self._undo.append((dict(self.common), dict(self.chosen), self.met) if subtrees or self._all_met else _NOTHING)
        for number in subtrees:
            self.common[number] &= self._shape.above[here]
            self.chosen[number] |= 1 << here
        if self._collective[at]:
            self.met |= self._shape.met[here]
        for index, amount in self._shape.amounts[at]:
            left[index] -= amount
        if self._isolated[at]:
            self.taken |= 1 << here
        self.touched[here] = self.touched.get(here, 0) + 1
        return True

    def give_back(self, at: int, here: int) -> None:
        """Undo the last :meth:`take`."""
        before = self._undo.pop()
        if before is not _NOTHING:
            self.common, self.chosen, self.met = before
        for index, amount in self._shape.amounts[at]:
            self.left[here][index] += amount
        if self._isolated[at]:
            self.taken &= ~(1 << here)
        self.touched[here] -= 1
        if not self.touched[here]:
            del self.touched[here]

    def looks(self, here: int) -> Any:
        """Equal for providers that may change places as things stand."""
        kind = self._kinds[here]
        if here not in self.touched:
            return kind
        named = any(common != -1 and common >> here & 1 for common in self.common.values())
        return (here if named else kind, tuple(self.left[here]), self.taken >> here & 1)

    def key(self) -> Any:
        """Equal for states of which one can be completed if and only if the other can."""
        touched = frozenset(Counter(map(self.looks, self.touched)).items())
        if not self.common:
            return touched, self.met
        return touched, self.met, tuple((c, self.chosen[number] & c) for number, c in self.common.items())

    def hopeless(self, rest: _Rest, depth: int) -> bool:
        """Whether a look at what is left tells that the slots from *depth* on cannot all be filled."""
        for index, (need, smallest, alike) in enumerate(rest.needs[depth]):
            if need:
                lefts = [left[index] for left in self.left if left[index] >= smallest]
                if sum(lefts) < need or (alike and sum(left - left % smallest for left in lefts) < need):
                    return True
        if self._all_met and (self.met | rest.met[depth]) != self._all_met:
            return True
        return any(
            not common & (self.chosen[number] | rest.tops[depth].get(number, 0))
            for number, common in self.common.items()
        )


_NOTHING: tuple[dict[int, int], dict[int, int], int] = ({}, {}, 0)


class _Rest:
    """What the slots from each depth on need, and could still bring."""

    def __init__(self, state: _State, order: Sequence[int], choices: Mapping[int, Sequence[int]]) -> None:
        shape = state._shape  # noqa: SLF001 - the tables of one solution
        classes = len(shape.room[0]) if shape.room else 0
        self.needs = [[(0, 1 << 62, True)] * classes for _ in range(len(order) + 1)]
        self.met = [0] * (len(order) + 1)
        self.tops: list[dict[int, int]] = [{} for _ in range(len(order) + 1)]
        for depth in range(len(order) - 1, -1, -1):
            at = order[depth]
            self.needs[depth] = list(self.needs[depth + 1])
            for index, amount in shape.amounts[at]:
                need, smallest, alike = self.needs[depth][index]
                alike = alike and (not need or amount == smallest)
                self.needs[depth][index] = (need + amount, min(smallest, amount), alike)
            self.met[depth] = self.met[depth + 1]
            self.tops[depth] = dict(self.tops[depth + 1])
            mask = 0
            for here in choices[at]:
                mask |= 1 << here
            if state._collective[at]:  # noqa: SLF001
                for here in choices[at]:
                    self.met[depth] |= shape.met[here]
            for number in state._subtrees[at]:  # noqa: SLF001
                self.tops[depth][number] = self.tops[depth].get(number, 0) | mask


def _fill(
    state: _State, order: Sequence[int], choices: Mapping[int, Sequence[int]], effort: Effort
) -> dict[int, int] | None:
    """Fill the slots in this order, going back at dead ends, never into a state that was refused before."""
    rest = _Rest(state, order, choices)
    if state.hopeless(rest, 0) or not _can_be_kept_apart(state, order, choices):
        return None
    refused: set[Any] = set()
    trail: list[tuple[Any, Iterator[int], int]] = [(None, _unlike(state, order, choices, 0), -1)] if order else []
    while trail:
        depth = len(trail) - 1
        key, tries, taken = trail[-1]
        if taken >= 0:
            state.give_back(order[depth], taken)
        for here in tries:
            effort.step()
            if not state.take(order[depth], here):
                continue
            following = (depth + 1, state.key())
            if following not in refused and not state.hopeless(rest, depth + 1):
                trail[-1] = (key, tries, here)
                break
            state.give_back(order[depth], here)
        else:
            trail.pop()
            if key is not None:
                refused.add(key)
            continue
        if depth + 1 == len(order):
            return {at: entry[2] for at, entry in zip(order, trail, strict=True)}
        trail.append((following, _unlike(state, order, choices, depth + 1), -1))
    return None if order else {}


def _unlike(state: _State, order: Sequence[int], choices: Mapping[int, Sequence[int]], depth: int) -> Iterator[int]:
    """The choices of a slot, of those that are alike only the first; told as things stand at the beginning."""
    seen = set()
    found = []
    for here in choices[order[depth]]:
        looks = state.looks(here)
        if looks not in seen:
            seen.add(looks)
            found.append(here)
    return iter(found)


def _can_be_kept_apart(state: _State, order: Sequence[int], choices: Mapping[int, Sequence[int]]) -> bool:
    """Whether the isolated slots can have a provider each: a matching, by augmenting paths."""
    holder: dict[int, int] = {}
    for start in order:
        if not state._isolated[start]:  # noqa: SLF001
            continue
        came_from: dict[int, int] = {}
        waiting, free = [start], None
        for seeker in waiting:
            for here in choices[seeker]:
                if here in came_from or state.taken >> here & 1:
                    continue
                came_from[here] = seeker
                if here not in holder:
                    free = here
                    break
                waiting.append(holder[here])
            if free is not None:
                break
        if free is None:
            return False
        given = {slot: here for here, slot in holder.items()}
        while True:
            seeker = came_from[free]
            before = given.get(seeker)
            holder[free] = seeker
            if seeker == start:
                break
            assert before is not None
            free = before
    return True
