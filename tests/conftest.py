"""Fixtures and switches that every test can use.

Fixtures
    database            a `cloudcore.database.Database` on a fresh, empty database: the test runs on SQLite, PostgreSQL
                        and MariaDB. At the end no connection may be checked out any more.
    database_url        only the URL of such a database
    new_database, new_database_url
                        functions that give one more of the same kind at each call (cells, directories)
    dialect             "sqlite", "postgresql" or "mariadb": which one it is; a test narrows it with
                        `@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)`, and may name others:
                        "galera" (at its first node), "pgbouncer", "mysqldb" and "mariadbconnector" (MariaDB's drivers)
    sqlite_database     a `Database` on a fresh SQLite file, for tests where the kind of database does not matter

Switches
    --long              also run what is marked `slow`, and ten times as many examples of each property
    CLOUDCORE_REQUIRE   `all`: a test that would be skipped fails; or names of services that must be there

Servers are described in `tests.services`, cut connections in `tests.faults`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import armed, leaks, raised, services
from tests.services import _client

ALLOWED_SKIPS: tuple[str, ...] = (
    r"^small-disk cannot run on this machine",  # a container without the right to mount; SQLite's full disk needs none
)
"""Regular expressions of reasons to skip that hold even under CLOUDCORE_REQUIRE=all. Each needs a comment."""

hypothesis.settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("default"), database=None)
hypothesis.settings.register_profile("long", hypothesis.settings.get_profile("ci"), max_examples=1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long versions of batteries too")


def pytest_configure(config: pytest.Config) -> None:
    profile = "long" if config.getoption("--long") else "ci" if os.environ.get("CI") else "default"
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))
    armed.watch()
    leaks.watch()
    raised.watch()
    if not hasattr(config, "workerinput"):
        _client.claim_run()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Nothing may be left over: that too is a result of the run."""
    if not hasattr(session.config, "workerinput") and not _client.end_run():
        print(f"\nservers are still running, see {os.environ[_client.RUN]}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _client.end_run()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


# ------------------------------------------------------------------------------------- a skip is a failure, if so asked


def _forbidden(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """Why this skip is not allowed, or None."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    if "all" not in os.environ.get("CLOUDCORE_REQUIRE", "").replace(",", " ").split():
        return None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS):
        return None
    return f"CLOUDCORE_REQUIRE=all allows no skip: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if text := _forbidden(report):
        report.outcome, report.longrepr = "failed", text
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if text := _forbidden(report):
        report.outcome, report.longrepr = "failed", text
    return report


# --------------------------------------------------------------------------------------- nothing secret in any log line


@pytest.fixture(autouse=True)
def _every_error_keeps_its_promises() -> Iterator[None]:
    yield
    wrong = raised.check()
    assert not wrong, f"errors that cannot be pickled or made JSON of: {wrong}"


@pytest.fixture(autouse=True)
def _no_secret_is_logged() -> Iterator[None]:
    yield
    found, leaks.SCAN.found = leaks.SCAN.found, []
    assert not found, f"log records with a secret in them: {found}"


@pytest.fixture(autouse=True)
def _every_armed_point_is_passed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    never = armed.check()
    assert not never, f"failpoints that were armed, and that nothing passed: {never}"


# ------------------------------------------------------------------------------------------------------------ databases


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def dialect(request: pytest.FixtureRequest) -> str:
    """The kind of database that the test runs on."""
    return request.param


@pytest.fixture
def new_database_url(dialect: str, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Each call creates an empty database of this kind and returns its URL."""
    if dialect == "sqlite":
        numbers = iter(range(10_000))
        yield lambda: f"sqlite:///{tmp_path / f'database-{next(numbers)}.db'}"
        return
    server = services.database_server(dialect)
    urls: list[str] = []

    def create() -> str:
        urls.append(server.create_database())
        return services.address(dialect, urls[-1])

    yield create
    for url in urls:
        server.drop_database(url)


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """URL of a fresh, empty database."""
    return new_database_url()


@pytest.fixture
def new_database(new_database_url: Callable[[], str]) -> Iterator[Callable[..., object]]:
    """Each call gives a `Database` on a fresh one; arguments go to `Database`. All are checked, then closed."""
    from cloudcore.database import Database

    opened: list[Database] = []

    def create(**options: object) -> Database:
        opened.append(Database(new_database_url(), **options))
        return opened[-1]

    yield create
    _close(opened)


@pytest.fixture
def database(new_database: Callable[..., object]) -> object:
    """A `Database` on a fresh, empty database."""
    return new_database()


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[object]:
    """A `Database` on a fresh, empty SQLite file."""
    from cloudcore.database import Database

    database = Database(f"sqlite:///{tmp_path / 'sqlite-database.db'}")
    yield database
    _close([database])


def _close(databases: list) -> None:
    """Every connection has been given back; then close them all."""
    held = {str(database.engine.url): database.engine.pool.checkedout() for database in databases}
    for database in databases:
        database.close()
    assert not any(held.values()), f"connections still checked out: {held}"
