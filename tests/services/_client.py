"""The side of the services that tests see: handles that ask the supervisor."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.services import _catalogue
from tests.services._host import REPOSITORY, ServiceError
from tests.waiting import until

RUN = "CLOUDCORE_TEST_RUN"
OWNER = "CLOUDCORE_TEST_OWNER"


def claim_run() -> None:
    """Name the folder of this run in the environment, which xdist's workers inherit. Called once by the controller.

    A folder named there beforehand (by `make services-up`) is used, and left alone at the end.
    """
    if OWNER not in os.environ and not (Path(os.environ.get(RUN, "/nowhere")) / "control").exists():
        os.environ[RUN] = str(Path(_scratch()) / f"cc-{os.getpid()}-{secrets.token_hex(3)}")
        os.environ[OWNER] = str(os.getpid())


def end_run() -> bool:
    """Stop every server of this run and wait for the end of the last; False if one is still there after a minute.

    Called by the controller; calling it again does nothing.
    """
    if os.environ.get(OWNER) != str(os.getpid()):
        return True
    folder = Path(os.environ[RUN])
    with contextlib.suppress(ServiceError, OSError):
        if folder.exists():
            call("", "shutdown")
    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not folder.exists()


def _scratch() -> str:
    """A folder that the unprivileged user can reach, with a short path: unix sockets allow about 100 characters."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = Path(candidate)
        reachable = all(part.stat().st_mode & 0o001 for part in (path, *path.parents))
        if len(candidate) < 40 and reachable and os.access(path, os.W_OK):
            return candidate
    raise ServiceError("no scratch folder that every user can reach: neither TMPDIR nor /tmp nor /var/tmp")


def _connect() -> socket.socket:
    """A connection to the supervisor, which is started if it does not run yet."""
    claim_run()
    folder = Path(os.environ[RUN])
    folder.mkdir(mode=0o711, exist_ok=True)
    folder.chmod(0o711)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "control").exists():
            _start_supervisor(folder)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(folder / "control"))
    return connection


