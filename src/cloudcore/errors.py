"""Every error that cloudcore raises on purpose, in one tree.

::

    CloudcoreError
    ├── InvalidArgument (ValueError)          the call is wrong; nothing was done
    │   ├── InvalidQuery                        listing: filter, sort key or projection
    │   ├── InvalidCursor                       listing: damaged, of another query, or of another version
    │   ├── InvalidRequest                      placement: a resource request that contradicts itself
    │   │   └── UnhonouredRequest               placement: words of a flavor that no request can carry; carries them
    │   ├── InvalidCallable                     placement: a filter or weigher raised, or gave what it must not
    │   ├── InvalidProvider                     placement: name, parent, trait or aggregate
    │   ├── InvalidInventory                    placement: numbers that no inventory can have
    │   ├── InvalidAllocation                   placement: amounts, classes or consumers of a claim
    │   ├── InvalidSelection                    placement: a selection that was altered or is of another version
    │   ├── InvalidConnector                    attach: what a host says of itself is incomplete
    │   ├── InvalidDisk                         hypervisor: a disk that this guest cannot have
    │   ├── UnsupportedFeature                  the other side cannot do this at all
    │   └── Closed                              what was asked has been closed
    ├── NotFound (LookupError)                the object named is not there
    │   ├── CellNotFound, InstanceNotFound
    │   ├── ProviderNotFound, InventoryNotFound, ConsumerNotFound, MoveNotFound
    │   ├── NameNotFound                        placement: a resource class or trait that nobody added
    │   ├── VolumeNotFound, AttachmentNotFound
    │   ├── KeyNotFound                         the key manager has no such key
    │   └── GuestNotFound, DeviceNotFound
    ├── Conflict (RuntimeError)               the state forbids it; read again, then decide
    │   ├── AlreadyExists
    │   ├── InUse
    │   ├── NotMigrating                        the volume service waits for no such migration (any more)
    │   ├── ConsumerRetired                     placement: a consumer that was released for ever
    │   ├── GenerationConflict                  somebody else wrote first
    │   ├── OperationMismatch                   an operation id used again with other arguments
    │   ├── InvalidTransition                   not from this state; carries the story of the object
    │   ├── ConstraintViolated                  a database constraint refused the write
    │   ├── ReshapeNeeded                       inventory must move together with its allocations
    │   ├── ReshapeFailed                       and they cannot
    │   ├── WatermarkLost                       placement: the change feed no longer reaches back that far
    │   └── WrongHost                           a step that belongs to another host
    ├── Refused (RuntimeError)                understood and denied
    │   ├── CapacityExceeded                    asked + used > capacity
    │   ├── UnitViolation                       min_unit, max_unit or step_size
    │   ├── LimitExceeded                       a number of things that may not grow further
    │   ├── PolicyDenied (PermissionError)
    │   ├── GroupViolation                      affinity or anti-affinity of a group of instances
    │   ├── FencingRequired                     force without evidence that the host is dead
    │   ├── DetachFailed                        the guest refuses to let a device go
    │   ├── FlushFailed                         a device is kept: what was written has not reached its volume
    │   ├── GuestAgentUnavailable               nobody in the guest answers, who could make its file systems wait
    │   └── NoValidHost                         carries the report: for each host, why
    │       └── MaxRetriesExceeded              every alternate was tried; carries each attempt
    ├── Unavailable, Transient                try again later
    │   ├── DatabaseUnavailable (ConnectionError)
    │   ├── DatabaseBusy                        deadlock, serialization failure, lock time-out
    │   ├── CellUnavailable                     listing with require="all"
    │   ├── VolumeServiceUnavailable (ConnectionError)
    │   ├── KeyManagerUnavailable (ConnectionError)
    │   ├── VolumeBusy                          another attach or detach of this volume is in flight
    │   ├── HypervisorUnavailable (ConnectionError)
    │   ├── GuestBusy                           the guest takes no change at this moment
    │   ├── DeadlineExceeded (TimeoutError)
    │   └── Overloaded                          this process has too much to do; for HTTP a 503 with Retry-After
    ├── OutcomeUnknown                        it may or may not have happened; ask by operation id
    ├── Cancelled                             the caller ended it
    ├── MissingExtra (ImportError)            an optional package; the message holds the pip line
    ├── DatabaseError                         a database failure that no retry mends
    │   ├── SchemaMismatch
    │   ├── StatementRefused                    the fault of the statement, not of the server
    │   └── UnreadableValue                     names the cell, the row's key and the column
    ├── VolumeServiceError                    the volume service failed or answered nonsense
    ├── HypervisorError                       the hypervisor failed; carries its code
    │   └── OrphanedDevice                      the guest has a device that its definition has lost
    └── InvariantViolated (AssertionError)    check() found what must never be: a bug, or a hand-edited database

``isinstance(error, Transient)`` is the test for "the same call may succeed later". Each class says its cause and what
to do, and names its facts as attributes; facts that do not apply are None. All of them can be pickled. They are one
module, though a long one, so that the tree can be seen as a whole and no area needs another's errors.
"""

