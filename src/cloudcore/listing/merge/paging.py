"""Pages: drives one merge to its limit, fetches the winners' rows where keys came first, and writes the cursor."""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import CellUnavailable
from cloudcore.listing.cells.requests import ask_all
from cloudcore.listing.merge.driver import Gather
from cloudcore.listing.merge.merging import Merge
from cloudcore.listing.merge.placeholders import Unknowns
from cloudcore.listing.query.cursors import Cursor
from cloudcore.listing.values import CellReport, CellState, Page, Query, Record, Require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.listing.cells.backends import Port
    from cloudcore.listing.cells.requests import Ask
    from cloudcore.listing.merge.merging import Entry
    from cloudcore.listing.query.order import Position
    from cloudcore.listing.query.prepared import Asked
    from cloudcore.listing.records.directory import Directory

__all__ = ["Means", "Pager", "cursor_after", "insist", "missing"]

_Pair = tuple[tuple[Any, ...], Record, "Entry | None"]
"""Sort key, record, and the entry if a cell sent it."""

_AWAY = frozenset({CellState.SLOW, CellState.DOWN})


@attrs.frozen(kw_only=True)
class Means:
    """What a call needs of its router."""

    start: Callable[[Callable[[], None]], None]
    clock: Callable[[], float]
    directory: Directory | None

    def settle(self, keys: Iterable[str]) -> Mapping[str, str]:
        """The cells that own records found in two."""
        return {} if self.directory is None else self.directory.cells_of(keys)

    def owners(self, cells: int) -> Mapping[str, str]:
        """The records known to be in two cells now, with the cell that owns each."""
        return {} if self.directory is None or cells < 2 else self.directory.moving()


