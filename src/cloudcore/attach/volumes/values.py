"""The values that an attachment manager and a volume service exchange, in the vocabulary of Cinder. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Self

import attrs

from cloudcore._values import FrozenDict, normalise_uuid, require_integer, require_text
from cloudcore.errors import InvalidArgument, InvalidConnector
from cloudcore.notebook import table

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "AttachMode",
    "AttachmentStatus",
    "ConnectionInfo",
    "Connector",
    "Volume",
    "VolumeAttachment",
    "VolumeFeatures",
    "VolumeSnapshot",
    "redact",
]

AttachMode = Literal["rw", "ro"]
"""Whether an instance may write: ``"rw"`` or ``"ro"``."""

MAX_BYTES = 2**63 - 1

_SETTLED = {None, "", "none", "success", "error", "deleting"}
"""Cinder's migration statuses in which nobody waits for anything."""

_HIDDEN = "***"
_OPEN_KEYS = frozenset(
    {
        "access_mode", "attachment_id", "auth_enabled", "auth_method", "cacheable", "cluster_name", "device_path",
        "discard", "driver_volume_type", "encrypted", "enforce_multipath", "export", "format", "hosts",
        "logical_block_size", "name", "physical_block_size", "ports", "secret_type", "secret_uuid",
        "target_discovered", "target_iqn", "target_iqns", "target_lun", "target_luns", "target_portal",
        "target_portals", "target_wwn", "target_wwns", "volume_id",
    }
)  # fmt: skip


class AttachmentStatus(StrEnum):
    """Cinder's states of an attachment."""

    RESERVED = "reserved"  # holds the volume; no host
    ATTACHING = "attaching"  # mapped to a host
    ATTACHED = "attached"  # complete
    DETACHED = "detached"
    ERROR_ATTACHING = "error_attaching"
    ERROR_DETACHING = "error_detaching"
    DELETED = "deleted"


