"""Every failpoint that a test arms by its name is passed while it is armed: renamed or moved, it would hurt nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloudcore import _failpoints

__all__ = ["check", "watch"]

_ARMED: set[str] = set()
_PASSED: set[str] = set()


class _Watched(dict[str, Callable[[str], None]]):
    """What is armed; it keeps which names were, and which of them were passed."""

    def __setitem__(self, name: str, action: Callable[[str], None]) -> None:
        _ARMED.add(name)
        super().__setitem__(name, action)

    def get(self, name: str, default: Any = None) -> Any:
        if name in self:
            _PASSED.add(name)
        return super().get(name, default)


def watch() -> None:
    """Keep what is armed from now on."""
    _failpoints._armed = _Watched()


def check() -> list[str]:
    """The points that were armed since the last time and never passed; "*" stands for none of them."""
    never = sorted(_ARMED - _PASSED - {"*"})
    _ARMED.clear()
    _PASSED.clear()
    return never
