"""HostSelector: a claimed primary and unclaimed alternates in its cell, for each instance of a request.

The tree proposes, filters and weighers choose, the ledger decides. All the primaries of a request are claimed in one
transaction, so there is never a part of a request to clean up; a claim that is lost to somebody else tells what is left
on that provider, and the plan is made again with it.

One module: most of it is the descriptions of three calls; all plan alike, and two claim and try again.
"""

from __future__ import annotations

import logging
import random
import uuid as uuids
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import tenacity

from cloudcore._failpoints import failpoint
from cloudcore._values import normalise_uuid, require_integer, require_mapping, require_seconds
from cloudcore.database import Operation
from cloudcore.errors import (
    CapacityExceeded,
    CloudcoreError,
    GroupViolation,
    InvalidCallable,
    InvalidRequest,
    InventoryNotFound,
    NoValidHost,
    ProviderNotFound,
    UnitViolation,
)
from cloudcore.observability import event, observed
from cloudcore.placement.forest.names import SHARES_VIA_AGGREGATE
from cloudcore.placement.hosts.callables import raise_it, read_filters, read_weighers, require_callable
from cloudcore.placement.hosts.host_columns import HostTable
from cloudcore.placement.hosts.host_pool import PoolOptions
from cloudcore.placement.hosts.planner import HostRequest, Planner, SelectionReport
from cloudcore.placement.hosts.selection import HostChoice, Selection
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.claim_statements import NewClaim
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.ledger.writes import NEW, Target, missing
from cloudcore.placement.requests.requests import read_request
from cloudcore.placement.rules.claims import Owner, normalise_allocations
from cloudcore.placement.rules.groups import HostGroup
from cloudcore.placement.rules.moves import MoveKind, move_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cloudcore.observability import Observer
    from cloudcore.placement.allocation_ledger import AllocationLedger
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.hosts.candidate_hosts import Pick
    from cloudcore.placement.hosts.host_view import Filter, Weigher
    from cloudcore.placement.hosts.planner import Plan
    from cloudcore.placement.ledger.queries import ConsumerState
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.tree import PlacementTree

__all__ = ["HostSelector"]

T = TypeVar("T")


def _told(selections: tuple[Selection, ...]) -> dict[str, Any]:
    return {"selected": len(selections), "host": selections[0].primary.name if selections else None}


MAX_INSTANCES = 10_000
"""Instances of one request: their primaries are claimed in one transaction."""

_LOST = (CapacityExceeded, UnitViolation, ProviderNotFound, InventoryNotFound, GroupViolation)


