"""What does not agree between the journal, the volume service, the guests' definitions and the hosts. Pure.

A finding names what each store says. A remedy is only proposed where at least two stores speak for it; the rest are for
an operator's eyes.
"""

from __future__ import annotations

from collections import defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING

import attrs

from cloudcore.attach.lifecycle.states import HOLDS, USES_HOST, State
from cloudcore.attach.lifecycle.swapping import SwapRequest
from cloudcore.notebook import Table, html_of, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cloudcore.attach.lifecycle.records import Attachment, Move
    from cloudcore.attach.volumes.values import VolumeAttachment
    from cloudcore.disks import DiskState

__all__ = ["AuditReport", "Finding", "Kind", "Remedy", "Snapshot", "classify"]


_FLIGHT = frozenset({"reserved", "attaching", "detaching"})


class Kind(StrEnum):
    """What is wrong."""

    INTERRUPTED = "interrupted"  # work was begun, and whoever did it is gone
    WAITING = "waiting"  # a guest was asked to let go, and has not
    QUARANTINED = "quarantined"  # the service forgot an attachment; the guest has not let go yet
    VANISHED = "vanished"  # the service forgot an attachment whose disk a guest has, or may have
    GONE = "gone"  # the service forgot it, and the guest has no disk
    INCOMPLETE = "incomplete"  # the service has it, but not as attached
    GUEST_LOST_IT = "guest-lost-it"  # journal and service have it, the guest does not
    PERSISTENT_ONLY = "persistent-only"  # the running guest has lost it; after its next start it would have it again
    LIVE_ONLY = "live-only"  # the running guest has it; after its next start it would not
    WRITABLE = "writable"  # the guest may write what is to be read-only
    STRAY_LEG = "stray-leg"  # a second attachment without a move
    UNKNOWN_RECORD = "unknown-record"  # the service has one for an instance of ours that the journal does not know
    UNKNOWN_DISK = "unknown-disk"  # a guest has a volume that the journal does not know
    VOLUME_STATUS = "volume-status"  # the service's status of a volume disagrees with its own records
    LEFTOVER_CONNECTION = "leftover-connection"  # a host is connected to what nobody there uses
    DEVICE_LOST = "device-lost"  # a host no longer has the device of a volume that a guest there uses


class Remedy(StrEnum):
    """What :meth:`AttachmentManager.heal` would do."""

    RECOVER = "recover"
    QUARANTINE = "quarantine"  # take it out of the guest and off the host, at once
    COMPLETE = "complete"
    DETACH = "detach"  # finish what has half happened
    REPLUG = "replug"  # give the guest the disk again, in both definitions
    DELETE_RECORD = "delete-record"
    UNPLUG = "unplug"
    DROP = "drop"  # undo the second attachment
    RELEASE = "release"  # disconnect the host from the volume
    RECONNECT = "reconnect"  # connect the host to the volume again


