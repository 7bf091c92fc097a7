"""CellRouter: instances over many cells as if they were in one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping as MappingABC
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from cloudcore._values import normalise_uuid
from cloudcore.errors import AlreadyExists, CellNotFound, CellUnavailable, InstanceNotFound, InvalidQuery
from cloudcore.listing.breakers import BreakerPolicy, Breakers
from cloudcore.listing.conditions import Condition, conditions_of, order_of, projection_of
from cloudcore.listing.cursors import Cursor, digest
from cloudcore.listing.gather import Gather
from cloudcore.listing.merge import Merge
from cloudcore.listing.ports import Guard, Port
from cloudcore.listing.records import Shaper
from cloudcore.listing.sources import CLOUDCORE_INSTANCES, RecordSource
from cloudcore.listing.statements import Plan, Statement
from cloudcore.listing.values import CellReport, CellState, Page, Query, Record, Require
from cloudcore.listing.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cloudcore.database import Database
    from cloudcore.listing.cells import Cell
    from cloudcore.listing.directory import Directory

__all__ = ["CellRouter"]


class CellRouter:
    """Lists, finds and counts the records of many cells in one order.

    May be shared between threads. A context manager: :meth:`close` ends its threads and the connections it opened.

    Args:
        cells: The cells; more can be added and removed while it runs.
        directory: Which cell owns which record; without one every cell is asked every time.
        source: The table that is listed; cloudcore's own instances by default.
        deadline: Seconds within which a cell must answer, unless the cell has its own.
        breaker: When a failing cell is left alone.
        threads: Statements under way at once, at most.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cells: Iterable[Cell] = (),
        *,
        directory: Directory | None = None,
        source: RecordSource = CLOUDCORE_INSTANCES,
        deadline: float = 5.0,
        breaker: BreakerPolicy | None = None,
        threads: int = 128,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.source = source
        self._deadline = deadline
        self._clock = clock
        self._guard = Guard(Breakers(breaker), clock)
        self._workers = Workers(threads)
        self._statements: dict[Any, Statement] = {}
        self._lock = threading.Lock()
        self._ports: dict[str, Port] = {}
        for cell in cells:
            self.add_cell(cell)

    # ---- cells

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The cells as they are now."""
        return MappingProxyType({name: port.cell for name, port in self._ports.items()})

    def add_cell(self, cell: Cell) -> None:
        """Ask *cell* too, from the next call on. A walk under way takes it up from where the walk stands.

        Raises:
            AlreadyExists: There is a cell of this name.
        """
        with self._lock:
            if cell.name in self._ports:
                raise AlreadyExists(f"there is a cell {cell.name} already", identifier=cell.name)
            self._ports = {**self._ports, cell.name: Port(cell, self._deadline, self._guard, self._clock)}

    def remove_cell(self, name: str) -> None:
        """Ask the cell no more. Calls under way finish with it.

        Raises:
            CellNotFound: There is none of this name.
        """
        with self._lock:
            port = self._ports.get(name)
            if port is None:
                raise CellNotFound(f"no cell {name!r}; there are {', '.join(self._ports)}", identifier=name)
            self._ports = {other: each for other, each in self._ports.items() if other != name}
        self._guard.forget(name)
        port.close()

    # ---- pages

    def page(self, query: Query | None = None, *, cursor: str | None = None) -> Page:
        """One page.

        Args:
            query: What to list; everything, newest first, by default.
            cursor: Where to go on: ``next_cursor`` of the page before.

        Raises:
            InvalidQuery, InvalidCursor: Nothing was asked.
            CellUnavailable: ``require="all"`` and some cell did not answer.
        """
        query = query or Query()
        asked = self._prepare(query)
        start = Cursor(digest=asked.digest, position=None, lagging={})
        if cursor is not None:
            start = Cursor.decode(cursor, asked.digest)
        ports, reports = self._choose(asked)
        if query.limit == 0 or asked.impossible:
            return Page(records=(), next_cursor=None, resume_cursor=None, cells=MappingProxyType(reports))
        merge = Merge(
            asked.plan.order,
            {name: start.start_of(name) for name in ports},
            limit=query.limit,
            indexes=asked.plan.indexes,
            owners=self._owners(ports),
        )
        gather = Gather(asked.plan, merge, ports, start=self._workers.run, settle=self._settle, clock=self._clock)
        gather.run()
        return self._page(asked, merge, gather, reports, start)

    def _page(self, asked: _Asked, merge: Merge, gather: Gather, reports: dict[str, CellReport], start: Cursor) -> Page:
        taken = merge.taken()
        for name, run in merge.runs.items():
            reports[name] = gather.parts[name].report(name, run.emitted, exhausted=run.exhausted and not run.left)
        _insist(asked.query, reports)
        missing = {name for name, report in reports.items() if report.state in {CellState.SLOW, CellState.DOWN}}
        positions = {**{name: start.start_of(name) for name in missing}, **merge.positions()}
        cursor = _cursor(asked, positions, start).encode()
        return Page(
            records=tuple([asked.shaper.record(entry[2], merge.cell_of(entry)) for entry in taken]),
            next_cursor=cursor if merge.more else None,
            resume_cursor=cursor if merge.more or missing else None,
            cells=MappingProxyType({name: reports[name] for name in sorted(reports)}),
        )

    def stream(self, query: Query | None = None) -> Iterator[Record]:
        """The whole result, record by record."""
        query = query or Query()
        cursor = None
        while True:
            page = self.page(query, cursor=cursor)
            yield from page.records
            cursor = page.next_cursor
            if cursor is None:
                return

    # ---- single records

    def locate(self, uuid: str) -> str:
        """The name of the cell that owns a record.

        Raises:
            InstanceNotFound: Neither the directory nor any cell that answered knows it.
            CellUnavailable: Nobody knows it, but not every cell could be asked.
        """
        return self._find(uuid)[0]

    def get(self, uuid: str) -> Record:
        """One record, live or deleted, hidden or not.

        Raises:
            InstanceNotFound: It is nowhere.
            CellUnavailable: Its cell, or a cell that it may be in, does not answer.
        """
        return self._find(uuid)[1]

    def _find(self, uuid: str) -> tuple[str, Record]:
        key = normalise_uuid(uuid, "uuid") if self.source.key == "uuid" else uuid
        known = self.directory.cells_of([key]).get(key) if self.directory is not None else None
        query = Query(where={self.source.key: key}, sort=(), limit=2, deleted=None, hidden=True)
        asked = self._prepare(query)
        wanted = {known} if known is not None and known in self._ports else None
        page = self._only(asked, wanted)
        if page.records:
            return page.records[0].cell, page.records[0]
        away = {
            name: report.error
            for name, report in page.cells.items()
            if report.state in {CellState.SLOW, CellState.DOWN}
        }
        if away:
            raise CellUnavailable(f"{key} may be in {', '.join(away)}, which did not answer", cells=away)
        raise InstanceNotFound(f"no instance {key}", identifier=key)

    def _only(self, asked: _Asked, cells: set[str] | None) -> Page:
        ports = {name: port for name, port in self._ports.items() if cells is None or name in cells}
        start = Cursor(digest=asked.digest, position=None, lagging={})
        merge = Merge(asked.plan.order, dict.fromkeys(ports), limit=asked.query.limit, indexes=asked.plan.indexes)
        gather = Gather(asked.plan, merge, ports, start=self._workers.run, settle=self._settle, clock=self._clock)
        gather.run()
        return self._page(asked, merge, gather, {}, start)

    def database(self, cell: str) -> Database:
        """The database of a cell, for writing to it.

        Raises:
            CellNotFound: There is none of this name.
        """
        port = self._ports.get(cell)
        if port is None:
            raise CellNotFound(f"no cell {cell!r}; there are {', '.join(self._ports)}", identifier=cell)
        return port.link.database

    # ---- inside

    def _prepare(self, query: Query) -> _Asked:
        return _Asked(self.source, query, self._statements)

    def _choose(self, asked: _Asked) -> tuple[dict[str, Port], dict[str, CellReport]]:
        """The cells to ask, and reports on the others."""
        routed, why = self._route(asked)
        ports: dict[str, Port] = {}
        reports: dict[str, CellReport] = {}
        for name, port in self._ports.items():
            if not port.cell.enabled:
                reports[name] = CellReport(name=name, state=CellState.SKIPPED, error="disabled")
            elif routed is not None and name not in routed:
                reports[name] = CellReport(name=name, state=CellState.SKIPPED, error=why)
            elif not self._guard.admit(name):
                reports[name] = CellReport(name=name, state=CellState.DOWN, error=self._guard.refusal(name))
            else:
                ports[name] = port
        return ports, reports

    def _route(self, asked: _Asked) -> tuple[frozenset[str] | None, str]:
        """The cells that can contribute, None for all; and the reason for the others."""
        if self.directory is None:
            return None, ""
        routed: frozenset[str] | None = None
        reasons = []
        for what, values, question in (
            ("tenant", asked.equal_to(self.source.tenant), self.directory.cells_of_tenant),
            ("host", asked.equal_to(self.source.host), self.directory.cells_of_host),
        ):
            if values is None or (what == "tenant" and asked.query.deleted is not False):
                continue
            answers = [question(value) for value in values]
            found = [answer for answer in answers if answer is not None]
            if len(found) == len(answers):
                cells = frozenset().union(*found)
                routed = cells if routed is None else routed & cells
                reasons.append(what)
        return routed, f"the directory has nothing of this {' and '.join(reasons)} here"

    def _owners(self, ports: Mapping[str, Port]) -> Mapping[str, str]:
        return {} if self.directory is None or len(ports) < 2 else self.directory.moving()

    def _settle(self, keys: Iterable[str]) -> Mapping[str, str]:
        return {} if self.directory is None else self.directory.cells_of(keys)

    def close(self) -> None:
        """End the threads and close the connections that the router opened. May be called twice."""
        self._workers.close()
        for port in self._ports.values():
            port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Verify what must hold. Raises InvariantViolated."""
        self._guard.check()


