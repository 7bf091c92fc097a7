"""More than one database process: a Galera cluster, PostgreSQL with a standby, and a pooler before PostgreSQL.

All on loopback, by the unprivileged user, without settings that a production would not have; only the time-outs of a
cluster of one's own are short, so that a dead node is noticed in seconds.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.services._databases import USER, PostgreSQL, mariadb_server
from tests.services._host import Daemon, Ports, ServiceError, accepts, give, run, unprivileged


def galera_provider() -> Path | None:
    """The replication library of Debian's package galera-4."""
    found = [path for path in map(Path, _PROVIDERS) if path.exists()]
    return found[0] if found else None


_PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib/x86_64-linux-gnu/libgalera_smm.so")
NODES = 3
_STATUS = ("wsrep_ready", "wsrep_local_state_comment", "wsrep_cluster_size", "wsrep_cluster_conf_id")
_PATIENCE = 150.0


class Galera:
    """Three MariaDB nodes that replicate each commit to one another; every node takes writes."""

    def __init__(self, folder: Path, ports: Ports, *, impatient: bool) -> None:
        self._folder, self._impatient = folder, impatient
        block = ports.block()
        self._sql = [block[node] for node in range(NODES)]
        self._group = [block[8 + 4 * node] for node in range(NODES)]  # each: the group, then incremental, then full
        self._password = secrets.token_hex(8)
        self._daemons: list[Daemon] = []
        self._paused: set[int] = set()

    def start(self) -> None:
        """Start the nodes that do not run; the very first time node 0 makes the cluster."""
        if not self._daemons:
            give(self._folder)
            self._install()
            self._daemons = [self._daemon(node, new_cluster=node == 0) for node in range(NODES)]
            self._begin(0)
            self._daemons[0].command[-2:] = []  # started again it joins the others
            for node in range(1, NODES):
                self._begin(node)
            self.settle()
        else:
            for node in range(NODES):
                self.restart(node)

    def restart(self, node: int) -> None:
        """Start a node that was killed or stopped; returns when it is one of the cluster, and has caught up."""
        if not self._daemons[node].running():
            self._begin(node)
            self.settle()

    def settle(self) -> None:
        """Return when the nodes that run and are not paused agree that they, and no others, are the cluster.

        One that was paused believes for a moment that it still belongs to it.
        """
        members = [node for node in range(NODES) if self._daemons[node].running() and node not in self._paused]
        self._daemons[members[0]].wait(lambda: self._agreed(members), _PATIENCE)

    def _agreed(self, members: list[int]) -> bool:
        states = [self._state(node) for node in members]
        ready = all(_has_joined(state) and state["wsrep_cluster_size"] == str(len(members)) for state in states)
        return ready and len({state["wsrep_cluster_conf_id"] for state in states}) == 1

    def _begin(self, node: int) -> None:
        self._daemons[node].start(lambda: _has_joined(self._state(node)), _PATIENCE)

    def _state(self, node: int) -> dict[str, str]:
        """What a node says of itself and its cluster; nothing while it does not answer."""
        if not accepts(self._sql[node]):
            return {}
        login = ["-h127.0.0.1", f"-P{self._sql[node]}", f"-u{USER}", f"-p{self._password}"]
        question = f"SHOW STATUS WHERE variable_name IN {_STATUS}"
        asked = ["mariadb", "--no-defaults", *login, "--connect-timeout=2", "-NBe", question]
        with contextlib.suppress(ServiceError):
            return dict(line.split("\t", 1) for line in run(asked, seconds=5).decode().splitlines())
        return {}

    def _install(self) -> None:
        """An empty server for node 0; the others get everything from it, the accounts too."""
        for node in range(NODES):
            for folder in ("", "tmp", "data"):
                give(self._folder / f"n{node}" / folder)
        first = self._folder / "n0"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={first / 'data'}", f"--tmpdir={first / 'tmp'}"]
        install += ["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=64M"]
        run(unprivileged(install), cwd=first)
        accounts = self._folder / "accounts.sql"
        accounts.write_text(
            f"ALTER USER root@localhost IDENTIFIED BY '{self._password}';\n"
            f"CREATE USER IF NOT EXISTS {USER}@'127.0.0.1' IDENTIFIED BY '{self._password}';\n"
            f"GRANT ALL ON *.* TO {USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        accounts.chmod(0o644)

    def _daemon(self, node: int, *, new_cluster: bool) -> Daemon:
        folder, group = self._folder / f"n{node}", self._group[node]
        members = ",".join(f"127.0.0.1:{port}" for port in self._group)
        provider = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{group}",
            "ist.recv_addr": f"127.0.0.1:{group + 1}",
            "base_port": group,
            "gcache.size": "64M",
            "evs.keepalive_period": "PT0.5S",
            "evs.suspect_timeout": "PT3S" if self._impatient else "PT20S",  # a busy machine is no dead node
            "evs.inactive_timeout": "PT6S" if self._impatient else "PT40S",
        }
        settings = [
            f"--datadir={folder / 'data'}",
            f"--tmpdir={folder / 'tmp'}",
            f"--socket={folder / 'sock'}",
            f"--pid-file={folder / 'pid'}",
            f"--port={self._sql[node]}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-flush-log-at-trx-commit=2",  # the other nodes have it too
            "--innodb-buffer-pool-size=96M",
            "--innodb-log-file-size=64M",
            "--max-connections=300",
            "--wsrep-on=ON",
            f"--wsrep-provider={galera_provider()}",
            "--wsrep-cluster-name=cloudcore",
            f"--wsrep-cluster-address=gcomm://{members}",
            f"--wsrep-node-name=n{node}",
            f"--wsrep-node-address=127.0.0.1:{group}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address=127.0.0.1:{group + 2}",
            # With several, CREATE INDEX on a table with a foreign key and the next write to the table that it refers to
            # are applied side by side, and may wait for each other for ever: the next test creates its tables soon.
            f"--wsrep-slave-threads={2 if self._impatient else 1}",
            f"--wsrep-provider-options={';'.join(f'{name}={value}' for name, value in provider.items())}",
        ]
        server = mariadb_server()
        assert server is not None
        first = ["--wsrep-new-cluster", f"--init-file={self._folder / 'accounts.sql'}"] if new_cluster else []
        command = [server, "--no-defaults", *settings, *first]
        return Daemon(f"galera node {node}", unprivileged(command), log=folder / "log", cwd=folder)

    def stop(self, node: int | None = None) -> None:
        """Orderly: the node leaves the cluster. All of them without a number, the first last."""
        for number in reversed(range(NODES)) if node is None else [node]:
            if len(self._daemons) > number:
                self._daemons[number].stop(signal.SIGTERM, seconds=30)

    def discard(self) -> None:
        """The end of the run: nothing is kept."""
        for daemon in self._daemons:
            daemon.send(signal.SIGCONT)
            daemon.stop(signal.SIGKILL)

    def kill(self, node: int | None = None) -> None:
        """kill -9 of one node, or of all."""
        for number in range(NODES) if node is None else [node]:
            self._daemons[number].stop(signal.SIGKILL)

    def pause(self, node: int) -> None:
        """SIGSTOP: it holds its connections and answers nobody; the others put it out after some seconds."""
        self._daemons[node].send(signal.SIGSTOP)
        self._paused.add(node)

    def resume(self, node: int) -> None:
        """SIGCONT; returns when it is one of the cluster again, and has caught up."""
        self._daemons[node].send(signal.SIGCONT)
        self._paused.discard(node)
        self.settle()

    def info(self) -> dict[str, object]:
        return {"ports": self._sql, "user": USER, "password": self._password, "pid": self._pids()[0]}

    def _pids(self) -> list[int | None]:
        return [daemon.pid for daemon in self._daemons] or [None]


