"""Named points at which a test can raise, wait or kill the process.

Stateful code calls ``failpoint("area.operation.step")`` before and after each effect. Unarmed, a call is one look at
an empty dictionary. Tests arm points; :func:`cloudcore.testing.failpoints` lists every point there is, by reading the
source, so that a battery can prove that it hit them all.
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
