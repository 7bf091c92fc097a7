"""How the work grows: with hosts, cells, depth, size of a page, live allocations, and callers. Ours alone, on SQLite.

Each curve is fitted by a power of the size. See `bench.harness`.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import uuid
from pathlib import Path

from bench import listing_cells as data
from bench.bench_ledger import HOSTS, OWNER, load, populate, run_threads
from bench.bench_search import FOUR_GROUPS, NOTHING, Ours
from bench.forests import placed
from bench.harness import Bench
from bench.options import options
from cloudcore.database import Database
from cloudcore.listing import Cell, CellRouter, Query
from cloudcore.placement import AllocationLedger, headroom
from cloudcore.testing.worlds import instance_rows


def hosts(bench: Bench, folder: Path, *, quick: bool) -> None:
    """Searches among more and more nested hosts of seven providers."""
    sizes = (100, 300, 1000) if quick else (100, 300, 1000, 3000, 10_000)
    found, nothing, fits, opened = {}, {}, {}, {}
    for number in sizes:
        ours = Ours(folder, "nested", number)
        begun = time.perf_counter()
        ours.tree.open(ours.database).close()
        opened[number] = time.perf_counter() - begun
        found[number] = bench.median(lambda ours=ours: ours.search(f"{FOUR_GROUPS}&limit=10"))
        nothing[number] = bench.median(lambda ours=ours: ours.search(f"{NOTHING}&limit=10"))
        fits[number] = bench.median(lambda ours=ours: headroom(ours.tree, FOUR_GROUPS), rounds=3)
        ours.close()
    bench.curve("ten candidates, four groups", "hosts", found)
    bench.curve("no candidate, every host looked at", "hosts", nothing)
    bench.curve("how many more fit, four groups", "hosts", fits)
    bench.curve("opening a tree", "hosts", opened)


def listings(bench: Bench, folder: Path, *, quick: bool) -> None:
    """Pages over more cells, of more rows, and deeper in the result."""
    rows, most = (200, 8) if quick else (1000, 64)
    urls = [f"sqlite:///{folder / f'cell{number}.db'}" for number in range(most)]
    for number, url in enumerate(urls):
        data.own_cell(url, instance_rows(number, rows))
    by_cells = {}
    for number in (2**power for power in range(most.bit_length())):
        with CellRouter([Cell(f"cell{n}", url) for n, url in enumerate(urls[:number])]) as router:
            by_cells[number] = bench.median(lambda router=router: router.page(Query(limit=50)))
    bench.curve("a page of 50", "cells", by_cells)
    with CellRouter([Cell(f"cell{n}", url) for n, url in enumerate(urls[:8])]) as router:
        limits = (1, 3, 10, 30, 100, 300, 1000)
        sized = {limit: bench.median(lambda limit=limit: router.page(Query(limit=limit))) for limit in limits}
        bench.curve("a page over 8 cells", "page size", sized)
        query, cursor, cursors = Query(limit=20), None, {}
        for depth in itertools.count(1):
            if depth & (depth - 1) == 0 and cursor is not None:
                cursors[depth] = cursor
            cursor = router.page(query, cursor=cursor).next_cursor
            if cursor is None:
                break
        deep = {depth: bench.median(lambda at=at: router.page(query, cursor=at)) for depth, at in cursors.items()}
        bench.curve("a page of 20 over 8 cells", "depth in pages", deep)


def claims(bench: Bench, folder: Path, *, quick: bool) -> None:
    """A claim with more and more live allocations, and claims of more and more callers."""
    sizes = (10**2, 10**3) if quick else (10**2, 10**3, 10**4, 10**5)
    costs = {}
    for live in sizes:
        with Database(f"sqlite:///{folder / f'live-{live}.db'}") as database:
            load(database, HOSTS)
            populate(database, live)
            ledger, turn = AllocationLedger(database), itertools.count()
            costs[live] = bench.median(
                lambda ledger=ledger, turn=turn: ledger.claim(str(uuid.uuid4()), placed(next(turn) % HOSTS), **OWNER)
            )
    bench.curve("a claim, durable", "live allocations", costs)
    rates = {}
    with Database(f"sqlite:///{folder / 'callers.db'}") as database:
        load(database, HOSTS)
        ledger = AllocationLedger(database, group_commit=64)
        for callers in (1, 2, 4) if quick else (1, 2, 4, 8, 16, 32, 64):

            def work(number: int, each: int = 400 // callers) -> None:
                for step in range(each):
                    ledger.claim(str(uuid.uuid4()), placed((number * 37 + step) % HOSTS), **OWNER)

            rates[callers] = max(400 // callers * callers / run_threads(callers, work) for _ in range(3))
    bench.curve("claims, durable, group commit", "callers", rates, unit="claims/s")


def main() -> None:
    with Bench("scaling", options()) as bench, tempfile.TemporaryDirectory(prefix="cloudcore-bench-") as scratch:
        for part in (hosts, listings, claims):
            part(bench, Path(scratch), quick=bench.quick)


if __name__ == "__main__":
    main()