class Pager:
    """Makes one page.

    Args:
        means: The router's.
        asked: What is wanted.
        ports: The cells to ask.
        reports: What is known of the other cells already.
        start: Where the page begins.
    """

    def __init__(
        self,
        means: Means,
        asked: Asked,
        ports: Mapping[str, Port],
        reports: Mapping[str, CellReport],
        start: Cursor,
    ) -> None:
        self._means, self._asked, self._ports, self._start = means, asked, ports, start
        self._others = dict(reports)
        self._away: list[str] = []
        """Cells that should have answered and did not."""
        self._keys_first = asked.keys_first(len(ports))
        self._plan = asked.keys if self._keys_first else asked.plan
        self._merge = Merge(
            asked.order,
            {name: start.start_of(name) for name in ports},
            limit=asked.query.limit,
            indexes=self._plan.indexes,
            owners=means.owners(len(ports)),
            alone=not asked.query.unknown,
        )
        self._gather = Gather(self._plan, self._merge, ports, start=means.start, settle=means.settle, clock=means.clock)

    def page(self) -> Page:
        """Ask, merge and report.

        Raises:
            CellUnavailable: ``require="all"`` and some cell did not answer.
        """
        self._gather.run()
        rows = self._winners() if self._keys_first else {}
        self._gather.stop()
        merge = self._merge
        entries = merge.taken()
        if self._keys_first:
            entries = [entry for entry in entries if merge.key_of(entry) in rows]
        reports = self._reports(entries)
        insist(self._asked.query, reports)
        self._away = missing(reports)
        if self._asked.query.unknown and self._away:
            return self._with_unknown(entries, rows, reports)
        cursor = self._cursor(self._positions(None))
        return self._finish(self._records(entries, rows), cursor, reports, more=merge.more)

    def _records(self, entries: list[Entry], rows: Mapping[str, Any]) -> list[Record]:
        layout, names = self._asked.layout, list(self._merge.runs)
        if self._keys_first:
            return [Record(layout, rows[self._merge.key_of(entry)], names[entry[1]]) for entry in entries]
        if len(names) == 1:
            name = names[0]
            return [Record(layout, entry[2], name) for entry in entries]
        return [Record(layout, row, names[number]) for _, number, row in entries]

    def _reports(self, entries: list[Entry]) -> dict[str, CellReport]:
        numbers = self._merge.numbers(entries)
        reports = dict(self._others)
        for number, (name, run) in enumerate(self._merge.runs.items()):
            ended = run.exhausted and not run.left
            reports[name] = self._gather.parts[name].report(name, numbers.get(number, 0), exhausted=ended)
        return reports

    def _positions(self, end: Entry | None) -> dict[str, Position | None]:
        positions = {name: self._start.start_of(name) for name in self._away}
        positions.update(self._merge.positions(end))
        positions.update((name, self._start.start_of(name)) for name in self._lost)
        return positions

    def _cursor(self, positions: Mapping[str, Position | None]) -> Cursor:
        return cursor_after(self._asked, positions, self._start, frozenset(self._away))

    def _finish(self, records: list[Record], cursor: Cursor, reports: dict[str, CellReport], *, more: bool) -> Page:
        word = cursor.encode()
        return Page(
            records=tuple(records),
            next_cursor=word if more else None,
            resume_cursor=word if more or self._away else None,
            cells=MappingProxyType(reports),
        )

    # ---- keys first

    _lost: frozenset[str] = frozenset()
    """Cells that gave keys but not the rows: nothing of them counts as given out."""

    def _winners(self) -> dict[str, Any]:
        """Whole rows of the winners by key. Where rows vanished meanwhile, further winners take their places."""
        found: dict[str, Any] = {}
        wanted = self._merge.taken()
        while wanted:
            found.update(self._fetch_rows(wanted))
            gone = sum(
                self._merge.cell_of(each) not in self._lost and self._merge.key_of(each) not in found for each in wanted
            )
            if not gone:
                break
            before = len(self._merge.taken())
            self._merge.extend(gone)
            self._gather.run()
            wanted = self._merge.taken()[before:]
        return found

    def _fetch_rows(self, entries: list[Entry]) -> dict[str, Any]:
        keys: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            cell = self._merge.cell_of(entry)
            if cell not in self._lost:
                keys[cell].append(self._merge.key_of(entry))
        ports = {cell: self._ports[cell] for cell in keys}
        results, parts, errors = ask_all(
            ports,
            lambda cell: self._row_fetcher(keys[cell]),
            start=self._means.start,
            clock=self._means.clock,
            lanes=True,
        )
        for cell, part in parts.items():
            mine = self._gather.parts[cell]
            mine.statements += part.statements
            mine.seconds += part.seconds
            if cell in errors:
                mine.state, mine.error = part.state, part.error
        self._lost |= errors.keys()
        place = self._asked.plan.indexes[-1]
        return {str(row[place]): row for rows in results.values() for row in rows}

    def _row_fetcher(self, keys: list[str]) -> Callable[[Ask], Any]:
        def work(ask: Ask) -> Any:
            return ask.with_lease(lambda ask, lease: ask.run(lease, *self._asked.plan.winners(lease.dialect, keys)))

        return work

    # ---- records that only the directory vouches for

    def _with_unknown(self, entries: list[Entry], rows: Mapping[str, Any], reports: dict[str, CellReport]) -> Page:
        unknowns = Unknowns(self._means, self._asked, self._away)
        records, merge, limit = self._records(entries, rows), self._merge, self._asked.query.limit
        if not unknowns.possible:
            cursor = self._cursor(self._positions(None))
            return self._finish(records, cursor, reports, more=merge.more)
        if unknowns.in_place:
            shown = {record[self._asked.source.key] for record in records}
            fillers = unknowns.after(self._start.position, limit)
            fillers = [each for each in fillers if each.record["uuid"] not in shown]
            pairs: list[_Pair] = [(entry[0], record, entry) for entry, record in zip(entries, records, strict=True)]
            pairs += [(filler.key, filler.record, None) for filler in fillers]
            pairs.sort(key=lambda pair: pair[0])
            chosen = pairs if limit is None else pairs[:limit]
            return self._mixed(
                chosen, reports, len(entries), more=merge.more or len(chosen) < len(pairs) or unknowns.more
            )
        return self._tail(unknowns, records, reports)

    def _mixed(self, chosen: list[_Pair], reports: dict[str, CellReport], kept: int, *, more: bool) -> Page:
        """A page of both kinds in one order: the cursor stands at its last row, whichever kind that is."""
        order = self._asked.order
        real = [pair[2] for pair in chosen if pair[2] is not None]
        whole = len(real) == kept
        if whole:
            positions = self._positions(None)
        elif real:
            positions = self._positions(real[-1])
        else:
            positions = {name: self._start.start_of(name) for name in reports}
        cursor = self._cursor(positions)
        if chosen and chosen[-1][2] is None:
            last = tuple(chosen[-1][1][key.column] for key in order.keys)
            cursor = cursor.moved(last, order.sort_key)
        numbers: dict[str, int] = defaultdict(int)
        for pair in chosen:
            numbers[pair[1].cell] += 1
        for name in reports:
            reports[name] = attrs.evolve(reports[name], rows=numbers[name])
        return self._finish([pair[1] for pair in chosen], cursor, reports, more=more)

    def _tail(self, unknowns: Unknowns, records: list[Record], reports: dict[str, CellReport]) -> Page:
        """Placeholders after everything else, by key."""
        merge, limit = self._merge, self._asked.query.limit
        cursor = self._cursor(self._positions(None))
        more = merge.more
        if not more and (limit is None or len(records) < limit):
            room = None if limit is None else limit - len(records)
            fillers = unknowns.tail(self._start.tail, room)
            records = [*records, *(filler.record for filler in fillers)]
            more = unknowns.more
            if fillers:
                cursor = attrs.evolve(cursor, tail=fillers[-1].record[self._asked.source.key])
        elif not more:
            more = True  # the page is full; the placeholders come on the next
        return self._finish(records, cursor, reports, more=more)


def missing(reports: Mapping[str, CellReport]) -> list[str]:
    """The cells that should have answered and did not."""
    return [name for name, report in reports.items() if report.state in _AWAY]


def insist(query: Query, reports: Mapping[str, CellReport]) -> None:
    """Raise when the query requires every cell and some are missing.

    Raises:
        CellUnavailable: With the reason for each.
    """
    if query.require is Require.ALL and (away := missing(reports)):
        text = "; ".join(f"{name}: {reports[name].error}" for name in away)
        raise CellUnavailable(f"not every cell answered: {text}", cells={name: reports[name].error for name in away})


def cursor_after(asked: Asked, positions: Mapping[str, Position | None], start: Cursor, away: frozenset[str]) -> Cursor:
    """The furthest position reached, and the cells that lag behind it; those that are away always stand by name."""
    reached = {each for each in (*positions.values(), start.position) if each is not None}
    furthest = max(reached, key=asked.order.sort_key) if len(reached) > 1 else next(iter(reached), None)
    lagging = {name: position for name, position in positions.items() if position != furthest or name in away}
    return Cursor(digest=asked.digest, position=furthest, lagging=lagging, tail=start.tail)
