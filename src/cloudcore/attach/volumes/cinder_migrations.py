"""The end of a migration that a real Cinder began: it waits for whoever uses the volume to change over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cloudcore._values import normalise_uuid
from cloudcore.attach.volumes.cinder_rules import Call, Effect
from cloudcore.errors import NotMigrating, OutcomeUnknown, VolumeNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.attach.volumes.cinder_calls import Calls
    from cloudcore.attach.volumes.values import Volume

__all__ = ["CinderMigrations"]

log: logging.Logger = logging.getLogger("cloudcore.attach.cinder")

_LOST = 5
"""How many answers may be lost before it gives up."""


class CinderMigrations:
    """Ends migrations. May be shared between threads.

    Cinder notes the end in the volumes themselves, so an answer that was lost is looked for there. It is never asked
    about volumes that are in no migration: it would take them for a swap of the time before attachments, and detach.

    Args:
        calls: To the service.
        volume: Describes a volume.
    """

    def __init__(self, calls: Calls, volume: Callable[[str], Volume]) -> None:
        self._calls = calls
        self._volume = volume

    def complete(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        """As :meth:`VolumeService.complete_migration <cloudcore.attach.VolumeService.complete_migration>`."""
        volume_id = normalise_uuid(volume_id, "volume_id")
        new_volume_id = normalise_uuid(new_volume_id, "new_volume_id")
        lost = 0

        def step() -> str | None:
            nonlocal lost
            if self._over(volume_id, new_volume_id, error=error):
                return volume_id
            lost += not self._ask(volume_id, new_volume_id, error=error)
            if lost > _LOST:
                raise OutcomeUnknown(f"migration completion of volume {volume_id}: {lost} answers were lost")
            return None

        if kept := self._calls.watch(step):
            return kept
        raise OutcomeUnknown(f"migration completion of volume {volume_id}: not done after {self._calls.deadline:g} s")

    def _over(self, volume_id: str, new_volume_id: str, *, error: bool) -> bool:
        """Whether it has ended as it was to.

        Raises:
            NotMigrating: There is no such migration; or it has ended otherwise.
        """
        volume, wanted = self._volume(volume_id), "error" if error else "success"
        try:
            target = self._volume(new_volume_id)
        except VolumeNotFound:
            target = None
        waits = target is not None and target.migration_status == f"target:{volume_id}"
        if volume.migrating and waits:
            return False
        if volume.migration_status == wanted and (
            target is None or error or target.status in {"deleting", "error_deleting"}
        ):
            return True
        if volume.migration_status == "completing":
            return False
        told = "gone" if target is None else f"{target.status} ({target.migration_status})"
        raise NotMigrating(
            f"volume {volume_id} ({volume.migration_status}) is in no migration to volume {new_volume_id}, which is "
            f"{told}",
            identifier=volume_id,
        )

    def _ask(self, volume_id: str, new_volume_id: str, *, error: bool) -> bool:
        """Ask once; False if the answer was lost."""
        call = Call("migration completion", Effect.ONCE, volume_id=volume_id)
        try:
            self._calls.make(
                call,
                lambda client: client.volumes.migrate_volume_completion(volume_id, new_volume_id, error),
                lambda answer: normalise_uuid(answer["save_volume_id"], "save_volume_id"),
            )
        except OutcomeUnknown:
            log.warning("volume %s: the answer to its migration's completion was lost; looking", volume_id)
            return False
        log.info("volume %s: migration to %s %s", volume_id, new_volume_id, "given up" if error else "completed")
        return True