class HostSelector:
    """Chooses hosts for instances. May be shared between threads.

    Args:
        tree: Where to search; a bound tree is refreshed before each search.
        ledger: Where to claim.
        cell_of: Root provider → name of its cell: a callable, or a mapping by uuid or name. A host without a cell is
            not used. Alternates stay in the primary's cell; in a cloud of one, any name does: ``lambda root: "cell1"``.
        filters: Each takes a :class:`HostView` and returns None, or why the host is refused.
        weighers: (multiplier, weigher) pairs; a weigher takes a HostView and returns a number, higher is better.
        domain_of: Root provider → failure domain, such as the aggregate of its rack: alternates are spread over them.
        metadata_of: Root provider → whatever filters and weighers want to know of it; remembered until the host changes
            unless it is :func:`~cloudcore.placement.hosts.uncached`.
        max_hosts: How many hosts filters and weighers are asked about for one request, beside those whose answers are
            remembered; those that look at all hosts at once (all of :mod:`cloudcore.placement.hosts` but
            ``metadata_equals``) do not count.
        subset: How many of the best hosts each pick is drawn from; more than 1 keeps schedulers that work side by side
            apart.
        seed: Where to begin among hosts of equal weight: schedulers that work side by side, each with another seed, do
            not all choose the same host. None begins at the first.
        on_bad_weigher: What to do when a weigher raises, or gives no finite number: ``"raise"``
            :class:`~cloudcore.errors.InvalidCallable`, or ``"leave_out"`` that weigher for this request, with a warning
            in the log.
        attempts: Plans that are made, each after a lost claim, before the request is given up.
        rng: For *subset*.
        id_factory: Makes uuids of instances.
        observer: Is told of every call; see :mod:`cloudcore.observability`.
    """

    def __init__(
        self,
        tree: PlacementTree,
        ledger: AllocationLedger,
        *,
        cell_of: Callable[[Provider], str | None] | Mapping[str, str],
        filters: Sequence[Filter] = (),
        weighers: Sequence[tuple[float, Weigher]] = (),
        domain_of: Callable[[Provider], str | None] = lambda _: None,
        metadata_of: Callable[[Provider], Mapping[str, Any]] = lambda _: {},
        max_hosts: int = 1000,
        subset: int = 1,
        seed: int | None = None,
        on_bad_weigher: Literal["raise", "leave_out"] = "raise",
        attempts: int = 10,
        rng: random.Random | None = None,
        id_factory: Callable[[], str] = lambda: str(uuids.uuid4()),
        observer: Observer | None = None,
    ) -> None:
        self.observer = observer
        self.tree = tree
        self.ledger = ledger
        self._attempts = require_integer(attempts, "attempts", minimum=1)
        if on_bad_weigher not in ("raise", "leave_out"):
            raise InvalidRequest(
                f"on_bad_weigher: expected raise or leave_out, got {on_bad_weigher!r}", field="on_bad_weigher"
            )
        require_callable(domain_of, "domain_of")
        require_callable(metadata_of, "metadata_of")
        cells = cell_of if callable(cell_of) else _looked_up(cell_of)
        self._planner = Planner(
            tree=tree,
            filters=read_filters(filters),
            cell_of=cells,
            options=PoolOptions(
                table=HostTable(cells, domain_of),
                weighers=read_weighers(weighers),
                metadata_of=metadata_of,
                max_hosts=require_integer(max_hosts, "max_hosts", minimum=1),
                bad_weigher=_warn if on_bad_weigher == "leave_out" else raise_it,
            ),
            subset=require_integer(subset, "subset", minimum=1),
            choose=(rng or random.Random()).randrange,
            seed=(lambda _: 0) if seed is None else random.Random(seed).randrange,
        )
        self._id_factory = id_factory

    # ---- booting

    @observed(
        "placement.select",
        "count",
        "alternates",
        "project_id",
        "user_id",
        "operation_id",
        level=logging.INFO,
        answer=_told,
    )
    def select(
        self,
        request: ResourceRequest | str,
        count: int = 1,
        *,
        alternates: int = 2,
        project_id: str,
        user_id: str,
        instances: Sequence[str] | None = None,
        consumer_type: str | None = "INSTANCE",
        group: HostGroup | None = None,
        partial: bool = False,
        filters: Sequence[Filter] = (),
        weighers: Sequence[tuple[float, Weigher]] = (),
        expires_in: float | None = None,
        operation_id: str | None = None,
    ) -> tuple[Selection, ...]:
        """Choose and claim a host for each of *count* instances, and give each up to *alternates* to fall back on.

        Args:
            request: What each instance needs.
            count: Number of instances, when *instances* does not name them: 10,000 at most.
            alternates: Hosts of the primary's cell to fall back on; unclaimed. Fewer is no error: the work and the
                answer grow with the hosts that there are, not with this number.
            project_id: Who pays.
            user_id: Who asked.
            instances: Uuids of the instances, 10,000 at most; made when not given.
            consumer_type: Such as ``INSTANCE``.
            group: The group that all of them belong to.
            partial: Take as many as fit (at least one); else all or nothing.
            filters: Beside those of the selector, for this request alone; what they answer is not remembered.
            weighers: Likewise, (multiplier, weigher) pairs: such as one that knows the project or the instance.
            expires_in: Seconds after which claims lapse that nobody settled (``ledger.settle(instance)``), by the
                database's clock: what never becomes an instance is given back.
            operation_id: To repeat the call safely: a repeat returns the same selections.

        Returns:
            One selection for each instance that has a host, in their order.

        Raises:
            NoValidHost: Not enough hosts; ``report`` is a :class:`SelectionReport`. Nothing is claimed.
            InvalidRequest: An argument is malformed.
            AlreadyExists: An instance holds something already.
        """
        owner = Owner.of(project_id, user_id, consumer_type)
        asked = attrs.evolve(
            self._asked(request, count, instances, alternates, owner, group, filters, weighers),
            partial=partial,
            expires_in=require_seconds(expires_in, "expires_in", InvalidRequest),
        )
        arguments = {
            "request": asked.request.to_query(),
            "instances": list(asked.instances) if instances is not None else len(asked.instances),
            "alternates": alternates,
            "owner": attrs.asdict(asked.owner),
            "group": _described(group),
            "partial": partial,
            "expires_in": asked.expires_in,
        }
        operation = Operation.of("selector.select", arguments, operation_id)
        return self._once(
            operation, operation_id, lambda: self._try(asked, lambda plan: self._claim(operation, asked, plan))
        )

    @observed("placement.preview", "count", "alternates")
    def preview(
        self,
        request: ResourceRequest | str,
        count: int = 1,
        *,
        alternates: int = 2,
        group: HostGroup | None = None,
        partial: bool = False,
        filters: Sequence[Filter] = (),
        weighers: Sequence[tuple[float, Weigher]] = (),
    ) -> tuple[tuple[HostChoice, ...], ...]:
        """See which hosts :meth:`select` would choose now: for each instance its primary, then its alternates.

        A look that promises nothing. It refreshes the tree and ranks as ``select`` does, and claims and writes nothing,
        so another scheduler may take what it shows; and where *subset* or *seed* draw, ``select`` draws anew. The
        selector's tree may be a fork (``tree.what_if()``), to see what would be chosen if the cloud were another.

        Args:
            request: What each instance needs.
            count: Number of instances, 10,000 at most.
            alternates: As in :meth:`select`; so are *group*, *partial*, *filters* and *weighers*.
            group: The group that they would join.
            partial: Show as many as fit.
            filters: Beside those of the selector.
            weighers: Likewise.

        Raises:
            NoValidHost: ``select`` would find no host now; ``report`` says why.
            InvalidRequest: An argument is malformed.
        """
        _described(group)
        nobody = Owner(project_id="", user_id="")
        asked = self._asked(request, count, None, alternates, nobody, group, filters, weighers)
        plan = self._planner.plan(self._with_members(attrs.evolve(asked, partial=partial)), ())
        return tuple(selection.choices for selection in self._selections(asked, plan))

    # ---- moving

    @observed("placement.select_destination", "instance", "migration", "operation_id", level=logging.INFO)
    def select_destination(
        self,
        instance: str,
        migration: str,
        request: ResourceRequest | str,
        *,
        kind: MoveKind | str = "cold",
        alternates: int = 2,
        group: HostGroup | None = None,
        stay_in_cell: bool = True,
        filters: Sequence[Filter] = (),
        weighers: Sequence[tuple[float, Weigher]] = (),
        expires_in: float | None = None,
        operation_id: str | None = None,
    ) -> Selection:
        """Choose a destination for an instance and begin its move: the migration holds the source from then on.

        The host that the instance is on is not considered, as destination or alternate; use
        :meth:`AllocationLedger.begin_move` to resize in place.

        Args:
            instance: Uuid of an instance that holds a host.
            migration: Uuid of the migration.
            request: What the instance needs at its destination.
            kind: ``cold``, ``resize``, ``live`` or ``evacuation``.
            alternates: Hosts of the destination's cell to fall back on, with :func:`reschedule(migration=...)
                <cloudcore.placement.scheduling.rescheduling.reschedule>`.
            group: The group of the instance, if it is to join one; that to which it belongs is known.
            stay_in_cell: Look only at hosts of the instance's present cell.
            filters: Beside those of the selector, for this request alone; what they answer is not remembered.
            weighers: Likewise, (multiplier, weigher) pairs: such as one that knows the project or the instance.
            expires_in: Seconds after which the move reverts by itself.
            operation_id: To repeat the call safely.

        Raises:
            NoValidHost: No destination; ``report`` says why. Nothing has changed.
            ConsumerNotFound: The instance holds nothing.
            InUse: The instance is moving already.
            GenerationConflict: What the instance holds changed meanwhile; ask again.
        """
        instance = normalise_uuid(instance, "instance", InvalidRequest)
        migration = normalise_uuid(migration, "migration", InvalidRequest)
        wanted = read_request(request)
        chosen_kind = move_kind(kind, InvalidRequest)
        arguments = {
            "instance": instance,
            "migration": migration,
            "request": wanted.to_query(),
            "kind": str(chosen_kind),
            "alternates": alternates,
            "group": _described(group),
            "stay_in_cell": stay_in_cell,
            "expires_in": require_seconds(expires_in, "expires_in", InvalidRequest),
        }
        operation = Operation.of("selector.select_destination", arguments, operation_id)

        def choose() -> tuple[Selection, ...]:
            asked, state = self._asked_elsewhere(
                instance, wanted, alternates, group, filters, weighers, stay_in_cell=stay_in_cell
            )
            asked = attrs.evolve(asked, expires_in=expires_in)
            return self._try(asked, lambda plan: self._begin(operation, asked, plan, migration, chosen_kind, state))

        return self._once(operation, operation_id, choose)[0]

    def _asked_elsewhere(
        self,
        instance: str,
        request: ResourceRequest,
        alternates: int,
        group: HostGroup | None,
        filters: Sequence[Filter],
        weighers: Sequence[tuple[float, Weigher]],
        *,
        stay_in_cell: bool,
    ) -> tuple[HostRequest, ConsumerState]:
        """The request for a host that the instance is not on, and what it holds now."""
        state = self.ledger.consumer(instance)
        if state is None:
            raise missing(instance)
        self.tree.refresh()
        here = self._present(state.allocations)
        fixed: list[Filter] = [_elsewhere(here)]
        if stay_in_cell:
            cells = {self._planner.cell_of(root) for root in here}
            fixed.append(lambda host: None if host.cell in cells else f"in cell {host.cell}, not in the instance's")
        owner = Owner.of(state.project_id, state.user_id, state.consumer_type)
        group = group or self._group_of(instance)
        asked = self._asked(
            request, 1, [instance], alternates, owner, group, [*fixed, *read_filters(filters)], weighers
        )
        return attrs.evolve(asked, freed=self._pooled(state.allocations)), state

    def _group_of(self, instance: str) -> HostGroup | None:
        with self.ledger.database.read() as connection:
            session = Session(connection)
            with session.errors():
                return host_groups.group_of(session, instance)

    def _present(self, allocations: Mapping[str, Any]) -> list[Provider]:
        """The hosts of what is held; pools that other hosts share are none."""
        held = [self.tree.provider(provider) for provider in allocations if provider in self.tree]
        roots = {provider.root for provider in held if SHARES_VIA_AGGREGATE not in provider.traits}
        return [self.tree.provider(root) for root in sorted(roots)]

    def _pooled(self, allocations: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
        """What is held of pools that hosts share: a destination on the same pool needs no more of it."""
        return {
            provider: amounts
            for provider, amounts in allocations.items()
            if provider in self.tree and SHARES_VIA_AGGREGATE in self.tree.provider(provider).traits
        }

    # ---- planning

    def _asked(
        self,
        request: ResourceRequest | str,
        count: int,
        instances: Sequence[str] | None,
        alternates: int,
        owner: Owner,
        group: HostGroup | None,
        filters: Sequence[Filter],
        weighers: Sequence[tuple[float, Weigher]] = (),
    ) -> HostRequest:
        require_integer(alternates, "alternates", minimum=0, error=InvalidRequest)
        names = self._made(count) if instances is None else _named(instances)
        return HostRequest(
            request=read_request(request),
            instances=tuple(names),
            alternates=alternates,
            owner=owner,
            group=_by_uuids(group),
            filters=read_filters(filters),
            weighers=read_weighers(weighers),
        )

    def _made(self, count: int) -> list[str]:
        _require_few(require_integer(count, "count", minimum=1, error=InvalidRequest), "count")
        names = [normalise_uuid(self._id_factory(), "id_factory", InvalidRequest) for _ in range(count)]
        if len(set(names)) != len(names):
            raise InvalidRequest("id_factory: makes the same uuid twice", field="id_factory")
        return names

    def _try(self, asked: HostRequest, claim: Callable[[Plan], T]) -> T:
        """Plan and claim until a plan holds; what a refusal told counts in the next plan."""
        lost: list[CloudcoreError] = []
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_LOST),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random(0, 0.01),
        )
        try:
            for attempt in retrying:
                with attempt:
                    plan = self._planner.plan(self._with_members(asked), lost)
                    try:
                        return claim(plan)
                    except _LOST as refusal:
                        lost.append(refusal)
                        event(
                            "placement.claim.lost",
                            logging.WARNING,
                            error=type(refusal).__name__,
                            reason=str(refusal),
                            attempt=len(lost),
                        )
                        raise
        except tenacity.RetryError as error:
            report = SelectionReport(
                search=self._planner.search(asked.request).report(),
                filtered={},
                lost=tuple(self._planner.named(each) for each in lost),
            )
            raise NoValidHost(
                f"no host after {self._attempts} lost claims, the last one: {report.lost[-1]}", report=report
            ) from error
        raise AssertionError("tenacity returns or raises")

    def _with_members(self, asked: HostRequest) -> HostRequest:
        """The request with the members of its group that the database knows, those of the request aside."""
        group = asked.group
        if group is None or group.uuid is None:
            return asked
        with self.ledger.database.read() as connection:
            session = Session(connection)
            with session.errors():
                members = host_groups.count_members(session, group, without=asked.instances)
        return attrs.evolve(asked, group=attrs.evolve(group, members=dict(members)))

    # ---- claiming

    def _once(
        self, operation: Operation, operation_id: str | None, work: Callable[[], tuple[Selection, ...]]
    ) -> tuple[Selection, ...]:
        """What an earlier call with the caller's operation id selected, else *work*; an id made here is new."""
        if operation_id is None:
            return work()
        stored = self._stored(operation)
        if stored is not None:
            return stored
        try:
            return work()
        except NoValidHost:
            stored = self._stored(operation)  # the same call, made at the same time, may have had them
            if stored is None:
                raise
            return stored

    def _stored(self, operation: Operation) -> tuple[Selection, ...] | None:
        with self.ledger.database.read() as connection:
            stored = self.ledger.database.stored_operation(connection, operation)
        return None if stored is None else _read(stored.result)

    def _claim(self, operation: Operation, asked: HostRequest, plan: Plan) -> tuple[Selection, ...]:
        """Claim every primary in one transaction, and keep the selections as its result."""
        selections = self._selections(asked, plan)
        answer = [chosen.to_json() for chosen in selections]
        wanted = {chosen.instance: normalise_allocations(chosen.primary) for chosen in selections}

        def work(session: Session) -> list[str]:
            self._join(session, asked, selections)
            targets = {
                instance: Target(
                    allocations=allocations, owner=asked.owner, generation=NEW, expires_in=asked.expires_in
                )
                for instance, allocations in wanted.items()
            }
            failpoint("ledger.select.claim")
            ledger_moves.write(session, operation.id, "select", targets, history=self.ledger.history)
            return answer

        if len(wanted) > 1 or asked.group is not None:
            outcome = self.ledger.transact(operation, work)
        else:
            ((instance, allocations),) = wanted.items()
            failpoint("ledger.select.claim_one")
            outcome = self.ledger.claim_new(
                NewClaim.under(operation, instance, allocations, asked.owner, asked.expires_in, answer)
            )
        return _read(outcome.result) if outcome.repeated else selections

    def _begin(
        self,
        operation: Operation,
        asked: HostRequest,
        plan: Plan,
        migration: str,
        kind: MoveKind,
        state: ConsumerState,
    ) -> tuple[Selection, ...]:
        """Begin the move to the pick in one transaction, and keep the selection as its result."""
        selections = tuple(attrs.evolve(each, migration=migration) for each in self._selections(asked, plan))
        destination = normalise_allocations(selections[0].primary)
        beginning = ledger_moves.MoveRequest(
            migration=migration,
            instance=asked.instances[0],
            destination=destination,
            kind=kind,
            overlap="sum",
            shared=tuple(sorted(asked.freed)),  # also for alternates on the same pool
            expires_in=asked.expires_in,
            generation=state.generation,
        )

        def work(session: Session) -> list[str]:
            self._join(session, asked, selections)
            failpoint("ledger.select.begin_move")
            ledger_moves.begin(session, operation.id, beginning, history=self.ledger.history)
            return [chosen.to_json() for chosen in selections]

        outcome = self.ledger.transact(operation, work)
        return _read(outcome.result) if outcome.repeated else selections

    def _join(self, session: Session, asked: HostRequest, selections: Sequence[Selection]) -> None:
        if asked.group is None:
            return
        host_groups.lock_group(session, asked.group)
        members = host_groups.count_members(session, asked.group, without=asked.instances)
        for chosen in selections:
            host_groups.join(session, asked.group, chosen.instance, chosen.primary.root, members)

    def _selections(self, asked: HostRequest, plan: Plan) -> tuple[Selection, ...]:
        return tuple(
            Selection(
                instance=instance,
                primary=self._choice(pick),
                alternates=tuple(self._choice(card) for card in hand),
                project_id=asked.owner.project_id,
                user_id=asked.owner.user_id,
            )
            for instance, pick, hand in zip(asked.instances, plan.assignment.picks, plan.hands, strict=False)
        )

    def _choice(self, pick: Pick) -> HostChoice:
        view = pick.host.view
        return HostChoice(
            root=view.root,
            name=view.name,
            cell=view.cell,
            allocations=pick.option.allocations,
            mappings=pick.option.mappings,
            names={
                provider: self.tree.provider(provider).name
                for provider in pick.option.allocations
                if provider != view.root
            },
            generations={provider: self.tree.provider(provider).generation for provider in pick.option.allocations},
            weight=pick.weight,
            rank=pick.rank,
        )