def _start_supervisor(folder: Path) -> None:
    with (folder / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.services._supervisor", str(folder), os.environ.get(OWNER, "0")],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    while not (folder / "control").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServiceError(f"no supervisor: {(folder / 'supervisor.log').read_text()[-2000:]}")
        time.sleep(0.01)


def call(service: str, method: str, **arguments: object) -> Any:
    """Ask the supervisor; raises ServiceError with its words when it could not."""
    with _connect() as connection, connection.makefile("rw") as stream:
        stream.write(json.dumps({"service": service, "method": method, "arguments": arguments}) + "\n")
        stream.flush()
        line = stream.readline()
    if not line:
        raise ServiceError(f"the supervisor ended while it was asked for {service} {method}")
    answer = json.loads(line)
    if "error" in answer:
        raise ServiceError(f"{service} {method}: {answer['error']}")
    return answer["answer"]


def required(service: str) -> bool:
    """Whether CLOUDCORE_REQUIRE says that this service must be there."""
    wanted = os.environ.get("CLOUDCORE_REQUIRE", "").replace(",", " ").split()
    return "all" in wanted or service in wanted


def require(*services: str) -> None:
    """Skip the test, or fail it under CLOUDCORE_REQUIRE, if one of these cannot run on this machine.

    Names: postgresql, mariadb, galera, pgbouncer, libvirt, qemu, ceph, cinder, guest; drivers: mysqldb,
    mariadbconnector; and small-disk, which no installation gives, so that it is never a failure unless named.
    """
    for service in services:
        if reason := _catalogue.missing(service):
            if required(service) and service != "small-disk":
                pytest.fail(f"CLOUDCORE_REQUIRE={os.environ['CLOUDCORE_REQUIRE']}: {reason}", pytrace=False)
            pytest.skip(reason)


class Handle:
    """A server of this run, known by its name to the supervisor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.start()

    def start(self) -> None:
        """Start it, also after `kill` or `stop`. Returns when it is ready; nothing happens when it runs."""
        self.info: dict[str, Any] = call(self.name, "start")

    def stop(self) -> None:
        """Stop it as an operator would."""
        self.info = call(self.name, "stop")

    def kill(self) -> None:
        """kill -9."""
        self.info = call(self.name, "kill")

    @property
    def pid(self) -> int:
        """Of its main process."""
        return int(self.info["pid"])


class _DatabaseServer(Handle):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._count = 0

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        return int(self.info["port"])

    @property
    def admin_url(self) -> str:
        """A database that is always there, for statements about the server."""
        return self.url(self._maintenance)

    def url(self, database: str, port: int | None = None) -> str:
        """SQLAlchemy's URL of a database, on another port if a proxy stands between."""
        login = f"{self.info['user']}:{self.info['password']}"
        return f"{self._scheme}://{login}@127.0.0.1:{port or self.port}/{database}{self._options}"

    def create_database(self, prefix: str = "t") -> str:
        """Create an empty database; returns its URL."""
        name = f"{prefix}_{os.getpid()}_{secrets.token_hex(4)}"
        self.execute(self._create.format(name))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop it, ending the sessions that are still in it."""
        name = url.rsplit("/", 1)[1].split("?")[0]
        self.execute(self._drop.format(name))

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, outside any transaction; returns its rows."""
        raise NotImplementedError

    _scheme = _options = _maintenance = _create = _drop = ""


class PostgreSQLServer(_DatabaseServer):
    """A PostgreSQL server of this run."""

    _scheme, _options, _maintenance = "postgresql+psycopg", "", "postgres"
    _create = 'CREATE DATABASE "{}"'
    _drop = 'DROP DATABASE IF EXISTS "{}" WITH (FORCE)'

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        import psycopg

        login = {"user": self.info["user"], "password": self.info["password"], "dbname": self._maintenance}
        with psycopg.connect(host="127.0.0.1", port=self.port, autocommit=True, **login) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


class MariaDBServer(_DatabaseServer):
    """A MariaDB server of this run."""

    _scheme, _options, _maintenance = "mysql+pymysql", "?charset=utf8mb4", "mysql"
    _create = "CREATE DATABASE `{}` CHARACTER SET utf8mb4"
    _drop = "DROP DATABASE IF EXISTS `{}`"

    def drop_database(self, url: str) -> None:
        """Drop it, ending the sessions that are still in it: otherwise a forgotten transaction would hold this up."""
        name = url.rsplit("/", 1)[1].split("?")[0]
        for (session,) in self.execute(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with contextlib.suppress(Exception):  # it may have ended by itself
                self.execute(f"KILL {session}")
        super().drop_database(url)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        import pymysql

        login = {"user": self.info["user"], "password": self.info["password"], "database": self._maintenance}
        connection = pymysql.connect(host="127.0.0.1", port=self.port, autocommit=True, **login)
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []


def _name(kind: str, *, durable: bool, variant: str) -> str:
    words = [word for word in (variant, "durable" if durable else "") if word]
    return ":".join([kind, *words])


@functools.cache
def postgresql(*, durable: bool = False, variant: str = "") -> PostgreSQLServer:
    """The run's PostgreSQL, or with `variant` another one of your own; with `durable` fsync is left on."""
    require("postgresql")
    return PostgreSQLServer(_name("postgresql", durable=durable, variant=variant))


@functools.cache
def mariadb(*, durable: bool = False, variant: str = "") -> MariaDBServer:
    """The run's MariaDB, or with `variant` another one of your own; with `durable` its log is synced at each commit."""
    require("mariadb")
    return MariaDBServer(_name("mariadb", durable=durable, variant=variant))


class GaleraNode(MariaDBServer):
    """One node of the cluster, as a server."""

    def __init__(self, cluster: GaleraCluster, number: int) -> None:
        self.name, self.number, self._count = cluster.name, number, 0
        self.info = cluster.info

    @property
    def port(self) -> int:
        """On 127.0.0.1."""
        return int(self.info["ports"][self.number])


class GaleraCluster(MariaDBServer):
    """Three nodes, each of which takes writes. A database of one is a database of all; `port` is the first node's."""

    @property
    def nodes(self) -> list[GaleraNode]:
        """The nodes, each with `url` and `execute` of its own."""
        return [GaleraNode(self, number) for number in range(len(self.info["ports"]))]

    @property
    def port(self) -> int:
        """Of the first node."""
        return int(self.info["ports"][0])

    def create_database(self, prefix: str = "t") -> str:
        """Create an empty database that is there on every node; returns its URL at the first."""
        url = super().create_database(prefix)
        for node in self.nodes[1:]:
            deadline = time.monotonic() + 20
            while not node.execute(f"SHOW DATABASES LIKE '{url.rsplit('/', 1)[1].split('?')[0]}'"):
                assert time.monotonic() < deadline, "the database did not reach the other nodes"
                time.sleep(0.02)
        return url

    def at(self, node: int, url: str) -> str:
        """The same database at another node."""
        return url.replace(f":{self.port}/", f":{self.info['ports'][node]}/")

    def call(self, method: str, node: int) -> None:
        """`kill`, `stop`, `restart`, `pause` or `resume` one node; in a cluster of your own only."""
        call(self.name, method, node=node)

    def settle(self) -> None:
        """Return when the nodes that run, and no others, are the cluster; those that went away are put out by then."""
        call(self.name, "settle")


class PostgreSQLPair(PostgreSQLServer):
    """A primary with a standby; `port` and `kill` are the primary's."""

    @property
    def standby_port(self) -> int:
        """Of the standby."""
        return int(self.info["ports"][1])

    def catch_up(self) -> None:
        """Return when the standby shows what the primary has acknowledged: synchronous means that it keeps it."""
        ((here,),) = self.execute("SELECT pg_current_wal_lsn()")
        until(lambda: self.execute(f"SELECT 1 FROM pg_stat_replication WHERE replay_lsn >= '{here}'"))

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        call(self.name, "promote")


class Pooler(PostgreSQLServer):
    """PgBouncer before the run's PostgreSQL; databases are made and dropped behind its back."""

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return postgresql().execute(statement)

    def direct(self, url: str) -> str:
        """The same database without the pooler."""
        return url.replace(f":{self.port}/", f":{self.info['behind']}/")


@functools.cache
def galera(*, variant: str = "") -> GaleraCluster:
    """The run's cluster of three, or with `variant` another one of your own, to kill and stop nodes of."""
    require("galera")
    return GaleraCluster(_name("galera", durable=False, variant=variant))


@functools.cache
def postgresql_pair(*, variant: str, synchronous: bool = True) -> PostgreSQLPair:
    """A PostgreSQL with a standby, each variant once: after `promote` they are a pair no longer."""
    require("postgresql")
    return PostgreSQLPair(f"postgresql-pair:{variant}{'' if synchronous else '-asynchronous'}")


@functools.cache
def pgbouncer(*, variant: str = "") -> Pooler:
    """PgBouncer in transaction pooling before the run's PostgreSQL."""
    require("pgbouncer")
    return Pooler(_name("pgbouncer", durable=False, variant=variant))


def database_server(kind: str) -> PostgreSQLServer | MariaDBServer:
    """The run's server for a kind of database: postgresql, mariadb, galera, pgbouncer, or a driver of MariaDB's."""
    if kind in {"mysqldb", "mariadbconnector"}:
        require(kind)
        return mariadb()
    servers: dict[str, Any] = {"postgresql": postgresql, "mariadb": mariadb, "galera": galera, "pgbouncer": pgbouncer}
    server: PostgreSQLServer | MariaDBServer = servers[kind]()
    return server


def address(kind: str, url: str) -> str:
    """The URL of a server's database as cloudcore is given it."""
    if kind == "pgbouncer":
        return f"{url}?pooler=transaction"
    if kind in {"mysqldb", "mariadbconnector"}:
        return url.replace("+pymysql", f"+{kind}").split("?")[0]
    return url
