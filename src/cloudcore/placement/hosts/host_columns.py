"""Hosts side by side: what the columns of the search tell of each, for filters and weighers that look at all of them.

A :class:`HostColumns` shows the hosts of one block, a host for each tree. What it works out is kept with it. When only
the use of a block changed, the next one takes over the rest, and gives every host that changed a new *stamp*: whatever
was remembered of a host counts as long as its stamp is the same. :class:`JoinedHosts` puts those of all blocks that
match a request one after the other, and works out again what belongs to blocks that changed. Pure.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from cloudcore.placement.hosts.callables import ask_about, ask_metadata
from cloudcore.placement.hosts.host_view import HostView, is_uncached
from cloudcore.placement.search.matching import any_member
from cloudcore.placement.search.ordering import host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from cloudcore.placement.columns.blocks import Block, Columns, Mask
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.matching import BlockMatch

__all__ = ["NOWHERE", "HostColumns", "HostTable", "JoinedHosts", "Vectorised", "over_of"]

_VIEWS = 512
"""Views that are kept of one block's hosts."""

NOWHERE = -1
"""The number of a cell or a domain that is None."""


class HostColumns:
    """The hosts of one block, in the order of the forest.

    Attributes:
        block: Where they lie.
        stamps: For each host a number that is new whenever the host changed.
        cells: For each host the number of its cell, -1 without one.
        domains: For each host the number of its failure domain, -1 without one.
        in_domains: Whether any host has one.
    """

    def __init__(
        self, block: Block, stamps: NDArray[np.int64], cells: NDArray[np.int32], domains: NDArray[np.int32]
    ) -> None:
        self.block = block
        self.stamps = stamps
        self.cells = cells
        self.domains = domains
        self.in_domains: bool = bool((domains != NOWHERE).any())
        self._answers: dict[object, NDArray[np.float64]] = {}
        self._reasons: dict[object, dict[int, str]] = {}
        self._sums: dict[str, tuple[Any, NDArray[np.float64]]] = {}
        self._views: dict[int, tuple[int, HostView]] = {}
        self._by_name: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The number of hosts."""
        return self.block.trees

    def root(self, host: int) -> Provider:
        """The root provider of the host."""
        return self.block.providers[int(self.block.starts[host])]

    # --- all at once -------------------------------------------------------------------------------------------------

    def capacity(self, resource_class: str) -> NDArray[np.float64]:
        """What may be in use of *resource_class*, summed over each host's tree."""
        return self._sum(resource_class, "capacity")

    def used(self, resource_class: str) -> NDArray[np.float64]:
        """What is in use of *resource_class*, summed over each host's tree."""
        return self._sum(resource_class, "used")

    def share_free(self, resource_class: str) -> NDArray[np.float64]:
        """The free share of *resource_class*, 0.0 (none, or no inventory) to 1.0 (all)."""
        capacity = self.capacity(resource_class)
        share = np.divide(
            capacity - self.used(resource_class), capacity, out=np.zeros_like(capacity), where=capacity > 0
        )
        return np.maximum(0.0, share)

    def in_aggregates(self, aggregates: frozenset[str]) -> Mask:
        """Which hosts have a root that is in one of *aggregates*."""
        return any_member(self.block.aggregates, aggregates, self.block.size)[self.block.starts[:-1]]

    def named(self, names: Collection[str]) -> Mask:
        """Which hosts have a root of one of these names or uuids."""
        mask = np.zeros(self.size, dtype=np.bool_)
        mask[self.places(names)] = True
        return mask

    def places(self, names: Collection[str]) -> list[int]:
        """The hosts of these names or uuids, those that are here."""
        if not self._by_name:
            for host in range(self.size):
                root = self.root(host)
                self._by_name[root.name] = self._by_name[root.uuid] = host
        return [self._by_name[name] for name in names if name in self._by_name]

    def _sum(self, resource_class: str, which: str) -> NDArray[np.float64]:
        column = self.block.classes.get(resource_class)
        if column is None:
            return np.zeros(self.size)
        amounts = getattr(column, which)
        known = self._sums.get(which + resource_class)
        if known is None or known[0] is not amounts:
            trees = self.block.tree_of[column.rows]
            sums: NDArray[np.float64] = np.bincount(trees, weights=amounts, minlength=self.size).astype(np.float64)
            known = (amounts, sums)
            self._sums[which + resource_class] = known
        return known[1]

    # --- one by one --------------------------------------------------------------------------------------------------

    def view(self, host: int, cell: str, domain: str | None, metadata_of: Callable[[Provider], Any]) -> HostView:
        """The host as filters and weighers see it, without members of any group."""
        stamp = int(self.stamps[host])
        fresh = is_uncached(metadata_of)
        known = self._views.get(host)
        if known is not None and known[0] == stamp and not fresh:
            return known[1]
        found = host_of(self.block, host)
        root = found.root
        view = HostView(
            root=root.uuid,
            name=root.name,
            cell=cell,
            traits=frozenset[str]().union(*(provider.traits for provider in found.providers)),
            aggregates=root.aggregates,
            capacity=found.capacity,
            used=found.used,
            metadata=ask_metadata(metadata_of, root),
            domain=domain,
        )
        if len(self._views) >= _VIEWS:
            self._views.clear()
        self._views[host] = (stamp, view)
        return view

    def known(self, function: object) -> NDArray[np.float64]:
        """What a filter or weigher that is asked host by host answered for each host, NaN where it was not asked."""
        answers = self._answers.get(function)
        return np.full(self.size, np.nan) if answers is None else answers

    def remember(self, function: object, host: int, answer: float, reason: str | None = None) -> None:
        """Keep an answer until the host changes, of a filter with its reason."""
        if reason is not None:
            self._reasons.setdefault(function, {})[host] = reason
        self._answers.setdefault(function, np.full(self.size, np.nan))[host] = answer

    def reason(self, function: object, host: int) -> str | None:
        """Why a filter has refused a host, if that is known."""
        return self._reasons.get(function, {}).get(host)

    # --- as time goes on ---------------------------------------------------------------------------------------------

    def with_use_of(self, block: Block, stamps: Iterator[int]) -> HostColumns:
        """The same hosts after their use changed."""
        after = HostColumns(block, self.stamps.copy(), self.cells, self.domains)
        after._by_name, after._views = self._by_name, self._views
        after._sums = dict(self._sums)
        for name, column in block.classes.items():
            before = self.block.classes[name]
            if before is not column:
                after.stamps[block.tree_of[column.rows[column.used != before.used]]] = next(stamps)
        after._forget(self, np.flatnonzero(after.stamps != self.stamps))
        return after

    def _forget(self, before: HostColumns, changed: NDArray[np.intp]) -> None:
        """Take over what is remembered of hosts that have not changed: threads may still ask about those before."""
        gone = set(changed.tolist())
        for function, reasons in list(before._reasons.items()):
            self._reasons[function] = {host: reason for host, reason in list(reasons.items()) if host not in gone}
        for function, answers in list(before._answers.items()):
            kept = self._answers[function] = answers.copy()
            kept[changed] = np.nan


