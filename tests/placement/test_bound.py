"""A tree that is kept in a database: written through, followed by others, safe against other writers."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloudcore import create_schema
from cloudcore._failpoints import arm, disarm
from cloudcore.database import Database
from cloudcore.errors import (
    AlreadyExists,
    CloudcoreError,
    ConsumerNotFound,
    GenerationConflict,
    InUse,
    InvalidProvider,
    OperationMismatch,
    ProviderNotFound,
    SchemaMismatch,
    UnsupportedFeature,
)
from cloudcore.placement import AllocationLedger, Inventory, PlacementTree, changes_since, prune_changes
from cloudcore.placement import tables as t
from cloudcore.placement.storage import bulk_insert as bulk
from cloudcore.placement.storage import store

A = "aaaaaaaa-0000-0000-0000-000000000001"
Open = Callable[[], PlacementTree]


@pytest.fixture
def open_tree(ledger_database: Database) -> Iterator[Open]:
    """Opens trees on one database; all are refreshed, checked and compared with what is stored at the end."""
    opened: list[PlacementTree] = []

    def open_one() -> PlacementTree:
        opened.append(PlacementTree.open(ledger_database))
        return opened[-1]

    yield open_one
    fresh = PlacementTree.open(ledger_database)
    for tree in opened:
        tree.refresh()
        tree.check()
        assert tree.as_placement() == fresh.as_placement()
        tree.close()
    fresh.close()


def add_host(tree: PlacementTree, name: str = "cn1") -> None:
    tree.add(name, inventory={"DISK_GB": Inventory(100, 10, step_size=5)}, traits={"CUSTOM_A"}, aggregates={A})
    tree.add(f"{name}-numa", parent=name, inventory={"VCPU": Inventory(8, allocation_ratio=2.5)})


def names(tree: PlacementTree) -> list[str]:
    return [provider.name for provider in tree]


def test_edits_are_written_through_and_followed(open_tree: Open) -> None:
    """Every verb: the other tree sees it after a refresh, and one that is opened later finds it."""
    one, other = open_tree(), open_tree()
    steps: list[Callable[[], object]] = [
        lambda: add_host(one),
        lambda: add_host(one, "cn2"),
        lambda: one.set_inventory("cn1", {"DISK_GB": 50, "MEMORY_MB": Inventory(10, max_unit=3)}),
        lambda: one.set_inventory("cn1", {"MEMORY_MB": 11}),
        lambda: one.set_traits("cn1", {"CUSTOM_B", "CUSTOM_C"}),
        lambda: one.set_aggregates("cn1", ()),
        lambda: one.rename("cn1", "host"),
        lambda: one.move("cn2-numa", "host"),
        lambda: one.move("cn2-numa", None),
        lambda: one.remove("cn2"),
        lambda: one.remove("host", recursive=True),
    ]
    for step in steps:
        step()
        assert other.refresh() >= 1
        other.check()
        assert other.as_placement() == one.as_placement()
    assert other.refresh() == 0


def test_allocations_of_the_ledger_are_followed(open_tree: Open, ledger_database: Database) -> None:
    """Only what is in use is read anew: the columns of the providers stay, their generations too."""
    one, other = open_tree(), open_tree()
    add_host(one)
    other.refresh()
    ledger = AllocationLedger(ledger_database)
    consumer = str(uuids.uuid4())
    ledger.claim(consumer, other.candidates("resources=VCPU:3,DISK_GB:10").first(), project_id="p", user_id="u")
    assert other.refresh() == 2
    assert other.usage("cn1-numa") == {"VCPU": 3}
    assert other["cn1"].generation == 0
    assert list(other.candidates("resources=VCPU:18")) == []
    ledger.release(consumer)
    other.refresh()
    assert other.usage("cn1-numa") == {"VCPU": 0}


def test_provider_that_went_is_missed_among_others_that_changed(open_tree: Open, ledger_database: Database) -> None:
    """Use of one with several classes and the end of another, in one refresh, and nothing else."""
    one, other = open_tree(), open_tree()
    one.add("cn1", inventory={"VCPU": 8, "MEMORY_MB": 8, "DISK_GB": 8})
    one.add("cn2", inventory={"VCPU": 8})
    one.add("cn3")
    other.refresh()
    candidate = one.candidates("resources=VCPU:1,MEMORY_MB:2,DISK_GB:3").first()
    AllocationLedger(ledger_database).claim(str(uuids.uuid4()), candidate, project_id="p", user_id="u")
    one.remove("cn2")
    other.refresh()
    other.check()
    assert names(other) == ["cn1", "cn3"]
    assert other.usage("cn1") == {"VCPU": 1, "MEMORY_MB": 2, "DISK_GB": 3}
    one.set_traits("cn3", {"CUSTOM_A"})
    one.add("cn4")
    other.refresh()
    assert names(other) == ["cn1", "cn3", "cn4"]


def test_reshape_by_the_ledger_is_followed_as_an_edit(open_tree: Open, ledger_database: Database) -> None:
    """It changes inventories too: reading what is in use would not do, even where the feed can tell the two apart."""
    one, other = open_tree(), open_tree()
    add_host(one)
    other.refresh()
    ledger = AllocationLedger(ledger_database)
    uuid = other["cn1-numa"].uuid
    ledger.claim(str(uuids.uuid4()), {uuid: {"VCPU": 1}}, project_id="p", user_id="u")
    other.refresh()
    ledger.reshape({uuid: {"VCPU": 6, "PCPU": 2}}, {})
    assert other.refresh() == 1
    assert other["cn1-numa"].inventories == {"VCPU": Inventory(6), "PCPU": Inventory(2)}
    assert other["cn1-numa"].generation == 1


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_use_is_read_in_one_statement_on_postgresql(open_tree: Open, ledger_database: Database) -> None:
    """Unless something else changed as well, which is read as it is elsewhere."""
    tree, other = open_tree(), open_tree()
    add_host(tree)
    add_host(tree, "cn2")
    tree.add("empty")
    other.refresh()
    ledger = AllocationLedger(ledger_database)
    numa = [tree[f"{host}-numa"].uuid for host in ("cn1", "cn2")]

    def claim(amount: int) -> None:
        ledger.claim(str(uuids.uuid4()), {uuid: {"VCPU": amount} for uuid in numa}, project_id="p", user_id="u")

    def sent_by_a_refresh(expected: int) -> int:
        sent: list[str] = []
        engine = ledger_database.engine
        arguments = (engine, "before_cursor_execute", lambda _c, _k, statement, *_: sent.append(statement))
        sa.event.listen(*arguments)
        try:
            assert other.refresh() == expected
        finally:
            sa.event.remove(*arguments)
        return len(sent)

    assert sent_by_a_refresh(0) == 1
    claim(2)
    claim(3)
    assert sent_by_a_refresh(2) == 1
    assert [other.usage(f"{host}-numa") for host in ("cn1", "cn2")] == [{"VCPU": 5}] * 2
    claim(1)
    tree.set_traits("cn1-numa", {"CUSTOM_B"})
    assert sent_by_a_refresh(2) > 1
    tree.set_traits("empty", {"CUSTOM_C"})
    assert sent_by_a_refresh(1) > 1
    assert (other["cn1-numa"].traits, other["empty"].traits) == ({"CUSTOM_B"}, {"CUSTOM_C"})
    claim(1)
    tree.remove("empty")
    other.refresh()
    assert names(other) == ["cn1", "cn1-numa", "cn2", "cn2-numa"]
    ledger_database.run(lambda connection: prune_changes(connection, keep=1))
    claim(1)
    other.refresh()
    assert other.usage("cn1-numa") == {"VCPU": 8}


def test_use_alone_is_told_from_edits(open_tree: Open, ledger_database: Database) -> None:
    """On SQLite a follower is told what is in use, without ids to look up, unless something else changed as well."""
    tree = open_tree()
    add_host(tree)
    uuid = tree["cn1-numa"].uuid
    ledger = AllocationLedger(ledger_database)
    watch = store.Watch.of(ledger_database)
    with ledger_database.read() as connection:
        watermark = changes_since(connection, None)[1]
    for amount in (2, 3):
        ledger.claim(str(uuids.uuid4()), {uuid: {"VCPU": amount}}, project_id="p", user_id="u")
    found = watch.use_since(watermark)
    if ledger_database.dialect != "sqlite":
        assert found is None
        return
    assert found is not None
    assert found[0] == [(tree["cn1-numa"].number, "VCPU", 5)]
    assert watch.use_since(found[1]) == ([], found[1])
    tree.set_traits("cn1", {"CUSTOM_B"})
    assert watch.use_since(watermark) is None
    assert watch.use_since(found[1]) is None
    with ledger_database.read() as connection:
        behind = changes_since(connection, None)[1]
    for amount in (1, 2):
        ledger.claim(str(uuids.uuid4()), {uuid: {"VCPU": amount}}, project_id="p", user_id="u")
    assert watch.use_since(behind) is not None
    ledger_database.run(lambda connection: prune_changes(connection, keep=1))
    assert watch.use_since(behind) is None, "the feed no longer reaches back"
    watch.close()
    assert watch.use_since(behind) is None


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_use_is_what_came_last_of_each_class(open_tree: Open, ledger_database: Database) -> None:
    """However the classes and the transactions are mixed; and when there is too much of it, ids are given instead."""
    tree = open_tree()
    for name in ("cn1", "cn2"):
        tree.add(name, inventory={"VCPU": 16, "MEMORY_MB": 1024})
    one, two = (tree[name].uuid for name in ("cn1", "cn2"))
    with ledger_database.read() as connection:
        watermark = changes_since(connection, None)[1]
    ledger = AllocationLedger(ledger_database)
    consumers = [str(uuids.uuid4()) for _ in range(3)]
    for consumer, wanted in zip(
        consumers, ({one: {"VCPU": 2}}, {two: {"MEMORY_MB": 5}, one: {"MEMORY_MB": 8}}, {one: {"VCPU": 3}}), strict=True
    ):
        ledger.claim(consumer, wanted, project_id="p", user_id="u")
    ledger.release(consumers[0])
    watch = store.Watch.of(ledger_database)
    found = watch.use_since(watermark)
    assert found is not None
    one_id, two_id = tree["cn1"].number, tree["cn2"].number
    expected = {(one_id, "VCPU"): 3, (one_id, "MEMORY_MB"): 8, (two_id, "MEMORY_MB"): 5, (two_id, "VCPU"): 0}
    assert sorted(found[0]) == sorted((*key, used) for key, used in expected.items())
    assert tree.refresh() == 2
    assert (tree.usage("cn1"), tree.usage("cn2")) == ({"VCPU": 3, "MEMORY_MB": 8}, {"VCPU": 0, "MEMORY_MB": 5})
    with ledger_database.write() as connection:
        position = connection.exec_driver_sql("SELECT position FROM provider_change_slots WHERE slot = 0").scalar_one()
        connection.exec_driver_sql(
            "INSERT INTO provider_changes (slot, position, provider_id, resource_class, used) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= 10000) "
            "SELECT 0, ?, ?, 'CUSTOM_' || i, 1 FROM n",
            (position + 1, one_id),
        )
        connection.exec_driver_sql("UPDATE provider_change_slots SET position = position + 1 WHERE slot = 0")
    assert watch.use_since(found[1]) is None
    assert tree.refresh() == 1
    watch.close()


def test_inventory_in_use_cannot_go(open_tree: Open, ledger_database: Database) -> None:
    """Not even from a tree that has not heard of the allocation: the database knows."""
    one, stale = open_tree(), open_tree()
    add_host(one)
    stale.refresh()
    AllocationLedger(ledger_database).claim(
        str(uuids.uuid4()), one.candidates("resources=VCPU:3").first(), project_id="p", user_id="u"
    )
    for refused in (
        lambda: stale.set_inventory("cn1-numa", {}),
        lambda: stale.remove("cn1-numa"),
        lambda: stale.remove("cn1", recursive=True),
    ):
        with pytest.raises(InUse):
            refused()
    assert len(stale) == 2
    stale.set_inventory("cn1-numa", {"VCPU": 1})
    assert PlacementTree.open(ledger_database).usage("cn1-numa") == {"VCPU": 3}


def test_stale_edit_is_refused_and_changes_nothing(open_tree: Open) -> None:
    """Somebody else was first: GenerationConflict, in the database and in memory all is as it was."""
    one, stale = open_tree(), open_tree()
    add_host(one)
    one.add("cn2")
    stale.refresh()
    one.set_traits("cn1", {"CUSTOM_NEW"})
    before = stale.as_placement()
    for refused in (
        lambda: stale.set_traits("cn1", {"CUSTOM_OLD"}),
        lambda: stale.set_inventory("cn1", {"DISK_GB": 1}),
        lambda: stale.rename("cn1", "other"),
        lambda: stale.move("cn1", "cn2"),
        lambda: stale.remove("cn1", recursive=True),
    ):
        with pytest.raises(GenerationConflict):
            refused()
        assert stale.as_placement() == before
    stale.refresh()
    stale.set_traits("cn1", {"CUSTOM_OLD"})
    assert stale["cn1"].generation == 2


def test_child_of_a_parent_that_moved_or_went_is_refused(open_tree: Open) -> None:
    one, stale = open_tree(), open_tree()
    add_host(one)
    add_host(one, "cn2")
    stale.refresh()
    one.move("cn1-numa", "cn2")
    with pytest.raises(GenerationConflict):
        stale.add("pf", parent="cn1-numa")
    one.remove("cn1-numa")
    with pytest.raises(GenerationConflict):
        stale.add("pf", parent="cn1-numa")
    one.set_traits("cn2", {"CUSTOM_B"})
    stale.add("pf", parent="cn2")  # an edit of the parent is no reason to refuse a child


@pytest.mark.parametrize("edit", [lambda tree: tree.add("c", parent="p"), lambda tree: tree.move("x", "p")])
def test_a_parent_is_not_taken_for_another_that_had_its_name(
    open_tree: Open, edit: Callable[[PlacementTree], object]
) -> None:
    """What this tree calls p is no longer called so by those who mean it."""
    one, two = open_tree(), open_tree()
    for name in ("p", "q", "x"):
        one.add(name)
    two.refresh()
    one.rename("p", "old")
    one.rename("q", "p")
    with pytest.raises(GenerationConflict):
        edit(two)
    two.refresh()
    edit(two)
    assert [each.name for each in two.children("p")] in (["c"], ["x"])
    one.refresh()


def test_name_and_uuid_taken_by_another_writer(open_tree: Open) -> None:
    one, stale = open_tree(), open_tree()
    taken = one.add("cn1")
    with pytest.raises(AlreadyExists):
        stale.add("cn1")
    with pytest.raises(AlreadyExists):
        stale.add("cn2", uuid=taken.uuid)
    with pytest.raises(AlreadyExists, match=f"'cn1' is the name of provider {taken.uuid}; update\\(\\) edits that one"):
        one.add("cn1")
    stale.add("cn3")
    with pytest.raises(AlreadyExists):
        stale.rename("cn3", "cn1")
    assert names(stale) == ["cn3"]


def test_provider_with_unseen_children_stays(open_tree: Open) -> None:
    one, stale = open_tree(), open_tree()
    one.add("cn1")
    stale.refresh()
    one.add("numa", parent="cn1")
    with pytest.raises(InUse):
        stale.remove("cn1")
    assert names(stale) == ["cn1"]


def test_two_writers_cannot_make_a_loop(open_tree: Open) -> None:
    """A below B in one tree, B below A in another, at the same moment: at most one of the two comes about."""
    first, second = open_tree(), open_tree()
    first.add("top")
    for name in ("a", "b"):
        first.add(name, parent="top")
    first.add("b-child", parent="b")
    for round_ in range(6):
        for tree in (first, second):
            tree.refresh()
        barrier = threading.Barrier(2)
        outcomes: dict[str, object] = {}

        def move(
            tree: PlacementTree,
            what: str,
            where: str,
            barrier: threading.Barrier = barrier,
            outcomes: dict[str, object] = outcomes,
        ) -> None:
            barrier.wait(30)
            try:
                outcomes[what] = tree.move(what, where)
            except CloudcoreError as error:
                outcomes[what] = error

        target = "b-child" if round_ % 2 else "b"
        threads = [
            threading.Thread(target=move, args=(first, "a", target)),
            threading.Thread(target=move, args=(second, "b", "a")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        moved = [what for what, outcome in outcomes.items() if not isinstance(outcome, CloudcoreError)]
        refused = [outcome for outcome in outcomes.values() if isinstance(outcome, CloudcoreError)]
        assert len(moved) == 1, outcomes
        assert all(isinstance(outcome, GenerationConflict) for outcome in refused)
        for tree in (first, second):
            tree.refresh()
            tree.check()
        first.move(moved[0], "top")


def test_repeated_operation_takes_effect_once(open_tree: Open) -> None:
    one, other = open_tree(), open_tree()
    added = one.add("cn1", inventory={"VCPU": 8}, operation_id="op-1")
    assert other.add("cn1", inventory={"VCPU": 8}, operation_id="op-1") == added
    assert one.set_traits("cn1", {"CUSTOM_A"}, operation_id="op-2").generation == 1
    assert other.set_traits("cn1", {"CUSTOM_A"}, operation_id="op-2").generation == 1
    with pytest.raises(OperationMismatch):
        other.set_traits("cn1", {"CUSTOM_B"}, operation_id="op-2")
    one.refresh()
    other.refresh()
    assert one.as_placement() == other.as_placement()
    assert other["cn1"].traits == {"CUSTOM_A"}
    one.remove("cn1", operation_id="op-3")
    with pytest.raises(ProviderNotFound, match="done before"):
        other.remove("cn1", operation_id="op-3")


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_what_is_looked_at_before_a_removal_is_claimed_by_nobody_meanwhile(
    open_tree: Open, ledger_database: Database
) -> None:
    """A claim that came in between was told as children that this tree has not seen."""
    tree = open_tree()
    host = tree.add("cn1", inventory={"VCPU": 8})
    database = ledger_database
    looked: list[str] = []

    def look(*arguments: object) -> None:
        if "FROM inventories" in str(arguments[2]) and not looked:
            looked.append(str(arguments[2]))
            with pytest.raises(sa.exc.OperationalError), database.engine.connect() as connection:
                connection.exec_driver_sql("SELECT used FROM inventories FOR UPDATE NOWAIT")

    sa.event.listen(database.engine, "after_cursor_execute", look)
    tree.remove("cn1")
    sa.event.remove(database.engine, "after_cursor_execute", look)
    assert len(looked) == 1
    with pytest.raises(ProviderNotFound):
        AllocationLedger(database).claim(A, {host.uuid: {"VCPU": 1}}, project_id="p", user_id="u")


def test_an_edit_that_finds_all_as_it_shall_be_sees_that_it_is_so(open_tree: Open) -> None:
    """What this tree knows may be old: an edit that has nothing to write must not say so of another's state."""
    one, other = open_tree(), open_tree()
    one.add("cn1", traits={"CUSTOM_A"})
    other.refresh()
    assert one.set_traits("cn1", {"CUSTOM_A"}).generation == 0
    other.set_traits("cn1", {"CUSTOM_B"})
    for operation_id in (None, "op"):
        with pytest.raises(GenerationConflict, match="cn1"):
            one.set_traits("cn1", {"CUSTOM_A"}, operation_id=operation_id)
    one.refresh()
    assert one.set_traits("cn1", {"CUSTOM_A"}, operation_id="op").generation == 2
    other.refresh()
    other.remove("cn1")
    with pytest.raises(GenerationConflict):
        one.set_traits("cn1", {"CUSTOM_A"})