@attrs.frozen(kw_only=True)
class Finding:
    """One disagreement.

    Attributes:
        kind: See :class:`Kind`.
        volume_id: UUID.
        instance_id: UUID; None for what belongs to a host.
        host: Where, if that matters.
        attachment_id: The journal's, if it has one.
        service_id: The volume service's, if it has one.
        evidence: (store, what it says) of each that was asked.
        remedy: None where fewer than two stores speak for one.
    """

    kind: Kind
    volume_id: str
    instance_id: str | None = None
    host: str | None = None
    attachment_id: str | None = None
    service_id: str | None = None
    evidence: tuple[tuple[str, str], ...] = ()
    remedy: Remedy | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells two findings apart, whatever their evidence says."""
        return self.kind, self.volume_id, self.instance_id, self.host, self.attachment_id, self.service_id

    def __str__(self) -> str:
        told = "; ".join(f"{store}: {says}" for store, says in self.evidence)
        return f"{self.kind}: volume {self.volume_id}, instance {self.instance_id} ({told}) -> {self.remedy or 'look'}"


@attrs.frozen(kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        findings: Sorted by volume, instance and kind.
        skipped: Volumes on which somebody is at work, or whose legs changed while the audit looked.
        blind: (store, why) of those that could not be asked; what they alone could show is missing.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...] = ()
    blind: tuple[tuple[str, str], ...] = ()

    def _repr_html_(self) -> str:
        return html_of(
            f"{len(self.findings)} findings, {len(self.skipped)} volumes skipped, {len(self.blind)} stores not asked",
            table(self.findings, title="Findings"),
            Table(title="Not asked", headings=("store", "why"), rows=self.blind),
        )

    @property
    def clean(self) -> bool:
        """Everything was asked, nothing was skipped, and everything agrees."""
        return not self.findings and not self.blind and not self.skipped


@attrs.frozen(kw_only=True)
class Snapshot:
    """What the stores said.

    Attributes:
        legs: The journal's legs that are not absent.
        pairs: (volume, instance) of every leg that there ever was.
        ended: The service's id of every attachment that the journal knows to be absent → its id here.
        moves: By instance.
        records: The service's attachments of the volumes in question, by id; None if it could not be asked.
        statuses: The service's status of each of those volumes that it knows; empty if it could not be asked.
        disks: For each host that answered: its guests' disks.
        connections: For each host that can tell: volumes connected there.
        releasing: Hosts that can end a connection that nobody uses.
        lost: Attachments whose device is gone from a host that can tell.
        in_motion: Volumes to leave alone.
    """

    legs: tuple[Attachment, ...]
    pairs: frozenset[tuple[str, str]]
    ended: Mapping[str, str]
    moves: Mapping[str, Move]
    records: Mapping[str, VolumeAttachment] | None
    disks: Mapping[str, tuple[DiskState, ...]]
    connections: Mapping[str, tuple[str, ...]]
    in_motion: frozenset[str] = frozenset()
    releasing: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    statuses: Mapping[str, str] = attrs.field(factory=dict)


def classify(snapshot: Snapshot) -> tuple[Finding, ...]:
    """Every disagreement in *snapshot*, apart from volumes in motion. O(legs + records + disks)."""
    disks = {
        (host, state.instance_id, state.volume_id): state for host, states in snapshot.disks.items() for state in states
    }
    found = [
        *_of_legs(snapshot, disks),
        *_of_records(snapshot),
        *_of_statuses(snapshot),
        *_of_disks(snapshot, disks.items()),
        *_of_connections(snapshot),
    ]
    swapping = {move.instance_id for move in snapshot.moves.values() if move.kind == "swap"}
    found = [one for one in found if one.instance_id not in swapping] + list(_of_swaps(snapshot))
    kept = [one for one in found if one.volume_id not in snapshot.in_motion]
    return tuple(sorted(kept, key=lambda f: (f.volume_id, f.instance_id or "", f.kind, f.service_id or "")))


def _of_swaps(snapshot: Snapshot) -> Iterator[Finding]:
    """Half of a swap looks like anything: until it is over nothing else is said of its instance, nor mended."""
    for move in snapshot.moves.values():
        if move.kind == "swap" and move.instance_id in {instance for _, instance in snapshot.pairs}:
            said = (("moves", f"a swap that is {move.phase}: {move.note}"), ("leases", "nobody is at work on it"))
            yield Finding(
                kind=Kind.INTERRUPTED,
                volume_id=SwapRequest.of(move).volume_id,
                instance_id=move.instance_id,
                host=move.source,
                evidence=said,
            )


# --- the journal's legs against the others ---------------------------------------------------------------------------

_Disks = dict[tuple[str, str, str], "DiskState"]


def _of_legs(snapshot: Snapshot, disks: _Disks) -> Iterator[Finding]:
    mains = {(leg.volume_id, leg.instance_id) for leg in snapshot.legs if leg.role == "main"}
    for leg in snapshot.legs:
        said: list[tuple[str, str]] = [("journal", f"{leg.role} {leg.state} on {leg.host}")]
        if leg.interrupted:
            yield _finding(leg, Kind.INTERRUPTED, [*said, ("leases", "nobody is at work on it")], Remedy.RECOVER)
        elif leg.state is State.PENDING:
            yield _finding(leg, Kind.WAITING, [*said, ("leases", "nobody is at work on it")], Remedy.RECOVER)
        elif leg.state is State.QUARANTINED:
            yield _finding(leg, Kind.QUARANTINED, [*said, ("leases", "nobody is at work on it")], Remedy.RECOVER)
        else:
            yield from _at_rest(snapshot, disks, leg, said)
            if leg.role == "next" and leg.instance_id not in snapshot.moves:
                alone = (leg.volume_id, leg.instance_id) not in mains
                remedy = Remedy.RECOVER if alone and leg.state in HOLDS else Remedy.DROP
                yield _finding(leg, Kind.STRAY_LEG, [*said, ("moves", "the instance is in none")], remedy)


def _at_rest(snapshot: Snapshot, disks: _Disks, leg: Attachment, said: list[tuple[str, str]]) -> Iterator[Finding]:
    known = leg.host in snapshot.disks
    state = disks.get((str(leg.host), leg.instance_id, leg.volume_id)) if known else None
    guest = _guest_says(state) if known else []
    if snapshot.records is not None:
        record = snapshot.records.get(str(leg.service_id))
        if record is None:
            yield _forgotten(leg, [*said, ("service", "knows no such attachment"), *guest], state, known=known)
            return
        if record.status != "attached" and leg.state is not State.RESERVED:
            told = [*said, ("service", record.status), *guest]
            sure = leg.state is not State.ATTACHED or state is not None
            yield _finding(leg, Kind.INCOMPLETE, told, Remedy.COMPLETE if sure else None)
    if leg.id in snapshot.lost:
        told = [*said, *guest, ("host", "its device is gone")]
        yield _finding(leg, Kind.DEVICE_LOST, told, Remedy.RECONNECT)
    if leg.state is State.ATTACHED and known and not _arriving_elsewhere(snapshot, leg):
        yield from _guest_differs(leg, [*said, *guest], state)


def _arriving_elsewhere(snapshot: Snapshot, leg: Attachment) -> bool:
    """The instance may run at the other leg's host already."""
    staged = (other for other in snapshot.legs if other.role == "next" and other.host is not None)
    return any((other.volume_id, other.instance_id) == (leg.volume_id, leg.instance_id) for other in staged)


