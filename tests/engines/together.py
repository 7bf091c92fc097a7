"""Calls that begin at the same moment, and names that no other test uses."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable

from cloudcore._failpoints import arm, disarm
from cloudcore.errors import CloudcoreError


def at_once(*acts: Callable[[], object]) -> list:
    """What each of *acts*, begun at the same moment in threads, returns or raises."""
    barrier = threading.Barrier(len(acts))
    outcomes: list = [None] * len(acts)

    def run(number: int) -> None:
        barrier.wait(30)
        outcomes[number] = _outcome(acts[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return outcomes


def crossing(*acts: Callable[[], object]) -> list:
    """As `at_once`, each at a node of its own: all first transactions have read and written before one may commit."""
    barrier = threading.Barrier(len(acts))
    ready = threading.local()

    def wait(_: str) -> None:
        if not getattr(ready, "met", False):
            ready.met = True
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(20)

    arm("database.commit.before", wait)
    try:
        return at_once(*acts)
    finally:
        disarm("database.commit.before")


def meanwhile(call: Callable[[], object], *others: Callable[[], object]) -> list:
    """What *call* and *others* return or raise, when *others* are done as the first transaction of *call* would commit.

    They must be at another node than *call*, which would otherwise hold what they wait for.
    """
    found: list = []

    def act(_: str) -> None:
        disarm("database.commit.before")
        found.extend(_outcome(other) for other in others)

    arm("database.commit.before", act)
    try:
        outcome = _outcome(call)
    finally:
        disarm("database.commit.before")
    assert len(found) == len(others), "no transaction was committed"
    return [outcome, *found]


def _outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except CloudcoreError as error:
        return error


def new(*names: str) -> list[str]:
    tail = uuid.uuid4().hex[:12]
    return [f"{name}-{tail}" for name in names]
