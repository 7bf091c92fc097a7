"""What every service needs from the machine: an unprivileged user, ports of its own, processes stopped by their pid.

Standard library only: the supervisor runs this, and so does `make services-up` before anything else is installed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CLOUDCORE_CACHE", REPOSITORY / ".cache"))
"""Where the set-up scripts put environments and images that outlive one run."""

BLOCK = 32
"""Ports are taken in aligned blocks of this many."""


class ServiceError(RuntimeError):
    """A service that is installed did not do what it was asked for."""


def as_root() -> bool:
    """Whether services must be started as another user than ours."""
    return os.geteuid() == 0


def unprivileged(command: Sequence[str]) -> list[str]:
    """The command, to be run as `nobody` where we are root: PostgreSQL, MariaDB and QEMU refuse or distrust root."""
    if not as_root():
        return list(command)
    return ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", *command]


def give(path: Path) -> Path:
    """Make the folder if need be, and hand it to the unprivileged user."""
    path.mkdir(parents=True, exist_ok=True)
    if as_root():
        shutil.chown(path, "nobody", "nogroup")
    return path


# ------------------------------------------------------------------------------------------------------------ ports


class Ports:
    """Blocks of free loopback ports that no other copy of the tests will take while this object lives.

    A block is claimed by binding an abstract unix socket that is named after it: the kernel drops the claim with the
    process, however that ends. Blocks lie below the range that the kernel gives to outgoing connections, so that
    nothing takes a port between our look and the server's bind.
    """

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []
        self._free: list[int] = []

    def one(self) -> int:
        """A single port."""
        if not self._free:
            self._free = list(self.block())
        return self._free.pop(0)

    def block(self) -> range:
        """A whole aligned block of `BLOCK` ports."""
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        starts = list(range(10240, min(low, 32768) - BLOCK, BLOCK))
        random.shuffle(starts)
        for start in starts:
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0cloudcore-ports-{start}")
            except OSError:
                claim.close()
                continue
            if all(map(_bindable, range(start, start + BLOCK))):
                self._claims.append(claim)
                return range(start, start + BLOCK)
            claim.close()
        raise ServiceError(f"no block of {BLOCK} free ports below {low} on 127.0.0.1")


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# -------------------------------------------------------------------------------------------------------- processes


def state_of(pid: int) -> tuple[str, int] | None:
    """(state letter, parent's pid) of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1])


def children(parent: int) -> Iterator[tuple[int, str]]:
    """(pid, state letter) of the processes that have this parent now."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := state_of(int(entry))) and found[1] == parent:
            yield int(entry), found[0]


class Daemon:
    """One server process: started with all three streams redirected, known by its pid, stopped by it."""

    started: ClassVar[list[Daemon]] = []
    """Every daemon that this process has started, for whoever collects the status of dead children."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._told = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def verify(self) -> None:
        """Nothing happens when it runs, was not started, or was told to end.

        Raises:
            ServiceError: it has ended by itself; the text says how, and has the end of its log.
        """
        if self._process is None or self._told or self.running():
            return
        raise ServiceError(f"{self.name} {self._fate()}:\n{self.tail()}")

    def _fate(self) -> str:
        code = self._process.returncode if self._process else 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with status {code}"

    def start(self, ready: Callable[[], bool], seconds: float = 150.0) -> None:
        """Start it and wait until `ready()`.

        Raises:
            ServiceError: it ended or did not get ready in time; the text has the end of its log.
        """
        if self.running():
            return
        if self not in self.started:
            self.started.append(self)
        self._told = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        self.wait(ready, seconds)

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`; ServiceError as from `start`."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running():
                raise ServiceError(f"{self.name} {self._fate()}:\n{self.tail()}")
            if time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise ServiceError(f"{self.name} was not ready after {seconds:g} s:\n{self.tail()}")
            time.sleep(0.03)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> None:
        """Send the signal, wait, send SIGKILL if that was not enough."""
        if self._process is None:
            return
        self._told = True
        self._process.send_signal(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(seconds)

    def tail(self, characters: int = 3000) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-characters:]
        return "(no log)"


def accepts(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = 120.0,
    stdin: bytes = b"",
) -> bytes:
    """Run a command to its end and return its output.

    Raises:
        ServiceError: it failed or took too long; the text has what it printed.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired as failure:
        raise ServiceError(f"{command[0]} took more than {seconds:g} s") from failure
    if done.returncode:
        text = (done.stdout + done.stderr).decode(errors="replace")[-3000:]
        raise ServiceError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{text}")
    return done.stdout
