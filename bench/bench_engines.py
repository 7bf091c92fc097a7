"""What a claim costs on the set-ups of one database and of several: PostgreSQL, a pooler, MariaDB by driver, Galera.

The peer of each row is the plain set-up of the same server, on the same data in the same run: what is printed is what
the other set-up costs. On Galera also what the nodes report of conflicts and flow control. At the end what it costs
that guards are writes on a cluster (see docs/reference/database.md), and that they may have to be elsewhere: the calls
that make them, beside the same calls with the row lock that would do on one server, turn by turn.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import sqlalchemy as sa

from bench.harness import Bench
from bench.options import options
from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import EmbeddedVolumes
from cloudcore.attach.volumes import embedded
from cloudcore.database import Database, Operation
from cloudcore.placement.hosts import HostGroup
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.storage import edits
from tests import services

OWNER = {"project_id": "p", "user_id": "u"}
Storm = tuple[float, float, float]


def seconds(bench: Bench) -> float:
    """How long a storm lasts."""
    return 0.3 if bench.quick else 3.0


class Ground:
    """A database with hosts to claim of, reached by several ways."""

    def __init__(self, server: services.PostgreSQLServer | services.MariaDBServer) -> None:
        self.url = server.create_database()
        create_schema(self.url, areas=["placement"])
        with PlacementTree.open(self.url) as tree:
            names = [f"h{number}" for number in range(200)]
            self.hosts = [tree.add(name, inventory={"VCPU": 10_000}).uuid for name in names]

    def storm(self, urls: Sequence[str], writers: int, lasting: float) -> Storm:
        """Claims a second, and the middle and the 99th latency in milliseconds, with *writers* threads on *urls*."""
        ledgers = [AllocationLedger(Database(urls[number % len(urls)])) for number in range(writers)]
        latencies: list[list[float]] = [[] for _ in ledgers]
        over = time.monotonic() + lasting

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


def conflicts(before: list[int], after: list[int], claims: float, lasting: float) -> str:
    """What happened between two looks; flow control as a share of the nodes' time."""
    refused, aborted, waited = (late - early for early, late in zip(before, after, strict=True))
    share = waited / (3 * lasting * 1e9)
    return (
        f"; of 100 claims {100 * refused / claims:.1f} refused at commit, {100 * aborted / claims:.1f} undone for "
        f"another node's; flow held {share:.1%} of the time"
    )


def add(bench: Bench, name: str, writers: int, measured: Storm, plain: float | None, more: str = "") -> float:
    """A row: claims a second, beside those of the plain set-up."""
    rate, middle, late = measured
    what, _, beside = name.partition("; ")
    bench.record(
        f"{what}, {writers} writer{'s' if writers > 1 else ''}, claims/s" + (f"; {beside}" if beside else ""),
        ours=rate,
        peer=plain,
        ratio=rate / plain if plain else None,
        note=f"half of them within {middle:.2f} ms, 99 of 100 within {late:.2f} ms{more}",
    )
    return rate


def compare(bench: Bench, ground: Ground, ways: dict[str, Callable[[], str]]) -> None:
    """Every way beside the first one, with one writer and with six."""
    for writers in (1, 6):
        plain = None
        for name, url in ways.items():
            rate = add(bench, name, writers, ground.storm([url()], writers, seconds(bench)), plain)
            plain = plain or rate


def clustered(bench: Bench, cluster: services.GaleraCluster, alone: Ground) -> None:
    """Writers at one node and at three, beside one server that replicates to nobody."""
    replicated = Ground(cluster)
    nodes = [cluster.at(node, replicated.url) for node in range(3)]
    lasting = seconds(bench)
    for writers in (1, 6, 18):
        plain = alone.storm([alone.url], writers, lasting)[0]
        for name, urls in (("one node", nodes[:1]), ("three nodes", nodes)):
            before = counted(cluster)
            measured = replicated.storm(urls, writers, lasting)
            told = conflicts(before, counted(cluster), max(1.0, measured[0] * lasting), lasting)
            add(bench, f"Galera written at {name}; MariaDB alone", writers, measured, plain, told)


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


def guards(bench: Bench, servers: dict[str, services.PostgreSQLServer | services.MariaDBServer]) -> None:
    """Each guarded call as it is and with a lock of the row instead, in turns that change about."""
    for kind, server in servers.items():
        url = server.create_database()
        create_schema(url)
        with Database(url) as database, PlacementTree.open(database) as tree:
            for name, call in guarded(database, tree):
                whole, locked, ratio = turn_by_turn(call, 4 if bench.quick else TURNS)
                promised = None if isinstance(server, services.GaleraCluster) else PROMISED
                bench.record(
                    f"{name}, {kind}: with its guard; with a lock of the row, which holds on one node only, ms",
                    ours=1000 * whole,
                    peer=1000 * locked,
                    ratio=1 / ratio,
                    must=promised,
                    met=None if promised is None else 1 / ratio >= promised,
                    bound=None if promised is None else "ratio at least",
                    note="the ratio is the median of pairs of turns",
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
PROMISED = 0.95
"""A guard costs less than a twentieth where there is one server, which needs the lock alone."""


def turn_by_turn(call: Callable[[int], object], turns: int) -> tuple[float, float, float]:
    """Seconds of a call with its write and with a lock, and the first by the second: medians over pairs of turns."""
    numbers = iter(range(10**9))

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(TURN):
            call(next(numbers))
        return (time.perf_counter() - begun) / TURN

    pairs: list[tuple[float, float]] = []
    for number in range(turns + 1):
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
    with Bench("engines", options()) as bench:
        postgresql, pooler = services.postgresql(durable=True), services.pgbouncer()
        ground = Ground(postgresql)
        compare(bench, ground, {"PostgreSQL, fsync on": lambda: ground.url})
        shared = Ground(services.postgresql())
        through = shared.url.replace(f":{services.postgresql().port}/", f":{pooler.port}/") + "?pooler=transaction"
        ways = {"PostgreSQL, fsync off": lambda: shared.url, "by PgBouncer; PostgreSQL, fsync off": lambda: through}
        compare(bench, shared, ways)
        mariadb = Ground(services.mariadb(durable=True))
        drivers = {"MariaDB by PyMySQL": lambda: mariadb.url}
        drivers |= {
            f"MariaDB by {name}; by PyMySQL": lambda name=name: services.address(name, mariadb.url)
            for name in ("mysqldb", "mariadbconnector")
        }
        compare(bench, mariadb, drivers)
        clustered(bench, services.galera(), mariadb)
        durable = services.mariadb(durable=True)
        guards(bench, {"PostgreSQL": postgresql, "MariaDB": durable, "Galera at one node": services.galera()})


if __name__ == "__main__":
    main()