from __future__ import annotations

import inspect
import math
import pickle
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

__all__ = [
    "AlreadyExists",
    "AttachmentNotFound",
    "Cancelled",
    "CapacityExceeded",
    "CellNotFound",
    "CellUnavailable",
    "Closed",
    "CloudcoreError",
    "Conflict",
    "ConstraintViolated",
    "ConsumerNotFound",
    "ConsumerRetired",
    "DatabaseBusy",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "DetachFailed",
    "DeviceNotFound",
    "FencingRequired",
    "FlushFailed",
    "GenerationConflict",
    "GroupViolation",
    "GuestAgentUnavailable",
    "GuestBusy",
    "GuestNotFound",
    "HypervisorError",
    "HypervisorUnavailable",
    "InUse",
    "InstanceNotFound",
    "InvalidAllocation",
    "InvalidArgument",
    "InvalidCallable",
    "InvalidConnector",
    "InvalidCursor",
    "InvalidDisk",
    "InvalidInventory",
    "InvalidProvider",
    "InvalidQuery",
    "InvalidRequest",
    "InvalidSelection",
    "InvalidTransition",
    "InvariantViolated",
    "InventoryNotFound",
    "KeyManagerUnavailable",
    "KeyNotFound",
    "LimitExceeded",
    "MaxRetriesExceeded",
    "MissingExtra",
    "MoveNotFound",
    "NameNotFound",
    "NoValidHost",
    "NotFound",
    "NotMigrating",
    "OperationMismatch",
    "OrphanedDevice",
    "OutcomeUnknown",
    "Overloaded",
    "PolicyDenied",
    "ProviderNotFound",
    "Refused",
    "ReshapeFailed",
    "ReshapeNeeded",
    "SchemaMismatch",
    "StatementRefused",
    "Transient",
    "Unavailable",
    "UnhonouredRequest",
    "UnitViolation",
    "UnreadableValue",
    "UnsupportedFeature",
    "VolumeBusy",
    "VolumeNotFound",
    "VolumeServiceError",
    "VolumeServiceUnavailable",
    "WatermarkLost",
    "WrongHost",
]


class CloudcoreError(Exception):
    """Root of the tree.

    A leaf declares its facts as annotations; they are given by keyword and become attributes::

        raise CapacityExceeded("...", provider=uuid, resource_class="VCPU", asked=4, used=62, capacity=64)

    A keyword that the class does not declare is a TypeError, so that a misspelt fact never gets lost.
    """

    _facts: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {name for name in inspect.get_annotations(cls) if not name.startswith("_")}
        inherited: list[frozenset[str]] = [getattr(base, "_facts", frozenset()) for base in cls.__bases__]
        cls._facts = frozenset(own).union(*inherited)

    def __init__(self, message: str = "", /, **facts: Any) -> None:
        unknown = facts.keys() - self._facts
        if unknown:
            raise TypeError(f"{type(self).__name__} has no fact {', '.join(sorted(unknown))}")
        super().__init__(message)
        for name in self._facts:
            setattr(self, name, facts.get(name))

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: _picklable(getattr(self, name)) for name in self._facts}
        return _rebuild, (type(self), self.args[:1], facts)

    def as_fields(self) -> dict[str, Any]:
        """The facts that are set, with the class name and the text, as JSON has them: for structured logs.

        What is neither a number, a word nor a collection of such tells its own fields, or stands as its text.
        """
        facts = {name: getattr(self, name) for name in sorted(self._facts)}
        return {
            "error": type(self).__name__,
            "message": str(self),
            **{name: _as_json(fact) for name, fact in facts.items() if fact is not None},
        }


