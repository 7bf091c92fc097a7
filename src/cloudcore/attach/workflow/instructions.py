"""One instruction of the state table at a time: call the volume service, the host or the guest, and name the event.

Whatever goes wrong outside becomes an event too. Nothing here writes the journal or decides what happens next. One
module, because it is one table: a method for each instruction, and what several of them ask.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import tenacity

from cloudcore._failpoints import failpoint
from cloudcore.attach.hosts.connectors import verify_device
from cloudcore.attach.journal.lock_names import target_lock
from cloudcore.attach.lifecycle.rules import needs_target_lock
from cloudcore.attach.lifecycle.states import USES_HOST, WAITING, Event, Instruction, State
from cloudcore.attach.volumes.sources import options_of
from cloudcore.disks import DetachOutcome
from cloudcore.errors import (
    AttachmentNotFound,
    CloudcoreError,
    Conflict,
    DeadlineExceeded,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InUse,
    InvalidArgument,
    OutcomeUnknown,
    Refused,
    Transient,
    UnsupportedFeature,
    VolumeBusy,
    VolumeServiceError,
    WrongHost,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.attach.hosts.connectors import Host
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease
    from cloudcore.attach.lifecycle.records import Attachment, HostDevice, Settings
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.sources import DiskOptions
    from cloudcore.attach.volumes.values import ConnectionInfo, Volume
    from cloudcore.disks import Disk

__all__ = ["PROBES", "Instructions", "Outcome", "Work"]

_ON_HOST = frozenset(
    {Instruction.CONNECT, Instruction.PLUG, Instruction.UNPLUG, Instruction.DISCONNECT, Instruction.LOOK_AT_GUEST}
)
PROBES = frozenset(
    {
        Instruction.FIND_RESERVATION, Instruction.LOOK_AT_MAPPING, Instruction.LOOK_AT_GUEST,
        Instruction.LOOK_AT_STATUS, Instruction.LOOK_AT_RECORD,
    }
)  # fmt: skip


@attrs.frozen
class Outcome:
    """What came of a step: the event, the journal's changes, a note, and the error behind it."""

    event: Event
    changes: Mapping[str, Any] = attrs.field(factory=dict)
    note: str | None = None
    error: CloudcoreError | None = None


@attrs.define
class Work:
    """What one run knows of a leg beyond the journal. The connection lives only here.

    With *force* the host gives up what it cannot bring to the volume any more. *turn* is the lease on shared targets.
    """

    leg: Attachment
    lease: Lease
    info: ConnectionInfo | None = None
    device: HostDevice | None = None
    error: CloudcoreError | None = None
    repeats: int = 0
    force: bool = False
    turn: ExitStack = attrs.field(factory=ExitStack)


