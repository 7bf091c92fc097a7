"""The compute cloud behind the API: placement, cells, volumes, and guests that exist in memory only.

Everything a call does it does under the caller's operation id, step by step; whoever repeats it after a crash finds
done what was done, and goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import sqlalchemy as sa

from cloudcore import (
    AllocationLedger,
    AttachmentManager,
    Cell,
    CellRouter,
    Database,
    EmbeddedVolumes,
    HostSelector,
    InstanceDirectory,
    InstanceStore,
    PlacementTree,
    ResourceRequest,
    Selection,
    create_schema,
    reschedule,
)
from cloudcore.attach import Attachment, MemoryGuests, Volume
from cloudcore.database import create_tables
from cloudcore.errors import (
    AlreadyExists,
    AttachmentNotFound,
    CloudcoreError,
    ConstraintViolated,
    ConsumerNotFound,
    InstanceNotFound,
    InvalidArgument,
    InvalidTransition,
    MaxRetriesExceeded,
    MoveNotFound,
    OperationMismatch,
    VolumeNotFound,
)
from cloudcore.listing import Record
from cloudcore.observability import Observer
from cloudcore.placement import Failure, MoveState
from cloudcore.placement.hosts import spread

log = logging.getLogger(__name__)

NAMESPACE = uuid.UUID("6f2f7a2e-6f0b-4a51-9f6f-6a1d2f6f0c11")

FLAVORS: dict[str, dict[str, Any]] = {
    "1": {"name": "m1.tiny", "vcpus": 1, "ram": 512, "disk": 1},
    "2": {"name": "m1.small", "vcpus": 2, "ram": 2048, "disk": 20},
    "3": {"name": "m1.medium", "vcpus": 4, "ram": 8192, "disk": 40},
}

CLAIM_SECONDS = 600
"""How long a claim waits for its server's record; where that is never written, it lapses."""

_moves = sa.Table(
    "example_moves",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("migration", sa.String(36), nullable=False, index=True),
    sa.Column("instance", sa.String(36), nullable=False, index=True),
    sa.Column("host", sa.String(200)),
    sa.Column("flavor", sa.String(255)),
)
"""A table of the application's own, beside cloudcore's: what a server was before a move, noted before the move begins.

Rows are only added. Whether a move began, and how it ended, the ledger alone knows.
"""


@attrs.frozen(kw_only=True)
class Caller:
    """Who asks."""

    project_id: str
    user_id: str
    admin: bool = False


class Guests:
    """What stands for a hypervisor: starts guests, and fails on the hosts that a server's metadata names."""

    def start(self, instance: str, host: str, metadata: Mapping[str, str]) -> None:
        """Start a guest; one that runs goes on.

        Raises:
            RuntimeError: As asked for.
        """
        if host in metadata.get("fail_on", "").split(","):
            raise RuntimeError(f"{host} was asked to fail")