def _as_json(fact: Any) -> Any:
    if fact is None or isinstance(fact, bool | int | str):
        return fact
    if isinstance(fact, float):
        return fact if math.isfinite(fact) else str(fact)
    if hasattr(fact, "as_fields"):
        return _as_json(fact.as_fields())
    if isinstance(fact, Mapping):
        return {str(key): _as_json(value) for key, value in fact.items()}
    if isinstance(fact, Sequence | AbstractSet) and not isinstance(fact, bytes | bytearray):
        return [_as_json(value) for value in (sorted(fact, key=str) if isinstance(fact, AbstractSet) else fact)]
    return str(fact)


def _picklable(fact: Any) -> Any:
    """*fact*, or its text where it cannot be pickled, as a function of the caller's or a lock cannot."""
    if fact is None or isinstance(fact, bool | int | float | str):
        return fact
    try:
        pickle.dumps(fact)
    except Exception:  # whatever a class of the caller's raises
        try:
            return repr(fact)
        except Exception:  # its text, too
            return f"<{type(fact).__name__}>"
    return fact


def _rebuild(cls: type[CloudcoreError], args: tuple[str, ...], facts: dict[str, Any]) -> CloudcoreError:
    return cls(*args, **facts)


class Transient(CloudcoreError):
    """The same call may succeed later. *retry_after* is in seconds, None when nobody knows.

    What to do: make the same call again after *retry_after*, or after a pause that grows.
    """

    retry_after: float | None


# --- the caller's mistakes -------------------------------------------------------------------------------------------


class InvalidArgument(CloudcoreError, ValueError):
    """An argument is wrong. *field* names it, *value* is what was given. Nothing was done.

    What to do: correct the call: the text says what is allowed. Repeating it as it is will not help.
    """

    field: str | None
    value: Any


class InvalidQuery(InvalidArgument):
    """A listing query names an unknown or unusable filter, sort key or column.

    What to do: use a column of the source, a value of its type and an operator that it has; the text names what
    there is.
    """


class InvalidCursor(InvalidArgument):
    """A page cursor is damaged, belongs to another query, or was written by an unknown version.

    What to do: begin the walk anew, with the same query; hand cursors back as they were given.
    """


class InvalidRequest(InvalidArgument):
    """A resource request is malformed or contradicts itself.

    What to do: correct the query or the groups: *field* names the parameter.
    """


class UnhonouredRequest(InvalidRequest):
    """Words of a flavor, an image or a port that no request can carry. *unhonoured* lists them, each with why.

    What to do: take the words out of the flavor, say it with a trait, or name them in
    ``FlavorRules.judged_elsewhere``.
    """

    unhonoured: Any


class InvalidCallable(InvalidArgument):
    """A filter, a weigher or another callable of the caller's raised, or gave what it must not.

    *function* names it, *host* is the host that it was asked about.

    What to do: mend the function: a filter returns None or a reason, a weigher a finite number, and neither raises.
    """

    function: str | None
    host: str | None


class InvalidProvider(InvalidArgument):
    """A resource provider cannot be as described (name, parent, trait, aggregate).

    What to do: correct the name, parent, trait or aggregate that *field* names.
    """


class InvalidInventory(InvalidArgument):
    """An inventory holds numbers that the rules of capacity forbid.

    What to do: correct the number that *field* names: total from 1 on, reserved at most the total, a ratio above 0.
    """


class InvalidAllocation(InvalidArgument):
    """A claim is malformed: unknown class, amount below one, empty or ill-formed consumer.

    What to do: correct the claim: whole amounts from 1 on, known classes, a uuid for each consumer.
    """


class InvalidSelection(InvalidArgument):
    """A selection was altered on its way, or is of a version that this release cannot read.

    What to do: ask the scheduler for a new selection; check that both sides have the same key and release.
    """


class InvalidConnector(InvalidArgument):
    """The description of a host's initiators lacks what the volume service needs.

    What to do: fill in what *field* names: host, initiator or address, as the backend wants it.
    """


class InvalidDisk(InvalidArgument):
    """The disk cannot be given to this guest as described.

    What to do: choose another bus, device name or option, or another guest; the text says what this one lacks.
    """


class UnsupportedFeature(InvalidArgument):
    """The other side (service, driver, database) cannot do this. *needed* and *available* say what was compared.

    What to do: do without it, or upgrade the other side to *needed*.
    """

    needed: str | None
    available: str | None


