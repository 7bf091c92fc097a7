"""Closing and leaving in the midst of calls: nobody hangs, and the servers are left without sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloudcore.database import open_engine
from cloudcore.errors import Closed, CloudcoreError
from cloudcore.listing import Cell, Query
from tests.listing.conftest import THINGS, things
from tests.listing.test_faults import rows

KINDS = pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
ROOT = Path(__file__).resolve().parents[2]
QUERY = Query(sort=["size"], limit=10)


@pytest.fixture
def urls(kind, databases):
    made = [databases.url(kind) for _ in range(3)]
    for number, url in enumerate(made):
        engine = open_engine(url)
        things.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(things.insert(), rows(number, 20))
        engine.dispose()
    return made


def left_open(kind, urls) -> int:
    """Connections to these databases: sessions of a server, of any process; of SQLite, descriptors of this one."""
    if kind == "sqlite":
        open_files = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        paths = [os.readlink(path) for path in open_files if os.path.lexists(path)]
        return sum(any(path.startswith(url.removeprefix("sqlite:///")) for url in urls) for path in paths)
    names = ", ".join(f"'{sa.make_url(url).database}'" for url in urls)
    text = {
        "postgresql": f"SELECT count(*) FROM pg_stat_activity WHERE datname IN ({names}) AND pid <> pg_backend_pid()",
        "mariadb": "SELECT count(*) FROM information_schema.processlist "
        f"WHERE db IN ({names}) AND id <> connection_id()",
    }[kind]
    engine = open_engine(urls[0])
    with engine.connect() as connection:
        found: int = connection.scalar(sa.text(text))
    engine.dispose()
    return found


def none_left(kind, urls) -> bool:
    """A server may take a while to notice."""
    end = time.monotonic() + 60
    while left_open(kind, urls) and time.monotonic() < end:
        time.sleep(0.01)
    return left_open(kind, urls) == 0


@KINDS
def test_closing_a_router_ends_the_calls_under_way(kind, urls, routers):
    """With pages, or with the word that it is closed; no thread and no connection stays."""
    before = threading.active_count()
    router = routers([Cell(f"c{number}", url) for number, url in enumerate(urls)], source=THINGS)
    heard: list[CloudcoreError] = []
    under_way = threading.Semaphore(0)

    def call() -> None:
        try:
            while True:
                assert router.page(QUERY).complete
                under_way.release()
        except CloudcoreError as error:
            heard.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert under_way.acquire(timeout=60)
    assert left_open(kind, urls) > 0
    router.close()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert [type(error) for error in heard] == [Closed] * 4
    assert none_left(kind, urls)
    end = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_closed_router_opens_no_file_again(kind, urls, routers):
    """Not even where the caller's own thread would read it."""
    router = routers([Cell("c0", urls[0])], source=THINGS)
    for _ in range(2):
        assert router.page(QUERY).complete
    assert left_open(kind, urls[:1]) > 0
    router.close()
    with pytest.raises(Closed, match="router is closed"):
        router.page(QUERY)
    with pytest.raises(Closed, match="router is closed"):
        next(router.stream(QUERY))
    assert left_open(kind, urls[:1]) == 0


LEAVING = """
import sys, threading
from cloudcore.listing import Cell, CellRouter, Query
from tests.listing.conftest import THINGS

router = CellRouter([Cell(f"c{n}", url) for n, url in enumerate(sys.argv[1:])], source=THINGS, deadline=60.0)
under_way = threading.Semaphore(0)

def call():
    while True:
        assert router.page(Query(sort=["size"], limit=10)).complete
        under_way.release()

for _ in range(4):
    threading.Thread(target=call, daemon=True).start()
for _ in range(20):
    under_way.acquire()
"""


@KINDS
def test_the_interpreter_ends_in_the_midst_of_calls(kind, urls):
    """Without a word, whatever its threads are about; and nothing is left on a server. (Files end with the process.)"""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, *urls], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if kind != "sqlite":
        assert none_left(kind, urls)
