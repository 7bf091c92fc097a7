"""Named leases in the database: one holder at a time, across threads, processes and hosts.

A lease is a row of ``attachment_locks``. A thread renews what a living process holds, so a slow step never loses its
lease; the holder itself judges by its monotonic clock, counted from before the renewal was asked for. It ends

* when it is released;
* when its holder is known to be dead: the name of the owner says which process of which boot of which machine it is,
  and a process of the same machine can look. A holder that is known to *live* keeps it, however late it is;
* of a holder of whom nothing is known, when it has expired by the database's clock *and* whoever wants it has seen it
  unrenewed for as long by its own monotonic clock: a clock that steps takes nobody's lease away.

A forked child holds nothing of what its parent held: it neither renews it nor gives it back.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import sqlalchemy as sa
import tenacity

from cloudcore._forks import when_forked
from cloudcore.attach.journal.owners import owner_is_alive, owner_is_dead, process_identity
from cloudcore.attach.tables import attachment_locks
from cloudcore.database import insert_ignoring_duplicates
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    DatabaseBusy,
    DatabaseUnavailable,
    OutcomeUnknown,
    Overloaded,
    Transient,
    VolumeBusy,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from cloudcore.database import Database

__all__ = ["STILL_HELD", "Lease", "Leases"]

_L = attachment_locks
_NOW: dict[str, sa.ColumnElement[float]] = {
    "sqlite": sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double()),
    "postgresql": sa.literal_column("extract(epoch from clock_timestamp())", sa.Double()),
    "mysql": sa.literal_column("unix_timestamp(now(6))", sa.Double()),
}
STILL_HELD = sa.exists(
    sa.select(_L.c.name).where(_L.c.name == sa.bindparam("held_name"), _L.c.owner == sa.bindparam("held_owner"))
)
"""A condition for the journal's writes: the lease is still its owner's."""

_TAKE: dict[str, sa.Insert] = {}
_HELD: dict[str, sa.Select[Any]] = {}
for _dialect, _now in _NOW.items():
    _TAKE[_dialect] = insert_ignoring_duplicates(_L, cast("Any", _dialect)).values(
        name=sa.bindparam("the_name"), owner=sa.bindparam("the_owner"), expires=_now + sa.bindparam("seconds")
    )
    _HELD[_dialect] = sa.select(_L.c.owner, _L.c.expires, _L.c.expires < _now).where(
        _L.c.name == sa.bindparam("the_name")
    )
_RELEASE = sa.delete(_L).where(_L.c.owner == sa.bindparam("the_owner"))

_FRESH = 0.9
"""Of its seconds, how long a holder trusts in a lease since it last asked for it."""

_UNRENEWED = 0.95
"""Of its seconds, how long a lease must be seen unrenewed before it is taken: longer than its holder trusts in it."""
_COME_BACK_AFTER = 1.0
"""Seconds after which whoever got no lease may come again, as an API tells it."""

_held_here: set[str] = set()
"""Owners that some thread of this process works under, whichever object made them; a forked child's are its own."""


class Lease:
    """One operation's hold on one or more names. Made by :meth:`Leases.hold`."""

    owner: str
    fresh_until: float

    def __init__(self, leases: Leases, owner: str) -> None:
        self.owner = owner
        self.names: list[str] = []
        self.fresh_until = 0.0
        self._leases = leases

    def require(self) -> None:
        """Check that the hold cannot have expired yet, before a side effect.

        Raises:
            Conflict: It may have: this process was stopped, or cut off from the database, for longer than the lease.
                Or this is a forked child, and its parent has the hold.
        """
        if self._leases.monotonic() > self.fresh_until:
            names = ", ".join(self.names)
            why = "is its parent's" if self.fresh_until == -math.inf else "may have expired"
            raise Conflict(
                f"the lease on {names} {why}; nothing was done. recover() settles it",
                identifier=self.names[0] if self.names else None,
            )

    def release(self, connection: Connection) -> None:
        """Give every name back within the caller's transaction, to save a commit. Call :meth:`forget` after it."""
        connection.execute(_RELEASE, {"the_owner": self.owner})

    def forget(self) -> None:
        """The names have been given back."""
        self.names.clear()

    def leave_to_parent(self) -> None:
        """In a forked child: go under a name that no row has, so that nothing can be done by this hold, nor to it."""
        self.owner, self.fresh_until = _new_owner(), -math.inf

    def proof(self) -> dict[str, str]:
        """The parameters of :data:`STILL_HELD` for the first name."""
        return {"held_name": self.names[0], "held_owner": self.owner}


