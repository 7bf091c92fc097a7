"""Group commit: claims that arrive while a transaction is being committed share the next one.

A commit that waits for the disk costs the same for one claim as for a hundred. The first thread that finds nobody at
work leads: it takes what has gathered, and does it in one transaction with a verdict for each; then one of those who
came meanwhile leads. Nobody waits for a timer, and a lone caller for nobody.

The owners of a finished group wake each other, one by one, and the last of them passes on the lead. Woken all at once
they would queue for the interpreter, the next leader among them, again after each of its statements; one by one, each
is back with its next call, and in the next group, by the time that the following one is up.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from cloudcore.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GroupCommit", "Ticket"]

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


@attrs.define(eq=False)
class Ticket(Generic[Ask, Answer]):
    """One caller's place in a group: what it asks, then its answer or its error.

    Attributes:
        leads: Its owner has the lead: to do the next group, or only to pass it on when this one is settled.
        settled: Its group was done.
        gone: Its owner was interrupted and waits no more.
        next: Whom its owner wakes.
    """

    ask: Ask
    answer: Answer | None = None
    error: BaseException | None = None
    leads: bool = False
    settled: bool = False
    gone: bool = False
    next: Ticket[Ask, Answer] | None = None
    wake: threading.Lock = attrs.field(factory=threading.Lock)


class GroupCommit(Generic[Ask, Answer]):
    """Gathers calls of many threads into groups. Owns no thread.

    Args:
        work: Settles every ticket of a group, each with its own answer or error; what it raises is everybody's error.
        limit: Tickets in a group at most.
    """

    def __init__(self, work: Callable[[Sequence[Ticket[Ask, Answer]]], None], *, limit: int = 128) -> None:
        self._work = work
        self._limit = limit
        self._mutex = threading.Lock()
        self._waiting: deque[Ticket[Ask, Answer]] = deque()
        self._led = False

    def submit(self, ask: Ask) -> Answer:
        """Have *ask* done in a group and return its own answer, or raise its own error."""
        ticket: Ticket[Ask, Answer] = Ticket(ask)
        ticket.wake.acquire()
        try:
            self._queue(ticket)
        except BaseException:  # a signal: nobody may wait for a thread that goes
            self._leave(ticket)
            raise
        if ticket.settled:
            self._wake_next(ticket)
        else:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]  # settled: an answer or an error is there

    def _queue(self, ticket: Ticket[Ask, Answer]) -> None:
        """Wait until the ticket leads or is settled."""
        with self._mutex:
            self._waiting.append(ticket)
            ticket.leads, self._led = not self._led, True
        if not ticket.leads:
            ticket.wake.acquire()

    def _leave(self, ticket: Ticket[Ask, Answer]) -> None:
        """Go without an answer."""
        with self._mutex:
            ticket.gone = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        self._wake_next(ticket)

    def _lead(self) -> None:
        """Do one group, of which the caller's own ticket is the first."""
        with self._mutex:
            group = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
        try:
            self._work(group)
        except Exception as error:
            for ticket in group:
                ticket.error = error
        except BaseException as error:
            for ticket in group[1:]:
                ticket.error = OutcomeUnknown("the thread that committed for this one was interrupted; repeat the call")
            group[0].error = error
        with self._mutex:
            chain = [group[0], *(ticket for ticket in group[1:] if not ticket.gone)]
            for ticket, after in itertools.pairwise(chain):
                ticket.next = after
            for ticket in chain:
                ticket.settled, ticket.leads = True, ticket is chain[-1]
        self._wake_next(group[0])

    def _wake_next(self, ticket: Ticket[Ask, Answer]) -> None:
        """Wake the next of the group, or pass on the lead."""
        if ticket.next is not None:
            ticket.next.wake.release()
        elif ticket.leads:
            with self._mutex:
                self._led = bool(self._waiting)
                if self._led:
                    self._waiting[0].leads = True
                    self._waiting[0].wake.release()
