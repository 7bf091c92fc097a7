"""What a fork takes along: the names that were added, strictness, and who uses a name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from cloudcore.database import Database
from cloudcore.errors import InUse, InvalidProvider, InvalidRequest, NameNotFound
from cloudcore.placement import PlacementTree
from cloudcore.placement.storage import name_register


@pytest.fixture
def bound(ledger_database: Database) -> Iterator[PlacementTree]:
    with PlacementTree.open(ledger_database, strict=True) as tree:
        yield tree


@pytest.fixture(params=["memory", "bound"])
def tree(request: pytest.FixtureRequest, bound: PlacementTree) -> PlacementTree:
    tree = bound if request.param == "bound" else PlacementTree(strict=True)
    tree.names.add_trait("CUSTOM_MAGIC")
    tree.names.add_resource_class("CUSTOM_FPGA")
    tree.add("cn1", inventory={"VCPU": 8, "CUSTOM_FPGA": 1}, traits={"CUSTOM_MAGIC"})
    return tree


def plain(tree: PlacementTree) -> PlacementTree:
    return tree.what_if()


def with_consumers(tree: PlacementTree) -> PlacementTree:
    return tree.what_if(consumers=True)


def of_a_fork(tree: PlacementTree) -> PlacementTree:
    return tree.what_if().what_if()


def of_one_moment(tree: PlacementTree) -> PlacementTree:
    if "bound" not in repr(tree):
        return tree.what_if()
    with tree.snapshot() as seen:
        return seen.tree


@pytest.mark.parametrize("fork_of", [plain, with_consumers, of_a_fork, of_one_moment])
def test_a_fork_is_as_strict_and_knows_the_same_names(
    tree: PlacementTree, fork_of: Callable[[PlacementTree], PlacementTree]
) -> None:
    fork = fork_of(tree)
    assert fork.names.traits() == tree.names.traits()
    assert fork.names.resource_classes() == tree.names.resource_classes()
    assert len(list(fork.candidates("resources=CUSTOM_FPGA:1&required=CUSTOM_MAGIC"))) == 1
    with pytest.raises(InvalidRequest, match="CUSTOM_MAIGC"):
        fork.candidates("resources=VCPU:1&required=!CUSTOM_MAIGC")
    with pytest.raises(InvalidProvider, match="CUSTOM_FPGB"):
        fork.set_inventory("cn1", {"CUSTOM_FPGB": 1})
    with pytest.raises(InUse):
        fork.names.remove_trait("CUSTOM_MAGIC")
    with pytest.raises(InUse):
        fork.names.remove_resource_class("CUSTOM_FPGA")
    fork.check()


@pytest.mark.parametrize("fork_of", [plain, with_consumers, of_a_fork, of_one_moment])
def test_names_of_a_fork_go_their_own_way(
    tree: PlacementTree, fork_of: Callable[[PlacementTree], PlacementTree]
) -> None:
    fork = fork_of(tree)
    fork.names.add_trait("CUSTOM_FORK")
    fork.set_traits("cn1", {"CUSTOM_FORK"})
    fork.names.remove_trait("CUSTOM_MAGIC")
    assert "CUSTOM_FORK" not in tree.names.traits()
    assert "CUSTOM_MAGIC" in tree.names.traits()
    tree.names.add_trait("CUSTOM_LATER")
    assert "CUSTOM_LATER" not in fork.names.traits()
    with pytest.raises(NameNotFound):
        fork.names.remove_trait("CUSTOM_LATER")


def test_a_fork_knows_what_another_added(bound: PlacementTree, ledger_database: Database) -> None:
    """A provider that the tree has seen carries it, whether or not the tree has asked for the name."""
    with PlacementTree.open(ledger_database, strict=True) as other:
        other.names.add_trait("CUSTOM_OTHER")
        other.add("cn2", inventory={"VCPU": 1}, traits={"CUSTOM_OTHER"})
    bound.refresh()
    for fork in (bound.what_if(), bound.what_if(consumers=True), of_one_moment(bound)):
        assert len(list(fork.candidates("resources=VCPU:1&required=CUSTOM_OTHER"))) == 1


def test_a_tree_that_is_not_strict_has_forks_that_are_not() -> None:
    tree = PlacementTree()
    tree.add("cn1", inventory={"VCPU": 8})
    fork = tree.what_if()
    fork.set_traits("cn1", {"CUSTOM_NEW"})
    assert len(list(fork.candidates("resources=VCPU:1&required=CUSTOM_NEW"))) == 1


def test_a_name_is_not_removed_while_an_edit_brings_it_into_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit waits for the end of the removal, and is refused then: no provider carries what nobody added."""
    tree = PlacementTree(strict=True)
    tree.names.add_trait("CUSTOM_MAGIC")
    tree.add("cn1")
    tree.add("cn2")
    outcome: list[object] = []

    def edit() -> None:
        try:
            outcome.append(tree.set_traits("cn2", {"CUSTOM_MAGIC"}))
        except InvalidProvider as error:
            outcome.append(error)

    editing = threading.Thread(target=edit)
    look = name_register._names_of

    def look_slowly(provider, kind):
        if provider.name == "cn2" and not editing.ident:
            found = look(provider, kind)
            editing.start()
            editing.join(0.3)  # where it need not wait it is done by then
            return found
        return look(provider, kind)

    monkeypatch.setattr(name_register, "_names_of", look_slowly)
    tree.names.remove_trait("CUSTOM_MAGIC")
    editing.join()
    assert isinstance(outcome[0], InvalidProvider)
    assert not tree["cn2"].traits
