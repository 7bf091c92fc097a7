"""Listing under load: pages a second with many callers beside one, and whom they blame.

python -m bench.bench_load [--quick] [--only KIND]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from bench import listing_cells as data
from bench.harness import Bench
from cloudcore.errors import CloudcoreError
from cloudcore.listing import Cell, CellRouter, Query
from cloudcore.testing.worlds import instance_rows

KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


class Load:
    """What so many callers got in some seconds: how many pages, how soon, and what else they heard."""

    def __init__(self, router: CellRouter, callers: int, seconds: float) -> None:
        self.times: list[float] = []
        self.heard: Counter[str] = Counter()
        gate = threading.Barrier(callers + 1)

        def call() -> None:
            gate.wait()
            while time.perf_counter() < self._end:
                began = time.perf_counter()
                try:
                    page = router.page(Query(limit=50))
                except CloudcoreError as error:
                    self.heard[type(error).__name__] += 1
                else:
                    self.heard["complete" if page.complete and len(page.records) == 50 else "partial"] += 1
                    self.times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        self._end = time.perf_counter() + seconds
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        gate.wait()
        for thread in threads:
            thread.join()
        self.rate = len(self.times) / (time.perf_counter() - began)

    @property
    def p99(self) -> float:
        return sorted(self.times)[int(len(self.times) * 0.99)] if self.times else 0.0

    @property
    def story(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in self.heard.items())


def urls_of(kind: str, folder: Path, cells: int) -> list[str]:
    from tests import services

    if kind == "sqlite":
        urls = [f"sqlite:///{folder / f'{number}.db'}" for number in range(cells)]
    else:
        server = {"postgresql": services.postgresql, "mariadb": services.mariadb}[kind]()
        urls = [server.create_database("load") for _ in range(cells)]
    for number, url in enumerate(urls):
        data.own_cell(url, instance_rows(number, 1000))
    return urls


def pages(bench: Bench, kind: str, *, quick: bool) -> None:
    """Many callers beside one, in turns, in one process."""
    seconds = 1.5 if quick else 4.0
    with tempfile.TemporaryDirectory(prefix="cloudcore-bench-") as folder:
        urls = urls_of(kind, Path(folder), 16)
        what = f"{KINDS[kind]}, 16 cells x 1,000, page of 50"
        with CellRouter(Cell(f"cell{number:02}", url) for number, url in enumerate(urls)) as router:
            cold = Load(router, 200, seconds)
            blamed = cold.heard["partial"] or any(router.breaker(cell).failures for cell in router.cells)
            bench.record(
                f"{what}: cold start with 200 callers, pages that are partial or blame a cell",
                ours=cold.heard["partial"], must=0, met=not blamed, note=cold.story,
            )  # fmt: skip
            for callers in (8, 40, 200):
                before, load, after = (Load(router, number, seconds) for number in (1, callers, 1))
                alone = (before.rate + after.rate) / 2
                bench.record(
                    f"{what}: pages/s with {callers} callers beside one",
                    ours=load.rate, peer=alone, ratio=load.rate / alone, must=0.85,
                    met=load.rate >= 0.85 * alone and set(load.heard) == {"complete"}, note=load.story,
                )  # fmt: skip
                bound = 3 * callers / load.rate
                bench.record(f"{what}: p99 with {callers} callers, s", ours=load.p99, must=bound, met=load.p99 <= bound)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=KINDS)
    arguments = parser.parse_args()
    with Bench("load", write=not (arguments.quick or arguments.only)) as bench:
        for kind in KINDS:
            if arguments.only in {None, kind}:
                pages(bench, kind, quick=arguments.quick)


if __name__ == "__main__":
    main()