def test_an_edit_that_changed_nothing_is_done_as_well(open_tree: Open) -> None:
    """Its repeat changes nothing either, whatever others made of the provider since."""
    one, other = open_tree(), open_tree()
    one.add("cn1", traits={"CUSTOM_A"})
    assert one.set_traits("cn1", {"CUSTOM_A"}, operation_id="op").generation == 0
    other.refresh()
    other.set_traits("cn1", {"CUSTOM_B"})
    for tree in (one, other, open_tree()):
        assert tree.set_traits("cn1", {"CUSTOM_A"}, operation_id="op").traits == {"CUSTOM_B"}
        with pytest.raises(OperationMismatch):
            tree.set_traits("cn1", set(), operation_id="op")
    nothing = {"resource_providers": []}
    assert one.load(nothing, operation_id="empty") == one.load(nothing, operation_id="empty") == 0


@pytest.mark.parametrize("point", ["database.commit.before", "database.commit.after"])
def test_interrupted_edit_is_done_or_not_done(open_tree: Open, point: str) -> None:
    """An exception around the commit: the tree refreshes to what the database holds, whichever it is."""
    tree = open_tree()
    add_host(tree)

    class Interrupted(Exception):
        pass

    def interrupt(_: str) -> None:
        raise Interrupted

    arm(point, interrupt)
    try:
        with pytest.raises(Interrupted):
            tree.update("cn1", traits={"CUSTOM_NEW"}, inventory={"DISK_GB": 7}, operation_id="op")
    finally:
        disarm(point)
    assert tree["cn1"].traits == {"CUSTOM_A"}
    done = tree.update("cn1", traits={"CUSTOM_NEW"}, inventory={"DISK_GB": 7}, operation_id="op")
    assert (done.traits, done.generation) == ({"CUSTOM_NEW"}, 1)


