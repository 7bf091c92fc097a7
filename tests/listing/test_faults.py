"""Cells that fail on real connections: refused, black-holed, cut in mid-query, slow, restarted, lying."""

from __future__ import annotations

import random
import sqlite3
import threading
import time

import pytest
import sqlalchemy as sa

from cloudcore._cancellation import Cancellation
from cloudcore.database import open_engine
from cloudcore.errors import Cancelled, CellUnavailable
from cloudcore.listing import (
    BreakerPolicy,
    BreakerState,
    Cell,
    CellState,
    HedgePolicy,
    Query,
    RecordSource,
    Sort,
)
from tests import services
from tests.faults import Proxy
from tests.listing.conftest import NOW, THINGS, things, walk
from tests.waiting import until

SERVERS = pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
NEVER = BreakerPolicy(threshold=10_000)


def rows(cell: int, number: int = 12) -> list[dict]:
    rng = random.Random(cell)
    return [
        {"id": f"{rng.getrandbits(32):08x}-0000-4000-8000-{cell:012}", "name": None, "size": rng.randrange(9),
         "at": NOW, "flag": None, "kind": "x"}
        for _ in range(number)
    ]  # fmt: skip


def fill(url: str, content: list[dict]) -> None:
    engine = open_engine(url)
    things.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(things.insert(), content)
    engine.dispose()


@pytest.fixture
def faulty(database_url, dialect, databases):
    """Two healthy SQLite cells, and one on a server behind a proxy."""
    server = services.postgresql() if dialect == "postgresql" else services.mariadb()
    urls = [databases.url("sqlite"), databases.url("sqlite")]
    for number, url in enumerate([*urls, database_url]):
        fill(url, rows(number))
    with Proxy(server.port) as proxy:
        far = server.url(database_url.rsplit("/", 1)[1].split("?")[0], proxy.port)
        yield proxy, [Cell("near1", urls[0]), Cell("near2", urls[1]), Cell("far", far)]
        proxy.heal()


QUERY = Query(sort=[Sort("size", descending=True)], limit=5)


def everything():
    return sorted((row for cell in range(3) for row in rows(cell)), key=lambda row: (-row["size"], row["id"]))


def healthy():
    return [row["id"] for row in everything() if not row["id"].endswith("2")]


def blamed(page):
    return {name: report.state for name, report in page.cells.items() if report.state is not CellState.ANSWERED}


def break_it(proxy: Proxy, how: str) -> None:
    if how == "refused":
        proxy.refuse()
        proxy.cut()
    elif how == "black hole":
        proxy.hang()
    elif how == "cut in mid-query":
        proxy.cut_when(b"SELECT")
    elif how == "cut before the answer":
        proxy.cut_after(b"SELECT")
    else:
        proxy.delay(3)


@SERVERS
@pytest.mark.parametrize("how", ["refused", "black hole", "slow"])
@pytest.mark.parametrize("warm", [True, False], ids=["connected", "new"])
def test_a_faulty_cell_is_blamed_alone_and_its_rows_come_after_recovery(faulty, routers, how, warm):
    """Every healthy row is there, in order; the walk goes on from a cursor once the cell is back, and loses nothing."""
    proxy, cells = faulty
    patient = routers(cells, source=THINGS, deadline=30.0, breaker=NEVER)
    far = Cell("far", cells[2].database, deadline=30.0 if how == "refused" else 0.3)
    router = routers([*cells[:2], far], source=THINGS, deadline=30.0, breaker=NEVER)
    query = Query(sort=[Sort("size", descending=True)], limit=9)
    if warm:
        router.page(query)
    break_it(proxy, how)
    found, cursor = [], None
    while True:
        page = router.page(query, cursor=cursor)
        assert blamed(page) == {"far": CellState.DOWN if how == "refused" else CellState.SLOW}
        assert not page.complete
        found += [record.id for record in page.records]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == healthy()
    proxy.heal()
    proxy.cut()
    while page.resume_cursor is not None:
        page = patient.page(query, cursor=page.resume_cursor)
        assert page.complete
        found += [record.id for record in page.records]
    assert sorted(found) == sorted(row["id"] for row in everything())


@SERVERS
@pytest.mark.parametrize("how", ["cut in mid-query", "cut before the answer"])
def test_a_connection_cut_in_mid_query_is_tried_once_more(faulty, routers, how):
    """Reading is harmless to repeat: a connection kept from before may have died with a server that is back."""
    proxy, cells = faulty
    router = routers(cells, source=THINGS, breaker=NEVER)
    router.page(QUERY)
    break_it(proxy, how)
    page = router.page(QUERY)
    proxy.wait_cut()
    assert page.complete
    assert [record.id for record in page.records] == [row["id"] for row in everything()[:5]]


