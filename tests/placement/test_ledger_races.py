"""Many processes at the edge of capacity: never over it, filled to the last unit, no deadlock, sums conserved.

The auditor reads while they write. Sizes grow with --long.
"""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from cloudcore.errors import NotFound
from cloudcore.placement import AllocationLedger
from tests.placement.ledger_jobs import OWNER
from tests.placement.ledger_nursery import Nursery, job
from tests.placement.ledger_worlds import add_providers, used, uuid_of

pytestmark = pytest.mark.timeout(600)

AUDIT = """
SELECT i.provider_id, i.resource_class, i.used, i.capacity, COALESCE(SUM(a.amount), 0)
FROM inventories i LEFT JOIN allocations a ON a.provider_id = i.provider_id AND a.resource_class = i.resource_class
GROUP BY i.provider_id, i.resource_class, i.used, i.capacity
"""


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def url(ledger_database):
    return ledger_database.engine.url.render_as_string(hide_password=False)


class Auditor:
    """Reads used, capacity and sums in single statements, in a thread, as long as the block lasts."""

    def __init__(self, database, *, shrunk: frozenset[int] = frozenset()) -> None:
        self.database, self.shrunk = database, shrunk
        self.looks, self.breaches = 0, []
        self._over: dict[tuple, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._audit)

    def _audit(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(0.005)

    def look(self) -> None:
        with self.database.read() as connection:
            rows = connection.exec_driver_sql(AUDIT).all()
        self.looks += 1
        for provider, name, taken, capacity, total in rows:
            if taken != total:
                self.breaches.append(f"{provider}/{name}: used {taken}, allocations {total}")
            if taken > capacity and provider not in self.shrunk:
                self.breaches.append(f"{provider}/{name}: {taken} of {capacity} used")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.look()


@pytest.mark.parametrize(("processes", "group"), [(2, 0), (6, 0), (3, 16)])
def test_filled_to_the_last_unit_and_never_beyond(ledger_database, url, nursery, request, processes, group):
    """Claims of 2 on hosts of 24: in the end each host is full, every success counts, nobody was refused early."""
    if request.config.getoption("--long"):
        processes = max(16, processes)
    names = add_providers(ledger_database, {name: {"VCPU": 24} for name in ("hot", "warm")})
    hosts = list(names.values())
    with Auditor(ledger_database) as auditor:
        jobs = [job("fill", url, worker=n, hosts=hosts, amount=2, group=group) for n in range(processes)]
        results = [ended.answer for ended in nursery.run(jobs)]
    assert auditor.breaches == []
    assert auditor.looks > 1
    granted = Counter()
    for result in results:
        granted.update(result["granted"])
    assert granted == dict.fromkeys(hosts, 24), "filled to 100 %, and each success took effect once"
    assert [used(ledger_database, host, "VCPU") for host in hosts] == [24, 24]
    assert sum(result["deadlocks"] + result["false_refusals"] for result in results) == 0
    AllocationLedger(ledger_database).check()


def test_churn_at_the_edge_keeps_every_rule(ledger_database, url, nursery, request):
    """Claims, moves, swaps, replacements, releases over two hosts at a time; one inventory shrinks and grows."""
    rounds, processes = (300, 16) if request.config.getoption("--long") else (40, 4)
    inventory = {"VCPU": 8, "MEMORY_MB": 8}
    names = add_providers(ledger_database, dict.fromkeys(("h1", "h2", "h3", "shrunk"), inventory))
    shrunk = names["shrunk"]
    with ledger_database.read() as connection:
        from tests.placement.ledger_worlds import provider_id

        number = provider_id(connection, shrunk)
    with Auditor(ledger_database, shrunk=frozenset({number})) as auditor:
        jobs = [
            job("churn", url, worker=n, hosts=list(names.values()), rounds=rounds, shrink=shrunk if n == 0 else None)
            for n in range(processes)
        ]
        results = [ended.answer for ended in nursery.run(jobs)]
    assert auditor.breaches == []
    assert min(result["granted"] for result in results) > 0, "somebody starved"
    assert sum(result["refused"] for result in results) > 0, "there was room for all: the test tests nothing"
    assert sum(result["deadlocks"] for result in results) == 0
    ledger = AllocationLedger(ledger_database)
    ledger.check()
    assert {host: ledger.usages(provider=host) for host in names.values()} == {
        host: {"VCPU": 0, "MEMORY_MB": 0} for host in names.values()
    }


def test_one_move_is_ended_once(ledger_database, url, nursery):
    """Confirm, revert, abandon and release race for one move: one wins, the others hear what happened."""
    names = add_providers(ledger_database, {name: {"VCPU": 8} for name in ("s", "d")})
    ledger = AllocationLedger(ledger_database)
    final = {
        "confirmed": ({names["d"]: {"VCPU": 1}}, {}),
        "reverted": ({names["s"]: {"VCPU": 1}}, {}),
        "abandoned": ({}, {}),
        "ended": ({}, {}),
    }
    for number in range(4):
        instance, migration = uuid_of(f"race/{number}"), uuid_of(f"race/{number}/migration")
        ledger.claim(instance, {names["s"]: {"VCPU": 1}}, **OWNER)
        ledger.begin_move(instance, migration, {names["d"]: {"VCPU": 1}})
        events = ["confirm", "revert", "abandon", "release", "confirm"]
        answers = [
            ended.answer
            for ended in nursery.run(
                [job("race_for_one_move", url, migration=migration, event=event) for event in events]
            )
        ]
        state = str(ledger.move(migration).state)
        instance_holds, migration_holds = ledger.allocations(instance), ledger.allocations(migration)
        if state == "confirmed" and answers[3] == "ended":
            instance_holds = final[state][0]  # the release came after the confirm, and released
        if state == "reverted" and answers[3] == "ended":
            instance_holds = final[state][0]
        assert (instance_holds, migration_holds) == final[state], (state, answers)
        for event, answer in zip(events, answers, strict=True):
            fits = {"confirm": "confirmed", "revert": "reverted", "abandon": "abandoned", "release": "ended"}[event]
            allowed = {"InvalidTransition", "ConsumerNotFound", fits}
            assert answer in allowed | ({"ended"} if event == "abandon" else set()), (state, answers)
        ledger.check()
        if ledger.allocations(instance):
            ledger.release(instance)


def test_two_moves_of_one_instance_never_begin_both(ledger_database):
    """Threads race with two migrations for one instance: one begins, the other is told who was first."""
    from cloudcore.errors import InUse

    names = add_providers(ledger_database, {name: {"VCPU": 8} for name in ("s", "d")})
    ledger = AllocationLedger(ledger_database)
    instance = uuid_of("twice")
    ledger.claim(instance, {names["s"]: {"VCPU": 1}}, **OWNER)
    outcomes = []

    def begin(number: int) -> None:
        try:
            outcomes.append(ledger.begin_move(instance, uuid_of(f"m{number}"), {names["d"]: {"VCPU": 1}}).migration)
        except InUse:
            outcomes.append(None)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome is None for outcome in outcomes) == [False, True, True, True]
    ledger.check()
    with pytest.raises(NotFound):
        ledger.move(uuid_of("m9"))
