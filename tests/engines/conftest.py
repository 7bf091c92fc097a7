"""A Galera cluster for the tests of this folder: the same database at each of three nodes."""

from __future__ import annotations

import pytest

from cloudcore import PlacementTree, create_schema
from cloudcore.database import Database
from tests import services


@pytest.fixture(scope="module")
def cluster():
    return services.galera()


@pytest.fixture(scope="module")
def urls(cluster):
    """The same database at each of three nodes, with every table."""
    url = cluster.create_database()
    create_schema(url)
    yield [cluster.at(node, url) for node in range(3)]
    cluster.drop_database(url)


@pytest.fixture
def nodes(urls):
    """A `Database` at each node."""
    opened = [Database(url) for url in urls]
    yield opened
    for database in opened:
        assert database.engine.pool.checkedout() == 0
        database.close()


@pytest.fixture
def trees(nodes):
    with PlacementTree.open(nodes[0]) as one, PlacementTree.open(nodes[1]) as two:
        yield one, two
