"""Snapshots of a real Cinder's volumes, found again by their name: an answer that was lost makes no second one."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from cloudcore._values import normalise_uuid, require_text
from cloudcore.attach.volumes.cinder_calls import LOST, listed
from cloudcore.attach.volumes.cinder_rules import Call, Effect, read_snapshot
from cloudcore.errors import Conflict, NotFound, OutcomeUnknown

if TYPE_CHECKING:
    from cloudcore.attach.volumes.cinder_calls import Calls
    from cloudcore.attach.volumes.values import VolumeSnapshot

__all__ = ["CinderSnapshots"]

log: logging.Logger = logging.getLogger("cloudcore.attach.cinder")


class CinderSnapshots:
    """Makes, lists and deletes them. May be shared between threads.

    Args:
        calls: To the service.
        all_projects: List those of every project.
        page_size: Rows asked for at a time.
    """

    def __init__(self, calls: Calls, *, all_projects: bool, page_size: int) -> None:
        self._calls = calls
        self._all_projects = all_projects
        self._page_size = page_size

    def make(self, volume_id: str, name: str) -> VolumeSnapshot:
        """As :meth:`VolumeService.snapshot <cloudcore.attach.VolumeService.snapshot>`."""
        volume_id, name = normalise_uuid(volume_id, "volume_id"), require_text(name, "name", maximum=255)
        lost = 0

        def step() -> VolumeSnapshot | None:
            nonlocal lost
            found = next((one for one in self.of(volume_id) if one.name == name), None)
            if found is None:
                lost += not self._ask(volume_id, name)
                if lost > LOST:
                    raise OutcomeUnknown(f"snapshot {name} of volume {volume_id}: {lost} answers were lost")
            elif found.status.startswith("error"):
                raise Conflict(f"snapshot {found.id} of volume {volume_id} is {found.status}", identifier=found.id)
            return found if found is not None and found.status == "available" else None

        if made := self._calls.watch(step):
            return made
        raise OutcomeUnknown(f"snapshot {name} of volume {volume_id}: not done after {self._calls.deadline:g} s")

    def _ask(self, volume_id: str, name: str) -> bool:
        call = Call("snapshot", Effect.ONCE, volume_id=volume_id)
        try:
            self._calls.make(
                call,
                lambda client: client.volume_snapshots.create(volume_id, force=True, name=name),
                lambda answer: read_snapshot(answer.to_dict()),
            )
        except OutcomeUnknown:
            log.warning("volume %s: the answer to snapshot was lost; looking", volume_id)
            return False
        log.info("volume %s: snapshot %s", volume_id, name)
        return True

    def of(self, volume_id: str) -> tuple[VolumeSnapshot, ...]:
        """As :meth:`VolumeService.snapshots <cloudcore.attach.VolumeService.snapshots>`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        found = listed(f"snapshots of volume {volume_id}", partial(self._page, volume_id))
        return tuple(one for one in found if one.volume_id == volume_id)

    def _page(self, volume_id: str, marker: str | None) -> list[VolumeSnapshot]:
        query = {"volume_id": volume_id, "limit": str(self._page_size), "sort": "created_at:asc"}
        if marker is not None:
            query["marker"] = marker
        if self._all_projects:
            query["all_tenants"] = "1"
        return self._calls.make(
            Call("list snapshots", Effect.NONE, snapshot_id=marker),
            lambda client: client.client.get(f"/snapshots/detail?{urlencode(query)}"),
            lambda answer: [read_snapshot(row) for row in answer[1]["snapshots"]],
        )

    def delete(self, snapshot_id: str) -> None:
        """As :meth:`VolumeService.delete_snapshot <cloudcore.attach.VolumeService.delete_snapshot>`."""
        snapshot_id = normalise_uuid(snapshot_id, "snapshot_id")
        call = Call("delete snapshot", Effect.SAME, snapshot_id=snapshot_id)
        try:
            self._calls.make(call, lambda client: client.volume_snapshots.delete(snapshot_id), lambda _: None)
        except NotFound:
            return
        except Conflict as refusal:
            if "deleting" not in str(refusal):  # of a repeat: it is going
                raise
        log.info("snapshot %s deleted", snapshot_id)