class Leases:
    """Hands out :class:`Lease` objects and keeps them alive. May be shared between threads; a forked child may go on.

    Args:
        database: Where ``attachment_locks`` is.
        seconds: How long a lease lasts without renewal.
        patience: Seconds that :meth:`hold` waits for others.
        monotonic: A clock for intervals.
    """

    def __init__(
        self,
        database: Database,
        *,
        seconds: float = 60.0,
        patience: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._patience = patience
        self.monotonic = monotonic
        self._held: dict[str, Lease] = {}
        self._seen: dict[str, tuple[str, float, float]] = {}
        self._closing = threading.Event()
        self._start_empty()
        when_forked(self, Leases._start_empty)

    def _start_empty(self) -> None:
        """Also what a forked child does: what its parent's threads held, waited for and renewed is the parent's."""
        for lease in self._held.values():
            lease.leave_to_parent()
        closed = self._closing.is_set()
        self._closing = threading.Event()
        if closed:
            self._closing.set()
        self._mutex = threading.Lock()
        self._queues: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._held = {}
        self._dropped: set[str] = set()
        self._renewer: threading.Thread | None = None

    # --- holding ------------------------------------------------------------------------------------------------------

    @contextmanager
    def hold(
        self,
        names: Sequence[str],
        *,
        patience: float | None = None,
        start: Callable[[Connection], object] | None = None,
    ) -> Iterator[Lease]:
        """Hold *names*, in this order, and give them back at the end unless the work already did.

        Threads of this process queue; processes poll with growing, jittered pauses. *start* runs in the transaction
        that takes the last name, so that taking a lease and writing the first line of the journal cost one commit.

        Raises:
            VolumeBusy: Somebody alive still holds one after *patience* seconds.
        """
        limit = self._patience if patience is None else patience
        lease = Lease(self, _new_owner())
        with self._queued(names, limit):
            try:
                self._take(lease, names, limit, start)
                yield lease
            except (DatabaseBusy, DatabaseUnavailable):
                self._drop(lease, later=True)  # the caller has waited for the database once, and that is enough
                raise
            finally:
                self._drop(lease)

    def regain(self, lease: Lease, *, patience: float | None = None) -> None:
        """Hold again, under a new owner's name, what was lost to somebody else while it was believed to be held.

        To be called within :meth:`hold`. What the journal says has to be read again afterwards.

        Raises:
            VolumeBusy: Somebody alive still holds one after *patience* seconds. What was had by then is given back at
                the end of :meth:`hold`.
        """
        names = tuple(lease.names)
        self._drop(lease)
        lease.owner, lease.names = _new_owner(), []
        self._take(lease, names, self._patience if patience is None else patience, None)

    def _drop(self, lease: Lease, *, later: bool = False) -> None:
        """Give back what is left of *lease*. If the database does not answer, the renewing thread goes on trying."""
        with self._mutex:
            self._held.pop(lease.owner, None)
        _held_here.discard(lease.owner)
        if not lease.names:
            return
        try:
            if not later:
                self._database.run(lease.release)
        except CloudcoreError:
            later = True
        if later:
            with self._mutex:
                self._dropped.add(lease.owner)
        lease.forget()

    @contextmanager
    def _queued(self, names: Sequence[str], patience: float) -> Iterator[None]:
        """Wait for the other threads of this process first: they need no polling."""
        with ExitStack() as taken:
            for name in names:
                with self._mutex:
                    lock = self._queues.setdefault(name, threading.Lock())
                if not lock.acquire(timeout=max(patience, 0.0)):
                    raise self._busy(name, "another thread of this process", patience)
                taken.callback(lock.release)
            yield

    def _take(
        self, lease: Lease, names: Sequence[str], patience: float, start: Callable[[Connection], object] | None
    ) -> None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Taken),
            stop=tenacity.stop_after_delay(patience),
            wait=tenacity.wait_random_exponential(multiplier=0.01, max=0.2),
            reraise=True,
        )
        _held_here.add(lease.owner)
        lease.fresh_until = math.inf
        for index, name in enumerate(names):
            last = start if index == len(names) - 1 else None
            try:
                retrying(self._attempt, lease, name, last)
            except _Taken as error:
                raise self._busy(name, error.owner, patience) from None
            with self._mutex:
                self._held[lease.owner] = lease  # from the first name on: the wait for the next may be long
            self._start_renewing()

    def _attempt(self, lease: Lease, name: str, start: Callable[[Connection], object] | None) -> None:
        asked = self.monotonic()

        def work(connection: Connection) -> None:
            owner = self._try(connection, name, lease.owner)
            if owner is not None:
                raise _Taken(owner)
            if start is not None:
                start(connection)

        lease.names.append(name)  # first: a lost answer to COMMIT must not leave it behind
        try:
            self._database.run(work)
        except _Taken:
            lease.names.remove(name)
            raise
        lease.fresh_until = min(lease.fresh_until, asked + self._seconds * _FRESH)

    def _try(self, connection: Connection, name: str, owner: str) -> str | None:
        """Take *name* within this transaction; return the owner who has it instead, None on success."""
        dialect = self._database.dialect
        taken = connection.execute(_TAKE[dialect], {"the_name": name, "the_owner": owner, "seconds": self._seconds})
        if taken.rowcount:
            return None
        found = connection.execute(_HELD[dialect], {"the_name": name}).one_or_none()
        if found is None:
            return "one who just left"
        holder, expires, expired = found
        if holder != owner and not self._is_free(name, holder, expires, expired=expired):
            return str(holder)
        takeover = sa.update(_L).where(_L.c.name == name, _L.c.owner == holder)
        changed = connection.execute(takeover.values(owner=owner, expires=_NOW[dialect] + self._seconds))
        return None if changed.rowcount else str(holder)

    def _is_free(self, name: str, holder: str, expires: float, *, expired: bool) -> bool:
        """Whether the lease on *name* may be taken from *holder*. Remembers what it saw."""
        if owner_is_dead(holder):
            return True
        if owner_is_alive(holder):
            return _is_ours(holder) and holder not in _held_here  # dropped by a thread that could not say so
        now = self.monotonic()
        owner, was, since = self._seen.get(name, (holder, expires, now))
        if (owner, was) != (holder, expires):
            since = now  # it is renewed, or another's
        self._seen[name] = holder, expires, since
        return expired and now - since >= self._seconds * _UNRENEWED

    def seconds_to_watch(self, connection: Connection) -> float:
        """How long to go on watching expired leases of whom nothing is known, until they may be taken; 0 for none."""
        now = _NOW[self._database.dialect]
        rows = connection.execute(sa.select(_L.c.name, _L.c.owner, _L.c.expires, _L.c.expires < now)).all()
        with self._mutex:
            self._seen = {name: self._seen[name] for name, *_ in rows if name in self._seen}
        left = [0.0]
        for name, owner, expires, expired in rows:
            if expired and not self._is_free(name, owner, expires, expired=True) and not owner_is_alive(owner):
                left.append(self._seen[name][2] + self._seconds * _UNRENEWED - self.monotonic())
        return max(left)

    def wait(self, seconds: float) -> None:
        """Let *seconds* pass, or the end of this object."""
        self._closing.wait(seconds)

    def _busy(self, name: str, owner: str, patience: float) -> VolumeBusy:
        return VolumeBusy(
            f"{name} is held by {owner} and was not freed within {patience:g} s; nothing was done. Try again",
            identifier=name,
            retry_after=_COME_BACK_AFTER,
        )

    def serialise(self, connection: Connection, name: str) -> None:
        """Let other transactions that call this with *name* wait until this one has ended. SQLite's always do."""
        if self._database.dialect == "sqlite":
            return
        row = {"name": name, "owner": process_identity(), "expires": 0.0}
        connection.execute(insert_ignoring_duplicates(_L, self._database.dialect), row)
        connection.execute(sa.delete(_L).where(_L.c.name == name))

    def held_by_living(self, connection: Connection) -> set[str]:
        """The names that somebody alive holds."""
        now = _NOW[self._database.dialect]
        rows = connection.execute(sa.select(_L.c.name, _L.c.owner, _L.c.expires >= now))
        return {name for name, owner, fresh in rows if owner_is_alive(owner) or (fresh and not owner_is_dead(owner))}

    def sweep(self, connection: Connection) -> int:
        """Delete the rows of dead and expired holders; return how many."""
        now = _NOW[self._database.dialect]
        rows = connection.execute(sa.select(_L.c.name, _L.c.owner, _L.c.expires, _L.c.expires < now)).all()
        dead = [(name, owner) for name, owner, at, expired in rows if self._is_free(name, owner, at, expired=expired)]
        for name, owner in dead:
            connection.execute(sa.delete(_L).where(_L.c.name == name, _L.c.owner == owner))
        return len(dead)

    # --- keeping alive ------------------------------------------------------------------------------------------------

    def _start_renewing(self) -> None:
        with self._mutex:
            if self._renewer is None and not self._closing.is_set():
                renewer = threading.Thread(target=self._renew_for_ever, name="cloudcore-leases", daemon=True)
                try:
                    renewer.start()
                except RuntimeError as error:  # the system has no thread left
                    raise Overloaded(
                        f"leases cannot be kept alive: {error}", seconds=0.0, retry_after=_COME_BACK_AFTER
                    ) from error
                self._renewer = renewer

    def _renew_for_ever(self) -> None:
        while not self._closing.wait(self._seconds / 3):
            try:
                self.renew()
            except (Transient, OutcomeUnknown):
                continue  # the holder's own clock stops it in time

    def renew(self) -> None:
        """Prolong everything that this process holds. The thread does it; tests may call it.

        Raises:
            DatabaseUnavailable, DatabaseBusy: Nothing was prolonged.
        """
        with self._mutex:
            held, dropped = list(self._held.values()), set(self._dropped)
        if dropped:
            self._database.run(lambda c: c.execute(sa.delete(_L).where(_L.c.owner.in_(dropped))))
            with self._mutex:
                self._dropped -= dropped
        if not held:
            return
        asked = self.monotonic()
        until = _NOW[self._database.dialect] + self._seconds
        owners = [lease.owner for lease in held]
        self._database.run(lambda c: c.execute(sa.update(_L).where(_L.c.owner.in_(owners)).values(expires=until)))
        for lease in held:
            lease.fresh_until = asked + self._seconds * _FRESH

    def close(self) -> None:
        """Stop renewing. May be called twice."""
        self._closing.set()
        with self._mutex:  # one that another thread is just starting cannot be waited for yet
            renewer = self._renewer
        if renewer is not None and renewer is not threading.current_thread():
            renewer.join()


def _new_owner() -> str:
    return f"{process_identity()}/{uuid.uuid4().hex[:12]}"


def _is_ours(owner: str) -> bool:
    return owner.startswith(f"{process_identity()}/")


class _Taken(Exception):
    """Somebody else has the lease."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner
