"""Why not: for every host that cannot hold a request, what refused it. Worked out when it is asked for. Pure.

One module: counting and explaining fall through the same stages.
"""

from __future__ import annotations

import heapq
from collections import Counter
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from cloudcore.placement.forest.names import guess, standard_resource_classes
from cloudcore.placement.forest.values import keys_of
from cloudcore.placement.search.combining import combinations
from cloudcore.placement.search.completing import Effort, Undecided
from cloudcore.placement.search.conditions import CONDITIONS, Room
from cloudcore.placement.search.elimination import Reason, Stage, stages
from cloudcore.placement.search.one_tree import OneTree
from cloudcore.placement.search.recorded_report import RecordedReport
from cloudcore.placement.search.rejections import Rejection, refusals_html

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Block, Columns, Mask, Positions
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.compiled import CompiledRequest, Slot
    from cloudcore.placement.search.matching import Matcher

__all__ = ["SearchReport"]

_TOGETHER: dict[str, Reason] = {
    "Collective": "traits_together",
    "Room": "capacity_together",
    "Subtrees": "same_subtree",
    "Isolation": "group_policy",
}


class SearchReport:
    """Which hosts fit, which do not, and why not.

    A host is a root with its tree. All work is done when a result is first asked for, on the state of the forest that
    was searched; counting is vectorised, single hosts are looked at one by one. May be shared between threads.
    """

    def __init__(
        self,
        columns: Columns,
        compiled: CompiledRequest,
        matcher: Matcher,
        within: Callable[[Provider], bool] | None = None,
        effort: Callable[[], Effort] = lambda: Effort(per_host=10_000, left=1_000_000),
    ) -> None:
        self._columns = columns
        self._compiled = compiled
        self._matcher = matcher
        self._within = within
        self._effort = effort()
        self._stages = [stages(slot, self._tree_root(slot)) for slot in compiled.slots]

    def _tree_root(self, slot: Slot) -> int | None:
        return None if slot.group.in_tree is None else self._matcher.trees[slot.group.in_tree]

    # --- counting ----------------------------------------------------------------------------------------------------

    @cached_property
    def _tally(self) -> tuple[int, int, Counter[str]]:
        hosts = fits = 0
        counts: Counter[str] = Counter()
        for block in self._columns.blocks:
            looked_at = self._looked_at(block)
            undecided = looked_at.copy()
            for label, trees in self._first_failures(block):
                failed = undecided & trees
                counts[label] += int(failed.sum())
                undecided &= ~failed
            hosts += int(looked_at.sum())
            for tree in np.flatnonzero(undecided).tolist():
                rejections = self._of_groups_together(self._open(block, tree))
                fits += not rejections
                counts.update(rejection.label for rejection in rejections[:1])
        return hosts, fits, +counts

    @property
    def hosts(self) -> int:
        """The number of hosts that were looked at."""
        return self._tally[0]

    @property
    def fits(self) -> int:
        """The number of hosts that have a candidate."""
        return self._tally[1]

    @property
    def counts(self) -> dict[str, int]:
        """Reason (with what it is about) → number of hosts that it refused, each counted by its first; most first."""
        return dict(sorted(self._tally[2].items(), key=lambda item: (-item[1], item[0])))

    def _looked_at(self, block: Block) -> Mask:
        if self._within is None:
            return np.ones(block.trees, dtype=np.bool_)
        roots = (block.providers[position] for position in block.starts[:-1].tolist())
        return np.fromiter((self._within(root) for root in roots), dtype=np.bool_, count=block.trees)

    def _first_failures(self, block: Block) -> Iterator[tuple[str, Mask]]:
        """Labels with the trees that they refuse, in the order in which a host's rejections are listed."""
        request = self._compiled.request
        roots = block.starts[:-1]
        for trait in sorted(request.root_required):
            yield f"root_trait {trait}", ~block.trait_mask(trait)[roots]
        for trait in sorted(request.root_forbidden):
            yield f"root_trait {trait}", block.trait_mask(trait)[roots]
        for index, steps in enumerate(self._stages):
            for stage, before, after, _ in self._fall(block, index, np.arange(block.size, dtype=np.intp), steps):
                yield _label(stage), before & ~after
        if self._compiled.shared and not self._compiled.collective:
            about = " or ".join(self._about("capacity_together"))
            yield f"capacity_together {about}", self._matcher.short_together(block)

    def _fall(
        self, block: Block, index: int, alive: Positions, steps: list[Stage]
    ) -> Iterator[tuple[Stage, Mask, Mask, tuple[Positions, list[int]]]]:
        """Per condition: trees with something before it and after it, and what stood before (positions, sharing)."""
        sharing = self._columns.sharing
        slot = self._compiled.slots[index]
        serving: dict[int, Mask] = {}
        if sharing is not None and (slot.suffix or slot.group.in_tree is None):
            serving = self._matcher.serving(block, sharing, range(sharing.block.size))
        before = _trees(block, alive, serving)
        for stage in steps:
            standing = (alive, sorted(serving))
            alive = alive[stage.passes(block, alive)] if len(alive) else alive
            if serving and sharing is not None:
                serving = self._sharing_left(stage, block, serving)
            after = _trees(block, alive, serving)
            yield stage, before, after, standing
            before = after

    def _sharing_left(self, stage: Stage, block: Block, serving: dict[int, Mask]) -> dict[int, Mask]:
        sharing = self._columns.sharing
        if sharing is None:
            return {}
        indices = np.asarray(sorted(serving), dtype=np.intp)
        if stage.reason == "in_tree":
            passing = np.asarray([sharing.root_numbers[i] == stage.tree_root for i in indices.tolist()], dtype=np.bool_)
        else:
            passing = stage.passes(sharing.block, indices, shared=True)
        left = {index: serving[index] for index in indices[passing].tolist()}
        barred = self._matcher.barred(block) if stage.reason == "forbidden_aggregate" and stage.or_root else None
        return left if barred is None else {index: trees & ~barred for index, trees in left.items()}

    # --- single hosts ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Rejection]:
        """Every rejection of every host that does not fit, in the order of the forest."""
        for block in self._columns.blocks:
            for tree in np.flatnonzero(self._looked_at(block)).tolist():
                yield from self._of_tree(block, tree)

    def of_host(self, root: str | Provider) -> tuple[Rejection, ...]:
        """The rejections of the host whose root has this uuid or name; none when it fits (or is not there).

        Raises:
            InvalidArgument: *root* is neither a provider nor text.
        """
        for wanted in keys_of(root):
            for block in self._columns.blocks:
                for tree, position in enumerate(block.starts[:-1].tolist()):
                    if wanted in (block.providers[position].uuid, block.providers[position].name):
                        return tuple(self._of_tree(block, tree))
        return ()

    def nearest(self, count: int = 3) -> list[Rejection]:
        """The nearest misses: hosts that lack nothing but capacity of one class for one group, least missing first."""
        near: list[tuple[float, int, int]] = []  # share missing, block, tree
        for place, block in enumerate(self._columns.blocks):
            missing = self._missing(block)
            missing[~self._looked_at(block)] = np.inf
            trees = np.flatnonzero(np.isfinite(missing))
            near += zip(missing[trees].tolist(), [place] * len(trees), trees.tolist(), strict=True)
        heapq.heapify(near)
        found: list[Rejection] = []
        while near and len(found) < count:
            _, place, tree = heapq.heappop(near)
            rejections = self._of_tree(self._columns.blocks[place], tree)
            if len(rejections) == 1 and rejections[0].missing is not None:
                found += rejections
        return found

    def _missing(self, block: Block) -> NDArray[np.float64]:
        """For trees that fail at capacity for one slot and nowhere else: the least share missing; else infinity."""
        failures = np.zeros(block.trees, dtype=np.int64)
        missing = np.full(block.trees, np.inf)
        for index, steps in enumerate(self._stages):
            for stage, before, after, standing in self._fall(block, index, np.arange(block.size, dtype=np.intp), steps):
                failing = before & ~after
                failures += failing
                if stage.reason == "capacity" and failing.any():
                    missing[failing] = self._shares_missing(block, stage, standing)[failing]
        roots = self._matcher.roots(block)
        missing[failures != 1] = np.inf
        if roots is not None:
            missing[~roots] = np.inf
        return missing

    def _shares_missing(self, block: Block, stage: Stage, standing: tuple[Positions, list[int]]) -> NDArray[np.float64]:
        """Per tree: how much of what *stage* asks the best of the *standing* providers lacks."""
        least = np.full(block.trees, np.inf)
        positions, indices = standing
        if len(positions):
            np.minimum.at(least, block.tree_of[positions], _lacking(stage, block, positions))
        sharing = self._columns.sharing
        if sharing is not None and indices:
            lacking = _lacking(stage, sharing.block, np.asarray(indices, dtype=np.intp)).tolist()
            serving = self._matcher.serving(block, sharing, indices)
            for index, lack in zip(indices, lacking, strict=True):
                if index in serving:
                    least[serving[index]] = np.minimum(least[serving[index]], lack)
        return least / stage.amount

    def _of_tree(self, block: Block, tree: int) -> list[Rejection]:
        root = block.providers[int(block.starts[tree])]
        rejections = [*self._of_root(root), *self._of_slots(block, tree, root)]
        if rejections:
            return rejections
        return self._of_groups_together(self._open(block, tree))

    def _of_groups_together(self, one: OneTree) -> list[Rejection]:
        return [*self._missing_traits(one)][:1] or self._together(one)

    def _of_root(self, root: Provider) -> Iterator[Rejection]:
        request = self._compiled.request
        wrong = [*sorted(request.root_required - root.traits), *sorted(request.root_forbidden & root.traits)]
        for trait in wrong:
            yield Rejection(
                root=root.uuid,
                host=root.name,
                reason="root_trait",
                provider=root.uuid,
                provider_name=root.name,
                names=(trait,),
            )

    def _of_slots(self, block: Block, tree: int, root: Provider) -> Iterator[Rejection]:
        own = np.arange(int(block.starts[tree]), int(block.starts[tree + 1]), dtype=np.intp)
        for index, steps in enumerate(self._stages):
            for stage, before, after, standing in self._fall(block, index, own, steps):
                if before[tree] and not after[tree]:
                    yield self._reject(block, root, index, stage, self._standing(block, tree, standing))
                    break

    def _standing(self, block: Block, tree: int, standing: tuple[Positions, list[int]]) -> list[tuple[Block, int]]:
        sharing = self._columns.sharing
        found = [(block, position) for position in standing[0].tolist()]
        if sharing is not None and standing[1]:
            serving = self._matcher.serving(block, sharing, standing[1])
            found += [(sharing.block, i) for i in standing[1] if i in serving and serving[i][tree]]
        return found

    def _reject(
        self, block: Block, root: Provider, index: int, stage: Stage, standing: list[tuple[Block, int]]
    ) -> Rejection:
        place, position = min(standing, key=lambda at: _shortfall(stage, *at), default=(block, 0))
        provider = place.providers[position]
        facts: dict[str, Any] = {"names": tuple(sorted(stage.names))}
        if stage.resource_class:
            facts.update(resource_class=stage.resource_class, asked=stage.amount)
            inventory = provider.inventories.get(stage.resource_class)
            if inventory is not None:
                column = place.classes[stage.resource_class]
                facts.update(
                    used=int(column.used[column.row(position)]),
                    reserved=inventory.reserved,
                    total=inventory.total,
                    capacity=inventory.capacity,
                )
                facts["bound"] = getattr(inventory, stage.reason, None) if stage.reason != "capacity" else None
        return Rejection(
            root=root.uuid,
            host=root.name,
            reason=stage.reason,
            suffix=self._compiled.slots[index].suffix,
            provider=provider.uuid,
            provider_name=provider.name,
            **facts,
        )

    # --- what is there, but not together -----------------------------------------------------------------------------

    def _open(self, block: Block, tree: int) -> OneTree:
        begin, end = int(block.starts[tree]), int(block.starts[tree + 1])
        anchors = self._matcher.anchors(block)
        options = []
        for slot, served in zip(self._compiled.slots, anchors, strict=True):
            own = self._matcher.positions(block, slot, begin, end).tolist()
            options.append(own + [-1 - index for index in sorted(served) if served[index][tree]])
        return OneTree(block, tree, options, self._columns.sharing)

    def _missing_traits(self, one: OneTree) -> Iterator[Rejection]:
        """Required traits of the spread group that nothing usable carries."""
        collective = self._compiled.collective
        if not collective:
            return
        handles = {handle for slot in collective for handle in one.options[slot]}
        for names in self._compiled.slots[collective[0]].group.required:
            if not any(names & one.provider(handle).traits for handle in handles):
                yield Rejection(
                    root=one.root.uuid, host=one.root.name, reason="trait", suffix="", names=tuple(sorted(names))
                )

    def _together(self, one: OneTree) -> list[Rejection]:
        """The first condition that leaves no combination, when they are added one by one."""
        try:
            if self._has_a_way(one, len(CONDITIONS)):
                return []
            reason = self._first_that_leaves_none(one)
        except Undecided:
            reason = "undecided"
        return [Rejection(root=one.root.uuid, host=one.root.name, reason=reason, names=self._about(reason))]

    def _first_that_leaves_none(self, one: OneTree) -> Reason:
        """Where one of them cannot be decided within the bound, the next that can; all together could."""
        reason: Reason = "undecided"
        for count, condition in enumerate(CONDITIONS, 1):
            if condition.applies(self._compiled):
                reason = _TOGETHER[condition.__name__]
                with suppress(Undecided):
                    if (condition is Room and self._too_little(one)) or not self._has_a_way(one, count):
                        return reason
        return reason

    def _has_a_way(self, one: OneTree, count: int) -> bool:
        """Whether a combination meets the first *count* conditions."""
        ways = combinations(self._compiled, one, self._effort, fold=True, conditions=CONDITIONS[:count])
        return next(ways, None) is not None

    def _too_little(self, one: OneTree) -> bool:
        """Whether all usable providers together have less of a class than all slots together ask for."""
        for name, asked in self._compiled.shared.items():
            asking = zip(self._compiled.slots, one.options, strict=True)
            handles = {h for slot, options in asking if name in dict(slot.resources) for h in options}
            if sum(one.room(handle, name) for handle in handles) < asked:
                return True
        return False

    def _about(self, reason: Reason) -> tuple[str, ...]:
        if reason == "capacity_together":
            return tuple(sorted(self._compiled.shared))
        if reason == "traits_together":
            required = self._compiled.slots[self._compiled.collective[0]].group.required
            return tuple("/".join(sorted(names)) for names in required)
        return ()

    # --- to read -----------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """One line: how many hosts fit, what refused the others, and the nearest misses."""
        if not self.hosts:
            return "there are no hosts"
        parts = [f"{self.fits} of {self.hosts} hosts fit"]
        parts += [f"{count} × {label}" for label, count in list(self.counts.items())[:5]]
        parts += [f"nearest: {rejection}" for rejection in self.nearest(1)]
        return "; ".join([*parts, *self._misspelt()])

    def _misspelt(self) -> Iterator[str]:
        """Of each class asked for that no provider has: the name nearest to it."""
        known = {name for block in self._columns.blocks for name in block.classes}
        for name in sorted({name for slot in self._compiled.slots for name, _ in slot.resources} - known):
            yield f"no provider has {name}{guess(name, known | standard_resource_classes())}"

    def as_fields(self) -> dict[str, Any]:
        """The counts, for structured logs."""
        return {"hosts": self.hosts, "fits": self.fits, "refused": self.counts}

    def record(self, *, rejections: int = 1_000) -> RecordedReport:
        """The report as a value of its own, which does not hold the forest.

        Args:
            rejections: The most that are recorded: those of the first hosts, of each all or none.
        """
        found = list(islice(self, rejections + 1))
        complete = len(found) <= rejections
        if not complete:
            found = [each for each in found if each.root != found[-1].root]
        return RecordedReport(
            hosts=self.hosts,
            fits=self.fits,
            counts=self.counts,
            rejections=tuple(found),
            complete=complete,
            near=tuple(self.nearest(10)),
            line=self.summary(),
            text=str(self),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _recorded, (self.record(),)

    def __str__(self) -> str:
        lines = [f"{self.fits} of {self.hosts} hosts fit"]
        lines += [f"  {count:>6} × {label}" for label, count in self.counts.items()]
        near = self.nearest()
        lines += ["nearest:"] * bool(near) + [f"  {rejection}" for rejection in near]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return refusals_html(self.summary(), self.counts, self.nearest(5))

    def __repr__(self) -> str:
        return f"<SearchReport: {self.summary()}>"


def _recorded(record: RecordedReport) -> RecordedReport:
    """What a pickled report becomes."""
    return record


def _label(stage: Stage) -> str:
    return f"{stage.reason} {stage.resource_class or ' or '.join(sorted(stage.names))}".rstrip()


def _trees(block: Block, alive: Positions, serving: Mapping[int, Mask]) -> Mask:
    trees = block.trees_with(alive)
    for served in serving.values():
        trees = trees | served
    return trees


def _shortfall(stage: Stage, block: Block, position: int) -> int:
    if stage.reason != "capacity":
        return 0
    column = block.classes[stage.resource_class]
    row = column.row(position)
    return int(column.used[row] + stage.amount - column.capacity[row])


def _lacking(stage: Stage, block: Block, positions: Positions) -> NDArray[np.float64]:
    column = block.classes[stage.resource_class]
    rows = column.rows.searchsorted(positions)
    lacking: NDArray[np.float64] = column.used[rows].astype(np.float64) + stage.amount - column.capacity[rows]
    return lacking