class Closed(InvalidArgument):
    """A database, a directory or a router was asked after its ``close()``. *field* names which.

    What to do: make a new one; and close it when nobody asks any more.
    """


# --- not there -------------------------------------------------------------------------------------------------------


class NotFound(CloudcoreError, LookupError):
    """The object named is not there. *identifier* is what was looked up.

    What to do: check the identifier; if it was right before, somebody removed the object.
    """

    identifier: str | None


class CellNotFound(NotFound):
    """No cell of this name is configured.

    What to do: name a cell of ``router.status()``, or add it with ``add_cell``.
    """


class InstanceNotFound(NotFound):
    """No instance of this uuid is known to the directory or to any cell that answered.

    What to do: check the uuid; if cells were down, ask again when they answer.
    """


class ProviderNotFound(NotFound):
    """No resource provider of this uuid (or name).

    What to do: call ``refresh()``; if it stays away, somebody removed the provider, so search again.
    """


class InventoryNotFound(NotFound):
    """The provider has no inventory of this class.

    What to do: give the provider such an inventory, or ask another for it.
    """

    provider: str | None
    resource_class: str | None


class NameNotFound(NotFound):
    """No resource class or trait of this name was added to the register.

    What to do: correct the spelling, or add the name to the register (``tree.names``) first.
    """


class ConsumerNotFound(NotFound):
    """No consumer of this uuid holds anything.

    What to do: nothing is left to do for a release; for anything else, claim first.
    """


class MoveNotFound(NotFound):
    """No move of this migration is recorded.

    What to do: check the migration's uuid, and that ``begin_move`` was called with it.
    """


class KeyNotFound(NotFound):
    """The key manager has no such key, or one without bytes.

    What to do: see whether the key of the encrypted volume was deleted; without it nothing opens the volume.
    """


class VolumeNotFound(NotFound):
    """The volume service knows no such volume.

    What to do: check the volume's id, and that the session may see its project.
    """


class AttachmentNotFound(NotFound):
    """No such attachment.

    What to do: nothing is left to do for a detach; else look into ``attachments()``.
    """


class GuestNotFound(NotFound):
    """The hypervisor knows no guest of this uuid.

    What to do: define the guest on this host first, or ask the host that has it.
    """


class DeviceNotFound(NotFound):
    """The guest has no such device, neither live nor in its persistent definition.

    What to do: nothing is left to do for a detach; else look into ``disk_state()``.
    """


# --- conflicts with the state ----------------------------------------------------------------------------------------


class Conflict(CloudcoreError, RuntimeError):
    """The present state forbids the change. *identifier* names the object.

    What to do: read the object again, and decide again.
    """

    identifier: str | None


class AlreadyExists(Conflict):
    """An object of this name or uuid is there already.

    What to do: take the one that is there, or choose another name or uuid.
    """


class InUse(Conflict):
    """The object cannot go while others depend on it. *users* counts or names them.

    In placement *kind* says which: ``children``, ``allocations``, the ``move`` that owns them, or the ``providers``
    that use a name.

    What to do: end what depends on it first: *users* names it.
    """

    users: Any
    kind: str | None


class ConsumerRetired(Conflict):
    """The consumer was released for ever (instance deleted, migration over) and can hold nothing again.

    What to do: use a new uuid; a retired one never comes back.
    """


class NotMigrating(Conflict):
    """The volume service waits for no migration of the one volume to the other: it was given up, or has ended.

    What to do: nothing, if it was to end; else see ``migration_status`` of both volumes.
    """


class GenerationConflict(Conflict):
    """Somebody else wrote first. Read again and repeat the decision.

    What to do: read again, decide again, and write with the new generation.
    """

    expected: int | None
    found: int | None


class OperationMismatch(Conflict):
    """An operation id was used again with other arguments; the first use stands.

    What to do: use a new id for a new call, and the same arguments for a repeat.
    """

    operation_id: str | None


class InvalidTransition(Conflict):
    """The event does not fit the state. *story* is what happened to the object so far, oldest first.

    What to do: read *story*: what you ask for was done, undone or overtaken. Act on the state that is.
    """

    state: str | None
    event: str | None
    story: tuple[str, ...] | None


class ConstraintViolated(Conflict):
    """A constraint of the database refused the write; everything in the transaction was rolled back.

    What to do: look at *constraint*; in cloudcore's own tables it is a bug, or somebody writes past the library.
    """

    constraint: str | None


