"""A small real Ceph: one monitor, one OSD in memory, one manager, on loopback, as the unprivileged user.

The manager is not decoration: without it `ceph df` lists no pool, and Cinder's driver asks that for its statistics.
"""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.services._host import Daemon, Ports, ServiceError, give, run, unprivileged

POOL = "volumes"
CLIENT = "cinder"

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
ms_bind_ipv6 = false
ms_bind_port_min = {low}
ms_bind_port_max = {high}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
crash_dir = {folder}/log
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
[mon]
mon_data = {folder}/mon
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_cluster_log_file = {folder}/log/cluster.log
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_memory_target = 939524096
osd_class_dir = {classes}
[mgr]
mgr_data = {folder}/mgr
mgr_initial_modules = iostat
[client]
admin_socket =
log_file =
rbd_default_features = 61
"""

_KEYS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    f"client.{CLIENT}": {"mon": "profile rbd", "osd": "profile rbd", "mgr": "profile rbd"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
    "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
}


class Ceph:
    """One cluster. What is written lives in the OSD's memory: `kill` loses the volumes, `pause` does not."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self._folder, self._ports = folder, ports.block()
        self._daemons: dict[str, Daemon] = {}

    @property
    def _configuration(self) -> Path:
        return self._folder / "ceph.conf"

    def start(self) -> None:
        if self._daemons:
            return
        give(self._folder)
        for name in ("mon", "osd", "mgr", "run", "log"):
            give(self._folder / name)
        monitor, fsid = self._configure()
        self._make_keys()
        self._start_monitor(monitor, fsid)
        osd = str(uuid.uuid4())
        self.command("osd", "new", osd, "0")
        self._tool("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd, "--no-mon-config")
        self._start("osd", "ceph-osd", "-f", "-i", "0", "--no-mon-config")
        self._start("mgr", "ceph-mgr", "-f", "-i", "x")
        self._wait("osd", lambda: json.loads(self.command("osd", "stat", "-f", "json"))["num_up_osds"] == 1)
        self.command("osd", "pool", "create", POOL, "8", "8", "replicated")
        self._tool("rbd", "pool", "init", POOL)
        self._wait("mgr", self._lists_pool)

    def _configure(self) -> tuple[str, str]:
        first = self._ports.start
        monitor = f"[v2:127.0.0.1:{first},v1:127.0.0.1:{first + 1}]"
        fsid = str(uuid.uuid4())
        text = _CONFIGURATION.format(
            fsid=fsid,
            monitor=monitor,
            folder=self._folder,
            low=first + 2,
            high=self._ports.stop - 1,
            classes=next(Path("/usr/lib").glob("*/rados-classes"), ""),
        )
        self._configuration.write_text(text)
        return monitor, fsid

    def _make_keys(self) -> None:
        keyring = self._folder / "keyring"
        run(["ceph-authtool", "-C", str(keyring)])
        for name, rights in _KEYS.items():
            caps = [word for part, what in rights.items() for word in ("--cap", part, what)]
            run(["ceph-authtool", str(keyring), "-n", name, "--gen-key", *caps])
        keyring.chmod(0o644)  # QEMU's user has its key from libvirt; the daemons read theirs here

    def _start_monitor(self, monitor: str, fsid: str) -> None:
        monmap = str(self._folder / "monmap")
        release = ["--set-min-mon-release", "pacific"]
        run(["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitor, *release, monmap])
        keyring = str(self._folder / "keyring")
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._start("mon", "ceph-mon", "-f", "-i", "a")
        self.command("mon", "stat")

    def _start(self, name: str, program: str, *arguments: str) -> None:
        command = unprivileged([program, *arguments, "-c", str(self._configuration)])
        daemon = Daemon(f"ceph {name}", command, log=self._folder / "log" / f"{name}.out", cwd=self._folder)
        daemon.start(lambda: True)
        self._daemons[name] = daemon

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """The daemon runs already; wait until the cluster says so."""
        self._daemons[name].wait(ready, 150)

    def _lists_pool(self) -> bool:
        pools = json.loads(self.command("df", "-f", "json"))["pools"]
        return any(pool["name"] == POOL for pool in pools)

    def _tool(self, program: str, *arguments: str) -> str:
        command = [program, "-c", str(self._configuration), *arguments]
        return run(unprivileged(command), cwd=self._folder).decode()

    def command(self, *words: str) -> str:
        """`ceph WORDS` as the administrator; its output."""
        return self._tool("ceph", "--connect-timeout", "30", *words)

    def rbd(self, words: list[str]) -> str:
        """`rbd WORDS` as the administrator; its output."""
        return self._tool("rbd", "-p", POOL, *words)

    def ceph(self, words: list[str]) -> str:
        """As `command`, for clients."""
        return self.command(*words)

    def pause(self) -> None:
        """Stop the OSD in its tracks (SIGSTOP): reads and writes hang until `resume`."""
        self._daemons["osd"].send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the OSD go on."""
        self._daemons["osd"].send(signal.SIGCONT)

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.stop(signal.SIGKILL)
        if self._daemons:
            raise ServiceError("the cluster's memory is gone; ask for another variant")

    def discard(self) -> None:
        for daemon in self._daemons.values():
            daemon.send(signal.SIGKILL)

    def info(self) -> dict[str, object]:
        key = run(["ceph-authtool", str(self._folder / "keyring"), "-n", f"client.{CLIENT}", "-p"]).decode().strip()
        return {
            "conf": str(self._configuration),
            "keyring": str(self._folder / "keyring"),
            "user": CLIENT,
            "key": key,
            "pool": POOL,
            "port": self._ports.start + 1,
            "pid": self._daemons["mon"].pid,
        }
