"""What the journal knows of an attachment, as values. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs

from cloudcore._values import FrozenDict
from cloudcore.attach.lifecycle.states import AT_REST, WAITING, State
from cloudcore.attach.volumes.sources import DiskOptions
from cloudcore.disks import BlockSource, Disk, DiskBus, DiskSource, FileSource, LuksEncryption
from cloudcore.notebook import Table, html_of, table, words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from cloudcore.attach.volumes.values import AttachMode, Volume, VolumeSnapshot

__all__ = [
    "Attachment",
    "Extension",
    "HostDevice",
    "HostRefresh",
    "InstanceSnapshot",
    "ManagerStatus",
    "Move",
    "MoveKind",
    "RecoveryReport",
    "Role",
    "Settings",
    "StoryLine",
    "WhenGone",
]

Role = Literal["main", "next", "past"]
"""``"main"`` is the instance's use of the volume; ``"next"`` is to replace it; ``"past"`` has been replaced."""

WhenGone = Literal["keep", "delete"]
"""What becomes of a volume whose attachment is on its way out: a user's detach keeps it, termination may delete it."""

MoveKind = Literal["live", "cold", "shelve", "evacuation", "refresh", "rebuild", "snapshot", "swap"]
"""How an instance leaves its host; a refresh and a rebuild come back, and during a snapshot and a swap it stays."""


