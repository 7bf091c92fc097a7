"""The long stories of alternates: kills at every point, and anything in any order by several workers."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from cloudcore import Database, create_schema
from cloudcore.errors import (
    ConsumerNotFound,
    ConsumerRetired,
    InUse,
    InvalidTransition,
    MaxRetriesExceeded,
    NoValidHost,
)
from cloudcore.placement import Failure, HostGroup, reschedule
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_killing import SCENARIOS
from tests.placement.selector_worlds import FLAVOUR, Cloud, cell_of


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_point_nothing_is_held_that_is_not_owned(scenario, dialect, new_database_url, request) -> None:
    """On the servers, where a process is dearer, every fourth point and the last two; all of them with --long."""
    step = 1 if dialect == "sqlite" or request.config.getoption("--long") else 4
    command = [sys.executable, "-m", "tests.placement.selector_killing", new_database_url(), scenario, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    points, *kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill for kill in kills if kill["trouble"]] == []
    assert len(points) >= 8
    assert len(kills) >= len(points) // step
    assert "database.commit.after" in {kill["point"] for kill in kills}


class Alternates(RuleBasedStateMachine):
    """Boot, fail, migrate, confirm, revert, delete, by two schedulers over one database.

    An instance ends on one host or on none with everything given back; alternates stay in their cell; anti-affinity is
    never broken; the ledger's sums fit.
    """

    running = Bundle("running")
    moves = Bundle("moves")

    def __init__(self) -> None:
        super().__init__()
        self.database = Database("sqlite://")
        create_schema(self.database, areas=["placement"])
        self.workers = [Cloud(self.database, rng=random.Random(seed)) for seed in range(2)]
        self.workers[0].add_hosts(2, 3, cores=4)  # a host holds two instances
        self.group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
        self.members: set[str] = set()
        self.alive: set[str] = set()
        self.migrations: dict[str, str] = {}
        self.number = 0

    def _selected(self, selection) -> None:
        assert {choice.cell for choice in selection.choices} == {selection.cell}

    @rule(target=running, worker=st.integers(0, 1), count=st.integers(1, 3), grouped=st.booleans())
    def boot(self, worker: int, count: int, grouped: bool):
        try:
            selections = self.workers[worker].select(count, group=self.group if grouped else None)
        except NoValidHost:
            return multiple()
        for chosen in selections:
            self._selected(chosen)
            self.alive.add(chosen.instance)
            if grouped:
                self.members.add(chosen.instance)
        return multiple(*selections)

    @rule(worker=st.integers(0, 1), chosen=running, abort=st.booleans())
    def fail(self, worker: int, chosen, abort: bool) -> None:
        """A build fails; it may have been moved or deleted meanwhile."""
        ledger = self.workers[worker].ledger
        held = ledger.allocations(chosen.instance)
        failure = Failure("x", kind="abort" if abort else "host")
        if chosen.instance in self.migrations:  # a late message: it must not touch the move
            with pytest.raises(InUse):
                reschedule(ledger, chosen, failed=failure)
            assert ledger.allocations(chosen.instance) == held
            return
        if held not in [dict(choice.allocations) for choice in chosen.choices]:
            return  # it does not run by this selection any more
        try:
            moved = reschedule(ledger, chosen, failed=failure)
        except MaxRetriesExceeded:
            self.alive.discard(chosen.instance)
            assert ledger.allocations(chosen.instance) == {}
        else:
            assert not abort
            assert moved.choice.cell == chosen.cell
            assert ledger.allocations(chosen.instance) == moved.choice.allocations

    @rule(target=moves, worker=st.integers(0, 1), chosen=running, resize=st.booleans())
    def migrate(self, worker: int, chosen, resize: bool):
        if chosen.instance not in self.alive or chosen.instance in self.migrations:
            return multiple()
        self.number += 1
        migration = uuid_of(f"migration-{self.number}")
        flavour = FLAVOUR.replace("VCPU:4", "VCPU:2") if resize else FLAVOUR
        group = self.group if chosen.instance in self.members else None
        try:
            destination = self.workers[worker].selector.select_destination(
                chosen.instance, migration, flavour, kind="resize" if resize else "cold", group=group
            )
        except NoValidHost:
            return multiple()
        self._selected(destination)
        self.migrations[chosen.instance] = migration
        return (destination, migration)

    @rule(worker=st.integers(0, 1), move=moves)
    def arrival_fails(self, worker: int, move) -> None:
        destination, migration = move
        instance = destination.instance
        if self.migrations.get(instance) != migration:  # a late message: the move is over, or another one is on
            held = self.workers[worker].ledger.allocations(instance)
            with pytest.raises((ConsumerNotFound, InvalidTransition)):
                reschedule(self.workers[worker].ledger, destination, failed="x", migration=migration)
            assert self.workers[worker].ledger.allocations(instance) == held
            return
        ledger = self.workers[worker].ledger
        source = ledger.allocations(migration)
        try:
            moved = reschedule(ledger, destination, failed="x", migration=migration)
        except MaxRetriesExceeded:
            del self.migrations[instance]
            assert ledger.allocations(instance) == source
            assert ledger.allocations(migration) == {}
        else:
            assert moved.choice.cell == destination.cell
            assert ledger.allocations(migration) == source

    @rule(worker=st.integers(0, 1), move=consumes(moves), confirm=st.booleans())
    def end(self, worker: int, move, confirm: bool) -> None:
        destination, migration = move
        ledger = self.workers[worker].ledger
        ending = ledger.confirm_move if confirm else ledger.revert_move
        if self.migrations.get(destination.instance) == migration:
            ending(migration)
            del self.migrations[destination.instance]
        else:
            held = ledger.allocations(destination.instance)
            with contextlib.suppress(InvalidTransition):
                ending(migration)
            assert ledger.allocations(destination.instance) == held

    @rule(worker=st.integers(0, 1), chosen=consumes(running))
    def delete(self, worker: int, chosen) -> None:
        ledger = self.workers[worker].ledger
        try:
            ledger.release(chosen.instance, forever=True)
        except (ConsumerNotFound, ConsumerRetired):
            assert chosen.instance not in self.alive
        self.alive.discard(chosen.instance)
        self.members.discard(chosen.instance)
        migration = self.migrations.pop(chosen.instance, None)
        for consumer in (chosen.instance, migration):
            assert consumer is None or ledger.allocations(consumer) == {}

    @invariant()
    def each_instance_is_on_one_host_or_on_none(self) -> None:
        cloud = self.workers[0]
        cloud.check()
        hosts = {instance: cloud.host_of(instance) for instance in self.alive}
        assert None not in hosts.values()
        on = Counter(hosts[instance] for instance in self.members & self.alive)
        on.update(
            cloud.host_of(migration)
            for instance, migration in self.migrations.items()
            if instance in self.members & self.alive and cloud.host_of(migration) != hosts[instance]
        )
        assert all(count == 1 for count in on.values()), "anti-affinity"
        for instance, migration in self.migrations.items():
            source = cloud.tree.provider(cloud.host_of(migration))
            there = cloud.tree.provider(hosts[instance])
            assert cell_of(source) == cell_of(there)

    @initialize()
    def nothing_is_held(self) -> None:
        assert self.workers[0].ledger.usages(project_id="p") == {}

    def teardown(self) -> None:
        for cloud in self.workers:
            cloud.check()
            cloud.close()
        self.database.close()


TestAlternates = Alternates.TestCase
TestAlternates.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
