"""Databases for the ledger's tests that are made once and emptied for each test: making tables is what takes long."""

from __future__ import annotations

import pytest

from cloudcore.database import Database
from tests import services
from tests.placement import ledger_worlds
from tests.placement.selector_worlds import Cloud


@pytest.fixture(scope="session")
def _ledger_databases(tmp_path_factory):
    opened: dict[str, Database] = {}

    def get(dialect: str) -> Database:
        if dialect not in opened:
            server = {"postgresql": services.postgresql, "mariadb": services.mariadb}.get(dialect)
            folder = tmp_path_factory.mktemp("ledger")
            url = f"sqlite:///{folder / 'ledger.db'}" if server is None else server().create_database()
            opened[dialect] = Database(url)
            ledger_worlds.create_tables(opened[dialect])
        return opened[dialect]

    yield get
    for dialect, database in opened.items():
        database.close()
        if dialect != "sqlite":
            getattr(services, dialect)().drop_database(database.engine.url.render_as_string(hide_password=False))


@pytest.fixture
def ledger_database(dialect, _ledger_databases):
    """A `Database` with empty tables of placement, of each kind; shared by the tests of one worker, one at a time."""
    database = _ledger_databases(dialect)
    ledger_worlds.empty(database)
    yield database
    assert database.engine.pool.checkedout() == 0


@pytest.fixture
def cloud(ledger_database):
    """A tree, a ledger and a selector over one empty database; sound at the end."""
    cloud = Cloud(ledger_database)
    yield cloud
    cloud.check()
    cloud.close()