@attrs.frozen(kw_only=True)
class Settings:
    """What was asked for and what was true of the volume when it was asked.

    Attributes:
        shareable: The volume is multi-attach.
        bus, target, boot_order, cache: As in :class:`~cloudcore.disks.Disk`.
        delete_on_termination: The volume goes with its instance, if that has it when it ends.
        size: Of the volume, in bytes.
        service_uuid: Of the backend, None if the service does not say.
        shared_targets: See :class:`~cloudcore.attach.Volume`.
        encrypted: The volume's bytes are, to be opened on the compute host.
        held_before: The leg began as a held one, so undoing it must not lose the hold.
    """

    shareable: bool = False
    bus: DiskBus = DiskBus.VIRTIO
    target: str | None = None
    boot_order: int | None = None
    cache: str | None = None
    delete_on_termination: bool = False
    size: int = 0
    service_uuid: str | None = None
    shared_targets: bool | None = False
    encrypted: bool = False
    held_before: bool = False

    def as_json(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        default = Settings()
        fields = attrs.asdict(self)
        return {name: value for name, value in fields.items() if value != getattr(default, name)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Settings:
        """Read :meth:`as_json`; unknown names of later releases are ignored."""
        known = {field.name for field in attrs.fields(cls)}
        fields = {name: value for name, value in stored.items() if name in known}
        if "bus" in fields:
            fields["bus"] = DiskBus(fields["bus"])
        return cls(**fields)


def _frozen(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return FrozenDict(value)


@attrs.frozen(kw_only=True)
class HostDevice:
    """What a host connector made of a connection.

    Attributes:
        source: What the guest's disk is made of.
        size: In bytes, as read from the device; None where nothing on the host can be asked.
        serial: World-wide name or serial of the device, None where there is none.
        connected: Something on the host has to be disconnected again.
        details: What the connector wants back to disconnect. It is written to the journal: never put secrets in it.
    """

    source: DiskSource
    size: int | None = None
    serial: str | None = None
    connected: bool = False
    details: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen, hash=False)

    def as_json(self) -> dict[str, Any] | None:
        """What the journal keeps: nothing for a network disk, whose source holds addresses that the service knows."""
        if not self.connected:
            return None
        if not isinstance(self.source, BlockSource | FileSource):
            raise TypeError(f"a connected device has a path, not {type(self.source).__name__}")
        kind = "block" if isinstance(self.source, BlockSource) else "file"
        return {
            "kind": kind,
            "path": self.source.path,
            "format": getattr(self.source, "format", None),
            "size": self.size,
            "serial": self.serial,
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> HostDevice | None:
        """Read :meth:`as_json`."""
        if stored is None:
            return None
        source: DiskSource = (
            BlockSource(stored["path"]) if stored["kind"] == "block" else FileSource(stored["path"], stored["format"])
        )
        return cls(
            source=source,
            size=stored["size"],
            serial=stored["serial"],
            connected=True,
            details=stored["details"],
        )


@attrs.frozen(kw_only=True)
class Attachment:
    """One leg of the journal: that an instance has, had, or is about to have a volume on a host.

    Attributes:
        id: Ours; :meth:`AttachmentManager.detach` takes it. Known before the volume service is asked.
        volume_id, instance_id: UUIDs.
        role: See :data:`Role`.
        host: Compute host, None for a held volume.
        state: See :class:`~cloudcore.attach.State`.
        mode: ``"rw"`` or ``"ro"``.
        service_id: The volume service's id of it, None until it is known.
        operation_id: Under which it was asked for.
        version: Counts the steps.
        settings: See :class:`Settings`.
        device: What is connected on the host, None for network disks.
        when_gone: Set while it is on its way out at somebody's wish: see :data:`WhenGone`.
        note: Why it is where it is, if something went wrong. Never holds connection information.
        created_at, updated_at: By the clock of the process that wrote.
    """

    id: str
    volume_id: str
    instance_id: str
    role: Role = "main"
    host: str | None
    state: State
    mode: AttachMode = "rw"
    service_id: str | None = None
    operation_id: str | None = None
    fingerprint: str | None = attrs.field(default=None, repr=False)
    version: int = 0
    settings: Settings = attrs.field(factory=Settings)
    device: HostDevice | None = None
    when_gone: WhenGone | None = None
    note: str | None = None
    created_at: datetime
    updated_at: datetime

    def _table_row_(self) -> dict[str, Any]:
        names = ("id", "volume_id", "instance_id", "host", "state", "mode", "note")
        return {name: getattr(self, name) for name in names}

    def _repr_html_(self) -> str:
        return table([self], title="Attachment")._repr_html_()

    @property
    def interrupted(self) -> bool:
        """Work on it was begun and not finished: somebody is at it, or died over it."""
        return self.state not in AT_REST and self.state not in WAITING

    @property
    def pending(self) -> bool:
        """The guest was asked to let go and has not yet; :meth:`AttachmentManager.recover` asks again."""
        return self.state in WAITING

    def disk(self, source: DiskSource, options: DiskOptions | None = None, *, key: str | None = None) -> Disk:
        """The disk that the guest is to have: its bytes at *source*, *options* as the service says, opened by *key*."""
        options = options or DiskOptions()
        settings = self.settings
        return Disk(
            volume_id=self.volume_id,
            source=source,
            read_only=self.mode == "ro" or options.read_only,
            shareable=settings.shareable,
            bus=settings.bus,
            target=settings.target,
            boot_order=settings.boot_order,
            cache="none" if settings.shareable else settings.cache,
            discard=options.discard,
            logical_block_size=options.logical_block_size,
            physical_block_size=options.physical_block_size,
            limits=options.limits,
            encryption=None if key is None else LuksEncryption(secret_id=self.volume_id, key_id=key),
        )


@attrs.frozen(kw_only=True)
class StoryLine:
    """One thing that happened to an attachment."""

    version: int
    event: str
    state: State
    note: str | None
    at: datetime

    def __str__(self) -> str:
        told = f" ({self.note})" if self.note else ""
        return f"{self.version}. {self.event} -> {self.state}{told}"


@attrs.frozen(kw_only=True)
class Extension:
    """What came of growing a volume.

    Attributes:
        volume: As the service describes it now.
        told: The attachments whose guest knows.
        left: (attachment id, why) of those whose guest or host could not be told; repeat the call for them.
    """

    volume: Volume
    told: tuple[Attachment, ...]
    left: tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True)
class HostRefresh:
    """What came of asking anew how a host reaches all of its volumes.

    Attributes:
        refreshed: The attachments that were.
        left: (instance id, why) of those whose disks are as before, or on their way: repeat the call for them.
    """

    refreshed: tuple[Attachment, ...]
    left: tuple[tuple[str, str], ...]


@attrs.frozen(kw_only=True)
class InstanceSnapshot:
    """What all volumes of an instance held at one instant.

    Attributes:
        instance_id: UUID.
        name: Of the snapshot of each volume; unique.
        quiesced: The guest's file systems waited, or nobody could write. False: as after a power cut.
        snapshots: Of each volume, in the order of its attachments.
    """

    instance_id: str
    name: str
    quiesced: bool
    snapshots: tuple[VolumeSnapshot, ...]


@attrs.frozen(kw_only=True)
class Move:
    """An instance's volumes on their way to another host.

    Attributes:
        instance_id: UUID.
        kind: See :data:`MoveKind`.
        phase: ``"beginning"``, ``"begun"`` (of a rebuild ``"reimaging"``), ``"confirming"``, ``"reverting"``, or
            ``"ending"`` with its instance. Of a snapshot ``"freezing"``, then ``"frozen"``; of a swap ``"copying"``,
            ``"pivoting"``, ``"completing"``, or ``"undoing"``.
        source: Host that the instance leaves.
        destination: Host that it goes to; None for a shelved instance.
        legs: The second legs (live), or the held ones.
        disks: For a live move: the disks as the destination's definition must have them, in the order of *legs*.
        note: Evidence under which the source counts as dead, if it does; a rebuild's image, a snapshot's name; of a
            swap the old volume and the new.
    """

    instance_id: str
    kind: MoveKind
    phase: str
    source: str
    destination: str | None
    legs: tuple[Attachment, ...] = ()
    disks: tuple[Disk, ...] = ()
    note: str | None = None

    def _repr_html_(self) -> str:
        places = f"{self.source} to {words(self.destination)}"
        return html_of(
            f"{self.kind} move of instance {self.instance_id}, {places}: {self.phase}",
            table(self.legs, title="Second legs" if self.kind == "live" else "Held"),
        )

    @property
    def shelved(self) -> bool:
        """The instance is on no host, and its volumes wait for it."""
        return self.kind == "shelve" and self.phase == "begun"


@attrs.frozen(kw_only=True)
class RecoveryReport:
    """What a recovery did.

    Attributes:
        settled: Legs that were interrupted and are at rest now.
        waiting: Legs whose guest was asked again and has still not let go.
        left: What could not be done, as (attachment id, or name of a lease; why).
    """

    settled: tuple[Attachment, ...]
    waiting: tuple[Attachment, ...]
    left: tuple[tuple[str, str], ...]

    def _repr_html_(self) -> str:
        return html_of(
            f"{len(self.settled)} settled, {len(self.waiting)} waiting for their guest, {len(self.left)} left",
            table(self.settled, title="Settled"),
            table(self.waiting, title="Waiting"),
            Table(title="Left", headings=("what", "why"), rows=self.left),
        )

    @property
    def complete(self) -> bool:
        """Nothing is left."""
        return not self.left and not self.waiting


@attrs.frozen(kw_only=True)
class ManagerStatus:
    """How the attachments of a journal stand, of all hosts together.

    Attributes:
        by_state: State → how many are in it.
        pending_detaches: Those whose guest was asked to let go and has not yet.
        interrupted: Those that somebody is at work on, or died over; :meth:`AttachmentManager.recover` settles the
            latter.
    """

    by_state: Mapping[str, int]
    pending_detaches: int
    interrupted: int

    @classmethod
    def of(cls, numbers: Mapping[State, int]) -> ManagerStatus:
        """The status for these numbers by state."""
        return cls(
            by_state=FrozenDict({state.value: number for state, number in sorted(numbers.items())}),
            pending_detaches=sum(number for state, number in numbers.items() if state in WAITING),
            interrupted=sum(n for state, n in numbers.items() if state not in AT_REST and state not in WAITING),
        )
