"""Where a provider hangs stays true whoever else edits: no cycle, no child with the root of a tree that it has left.

Every race is staged, not hoped for: two trees that do not know of each other's edit write one after the other, or one
while the other's transaction is open. The same on two nodes of a cluster is in `test_galera`.
"""

from __future__ import annotations

import threading

import pytest

from cloudcore import PlacementTree, create_schema
from cloudcore.errors import GenerationConflict
from cloudcore.placement.storage import edits


@pytest.fixture
def trees(database):
    """Two trees over one database, each with what was there when it was last refreshed."""
    create_schema(database, areas=["placement"])
    with PlacementTree.open(database) as one, PlacementTree.open(database) as two:
        yield one, two


def grow(tree, other, *names: str) -> dict:
    """`a/b` is a provider b under a."""
    made = {}
    for name in names:
        parent, _, own = name.rpartition("/")
        made[own] = tree.add(own, parent=made[parent].uuid if parent else None)
    other.refresh()
    return {name: provider.uuid for name, provider in made.items()}


def sound(*trees) -> None:
    for tree in trees:
        tree.refresh()
        tree.check()


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb", "pgbouncer"], indirect=True)
def test_crossing_moves_within_one_tree(trees):
    """X below Y's child while Y goes below X's child: neither parent was touched, nor any root."""
    one, two = trees
    known = grow(one, two, "r", "r/x", "x/x2", "r/y", "y/y2")
    one.move(known["x"], known["y2"])
    with pytest.raises(GenerationConflict):
        two.move(known["y"], known["x2"])
    sound(one, two)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_crossing_moves_between_trees(trees):
    one, two = trees
    known = grow(one, two, "x", "x/x2", "y", "y/y2")
    one.move(known["x"], known["y2"])
    with pytest.raises(GenerationConflict):
        two.move(known["y"], known["x2"])
    sound(one, two)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_child_that_a_mover_has_not_seen(trees):
    """It would stay behind with the old root."""
    one, two = trees
    known = grow(one, two, "x", "x/x2", "y")
    one.add("c", parent=known["x2"])
    with pytest.raises(GenerationConflict):
        two.move(known["x"], known["y"])
    two.refresh()
    two.move(known["x"], known["y"])
    sound(one, two)
    assert two["c"].root == known["y"]


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_child_under_a_parent_that_has_moved(trees):
    one, two = trees
    known = grow(one, two, "x", "x/x2", "y")
    one.move(known["x"], known["y"])
    with pytest.raises(GenerationConflict):
        two.add("c", parent=known["x2"])
    sound(one, two)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_move_beside_a_move_is_no_conflict(trees):
    """Held is only what the edit builds on: children of one parent, moves in one tree, one after the other."""
    one, two = trees
    known = grow(one, two, "r", "r/x", "r/y", "r/z")
    one.move(known["x"], known["z"])
    two.move(known["y"], known["z"])
    one.add("c", parent=known["z"])
    two.add("d", parent=known["z"])
    sound(one, two)


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("first", ["add", "move"])
def test_second_waits_for_the_first_and_then_looks(trees, monkeypatch, first):
    """The other transaction is still open when this one begins to write."""
    one, two = trees
    known = grow(one, two, "r", "r/x", "x/x2", "s")
    acts = {
        "add": lambda tree: tree.add("c", parent=known["x2"]),
        "move": lambda tree: tree.move(known["x"], known["s"]),
    }
    other = "move" if first == "add" else "add"
    written, go_on = threading.Event(), threading.Event()
    record = edits.note_changes

    def hold_open(connection, touched, **options):
        record(connection, touched, **options)
        if threading.current_thread().name == "first":
            written.set()
            go_on.wait(10)

    monkeypatch.setattr(edits, "note_changes", hold_open)
    caught = []

    def second() -> None:
        try:
            acts[other](two)
        except GenerationConflict as error:
            caught.append(error)

    threads = [threading.Thread(target=acts[first], args=(one,), name="first"), threading.Thread(target=second)]
    threads[0].start()
    assert written.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive(), "it did not wait"
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(caught) == 1
    sound(one, two)