def _named(instances: Any) -> list[str]:
    """The uuids of the caller's instances."""
    if isinstance(instances, str) or not isinstance(instances, Iterable):
        what = f"the text {instances!r}: write [{instances!r}]" if isinstance(instances, str) else instances
        raise InvalidRequest(
            f"instances: expected a list of uuids, got {what}",
            field="instances",
            value=instances,
        )
    given = list(islice(instances, MAX_INSTANCES + 1))
    _require_few(len(given), "instances")
    names = [normalise_uuid(name, "instances", InvalidRequest) for name in given]
    if not names or len(set(names)) != len(names):
        raise InvalidRequest("instances: name at least one, and each once", field="instances", value=instances)
    return names


def _require_few(number: int, field: str) -> None:
    if number > MAX_INSTANCES:
        raise InvalidRequest(
            f"{field}: more than {MAX_INSTANCES} instances in one request, whose primaries are claimed in one "
            "transaction: make several requests of it",
            field=field,
            value=number,
        )


def _looked_up(cells: Any) -> Callable[[Provider], str | None]:
    """By uuid, else by name; a host that was found by its name keeps its cell when it is renamed."""
    if not isinstance(cells, Mapping):
        expected = "expected a callable that takes a root provider, or a mapping of hosts to cells"
        raise InvalidRequest(f"cell_of: {expected}, got {cells!r}", field="cell_of", value=cells)
    known: dict[str, str] = {}

    def cell_of(root: Provider) -> str | None:
        cell = cells.get(root.uuid) or cells.get(root.name) or known.get(root.uuid)
        if cell is not None:
            known[root.uuid] = cell
        return cell

    return cell_of


