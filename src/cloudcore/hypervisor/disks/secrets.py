"""The libvirt secrets that open a host's encrypted volumes: one for each volume, as in Nova.

libvirt finds a secret by its UUID or by what it is for (usage ``volume``, and the volume's id), and has one of each.
Several volumes may have one key, copies of a volume do: so the UUID of a key cannot be that of a secret. The key's name
is kept in the secret's description, since the next host of a live migration needs it, and no definition holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from cloudcore._extras import require_extra
from cloudcore._values import normalise_uuid
from cloudcore.hypervisor._xml import parse, text
from cloudcore.hypervisor.disks.xml import secret_xml

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.disks import Disk
    from cloudcore.hypervisor.libvirt.connection import Connection

__all__ = ["VolumeSecrets"]


class VolumeSecrets:
    """Gives a host the passphrases of its volumes, and takes them back. May be shared between threads."""

    def __init__(self, connection: Connection, passphrase: Callable[[Disk], bytes] | None, *, seconds: float) -> None:
        self._connection = connection
        self._passphrase = passphrase
        self._seconds = seconds

    def give(self, disk: Disk) -> Disk:
        """Put what opens *disk* into the volume's secret; the disk as that opens it.

        A secret that the volume has stays the one that it has, since definitions name it. A UUID that is another
        volume's gives way to the volume's own; it is taken for that of a key, if this has no other name. Without a
        function for passphrases nothing is done.
        """
        encryption = disk.encryption
        if encryption is None or self._passphrase is None:
            return disk
        value = self._passphrase(disk)
        volume_id = normalise_uuid(disk.volume_id, "volume_id")
        wanted = normalise_uuid(encryption.secret_id, "encryption")
        key_id = encryption.key_id or (wanted if wanted != volume_id else None)

        def define(connection: Any) -> str:
            secret_id = _free_id(connection, volume_id, wanted)
            xml = secret_xml(secret_id, "volume", volume_id, description=key_id)
            connection.secretDefineXML(xml).setValue(value)
            return secret_id

        secret_id = self._call(f"define secret of volume {volume_id}", define, volume_id)
        return attrs.evolve(disk, encryption=attrs.evolve(encryption, secret_id=secret_id))

    def take(self, volume_id: str) -> None:
        """Forget what opens the volume."""

        def undefine(connection: Any) -> None:
            secret = _of_volume(connection, volume_id)
            if secret is not None:
                secret.undefine()

        if self._passphrase is not None:
            self._call(f"undefine secret of volume {volume_id}", undefine, volume_id)

    def name_key(self, disk: Disk) -> Disk:
        """*disk*, as read from a definition here, with the name of its key, as :meth:`give` was told it."""
        encryption = disk.encryption
        if encryption is None or encryption.key_id is not None:
            return disk

        def read(connection: Any) -> str | None:
            secret = _found(connection.secretLookupByUUIDString, encryption.secret_id)
            return None if secret is None else text(parse(secret.XMLDesc(), "secret"), "description")

        key_id = self._call(f"read secret of volume {disk.volume_id}", read, disk.volume_id)
        if key_id is None and encryption.secret_id != disk.volume_id:
            key_id = encryption.secret_id
        return attrs.evolve(disk, encryption=attrs.evolve(encryption, key_id=key_id))

    def _call(self, what: str, ask: Callable[[Any], Any], volume_id: str) -> Any:
        return self._connection.call(what, ask, seconds=self._seconds, identifier=volume_id)


def _free_id(connection: Any, volume_id: str, wanted: str) -> str:
    """The UUID of the volume's secret: the one that it has, else *wanted* if nobody has it, else the volume's own."""
    secret = _of_volume(connection, volume_id)
    if secret is not None:
        return str(secret.UUIDString())
    return wanted if _found(connection.secretLookupByUUIDString, wanted) is None else volume_id


def _of_volume(connection: Any, volume_id: str) -> Any:
    libvirt = require_extra("libvirt", "libvirt")
    return _found(connection.secretLookupByUsage, libvirt.VIR_SECRET_USAGE_TYPE_VOLUME, volume_id)


def _found(look_up: Callable[..., Any], *arguments: object) -> Any:
    """The secret; None if there is none, or no driver of secrets."""
    libvirt = require_extra("libvirt", "libvirt")
    try:
        return look_up(*arguments)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {libvirt.VIR_ERR_NO_SECRET, libvirt.VIR_ERR_NO_SUPPORT}:
            raise
        return None
