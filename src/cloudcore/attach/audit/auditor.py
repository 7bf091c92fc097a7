"""Looking at every store, and mending what does not agree: on request, on fresh evidence, one volume at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import sqlalchemy as sa

from cloudcore._failpoints import failpoint
from cloudcore.attach.audit.findings import AuditReport, Finding, Remedy, Snapshot, classify
from cloudcore.attach.hosts.connectors import ConnectionKeeper
from cloudcore.attach.journal.lock_names import volume_lock
from cloudcore.attach.lifecycle.states import AT_REST, Event, State
from cloudcore.attach.tables import attachment_legs
from cloudcore.disks import OrphanFinder
from cloudcore.errors import CloudcoreError, VolumeNotFound
from cloudcore.notebook import Table, html_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.attach.hosts.connectors import Host
    from cloudcore.attach.journal.journal import Journal
    from cloudcore.attach.journal.leases import Lease, Leases
    from cloudcore.attach.journal.moves import MoveStore
    from cloudcore.attach.lifecycle.records import Attachment, Settings
    from cloudcore.attach.volumes.interface import VolumeService
    from cloudcore.attach.volumes.values import Volume, VolumeAttachment
    from cloudcore.attach.workflow.driver import Driver
    from cloudcore.attach.workflow.recovery import Recovery
    from cloudcore.disks import DiskState

__all__ = ["Auditor", "HealReport"]

_T = attachment_legs
_MANY = 50


@attrs.frozen(kw_only=True)
class HealReport:
    """What was, or would be, mended.

    Attributes:
        plan: Findings with a remedy, in the order in which they are applied.
        operator: Findings without one: somebody has to look.
        done: Those that were mended.
        failed: (finding, why) of those that could not be, or that no longer held when they were looked at again.
    """

    plan: tuple[Finding, ...]
    operator: tuple[Finding, ...]
    done: tuple[Finding, ...] = ()
    failed: tuple[tuple[Finding, str], ...] = ()

    def _repr_html_(self) -> str:
        return html_of(
            f"{len(self.plan)} findings with a remedy, {len(self.done)} mended, {len(self.operator)} for an operator",
            table(self.plan, title="With a remedy"),
            table(self.done, title="Mended"),
            table(self.operator, title="For an operator"),
            Table(title="Failed", headings=("finding", "why"), rows=self.failed),
        )


class Auditor:
    """Compares the stores and applies remedies. May be shared between threads."""

    def __init__(
        self,
        journal: Journal,
        driver: Driver,
        leases: Leases,
        recovery: Recovery,
        moves: MoveStore,
        volumes: VolumeService,
        hosts: Mapping[str, Host],
    ) -> None:
        self._journal = journal
        self._driver = driver
        self._leases = leases
        self._recovery = recovery
        self._moves = moves
        self._volumes = volumes
        self._hosts = hosts

    def audit(self, volume_id: str | None = None, *, mine: bool = False) -> AuditReport:
        """See :meth:`AttachmentManager.audit`. With *mine*, the lease on the volume is the caller's own."""
        blind: list[tuple[str, str]] = []
        before, busy = self._legs(volume_id), self._busy()
        disks = self._disks(volume_id, blind)
        connections = self._connections(volume_id, blind)
        pairs = self._pairs(volume_id)
        wanted = {volume for volume, _ in pairs}
        wanted |= {state.volume_id for states in disks.values() for state in states}
        records = self._records(sorted(wanted), blind)
        statuses = {} if records is None else self._statuses(sorted(wanted), blind)
        after = self._legs(volume_id)
        moved = {leg.volume_id for leg in {*before} ^ {*after}}
        in_motion = frozenset() if mine else frozenset(moved | busy | self._busy())
        snapshot = Snapshot(
            legs=after,
            pairs=frozenset(pairs),
            ended=self._ended(volume_id),
            moves={move.instance_id: move for move in self._moves.all()},
            records=records,
            disks=disks,
            connections=connections,
            in_motion=in_motion,
            releasing=frozenset(name for name, _ in self._keepers()),
            lost=self._lost(after),
            statuses=statuses,
        )
        skipped = tuple(sorted(in_motion & wanted))
        return AuditReport(findings=classify(snapshot), skipped=skipped, blind=tuple(blind))

    # --- gathering ----------------------------------------------------------------------------------------------------

    def _legs(self, volume_id: str | None) -> tuple[Attachment, ...]:
        return self._journal.select(volume_id=volume_id)

    def _busy(self) -> set[str]:
        with self._journal.database.read() as connection:
            held = self._leases.held_by_living(connection)
        return {name.removeprefix("volume/") for name in held if name.startswith("volume/")}

    def _pairs(self, volume_id: str | None) -> set[tuple[str, str]]:
        query = sa.select(_T.c.volume_id, _T.c.instance_id).distinct()
        if volume_id is not None:
            query = query.where(_T.c.volume_id == volume_id)
        with self._journal.database.read() as connection:
            return {(row.volume_id, row.instance_id) for row in connection.execute(query)}

    def _ended(self, volume_id: str | None) -> dict[str, str]:
        query = sa.select(_T.c.service_id, _T.c.id).where(_T.c.service_id.is_not(None), _T.c.state == State.ABSENT)
        if volume_id is not None:
            query = query.where(_T.c.volume_id == volume_id)
        with self._journal.database.read() as connection:
            return {row.service_id: row.id for row in connection.execute(query)}

    def _statuses(self, volumes: list[str], blind: list[tuple[str, str]]) -> dict[str, str]:
        found = {}
        try:
            if len(volumes) > _MANY:
                chosen = set(volumes)
                return {one.id: one.status for one in self._volumes.volumes() if one.id in chosen}
            for volume in volumes:
                with suppress(VolumeNotFound):
                    found[volume] = self._volumes.volume(volume).status
        except CloudcoreError as error:
            blind.append(("service", f"{type(error).__name__}: {error}"))
        return found

    def _records(self, volumes: list[str], blind: list[tuple[str, str]]) -> dict[str, VolumeAttachment] | None:
        try:
            if len(volumes) > _MANY:
                chosen = set(volumes)
                found = [record for record in self._volumes.attachments() if record.volume_id in chosen]
            else:
                found = [record for volume in volumes for record in self._volumes.attachments(volume_id=volume)]
        except CloudcoreError as error:
            blind.append(("service", f"{type(error).__name__}: {error}"))
            return None
        return {record.id: record for record in found}

    def _disks(self, volume_id: str | None, blind: list[tuple[str, str]]) -> dict[str, tuple[DiskState, ...]]:
        found = {}
        for name, host in self._hosts.items():
            try:
                states = host.guests.disk_states()
            except CloudcoreError as error:
                blind.append((f"guests on {name}", f"{type(error).__name__}: {error}"))
                continue
            told = {(state.instance_id, state.volume_id): state for state in states}
            if isinstance(host.guests, OrphanFinder):
                try:
                    told |= {(state.instance_id, state.volume_id): state for state in host.guests.orphaned_disks()}
                except CloudcoreError as error:
                    blind.append((f"the hypervisor on {name}", f"{type(error).__name__}: {error}"))
            found[name] = tuple(s for s in told.values() if s.present and volume_id in {None, s.volume_id})
        return found

    def _connections(self, volume_id: str | None, blind: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
        """Without those whose device an attachment has, under whatever name of the volume."""
        found, keepers = {}, dict(self._keepers())
        legs = self._journal.select() if keepers else ()
        held = {(leg.host, leg.device.source) for leg in legs if leg.device is not None}
        for name, host in self._hosts.items():
            try:
                told = host.connector.connections()
                asked = [one for one in told or () if volume_id in {None, one}]
                devices = {one: keepers[name].devices(one) if name in keepers else () for one in asked}
            except CloudcoreError as error:
                blind.append((f"connections of {name}", f"{type(error).__name__}: {error}"))
                continue
            if told is not None:
                found[name] = tuple(one for one in asked if not any((name, d.source) in held for d in devices[one]))
        return found

    def _keepers(self) -> list[tuple[str, ConnectionKeeper]]:
        found = ((name, host.connector) for name, host in self._hosts.items())
        return [(name, connector) for name, connector in found if isinstance(connector, ConnectionKeeper)]

    def _lost(self, legs: Iterable[Attachment]) -> frozenset[str]:
        keepers = dict(self._keepers())
        return frozenset(
            leg.id
            for leg in legs
            if leg.state in AT_REST and leg.device is not None and leg.host in keepers
            if not keepers[leg.host].has(leg.device)
        )

    # --- mending ------------------------------------------------------------------------------------------------------

    def heal(
        self,
        findings: Iterable[Finding],
        *,
        apply: bool,
        limit: int,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> HealReport:
        """See :meth:`AttachmentManager.heal`."""
        chosen = list(findings)
        planned = tuple(finding for finding in chosen if finding.remedy is not None)
        operator = tuple(finding for finding in chosen if finding.remedy is None)
        if not apply:
            return HealReport(plan=planned, operator=operator)
        done, failed = [], []
        for number, finding in enumerate(planned):
            if number >= limit:
                failed.append((finding, f"the limit of {limit} for one call was reached; call again"))
                continue
            try:
                trouble = self._mend(finding)
            except CloudcoreError as error:
                trouble = f"{type(error).__name__}: {error}"
            if trouble is None:
                done.append(finding)
            else:
                failed.append((finding, trouble))
            if on_progress is not None:
                on_progress(number + 1, min(limit, len(planned)))
        return HealReport(plan=planned, operator=operator, done=tuple(done), failed=tuple(failed))

    def _mend(self, finding: Finding) -> str | None:
        """Apply one remedy on fresh evidence, under the lease; None on success, else why not."""
        if finding.remedy is Remedy.RECOVER:
            return self._recover(finding)
        with self._leases.hold([volume_lock(finding.volume_id)], patience=5.0) as lease:
            again = {one.identity: one for one in self.audit(finding.volume_id, mine=True).findings}
            fresh = again.get(finding.identity)
            if fresh is None or fresh.remedy is not finding.remedy:
                return "it no longer holds; nothing was done"
            failpoint("attach.heal.before")
            return self._apply(lease, fresh)

    def _recover(self, finding: Finding) -> str | None:
        self._recovery.settle(finding.volume_id)
        self._recovery.ask_again(finding.volume_id)
        again = {one.identity for one in self.audit(finding.volume_id).findings}
        return "it could not be settled; recover() says why" if finding.identity in again else None

    def _apply(self, lease: Lease, finding: Finding) -> str | None:
        remedy = finding.remedy
        if remedy is Remedy.DELETE_RECORD:
            self._volumes.delete(str(finding.service_id))
            return None
        if remedy is Remedy.RELEASE:
            self._release(str(finding.host), finding.volume_id)
            return None
        if remedy is Remedy.UNPLUG:
            host = self._hosts[str(finding.host)]
            outcome = host.guests.detach_disk(str(finding.instance_id), finding.volume_id)
            return None if outcome == "detached" else "the guest has not let go yet"
        leg = self._journal.get(str(finding.attachment_id))
        if remedy is Remedy.COMPLETE:
            self._volumes.complete(str(leg.service_id))
            return None
        if remedy is Remedy.REPLUG:
            self._driver.replug(lease, leg)
            return None
        if remedy is Remedy.RECONNECT:
            return self._reconnect(lease, leg)
        return self._lead_away(lease, leg, finding)

    def _release(self, host: str, volume_id: str) -> None:
        """End a connection that may be to any backend: its volume may be gone, or have come from elsewhere."""
        keeper = self._hosts[host].connector
        assert isinstance(keeper, ConnectionKeeper)
        backends: list[Settings | Volume] = [leg.settings for leg in self._journal.select(host=host)]
        with suppress(VolumeNotFound):
            backends.append(self._volumes.volume(volume_id))
        with self._driver.turn(host, *backends):
            keeper.release(volume_id)

    def _reconnect(self, lease: Lease, leg: Attachment) -> str | None:
        before, device = leg.device, self._driver.reconnect(lease, leg).device
        if before is None or device is None or device.source != before.source:
            return f"{leg.host} is connected again, elsewhere than the guest's disk says: stop the guest, and refresh()"
        if self._driver.host(leg).guests.disk_state(leg.instance_id, leg.volume_id).live is not None:
            return f"{leg.host} is connected again; a guest that runs still has the lost device: stop and start it"
        return None

    def _lead_away(self, lease: Lease, leg: Attachment, finding: Finding) -> str | None:
        event = {Remedy.QUARANTINE: Event.VANISHED, Remedy.DROP: Event.UNDO}.get(
            finding.remedy or Remedy.DETACH, Event.DETACH
        )
        leg, instruction = self._journal.advance(lease, leg, event, note=f"healed: {finding.kind}")
        result = self._driver.run(lease, leg, instruction)
        if result.leg.state is State.ABSENT:
            return None
        return f"attachment {leg.id} is {result.leg.state}: {result.error or result.leg.note}"
