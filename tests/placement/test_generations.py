"""Generations counted as Placement counts them: each row of the table of the reference, and races for one count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from cloudcore import AllocationLedger, Database, PlacementTree, create_schema
from cloudcore.errors import GenerationConflict, InvalidArgument
from cloudcore.placement import Inventory, Owner

CONSUMER = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture(autouse=True)
def tables(database: Database) -> None:
    create_schema(database, areas=["placement"])


@pytest.fixture
def books(database: Database) -> Iterator[tuple[PlacementTree, AllocationLedger]]:
    with (
        PlacementTree.open(database, generations="placement") as tree,
        AllocationLedger(database, generations="placement") as ledger,
    ):
        yield tree, ledger


def test_edits_count_as_there(books: tuple[PlacementTree, AllocationLedger]) -> None:
    tree, _ = books
    host = tree.add("cn1")
    pool = tree.add("pool")

    def grows(by: int, edit: Callable[[], object]) -> None:
        before = tree.generations([host])[host.uuid]
        edit()
        assert tree.generations([host])[host.uuid] - before == by

    assert tree.generations([host]) == {host.uuid: 0}
    grows(1, lambda: tree.set_inventory(host, {"VCPU": 4}))
    grows(1, lambda: tree.set_inventory(host, {"VCPU": 4}))  # nothing changed
    grows(1, lambda: tree.put_inventory(host, "MEMORY_MB", 4))
    grows(1, lambda: tree.put_inventory(host, "MEMORY_MB", 4))
    grows(1, lambda: tree.remove_inventory(host, "MEMORY_MB"))
    grows(1, lambda: tree.set_traits(host, ["CUSTOM_A"]))
    grows(0, lambda: tree.set_traits(host, ["CUSTOM_A"]))
    grows(0, lambda: tree.rename(host, "cn2"))
    grows(0, lambda: tree.move(host, pool))
    grows(1, lambda: tree.set_aggregates(host, [OTHER], generation=tree.generations([host])[host.uuid]))
    grows(1, lambda: tree.set_aggregates(host, [OTHER], generation=tree.generations([host])[host.uuid]))
    grows(0, lambda: tree.set_aggregates(host, []))  # as before 1.19
    assert tree.generations([pool]) == {pool.uuid: 0}
    with pytest.raises(GenerationConflict) as caught:
        tree.set_inventory(host, {"VCPU": 5}, generation=1)
    assert (caught.value.identifier, caught.value.expected, caught.value.found) == (host.uuid, 1, 8)
    assert tree.provider(host).inventories["VCPU"].total == 4
    with pytest.raises(GenerationConflict):
        tree.set_traits(host, ["CUSTOM_A"], generation=1)  # nothing would change
    tree.remove(host)
    tree.remove(pool)


def test_allocations_count_as_there(books: tuple[PlacementTree, AllocationLedger]) -> None:
    tree, ledger = books
    a, b = (tree.add(name, inventory={"VCPU": 8}).uuid for name in ("a", "b"))

    def counts() -> tuple[int, int]:
        tree.refresh()
        found = tree.generations([a, b])
        return found[a], found[b]

    assert counts() == (0, 0)
    ledger.claim(CONSUMER, {a: {"VCPU": 1}}, project_id="p", user_id="u")
    assert counts() == (1, 0)
    ledger.replace({CONSUMER: {b: {"VCPU": 1}}}, generations={CONSUMER: 1})
    assert counts() == (1, 1), "the provider that is left does not count"
    ledger.replace({CONSUMER: {}})
    assert counts() == (1, 2), "what is emptied counts"
    owners = {OTHER: Owner.of("p", "u", None)}
    ledger.replace({OTHER: {a: {"VCPU": 1}, b: {"VCPU": 1}}}, owners=owners)
    assert counts() == (2, 3)
    ledger.release(OTHER)
    assert counts() == (2, 3)
    ledger.replace({OTHER: {a: {"VCPU": 2}}}, owners=owners)
    grown = ledger.reshape(
        {a: {}, b: {"VCPU": Inventory(4)}}, {OTHER: {b: {"VCPU": 2}}}, provider_generations={a: 3, b: 3}
    )
    assert grown == {a: 4, b: 6}
    with pytest.raises(GenerationConflict):
        ledger.reshape({b: {"VCPU": 4}}, {}, provider_generations={b: 3})


def test_a_deployment_that_begins_to_count_goes_on_from_where_it_was(database: Database) -> None:
    with PlacementTree.open(database) as before:
        host = before.add("cn1", inventory={"VCPU": 4})
        before.set_traits(host, ["CUSTOM_A"])
        assert before.generations([host]) == {host.uuid: 1}
    with PlacementTree.open(database, generations="placement") as tree:
        assert tree.generations([host]) == {host.uuid: 1}
        tree.rename(host, "cn2")
        assert tree.generations([host]) == {host.uuid: 1}
        tree.set_inventory(host, {"VCPU": 4}, generation=1)
        assert tree.generations([host]) == {host.uuid: 2}


def test_one_of_many_writers_that_read_the_same_count_wins(database: Database) -> None:
    with PlacementTree.open(database, generations="placement") as tree:
        host = tree.add("cn1")
    won, lost = [], []

    def write(number: int) -> None:
        with PlacementTree.open(database, generations="placement") as mine:
            ready.wait()
            try:
                mine.set_inventory(host, {"VCPU": number + 1}, generation=0)
                won.append(number)
            except GenerationConflict:
                lost.append(number)

    ready = threading.Barrier(6)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    with PlacementTree.open(database, generations="placement") as tree:
        assert tree.generations([host]) == {host.uuid: 1}
        assert tree.provider(host).inventories["VCPU"].total == won[0] + 1


def test_a_policy_that_is_not_known_is_refused(database: Database) -> None:
    with pytest.raises(InvalidArgument, match="neither cloudcore nor placement"):
        PlacementTree.open(database, generations="nova")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="neither cloudcore nor placement"):
        AllocationLedger(database, generations="nova")  # type: ignore[arg-type]
