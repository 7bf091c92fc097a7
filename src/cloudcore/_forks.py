"""What a forked child must not share with its parent: connections, locks and threads that only the parent can use.

Objects that own such things say once what a child does with its copy::

    when_forked(self, Pool.start_afresh)

The action runs in each child right after ``os.fork()``, before anything else there, in the one thread that a child has.
Locks may have been held by threads that the child does not have, so an action replaces them and takes none.

What a lock guards may be half changed at that moment. Where a child has no other place to read it from, the fork waits
until nobody has the lock::

    at_rest_when_forked(self, lambda state: state.lock, State.unlock)

Only for locks that are never held for long, nor while another one is waited for; or for a wait that is bounded, since
all others may be held meanwhile.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["at_rest_when_forked", "leave_to_parent", "when_forked"]

T = TypeVar("T")
_actions: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_locks: weakref.WeakKeyDictionary[Any, Callable[[Any], AbstractContextManager[Any]]] = weakref.WeakKeyDictionary()
_forking = threading.RLock()  # one fork after another, since each waits for all locks
_held: list[ExitStack] = []
_left: list[object] = []
_hooked = False


def when_forked(owner: T, action: Callable[[T], None]) -> None:
    """Run *action* with *owner*, while that lives, in every child that this process forks; one action an owner.

    *owner* is held weakly, so *action* must not hold it either: a plain function or an unbound method.
    """
    global _hooked
    _actions[owner] = action
    if not _hooked:
        _hooked = True
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def at_rest_when_forked(
    owner: T, lock: Callable[[T], AbstractContextManager[Any]], action: Callable[[T], None]
) -> None:
    """As :func:`when_forked`, and no thread but the one that forks has the *lock* of *owner* at that moment.

    The lock may be taken again by the thread that has it, which may be the one that forks.
    """
    _locks[owner] = lock
    when_forked(owner, action)


def leave_to_parent(*parts: object) -> None:
    """In an action: keep what the child does without. Connection pools take locks when they are let go."""
    _left.append(parts)


def _before() -> None:
    with ExitStack() as stack:
        stack.enter_context(_forking)
        for reference in _locks.keyrefs():  # a copy: other threads may make owners meanwhile
            owner = reference()
            if owner is not None:
                stack.enter_context(_locks[owner](owner))
        _held.append(stack.pop_all())


def _in_parent() -> None:
    if _held:
        _held.pop().close()


def _in_child() -> None:
    global _forking
    _forking = threading.RLock()
    _held.clear()
    with ExitStack() as stack:  # one that fails keeps none of the others from its own; Python reports it
        for owner, action in reversed(list(_actions.items())):
            stack.callback(action, owner)
