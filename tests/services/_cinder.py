"""A real Cinder in one process, in an environment of its own: API, scheduler and one volume service.

The set-up script builds the environment in the cache. Two back ends: `rbd` on the run's Ceph, and `file`, a driver of
thirty lines that keeps volumes as plain files (it gives the whole attachments API without any package of Debian's).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.services._host import CACHE, Daemon, Ports, ServiceError, give

ENVIRONMENT = CACHE / "cinder"
SECRET = str(uuid.uuid5(uuid.NAMESPACE_DNS, "cloudcore.test"))
"""Id of the libvirt secret that the hosts keep the Ceph key under; Cinder hands it out with each RBD volume."""

FIXED_KEY = "5e" * 32
"""What opens every encrypted volume: the key of Cinder's own key manager, which has only one."""

_BACKENDS: dict[str, dict[str, object]] = {
    "rbd": {
        "volume_driver": "cinder.volume.drivers.rbd.RBDDriver",
        "rbd_secret_uuid": SECRET,
        "rados_connect_timeout": 5,
    },
    "file": {"volume_driver": "file_driver.FileDriver"},
}


class Cinder:
    """One Cinder. Its database and its volumes survive `kill`."""

    def __init__(self, folder: Path, ports: Ports, backend: str, ceph: Callable[[], dict[str, object]]) -> None:
        self._folder, self._port, self._backend, self._ceph = folder, ports.one(), backend, ceph
        self._images_port = ports.one()
        self._daemon: Daemon | None = None
        self._settings: dict[str, object] = {}

    def start(self, settings: Mapping[str, object] | None = None) -> None:
        """Start it; `settings` are for cinder.conf and hold from the next start on.

        They belong into section DEFAULT, those named like `keystone_authtoken/username` into that section.
        """
        self._settings.update(settings or {})
        if self._daemon is None:
            self._daemon = self._prepare()
        self.verify()
        if not self._daemon.running():
            self._control.unlink(missing_ok=True)
            self._write_configuration()
            self._daemon.start(self._healthy)

    def _prepare(self) -> Daemon:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        for name in ("state", "lock", "coordination", "images"):
            (self._folder / name).mkdir()
        give(self._folder / "volumes").chmod(0o755)
        here = Path(__file__).resolve().parent
        command = [str(ENVIRONMENT / "venv" / "bin" / "python"), str(here / "cinder_process.py"), str(self._control)]
        env = {
            "PATH": f"{self._quick_programs()}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(here / "cinder_drivers"),
            "PYTHONWARNINGS": "ignore",
            "CLOUDCORE_VOLUMES": str(self._folder / "volumes"),
            "CLOUDCORE_IMAGES": f"{self._images_port}:{self._folder / 'images'}",
        }
        command += ["--config-file", str(self._folder / "cinder.conf")]
        return Daemon("cinder", command, log=self._folder / "out", env=env, cwd=self._folder)

    def _quick_programs(self) -> Path:
        """A folder with a `ceph` that asks the real one for the monitors only once, and a `qemu-img` that makes LUKS
        containers which are opened quickly: the real one computes for seconds, to slow down those who guess. Where the
        system counts CPU time coarsely, the real one also gives up: its first look at how fast the machine is sees no
        time pass. Then it is told to look again.

        The RBD driver asks at every attach, and there is one monitor, which never changes; starting the program takes
        longer than everything else in an attach.
        """
        folder = self._folder / "bin"
        folder.mkdir(exist_ok=True)
        program, kept = folder / "ceph", self._folder / "monitors.json"
        real = shutil.which("ceph") or "/usr/bin/ceph"
        program.write_text(
            "#!/bin/sh\n"
            f'if [ "$1 $2" != "mon dump" ]; then exec {real} "$@"; fi\n'
            f'if [ ! -s {kept} ]; then {real} "$@" > {kept}.$$ && mv {kept}.$$ {kept} || exit 1; fi\n'
            f"cat {kept}\n"
        )
        program.chmod(0o755)
        program, real = folder / "qemu-img", shutil.which("qemu-img") or "/usr/bin/qemu-img"
        program.write_text(
            "#!/bin/sh\n"
            f'if [ "$1 $2 $3" != "create -f luks" ]; then exec {real} "$@"; fi\n'
            "shift 3\ntries=0\n"
            "while [ $tries -lt 100 ]; do\n"
            f'  if said=$({real} create -f luks -o iter-time=10 "$@" 2>&1); then exec echo "$said"; fi\n'
            '  case "$said" in *"accurate CPU usage"*) ;; *) break ;; esac\n'
            "  tries=$((tries + 1))\n"
            "done\n"
            'echo "$said" >&2; exit 1\n'
        )
        program.chmod(0o755)
        return folder

    @property
    def _control(self) -> Path:
        return self._folder / "control"

    def _write_configuration(self) -> None:
        etc = ENVIRONMENT / "venv" / "etc" / "cinder"
        backend = {"volume_backend_name": self._backend, **_BACKENDS[self._backend]}
        if self._backend == "rbd":
            ceph = self._ceph()
            backend |= {"rbd_pool": ceph["pool"], "rbd_user": ceph["user"], "rbd_ceph_conf": ceph["conf"]}
        default = {
            "host": "storage",
            "state_path": self._folder / "state",
            "api_paste_config": etc / "api-paste.ini",
            "resource_query_filters_file": etc / "resource_filters.json",
            "rootwrap_config": etc / "rootwrap.conf",
            "auth_strategy": "noauth",
            "glance_api_servers": f"http://127.0.0.1:{self._images_port}",
            "transport_url": "fake://",
            "osapi_volume_listen": "127.0.0.1",
            "osapi_volume_listen_port": self._port,
            "osapi_volume_workers": 1,
            "my_ip": "127.0.0.1",
            "enabled_backends": self._backend,
            "report_interval": 2,
            "service_down_time": 10,
            "rpc_response_timeout": 20,
            "periodic_fuzzy_delay": 0,
            "quota_volumes": -1,
            "quota_gigabytes": -1,
            "log_file": self._folder / "cinder.log",
            "use_stderr": "false",
            **{name: value for name, value in self._settings.items() if "/" not in name},
        }
        sections: dict[str, dict[str, object]] = {
            "DEFAULT": default,
            "database": {"connection": f"sqlite:///{self._folder / 'cinder.sqlite'}"},
            "oslo_concurrency": {"lock_path": self._folder / "lock"},
            "coordination": {"backend_url": f"file://{self._folder / 'coordination'}"},
            "key_manager": {"backend": "cinder.keymgr.conf_key_mgr.ConfKeyManager", "fixed_key": FIXED_KEY},
            # Where Nova would be told of a written image; without any address Cinder calls that an error.
            "nova": {"token_auth_url": "http://127.0.0.1:1"},
            self._backend: backend,
        }
        for name, value in self._settings.items():
            section, slash, option = name.partition("/")
            if slash:
                sections.setdefault(section, {})[option] = value
        lines = [
            line
            for section, values in sections.items()
            for line in (f"[{section}]", *(f"{key} = {value}" for key, value in values.items()))
        ]
        (self._folder / "cinder.conf").write_text("\n".join(lines) + "\n")

    def _healthy(self) -> bool:
        """Scheduler and volume service report themselves up; the API's own health check speaks for the API alone."""
        if not self._control.exists():
            return False
        address = f"http://127.0.0.1:{self._port}/v3/os-services"
        question = urllib.request.Request(address, headers={"X-Auth-Token": "admin:admin"})
        try:
            with urllib.request.urlopen(question, timeout=5) as answer:
                services = json.load(answer)["services"]
        except (OSError, ValueError):
            return False
        backends = str(self._settings.get("enabled_backends", self._backend)).split(",")
        return [service["state"] for service in services] == ["up"] * (1 + len(backends))

    def stop(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGTERM, 20)

    def kill(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGKILL)

    def verify(self) -> None:
        """ServiceError if it has ended although nobody told it to: it says how, and the last that it wrote."""
        if self._daemon:
            self._daemon.verify()

    def pause(self) -> None:
        """SIGSTOP: requests hang until `resume`."""
        assert self._daemon is not None
        self._daemon.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._daemon is not None
        self._daemon.send(signal.SIGCONT)

    def discard(self) -> None:
        if self._daemon:
            self._daemon.send(signal.SIGKILL)

    def tell(self, order: dict[str, object]) -> object:
        """Give an order to the running process: see `cinder_process.py`. Returns its answer, False for none."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self._control))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(order) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
        if "error" in answer:
            raise ServiceError(answer["error"])
        return answer["answer"] or False

    def info(self) -> dict[str, object]:
        return {
            "port": self._port,
            "backend": self._backend,
            "folder": str(self._folder),
            "log": str(self._folder / "cinder.log"),
            "secret": SECRET,
            "fixed_key": FIXED_KEY,
            "pid": self._daemon and self._daemon.pid,
        }


def installed() -> bool:
    """Whether the set-up script has built Cinder's environment."""
    return (ENVIRONMENT / "ready").exists()
