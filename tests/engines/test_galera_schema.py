"""Changing tables of a cluster while every node writes to them: nobody stands still, nothing fails, nothing is lost."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree
from cloudcore.database import Database
from cloudcore.errors import DatabaseBusy, DatabaseError, DatabaseUnavailable, OutcomeUnknown
from cloudcore.schema import check_schema, create_schema, upgrade_schema
from tests import services
from tests.engines.storm import Storm, held
from tests.engines.together import new
from tests.faults import Proxy
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


# ---- a node that stands still


COME_AND_GO = [
    statement
    for table, columns in TABLES.items()
    for statement in (f"CREATE INDEX ix_later ON {table} ({columns})", f"DROP INDEX ix_later ON {table}")
]


class Stuck:
    """A cluster of its own, with so many applier threads, whose nodes are killed when nothing goes on any more."""

    def __init__(self, appliers: int) -> None:
        self.cluster, self.appliers = services.galera(variant="schema"), appliers
        for node in self.cluster.nodes:
            node.execute(f"SET GLOBAL wsrep_slave_threads = {appliers}")
        self.url = self.cluster.create_database()
        table = f"{sa.make_url(self.url).database}.written"
        self.cluster.execute(f"CREATE TABLE {table} (number INTEGER PRIMARY KEY AUTO_INCREMENT)")
        for node in self.cluster.nodes:  # a thread too many goes when it has applied one more write of another node
            other = self.cluster.nodes[node.number - 1]
            while self._status(node.number, "wsrep_applier_thread_count") != appliers:
                other.execute(f"INSERT INTO {table} VALUES ()")
        self.stood_still = 0

    def _status(self, node: int, name: str) -> int:
        ((_, value),) = self.cluster.nodes[node].execute(f"SHOW STATUS LIKE '{name}'")
        return int(value)

    def _waiting(self, node: int) -> int:
        """Writes of others that a node has not applied yet."""
        return self._status(node, "wsrep_local_recv_queue")

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for *done*; a node that stands still is killed, and started again."""
        while not self._within(20.0, done):
            slowest = max(range(3), key=self._waiting)
            assert self._waiting(slowest), "nothing goes on, and no node has anything left to apply"
            self.stood_still += 1
            self.cluster.call("kill", slowest)
            self.cluster.settle()
            self.cluster.call("restart", slowest)
            self.cluster.nodes[slowest].execute(f"SET GLOBAL wsrep_slave_threads = {self.appliers}")

    @staticmethod
    def _within(seconds: float, done: Callable[[], bool]) -> bool:
        try:
            until(done, seconds)
        except AssertionError:
            return False
        return True


@pytest.mark.slow
@pytest.mark.parametrize(("written", "appliers"), [(1, 1), (3, 1), (3, 4)])
def test_indexes_come_and_go_by_way_of_a_proxy(written, appliers):
    """Nobody stands still where one node is written to and the others have one applier thread.

    Elsewhere a node may: with several threads that apply an index and the next write side by side ("MDL BF-BF conflict"
    in its log), or where a write of its own waits for certification, of a row that another node has changed, before an
    index that waits to be made. Killing it mends that; nothing is lost, nothing done twice.
    """
    stuck = Stuck(appliers)
    cluster = stuck.cluster
    made = stuck.url
    create_schema(made)
    patience = {"connect_args": {"read_timeout": 10, "connect_timeout": 5}}
    with contextlib.ExitStack() as opened:
        proxy = opened.enter_context(Proxy(*(node.port for node in cluster.nodes[:written])))
        url = sa.make_url(made).set(port=proxy.port)
        databases = [opened.enter_context(Database(url, **patience)) for _ in range(7)]
        with PlacementTree.open(made) as tree:
            hosts = [tree.add(name, inventory={"VCPU": 1_000_000}).uuid for name in new(*"abcd")]
        with Storm([AllocationLedger(database) for database in databases[:6]], hosts) as storm:
            for _ in range(20):
                for table, columns in TABLES.items():
                    for statement in (
                        f"CREATE INDEX ix_later ON {table} ({columns})",
                        f"DROP INDEX ix_later ON {table}",
                    ):
                        changing = threading.Thread(target=repeated, args=(databases[6], statement))
                        changing.start()
                        stuck.until(lambda: not changing.is_alive())  # noqa: B023
                        enough = len(storm.acknowledged) + 12
                        stuck.until(lambda: len(storm.acknowledged) >= enough)  # noqa: B023
    print(f"written at {written}, {appliers} applier threads: a node stood still {stuck.stood_still} times")
    cluster.settle()
    for node in range(3):
        with Database(cluster.at(node, made)) as database:
            assert held(database) == storm.acknowledged
            AllocationLedger(database).check()
    assert not stuck.stood_still or (written, appliers) != (1, 1)
    cluster.drop_database(made)


def repeated(database: Database, statement: str) -> None:
    """Until it is done: what was said to a node that goes away may have been done there, or not."""
    while True:
        with contextlib.suppress(DatabaseUnavailable, DatabaseBusy, OutcomeUnknown):
            try:
                change(database, statement)
            except DatabaseError as error:
                if error.__cause__.orig.args[0] not in {1061, 1091}:  # the index is there, or gone, already
                    raise
            return
