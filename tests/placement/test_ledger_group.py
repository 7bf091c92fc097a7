"""Group commit: everybody gets the own answer, whoever comes, fails or is interrupted."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from cloudcore.errors import OutcomeUnknown
from cloudcore.placement.ledger.group_commit import _WORTH, GroupCommit, Ticket

SECONDS = 20


class Interrupted(BaseException):
    """What the test's signal raises in the main thread."""


class Work:
    """Answers each ask with its double; each group waits until it may."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.asked: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.raises: dict[int, BaseException] = {}
        self.leaves: set[int] = set()
        self.alone_in: dict[int, int] = {}
        self.seen = id
        self.hold = threading.Lock()

    def __call__(self, tickets) -> None:
        self.groups.append([ticket.request for ticket in tickets])
        self.asked.update(self.groups[-1])
        for ticket in tickets:
            self.seen(ticket)
        with self.hold:
            pass
        self.begun.release()
        assert self.may_end.acquire(timeout=SECONDS)
        for ticket in tickets:
            if ticket.request in self.raises:
                raise self.raises[ticket.request]
            if ticket.request not in self.leaves:
                ticket.answer = 2 * ticket.request

    def alone(self, ask: int) -> int:
        self.alone_in[ask] = threading.get_ident()
        if -ask in self.leaves:
            raise ZeroDivisionError(ask)
        return 2 * ask + 1


@contextmanager
def group_commit(limit: int = 128, kind: type[GroupCommit] = GroupCommit, lanes: int = 1):
    work = Work()
    group = kind(work, work.alone, limit=limit, lanes=lanes)

    def submit(ask: int) -> Future[int]:
        """In a thread of its own; in the queue when this returns."""
        before = len(group._waiting)
        future: Future[int] = Future()

        def run() -> None:
            try:
                future.set_result(group.submit(ask))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        wait_until(lambda: len(group._waiting) > before or future.done() or ask in work.asked)
        return future

    try:
        yield group, work, submit
    finally:
        work.may_end.release(100)


def wait_until(condition) -> None:
    tick = threading.Event()
    for _ in range(SECONDS * 1000):
        if condition():
            return
        tick.wait(0.001)
    raise AssertionError("it never came about")


@contextmanager
def interrupted_when(condition):
    """A signal interrupts the main thread as soon as *condition* holds."""

    def handler(*_: object) -> None:
        raise Interrupted

    def watch() -> None:
        wait_until(condition)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def test_who_comes_meanwhile_shares_the_next_group() -> None:
    with group_commit(limit=3) as (_, work, submit):
        futures = [submit(1)]
        assert work.begun.acquire(timeout=SECONDS)
        futures += [submit(n) for n in (2, 3, 4, 5)]
        work.may_end.release(3)
        assert [future.result(SECONDS) for future in futures] == [2, 4, 6, 8, 10]
        assert work.groups == [[1], [2, 3, 4], [5]]


def test_what_a_group_raises_is_everybodys_error_and_the_next_one_goes_on() -> None:
    with group_commit(limit=2) as (_, work, submit):
        first = submit(1)
        assert work.begun.acquire(timeout=SECONDS)
        failing, beside, after, last = (submit(n) for n in (2, 3, 4, 5))
        work.raises = {2: ZeroDivisionError("two"), 4: Interrupted()}
        work.may_end.release(3)
        assert first.result(SECONDS) == 2
        for future in (failing, beside):
            assert isinstance(future.exception(SECONDS), ZeroDivisionError)
        assert isinstance(after.exception(SECONDS), Interrupted)
        assert isinstance(last.exception(SECONDS), OutcomeUnknown)
        work.may_end.release()
        assert submit(6).result(SECONDS) == 12


def test_a_group_is_begun_beside_another_once_it_is_worth_it() -> None:
    """Few wait for the group that is being done; many do not, up to the number of lanes."""
    with group_commit(limit=20, lanes=2) as (group, work, submit):
        futures = [submit(1)]
        assert work.begun.acquire(timeout=SECONDS)
        first, second = range(2, 2 + _WORTH), range(30, 35 + _WORTH)
        futures += [submit(n) for n in first]
        assert work.begun.acquire(timeout=SECONDS)
        assert [sorted(asked) for asked in work.groups] == [[1], [*first]]
        futures += [submit(n) for n in second]
        assert len(work.groups) == 2
        work.may_end.release(100)
        assert [future.result(SECONDS) for future in futures] == [2 * n for n in (1, *first, *second)]
        assert work.groups[2] == [*second][:20]
        wait_until(lambda: not group._leaders)


def test_nobody_is_left_where_those_who_lead_are_enough() -> None:
    """A few gather behind two groups: the first that ends leaves them to the other, which does them."""
    with group_commit(lanes=2) as (group, work, submit):
        futures = [submit(n) for n in range(1, 2 + _WORTH)]
        for _ in range(2):
            assert work.begun.acquire(timeout=SECONDS)
        futures += [submit(n) for n in (100, 101)]
        work.may_end.release()
        wait_until(lambda: group._leaders == 1)
        assert len(work.groups) == 2
        work.may_end.release(2)
        assert all(future.result(SECONDS) for future in futures)
        assert work.groups[2] == [100, 101]
        wait_until(lambda: not group._leaders)


def test_what_a_group_leaves_is_done_by_its_own_caller() -> None:
    """In its own thread, beside the next group, with an answer or an error of its own."""
    with group_commit() as (_, work, submit):
        futures = [submit(1)]
        assert work.begun.acquire(timeout=SECONDS)
        work.leaves = {3, 4, -4}
        futures += [submit(n) for n in (2, 3, 4)]
        work.may_end.release(2)
        assert [future.result(SECONDS) for future in futures[:3]] == [2, 4, 7]
        assert isinstance(futures[3].exception(SECONDS), ZeroDivisionError)
        assert work.groups == [[1], [2, 3, 4]]
        assert sorted(work.alone_in) == [3, 4]
        assert len(set(work.alone_in.values())) == 2


@pytest.mark.parametrize("ahead", [0, 1])
def test_who_is_interrupted_in_the_queue_holds_nobody_up(ahead: int) -> None:
    """Neither as the next leader nor behind it."""
    with group_commit() as (group, work, submit):
        futures = [submit(1)]
        assert work.begun.acquire(timeout=SECONDS)
        futures += [submit(2 + n) for n in range(ahead)]
        with interrupted_when(lambda: len(group._waiting) > ahead), pytest.raises(Interrupted):
            group.submit(9)
        futures += [submit(5), submit(6)]
        work.may_end.release(2)
        expected = [2, *[4 + 2 * n for n in range(ahead)], 10, 12]
        assert [future.result(SECONDS) for future in futures] == expected
        assert 9 not in work.asked


def test_who_is_interrupted_while_its_group_is_done_holds_nobody_up() -> None:
    """It is in the middle of those who wake each other."""
    with group_commit() as (group, work, submit):
        first = submit(1)
        assert work.begun.acquire(timeout=SECONDS)
        leader = submit(2)
        later = []

        def in_the_middle() -> bool:
            if len(group._waiting) == 2 and not later:
                later.append(submit(4))
                work.may_end.release()
            return len(work.groups) == 2

        with interrupted_when(in_the_middle), pytest.raises(Interrupted):
            group.submit(3)
        next_one = submit(5)
        work.may_end.release(2)
        assert [future.result(SECONDS) for future in (first, leader, *later, next_one)] == [2, 4, 8, 10]
        assert work.groups == [[1], [2, 3, 4], [5]]


def interrupting(ask: int, steps: list[tuple[str, str]]) -> type[GroupCommit]:
    """A GroupCommit in which signals come at these steps (name of the method; before or after it) of this ask."""
    due = {(ask, *step) for step in steps}

    def wrap(name: str):
        inner = getattr(GroupCommit, name)

        def step(self, ticket) -> None:
            for when, action in (("before", None), ("after", inner), ("after", None)):
                if action is not None:
                    action(self, ticket)
                elif (ticket.request, name, when) in due:
                    due.remove((ticket.request, name, when))
                    raise Interrupted

        return step

    return type("Interrupting", (GroupCommit,), {name: wrap(name) for name in dict(steps)})


STEPS = [
    (name, when) for name in ("_queue", "_lead", "_hand_on", "_settle", "_pass_on") for when in ("before", "after")
]
LEAVING = [("_queue", "after"), ("_leave", "before"), ("_leave", "after")]


@pytest.mark.parametrize("steps", [[step] for step in STEPS] + [LEAVING[:2], LEAVING], ids=str)
@pytest.mark.parametrize("interrupted", [1, 3, 4, 5], ids=["first", "middle", "last", "heir"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_who_is_interrupted_at_any_step_holds_nobody_up(
    interrupted: int, steps: list[tuple[str, str]], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a signal cuts short is done to the end: the others get their answers, and somebody leads."""
    monkeypatch.setattr("cloudcore.placement.ledger.group_commit._WORTH", 2)
    with group_commit(limit=3, kind=interrupting(interrupted, steps), lanes=lanes) as (group, work, submit):
        work.may_end.release(100)
        with work.hold:
            futures = {ask: submit(ask) for ask in range(1, 10)}
        for ask, future in futures.items():
            error = future.exception(SECONDS)
            if ask != interrupted:
                assert (error, future.result()) == (None, 2 * ask)
            else:
                assert error is None or isinstance(error, Interrupted)
        assert submit(10).result(SECONDS) == 20
        wait_until(lambda: not group._leaders)
        assert not group._waiting


