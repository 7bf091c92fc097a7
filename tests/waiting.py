"""Waiting for what comes about in another thread or process, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["until"]


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return as soon as *condition* holds; fail when it does not within *seconds*, which no machine needs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not come about within {seconds:g} s"
        time.sleep(0.005)