def _has_joined(state: dict[str, str]) -> bool:
    """It has joined and caught up: the port alone is open before."""
    return state.get("wsrep_ready") == "ON" and state.get("wsrep_local_state_comment") == "Synced"


class Pair:
    """PostgreSQL with a standby in streaming replication: every commit waits for it (`synchronous`), or none does."""

    def __init__(self, folder: Path, ports: Ports, *, synchronous: bool) -> None:
        self._folder, self._ports, self._synchronous = folder, ports, synchronous
        self._servers: list[PostgreSQL] = []
        self._down: set[int] = set()

    def start(self) -> None:
        """A primary and its standby. Once promoted, they are a pair no longer: use another variant."""
        if self._servers:
            return
        give(self._folder)
        primary = PostgreSQL(self._folder / "primary", self._ports, durable=False, settings={"wal_keep_size": "64MB"})
        primary.start()
        standby = PostgreSQL(
            self._folder / "standby", self._ports, durable=False, copy_of=primary, settings={"hot_standby": "on"}
        )
        standby.start()
        self._servers = [primary, standby]
        if self._synchronous:
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            primary.execute("SELECT pg_reload_conf()")
        wanted = "streaming|sync" if self._synchronous else "streaming|async"  # the setting counts when it is heeded
        deadline = time.monotonic() + _PATIENCE
        while wanted not in primary.execute("SELECT state, sync_state FROM pg_stat_replication"):
            if time.monotonic() > deadline:
                raise ServiceError(f"the standby is not {wanted}")
            time.sleep(0.05)

    def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        self._servers[1].execute("SELECT pg_promote(true, 60)")

    def stop(self) -> None:
        for server in reversed(self._servers):
            server.stop()

    def kill(self) -> None:
        """kill -9 of the primary."""
        self._servers[0].kill()

    def info(self) -> dict[str, object]:
        found = [server.info() for server in self._servers]
        if not found:
            return {}
        return {**found[0], "ports": [each["port"] for each in found]}


class Pooler:
    """PgBouncer in transaction pooling before a PostgreSQL, with few server connections that all clients share."""

    def __init__(self, folder: Path, ports: Ports, behind: Callable[[], dict[str, object]]) -> None:
        self._folder, self._port, self._behind = folder, ports.one(), behind
        self._daemon: Daemon | None = None
        self._server: dict[str, object] = {}

    def start(self) -> None:
        if self._daemon is None:
            self._daemon = self._prepare()
        self._daemon.start(lambda: accepts(self._port))

    def _prepare(self) -> Daemon:
        give(self._folder)
        server = self._server = self._behind()
        users = self._folder / "users"
        users.write_text(f'"{server["user"]}" "{server["password"]}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self._port,
            "unix_socket_dir": "",
            "auth_type": "plain",
            "auth_file": users,
            "admin_users": server["user"],
            "pool_mode": "transaction",
            "default_pool_size": 6,
            "max_client_conn": 500,
            "query_wait_timeout": 60,
            "server_idle_timeout": 5,
            "logfile": self._folder / "pgbouncer.log",
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={server['port']}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        for path in (users, configuration):
            path.chmod(0o644)
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert program is not None
        command = unprivileged([program, str(configuration)])
        return Daemon("pgbouncer", command, log=self._folder / "log", cwd=self._folder)

    def stop(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGTERM)

    def kill(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGKILL)

    def info(self) -> dict[str, object]:
        return {
            **self._server,
            "port": self._port,
            "behind": self._server.get("port"),
            "pid": self._daemon and self._daemon.pid,
        }
