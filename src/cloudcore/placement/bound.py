"""A PlacementTree that is kept in a database: edits are written through, other writers are followed."""

from __future__ import annotations

import threading
import uuid as uuids
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.database import Database, Operation
from cloudcore.errors import ProviderNotFound, UnsupportedFeature, WatermarkLost
from cloudcore.placement import store
from cloudcore.placement.changes import changes_since
from cloudcore.placement.editing import describe, plan
from cloudcore.placement.forest import Edit, Forest
from cloudcore.placement.tree import PlacementTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.placement.forest import Usage
    from cloudcore.placement.values import Provider

__all__ = ["BoundTree"]


class BoundTree(PlacementTree):
    """A tree that is kept in a database, shared with any number of other trees and with the ledger.

    * An edit is planned on what this tree knows, written in one transaction that checks the generations of the
      providers that it builds on, and takes effect in memory after the commit. When somebody else was first it raises
      :class:`~cloudcore.errors.GenerationConflict` and nothing happened: :meth:`refresh`, then decide again.
    * :meth:`refresh` reads what other trees and the ledger changed, and only that. A search works on what was read
      last: a hint, which the ledger checks when a candidate is claimed.
    * An edit with an ``operation_id`` takes effect once, however often it is repeated.

    May be shared between threads: edits and refreshes queue behind each other, searches wait for neither. Use
    :meth:`PlacementTree.open`; the tables come from :func:`cloudcore.create_schema`.

    Args:
        database: A Database, an engine, or a URL; what was opened here is closed by :meth:`close`.
        uuid_factory: Makes the uuid of a provider that is added without one.
    """

    def __init__(
        self,
        database: Database | str | URL | Engine,
        *,
        uuid_factory: Callable[[], str] = lambda: str(uuids.uuid4()),
    ) -> None:
        super().__init__(uuid_factory=uuid_factory)
        self._database = Database.of(database)
        self._owned = self._database is not database
        self._writing = threading.RLock()  # edits and refreshes, with their I/O; the other lock guards the state
        self._watermark = ""
        self.reload()

    # --- following ---------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the whole forest anew.

        Raises:
            SchemaMismatch, DatabaseUnavailable, DatabaseError: The tree stays as it was.
        """
        with self._writing:
            with store.read_snapshot(self._database) as connection:
                providers, usage, watermark = store.read_all(connection)
            forest = Forest()
            forest.apply(Edit(put=tuple(providers)))
            forest.usage = usage
            with self._lock:
                self._forest = forest
                self._watermark = watermark
                self._snapshot()

    def refresh(self) -> int:
        """Read what changed since the last time, and only that; return how many providers were read anew.

        Sees every edit and every allocation that was committed before the call. When the change feed was pruned
        beyond the tree's watermark, everything is read.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The tree stays as it was.
        """
        with self._writing:
            try:
                with store.read_snapshot(self._database) as connection:
                    changed, watermark = changes_since(connection, self._watermark)
                    news = self._read_news(connection, changed) if changed else None
            except WatermarkLost:
                self.reload()
                return len(self)
            with self._lock:
                if news is not None:
                    self._take(*news)
                    self._snapshot()
                self._watermark = watermark
            return len(changed)

    def _read_news(
        self, connection: Connection, changed: Iterable[int]
    ) -> tuple[list[tuple[str, Usage]], Edit, dict[str, Usage]]:
        """Read the changed providers: mostly only what is in use changed, and a provider's generation tells."""
        forest = self._forest
        by_number, providers = forest.by_number, forest.providers
        used: dict[int, dict[str, int]] = {}
        stale: set[int] = set()
        for number, generation, name, amount in store.read_usage(connection, changed):
            uuid = by_number.get(number)
            if uuid is None or providers[uuid].generation != generation:
                stale.add(number)
                continue
            amounts = used.setdefault(number, {})
            if amount and name is not None:
                amounts[name] = int(amount)
        gone = [providers[by_number[n]] for n in changed if n not in used and n not in stale and n in by_number]
        edit, usage = self._read_stale(connection, stale, gone)
        return [(by_number[number], amounts) for number, amounts in used.items()], edit, usage

    def _read_stale(
        self, connection: Connection, stale: set[int], gone: Iterable[Provider]
    ) -> tuple[Edit, dict[str, Usage]]:
        removed = tuple(sorted(gone, key=self._depth, reverse=True))
        if not stale:
            return Edit(gone=removed), {}
        found, usage = store.read_some(connection, stale, self._forest.by_number)
        return Edit(put=tuple(found), gone=removed), usage

    def _depth(self, provider: Provider) -> int:
        return sum(1 for _ in self._forest.ancestors(provider.uuid))

    def _take(self, used: Iterable[tuple[str, Usage]], edit: Edit, usage: dict[str, Usage]) -> None:
        forest = self._forest
        if edit.put or edit.gone:
            forest.apply(edit)
            for provider in edit.put:
                forest.set_usage(provider.uuid, usage.get(provider.uuid, {}))
        for uuid, amounts in used:
            forest.set_usage(uuid, amounts)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _edit(self, name: str, arguments: dict[str, Any], operation_id: str | None) -> Provider:
        operation = Operation.of(name, describe(name, arguments), operation_id)
        with self._writing:
            if operation_id is not None:
                with self._database.read() as connection:
                    stored = self._database.stored_operation(connection, operation)
                if stored is not None:
                    return self._repeated(stored.result)
            edit, about = plan(self._forest, name, arguments, self._uuid_factory)
            if not edit.put and not edit.gone:
                return about
            outcome = self._database.operate(operation, lambda connection: self._write(connection, edit, about))
            if outcome.repeated:
                return self._repeated(outcome.result)
            with self._lock:
                self._forest.apply(_numbered(edit, outcome.result["numbers"]))
                return self._forest.providers.get(about.uuid, about)

    def _write(self, connection: Connection, edit: Edit, about: Provider) -> dict[str, Any]:
        numbers = store.write_edit(connection, self._forest, edit)
        return {"provider": about.uuid, "numbers": numbers}

    def _repeated(self, result: dict[str, Any]) -> Provider:
        """An earlier call did it: look at what became of it."""
        self.refresh()
        found = self._forest.providers.get(result["provider"])
        if found is None:
            raise ProviderNotFound(
                f"the operation was done before; provider {result['provider']} is gone since",
                identifier=result["provider"],
            )
        return found

    def _require_own_books(self) -> None:
        raise UnsupportedFeature(
            "this tree is bound to a database, where AllocationLedger keeps the books; "
            "use it, or a fork of the tree: tree.what_if()",
            needed="a tree in memory",
            available="a bound tree",
        )

    def close(self) -> None:
        """Close the connections, unless the engine or Database is the caller's. May be called twice."""
        if self._owned:
            self._database.close()


def _numbered(edit: Edit, numbers: dict[str, int]) -> Edit:
    """The edit with the numbers that the database gave to what was added."""
    return attrs.evolve(
        edit, put=tuple(attrs.evolve(p, number=numbers[p.uuid]) if p.uuid in numbers else p for p in edit.put)
    )
