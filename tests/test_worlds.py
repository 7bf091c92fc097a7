"""Small worlds are sound, and the same for the same seed."""

import hashlib
import json
from typing import get_args

import pytest

from cloudcore import Database, PlacementTree
from cloudcore.errors import InvalidArgument, InvariantViolated, NoValidHost
from cloudcore.listing.values import CellState
from cloudcore.testing.worlds import FLAVORS, START, Shape, forest, instance_rows, small_world

SHAPES = get_args(Shape)
SMALL = {"racks": 1, "hosts": 3, "instances": 6, "history": 8, "volumes": 4}


def everything(world):
    """All that a world holds, in a form that compares."""
    return {
        "guests": world.guests,
        "history": world.history,
        "tree": world.tree.as_placement(),
        "books": {uuid: world.ledger.allocations(uuid) for uuid in world.guests},
        "records": world.router.page().to_records(),
        "volumes": world.volumes.volumes(),
        "attached": [(leg.id, leg.volume_id, leg.instance_id, leg.state) for leg in world.attachments.attachments()],
    }


def test_a_seed_makes_the_same_world_anywhere_and_anytime(tmp_path):
    with small_world(5, **SMALL) as one:
        first = everything(one)
    places = {f"cell{number}": f"sqlite:///{tmp_path}/{number}.db" for number in (1, 2)}
    with small_world(5, **SMALL | {"cells": places}, database=f"sqlite:///{tmp_path}/main.db") as other:
        assert everything(other) == first
    with small_world(6, **SMALL) as another:
        assert everything(another)["guests"].keys().isdisjoint(first["guests"])


@pytest.mark.parametrize("shape", SHAPES)
def test_worlds_of_every_shape_are_sound(shape):
    with small_world(1, shape=shape, **SMALL) as world:
        world.check()
        records = {record.uuid: (record.cell, record.host) for record in world.router.page().records}
        assert records == {guest.uuid: (guest.cell, guest.host) for guest in world.guests.values()}
        assert len(world.history) > len(world.guests) - 1
        for guest in world.guests.values():
            held = {world.tree.provider(provider) for provider in world.ledger.allocations(guest.uuid)}
            assert guest.host in {world.tree.provider(provider.root).name for provider in held}
            assert guest in world.on_host(guest.host)
            assert world.request_of(guest.uuid) is not None
        assert world.attachments.audit().clean


@pytest.mark.parametrize("shape", SHAPES)
def test_every_flavor_fits_into_an_empty_forest_of_its_shape(shape):
    tree = PlacementTree()
    tree.load(forest(2, shape=shape, hosts=2))
    for name, request in FLAVORS[shape].items():
        assert next(iter(tree.candidates(request)), None) is not None, name


def test_a_forest_is_as_full_as_was_asked():
    for full in (0.0, 0.25, 0.9, 1.0):
        tree = PlacementTree()
        tree.load(forest(3, cells=2, racks=5, hosts=10, full=full))
        tree.check()
        cores = [provider for provider in tree if "VCPU" in provider.inventories]
        room = sum(provider.inventories["VCPU"].capacity for provider in cores)
        assert sum(tree.usage(provider)["VCPU"] for provider in cores) / room == pytest.approx(full, abs=0.05)


def test_rows_stay_the_same_rows():
    """Figures of different days are about the same data."""
    rows = instance_rows(3, 50)
    assert rows[:20] == instance_rows(3, 20)
    text = json.dumps(rows, default=str, sort_keys=True)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "fcbe1e20bd3f7304ab14587f565fa184d5b0b58896491bed342d0454fae87b93"
    )
    assert all(row["created_at"] >= START and row["project_id"] != "rare" for row in rows)
    assert {row["project_id"] for row in instance_rows(3, 5, project="rare")} == {"rare"}


def test_a_cell_is_lost_and_found():
    with small_world(4, cells=3, **SMALL) as world:
        everywhere = world.router.page()
        world.lose_cell("cell2")
        page = world.router.page()
        assert page.cells["cell2"].state is CellState.DOWN
        assert {record.cell for record in page.records} <= {"cell1", "cell3"}
        world.find_cell("cell2")
        assert world.router.page().records == everywhere.records


def _gone_from_the_books(world, instance):
    world.ledger.release(instance)


def _gone_from_its_cell(world, instance):
    world.store.delete(instance)


def _elsewhere(world, instance):
    world.store.update(instance, host="elsewhere")


def _moved_in_the_books_alone(world, instance):
    migration = "0b7e9b4c-3b0e-4c57-8d2b-9c7d8a1f2e03"
    world.selector.select_destination(instance, migration, world.request_of(instance))
    world.check()  # so far it may be on either side
    world.ledger.confirm_move(migration)


def _unknown_to_the_directory(world, instance):
    with world.router.directory.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM directory_instances WHERE uuid = ?", (instance,))


BREACHES = [
    _gone_from_the_books,
    _gone_from_its_cell,
    _elsewhere,
    _moved_in_the_books_alone,
    _unknown_to_the_directory,
]


@pytest.mark.parametrize("breach", BREACHES, ids=lambda each: each.__name__)
def test_what_directory_records_and_books_do_not_agree_on_is_found(breach):
    with small_world(5, **SMALL) as world:
        world.check()
        instance = list(world.guests)[2]
        breach(world, instance)
        with pytest.raises(InvariantViolated, match=instance):
            world.check()


def test_nothing_is_required_of_a_cell_that_is_lost_nor_of_other_consumers():
    with small_world(5, **SMALL) as world:
        world.lose_cell("cell1")
        world.check()
        reserved = "5f0c8b52-6a5c-4d0e-9f5e-2a6a5f3c9d10"
        (candidate,) = world.tree.candidates(world.flavors["small"] + "&limit=1")
        world.ledger.claim(reserved, candidate, project_id="p", user_id="u", consumer_type="RESERVATION")
        world.check()
        world.store.update(next(one.uuid for one in world.guests.values() if one.cell == "cell2"), host="elsewhere")
        with pytest.raises(InvariantViolated, match="elsewhere"):
            world.check()


def test_a_full_world_says_so_and_stays_sound():
    with small_world(1, cells=1, racks=1, hosts=1, shape="flat", instances=500) as world:
        assert 0 < len(world.guests) < 500
        with pytest.raises(NoValidHost):
            world.boot("small")
        with pytest.raises(NoValidHost):
            world.move(next(iter(world.guests)))
        world.check()


def test_a_database_that_was_given_stays_open():
    database = Database("sqlite://")
    with small_world(1, instances=1, database=database) as world:
        (instance,) = world.guests
        world.close()
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM consumers").scalar() == 1
    database.close()
    assert instance


@pytest.mark.parametrize(
    "wrong",
    [
        {"cells": 0},
        {"racks": 0},
        {"hosts": -1},
        {"instances": -1},
        {"history": 1.5},
        {"shape": "round"},
        {"cells": {"one": "sqlite://"}},
    ],
    ids=str,
)
def test_what_makes_no_world_is_refused(wrong):
    with pytest.raises(InvalidArgument):
        small_world(**wrong)


def test_flavors_and_shares_that_there_are_not_are_refused():
    with pytest.raises(InvalidArgument):
        forest(full=1.5)
    with small_world(instances=0) as world, pytest.raises(InvalidArgument):
        world.boot("huge")
