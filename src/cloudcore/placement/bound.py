"""What binds a PlacementTree to a database: edits are written through, other writers are followed."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cloudcore._forks import when_forked
from cloudcore.database import Database, Operation
from cloudcore.errors import Closed, ProviderNotFound, WatermarkLost
from cloudcore.placement.columns.blocks import Columns
from cloudcore.placement.columns.maintenance import NumberIndex, set_used
from cloudcore.placement.forest.editing import describe, plan
from cloudcore.placement.forest.forest import Edit, Forest
from cloudcore.placement.storage import edits, store
from cloudcore.placement.storage import generations as counts
from cloudcore.placement.storage.changes import changes_since

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy.engine import URL, Connection, Engine

    from cloudcore.placement.forest.forest import Usage
    from cloudcore.placement.forest.values import Provider
    from cloudcore.placement.tree_state import TreeState

__all__ = ["DatabaseBinding"]


@attrs.frozen(kw_only=True)
class _News:
    """What a refresh read.

    Attributes:
        watermark: What was read is the state of this watermark.
        count: How many providers changed.
        rows: (number, class, in use, ...) of providers of which nothing else changed.
        places: Their places in the index of numbers.
        edit: Providers that were added, edited or removed.
        usage: What is in use of those.
    """

    watermark: str
    count: int
    rows: Sequence[tuple[Any, ...]] = ()
    places: Any = ()
    edit: Edit = attrs.field(factory=Edit)
    usage: dict[str, Usage] = attrs.field(factory=dict)


class DatabaseBinding:
    """Keeps the state of a tree in a database, shared with any number of other trees and with the ledger.

    * An edit is planned on what this tree knows, written in one transaction that checks the generations of the
      providers that it builds on, and takes effect in memory after the commit. When somebody else was first it raises
      :class:`~cloudcore.errors.GenerationConflict` and nothing happened: :meth:`refresh`, then decide again.
    * :meth:`refresh` reads what other trees and the ledger changed, and only that. A search works on what was read
      last: a hint, which the ledger checks when a candidate is claimed.
    * An edit with an ``operation_id`` takes effect once, however often it is repeated.

    May be shared between threads: edits and refreshes queue behind each other, searches wait for neither. Made by
    :meth:`PlacementTree.open`; the tables come from :func:`cloudcore.create_schema`.

    Args:
        database: A Database, an engine, or a URL; what was opened here is closed by :meth:`close`.
        state: Of the tree; read at once.
        generations: Who counts the generations that callers name: see ``storage/generations.py``.
    """

    def __init__(
        self,
        database: Database | str | URL | Engine,
        state: TreeState,
        *,
        generations: counts.Generations = "cloudcore",
    ) -> None:
        self._counting = counts.require_policy(generations)
        self._database = Database.of(database)
        self._owned, self._closed = self._database is not database, False
        self._state = state
        self._watermark = ""
        self._index = NumberIndex.of(state.columns)
        self._writing = threading.RLock()  # edits and refreshes, with their I/O; the state's lock guards the state
        self._watch = store.Watch.of(self._database)
        self._seen: int | None = None
        try:
            self.reload()
        except BaseException:  # nobody has what would close it
            self.close()
            raise
        when_forked(self, DatabaseBinding._part)

    def _part(self) -> None:
        """In a forked child: what an edit did that was under way at the fork is read as another's."""
        self._writing = threading.RLock()
        self._watch = self._watch.parted(self._database)
        self._seen = None

    @property
    def database(self) -> Database:
        """Where the state is kept.

        Raises:
            Closed: :meth:`close` was called.
        """
        self._require_open()
        return self._database

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the tree is closed; open it anew", field="tree")

    # --- following ---------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the whole forest anew.

        Raises:
            SchemaMismatch, DatabaseUnavailable, DatabaseError: The tree stays as it was.
        """
        with self._writing:
            with store.read_snapshot(self.database) as connection:
                found = store.read_all(connection)
            self._install(*found)

    def refresh(self) -> int:
        """Read what changed since the last time, and only that; return how many providers were read anew.

        Sees every edit and every allocation that was committed before the call. When the change feed was pruned
        beyond the tree's watermark, everything is read.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The tree stays as it was.
        """
        with self._writing:
            self._require_open()
            version = self._watch.version()
            if version is not None and version == self._seen:
                return 0
            with self._state.lock:
                self._state.snapshot()  # own edits are laid out now: no search moves a position while this one reads
            try:
                news = self._read_use() or self._read_news()
                self._take(news)
            except WatermarkLost:
                self.reload()
                return len(self._state.forest.providers)
            self._seen = version
            return news.count

    @contextmanager
    def pinned(self) -> Iterator[tuple[TreeState, Connection]]:
        """Give a state of its own and a connection that both show one and the same moment, and go on to show it.

        Raises:
            DatabaseUnavailable, DatabaseBusy, DatabaseError: The tree stays as it was.
        """
        with ExitStack() as stack:
            with self._writing:  # the moment is not before what this tree has read
                connection = stack.enter_context(store.read_snapshot(self.database))
                state = self._state_on(connection)
            yield state, connection

    def _state_on(self, connection: Connection) -> TreeState:
        with self._state.lock:
            self._state.snapshot()
        try:
            changed, watermark = changes_since(connection, self._watermark)
            self._take(self._read_changed(connection, changed, watermark))
        except WatermarkLost:
            self._install(*store.read_all(connection))
        return self._state.copy()

    def _install(self, providers: Sequence[Provider], usage: Mapping[str, Usage], watermark: str) -> None:
        """Take a whole forest, as read, in the place of what is known."""
        forest = Forest()
        forest.apply(Edit(put=tuple(providers)))
        forest.usage.update(usage)
        with self._state.lock:
            self._state.forest, self._state.columns = forest, Columns()  # of what was known, nothing counts any more
            self._watermark = watermark
            self._state.snapshot()

    def times(self, uuids: Sequence[str]) -> dict[str, store.ProviderTimes]:
        """Uuid → when it was added and edited last, of those that are there now."""
        with self.database.read() as connection:
            return store.read_times(connection, uuids)

    def lag(self) -> int | None:
        """How many providers changed since the last refresh; None when the feed no longer reaches back."""
        with self._writing, store.read_snapshot(self.database) as connection:
            try:
                return len(changes_since(connection, self._watermark)[0])
            except WatermarkLost:
                return None

    def _up_to_date_index(self) -> NumberIndex:
        if not self._index.fits(self._state.columns):
            self._index = NumberIndex.of(self._state.columns)
        return self._index

    def _read_use(self) -> _News | None:
        """Read what is in use in one go, when nothing else changed; None when it did, or that cannot be told."""
        if self.database.dialect == "postgresql":
            return self._read_use_in_one_statement()
        found = self._watch.use_since(self._watermark)
        if found is None:
            return None
        rows, watermark = found
        numbers = [row[0] for row in rows]
        places, known = self._up_to_date_index().find(np.asarray(numbers, dtype=np.int64))
        news = _News(watermark=watermark, count=len(set(numbers)), rows=rows, places=places)
        return news if known.all() else None

    def _read_use_in_one_statement(self) -> _News | None:
        rows, watermark = store.read_use_since(self.database, self._watermark)
        if any(row[1] is None for row in rows):  # gone, or without inventories
            return None
        if not rows:
            return _News(watermark=watermark, count=0)
        numbers, generations = (np.asarray([row[column] for row in rows], dtype=np.int64) for column in (0, 3))
        places, known = self._up_to_date_index().find(numbers, generations)
        news = _News(watermark=watermark, count=len(set(numbers.tolist())), rows=rows, places=places)
        return news if known.all() else None

    def _read_news(self) -> _News:
        with store.read_snapshot(self.database) as connection:
            changed, watermark = changes_since(connection, self._watermark)
            return self._read_changed(connection, changed, watermark)

    def _read_changed(self, connection: Connection, changed: Collection[int], watermark: str) -> _News:
        """Read the changed providers: mostly only what is in use changed, and the generation tells."""
        if not changed:
            return _News(watermark=watermark, count=0)
        rows = store.read_usage(connection, changed)
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        numbers, generations = (np.asarray(column, dtype=np.int64) for column in (columns[0], columns[3]))
        places, known = self._up_to_date_index().find(numbers, generations)
        stale = set(numbers[~known].tolist())
        edit = Edit()
        usage: dict[str, Usage] = {}
        missing = set(changed).difference(columns[0])
        if stale or missing:
            by_number = self._state.forest.by_number
            missing.intersection_update(by_number)
            gone = sorted((self._state.forest.providers[by_number[n]] for n in missing), key=self._depth, reverse=True)
            found, usage = store.read_some(connection, stale, by_number) if stale else ([], {})
            edit = Edit(put=tuple(found), gone=tuple(gone))
        if stale or None in columns[1]:  # a provider without inventories has a row without class
            kept = [i for i, row in enumerate(rows) if row[1] is not None and known[i]]
            rows, places = [rows[i] for i in kept], places[kept]
        return _News(watermark=watermark, count=len(changed), rows=rows, places=places, edit=edit, usage=usage)

    def _depth(self, provider: Provider) -> int:
        return sum(1 for _ in self._state.forest.ancestors(provider.uuid))

    def _take(self, news: _News) -> None:
        """Give what was read its effect.

        Raises:
            WatermarkLost: It tells of use of an inventory that nobody said was added: what else is there, who knows?
        """
        forest = self._state.forest
        with self._state.lock:
            if news.rows:
                numbers, classes, used = list(zip(*news.rows, strict=True))[:3]
                amounts = np.asarray(used, dtype=np.int64)
                try:
                    self._state.columns = set_used(self._state.columns, self._index, news.places, classes, amounts)
                except KeyError as error:
                    message = "inventories were changed as if nothing but what is in use of them were; read all again"
                    raise WatermarkLost(message, identifier=self._watermark) from error
                forest.note_usage(news.rows, numbers)
            if news.edit.put or news.edit.gone:
                forest.apply(news.edit)
                for provider in news.edit.put:
                    forest.set_usage(provider.uuid, news.usage.get(provider.uuid, {}))
            self._state.snapshot()
            self._watermark = news.watermark

    # --- writing -----------------------------------------------------------------------------------------------------

    def edit(
        self,
        name: str,
        arguments: dict[str, Any],
        operation_id: str | None,
        uuid_factory: Callable[[], str],
        check: Callable[[Connection, Forest, Edit], None] | None = None,
    ) -> Provider:
        """Plan an edit, write it, and give it its effect; return the provider that it is about, as it is then.

        *check* may refuse it in the transaction that writes it.
        """
        operation = Operation.of(name, describe(name, arguments), operation_id)
        with self._writing:
            self._require_open()
            if operation_id is not None:
                with self.database.read() as connection:
                    stored = self.database.stored_operation(connection, operation)
                if stored is not None:
                    return self._repeated(stored.result)
            expected = arguments.get("generation") if self._counting else None
            known = arguments if expected is None else {**arguments, "generation": None}
            edit, about = plan(self._state.forest, name, known, uuid_factory)
            steps = counts.steps_of(name, arguments, edit, about) if self._counting else {}
            if expected is not None:
                steps.setdefault(about.number, 0)
            if not edit.put and not edit.gone and not steps and (operation_id is None or not about.uuid):
                return self._unchanged(about)
            numbers: dict[str, int] = {}

            def write(connection: Connection) -> dict[str, Any]:
                numbers.clear()  # of an attempt before that came to nothing
                if check is not None:
                    check(connection, self._state.forest, edit)
                counts.count(connection, steps, None if expected is None else {about.number: expected})
                if not edit.put and not edit.gone:
                    edits.require_unchanged(connection, about)
                numbers.update(edits.write_edit(connection, self._state.forest, edit))
                return {"provider": about.uuid}

            outcome = self.database.operate(operation, write)
            if outcome.repeated:
                return self._repeated(outcome.result)
            with self._state.lock:
                self._state.forest.apply(_numbered(edit, numbers))
                return self._state.forest.providers.get(about.uuid, about)

    def _unchanged(self, about: Provider) -> Provider:
        """*about*, which is as an edit would have it, if that is so in the database too."""
        if about.uuid:
            with self.database.read() as connection:
                edits.require_unchanged(connection, about)
        return about

    def _repeated(self, result: dict[str, Any]) -> Provider:
        """An earlier call did it: look at what became of it."""
        self.refresh()
        found = self._state.forest.providers.get(result["provider"])
        if found is None:
            raise ProviderNotFound(
                f"the operation was done before; provider {result['provider']} is gone since",
                identifier=result["provider"],
            )
        return found

    def generations(self, uuids: Collection[str]) -> dict[str, int] | None:
        """Uuid → generation as the database counts for clients; None where the forest's own are theirs."""
        if not self._counting:
            return None
        with self.database.read() as connection:
            return counts.read_generations(connection, uuids)

    def close(self) -> None:
        """Close the connections, unless the engine or Database is the caller's; later calls raise Closed.

        May be called twice. A call under way ends as it can: with its answer, or with Closed.
        """
        self._closed = True
        self._watch.close()
        if self._owned:
            self._database.close()


def _numbered(edit: Edit, numbers: dict[str, int]) -> Edit:
    """The edit with the numbers that the database gave to what was added."""
    return Edit(put=tuple(p.numbered(numbers[p.uuid]) if p.uuid in numbers else p for p in edit.put), gone=edit.gone)
