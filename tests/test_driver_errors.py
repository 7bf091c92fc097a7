"""Each error that a server can give, provoked on the real one through every driver, gets its right name by its code.

Whether a message is in English plays no part: PostgreSQL speaks another language in one of these tests.
"""

from __future__ import annotations

import logging
import re
import threading
import time

import pytest
import sqlalchemy as sa

from cloudcore.database import Database, RetryPolicy, driver_errors, open_engine
from cloudcore.database.driver_errors import translate
from cloudcore.errors import (
    ConstraintViolated,
    DatabaseBusy,
    DatabaseError,
    DatabaseUnavailable,
    InvalidArgument,
    OutcomeUnknown,
    SchemaMismatch,
    Transient,
)
from tests import services
from tests.faults import Proxy
from tests.services._host import REPOSITORY

ONCE = RetryPolicy(attempts=1)
DRIVERS = {
    "psycopg": "postgresql+psycopg",
    "pymysql": "mysql+pymysql",
    "mysqldb": "mysql+mysqldb",
    "mariadbconnector": "mariadb+mariadbconnector",
}
MARIADB = [name for name in DRIVERS if name != "psycopg"]
BOTH = pytest.mark.parametrize("driver", DRIVERS, indirect=True)
POSTGRESQL = pytest.mark.parametrize("driver", ["psycopg"], indirect=True)
ON_MARIADB = pytest.mark.parametrize("driver", MARIADB, indirect=True)


def through(driver: str, url: str) -> sa.URL:
    """The URL for another driver."""
    parsed = sa.make_url(url).set(drivername=DRIVERS[driver])
    return parsed.difference_update_query(["charset"])


@pytest.fixture
def driver(request) -> str:
    if request.param in {"mysqldb", "mariadbconnector"}:
        services.require(request.param)
    return request.param


@pytest.fixture
def server(driver):
    return services.postgresql() if driver == "psycopg" else services.mariadb()


@pytest.fixture
def url(driver, server):
    made = server.create_database()
    yield through(driver, made)
    server.drop_database(made)


@pytest.fixture
def there(url):
    with Database(url, retry=ONCE) as database:
        database.run(
            lambda connection: connection.exec_driver_sql(
                "CREATE TABLE here (id integer PRIMARY KEY, number integer NOT NULL, "
                "CONSTRAINT ck_here_small CHECK (number < 100))"
            )
        )
        database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (1, 1)"))
        yield database


def raised(database, *statements: str, pause: float = 0.0):
    """What a transaction of these statements ends in."""

    def work(connection):
        for statement in statements:
            connection.exec_driver_sql(statement).close()
            time.sleep(pause)

    try:
        database.run(work)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def works(database) -> bool:
    with database.read() as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM here").scalar_one() == 1