def test_refused_edit_reaches_no_database(open_tree: Open) -> None:
    tree = open_tree()
    add_host(tree)
    with pytest.raises(InvalidProvider):
        tree.move("cn1", "cn1-numa")
    with pytest.raises(CloudcoreError):
        tree.add("x", inventory={"VCPU": -1})
    assert names(tree) == ["cn1", "cn1-numa"]


def test_bound_tree_keeps_no_books(open_tree: Open) -> None:
    """The ledger does; a fork has its own."""
    tree = open_tree()
    add_host(tree)
    candidate = tree.candidates("resources=VCPU:3").first()
    for refused in (
        lambda: tree.allocate("vm", candidate),
        lambda: tree.set_usage("cn1-numa", {"VCPU": 1}),
        lambda: tree.release("vm"),
    ):
        with pytest.raises(UnsupportedFeature, match="AllocationLedger"):
            refused()
    fork = tree.what_if()
    fork.allocate("vm", candidate)
    assert (fork.usage("cn1-numa"), tree.usage("cn1-numa")) == ({"VCPU": 3}, {"VCPU": 0})


def test_forest_is_loaded_in_one_edit(open_tree: Open) -> None:
    """A dump of a tree in memory, parents after their children too; order and parts are those of the dump."""
    source = PlacementTree()
    for host in range(30):
        add_host(source, f"cn{host}")
    source.move("cn1-numa", "cn2")
    data = source.as_placement()
    data["resource_providers"].reverse()
    tree, other = open_tree(), open_tree()
    assert tree.load(data, operation_id="load") == 60
    other.refresh()
    assert sorted(names(other)) == sorted(names(source))
    assert other["cn1-numa"].root == source["cn2"].uuid
    assert other["cn7"].inventories == source["cn7"].inventories
    tree.load(data, operation_id="load")
    assert len(tree) == 60


