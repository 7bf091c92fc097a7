"""Group commit: claims that arrive while a transaction is being committed share the next one.

A commit that waits for the disk costs the same for one claim as for a hundred. The first thread that finds nobody at
work leads: it takes what has gathered, does it in one transaction with a verdict for each, and hands the lead to one
of those who came meanwhile. Nobody waits for a timer, and a lone caller for nobody.

The owners of a finished group wake each other, one by one, and the next leader last. Woken all at once they would
queue for the interpreter, the next leader among them, again after each of its statements; one by one, each is back
with its next call, and in the next group, by the time that the following one is up.
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
        leads: It is its owner who does the next group.
        gone: Its owner was interrupted and waits no more.
        next: Whom its owner wakes.
    """

    ask: Ask
    answer: Answer | None = None
    error: BaseException | None = None
    leads: bool = False
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
            with self._mutex:
                self._leave(ticket)
            raise
        if ticket.next is not None:
            ticket.next.wake.release()
        if ticket.leads:
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
        """Go without an answer; the mutex is held."""
        ticket.gone = True
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        if ticket.next is not None:
            ticket.next.wake.release()
        if ticket.leads:
            self._pass_on([])

    def _lead(self) -> None:
        """Do one group, of which the caller's own ticket is the first, then pass the lead on."""
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
            self._pass_on(group[1:])

    def _pass_on(self, settled: Sequence[Ticket[Ask, Answer]]) -> None:
        """Wake the owners of what is settled, each by the one before, and the next leader after them."""
        chain = [ticket for ticket in settled if not ticket.gone]
        self._led = bool(self._waiting)
        if self._led:
            self._waiting[0].leads = True
            chain.append(self._waiting[0])
        for ticket, after in itertools.pairwise(chain):
            ticket.next = after
        if chain:
            chain[0].wake.release()
