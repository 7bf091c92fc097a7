"""The driver of a merge: sends its fetches to the cells through threads, keeps deadlines, feeds the answers back."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.errors import CloudcoreError, DeadlineExceeded
from cloudcore.listing.statements import segments
from cloudcore.listing.values import CellReport, CellState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.listing.cells import Lease
    from cloudcore.listing.merge import Fetch, Merge
    from cloudcore.listing.ports import Port
    from cloudcore.listing.statements import Plan

__all__ = ["Answer", "Ask", "Gather", "Part"]

_log_order = "rows came out of order or twice: its database does not sort as it was told to, or its index is corrupt"


@attrs.define(eq=False)
class Ask:
    """One job for a worker: run something on one cell and put the answer where it belongs."""

    port: Port
    work: Callable[[Lease, Ask], Any]
    limit: float
    answers: SimpleQueue[Answer]
    clock: Callable[[], float]
    lease: Lease | None = None
    statements: int = 0
    dropped: bool = False

    def __call__(self) -> None:
        """Run in a worker. Never raises."""
        began = self.clock()
        try:
            with self.port.link.lease(self.limit) as lease:
                self.lease = lease
                try:
                    result = None if self.dropped else self.work(lease, self)
                finally:
                    self.lease = None
        except CloudcoreError as error:
            self.answers.put(Answer(self, None, error, self.clock() - began))
        except Exception as error:
            self.answers.put(
                Answer(self, None, CloudcoreError(f"{type(error).__name__}: {error}"), self.clock() - began)
            )
        else:
            self.answers.put(Answer(self, result, None, self.clock() - began))

    def drop(self) -> None:
        """Nobody waits any more: make the statement under way fail."""
        self.dropped = True
        lease = self.lease
        if lease is not None:
            lease.abort()


@attrs.frozen(eq=False)
class Answer:
    """What came of an :class:`Ask`."""

    ask: Ask
    result: Any
    error: CloudcoreError | None
    seconds: float


@attrs.define
class Part:
    """One cell's part so far."""

    state: CellState = CellState.ANSWERED
    fetched: int = 0
    statements: int = 0
    seconds: float = 0.0
    error: str | None = None

    def report(self, name: str, rows: int, *, exhausted: bool) -> CellReport:
        """The part as callers see it."""
        return CellReport(
            name=name,
            state=self.state,
            rows=rows,
            fetched=self.fetched,
            statements=self.statements,
            seconds=self.seconds,
            error=self.error,
            exhausted=exhausted,
        )


class Gather:
    """Drives one merge. Used by one thread at a time.

    Args:
        plan: What to ask.
        merge: The merge to feed.
        ports: The cells to ask.
        start: Starts a job in another thread.
        settle: Says which cells own records that came twice.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        plan: Plan,
        merge: Merge,
        ports: Mapping[str, Port],
        *,
        start: Callable[[Ask], None],
        settle: Callable[[Iterable[str]], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.merge, self.ports = plan, merge, ports
        self.parts = {name: Part() for name in ports}
        self._start, self._settle, self._clock = start, settle, clock
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._pending: dict[str, Ask] = {}
        self._starved: set[str] = set()

    def advance(self) -> list[Any]:
        """The next rows that are certain; empty when the merge is done."""
        merge = self.merge
        while True:
            self._send(merge.fetches())
            given = merge.emit()
            if given:
                return given
            if merge.disputed:
                merge.decide(self._settle(merge.disputed))
            elif merge.done:
                return given
            else:
                self._receive()

    def run(self) -> None:
        """Until the merge is done."""
        while not self.merge.done:
            self.advance()
        self.stop()

    def stop(self) -> None:
        """Nobody wants the fetches still under way. They end by themselves; their cells are not blamed."""
        self._pending.clear()

    def _send(self, fetches: list[Fetch]) -> None:
        now = self._clock()
        for fetch in fetches:
            port = self.ports[fetch.cell]
            limit = now + port.deadline
            ask = Ask(port, _fetcher(self.plan, fetch), limit, self._answers, self._clock)
            self._pending[fetch.cell] = ask
            if not self.merge.runs[fetch.cell].left:
                self._starved.add(fetch.cell)
            self._start(ask)

    def _receive(self) -> None:
        """Wait until no cell that the merge waits for is silent, or its deadline has passed."""
        while self._starved:
            now = self._clock()
            limit = min(ask.limit for cell, ask in self._pending.items() if cell in self._starved)
            try:
                answer = self._answers.get(timeout=max(0.0, limit - now))
            except Empty:
                self._give_up(self._clock())
            else:
                self._take(answer)
        while not self._answers.empty():
            self._take(self._answers.get())

    def _give_up(self, now: float) -> None:
        for cell in [cell for cell, ask in self._pending.items() if ask.limit <= now]:
            ask = self._pending.pop(cell)
            ask.drop()
            port = self.ports[cell]
            part = self.parts[cell]
            part.seconds += port.deadline
            part.statements += ask.statements
            self._fail(cell, CellState.SLOW, f"no answer within {port.deadline:g} s")

    def _take(self, answer: Answer) -> None:
        cell = answer.ask.port.cell.name
        if self._pending.get(cell) is not answer.ask:
            return  # it was given up; the cell has been blamed already
        del self._pending[cell]
        self._starved.discard(cell)
        part = self.parts[cell]
        part.seconds += answer.seconds
        part.statements += answer.ask.statements
        if answer.error is not None:
            state = CellState.SLOW if isinstance(answer.error, DeadlineExceeded) else CellState.DOWN
            self._fail(cell, state, str(answer.error))
            return
        part.fetched += len(answer.result)
        self.ports[cell].succeed(answer.seconds)
        if not self.merge.feed(cell, answer.result):
            part.state, part.error = CellState.DOWN, _log_order

    def _fail(self, cell: str, state: CellState, error: str) -> None:
        self._starved.discard(cell)
        self.parts[cell].state, self.parts[cell].error = state, error
        self.ports[cell].fail(error)
        self.merge.fail(cell)


def _fetcher(plan: Plan, fetch: Fetch) -> Callable[[Lease, Ask], list[tuple[Any, ...]]]:
    def work(lease: Lease, ask: Ask) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for segment in segments(plan.order, fetch.after):
            text, parameters = plan.page(lease.dialect, segment, fetch.count - len(rows))
            ask.statements += 1
            rows += lease.run(text, parameters, ask.limit)
            if len(rows) >= fetch.count:
                break
        return rows

    return work
