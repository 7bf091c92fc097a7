"""What a forked child must not share with its parent: connections, locks and threads that only the parent can use.

Objects that own such things say once what a child does with its copy::

    when_forked(self, Pool.start_afresh)

The action runs in each child right after ``os.fork()``, before anything else there, in the one thread that a child has.
Locks may have been held by threads that the child does not have, so an action replaces them and takes none.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["when_forked"]

T = TypeVar("T")
_actions: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_hooked = False


def when_forked(owner: T, action: Callable[[T], None]) -> None:
    """Run *action* with *owner*, while that lives, in every child that this process forks; one action an owner.

    *owner* is held weakly, so *action* must not hold it either: a plain function or an unbound method.
    """
    global _hooked
    _actions[owner] = action
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for owner, action in list(_actions.items()):
        action(owner)
