"""Processes that die at a point, and hosts that somebody has proven dead."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator

import pytest

from cloudcore import _failpoints
from cloudcore.attach.lifecycle.fencing import Evidence

__all__ = ["Fencer", "Killed", "killed_at"]


class Killed(BaseException):
    """Stands for the end of the process: nothing that should run on an error does."""


@contextlib.contextmanager
def killed_at(point: str, times: int = 1) -> Iterator[None]:
    """The block dies when it passes *point* for the *times*-th time; it fails if it does not."""
    left = times

    def die(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            _failpoints.disarm(point)
            raise Killed(point)

    _failpoints.arm(point, die)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        _failpoints.disarm(point)


class Fencer:
    """Has evidence against the *dead* hosts."""

    def __init__(self, *dead: str) -> None:
        self.dead = dead

    def evidence(self, host: str) -> Evidence | None:
        if host not in self.dead:
            return None
        return Evidence(host=host, kind="power-off", by="operator", at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
