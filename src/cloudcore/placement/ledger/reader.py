"""What anybody may ask the ledger: reading, auditing, checking. The half of it that never writes an allocation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

from cloudcore._values import normalise_uuid, require_integer, require_portion, require_utc
from cloudcore.database import Database
from cloudcore.errors import Closed, InvalidAllocation, InvalidArgument, MoveNotFound, UnsupportedFeature
from cloudcore.notebook import Shown
from cloudcore.placement.ledger import history, queries
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.auditing import findings, without_allocations
from cloudcore.placement.ledger.queries import snapshot
from cloudcore.placement.ledger.session import Session
from cloudcore.placement.rules.claims import provider_uuid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.placement.ledger.auditing import Known
    from cloudcore.placement.ledger.history import HistoryEntry
    from cloudcore.placement.ledger.queries import ConsumerState, Holder, LedgerStatus, Usage
    from cloudcore.placement.rules.audit import Finding
    from cloudcore.placement.rules.moves import Move

__all__ = ["LedgerQueries", "LedgerReader", "PinnedQueries", "consumer_uuid"]

T = TypeVar("T")

_PAGE = 10_000


class LedgerQueries(ABC):
    """What a ledger can be asked about holders, consumers and the moves under way."""

    @abstractmethod
    def _session(self, *, one_state: bool) -> AbstractContextManager[Session]:
        """A session for reading; with *one_state* all its statements see the same."""

    def allocations(self, consumer: str) -> dict[str, dict[str, int]]:
        """What *consumer* holds, by provider uuid; empty if nothing."""
        state = self.consumer(consumer)
        return {} if state is None else {p: dict(c) for p, c in state.allocations.items()}

    def consumer(self, consumer: str) -> ConsumerState | None:
        """What *consumer* holds, its generation and owner; None if it holds nothing."""
        uuid_ = consumer_uuid(consumer)
        return self._read(lambda session: queries.consumer(session, uuid_))

    def consumers(
        self,
        *,
        project_id: str | None = None,
        user_id: str | None = None,
        consumer_type: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> list[ConsumerState]:
        """The consumers that fit all that is given, in the order of their uuids, a page at a time.

        Args:
            project_id: Who pays.
            user_id: Who asked.
            consumer_type: Such as ``INSTANCE``; ``unknown`` for those of which nobody said.
            after: The last uuid of the page before. A walk meets every consumer that is there throughout, once.
            limit: How many at most, 1 to 10,000.
        """
        require_integer(limit, "limit", minimum=1, maximum=_PAGE)
        chosen = {"project_id": project_id, "user_id": user_id, "consumer_type": consumer_type}
        begin = "" if after is None else consumer_uuid(after)
        return Shown(self._read(lambda session: queries.consumers(session, chosen, begin, limit)))

    def holders(self, provider: str, *, after: str | None = None, limit: int | None = None) -> list[Holder]:
        """Who holds what of *provider* now, in the order of the consumers' uuids.

        Args:
            provider: Its uuid.
            after: The last consumer of the page before.
            limit: How many at most; None for all of them.

        Raises:
            ProviderNotFound: No such provider.
            InvalidArgument: Text that no database holds.
        """
        uuid_ = provider_uuid(provider)
        if limit is not None:
            require_integer(limit, "limit", minimum=1, maximum=_PAGE)
        begin = "" if after is None else consumer_uuid(after)
        return Shown(self._read(lambda session: queries.holders(session, uuid_, begin, limit), one_state=True))

    def moves(self, *, after: str | None = None, limit: int | None = None) -> list[Move]:
        """The moves under way, those that hold something, in the order of their migrations' uuids.

        They are ``held``, or evacuations ``awaiting_proof``; :meth:`AllocationLedger.move` also gives what has ended.

        Args:
            after: The last migration of the page before.
            limit: How many at most, 1 to 10,000; None for all of them.

        Raises:
            InvalidAllocation: *after* is not the text of a uuid.
            InvalidArgument: *limit* is not such a number.
        """
        if limit is not None:
            require_integer(limit, "limit", minimum=1, maximum=_PAGE)
        begin = "" if after is None else normalise_uuid(after, "after", InvalidAllocation)
        return Shown(self._read(lambda session: ledger_moves.live_moves(session, begin, limit)))

    def usages(
        self,
        *,
        provider: str | None = None,
        project_id: str | None = None,
        user_id: str | None = None,
        consumer_type: str | None = None,
    ) -> dict[str, int]:
        """Amounts in use by class, of one provider (zeros shown) or of those consumers that fit all that is given.

        Raises:
            ProviderNotFound: No such provider.
        """
        if provider is not None:
            if (project_id, user_id, consumer_type) != (None, None, None):
                raise InvalidArgument("give a provider or a project, user and type, not both", field="provider")
            uuid_ = provider_uuid(provider)
            return self._read(lambda session: queries.provider_usages(session, uuid_))
        by_type = self.usages_by_type(project_id=project_id, user_id=user_id, consumer_type=consumer_type)
        return queries.sum_usages(by_type)

    def usages_by_type(
        self, *, project_id: str | None = None, user_id: str | None = None, consumer_type: str | None = None
    ) -> dict[str, Usage]:
        """Amounts in use and number of consumers for each consumer type; ``unknown`` where nobody said.

        All of one moment, and of consumers that hold something.

        Raises:
            InvalidArgument: Text that no database holds.
        """
        chosen = (project_id, user_id, consumer_type)
        return self._read(lambda session: queries.usages(session, *chosen), one_state=True)

    def _read(self, work: Callable[[Session], T], *, one_state: bool = False) -> T:
        with self._session(one_state=one_state) as session:
            return work(session)


class PinnedQueries(LedgerQueries):
    """The queries on one connection, which stays in the snapshot that it is in. Not for several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def session(self) -> AbstractContextManager[Session]:
        """A session in the snapshot, for what is built on the ledger."""
        return self._session(one_state=True)

    @contextmanager
    def _session(self, *, one_state: bool) -> Iterator[Session]:
        session = Session(self._connection)
        with session.errors():
            yield session


