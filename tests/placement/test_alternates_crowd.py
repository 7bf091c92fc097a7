"""Several schedulers at once over one database, each with a tree of its own, touching each other's instances."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from cloudcore import Database, create_schema
from cloudcore.errors import (
    Conflict,
    ConsumerNotFound,
    ConsumerRetired,
    InvalidTransition,
    MaxRetriesExceeded,
    NoValidHost,
)
from cloudcore.placement import HostGroup, Selection, reschedule
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud, cell_of
from tests.placement.test_ledger_races import Auditor

WORKERS, TURNS = 4, 60
OVERTAKEN = (Conflict, ConsumerNotFound, ConsumerRetired, InvalidTransition)
"""What a call may say of an instance that another worker moved, gave up or deleted a moment ago."""


@attrs.define
class Board:
    """What the workers know of each other's doings. Appended and read only."""

    booted: list[Selection] = attrs.Factory(list)
    moves: list[tuple[Selection, str]] = attrs.Factory(list)
    members: set[str] = attrs.Factory(set)
    outcomes: Counter[str] = attrs.Factory(Counter)


class Worker:
    """One scheduler: does anything to any instance, in its own order."""

    def __init__(self, database: Database, board: Board, seed: int) -> None:
        self.random = random.Random(seed)
        self.name = f"worker-{seed}"
        self.cloud = Cloud(database, rng=random.Random(seed), subset=2)
        self.board = board
        self.group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))

    def run(self, start: threading.Barrier) -> None:
        start.wait()
        acts = (*[self.boot, self.fail, self.move, self.arrive] * 2, self.leave, self.delete, self.sweep)
        for turn in range(TURNS):
            act = self.random.choice(acts)
            try:
                act(turn)
            except (NoValidHost, MaxRetriesExceeded, *OVERTAKEN) as error:
                self.board.outcomes[type(error).__name__] += 1
            else:
                self.board.outcomes[act.__name__] += 1
        self.cloud.close()

    def _anyone(self, turn: int) -> Selection:
        while not self.board.booted:
            self.boot(turn)
        return self.random.choice(self.board.booted[-10:])

    def boot(self, turn: int) -> None:
        grouped = self.random.random() < 0.3
        count = self.random.randint(1, 2)
        instances = [uuid_of(f"{self.name}/{turn}/{number}") for number in range(count)]
        if grouped:
            self.board.members.update(instances)
        self.board.booted += self.cloud.select(instances=instances, group=self.group if grouped else None)

    def leave(self, turn: int) -> None:
        """Boot, and die before the claim is settled."""
        self.cloud.select(instances=[uuid_of(f"{self.name}/{turn}/lost")], expires_in=0.2)

    def sweep(self, turn: int) -> None:
        self.cloud.ledger.expire()

    def fail(self, turn: int) -> None:
        chosen = self._anyone(turn)
        moved = reschedule(self.cloud.ledger, chosen, failed="x")
        assert moved.choice.cell == chosen.cell

    def move(self, turn: int) -> None:
        chosen = self._anyone(turn)
        migration = uuid_of(f"{self.name}/{turn}/migration")
        resize = self.random.random() < 0.5
        destination = self.cloud.selector.select_destination(
            chosen.instance,
            migration,
            FLAVOUR.replace("VCPU:4", "VCPU:2") if resize else FLAVOUR,
            kind="resize" if resize else "cold",
            group=self.group if chosen.instance in self.board.members else None,
        )
        assert {choice.cell for choice in destination.choices} == {destination.cell}
        self.board.moves.append((destination, migration))

    def arrive(self, turn: int) -> None:
        """A move goes on: to an alternate, to its end, or back."""
        if not self.board.moves:
            self.move(turn)
        destination, migration = self.random.choice(self.board.moves[-5:])
        ledger = self.cloud.ledger
        step = self.random.randrange(3)
        if step == 0:
            reschedule(ledger, destination, failed="x", migration=migration)
        elif step == 1:
            ledger.confirm_move(migration)
        else:
            ledger.revert_move(migration)

    def delete(self, turn: int) -> None:
        chosen = self._anyone(turn)
        self.cloud.ledger.release(chosen.instance, forever=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_in_any_order_by_several_schedulers(database: Database, seed: int) -> None:
    create_schema(database, areas=["placement"])
    cloud, board = Cloud(database), Board()
    cloud.add_hosts(2, 6)
    workers = [Worker(database, board, seed * WORKERS + number) for number in range(WORKERS)]
    start = threading.Barrier(WORKERS)
    with Auditor(database) as auditor, ThreadPoolExecutor(WORKERS) as threads:
        for done in [threads.submit(worker.run, start) for worker in workers]:
            done.result()
    assert auditor.breaches == []
    assert {"boot", "leave", "fail", "move", "arrive", "delete"} <= board.outcomes.keys()

    deadline = time.monotonic() + 30
    lost = [uuid_of(f"{worker.name}/{turn}/lost") for worker in workers for turn in range(TURNS)]
    while any(cloud.ledger.allocations(instance) for instance in lost):
        assert time.monotonic() < deadline, "what nobody settled was not given back"
        cloud.ledger.expire()
    look(cloud, board)
    for instance in {chosen.instance for chosen in board.booted}:
        if cloud.ledger.consumer(instance) is not None:
            cloud.ledger.release(instance, forever=True)  # and what its migration holds
    assert cloud.ledger.usages(project_id="p") == {}
    cloud.check()
    cloud.close()


def look(cloud: Cloud, board: Board) -> None:
    """Each instance is on one host or none, moves stay in the cell, and no host has two members of the group."""
    cloud.check()
    on: Counter[str] = Counter()
    for instance in {chosen.instance for chosen in board.booted}:
        host = cloud.host_of(instance)
        if host is not None and instance in board.members:
            on[host] += 1
    for destination, migration in board.moves:
        source, host = cloud.host_of(migration), cloud.host_of(destination.instance)
        if source is None:
            continue
        assert host is not None, "a migration holds the source of an instance that is nowhere"
        assert cell_of(cloud.tree.provider(source)) == cell_of(cloud.tree.provider(host))
        if source != host and destination.instance in board.members:
            on[source] += 1
    assert [host for host, count in on.items() if count > 1] == [], "anti-affinity"
