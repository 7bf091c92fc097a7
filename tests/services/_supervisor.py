"""The process that owns the test servers of one run: starts them when first asked, outlives no one.

    python -m tests.services._supervisor RUN_FOLDER [OWNER_PID]

It listens on `RUN_FOLDER/control` for one JSON request a line. It ends, and everything below it, when it is told
`shutdown` or when the owner (the pytest controller) ends, however that happens: a pidfd of the owner says so.

Two processes, so that not even kill -9 leaves anything behind: the inner one works; the outer one waits for it, then
kills whatever processes are left and removes the run folder. Both adopt orphans (PR_SET_CHILD_SUBREAPER), hence also
processes that detach themselves, as QEMU does, are found. If the outer one is killed the kernel tells the inner.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.services import _catalogue
from tests.services._host import Daemon, Ports, children

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Service(Protocol):
    """What the supervisor asks of a service; further public methods may be called by name."""

    def start(self) -> None:
        """Start it or start it again; nothing when it runs."""

    def stop(self) -> None:
        """Stop it in an orderly way."""

    def kill(self) -> None:
        """kill -9."""

    def info(self) -> dict[str, object]:
        """What a client needs to reach it."""


class Supervisor:
    """Runs services by name; requests for different services proceed side by side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = Ports()
        self._services: dict[str, Service] = {}
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()
        self.ended = threading.Event()

    def handle(self, request: dict[str, Any]) -> object:
        """Carry out one request: {"service": "postgresql:main", "method": "start", "arguments": {...}}."""
        if request["method"] == "shutdown":
            self.ended.set()
            return None
        name: str = request["service"]
        with self._guard:
            lock = self._locks.setdefault(name, threading.RLock())
        with lock:
            if self.ended.is_set():
                raise RuntimeError("shutting down")
            service = self._service(name)
            method: Callable[..., object] = getattr(service, request["method"])
            answer = method(**request.get("arguments", {}))
            return service.info() if answer is None else answer

    def _service(self, name: str) -> Service:
        if name not in self._services:
            with self._guard:
                folder = self._folder / name.replace(":", "-")
                self._services[name] = _catalogue.create(name, folder, self._ports, self._depend)
        return self._services[name]

    def _depend(self, name: str) -> dict[str, object]:
        answer = self.handle({"service": name, "method": "start"})
        assert isinstance(answer, dict)
        return answer

    def stop_all(self) -> None:
        """Stop every service, dependants first. Nothing is kept, so a quick end will do."""
        for name, service in reversed(list(self._services.items())):
            try:
                getattr(service, "discard", service.stop)()
            except Exception as failure:
                print(f"{name}: {failure}", flush=True)


def serve(folder: Path, owner: int) -> None:
    """The inner process: answer requests until told to end or until the owner has ended."""
    supervisor = Supervisor(folder)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.ended.set())
    signal.signal(signal.SIGINT, lambda *_: supervisor.ended.set())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "control.new"))
    listener.listen(64)
    os.rename(folder / "control.new", folder / "control")  # appears only when it can be connected to
    watched: list[Any] = [listener]
    if owner:
        try:
            watched.append(os.pidfd_open(owner))
        except ProcessLookupError:
            return
    while not supervisor.ended.is_set():
        readable, _, _ = select.select(watched, [], [], 0.5)
        if any(item is not listener for item in readable):
            print("the owner has ended", flush=True)
            break
        if listener in readable:
            connection, _ = listener.accept()
            threading.Thread(target=_converse, args=(supervisor, connection), daemon=True).start()
        _reap(supervisor)
    supervisor.ended.set()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / "control")
    supervisor.stop_all()


def _converse(supervisor: Supervisor, connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as stream:
        for line in stream:
            try:
                answer = {"answer": supervisor.handle(json.loads(line))}
            except Exception as failure:
                traceback.print_exc()
                answer = {"error": f"{failure}"}
            with contextlib.suppress(OSError):
                stream.write(json.dumps(answer) + "\n")
                stream.flush()


_seen_dead: dict[int, float] = {}


def _reap(supervisor: Supervisor) -> None:
    """Collect processes that have ended. Daemons keep their status; our other children are waited for by whoever
    started them, at once; what has been a zombie for three seconds was adopted."""
    for daemon in list(Daemon.started):
        daemon.running()
    now = time.monotonic()
    dead = {pid for pid, state in children(os.getpid()) if state == "Z"}
    for pid in set(_seen_dead) - dead:
        del _seen_dead[pid]
    for pid in dead:
        if now - _seen_dead.setdefault(pid, now) > 3:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill_descendants() -> None:
    """Kill every child of this process, and the orphans that this makes our children, until none is left."""
    for _ in range(2000):
        mine = list(children(os.getpid()))
        if not mine:
            return
        for pid, state in mine:
            with contextlib.suppress(ProcessLookupError):
                if state != "Z":
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)


def main() -> None:
    folder, owner = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    inner = os.fork()
    if inner == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            serve(folder, owner)
        except BaseException:
            traceback.print_exc()
        kill_descendants()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(inner, signal.SIGTERM))
    while True:
        with contextlib.suppress(InterruptedError):
            if os.waitpid(inner, 0)[0] == inner:
                break
    kill_descendants()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
