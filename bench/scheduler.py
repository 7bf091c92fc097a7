"""One scheduler of `bench_select`, a process of its own: selects until it was told to end or nothing is free.

python -m bench.scheduler URL SEED MOST: says "ready", waits for a line, and answers with what it did, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cloudcore import AllocationLedger, Database, HostSelector, PlacementTree
from cloudcore.errors import NoValidHost
from cloudcore.placement.hosts import free

QUERY = "resources=VCPU:2,MEMORY_MB:4096"


class Lost:
    """Counts the claims that another scheduler was granted first."""

    def __init__(self) -> None:
        self.count = 0

    def span(self, name: str, fields: Mapping[str, Any]) -> AbstractContextManager[Any]:
        return nullcontext(lambda **_: None)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        self.count += name == "placement.claim.lost"


def main(url: str, seed: int, most: int) -> None:
    lost, selected = Lost(), 0
    with Database(url) as database, PlacementTree.open(database) as tree:
        selector = HostSelector(
            tree,
            AllocationLedger(database),
            cell_of=lambda _: "cell1",
            weighers=[(1.0, free("VCPU"))],
            seed=seed,
            observer=lost,
        )
        list(tree.candidates(f"{QUERY}&limit=1"))
        print("ready", flush=True)
        sys.stdin.readline()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        try:
            while selected < most:
                selector.select(QUERY, alternates=2, project_id="p", user_id="u")
                selected += 1
        except NoValidHost:
            pass
        taken, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    print(json.dumps({"selected": selected, "lost": lost.count, "seconds": taken, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