class HostTable:
    """The hosts of a forest, followed from one state to the next. May be shared between threads.

    Args:
        cell_of: Root provider → name of its cell, None without one.
        domain_of: Root provider → its failure domain, None where none is known.
    """

    def __init__(self, cell_of: Callable[[Provider], str | None], domain_of: Callable[[Provider], str | None]) -> None:
        self._cell_of = cell_of
        self._domain_of = domain_of
        self._asked_each_time = is_uncached(cell_of) or is_uncached(domain_of)
        self._stamps = itertools.count(1)
        self._known: tuple[tuple[Block, ...], list[HostColumns]] = ((), [])
        self._next_number = itertools.count()
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str | None] = {NOWHERE: None}
        self._of_root: dict[str, tuple[Provider, int, int]] = {}

    def of(self, columns: Columns) -> list[HostColumns]:
        """The hosts of each block of *columns*."""
        blocks, known = self._known  # one read: another thread may replace both
        if blocks is columns.blocks and not self._asked_each_time:
            return known
        if len(blocks) == len(columns.blocks):
            aligned: Sequence[HostColumns | None] = known
        else:
            by_providers = {id(hosts.block.providers): hosts for hosts in known}
            aligned = [by_providers.get(id(block.providers)) for block in columns.blocks]
        found = [self._of_block(block, before) for block, before in zip(columns.blocks, aligned, strict=True)]
        self._known = (columns.blocks, found)
        if len(self._of_root) > 1000 + 2 * sum(hosts.size for hosts in found):
            self._of_root = {}  # mostly roots that are gone
        return found

    def _of_block(self, block: Block, before: HostColumns | None) -> HostColumns:
        if before is not None and not self._asked_each_time:
            if before.block is block:
                return before
            if before.block.providers is block.providers:
                return before.with_use_of(block, self._stamps)
        roots = [block.providers[position] for position in block.starts[:-1].tolist()]
        places = [self._places(root) for root in roots]
        cells = np.fromiter((cell for cell, _ in places), dtype=np.int32, count=len(roots))
        domains = np.fromiter((domain for _, domain in places), dtype=np.int32, count=len(roots))
        stamps = np.full(len(roots), next(self._stamps), dtype=np.int64)
        return HostColumns(block, stamps, cells, domains)

    def _places(self, root: Provider) -> tuple[int, int]:
        known = self._of_root.get(root.uuid)
        if known is not None and known[0] is root and not self._asked_each_time:
            return known[1:]
        cell = self.number(ask_about("cell_of", self._cell_of, root))
        domain = self.number(ask_about("domain_of", self._domain_of, root))
        self._of_root[root.uuid] = (root, cell, domain)
        return cell, domain

    def number(self, name: str | None) -> int:
        """The number that stands for a cell or domain of this name."""
        if name is None:
            return NOWHERE
        number = self._numbers.get(name)
        if number is None:
            fresh = next(self._next_number)
            self._names[fresh] = name  # before anybody can see the number
            number = self._numbers.setdefault(name, fresh)
        return number

    def name(self, number: int) -> str | None:
        """The cell or domain of this number."""
        return self._names[number]


