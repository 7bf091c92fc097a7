"""A server of this folder's own, to be set and restarted; and one database at each of three nodes of a cluster."""

from __future__ import annotations

import pytest

from cloudcore import PlacementTree, create_schema
from cloudcore.database import Database
from tests import services


@pytest.fixture
def own(request):
    """A server that this file may restart and set, and the URL of a database of it with tables of placement."""
    server = getattr(services, request.param)(variant="set")
    url = server.create_database()
    create_schema(url)
    yield server, url
    server.drop_database(url)


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
