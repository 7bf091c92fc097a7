"""A router that serves strangers for months keeps no more than it did on its first day."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloudcore.listing.query.caches import GenerationCache
from cloudcore.listing.query.conditions import Condition
from cloudcore.listing.query.statements import _bound
from tests.services._host import REPOSITORY

PROGRAM = """
import sys, uuid
from cloudcore.listing import CLOUDCORE_INSTANCES, Cell, CellRouter, InstanceDirectory, InstanceStore, Query

folder, pages = sys.argv[1], int(sys.argv[2])
cells = [Cell(f"c{n}", f"sqlite:///{folder}/c{n}.db") for n in range(2)]
with CellRouter(cells, directory=InstanceDirectory(f"sqlite:///{folder}/d.db")) as router:
    store = InstanceStore(router)
    store.create_tables()
    for cell in cells:
        rows = [{"project_id": f"p{n % 5}", "display_name": f"n{n}", "vcpus": n} for n in range(50)]
        store.create_many(cell.name, rows)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def fresh(n):
    identifiers = [str(uuid.UUID(int=n * 5000 + k, version=4)) for k in range(1 + n * 7 % 1000)]
    return [
        lambda: Query(tenant=f"p{n}", limit=5),
        lambda: Query(where={"vcpus": {"ge": n % 60}, "display_name": {"prefix": f"n{n}"}}, limit=3),
        lambda: Query(where={"uuid": identifiers}, limit=2, sort=[["created_at", "vcpus", "host"][n % 3]]),
        lambda: Query(limit=3, where=CLOUDCORE_INSTANCES.table.c.vcpus > n),
        lambda: Query(limit=3, tags_any=[f"t{k}" for k in range(n % 20 + 1)]),
    ][n % 5]()

with CellRouter(cells, deadline=60.0) as router:
    before = None
    for n in range(pages):
        query = fresh(n)
        page = router.page(query)
        assert page.complete, page.cells
        if page.next_cursor and n % 7 == 0:
            router.page(query, cursor=page.next_cursor)
        if n == pages // 3:
            before = resident()
    print(resident() - before)
"""


@pytest.mark.parametrize("pages", [3_000, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_fresh_queries_leave_nothing_behind(tmp_path, pages):
    """4 kB a page used to stay for ever, a fifth of a megabyte with a thousand identifiers."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(pages)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10.0, "megabytes"


def test_a_cache_keeps_what_is_used_and_no_more_than_its_weight():
    cache: GenerationCache[int, bytes] = GenerationCache(1000, len)
    cache[0] = b"x" * 10
    for n in range(1, 500):
        cache[n] = b"x" * 10
        assert cache.get(0) is not None, "it is used all the time"
        assert len(cache) <= 101
    assert cache.get(1) is None
    cache[1000] = b"x" * 600
    assert cache.get(1000) is None, "half of the room for one would drive all others out"


def test_lists_are_sent_in_few_lengths():
    lengths = {len(_bound(Condition("c", "in", tuple(range(n))))) for n in range(1, 30_001)}
    assert len(lengths) <= 17
    assert max(lengths) == 30_000
    assert set(_bound(Condition("c", "in", (1, 2, 3, 4, 5, 6)))) == {1, 2, 3, 4, 5, 6}