class ReshapeNeeded(Conflict):
    """Inventory in use must move between providers or classes; *moves* says what, to be done with its allocations.

    What to do: carry *moves* out together with the allocations: ``plan_reshape``, then ``carry_out``.
    """

    moves: Any


class WatermarkLost(Conflict):
    """The change feed no longer reaches back to a watermark; load everything again, then follow.

    What to do: open the tree again, or follow from a new watermark; prune less often than followers read.
    """


class ReshapeFailed(Conflict):
    """Allocations cannot move with their inventory: a consumer is in flight, or fits nowhere. Nothing was changed.

    What to do: wait until the consumer that the text names is at rest, or make room, and try again.
    """


class WrongHost(Conflict):
    """A step that belongs to *expected* was called on *found*; nothing was touched.

    What to do: call it in the process that serves *expected*.
    """

    expected: str | None
    found: str | None


# --- understood and denied -------------------------------------------------------------------------------------------


class Refused(CloudcoreError, RuntimeError):
    """Understood, valid, and denied.

    What to do: ask for less, ask elsewhere, or free something first.
    """


class CapacityExceeded(Refused):
    """A provider cannot give what was asked. Amounts are in the unit of the resource class.

    What to do: search again and take another candidate, or free something of *provider*.
    """

    provider: str | None
    resource_class: str | None
    asked: int | None
    used: int | None
    capacity: int | None


class UnitViolation(Refused):
    """The amount breaks min_unit, max_unit or step_size of the inventory. *rule* names which, *bound* its value.

    What to do: ask for an amount that keeps *rule*, or change the inventory.
    """

    provider: str | None
    resource_class: str | None
    asked: int | None
    rule: str | None
    bound: int | None


class LimitExceeded(Refused):
    """One more would be too many. *limit* is the bound, *used* what is there.

    What to do: free one, or raise the limit if it is yours.
    """

    what: str | None
    limit: int | None
    used: int | None


class PolicyDenied(Refused, PermissionError):
    """A policy hook said no. *rule* names it.

    What to do: ask somebody who may, or change *rule*.
    """

    rule: str | None


class GroupViolation(Refused):
    """A host may not take this member of a group. *root* is its provider, *rule* the policy.

    What to do: choose a host that the policy allows, or take the instance out of its group.
    """

    root: str | None
    rule: str | None


class FencingRequired(Refused):
    """A forced step needs evidence that *host* is dead, and there is none.

    What to do: power *host* off or cut it from the storage, and say so with a ``Fencer`` or ``proof=``.
    """

    host: str | None


class DetachFailed(Refused):
    """The guest or the hypervisor refused for good to let a device go.

    What to do: look at the guest: it holds the device. Stop its use, or the guest, and detach again.
    """

    identifier: str | None


class FlushFailed(Refused):
    """A host could not bring to a volume what had been written to its device; the device is kept, with what it holds.

    What to do: mend the path from the host to the storage, and repeat it. ``terminate(force=True)`` gives up what was
    written.
    """

    identifier: str | None


class GuestAgentUnavailable(Refused):
    """The guest has no agent, or its agent does not answer; its file systems go on writing.

    What to do: install ``qemu-guest-agent`` in the guest, give it the channel ``org.qemu.guest_agent.0``, or ask for
    what is had without it: ``crash_consistent=True``.
    """

    identifier: str | None


class NoValidHost(Refused):
    """No host can hold the request. *report* says for each host, or by reason, why.

    What to do: read *report*: make room, or ask for less. See the page on reading it.
    """

    report: Any


class MaxRetriesExceeded(NoValidHost):
    """The primary and every alternate were tried. *attempts* is the whole story, oldest first.

    What to do: read *attempts* for why each host failed, mend that, and select anew.
    """

    attempts: Any


# --- the other side is away ------------------------------------------------------------------------------------------


class Unavailable(Transient):
    """A part that is needed does not answer.

    What to do: see that it runs and can be reached; then make the same call again.
    """


class DatabaseUnavailable(Unavailable, ConnectionError):
    """No connection to the database, or it was lost before anything was committed.

    What to do: start the database, or see why it refuses; then make the same call again. Nothing was done.
    """

    database: str | None


class DatabaseBusy(Unavailable):
    """Deadlock, serialization failure or lock time-out, still there after the bounded retries.

    What to do: make the same call again later; if it lasts, look for a long transaction or too small a pool.
    """

    database: str | None


