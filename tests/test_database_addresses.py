"""What a database's URL says is the same wherever it is given, and what is secret in it stands in no text."""

from __future__ import annotations

import math
import pickle
import string
import threading
from urllib.parse import quote

import pytest
import sqlalchemy as sa
import tenacity
from hypothesis import example, given
from hypothesis import strategies as st

from cloudcore import Cell, CellRouter, create_schema
from cloudcore.database import Database, RetryPolicy, open_engine, retrying
from cloudcore.database.addresses import InTurn, hosts_of, in_memory, parse_url, shown
from cloudcore.database.engines import lock_timeout_to_say
from cloudcore.errors import Closed, CloudcoreError, DatabaseBusy, InvalidArgument, MissingExtra
from cloudcore.listing import InstanceDirectory
from cloudcore.listing.cells.pool import ConnectionPool
from cloudcore.listing.records.nova_directory import _url

# ---- who logs in, and where

LOGIN = st.text(alphabet=string.ascii_letters + string.digits + ",;=&+%[]()~", max_size=12)
HOST = st.from_regex(r"[a-z][a-z0-9.]{0,8}(:[1-9][0-9]{0,3})?", fullmatch=True)


@given(user=LOGIN, password=LOGIN, hosts=st.lists(HOST, min_size=1, max_size=4))
@example(user="user", password="123,secret", hosts=["host"])
@example(user="us,er", password="", hosts=["host"])
def test_commas_of_a_login_make_no_hosts(user, password, hosts):
    plain = sa.make_url(f"postgresql://{user}:{password}@host/name")
    url = parse_url(f"postgresql://{user}:{password}@{','.join(hosts)}/name")
    assert (url.username, url.password, url.database) == (plain.username, plain.password, "name")
    assert [f"{host}:{port}" if port else host for host, port in hosts_of(url)] == hosts


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:12,SECRET/x@host/name",
        "postgresql://user:12@SECRET@host/name",
        "postgresql://user:12@SEC,RET@host/name",
        "postgresql://user:12@SEC:RET@a:1,b:2/name",
        "mysql://a:1,b:2/name?x=SECRET@c",
        "SECRET",
    ],
)
def test_what_may_be_read_in_two_ways_is_refused_wherever_it_is_given(url):
    tries = [
        lambda: Database(url),
        lambda: CellRouter([Cell("a", url)]),
        lambda: InstanceDirectory(url),
        lambda: _url("{scheme}://{username}@{hostname}:{port}/x", url, "cell0"),
        lambda: _url(url, None, "cell0"),
    ]
    for attempt in tries:
        with pytest.raises(InvalidArgument) as refused:
            attempt()
        assert "SEC" not in f"{refused.value!r} {refused.value} {refused.value.__cause__} {refused.value.__context__}"


def asked(engine: sa.Engine) -> list[dict]:
    """What its driver is told of hosts, ports and sessions, host by host; none answers."""
    told = []

    def away(*_, **named):
        told.append({name: named.get(name) for name in ("host", "port", "options", "prepare_threshold")})
        raise engine.dialect.loaded_dbapi.OperationalError(2003, "away")

    engine.dialect.connect = away
    with pytest.raises(sa.exc.OperationalError):
        engine.connect()
    return told


@pytest.mark.parametrize(
    ("source", "hosts", "ports"),
    [
        ("postgresql://u@a,b:5433/x", ["a,b"], [",5433"]),
        ("postgresql://u@a:1,b:2/x?pooler=transaction", ["a,b"], ["1,2"]),
        ("postgresql://u@a/x?pooler=transaction", ["a"], [None]),
        ("postgresql://u@/x?host=a,b", ["a,b"], [","]),
        ("mysql://u@a,b:2,c/x", ["a", "b", "c"], [None, 2, None]),
        ("mysql://u@/x?host=a,b", ["a", "b"], [None, None]),
        (sa.make_url("postgresql://u@a,b:5433/x"), ["a,b"], [",5433"]),
        (sa.make_url("mysql://u@a,b:2/x"), ["a", "b"], [None, 2]),
    ],
)
def test_cell_and_directory_ask_where_a_database_writes(monkeypatch, source, hosts, ports):
    monkeypatch.setattr(Database, "run", lambda *_: None)  # no server: the tables are not made
    with Database(source) as database, InstanceDirectory(source) as directory:
        writes = asked(database.engine)
        assert ([each["host"] for each in writes], [each["port"] for each in writes]) == (hosts, ports)
        assert asked(directory.database.engine) == asked(directory._pool.engine) == writes
        cell = ConnectionPool(source, connections=1, deadline=1.0, options={})
        assert asked(cell.engine) == asked(cell.database.engine) == writes
        if "pooler" in str(source):
            assert writes == [{"host": hosts[0], "port": ports[0], "options": None, "prepare_threshold": None}]


