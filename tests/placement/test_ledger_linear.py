"""Claims and releases of one provider are linearizable; and the checker that says so finds what is not."""

from __future__ import annotations

import random

import pytest

from tests.placement.ledger_linear import Call, linearizable
from tests.placement.ledger_nursery import Nursery, job
from tests.placement.ledger_worlds import add_providers

pytestmark = pytest.mark.timeout(600)


class Simulated:
    """Clients of one counter, interleaved at random: each call reads at one instant and writes at a later one."""

    def __init__(self, seed: int, bug: str | None) -> None:
        self.rng, self.bug, self.used, self.now, self.fired = random.Random(seed), bug, 0, 0, 0

    def history(self, operations: int, clients: int = 3, capacity: int = 8) -> list[Call]:
        calls, idle, running, holding = [], list(range(clients)), {}, {client: [] for client in range(clients)}
        while len(calls) < operations:
            self.now += 1
            if idle and (not running or self.rng.random() < 0.5):
                client = idle.pop(self.rng.randrange(len(idle)))
                running[client] = self.begin(holding[client])
            else:
                client = self.rng.choice(list(running))
                if self.step(running[client], capacity):
                    call = running.pop(client)
                    outcome = "ok" if call["granted"] else "refused"
                    if call["kind"] == "claim" and call["granted"]:
                        holding[client].append(call["amount"])
                    calls.append(Call(call["kind"], call["amount"], outcome, call["begun"], self.now))
                    idle.append(client)
        return calls

    def begin(self, holding: list[int]) -> dict:
        release = holding and self.rng.random() < 0.5
        amount = holding.pop(self.rng.randrange(len(holding))) if release else self.rng.randint(1, 3)
        return {"kind": "release" if release else "claim", "amount": amount, "begun": self.now, "phase": 0}

    def step(self, call: dict, capacity: int) -> bool:
        """One step of a call: decide, write, answer. Without a bug, deciding and writing are one step."""
        call["phase"] += 1
        if call["phase"] == 1:
            self.decide(call, capacity)
            if self.bug != "check-then-act":
                self.write(call, capacity)
        elif call["phase"] == 2 and self.bug == "check-then-act":
            self.write(call, capacity)
        return call["phase"] == 3

    def decide(self, call: dict, capacity: int) -> None:
        call["granted"] = call["kind"] == "release" or self.used + call["amount"] <= capacity
        roomy = call["kind"] == "claim" and self.used + call["amount"] <= capacity // 2
        if self.bug == "early-refusal" and roomy and self.rng.random() < 0.1:
            call["granted"], self.fired = False, self.fired + 1

    def write(self, call: dict, capacity: int) -> None:
        if not call["granted"]:
            return
        change = -call["amount"] if call["kind"] == "release" else call["amount"]
        if self.bug == "lost-release" and change < 0 and self.rng.random() < 0.05:
            change, self.fired = 0, self.fired + 1
        if self.bug == "applied-twice" and change > 0 and self.rng.random() < 0.05:
            change, self.fired = 2 * change, self.fired + 1
        if self.used + change > capacity:
            self.fired += 1
        self.used += change


@pytest.mark.parametrize("seed", range(12))
def test_checker_accepts_what_is_correct(seed):
    world = Simulated(seed, None)
    assert linearizable(with_open_calls(world, 400), 8)


@pytest.mark.parametrize("bug", ["check-then-act", "early-refusal", "lost-release", "applied-twice"])
def test_checker_rejects_planted_bugs(bug):
    """Every history in which the bug fired is rejected, unless another order of the same answers explains it."""
    rejected = fired = 0
    for seed in range(12):
        world = Simulated(seed, bug)
        history = with_open_calls(world, 400)
        if world.fired:
            fired += 1
            rejected += not linearizable(history, 8)
    assert fired >= 10
    assert rejected >= 0.9 * fired, f"{rejected} of {fired}"


def with_open_calls(world: Simulated, operations: int) -> list[Call]:
    """A history with its unfinished calls as unknown ones."""
    running: list[dict] = []
    begin = world.begin

    def remember(holding):
        call = begin(holding)
        running.append(call)
        return call

    world.begin = remember
    history = world.history(operations)
    ended = {(call.kind, call.amount, call.begun) for call in history}
    left = [c for c in running if (c["kind"], c["amount"], c["begun"]) not in ended]
    return history + [Call(c["kind"], c["amount"], "unknown", c["begun"], 0) for c in left]


def test_claims_and_releases_of_one_host_are_linearizable(ledger_database, request):
    """Three processes, one host, clocks of one machine: some order explains every answer."""
    operations = 400 if request.config.getoption("--long") else 60
    names = add_providers(ledger_database, {"hot": {"VCPU": 8}})
    url = ledger_database.engine.url.render_as_string(hide_password=False)
    with Nursery() as nursery:
        jobs = [job("record", url, worker=n, host=names["hot"], operations=operations) for n in range(3)]
        history = [Call(*call) for ended in nursery.run(jobs) for call in ended.answer]
    assert len(history) == 3 * operations
    assert {call.outcome for call in history} == {"ok", "refused"}
    assert linearizable(history, 8)
