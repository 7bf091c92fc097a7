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
        try:
            outcomes[number] = acts[number]()
        except CloudcoreError as error:
            outcomes[number] = error

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


def new(*names: str) -> list[str]:
    tail = uuid.uuid4().hex[:12]
    return [f"{name}-{tail}" for name in names]