def _guest_says(state: DiskState | None) -> list[tuple[str, str]]:
    live = "has it" if state is not None and state.live is not None else "has no such disk"
    persistent = "has it" if state is not None and state.persistent is not None else "has no such disk"
    said = [("live definition", live), ("persistent definition", persistent)]
    if state is not None and state.orphaned:
        said.append(("hypervisor", "has lost track of it: the running guest has it"))
    return said


def _forgotten(leg: Attachment, said: list[tuple[str, str]], state: DiskState | None, *, known: bool) -> Finding:
    """Somebody deleted it behind our back: the backend may give the same device to another volume (CVE-2023-2088)."""
    if leg.state in HOLDS:
        return _finding(leg, Kind.GONE, said, Remedy.DETACH)
    if leg.state is not State.ATTACHED:
        return _finding(leg, Kind.VANISHED, said, None)
    if not known:
        return _finding(leg, Kind.VANISHED, said, None)
    return _finding(leg, Kind.VANISHED if state is not None else Kind.GONE, said, Remedy.QUARANTINE)


def _guest_differs(leg: Attachment, said: list[tuple[str, str]], state: DiskState | None) -> Iterator[Finding]:
    if state is None or not state.present:
        yield _finding(leg, Kind.GUEST_LOST_IT, said, Remedy.DETACH)
        return
    if state.live is not None and state.persistent is None:
        yield _finding(leg, Kind.LIVE_ONLY, said, Remedy.REPLUG)
    if state.half and state.live is None:
        yield _finding(leg, Kind.PERSISTENT_ONLY, said, Remedy.REPLUG)
    there = [disk for disk in (state.live, state.persistent) if disk is not None]
    if leg.mode == "ro" and any(not disk.read_only for disk in there):
        yield _finding(leg, Kind.WRITABLE, said, Remedy.DETACH)


# --- what the others have and the journal does not -------------------------------------------------------------------


