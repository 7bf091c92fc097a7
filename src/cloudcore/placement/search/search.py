"""The search: lazily, tree by tree, over one state of the forest. Pure.

One module: options, one pass over the trees, and what callers ask of it.
"""

from __future__ import annotations

from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from cloudcore.errors import NoValidHost
from cloudcore.notebook import html_of, table
from cloudcore.placement.search.candidates import Candidate
from cloudcore.placement.search.combining import combinations
from cloudcore.placement.search.compiled import compile_request
from cloudcore.placement.search.completing import Effort, Undecided
from cloudcore.placement.search.matching import Matcher
from cloudcore.placement.search.one_tree import OneTree
from cloudcore.placement.search.ordering import scores, starting_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloudcore.placement.columns.blocks import Block, Columns, Positions
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.matching import BlockMatch, RememberedMatches
    from cloudcore.placement.search.ordering import OrderBy
    from cloudcore.placement.search.report import SearchReport

__all__ = ["HostMatch", "Search", "SearchOptions"]

_FIRST_BATCH = 16
_FIRST_WINDOW = 48
_SHOWN = 10  # candidates that a notebook shows; the search is made anew each time


@attrs.frozen(kw_only=True)
class SearchOptions:
    """How the answers are ordered and narrowed, beyond what a request says.

    Attributes:
        order_by: Weighers; the first decides, the next breaks ties. Without any: the order of the forest.
        preferred: Trait → weight: hosts that have them come first, and in a host the providers that carry them.
        within: Tells of a root provider whether its tree is looked at; None for all.
        distinct: ``"mappings"`` lists what Placement lists; ``"physical"`` gives each set of allocations once.
        hosts_first: One candidate of every host before the second of any.
        seed: Where in the forest to start; None at its beginning. Ignored where weighers decide, but for ties.
        max_steps_per_host: How many steps the search takes on one host without finding another answer there.
        max_steps: How many it takes on all hosts together without finding anything.
    """

    order_by: tuple[OrderBy, ...] = ()
    preferred: Mapping[str, float] = attrs.field(factory=dict)
    within: Callable[[Provider], bool] | None = None
    distinct: Literal["mappings", "physical"] = "mappings"
    hosts_first: bool = False
    seed: int | None = None
    max_steps_per_host: int = 10_000
    max_steps: int = 1_000_000

    def effort(self, known: dict[Any, bool | None]) -> Effort:
        """What one look through the hosts may cost."""
        return Effort(per_host=self.max_steps_per_host, left=self.max_steps, known=known)


class HostMatch:
    """A host that can hold the request, with its candidates.

    Attributes:
        root: The root provider.
        scores: What the criteria gave it, preferred traits first; empty without any.
    """

    __slots__ = ("_candidates", "root", "scores")

    root: Provider
    scores: tuple[float, ...]

    def __init__(
        self, root: Provider, scores: tuple[float, ...], candidates: Callable[[], Iterator[Candidate]]
    ) -> None:
        self.root = root
        self.scores = scores
        self._candidates = candidates

    def __iter__(self) -> Iterator[Candidate]:
        return self._candidates()

    def __repr__(self) -> str:
        return f"<HostMatch {self.root.name}>"


@attrs.frozen(eq=False)
class OpenedHost:
    """A host with its candidates.

    Attributes:
        first: The first candidate.
        more: The others, made when asked for, once.
        beside: Given what is left of (provider, class), None where nothing changed: the first candidate that fits.
    """

    first: Candidate
    more: Iterator[Candidate]
    beside: Callable[[Callable[[str, str], int | None]], Candidate | None]


