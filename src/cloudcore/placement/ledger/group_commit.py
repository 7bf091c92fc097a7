"""Group commit: claims that arrive while a transaction is being committed share the next one.

A commit that waits for the disk costs the same for one claim as for a hundred. The first thread that finds nobody at
work leads: it takes what has gathered, and does it in one transaction with a verdict for each; then one of those who
came meanwhile leads. Nobody waits for a timer, and a lone caller for nobody. Where writers run side by side, a few
groups do: while the server works for one, the callers of another prepare their next calls.

The owners of a finished group wake each other, one by one, and the last of them passes on the lead. Woken all at once
they would queue for the interpreter, the next leader among them, again after each of its statements; one by one, each
is back with its next call, and in the next group, by the time that the following one is up.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from cloudcore._forks import when_forked
from cloudcore.errors import OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["GroupCommit", "Ticket"]

Request = TypeVar("Request")
Answer = TypeVar("Answer")

_WORTH = 16
"""Those who wait, for whom a group beside another is begun: a small group costs nearly as much as a large one."""


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

    A forked child begins with nobody in it: who waited or led at the fork is its parent's.

    Args:
        work: Settles the tickets of a group, each with its own answer or error; what it raises is everybody's error.
        alone: Does what *work* left without an answer, each in its own caller's thread: what does not fit into a group
            holds nobody else up.
        limit: Tickets in a group at most.
        lanes: Groups that are done at the same time at most; a further one is begun only for many.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Ticket[Request, Answer]]], None],
        alone: Callable[[Request], Answer],
        *,
        limit: int = 128,
        lanes: int = 1,
    ) -> None:
        self._work = work
        self._alone = alone
        self._limit = limit
        self._lanes = lanes
        self._start_empty()
        when_forked(self, GroupCommit._start_empty)

    def _start_empty(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[Ticket[Request, Answer]] = deque()
        self._leaders = 0  # who leads, or has been woken to lead

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
            try:
                raise interrupt
            finally:
                interrupt = None  # no circle: what its frames hold, such as a transaction, goes with it
        if ticket.error is not None:
            raise ticket.error
        return self._alone(request) if ticket.answer is None else ticket.answer

    def _queue(self, ticket: Ticket[Request, Answer]) -> None:
        """Wait until the ticket leads or is settled."""
        with self._mutex:
            self._waiting.append(ticket)
            if self._is_wanted(self._leaders):
                ticket.leads, self._leaders = True, self._leaders + 1
        if not ticket.leads:
            ticket.wake.acquire()

    def _is_wanted(self, others: int) -> bool:
        """Whether one more shall lead beside *others*: somebody must, more only where a group is worth it."""
        if not others:
            return bool(self._waiting)
        enough = others < self._lanes and len(self._waiting) >= _WORTH
        return enough and not any(waiting.leads for waiting in self._waiting)

    def _lead(self, ticket: Ticket[Request, Answer]) -> None:
        """Do one group."""
        with self._mutex:
            followers = [waiting for waiting in self._waiting if waiting is not ticket]
            group, rest = [ticket, *followers[: self._limit - 1]], deque(followers[self._limit - 1 :])
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
        """Give the lead to who waits longest, or to nobody where others lead who are enough."""
        others = max(self._leaders - 1, 0)  # of a child that was forked by who led, none at all
        if self._is_wanted(others):
            heir = self._waiting[0]
            ticket.next, ticket.leads, heir.leads = heir, False, True
        else:
            ticket.leads, self._leaders = False, others