def test_numbers_are_never_used_twice_and_keep_the_order(open_tree: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written some thousand at a time (here three); what went leaves its number unused."""
    monkeypatch.setattr(bulk, "_CHUNK", 3)
    tree, other = open_tree(), open_tree()
    tree.add("gone")
    last = tree["gone"].number
    tree.remove("gone")
    source = PlacementTree()
    for host in range(5):
        add_host(source, f"cn{host}")
    other.add("between")
    tree.load(source.as_placement())
    assert names(tree) == [*names(source)]
    numbers = [provider.number for provider in tree]
    assert numbers == sorted(numbers)
    assert numbers[0] > other["between"].number > last
    tree.refresh()
    assert names(tree) == ["between", *names(source)]


def test_tree_behind_a_pruned_feed_reads_everything(open_tree: Open, ledger_database: Database) -> None:
    one, other = open_tree(), open_tree()
    for host in range(5):
        one.add(f"cn{host}")
    ledger_database.run(lambda connection: prune_changes(connection, keep=1))
    other.refresh()
    assert names(other) == names(one)


def test_followers_see_whole_edits_while_others_write(open_tree: Open) -> None:
    """Two trees edit, a third follows and checks itself after every refresh: it never reads half an edit."""
    writers = [open_tree(), open_tree()]
    follower = open_tree()
    for name in ("a", "b"):
        add_host(writers[0], name)
    for tree in (*writers, follower):
        tree.refresh()
    failures: list[BaseException] = []

    def write(tree: PlacementTree, mine: str, other: str) -> None:
        for step in range(12):
            try:
                tree.move(f"{mine}-numa", other if step % 2 == 0 else mine)
                tree.update(mine, traits={f"CUSTOM_{step}"}, inventory={"DISK_GB": step + 1})
            except GenerationConflict:
                tree.refresh()
            except BaseException as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=write, args=(writers[i], *pair)) for i, pair in enumerate(("ab", "ba"))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        follower.refresh()
        follower.check()
        for name in "ab":
            provider = follower[name]
            step = provider.inventories["DISK_GB"].total - 1
            assert provider.traits in ({f"CUSTOM_{step}"}, {"CUSTOM_A"})
    for thread in threads:
        thread.join()
    assert failures == []


def test_followers_keep_up_with_claims_among_edits(open_tree: Open, ledger_database: Database) -> None:
    """One claims and releases, one edits, a third follows: use alone and edits come in any mixture, none is missed."""
    editor, follower = open_tree(), open_tree()
    for host in range(4):
        add_host(editor, f"cn{host}")
    uuid_of = {name: editor[name].uuid for name in names(editor)}
    failures: list[BaseException] = []

    def guarded(work: Callable[[int], object]) -> None:
        try:
            for step in range(25):
                work(step)
        except BaseException as error:
            failures.append(error)
            raise

    def edit(step: int) -> None:
        editor.set_inventory(f"cn{step % 4}-numa", {"VCPU": Inventory(8 + step)})

    def claim(step: int) -> None:
        ledger = AllocationLedger(ledger_database)
        consumer = str(uuids.uuid4())
        ledger.claim(consumer, {uuid_of[f"cn{step % 3}-numa"]: {"VCPU": 1}}, project_id="p", user_id="u")
        if step % 3 == 0:
            ledger.release(consumer)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (edit, claim)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        follower.refresh()
        follower.check()
    for thread in threads:
        thread.join()
    assert failures == []
    follower.refresh()
    assert sum(follower.usage(name).get("VCPU", 0) for name in uuid_of) == 16
    assert [follower[f"cn{host}-numa"].inventories["VCPU"].total for host in range(4)] == [32, 29, 30, 31]


def test_refresh_reads_one_state(open_tree: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while a refresh is reading is for the next one: a parent is never missed."""
    one, other = open_tree(), open_tree()
    add_host(one)
    other.refresh()
    one.set_traits("cn1", {"CUSTOM_B"})
    read_usage = store.read_usage
    meanwhile = [lambda: one.add("rack"), lambda: one.move("cn1", "rack")]

    def read_late(connection: sa.Connection, ids: Iterable[int]) -> list:
        while meanwhile:
            meanwhile.pop(0)()
        return read_usage(connection, ids)

    monkeypatch.setattr(store, "read_usage", read_late)
    other.refresh()
    other.check()
    assert names(other) == ["cn1", "cn1-numa"]
    assert other["cn1"].traits == {"CUSTOM_B"}
    other.refresh()
    assert names(other) == ["rack", "cn1", "cn1-numa"]


def test_search_during_a_refresh_does_not_misplace_its_news(
    open_tree: Open, ledger_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An own edit that no search has seen yet moves positions; a search while a refresh reads lays them out anew."""
    tree, other = open_tree(), open_tree()
    for name in ("cn1", "cn2", "cn3"):
        tree.add(name, inventory={"VCPU": 8})
    tree.check()
    other.refresh()
    tree.refresh()
    AllocationLedger(ledger_database).claim(
        str(uuids.uuid4()), {other["cn2"].uuid: {"VCPU": 5}}, project_id="p", user_id="u"
    )
    tree.add("numa", parent="cn1", inventory={"VCPU": 8})
    reads = {name: getattr(store, name) for name in ("read_usage", "read_some")}

    def read_slowly(name: str, *arguments: object) -> object:
        if name == "read_some":
            assert tree.candidates("resources=VCPU:1").first()
        return reads[name](*arguments)

    for name in reads:
        monkeypatch.setattr(store, name, partial(read_slowly, name))
    tree.refresh()
    tree.check()
    assert tree.usage("cn2") == {"VCPU": 5}


def test_capacity_is_stored_as_whole_units(open_tree: Open, ledger_database: Database) -> None:
    tree = open_tree()
    tree.add("cn1", inventory={"VCPU": Inventory(10, allocation_ratio=0.29)})
    with ledger_database.read() as connection:
        assert connection.scalar(sa.select(t.inventories.c.capacity)) == 2


def test_tree_without_tables_says_so(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="create_schema"):
        PlacementTree.open(f"sqlite:///{tmp_path / 'empty.db'}")


def test_a_tree_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (id INTEGER)")
    connection.close()
    kept: list[BaseException] = []  # what failed is not collected meanwhile
    for _ in range(3):
        with pytest.raises(SchemaMismatch) as caught:
            PlacementTree.open(f"sqlite:///{path}")
        kept.append(caught.value)
    held = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of another thread, which has closed it since
            held.append(os.readlink(link))
    assert str(path) not in held


def test_tree_in_a_database_in_memory() -> None:
    with Database("sqlite://") as database:
        create_schema(database)
        with PlacementTree.open(database) as tree, PlacementTree.open(database) as other:
            add_host(tree)
            other.refresh()
            assert names(other) == ["cn1", "cn1-numa"]
            assert other.refresh() == 0


def test_tree_opened_by_url_closes_what_it_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'cloud.db'}"
    with Database(url) as database:
        create_schema(database)
    with PlacementTree.open(url) as tree:
        add_host(tree)
        assert tree.refresh() == 2
        assert tree.refresh() == 0
    tree.close()
    with PlacementTree.open(url) as again:
        assert names(again) == ["cn1", "cn1-numa"]


def test_a_fork_that_knows_consumers_can_be_drained_filled_and_thrown_away(database):
    create_schema(database)
    tree, ledger = PlacementTree.open(database), AllocationLedger(database)
    for name in ("cn1", "cn2"):
        tree.add(name, inventory={"VCPU": 4, "MEMORY_MB": 64})
    instances = [str(uuids.uuid4()) for _ in range(3)]
    host = tree.provider("cn1").uuid
    for instance in instances:
        ledger.claim(instance, {host: {"VCPU": 1, "MEMORY_MB": 8}}, project_id="p", user_id="u")
    plain = tree.what_if()
    with pytest.raises(ConsumerNotFound):
        plain.release(instances[0])
    fork = tree.what_if(consumers=True)  # what others claimed since the last refresh is there
    assert fork.consumers() == {instance: ledger.allocations(instance) for instance in instances}
    for instance in instances:
        fork.release(instance)
    fork.check()
    fork.remove("cn1")
    assert [candidate.root for candidate in fork.candidates("resources=VCPU:4")] == [tree.provider("cn2").uuid]
    fork.allocate(instances[0], fork.candidates("resources=VCPU:4").first())
    assert ledger.usages(provider=host) == {"VCPU": 3, "MEMORY_MB": 24}
    tree.close()
