"""The columns follow every edit: after any edits a search finds what brute force finds in the forest as it is then.

In memory, in a fork, in a bound tree, in another tree that follows it by `refresh`, and in one that is opened anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa

from cloudcore import create_schema
from cloudcore.database import Database
from cloudcore.placement import Inventory, PlacementTree, record_changes
from cloudcore.placement.tables import inventories
from tests.placement import oracle, ours
from tests.placement.worlds import (
    AGGREGATES,
    CLASSES,
    SHARING,
    TRAITS,
    Chooser,
    Provider,
    World,
    choose_request,
    choose_stock,
    choose_world,
    seeded,
)


class Edited:
    """A tree, and the world that it should be."""

    def __init__(self, tree: PlacementTree, world: World, database: Database | None = None) -> None:
        self.tree, self.world, self.database = tree, world, database

    def edit(self, choose: Chooser) -> None:
        """One edit of the tree and of the world."""
        verbs = (self.stock, self.use, self.traits, self.aggregates, self.move, self.add, self.remove)
        choose.one(verbs)(choose, choose.one(self.world.providers))

    def put(self, changed: Provider) -> None:
        kept = [changed if provider.uuid == changed.uuid else provider for provider in self.world.providers]
        self.world = World(parents_first(kept))

    def stock(self, choose: Chooser, provider: Provider) -> None:
        """Other numbers; classes in use stay."""
        stock = {}
        for name in CLASSES:
            before = provider.stock.get(name)
            if (before is not None and before.used) or choose.chance(25):
                stock[name] = attrs.evolve(
                    choose_stock(choose, choose.integer(1, 8)), used=before.used if before else 0
                )
        given = {name: Inventory(**each.limits) for name, each in stock.items()}
        self.tree.set_inventory(provider.uuid, given)
        self.put(attrs.evolve(provider, stock=stock))

    def use(self, choose: Chooser, provider: Provider) -> None:
        used = {name: choose.integer(0, stock.total) for name, stock in provider.stock.items()}
        if self.database is None:
            self.tree.set_usage(provider.uuid, used)
        else:
            self.use_elsewhere(provider, used)
        stock = {name: attrs.evolve(each, used=used[name]) for name, each in provider.stock.items()}
        self.put(attrs.evolve(provider, stock=stock))

    def use_elsewhere(self, provider: Provider, used: dict[str, int]) -> None:
        """What a ledger does to the tables, seen by the tree at its next refresh."""
        number = self.tree.provider(provider.uuid).number
        assert self.database is not None
        with self.database.write() as connection:
            for name, amount in used.items():
                where = (inventories.c.provider_id == number, inventories.c.resource_class == name)
                connection.execute(sa.update(inventories).where(*where).values(used=amount))
            record_changes(connection, [number], edited=number % 2 == 0)  # not knowing costs time only
        self.tree.refresh()

    def traits(self, choose: Chooser, provider: Provider) -> None:
        traits = frozenset(choose.some((*TRAITS, SHARING), 0, 3))
        self.tree.set_traits(provider.uuid, traits)
        self.put(attrs.evolve(provider, traits=traits))

    def aggregates(self, choose: Chooser, provider: Provider) -> None:
        aggregates = frozenset(choose.some(AGGREGATES, 0, 2))
        self.tree.set_aggregates(provider.uuid, aggregates)
        self.put(attrs.evolve(provider, aggregates=aggregates))

    def move(self, choose: Chooser, provider: Provider) -> None:
        """Below any provider that is not below it, or nowhere."""
        elsewhere = [each for each in self.world.providers if provider not in self.world.lineage(each)]
        parent = choose.one([None, *elsewhere])
        self.tree.move(provider.uuid, parent.uuid if parent else None)
        self.put(attrs.evolve(provider, parent=parent.uuid if parent else None))

    def add(self, choose: Chooser, provider: Provider) -> None:
        number = next(number for number in range(1000) if f"new{number}" not in self.world.by_name)
        new = Provider(
            name=f"new{number}",
            uuid=f"{choose.integer(0, 15):x}eeeeeee-0000-4000-8000-{number:012x}",
            parent=provider.uuid if choose.chance(70) else None,
            stock={name: choose_stock(choose, choose.integer(1, 8)) for name in choose.some(CLASSES, 0, 2)},
            traits=frozenset(choose.some(TRAITS, 0, 2)),
        )
        unused = {name: attrs.evolve(stock, used=0) for name, stock in new.stock.items()}
        self.tree.add(
            new.name,
            uuid=new.uuid,
            parent=new.parent,
            inventory={name: Inventory(**stock.limits) for name, stock in unused.items()},
            traits=new.traits,
        )
        self.world = World((*self.world.providers, attrs.evolve(new, stock=unused)))

    def remove(self, choose: Chooser, provider: Provider) -> None:
        """With all below it, if nothing of it is in use and something else is left."""
        below = [each for each in self.world.providers if provider in self.world.lineage(each)]
        if len(below) < len(self.world.providers) and not any(s.used for each in below for s in each.stock.values()):
            self.tree.remove(provider.uuid, recursive=True)
            self.world = World(tuple(each for each in self.world.providers if each not in below))

    def compare(self, choose: Chooser, *others: PlacementTree) -> None:
        """A few requests, asked of brute force, of the tree, and of those that should know the same."""
        for _ in range(3):
            request = choose_request(choose, self.world)
            if oracle.cost(self.world, request) <= 500:
                found = ours.listed(self.tree, request.query())
                assert set(found) == oracle.candidates(self.world, request), request.query()
                for other in others:
                    assert ours.listed(other, request.query()) == found, request.query()


def parents_first(providers: list[Provider]) -> tuple[Provider, ...]:
    by_uuid = {provider.uuid: provider for provider in providers}

    def depth(provider: Provider) -> int:
        return 0 if provider.parent is None else 1 + depth(by_uuid[provider.parent])

    return tuple(sorted(providers, key=depth))


@pytest.mark.parametrize("seed", range(40))
def test_tree_in_memory(seed: int) -> None:
    """Also what was forked off before goes on knowing what it knew."""
    choose = seeded(seed)
    world = choose_world(choose)
    edited = Edited(ours.build(world), world)
    for _ in range(8):
        fork = Edited(edited.tree.what_if(), edited.world)
        edited.edit(choose)
        edited.compare(choose)
        fork.compare(choose)
        fork.edit(choose)
        fork.compare(choose)
    edited.compare(choose)
    edited.tree.check()
    fork.tree.check()


@pytest.mark.parametrize("seed", range(400))
@pytest.mark.slow
def test_long_lives_in_memory(seed: int) -> None:
    """Hundreds of edits of one tree."""
    choose = seeded(seed)
    world = choose_world(choose)
    edited = Edited(ours.build(world), world)
    for _ in range(150):
        edited.edit(choose)
        if choose.chance(30):
            edited.compare(choose)
    edited.tree.check()


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'forest.db'}")
    create_schema(database)
    yield database
    database.close()


@pytest.mark.parametrize("seed", range(12))
def test_bound_tree_and_its_followers(bound: Database, seed: int) -> None:
    """A writer, a tree that follows it, and one that is opened anew, find the same in the same order."""
    choose = seeded(seed)
    world = choose_world(choose)
    with PlacementTree.open(bound) as writer, PlacementTree.open(bound) as follower:
        empty = world.unused()
        ours.fill(writer, empty)
        edited = Edited(writer, empty, bound)
        for _ in range(10):
            for _ in range(choose.integer(1, 3)):
                edited.edit(choose)
            follower.refresh()
            with PlacementTree.open(bound) as fresh:
                edited.compare(choose, follower, fresh)
        for tree in (writer, follower):
            tree.check()
