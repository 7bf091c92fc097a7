"""How a call of the ledger becomes one transaction that takes effect once, alone or with those of other threads."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore._values import require_integer
from cloudcore.database import Database, Operation, Outcome
from cloudcore.errors import InvalidArgument, OutcomeUnknown
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.claim_statements import NewClaim, claim_by_statements, claim_in_one_statement
from cloudcore.placement.ledger.compound_blocks import begin_in_one_block, claim_in_one_block, runs_blocks
from cloudcore.placement.ledger.group_claims import claim_group, claim_group_in_one_statement
from cloudcore.placement.ledger.group_commit import GroupCommit
from cloudcore.placement.ledger.move_statement import begin_in_one_statement, is_usual
from cloudcore.placement.ledger.reader import LedgerReader
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.ledger.writes import NEW, Target
from cloudcore.placement.rules.claims import Held
from cloudcore.placement.storage.generations import require_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.observability import Observer
    from cloudcore.placement.ledger.group_commit import Ticket
    from cloudcore.placement.storage.generations import Generations

__all__ = ["LedgerTransactions", "as_held", "read_seconds"]

T = TypeVar("T")

_LANES = {"sqlite": 1, "mysql": 2, "postgresql": 2}
"""Groups that are committed side by side: SQLite has one writer at a time."""


class LedgerTransactions(LedgerReader):
    """What every writing call of :class:`~cloudcore.placement.AllocationLedger` is made of; see there."""

    def __init__(
        self,
        source: Database | str | URL | Engine,
        *,
        history: bool = True,
        group_commit: int = 0,
        generations: Generations = "cloudcore",
        id_factory: Callable[[], str] | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(source)
        self._counting = require_policy(generations)
        self.observer = observer
        self.history = history
        self._id_factory = id_factory or _operation_ids()
        self._known_providers: dict[str, int] = {}
        limit = require_integer(group_commit, "group_commit", minimum=0, maximum=10_000)
        lanes = _LANES[self.database.dialect]
        self._group = GroupCommit(self._claim_group, self._claim, limit=limit, lanes=lanes) if limit else None

    def _operate(
        self, name: str, arguments: Mapping[str, Any], work: Callable[[Session, str], Any], operation_id: str | None
    ) -> tuple[Any, bool]:
        operation = Operation.of(f"ledger.{name}", arguments, operation_id, id_factory=self._id_factory)
        outcome = self.transact(operation, lambda session: work(session, operation.id))
        return outcome.result, outcome.repeated

    def transact(self, operation: Operation, work: Callable[[Session], T]) -> Outcome[T]:
        """Do *work* in one transaction of the ledger, once for ever under *operation*'s id.

        For what is built on the ledger and must take effect together with its writes. *work* returns JSON.

        Raises:
            See :meth:`cloudcore.database.Database.operate`, and whatever *work* raises.
        """

        def inside(connection: Connection) -> T:
            session = Session(connection, counting=self._counting)
            with session.errors():
                return work(session)

        return self.database.operate(operation, inside)

    def claim_new(self, claim: NewClaim) -> Outcome[Any]:
        """Do *claim* in as few statements as can be, alone or with those of other threads.

        Raises:
            CloudcoreError: As :meth:`cloudcore.placement.AllocationLedger.claim` does.
        """
        if self._counting:  # which the short ways do not
            return self.transact(claim.operation, lambda session: self._write_new(session, claim))
        return self._claim(claim) if self._group is None else self._claim_in_group(self._group, claim)

    def _write_new(self, session: Session, claim: NewClaim) -> Any:
        target = Target(allocations=claim.allocations, owner=claim.owner, generation=NEW, expires_in=claim.expires_in)
        ledger_moves.write(session, claim.operation.id, claim.event, {claim.consumer: target}, history=self.history)
        return claim.result

    def _claim(self, claim: NewClaim) -> Outcome[Any]:
        database = self.database
        if database.dialect == "postgresql":
            return database.resolve(
                claim.operation, lambda: claim_in_one_statement(database, claim, history=self.history)
            )
        return database.resolve(claim.operation, lambda: self._claim_alone(claim))

    def _claim_alone(self, claim: NewClaim) -> Outcome[Any]:
        if runs_blocks(self.database):
            granted = claim_in_one_block(self.database, claim, self._known_providers, history=self.history)
            if granted is not None:
                return granted
        with self.database.write() as connection:
            session = Session(connection)
            with session.errors():
                outcome, changed = claim_by_statements(session, claim, self._known_providers, history=self.history)
                session.add_changes(changed)
            return outcome

    def _claim_in_group(self, group: GroupCommit[NewClaim, Outcome[Any]], claim: NewClaim) -> Outcome[Any]:
        try:
            return group.submit(claim)
        except OutcomeUnknown as error:  # of the whole group, under another caller's operation id if under any
            raise OutcomeUnknown(
                f"claim of consumer {claim.consumer}: the answer of the group that it was committed with was lost; "
                f"repeat it with operation_id={claim.operation.id!r}",
                operation_id=claim.operation.id,
            ) from error

    def _claim_group(self, tickets: Sequence[Ticket[NewClaim, Outcome[Any]]]) -> None:
        if len(tickets) == 1:
            tickets[0].answer = self._claim(tickets[0].request)
            return
        first = tickets[0].request.operation
        self.database.resolve(first, lambda: self._claim_together(tickets))

    def _claim_together(self, tickets: Sequence[Ticket[NewClaim, Outcome[Any]]]) -> Outcome[None]:
        if self.database.dialect == "postgresql":
            return claim_group_in_one_statement(self.database, tickets, history=self.history)
        with self.database.write() as connection:
            session = Session(connection)
            with session.errors():
                claim_group(session, tickets, self._known_providers, history=self.history)
        return Outcome(result=None, repeated=False)

    def _write(
        self, name: str, targets: Mapping[str, Target], operation_id: str | None, *, must_exist: bool = False
    ) -> dict[str, Held]:
        wanted = {consumer: target.allocations for consumer, target in targets.items() if target.allocations}

        def work(session: Session, operation: str) -> Any:
            with host_groups.keeping_policies(session, wanted):
                return ledger_moves.write(
                    session, operation, name, targets, history=self.history, must_exist=must_exist
                )

        arguments = {consumer: attrs.asdict(target) for consumer, target in targets.items()}
        result, repeated = self._operate(name, arguments, work, operation_id)
        return {consumer: as_held(consumer, state, repeated=repeated) for consumer, state in result.items()}

    def _begin(self, operation: Operation, asked: ledger_moves.MoveRequest) -> Outcome[Any]:
        database = self.database
        begin = self._begin_at_once(operation, asked) if is_usual(asked) and not self._counting else None
        if begin is not None:
            outcome = database.resolve(operation, begin)
            if outcome.result is not None:
                return outcome

        def work(session: Session) -> dict[str, Any]:
            with host_groups.keeping_policies(session, {asked.instance: asked.destination}):
                return ledger_moves.begin(session, operation.id, asked, history=self.history)

        return self.transact(operation, work)

    def _begin_at_once(
        self, operation: Operation, asked: ledger_moves.MoveRequest
    ) -> Callable[[], Outcome[dict[str, Any] | None]] | None:
        """What begins a usual move in one round trip on this database, if anything does."""
        database, known, history = self.database, self._known_providers, self.history
        if database.dialect == "postgresql":
            return lambda: begin_in_one_statement(database, operation, asked, history=history)
        if database.dialect == "sqlite":
            return None

        def begin() -> Outcome[dict[str, Any] | None]:
            if not runs_blocks(database):  # which may have to connect, and so to be repeated
                return Outcome(result=None, repeated=False)
            return begin_in_one_block(database, operation, asked, known, history=history)

        return begin


def _operation_ids() -> Callable[[], str]:
    """A maker of ids that nobody else makes. A uuid for each would let go of the interpreter to ask the system."""
    origin, count = uuid.uuid4().hex[:20], itertools.count()
    return lambda: f"{time.time_ns():x}-{origin}-{os.getpid():x}-{next(count):x}"


def as_held(consumer: str, state: Mapping[str, Any], *, repeated: bool) -> Held:
    """What a call answers for one consumer."""
    return Held(consumer=consumer, generation=state["generation"], allocations=state["allocations"], repeated=repeated)


def read_seconds(value: float | None, field: str) -> float | None:
    """A number of seconds, or None for no end."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
        raise InvalidArgument(
            f"{field}: expected a positive number of seconds, got {value!r}", field=field, value=value
        )
    return float(value)
