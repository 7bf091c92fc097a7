"""In a server: many callers, connections, processes and cells, and what it costs to look on.

Pages a second with many callers beside one, and whom they blame; the same behind uvicorn and FastAPI; claims of four
processes; a thousand cells beside eighty; other callers beside a filter with 100,000 values; telemetry; and the calls
of `cloudcore.aio`. Every page counts only if it is complete.

python -m bench.bench_load [--quick] [--only PART]
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier as Gate
from pathlib import Path

import anyio.to_thread
import sqlalchemy as sa

from bench import forests, load_api
from bench import listing_cells as data
from bench.bench_ledger import HOSTS, OWNER, load
from bench.harness import Bench
from bench.options import options
from cloudcore.aio import AsyncCellRouter
from cloudcore.database import Database
from cloudcore.errors import CloudcoreError
from cloudcore.listing import Cell, CellRouter, Page, Query
from cloudcore.observability import Observer
from cloudcore.placement import AllocationLedger, tables
from cloudcore.telemetry import OpenTelemetry
from cloudcore.testing.worlds import instance_rows

PROCESSES, THREADS = 4, 8
KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}
_PAGE = Query(limit=50)


class Load:
    """What so many callers got in some seconds: how many pages, how soon, and what else they heard."""

    def __init__(self, router: CellRouter, callers: int, seconds: float, query: Query = _PAGE) -> None:
        self.times: list[float] = []
        self.heard: Counter[str] = Counter()
        gate = threading.Barrier(callers + 1)

        def call() -> None:
            gate.wait()
            while time.perf_counter() < self._end:
                began = time.perf_counter()
                try:
                    page = router.page(query)
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


@contextmanager
def sqlite_cells(number: int, rows: int) -> Iterator[list[str]]:
    """Files with rows of their own; they share what eight hold but for the uuids."""
    with tempfile.TemporaryDirectory(prefix="cloudcore-bench-") as folder:
        made = [Path(folder) / f"made-{place}.db" for place in range(8)]
        for place, path in enumerate(made):
            data.own_cell(f"sqlite:///{path}", instance_rows(place, rows))
        urls = []
        for place in range(number):
            path = Path(folder) / f"{place}.db"
            shutil.copy(made[place % 8], path)
            connection = sqlite3.connect(path)
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(
                "UPDATE instances SET uuid = substr(uuid, 1, 28) || printf('%08x', ? + rowid)", (place << 12,)
            )
            connection.commit()
            connection.close()
            urls.append(f"sqlite:///{path}")
        yield urls


def routed(urls: list[str], observer: Observer | None = None) -> CellRouter:
    return CellRouter(
        [Cell(f"cell{number:03}", url) for number, url in enumerate(urls)], observer=observer, deadline=30
    )


def api(bench: Bench, *, quick: bool) -> None:
    """One worker of a server beside one caller of the router, with the same query."""
    seconds = 2.0 if quick else 6.0
    query = Query(limit=50, columns=load_api.COLUMNS)
    with sqlite_cells(16, 1000) as urls, load_api.served(urls) as port, routed(urls) as router:
        load_api.hammer(port, 40, 1.0)
        before = Load(router, 1, seconds / 3, query)
        rate, heard = load_api.hammer(port, 40, seconds)
        after = Load(router, 1, seconds / 3, query)
    alone = (before.rate + after.rate) / 2
    bench.record(
        "uvicorn + FastAPI, 40 connections, GET /servers?limit=50 over 16 SQLite cells, requests/s beside one caller",
        ours=rate, peer=alone, ratio=rate / alone, must=0.7, met=rate >= 0.7 * alone and set(heard) == {"complete"},
        note=", ".join(f"{number} {what}" for what, number in heard.items()),
    )  # fmt: skip


def claiming(url: str, process: int, seconds: float, gate: Gate, answers: Queue[int]) -> None:
    """A process that claims with several threads until its time is over; all begin together."""
    with Database(url, pool_size=THREADS) as database:
        ledger = AllocationLedger(database, group_commit=THREADS)
        numbers = [0] * THREADS
        ledger.claim(str(uuid.uuid4()), forests.placed(process), **OWNER)
        gate.wait(120)
        end = time.monotonic() + seconds

        def work(thread: int) -> None:
            while time.monotonic() < end:
                host = (process * THREADS + thread + numbers[thread] * PROCESSES * THREADS) % HOSTS
                ledger.claim(str(uuid.uuid4()), forests.placed(host), **OWNER)
                numbers[thread] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers.put(sum(numbers))


def claims(bench: Bench, *, quick: bool) -> None:
    """Durable: every claim that was counted is there afterwards."""
    from tests import services

    seconds = 3.0 if quick else 8.0
    url = services.postgresql(durable=True).create_database("claims")
    context = multiprocessing.get_context("spawn")
    with Database(url) as database:
        load(database, HOSTS)
        gate, answers = context.Barrier(PROCESSES + 1), context.Queue()
        processes = [
            context.Process(target=claiming, args=(url, number, seconds, gate, answers)) for number in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        gate.wait(120)
        began = time.monotonic()
        made = sum(answers.get(timeout=120) for _ in processes)
        rate = made / (time.monotonic() - began)
        for process in processes:
            process.join()
        ledger = AllocationLedger(database)
        ledger.check()
        with database.read() as connection:
            kept = connection.scalar(sa.select(sa.func.count()).select_from(tables.consumers)) - PROCESSES
    bench.record(
        "claims/s, 4 processes x 8 threads, PostgreSQL durable, groups of up to 8",
        ours=rate, must=3000, met=rate >= 3000 and kept == made, note=f"{made} acknowledged, {kept} kept",
    )  # fmt: skip


def hundreds(bench: Bench) -> None:
    """A page's CPU for each cell, of a thousand beside eighty, all connections open; and what the process holds."""
    costs = []
    for number in (80, 1000):
        with sqlite_cells(number, 200) as urls, routed(urls) as router:
            for _ in range(3):
                assert router.page(Query(limit=50)).complete
            costs.append(min(_cpu(lambda: router.page(Query(limit=50)), 1) for _ in range(7)) / number)
            held = f"{len(list(Path('/proc/self/fd').iterdir()))} descriptors, {threading.active_count()} threads"
    bench.record(
        "page of 50, CPU for each SQLite cell, of 1,000 beside 80, s",
        ours=costs[1], peer=costs[0], ratio=costs[1] / costs[0],
        must=2, met=costs[1] <= 2 * costs[0], bound="ratio at most", note=held,
    )  # fmt: skip


