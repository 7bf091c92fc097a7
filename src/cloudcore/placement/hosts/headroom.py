"""How many more of a flavor fit: exactly where that can be decided, between two numbers where it cannot. Pure.

What the slots of a request ask of a host is counted apart where they do not depend on each other: the host holds as
many as its scarcest slot. Where they do (NUMA cells that belong together, groups that keep apart), the candidates of
the host are combined by branch and bound, once for all hosts that are alike. A pool that many hosts share is a flow
from hosts to pools.

One module, though a long one: the ways of counting are cases of one question, chosen by one function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
import networkx as nx
import numpy as np

from cloudcore._values import require_integer
from cloudcore.errors import InvalidRequest
from cloudcore.notebook import Table, html_of
from cloudcore.placement.requests.requests import ResourceRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudcore.placement.columns.blocks import Block, Positions
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.candidates import Candidate
    from cloudcore.placement.search.compiled import Slot
    from cloudcore.placement.search.matching import Matcher
    from cloudcore.placement.tree import PlacementTree

__all__ = ["Count", "FlavorHeadroom", "Headroom", "headroom"]

_PLENTY = 2**62
_CANDIDATES = 400  # of one host; more of them are not combined, and the count stays between two numbers

CellOf = Callable[["Provider"], str | None]
Amounts = dict[tuple[str, str], int]
"""(Provider uuid, class) → units."""


@attrs.frozen
class Count:
    """How many fit: between *at_least* and *at_most*."""

    at_least: int
    at_most: int

    @property
    def exact(self) -> bool:
        """Whether both are the same."""
        return self.at_least == self.at_most

    def __str__(self) -> str:
        return str(self.at_least) if self.exact else f"{self.at_least} to {self.at_most}"


@attrs.frozen(kw_only=True)
class FlavorHeadroom:
    """How many more fit in all, and in each cell by itself. Pools that serve several cells count in each of them."""

    total: Count
    cells: Mapping[str | None, Count]


@attrs.frozen(kw_only=True)
class Headroom:
    """What :func:`headroom` found.

    Attributes:
        flavors: Name of a flavor → how many more of it fit while nothing else is placed.
        bundles: How many of the bundles asked for fit, by volume and by each flavor alone; None without a bundle.
    """

    flavors: Mapping[str, FlavorHeadroom]
    bundles: FlavorHeadroom | None

    def to_table(self) -> Table:
        """One row for each flavor (and ``bundle``): how many fit at least and at most in all, and at least by cell."""
        counted = {**self.flavors, **({} if self.bundles is None else {"bundle": self.bundles})}
        cells = sorted({cell for found in counted.values() for cell in found.cells}, key=str)
        rows = []
        for name, found in counted.items():
            by_cell = [found.cells[cell].at_least if cell in found.cells else 0 for cell in cells]
            rows.append((name, found.total.at_least, found.total.at_most, *by_cell))
        return Table(headings=("flavor", "at_least", "at_most", *map(str, cells)), rows=tuple(rows))

    def _repr_html_(self) -> str:
        return html_of("How many more fit", self.to_table())


def headroom(
    tree: PlacementTree,
    requests: ResourceRequest | str | Mapping[str, ResourceRequest | str],
    *,
    cell_of: CellOf | None = None,
    bundle: Mapping[str, int] | None = None,
    max_steps: int = 20_000,
) -> Headroom:
    """Count how many more of each flavor fit now, per cell and in all.

    For one flavor the count is exact as long as at most one of its parts comes from shared pools and no host needs more
    than *max_steps* to be decided; else it lies between two numbers. Of a bundle of flavors the upper number is stated:
    no more can fit, by volume and by the flavors alone.

    Args:
        tree: Where; a bound tree as it was refreshed last.
        requests: Name → request or query; one without a name stands under ``""``. Limits do not count.
        cell_of: Root provider → name of its cell; hosts of None count in the total only.
        bundle: Name → how many of it make one bundle.
        max_steps: Steps of the decision for one kind of host.

    Raises:
        InvalidRequest: A request is malformed, or *bundle* names another flavor or a number below 1.
    """
    require_integer(max_steps, "max_steps", minimum=1, error=InvalidRequest)
    named: Mapping[str, ResourceRequest | str] = requests if isinstance(requests, Mapping) else {"": requests}
    read = {name: attrs.evolve(_request(request), limit=None) for name, request in named.items()}
    for name, number in (bundle or {}).items():
        if name not in read:
            raise InvalidRequest(f"bundle: no request is named {name!r}", field="bundle", value=name)
        require_integer(number, f"bundle {name}", minimum=1, error=InvalidRequest)
    frozen = tree.what_if()
    counted = {name: _of_flavor(frozen, request, cell_of, max_steps) for name, request in read.items()}
    bundles = _of_bundle(frozen, read, counted, cell_of, bundle) if bundle else None
    return Headroom(flavors=counted, bundles=bundles)


def _request(request: ResourceRequest | str) -> ResourceRequest:
    return request if isinstance(request, ResourceRequest) else ResourceRequest.from_query(request)


@attrs.frozen(eq=False)
class _Hosts:
    """The hosts that have something for every slot.

    Attributes:
        roots: Their roots.
        local: Per slot, how often each host gives it from its own providers.
        pools: Per slot, for each host the pools that could give it too.
        pool_room: Per slot: pool → how often it gives it.
    """

    roots: list[Provider]
    local: list[NDArray[np.int64]]
    pools: list[list[tuple[str, ...]]]
    pool_room: list[dict[str, int]]


def _of_flavor(tree: PlacementTree, request: ResourceRequest, cell_of: CellOf | None, max_steps: int) -> FlavorHeadroom:
    matcher = tree.matcher(request)
    hosts = _hosts(matcher)
    alone = None if matcher.compiled.plain else _alone(tree, request, hosts, max_steps)
    cells: dict[str | None, list[int]] = defaultdict(list)
    for place, root in enumerate(hosts.roots if cell_of else ()):
        cell = cell_of(root) if cell_of else None
        if cell is not None:
            cells[cell].append(place)
    return FlavorHeadroom(
        total=_sum(hosts, range(len(hosts.roots)), alone),
        cells={cell: _sum(hosts, places, alone) for cell, places in sorted(cells.items(), key=str)},
    )


# --- slots, host by host ---------------------------------------------------------------------------------------------


def _hosts(matcher: Matcher) -> _Hosts:
    columns, slots = matcher.columns, matcher.compiled.slots
    roots: list[Provider] = []
    local: list[list[NDArray[np.int64]]] = [[] for _ in slots]
    pools: list[list[tuple[str, ...]]] = [[] for _ in slots]
    room: list[dict[str, int]] = [{} for _ in slots]
    sharing = columns.sharing
    shared = {} if sharing is None else sharing.index
    for block in columns.blocks:
        serving = matcher.anchors(block)
        match = matcher.match(block)
        if match is None:
            continue
        for place, slot in enumerate(slots):
            counts, own = _counts(block, slot, matcher.positions(block, slot, 0, block.size), shared)
            there: list[list[str]] = [own.get(tree, []) for tree in match.trees.tolist()]
            for index, trees in serving[place].items():
                assert sharing is not None
                pool = sharing.block.providers[index]
                for number in np.flatnonzero(trees[match.trees]).tolist():
                    there[number] = [*there[number], pool.uuid]
                room[place][pool.uuid] = int(_times(sharing.block, slot, np.asarray([index]))[0])
            for uuid in {uuid for uuids in own.values() for uuid in uuids}:
                assert sharing is not None
                room[place][uuid] = int(_times(sharing.block, slot, np.asarray([shared[uuid]]))[0])
            local[place].append(counts[match.trees])
            pools[place] += [tuple(dict.fromkeys(uuids)) for uuids in there]
        roots += [block.providers[int(block.starts[tree])] for tree in match.trees]
    empty = np.zeros(0, dtype=np.int64)
    return _Hosts(roots, [np.concatenate([empty, *parts]) for parts in local], pools, room)


def _counts(
    block: Block, slot: Slot, positions: Positions, shared: Mapping[str, int]
) -> tuple[NDArray[np.int64], dict[int, list[str]]]:
    """Per tree, how often its own providers give the slot; and those of them that other trees use as well, apart."""
    times = _times(block, slot, positions)
    own: dict[int, list[str]] = {}
    if shared:
        for place, position in enumerate(positions.tolist()):
            if block.providers[position].uuid in shared:
                own.setdefault(int(block.tree_of[position]), []).append(block.providers[position].uuid)
                times[place] = 0
    counts = np.zeros(block.trees, dtype=np.int64)
    np.add.at(counts, block.tree_of[positions], times)
    return np.minimum(counts, _PLENTY), own


def _times(block: Block, slot: Slot, positions: Positions) -> NDArray[np.int64]:
    """How often each of *positions*, which all could give it once, gives the slot."""
    times = np.full(len(positions), _PLENTY if len(positions) < 2 else _PLENTY // len(positions), dtype=np.int64)
    for name, amount in slot.resources:
        column = block.classes[name]
        rows = column.rows.searchsorted(positions)
        times = np.minimum(times, (column.capacity[rows] - column.used[rows]) // amount)
    return times


# --- sums over hosts -------------------------------------------------------------------------------------------------


def _sum(hosts: _Hosts, places: Sequence[int], alone: list[Count] | None) -> Count:
    """How many fit on the hosts at these places together."""
    chosen = np.asarray(places, dtype=np.intp)
    if not len(chosen):
        return Count(0, 0)
    pooled = [slot for slot, room in enumerate(hosts.pool_room) if any(hosts.pools[slot][place] for place in places)]
    fixed = [counts[chosen] for slot, counts in enumerate(hosts.local) if slot not in pooled]
    scarcest = np.minimum.reduce(fixed) if fixed else np.full(len(chosen), _PLENTY, dtype=np.int64)
    if alone is not None:
        least = sum(alone[place].at_least for place in places)
        most = sum(min(alone[place].at_most, int(limit)) for place, limit in zip(places, scarcest, strict=True))
        return Count(least, max(least, min([most, *(_flow(hosts, slot, places, None) for slot in pooled)])))
    if not pooled:
        total = int(scarcest.sum())
        return Count(total, total)
    most = min(_flow(hosts, slot, places, scarcest) for slot in pooled)
    return Count(most if len(pooled) == 1 else _in_turn(hosts, pooled, places, scarcest), most)


def _flow(hosts: _Hosts, slot: int, places: Sequence[int], limits: NDArray[np.int64] | None) -> int:
    """How often the hosts get this slot from their own providers and from pools, each within its limit."""
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_node("source")
    graph.add_node("sink")
    for number, place in enumerate(places):
        own = int(hosts.local[slot][place])
        limit = _PLENTY if limits is None else int(limits[number])
        if limit <= 0:
            continue
        graph.add_edge("source", place, capacity=min(limit, _PLENTY))
        graph.add_edge(place, "sink", capacity=own)
        for pool in hosts.pools[slot][place]:
            graph.add_edge(place, pool, capacity=hosts.pool_room[slot][pool])
            graph.add_edge(pool, "sink", capacity=hosts.pool_room[slot][pool])
    return int(nx.maximum_flow_value(graph, "source", "sink"))


def _in_turn(hosts: _Hosts, pooled: Sequence[int], places: Sequence[int], limits: NDArray[np.int64]) -> int:
    """How many are placed when one host after the other takes what it can: a number that surely fits."""
    left = {slot: dict(hosts.pool_room[slot]) for slot in pooled}
    total = 0
    for number, place in enumerate(places):
        room = {slot: sum(left[slot][pool] for pool in hosts.pools[slot][place]) for slot in pooled}
        fits = min([int(limits[number]), *(int(hosts.local[slot][place]) + room[slot] for slot in pooled)])
        total += fits
        for slot in pooled:
            rest = max(0, fits - int(hosts.local[slot][place]))
            for pool in hosts.pools[slot][place]:
                taken = min(rest, left[slot][pool])
                left[slot][pool] -= taken
                rest -= taken
    return total


# --- hosts whose slots depend on each other --------------------------------------------------------------------------


def _alone(tree: PlacementTree, request: ResourceRequest, hosts: _Hosts, max_steps: int) -> list[Count]:
    """For each host, how many fit there: decided once for all that are alike."""
    known: dict[Any, Count] = {}
    found = []
    for place, root in enumerate(hosts.roots):
        shares = any(hosts.pools[slot][place] for slot in range(len(hosts.pools)))
        kind = _kind(tree, root) if not shares and not _names_a_tree(request) else root.uuid
        if kind not in known:
            known[kind] = _decide(tree, request, root, max_steps)
        found.append(known[kind])
    return found


def _names_a_tree(request: ResourceRequest) -> bool:
    return any(group.in_tree is not None for group in request.groups.values())


def _kind(tree: PlacementTree, root: Provider) -> Any:
    """The same for hosts that a search cannot tell apart."""
    providers = tree.subtree(root)
    places = {provider.uuid: place for place, provider in enumerate(providers)}
    return tuple(
        (
            places.get(provider.parent or ""),
            provider.inventories,
            tuple(sorted(tree.usage(provider).items())),
            provider.traits,
            provider.aggregates,
        )
        for provider in providers
    )


def _decide(tree: PlacementTree, request: ResourceRequest, root: Provider, max_steps: int) -> Count:
    search = tree.candidates(request, within=[root.uuid], distinct="physical")
    found = list(islice(search, _CANDIDATES + 1))
    options = [_amounts(candidate) for candidate in found[:_CANDIDATES]]
    free: Amounts = {}
    own = {provider.uuid for provider in tree.subtree(root)}
    for provider, name in {key for option in options for key in option}:
        inventory = tree.by_uuid(provider).inventories[name]
        free[provider, name] = inventory.capacity - tree.usage(provider)[name]
    everything = len(found) <= _CANDIDATES
    inside = [option for option in options if all(provider in own for provider, _ in option)]
    least, most = most_of(inside, free, max_steps)
    if everything and len(inside) == len(options):
        return Count(least, most)
    return Count(least, volume(_sums(options), free.keys(), free) if everything else _PLENTY)


def _amounts(candidate: Candidate) -> Amounts:
    return {(uuid, name): n for uuid, amounts in candidate.allocations.items() for name, n in amounts.items()}


def _sums(options: Sequence[Amounts]) -> dict[str, int]:
    """What one placement asks of each class: the same for every option."""
    asked: dict[str, int] = defaultdict(int)
    for (_, name), amount in options[0].items() if options else ():
        asked[name] += amount
    return asked


def volume(asked: Mapping[str, int], keys: Iterable[tuple[str, str]], free: Mapping[tuple[str, str], int]) -> int:
    """A number that no choice among options that take from *keys* can pass; each takes *asked* in sum."""
    there: dict[str, int] = defaultdict(int)
    for key in keys:
        there[key[1]] += max(0, free[key])
    return min((there[name] // amount for name, amount in asked.items()), default=0)


def most_of(options: Sequence[Amounts], free: Amounts, max_steps: int) -> tuple[int, int]:
    """How many of *options*, each as often as one likes, fit into *free*: a number that fits, and one that bounds it.

    Branch and bound: each option in turn as often as it fits, and fewer; given up after *max_steps*.
    """
    asked = _sums(options)
    later: list[set[tuple[str, str]]] = [set()]  # what the options from here on take from
    for option in reversed(options):
        later.append(later[-1] | option.keys())
    later.reverse()
    best, steps, bound = 0, 0, volume(asked, later[0], free)

    def walk(place: int, room: Amounts, taken: int) -> bool:
        nonlocal best, steps
        steps += 1
        best = max(best, taken)
        if best >= bound:
            return True
        if place == len(options) or taken + volume(asked, later[place], room) <= best:
            return steps <= max_steps
        option = options[place]
        for times in range(min(room[key] // amount for key, amount in option.items()), -1, -1):
            left = {**room, **{key: room[key] - times * amount for key, amount in option.items()}}
            if not walk(place + 1, left, taken + times):
                return False
            if best >= bound:
                return True
        return True

    decided = walk(0, free, 0)
    return best, best if decided else bound


# --- bundles ---------------------------------------------------------------------------------------------------------


def _of_bundle(
    tree: PlacementTree,
    requests: Mapping[str, ResourceRequest],
    counted: Mapping[str, FlavorHeadroom],
    cell_of: CellOf | None,
    bundle: Mapping[str, int],
) -> FlavorHeadroom:
    asked: dict[str, int] = defaultdict(int)
    for name, number in bundle.items():
        for group in requests[name].groups.values():
            for resource_class, amount in group.resources.items():
                asked[resource_class] += number * amount
    cells = {cell for name in bundle for cell in counted[name].cells}

    def most(counts: Mapping[str, Count], cell: str | None) -> Count:
        free = _free(tree, asked, None if cell is None else lambda root: _in_cell(root, cell, cell_of))
        alone = [count.at_most // bundle[name] for name, count in counts.items()]
        return Count(0, min([*alone, *(free.get(name, 0) // amount for name, amount in asked.items())]))

    nothing = Count(0, 0)
    return FlavorHeadroom(
        total=most({name: counted[name].total for name in bundle}, None),
        cells={
            cell: most({name: counted[name].cells.get(cell, nothing) for name in bundle}, cell)
            for cell in sorted(cells, key=str)
        },
    )


def _in_cell(root: Provider, cell: str | None, cell_of: CellOf | None) -> bool:
    return cell_of is not None and cell_of(root) in {None, cell}


def _free(tree: PlacementTree, classes: Iterable[str], chosen: Callable[[Provider], bool] | None) -> dict[str, int]:
    """What is free of *classes* on the trees chosen by their roots, those without a cell (pools) included."""
    wanted = set(classes)
    free: dict[str, int] = defaultdict(int)
    for root in filter(chosen or (lambda _: True), tree.roots()):
        for provider in tree.subtree(root):
            used = tree.usage(provider)
            for name in wanted & provider.inventories.keys():
                free[name] += max(0, provider.inventories[name].capacity - used[name])
    return free