@pytest.mark.parametrize(
    "given", ["postgresql://u@a,b/x", "postgresql://u@/x?host=a&host=b", "postgresql://u@/x?host=a,b"]
)
def test_of_several_hosts_the_one_that_takes_writes_is_asked_for(given):
    engine, told = open_engine(given), {}

    def note(*_, **named):
        told.update(named)
        raise engine.dialect.loaded_dbapi.OperationalError("away")

    engine.dialect.connect = note
    with pytest.raises(sa.exc.OperationalError):
        engine.connect()
    assert told["target_session_attrs"] == "read-write"


@pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)
def test_directory_and_cell_go_past_a_host_that_is_away(new_database_url):
    url = sa.make_url(new_database_url())
    login = f"{url.username}:{quote(url.password)}@" if url.password else f"{url.username}@"
    both = f"{url.drivername}://{login}127.0.0.1:1,127.0.0.1:{url.port}/{url.database}"
    create_schema(both, areas=["listing"])
    with InstanceDirectory(both) as directory, CellRouter([Cell("a", both)], directory=directory) as router:
        assert directory.cells_of_tenant("p") == frozenset()
        assert router.page().complete


def test_host_that_is_not_used_is_closed_whatever_it_answers():
    class Error(Exception):
        pass

    class Connection:
        closed = False

        def close(self):
            self.closed = True

    class Dialect:
        class loaded_dbapi:  # noqa: N801 - as SQLAlchemy calls it
            pass

        def connect(self, **_):
            opened.append(Connection())
            return opened[-1]

    Dialect.loaded_dbapi.Error = Error
    opened: list[Connection] = []

    def usable(connection):
        if len(opened) == 1:
            raise Error("a node without its cluster refuses even to be asked")
        return len(opened) == 3

    used = InTurn([("a", 1), ("b", 1), ("c", 1)], usable).connect(Dialect(), None, [], {})
    assert [each.closed for each in opened] == [True, True, False]
    assert used is opened[-1]


@pytest.mark.parametrize(
    "url", ["mysql://u@127.0.0.1:1/x", "mysql://u@127.0.0.1:1,b/x", "postgresql://u@127.0.0.1:1,b/x"]
)
def test_closed_database_asks_no_host(url):
    database = Database(url)
    for _ in range(2):
        database.close()
        with pytest.raises(Closed):
            database.ping()


# ---- what texts say


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/db?user=u&password=SECRET",
        "postgresql://u@127.0.0.1:1/db?sslpassword=SECRET",
        "postgresql://u@127.0.0.1:1/db?password=SECRET&password=SECRET",
        "mysql://127.0.0.1:1/db?user=u&password=SECRET",
        "mysql://u@127.0.0.1:1/db?passwd=SECRET",
        "sqlite:////nowhere/at/all.db?uri=true&key=SECRET",
    ],
)
def test_what_a_query_says_is_in_no_text(url):
    with Database(url, retry=RetryPolicy(attempts=1)) as database:
        texts = [repr(database)]
        with pytest.raises(CloudcoreError) as failed:
            database.ping()
    pool = ConnectionPool(url, connections=1, deadline=2.0, options={})
    with pytest.raises(CloudcoreError) as away:
        pool.acquire(0.0)
    with pytest.raises(CloudcoreError) as closed:
        database.ping()
    for error in (failed.value, away.value, closed.value):
        texts += [str(error), repr(error), str(vars(pickle.loads(pickle.dumps(error))))]
    assert not [text for text in texts if "SECRET" in text]
    assert "***" in texts[0]


