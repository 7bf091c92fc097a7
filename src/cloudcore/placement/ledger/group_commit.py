"""Group commit: claims that arrive while a transaction is being committed share the next one.

A commit that waits for the disk costs the same for one claim as for a hundred. The first thread that finds nobody at
work leads: it takes what has gathered, and does it in one transaction with a verdict for each; then one of those who
came meanwhile leads. Nobody waits for a timer, and a lone caller for nobody.

The owners of a finished group wake each other, one by one, and the last of them passes on the lead. Woken all at once
they would queue for the interpreter, the next leader among them, again after each of its statements; one by one, each
is back with its next call, and in the next group, by the time that the following one is up.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from cloudcore.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GroupCommit", "Ticket"]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@attrs.define(eq=False)
class Ticket(Generic[Request, Answer]):
    """One caller's place in a group: what it asks, then its answer or its error.

    Attributes:
        leads: Its owner has the lead: to do the next group, or only to pass it on when this one is settled.
        group: What its owner, leading, has taken to be done; its own ticket is the first.
        failure: The error of the whole group.
        settled: Its group was done.
        gone: Its owner was interrupted and waits no more.
        next: Whom its owner wakes.
        over: Its owner did all that others wait for.
    """

    request: Request
    answer: Answer | None = None
    error: BaseException | None = None
    leads: bool = False
    group: Sequence[Ticket[Request, Answer]] = ()
    failure: Exception | None = None
    settled: bool = False
    gone: bool = False
    next: Ticket[Request, Answer] | None = None
    over: bool = False
    wake: threading.Lock = attrs.field(factory=threading.Lock)


class GroupCommit(Generic[Request, Answer]):
    """Gathers calls of many threads into groups. Owns no thread.

    A signal may interrupt the main thread between any two calls that it makes, though not between two assignments: what
    others wait for is done to the end before the interrupt goes on to the caller.

    Args:
        work: Settles every ticket of a group, each with its own answer or error; what it raises is everybody's error.
        limit: Tickets in a group at most.
    """

    def __init__(self, work: Callable[[Sequence[Ticket[Request, Answer]]], None], *, limit: int = 128) -> None:
        self._work = work
        self._limit = limit
        self._mutex = threading.Lock()
        self._waiting: deque[Ticket[Request, Answer]] = deque()
        self._led = False

    def submit(self, request: Request) -> Answer:
        """Have *request* done in a group and return its own answer, or raise its own error."""
        ticket: Ticket[Request, Answer] = Ticket(request)
        ticket.wake.acquire()
        interrupt: BaseException | None = None
        try:
            self._queue(ticket)
            if not ticket.settled:
                self._lead(ticket)
        except BaseException as error:
            interrupt = error
        while not ticket.over:
            try:
                self._hand_on(ticket)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]  # settled: an answer or an error is there

    def _queue(self, ticket: Ticket[Request, Answer]) -> None:
        """Wait until the ticket leads or is settled."""
        with self._mutex:
            self._waiting.append(ticket)
            ticket.leads, self._led = not self._led, True
        if not ticket.leads:
            ticket.wake.acquire()

    def _lead(self, ticket: Ticket[Request, Answer]) -> None:
        """Do one group."""
        with self._mutex:
            group, rest = list(islice(self._waiting, self._limit)), deque(islice(self._waiting, self._limit, None))
            unknown = OutcomeUnknown("the thread that committed for this one was interrupted; repeat the call")
            ticket.group, ticket.failure, self._waiting = group, unknown, rest
        try:
            self._work(group)
        except Exception as error:
            ticket.failure = error
        else:
            ticket.failure = None

    def _hand_on(self, ticket: Ticket[Request, Answer]) -> None:
        """Do what others wait for: settle the group, wake the next of it, pass on the lead. May be repeated."""
        if ticket.next is None:
            with self._mutex:
                if ticket.group:
                    self._settle(ticket)
                elif not ticket.settled:
                    self._leave(ticket)
                if ticket.leads and ticket.next is None:
                    self._pass_on(ticket)
        if ticket.next is not None:
            with suppress(RuntimeError):  # it is awake: this is a repetition
                ticket.next.wake.release()
        ticket.next, ticket.over = None, True

    def _settle(self, leader: Ticket[Request, Answer]) -> None:
        """All of the group have their answers: each wakes the next, and the last has the lead."""
        chain = [ticket for ticket in leader.group if not ticket.gone]
        for ticket, after in pairwise(chain):
            ticket.next = after
        for ticket in chain:
            ticket.error = leader.failure or ticket.error
            ticket.settled, ticket.leads = True, ticket is chain[-1]
        leader.group = ()

    def _leave(self, ticket: Ticket[Request, Answer]) -> None:
        """Go without an answer."""
        ticket.gone = True
        with suppress(ValueError):  # its group is being done
            self._waiting.remove(ticket)

    def _pass_on(self, ticket: Ticket[Request, Answer]) -> None:
        """Give the lead to who waits longest."""
        if self._waiting:
            heir = self._waiting[0]
            ticket.next, ticket.leads, heir.leads = heir, False, True
        else:
            ticket.leads, self._led = False, False