SLOW_MARIADB = "SELECT count(*) FROM seq_1_to_10000000000 WHERE mod(seq, 7) = 8"
FATES = [
    # ---- what is missing
    ("psycopg", ["SELECT * FROM nowhere"], SchemaMismatch),
    ("psycopg", ["SELECT colour FROM here"], SchemaMismatch),
    ("psycopg", ["SELECT * FROM elsewhere.here"], SchemaMismatch),
    ("psycopg", ["CREATE TABLE elsewhere.there (a integer)"], SchemaMismatch),
    ("mariadb", ["SELECT * FROM nowhere"], SchemaMismatch),
    ("mariadb", ["SELECT colour FROM here"], SchemaMismatch),
    ("mariadb", ["INSERT INTO here (id, colour) VALUES (2, 2)"], SchemaMismatch),
    # ---- what a rule refuses
    ("psycopg", ["INSERT INTO here VALUES (1, 1)"], ConstraintViolated),
    ("psycopg", ["INSERT INTO here VALUES (2, NULL)"], ConstraintViolated),
    ("psycopg", ["INSERT INTO here VALUES (2, 1000)"], ConstraintViolated),
    ("mariadb", ["INSERT INTO here VALUES (1, 1)"], ConstraintViolated),
    ("mariadb", ["INSERT INTO here VALUES (2, NULL)"], ConstraintViolated),
    ("mariadb", ["INSERT INTO here VALUES (2, 1000)"], ConstraintViolated),
    # ---- what took too long
    ("psycopg", ["SET LOCAL statement_timeout = 20", "SELECT pg_sleep(5)"], DatabaseBusy),  # 57014
    ("mariadb", [f"SET STATEMENT max_statement_time = 0.05 FOR {SLOW_MARIADB}"], DatabaseBusy),  # 1969
    # ---- whose session is over
    ("psycopg", ["SELECT pg_terminate_backend(pg_backend_pid())"], DatabaseUnavailable),  # 57P01
    # ---- where nothing may be written
    ("psycopg", ["SET TRANSACTION READ ONLY", "INSERT INTO here VALUES (2, 2)"], DatabaseUnavailable),  # 25006
    # ---- statements that are not where they were prepared
    ("psycopg", ["EXECUTE forgotten"], DatabaseError),  # 26000
    ("psycopg", ["PREPARE twice AS SELECT 1", "PREPARE twice AS SELECT 2"], DatabaseError),  # 42P05
    ("mariadb", ["EXECUTE forgotten"], DatabaseError),  # 1243
    # ---- and the caller's own mistakes
    ("psycopg", ["SELEKT 1"], DatabaseError),
    ("mariadb", ["SELEKT 1"], DatabaseError),
    ("psycopg", ["SELECT 1/0"], DatabaseError),
]
CASES = [
    pytest.param(driver, statements, expected, id=f"{driver}-{number}")
    for number, (kind, statements, expected) in enumerate(FATES)
    for driver in (["psycopg"] if kind == "psycopg" else MARIADB)
]


@pytest.mark.parametrize(("driver", "statements", "expected"), CASES, indirect=["driver"])
def test_statement_has_its_fate(there, statements, expected):
    """And the next transaction works: nothing broken went back into the pool."""
    error = raised(there, *statements)
    assert type(error) is expected
    assert isinstance(error, Transient) == (expected in {DatabaseBusy, DatabaseUnavailable})
    assert works(there)


@POSTGRESQL
def test_lost_prepared_statements_name_the_option(there):
    assert 'pooler="transaction"' in str(raised(there, "EXECUTE forgotten"))


@POSTGRESQL
def test_missing_table_is_known_in_any_language(there, monkeypatch):
    """What the text says decides nothing, except to people."""
    monkeypatch.setattr(driver_errors, "_text", lambda original: "die Relation gibt es nicht")
    error = raised(there, "SELECT * FROM nowhere")
    assert type(error) is SchemaMismatch
    assert "gibt es nicht" in str(error)


# ---- sessions that end


@POSTGRESQL
@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "idle_session_timeout"])
def test_session_that_idled_too_long(there, setting):
    """25P03 or 57P05: nothing was committed, so the transaction is repeated."""
    if setting == "idle_session_timeout":
        with there.engine.connect() as connection:
            connection.exec_driver_sql(f"SET {setting} = 50")
            connection.commit()
        time.sleep(0.4)
        error = raised(there, "SELECT 1")
    else:
        error = raised(there, f"SET {setting} = 50", "SELECT 1", "SELECT 1", pause=0.4)
    assert type(error) is DatabaseUnavailable
    assert works(there)


@POSTGRESQL
def test_idling_into_commit_is_no_unknown_outcome(there):
    def idle(connection):
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 50")
        connection.exec_driver_sql("INSERT INTO here VALUES (2, 2)")
        time.sleep(0.4)

    with pytest.raises(DatabaseUnavailable):
        there.run(idle)
    assert works(there)


@BOTH
def test_name_that_does_not_resolve(driver):
    """2003 with one driver, 2005 with two, no code with libpq: the name server may know it in a moment."""
    url = sa.URL.create(DRIVERS[driver], "somebody", host="database.invalid", database="somewhere")
    with Database(url, retry=ONCE) as nowhere, pytest.raises(DatabaseUnavailable), nowhere.read():
        pass


