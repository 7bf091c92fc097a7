"""The guest that the tests boot, and its console.

`scripts/build-guest` makes kernel and initrd; `scripts/guest-init` is what runs inside. It takes commands over its
serial port, which is a unix socket outside.
"""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Self

from tests.services._host import CACHE

IMAGE = CACHE / "guest"


def built() -> bool:
    """Whether the set-up script has built kernel and initrd."""
    return (IMAGE / "initrd.gz").exists() and (IMAGE / "vmlinuz").exists()


class GuestFiles:
    """A copy of kernel and initrd in the run's folder, which QEMU's user can read wherever the repository lies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o755)
        for name in ("vmlinuz", "initrd.gz"):
            if not (self._folder / name).exists():
                shutil.copyfile(IMAGE / name, self._folder / name)
                (self._folder / name).chmod(0o644)

    def stop(self) -> None:
        """Files need no stopping."""

    def kill(self) -> None:
        """Files need no killing."""

    def info(self) -> dict[str, object]:
        return {"kernel": str(self._folder / "vmlinuz"), "initrd": str(self._folder / "initrd.gz"), "pid": 0}


class GuestConsole:
    """Runs shell commands in a guest, over the unix socket of its serial port.

    Connect right after the domain was started: what a guest says while nobody listens is lost, "ready" too. Not for
    several threads. A context manager.

    Args:
        path: of the socket; QEMU may still be about to create it.
        timeout: seconds that booting, or any command, may take.
        booting: wait until the guest says that it is up; False for a guest that is up already.
    """

    def __init__(self, path: str | Path, *, timeout: float = 120.0, booting: bool = True) -> None:
        self._timeout = timeout
        self._socket = self._connect(str(path))
        self._stream = self._socket.makefile("rb")
        self._number = int(time.time() * 1000) % 10**9  # an answer to an earlier console's command is not ours
        if booting:
            self.wait_until_up()

    def wait_until_up(self) -> None:
        """Wait until the guest says that it is up."""
        while self._line() != "%% up":
            pass

    def _connect(self, path: str) -> socket.socket:
        deadline = time.monotonic() + self._timeout
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(self._timeout)
            try:
                connection.connect(path)
            except OSError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return connection

    def _line(self) -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError("the guest's serial port was closed")
        return line.decode(errors="replace").rstrip("\r\n")

    def try_run(self, command: str) -> tuple[int, str]:
        """Run a one-line shell command; (exit code, output)."""
        self._number += 1
        self._socket.sendall(f"{self._number} {command}\n".encode())
        lines: list[str] = []
        while not (line := self._line()).startswith(f"%% {self._number} "):
            lines.append(line)
        while lines and not lines[-1]:
            lines.pop()
        return int(line.split()[2]), "\n".join(lines)

    def run(self, command: str) -> str:
        """Run a one-line shell command; its output. RuntimeError when it fails."""
        code, output = self.try_run(command)
        if code:
            raise RuntimeError(f"in the guest, {command!r} ended with {code}: {output}")
        return output

    def disk(self, serial: str) -> str | None:
        """Name ("vda") of the disk with this serial, None if there is none now. A guest sees 20 characters of it."""
        loop = "for d in /sys/block/*; do echo ${d##*/} $(cat $d/serial 2>/dev/null); done"
        for line in self.run(loop).splitlines():
            name, _, found = line.partition(" ")
            if found and found == serial[:20]:
                return name
        return None

    def wait_disk(self, serial: str, *, present: bool = True, seconds: float = 30.0) -> str | None:
        """Wait until the guest sees the disk, or sees it no more; AssertionError if that does not happen."""
        deadline = time.monotonic() + seconds
        while ((name := self.disk(serial)) is not None) != present:
            assert time.monotonic() < deadline, f"disk {serial} {'missing' if present else 'still there'}"
            time.sleep(0.05)
        return name

    def write(self, disk: str, block: int, text: str) -> None:
        """Write a line into a 4 KiB block, past every cache."""
        self.run(f"echo '{text}' | dd of=/dev/{disk} bs=4096 seek={block} conv=sync,fsync oflag=direct 2>/dev/null")

    def read(self, disk: str, block: int) -> str:
        """The first line of a 4 KiB block, past every cache."""
        return self.run(f"dd if=/dev/{disk} bs=4096 skip={block} count=1 iflag=direct 2>/dev/null | head -n 1")

    def size(self, disk: str) -> int:
        """Bytes of the disk, as the guest sees it."""
        return int(self.run(f"cat /sys/block/{disk}/size")) * 512

    def close(self) -> None:
        """Let go of the socket; the guest runs on."""
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
