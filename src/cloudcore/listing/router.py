"""CellRouter: instances over many cells as if they were in one.

A façade: each question is a few lines here, most of them its documentation, and done in the wings below.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cloudcore._forks import when_forked
from cloudcore._values import (
    FrozenDict,
    normalise_uuid,
    require_duration,
    require_instance,
    require_integer,
    require_items,
    require_seconds,
)
from cloudcore.errors import (
    AlreadyExists,
    CellNotFound,
    CellUnavailable,
    CloudcoreError,
    InstanceNotFound,
    InvalidArgument,
    InvalidCursor,
    InvalidQuery,
    LimitExceeded,
)
from cloudcore.listing.cells.admission import Admission
from cloudcore.listing.cells.backends import Backend, SharedBreakers
from cloudcore.listing.cells.breakers import BreakerPolicy, Breakers, BreakerView
from cloudcore.listing.cells.cell import Cell, engines_of, kept_by_engines
from cloudcore.listing.cells.connections import OpenConnections, affordable
from cloudcore.listing.cells.directory import Directory
from cloudcore.listing.cells.hedging import HedgePolicy
from cloudcore.listing.cells.in_flight import ask_all
from cloudcore.listing.cells.workers import Workers
from cloudcore.listing.merge.counting import check_columns, count
from cloudcore.listing.merge.paging import Pager
from cloudcore.listing.merge.resuming import missing
from cloudcore.listing.merge.services import RouterServices
from cloudcore.listing.merge.streaming import Stream
from cloudcore.listing.query.caches import GenerationCache
from cloudcore.listing.query.compiled import statement_cache
from cloudcore.listing.query.kinds import plain
from cloudcore.listing.query.prepared import PreparedQuery
from cloudcore.listing.query.sources import RecordSource
from cloudcore.listing.records.instances import CLOUDCORE_INSTANCES
from cloudcore.listing.values import (
    Answered,
    CellReport,
    CellState,
    Counts,
    Page,
    Query,
    Record,
    RouterStatus,
    as_sent,
)
from cloudcore.observability import observed, tell_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database
    from cloudcore.listing.cells.requests import Attempt
    from cloudcore.listing.query.order import Position
    from cloudcore.observability import Observer

__all__ = ["CellRouter"]

T = TypeVar("T")
_EVERYTHING = Query()
_UNTOLD = CellReport(name="", state=CellState.SKIPPED)
"""Keeps the place of a cell that is being asked."""
_SKIPPED = CellState.SKIPPED
_TURNS = 1
"""Calls that work at once. Two fight over the interpreter's lock with all their threads, and finish no sooner."""
_MOST_LOOKED_UP = 100
"""Records, tenants or hosts of one query that the directory is asked about: asking the cells is cheaper then."""
_SHORTEST_KEY = 16
_STATEMENTS, _QUERIES = 8_000_000, 4_000_000
"""Characters of SQL and bytes of queries that are kept for the next page."""
_log = logging.getLogger("cloudcore.listing")


def _told_page(page: Page) -> dict[str, Any]:
    return {"records": len(page.records), "complete": page.complete}


def _asked(page: Page) -> list[CellReport]:
    return [report for report in page.cells.values() if report.state is not _SKIPPED]


def _told_cell(report: CellReport) -> dict[str, Any]:
    return {
        "cell": report.name,
        "state": report.state.value,
        "rows": report.rows,
        "statements": report.statements,
        "seconds": round(report.seconds, 6),
        "error": report.error,
    }


def _told_count(counts: Counts) -> dict[str, Any]:
    return {"total": counts.total}


def _keys(given: Iterable[bytes]) -> tuple[bytes, ...]:
    keys = tuple(given) if isinstance(given, Iterable) else ()
    if not isinstance(given, Iterable) or not all(isinstance(key, bytes) and len(key) >= _SHORTEST_KEY for key in keys):
        raise InvalidArgument(
            f"cursor_keys: a list of secrets of at least {_SHORTEST_KEY} bytes each", field="cursor_keys"
        )
    return keys


def _require_callable(value: object, field: str) -> None:
    if not callable(value):
        raise InvalidArgument(f"{field}: expected a callable, got {value!r:.100}", field=field, value=value)