def test_what_a_client_says_of_its_connection_is_what_the_page_says():
    """2007 and 2009 are another protocol and bad arguments; 2010 and 2011 say how a client is connected."""
    page = (REPOSITORY / "docs" / "how-to" / "deployment.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| `DatabaseUnavailable` |")]
    told: set[int] = set()
    for first, last in re.findall(r"\b(2\d{3})(?: to (2\d{3}))?\b", row):
        told.update(range(int(first), int(last or first) + 1))
    engine = open_engine("mysql+pymysql://nobody@localhost/nowhere")
    errors = {number: sa.exc.OperationalError("", {}, Exception(number, "away")) for number in range(2000, 2100)}
    gone = {number for number, error in errors.items() if type(translate(error, engine)) is DatabaseUnavailable}
    assert gone == told
    assert gone >= {2005, 2006}


@ON_MARIADB
@pytest.mark.parametrize("what", ["QUERY", "CONNECTION"])
def test_killed_by_an_administrator(there, server, what):
    """1317 while a statement runs: busy. The whole session (1927, 2006, 2013): gone. Both in time."""
    started = threading.Event()
    caught = []

    def run():
        def work(connection):
            number = connection.exec_driver_sql("SELECT connection_id()").scalar_one()
            threading.Timer(0.3, lambda: server.execute(f"KILL {what} {number}")).start()
            started.set()
            connection.exec_driver_sql(SLOW_MARIADB)

        try:
            there.run(work)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert [type(error) for error in caught] == [DatabaseBusy if what == "QUERY" else DatabaseUnavailable]
    assert works(there)


@BOTH
@pytest.mark.parametrize("moment", ["statement", "commit"])
def test_lost_connection_writes_no_traceback(there, url, moment, caplog):
    """2006, 2013 or 08006: a typed error is enough; the pool has nothing to add to the log."""
    caplog.set_level(logging.DEBUG, logger="sqlalchemy.pool")
    with Proxy(there.engine.url.port) as proxy, Database(url.set(port=proxy.port), retry=ONCE) as far:
        assert works(far)

        def lose(connection):
            connection.exec_driver_sql("INSERT INTO here VALUES (2, 2)")
            proxy.cut()
            if moment == "statement":
                connection.exec_driver_sql("INSERT INTO here VALUES (3, 3)")

        with pytest.raises(DatabaseUnavailable if moment == "statement" else OutcomeUnknown):
            far.run(lose)
        with far.read() as connection:
            connection.exec_driver_sql("SELECT 1")
            proxy.cut()
        assert works(far)
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.xdist_group("errors")
@POSTGRESQL
def test_crash_and_start_are_waited_for(driver):
    """57P02 while another session crashes the server, 57P03 while it recovers: every error on the way passes."""
    server = services.postgresql(variant="errors")
    made = server.create_database()
    with Database(through(driver, made), retry=ONCE) as database, Database(through(driver, made)) as patient:
        database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE here (id integer)"))
        database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (1)"))
        assert works(database)
        server.kill()
        assert type(raised(database, "SELECT 1")) is DatabaseUnavailable
        starter = threading.Timer(0.5, server.start)
        starter.start()
        assert patient.run(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one()) == 1
        starter.join()
        assert works(database)
    server.drop_database(made)


# ---- connections that are refused


@BOTH
def test_mistyped_name_is_permanent(url):
    connects = []
    with Database(url.set(database="no_such_name")) as database:
        sa.event.listen(database.engine, "do_connect", lambda *_: connects.append(1))
        error = raised(database, "SELECT 1")
    assert type(error) is DatabaseError
    assert not isinstance(error, Transient)
    assert "no_such_name" in str(error)
    assert connects == [1]  # it is not tried again


@BOTH
def test_wrong_password_is_permanent_and_in_no_text(url):
    with Database(url.set(password="open sesame")) as database:
        error = raised(database, "SELECT 1")
    assert type(error) is DatabaseError
    assert "sesame" not in str(error)


@BOTH
def test_used_up_connections_pass(url, server, driver):
    """53300, or 1226: somebody may leave."""
    if driver == "psycopg":
        server.execute("CREATE ROLE lonely LOGIN PASSWORD 'l' CONNECTION LIMIT 1")
    else:
        server.execute(f"CREATE USER lonely{driver}@'127.0.0.1' IDENTIFIED BY 'l' WITH MAX_USER_CONNECTIONS 1")
        server.execute(f"GRANT ALL ON {url.database}.* TO lonely{driver}@'127.0.0.1'")
    name = "lonely" if driver == "psycopg" else f"lonely{driver}"
    lonely = url.set(username=name, password="l")
    with Database(lonely, retry=ONCE) as first, Database(lonely, retry=ONCE) as second, first.read() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert type(raised(second, "SELECT 1")) is DatabaseUnavailable
    server.execute("DROP ROLE lonely" if driver == "psycopg" else f"DROP USER {name}@'127.0.0.1'")