class Instructions:
    """Performs instructions. May be shared between threads.

    Args:
        journal: Read, to know who else uses a volume.
        volumes: The volume service.
        hosts: The hosts that this process can act on, by name.
        patience: Seconds to wait for a volume that somebody else keeps busy.
    """

    def __init__(self, journal: Journal, volumes: VolumeService, hosts: Mapping[str, Host], *, patience: float) -> None:
        self._journal = journal
        self._volumes = volumes
        self._hosts = hosts
        self._patience = patience
        self._steps: dict[Instruction, Callable[[Work], Outcome]] = {
            Instruction.RESERVE: self._reserve,
            Instruction.CREATE: self._create,
            Instruction.MAP: self._map,
            Instruction.CONNECT: self._connect,
            Instruction.PLUG: self._plug,
            Instruction.COMPLETE: self._complete,
            Instruction.UNPLUG: self._unplug,
            Instruction.DISCONNECT: self._disconnect,
            Instruction.UNMAP: self._unmap,
            Instruction.FIND_RESERVATION: self._find_reservation,
            Instruction.LOOK_AT_MAPPING: self._look_at_mapping,
            Instruction.LOOK_AT_GUEST: self._look_at_guest,
            Instruction.LOOK_AT_STATUS: self._look_at_status,
            Instruction.LOOK_AT_RECORD: self._look_at_record,
        }

    def host(self, leg: Attachment) -> Host:
        """The host of *leg*.

        Raises:
            WrongHost: This process does not act on it; nothing was touched.
        """
        found = self._hosts.get(leg.host or "")
        if found is None:
            served = ", ".join(sorted(self._hosts))
            raise WrongHost(
                f"attachment {leg.id} is on host {leg.host}, and this process acts on {served}; run it there",
                identifier=leg.id,
                expected=leg.host,
                found=served,
            )
        return found

    def host_named(self, host: str) -> Host:
        """The host of this name.

        Raises:
            WrongHost: This process does not act on it; nothing was touched.
        """
        found = self._hosts.get(host)
        if found is None:
            served = ", ".join(sorted(self._hosts))
            raise WrongHost(f"this process acts on {served}, not on {host}; run it there", expected=host, found=served)
        return found

    def serves(self, host: str | None) -> bool:
        """Whether this process acts on *host*."""
        return host in self._hosts

    def perform(self, work: Work, instruction: Instruction) -> Outcome:
        """Do one thing; what came of it, errors included.

        Raises:
            WrongHost: It belongs to a host that is not served here; nothing was touched.
        """
        if instruction in _ON_HOST:
            self.host(work.leg)  # raises outside of the try: a step on the wrong host is no event
        try:
            return self._steps[instruction](work)
        except (OutcomeUnknown, DeadlineExceeded, HypervisorUnavailable) as error:
            return Outcome(Event.LOST, note=_note(error), error=error)
        except CloudcoreError as error:
            event = Event.LOST if instruction in PROBES else Event.REFUSED
            return Outcome(event, note=_note(error), error=error)
        except Exception as error:  # a service, host or hypervisor of somebody else's, with a fault of its own
            unknown = _foreign(work, instruction, error)
        return Outcome(Event.LOST, note=_note(unknown), error=unknown)

    def target_lock(self, host: str | None, backend: Settings | Volume) -> str | None:
        """Name of the lease under which *host* touches the targets of *backend*, None where none are shared."""
        if host is None or not self.serves(host):
            return None
        manual = self._hosts[host].connector.describe().manual_scan
        if not needs_target_lock(backend, manual_scan=manual):
            return None
        return target_lock(host, backend.service_uuid)

    # --- the volume service -------------------------------------------------------------------------------------------

    def _reserve(self, work: Work) -> Outcome:
        leg = work.leg
        failpoint("attach.reserve.before")
        made = self._waiting(lambda: self._volumes.reserve(leg.volume_id, leg.instance_id, mode=leg.mode))
        failpoint("attach.reserve.after")
        return Outcome(Event.DONE, {"service_id": made.id})

    def _create(self, work: Work) -> Outcome:
        leg = work.leg
        connector = self.host(leg).connector.describe()
        failpoint("attach.create.before")
        made = self._waiting(lambda: self._volumes.create(leg.volume_id, leg.instance_id, connector, mode=leg.mode))
        failpoint("attach.create.after")
        work.info = made.connection
        return Outcome(Event.DONE, {"service_id": made.id})

    def _waiting(self, call: Callable[[], Any]) -> Any:
        """Repeat *call* while the volume is busy for somebody who is not in the journal."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(VolumeBusy),
            stop=tenacity.stop_after_delay(self._patience),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=2.0),
            reraise=True,
        )
        return retrying(call)

    def _map(self, work: Work) -> Outcome:
        connector = self.host(work.leg).connector.describe()
        failpoint("attach.map.before")
        mapped = self._volumes.update(_service_id(work.leg), connector)
        failpoint("attach.map.after")
        work.info = mapped.connection
        return Outcome(Event.DONE)

    def _complete(self, work: Work) -> Outcome:
        failpoint("attach.complete.before")
        self._volumes.complete(_service_id(work.leg))
        failpoint("attach.complete.after")
        return Outcome(Event.DONE)

    def _unmap(self, work: Work) -> Outcome:
        failpoint("attach.unmap.before")
        ids = [work.leg.service_id] if work.leg.service_id else self._unknown_records(work.leg)
        for service_id in ids:
            self._volumes.delete(service_id)
        failpoint("attach.unmap.after")
        return Outcome(Event.DONE)

    def _unknown_records(self, leg: Attachment) -> list[str]:
        """Records of this volume and instance that no leg accounts for: what a lost answer may have left."""
        known = self._journal.service_ids(leg.volume_id, leg.instance_id)
        found = self._volumes.attachments(volume_id=leg.volume_id, instance_id=leg.instance_id)
        return [record.id for record in found if record.id not in known]

    def _find_reservation(self, work: Work) -> Outcome:
        failpoint("attach.find.before")
        found = self._unknown_records(work.leg)
        if not found:
            return Outcome(Event.MISSING)
        for surplus in found[1:]:
            self._volumes.delete(surplus)
        return Outcome(Event.FOUND, {"service_id": found[0]})

    def _look_at_mapping(self, work: Work) -> Outcome:
        failpoint("attach.look.before")
        try:
            record = self._volumes.attachment(_service_id(work.leg))
        except AttachmentNotFound as error:
            return Outcome(Event.VANISHED, note=_note(error), error=error)
        work.info = record.connection
        return Outcome(Event.MISSING if record.connection is None else Event.FOUND)

    def _look_at_status(self, work: Work) -> Outcome:
        failpoint("attach.look.before")
        try:
            record = self._volumes.attachment(_service_id(work.leg))
        except AttachmentNotFound as error:
            return Outcome(Event.VANISHED, note=_note(error), error=error)
        return Outcome(Event.FOUND if record.status == "attached" else Event.MISSING)

    def _look_at_record(self, work: Work) -> Outcome:
        failpoint("attach.look.before")
        if work.leg.service_id is None:
            return Outcome(Event.FOUND if self._unknown_records(work.leg) else Event.MISSING)
        try:
            self._volumes.attachment(work.leg.service_id)
        except AttachmentNotFound:
            return Outcome(Event.MISSING)
        return Outcome(Event.FOUND)

    # --- the host and the guest ---------------------------------------------------------------------------------------

    def connection(self, work: Work) -> ConnectionInfo:
        """The connection, asked again if this run does not know it: the journal never does."""
        if work.info is None and work.leg.service_id is None:
            raise AttachmentNotFound(
                f"attachment {work.leg.id} has no record at the volume service", identifier=work.leg.id
            )
        if work.info is None:
            work.info = self._volumes.attachment(_service_id(work.leg)).connection
        if work.info is None:
            raise VolumeServiceError(f"attachment {work.leg.service_id} is not mapped, though the journal says so")
        return attrs.evolve(work.info, volume_id=work.leg.volume_id)

    def device(self, work: Work) -> HostDevice:
        """The device on the host, made (again) if need be, and verified."""
        if work.device is None:
            device = self.host(work.leg).connector.connect(self.connection(work))
            verify_device(device, work.leg.device, work.leg.settings.size, work.leg.volume_id)
            work.device = device
        return work.device

    def disk(self, work: Work) -> Disk:
        """The disk as a guest on the leg's host is to have it; connects the host if need be."""
        options, key = self._described(work)
        return work.leg.disk(self.device(work).source, options, key=key)

    def _described(self, work: Work) -> tuple[DiskOptions, str | None]:
        """What the service says of the disk, and what opens it.

        Raises:
            UnsupportedFeature: Its bytes are encrypted, and nobody says how: plugged as they are, the guest would see,
                and overwrite, those.
        """
        options = options_of(self.connection(work))
        if not options.encrypted and not work.leg.settings.encrypted:
            return options, None
        key = self._volumes.encryption_key(work.leg.volume_id)
        if key is None:
            raise UnsupportedFeature(
                f"volume {work.leg.volume_id} is encrypted, and the volume service names no key", needed="encryption"
            )
        return options, key

    def _connect(self, work: Work) -> Outcome:
        self._described(work)  # before anything is done on the host
        failpoint("attach.connect.before")
        device = self.device(work)
        failpoint("attach.connect.after")
        return Outcome(Event.DONE, {"device": device if device.connected else None})

    def _plug(self, work: Work) -> Outcome:
        disk = self.disk(work)
        failpoint("attach.plug.before")
        state = self.host(work.leg).guests.attach_disk(work.leg.instance_id, disk)
        failpoint("attach.plug.after")
        for there in (state.live, state.persistent):
            if there is not None and there.read_only != disk.read_only:
                raise Conflict(
                    f"volume {disk.volume_id} was asked for {work.leg.mode} and the guest has it otherwise",
                    identifier=disk.volume_id,
                )
        return Outcome(Event.DONE)

    def _look_at_guest(self, work: Work) -> Outcome:
        failpoint("attach.look.before")
        state = self.host(work.leg).guests.disk_state(work.leg.instance_id, work.leg.volume_id)
        found = state.present
        if work.leg.state is State.PLUG_UNCERTAIN and state.half:  # plugging again completes it
            found = False
        return Outcome(Event.FOUND if found else Event.MISSING)

    def _unplug(self, work: Work) -> Outcome:
        leg = work.leg
        failpoint("attach.unplug.before")
        try:
            outcome = self.host(leg).guests.detach_disk(leg.instance_id, leg.volume_id)
        except GuestNotFound:
            return Outcome(Event.DONE, note="the guest is gone")
        except HypervisorError as error:
            return Outcome(Event.LOST, note=_note(error), error=error)
        except (Refused, InvalidArgument, Conflict):
            if self.host(leg).guests.disk_state(leg.instance_id, leg.volume_id).present:
                raise
            return Outcome(Event.DONE, note="the guest has no such disk")
        failpoint("attach.unplug.after")
        if DetachOutcome(outcome) is DetachOutcome.PENDING:  # anything but the two is no answer
            return Outcome(Event.PENDING, note="the guest has not let go yet")
        return Outcome(Event.DONE)

    def _disconnect(self, work: Work) -> Outcome:
        leg, host = work.leg, self.host(work.leg)
        failpoint("attach.disconnect.before")
        device = leg.device or self._unrecorded_device(work)
        if device is None or not device.connected:
            return Outcome(Event.DONE)
        others = self._other_users(leg, host)
        if others:
            return Outcome(Event.DONE, {"device": None}, note=f"still used on {host.name} by {', '.join(others)}")
        force = work.force
        try:
            info = self.connection(work)
        except AttachmentNotFound:  # the volume may be somebody else's already: nothing is to be brought to it
            info, force = None, True
        except VolumeServiceError:
            info = None
        host.connector.disconnect(info, device, force=force)
        failpoint("attach.disconnect.after")
        return Outcome(Event.DONE, {"device": None})

    def _unrecorded_device(self, work: Work) -> HostDevice | None:
        """A device that a connect may have made before it was written down: connecting again names it."""
        if work.device is not None:
            return work.device
        if not any(line.state is State.CONNECTING or line.state is State.JOINING for line in self._tail(work.leg)):
            return None
        try:
            return self.host(work.leg).connector.connect(self.connection(work))
        except (Transient, OutcomeUnknown):
            raise
        except CloudcoreError:
            return None  # it cannot be connected, so it is not

    def _tail(self, leg: Attachment) -> Any:
        """The last lines of the story before this state: the interruption may lie between connect and its record."""
        return self._journal.story(leg.id)[-4:-1]

    def _other_users(self, leg: Attachment, host: Host) -> list[str]:
        """Instances on the host that use the volume too: by the journal (arriving ones count) or by the hypervisor."""
        legs = self._journal.select(volume_id=leg.volume_id, host=host.name)
        users = {o.instance_id for o in legs if o.id != leg.id and (o.state in USES_HOST or o.state in WAITING)}
        for state in host.guests.disk_states():
            if state.volume_id == leg.volume_id and state.instance_id != leg.instance_id and state.present:
                self._require_mapping_of_its_own(leg, host, state.instance_id, users)
                users.add(state.instance_id)
        return sorted(users)

    def _require_mapping_of_its_own(self, leg: Attachment, host: Host, instance_id: str, known: set[str]) -> None:
        """Check that a guest that only the hypervisor knows does not live on this leg's mapping.

        Raises:
            InUse: It does: unmapping would pull the volume from under it.
        """
        if instance_id in known or self._volumes.attachments(volume_id=leg.volume_id, instance_id=instance_id):
            return
        raise InUse(
            f"guest {instance_id} on {host.name} has volume {leg.volume_id}, and neither the journal nor the volume "
            f"service knows why; attachment {leg.id} keeps the mapping. audit() shows it; recover() goes on afterwards",
            identifier=leg.volume_id,
            users=[instance_id],
        )


def _service_id(leg: Attachment) -> str:
    if leg.service_id is None:
        raise AssertionError(f"{leg.id} is {leg.state} without an id of the volume service")
    return leg.service_id


def _foreign(work: Work, instruction: Instruction, error: Exception) -> OutcomeUnknown:
    """For an error that no adapter should raise. Its text may quote what it was given, so only its kind is told."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return OutcomeUnknown(
        f"{instruction} of volume {work.leg.volume_id}: {type(error).__name__} at {Path(frame.filename).name}:"
        f"{frame.lineno}, where only errors of cloudcore are expected; it may have happened",
        operation_id=work.leg.operation_id,
    )


def _note(error: CloudcoreError) -> str:
    return f"{type(error).__name__}: {error}"
