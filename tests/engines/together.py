"""Calls that begin at the same moment, and names that no other test uses."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

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


def new(*names: str) -> list[str]:
    tail = uuid.uuid4().hex[:12]
    return [f"{name}-{tail}" for name in names]
