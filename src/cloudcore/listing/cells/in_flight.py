"""Requests in flight: at most one to a cell, each with its deadline, its replicas and its one answer.

Cells that answer at once share a serial executor; the others get threads of their own. Whatever is done about an
answer, or about none, goes by the same few tables of what is under way: that is why it is one module.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._cancellation import Cancellation
from cloudcore.errors import Cancelled, CloudcoreError, DeadlineExceeded, Overloaded, StatementRefused, Transient
from cloudcore.listing.cells.admission import FAR, LENDING
from cloudcore.listing.cells.faults import COME_BACK_AFTER, answers, held_against
from cloudcore.listing.cells.promptness import STALL, time_apart
from cloudcore.listing.cells.requests import Attempt, Request
from cloudcore.listing.cells.serial import FEWEST, SHARES, SerialExecutor
from cloudcore.listing.cells.workers import CompletionQueue
from cloudcore.listing.values import CellReport, CellState
from cloudcore.observability import teller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cloudcore.listing.cells.admission import Turn
    from cloudcore.listing.cells.backends import Backend
    from cloudcore.listing.cells.workers import Receiver

__all__ = ["CellOutcome", "RequestsInFlight", "ask_all"]


@attrs.define
class CellOutcome:
    """What became of one cell so far."""

    state: CellState = CellState.ANSWERED
    fetched: int = 0
    statements: int = 0
    seconds: float = 0.0
    error: str | None = None
    failure: CloudcoreError | None = None

    def report(self, name: str, rows: int, *, exhausted: bool = False) -> CellReport:
        """The same as callers see it."""
        return CellReport(
            name=name,
            state=self.state,
            rows=rows,
            fetched=self.fetched,
            statements=self.statements,
            seconds=self.seconds,
            error=self.error,
            error_type=None if self.failure is None else type(self.failure).__name__,
            transient=None if self.failure is None else isinstance(self.failure, Transient),
            exhausted=exhausted,
        )


class RequestsInFlight:
    """The requests under way, at most one to a cell. Used by one thread at a time.

    Whatever is under way, also what was sent earlier, is stopped by the cancellation of the call that waits for it: a
    stream outlives the calls that read it, each with a cancellation of its own.

    Args:
        backends: The cells.
        start: Starts a job in another thread.
        clock: Monotonic seconds.
        serial: Whether cells that answer at once may share a thread, and a single one the caller's; for statements of
            which none is known to take long.
        turn: The call's, lent to others while it waits long.
    """

    outcomes: dict[str, CellOutcome]

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        start: Callable[[Callable[[], None]], None],
        clock: Callable[[], float] = time.monotonic,
        serial: bool = False,
        turn: Turn | None = None,
    ) -> None:
        self.backends = backends
        self.turn = turn
        self.outcomes = {name: CellOutcome() for name in backends}
        self._start, self._clock, self._serial = start, clock, serial
        self._answers = CompletionQueue[Attempt | SerialExecutor]()
        self._requests: dict[str, Request] = {}
        self._gathering: SerialExecutor | None = None
        """Takes what is sent until :meth:`go`."""
        self._executors: list[SerialExecutor] = []
        self._tell = teller("listing", logging.DEBUG)
        self._attentive = math.inf
        """Since when the caller waits."""
        self._worked: deque[tuple[float, float]] = deque(maxlen=64)
        """From when to when it worked itself beside executors lately: it may be what kept them from the interpreter."""
        self._left = self._clock()
        """When it last left off waiting."""
        self._wake = math.inf
        """No limit and no hedge comes before this instant."""

    def send(self, cell: str, work: Callable[[Attempt], Any], *, seconds: float | None = None) -> None:
        """Ask *cell*, which has the given time, else its deadline. Call :meth:`go` after the last."""
        backend = self.backends[cell]
        now = self._clock()
        patience = backend.patience()
        seconds = backend.deadline if seconds is None else seconds
        request = Request(
            cell,
            backend,
            work,
            began=now,
            seconds=seconds,
            hedge_at=None if patience is None else now + patience,
            tell=self._tell,
        )
        self._requests[cell] = request
        if self._serial and patience is None and backend.promptness.quick(now):
            if self._gathering is None:
                self._gathering = SerialExecutor(self._answers)
            self._gathering.waiting.append(self._attempt(request, self._gathering))
        else:
            self._ask(request)

    def go(self) -> None:
        """Start what was sent to the executor."""
        executor, self._gathering = self._gathering, None
        if executor is None:
            return
        self._executors.append(executor)
        if len(self._requests) == 1 and executor.waiting[0].request.backend.direct:
            executor.own = True
            if self.turn is not None:
                executor.waiting[0].lending = (time.monotonic() + LENDING, self.turn.lend)
            try:
                with self._cancellable():
                    executor()  # the database itself keeps the deadline
                    if self.turn is not None and not self.turn.working:
                        self.turn.take_back()  # it was lent, since the statement took long
            except BaseException:  # a signal may come here: nobody asks for the answer
                executor.running = None
                self.stop()
                raise
        else:
            self._start(executor)

    def _ask(self, request: Request) -> None:
        """Ask the next database of the cell."""
        self._start(self._attempt(request, self._answers))

    def _attempt(self, request: Request, answers: Receiver[Attempt]) -> Attempt:
        attempt = Attempt(request, request.pools.pop(0), answers, self._clock)
        first = request.limit if request.hedge_at is None else min(request.limit, request.hedge_at)
        if first < self._wake:
            self._wake = first
        if not request.pools:
            request.hedge_at = None
        request.attempts.append(attempt)
        return attempt

    def wait(self, least: int = 1) -> list[tuple[str, Any, CloudcoreError | None]]:
        """Results of some cells: (cell, result, error). Empty when nothing is under way.

        Comes back when about *least* cells have answered, when one has failed or is late, or an executor has ended. A
        cell that has not answered by its limit gets :class:`DeadlineExceeded`; answers that arrived while nobody waited
        are taken first, so a caller's pause is never held against a cell.

        Raises:
            Cancelled: The call under way was cancelled. Its statements are stopped, and no cell is blamed.
            Overloaded: A cell could not be asked in time for want of threads or connections: no cell is blamed.
        """
        try:
            with self._cancellable() as cancellation:
                self._attentive = self._clock()
                if self._executors:
                    self._worked.append((self._left, self._attentive))
                done = self._wait(least, cancellation)
                self._left = self._clock()
                if self.turn is not None:
                    self.turn.take_back()
        except BaseException:
            self.stop()
            raise
        return done

    @contextlib.contextmanager
    def _cancellable(self) -> Iterator[Cancellation | None]:
        """While the block runs, the present call's cancellation stops what is under way, and raises at its end."""
        cancellation = Cancellation.current()
        if cancellation is None:
            yield None
            return
        try:
            with cancellation.stopped_by(self._abort):
                yield cancellation
            cancellation.check()
        except Cancelled:
            self._abort()  # what was sent while the cancellation came
            self.stop()
            raise

    def _abort(self) -> None:
        """From any thread: make all attempts fail now, and whoever waits for them look."""
        for request in list(self._requests.values()):
            for attempt in list(request.attempts):
                attempt.drop()
        self._answers.wake()

    def _wait(self, least: int, cancellation: Cancellation | None) -> list[tuple[str, Any, CloudcoreError | None]]:
        done: list[tuple[str, Any, CloudcoreError | None]] = []
        while self._requests and not done:
            pause = max(0.0, self._wake - self._clock())
            enough = max(1, min(least, len(self._requests)))
            if self._executors:
                pause = min(pause, STALL)
            lending = self._lending()
            taken = self._answers.take(enough, min(pause, lending))
            if cancellation is not None:
                cancellation.check()  # before the failures of what was aborted are held against cells
            if self.turn is not None and not taken and lending < pause:
                self.turn.lend()
                continue
            for answer in taken:
                self._take(answer, done)
            if not taken:
                for executor in list(self._executors):
                    self._look_after(executor, done)
                if not done and self._wake <= (now := self._clock()):
                    done += self._overdue(now)
        return done

    def _lending(self) -> float:
        """Seconds after which the turn is lent to others, if nothing comes."""
        if self.turn is None or not self.turn.working:
            return math.inf
        if any(request.backend.distance.seconds > FAR for request in self._requests.values()):
            return 0.0
        return max(0.0, self._attentive + LENDING - self._clock())

    def _take(self, answer: Attempt | SerialExecutor, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        if isinstance(answer, SerialExecutor):
            self._empty(answer, done)
            if answer in self._executors:
                self._executors.remove(answer)
        else:
            if answer.warm and answer.error is None:
                answer.request.backend.promptness.answered_apart(answer.seconds)
            self._complete(answer, done)

    def _empty(self, executor: SerialExecutor, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take what an executor has finished."""
        now = self._clock()
        while executor.finished:
            attempt = executor.finished.popleft()
            if attempt.error is not None:
                attempt.request.backend.promptness.stalled(now)
            elif attempt.warm:
                seconds = attempt.seconds if executor.own else time_apart(attempt.began, attempt.seconds, self._worked)
                attempt.request.backend.promptness.answered(seconds, now, lenient=len(self.backends) == 1)
            self._complete(attempt, done)

    def _look_after(self, executor: SerialExecutor, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take what an executor has finished; when that is little once more, go on without it."""
        opening = executor.running is not None and not executor.running.warm
        slow = len(executor.finished) < (1 if opening else FEWEST)
        if slow and executor.doubted and executor.running is not None:  # else no thread has come to it yet
            self._hand_out(executor)
        executor.doubted = slow
        self._empty(executor, done)

    def _hand_out(self, executor: SerialExecutor) -> None:
        """Go on without the cell that an executor waits for: others share what waits behind it.

        So a single slow cell costs a thread and a few milliseconds. Where one of those others must be given up too,
        several are slow, and what waits behind it gets threads of its own, in which an answer at once wins trust back.
        """
        self._executors.remove(executor)
        stuck = executor.running
        if stuck is not None and stuck.warm:  # opening a connection takes its time; that says nothing of the answers
            stuck.request.backend.promptness.stalled(self._clock())
        waiting: list[Attempt] = []
        while executor.waiting:
            try:
                waiting.append(executor.waiting.popleft())
            except IndexError:  # the executor's own thread was faster
                break
        if executor.handed_on and stuck is not None and stuck.warm:  # it is not the only slow one
            now = self._clock()
            for attempt in waiting:
                attempt.request.backend.promptness.stalled(now)
                attempt.answers = self._answers
                self._start(attempt)
            return
        for part in filter(None, (waiting[first::SHARES] for first in range(SHARES))):
            other = SerialExecutor(self._answers, handed_on=True)
            for attempt in part:
                attempt.answers = other
            other.waiting.extend(part)
            self._executors.append(other)
            self._start(other)

    def _overdue(self, now: float) -> list[tuple[str, Any, CloudcoreError | None]]:
        late: list[tuple[str, Any, CloudcoreError | None]] = []
        for cell, request in list(self._requests.items()):
            if request.limit <= now:
                if request.started is None:
                    raise Overloaded(
                        f"{cell} could not be asked within {request.seconds:g} s: no thread or connection was free",
                        seconds=request.seconds,
                        retry_after=COME_BACK_AFTER,
                    )
                self._close(cell, request)
                late.append((cell, None, _late(request)))
            elif request.hedge_at is not None and request.hedge_at <= now:
                request.hedge_at = None
                if request.backend.may_hedge():
                    self._ask(request)
        self._wake = min((each.hedge_at or each.limit for each in self._requests.values()), default=math.inf)
        for cell, _, error in late:
            if error is not None:
                self._blame(cell, CellState.SLOW, error)
        return late

    def _complete(self, attempt: Attempt, done: list[tuple[str, Any, CloudcoreError | None]]) -> None:
        """Take an answer; what became of its cell, once that is known, goes to *done*."""
        request = attempt.request
        cell = request.cell
        if self._requests.get(cell) is not request or attempt not in request.attempts:
            return  # it was given up, or another database of the cell was faster
        if isinstance(attempt.error, Overloaded):
            raise attempt.error
        if attempt.error is None:
            self._close(cell, request)
            request.backend.succeed(attempt.seconds)
            done.append((cell, attempt.result, None))
            return
        request.attempts.remove(attempt)
        self.outcomes[cell].statements += attempt.statements
        if request.pools and self._clock() < request.limit and not isinstance(attempt.error, StatementRefused):
            self._ask(request)  # a replica may be able
        if not request.attempts:
            error = attempt.error if self._clock() < request.limit else _late(request)
            self._close(cell, request)
            self._blame(cell, CellState.SLOW if isinstance(error, DeadlineExceeded) else CellState.DOWN, error)
            done.append((cell, None, error))

    def _close(self, cell: str, request: Request) -> None:
        del self._requests[cell]
        outcome = self.outcomes[cell]
        outcome.seconds += 0.0 if request.started is None else self._clock() - request.started
        for attempt in request.attempts:
            outcome.statements += attempt.statements
            attempt.drop()
        request.attempts = []  # no circle of references: rows that nobody wants any more go at once

    def _blame(self, cell: str, state: CellState, error: CloudcoreError) -> None:
        outcome = self.outcomes[cell]
        outcome.state, outcome.error = state, str(error)
        outcome.failure = error
        if held_against(error):
            self.backends[cell].fail(str(error))
        elif answers(error):
            self.backends[cell].refuse()

    def stop(self) -> None:
        """Nobody wants what is still under way. It ends by itself, and no cell is blamed."""
        for request in self._requests.values():
            request.attempts = []
        self._requests.clear()


def _late(request: Request) -> DeadlineExceeded:
    seconds = request.seconds
    return DeadlineExceeded(f"no answer within {seconds:g} s", seconds=seconds)


def ask_all(
    backends: Mapping[str, Backend],
    work: Callable[[str], Callable[[Attempt], Any]],
    *,
    start: Callable[[Callable[[], None]], None],
    clock: Callable[[], float],
    seconds: float | None = None,
    serial: bool = False,
    turn: Turn | None = None,
) -> tuple[dict[str, Any], dict[str, CellOutcome], dict[str, CloudcoreError]]:
    """Ask every cell the same at once: results of those that answered, what became of each, and the errors."""
    requests = RequestsInFlight(backends, start=start, clock=clock, serial=serial, turn=turn)
    for cell in backends:
        requests.send(cell, work(cell), seconds=seconds)
    requests.go()
    results: dict[str, Any] = {}
    errors: dict[str, CloudcoreError] = {}
    while done := requests.wait():
        for cell, result, error in done:
            if error is None:
                results[cell] = result
            else:
                errors[cell] = error
    return results, requests.outcomes, errors