@SERVERS
def test_failing_in_the_middle_of_a_page_keeps_what_had_come(faulty, routers):
    """The second batch of a cell fails: its first rows stay on the page, and the cursor knows where it was."""
    proxy, cells = faulty
    patient = routers(cells, source=THINGS, deadline=30.0, breaker=NEVER)
    router = routers([*cells[:2], Cell("far", cells[2].database, deadline=5.0)], source=THINGS, breaker=NEVER)
    query = Query(sort=[Sort("size", descending=True)], limit=None)
    stream = router.stream(query)
    stream._merge._batch = 4
    first = [next(stream).id for _ in range(3)]
    proxy.hang()
    rest = [record.id for record in stream]
    assert stream.cells["far"].state is CellState.SLOW
    found = first + rest
    assert [each for each in found if not each.endswith("2")] == healthy()
    proxy.heal()
    proxy.cut()
    after = [record.id for record in patient.stream(query, cursor=stream.resume_cursor)]
    assert sorted(found + after) == sorted(row["id"] for row in everything())


@SERVERS
def test_require_all_raises_before_the_first_record(faulty, routers):
    """Whoever cannot use a part asks for all or nothing."""
    proxy, cells = faulty
    proxy.refuse()
    router = routers(cells, source=THINGS, breaker=NEVER)
    query = Query(sort=["size"], limit=5, require="all")
    with pytest.raises(CellUnavailable) as caught:
        router.page(query)
    assert set(caught.value.cells) == {"far"}
    with pytest.raises(CellUnavailable):
        next(router.stream(query))


@pytest.mark.xdist_group("listing-restart")
@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_a_restarted_server_is_asked_again(kind, routers, databases):
    """kill -9, start: connections kept from before are dead, and nobody notices."""
    server = getattr(services, kind)(variant="listing-restart")
    url = server.create_database()
    fill(url, rows(2))
    near = databases.url("sqlite")
    fill(near, rows(0))
    router = routers([Cell("near", near), Cell("far", url)], source=THINGS, breaker=NEVER)
    assert router.page(QUERY).complete
    server.kill()
    assert blamed(router.page(QUERY)) == {"far": CellState.DOWN}
    server.start()
    assert router.page(QUERY).complete
    server.kill()
    server.start()
    assert router.page(QUERY).complete


