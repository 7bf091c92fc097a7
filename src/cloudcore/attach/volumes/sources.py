"""From a volume service's connection information to where QEMU, or the host, finds the bytes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore.disks import BlockSource, DiskSource, FileSource, IscsiSource, RbdSource
from cloudcore.errors import UnsupportedFeature, VolumeServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloudcore.attach.volumes.values import ConnectionInfo

__all__ = ["LOCAL_KINDS", "NETWORK_KINDS", "source_of"]

NETWORK_KINDS = frozenset({"rbd", "iscsi"})
"""Kinds that QEMU opens by itself: the host has nothing to connect."""

LOCAL_KINDS = frozenset({"local"})
"""Kinds that name a path which is there already."""


def source_of(info: ConnectionInfo) -> DiskSource:
    """Where the bytes of *info* are.

    Raises:
        UnsupportedFeature: The kind needs something to be connected on the host, or a secret that nobody gave to the
            hypervisor.
        VolumeServiceError: The information is incomplete. The text names the missing key, never a value.
    """
    try:
        if info.kind == "rbd":
            return _rbd(info.data)
        if info.kind == "iscsi":
            return _iscsi(info.data)
        if info.kind == "local":
            return _local(info.data)
    except KeyError as error:
        raise VolumeServiceError(f"the connection information of kind {info.kind} lacks {error.args[0]}") from None
    raise UnsupportedFeature(
        f"connections of kind {info.kind} need a host connector that makes them, such as BrickConnector",
        needed=info.kind,
        available=", ".join(sorted(NETWORK_KINDS | LOCAL_KINDS)),
    )


def _rbd(data: Mapping[str, Any]) -> RbdSource:
    pool, slash, image = str(data["name"]).partition("/")
    if not slash or not pool or not image:
        raise VolumeServiceError("the connection information of kind rbd names no pool/image")
    authenticated = bool(data.get("auth_enabled"))
    return RbdSource(
        pool=pool,
        image=image,
        hosts=tuple((str(host), int(port)) for host, port in zip(data["hosts"], data["ports"], strict=True)),
        user=data["auth_username"] if authenticated else None,
        secret_id=data["secret_uuid"] if authenticated else None,
    )


def _iscsi(data: Mapping[str, Any]) -> IscsiSource:
    host, _, port = str(data["target_portal"]).rpartition(":")
    secret = data.get("secret_uuid")
    if data.get("auth_method") and not secret:
        raise UnsupportedFeature(
            "the iSCSI target wants CHAP, and its password is no libvirt secret: use BrickConnector",
            needed="secret_uuid",
        )
    return IscsiSource(
        host=host.strip("[]"),
        port=int(port),
        target=str(data["target_iqn"]),
        lun=int(data["target_lun"]),
        user=data.get("auth_username") if secret else None,
        secret_id=secret,
    )


def _local(data: Mapping[str, Any]) -> DiskSource:
    path = str(data["device_path"])
    return BlockSource(path) if path.startswith("/dev/") else FileSource(path, str(data.get("format") or "raw"))