def _warn(error: InvalidCallable) -> None:
    event("placement.weigher.left_out", logging.WARNING, function=error.function, host=error.host, reason=str(error))


def _by_uuids(group: HostGroup | None) -> HostGroup | None:
    """The group with its members counted by the normal uuids of roots: by another form none would be found there."""
    _described(group)
    if group is None or not group.members:
        return group
    members: Counter[str] = Counter()
    for root, count in require_mapping(group.members, "members", InvalidRequest).items():
        number = require_integer(count, f"members[{root!r}]", minimum=0, error=InvalidRequest)
        members[normalise_uuid(root, "members", InvalidRequest)] += number
    return attrs.evolve(group, members=members)


def _described(group: Any) -> list[Any] | None:
    if group is not None and not isinstance(group, HostGroup):
        expected = "expected a HostGroup, such as HostGroup(policy='anti-affinity')"
        raise InvalidRequest(f"group: {expected}, got {group!r}", field="group", value=group)
    return None if group is None else [group.uuid, str(group.policy), group.max_per_host]


def _elsewhere(here: Collection[Provider]) -> Filter:
    roots = {root.uuid for root in here}
    return lambda host: "the instance is on it" if host.root in roots else None


def _read(result: Sequence[str]) -> tuple[Selection, ...]:
    return tuple(Selection.from_json(text) for text in result)