class Search:
    """The candidates for one request, found while they are iterated over, at most ``request.limit`` of them.

    Every iteration starts afresh on the state of the forest that the search was made on, and gives the same answer in
    the same order in every process: hosts in the order of the forest (or of the weighers), and on each host
    lexicographically, the group without a suffix first, then the others as given; for each, the providers of the host
    in depth-first order and then the sharing ones. May be shared between threads.
    """

    def __init__(
        self,
        columns: Columns,
        request: ResourceRequest,
        trees: Mapping[str, int | None],
        options: SearchOptions,
    ) -> None:
        self.request = request
        self.options = options
        self._columns = columns
        self._trees = trees
        self._known: dict[Any, bool | None] = {}
        self._undecided: dict[str, Provider] = {}

    @property
    def undecided(self) -> tuple[Provider, ...]:
        """Roots of hosts that were left, in what was asked so far, because the bound on work was reached there."""
        return tuple(self._undecided.values())

    def _give_up(self, tree: OneTree) -> None:
        self._undecided[tree.root.uuid] = tree.root

    @cached_property
    def _compiled(self) -> CompiledRequest:
        return compile_request(self.request)

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher(self._columns, self._compiled, self._trees)

    # --- answers -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Candidate]:
        return islice(self._candidates(), self.request.limit)

    def first(self) -> Candidate:
        """Return the first candidate.

        Raises:
            NoValidHost: There is none; its ``report`` says why.
        """
        for candidate in self:
            return candidate
        report = self.report()
        raise NoValidHost(f"no host can hold the request: {report.summary()}", report=report)

    def hosts(self) -> Iterator[HostMatch]:
        """Yield every host that has a candidate, best first, whatever the limit; each lists its own candidates."""
        effort = self.options.effort(self._known)
        for found, tree in self._found():
            one = self._one_tree(found.match, tree)
            try:
                fits = next(combinations(self._compiled, one, effort, fold=True), None) is not None
            except Undecided:
                fits = False
                self._give_up(one)
            if fits:
                yield HostMatch(one.root, found.scores(tree), partial(self._of_host, one))

    @property
    def columns(self) -> Columns:
        """The state of the forest that is searched."""
        return self._columns

    @property
    def compiled(self) -> CompiledRequest:
        """The request, prepared."""
        return self._compiled

    def matches(self, remembered: RememberedMatches) -> list[BlockMatch | None]:
        """What each block has for the request, whatever the options say of order; :meth:`host` opens its hosts."""
        return self._matcher.matches(remembered)

    def host(self, match: BlockMatch, tree: int) -> OpenedHost | None:
        """Open one host of *match*; None when it cannot hold the request (or that could not be told)."""
        one = self._one_tree(match, tree)
        candidates = self._of_host(one)
        first = next(candidates, None)
        return None if first is None else OpenedHost(first, candidates, partial(self._beside, one))

    def _beside(self, tree: OneTree, left: Callable[[str, str], int | None]) -> Candidate | None:
        return next(self._of_host(tree.beside(left, self._compiled.slots)), None)

    def report(self) -> SearchReport:
        """Say for every host whether it fits, and if not, why not. Worked out when asked, on the searched state."""
        from cloudcore.placement.search.report import SearchReport

        effort = partial(self.options.effort, self._known)
        return SearchReport(self._columns, self._compiled, self._matcher, self.options.within, effort)

    def as_placement(self) -> dict[str, Any]:
        """The answer of ``GET /allocation_candidates``: allocation requests and provider summaries."""
        requests = []
        summaries: dict[str, Any] = {}
        for candidate in self:
            requests.append(candidate.as_placement())
            summaries.update(candidate.summaries())
        return {"allocation_requests": requests, "provider_summaries": summaries}

    def __repr__(self) -> str:
        return f"<Search for {self.request.to_query()!r} in {self._columns.size} providers>"

    def _repr_html_(self) -> str:
        found = table(self, title=repr(self).strip("<>"), most=_SHOWN)
        return html_of(found) if found.rows else self.report()._repr_html_()

    # --- how ---------------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Candidate]:
        seen: set[Any] = set()
        effort = self.options.effort(self._known)
        of_trees = (self._of_tree(tree, seen, effort) for tree in self._promising())
        if self.options.hosts_first:
            yield from _in_turn(of_trees)
        else:
            for of_tree in of_trees:
                yield from of_tree

    def _of_host(self, tree: OneTree) -> Iterator[Candidate]:
        return self._of_tree(tree, set(), self.options.effort(self._known))

    def _of_tree(self, tree: OneTree, seen: set[Any], effort: Effort) -> Iterator[Candidate]:
        """The candidates of one tree, as many as can be found within the bound."""
        try:
            yield from self._decided(tree, seen, effort)
        except Undecided:
            self._give_up(tree)

    def _decided(self, tree: OneTree, seen: set[Any], effort: Effort) -> Iterator[Candidate]:
        """The candidates of one tree; *seen* holds those that other trees could give as well."""
        compiled = self._compiled
        fold = self.options.distinct == "physical"
        here: set[Any] = set()
        for handles in combinations(compiled, tree, effort, fold=fold):
            everywhere = max(handles) < 0  # sharing providers only: the same candidate has other anchors too
            if fold or everywhere:
                key = _physical(compiled, handles) if fold else handles
                known = seen if everywhere else here
                if key in known:
                    continue
                known.add(key)
            yield Candidate(self._columns, compiled, tree, handles)

    def _promising(self) -> Iterator[OneTree]:
        """Trees that have something for every slot, in the order in which they are offered."""
        options = self.options
        if options.order_by or options.preferred or options.within is not None:
            yield from self._promising_of_found()
            return
        size = _FIRST_BATCH
        for match in self._matches():
            done = 0
            while done < len(match.trees):
                yield from self._open(match, match.trees[done : done + size])
                done += size
                size *= 4

    def _promising_of_found(self) -> Iterator[OneTree]:
        batch: list[tuple[_Found, int]] = []
        size = _FIRST_BATCH
        for found, tree in self._found():
            if batch and (found.match is not batch[0][0].match or len(batch) >= size):
                yield from self._open(batch[0][0].match, [t for _, t in batch])
                batch = []
                size *= 4
            batch.append((found, tree))
        if batch:
            yield from self._open(batch[0][0].match, [t for _, t in batch])

    def _one_tree(self, match: BlockMatch, tree: int) -> OneTree:
        block, sharing = match.block, self._columns.sharing
        if sharing is not None or self.options.preferred:
            return next(self._open(match, [tree]))
        edges = block.starts[tree : tree + 2]
        options = []
        for positions in match.positions:
            first, last = positions.searchsorted(edges).tolist()
            options.append(positions[first:last].tolist())
        return OneTree(block, tree, options, None, apart=match.apart)

    def _open(self, match: BlockMatch, trees: Sequence[int] | Positions) -> Iterator[OneTree]:
        """Read out what each of *trees* has for each slot."""
        block, sharing = match.block, self._columns.sharing
        chosen = np.asarray(trees)
        count = len(chosen)
        edges = block.starts[np.concatenate((chosen, chosen + 1))]  # where the trees begin, then where they end
        bounds = [(positions, positions.searchsorted(edges).tolist()) for positions in match.positions]
        preferred = self.options.preferred
        for i, tree in enumerate(chosen.tolist()):
            options = [positions[edge[i] : edge[i + count]].tolist() for positions, edge in bounds]
            if sharing is not None:
                for handles, served in zip(options, match.anchors, strict=True):
                    handles.extend(-1 - index for index in sorted(served) if served[index][tree])
            one = OneTree(block, tree, options, sharing, apart=match.apart)
            if preferred:
                one.options = [sorted(handles, key=lambda h: -self._liking(one, h)) for handles in one.options]
            yield one

    def _liking(self, tree: OneTree, handle: int) -> float:
        traits = tree.provider(handle).traits
        return sum(weight for trait, weight in self.options.preferred.items() if trait in traits)

    def _found(self) -> Iterator[tuple[_Found, int]]:
        options = self.options
        within = options.within
        ordered = self._best_first() if options.order_by or options.preferred else self._in_order()
        for found, tree in ordered:
            block = found.match.block
            if within is None or within(block.providers[int(block.starts[tree])]):
                yield found, tree

    def _in_order(self) -> Iterator[tuple[_Found, int]]:
        for match in self._matches():
            found = _Found(match, ())
            for tree in match.trees.tolist():
                yield found, tree

    def _matches(self) -> Iterator[BlockMatch]:
        for block, first, last in self._windows():
            match = self._matcher.match(block, first, last)
            if match is not None:
                yield match

    def _windows(self) -> Iterator[tuple[Block, int, int]]:
        """Small slices first, in case they have all that is wanted; then whole blocks."""
        width = _FIRST_WINDOW
        for block, first, last in self._slices():
            while last - first > width:
                yield block, first, first + width
                first += width
                width *= 8
            yield block, first, last
            width *= 8

    def _best_first(self) -> Iterator[tuple[_Found, int]]:
        founds: list[_Found] = []
        owners: list[Any] = []
        trees: list[Any] = []
        for block, first, last in self._slices():
            match = self._matcher.match(block, first, last)
            if match is not None:
                owners.append(np.full(len(match.trees), len(founds)))
                trees.append(match.trees)
                criteria = scores(match, self._compiled, self.options.order_by, self.options.preferred)
                founds.append(_Found(match, tuple(criteria)))
        if not founds:
            return
        criteria = [np.concatenate(parts) for parts in zip(*(found.criteria for found in founds), strict=True)]
        order = np.lexsort([-criterion for criterion in reversed(criteria)])
        owner_of, tree_of = np.concatenate(owners)[order], np.concatenate(trees)[order]
        for owner, tree in zip(owner_of.tolist(), tree_of.tolist(), strict=True):
            yield founds[owner], tree

    def _slices(self) -> Iterator[tuple[Block, int, int]]:
        """Blocks with the trees to look at, from where the seed says round to there."""
        blocks = self._columns.blocks
        start = 0
        if self.options.seed is not None:
            start = starting_tree(self.options.seed, sum(block.trees for block in blocks))
        before: list[tuple[Block, int, int]] = []
        for block in blocks:
            if start >= block.trees:
                before.append((block, 0, block.trees))
            else:
                if start > 0:
                    before.append((block, 0, start))
                yield block, max(start, 0), block.trees
            start = max(0, start - block.trees) if start >= block.trees else 0
        yield from before


@attrs.frozen(eq=False)
class _Found:
    """A block's match with the scores of its trees."""

    match: BlockMatch
    criteria: tuple[Any, ...]

    def scores(self, tree: int) -> tuple[float, ...]:
        place = int(self.match.trees.searchsorted(tree))
        return tuple(float(criterion[place]) for criterion in self.criteria)


def _physical(compiled: CompiledRequest, handles: tuple[int, ...]) -> frozenset[tuple[tuple[int, str], int]]:
    amounts: dict[tuple[int, str], int] = {}
    for slot, handle in zip(compiled.slots, handles, strict=True):
        for name, amount in slot.resources:
            amounts[handle, name] = amounts.get((handle, name), 0) + amount
    return frozenset(amounts.items())


def _in_turn(iterators: Iterator[Iterator[Candidate]]) -> Iterator[Candidate]:
    """The first of every iterator, then the second of every one that has it, and so on."""
    waiting: list[Iterator[Candidate]] = []
    for iterator in iterators:
        for item in islice(iterator, 1):
            waiting.append(iterator)
            yield item
    while waiting:
        still: list[Iterator[Candidate]] = []
        for iterator in waiting:
            for item in islice(iterator, 1):
                still.append(iterator)
                yield item
        waiting = still
