"""Emptying hosts: a plan of moves, each feasible when its turn comes, and its execution, which may be broken off.

The plan is made on one moment of tree and ledger, on a copy: largest first, each onto the fullest host that takes it.
Nothing is claimed. What the plan cannot place may still fit in another order; it says why it found nothing.

One module, though a long one: what the plan promises its execution keeps, step for step.
"""

from __future__ import annotations

import contextlib
import json
import uuid as uuids
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from cloudcore._values import normalise_uuid, require_text
from cloudcore.database import Operation
from cloudcore.errors import (
    CapacityExceeded,
    CloudcoreError,
    ConsumerNotFound,
    FencingRequired,
    GenerationConflict,
    GroupViolation,
    InUse,
    InvalidRequest,
    InvalidTransition,
    InventoryNotFound,
    MoveNotFound,
    ProviderNotFound,
    UnitViolation,
)
from cloudcore.notebook import html_of, table
from cloudcore.placement.forest.names import SHARES_VIA_AGGREGATE
from cloudcore.placement.forest.values import Provider
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.requests.groups import RequestGroup
from cloudcore.placement.requests.requests import ResourceRequest
from cloudcore.placement.rules.claims import normalise_allocations
from cloudcore.placement.rules.moves import MoveKind, MoveState, move_kind

if TYPE_CHECKING:
    from collections import Counter

    from cloudcore.placement.allocation_ledger import AllocationLedger
    from cloudcore.placement.ledger.queries import ConsumerState
    from cloudcore.placement.ledger.session import Session
    from cloudcore.placement.rules.groups import HostGroup
    from cloudcore.placement.rules.moves import Move
    from cloudcore.placement.search.report import SearchReport
    from cloudcore.placement.tree import PlacementTree, Snapshot

__all__ = ["DrainMove", "DrainOutcome", "DrainPlan", "Stuck", "plan_drain"]

Allocations = dict[str, dict[str, int]]
RequestOf = Callable[["ConsumerState"], "ResourceRequest | None"]

_LOST = (CapacityExceeded, UnitViolation, GroupViolation, ProviderNotFound, InventoryNotFound)


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen(kw_only=True)
class DrainMove:
    """One move of a plan.

    Attributes:
        consumer: Uuid of the instance that leaves.
        generation: Of the instance when the plan was made; a later one means that somebody changed what it holds.
        migration: Uuid that the move will have.
        source: Name of the host that it leaves.
        destination: Name of the host that it goes to.
        allocations: What it will hold there, by provider uuid.
        root: Uuid of the destination's root provider.
        shared: Pools that it goes on using, counted once.
    """

    consumer: str
    generation: int
    migration: str
    source: str
    destination: str
    allocations: Allocations = attrs.field(converter=normalise_allocations)
    root: str
    shared: tuple[str, ...] = attrs.field(default=(), converter=_texts)


@attrs.frozen(kw_only=True)
class Stuck:
    """A consumer for which the plan has no move.

    Attributes:
        consumer: Its uuid.
        source: Name of the host that it is on.
        reason: Why, in words for an operator.
        refusals: First reason of a host → number of hosts; empty where no host was asked.
    """

    consumer: str
    source: str
    reason: str
    refusals: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class DrainOutcome:
    """What became of one move.

    Attributes:
        move: The move.
        state: ``moved``; ``failed`` (carrying it out raised; reverted); ``gone`` (the instance holds nothing any more);
            ``changed`` (it holds something else, or is moving); ``refused`` (the destination was lost to somebody).
        error: Why, where it is not ``moved``.
    """

    move: DrainMove
    state: Literal["moved", "failed", "gone", "changed", "refused"]
    error: str | None = None