class CellUnavailable(Unavailable):
    """Cells did not answer and the caller required all of them. *cells* maps their names to the reason.

    What to do: mend the cells that *cells* names, or do without ``require="all"``.
    """

    cells: Any


class VolumeServiceUnavailable(Unavailable, ConnectionError):
    """The volume service cannot be reached; nothing was sent, or what was sent had no effect.

    What to do: see that the service answers; then make the same call again.
    """


class KeyManagerUnavailable(Unavailable, ConnectionError):
    """The key manager cannot be reached, or failed; it gave out no key.

    What to do: see that it answers, and that those on whose behalf it is asked can log in; then make the same call
    again.
    """


class VolumeBusy(Unavailable):
    """Another attach or detach of the volume is in flight.

    What to do: wait until the other call is over; if none is, ``recover()``.
    """

    identifier: str | None


class HypervisorUnavailable(Unavailable, ConnectionError):
    """The hypervisor cannot be reached. *code* is its own error code.

    What to do: see that the daemon runs and *uri* is right; then ask ``disk_state`` what was done.
    """

    uri: str | None
    code: int | None


class GuestBusy(Unavailable):
    """The guest takes no change at this moment (it is still taking in an earlier one); nothing was done.

    What to do: make the same call again when the guest has taken in the earlier change.
    """

    identifier: str | None


class DeadlineExceeded(Unavailable, TimeoutError):
    """Not done within *seconds*. What was asked may still be going on unless the text says otherwise.

    What to do: ask for the state before you repeat; if it lasts, raise the deadline or look at the other side.
    """

    seconds: float | None


class Overloaded(Unavailable):
    """The call waited for *seconds* in its own process, for its turn or for a connection, and nothing was done.

    What to do: come back later, or add processes, threads or connections.
    """

    seconds: float | None


# --- the rest --------------------------------------------------------------------------------------------------------


class OutcomeUnknown(CloudcoreError):
    """The answer was lost: it happened or it did not. Repeat with *operation_id*, which takes effect once.

    What to do: repeat the call with the same *operation_id*, or read the state.
    """

    operation_id: str | None


class Cancelled(CloudcoreError):
    """The caller ended the work; what was handed out before stands.

    What to do: nothing, if it was meant; else make the call again.
    """


class MissingExtra(CloudcoreError, ImportError):
    """An optional package is not installed. *extra* is the name to install.

    What to do: run the ``pip`` line of the text.
    """

    extra: str | None


class DatabaseError(CloudcoreError):
    """The database failed in a way that no retry mends (disk full, no permission, damaged file, wrong SQL).

    What to do: look at the database's own words in the text; mend permissions, disk or address.
    """

    database: str | None


class StatementRefused(DatabaseError):
    """The database would not run a statement, for what stands in it; the server is well.

    *values* says that it was a value, else it was the SQL.

    What to do: correct the expression or the value that the text names.
    """

    values: bool | None


class UnreadableValue(DatabaseError):
    """A database holds what cannot be: another type than its column's, no instant, NULL where none may be.

    *cell* and *column* say where, *identifier* is the row's key, *value* what is there.

    What to do: mend the row that *identifier* names, or leave the column out of the query.
    """

    cell: str | None
    column: str | None
    identifier: str | None
    value: Any


class SchemaMismatch(DatabaseError):
    """The tables are missing or of another version. *found* and *expected* are revisions.

    What to do: run ``cloudcore schema upgrade``, or use the release that made the tables.
    """

    found: str | None
    expected: str | None


class VolumeServiceError(CloudcoreError):
    """The volume service failed. *status* is its HTTP code, where there is one.

    What to do: look for the request's id in the service's log; nothing says that a repeat helps.
    """

    status: int | None


class HypervisorError(CloudcoreError):
    """The hypervisor failed. *code* is its own error code (libvirt's ``VIR_ERR_*``).

    What to do: look up *code* and the hypervisor's log.
    """

    code: int | None


class OrphanedDevice(HypervisorError):
    """The hypervisor has lost track of a device that the guest still has; a restart of the guest ends that.

    What to do: restart the guest, then ask again.
    """

    identifier: str | None


class InvariantViolated(CloudcoreError, AssertionError):
    """What must always hold does not. *findings* lists each breach.

    What to do: report it with *findings*; ``audit()`` and ``heal()`` may mend the data.
    """

    findings: tuple[str, ...] | None
