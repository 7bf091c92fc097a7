"""A router used before a fork (gunicorn's --preload, multiprocessing, Celery) is used on by the children."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import pytest
import sqlalchemy as sa

from cloudcore.listing import Cell, Query
from cloudcore.listing.cells import connections
from cloudcore.listing.cells.workers import Workers
from tests.test_forking import forked

KINDS = pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
SESSION = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT connection_id()"}
TENANTS = 4


@pytest.fixture
def cloud(clouds, kind):
    made = clouds(kind, kind)
    for tenant in range(TENANTS):
        for cell in ("cell1", "cell2"):
            made.store.create_many(cell, [{"project_id": f"t{tenant}"} for _ in range(40)])
    for _ in range(3):
        assert made.router.page(Query(tenant="t0", limit=30)).complete
    return made


def foreign(router, tenant: str, seconds: float) -> str:
    """What was wrong with pages of a tenant, asked for again and again."""
    wrong, end = set(), time.monotonic() + seconds
    while time.monotonic() < end:
        page = router.page(Query(tenant=tenant, limit=30))
        if not page.complete:
            wrong |= {str(report.error) for report in page.cells.values() if report.error}
        if {record.project_id for record in page.records} != {tenant} or len(page.records) != 30:
            wrong.add("rows of another tenant")
    return ", ".join(sorted(wrong))


@KINDS
def test_no_page_of_a_child_or_of_the_parent_holds_another_tenants_rows(cloud):
    children = []
    for tenant in range(1, TENANTS):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.write(write, (foreign(cloud.router, f"t{tenant}", 1.0) or "fine").encode())
            os._exit(0)
        os.close(write)
        children.append((child, read))
    assert foreign(cloud.router, "t0", 1.0) == ""
    for child, read in children:
        os.waitpid(child, 0)
        with os.fdopen(read) as stream:
            assert stream.read() == "fine"
    assert foreign(cloud.router, "t0", 0.2) == "", "the children's end has ended the parent's connections"


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("owned", [True, False], ids=["url", "engine"])
def test_a_child_has_sessions_of_its_own(databases, kind, owned, routers):
    """Also where the engine is the caller's."""
    url = databases.url(kind)
    router = routers([Cell("c", url if owned else sa.create_engine(url))])
    pool = router._backends["c"].pool

    def session() -> str:
        pooled = pool.acquire(time.monotonic() + 30)
        try:
            return str(pooled.run(SESSION[kind], (), time.monotonic() + 30)[0][0])
        finally:
            pool.release(pooled)

    mine = session()
    assert forked(session) not in {mine, "hung"}
    assert session() == mine


@KINDS
def test_a_child_waits_for_no_lock_that_a_thread_of_its_parent_holds(cloud):
    """It has none of these threads, so nobody would ever let go."""
    router = cloud.router
    locks = [router._lock, router._breakers._lock, router._workers._lock, connections._READING.lock]
    for backend in router._backends.values():
        locks += [backend._lock, backend.pool._lock]
    with contextlib.ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        assert forked(lambda: foreign(router, "t1", 0.1) or "fine") == "fine"
    assert foreign(router, "t0", 0.1) == ""


def test_fork_waits_for_the_threads_that_ask_cells(monkeypatch):
    """In SQLite's library they have locks of the whole process, which nobody would give back in the child."""
    monkeypatch.setattr("cloudcore.listing.cells.workers._LONGEST_REST", 30.0)
    workers, begun, ended = Workers(2), threading.Event(), []

    def job() -> None:
        begun.set()
        time.sleep(0.1)  # whoever does not wait has forked by now
        ended.append("ended")

    workers.run(job)
    assert begun.wait(20)
    assert forked(lambda: ended) == "['ended']"
    workers.close()


def test_fork_does_not_wait_for_a_thread_that_is_long_about_it(monkeypatch):
    monkeypatch.setattr("cloudcore.listing.cells.workers._LONGEST_REST", 0.05)
    workers, begun, go_on = Workers(2), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        go_on.wait(60)

    workers.run(job)
    assert begun.wait(20)
    assert forked(lambda: go_on.is_set()) == "False"
    go_on.set()
    workers.close()


def test_fork_does_not_wait_for_threads_that_have_ended(monkeypatch):
    """Nor a job that forks for itself: either would cost each fork the whole patience."""
    monkeypatch.setattr("cloudcore.listing.cells.workers._LONGEST_REST", 600.0)
    workers, answers = Workers(2), []
    workers.run(lambda: answers.append(forked(lambda: "inside")))
    workers.close(60.0)
    assert answers == ["inside"]
    assert not workers._threads
    assert forked(lambda: "outside") == "outside"
