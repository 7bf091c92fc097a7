"""Private, unprivileged libvirt daemons: each is one pretended compute host with QEMU (software emulation)."""

from __future__ import annotations

import signal
import socket
import uuid
from pathlib import Path

from tests.services._host import Daemon, Ports, give, unprivileged


class LibvirtHost:
    """One libvirtd. Its guests are processes of their own and live on when it is stopped or killed."""

    def __init__(self, folder: Path, ports: Ports) -> None:
        self._folder, self._ports = folder, ports.block()
        self._uuid = str(uuid.uuid4())
        self._daemon: Daemon | None = None

    @property
    def _socket(self) -> Path:
        return self._folder / "run" / "libvirt" / "libvirt-sock"

    def start(self) -> None:
        if self._daemon is None:
            self._daemon = self._prepare()
        self._daemon.start(self._answers)

    def _prepare(self) -> Daemon:
        folders = {
            "XDG_RUNTIME_DIR": "run",
            "XDG_CONFIG_HOME": "config",
            "XDG_CACHE_HOME": "cache",
            "XDG_DATA_HOME": "data",
        }
        give(self._folder)
        for name in (*folders.values(), "config/libvirt", "images"):
            give(self._folder / name)
        (self._folder / "images").chmod(0o777)
        (self._folder / "libvirtd.conf").write_text(
            f'host_uuid = "{self._uuid}"\nlog_outputs = "2:file:{self._folder}/libvirtd.log"\n'
        )
        (self._folder / "config" / "libvirt" / "qemu.conf").write_text(
            'stdio_handler = "file"\nsecurity_driver = "none"\nnamespaces = [ ]\ncgroup_controllers = [ ]\n'
            f"migration_port_min = {self._ports.start}\nmigration_port_max = {self._ports.stop - 1}\n"
        )
        command = ["/usr/sbin/libvirtd", "-f", f"{self._folder}/libvirtd.conf", "-p", f"{self._folder}/pid"]
        env = {name: str(self._folder / sub) for name, sub in folders.items()} | {"HOME": str(self._folder)}
        return Daemon("libvirtd", unprivileged(command), log=self._folder / "out", env=env, cwd=self._folder)

    def _answers(self) -> bool:
        """A socket file alone may be left from a daemon that was killed."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
        return True

    def stop(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGTERM)

    def kill(self) -> None:
        if self._daemon:
            self._daemon.stop(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: calls hang until `resume`."""
        assert self._daemon is not None
        self._daemon.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._daemon is not None
        self._daemon.send(signal.SIGCONT)

    def discard(self) -> None:
        if self._daemon:
            self._daemon.send(signal.SIGKILL)

    def info(self) -> dict[str, object]:
        return {
            "uri": f"qemu+unix:///session?socket={self._socket}",
            "folder": str(self._folder),
            "images": str(self._folder / "images"),
            "host_uuid": self._uuid,
            "migration_port": self._ports.stop - 1,
            "pid": self._daemon and self._daemon.pid,
        }
