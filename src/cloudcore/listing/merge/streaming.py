"""Streams: the whole result in order, with bounded memory, from one merge that keeps fetching ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from cloudcore._forks import when_forked
from cloudcore._values import FrozenDict
from cloudcore.errors import Cancelled, Overloaded
from cloudcore.listing.merge.driver import MergeDriver
from cloudcore.listing.merge.merging import Merge
from cloudcore.listing.merge.resuming import cursor_after, insist, missing
from cloudcore.listing.values import CellReport, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.listing.cells.admission import Turn
    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.merge.merging import Entry
    from cloudcore.listing.merge.services import RouterServices
    from cloudcore.listing.query.cursors import Cursor
    from cloudcore.listing.query.prepared import PreparedQuery

__all__ = ["Stream"]

_BUFFERED = 1000
"""Rows asked for at once, over all cells: what bounds the memory."""


class Stream(Iterator[Record]):
    """An iterator over a whole result. For one thread, except :meth:`cancel`.

    Memory is bounded by the rows fetched ahead, whatever the total. A cell that fails takes no other with it: its rows
    up to the failure come, :attr:`cells` blames it, and :attr:`resume_cursor` goes on without losing any.
    """

    def __init__(
        self,
        services: RouterServices,
        prepared: PreparedQuery,
        backends: Mapping[str, Backend],
        reports: Mapping[str, CellReport],
        start: Cursor,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._services, self._prepared, self._start = services, prepared, start
        self._keys = services.cursor_keys
        self._others = dict(reports)
        self._progress = on_progress
        batch = max(16, min(1000, _BUFFERED // max(1, len(backends))))
        self._merge = Merge(
            prepared.order,
            {name: start.start_of(name) for name in backends},
            limit=None,
            indexes=prepared.plan.indexes,
            batch=batch,
            owners=services.owners(len(backends)),
            retain=False,
        )
        self._driver = MergeDriver(prepared, prepared.plan, self._merge, backends, services, patient=True)
        self._names = list(self._merge.runs)
        self._numbers = [0] * len(self._names)
        self._block: Iterator[Entry] = iter(())
        self._last: Entry | None = None
        self._count = 0
        self._ended = prepared.impossible
        self._cancelled = False
        self._stopped: Cancelled | Overloaded | None = None
        """Why what was under way is gone; it cannot go on, and is not at its end."""
        when_forked(self, Stream._part)

    def _part(self) -> None:
        """In a forked child: threads of its parent fetch ahead, and for that alone."""
        self._stopped = Cancelled("the stream is the parent's: go on with another, from resume_cursor")

    def __next__(self) -> Record:
        """The next record.

        Raises:
            CellUnavailable: ``require="all"`` and some cell did not answer.
            Cancelled: :meth:`cancel` was called; or the call that reads it was cancelled, then each time from now on.
            Overloaded: Too many other calls were under way for too long. Once cells were asked, each time from now on.
            Cancelled: A signal interrupted it before, or this is a forked child, whose parent has made it. Nothing
                that it had not given out is lost to its resume_cursor.
        """
        try:
            entry = next(self._block, None)
            if entry is None:
                entry = self._refill()
            record = Record(self._prepared.layout, entry[2], self._names[entry[1]])
        except Exception:
            raise
        except BaseException:
            self._block = iter(())
            self._stopped = Cancelled("the stream was interrupted: go on with another, from resume_cursor")
            raise
        self._last = entry
        self._numbers[entry[1]] += 1
        return record

    def _refill(self) -> Entry:
        if self._cancelled:
            self._cancelled = False
            self.close()
            raise Cancelled(f"the listing was cancelled after {self._count} records")
        if self._stopped is not None and not self._ended:
            raise self._stopped
        block = [] if self._ended else self._next_block()
        insist(self._prepared.query, self.cells)
        if not block:
            self._ended = True
            raise StopIteration
        self._count += len(block)
        if self._progress is not None:
            self._progress(self._count)
        self._block = iter(block)
        return next(self._block)

    def _next_block(self) -> list[Entry]:
        return self._services.in_turn(len(self._names), self._advance)

    def _advance(self, turn: Turn) -> list[Entry]:
        self._driver.work_by(turn)
        try:
            return self._driver.advance()
        except (Cancelled, Overloaded) as error:
            self._stopped = error
            raise
        finally:
            self._driver.work_by(None)

    @property
    def cells(self) -> Mapping[str, CellReport]:
        """What became of each cell so far."""
        reports = dict(self._others)
        for number, (name, run) in enumerate(self._merge.runs.items()):
            ended = run.exhausted and not run.left
            reports[name] = self._driver.outcomes[name].report(name, self._numbers[number], exhausted=ended)
        return FrozenDict(reports)

    @property
    def resume_cursor(self) -> str | None:
        """Where to go on after the last record taken, with this query; None when everything has been had."""
        reports = self.cells
        away = missing(reports)
        if self._ended and not away:
            return None
        positions: dict[str, Any] = {name: self._start.start_of(name) for name in away}
        if self._last is None:
            positions.update({name: self._start.start_of(name) for name in self._names})
        else:
            positions.update(self._merge.positions(self._last))
        return cursor_after(self._prepared, positions, self._start, frozenset(away)).encode(self._keys)

    def cancel(self) -> None:
        """From any thread: the iteration raises :class:`~cloudcore.errors.Cancelled` before its next batch."""
        self._cancelled = True

    def close(self) -> None:
        """Drop what is under way. The stream gives nothing more."""
        self._driver.stop()
        self._block = iter(())
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
