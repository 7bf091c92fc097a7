"""Volumes that tests borrow from a real Cinder: making one takes it as long as attaching one."""

from __future__ import annotations

import functools

from cloudcore.attach.volumes.cinder import CinderVolumes
from cloudcore.errors import VolumeNotFound
from tests import services

GIB = 2**30


class VolumePool:
    """Available volumes of 1 GiB in one Cinder, for this process alone. They end with their server."""

    def __init__(self, server: services.CinderService) -> None:
        self.server = server
        self._free: dict[bool, list[str]] = {False: [], True: []}

    def take(self, *, multiattach: bool = False) -> str:
        """An available volume without attachments; made, if none is free."""
        self.server.verify()
        free = self._free[multiattach]
        return free.pop() if free else self.server.create_volume(multiattach=multiattach)

    def give_back(self, volume_id: str) -> None:
        """Release the volume from whatever holds it: which must be possible, whatever the test did.

        One that has grown or was deleted is not used again.
        """
        self.server.verify()
        with CinderVolumes.noauth(self.server.endpoint, project_id=services.PROJECT) as volumes:
            for row in volumes.attachments(volume_id=volume_id):
                volumes.delete(row.id)
            try:
                found = volumes.volume(volume_id)
            except VolumeNotFound:
                return
        if found.status != "deleting":
            assert found.status == "available", f"volume {volume_id} is {found.status}"
            if found.size == GIB:
                self._free[found.multiattach].append(volume_id)


@functools.cache
def pool(server: services.CinderService) -> VolumePool:
    """The pool of this server."""
    return VolumePool(server)
