"""Real servers for the tests: PostgreSQL, MariaDB, libvirt with QEMU, Ceph, Cinder, and a guest that boots in seconds.

    from tests.services import require, postgresql, mariadb, libvirt_hosts, ceph, cinder, guest

Each function starts its server on the first call of the whole run and returns a handle; later calls, in any xdist
worker, return a handle on the same server. A test that uses none of them starts nothing. All listen on 127.0.0.1 and on
ports that no other copy uses; all files are in a scratch folder of the run; all of it is gone when the run has ended,
even after kill -9 (see `_supervisor`).

If what a service needs is not installed the test is skipped with the reason and the line that installs it, or fails
when `CLOUDCORE_REQUIRE=all` (or names the service). A service that is installed and does not start is an error.

Databases
    server = postgresql()            # or mariadb(); durable=True gives another server with fsync left on
    url = server.create_database()   # fresh and empty; server.drop_database(url) when done
    server.port; server.admin_url    # for proxies (tests.faults.Proxy); an existing maintenance database
    server.kill(); server.start()    # kill -9 and crash recovery. SHARED: use a variant of your own, below
    cluster = galera()               # three MariaDB nodes: .nodes .at(1, url); .call("kill" or "pause", node) .settle()
    pair = postgresql_pair(variant="word")   # primary and standby: .port .standby_port .kill() .promote()
    server = database_server("galera"); url = address("galera", server.create_database())    # any kind by its name
    pooler = pgbouncer()             # PgBouncer in transaction pooling before postgresql(): .direct(url)

Virtualisation and storage (each is described at its function)
    host_a, host_b = libvirt_hosts(2)        # two private libvirtd with QEMU: .uri .folder .kill() .start()
    storage = ceph()                         # .conf .keyring .user .key .pool .rbd("ls") .command("status")
    service = cinder()                       # real Cinder, driver of files; cinder("rbd") on Ceph
                                             # .endpoint .client() .kill() .start() .stop_volume_service() .fault(...)
    image = guest()                          # .kernel .initrd; GuestConsole(socket_path) talks to it

Sharing and breaking
    The servers are shared by all tests of a run, in two workers at once. A test that kills or pauses one asks for its
    own by `variant="some-word"` (`postgresql(variant="crash")`, `cinder(variant="crash")`); tests that share a variant
    carry the same `@pytest.mark.xdist_group("some-word")`.
"""

from __future__ import annotations

from tests.services._client import (
    GaleraCluster,
    MariaDBServer,
    Pooler,
    PostgreSQLPair,
    PostgreSQLServer,
    address,
    database_server,
    galera,
    mariadb,
    pgbouncer,
    postgresql,
    postgresql_pair,
    require,
)
from tests.services._cloud import (
    PROJECT,
    CephCluster,
    CinderService,
    GuestImage,
    LibvirtHost,
    ceph,
    cinder,
    guest,
    libvirt_hosts,
)
from tests.services._guest import GuestConsole
from tests.services._host import ServiceError

__all__ = [
    "PROJECT",
    "CephCluster",
    "CinderService",
    "GaleraCluster",
    "GuestConsole",
    "GuestImage",
    "LibvirtHost",
    "MariaDBServer",
    "Pooler",
    "PostgreSQLPair",
    "PostgreSQLServer",
    "ServiceError",
    "address",
    "ceph",
    "cinder",
    "database_server",
    "galera",
    "guest",
    "libvirt_hosts",
    "mariadb",
    "pgbouncer",
    "postgresql",
    "postgresql_pair",
    "require",
]
