"""Listing over many cells: beside Nova 34's own lister, a user's thread pool, and SQL written by hand.

    python -m bench.bench_listing [--quick] [--only WORD]

`--quick` takes fewer rows and rounds: for a look, not for the record.
"""

from __future__ import annotations

import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa

from bench import listing_cells as data
from bench.harness import REPOSITORY, Bench
from bench.listing_cells import SlowConnection
from bench.options import options
from cloudcore.listing import NOVA_INSTANCES, Cell, CellRouter, InstanceDirectory, NovaDirectory, Query
from cloudcore.listing.records.directory import Entry
from cloudcore.testing.worlds import instance_rows

SLOW = {"connect_args": {"factory": SlowConnection}}
COLUMNS = (
    "uuid, project_id, user_id, display_name, description, hostname, host, node, availability_zone, vm_state, "
    "task_state, power_state, flavor, image_ref, vcpus, memory_mb, disk_gb, locked, hidden, deleted, created_at, "
    "updated_at, launched_at, deleted_at"
)
BY_HAND = f"SELECT {COLUMNS} FROM instances WHERE deleted = 0 AND hidden = 0 ORDER BY created_at DESC, uuid LIMIT ?"


def seconds_of(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def uuids(page) -> list[str]:
    return [record["uuid"] for record in page.records]


class World:
    """Scratch databases, made when they are first asked for."""

    def __init__(self, folder: Path, bench: Bench, *, quick: bool) -> None:
        self.folder, self.bench, self.quick = folder, bench, quick
        self.nova = bench.peer("nova", script="peer_nova.py")
        self.nova_walk = 0.0
        """Seconds that Nova takes for everything, in the cells it was shown last."""

    def nova_peer(self, api: str, main: str):
        """A fresh Nova process: one process knows one deployment."""
        self.nova.close()
        self.nova = self.bench.peer("nova", script="peer_nova.py")
        self.nova.run("configure", api_url=api, main_url=main)
        return self.nova

    def sqlite_nova(self, cells: int, rows: int):
        """Nova's schema in SQLite files."""
        names = [f"cell{n:02}" for n in range(cells)]
        template, api = self.folder / "main.db", self.folder / f"api{cells}.db"
        self.nova.run("migrate", urls=[f"sqlite:///{template}"], kind="main")
        self.nova.run("migrate", urls=[f"sqlite:///{api}"], kind="api")
        files = data.copies(template, self.folder, [f"nova-{name}.db" for name in names])
        content = {}
        for number, (name, path) in enumerate(zip(names, files, strict=True)):
            content[name] = (f"sqlite:///{path}", instance_rows(number, rows))
            data.nova_cell(*content[name])
        data.nova_api(f"sqlite:///{api}", content)
        return f"sqlite:///{api}", {name: url for name, (url, _) in content.items()}

    def server_nova(self, kind: str, cells: int, rows: int):
        """Nova's schema in databases of one server, PostgreSQL or MariaDB."""
        from tests import services

        server = {"postgresql": services.postgresql, "mariadb": services.mariadb}[kind]()
        template, api = server.create_database("main"), server.create_database("api")
        plain = [url.replace("+psycopg:", "+psycopg2:") for url in (template, api)]
        self.nova.run("migrate", urls=[plain[0]], kind="main")
        self.nova.run("migrate", urls=[plain[1]], kind="api")
        content = {}
        for number in range(cells):
            url = data.copy_on_server(server, template, f"bench_cell{number:02}")
            content[f"cell{number:02}"] = (url, instance_rows(number, rows))
            data.nova_cell(*content[f"cell{number:02}"])
        data.nova_api(api, content)
        return api, {name: url for name, (url, _) in content.items()}, plain

    def sqlite_own(self, cells: int, rows: int) -> dict[str, str]:
        """cloudcore's own schema in SQLite files."""
        urls = {}
        for number in range(cells):
            name = f"cell{number:02}"
            urls[name] = f"sqlite:///{self.folder / f'own-{name}.db'}"
            if not Path(urls[name].removeprefix("sqlite:///")).exists():
                data.own_cell(urls[name], instance_rows(number, rows))
        return urls


# ------------------------------------------------------------------------------------------------------ beside Nova


def postgresql(world: World) -> None:
    """16 cells of 10,000 rows on one PostgreSQL server."""
    urls, total = server(world, "postgresql", "PostgreSQL", everything=50)
    memory(world, urls, total)


def mariadb(world: World) -> None:
    """The same on one MariaDB server, and by mysqlclient; then the same cells, of twenty times the size."""
    urls, total = server(world, "mariadb", "MariaDB", everything=20)
    in_c = [Cell(name, sa.make_url(url).set(drivername="mysql+mysqldb")) for name, url in urls.items()]
    with CellRouter(in_c, source=NOVA_INSTANCES, deadline=60.0) as router:
        mine, theirs = statistics.median(streamed(router, total) for _ in range(3)), world.nova_walk
        world.bench.record(
            f"MariaDB, {len(urls)} cells x {total // len(urls):,} rows by mysqlclient: everything by stream(), s; "
            "Nova: as above",
            ours=mine, peer=theirs, ratio=theirs / mine, must=40, met=theirs / mine >= 40,
        )  # fmt: skip
    query = Query(limit=50)
    with CellRouter([Cell(name, url) for name, url in urls.items()], source=NOVA_INSTANCES, deadline=60.0) as router:

        def typical() -> float:
            router.page(query)
            return statistics.median(seconds_of(lambda: router.page(query)) for _ in range(9))

        small = typical()
        for url in urls.values():
            data.grow(url, 20)
        ratio = typical() / small
    world.bench.record(
        f"MariaDB, {len(urls)} cells of 20 times the rows: time of a page of 50 / before",
        ours=ratio,
        must=1.3,
        met=ratio <= 1.3,
    )


def server(world: World, kind: str, name: str, *, everything: float) -> tuple[dict[str, str], int]:
    """Cells in Nova's schema on one server, beside Nova's own lister."""
    cells, rows = (4, 1000) if world.quick else (16, 10_000)
    what = f"{name}, {cells} cells x {rows:,} rows"
    api, urls, plain = world.server_nova(kind, cells, rows)
    nova = world.nova_peer(plain[1], plain[0])
    with (
        NovaDirectory(api) as directory,
        CellRouter(directory.cells(), directory=directory, source=NOVA_INSTANCES) as router,
    ):
        query, page = Query(limit=50), router.page(Query(limit=50))
        world.bench.compare(
            f"{what}: page of 50, first; Nova: plain rows",
            lambda: uuids(router.page(query)),
            nova.call("raw", limit=50),
            must=15,
            rounds=5,
        )
        world.bench.compare(
            f"{what}: page of 50, first; Nova: objects",
            lambda: uuids(router.page(query)),
            nova.call("page", limit=50),
            rounds=3,
        )
        for _ in range(98):
            page = router.page(query, cursor=page.next_cursor)
        marker, cursor = page.records[-1].uuid, page.next_cursor
        world.bench.compare(
            f"{what}: page of 50, 100th; Nova: plain rows",
            lambda: uuids(router.page(query, cursor=cursor)),
            nova.call("raw", limit=50, marker=marker),
            must=25,
            rounds=5,
        )
        world.bench.compare(
            f"{what}: page of 50, 100th; Nova: objects",
            lambda: uuids(router.page(query, cursor=cursor)), nova.call("page", limit=50, marker=marker), rounds=3,
        )  # fmt: skip
        walk(world, router, nova, what, cells * rows, must=everything)
    return urls, cells * rows


def walk(world: World, router: CellRouter, nova, what: str, total: int, *, must: float) -> None:
    """The whole result: ours in full; of Nova's pages of 1000 a sample, evenly spread, for each takes seconds."""
    everything = [record["uuid"] for record in router.stream()]
    assert len(everything) == len(set(everything)) == total
    ours = [streamed(router, total) for _ in range(3)]
    pages = total // 1000
    sampled = sorted({max(1, int(pages * share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)})
    times = []
    for number in sampled:
        marker = everything[number * 1000 - 1]
        call = nova.call("page", limit=1000, marker=marker)
        assert call() == everything[number * 1000 : number * 1000 + 1000]
        times.append(call.sample(1)[0])
    theirs, mine = statistics.mean(times) * pages, statistics.median(ours)
    world.nova_walk = theirs
    world.bench.record(
        f"{what}: everything by stream(), s; Nova: {pages} marker pages of 1000 objects, from {len(sampled)} of them",
        ours=mine, peer=theirs, ratio=theirs / mine, must=must, met=theirs / mine >= must,
    )  # fmt: skip


def streamed(router: CellRouter, total: int) -> float:
    """Seconds for the whole result."""

    def everything() -> None:
        assert sum(1 for _ in router.stream()) == total

    return seconds_of(everything)


MEMORY = """
import sys
def peak():  # not ru_maxrss: that is the parent's after fork and exec
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) / 1024
bare = peak()
if len(sys.argv) > 1:
    from cloudcore.listing import NOVA_INSTANCES, Cell, CellRouter
    cells = [Cell(str(n), url) for n, url in enumerate(sys.argv[2:])]
    with CellRouter(cells, source=NOVA_INSTANCES) as router:
        loaded = peak()
        count = sum(1 for _ in zip(router.stream(), range(int(sys.argv[1]))))
    print(count, peak() - bare, peak() - loaded)
"""


def memory(world: World, urls: dict[str, str], total: int) -> None:
    """Peak memory of a process that streams, for a tenth of the rows and for all."""

    def run(rows: int) -> tuple[float, float]:
        command = [sys.executable, "-c", MEMORY, str(rows), *urls.values()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        count, over_bare, over_loaded = done.stdout.split()
        assert int(count) == rows
        return float(over_bare), float(over_loaded)

    tenth, whole = run(total // 10), run(total)
    world.bench.record(
        f"peak memory of streaming {total:,} rows over the interpreter, MB",
        ours=whole[0], must=60, met=whole[0] < 60,
        note=f"{whole[1]:.0f} MB of it after SQLAlchemy and the drivers; a tenth of the rows: {tenth[0]:.0f} MB",
    )  # fmt: skip


def sqlite(world: World) -> None:
    """80 SQLite cells in Nova's schema, near and far."""
    cells, rows = (8, 500) if world.quick else (80, 2000)
    what = f"SQLite, {cells} cells x {rows:,}"
    api, urls = world.sqlite_nova(cells, rows)
    nova = world.nova_peer(api, next(iter(urls.values())))
    with (
        CellRouter([Cell(name, url) for name, url in urls.items()], source=NOVA_INSTANCES) as near,
        CellRouter([Cell(name, url, options=SLOW) for name, url in urls.items()], source=NOVA_INSTANCES) as router,
    ):
        everything = [record["uuid"] for record in near.stream()]
        query = Query(limit=1000)
        for latency, asked in ((0.0, near), (0.005, router)):
            SlowConnection.latency = latency
            nova.run("set_latency", seconds=latency)
            page = asked.page(query)
            world.bench.compare(
                f"{what}, {latency * 1000:g} ms a statement: page of 1000; Nova: plain rows",
                lambda asked=asked: uuids(asked.page(query)), nova.call("raw", limit=1000), must=50, rounds=5,
            )  # fmt: skip
        fetched = sum(report.fetched for report in page.cells.values())
        statements = sum(report.statements for report in page.cells.values())
        world.bench.record(
            f"rows decoded for a page of 1000 over {cells} cells, per row shown",
            ours=fetched / 1000,
            must=2.5,
            met=fetched <= 2500,
        )
        world.bench.record(
            f"statements for a page of 1000 over {cells} cells, per cell",
            ours=statements / cells,
            must=1.1,
            met=statements <= 1.1 * cells,
        )
        depths(world, router, nova, everything, what)
    SlowConnection.latency = 0.0


def depths(world: World, router: CellRouter, nova, everything: list[str], what: str) -> None:
    """Pages of 100 after a marker, at 5 ms a statement: as fast at the end as at the start."""
    query, ours = Query(limit=100), {}
    for share in (0.05, 0.25, 0.5, 0.95):
        place = int(len(everything) * share)
        marker = everything[place - 1]
        # A cursor that stands there, from a page that ends there.
        before = router.page(Query(limit=1), marker=everything[place - 2])
        assert before.records[0].uuid == marker
        cursor = before.next_cursor
        row = world.bench.compare(
            f"{what}, 5 ms: page of 100 at {share:.0%}; Nova: plain rows",
            lambda cursor=cursor: uuids(router.page(query, cursor=cursor)),
            nova.call("raw", limit=100, marker=marker), must=200, rounds=5,
        )  # fmt: skip
        ours[share] = row["ours"]
    flat = ours[0.95] / ours[0.05]
    world.bench.record(f"{what}: time at 95 % depth / at the start", ours=flat, must=1.2, met=flat <= 1.2)


# --------------------------------------------------------------------------------------------- beside what users write


def naive(world: World) -> None:
    """A pool of threads, the page's SQL in each cell, all rows as dictionaries, one sort."""
    cells = 8 if world.quick else 80
    urls = world.sqlite_own(cells, 500 if world.quick else 2000)
    connections = {
        latency: [
            sqlite3.connect(url.removeprefix("sqlite:///"), factory=factory, check_same_thread=False)
            for url in urls.values()
        ]
        for latency, factory in ((0.0, sqlite3.Connection), (0.005, SlowConnection))
    }
    SlowConnection.latency = 0.005
    with ThreadPoolExecutor(cells) as pool:

        def fetch(connection, limit):
            cursor = connection.cursor()
            cursor.execute(BY_HAND, (limit,))
            names = [each[0] for each in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        def by_pool(count, limit, latency):
            parts = pool.map(fetch, connections[latency][:count], [limit] * count)
            found = [row for part in parts for row in part]
            found.sort(key=lambda row: row["uuid"])
            found.sort(key=lambda row: row["created_at"], reverse=True)
            return [row["uuid"] for row in found[:limit]]

        for count in sorted({1, 10, cells} if not world.quick else {1, cells}):
            chosen = list(urls.items())[:count]
            with (
                CellRouter(Cell(name, url) for name, url in chosen) as near,
                CellRouter(Cell(name, url, options=SLOW) for name, url in chosen) as far,
            ):
                for limit, latency in ((20, 0.005), (100, 0.0), (100, 0.005), (1000, 0.0), (1000, 0.005)):
                    query, router = Query(limit=limit), far if latency else near
                    must = 20 if (count, limit) == (80, 1000) else 1 if count > 1 else None
                    world.bench.compare(
                        f"{count} SQLite cells, {latency * 1000:g} ms: page of {limit}; threads and a sort",
                        lambda query=query, router=router: uuids(router.page(query)),
                        lambda count=count, limit=limit, latency=latency: by_pool(count, limit, latency),
                        must=must, rounds=5,
                    )  # fmt: skip
        SlowConnection.latency = 0.0
        one_cell(world, urls, lambda limit: fetch(connections[0.0][0], limit))
    for connection in (*connections[0.0], *connections[0.005]):
        connection.close()


def one_cell(world: World, urls: dict[str, str], by_hand) -> None:
    """One cell: hardly more than the statement alone."""
    name, url = next(iter(urls.items()))
    with CellRouter([Cell(name, url)]) as router:
        for limit in (100, 1000):
            query = Query(limit=limit)
            world.bench.compare(
                f"one SQLite cell: page of {limit}; its SQL by hand",
                lambda query=query: uuids(router.page(query)),
                lambda limit=limit: [row["uuid"] for row in by_hand(limit)], must=round(1 / 1.2, 3), rounds=11,
            )  # fmt: skip


def tenant(world: World) -> None:
    """A tenant in three of 80 cells: CPU of its page beside CPU of a page over all."""
    cells = 8 if world.quick else 80
    urls = world.sqlite_own(cells, 500 if world.quick else 2000)
    with InstanceDirectory(f"sqlite:///{world.folder / 'directory.db'}") as directory:
        for number in range(3):
            name = f"cell{number:02}"
            few = instance_rows(1000 + number, 30, project="rare")
            data.own_cell(urls[name], few)
            times = {row["uuid"]: row["created_at"] for row in few}
            directory.add(
                Entry(uuid=uuid, cell=name, project_id="rare", host=None, created_at=at) for uuid, at in times.items()
            )
        chosen = [Cell(name, url) for name, url in urls.items()]
        with CellRouter(chosen, directory=directory) as routed, CellRouter(chosen) as unrouted:
            query, every = Query(tenant="rare", limit=20), Query(where={"project_id": "rare"}, limit=20)
            row = world.bench.compare(
                f"tenant in 3 of {cells} cells: page of 20; every cell asked",
                lambda: uuids(routed.page(query)), lambda: uuids(unrouted.page(every)),
            )  # fmt: skip
            ratio = row["peer_cpu"] / row["ours_cpu"]
            world.bench.record(
                f"tenant in 3 of {cells} cells: CPU, ms; every cell asked",
                ours=row["ours_cpu"] * 1000, peer=row["peer_cpu"] * 1000, ratio=ratio, must=15, met=ratio >= 15,
            )  # fmt: skip


def slow_cell(world: World) -> None:
    """One cell of ten sleeps three seconds; the deadline is one."""
    urls = world.sqlite_own(10, 500 if world.quick else 2000)

    class Sleeper(SlowConnection):
        def cursor(self, *_):
            return super(SlowConnection, self).cursor(SleepingCursor)

    class SleepingCursor(sqlite3.Cursor):
        asleep = False

        def execute(self, *arguments):
            if SleepingCursor.asleep:
                time.sleep(3)
            return super().execute(*arguments)

    chosen = [
        Cell(name, url, options={"connect_args": {"factory": Sleeper}} if name == "cell04" else {})
        for name, url in urls.items()
    ]
    with CellRouter(chosen, deadline=1.0) as router, CellRouter(chosen[:4] + chosen[5:]) as healthy:
        query = Query(limit=100)
        router.page(query)
        SleepingCursor.asleep = True
        began = time.perf_counter()
        page = router.page(query)
        took = time.perf_counter() - began
        SleepingCursor.asleep = False
        blamed = [name for name, report in page.cells.items() if report.state != "answered"]
        right = blamed == ["cell04"] and uuids(page) == uuids(healthy.page(query))
        world.bench.record(
            "one cell of ten sleeps 3 s, deadline 1 s: seconds until the page",
            ours=took,
            must=1.05,
            met=took <= 1.05 and right,
            note="exactly that cell blamed, every healthy row there" if right else "WRONG",
        )


WORKS = {
    "postgresql": postgresql, "mariadb": mariadb, "sqlite": sqlite, "naive": naive, "tenant": tenant, "slow": slow_cell,
}  # fmt: skip


def main() -> None:
    asked = options(WORKS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    folder = Path(tempfile.mkdtemp(prefix="cloudcore-bench-"))
    try:
        with Bench("listing", asked) as bench:
            world = World(folder, bench, quick=asked.quick)
            for name, work in WORKS.items():
                if asked.only in {None, name}:
                    work(world)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