def _cpu(work: Callable[[], object], times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def long_filters(bench: Bench) -> None:
    """Eight callers beside one that filters by 100,000 uuids: their longest page, and that each got all."""
    with sqlite_cells(16, 1000) as urls, routed(urls) as router:
        Load(router, 8, 1.0)
        wanted = [record.uuid for record in router.page(Query(limit=100)).records]
        others = [str(uuid.UUID(int=number)) for number in range(100_000 - len(wanted))]
        found: list[bool] = []
        over = threading.Event()

        def filter_all_the_time() -> None:
            while not over.is_set():
                page = router.page(Query(where={"uuid": others + wanted}, limit=200))
                found.append(page.complete and [record.uuid for record in page.records] == wanted)

        thread = threading.Thread(target=filter_all_the_time)
        thread.start()
        beside = Load(router, 8, 4.0)
        over.set()
        thread.join()
    bench.record(
        "8 callers beside one that filters by 100,000 uuids, 16 SQLite cells: their longest page, s",
        ours=max(beside.times), must=1.0,
        met=max(beside.times) <= 1.0 and all(found) and set(beside.heard) == {"complete"},
        note=f"{beside.story}; {len(found)} filtered pages",
    )  # fmt: skip


def telemetry(bench: Bench, *, quick: bool) -> None:
    """Spans and metrics of the OpenTelemetry SDK; an exporter drops them."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Dropped(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    from tests import services

    processors: list[BatchSpanProcessor] = []

    def traced(share: float) -> TracerProvider:
        tracing = TracerProvider(sampler=ParentBasedTraceIdRatio(share))
        processors.append(BatchSpanProcessor(Dropped()))
        tracing.add_span_processor(processors[-1])
        return tracing

    def export() -> None:
        """What was recorded, while the clock of who recorded it runs."""
        for processor in processors:
            processor.force_flush()

    def observing(share: float) -> OpenTelemetry:
        return OpenTelemetry(traced(share), MeterProvider([InMemoryMetricReader()]))

    tracer = traced(1.0).get_tracer("bench")

    def as_many_spans() -> None:
        """A page's: itself, its sixteen cells and a statement of each, with as many attributes."""
        with tracer.start_as_current_span("listing.page", attributes={"records": 50, "complete": True}):
            for number in range(16):
                cell = f"cell{number:03}"
                statement = {"db.system.name": "sqlite", "db.query.text": "SELECT", "rows": 50, "cell": cell}
                part = {"cell": cell, "state": "answered", "rows": 3, "statements": 1}
                for attributes in (statement, part):
                    tracer.start_span("listing.cell", attributes={**attributes, "seconds": 0.001}).end()

    observers = {"one trace in a hundred": observing(0.01), "every trace": observing(1.0)}
    rounds = 20 if quick else 60
    query = Query(limit=50)
    bare = CellRouter.page.__wrapped__  # type: ignore[attr-defined]  # without its decorator
    with sqlite_cells(16, 1000) as urls, routed(urls) as router:
        off, none, alone, *on = _in_turns([
            _paging(router, query, None), lambda: bare(router, query), as_many_spans,
            *(_paging(router, query, observer) for observer in observers.values()),
        ], rounds, after=export)  # fmt: skip
    bench.record("telemetry off, page over 16 SQLite cells, CPU beside a call that cannot tell, s",
                 ours=off, peer=none, ratio=off / none,
                 must=1.01, met=off <= 1.01 * none, bound="ratio at most")  # fmt: skip
    for what, seen in zip(observers, on, strict=True):
        bench.record(f"telemetry on, {what} sampled, page over 16 SQLite cells, CPU beside off, s",
                     ours=seen, peer=off, ratio=seen / off, must=1.05, met=seen <= 1.05 * off, bound="ratio at most",
                     note=f"the SDK alone takes {alone:.2g} s for the 33 spans of a sampled page")  # fmt: skip
    with Database(services.postgresql().create_database("telemetry")) as database:
        load(database, HOSTS)
        hosts = itertools.count()
        ledgers = [AllocationLedger(database, observer=observer) for observer in (None, *observers.values())]
        works = [_claiming(each, hosts) for each in ledgers]
        off, *on = _in_turns(works, rounds, clock=time.perf_counter, times=5, after=export)
    for what, seen in zip(observers, on, strict=True):
        bench.record(f"telemetry on, {what} sampled, claim on PostgreSQL, beside off, s",
                     ours=seen, peer=off, ratio=seen / off,
                     must=1.05, met=seen <= 1.05 * off, bound="ratio at most")  # fmt: skip


def _paging(router: CellRouter, query: Query, observer: Observer | None) -> Callable[[], object]:
    """With one router for all: several would push each other's connections out of the processor's caches."""

    def page() -> None:
        router.observer = observer
        router.page(query)

    return page


def _claiming(ledger: AllocationLedger, hosts: Iterator[int]) -> Callable[[], object]:
    return lambda: ledger.claim(str(uuid.uuid4()), forests.placed(next(hosts) % HOSTS), **OWNER)


def _in_turns(
    works: list[Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.process_time,
    times: int = 10,
    after: Callable[[], object] = lambda: None,
) -> list[float]:
    """The lower quartile of each work's seconds, all in turns, the order changing; *after* ends what it leaves."""
    taken: list[list[float]] = [[] for _ in works]
    for turn in range(rounds):
        for number in range(len(works)) if turn % 2 else reversed(range(len(works))):
            began = clock()
            for _ in range(times):
                works[number]()
            after()
            taken[number].append((clock() - began) / times)
    return [statistics.quantiles(each, n=4)[0] for each in taken]


def awaited(bench: Bench) -> None:
    """What a call through `cloudcore.aio` takes longer than the same call of this thread, or anyio's plain offloading.

    CPU, since the time until another thread gets its turn is the machine's; medians of blocks in turns.
    """
    with sqlite_cells(1, 100) as urls, routed(urls) as router:
        query = Query(limit=1)
        facade = AsyncCellRouter(router)

        async def direct() -> Page:
            return router.page(query)

        async def offloaded() -> Page:
            return await anyio.to_thread.run_sync(router.page, query)

        async def through_facade() -> Page:
            return await facade.page(query)

        async def measure(blocks: int = 60, calls: int = 20) -> list[tuple[float, float]]:
            ways = (direct, offloaded, through_facade)
            assert len({(await way()).records for way in ways}) == 1
            taken: list[list[tuple[float, float]]] = [[] for _ in ways]
            for block in range(blocks):
                for number in range(3) if block % 2 else reversed(range(3)):
                    wall, cpu = time.perf_counter(), time.process_time()
                    for _ in range(calls):
                        await ways[number]()
                    taken[number].append(((time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls))
            return [tuple(map(statistics.median, zip(*each, strict=True))) for each in taken]

        (here, here_wall), (plain, plain_wall), (ours, ours_wall) = asyncio.run(measure())
    bench.record(
        "CPU of an awaited call beyond a direct one, s; anyio.to_thread",
        ours=ours - here, peer=plain - here, ratio=(plain - here) / (ours - here), must=150e-6, bound="at most",
        met=ours - here <= 150e-6,
        note=f"until it answers {ours_wall - here_wall:.2g} s more, anyio's "
             f"{plain_wall - here_wall:.2g} s",
    )  # fmt: skip


def main() -> None:
    parts: dict[str, Callable[[Bench, bool], None]] = {
        **{kind: lambda bench, quick, kind=kind: pages(bench, kind, quick=quick) for kind in KINDS},
        "api": lambda bench, quick: api(bench, quick=quick),
        "claims": lambda bench, quick: claims(bench, quick=quick),
        "hundreds": lambda bench, _: hundreds(bench),
        "filters": lambda bench, _: long_filters(bench),
        "telemetry": lambda bench, quick: telemetry(bench, quick=quick),
        "aio": lambda bench, _: awaited(bench),
    }
    asked = options(parts)
    with Bench("load", asked) as bench:
        for name, part in parts.items():
            if asked.only in {None, name}:
                part(bench, asked.quick)


if __name__ == "__main__":
    main()
