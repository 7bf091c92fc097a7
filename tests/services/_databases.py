"""PostgreSQL and MariaDB from Debian's packages: private servers on loopback, run by the unprivileged user."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.services._host import Daemon, Ports, accepts, children, give, run, state_of, unprivileged

USER = "cloudcore"


def postgresql_binaries() -> Path | None:
    """Debian's folder of server binaries, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    other = shutil.which("postgres")
    return Path(other).resolve().parent if other else None


def mariadb_server() -> str | None:
    """Path of the MariaDB server program."""
    return shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def with_small_disk(folder: Path, command: list[str]) -> list[str]:
    """*command*, for which a file system of 20 MiB is mounted at *folder*, and for nobody else."""
    owner = folder.stat()
    size = f"size=20m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    script = f'mount -t tmpfs -o {size} small "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(folder), *command]


def mounts() -> bool:
    """Whether we may mount a file system for ourselves, which a container may forbid even to root."""
    probe = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs probe /mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, check=False, capture_output=True).returncode == 0
    )


class PostgreSQL:
    """One PostgreSQL server.

    `durable` leaves fsync as it is in production; otherwise only the operating system's crash could lose a commit,
    which no test can stage, and a scratch database is created in a tenth of the time. `synchronous_commit` is on
    in both: kill -9 loses nothing that was acknowledged. With `small_disk` it sees a file system of a few megabytes in
    its folder `small`, for a tablespace: mounted for this process alone, it is gone with it.
    """

    def __init__(
        self,
        folder: Path,
        ports: Ports,
        *,
        durable: bool,
        settings: Mapping[str, object] | None = None,
        copy_of: PostgreSQL | None = None,
        small_disk: bool = False,
    ) -> None:
        self._folder, self._port, self._durable = folder, ports.one(), durable
        self._settings, self._copy_of, self._small_disk = settings or {}, copy_of, small_disk
        self._password = secrets.token_hex(8) if copy_of is None else copy_of._password
        self._daemon: Daemon | None = None

    def start(self) -> None:
        if self._daemon is None:
            self._daemon = self._prepare()
        self._daemon.start(self._answers)

    def execute(self, statement: str) -> str:
        """Run one statement as the administrator; returns its rows as psql writes them."""
        binaries = postgresql_binaries()
        assert binaries is not None
        command = [str(binaries / "psql"), "-h", "127.0.0.1", "-p", str(self._port), "-U", USER, "-d", "postgres"]
        return run([*command, "-XAtc", statement], env={"PGPASSWORD": self._password}).decode()

    def _answers(self) -> bool:
        """The port is open during crash recovery too; only this tells the difference."""
        binaries = postgresql_binaries()
        assert binaries is not None
        command = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return subprocess.run(command, check=False).returncode == 0

    def _prepare(self) -> Daemon:
        binaries = postgresql_binaries()
        assert binaries is not None
        give(self._folder)
        data = self._folder / "data"
        if self._copy_of is None:
            self._initialise(binaries, data)
        else:
            self._copy(binaries, data, self._copy_of)
        fsync = "on" if self._durable else "off"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": "",
            "fsync": fsync,
            "full_page_writes": fsync,
            "max_connections": 200,
            "shared_buffers": "64MB",
            "dynamic_shared_memory_type": "mmap",  # leaves nothing in /dev/shm when killed
            "max_wal_size": "512MB",
            "log_statement": "none",
            "timezone": "UTC",
            **self._settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = unprivileged([str(binaries / "postgres"), "-D", str(data), *options])
        if self._small_disk:
            command = with_small_disk(give(self._folder / "small"), command)
        return Daemon("postgresql", command, log=self._folder / "log", cwd=self._folder)

    def _initialise(self, binaries: Path, data: Path) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password)
        secret.chmod(0o644)
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", USER, "-A", "password", "--pwfile", str(secret)]
        run(unprivileged([*initdb, "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]), cwd=self._folder)

    def _copy(self, binaries: Path, data: Path, primary: PostgreSQL) -> None:
        """Make a standby that follows *primary* under the name `standby`."""
        source = f"host=127.0.0.1 port={primary._port} user={USER} password={self._password} application_name=standby"
        copy = [str(binaries / "pg_basebackup"), "-D", str(data), "-d", source, "-R", "-c", "fast", "--no-sync"]
        run(unprivileged(copy), cwd=self._folder)

    def stop(self) -> None:
        """Immediate shutdown: no checkpoint, but its shared memory is given back."""
        if self._daemon:
            self._daemon.stop(signal.SIGQUIT)

    def kill(self) -> None:
        """kill -9 of the postmaster and of its sessions, which would outlive it by a moment and hold its memory."""
        if self._daemon is None or self._daemon.pid is None:
            return
        sessions = [pid for pid, _ in children(self._daemon.pid)]
        self._daemon.stop(signal.SIGKILL)
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any((found := state_of(pid)) and found[0] != "Z" for pid in sessions):
            time.sleep(0.005)

    def info(self) -> dict[str, object]:
        found = {"port": self._port, "user": USER, "password": self._password, "folder": str(self._folder)}
        return {**found, "pid": self._daemon and self._daemon.pid}


class MariaDB:
    """One MariaDB server.

    `durable` as in `PostgreSQL`: without it the log is written but not synced at each commit, and there is no binary
    log, which production has for its replicas.
    """

    def __init__(self, folder: Path, ports: Ports, *, durable: bool) -> None:
        self._folder, self._port, self._durable = folder, ports.one(), durable
        self._password = secrets.token_hex(8)
        self._daemon: Daemon | None = None

    def start(self) -> None:
        if self._daemon is None:
            self._daemon = self._prepare()
        self._daemon.start(lambda: accepts(self._port))

    def _prepare(self) -> Daemon:
        server = mariadb_server()
        assert server is not None
        give(self._folder)
        data, scratch = give(self._folder / "data"), give(self._folder / "tmp")
        # A folder of its own for temporary tables: in a shared one, each server that starts removes the others'.
        common = ["--no-defaults", f"--datadir={data}", f"--tmpdir={scratch}", "--innodb-log-file-size=64M"]
        install = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
        run(unprivileged(install), cwd=self._folder)
        accounts = self._folder / "accounts.sql"
        accounts.write_text(
            f"ALTER USER root@localhost IDENTIFIED BY '{self._password}';\n"
            f"CREATE USER IF NOT EXISTS {USER}@'127.0.0.1' IDENTIFIED BY '{self._password}';\n"
            f"GRANT ALL ON *.* TO {USER}@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        accounts.chmod(0o644)
        settings = [
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            f"--socket={self._folder / 'sock'}",
            f"--pid-file={self._folder / 'pid'}",
            f"--init-file={accounts}",
            "--skip-name-resolve",
            *(["--log-bin=binlog", "--sync-binlog=1", "--server-id=1"] if self._durable else ["--skip-log-bin"]),
            "--character-set-server=utf8mb4",
            "--innodb-buffer-pool-size=96M",
            f"--innodb-flush-log-at-trx-commit={1 if self._durable else 2}",
            "--innodb-lock-wait-timeout=20",
            "--lock-wait-timeout=60",
            "--max-connections=200",
            "--performance-schema=OFF",
            "--default-time-zone=+00:00",
        ]
        if not self._durable:
            settings += ["--innodb-flush-method=nosync", "--innodb-doublewrite=0"]
        command = unprivileged([server, *common, *settings])
        return Daemon("mariadb", command, log=self._folder / "log", cwd=self._folder)

    def stop(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGTERM)

    def kill(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGKILL)

    def info(self) -> dict[str, object]:
        return {"port": self._port, "user": USER, "password": self._password, "pid": self._daemon and self._daemon.pid}