def test_a_ticket_that_is_over_holds_no_other() -> None:
    """Whoever keeps an error keeps its traceback, and so its ticket: not the whole group with it."""
    with group_commit() as (group, work, submit):
        tickets: list[Ticket] = []
        work.seen = tickets.append
        futures = [submit(1)]
        assert work.begun.acquire(timeout=SECONDS)
        work.raises = {2: ZeroDivisionError()}
        futures += [submit(ask) for ask in (2, 3, 4)]
        work.may_end.release(2)
        assert [future.exception(SECONDS) is None for future in futures] == [True, False, False, False]
        wait_until(lambda: not group._leaders)
        assert [ticket.request for ticket in tickets] == [1, 2, 3, 4]
        assert all(ticket.next is None and not ticket.group for ticket in tickets)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_hundred_threads_get_their_own_answers(lanes: int) -> None:
    """Nobody is lost, nobody gets another's; no more groups at once than there are lanes, none of them too large."""
    at_work = threading.Semaphore(lanes)

    def answer(tickets) -> None:
        assert len(tickets) <= 7
        assert at_work.acquire(blocking=False)
        for ticket in tickets:
            ticket.answer = -ticket.request
        at_work.release()

    group = GroupCommit(answer, abs, limit=7, lanes=lanes)
    answers: dict[int, list[int]] = {}

    def work(number: int) -> None:
        answers[number] = [group.submit(number * 1000 + step) for step in range(50)]

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS * 3)
        assert not thread.is_alive()
    assert answers == {number: [-(number * 1000 + step) for step in range(50)] for number in range(100)}
    assert not group._leaders
    assert not group._waiting
