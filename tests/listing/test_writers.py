"""Walks while others write: threads insert, change and delete rows all the time, in every cell, with real transactions.

Whatever they do, a row that stays as it is comes exactly once, in order, on every kind of database.
"""

from __future__ import annotations

import random
import threading
import uuid

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.listing import Cell, CellRouter, Query, Sort
from tests.listing import oracle
from tests.listing.conftest import NOW, THINGS, things
from tests.listing.test_walk import MIXTURES

SORTS = (
    (Sort("size"), Sort("name", descending=True)),
    (Sort("at", descending=True, nulls_first=True),),
    (Sort("name", nulls_first=False), Sort("flag")),
    (),
)
LIMITS = (20, 3, 7, 11)
STAYING, MOVING, WALKS = 25, 25, 4
AT_A_TIME = 6
"""Transactions let loose with each page: without a bound, writers in this process would starve the reader."""


def new_row(rng: random.Random) -> dict:
    return {
        "id": str(uuid.UUID(int=rng.getrandbits(128))),
        "name": rng.choice([None, "", "a", "A", "b", "ä", "😀"]),
        "size": rng.choice([None, 0, 1, 2]),
        "at": rng.choice([None, NOW]),
        "flag": rng.choice([None, True, False]),
        "kind": rng.choice("xy"),
    }


class Office:
    """Where writers get permits and say that they have committed."""

    def __init__(self) -> None:
        self.permits, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.writers: list[Writer] = []

    def let_loose(self) -> None:
        """Let some transactions run beside what the caller does next."""
        self.permits.release(AT_A_TIME)

    def wait(self) -> None:
        """Until one has committed that was not waited for."""
        assert self.done.acquire(timeout=60), "the writers stand still"
        assert not any(writer.error for writer in self.writers)


class Writer(threading.Thread):
    """Changes the rows of one cell that are its own, one transaction for each permit, until it is told to stop."""

    def __init__(self, engine: sa.Engine, mine: list[str], seed: int, office: Office) -> None:
        super().__init__(daemon=True)
        self._engine, self._mine, self._rng, self._office = engine, mine, random.Random(seed), office
        self.ending = threading.Event()
        self.writes = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self._office.permits.acquire()
                if self.ending.is_set():
                    return
                with self._engine.begin() as connection:
                    self._write(connection)
                self.writes += 1
                self._office.done.release()
        except BaseException as error:
            self.error = error
            self._office.done.release()
            raise

    def _write(self, connection: sa.Connection) -> None:
        choice = self._rng.random()
        if choice < 0.3 or not self._mine:
            fresh = new_row(self._rng)
            connection.execute(things.insert(), fresh)
            self._mine.append(fresh["id"])
            return
        victim = self._mine[self._rng.randrange(len(self._mine))]
        if choice < 0.6:
            connection.execute(sa.delete(things).where(things.c.id == victim))
            self._mine.remove(victim)
            return
        change = {name: value for name, value in new_row(self._rng).items() if name != "id"}
        connection.execute(sa.update(things).where(things.c.id == victim).values(**change))


@pytest.fixture(scope="module", params=MIXTURES)
def busy(request, databases):
    """Cells of one kind or of all, filled, with two writers each: (router, rows that stay, office)."""
    rng = random.Random(request.param)
    urls = [databases.url(kind) for kind in MIXTURES[request.param]]
    engines = [open_engine(url, durable=False) for url in urls]
    staying, office = [], Office()
    for engine in engines:
        things.metadata.create_all(engine)
        stay, move = ([new_row(rng) for _ in range(size)] for size in (STAYING, MOVING))
        with engine.begin() as connection:
            connection.execute(things.insert(), stay + move)
        staying += stay
        for half in (move[::2], move[1::2]):
            office.writers.append(Writer(engine, [each["id"] for each in half], len(office.writers), office))
    with CellRouter([Cell(f"c{n}", url) for n, url in enumerate(urls)], source=THINGS, deadline=60.0) as router:
        for writer in office.writers:
            writer.start()
        try:
            yield router, staying, office
        finally:
            for writer in office.writers:
                writer.ending.set()
            office.permits.release(len(office.writers))
            for writer in office.writers:
                writer.join(60)
            for engine in engines:
                engine.dispose()
        assert [writer.error for writer in office.writers] == [None] * len(office.writers)
        router.check()


@pytest.mark.parametrize("fetching", ["rows", "keys"])
def test_a_walk_among_writers_sees_every_row_that_stays_once(busy, fetching):
    """Page by page, with commits during the pages and at least one between any two."""
    router, staying, office = busy
    for turn in range(WALKS):
        sort = SORTS[turn % len(SORTS)]
        query = Query(sort=sort, limit=LIMITS[turn % len(LIMITS)], fetching=fetching)
        seen, cursor = [], None
        while True:
            office.let_loose()
            page = router.page(query, cursor=cursor)
            assert page.complete, page.cells
            seen += [record["id"] for record in page.records]
            cursor = page.next_cursor
            if cursor is None:
                break
            office.wait()
        expect_all(seen, staying, sort)


def test_a_stream_among_writers_sees_every_row_that_stays_once(busy):
    """Batches fetched ahead are older than those behind them; that must not matter."""
    router, staying, office = busy
    for sort in SORTS:
        stream = router.stream(Query(sort=sort))
        stream._merge._batch = 8
        seen = []
        for record in stream:
            seen.append(record["id"])
            if len(seen) % 8 == 0:
                office.let_loose()
                office.wait()
        assert all(report.state == "answered" for report in stream.cells.values())
        expect_all(seen, staying, sort)


def expect_all(seen: list[str], staying: list[dict], sort: tuple[Sort, ...]) -> None:
    kept = {row["id"] for row in staying}
    assert [each for each in seen if each in kept] == [row["id"] for row in oracle.ordered(staying, sort, "id")]


def test_counts_among_writers_are_never_short(busy):
    """What stays is always counted."""
    router, staying, office = busy
    for _ in range(5):
        office.let_loose()
        counts = router.count()
        assert counts.total >= len(staying)
