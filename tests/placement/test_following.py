"""What a tree that follows a database must not keep: it answers every search as one that is opened anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from cloudcore.database import Database
from cloudcore.errors import GenerationConflict, InvariantViolated
from cloudcore.placement import PlacementTree, prune_changes, record_changes
from cloudcore.placement import tables as t

A = "aaaaaaaa-0000-0000-0000-000000000001"
SHARES = "MISC_SHARES_VIA_AGGREGATE"
QUERIES = (
    "resources=VCPU:1",
    "resources=VCPU:1,DISK_GB:5",
    "resources1=VCPU:1&resources2=DISK_GB:1&group_policy=none&same_subtree=1,2",
    "resources1=DISK_GB:1&resources2=VCPU:1&group_policy=isolate",
)


@pytest.fixture
def writer(ledger_database: Database) -> Iterator[PlacementTree]:
    with PlacementTree.open(ledger_database) as tree:
        yield tree


@pytest.fixture
def follower(writer: PlacementTree, ledger_database: Database) -> Iterator[PlacementTree]:
    with PlacementTree.open(ledger_database) as tree:
        yield tree


def answers(tree: PlacementTree) -> list[list[tuple[str, object]]]:
    return [[(found.root, found.allocations) for found in tree.candidates(query)] for query in QUERIES]


def add_pool(tree: PlacementTree, parent: str | None = None) -> None:
    tree.add("pool", parent=parent, inventory={"DISK_GB": 100}, traits={SHARES}, aggregates={A})


def assert_like_new(tree: PlacementTree, database: Database) -> None:
    tree.check()
    with PlacementTree.open(database) as fresh:
        assert tree.as_placement() == fresh.as_placement()
        assert answers(tree) == answers(fresh)


def forget_the_feed(database: Database) -> None:
    database.run(lambda connection: prune_changes(connection, keep=0))


def end_pool(tree: PlacementTree) -> None:
    tree.remove("pool")


def unshare_pool(tree: PlacementTree) -> None:
    tree.set_traits("pool", ())


def empty(tree: PlacementTree) -> None:
    tree.remove("pool")
    tree.remove("cn1")


def by_refresh(tree: PlacementTree) -> PlacementTree:
    tree.refresh()
    return tree


def by_fork(tree: PlacementTree) -> PlacementTree:
    return tree.what_if(consumers=True)


def by_snapshot(tree: PlacementTree) -> PlacementTree:
    with tree.snapshot() as seen:
        return seen.tree


@pytest.mark.parametrize("look", [by_refresh, by_fork, by_snapshot])
@pytest.mark.parametrize("edit", [end_pool, unshare_pool, empty])
def test_a_tree_that_reads_everything_anew_keeps_nothing(
    writer: PlacementTree,
    follower: PlacementTree,
    ledger_database: Database,
    edit: Callable[[PlacementTree], None],
    look: Callable[[PlacementTree], PlacementTree],
) -> None:
    """Behind a feed that was pruned: no pool that shares no more, no host of a database that is empty now."""
    writer.add("cn1", inventory={"VCPU": 8}, aggregates={A})
    add_pool(writer)
    follower.refresh()
    assert len(answers(follower)[1]) == 1
    edit(writer)
    forget_the_feed(ledger_database)
    assert_like_new(look(follower), ledger_database)
    assert_like_new(follower, ledger_database)


def test_a_pool_moves_with_a_provider_whose_mover_had_not_seen_it(
    writer: PlacementTree, follower: PlacementTree, ledger_database: Database
) -> None:
    """It stays as it was itself, so only its ancestors tell; whoever follows must look at them again."""
    writer.add("cn1")
    writer.add("left", parent="cn1")
    writer.add("right", parent="cn1", inventory={"VCPU": 4})
    follower.refresh()
    add_pool(follower, parent="left")
    follower.refresh()  # what it wrote itself is no news to it either
    assert_like_new(follower, ledger_database)
    writer.move("left", "right")
    follower.refresh()
    assert follower["pool"].generation == 0
    assert len(answers(follower)[2]) == 1
    assert_like_new(follower, ledger_database)
    writer.refresh()
    assert_like_new(writer, ledger_database)


# --- tables that somebody else changes -------------------------------------------------------------------------------


def another_trait(connection: Connection, number: int) -> None:
    connection.execute(sa.insert(t.provider_traits).values(provider_id=number, trait="CUSTOM_B"))


def another_total(connection: Connection, number: int) -> None:
    held = t.inventories.c.provider_id == number
    connection.execute(sa.update(t.inventories).where(held).values(total=4, capacity=4))


def another_class(connection: Connection, number: int) -> None:
    limits = {"total": 5, "reserved": 0, "min_unit": 1, "max_unit": 100, "step_size": 1, "allocation_ratio": 1.0}
    row = {"provider_id": number, "resource_class": "DISK_GB", "capacity": 5, "used": 3, **limits}
    connection.execute(sa.insert(t.inventories).values(row))


def class_gone(connection: Connection, number: int) -> None:
    held = sa.and_(t.inventories.c.provider_id == number, t.inventories.c.resource_class == "VCPU")
    connection.execute(sa.delete(t.inventories).where(held))


@pytest.mark.parametrize("look", [by_refresh, by_fork, by_snapshot])
@pytest.mark.parametrize("change", [another_trait, another_total, another_class, class_gone])
def test_changes_by_sql_that_are_noted_are_followed(
    writer: PlacementTree,
    follower: PlacementTree,
    ledger_database: Database,
    change: Callable[[Connection, int], None],
    look: Callable[[PlacementTree], PlacementTree],
) -> None:
    """And an edit that was planned on what was there before them is refused."""
    writer.add("cn0", inventory={"VCPU": 8, "DISK_GB": 9})
    writer.add("cn1", inventory={"VCPU": 8})
    follower.refresh()
    with ledger_database.write() as connection:
        change(connection, writer["cn1"].number)
        record_changes(connection, [writer["cn1"].number])
    with pytest.raises(GenerationConflict):
        writer.set_traits("cn1", {"CUSTOM_A"})
    for tree in (look(follower), follower, by_refresh(writer)):
        assert_like_new(tree, ledger_database)
    assert follower.refresh() == 0


@pytest.mark.parametrize("look", [by_refresh, by_fork, by_snapshot])
@pytest.mark.parametrize("others", [{"VCPU": 8, "DISK_GB": 9}, {"VCPU": 8}])
def test_use_of_an_inventory_that_nobody_said_was_added_is_looked_into(
    writer: PlacementTree,
    follower: PlacementTree,
    ledger_database: Database,
    others: dict[str, int],
    look: Callable[[PlacementTree], PlacementTree],
) -> None:
    """Noted as if only what is in use had changed: it is not taken for that of another provider."""
    writer.add("cn0", inventory=others)
    writer.add("cn1", inventory={"VCPU": 8})
    writer.add("cn2", inventory=others)
    follower.refresh()
    with ledger_database.write() as connection:
        another_class(connection, writer["cn1"].number)
        record_changes(connection, [writer["cn1"].number], edited=False)
    for tree in (look(follower), follower, by_refresh(writer)):
        assert_like_new(tree, ledger_database)


# --- check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda sharing, other: sharing.lineage.__setitem__(0, sharing.lineage[0] | {other}),
        lambda sharing, other: sharing.root_numbers.__setitem__(0, sharing.root_numbers[0] + 1),
        lambda sharing, other: sharing.by_aggregate.clear(),
    ],
)
def test_check_looks_at_where_pools_stand(damage: Callable[..., object]) -> None:
    tree = PlacementTree()
    tree.add("cn1")
    add_pool(tree, parent="cn1")
    tree.check()
    damage(tree._state.columns.sharing, tree.add("cn2").uuid)
    with pytest.raises(InvariantViolated, match="sharing"):
        tree.check()