class JoinedHosts:
    """The hosts of all blocks that match a request, and what was worked out for them: an array for each key.

    Args:
        blocks: The hosts of each block, and which of them match.
        before: The same for an equal request before: what it has of blocks that are still the same is taken over.
    """

    def __init__(self, blocks: Sequence[tuple[HostColumns, BlockMatch]], before: JoinedHosts | None) -> None:
        self.blocks = blocks
        self.firsts: NDArray[np.int64] = np.cumsum([0, *(len(match.trees) for _, match in blocks)])
        self.size: int = int(self.firsts[-1])
        self._arrays: dict[Any, NDArray[Any]] = {}
        self._before = before if before is not None and len(before.blocks) == len(blocks) else None
        self._changed = [] if self._before is None else _differences(blocks, self._before.blocks)

    def array(self, key: Any, of: Callable[[HostColumns], NDArray[Any]], kind: DTypeLike) -> NDArray[Any]:
        """One array over all from one over each block. With the key None it is not kept."""
        array = self._arrays.get(key)
        if array is None:
            array = self._brought_up_to_date(key, of)
        if array is None:
            parts = [of(hosts)[match.trees] for hosts, match in self.blocks]
            array = np.concatenate(parts) if parts else np.empty(0, dtype=kind)
        if key is not None:
            self._arrays[key] = array
        return array

    def _brought_up_to_date(self, key: Any, of: Callable[[HostColumns], NDArray[Any]]) -> NDArray[Any] | None:
        before = self._before
        old = None if before is None else before._arrays.get(key)  # noqa: SLF001 - of its own class
        if before is None or old is None or not self._changed:
            return old
        parts, done = [], 0
        for at in self._changed:
            hosts, match = self.blocks[at]
            parts += [old[done : before.firsts[at]], of(hosts)[match.trees]]
            done = before.firsts[at + 1]
        return np.concatenate([*parts, old[done:]])

    def let_go(self) -> None:
        """Take nothing over from before any more."""
        self._before = None

    def where(self, number: int) -> tuple[HostColumns, BlockMatch, int]:
        """The block that the host of this number lies in, what matches there, and its place there."""
        at = int(self.firsts.searchsorted(number, side="right")) - 1
        hosts, match = self.blocks[at]
        return hosts, match, int(match.trees[number - self.firsts[at]])

    def numbers_of(self, root: str) -> Iterator[int]:
        """The number of the host with this root provider, if it matches."""
        for (hosts, match), first in zip(self.blocks, self.firsts.tolist(), strict=False):
            for place in hosts.places([root]):
                found = int(match.trees.searchsorted(place))
                if found < len(match.trees) and match.trees[found] == place:
                    yield first + found


def _differences(
    blocks: Sequence[tuple[HostColumns, BlockMatch]], before: Sequence[tuple[HostColumns, BlockMatch]]
) -> list[int]:
    """Where the two are not the same."""
    return [
        at
        for at, ((hosts, match), (old_hosts, old_match)) in enumerate(zip(blocks, before, strict=True))
        if hosts is not old_hosts or match is not old_match
    ]


class Vectorised(Protocol):
    """A filter or weigher that answers for many hosts at once, exactly as it would for each."""

    def over(self, hosts: HostColumns) -> NDArray[Any]:
        """For each of *hosts*: whether it passes (a filter, bool), or its weight (a weigher, float64)."""


def over_of(function: object) -> Callable[[HostColumns], NDArray[Any]] | None:
    """How a filter or weigher answers for many hosts at once; None when it must be asked about each."""
    return cast("Callable[[HostColumns], NDArray[Any]] | None", getattr(function, "over", None))