class CellRouter:
    """Lists, finds and counts the records of many cells in one order.

    May be shared between threads. A context manager: :meth:`close` ends its threads and the connections it opened.
    A forked child may go on using it: it opens connections and starts threads of its own and never touches its
    parent's; a stream that was begun before the fork belongs to the parent alone. Fork while the parent's threads are
    at rest, as gunicorn's ``--preload`` does: SQLite and OpenSSL have locks of their own, which a child may find held
    for ever.

    Args:
        cells: The cells; more can be added and removed while it runs.
        directory: Which cell owns which record; without one every cell is asked every time.
        source: The table that is listed; cloudcore's own instances by default.
        deadline: Seconds within which a cell must answer, unless the cell has its own.
        breaker: When a failing cell is left alone.
        hedging: How replicas are used.
        threads: Cells asked at once, at most, by all calls together. A call for which there is no room waits its turn,
            for *deadline* seconds at most.
        max_connections: Connections kept open, over all cells; beyond that, one is opened for a statement and closed
            after it. By default as many as half of the descriptors that the process may open allow, 1,024 at most. What
            the pools of engines of yours keep counts, too: the router keeps so many fewer itself, a few at least.
        idle_timeout: Seconds after which a connection that nobody uses is closed.
        cursor_keys: Secrets that cursors are signed with (HMAC-SHA256): a server that hands cursors to strangers gives
            one, and reads only its own back. The first signs, all are accepted, so that a key can be replaced while
            walks go on. At least 16 bytes each.
        clock: Monotonic seconds.
        observer: Is told of every call and every cell's part in it; see :mod:`cloudcore.observability`.

    Raises:
        InvalidArgument: An argument is of another type, or a number or a key none that can be. Nothing was opened.
        MissingExtra: The driver for some cell is not installed.
        LimitExceeded: Engines among the cells keep more than *max_connections* by themselves.
    """

    def __init__(
        self,
        cells: Iterable[Cell] = (),
        *,
        directory: Directory | None = None,
        source: RecordSource = CLOUDCORE_INSTANCES,
        deadline: float = 5.0,
        breaker: BreakerPolicy | None = None,
        hedging: HedgePolicy | None = None,
        threads: int = 128,
        max_connections: int | None = None,
        idle_timeout: float = 60.0,
        cursor_keys: Iterable[bytes] = (),
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        deadline = require_duration(deadline, "deadline")
        idle_timeout = require_duration(idle_timeout, "idle_timeout")
        require_integer(threads, "threads", minimum=1)
        if max_connections is not None:
            require_integer(max_connections, "max_connections", minimum=1)
        if breaker is not None:
            require_instance(breaker, BreakerPolicy, "breaker")
        if hedging is not None:
            require_instance(hedging, HedgePolicy, "hedging")
        if directory is not None and not isinstance(directory, Directory):
            raise InvalidArgument(
                "directory: expected an InstanceDirectory, or another with the methods of Directory, got a value of "
                f"type {type(directory).__name__}",
                field="directory",
            )
        require_instance(source, RecordSource, "source")
        _require_callable(clock, "clock")
        keys = _keys(cursor_keys)
        given = [require_instance(cell, Cell, "cells") for cell in require_items(cells, "cells", "Cells")]
        self.observer = observer
        self.directory = directory
        self.source = source
        self._deadline, self._hedging = deadline, hedging
        self._clock = clock
        self._breakers = SharedBreakers(Breakers(breaker), clock)
        most = affordable() if max_connections is None else max_connections
        self._most_connections = max_connections
        self._with_engines: dict[str, Cell] = {}
        self._opened = OpenConnections(most, idle_timeout, clock)
        self._workers = Workers(threads, idle_timeout, self._opened)
        self._services = RouterServices(
            start=self._workers.run,
            clock=clock,
            directory=directory,
            admission=Admission(_TURNS, threads, clock),
            patience=deadline,
            cursor_keys=keys,
        )
        self._statements = statement_cache(_STATEMENTS)
        self._prepared: GenerationCache[Query, PreparedQuery] = GenerationCache(_QUERIES, lambda each: each.weight)
        self._last: PreparedQuery | None = None
        """The newest, which may be too large for the others' place: the next page of a walk finds it here."""
        self._skips: dict[str, tuple[dict[str, Backend], dict[str, CellReport]]] = {}
        self._unlock()
        when_forked(self, CellRouter._unlock)
        self._backends: dict[str, Backend] = {}
        for cell in given:
            self.add_cell(cell)

    def _unlock(self) -> None:
        """With a lock that nobody holds: at first, and in a forked child, where its holder is missing."""
        self._lock = threading.Lock()

    # ---- cells

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The cells as they are now."""
        return FrozenDict({name: backend.cell for name, backend in self._backends.items()})

    @observed("listing.add_cell", level=logging.INFO)
    def add_cell(self, cell: Cell) -> None:
        """Ask *cell* too, from the next call on. A walk under way takes it up from where the walk stands.

        Raises:
            InvalidArgument: It is no Cell.
            AlreadyExists: There is a cell of this name.
            MissingExtra: The driver for its database, or for that of a replica, is not installed.
            LimitExceeded: With its engine, engines keep more connections than the *max_connections* that was given.
        """
        require_instance(cell, Cell, "cell")
        with self._lock:
            if cell.name in self._backends:
                raise AlreadyExists(f"there is a cell {cell.name} already", identifier=cell.name)
            with_engines = self._with_engines_of(cell)
            backend = Backend(
                cell, self._deadline, self._breakers, opened=self._opened, hedging=self._hedging, clock=self._clock
            )
            self._backends = {**self._backends, cell.name: backend}
            self._leave_to(with_engines)

    @observed("listing.remove_cell", "name", level=logging.INFO)
    def remove_cell(self, name: str) -> None:
        """Ask the cell no more. Calls under way finish with it.

        Raises:
            CellNotFound: There is none of this name.
        """
        with self._lock:
            backend = self._backend(name)
            self._backends = {other: each for other, each in self._backends.items() if other != name}
            self._leave_to({other: cell for other, cell in self._with_engines.items() if other != name})
        self._breakers.forget(name)
        backend.close()

    def _with_engines_of(self, cell: Cell) -> dict[str, Cell]:
        """The cells that have engines, with *cell*, unless these keep too many connections."""
        if not engines_of(cell):
            return self._with_engines
        cells, most = {**self._with_engines, cell.name: cell}, self._most_connections
        theirs = kept_by_engines(cells.values())
        if most is not None and theirs > most:
            raise LimitExceeded(
                f"{cell.name}: with its engine, the pools of engines keep {theirs} connections, and max_connections is "
                f"{most}: give the engines a smaller pool_size, or NullPool, or give URLs",
                what="connections",
                limit=most,
                used=theirs,
            )
        return cells

    def _leave_to(self, with_engines: dict[str, Cell]) -> None:
        """What the engines of these cells keep is not kept here; where no bound was given, a few connections are."""
        self._with_engines = with_engines
        least = {} if self._most_connections is None else {"least": 0}
        self._opened.leave_to_engines(kept_by_engines(with_engines.values()), **least)

    def breaker(self, cell: str) -> BreakerView:
        """How the breaker of a cell stands."""
        return self._breakers.view(cell)

    def status(self) -> RouterStatus:
        """How the cells stand, for a readiness probe, from what the router remembers: no cell is asked."""
        now = self._clock()
        return RouterStatus(cells=FrozenDict({name: backend.status(now) for name, backend in self._backends.items()}))

    # ---- pages

    @observed("listing.page", answer=_told_page)
    def page(self, query: Query | None = None, *, cursor: str | None = None, marker: str | None = None) -> Page:
        """One page.

        Args:
            query: What to list; everything, newest first, by default.
            cursor: Where to go on: ``next_cursor``, ``resume_cursor`` or ``previous_cursor`` of a page of the same
                query.
            marker: Where to go on instead: after the record of this uuid, deleted or not. Costs one look-up, and needs
                the record; cursors need neither.

        Raises:
            InvalidQuery, InvalidCursor: Nothing was asked.
            InstanceNotFound: There is no record of the *marker*.
            CellUnavailable: ``require="all"`` and some cell did not answer, or the cell of the *marker* did not.
        """
        prepared = self._prepare(query)
        start = prepared.start(cursor, self._position_of(prepared, cursor, marker), self._services.cursor_keys)
        backends, reports = self._choose(prepared)
        if prepared.impossible or prepared.query.limit == 0:
            nothing = not prepared.impossible
            why = "no record was asked for" if nothing else "nothing can match"
            skipped = {name: CellReport(name=name, state=CellState.SKIPPED, error=why) for name in backends}
            word = start.encode(self._services.cursor_keys) if nothing else None  # nothing is known of what follows
            return Page(
                records=(),
                next_cursor=word,
                resume_cursor=word,
                cells=FrozenDict({**reports, **skipped}),
            )
        wanted = prepared.backward if start.backward else prepared
        page = Pager(self._services, wanted, backends, reports, start).page()
        tell_parts("listing.cell", lambda: _asked(page), _told_cell)  # what is wrong with one its breaker has told
        return page

    def stream(
        self,
        query: Query | None = None,
        *,
        cursor: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Stream:
        """The whole result, record by record, with bounded memory. The query's ``limit`` does not apply.

        Args:
            query: What to list.
            cursor: Where to go on: a cursor of a page or of a stream of the same query.
            on_progress: Called with the number of records so far, batch by batch.

        Raises:
            InvalidQuery, InvalidCursor: Nothing was asked.
        """
        prepared = self._prepare(query)
        if on_progress is not None:
            _require_callable(on_progress, "on_progress")
        start = prepared.start(cursor, None, self._services.cursor_keys)
        if start.backward:
            raise InvalidCursor("a stream goes forward only: give it a next_cursor", field="cursor")
        backends, reports = self._choose(prepared)
        return Stream(self._services, prepared, {} if prepared.impossible else backends, reports, start, on_progress)

    def _position_of(self, prepared: PreparedQuery, cursor: str | None, marker: str | None) -> Position | None:
        if marker is None:
            return None
        if cursor is not None:
            raise InvalidQuery("give a cursor or a marker, not both", field="marker")
        columns = tuple(key.column for key in prepared.order.keys)
        return prepared.order.position(as_sent(self._find(marker, columns), columns))

    # ---- single records

    @observed("listing.locate", "uuid")
    def locate(self, uuid: str) -> str:
        """The name of the cell that owns a record.

        Raises:
            InstanceNotFound: Neither the directory nor any cell that answered knows it.
            CellUnavailable: Nobody knows it, but not every cell could be asked.
        """
        key = self._key(uuid)
        if self.directory is not None and (cell := self.directory.cells_of([key]).get(key)) is not None:
            return cell
        return self._find(uuid, (self.source.key,)).cell

    @observed("listing.get", "uuid")
    def get(self, uuid: str) -> Record:
        """One record, live or deleted, hidden or not.

        Raises:
            InstanceNotFound: It is nowhere.
            CellUnavailable: Its cell, or a cell that it may be in, does not answer.
        """
        return self._find(uuid, None)

    def _key(self, uuid: str) -> str:
        name = self.source.key
        if self.source.uuids:
            return normalise_uuid(uuid, name)
        try:
            key: str = plain(self.source.columns[name].kind, uuid)
        except ValueError as error:
            raise InvalidArgument(f"{name}: {error}", field=name, value=uuid) from error
        if key is None:
            raise InvalidArgument(f"{name}: None is no record's", field=name, value=uuid)
        return key

    def _find(self, uuid: str, columns: tuple[str, ...] | None) -> Record:
        """The record in the cell that the directory names, else in whichever cell has it."""
        key = self._key(uuid)
        known = None if self.directory is None else self.directory.cells_of([key]).get(key)
        where = {self.source.key: {"eq": key}}
        prepared = self._prepare(Query(where=where, sort=(), limit=1, deleted=None, hidden=True, columns=columns))
        away: dict[str, str | None] = {}
        for names in ([known], [name for name in self._backends if name != known]):
            backends, reports = self._admit({name: self._backends[name] for name in names if name in self._backends})
            if backends or reports:
                page = Pager(self._services, prepared, backends, reports, prepared.start(None, None)).page()
                if page.records:
                    return page.records[0]
                away.update({name: page.cells[name].error for name in missing(page.cells)})
            if known in away:
                break
        if away:
            raise CellUnavailable(f"{key} may be in {', '.join(away)}, which did not answer", cells=away)
        raise InstanceNotFound(f"no record {key} in any cell", identifier=key)

    # ---- other questions

    @observed("listing.count", "by", answer=_told_count)
    def count(self, query: Query | None = None, *, by: str | None = None, sums: Iterable[str] = ()) -> Counts:
        """How many records match, in all and for each value of a column; and what columns of numbers add up to.

        Args:
            query: What to count; its sort, limit and columns do not matter.
            by: A column.
            sums: Columns to add up, such as the cores and the memory of a tenant, for a quota. NULL counts as nothing.

        Raises:
            InvalidQuery: A column is unknown or not of numbers; or a database refuses the query.
            CellUnavailable: ``require="all"`` and some cell did not answer.
        """
        prepared = self._prepare(query)
        summed = (sums,) if isinstance(sums, str) else require_items(sums, "sums", "columns", InvalidQuery)
        check_columns(self.source, by, summed)
        backends, reports = self._choose(prepared)
        return count(self._services, prepared, backends, reports, by, summed)

    @observed("listing.scatter")
    def scatter(
        self,
        function: Callable[[Connection], T],
        *,
        cells: Iterable[str] | None = None,
        deadline: float | None = None,
    ) -> Mapping[str, Answered[T]]:
        """Call *function* with a connection to each cell, in several threads at once.

        Whatever it returns or raises is that cell's answer.

        Args:
            function: Reads; what it changes without committing is rolled back.
            cells: Names; None for all that are enabled.
            deadline: Seconds for each cell, its own by default. A late call goes on in its thread, unheard.

        Raises:
            InvalidArgument: An argument is of another type.
            CellNotFound: One of *cells* is not configured.
        """
        enabled = [name for name, backend in self._backends.items() if backend.cell.enabled]
        _require_callable(function, "function")
        require_seconds(deadline, "deadline")
        names = enabled if cells is None else require_items(cells, "cells", "names")
        for name in names:
            self._backend(name)
        backends, reports = self._admit({name: self._backends[name] for name in names})

        def work(attempt: Attempt) -> T:
            with attempt.pool.engine.connect() as connection:
                try:
                    return function(connection)
                except Exception:
                    raise
                except BaseException as error:  # sys.exit(), which would end our thread in place of the program
                    raise CloudcoreError(f"{type(error).__name__}: {error}") from error

        results, outcomes, errors = ask_all(
            backends, lambda _: work, start=self._services.start, clock=self._clock, seconds=deadline
        )
        answers: dict[str, Answered[T]] = {
            name: Answered(report=report, value=None, error=None) for name, report in reports.items()
        }
        for name, outcome in outcomes.items():
            answers[name] = Answered(report=outcome.report(name, 0), value=results.get(name), error=errors.get(name))
        return FrozenDict(answers)

    def database(self, cell: str) -> Database:
        """The database of a cell, for writing to it.

        Raises:
            CellNotFound: There is none of this name.
        """
        return self._backend(cell).pool.database

    def _backend(self, cell: str) -> Backend:
        backend = self._backends.get(cell) if isinstance(cell, str) else None
        if backend is None:
            raise CellNotFound(f"no cell {cell!r}; there are {', '.join(self._backends)}", identifier=cell)
        return backend

    # ---- inside

    def _prepare(self, query: Query | None) -> PreparedQuery:
        if query is None:
            query = _EVERYTHING
        elif not isinstance(query, Query):
            raise InvalidQuery(
                f"query: expected a Query, such as Query(tenant='blue'), got a value of type {type(query).__name__}",
                field="query",
            )
        prepared = self._prepared.get(query)
        if prepared is None:
            last = self._last
            if last is not None and last.query is query:
                return last
            prepared = self._last = self._prepared[query] = PreparedQuery(self.source, query, self._statements)
        return prepared

    def _choose(self, prepared: PreparedQuery) -> tuple[dict[str, Backend], dict[str, CellReport]]:
        """The cells to ask, and reports on the others."""
        routed, why = self._route(prepared)
        if routed is None:
            return self._admit(self._backends)
        all_backends = self._backends
        backends, reports = self._admit({name: all_backends[name] for name in sorted(routed) if name in all_backends})
        return backends, {**self._skipped(all_backends, why), **dict.fromkeys(backends, _UNTOLD), **reports}

    def _skipped(self, backends: dict[str, Backend], why: str) -> dict[str, CellReport]:
        """Reports that say of every cell that it was skipped; kept, for they are most of a routed page's work."""
        kept = self._skips.get(why)
        if kept is None or kept[0] is not backends:
            reports = {name: CellReport(name=name, state=CellState.SKIPPED, error=why) for name in backends}
            kept = self._skips[why] = (backends, reports)
        return kept[1]

    def _admit(self, wanted: Mapping[str, Backend]) -> tuple[dict[str, Backend], dict[str, CellReport]]:
        """Those of the cells that may be asked now, and reports on the others."""
        backends: dict[str, Backend] = {}
        reports: dict[str, CellReport] = {}
        if self._breakers.quiet and all(backend.cell.enabled for backend in wanted.values()):
            return dict(wanted), reports
        for name, backend in wanted.items():
            if not backend.cell.enabled:
                reports[name] = CellReport(name=name, state=CellState.SKIPPED, error="disabled")
            elif not self._breakers.admit(name):
                reports[name] = CellReport(
                    name=name,
                    state=CellState.DOWN,
                    error=self._breakers.refusal(name),
                    error_type="CellUnavailable",
                    transient=True,
                )
            else:
                backends[name] = backend
        return backends, reports

    def _route(self, prepared: PreparedQuery) -> tuple[frozenset[str] | None, str]:
        """The cells that can contribute, None for all; and why the others cannot."""
        routed: frozenset[str] | None = None
        reasons: list[str] = []
        if self.directory is None or prepared.impossible:
            return None, ""
        if (owners := self._owners(prepared.equal_to(self.source.key))) is not None:
            return owners, "the directory has these records elsewhere"
        if prepared.query.deleted is not False:  # tenants and hosts are known of live records only
            return None, ""
        for what, column, question in (
            ("tenant", self.source.tenant, self.directory.cells_of_tenant),
            ("host", self.source.host, self.directory.cells_of_host),
        ):
            values = prepared.equal_to(column)
            if values is None or len(values) > _MOST_LOOKED_UP:
                continue
            answers = [question(value) for value in values]
            cells = [answer for answer in answers if answer is not None]
            if len(cells) < len(answers):
                continue
            union: frozenset[str] = frozenset().union(*cells)
            routed = union if routed is None else routed & union
            reasons.append(what)
        return routed, f"the directory has nothing of this {' and '.join(reasons)} there"

    def _owners(self, keys: tuple[str, ...] | None) -> frozenset[str] | None:
        """The cells that own the records of these keys; None when one is unknown, or they are many."""
        if self.directory is None or keys is None or len(keys) > _MOST_LOOKED_UP:
            return None
        known = self.directory.cells_of(keys)
        return frozenset(known.values()) if len(known) == len(keys) else None

    def close(self) -> None:
        """End the threads and close the connections that the router opened.

        May be called twice: one that a signal interrupted goes on where it was. Calls under way end with their pages,
        or raise Closed as all later ones do.
        """
        self._services.admission.closed = True
        try:
            self._workers.close()
        finally:
            for backend in self._backends.values():
                backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        cells = self.cells.values()
        disabled = sum(1 for cell in cells if not cell.enabled)
        directory = "no directory" if self.directory is None else type(self.directory).__name__
        return f"<CellRouter: {len(cells)} cells, {disabled} disabled, {directory}>"

    def check(self) -> None:
        """Verify what must hold.

        Raises:
            InvariantViolated: It does not.
        """
        self._breakers.check()
        self._services.admission.check()
