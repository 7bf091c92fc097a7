"""The test infrastructure itself: databases are fresh, proxies do what they say, nothing outlives a run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from cloudcore import _failpoints
from cloudcore.database import metadata
from tests import armed, services
from tests.faults import Proxy

THINGS = sa.table("things", sa.column("id", sa.Integer))


def test_a_fresh_database_is_empty_and_writable(database):
    """Each test gets its own."""
    assert sa.inspect(database.engine).get_table_names() == []
    metadata.create_all(database.engine, tables=[metadata.tables["operations"]])
    assert sa.inspect(database.engine).get_table_names() == ["operations"]


def test_two_databases_of_one_test_are_two(new_database_url):
    """Cells are databases of their own."""
    assert new_database_url() != new_database_url()


def _server(dialect):
    return services.postgresql() if dialect == "postgresql" else services.mariadb()


@pytest.fixture
def through_proxy(database_url, dialect):
    server = _server(dialect)
    with Proxy(server.port) as proxy:
        engine = sa.create_engine(server.url(database_url.rsplit("/", 1)[1].split("?")[0], proxy.port))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE things (id INTEGER PRIMARY KEY)")
        yield proxy, engine
        proxy.heal()
        engine.dispose()


SERVERS = pytest.mark.parametrize("dialect", ["postgresql", "mariadb"], indirect=True)


def _ids(engine):
    with engine.connect() as connection:
        return connection.execute(sa.select(THINGS.c.id)).scalars().all()


@SERVERS
def test_cut_before_commit_loses_the_row(through_proxy):
    """The server never sees the COMMIT."""
    proxy, engine = through_proxy
    proxy.cut_when(b"COMMIT")
    with pytest.raises(sa.exc.OperationalError), engine.begin() as connection:
        connection.execute(THINGS.insert().values(id=1))
    proxy.wait_cut()
    assert _ids(engine) == []


@SERVERS
def test_cut_after_commit_keeps_the_row(through_proxy):
    """The server has committed, the client cannot know."""
    proxy, engine = through_proxy
    proxy.cut_after(b"COMMIT")
    with pytest.raises(sa.exc.OperationalError), engine.begin() as connection:
        connection.execute(THINGS.insert().values(id=1))
    proxy.wait_cut()
    assert _ids(engine) == [1]


@SERVERS
def test_refused_and_accepted_again(through_proxy):
    """A server that is away, then back."""
    proxy, engine = through_proxy
    proxy.refuse()
    proxy.cut()
    engine.dispose()
    with pytest.raises(sa.exc.OperationalError):
        _ids(engine)
    proxy.accept()
    assert _ids(engine) == []


@pytest.mark.xdist_group("guard")
def test_groups_of_tests_stay_together(request):
    """Tests that share a server of their own rely on `xdist_group`; versions that ignore it do so silently."""
    if request.config.getoption("dist", "no") == "loadgroup" and hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith("@guard")


SKIPS = """
import pytest
from tests import services
from tests.services import _catalogue

def test_by_a_call():
    pytest.skip("no such thing")

@pytest.mark.skip(reason="no such thing")
def test_by_a_mark():
    pass

@pytest.fixture
def thing():
    pytest.skip("no such thing")

def test_by_a_fixture(thing):
    pass

def test_by_a_service():
    _catalogue._NEEDS["ceph"] = [(lambda: False, "no such thing")]
    services.require("ceph")
"""


@pytest.mark.parametrize("required", ["", "all"])
def test_a_skip_fails_where_everything_is_required(required, tmp_path):
    """However it is skipped; otherwise the reason is printed."""
    (tmp_path / "test_four.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('no such thing', allow_module_level=True)\n")
    repository = Path(__file__).resolve().parents[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CLOUDCORE_", "PYTEST_"))}
    options = ["-q", "-ra", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", str(repository / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--continue-on-collection-errors", str(tmp_path)],
        cwd=repository,
        env=env | {"CLOUDCORE_REQUIRE": required},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (failed|error|skipped)", summary)}
    wrong = counts.get("failed", 0) + counts.get("error", 0)
    assert (wrong, counts.get("skipped", 0)) == ((5, 0) if required else (0, 5)), done.stdout + done.stderr
    assert done.stdout.count("no such thing") >= 2


@pytest.mark.parametrize(
    ("passed", "never"), [("infrastructure.new", ["infrastructure.old"]), ("infrastructure.old", [])]
)
def test_a_failpoint_that_is_armed_and_never_passed_is_told(passed, never):
    told = []
    for name in ("infrastructure.old", "*"):
        _failpoints.arm(name, told.append)
    _failpoints.failpoint(passed)
    _failpoints.disarm()
    assert told == [passed]
    assert armed.check() == never
    assert armed.check() == []
