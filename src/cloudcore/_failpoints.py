"""Named points at which a test can raise, wait or kill the process.

Stateful code calls ``failpoint("area.operation.step")`` before and after each effect. Unarmed, a call is one look at
an empty dictionary. Tests arm points, and fail if one that they armed by its name is never passed; batteries read from
the source which there are, to prove that they hit them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["arm", "disarm", "failpoint"]

_armed: dict[str, Callable[[str], None]] = {}


def failpoint(name: str) -> None:
    """Run the action armed for *name* (or for ``"*"``), if any."""
    if _armed:
        action = _armed.get(name) or _armed.get("*")
        if action is not None:
            action(name)


def arm(name: str, action: Callable[[str], None]) -> None:
    """Run *action* with the point's name whenever *name* is passed; ``"*"`` stands for every point."""
    _armed[name] = action


def disarm(name: str | None = None) -> None:
    """Forget the action of *name*, or of every point."""
    if name is None:
        _armed.clear()
    else:
        _armed.pop(name, None)