class LedgerReader(LedgerQueries):
    """The reading half of :class:`~cloudcore.placement.AllocationLedger`. May be shared between threads.

    Args:
        source: A database, an engine, or a URL (then :meth:`close` closes it).
    """

    history = True
    """Whether what each consumer holds after each change is noted."""

    def __init__(self, source: Database | str | URL | Engine) -> None:
        self._owned, self._closed = not isinstance(source, Database), False
        self._database = Database.of(source)

    @property
    def database(self) -> Database:
        """Where the ledger is kept.

        Raises:
            Closed: :meth:`close` was called.
        """
        if self._closed:
            raise Closed("the ledger is closed; make a new one", field="ledger")
        return self._database

    def history_of(self, consumer: str, *, limit: int = 100) -> list[HistoryEntry]:
        """What *consumer* held after each of its newest changes, oldest first; without history, none.

        Raises:
            InvalidArgument: *limit* is no number above 0.
        """
        require_integer(limit, "limit", minimum=1)
        with self.database.read() as connection:
            return history.entries_of(connection, consumer_uuid(consumer), limit)

    def held_at(self, consumer: str, instant: datetime) -> dict[str, dict[str, int]]:
        """What *consumer* held at *instant*, as far back as history reaches; empty if nothing.

        Raises:
            UnsupportedFeature: This ledger keeps no history.
        """
        self._require_history()
        with self.database.read() as connection:
            found = history.held_at(connection, consumer_uuid(consumer), require_utc(instant, "instant"))
        return {} if found is None else {p: dict(c) for p, c in found.allocations.items()}

    def holders_at(self, provider: str, instant: datetime) -> dict[str, dict[str, int]]:
        """Who held what of *provider* at *instant*: consumer → class → amount. Reads the whole history.

        Raises:
            UnsupportedFeature: This ledger keeps no history.
        """
        self._require_history()
        uuid_ = provider_uuid(provider)
        with self.database.read() as connection:
            found = history.holders_at(connection, uuid_, require_utc(instant, "instant"))
        return {entry.consumer: dict(entry.allocations[uuid_]) for entry in found}

    def _require_history(self) -> None:
        if not self.history:
            raise UnsupportedFeature(
                "this ledger keeps no history (history=False): what was held in the past is not known", field="history"
            )

    def prune_history(self, older_than: datetime, *, limit: int = 10_000) -> int:
        """Forget at most *limit* entries recorded before *older_than*; return how many.

        What was held at that instant and after it stays known: of each consumer the newest entry before it is kept.

        Raises:
            InvalidArgument: *older_than* has no time zone, or *limit* is not from 1 to 30,000.
        """
        instant = require_utc(older_than, "older_than")
        require_portion(limit)
        return self.database.run(lambda connection: history.prune(connection, instant, limit))

    def move(self, migration: str) -> Move:
        """Return the move of *migration* as recorded.

        Raises:
            MoveNotFound: No such move.
        """
        uuid_ = normalise_uuid(migration, "migration", InvalidAllocation)
        with self.database.read() as connection:
            session = Session(connection)
            with session.errors():
                found = ledger_moves.find_move(session, uuid_)
        if found is None:
            raise MoveNotFound(f"no move of migration {uuid_} is recorded", identifier=uuid_)
        return found

    def audit(self, *, known: Known | None = None, instances: Iterable[str] = ()) -> tuple[Finding, ...]:
        """Look for what is wrong, in one snapshot (*instances* after it), and change nothing.

        Args:
            known: A directory, or a function that returns those of the uuids given that exist, as instance or as
                migration in progress. Without it nobody can say whether a consumer should be there.
            instances: Uuids of instances that should hold something: those that hold nothing are found. Read once, a
                few hundred at a time, so it may be the stream of a listing.

        Returns:
            Drifted counters, orphaned and empty rows, consumers that nobody knows, instances without allocations, holds
            of finished moves, what is overdue, and providers over capacity.
        """
        wanted = (normalise_uuid(instance, "instances") for instance in instances)
        with snapshot(self.database) as session:
            found = findings(session, known)
        return (*found, *without_allocations(lambda: snapshot(self.database), wanted))

    def status(self) -> LedgerStatus:
        """How things stand, for a readiness probe: two look-ups in indexes.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The ledger cannot be read: not ready.
        """
        return self._read(queries.status)

    def check(self) -> None:
        """Compare every inventory's ``used``, consumer and move with the allocations, in one snapshot.

        Raises:
            InvariantViolated: With one line for each breach.
        """
        queries.check(self.database)

    def close(self) -> None:
        """Close the database, if this ledger opened it; later calls raise Closed in any case. May be called twice.

        A call under way ends as it can: with its answer, or with Closed.
        """
        self._closed = True
        if self._owned:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AllocationLedger {self._database!r}>"

    @contextmanager
    def _session(self, *, one_state: bool) -> Iterator[Session]:
        if one_state:
            with snapshot(self.database) as session:
                yield session
            return
        with self.database.read() as connection:
            session = Session(connection)
            with session.errors():
                yield session


def consumer_uuid(value: str) -> str:
    """The normal form of a consumer's uuid, or InvalidAllocation."""
    return normalise_uuid(value, "consumer", InvalidAllocation)
