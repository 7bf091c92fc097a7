"""Large forests are cut into blocks, looked at in windows, read in chunks. Where the cuts are must not be seen.

The limits are made so small that every tree, or every other, lies in a block of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudcore import create_schema
from cloudcore.database import Database
from cloudcore.placement import PlacementTree
from cloudcore.placement.columns import maintenance as upkeep
from cloudcore.placement.search import matching, search
from cloudcore.placement.storage import store
from tests.placement import oracle, ours
from tests.placement.test_search_after_edits import Edited
from tests.placement.worlds import Chooser, Request, World, choose_request, choose_world, seeded


@pytest.fixture(params=[1, 5, 40])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(upkeep, "BLOCK_SIZE", request.param)
    monkeypatch.setattr(search, "_FIRST_BATCH", 1)
    monkeypatch.setattr(search, "_FIRST_WINDOW", 2)
    monkeypatch.setattr(matching, "_REMEMBERED", 2)
    monkeypatch.setattr(store, "_CHUNK", 3)
    return request.param


def asked_of(choose: Chooser, world: World, count: int) -> list[Request]:
    requests = [choose_request(choose, world) for _ in range(count)]
    return [request for request in requests if oracle.cost(world, request) <= 3_000]


@pytest.mark.parametrize("seed", range(12))
def test_cuts_are_not_seen(small_blocks: int, seed: int) -> None:
    """The same candidates in the same order as in one block, and those of brute force, in some dozen trees."""
    choose = seeded(seed)
    world = choose_world(choose, most=60)
    requests = asked_of(choose, world, 10)
    tree = ours.build(world)
    cut = [ours.listed(tree, request.query()) for request in requests]
    if small_blocks == 1:
        assert len(tree._state.snapshot().blocks) == len(world.roots)
    for request, found in zip(requests, cut, strict=True):
        assert set(found) == oracle.candidates(world, request), request.query()
        report = tree.candidates(request.query()).report()
        fitting = sum(any(True for _ in oracle.candidates_of(world, request, root)) for root in world.roots)
        assert (report.hosts, report.fits) == (len(world.roots), fitting)
        assert sum(report.counts.values()) == len(world.roots) - fitting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "BLOCK_SIZE", 4096)
        patch.setattr(search, "_FIRST_WINDOW", 48)
        whole = ours.build(world)
        for request, found in zip(requests, cut, strict=True):
            assert ours.listed(whole, request.query()) == found
            for options in ({"hosts_first": True}, {"order_by": "pack"}, {"seed": seed}):
                assert ours.listed(whole, request.query(), **options) == ours.listed(tree, request.query(), **options)


@pytest.mark.parametrize("seed", range(10))
def test_edits_move_the_cuts(small_blocks: int, seed: int) -> None:
    """Trees come, go and grow across blocks."""
    choose = seeded(1000 + seed)
    edited = Edited(ours.build(world := choose_world(choose, most=30)), world)
    for _ in range(25):
        edited.edit(choose)
        if choose.chance(50):
            edited.compare(choose)
    edited.compare(choose)
    edited.tree.check()


@pytest.mark.parametrize("seed", range(4))
def test_followers_read_in_chunks(small_blocks: int, seed: int, tmp_path: Path) -> None:
    """A tree that follows reads many changed providers at once."""
    choose = seeded(2000 + seed)
    database = Database(f"sqlite:///{tmp_path / 'forest.db'}")
    create_schema(database)
    with PlacementTree.open(database) as writer, PlacementTree.open(database) as follower:
        world = choose_world(choose, most=30).unused()
        ours.fill(writer, world)
        edited = Edited(writer, world, database)
        for _ in range(4):
            for _ in range(10):
                edited.edit(choose)
            follower.refresh()
            with PlacementTree.open(database) as fresh:
                edited.compare(choose, follower, fresh)
        follower.check()
    database.close()
