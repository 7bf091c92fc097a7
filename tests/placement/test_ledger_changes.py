"""The change feed: nothing that is committed is ever missed, whatever the order of commits."""

from __future__ import annotations

import random
import threading

import pytest

from cloudcore.errors import InvalidArgument, WatermarkLost
from cloudcore.placement.storage.changes import changes_since, prune_changes, record_changes, record_changes_raw


@pytest.fixture
def feed(ledger_database):
    return ledger_database


def record(database, *providers: int) -> None:
    with database.write() as connection:
        record_changes(connection, providers)


def since(database, watermark):
    with database.read() as connection:
        return changes_since(connection, watermark)


def test_changes_are_returned_once(feed):
    """A reader sees each change once, then nothing until something changes."""
    record(feed, 1)
    ids, watermark = since(feed, None)
    assert ids == frozenset()
    record(feed, 3, 2, 3)
    record(feed, 4)
    ids, watermark = since(feed, watermark)
    assert ids == {2, 3, 4}
    ids, watermark = since(feed, watermark)
    assert ids == frozenset()
    record(feed, 2)
    assert since(feed, watermark)[0] == {2}


@pytest.mark.parametrize("dialect", ["mariadb"], indirect=True)
@pytest.mark.parametrize("raw", [False, True])
def test_many_changes_are_few_statements(feed, raw):
    """On MariaDB, whose driver would send each row of an ``executemany`` by itself."""
    _, watermark = since(feed, None)
    providers = range(1, 1202)
    with feed.write() as connection:
        before = inserts(connection)
        if raw:
            record_changes_raw(connection.connection.cursor(), "mysql", providers)
        else:
            record_changes(connection, providers)
        assert inserts(connection) - before == 1 + 3
    assert since(feed, watermark)[0] == set(providers)


def inserts(connection) -> int:
    """How many the session has sent."""
    return int(connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Com_insert'").one()[1])


def test_rolled_back_changes_are_not_seen(feed):
    """A change belongs to its transaction."""
    _, watermark = since(feed, None)

    def work(connection):
        record_changes(connection, [7])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        feed.run(work)
    assert since(feed, watermark)[0] == frozenset()


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_late_commit_of_the_earlier_writer_is_seen(feed):
    """A draws its place first, B commits first, the reader moves on, then A commits: A must still be seen."""
    _, watermark = since(feed, None)
    slow, fast = feed.engine.connect(), feed.engine.connect()
    with slow, fast:
        record_changes(slow, [1])
        record_changes(fast, [2])
        fast.commit()
        ids, watermark = since(feed, watermark)
        assert ids == {2}
        assert since(feed, watermark)[0] == frozenset()
        slow.commit()
    assert since(feed, watermark)[0] == {1}


def test_racing_writers_lose_nothing(feed):
    """Four writers commit in random order while a reader follows: the union of the answers is all that was written."""
    seen: set[int] = set()
    done = threading.Event()
    _, start = since(feed, None)

    def follow() -> None:
        watermark = start
        while True:
            last = done.is_set()
            ids, watermark = since(feed, watermark)
            seen.update(ids)
            if last:
                return

    def write(worker: int) -> None:
        for number in range(60):
            feed.run(lambda connection, n=worker * 1000 + number: record_changes(connection, [n]))

    reader = threading.Thread(target=follow)
    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen == {worker * 1000 + number for worker in range(4) for number in range(60)}


def test_pruned_watermark_is_refused(feed):
    """Whoever stayed away longer than the feed reaches back must load everything again."""
    record(feed, 1)
    _, old = since(feed, None)
    numbers = list(range(2, 60))
    random.Random(5).shuffle(numbers)
    for number in numbers:
        record(feed, number)
    with feed.write() as connection:
        assert prune_changes(connection, keep=5) > 0
    with pytest.raises(WatermarkLost):
        since(feed, old)
    _, fresh = since(feed, None)
    record(feed, 99)
    assert since(feed, fresh)[0] == {99}
    with feed.write() as connection:
        prune_changes(connection, keep=5)
    assert since(feed, fresh)[0] == {99}


def test_nonsense_is_no_watermark(feed):
    for text in ("", "nonsense", "[1]", '{"a": 1}'):
        with pytest.raises(InvalidArgument):
            since(feed, text)


def test_watermark_of_a_database_ahead_is_refused(feed):
    """A database restored from an older copy cannot answer; the reader must not believe that nothing happened."""
    record(feed, 1)
    ahead = "99999999999:99999999999:" if feed.dialect == "postgresql" else '{"0":999999,"1":999999}'
    with pytest.raises(WatermarkLost):
        since(feed, ahead)
