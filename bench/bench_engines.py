"""What a claim costs on the set-ups of one database and of several: PostgreSQL, a pooler, MariaDB by driver, Galera.

The peer of each row is the plain set-up of the same server, on the same data in the same run: what is printed is what
the other set-up costs. On Galera also what the nodes report of conflicts and flow control. At the end what it costs
that guards are writes (see docs/reference/database.md): the calls that make them, beside the same calls with the row
lock that would do on one server, turn by turn.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import EmbeddedVolumes
from cloudcore.attach.volumes import embedded
from cloudcore.database import Database, Operation
from cloudcore.placement.hosts import HostGroup
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.storage import edits
from tests import services
from tests.services import _client

OWNER = {"project_id": "p", "user_id": "u"}
SECONDS = 3.0


class Ground:
    """A database with hosts to claim of, reached by several ways."""

    def __init__(self, server: services.PostgreSQLServer | services.MariaDBServer) -> None:
        self.url = server.create_database()
        create_schema(self.url, areas=["placement"])
        with PlacementTree.open(self.url) as tree:
            names = [f"h{number}" for number in range(200)]
            self.hosts = [tree.add(name, inventory={"VCPU": 10_000}).uuid for name in names]

    def storm(self, urls: Sequence[str], writers: int) -> tuple[float, float, float]:
        """Claims a second, and the middle and the 99th latency in milliseconds, with *writers* threads on *urls*."""
        ledgers = [AllocationLedger(Database(urls[number % len(urls)])) for number in range(writers)]
        latencies: list[list[float]] = [[] for _ in ledgers]
        over = time.monotonic() + SECONDS

        def work(number: int) -> None:
            ledger, mine = ledgers[number], latencies[number]
            for count in range(number, 10**9, writers):
                begun = time.perf_counter()
                ledger.claim(str(uuid.uuid4()), {self.hosts[count % len(self.hosts)]: {"VCPU": 1}}, **OWNER)
                mine.append(time.perf_counter() - begun)
                if time.monotonic() > over:
                    return

        begun = time.monotonic()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.monotonic() - begun
        for ledger in ledgers:
            ledger.database.close()
        every = sorted(latency for mine in latencies for latency in mine)
        return len(every) / taken, 1000 * every[len(every) // 2], 1000 * every[int(len(every) * 0.99)]


COUNTED = ("wsrep_local_cert_failures", "wsrep_local_bf_aborts", "wsrep_flow_control_paused_ns")


def counted(cluster: services.GaleraCluster) -> list[int]:
    """COUNTED over all nodes: refused at certification, aborted for another node's write, nanoseconds of waiting."""
    names = ", ".join(f"'{name}'" for name in COUNTED)
    found = dict.fromkeys(COUNTED, 0)
    for node in cluster.nodes:
        for name, value in node.execute(f"SHOW GLOBAL STATUS WHERE variable_name IN ({names})"):
            found[name.lower()] += int(value)
    return list(found.values())


def conflicts(before: list[int], after: list[int], claims: float) -> str:
    """What happened between two looks, for each claim; flow control as a share of the nodes' time."""
    refused, aborted, waited = (late - early for early, late in zip(before, after, strict=True))
    share = waited / (3 * SECONDS * 1e9)
    return f", a claim: {refused / claims:.3f} refused, {aborted / claims:.3f} aborted; flow held {share:.1%}"


def say(name: str, writers: int, measured: tuple[float, float, float], plain: float | None, more: str = "") -> float:
    rate, middle, late = measured
    beside = f"{rate / plain:5.2f} x" if plain else "       "
    print(f"{name:34} {writers:3d} writers {rate:8.0f} claims/s {beside}  {middle:7.2f} ms, 99th {late:8.2f} ms{more}")
    return rate


def compare(ground: Ground, ways: dict[str, Callable[[], str]]) -> None:
    """Every way beside the first one, with one writer and with six."""
    for writers in (1, 6):
        plain = None
        for name, url in ways.items():
            rate = say(name, writers, ground.storm([url()], writers), plain)
            plain = plain or rate


def clustered(cluster: services.GaleraCluster, alone: Ground) -> None:
    """Writers at one node and at three, beside one server that replicates to nobody."""
    replicated = Ground(cluster)
    nodes = [cluster.at(node, replicated.url) for node in range(3)]
    for writers in (1, 6, 18):
        plain = say("MariaDB, PyMySQL", writers, alone.storm([alone.url], writers), None)
        for name, urls in (("Galera, one node", nodes[:1]), ("Galera, three nodes", nodes)):
            before = counted(cluster)
            measured = replicated.storm(urls, writers)
            claims = max(1.0, measured[0] * SECONDS)
            say(name, writers, measured, plain, conflicts(before, counted(cluster), claims))


# ---- guards that are writes


def _row_lock(connection: sa.Connection, table: sa.Table, key: sa.ColumnElement[bool]) -> sa.Row[Any] | None:
    """What `hold` was before it had to hold between nodes."""
    return connection.execute(sa.select(table).where(key).with_for_update()).one_or_none()


def _group_lock(session: Any, group: str) -> list[Any]:
    return session.all("SELECT policy, max_per_host FROM host_groups WHERE uuid = ? FOR UPDATE", (group,))


@contextmanager
def row_locks() -> Iterator[None]:
    """Without the writes: good on one server, and for this comparison only."""
    with (
        mock.patch.object(edits, "hold", _row_lock),
        mock.patch.object(embedded, "hold", _row_lock),
        mock.patch.object(host_groups, "_hold", _group_lock),
    ):
        yield


def guards(*servers: services.PostgreSQLServer | services.MariaDBServer) -> None:
    """Each guarded call with its write and with a lock instead, in turns that change about."""
    for server in servers:
        url = server.create_database()
        create_schema(url)
        with Database(url) as database, PlacementTree.open(database) as tree:
            for name, call in guarded(database, tree):
                written, locked, ratio = turn_by_turn(call)
                kind = database.engine.dialect.name
                print(
                    f"{name:34} {kind:12} with the write {1000 * written:6.2f} ms, with a lock {1000 * locked:6.2f} ms"
                    f"  {ratio:5.2f} x"
                )


def guarded(database: Database, tree: PlacementTree) -> Iterator[tuple[str, Callable[[int], object]]]:
    """The calls that a guard is part of."""
    parent = tree.add("parent").uuid
    yield "a child is added", lambda number: tree.add(f"child-{number}", parent=parent)
    volumes, instance = EmbeddedVolumes(database), str(uuid.uuid4())
    made = [volumes.create_volume().id for _ in range(50)]
    yield "a volume is reserved and freed", lambda n: volumes.delete(volumes.reserve(made[n % 50], instance).id)
    ledger = AllocationLedger(database)
    group = HostGroup(uuid=str(uuid.uuid4()), policy="soft-anti-affinity")
    hosts = [tree.add(f"host-{number}", inventory={"VCPU": 10_000}).uuid for number in range(50)]

    def join(number: int) -> None:
        def work(session: Any) -> dict[str, str]:
            host_groups.lock_group(session, group)
            return {}

        ledger.transact(Operation.of("bench.lock", {}), work)
        ledger.claim(str(uuid.uuid4()), {hosts[number % 50]: {"VCPU": 1}}, **OWNER)

    yield "a group is held, and a claim", join


TURN, TURNS = 5, 60


def turn_by_turn(call: Callable[[int], object]) -> tuple[float, float, float]:
    """Seconds of a call with its write and with a lock, and the first by the second: medians over pairs of turns."""
    numbers = iter(range(10**9))

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(TURN):
            call(next(numbers))
        return (time.perf_counter() - begun) / TURN

    pairs: list[tuple[float, float]] = []
    for number in range(TURNS + 1):
        if number % 2:
            written = turn()
        with row_locks():
            locked = turn()
        if not number % 2:
            written = turn()
        pairs.append((written, locked))
    del pairs[0]  # plans and caches
    return median(w for w, _ in pairs), median(k for _, k in pairs), median(w / k for w, k in pairs)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    _client.claim_run()
    try:
        postgresql, pooler = services.postgresql(durable=True), services.pgbouncer()
        ground = Ground(postgresql)
        compare(ground, {"PostgreSQL, fsync on": lambda: ground.url})
        shared = Ground(services.postgresql())
        through = shared.url.replace(f":{services.postgresql().port}/", f":{pooler.port}/") + "?pooler=transaction"
        compare(shared, {"PostgreSQL, fsync off": lambda: shared.url, "the same by PgBouncer": lambda: through})
        mariadb = Ground(services.mariadb(durable=True))
        drivers = {"MariaDB, PyMySQL": lambda: mariadb.url}
        drivers |= {
            f"the same by {name}": lambda name=name: services.address(name, mariadb.url)
            for name in ("mysqldb", "mariadbconnector")
        }
        compare(mariadb, drivers)
        clustered(services.galera(), mariadb)
        guards(postgresql, services.mariadb(durable=True))
    finally:
        _client.end_run()


if __name__ == "__main__":
    main()