def test_what_helps_is_told():
    url = parse_url("mysql://u:p@a,b:2/x?charset=utf8mb4&ssl_key=k")
    assert shown(url) == "mysql://u:***@/x?charset=utf8mb4&ssl_key=***&host=a&host=b:2"
    assert shown(parse_url("sqlite:///a.db")) == "sqlite:///a.db"


# ---- databases in memory


@pytest.mark.parametrize(
    ("url", "memory"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite:///file::memory:?uri=true", True),
        ("sqlite:///file:some?mode=memory&uri=true", True),
        ("sqlite:///file:other?mode=memory&cache=shared&uri=true", True),
        ("sqlite:///file:{}/a.db?mode=rwc&uri=true", False),
        ("sqlite:///{}/a.db", False),
    ],
)
def test_database_in_memory_is_one_for_all_threads(tmp_path, url, memory):
    url = url.format(tmp_path)
    assert in_memory(parse_url(url)) is memory
    database, found = Database(url), []
    create_schema(database)

    def other():
        with database.read() as connection:
            found.append(connection.exec_driver_sql("SELECT count(*) FROM operations").scalar())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [0]
    with CellRouter([Cell("a", url)]) as router:
        create_schema(router._backends["a"].pool.database, areas=["listing"])
        assert router.page().complete, "what a cell writes it reads"


# ---- drivers


@pytest.mark.parametrize(
    ("url", "expected", "text"),
    [
        ("postgresql+nonsense://u@h/x", InvalidArgument, "knows no such driver; postgresql:// gets the usual one"),
        ("sqlite+nonsense:///x.db", InvalidArgument, "knows no such driver"),
        ("postgresql+asyncpg://u@h/x", InvalidArgument, "asynchronous"),
        ("sqlite+aiosqlite:///x.db", InvalidArgument, "asynchronous"),
        ("sqlite://x.db", InvalidArgument, "SQLite has no hosts"),
        ("oracle://u@h/x", InvalidArgument, "cloudcore knows"),
        ("postgresql+pg8000://u@h/x", MissingExtra, r'pip install "cloudcore\[postgresql\]"'),
        ("mariadb+mysqlconnector://u@h/x", MissingExtra, r'pip install "cloudcore\[mysql\]"'),
        ("sqlite+pysqlcipher:///x.db", MissingExtra, "or use sqlite://"),
    ],
)
def test_driver_that_will_not_do_is_said_at_once(monkeypatch, url, expected, text):
    def none():
        raise ModuleNotFoundError("No module named 'it'")

    if expected is MissingExtra:  # it may be installed here
        monkeypatch.setattr(sa.make_url(url).get_dialect(), "import_dbapi", none)
    for attempt in (lambda: Database(url), lambda: CellRouter([Cell("a", url)])):
        with pytest.raises(expected, match=text):
            attempt()


# ---- time


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, True, "30"])
@pytest.mark.parametrize("url", ["sqlite://", "postgresql://u@h/x", "mysql://u@h/x"])
def test_wait_for_a_lock_is_a_time(url, seconds):
    with pytest.raises(InvalidArgument, match="busy_timeout"):
        open_engine(url, busy_timeout=seconds)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.0005, 1), (0.3, 300), (1e8, 2_147_483_000)])
def test_wait_for_a_lock_is_never_without_end(seconds, milliseconds):
    assert (
        f"lock_timeout={milliseconds} " in asked(open_engine("postgresql://u@h/x", busy_timeout=seconds))[0]["options"]
    )
    pooled = open_engine("postgresql://u@h/x", busy_timeout=seconds, pooler="transaction")
    assert lock_timeout_to_say(pooled) == milliseconds


def test_no_attempt_begins_after_the_deadline(monkeypatch):
    now, begun = [0.0], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds):
            now[0] += seconds

    for module in (retrying, tenacity, tenacity.nap):
        monkeypatch.setattr(module, "time", Clock)

    def attempt():
        begun.append(now[0])
        raise DatabaseBusy("still")

    for _ in range(20):
        now[0] = 0.0
        with pytest.raises(DatabaseBusy):
            RetryPolicy(attempts=100, deadline=0.2, initial=1.0, maximum=1.0).call(attempt)
    assert max(begun) < 0.2
    assert len(begun) > 20, "and some did begin before"
