"""The search of PlacementTree against OpenStack Placement's, on the same forests. See `bench.harness`.

Ours is a tree bound to a SQLite file. Every search of ours first looks whether anybody wrote (`refresh`), then reads
the query string, searches, and makes allocations and mappings of ten candidates. Placement is taken below HTTP and
JSON, on SQLite in memory, from the query string to its allocation requests.

The two order their answers differently, and `limit` cuts anywhere: so the whole answers are compared as sets once, and
each limited answer must then consist of ten of these.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import sqlalchemy as sa

from bench import forests
from bench.harness import Bench, Peer, Unequal
from bench.options import options
from cloudcore import create_schema
from cloudcore.database import Database
from cloudcore.placement import Inventory, PlacementTree, ResourceRequest, record_changes
from cloudcore.placement.tables import inventories, provider_traits, resource_providers

PLAIN = "resources=VCPU:1,MEMORY_MB:1024,DISK_GB:10"
FOUR_GROUPS = (
    "resources=DISK_GB:10&resources1=VCPU:2,MEMORY_MB:2048"
    "&resources2=SRIOV_NET_VF:1&required2=CUSTOM_PHYSNET_A"
    "&resources3=SRIOV_NET_VF:1&required3=CUSTOM_PHYSNET_B&group_policy=none"
)
WIDE = "resources=VCPU:1&" + "&".join(f"resources{n}=SRIOV_NET_VF:1" for n in range(6)) + "&group_policy=none"
NOTHING = (
    "resources1=VCPU:2,MEMORY_MB:2048&resources2=SRIOV_NET_VF:1&required2=CUSTOM_PHYSNET_A"
    "&resources3=SRIOV_NET_VF:1&required3=CUSTOM_PHYSNET_A,CUSTOM_PHYSNET_B&group_policy=none"
)
"""Each amount and trait is there in every part of the forest, but no provider has both traits: all are looked at."""
TOO_MUCH = "resources1=VCPU:2,MEMORY_MB:2048&resources2=SRIOV_NET_VF:5&group_policy=none"
"""More of a class than any provider has left: the largest room of each part of the forest tells."""


# ----------------------------------------------------------------------------------------------------------------- ours


def store(database: Database, providers: Iterable[dict[str, Any]]) -> int:
    """Write rows, as an operator's bulk import would: claims one by one would take minutes."""
    ids: dict[str, int] = {}
    roots: dict[str, int] = {}
    rows: dict[Any, list[tuple[Any, ...]]] = {resource_providers: [], inventories: [], provider_traits: []}
    for number, provider in enumerate(providers, 1):
        uuid, parent = provider["uuid"], provider["parent"]
        ids[uuid], roots[uuid] = number, roots[parent] if parent else number
        at = (number, uuid, provider["name"], ids[parent] if parent else None, roots[uuid], 0)
        rows[resource_providers].append(at)
        for name, inventory in provider["inventories"].items():
            given = Inventory(**inventory)
            used = provider["used"].get(name, 0)
            rows[inventories].append((number, name, *attrs.astuple(given), given.capacity, used))
        rows[provider_traits] += [(number, trait) for trait in provider["traits"]]
    with database.write() as connection:
        for table, values in rows.items():
            if values:  # the columns that come first; those that follow have defaults
                names = [column.name for column in table.c][: len(values[0])]
                marks = ",".join(["?" if database.dialect == "sqlite" else "%s"] * len(names))
                connection.exec_driver_sql(f"INSERT INTO {table.name} ({','.join(names)}) VALUES ({marks})", values)
    return len(ids)


