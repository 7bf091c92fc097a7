"""Changing tables of a cluster while every node writes to them: nobody stands still, nothing fails, nothing is lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest

from cloudcore import AllocationLedger, PlacementTree
from cloudcore.database import Database
from cloudcore.schema import check_schema, create_schema, upgrade_schema
from tests.engines.together import new
from tests.waiting import until

pytestmark = pytest.mark.xdist_group("galera")
OWNER = {"project_id": "p", "user_id": "u"}
TABLES = {  # one that refers to others, and two that it refers to
    "allocations": "consumer_id, amount",
    "consumers": "project_id, created_at",
    "inventories": "provider_id, used",
}


class Writers:
    """A thread at each node that claims until it is told to stop, and how many claims each was granted."""

    def __init__(self, nodes: list[Database], hosts: list[str]) -> None:
        self.counts = [0] * len(nodes)
        self.over = threading.Event()
        self.threads = [
            threading.Thread(target=self._write, args=(number, AllocationLedger(node), hosts[number]))
            for number, node in enumerate(nodes)
        ]

    def _write(self, number: int, ledger: AllocationLedger, host: str) -> None:
        while not self.over.is_set():
            ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, **OWNER)
            self.counts[number] += 1

    def go_on(self) -> None:
        """Each of them is granted three more, from now."""
        before = list(self.counts)
        until(lambda: all(count >= early + 3 for count, early in zip(self.counts, before, strict=True)))


@pytest.fixture
def writers(nodes, trees) -> Iterator[Writers]:
    tree, _ = trees
    hosts = [tree.add(name, inventory={"VCPU": 1_000_000}).uuid for name in new(*"abc")]
    made = Writers(nodes, hosts)
    for thread in made.threads:
        thread.start()
    made.go_on()
    yield made
    made.over.set()
    for thread in made.threads:
        thread.join(60)
        assert not thread.is_alive()
    ledgers = [AllocationLedger(node) for node in nodes]
    for ledger in ledgers:
        ledger.check()
        assert [ledger.usages(provider=host)["VCPU"] for host in hosts] == made.counts


def change(node: Database, *statements: str) -> None:
    """As an upgrade does: each statement commits by itself."""
    with node.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_tables_are_changed_on_all_nodes_at_once_beside_writers(nodes, writers):
    """Total order isolation, as it is by default: a column and an index come and go."""
    for table, columns in TABLES.items():
        change(nodes[0], f"ALTER TABLE {table} ADD COLUMN later VARCHAR(20) NULL")
        writers.go_on()
        change(nodes[1], f"CREATE INDEX ix_later ON {table} ({columns})")
        writers.go_on()
        change(nodes[2], f"DROP INDEX ix_later ON {table}", f"ALTER TABLE {table} DROP COLUMN later")
        writers.go_on()


def test_upgrade_at_one_node_is_there_on_all_beside_writers(cluster, writers):
    """Every revision, from an empty database; then nothing is left to do, wherever one looks."""
    made = cluster.create_database()
    there = [upgrade_schema(made), *(check_schema(cluster.at(node, made)) for node in range(3))]
    assert [(state.revision == state.head, state.differences) for state in there] == [(True, ())] * 4
    writers.go_on()
    assert upgrade_schema(cluster.at(2, made)) == there[0]
    cluster.drop_database(made)


def test_schema_is_created_beside_writers(cluster, writers):
    """Tables of one database appear at one node, and are written to at the next, while claims in another go on."""
    made = cluster.create_database()
    create_schema(made)
    with PlacementTree.open(cluster.at(1, made)) as there:
        there.add(*new("h"), inventory={"VCPU": 1})
    writers.go_on()
    cluster.drop_database(made)
