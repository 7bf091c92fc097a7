"""SQLite engines of the caller's, used before cloudcore gets them, or with transactions begun in another way."""

from __future__ import annotations

import sqlite3
import sys
import threading

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.database import Database, create_tables, operations
from cloudcore.errors import CloudcoreError, DatabaseError, InUse, InvalidArgument

ADD = "INSERT INTO notes VALUES ('mine')"


class AlwaysOpen(sqlite3.Connection):
    """What ``autocommit=False`` makes of Python 3.12's sqlite3, for Pythons before it."""

    autocommit = False

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **(named | {"isolation_level": None}))
        self.execute("BEGIN")

    def commit(self):
        self.execute("COMMIT")
        self.execute("BEGIN")

    def rollback(self):
        self.execute("ROLLBACK")
        self.execute("BEGIN")


class NeverOpen(sqlite3.Connection):
    """The same of ``autocommit=True``: neither COMMIT nor ROLLBACK of the driver's does anything."""

    autocommit = True

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **(named | {"isolation_level": None}))

    def commit(self):
        pass

    def rollback(self):
        pass


def driver_says(autocommit: bool) -> dict:
    if sys.version_info >= (3, 12):
        return {"autocommit": autocommit}
    return {"factory": NeverOpen if autocommit else AlwaysOpen}


def by_listening(url: str, statement: str = "BEGIN", **options) -> sa.Engine:
    """As SQLAlchemy's documentation has it for savepoints."""
    engine = sa.create_engine(url, **options)

    @event.listens_for(engine, "connect")
    def by_hand(connection, _):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql(statement)

    return engine


ENGINES = {
    "plain": sa.create_engine,
    "listening": by_listening,
    "listening, a writer at once": lambda url, **options: by_listening(url, "BEGIN IMMEDIATE", **options),
    "autocommit=False": lambda url, **options: sa.create_engine(url, connect_args=driver_says(False), **options),
}


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'application.db'}"


@pytest.fixture(params=ENGINES)
def engine(request, url):
    made = ENGINES[request.param](url)
    with made.begin() as connection:  # what the application does before it has cloudcore
        connection.exec_driver_sql("CREATE TABLE notes (text varchar(10))")
    yield made
    made.dispose()


def notes(url: str) -> int:
    other = sa.create_engine(url)
    with other.connect() as connection:
        found = connection.exec_driver_sql("SELECT count(*) FROM notes").scalar()
    other.dispose()
    return found


def parent_stays_over_its_child(engine: sa.Engine) -> None:
    create_schema(engine)
    with PlacementTree.open(engine) as stale, PlacementTree.open(engine) as other:
        stale.add("host", inventory={"VCPU": 8})
        other.refresh()
        other.add("numa", parent="host", inventory={"MEMORY_MB": 100})
        with pytest.raises(InUse):
            stale.remove("host")
    with PlacementTree.open(engine) as again:
        assert {provider.name for provider in again} == {"host", "numa"}
        again.check()
    AllocationLedger(engine).check()


def test_foreign_keys_hold_on_connections_opened_before(engine):
    parent_stays_over_its_child(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.parametrize("pool", [QueuePool, NullPool, StaticPool, SingletonThreadPool])
def test_foreign_keys_hold_in_every_pool(url, pool):
    engine = sa.create_engine(url, poolclass=pool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text varchar(10))")
    parent_stays_over_its_child(engine)
    engine.dispose()


def test_foreign_keys_come_on_with_the_next_transaction_where_one_is_open(url):
    """Within a transaction SQLite passes over the switch: it is not taken for made."""
    engine = sa.create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text varchar(10))")
        connection.exec_driver_sql(ADD)  # from here on it is open
        database, failed = Database(engine), []

        def meanwhile():
            try:
                database.ping()
            except CloudcoreError as error:
                failed.append(error)

        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join()
        assert [type(error) for error in failed] == [DatabaseError]
    parent_stays_over_its_child(engine)
    engine.dispose()


def test_what_is_written_is_committed_and_what_fails_is_not(engine, url):
    database = Database(engine)
    with database.write() as connection:
        connection.exec_driver_sql(ADD)
    assert notes(url) == 1
    with pytest.raises(DatabaseError):
        database.run(lambda connection: [connection.exec_driver_sql(text) for text in (ADD, "no SQL")])
    assert notes(url) == 1
    create_tables(engine, [operations])
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM notes").scalar() == 1


def test_two_writers_queue(engine):
    """A transaction that began as a reader's would fail midway."""
    database, order = Database(engine), []
    inside, go_on = threading.Event(), threading.Event()

    def second():
        inside.wait(20)
        go_on.set()
        with database.write() as connection:
            order.append(connection.exec_driver_sql("SELECT count(*) FROM notes").scalar())
            connection.exec_driver_sql(ADD)

    thread = threading.Thread(target=second)
    thread.start()
    with database.write() as connection:
        inside.set()
        assert go_on.wait(20)
        connection.exec_driver_sql(ADD)
    thread.join()
    assert order == [1]


@pytest.mark.parametrize("way", ["read", "write"])
def test_driver_that_commits_each_statement_is_refused(url, way):
    engine = sa.create_engine(url, connect_args=driver_says(True))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text varchar(10))")
    database = Database(engine)
    with pytest.raises(InvalidArgument, match="autocommit"), getattr(database, way)() as connection:
        connection.exec_driver_sql(ADD)
    engine.dispose()
    assert notes(url) == 0


@pytest.mark.parametrize("pool", [StaticPool, SingletonThreadPool])
def test_transaction_of_another_on_a_shared_connection_is_not_ended(url, pool):
    engine = sa.create_engine(url, poolclass=pool, connect_args=driver_says(False))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (text varchar(10))")
    with engine.begin() as connection:
        connection.exec_driver_sql(ADD)
        with pytest.raises(InvalidArgument, match="autocommit"), Database(engine).write():
            pass
    engine.dispose()
    plain = by_listening(url, poolclass=SingletonThreadPool)
    with plain.begin() as connection:
        connection.exec_driver_sql(ADD)
        with pytest.raises(DatabaseError, match="within a transaction"), Database(plain).write():
            pass
    plain.dispose()


@pytest.mark.parametrize("autocommit", [True, False])
def test_url_takes_no_autocommit(url, autocommit):
    with pytest.raises(InvalidArgument, match="autocommit"):
        Database(url, connect_args={"autocommit": autocommit})