class Ours:
    """A tree that is bound to a database in *folder*, with a forest of the benchmark in it."""

    def __init__(self, folder: Path, shape: str, count: int) -> None:
        self._step = -1
        self.database = Database(f"sqlite:///{folder / f'{shape}-{count}.db'}")
        self._another = Database(self.database.engine.url)
        create_schema(self.database)
        size = store(self.database, forests.SHAPES[shape](count))
        self.tree = PlacementTree.open(self.database)
        if len(self.tree) != size:
            raise Unequal(f"{len(self.tree)} providers were read of {size}")

    def change(self, count: int) -> list[int]:
        """Another writer uses or frees one unit of something of *count* providers, spread over the forest."""
        with self._another.write() as connection:
            every = list(connection.execute(sa.select(inventories.c.provider_id).distinct()).scalars())
            chosen = every[:: max(1, len(every) // count)][:count]
            self._step = -self._step
            statement = sa.update(inventories).where(inventories.c.provider_id.in_(chosen))
            connection.execute(statement.values(used=inventories.c.used + self._step))
            record_changes(connection, chosen, edited=False)
        return chosen

    def search(self, query: str) -> list[tuple[dict[str, dict[str, int]], dict[str, tuple[str, ...]]]]:
        """Look for news, search, and make values of what was found."""
        self.tree.refresh()
        found = self.tree.candidates(ResourceRequest.from_query(query))
        return [(candidate.allocations, candidate.mappings) for candidate in found]

    def close(self) -> None:
        self.tree.close()
        self.database.close()
        self._another.close()


def identity(candidates: Iterable[Any]) -> set[Any]:
    """Candidates of either side as values that can be compared."""
    return {
        (
            frozenset((uuid, name, amount) for uuid, held in allocations.items() for name, amount in held.items()),
            frozenset((suffix, frozenset(uuids)) for suffix, uuids in mappings.items()),
        )
        for allocations, mappings in candidates
    }


# ----------------------------------------------------------------------------------------------------------------- rows


def compare(
    bench: Bench, peer: Peer, ours: Ours, work: str, query: str, must: float, *, rounds: int, note: str = ""
) -> dict[str, Any]:
    """Whole answers equal as sets; then ten of them, against the clock."""
    every = identity(ours.search(query))
    theirs = identity(peer.run("search", query=query))
    if every != theirs or not every:
        raise Unequal(f"{work}: {len(every)} candidates of ours, {len(theirs)} of the peer's")
    limited = f"{query}&limit=10"

    def both_are_ten_of_all(a: Any, b: Any) -> bool:
        found = identity(a), identity(b)
        return all(len(ten) == 10 and ten <= every for ten in found)

    return bench.compare(
        work,
        ours=lambda: ours.search(limited),
        peer=peer.call("search", query=limited),
        equal=both_are_ten_of_all,
        must=must,
        rounds=rounds,
        note=note or f"{len(every)} candidates in all, equal on both sides; the time is for 10 of them",
    )


def percentiles(bench: Bench, ours: Ours, work: str, query: str) -> None:
    """p50 and p99 of 10,000 single searches, with the garbage collector on, as in a server that does nothing about it.

    The amounts vary, so that nothing but the reading of a query is kept from the search before; 77 different queries.
    """
    samples, cpu = [], []
    collections = sum(generation["collections"] for generation in gc.get_stats())
    searches = 500 if bench.quick else 10_000
    for turn in range(searches):
        asked = query.replace("VCPU:2", f"VCPU:{1 + turn % 7}").replace("DISK_GB:10", f"DISK_GB:{1 + turn % 11}")
        begin, begin_cpu = time.perf_counter(), time.process_time()
        found = ours.search(f"{asked}&limit=10")
        samples.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
        if len(found) != 10:
            raise Unequal(f"{work}: {len(found)} found for {asked}")
    collections = sum(generation["collections"] for generation in gc.get_stats()) - collections
    cuts, of_cpu = statistics.quantiles(samples, n=100), statistics.quantiles(cpu, n=100)
    longest = f"the longest took {max(samples) * 1e3:.1f} ms ({max(cpu) * 1e3:.1f} ms CPU)"
    for name, place, must in (("p50", 49, 300e-6), ("p99", 98, 2e-3)):
        note = f"at most; {of_cpu[place] * 1e6:.0f} µs of CPU time: the rest is waiting for a core"
        note += f"; {searches:,} searches, {collections} garbage collections within, {longest}"
        value = cuts[place]
        bench.record(f"{work}, {name}, µs", ours=value * 1e6, must=must * 1e6, met=value <= must, note=note)
        print(f"    {note}", flush=True)


def best(work: Callable[[], Any], times: int = 30) -> float:
    """The median of some runs, in seconds."""
    samples = []
    gc.collect()
    for _ in range(times):
        begin = time.perf_counter()
        work()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def sizes(bench: Bench, folder: Path, small: Ours) -> None:
    """The same search in 1,000 and in 100,000 trees, and what a provider costs in memory."""
    query = f"{FOUR_GROUPS}&limit=10"
    trees = 3_000 if bench.quick else 100_000
    large = Ours(folder, "nested", trees)
    seconds = {"small": [], "large": []}
    for _ in range(15):  # in turns, so that both meet the same neighbours
        seconds["small"].append(best(lambda: small.search(query), 20))
        seconds["large"].append(best(lambda: large.search(query), 20))
    of_small, of_large = (statistics.median(samples) for samples in seconds.values())
    bench.record(
        f"{trees:,} nested trees ({len(large.tree):,} providers), limit 10, µs",
        ours=of_large * 1e6,
        peer=of_small * 1e6,
        ratio=of_large / of_small,
        must=1.5,
        met=of_large <= 1.5 * of_small,
        bound="ratio at most",
        note="the peer's column is ours at 1,000 trees; the ratio is large : small",
    )
    columns = large.tree.candidates(query)._columns
    per_provider = columns.nbytes / len(large.tree)
    bench.record("columns, bytes a provider", ours=per_provider, must=200, met=per_provider <= 200, note="at most")
    nothing_fits(bench, large)
    large.close()


def nothing_fits(bench: Bench, ours: Ours) -> None:
    """Everything has to be looked at; and the easier case, where a glance tells."""
    for query, work, note in (
        (NOTHING, "nothing fits", "every provider is looked at"),
        (TOO_MUCH, "too much is asked for", "the largest room of each block tells"),
    ):
        if ours.search(query):
            raise Unequal(f"something fits where nothing should: {query}")
        seconds = best(lambda query=query: ours.search(query), 15)
        each = seconds / len(ours.tree) * 1e9
        bench.record(
            f"{work} in {len(ours.tree):,} providers, ns a provider",
            ours=each,
            must=15,
            met=each <= 15,
            note=f"{note}; {seconds * 1e3:.2f} ms in all; at most",
        )


def wide(bench: Bench, peer: Peer, folder: Path) -> None:
    """Eight equal devices, six groups: the peer makes all 20,160 candidates before it gives ten."""
    ours = Ours(folder, "wide", 8)
    peer.run("load", shape="wide", count=8)
    query = f"{WIDE}&limit=10"
    reply = peer.request("search", {"query": WIDE}, number=1, answer=True)
    every = identity(ours.search(WIDE))
    if identity(reply["answer"]) != every or len(every) != 20_160:
        raise Unequal(f"wide: {len(every)} candidates of ours, {len(reply['answer'])} of the peer's")
    if not identity(ours.search(query)) < every:
        raise Unequal("wide: ten that are not among all")
    seconds = best(lambda: ours.search(query), 200)
    bench.record(
        "8 children × 1 unit × 6 groups on one root, limit 10, ms",
        ours=seconds * 1e3,
        peer=reply["wall"] * 1e3,
        ratio=reply["wall"] / seconds,
        must=1,
        bound="at most",
        met=seconds <= 1e-3,
        note="the peer ran once, without a limit, which it applies at the end; most of its time goes into a "
        "hash that leaves the mappings out, so that all permutations collide",
    )
    physical = len(list(ours.tree.candidates(WIDE, distinct="physical")))
    if physical != 28:
        raise Unequal(f"wide: {physical} different allocations instead of 28")
    ours.close()


def following(bench: Bench, folder: Path, ours: Ours) -> None:
    """How fresh the tree is kept, and what it costs to open it."""

    def write() -> None:
        ours.change(1_000)

    ours.tree.refresh()
    bench.measure(
        f"refresh after 1,000 changed providers of {len(ours.tree):,}",
        ours=ours.tree.refresh,
        before=write,
        number=1,
        rounds=15,
        at_most=5e-3,
        note="the next search needs nothing more",
    )
    bench.measure("refresh when nobody wrote", ours=ours.tree.refresh, rounds=9)

    def load() -> None:
        with PlacementTree.open(ours.database) as tree:
            next(iter(tree.candidates(f"{FOUR_GROUPS}&limit=1")))

    bench.measure(
        f"open a bound forest of {len(ours.tree):,} providers and search once", ours=load, number=1, rounds=5, at_most=2
    )
    bulk_load(bench, folder, ours)


def bulk_load(bench: Bench, folder: Path, ours: Ours) -> None:
    """Write a whole forest, as Placement's JSON has it, through a bound tree into an empty database."""
    data = {part: of_all for part, of_all in ours.tree.as_placement().items() if part != "usages"}
    trees: list[PlacementTree] = []
    turns = itertools.count()

    def empty() -> None:
        trees.clear()
        database = Database(f"sqlite:///{folder / f'empty-{next(turns)}.db'}")
        create_schema(database)
        trees.append(PlacementTree.open(database))

    def load() -> None:
        trees[-1].load(data)

    bench.measure(
        f"load {len(ours.tree):,} providers into a bound tree, in one edit",
        ours=load,
        before=empty,
        number=1,
        rounds=3,
        at_most=4,
        note="read, checked, written to a new SQLite file, committed",
    )
    if [p.name for p in trees[-1]] != [p.name for p in ours.tree]:
        raise Unequal("another forest was loaded than was given")


def main() -> None:
    """All rows of the table."""
    with Bench("search", options()) as bench, tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        bench.versions["numpy"] = np.__version__
        peer = bench.peer("placement", "openstack-placement==16.0.0", script="peer_placement_search.py")
        for shape, count, query, must, rounds in (
            ("flat", 1_000, PLAIN, 200, 7),
            ("flat", 10_000, PLAIN, 2_000, 5),
            ("nested", 1_000, FOUR_GROUPS, 2_000, 5),
            ("nested", 10_000, FOUR_GROUPS, 20_000, 3),
        ):
            if bench.quick and count > 1_000:
                continue
            ours = Ours(at, shape, count)
            peer.run("load", shape=shape, count=count)
            groups = "three classes" if shape == "flat" else "four groups"
            compare(bench, peer, ours, f"{count:,} {shape} hosts, {groups}, limit 10", query, must, rounds=rounds)
            if (shape, count) == ("nested", 1_000 if bench.quick else 10_000):
                percentiles(bench, ours, f"{count:,} nested hosts, four groups, limit 10", FOUR_GROUPS)
                nothing_fits(bench, ours)
                following(bench, at, ours)
            if (shape, count) == ("nested", 1_000):
                sizes(bench, at, ours)
            ours.close()
        if not bench.quick:  # the peer takes its time
            wide(bench, peer, at)


if __name__ == "__main__":
    main()
