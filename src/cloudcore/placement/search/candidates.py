"""One answer of the search: which provider gives what, and for which group. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore.notebook import html_of, table
from cloudcore.placement.search.ordering import Host, host_of

if TYPE_CHECKING:
    from cloudcore.placement.columns.blocks import Block, Columns
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.search.compiled import CompiledRequest
    from cloudcore.placement.search.one_tree import OneTree

__all__ = ["Candidate"]


class Candidate:
    """A set of allocations that would meet the request, as far as the searched state of the forest tells.

    It is a hint, not a hold: the ledger decides when it is claimed. Two candidates are equal when their allocations and
    their mappings are. Immutable; may be shared between threads. Mappings that it returns are the caller's own.
    """

    __slots__ = ("_columns", "_compiled", "_handles", "_tree")

    def __init__(self, columns: Columns, compiled: CompiledRequest, tree: OneTree, handles: tuple[int, ...]) -> None:
        self._columns = columns
        self._compiled = compiled
        self._tree = tree
        self._handles = handles

    @property
    def root(self) -> str:
        """The uuid of the root of the tree that anchors the candidate: the host."""
        return self._tree.root.uuid

    @property
    def host(self) -> Provider:
        """The root provider as it was when the search began."""
        return self._tree.root

    @property
    def allocations(self) -> dict[str, dict[str, int]]:
        """Provider uuid → resource class → amount, summed over the groups."""
        allocations: dict[str, dict[str, int]] = {}
        provider = self._tree.provider
        for slot, handle in zip(self._compiled.slots, self._handles, strict=True):
            if slot.resources:
                uuid = provider(handle).uuid
                amounts = allocations.get(uuid)
                if amounts is None:
                    allocations[uuid] = dict(slot.resources)
                else:
                    for name, amount in slot.resources:
                        amounts[name] = amounts.get(name, 0) + amount
        return allocations

    @property
    def mappings(self) -> dict[str, tuple[str, ...]]:
        """Suffix → uuids of the providers that give something to that group; one for every suffixed group."""
        mappings: dict[str, tuple[str, ...]] = {}
        provider = self._tree.provider
        for slot, handle in zip(self._compiled.slots, self._handles, strict=True):
            uuid = provider(handle).uuid
            before = mappings.get(slot.suffix)
            if before is None:
                mappings[slot.suffix] = (uuid,)
            elif uuid not in before:
                mappings[slot.suffix] = (*before, uuid)
        return mappings

    @property
    def providers(self) -> tuple[Provider, ...]:
        """The providers that are used or mapped, each once, as they were when the search began."""
        return tuple(
            {self._tree.provider(handle).uuid: self._tree.provider(handle) for handle in self._handles}.values()
        )

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Placement's provider summaries: every provider of every tree that gives something, with capacity and use."""
        summaries: dict[str, dict[str, Any]] = {}
        used = self.allocations
        for provider in self.providers:
            if provider.uuid in used:
                for block, tree in self._where(provider):
                    summaries.update(_summarise(block, tree))
        return summaries

    def _where(self, provider: Provider) -> list[tuple[Block, int]]:
        if provider.root == self.root:
            return [(self._tree.block, self._tree.tree)]
        sharing = self._columns.sharing
        if sharing is None:
            return []
        found = self._columns.locate(sharing.root_numbers[sharing.index[provider.uuid]])
        return [] if found is None else [found]

    def as_placement(self) -> dict[str, Any]:
        """The candidate as an allocation request of Placement's JSON."""
        return {
            "allocations": {uuid: {"resources": amounts} for uuid, amounts in self.allocations.items()},
            "mappings": {suffix: list(uuids) for suffix, uuids in self.mappings.items()},
        }

    def as_host(self) -> Host:
        """The host as weighers see it."""
        return host_of(self._tree.block, self._tree.tree)

    def _table_row_(self) -> dict[str, Any]:
        names = {provider.uuid: provider.name for provider in self.providers}
        return {
            "host": self.host.name,
            "allocations": {names[uuid]: amounts for uuid, amounts in self.allocations.items()},
            "mappings": {suffix: [names[uuid] for uuid in uuids] for suffix, uuids in self.mappings.items() if suffix},
        }

    def _repr_html_(self) -> str:
        return html_of(table([self], title="Candidate"))

    def _identity(self) -> tuple[frozenset[tuple[str, str, int]], frozenset[tuple[str, frozenset[str]]]]:
        allocations = frozenset((u, c, a) for u, amounts in self.allocations.items() for c, a in amounts.items())
        return allocations, frozenset((suffix, frozenset(uuids)) for suffix, uuids in self.mappings.items())

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Candidate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        names = {provider.uuid: provider.name for provider in self.providers}
        parts = [
            f"{names[uuid]}: " + ", ".join(f"{amount} {name}" for name, amount in amounts.items())
            for uuid, amounts in self.allocations.items()
        ]
        return f"<Candidate on {self.host.name}: {'; '.join(parts)}>"


def _summarise(block: Block, tree: int) -> dict[str, dict[str, Any]]:
    summaries: dict[str, dict[str, Any]] = {}
    for position in range(int(block.starts[tree]), int(block.starts[tree + 1])):
        provider = block.providers[position]
        resources = {}
        for name, inventory in provider.inventories.items():
            column = block.classes[name]
            resources[name] = {"capacity": inventory.capacity, "used": int(column.used[column.row(position)])}
        summaries[provider.uuid] = {
            "resources": resources,
            "traits": sorted(provider.traits),
            "parent_provider_uuid": provider.parent,
            "root_provider_uuid": provider.root,
        }
    return summaries