def redact(value: Any) -> Any:
    """Return *value* (what a driver says of a connection) for human eyes: only what is known to be harmless is shown.

    Nested mappings and lists keep their shape. Keys that are not known are masked, since drivers invent new ones.
    """
    if isinstance(value, Mapping):
        return {
            key: redact(inner) if isinstance(inner, Mapping) or key in _OPEN_KEYS else _HIDDEN
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value


def _snapshot_id(value: str) -> str:
    return normalise_uuid(value, "snapshot_id")


def _volume_id(value: str) -> str:
    return normalise_uuid(value, "volume_id")


def _frozen(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return FrozenDict(value)


def _masked(value: Mapping[str, Any]) -> str:
    return repr(redact(value))


@attrs.frozen(kw_only=True)
class Volume:
    """A volume as the service describes it.

    Attributes:
        id: UUID.
        status: Cinder's status: ``"available"``, ``"reserved"``, ``"attaching"``, ``"in-use"``, ``"detaching"``,
            ``"error"`` and more.
        size: In bytes.
        name: For people; may be empty.
        multiattach: Several instances may use it at once.
        bootable: It holds an operating system.
        encrypted: The bytes at the backend are encrypted, to be opened on the compute host.
        read_only: The service lets nobody write to it.
        shared_targets: Whether one target serves many volumes: True, False, or None for "unknown or scans by itself",
            which counts as True.
        service_uuid: Of the backend; the name under which hosts lock it. None if the service does not say: such volumes
            are locked as if of one backend.
        project_id: Owner, None if the service does not say.
        volume_type: Name of its type, None if it has none.
        availability_zone: None if the service has none.
        migration_status: Of a volume on its way to another backend, ``"migrating"`` and more; of the one that takes its
            place, ``"target:"`` and the first one's id. None if there is none, or the service does not say.
    """

    id: str = attrs.field(converter=_volume_id)
    status: str
    size: int = attrs.field()
    name: str = ""
    multiattach: bool = False
    bootable: bool = False
    encrypted: bool = False
    read_only: bool = False
    shared_targets: bool | None = False
    service_uuid: str | None = None
    project_id: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    migration_status: str | None = None

    def _repr_html_(self) -> str:
        names = ("id", "name", "status", "size", "multiattach", "bootable", "encrypted")
        return table([self], names, title="Volume")._repr_html_()

    @property
    def migrating(self) -> bool:
        """The service is about to move it to another backend, and waits for whoever uses it."""
        return self.migration_status not in _SETTLED and not str(self.migration_status).startswith("target:")

    @size.validator
    def _check_size(self, _: Any, value: int) -> None:
        require_integer(value, "size", minimum=0, maximum=MAX_BYTES)


@attrs.frozen(kw_only=True)
class VolumeSnapshot:
    """What a volume held at one instant.

    Attributes:
        id: UUID.
        volume_id: Of which volume.
        name: As given; a volume has one of a name.
        size: In bytes.
        status: Cinder's: ``"creating"``, ``"available"``, ``"deleting"``, ``"error"`` and more.
    """

    id: str = attrs.field(converter=_snapshot_id)
    volume_id: str = attrs.field(converter=_volume_id)
    name: str
    size: int
    status: str


@attrs.frozen(kw_only=True)
class Connector:
    """What a compute host says of itself, so that a backend can let it in.

    Attributes:
        host: Name of the compute host; the service counts the users of a volume by it.
        ip: Address from which the host reaches storage.
        initiator: iSCSI qualified name.
        multipath: The host wants several paths.
        os_type: Such as ``"linux"``.
        platform: Such as ``"x86_64"``.
        mountpoint: The device name in the guest, for show.
        manual_scan: The host's initiator never scans for devices by itself, so that a backend whose ``shared_targets``
            is True needs no lock on this host.
        properties: Whatever else drivers want (``wwpns``, ``nqn``, ...), as os-brick reports it. ``repr()`` masks what
            is not known to be harmless, and errors repeat no value: drivers put secrets in it.

    Raises:
        InvalidConnector: The host is missing, the address is none, or a property repeats one of the fields.
    """

    host: str = attrs.field()
    ip: str | None = attrs.field(default=None)
    initiator: str | None = None
    multipath: bool = False
    os_type: str = "linux"
    platform: str = "x86_64"
    mountpoint: str | None = None
    manual_scan: bool = False
    properties: Mapping[str, Any] = attrs.field(factory=dict, converter=_frozen, hash=False, repr=_masked)

    @host.validator
    def _check_host(self, _: Any, value: str) -> None:
        try:
            require_text(value, "connector.host")
        except InvalidArgument:
            pass
        else:
            return
        # Out here, without the refused value: a caller may have mixed up fields that hold secrets.
        raise InvalidConnector("connector.host: expected text of 1 to 255 characters", field="connector.host")

    @ip.validator
    def _check_ip(self, _: Any, value: str | None) -> None:
        if value is None:
            return
        try:
            ipaddress.ip_address(value)
        except ValueError:
            pass
        else:
            return
        raise InvalidConnector("connector.ip: it is no IP address", field="connector.ip")

    @properties.validator
    def _check_properties(self, _: Any, value: Mapping[str, Any]) -> None:
        own = {field.name for field in attrs.fields(type(self))} - {"properties", "manual_scan"}
        if twice := sorted(own & value.keys()):
            raise InvalidConnector(f"connector.properties repeats {', '.join(twice)}", field="connector.properties")

    def as_cinder(self) -> dict[str, Any]:
        """The dictionary that Cinder's API takes; fields that are None are left out."""
        fields = {
            "host": self.host,
            "ip": self.ip,
            "initiator": self.initiator,
            "multipath": self.multipath,
            "os_type": self.os_type,
            "platform": self.platform,
            "mountpoint": self.mountpoint,
            "do_local_attach": False,
        }
        return {**{name: value for name, value in fields.items() if value is not None}, **self.properties}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read what os-brick's ``get_connector_properties`` or a Cinder request holds.

        Raises:
            InvalidConnector: It is no mapping, names no host, or something in it is malformed.
        """
        if not isinstance(mapping, Mapping):
            raise InvalidConnector(f"connector: expected a mapping, got {type(mapping).__name__}", field="connector")
        if "host" not in mapping:
            raise InvalidConnector("connector: it names no host", field="connector.host")
        own = {field.name for field in attrs.fields(cls)} - {"properties"}
        fields = {name: value for name, value in mapping.items() if name in own and value is not None}
        rest = {name: value for name, value in mapping.items() if name not in own and name != "do_local_attach"}
        return cls(**fields, properties=rest)


@attrs.frozen(repr=False, eq=True)
class ConnectionInfo:
    """How a host reaches a volume, as the backend's driver said it. May hold secrets: never log *data*, never store it.

    Attributes:
        kind: Cinder's ``driver_volume_type``: ``"rbd"``, ``"iscsi"``, ``"local"``, ...
        data: The driver's words. ``repr()`` and ``str()`` of this object mask what is not known to be harmless.
        volume_id: Which volume it is, where that is known; it makes no other connection of it.
    """

    kind: str
    data: Mapping[str, Any] = attrs.field(converter=_frozen, hash=False)
    volume_id: str | None = attrs.field(default=None, eq=False, kw_only=True)

    @classmethod
    def from_cinder(cls, mapping: Mapping[str, Any]) -> Self:
        """Read Cinder's ``connection_info``, flat (attachments API) or with a nested ``data`` (the older API).

        Raises:
            InvalidArgument: It does not say its ``driver_volume_type``.
        """
        kind = mapping.get("driver_volume_type")
        if not isinstance(kind, str) or not kind:
            raise InvalidArgument("connection_info: no driver_volume_type", field="connection_info")
        nested = mapping.get("data")
        outer = {name: value for name, value in mapping.items() if name not in {"driver_volume_type", "data"}}
        return cls(kind, {**outer, **nested} if isinstance(nested, Mapping) else {**outer})

    def as_cinder(self) -> dict[str, Any]:
        """The nested form that os-brick takes. Holds secrets."""
        return {"driver_volume_type": self.kind, "data": dict(self.data)}

    def __repr__(self) -> str:
        return f"ConnectionInfo({self.kind!r}, {redact(self.data)!r})"


@attrs.frozen(kw_only=True)
class VolumeAttachment:
    """A volume service's record that an instance has, or is about to have, a volume.

    Attributes:
        id: UUID, made by the service.
        volume_id: UUID of the volume.
        instance_id: UUID of the instance, None for a record made without one.
        status: See :class:`AttachmentStatus`.
        mode: As asked when it was made; None where the service does not keep it (or this answer leaves it out).
        connection: None before it was mapped, and in the answers of :meth:`VolumeService.attachments`.
        attached_at: None before it was complete, or where the answer leaves it out.
    """

    id: str
    volume_id: str
    instance_id: str | None
    status: AttachmentStatus
    mode: AttachMode | None = None
    connection: ConnectionInfo | None = None
    attached_at: datetime | None = None


@attrs.frozen(kw_only=True)
class VolumeFeatures:
    """What the service on the other side can do, as negotiated once.

    Attributes:
        microversion: In use, as text (``"3.71"``); None for services without such.
        complete: It has the complete step (3.44); without it an attachment is attached as soon as it is mapped.
        extend_in_use: Volumes in use can grow (3.42).
        shared_targets: It says whether targets are shared, and which backend serves a volume (3.48).
        multiattach: It knows multi-attach volumes (3.50).
        mode: It keeps the mode of an attachment (3.54). A reservation keeps it in any case where this is True.
        encryption: It says what opens an encrypted volume.
        reimage: It writes an image over a volume that is reserved (3.68).
    """

    microversion: str | None = None
    complete: bool = True
    extend_in_use: bool = True
    shared_targets: bool = True
    multiattach: bool = True
    mode: bool = True
    encryption: bool = False
    reimage: bool = True
