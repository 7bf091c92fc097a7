"""Fork a child and kill it at a point of its work. For programs without threads: run batteries as `python -m ...`."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from cloudcore._failpoints import arm

__all__ = ["forked", "killing"]


def forked(work: Callable[[], None]) -> str | None:
    """Run *work* in a child: None if it ended well, "killed", or the text of what went wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(60)
        try:
            work()
        except BaseException:
            os.write(writer, traceback.format_exc()[-6000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {os.WTERMSIG(status)}"
    return text or None


def killing(number: int) -> None:
    """From here on, die at the *number*-th point that this process passes."""
    passed = 0

    def step(_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)

    arm("*", step)