class _Asked:
    """A query checked and made ready."""

    def __init__(self, source: RecordSource, query: Query, statements: dict[Any, Statement]) -> None:
        self.query = query
        where, expression = (query.where, None) if isinstance(query.where, MappingABC) else ({}, query.where)
        self.conditions = conditions_of({**where, **_shorthands(source, query)}, source.columns)
        self.impossible = any(condition.impossible for condition in self.conditions)
        order = order_of(query.sort, source.key, source.columns)
        shown = projection_of(query, source.key, source.columns)
        self.plan = Plan(source, query, self.conditions, order, shown, statements, expression)
        self.shaper = Shaper(source.columns, self.plan.columns, shown)
        self.digest = digest(
            source.name, order, self.conditions, query.deleted, query.hidden, self.plan.words,
            sorted(query.metadata.items()), None if expression is None else _text(expression),
        )  # fmt: skip

    def equal_to(self, column: str | None) -> tuple[Any, ...] | None:
        """The values that a column is confined to by equality, None when it is not."""
        found: list[Condition] = [
            each for each in self.conditions if each.column == column and each.operator in {"eq", "in"}
        ]
        return found[0].values if found else None


def _shorthands(source: RecordSource, query: Query) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for meaning, column, value in (("tenant", source.tenant, query.tenant), ("host", source.host, query.host)):
        if value is not None:
            if column is None:
                raise InvalidQuery(f"{source.name} has no column for the {meaning}", field=meaning)
            where[column] = value
    bounds = {"ge": query.changes_since, "le": query.changes_before}
    bounds = {operator: value for operator, value in bounds.items() if value is not None}
    if bounds:
        if source.updated is None:
            raise InvalidQuery(f"{source.name} does not say when its records changed", field="changes_since")
        where[source.updated] = bounds
    return where


def _text(expression: Any) -> str:
    compiled = expression.compile()
    return f"{compiled}{sorted((k, repr(v)) for k, v in compiled.params.items())}"


def _insist(query: Query, reports: Mapping[str, CellReport]) -> None:
    if query.require is Require.ALL:
        away = {name: each.error for name, each in reports.items() if each.state in {CellState.SLOW, CellState.DOWN}}
        if away:
            text = "; ".join(f"{name}: {error}" for name, error in away.items())
            raise CellUnavailable(f"not every cell answered: {text}", cells=away)


def _cursor(asked: _Asked, positions: Mapping[str, Any], start: Cursor) -> Cursor:
    """The cursor after a page: the furthest position, and the cells that lag behind it."""
    order = asked.plan.order
    reached = [position for position in (*positions.values(), start.position) if position is not None]
    furthest = max(reached, key=order.sort_key) if reached else None
    lagging = {name: position for name, position in positions.items() if position != furthest}
    return Cursor(digest=asked.digest, position=furthest, lagging=lagging)
