"""Pages: drives one merge to its limit, fetches the winners' rows where keys came first, and writes the cursor."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._values import FrozenDict
from cloudcore.listing.cells.in_flight import ask_all
from cloudcore.listing.merge.driver import MergeDriver
from cloudcore.listing.merge.merging import Merge, batch_size
from cloudcore.listing.merge.placeholders import Placeholder, Placeholders
from cloudcore.listing.merge.resuming import cursor_after, insist, missing
from cloudcore.listing.query.cursors import Cursor
from cloudcore.listing.values import CellReport, Fetching, Page, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing.cells.admission import Turn
    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.cells.requests import Attempt
    from cloudcore.listing.merge.merging import Entry
    from cloudcore.listing.merge.services import RouterServices
    from cloudcore.listing.query.order import Position
    from cloudcore.listing.query.prepared import PreparedQuery

__all__ = ["Pager"]

_Pair = tuple[tuple[Any, ...], Record, "Entry | Placeholder"]
"""Sort key, record, and what it was made of: the entry if a cell sent it."""
_WASTEFUL = 8
"""Rows fetched for each row shown, beyond which wide rows are better fetched by their keys afterwards."""


class Pager:
    """Makes one page.

    Args:
        services: The router's.
        prepared: What is wanted.
        backends: The cells to ask.
        reports: What is known of the other cells already.
        start: Where the page begins.
    """

    def __init__(
        self,
        services: RouterServices,
        prepared: PreparedQuery,
        backends: Mapping[str, Backend],
        reports: Mapping[str, CellReport],
        start: Cursor,
    ) -> None:
        self._services, self._prepared, self._backends, self._start = services, prepared, backends, start
        self._others = dict(reports)
        self._away: list[str] = []
        """Cells that should have answered and did not."""
        self._keys_first = _keys_first(prepared, len(backends))
        self._plan = prepared.keys if self._keys_first else prepared.plan
        self._merge = Merge(
            prepared.order,
            {name: start.start_of(name) for name in backends},
            limit=prepared.query.limit,
            indexes=self._plan.indexes,
            owners=services.owners(len(backends)),
            alone=not prepared.query.unknown,
        )
        self._driver = MergeDriver(prepared, self._plan, self._merge, backends, services)

    def page(self) -> Page:
        """Ask, merge and report.

        Raises:
            CellUnavailable: ``require="all"`` and some cell did not answer.
            Overloaded: Too many other calls were under way for too long.
        """
        return self._services.in_turn(len(self._backends), self._page)

    def _page(self, turn: Turn) -> Page:
        self._driver.work_by(turn)
        self._driver.run()
        rows = self._winners(turn) if self._keys_first else {}
        self._driver.stop()
        merge = self._merge
        entries = merge.taken()
        if self._keys_first:
            entries = [entry for entry in entries if merge.key_of(entry) in rows]
        reports = self._reports(entries)
        insist(self._prepared.query, reports)
        self._away = missing(reports)
        if self._prepared.query.unknown and self._away and not self._start.backward:
            return self._with_unknown(entries, rows, reports)
        cursor = self._cursor(self._positions(None))
        page = self._finish(self._records(entries, rows), cursor, reports, more=merge.more)
        return self._backward(page, entries) if self._start.backward else self._forward(page, entries)

    def _forward(self, page: Page, entries: list[Entry]) -> Page:
        """With the way back, unless it begins where the result does."""
        if self._start.position is None or not entries:
            return page
        return attrs.evolve(page, previous_cursor=self._word(entries[0], backward=True))

    def _backward(self, page: Page, entries: list[Entry]) -> Page:
        """What was read from its end to its beginning, in the order asked for."""
        onward = self._word(entries[0] if entries else None)
        return attrs.evolve(
            page,
            records=page.records[::-1],
            next_cursor=onward,
            resume_cursor=onward,
            previous_cursor=self._word(entries[-1], backward=True) if entries and page.next_cursor else None,
        )

    def _word(self, entry: Entry | None, *, backward: bool = False) -> str:
        """A cursor at a row; without one, at the beginning."""
        position = None if entry is None else self._merge.position_of(entry)
        cursor = Cursor(digest=self._prepared.digest, position=position, lagging={}, backward=backward)
        return cursor.encode(self._services.cursor_keys)

    def _records(self, entries: list[Entry], rows: Mapping[str, Any]) -> list[Record]:
        layout, names = self._prepared.layout, list(self._merge.runs)
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
            reports[name] = self._driver.outcomes[name].report(name, numbers.get(number, 0), exhausted=ended)
        return reports

    def _positions(self, end: Entry | None) -> dict[str, Position | None]:
        positions = {name: self._start.start_of(name) for name in self._away}
        positions.update(self._merge.positions(end))
        positions.update((name, self._start.start_of(name)) for name in self._lost)
        return positions

    def _cursor(self, positions: Mapping[str, Position | None]) -> Cursor:
        return cursor_after(self._prepared, positions, self._start, frozenset(self._away))

    def _finish(self, records: list[Record], cursor: Cursor, reports: dict[str, CellReport], *, more: bool) -> Page:
        word = cursor.encode(self._services.cursor_keys)
        return Page(
            records=tuple(records),
            next_cursor=word if more else None,
            resume_cursor=word if more or self._away else None,
            cells=FrozenDict(reports),
        )

    # ---- keys first

    _lost: frozenset[str] = frozenset()
    """Cells that gave keys but not the rows: nothing of them counts as given out."""

    def _winners(self, turn: Turn) -> dict[str, Any]:
        """Whole rows of the winners by key. Where rows vanished meanwhile, further winners take their places."""
        found: dict[str, Any] = {}
        wanted = self._merge.taken()
        while wanted:
            found.update(self._fetch_rows(wanted, turn))
            gone = sum(
                self._merge.cell_of(each) not in self._lost and self._merge.key_of(each) not in found for each in wanted
            )
            if not gone:
                break
            before = len(self._merge.taken())
            self._merge.extend(gone)
            self._driver.run()
            wanted = self._merge.taken()[before:]
        return found

    def _fetch_rows(self, entries: list[Entry], turn: Turn) -> dict[str, Any]:
        keys: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            cell = self._merge.cell_of(entry)
            if cell not in self._lost:
                keys[cell].append(self._merge.key_of(entry))
        backends = {cell: self._backends[cell] for cell in keys}
        results, outcomes, errors = ask_all(
            backends,
            lambda cell: self._row_fetcher(keys[cell]),
            start=self._services.start,
            clock=self._services.clock,
            serial=True,
            turn=turn,
        )
        for cell, outcome in outcomes.items():
            mine = self._driver.outcomes[cell]
            mine.statements += outcome.statements
            mine.seconds += outcome.seconds
            if cell in errors:
                mine.state, mine.error, mine.failure = outcome.state, outcome.error, outcome.failure
        self._lost |= errors.keys()
        place = self._prepared.plan.indexes[-1]
        named = self._merge.named
        return {named(row[place]): row for rows in results.values() for row in rows}

    def _row_fetcher(self, keys: list[str]) -> Callable[[Attempt], Any]:
        def work(attempt: Attempt) -> Any:
            plan = self._prepared.plan
            return attempt.fetch(plan.source.table, lambda dialect, layout: plan.winners(dialect, keys, layout))

        return work

    # ---- records that only the directory vouches for

    def _with_unknown(self, entries: list[Entry], rows: Mapping[str, Any], reports: dict[str, CellReport]) -> Page:
        placeholders = Placeholders(self._services, self._prepared, self._away)
        records, merge, limit = self._records(entries, rows), self._merge, self._prepared.query.limit
        if not placeholders.possible:
            cursor = self._cursor(self._positions(None))
            return self._finish(records, cursor, reports, more=merge.more)
        if placeholders.in_place:
            key = self._prepared.source.key
            shown = {record[key] for record in records}
            found = [each for each in placeholders.after(self._start.position, limit) if each.record[key] not in shown]
            pairs: list[_Pair] = [(entry[0], record, entry) for entry, record in zip(entries, records, strict=True)]
            pairs += [(each.key, each.record, each) for each in found]
            pairs.sort(key=lambda pair: pair[0])
            chosen = pairs if limit is None else pairs[:limit]
            return self._mixed(
                chosen, reports, len(entries), more=merge.more or len(chosen) < len(pairs) or placeholders.more
            )
        return self._tail(placeholders, records, reports)

    def _mixed(self, chosen: list[_Pair], reports: dict[str, CellReport], kept: int, *, more: bool) -> Page:
        """A page of both kinds in one order: the cursor stands at its last row, whichever kind that is."""
        real = [pair[2] for pair in chosen if not isinstance(pair[2], Placeholder)]
        whole = len(real) == kept
        if whole:
            positions = self._positions(None)
        elif real:
            positions = self._positions(real[-1])
        else:
            positions = {name: self._start.start_of(name) for name in reports}
        cursor = self._cursor(positions)
        if chosen and isinstance(last := chosen[-1][2], Placeholder):
            cursor = cursor.moved(last.position, self._prepared.order.sort_key)
        numbers: dict[str, int] = defaultdict(int)
        for pair in chosen:
            numbers[pair[1].cell] += 1
        for name in reports:
            reports[name] = attrs.evolve(reports[name], rows=numbers[name])
        return self._finish([pair[1] for pair in chosen], cursor, reports, more=more)

    def _tail(self, placeholders: Placeholders, records: list[Record], reports: dict[str, CellReport]) -> Page:
        """Placeholders after everything else, by key."""
        merge, limit = self._merge, self._prepared.query.limit
        cursor = self._cursor(self._positions(None))
        more = merge.more
        if not more and (limit is None or len(records) < limit):
            room = None if limit is None else limit - len(records)
            found = placeholders.tail(self._start.tail, room)
            records = [*records, *(each.record for each in found)]
            more = placeholders.more
            if found:
                cursor = attrs.evolve(cursor, tail=found[-1].record[self._prepared.source.key])
        elif not more:
            more = True  # the page is full; the placeholders come on the next
        return self._finish(records, cursor, reports, more=more)


def _keys_first(prepared: PreparedQuery, cells: int) -> bool:
    """Whether keys are fetched before rows, when so many cells are asked."""
    query = prepared.query
    if query.fetching is not Fetching.AUTO:
        return query.fetching is Fetching.KEYS
    if query.limit is None or not prepared.wide:
        return False
    fetched = cells * batch_size(query.limit / max(1, cells))
    return fetched > _WASTEFUL * query.limit