@pytest.mark.xdist_group("errors")
@ON_MARIADB
def test_read_only_server_passes(driver):
    """1290: a replica, that may become the primary."""
    server = services.mariadb(variant="errors")
    made = server.create_database()
    name = f"plain{driver}"
    server.execute(f"CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'p'")
    server.execute(f"GRANT ALL ON {sa.make_url(made).database}.* TO {name}@'127.0.0.1'")
    with Database(through(driver, made).set(username=name, password="p"), retry=ONCE) as database:
        database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE here (id integer)"))
        server.execute("SET GLOBAL read_only = 1")
        try:
            assert type(raised(database, "INSERT INTO here VALUES (1)")) is DatabaseUnavailable
        finally:
            server.execute("SET GLOBAL read_only = 0")
        database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (1)"))
    server.execute(f"DROP USER {name}@'127.0.0.1'")
    server.drop_database(made)


# ---- engines that cannot be trusted


@BOTH
@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ UNCOMMITTED"])
def test_engine_without_transactions_is_refused(url, level):
    for engine in (
        sa.create_engine(url, isolation_level=level),
        sa.create_engine(url).execution_options(isolation_level=level),
    ):
        with pytest.raises(InvalidArgument, match=level):
            Database(engine)


@BOTH
def test_driver_that_commits_by_itself_is_refused(url, there):
    """The call leaves no row."""
    engine = sa.create_engine(url, connect_args={"autocommit": True})
    database = Database(engine)
    with pytest.raises(InvalidArgument, match="autocommit"):
        database.run(lambda connection: connection.exec_driver_sql("INSERT INTO here VALUES (2, 2)"))
    engine.dispose()
    assert works(there)


def test_asynchronous_engines_and_drivers_are_refused(sqlite_database):
    class Wrapped:
        """As sqlalchemy's AsyncEngine, which needs greenlet to be imported."""

        def __init__(self, engine):
            self.sync_engine = engine

    class Async:
        is_async = True

    engine = sa.create_engine("sqlite://")
    engine.dialect.is_async = True
    for wrong in (Wrapped(engine), engine):
        with pytest.raises(InvalidArgument, match="asynchronous"):
            Database(wrong)
    with pytest.raises(InvalidArgument, match="asynchronous"):
        open_engine("postgresql+psycopg_async://u@localhost/d")
    for wrong in (None, 7, object()):
        with pytest.raises(InvalidArgument):
            Database(wrong)


# ---- codes that only another server's machine gives


@ON_MARIADB
@pytest.mark.parametrize(
    ("number", "committing", "expected"),
    [
        (1047, False, DatabaseUnavailable),
        (1047, True, OutcomeUnknown),
        (1180, False, OutcomeUnknown),
        (1213, True, DatabaseBusy),
        (1205, True, DatabaseBusy),
        (1054, True, SchemaMismatch),
        (1317, True, OutcomeUnknown),
        (1836, False, DatabaseUnavailable),
        (1836, True, DatabaseUnavailable),
        (1290, True, DatabaseUnavailable),
        (1142, True, DatabaseError),
        (1690, True, DatabaseError),
        (2055, False, DatabaseUnavailable),
        (2055, True, OutcomeUnknown),
        (1021, False, DatabaseError),
        (9999, True, OutcomeUnknown),
    ],
)
def test_number_has_its_fate_whatever_the_driver(driver, number, committing, expected):
    engine = sa.create_engine(f"{DRIVERS[driver]}://u@localhost/d")
    module = engine.dialect.dbapi
    original = module.OperationalError(number, "text")
    if driver == "mariadbconnector":
        original = module.OperationalError("text")
        original.errno = number
    wrapped = sa.exc.DBAPIError.instance(None, None, original, module.Error, dialect=engine.dialect)
    assert type(driver_errors.translate(wrapped, engine, committing=committing)) is expected
