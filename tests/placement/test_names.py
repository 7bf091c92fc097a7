"""The register of resource classes and traits, in memory and on every database; and what `strict` refuses."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from cloudcore.errors import InUse, InvalidProvider, InvalidRequest, NameNotFound
from cloudcore.placement import PlacementTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cloudcore.database import Database


@pytest.fixture
def bound(ledger_database: Database) -> Iterator[PlacementTree]:
    with PlacementTree.open(ledger_database, strict=True) as tree:
        yield tree
        tree.check()


@pytest.fixture(params=["memory", "bound"])
def tree(request: pytest.FixtureRequest, bound: PlacementTree) -> PlacementTree:
    return bound if request.param == "bound" else PlacementTree(strict=True)


def test_a_name_is_added_once_and_removed_once(tree: PlacementTree) -> None:
    names = tree.names
    assert (names.add_trait("CUSTOM_RED"), names.add_trait("CUSTOM_RED")) == (True, False)
    assert (names.add_resource_class("CUSTOM_FPGA"), names.add_resource_class("CUSTOM_FPGA")) == (True, False)
    assert {"CUSTOM_RED", "HW_CPU_X86_AVX2"} <= names.traits()
    assert {"CUSTOM_FPGA", "VCPU"} <= names.resource_classes()
    assert "CUSTOM_FPGA" not in names.traits()
    names.remove_trait("CUSTOM_RED")
    names.remove_resource_class("CUSTOM_FPGA")
    assert not {"CUSTOM_RED", "CUSTOM_FPGA"} & (names.traits() | names.resource_classes())
    with pytest.raises(NameNotFound):
        names.remove_trait("CUSTOM_RED")
    with pytest.raises(NameNotFound):
        names.remove_resource_class("CUSTOM_FPGA")


def test_standard_names_are_there_and_stay(tree: PlacementTree) -> None:
    assert not tree.names.add_trait("HW_CPU_X86_AVX2")
    assert not tree.names.add_resource_class("VCPU")
    with pytest.raises(InvalidProvider, match="standard"):
        tree.names.remove_trait("HW_CPU_X86_AVX2")
    with pytest.raises(InvalidProvider, match="standard"):
        tree.names.remove_resource_class("VCPU")


@pytest.mark.parametrize("name", ["custom_red", "CUSTOM_red", "CUSTOM_", "RED", "", None, "CUSTOM_" + "A" * 300])
def test_what_is_no_name_is_not_added(tree: PlacementTree, name: str) -> None:
    for call in (tree.names.add_trait, tree.names.add_resource_class, tree.names.remove_trait):
        with pytest.raises(InvalidProvider):
            call(name)


def test_a_name_in_use_stays(tree: PlacementTree) -> None:
    tree.names.add_trait("CUSTOM_RED")
    tree.names.add_resource_class("CUSTOM_FPGA")
    host = tree.add("host", traits={"CUSTOM_RED"}, inventory={"CUSTOM_FPGA": 2})
    for remove, name in ((tree.names.remove_trait, "CUSTOM_RED"), (tree.names.remove_resource_class, "CUSTOM_FPGA")):
        with pytest.raises(InUse) as caught:
            remove(name)
        assert caught.value.kind == "providers"
        assert name in tree.names.traits() | tree.names.resource_classes()
    tree.update(host, traits=(), inventory={})
    tree.names.remove_trait("CUSTOM_RED")
    tree.names.remove_resource_class("CUSTOM_FPGA")


def test_edits_with_names_that_nobody_added_change_nothing(tree: PlacementTree) -> None:
    tree.names.add_trait("CUSTOM_RED")
    host = tree.add("host", traits={"CUSTOM_RED", "HW_CPU_X86_AVX2"}, inventory={"VCPU": 2})
    before = tree.as_placement()
    for field, edit in (
        ("traits", lambda: tree.set_traits(host, ["CUSTOM_RED", "CUSTOM_BLUE"])),
        ("traits", lambda: tree.add("other", traits=["CUSTOM_BLUE"])),
        ("inventory", lambda: tree.put_inventory(host, "CUSTOM_FPGA", 1)),
        ("traits", lambda: tree.update(host, name="new", traits=["CUSTOM_BLUE"])),
    ):
        with pytest.raises(InvalidProvider, match="spelt right") as caught:
            edit()
        assert caught.value.field == field
    assert tree.as_placement() == before


def test_what_a_provider_has_already_is_not_asked_again(ledger_database: Database) -> None:
    with PlacementTree.open(ledger_database) as loose, PlacementTree.open(ledger_database, strict=True) as strict:
        loose.add("host", traits=["CUSTOM_OLD"], inventory={"CUSTOM_OLD": 1})
        strict.refresh()
        strict.update("host", name="new")
        host = strict.set_traits("new", ["CUSTOM_OLD", "HW_CPU_X86_AVX2"])
        assert (host.traits, set(host.inventories)) == ({"CUSTOM_OLD", "HW_CPU_X86_AVX2"}, {"CUSTOM_OLD"})
        with pytest.raises(InvalidProvider, match="spelt right"):
            strict.add("other", traits=["CUSTOM_OLDER"])


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("resources=VCPU:1&required=!CUSTOM_MAIGC", "required"),
        ("resources=VCPU:1&required=in:CUSTOM_MAGIC,CUSTOM_MAIGC", "required"),
        ("resources=VCPU:1&root_required=CUSTOM_MAIGC", "root_required"),
        ("resources=VCPU:1&root_required=!CUSTOM_MAIGC", "root_required"),
        ("resources1=VCPU:1,CUSTOM_MAIGC:1", "resources1"),
        ("resources=VCPU:1&resources_A=VCPU:1&required_A=CUSTOM_MAIGC", "required_A"),
    ],
)
def test_a_misspelt_name_of_a_request_is_refused(tree: PlacementTree, query: str, field: str) -> None:
    tree.names.add_trait("CUSTOM_MAGIC")
    tree.add("host", traits={"CUSTOM_MAGIC"}, inventory={"VCPU": 4})
    with pytest.raises(InvalidRequest, match="CUSTOM_MAIGC") as caught:
        tree.candidates(query)
    assert (caught.value.field, caught.value.value) == (field, "CUSTOM_MAIGC")
    tree.names.add_trait("CUSTOM_MAIGC")
    tree.names.add_resource_class("CUSTOM_MAIGC")
    tree.candidates(query)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("preferred", ["CUSTOM_MAIGC"]),
        ("preferred", {"CUSTOM_MAGIC": 2.0, "CUSTOM_MAIGC": 1.0}),
        ("order_by", {"CUSTOM_MAIGC": 1.0}),
        ("order_by", ["pack", {"VCPU": 1.0, "CUSTOM_MAIGC": 1.0}]),
    ],
)
def test_a_misspelt_name_of_an_option_is_refused(tree: PlacementTree, field: str, option: Any) -> None:
    tree.names.add_trait("CUSTOM_MAGIC")
    tree.add("host", traits={"CUSTOM_MAGIC"}, inventory={"VCPU": 4})
    with pytest.raises(InvalidRequest, match="CUSTOM_MAIGC") as caught:
        tree.candidates("resources=VCPU:1", **{field: option})
    assert (caught.value.field, caught.value.value) == (field, "CUSTOM_MAIGC")
    tree.names.add_trait("CUSTOM_MAIGC")
    tree.names.add_resource_class("CUSTOM_MAIGC")
    assert tree.candidates("resources=VCPU:1", **{field: option}).first().host.name == "host"


def test_names_of_others_are_seen(ledger_database: Database) -> None:
    opened = partial(PlacementTree.open, ledger_database, strict=True)
    with opened() as one, opened() as two:
        one.add("host", inventory={"VCPU": 1})
        one.names.add_trait("CUSTOM_RED")
        two.candidates("resources=VCPU:1&required=CUSTOM_RED")
        two.refresh()
        two.set_traits("host", ["CUSTOM_RED"])
        with pytest.raises(InUse):
            one.names.remove_trait("CUSTOM_RED")
        two.set_traits("host", [])
        two.names.remove_trait("CUSTOM_RED")
        one.refresh()
        with pytest.raises(InvalidRequest):
            one.candidates("resources=VCPU:1&required=CUSTOM_RED")


def race(calls: Mapping[str, Callable[[], object]]) -> dict[str, bool]:
    """Make the calls at the same time; which of them were not refused."""
    start = threading.Barrier(len(calls))
    done: dict[str, bool] = {}

    def attempt(what: str, call: Callable[[], object]) -> None:
        start.wait()
        try:
            call()
        except (InvalidProvider, InUse):
            done[what] = False
        else:
            done[what] = True

    threads = [threading.Thread(target=attempt, args=pair) for pair in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return done


def test_of_a_removal_and_an_edit_that_uses_the_name_only_one_happens(ledger_database: Database) -> None:
    """Never is a trait both carried and unknown, whoever comes first."""
    rounds = 40
    opened = partial(PlacementTree.open, ledger_database, strict=True)
    with opened() as one, opened() as two:
        one.add("host")
        two.refresh()
        for number in range(rounds):
            name = f"CUSTOM_T{number}"
            one.names.add_trait(name)
            edit = partial(one.set_traits, "host", [name])
            done = race({"edit": edit, "removal": partial(two.names.remove_trait, name)})
            assert sorted(done.values()) == [False, True], done
            assert (name in one["host"].traits) == (name in one.names.traits()) == done["edit"]
            one.set_traits("host", [])
