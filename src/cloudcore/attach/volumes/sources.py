"""From a volume service's connection information to where QEMU, or the host, finds the bytes, and how. Pure.

What a driver says is read key by key. Whatever is missing or malformed becomes one typed error that names the key and
never the value: any of it may be secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from cloudcore.disks import BlockSource, DiskLimits, DiskSource, FileSource, IscsiSource, RbdSource
from cloudcore.errors import UnsupportedFeature, VolumeServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloudcore.attach.volumes.values import ConnectionInfo

__all__ = ["LOCAL_KINDS", "NETWORK_KINDS", "DiskOptions", "options_of", "source_of"]

NETWORK_KINDS = frozenset({"rbd", "iscsi"})
"""Kinds that QEMU opens by itself: the host has nothing to connect."""

LOCAL_KINDS = frozenset({"local"})
"""Kinds that name a path which is there already."""

T = TypeVar("T")

_LARGEST_BLOCK = 2**21
"""The largest block that QEMU shows to a guest, in bytes."""


@attrs.frozen(kw_only=True)
class DiskOptions:
    """What the volume service says of a disk beyond where its bytes are; None where it says nothing.

    Attributes:
        read_only: The service maps it for reading alone.
        logical_block_size, physical_block_size: In bytes.
        discard: QEMU's discard mode.
        limits: The front-end limits of the volume's QoS specs.
        encrypted: The bytes are encrypted, to be opened on the compute host.
    """

    read_only: bool = False
    logical_block_size: int | None = None
    physical_block_size: int | None = None
    discard: str | None = None
    limits: DiskLimits | None = None
    encrypted: bool = False


def source_of(info: ConnectionInfo) -> DiskSource:
    """Where the bytes of *info* are.

    Raises:
        UnsupportedFeature: The kind needs something to be connected on the host, or a secret that nobody gave to the
            hypervisor.
        VolumeServiceError: The information is incomplete or malformed. The text names the key, never a value.
    """
    if info.kind == "rbd":
        return _rbd(_Reader(info))
    if info.kind == "iscsi":
        return _iscsi(_Reader(info))
    if info.kind == "local":
        return _local(_Reader(info))
    raise UnsupportedFeature(
        f"connections of kind {info.kind} need a host connector that makes them, such as BrickConnector",
        needed=info.kind,
        available=", ".join(sorted(NETWORK_KINDS | LOCAL_KINDS)),
    )


def options_of(info: ConnectionInfo) -> DiskOptions:
    """How the disk of *info* is to be given to a guest, as Nova reads it.

    Raises:
        VolumeServiceError: Something in it is malformed. The text names the key, never a value.
    """
    reader = _Reader(info)
    access = reader.get("access_mode", _text) or "rw"
    if access not in {"rw", "ro"}:
        raise reader.malformed("access_mode")
    return DiskOptions(
        read_only=access == "ro",
        logical_block_size=reader.get("logical_block_size", _block_size),
        physical_block_size=reader.get("physical_block_size", _block_size),
        discard="unmap" if reader.get("discard", _truth) else None,
        limits=reader.get("qos_specs", _limits),
        encrypted=bool(reader.get("encrypted", _truth)),
    )


class _Reader:
    """Takes keys out of connection information."""

    def __init__(self, info: ConnectionInfo) -> None:
        self._kind = info.kind
        self._data: Mapping[str, Any] = info.data

    def need(self, key: str, read: Callable[[Any], T]) -> T:
        """What *read* makes of the value; an error if there is none."""
        if self._data.get(key) is None:
            raise VolumeServiceError(f"the connection information of kind {self._kind} lacks {key}")
        return self._read(key, read)

    def get(self, key: str, read: Callable[[Any], T]) -> T | None:
        """What *read* makes of the value, None if there is none."""
        return None if self._data.get(key) is None else self._read(key, read)

    def _read(self, key: str, read: Callable[[Any], T]) -> T:
        try:
            return read(self._data[key])
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            pass
        raise self.malformed(key)  # out here it has no context that could quote the value

    def malformed(self, key: str) -> VolumeServiceError:
        """The error for a value that cannot be used."""
        return VolumeServiceError(f"the connection information of kind {self._kind} has a malformed {key}")


# --- kinds -----------------------------------------------------------------------------------------------------------


def _rbd(reader: _Reader) -> RbdSource:
    pool, image = reader.need("name", _image)
    hosts, ports = reader.need("hosts", _texts), reader.need("ports", _ports)
    if len(hosts) != len(ports):
        raise reader.malformed("ports")
    authenticated = bool(reader.get("auth_enabled", _truth))
    return RbdSource(
        pool=pool,
        image=image,
        hosts=tuple(zip(hosts, ports, strict=True)),
        user=reader.need("auth_username", _text) if authenticated else None,
        secret_id=reader.need("secret_uuid", _text) if authenticated else None,
    )


def _iscsi(reader: _Reader) -> IscsiSource:
    host, port = reader.need("target_portal", _portal)
    secret = reader.get("secret_uuid", _text)
    if reader.get("auth_method", _text) and not secret:
        raise UnsupportedFeature(
            "the iSCSI target wants CHAP, and its password is no libvirt secret: use BrickConnector",
            needed="secret_uuid",
        )
    return IscsiSource(
        host=host,
        port=port,
        target=reader.need("target_iqn", _text),
        lun=reader.need("target_lun", _lun),
        user=reader.get("auth_username", _text) if secret else None,
        secret_id=secret,
    )


def _local(reader: _Reader) -> DiskSource:
    path = reader.need("device_path", _text)
    return BlockSource(path) if path.startswith("/dev/") else FileSource(path, reader.get("format", _text) or "raw")


# --- values: each raises ValueError or TypeError for what it cannot use ----------------------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return [_text(one) for one in value]


def _whole(value: Any, *, minimum: int, maximum: int) -> int:
    """Drivers write numbers as text now and then."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    number = int(value)
    if not minimum <= number <= maximum:
        raise ValueError
    return number


def _port(value: Any) -> int:
    return _whole(value, minimum=1, maximum=65535)


def _ports(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError
    return [_port(one) for one in value]


def _lun(value: Any) -> int:
    return _whole(value, minimum=0, maximum=2**14 - 1)


def _portal(value: Any) -> tuple[str, int]:
    host, colon, port = _text(value).rpartition(":")
    if not colon or not host.strip("[]"):
        raise ValueError
    return host.strip("[]"), _port(port)


def _image(value: Any) -> tuple[str, str]:
    pool, _, image = _text(value).partition("/")
    return _text(pool), _text(image)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}[str(value).lower()]


def _block_size(value: Any) -> int:
    size = _whole(value, minimum=512, maximum=_LARGEST_BLOCK)
    if size & (size - 1):
        raise ValueError
    return size


def _limits(value: Any) -> DiskLimits | None:
    """Cinder's front-end QoS specs; like Nova, those that are none of QEMU's limits are for somebody else."""
    known = {field.name for field in attrs.fields(DiskLimits)}
    if not isinstance(value, dict):
        raise TypeError
    found = {name: _whole(amount, minimum=0, maximum=2**63 - 1) for name, amount in value.items() if name in known}
    return DiskLimits(**found) if any(found.values()) else None