class ComputeCloud:
    """One deployment. May be shared between threads; each process opens its own.

    Args:
        database: URL for placement, directory and volumes.
        cells: Name → URL of the database of each cell's servers.
        hosts: Name of each host → the cell that it is in; added to the tree if they are not there.
        observer: Is told what goes on.
    """

    def __init__(
        self, database: str, cells: Mapping[str, str], hosts: Mapping[str, str], observer: Observer | None = None
    ) -> None:
        self.database = Database(database)
        create_schema(self.database)
        create_tables(self.database.engine, [_moves])
        self.tree = PlacementTree.open(self.database, observer=observer)
        self.ledger = AllocationLedger(self.database, observer=observer)
        for name in hosts:
            if name not in self.tree:
                self._add_host(name)
        self.selector = HostSelector(
            self.tree, self.ledger, cell_of=dict(hosts), weighers=[(1.0, spread())], observer=observer
        )
        self.router = CellRouter(
            [Cell(name, url) for name, url in cells.items()],
            directory=InstanceDirectory(self.database),
            observer=observer,
        )
        self.store = InstanceStore(self.router)
        for cell in cells:
            try:
                self.store.create_tables(cell)
            except CloudcoreError as error:  # a cell that is away keeps nobody else from starting
                log.warning("cell %s: %s", cell, error)
        self.volumes = EmbeddedVolumes(self.database)
        guests = [MemoryGuests(name) for name in hosts]
        self.manager = AttachmentManager(self.database, self.volumes, guests, observer=observer)
        self.guests = Guests()

    def _add_host(self, name: str) -> None:
        try:
            self.tree.add(name, inventory={"VCPU": 32, "MEMORY_MB": 65536, "DISK_GB": 1000})
        except AlreadyExists:  # by another process, just now
            self.tree.refresh()

    def close(self) -> None:
        for part in (self.manager, self.router, self.ledger, self.tree, self.database):
            part.close()

    # --- servers -----------------------------------------------------------------------------------------------------

    def boot(self, caller: Caller, operation: str, wanted: Mapping[str, Any]) -> Record:
        """Choose a host and claim it, write the record, start the guest; on a host that fails, go to the next."""
        instance = str(uuid.uuid5(NAMESPACE, operation))
        request = ResourceRequest.from_flavor(flavor(wanted["flavor"]))
        self.ledger.expire()  # what was claimed for servers whose record never came
        self.tree.refresh()
        (selection,) = self.selector.select(
            request,
            project_id=caller.project_id,
            user_id=caller.user_id,
            instances=[instance],
            alternates=2,
            expires_in=CLAIM_SECONDS,
            operation_id=operation,
        )
        self.store.create_many(
            selection.cell,
            [
                {
                    "uuid": instance,
                    "project_id": caller.project_id,
                    "user_id": caller.user_id,
                    "display_name": wanted["name"],
                    "flavor": wanted["flavor"],
                    "image_ref": wanted.get("image"),
                    "host": selection.primary.name,
                    "vm_state": "building",
                    "tags": wanted.get("tags", ()),
                    "metadata": wanted.get("metadata", {}),
                }
            ],
        )
        found = self.router.get(instance)
        if found["vm_state"] != "building":  # an earlier call came so far; perhaps not to its very end
            self.store.update(instance, host=found["host"])
            return self.router.get(instance)
        try:
            held = self.ledger.settle(instance).allocations
        except (ConsumerNotFound, InvalidTransition):  # a repeat that came too late
            return self._failed(instance)
        return self._start(selection, held, instance, operation, wanted.get("metadata", {}))

    def _start(
        self,
        selection: Selection,
        held: Mapping[str, Mapping[str, int]],
        instance: str,
        operation: str,
        metadata: Mapping[str, str],
    ) -> Record:
        """What the cell does, without asking the scheduler again; a repeat goes on at the host that is held by now."""
        choice = next(each for each in selection.choices if each.allocations == held)
        while True:
            try:
                self.guests.start(instance, choice.name, metadata)
                break
            except RuntimeError as error:
                again = f"{operation[:56]}-{selection.choices.index(choice) + 1}"
                try:
                    found = reschedule(self.ledger, selection, instance, failed=Failure(str(error)), operation_id=again)
                except MaxRetriesExceeded:
                    with contextlib.suppress(ConsumerNotFound):
                        self.ledger.release(instance)
                    return self._failed(instance)
                choice = found.choice
        self.store.update(instance, vm_state="active", host=choice.name)
        return self.router.get(instance)

    def _failed(self, instance: str) -> Record:
        self.store.update(instance, vm_state="error", host=None)
        return self.router.get(instance)

    def server(self, caller: Caller, instance: str) -> Record:
        """One server of the caller's project; to others it is not there.

        Raises:
            InstanceNotFound: No such server, or not theirs.
        """
        found = self.router.get(instance)
        if found["deleted"] or (found["project_id"] != caller.project_id and not caller.admin):
            raise InstanceNotFound(f"no server {instance}", identifier=instance)
        return found

    def delete(self, caller: Caller, instance: str) -> None:
        """Take its volumes away, give its allocations back for ever, which ends a move of it, and mark the record."""
        found = self.server(caller, instance)
        self.manager.terminate(found["uuid"])
        self.ledger.release(found["uuid"], forever=True)
        self.store.delete(found["uuid"])

    # --- moves -------------------------------------------------------------------------------------------------------

    def move(self, caller: Caller, instance: str, operation: str, kind: str, flavor_id: str | None = None) -> None:
        """Resize or migrate: the destination is held beside the source until it is confirmed or reverted."""
        found = self.server(caller, instance)
        migration = str(uuid.uuid5(NAMESPACE, f"migration/{operation}"))
        if self._state(migration) is None:
            if found["vm_state"] != "active":
                state = found["vm_state"]
                raise InvalidTransition(f"server {instance} is {state}", state=state, event=kind)
            self._note(found, migration)
        before = self._notes(_moves.c.migration == migration)[0]
        wanted = flavor_id or before.flavor
        self.tree.refresh()
        selection = self.selector.select_destination(
            found["uuid"], migration, ResourceRequest.from_flavor(flavor(wanted)), kind=kind, operation_id=operation
        )
        if self._state(migration) != MoveState.HELD:
            return  # a late repeat: the move has ended since
        if found["vm_state"] != "resized" and self.manager.attachments(instance_id=found["uuid"]):
            self.manager.begin_move(found["uuid"], selection.primary.name, kind="cold")
        self.store.update(found["uuid"], vm_state="resized", host=selection.primary.name, flavor=wanted)

    def confirm(self, caller: Caller, instance: str) -> None:
        """End a move at its destination: the volumes', then the ledger's, then the record. May be repeated."""
        found, before = self._moving(caller, instance, "confirm")
        if found["vm_state"] != "resized":
            raise InvalidTransition(
                f"server {instance} has not arrived: repeat its move, or revert it",
                state=found["vm_state"],
                event="confirm",
            )
        self._end_volumes(found["uuid"], found["host"], self.manager.confirm_move)
        self.ledger.confirm_move(before.migration)
        self.store.update(found["uuid"], vm_state="active")

    def revert(self, caller: Caller, instance: str) -> None:
        """End a move at its source, in the same order, however far it came. May be repeated."""
        found, before = self._moving(caller, instance, "revert")
        self._end_volumes(found["uuid"], before.host, self.manager.revert_move)
        self.ledger.revert_move(before.migration)
        self.store.update(found["uuid"], vm_state="active", host=before.host, flavor=before.flavor)

    def _moving(self, caller: Caller, instance: str, event: str) -> tuple[Record, Any]:
        """A server in a move, or whose record does not show its end yet, and what it was before."""
        found = self.server(caller, instance)
        for before in self._notes(_moves.c.instance == found["uuid"]):
            state = self._state(before.migration)
            if state == MoveState.HELD or (state is not None and found["vm_state"] == "resized"):
                return found, before
            if state is not None:
                break  # the last one that began has ended, and older ones before it
        raise InvalidTransition(f"server {instance} is in no move", state=found["vm_state"], event=event)

    def _end_volumes(self, instance: str, host: str, end: Callable[[str], object]) -> None:
        """Bring the volumes to *host*; a repeat finds them there, and who wanted them elsewhere comes too late."""
        if self.manager.move(instance) is not None:
            end(instance)
        if any(attachment.host != host for attachment in self.manager.attachments(instance_id=instance)):
            raise InvalidTransition(
                f"volumes of server {instance} are not on {host}: end its move the other way, or detach them"
            )

    def _state(self, migration: str) -> MoveState | None:
        """None if the move never began."""
        try:
            return self.ledger.move(migration).state
        except MoveNotFound:
            return None

    def _note(self, found: Record, migration: str) -> None:
        row = {"migration": migration, "instance": found["uuid"], "host": found["host"], "flavor": found["flavor"]}
        self.database.run(lambda connection: connection.execute(sa.insert(_moves), row))

    def _notes(self, which: sa.ColumnElement[bool]) -> Sequence[Any]:
        """Newest first."""
        with self.database.read() as connection:
            return connection.execute(sa.select(_moves).where(which).order_by(_moves.c.number.desc())).all()

    # --- volumes -----------------------------------------------------------------------------------------------------

    def volume(self, caller: Caller, operation: str, size: int, *, multiattach: bool) -> Volume:
        """Make a volume of *size* GiB; a repeat finds it."""
        identifier = str(uuid.uuid5(NAMESPACE, f"volume/{operation}"))
        with contextlib.suppress(ConstraintViolated):  # an earlier call made it
            self.volumes.create_volume(
                size * 2**30, multiattach=multiattach, volume_id=identifier, project_id=caller.project_id
            )
        made = self.volumes.volume(identifier)
        if (made.size, made.multiattach) != (size * 2**30, multiattach):
            raise OperationMismatch(f"this key made volume {identifier}, which is another", operation_id=operation)
        return made

    def attach(self, caller: Caller, instance: str, operation: str, volume: str, device: str | None) -> Attachment:
        found = self.server(caller, instance)
        if not caller.admin and self.volumes.volume(volume).project_id != caller.project_id:
            raise VolumeNotFound(f"no volume {volume}", identifier=volume)  # as if it were not there
        target = device.rpartition("/")[2] if device else None
        return self.manager.attach(
            volume, found["uuid"], host=found["host"], target=target or None, operation_id=operation
        )

    def attachments(self, caller: Caller, instance: str) -> tuple[Attachment, ...]:
        return self.manager.attachments(instance_id=self.server(caller, instance)["uuid"])

    def attachment(self, caller: Caller, instance: str, volume: str) -> Attachment:
        for each in self.attachments(caller, instance):
            if each.volume_id == volume:
                return each
        raise AttachmentNotFound(f"server {instance} has no volume {volume}", identifier=volume)

    def detach(self, caller: Caller, instance: str, volume: str) -> None:
        self.manager.detach(self.attachment(caller, instance, volume).id)


def flavor(identifier: str) -> dict[str, Any]:
    """The flavor of this id.

    Raises:
        InvalidArgument: There is none.
    """
    if identifier not in FLAVORS:
        raise InvalidArgument(f"flavorRef: no flavor {identifier}", field="flavorRef", value=identifier)
    return {"id": identifier, **FLAVORS[identifier]}


def open_cloud(folder: Path, database: str | None = None, observer: Observer | None = None) -> ComputeCloud:
    """A cloud of two cells with three hosts each; what is not elsewhere lies in *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = {name: f"sqlite:///{folder}/{name}.db" for name in ("cell1", "cell2")}
    hosts = {f"{cell}-host{number}": cell for cell in cells for number in range(3)}
    return ComputeCloud(database or f"sqlite:///{folder}/cloud.db", cells, hosts, observer)
