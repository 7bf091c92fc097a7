"""Processes for the ledger's batteries: started in a moment, killed without regret.

One helper process has everything imported and forks for each job, so a job costs milliseconds. A job is a function of
`tests.placement.ledger_jobs`, called with the URL of a database and its arguments; it answers JSON. `kill_at=n` makes
it die by kill -9 at the n-th failpoint that it passes.

    with Nursery() as nursery:
        first, second = nursery.run([job("fill", url, worker=1), job("fill", url, worker=2)])   # side by side
        died = nursery.run([job("trial", url, kill_at=3)])[0];  died.killed, died.passed, died.answer
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from typing import Any, Self

import attrs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@attrs.define
class Job:
    """What a process shall do."""

    name: str
    url: str
    kill_at: int | None = None
    arguments: dict[str, Any] = attrs.field(factory=dict)


def job(function: str, url: str, /, *, kill_at: int | None = None, **arguments: Any) -> Job:
    return Job(function, url, kill_at, arguments)


@attrs.frozen
class Ended:
    """How a process ended: killed or not, the failpoints it passed, and its answer if it came so far."""

    killed: bool
    passed: list[str]
    answer: Any
    error: str | None


class Nursery:
    """The helper process. Not thread-safe."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.placement.ledger_nursery"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, jobs: list[Job]) -> list[Ended]:
        """Run *jobs* side by side and wait for all."""
        for number, one in enumerate(jobs):
            self._process.stdin.write(json.dumps([number, attrs.asdict(one)]) + "\n")
        self._process.stdin.flush()
        answers: dict[int, Ended] = {}
        while len(answers) < len(jobs):
            line = self._process.stdout.readline()
            assert line, "the nursery has died"
            number, ended = json.loads(line)
            answers[number] = Ended(**ended)
        for number in sorted(answers):
            assert answers[number].error is None, answers[number].error
        return [answers[number] for number in range(len(jobs))]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---- the helper process


def _child(one: dict[str, Any], pipe: int) -> None:
    import traceback

    from cloudcore import _failpoints
    from tests.placement import ledger_jobs

    passed: list[str] = []

    def pass_by(name: str) -> None:
        passed.append(name)
        os.write(pipe, f"P{name}\n".encode())
        if len(passed) - 1 == one["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    if one["kill_at"] is not None:
        _failpoints.arm("*", pass_by)
    try:
        answer = getattr(ledger_jobs, one["name"])(one["url"], **one["arguments"])
        os.write(pipe, f"A{json.dumps(answer)}\n".encode())
    except BaseException:
        os.write(pipe, f"E{json.dumps(traceback.format_exc())}\n".encode())


def _serve() -> None:
    import tests.placement.ledger_jobs  # noqa: F401 - imported once, before the forks

    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    running: dict[int, tuple[int, int, bytes]] = {}
    text = b""
    open_for_jobs = True
    while open_for_jobs or running:
        for key, _ in selector.select():
            data = os.read(key.fd, 65536)
            if key.fd != sys.stdin.fileno():
                number, pid, seen = running[key.fd]
                if data:
                    running[key.fd] = (number, pid, seen + data)
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                del running[key.fd]
                _report(number, os.waitpid(pid, 0)[1], seen)
                continue
            if not data:
                selector.unregister(key.fd)
                open_for_jobs = False
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                number, one = json.loads(line)
                end, pid = _fork(one)
                running[end] = (number, pid, b"")
                selector.register(end, selectors.EVENT_READ)


def _fork(one: dict[str, Any]) -> tuple[int, int]:
    end, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        _child(one, pipe)
        os._exit(0)
    os.close(pipe)
    return end, pid


def _report(number: int, status: int, seen: bytes) -> None:
    lines = seen.decode().splitlines()
    ended = {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "passed": [line[1:] for line in lines if line.startswith("P")],
        "answer": next((json.loads(line[1:]) for line in lines if line.startswith("A")), None),
        "error": next((json.loads(line[1:]) for line in lines if line.startswith("E")), None),
    }
    sys.stdout.write(json.dumps([number, ended]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
