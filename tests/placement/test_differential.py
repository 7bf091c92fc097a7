"""The search against the real Placement and against brute force, on random forests and requests.

Placement 16.0.0 runs in its own environment (`peer_server`); what is known to be wrong with it is excused by rule
(`peer.excused`), and brute force is the judge there. To repeat one case: `repeat(seed)` at a Python prompt, or
`CLOUDCORE_SEED=seed pytest tests/placement/test_differential.py`. The long run takes other seeds every day. The
names of the tests hold the first seed of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given

from cloudcore.placement import PlacementTree
from tests.placement import oracle, ours
from tests.placement.peer import Answer, Peer, excused, peer_python
from tests.placement.worlds import Request, World, cases, choose_request, choose_world, seeded

FIRST_SEED = int(os.environ.get("CLOUDCORE_SEED", "20260000"))
LONG_SEED = FIRST_SEED if "CLOUDCORE_SEED" in os.environ else int(time.time()) // 86_400 * 1_000_000
REQUESTS = 8
"""Requests to each world."""
CHUNKS = 8
WORLDS_IN_CHUNK = 12
COSTLY = 2_000
"""Combinations beyond which a request is left out: the peer's time grows with their square."""


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    """One process with Placement for each worker."""
    with Peer(peer_python()) as process:
        yield process


class Battery:
    """Compares the three on the worlds of many seeds, and counts."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.counts: Counter[str] = Counter()

    def run(self, seed: int) -> None:
        """The world of *seed* with its requests."""
        choose = seeded(seed)
        world = choose_world(choose)
        requests = [choose_request(choose, world) for _ in range(REQUESTS)]
        requests = [request for request in requests if oracle.cost(world, request) <= COSTLY]
        tree = ours.build(world)
        self.peer.load(world)
        asked = [request for request in requests if not self.is_excused(world, request)]
        queries = [request.query() for request in asked]
        answers = [*self.peer.find(queries[:-1]), *self.peer.search(queries[-1:])]
        by_query = dict(zip(queries, answers, strict=True))
        for request in requests:
            self.compare(seed, world, tree, request, by_query.get(request.query()))
        tree.check()

    def is_excused(self, world: World, request: Request) -> bool:
        """The peer is known to be wrong there. Where it may end in error 500, it is asked all the same."""
        reason = excused(world, request)
        if reason is None or reason.startswith("error 500"):
            return False
        self.counts[f"excused: {reason}"] += 1
        return True

    def compare(self, seed: int, world: World, tree: PlacementTree, request: Request, answer: Answer | None) -> None:
        right = oracle.candidates(world, request)
        found = ours.listed(tree, request.query())
        explain(seed, world, request, "brute force", right, found)
        assert len(found) == len(set(found)), f"seed {seed}: {request.query()} lists a candidate twice"
        self.counts["compared with brute force"] += 1
        if answer is None:
            return
        reason = excused(world, request)
        if reason is not None and answer.status == 500:
            self.counts[f"excused: {reason}"] += 1
            return
        assert answer.status == 200, f"seed {seed}: {request.query()} is refused by the peer: {answer.detail}"
        explain(seed, world, request, "Placement", answer.candidates, found)
        self.counts["compared with Placement"] += 1
        self.counts["found something"] += bool(right)

    def report(self, first: int, last: int) -> str:
        lines = [f"seeds {first} to {last}", *(f"{count:7} {what}" for what, count in self.counts.most_common())]
        return "\n".join(lines)


def explain(
    seed: int, world: World, request: Request, judge: str, right: frozenset | set | None, found: list[oracle.Candidate]
) -> None:
    """Fail with all that is needed to look into it."""
    if right == set(found):
        return
    assert right is not None
    missing, extra = right - set(found), set(found) - right
    lines = [f"seed {seed}: {request.query()}", f"{judge} has {len(right)}, the search found {len(found)}"]
    lines += [f"  missing {sorted(map(str, candidate))}" for candidate in list(missing)[:3]]
    lines += [f"  too many {sorted(map(str, candidate))}" for candidate in list(extra)[:3]]
    lines += [f"  {provider}" for provider in world.providers]
    raise AssertionError("\n".join(lines))


def repeat(seed: int) -> None:
    """Compare one world and print the counts."""
    with Peer(peer_python()) as process:
        battery = Battery(process)
        battery.run(seed)
        print(battery.report(seed, seed))


@pytest.mark.parametrize("first", [FIRST_SEED + chunk * WORLDS_IN_CHUNK for chunk in range(CHUNKS)])
def test_agrees_with_placement_and_brute_force(peer: Peer, first: int) -> None:
    """Sets of candidates (allocations and mappings) are equal, on forests of every shape."""
    battery = Battery(peer)
    for seed in range(first, first + WORLDS_IN_CHUNK):
        battery.run(seed)
    print(battery.report(first, first + WORLDS_IN_CHUNK - 1))
    assert battery.counts["compared with Placement"] >= 63, "8 chunks must make at least 500 cases"
    assert battery.counts["found something"] >= 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", [LONG_SEED + chunk * 10_000 for chunk in range(16)])
def test_agrees_on_ten_thousand_cases(peer: Peer, first: int) -> None:
    """The nightly size: other seeds every day, unless CLOUDCORE_SEED says which."""
    battery = Battery(peer)
    seed = first
    while battery.counts["compared with Placement"] < 640:
        battery.run(seed)
        seed += 1
    print(battery.report(first, seed - 1))


@hypothesis.settings(max_examples=max(500, hypothesis.settings().max_examples))
@given(cases())
def test_agrees_with_brute_force_whatever_the_forest(case: tuple[World, Request]) -> None:
    """The same with hypothesis, which finds small counterexamples; limits take a prefix of the whole answer."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= COSTLY)
    tree = ours.build(world)
    found = ours.listed(tree, request.query())
    assert set(found) == oracle.candidates(world, request), request.query()
    assert len(found) == len(set(found))
    for limit in (1, 2, max(1, len(found) - 1)):
        assert ours.listed(tree, f"{request.query()}&limit={limit}") == found[:limit]


ORDERS = """
import json, sys
from tests.placement import oracle, ours
from tests.placement.worlds import choose_request, choose_world, seeded
answers = []
for seed in range(int(sys.argv[1]), int(sys.argv[1]) + 20):
    choose = seeded(seed)
    world = choose_world(choose, most=40)
    tree = ours.build(world)
    for _ in range(6):
        request = choose_request(choose, world)
        if oracle.cost(world, request) <= 2000:
            for options in ({}, {"order_by": "spread"}, {"hosts_first": True}, {"distinct": "physical"}, {"seed": 7}):
                found = ours.listed(tree, request.query(), **options)
                answers.append([[sorted(held), sorted([s, sorted(u)] for s, u in by)] for held, by in found])
            answers.append(list(tree.candidates(request.query()).report().counts.items()))
print(json.dumps(answers))
"""


def test_order_is_the_same_in_every_process() -> None:
    """Placement's order follows the hashes of strings: its workers answer limit=10 differently. Ours does not."""
    root = Path(__file__).parents[2]
    answers = []
    for hash_seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{root}:{root / 'src'}"}
        command = [sys.executable, "-c", ORDERS, str(FIRST_SEED)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert sum(len(found) > 1 for found in answers[0]) >= 20, "too few answers have an order at all"
    assert all(answer == answers[0] for answer in answers[1:])
