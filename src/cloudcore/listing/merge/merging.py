"""The merge of many ordered cells into one order. Pure: it asks for rows, is fed rows, and gives rows out.

The core knows no threads, clocks or databases. :meth:`Merge.fetches` says "fetch so many rows from this cell after this
position"; whoever drives it answers each with :meth:`Merge.feed` or :meth:`Merge.fail`, in any order, and takes what
:meth:`Merge.emit` has ready. Rules:

1. A row is given out only when no cell that may still send rows could send a smaller one: up to the *frontier*, the
   smallest of the last rows received from those cells. All rows up to the frontier are sorted in one go; Python's sort
   finds the runs that the cells sent and merges them, which is several times faster than a heap in Python.
2. The first batch is the expected share of the page plus nearly three standard deviations; later ones follow what the
   cell has contributed so far. A batch that came shorter than asked ends its cell.
3. A cell that sends a row not strictly after the one before it, or one that cannot be read, has failed; its rows up to
   there are good.
4. A cell that fails keeps its rows and its position: where to go on later without losing any.
5. Of records with one key in two cells, the one in the cell that owns it is given out, and only that.

It is longer than a module should be because these rules share one state, which no two of them may see differently.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import repeat
from math import ceil, sqrt
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import DatabaseError, InvariantViolated, UnreadableValue
from cloudcore.listing.query.kinds import Kind, dashed
from cloudcore.listing.query.order import Order, Position, Unfit, ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Fetch", "Merge", "Run", "batch_size"]

Row = tuple[Any, ...]
Entry = tuple[tuple[Any, ...], int, Row]
"""Sort key, number of the run, row as the driver returned it."""

_NUMBER, _ROW = itemgetter(1), itemgetter(2)


@attrs.frozen
class Fetch:
    """An instruction: ask *cell* for *count* rows that come strictly after *after* (None: from the start).

    ``first``: nothing has come from the cell yet.
    """

    cell: str
    after: Position | None
    count: int
    first: bool = True


def batch_size(expected: float) -> int:
    """Rows to ask of a cell that is expected to give *expected*: plus nearly three standard deviations and a few.

    Of eighty cells with an even share one falls short on a page in twenty.
    """
    size = ceil(expected + 2.7 * sqrt(expected) + 3)
    return size if size <= 16 else -(-size // 2) * 2  # few distinct sizes: few distinct statements


def _shown(position: Position | None) -> str:
    return "nothing" if position is None else "(" + ", ".join(f"{value!r:.60}" for value in position) + ")"


class Run:
    """What the merge knows of one cell."""

    __slots__ = (
        "cell", "count", "edge", "emitted", "exhausted", "failed", "fetched",
        "keys", "origin", "problem", "rows", "start", "tail", "waiting",
    )  # fmt: skip

    cell: str
    count: int
    edge: tuple[Any, ...] | None
    emitted: int
    exhausted: bool
    failed: bool
    fetched: int
    origin: Position | None
    start: int
    waiting: bool

    def __init__(self, cell: str, origin: Position | None, edge: tuple[Any, ...] | None) -> None:
        self.cell = cell
        self.origin = origin
        self.edge = edge
        """Sort key of the last row received; at first that of the position to start after."""
        self.tail: Row | None = None
        """The last row received."""
        self.keys: list[tuple[Any, ...]] = []
        self.rows: list[Row] = []
        self.start = 0
        self.count = 0
        self.waiting = False
        self.exhausted = False
        self.failed = False
        self.problem: DatabaseError | None = None
        """What is wrong with a row that it sent."""
        self.emitted = 0
        self.fetched = 0

    @property
    def left(self) -> int:
        """Rows received and not given out."""
        return len(self.keys) - self.start

    @property
    def open(self) -> bool:
        """Whether the cell may send more."""
        return not (self.exhausted or self.failed)


class Merge:
    """One merge over cells.

    Not thread-safe: one driver at a time.

    Args:
        order: The order of every cell and of the result.
        cells: Each cell with the position to start after, None for the beginning.
        limit: Rows wanted; None for all.
        indexes: Where in a row the order's columns are; the last one is the record's key.
        batch: Rows to ask for at a time when there is no limit.
        owners: Cells that own records known to be in two cells; copies elsewhere are left out.
        retain: Keep what was given out, so that a copy can still be replaced by the owner's (:meth:`taken`). False
            for streams, whose rows are gone once given out.
        alone: With a single cell, number its rows instead of working out sort keys; the keys of entries then mean
            nothing beyond this merge.
    """

    runs: dict[str, Run]

    def __init__(
        self,
        order: Order,
        cells: Mapping[str, Position | None],
        *,
        limit: int | None,
        indexes: Sequence[int],
        batch: int = 500,
        owners: Mapping[str, str] | None = None,
        retain: bool = True,
        alone: bool = True,
    ) -> None:
        self.order = order
        self._edges: dict[Position | None, Any] = {None: None}  # nearly all cells start after the same position
        self.runs = {cell: Run(cell, origin, self._edge(origin)) for cell, origin in cells.items()}
        self.limit = limit
        self.disputed: frozenset[str] = frozenset()
        self._numbered = list(self.runs.values())
        self._alone = alone and len(self.runs) == 1
        self._values_of = tuple(map(itemgetter, indexes))
        self._key_of = self._values_of[-1]
        self.named: Callable[[Any], str] = dashed if order.keys[-1].kind is Kind.UUID else str
        self._batch = batch
        self._owners: dict[str, str | None] = dict(owners or {})
        self._retain = retain
        self._taken: list[Entry] = []
        self._seen: set[str] = set()
        self._count = 0
        self._end: Entry | None = None

    # ---- instructions

    @property
    def done(self) -> bool:
        """Nothing more will be given out: the limit is reached, or every cell has ended."""
        if self.limit is not None and self._count >= self.limit:
            return True
        return not any(run.open or run.left for run in self._numbered)

    @property
    def more(self) -> bool:
        """Whether rows may remain beyond what was given out, in cells that did not fail."""
        return any((run.open or run.left) for run in self._numbered)

    def fetches(self) -> list[Fetch]:
        """What to ask for now; each instruction is given once."""
        if self.done:
            return []
        wanted = []
        counts: dict[tuple[int, int], int] = {}  # at first all cells are alike
        for run in self._numbered:
            if run.waiting or run.exhausted or run.failed:
                continue
            standing = run.emitted, len(run.keys) - run.start
            count = counts.get(standing)
            if count is None:
                count = counts[standing] = self._wanted(*standing)
            if count:
                run.waiting, run.count = True, count
                wanted.append(Fetch(run.cell, self._last(run), count, run.tail is None))
        return wanted

    def _wanted(self, emitted: int, left: int) -> int:
        """Rows to ask of a cell that gave out *emitted* and has *left* waiting."""
        if self.limit is None:
            return self._batch if left <= self._batch // 2 else 0
        remaining = self.limit - self._count
        if len(self._numbered) == 1:
            return remaining + 1 - left if left <= remaining else 0
        share = (emitted + 1) / (self._count + len(self._numbered))
        expected = remaining * share - left
        if left and expected <= 0:
            return 0
        return min(batch_size(max(expected, 0.0)), remaining + 1)

    # ---- answers

    def feed(self, cell: str, rows: Sequence[Row], *, cut: bool = False) -> bool:
        """Take the answer to the fetch of *cell*. Returns False when one cannot be read or is out of order.

        The cell has failed then, and its rows up to there are good; the run's ``problem`` says what is wrong.

        *cut*: there are fewer rows than asked for because reading was left off, not because the cell has no more.
        """
        run = self.runs[cell]
        run.waiting, number = False, run.fetched
        run.fetched += len(rows)
        run.exhausted = len(rows) < run.count and not cut
        if not rows:
            return True
        rows, columns = self._read(run, rows)
        keys: list[Any]
        if not rows:
            return False
        if self._alone and self._follows(run, columns) and self.order.plainly_ordered(columns):
            edge: Any = self.order.sort_keys([values[-1:] for values in columns])[0]
        else:
            keys = self.order.sort_keys(columns)
            good = self._check_order(run, keys)
            if good is not None:
                run.failed, run.problem = True, self._disorder(run, rows, good)
                rows, keys = rows[:good], keys[:good]
            edge = keys[-1] if keys else None
        if self._alone:
            keys = list(range(number, number + len(rows)))
        if run.start < len(run.keys):
            run.keys = run.keys[run.start :] + keys
            run.rows = [*run.rows[run.start :], *rows]
        else:
            run.keys, run.rows = keys, list(rows)
        run.start = 0
        if keys:
            run.tail, run.edge = rows[-1], edge
        return run.problem is None

    def _read(self, run: Run, rows: Sequence[Row]) -> tuple[Sequence[Row], list[list[Any]]]:
        """Rows up to the first that cannot be compared, which is the end of its cell, and their sort columns."""
        columns = [list(map(values_of, rows)) for values_of in self._values_of]
        try:
            return rows, self.order.read(columns)
        except Unfit as unfit:
            key = self._key_of(rows[unfit.row])
            run.failed = True
            run.problem = UnreadableValue(
                f"{run.cell}: row {key!r:.100}: {unfit.column}: {unfit}",
                cell=run.cell,
                column=unfit.column,
                identifier=str(key),
                value=unfit.value,
            )
            good = [values[: unfit.row] for values in columns]
            return rows[: unfit.row], self.order.read(good) if unfit.row else good

    def _disorder(self, run: Run, rows: Sequence[Row], good: int) -> DatabaseError:
        before = rows[good - 1] if good else run.tail
        position = run.origin if before is None else self._position(before)
        following = self._position(rows[good])
        return DatabaseError(
            f"rows came out of order or twice: {_shown(position)} was followed by {_shown(following)}; "
            "the database does not sort as told, or an index of it is corrupt"
        )

    def _follows(self, run: Run, columns: list[list[Any]]) -> bool:
        """Whether the first new row comes after the last old one."""
        if run.edge is None:
            return True
        return bool(run.edge < self.order.sort_keys([values[:1] for values in columns])[0])

    def _check_order(self, run: Run, keys: list[tuple[Any, ...]]) -> int | None:
        """Number of rows that are in order, None when all are."""
        if run.edge is not None and not run.edge < keys[0]:
            return 0
        return ordered(keys)

    def fail(self, cell: str) -> None:
        """*cell* will answer no more: what it has sent is still given out."""
        run = self.runs[cell]
        run.waiting, run.failed = False, True

    def decide(self, owners: Mapping[str, str]) -> None:
        """Settle the *disputed* records: which cell owns each. Without an owner the first copy in the order stays."""
        for key in self.disputed:
            self._owners[key] = owners.get(key)
        self.disputed = frozenset()

    # ---- results

    def emit(self) -> list[Entry]:
        """Give out all rows that are certain. Empty: more answers are needed, a dispute must be settled, or it is done.

        With *retain* use :meth:`taken` at the end instead of what this returns.
        """
        given: list[Entry] = []
        while not self.done and (block := self._block()):
            accepted = self._accept(block)
            if accepted is None:
                break
            given += accepted
        return given

    def _block(self) -> list[Entry]:
        """All rows up to the frontier, sorted, or nothing if a cell has yet to answer."""
        open_runs = [run for run in self._numbered if run.open]
        if not all(run.left for run in open_runs):
            return []
        frontier = min(run.keys[-1] for run in open_runs) if open_runs else None
        block: list[Entry] = []
        for number, run in enumerate(self._numbered):
            if run.left:
                stop = len(run.keys) if frontier is None else bisect_right(run.keys, frontier, run.start)
                block += zip(run.keys[run.start : stop], repeat(number), run.rows[run.start : stop])
        if not self._alone:
            block.sort()
        return block

    def _accept(self, block: list[Entry]) -> list[Entry] | None:
        """Take rows from the sorted *block* up to the limit; None when a dispute must be settled first."""
        room = len(block) if self.limit is None else self.limit - self._count
        accepted, consumed = block[:room], min(room, len(block))
        keys = [] if self._alone else self._keys(accepted)
        if self._owners or len(set(keys)) < len(keys) or not self._seen.isdisjoint(keys):
            self.disputed = self._disputes(block)
            if self.disputed:
                return None
            accepted, consumed = self._owned(block)
            keys = self._keys(accepted)
        if self._retain:
            self._taken += accepted
            self._seen.update(keys)
        self._count += len(accepted)
        self._consume(block, consumed, accepted)
        return accepted

    def _keys(self, entries: Iterable[Entry]) -> list[str]:
        return list(map(self.named, map(self._key_of, map(_ROW, entries))))

    def _disputes(self, block: list[Entry]) -> frozenset[str]:
        """Keys that are there twice and of which nobody has said who owns them."""
        seen = Counter(self._keys(block))
        return frozenset(
            key for key, times in seen.items() if key not in self._owners and (times > 1 or key in self._seen)
        )

    def _owned(self, block: list[Entry]) -> tuple[list[Entry], int]:
        """The entries to give out and how much of the block that uses up."""
        accepted: list[Entry] = []
        given: set[str] = set()
        for used, entry in enumerate(block):
            if self.limit is not None and self._count + len(accepted) >= self.limit:
                return accepted, used
            key = self.key_of(entry)
            cell, owner = self._numbered[entry[1]].cell, self._owners.get(key)
            if key in given or (owner is not None and owner != cell and owner in self.runs):
                continue
            if key in self._seen:
                if owner != cell:
                    continue
                self._take_back(key)  # the other copy was given out before anybody knew; its place becomes free
            given.add(key)
            accepted.append(entry)
        return accepted, len(block)

    def _take_back(self, key: str) -> None:
        """Leave out a copy that was given out."""
        self._taken = [entry for entry in self._taken if self.key_of(entry) != key]
        self._seen.discard(key)
        self._count -= 1

    def _consume(self, block: list[Entry], consumed: int, accepted: list[Entry]) -> None:
        for number, times in self.numbers(accepted).items():
            self._numbered[number].emitted += times
        if not consumed:
            return
        end = block[consumed - 1]
        if self._end is None or self._end[0] < end[0]:
            self._end = end
        for run in self._numbered:
            if run.left:
                run.start = bisect_right(run.keys, end[0], run.start)

    def taken(self) -> list[Entry]:
        """Everything given out, in order, after replacements."""
        return self._taken

    def numbers(self, entries: list[Entry]) -> Mapping[int, int]:
        """How many of the entries came from each run, by its number."""
        return {0: len(entries)} if self._alone else Counter(map(_NUMBER, entries))

    def key_of(self, entry: Entry) -> str:
        """The record's key of a row."""
        return self.named(self._key_of(entry[2]))

    def position_of(self, entry: Entry) -> Position:
        """Where a row stands."""
        return self._position(entry[2])

    def cell_of(self, entry: Entry) -> str:
        """The cell that sent a row."""
        return self._numbered[entry[1]].cell

    def positions(self, end: Entry | None = None) -> dict[str, Position | None]:
        """For each cell, the position up to which all its rows have been given out.

        Args:
            end: The last row that counts as given out, when the caller has kept some of them back.
        """
        end = end or self._end
        reached = None if end is None else self._position(end[2])
        return {run.cell: self._reached(run, end, reached) for run in self._numbered}

    def _reached(self, run: Run, end: Entry | None, reached: Position | None) -> Position | None:
        if self._alone and end is not None:
            return reached
        if end is None or (run.origin is not None and not self._edge(run.origin) < end[0]):
            return run.origin
        if run.failed and not run.left and (run.edge is None or run.edge < end[0]):
            return self._last(run)
        return reached

    def _last(self, run: Run) -> Position | None:
        """The position of the last row received."""
        return run.origin if run.tail is None else self._position(run.tail)

    def _edge(self, position: Position | None) -> Any:
        """The sort key of a position."""
        found = self._edges.get(position)
        if found is None and position is not None:
            found = self._edges[position] = self.order.sort_key(position)
        return found

    def extend(self, number: int) -> None:
        """Give out *number* rows more than the limit said: some of those given out have vanished meanwhile."""
        if self.limit is not None:
            self.limit += number

    def _position(self, row: Row) -> Position:
        return self.order.position(tuple([value_of(row) for value_of in self._values_of]))

    def check(self) -> None:
        """Verify what must hold between calls.

        Raises:
            InvariantViolated: A run is out of order, or counts disagree.
        """
        for run in self._numbered:
            if len(run.keys) != len(run.rows) or (not self._alone and ordered(run.keys) is not None):
                raise InvariantViolated(f"merge: the buffered rows of {run.cell} are not in order")
        if self._retain and not self._alone and ordered([entry[0] for entry in self._taken]) is not None:
            raise InvariantViolated("merge: rows were given out out of order")
        if self._retain and self._count != len(self._taken):
            raise InvariantViolated(f"merge: {self._count} counted, {len(self._taken)} given out")