@attrs.frozen(kw_only=True)
class DrainPlan:
    """Moves in the order in which each is feasible, and what cannot leave. Made by :func:`plan_drain`.

    Attributes:
        uuid: Of the plan: what it does is done once, however often it is applied.
        kind: Of every move.
        moves: In order.
        stuck: Consumers without a move.
    """

    uuid: str
    kind: MoveKind = attrs.field(converter=MoveKind)
    moves: tuple[DrainMove, ...]
    stuck: tuple[Stuck, ...]

    def _repr_html_(self) -> str:
        return html_of(
            f"{len(self.moves)} {self.kind} moves, {len(self.stuck)} stuck",
            table(self.moves, ("consumer", "source", "destination", "allocations"), title="Moves, in order"),
            table(self.stuck, title="Stuck"),
        )

    def to_json(self) -> str:
        """The plan as text, to be applied by another process, or after a crash."""
        return json.dumps(attrs.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` gives.

        Raises:
            InvalidRequest: It is no plan.
        """
        try:
            given = json.loads(text)
            given["moves"] = tuple(DrainMove(**move) for move in given["moves"])
            given["stuck"] = tuple(Stuck(**stuck) for stuck in given["stuck"])
            return cls(**given)
        except (CloudcoreError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidRequest(f"plan: no plan of a drain: {error}", field="plan", value=text) from error

    def apply(
        self,
        ledger: AllocationLedger,
        carry_out: Callable[[DrainMove, Move], object],
        *,
        proof: str | None = None,
        on_progress: Callable[[DrainOutcome, int, int], object] | None = None,
    ) -> Iterator[DrainOutcome]:
        """Do the moves one after the other; each step of the iteration is one move. Stop whenever you like.

        A move begins in the ledger, *carry_out* moves the guest and returns when it runs at the destination, and the
        move is confirmed. If *carry_out* raises, the move is reverted and the next one follows. After a crash apply the
        same plan again: moves that ended are passed over, one that had begun is given to *carry_out* once more, which
        must therefore find out how far it had come. Groups are checked again where the claim is made.

        Args:
            ledger: Where.
            carry_out: Takes the planned and the recorded move.
            proof: For an evacuation: who proved that the hosts are gone, and how. Kept in the story of each move.
            on_progress: Called after each move with its outcome, its number from 1, and the number of moves.

        Raises:
            FencingRequired: An evacuation without proof; no move was begun.
            InvalidArgument: A *proof* that is empty, or above 2,000 characters; no move was begun.
            DatabaseUnavailable, DatabaseBusy, OutcomeUnknown: Apply the plan again.
        """
        if proof is not None:
            require_text(proof, "proof", maximum=2000)
        elif self.kind is MoveKind.EVACUATION and self.moves:
            hosts = ", ".join(sorted({move.source for move in self.moves}))
            raise FencingRequired(
                f"evacuation of {hosts}: its allocations stay until it is proved gone; give proof= (who fenced it, or "
                f"saw that it has destroyed its guests)",
                host=hosts,
            )
        for number, move in enumerate(self.moves, 1):
            outcome = self._do(ledger, move, carry_out, proof)
            if on_progress is not None:
                on_progress(outcome, number, len(self.moves))
            yield outcome

    def _do(
        self,
        ledger: AllocationLedger,
        move: DrainMove,
        carry_out: Callable[[DrainMove, Move], object],
        proof: str | None,
    ) -> DrainOutcome:
        try:
            record = self._begin(ledger, move)
        except ConsumerNotFound as error:
            return DrainOutcome(move=move, state="gone", error=str(error))
        except (GenerationConflict, InUse, InvalidTransition) as error:
            return DrainOutcome(move=move, state="changed", error=str(error))
        except _LOST as error:
            return DrainOutcome(move=move, state="refused", error=str(error))
        if record.state is MoveState.CONFIRMED:
            return DrainOutcome(move=move, state="moved")
        if record.state is not MoveState.HELD:
            return DrainOutcome(move=move, state="failed", error="; ".join(record.story))
        try:
            carry_out(move, record)
        except Exception as error:
            return self._revert(ledger, move, f"{type(error).__name__}: {error}")
        try:
            ledger.confirm_move(move.migration, proof=proof)
        except InvalidTransition as error:
            return DrainOutcome(move=move, state="failed", error=str(error))
        return DrainOutcome(move=move, state="moved")

    def _begin(self, ledger: AllocationLedger, move: DrainMove) -> Move:
        asked = ledger_moves.MoveRequest(
            migration=move.migration,
            instance=move.consumer,
            destination=move.allocations,
            kind=self.kind,
            overlap="sum",
            shared=move.shared,
            expires_in=None,
            generation=move.generation,
        )
        arguments = {"move": attrs.asdict(move), "kind": str(self.kind)}
        operation = Operation.of("drain.begin", arguments, f"drain-{move.migration}")

        def work(session: Session) -> Any:
            group = host_groups.group_of(session, move.consumer)
            if group is not None:
                host_groups.lock_group(session, group)
                members = host_groups.count_members(session, group, without=[move.consumer])
                host_groups.join(session, group, move.consumer, move.root, members)
            return ledger_moves.begin(session, operation.id, asked, history=ledger.history)

        try:
            ledger.transact(operation, work)
        except InvalidTransition:  # the move is over, and its operation is pruned; or the instance's claim has lapsed
            with contextlib.suppress(MoveNotFound):
                return ledger.move(move.migration)
            raise
        return ledger.move(move.migration)

    def _revert(self, ledger: AllocationLedger, move: DrainMove, why: str) -> DrainOutcome:
        try:
            ledger.revert_move(move.migration)
        except CloudcoreError as error:
            why = f"{why}; and it could not be reverted: {error}"
        return DrainOutcome(move=move, state="failed", error=why)


# --- planning --------------------------------------------------------------------------------------------------------


def plan_drain(
    tree: PlacementTree,
    hosts: Collection[str | Provider] | str | Provider,
    *,
    kind: MoveKind | str = MoveKind.LIVE,
    request_of: RequestOf = lambda _: None,
    cell_of: Callable[[Provider], str | None] | None = None,
    may_take: Callable[[Provider], bool] = lambda _: True,
    plan_uuid: str | None = None,
) -> DrainPlan:
    """Plan how everything leaves *hosts*; claim nothing.

    Args:
        tree: Bound to the database in which the ledger keeps its books; looked at in one snapshot.
        hosts: Roots (or any provider of their trees), by uuid or name; or one. None of them is a destination.
        kind: Of the moves: ``live``, ``cold`` or ``evacuation``.
        request_of: What a consumer needs at its destination; None to ask for the shape that it holds now: what it has
            of one provider from one provider, the same places below each other, and the pools that it uses.
        cell_of: Root → cell: nothing leaves its cell.
        may_take: Whether a root may be a destination (switched off, under maintenance, …).
        plan_uuid: Of the plan; made when it is not given.

    Raises:
        ProviderNotFound: A host is not there.
        UnsupportedFeature: The tree is not bound to a database.
        InvalidRequest: No host is named, or *kind* or *plan_uuid* is none.
    """
    plan_uuid = normalise_uuid(plan_uuid or str(uuids.uuid4()), "plan_uuid", InvalidRequest)
    kind = move_kind(kind, InvalidRequest)
    with tree.snapshot() as seen, seen.ledger.session() as session:
        roots = _roots(seen.tree, hosts)
        planner = _Planner(
            tree=seen.tree,
            roots=frozenset(roots),
            request_of=request_of,
            cell_of=cell_of,
            may_take=may_take,
            moving=ledger_moves.live_moves(session),
            plan_uuid=plan_uuid,
        )
        waiting: dict[str, tuple[ConsumerState, str]] = {}
        for root in roots:
            for consumer in _holders_of(seen, root):
                state = seen.ledger.consumer(consumer)
                if state is not None:
                    waiting.setdefault(consumer, (state, root))
        groups = {consumer: host_groups.group_of(session, consumer) for consumer in waiting}
        for group in groups.values():
            if group is not None and group.uuid is not None and group.uuid not in planner.members:
                planner.members[group.uuid] = host_groups.count_members(session, group)
    moves: list[DrainMove] = []
    stuck: list[Stuck] = []
    for state, root in sorted(waiting.values(), key=lambda one: (-planner.size(one[0]), one[0].consumer)):
        found = planner.place(state, root, groups[state.consumer])
        if isinstance(found, DrainMove):
            moves.append(found)
        else:
            stuck.append(found)
    return DrainPlan(uuid=plan_uuid, kind=kind, moves=tuple(moves), stuck=tuple(stuck))


def _roots(tree: PlacementTree, hosts: Collection[str | Provider] | str | Provider) -> list[str]:
    """The roots of *hosts*, each once."""
    named = (hosts,) if isinstance(hosts, str | Provider) else hosts
    if not isinstance(named, Iterable):
        raise InvalidRequest(f"hosts: expected uuids or names, got {hosts!r}", field="hosts", value=hosts)
    roots = list(dict.fromkeys(tree.provider(host).root for host in named))
    if not roots:
        raise InvalidRequest("hosts: none is named", field="hosts", value=hosts)
    return roots


def _holders_of(seen: Snapshot, root: str) -> Iterator[str]:
    """Who holds something of a host; what others hold of a pool in its tree stays there."""
    for provider in seen.tree.subtree(root):
        if SHARES_VIA_AGGREGATE not in provider.traits:
            for holder in seen.ledger.holders(provider.uuid):
                yield holder.consumer


@attrs.define(kw_only=True)
class _Planner:
    """The copy on which moves are tried, and what it depends on."""

    tree: PlacementTree
    roots: frozenset[str]
    request_of: RequestOf
    cell_of: Callable[[Provider], str | None] | None
    may_take: Callable[[Provider], bool]
    moving: Sequence[Move]
    plan_uuid: str
    members: dict[str, Counter[str]] = attrs.field(factory=dict)
    _totals: dict[str, int] = attrs.field(factory=dict)

    def size(self, state: ConsumerState) -> float:
        """The share of all capacity that a consumer takes: the largest go first."""
        if not self._totals:
            totals: dict[str, int] = defaultdict(int)
            for provider in self.tree:
                for name, inventory in provider.inventories.items():
                    totals[name] += inventory.capacity
            self._totals = totals
        amounts = [(name, n) for held in state.allocations.values() for name, n in held.items()]
        return sum(n / max(1, self._totals.get(name, 0)) for name, n in amounts)

    def place(self, state: ConsumerState, root: str, group: HostGroup | None) -> DrainMove | Stuck:
        """A move of one consumer, taken on the copy, or why there is none."""
        source = self.tree.by_uuid(root).name
        why = self._fixed(state)
        if why is not None:
            return Stuck(consumer=state.consumer, source=source, reason=why)
        pools = {p: held for p, held in state.allocations.items() if self._is_pool(p)}
        self._shift(pools, -1)  # a destination on the same pool needs no more of it
        asked = self.request_of(state)
        request = attrs.evolve(asked or self._shape(state.allocations), limit=None)
        search = self.tree.candidates(
            request, order_by="pack", hosts_first=True, within=lambda each: self._takes(each, state, root, group)
        )
        chosen = next(iter(search), None)
        if chosen is None:
            self._shift(pools, 1)
            report = search.report()
            held = {} if asked else self._held_by_suffix(state.allocations)
            return Stuck(
                consumer=state.consumer, source=source, reason=_why(report, held), refusals=dict(report.counts)
            )
        allocations = {p: dict(held) for p, held in chosen.allocations.items()}
        self._shift(allocations, 1)
        self._shift({p: held for p, held in pools.items() if p not in allocations}, 1)
        if group is not None and group.uuid is not None:
            self.members[group.uuid][chosen.root] += 1
            self.members[group.uuid][root] -= 1
        return DrainMove(
            consumer=state.consumer,
            generation=state.generation,
            migration=str(uuids.uuid5(uuids.UUID(self.plan_uuid), state.consumer)),
            source=source,
            destination=chosen.host.name,
            allocations=allocations,
            root=chosen.root,
            shared=sorted(pools.keys() & allocations.keys()),
        )

    def _fixed(self, state: ConsumerState) -> str | None:
        if state.expires_at is not None:
            return f"its claim is pending until {state.expires_at}; settle it, or let it lapse"
        for move in self.moving:
            if move.migration == state.consumer:
                return f"it is the migration of instance {move.instance}; end that move"
            if move.instance == state.consumer:
                return f"it is moving already, by migration {move.migration}"
        return None

    def _is_pool(self, provider: str) -> bool:
        return SHARES_VIA_AGGREGATE in self.tree.by_uuid(provider).traits

    def _takes(self, root: Provider, state: ConsumerState, source: str, group: HostGroup | None) -> bool:
        if root.uuid in self.roots or not self.may_take(root):
            return False
        if self.cell_of is not None and self.cell_of(root) != self.cell_of(self.tree.by_uuid(source)):
            return False
        if group is None or not group.hard or group.uuid is None:
            return True
        members = self.members[group.uuid].copy()
        members[source] -= 1  # it leaves from there
        return group.refuses(root.uuid, members) is None

    def _shape(self, allocations: Mapping[str, Mapping[str, int]]) -> ResourceRequest:
        """What is held, as a request: one group for each provider, those below each other kept so."""
        suffixes = _suffixes(allocations)
        groups = {
            suffixes[provider]: RequestGroup(held, in_tree=provider if self._is_pool(provider) else None)
            for provider, held in sorted(allocations.items())
        }
        below = [
            {suffix, suffixes[above.uuid]}
            for provider, suffix in suffixes.items()
            for above in self.tree.ancestors(provider)
            if above.uuid in suffixes and above.parent is not None
        ]
        classes = [name for provider, held in allocations.items() if not self._is_pool(provider) for name in held]
        apart = len(classes) != len(set(classes))
        return ResourceRequest(
            groups,
            group_policy="isolate" if apart else "none",
            same_subtree=below,
            root_forbidden={"COMPUTE_STATUS_DISABLED"},
        )

    def _held_by_suffix(self, allocations: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        """Suffix of a group of :meth:`_shape` → the name of the provider that it stands for."""
        return {suffix: self.tree.by_uuid(provider).name for provider, suffix in _suffixes(allocations).items()}

    def _shift(self, allocations: Mapping[str, Mapping[str, int]], sign: int) -> None:
        for provider, amounts in allocations.items():
            used = self.tree.usage(provider)
            for name, amount in amounts.items():
                used[name] = max(0, used.get(name, 0) + sign * amount)
            self.tree.set_usage(provider, used)


def _suffixes(allocations: Mapping[str, Any]) -> dict[str, str]:
    """Provider → the suffix of its group, where a request has the shape of what is held."""
    return {provider: f"_{number}" for number, provider in enumerate(sorted(allocations))}


def _why(report: SearchReport, held: Mapping[str, str]) -> str:
    """Why no host takes a consumer, in words for an operator.

    *held* names what each group stands for where the groups are ours: nobody else knows their suffixes.
    """
    if not report.hosts:
        return "no host may take it: all others are being emptied, in other cells, switched off or closed by its group"
    nearest = report.nearest(1)
    if not nearest:
        return f"no host takes it: {', '.join(f'{count} × {label}' for label, count in report.counts.items())}"
    miss = nearest[0]
    if miss.suffix is None or miss.suffix not in held:
        return str(miss)
    about = f", for what it holds of {held[miss.suffix]}" if len(held) > 1 else ""
    return f"{attrs.evolve(miss, suffix=None)}{about}"
