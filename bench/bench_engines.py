"""What a claim costs on the set-ups of one database and of several: PostgreSQL, a pooler, MariaDB by driver, Galera.

The peer of each row is the plain set-up of the same server, on the same data in the same run: what is printed is what
the other set-up costs. On Galera also what the nodes report of conflicts and flow control.
"""

from __future__ import annotations

import argparse
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.database import Database
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


def conflicts(cluster: services.GaleraCluster) -> tuple[int, float]:
    """Writes refused at certification or aborted for another node's, and the share of time that flow was held."""
    names = "'wsrep_local_cert_failures', 'wsrep_local_bf_aborts', 'wsrep_flow_control_paused'"
    counted, paused = 0, 0.0
    for node in cluster.nodes:
        for name, value in node.execute(f"SHOW GLOBAL STATUS WHERE variable_name IN ({names})"):
            if "paused" in name.lower():
                paused = max(paused, float(value))
            else:
                counted += int(value)
    return counted, paused


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
        cluster = services.galera()
        replicated = Ground(cluster)
        nodes = [cluster.at(node, replicated.url) for node in range(3)]
        for writers in (1, 6, 18):
            plain = None
            for name, urls in (("Galera, one node", nodes[:1]), ("Galera, three nodes", nodes)):
                before, _ = conflicts(cluster)
                measured = replicated.storm(urls, writers)
                after, paused = conflicts(cluster)
                share = (after - before) / max(1.0, measured[0] * SECONDS)
                rate = say(name, writers, measured, plain, f", {share:.3f} conflicts a claim, flow held {paused:.1%}")
                plain = plain or rate
    finally:
        _client.end_run()


if __name__ == "__main__":
    main()
