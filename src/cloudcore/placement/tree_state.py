"""What a tree knows at one time: its forest, the columns that show it, and the lock that keeps the two in step."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from cloudcore._forks import at_rest_when_forked
from cloudcore.placement.columns import maintenance
from cloudcore.placement.columns.blocks import Columns
from cloudcore.placement.forest.forest import Forest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cloudcore.placement.forest.values import Provider

__all__ = ["TreeState", "TreeStatus"]


@attrs.frozen(kw_only=True)
class TreeStatus:
    """How a tree stands.

    Attributes:
        providers, hosts: How many it knows.
        lag: How many providers have changed since its last refresh, its own edits included; None when the change feed
            no longer reaches back that far, so that the next refresh reads everything. 0 in a tree that is not bound.
    """

    providers: int
    hosts: int
    lag: int | None


class TreeState:
    """The forest of one tree with its columns. Whoever reads or changes a part holds ``lock``.

    A fork waits for who has the lock, so that the child's copy is whole.

    Attributes:
        lock: Guards the others; may be taken again by the thread that has it.
        forest: The providers and what is in use of them.
        columns: How the search sees them; behind the forest until :meth:`snapshot`.
    """

    lock: threading.RLock
    forest: Forest
    columns: Columns

    def __init__(self, forest: Forest | None = None, columns: Columns | None = None) -> None:
        self._unlock()
        self.forest = forest or Forest()
        self.columns = columns or Columns()
        at_rest_when_forked(self, lambda state: state.lock, TreeState._unlock)

    def _unlock(self) -> None:
        self.lock = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[Collection[Provider]]:
        """Give all providers, which stay as they are until the end of the block."""
        with self.lock:
            yield self.forest.providers.values()

    def snapshot(self) -> Columns:
        """The columns of the present state; the lock is held."""
        self.columns = maintenance.refresh(self.columns, self.forest)
        return self.columns

    def copy(self) -> TreeState:
        """A state of its own that begins as this one is now. Blocks are shared until one side changes them."""
        with self.lock:
            return TreeState(columns=self.snapshot(), forest=self.forest.copy())
