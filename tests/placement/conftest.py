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
    made: dict[str, str] = {}

    def get(dialect: str) -> Database:
        if dialect not in opened:
            if dialect == "sqlite":
                url = f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}"
            else:
                made[dialect] = services.database_server(dialect).create_database()
                url = services.address(dialect, made[dialect])
            opened[dialect] = Database(url)
            ledger_worlds.create_tables(opened[dialect])
        return opened[dialect]

    yield get
    for database in opened.values():
        database.close()
    for dialect, url in made.items():
        services.database_server(dialect).drop_database(url)


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