def _of_records(snapshot: Snapshot) -> Iterator[Finding]:
    having = defaultdict(set)
    for states in snapshot.disks.values():
        for state in states:
            having[state.volume_id].add(state.instance_id)
    ours = {leg.service_id for leg in snapshot.legs}
    for record in (snapshot.records or {}).values():
        pair = (record.volume_id, str(record.instance_id))
        if record.id in ours or pair not in snapshot.pairs:
            continue  # ours, or somebody's whom the journal never heard of
        plugged = record.instance_id in having[record.volume_id] and not _has_leg(snapshot, pair)
        ended = snapshot.ended.get(record.id)
        told = "does not know it" if ended is None else f"attachment {ended} of it is absent"
        said = [("service", f"{record.status} {record.id}"), ("journal", told)]
        said.append(("guests", "one has the disk" if plugged else "its disk, if any, is another attachment's"))
        yield Finding(
            kind=Kind.UNKNOWN_RECORD,
            volume_id=record.volume_id,
            instance_id=record.instance_id,
            service_id=record.id,
            attachment_id=ended,
            evidence=tuple(said),
            remedy=None if plugged else Remedy.DELETE_RECORD,
        )


def _of_statuses(snapshot: Snapshot) -> Iterator[Finding]:
    """One store against itself, so no remedy: an administrator has to reset the status, or to find out who is at it."""
    having = defaultdict(list)
    for record in (snapshot.records or {}).values():
        having[record.volume_id].append(str(record.status))
    for volume_id, status in snapshot.statuses.items():
        records = [one for one in having[volume_id] if not one.startswith("error")]
        attached = "attached" in records
        free_and_used = bool(records) and (status == "available" or (attached and status.startswith("error")))
        used_by_nobody = (status == "in-use" and not attached) or (status in _FLIGHT and not records)
        if free_and_used or used_by_nobody:
            told = f"has attachments: {', '.join(sorted(records)) or 'none'}"
            said = (("service, the volume", status), ("service, its attachments", told))
            yield Finding(kind=Kind.VOLUME_STATUS, volume_id=volume_id, evidence=said)


def _has_leg(snapshot: Snapshot, pair: tuple[str, str]) -> bool:
    return any((leg.volume_id, leg.instance_id) == pair for leg in snapshot.legs)


def _of_disks(snapshot: Snapshot, disks: Iterable[tuple[tuple[str, str, str], DiskState]]) -> Iterator[Finding]:
    legs = {(str(leg.host), leg.instance_id, leg.volume_id) for leg in snapshot.legs}
    recorded = {(r.instance_id, r.volume_id) for r in (snapshot.records or {}).values()}
    for (host, instance_id, volume_id), state in disks:
        if (host, instance_id, volume_id) in legs or not state.present:
            continue
        said = [*_guest_says(state), ("journal", f"knows of none on {host}")]
        sure = False
        if snapshot.records is not None:
            sure = (instance_id, volume_id) not in recorded
            said.append(("service", "has no attachment" if sure else "has an attachment"))
        yield Finding(
            kind=Kind.UNKNOWN_DISK,
            volume_id=volume_id,
            instance_id=instance_id,
            host=host,
            evidence=tuple(said),
            remedy=Remedy.UNPLUG if sure else None,
        )


def _of_connections(snapshot: Snapshot) -> Iterator[Finding]:
    users = {(str(leg.host), leg.volume_id) for leg in snapshot.legs if leg.state in USES_HOST}
    users |= {(host, state.volume_id) for host, states in snapshot.disks.items() for state in states}
    for host, volumes in snapshot.connections.items():
        for volume_id in volumes:
            if (host, volume_id) not in users:
                asked = host in snapshot.disks
                said = (
                    ("host", "connected"),
                    ("journal", "nobody there uses it"),
                    ("guests", "none has it" if asked else "could not be asked"),
                )
                yield Finding(
                    kind=Kind.LEFTOVER_CONNECTION,
                    volume_id=volume_id,
                    host=host,
                    evidence=said,
                    remedy=Remedy.RELEASE if asked and host in snapshot.releasing else None,
                )


def _finding(leg: Attachment, kind: Kind, said: list[tuple[str, str]], remedy: Remedy | None) -> Finding:
    return Finding(
        kind=kind,
        volume_id=leg.volume_id,
        instance_id=leg.instance_id,
        host=leg.host,
        attachment_id=leg.id,
        service_id=leg.service_id,
        evidence=tuple(said),
        remedy=remedy,
    )