class Clock:
    """Monotonic time that a test can move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@SERVERS
def test_a_breaker_leaves_a_dead_cell_alone_and_probes_it(faulty, routers):
    """Three failures open it; nobody connects until its pause has passed; one success closes it."""
    proxy, cells = faulty
    clock = Clock()
    router = routers(cells, source=THINGS, breaker=BreakerPolicy(threshold=3, pause=30.0), clock=clock)
    proxy.refuse()
    for _ in range(3):
        router.page(QUERY)
    assert router.breaker("far").state is BreakerState.OPEN
    connections = proxy.count
    page = router.page(QUERY)
    assert blamed(page) == {"far": CellState.DOWN}
    assert "breaker open after 3 failures" in page.cells["far"].error
    assert page.cells["far"].statements == 0
    assert proxy.count == connections
    clock.ahead += 31
    router.page(QUERY)
    assert proxy.count > connections, "one probe went out"
    assert router.breaker("far").state is BreakerState.OPEN
    proxy.heal()
    clock.ahead += 61
    assert router.page(QUERY).complete
    assert router.breaker("far").state is BreakerState.CLOSED


@SERVERS
def test_a_replica_answers_while_the_first_database_is_silent(faulty, database_url, routers):
    """The second request goes out when the first is late; the page is complete though nothing came of the first."""
    proxy, (near, _, far) = faulty
    cell = Cell("far", far.database, replicas=[database_url])
    router = routers([near, cell], source=THINGS, deadline=60.0, hedging=HedgePolicy(initial=0.01, burst=1.0))
    proxy.hang()
    page = router.page(QUERY)
    assert page.complete
    assert any(record.cell == "far" for record in page.records)


@SERVERS
def test_a_replica_takes_over_when_the_first_database_refuses(faulty, database_url, routers):
    """At once, without waiting and without using up the budget."""
    proxy, (near, _, far) = faulty
    proxy.refuse()
    cell = Cell("far", far.database, replicas=[database_url])
    router = routers([near, cell], source=THINGS, hedging=HedgePolicy(initial=60.0, burst=0.0))
    assert router.page(QUERY).complete


def test_a_cell_with_a_corrupt_index_is_blamed_for_its_order(databases, routers):
    """The schema says the index runs upwards, its pages run downwards: SQLite trusts it and sends rows out of order."""
    urls = [databases.url("sqlite"), databases.url("sqlite")]
    for number, url in enumerate(urls):
        fill(url, [{**row, "size": n} for n, row in enumerate(rows(number, 30))])
    connection = sqlite3.connect(urls[1].removeprefix("sqlite:///"))
    connection.execute("CREATE INDEX by_size ON things (size DESC, id)")
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute(
        "UPDATE sqlite_master SET sql = 'CREATE INDEX by_size ON things (size, id)' WHERE name = 'by_size'"
    )
    connection.commit()
    connection.close()
    router = routers([Cell("good", urls[0]), Cell("bad", urls[1])], source=THINGS, breaker=NEVER)
    page = router.page(Query(sort=["size"], where={"size": {"ge": 0}}, limit=20))
    assert blamed(page) == {"bad": CellState.DOWN}
    assert "out of order" in page.cells["bad"].error
    good = [record for record in page.records if record.cell == "good"]
    assert [record.size for record in good] == list(range(len(good)))
    assert len(page.records) == 20


def test_a_cell_that_sends_a_record_twice_is_blamed(databases, routers):
    """Its table has no key, and one record is in it twice."""
    loose = sa.Table("loose", sa.MetaData(), sa.Column("id", sa.String(36)), sa.Column("n", sa.Integer))
    urls = [databases.url("sqlite"), databases.url("sqlite")]
    for url, content in zip(urls, (["a", "b"], ["c", "d", "d", "e"]), strict=True):
        engine = open_engine(url)
        loose.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(loose.insert(), [{"id": each, "n": 1} for each in content])
        engine.dispose()
    cells = [Cell("good", urls[0]), Cell("bad", urls[1])]
    page = routers(cells, source=RecordSource(loose, key="id"), breaker=NEVER).page(Query(sort=["n"]))
    assert [record.id for record in page.records] == ["a", "b", "c", "d"]
    assert "twice" in page.cells["bad"].error


def test_a_slow_consumer_is_not_the_cells_fault(databases, routers):
    """The deadline measures cells: what the caller does between records is his own time."""
    url = databases.url("sqlite")
    fill(url, rows(0, 40))
    paused = 0.0
    router = routers([Cell("one", url)], source=THINGS, deadline=30.0, clock=lambda: time.monotonic() + paused)
    stream = router.stream(Query(sort=["size"]))
    stream._merge._batch = 10
    under_way, found = stream._driver._requests, []
    for record in stream:
        found.append(record.id)
        if len(found) in {5, 25}:
            until(lambda: not under_way._requests or under_way._answers._completed)  # what was asked for ahead has come
            paused += 60.0
    assert len(found) == 40
    assert stream.cells["one"].state is CellState.ANSWERED


def test_a_stream_can_be_cancelled_from_another_thread(databases, routers):
    """And says how far it got."""
    url = databases.url("sqlite")
    fill(url, rows(0, 100))
    stream = routers([Cell("one", url)], source=THINGS).stream(Query(sort=["size"]))
    stream._merge._batch = 10
    next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled):
        for _ in stream:
            pass
    assert list(stream) == []


def test_a_missing_file_is_not_created_by_reading(tmp_path, routers):
    """A SQLite cell whose file is gone is down; asking must not make an empty one."""
    path = tmp_path / "gone.db"
    page = routers([Cell("gone", f"sqlite:///{path}")], source=THINGS).page(QUERY)
    assert blamed(page) == {"gone": CellState.DOWN}
    assert not path.exists()


def test_cells_come_and_go_while_it_runs(databases, routers):
    """Added, removed, disabled."""
    urls = [databases.url("sqlite") for _ in range(3)]
    for number, url in enumerate(urls):
        fill(url, rows(number))
    router = routers([Cell("a", urls[0])], source=THINGS)
    router.add_cell(Cell("b", urls[1]))
    router.add_cell(Cell("c", urls[2], enabled=False))
    page = router.page(Query(sort=["size"]))
    assert len(page.records) == 24
    assert page.cells["c"].state is CellState.SKIPPED
    router.remove_cell("a")
    assert {record.cell for record in router.page(Query(sort=["size"])).records} == {"b"}
    assert len(walk(router, Query(sort=["size"], limit=5))) == 12


@SERVERS
@pytest.mark.parametrize("what", ["page", "count", "stream", "page of the silent cell alone"])
def test_a_cancelled_call_comes_back_at_once_and_blames_nobody(faulty, routers, what):
    """The cell is silent and its deadline a minute away: who no longer wants the page gets his thread back."""
    proxy, cells = faulty
    router = routers(cells if "alone" not in what else cells[2:], source=THINGS, deadline=60.0)
    router.page(QUERY)
    proxy.hang()
    cancellation = Cancellation()
    calls = {"count": lambda: router.count(QUERY), "stream": lambda: list(router.stream(QUERY))}
    outcome: list[BaseException] = []

    def call() -> None:
        try:
            cancellation.run(calls.get(what, lambda: router.page(QUERY)))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    cancellation.cancel()
    thread.join(20)
    assert not thread.is_alive()
    assert [type(error) for error in outcome] == [Cancelled]
    proxy.heal()
    proxy.cut()
    assert router.breaker("far").failures == 0
    assert router.page(QUERY).complete


@SERVERS
def test_a_call_that_was_cancelled_before_it_began_asks_nobody(faulty, routers):
    _, cells = faulty
    router = routers(cells, source=THINGS)
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        cancellation.run(router.page, QUERY)
    assert router.page(QUERY).complete
