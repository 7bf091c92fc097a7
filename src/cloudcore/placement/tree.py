"""PlacementTree: the forest of resource providers, with its edits, its usage, and the search.

The façade of the tree: most of its lines are the descriptions of its methods, which hand on to the wings.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from cloudcore._values import normalise_uuid, require_integer, require_text
from cloudcore.errors import (
    AlreadyExists,
    ConsumerNotFound,
    InvalidAllocation,
    InvalidArgument,
    InvalidProvider,
    InvalidRequest,
    InvariantViolated,
    ProviderNotFound,
    UnsupportedFeature,
)
from cloudcore.notebook import counted
from cloudcore.observability import observed
from cloudcore.placement.forest.forest import read_usage
from cloudcore.placement.forest.usage_checks import read_allocations
from cloudcore.placement.forest.values import Provider, keys_of
from cloudcore.placement.ledger.reader import PinnedQueries
from cloudcore.placement.requests.groups import RequestGroup
from cloudcore.placement.requests.requests import ResourceRequest
from cloudcore.placement.search.candidates import Candidate
from cloudcore.placement.search.compiled import compile_request
from cloudcore.placement.search.matching import Matcher
from cloudcore.placement.search.ordering import read_preferred, read_weighers, weighed_classes
from cloudcore.placement.search.providers import providers_that_could
from cloudcore.placement.search.search import Search, SearchOptions
from cloudcore.placement.storage.name_register import NameRegister
from cloudcore.placement.storage.store import read_holdings
from cloudcore.placement.tree_edits import TreeEdits, key_of
from cloudcore.placement.tree_state import TreeState, TreeStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import networkx as nx
    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.database import Database
    from cloudcore.notebook import Table
    from cloudcore.observability import Observer
    from cloudcore.placement.search.ordering import OrderBy
    from cloudcore.placement.storage.generations import Generations
    from cloudcore.placement.storage.placement_service import Session
    from cloudcore.placement.storage.store import ProviderTimes

__all__ = ["PlacementTree", "Snapshot"]


@attrs.frozen(kw_only=True)
class Snapshot:
    """Providers and ledger at one moment.

    Attributes:
        tree: A tree of its own, in memory, with what is in use.
        ledger: What the ledger answers for that moment.
    """

    tree: PlacementTree
    ledger: PinnedQueries


class PlacementTree(TreeEdits):
    """The forest of resource providers in memory: edit it, search it, ask it why not, look at it.

    ``PlacementTree()`` needs no database. :meth:`open` gives one that is bound to a database: it writes edits through
    and follows other writers with :meth:`refresh`.

    May be shared between threads. Every edit is checked before it has any effect, and takes effect as a whole: a search
    works on the state that it began with, and never sees half an edit. Wherever a provider is meant, its uuid or its
    name is taken.

    Args:
        uuid_factory: Makes the uuid of a provider that is added without one.
        observer: Is told of edits, refreshes and searches; see :mod:`cloudcore.observability`.
        strict: Refuse custom classes and traits, in edits, requests and what orders their answers, that were not added
            to :attr:`names` before; a misspelt one is then no longer answered with an empty result.
    """

    def __init__(
        self,
        *,
        uuid_factory: Callable[[], str] = lambda: str(uuids.uuid4()),
        observer: Observer | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(uuid_factory, observer, strict=strict)
        self._consumers: dict[str, dict[str, dict[str, int]]] = {}

    # --- looking -----------------------------------------------------------------------------------------------------

    def provider(self, provider: str | Provider) -> Provider:
        """Return the provider of this uuid or name as it is now.

        Raises:
            ProviderNotFound: There is none.
        """
        with self._state.lock:
            return self._state.forest.find(key_of(provider))

    def by_uuid(self, uuid: str) -> Provider:
        """Return the provider of this uuid as it is now; a name is not taken, even if it looks like a uuid.

        Raises:
            InvalidProvider: *uuid* is not the text of a uuid.
            ProviderNotFound: There is none.
        """
        key = normalise_uuid(uuid, "provider", InvalidProvider)
        with self._state.lock:
            found = self._state.forest.providers.get(key)
        if found is None:
            raise ProviderNotFound(f"no provider has the uuid {key}", identifier=key)
        return found

    def __getitem__(self, provider: str) -> Provider:
        return self.provider(provider)

    def __contains__(self, provider: object) -> bool:
        if not isinstance(provider, str | Provider):
            return False
        with self._state.lock:
            try:
                self._state.forest.find(key_of(provider))
            except LookupError:
                return False
            return True

    def __len__(self) -> int:
        return len(self._state.forest.providers)

    def __iter__(self) -> Iterator[Provider]:
        """All providers, tree after tree, each in depth-first order, as they are now."""
        with self._state.lock:
            found = [
                provider for root in self._state.forest.roots.values() for provider in self._state.forest.subtree(root)
            ]
        return iter(found)

    def roots(self) -> list[Provider]:
        """The roots, in order."""
        with self._state.lock:
            return [self._state.forest.providers[uuid] for uuid in self._state.forest.roots.values()]

    def children(self, provider: str | Provider) -> list[Provider]:
        """The children, in order.

        Raises:
            ProviderNotFound: It is not there.
        """
        with self._state.lock:
            found = self._state.forest.find(key_of(provider))
            return [self._state.forest.providers[uuid] for uuid in self._state.forest.children(found.uuid)]

    def subtree(self, provider: str | Provider) -> list[Provider]:
        """The provider and all below it, parents first.

        Raises:
            ProviderNotFound: It is not there.
        """
        with self._state.lock:
            return list(self._state.forest.subtree(self._state.forest.find(key_of(provider)).uuid))

    def ancestors(self, provider: str | Provider) -> list[Provider]:
        """The parent, its parent, and so on up to the root.

        Raises:
            ProviderNotFound: It is not there.
        """
        with self._state.lock:
            return list(self._state.forest.ancestors(self._state.forest.find(key_of(provider)).uuid))

    def find(
        self, group: RequestGroup | Mapping[str, int] | None = None, *, name: str | None = None, uuid: str | None = None
    ) -> list[Provider]:
        """The providers that meet all that is given, in the order of the forest: ``GET /resource_providers``.

        Args:
            group: What a provider could give by itself now, with the conditions of a suffixed group: amounts by the
                rules of the search, traits and aggregates of the provider itself, ``in_tree``.
            name: Its name.
            uuid: Its uuid.

        Raises:
            InvalidRequest: The group is malformed, or a strict tree does not know a name in it.
            InvalidProvider: *uuid* is not the text of a uuid, or *name* is no text.
        """
        if name is not None and not isinstance(name, str):
            raise InvalidProvider(f"name: expected text, got {name!r}", field="name", value=name)
        wanted = group if isinstance(group, RequestGroup) else RequestGroup(group or {})
        if self._strict:
            self.names.require_known({"": wanted})
        key = None if uuid is None else normalise_uuid(uuid, "uuid", InvalidProvider)
        with self._state.lock:
            columns, forest = self._state.snapshot(), self._state.forest
            asked = [] if key is None else [key]
            asked += [] if name is None else [forest.by_name.get(name, "")]
            beside = [] if wanted.in_tree is None else [wanted.in_tree]
            if not forest.providers.keys() >= {*asked, *beside}:
                return []
            roots = {forest.providers[forest.providers[each].root].number for each in (*asked, *beside)}
        if len(roots) > 1 or len(set(asked)) > 1:
            return []
        found = providers_that_could(columns, wanted, next(iter(roots), None))
        return [provider for provider in found if not asked or provider.uuid == asked[0]]

    def generations(self, providers: Iterable[str | Provider]) -> dict[str, int]:
        """Uuid → generation, as clients are to see it: with ``generations="placement"`` one look at the database.

        Raises:
            ProviderNotFound: One of them is not there.
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The database does not answer.
        """
        found = [self.provider(each) for each in providers]
        own = {provider.uuid: provider.generation for provider in found}
        counted = None if self._binding is None else self._binding.generations(own)
        return own if counted is None else {**own, **counted}

    def times(self, providers: Iterable[str | Provider]) -> dict[str, ProviderTimes]:
        """Uuid → when it was added and when it was edited last, in a bound tree: one look at the database.

        Raises:
            ProviderNotFound: One of them is not there.
            UnsupportedFeature: The tree is not bound to a database.
        """
        wanted = [self.provider(each).uuid for each in providers]
        if self._binding is None:
            raise UnsupportedFeature("a tree in memory keeps no times", needed="a bound tree", available="in memory")
        found = self._binding.times(wanted)
        for uuid in wanted:
            if uuid not in found:
                raise ProviderNotFound(f"provider {uuid} is gone since the last refresh", identifier=uuid)
        return found

    def usage(self, provider: str | Provider) -> dict[str, int]:
        """Resource class → units in use, zeros included, for every class that the provider has.

        Raises:
            ProviderNotFound: It is not there.
        """
        with self._state.lock:
            found = self._state.forest.find(key_of(provider))
            used = self._state.forest.used(found.uuid)
            return {name: used.get(name, 0) for name in found.inventories}

    # --- searching ---------------------------------------------------------------------------------------------------

    def candidates(
        self,
        request: ResourceRequest | str | Mapping[str, Any],
        *,
        order_by: OrderBy | Sequence[OrderBy] | None = None,
        preferred: Mapping[str, float] | Sequence[str] | None = None,
        within: Collection[str | Provider] | Callable[[Provider], bool] | None = None,
        distinct: Literal["mappings", "physical"] = "mappings",
        hosts_first: bool = False,
        seed: int | None = None,
        max_steps_per_host: int = 10_000,
        max_steps: int = 1_000_000,
    ) -> Search:
        """Search for what can hold *request*; the result is found while it is iterated over.

        Args:
            request: A request, or a query in Placement's language, or groups by suffix.
            order_by: Weighers, one or a list of which the first decides: ``"pack"``, ``"spread"``, resource class →
                weight of what is free, or a callable that scores a :class:`Host`. Highest first. Without it hosts come
                in the order of the forest, and the search ends as soon as it has enough.
            preferred: Traits (→ weight) that a host should have if one does.
            within: The roots to look at (a cell, say): uuids or names, or a callable that tells of a root.
            distinct: ``"mappings"``: every candidate that Placement would list. ``"physical"``: of those with the same
                allocations only the first, so that N equal devices do not give N! answers.
            hosts_first: One candidate of every host before the second of any.
            seed: Start elsewhere in the forest, at a place that depends on the seed alone.
            max_steps_per_host: Groups that compete for the same providers make a puzzle: how many steps (one provider
                tried for one group; some microseconds) to spend on one host until its next answer. A host that needs
                more is left: ``undecided`` of the search names it, and so does the report.
            max_steps: How many to spend on all hosts together without an answer.

        Raises:
            InvalidRequest: The request or an option is malformed; the error names the field.
        """
        if not isinstance(request, ResourceRequest):
            request = ResourceRequest.from_query(request) if isinstance(request, str) else ResourceRequest(request)
        if distinct not in ("mappings", "physical"):
            raise InvalidRequest(f"distinct: expected mappings or physical, got {distinct!r}", field="distinct")
        if seed is not None and type(seed) is not int:
            raise InvalidRequest(f"seed: expected a whole number, got {seed!r}", field="seed", value=seed)
        options = SearchOptions(
            order_by=read_weighers(order_by),
            preferred=read_preferred(preferred),
            within=self._within(within),
            distinct=distinct,
            hosts_first=hosts_first,
            seed=seed,
            max_steps_per_host=require_integer(
                max_steps_per_host, "max_steps_per_host", minimum=1, error=InvalidRequest
            ),
            max_steps=require_integer(max_steps, "max_steps", minimum=1, error=InvalidRequest),
        )
        if self._strict:
            of_root = request.root_required | request.root_forbidden
            self.names.require_known(
                request.groups, of_root, preferred=options.preferred, weighed=weighed_classes(options.order_by)
            )
        with self._state.lock:
            return Search(self._state.snapshot(), request, self._trees(request), options)

    def matcher(self, request: ResourceRequest) -> Matcher:
        """What matches *request* against the state of now: for whoever counts hosts instead of listing candidates."""
        with self._state.lock:
            return Matcher(self._state.snapshot(), compile_request(request), self._trees(request))

    def _within(
        self, within: Collection[str | Provider] | Callable[[Provider], bool] | None
    ) -> Callable[[Provider], bool] | None:
        if within is None or callable(within):
            return within
        if isinstance(within, str | bytes) or not isinstance(within, Iterable):
            raise InvalidRequest(f"within: expected a collection of roots, got {within!r}", field="within")
        try:
            wanted = {key for root in within for key in keys_of(root)}
        except InvalidArgument as error:
            raise InvalidRequest(f"within: {error}", field="within", value=within) from error
        return lambda root: root.uuid in wanted or root.name in wanted

    def _trees(self, request: ResourceRequest) -> dict[str, int | None]:
        wanted = {group.in_tree for group in request.groups.values() if group.in_tree is not None}
        providers = self._state.forest.providers
        return {uuid: providers[providers[uuid].root].number if uuid in providers else None for uuid in wanted}

    # --- usage in memory ---------------------------------------------------------------------------------------------

    def allocate(self, consumer: str, allocations: Candidate | Mapping[str, Mapping[str, int]]) -> None:
        """Note that *consumer* holds *allocations*, all or nothing: simple books for notebooks and for what-if trees.

        A tree that is bound to a database refuses: there, the ledger keeps the books.

        Raises:
            AlreadyExists: The consumer holds something already.
            InvalidAllocation, ProviderNotFound: The allocations are malformed.
            CapacityExceeded, UnitViolation: A provider cannot give them.
        """
        with self._state.lock:
            self._require_own_books()
            require_text(consumer, "consumer", error=InvalidAllocation)
            if consumer in self._consumers:
                raise AlreadyExists(
                    f"consumer {consumer} holds something already; release it first", identifier=consumer
                )
            given = allocations.allocations if isinstance(allocations, Candidate) else allocations
            wanted = read_allocations(self._state.forest, given)
            self._shift(wanted, 1)
            self._consumers[consumer] = wanted

    def release(self, consumer: str) -> None:
        """Forget what *consumer* holds.

        Raises:
            InvalidAllocation: *consumer* is no name.
            ConsumerNotFound: It holds nothing.
        """
        with self._state.lock:
            self._require_own_books()
            require_text(consumer, "consumer", error=InvalidAllocation)
            held = self._consumers.pop(consumer, None)
            if held is None:
                raise ConsumerNotFound(f"consumer {consumer} holds nothing", identifier=consumer)
            self._shift(held, -1)

    def set_usage(self, provider: str | Provider, used: Mapping[str, int]) -> None:
        """Say what is in use of a provider, without saying by whom; classes left out are not in use.

        Raises:
            ProviderNotFound: It is not there.
            InvalidArgument: An amount is negative, or the provider has no such class.
        """
        with self._state.lock:
            self._require_own_books()
            found = self._state.forest.find(key_of(provider))
            self._state.forest.set_usage(found.uuid, read_usage(found, used))

    def consumers(self) -> dict[str, dict[str, dict[str, int]]]:
        """Consumer → provider → resource class → amount, as noted by :meth:`allocate`."""
        with self._state.lock:
            return {
                consumer: {uuid: dict(amounts) for uuid, amounts in held.items()}
                for consumer, held in self._consumers.items()
            }

    def _require_own_books(self) -> None:
        if self._binding is not None:
            raise UnsupportedFeature(
                "this tree is bound to a database, where AllocationLedger keeps the books; "
                "use it, or a fork of the tree: tree.what_if()",
                needed="a tree in memory",
                available="a bound tree",
            )

    def _shift(self, allocations: Mapping[str, Mapping[str, int]], sign: int) -> None:
        for uuid, amounts in allocations.items():
            if uuid in self._state.forest.providers:
                used = dict(self._state.forest.used(uuid))
                for name, amount in amounts.items():
                    used[name] = used.get(name, 0) + sign * amount
                self._state.forest.set_usage(uuid, {name: amount for name, amount in used.items() if amount > 0})

    # --- forks, conversions, care ------------------------------------------------------------------------------------

    def what_if(self, *, consumers: bool = False) -> PlacementTree:
        """Return a tree of its own that begins as this one is now, usage included: drain it, fill it, throw it away.

        It is not bound to any database. It has a register of names of its own, which begins with those known here, and
        is strict where this tree is. Blocks of columns are shared until one side changes them; the fork itself costs a
        fraction of a microsecond for each provider.

        Args:
            consumers: Of a bound tree, whose ledger keeps the books: read who holds what too, at one moment with the
                providers, so that the fork can :meth:`release` them. Reads every allocation. A tree in memory knows its
                consumers anyway.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: With *consumers*, and of a strict tree that is bound: the
                database does not answer.
        """
        if consumers and self._binding is not None:
            with self._binding.pinned() as (state, connection):
                return self._fork(state, read_holdings(connection), connection)
        if self._strict:
            self.names.refresh()
        with self._state.lock:
            return self._fork(self._state.copy(), dict(self._consumers))

    def _fork(
        self,
        state: TreeState,
        consumers: dict[str, dict[str, dict[str, int]]],
        connection: Connection | None = None,
    ) -> PlacementTree:
        """A tree in memory on *state*, with the names that are known here or that *connection* sees."""
        fork = PlacementTree(uuid_factory=self._uuid_factory, strict=self._strict)
        fork._state, fork._consumers = state, consumers
        fork.names = self.names.forked(state.held, connection)
        return fork

    def to_networkx(self) -> nx.DiGraph[str]:
        """The forest as a graph: an edge from each parent to each child; a node has its ``provider`` and ``usage``."""
        import networkx as nx

        graph: nx.DiGraph[str] = nx.DiGraph()
        with self._state.lock:
            for provider in self:
                graph.add_node(provider.uuid, name=provider.name, provider=provider, usage=self.usage(provider))
                if provider.parent is not None:
                    graph.add_edge(provider.parent, provider.uuid)
        return graph

    def as_placement(self) -> dict[str, Any]:
        """The forest in Placement's JSON: the lists of providers, and per uuid inventories, traits, aggregates, usages.

        Each part has the form in which Placement's API answers for it; :meth:`from_placement` reads it back.
        """
        from cloudcore.placement.forest.placement_json import dump

        with self._state.lock:
            return dump(list(self), self._state.forest.usage)

    @classmethod
    def from_placement(cls, data: Mapping[str, Any]) -> Self:
        """Make a tree from what :meth:`as_placement` gives.

        Raises:
            InvalidProvider, InvalidInventory: As :meth:`load` does.
        """
        tree = cls()
        tree.load(data)
        return tree

    @classmethod
    def from_service(cls, session: Session, **options: Any) -> Self:
        """Make a tree in memory from a running Placement service.

        *session* is a keystoneauth1 session; see :mod:`cloudcore.placement.storage.placement_service`.

        Raises:
            Unavailable: The service does not answer, or not as Placement does.
            InvalidProvider, InvalidInventory: As :meth:`load` does.
        """
        from cloudcore.placement.storage.placement_service import read_placement_service

        return cls.from_placement(read_placement_service(session, **options))

    @classmethod
    def from_placement_database(cls, database: Database | str | URL | Engine) -> Self:
        """Make a tree in memory from the database of a Placement service (not cloudcore's own: see :meth:`open`).

        Raises:
            SchemaMismatch: It is no database of Placement.
            DatabaseUnavailable, DatabaseError: It does not answer.
        """
        from cloudcore.placement.storage.placement_service import read_placement_database

        return cls.from_placement(read_placement_database(database))

    @classmethod
    def open(
        cls,
        database: Database | str | URL | Engine,
        *,
        generations: Generations = "cloudcore",
        observer: Observer | None = None,
        strict: bool = False,
    ) -> Self:
        """Open the tree that is kept in *database*: see :class:`cloudcore.placement.bound.DatabaseBinding`.

        Args:
            database: A Database, an engine or a URL.
            generations: ``placement`` counts the generations of providers as Placement does, for clients that compare
                numbers: whoever writes to the database says the same, the ledger too. Then :meth:`generations` tells
                them, and a *generation* given to an edit is one of them; ``Provider.generation`` stays cloudcore's own.
            observer: As for the class.
            strict: As for the class.

        Raises:
            SchemaMismatch: The tables are not there.
            DatabaseUnavailable, DatabaseError: The database does not answer.
        """
        from cloudcore.placement.bound import DatabaseBinding

        tree = cls(observer=observer, strict=strict)
        binding = tree._binding = DatabaseBinding(database, tree._state, generations=generations)
        tree.names = NameRegister(lambda: binding.database, tree._state.held)
        return tree

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Look at providers and at the ledger as they were at one and the same moment, in a bound tree.

        The moment is that of the call, or later; this tree catches up with it. Until the end of the block a transaction
        for reading stays open: keep it short, and in one thread.

        Example:
            >>> with tree.snapshot() as seen:  # doctest: +SKIP
            ...     usage = seen.tree.usage("cn1")
            ...     holders = seen.ledger.holders(seen.tree["cn1"].uuid)

        Raises:
            UnsupportedFeature: The tree is not bound to a database.
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The database does not answer.
        """
        if self._binding is None:
            raise UnsupportedFeature("a tree in memory has no ledger", needed="a bound tree", available="one in memory")
        with self._binding.pinned() as (state, connection):
            yield Snapshot(tree=self._fork(state, {}, connection), ledger=PinnedQueries(connection))

    @observed("placement.refresh", answer=lambda count: {"providers": count})
    def refresh(self) -> int:
        """Follow other writers, in a bound tree; return how many providers were read anew. Else: nothing to follow."""
        if self._binding is None:
            return 0
        if self._strict:
            self.names.refresh()
        return self._binding.refresh()

    def status(self) -> TreeStatus:
        """How things stand, for a readiness probe: one look at the change feed, in a bound tree.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The database does not answer: not ready.
        """
        lag = 0 if self._binding is None else self._binding.lag()
        with self._state.lock:
            forest = self._state.forest
            return TreeStatus(providers=len(forest.providers), hosts=len(forest.roots), lag=lag)

    def check(self) -> None:
        """Check that the forest, its usage and its columns agree.

        Raises:
            InvariantViolated: They do not; ``findings`` lists each breach.
        """
        from cloudcore.placement.columns.integrity import column_breaches

        with self._state.lock:
            findings = [*self._state.forest.breaches(), *column_breaches(self._state.snapshot(), self._state.forest)]
        if findings:
            raise InvariantViolated(f"the tree is damaged: {findings[0]}", findings=tuple(findings))

    def close(self) -> None:
        """Let go of the database, in a bound tree. May be called twice.

        What was read stays to be looked at and searched; what would read or write the database raises Closed then, also
        where that is a Database of the caller's, which stays open.
        """
        if self._binding is not None:
            self._binding.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- views -------------------------------------------------------------------------------------------------------

    def to_svg(self, provider: str | Provider | None = None) -> str:
        """Draw the forest, or the subtree of one provider, as SVG: the same state, the same text. 200 rows at most."""
        from cloudcore.placement.views import render_svg

        return render_svg(*self._view(provider))

    def to_rich(self, provider: str | Provider | None = None) -> Any:
        """Draw the forest, or the subtree of one provider, as a ``rich.tree.Tree``. 200 rows at most.

        Raises:
            MissingExtra: rich is not installed.
        """
        from cloudcore.placement.views import render_rich

        return render_rich(*self._view(provider))

    def _view(self, provider: str | Provider | None = None) -> tuple[Any, int, str]:
        from cloudcore.placement.views import ROWS, rows_of

        with self._state.lock:
            shown = list(self) if provider is None else self.subtree(provider)
            rows = rows_of(shown, self._state.forest.usage)
        title = counted(len(shown), "provider")
        title = title if provider is None else f"{shown[0].name}: {title}"
        return rows, max(0, len(shown) - ROWS), title

    def to_table(self) -> Table:
        """What is there and what is in use, as they are now: one row for each provider and resource class."""
        from cloudcore.placement.views import usage_table

        with self._state.lock:
            providers, usage = list(self), self._state.forest.usage
            return usage_table(providers, {root.uuid: root.name for root in self.roots()}, usage)

    def _repr_html_(self) -> str:
        from cloudcore.placement.views import render_html

        return render_html(*self._view())

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __rich__(self) -> Any:
        return self.to_rich()

    def __repr__(self) -> str:
        forest, bound = self._state.forest, "" if self._binding is None else ", bound to a database"
        found = f"{counted(len(forest.providers), 'provider')} in {counted(len(forest.roots), 'tree')}"
        return f"<{type(self).__name__}: {found}{bound}>"
