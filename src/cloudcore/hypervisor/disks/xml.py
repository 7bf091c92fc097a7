"""Disks as libvirt writes them: built, parsed and compared. Pure: values and text only.

The alias ``ua-<volume id>`` is how a disk is found again; libvirt keeps user aliases in the live and in the persistent
definition. The serial is the fallback, for guests that others made: on device type ``lun`` there is none.

One module, because what is written and what is read have to be each other's mirror, field by field.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, TypeVar

import attrs

from cloudcore._values import normalise_uuid, require_text
from cloudcore.disks import BlockSource, Disk, DiskBus, DiskSource, FileSource, IscsiSource, LuksEncryption, RbdSource
from cloudcore.errors import HypervisorError, InvalidArgument, InvalidDisk
from cloudcore.hypervisor._xml import Element, attribute, is_writable, number, parse, text, to_text
from cloudcore.hypervisor.disks.options_xml import (
    check_options,
    encryption_elements,
    limits_elements,
    read_encryption,
    read_limits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "KEPT",
    "PREFIXES",
    "RENAMED",
    "SECRET_KINDS",
    "DiskEntry",
    "alias_of",
    "bootable_xml",
    "check_disk",
    "check_secret",
    "differences",
    "disk_xml",
    "domain_disks",
    "effective",
    "passed_units",
    "removed_disks",
    "renamed_space",
    "same_bytes",
    "secret_xml",
    "volume_of",
]

PREFIXES = {DiskBus.VIRTIO: "vd", DiskBus.SCSI: "sd", DiskBus.SATA: "sd", DiskBus.USB: "sd", DiskBus.IDE: "hd"}
_TARGET = re.compile(r"(?:vd|sd|hd|xvd)[a-z]{1,3}\Z")
_CACHES = frozenset({"none", "writethrough", "writeback", "directsync", "unsafe", "default"})
_DIRECT = frozenset({"none", "directsync"})
_IO = frozenset({"native", "threads", "io_uring"})
_DISCARD = frozenset({"unmap", "ignore"})
_USER_ALIAS = "ua-"
_Named = TypeVar("_Named", bound=RbdSource | IscsiSource | LuksEncryption)
SECRET_KINDS = {"ceph": "name", "iscsi": "target", "volume": "volume"}
"""Kinds of libvirt secrets, and the element that says what each is the key of."""
KEPT = "urn:cloudcore:removed-disk:"
"""Namespaces of metadata that keep a disk while it is being detached; the volume id comes after it."""
RENAMED = "urn:cloudcore:renamed-disk:"
"""Namespaces of metadata that keep which volume a running guest's disk is now; :func:`renamed_space` ends them."""


def alias_of(volume_id: str) -> str:
    """The alias of the disk of *volume_id*."""
    return f"{_USER_ALIAS}{volume_id}"


def volume_of(alias: str) -> str:
    """The volume of an alias that was made by :func:`alias_of`."""
    return alias.removeprefix(_USER_ALIAS)


@attrs.frozen(kw_only=True)
class DiskEntry:
    """One disk of a definition.

    *disk* is None for what is no volume (CD-ROMs, disks without a volume id), *unit* for what has no SCSI unit of the
    first controller. *copying* says where it is being copied to. *xml* is the element as it was read, *indexes* the
    numbers that libvirt gives the images of a live one.
    """

    target: str
    alias: str | None = None
    serial: str | None = None
    disk: Disk | None = None
    unit: int | None = None
    copying: Disk | None = None
    indexes: frozenset[int] = frozenset()
    xml: str = attrs.field(default="", repr=False)


# --- what is to be written -------------------------------------------------------------------------------------------


def effective(disk: Disk) -> Disk:
    """*disk* as it will really be: modes decided, identifiers in normal form.

    Shareable disks have no host cache. ``io="native"`` needs a cache mode that goes past the host's page cache, and
    becomes ``"threads"`` without.
    """
    cache = "none" if disk.shareable or disk.cache is None else disk.cache
    io = "threads" if disk.io == "native" and cache not in _DIRECT else disk.io
    return attrs.evolve(
        disk,
        volume_id=normalise_uuid(disk.volume_id, "volume_id", InvalidDisk),
        source=_with_normal_secret(disk.source) if isinstance(disk.source, RbdSource | IscsiSource) else disk.source,
        encryption=None if disk.encryption is None else _with_normal_secret(disk.encryption),
        cache=cache,
        io=io,
    )


def _with_normal_secret(value: _Named) -> _Named:
    """*value* with the secret's UUID as libvirt gives it back; what is none stays, others may have written it."""
    with contextlib.suppress(InvalidArgument):
        return attrs.evolve(value, secret_id=normalise_uuid(value.secret_id or "", "secret_id"))
    return value


def check_disk(disk: Disk) -> None:
    """Refuse what no guest can have.

    Raises:
        InvalidDisk: An unknown mode, a target that does not fit the bus, a block size that is no power of two, a path
            or a name that a definition cannot hold.
    """
    normalise_uuid(disk.volume_id, "volume_id", InvalidDisk)
    for field, value, known in (
        ("cache", disk.cache, _CACHES),
        ("io", disk.io, _IO),
        ("discard", disk.discard, _DISCARD),
    ):
        if value is not None and value not in known:
            raise InvalidDisk(f"{field}: {value!r} is none of {', '.join(sorted(known))}", field=field, value=value)
    if disk.target is not None and not (_TARGET.match(disk.target) and disk.target.startswith(PREFIXES[disk.bus])):
        raise InvalidDisk(
            f"target: {disk.target!r} is no name of a {disk.bus} disk ({PREFIXES[disk.bus]}a, …)",
            field="target",
            value=disk.target,
        )
    for field, size in (
        ("logical_block_size", disk.logical_block_size),
        ("physical_block_size", disk.physical_block_size),
    ):
        if size is not None and (size < 512 or size & (size - 1)):
            raise InvalidDisk(f"{field}: {size} is no power of two from 512 on", field=field, value=size)
    check_options(disk)
    if disk.boot_order is not None and disk.boot_order < 1:
        raise InvalidDisk(f"boot_order: {disk.boot_order}, the first is 1", field="boot_order", value=disk.boot_order)
    _check_source(disk.source)


def check_secret(kind: str, name: str) -> str:
    """*name*, if a secret of *kind* can be defined with it.

    Raises:
        InvalidArgument: An unknown kind, or no text that a definition holds.
    """
    if kind not in SECRET_KINDS:
        raise InvalidArgument(f"kind: {kind!r} is none of {', '.join(SECRET_KINDS)}", field="kind", value=kind)
    if not is_writable(require_text(name, "name")):
        raise InvalidArgument(f"name: {name!r} is no text that a definition holds", field="name", value=name)
    return name


def _texts(value: object) -> Iterator[str]:
    """All texts in a value of tuples."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from _texts(one)


def _check_source(source: DiskSource) -> None:
    for told in _texts(attrs.astuple(source)):
        if not is_writable(told):
            raise InvalidDisk(f"source: {told!r} is no text that a definition holds", field="source", value=told)
    if isinstance(source, BlockSource | FileSource) and not source.path.startswith("/"):
        raise InvalidDisk(f"source: {source.path!r} is no absolute path", field="source", value=source.path)
    if isinstance(source, RbdSource | IscsiSource) and (source.user is None) != (source.secret_id is None):
        raise InvalidDisk("source: user and secret_id go together", field="source")
    if isinstance(source, RbdSource) and not source.hosts:
        raise InvalidDisk("source: no monitor of the Ceph cluster is named", field="source")


def disk_xml(disk: Disk | DiskEntry) -> str:
    """The ``<disk>`` element of *disk*, whose target must be set; of an entry, the element that was read.

    Raises:
        InvalidDisk: It has no target.
    """
    if isinstance(disk, DiskEntry):
        return disk.xml
    if disk.target is None:
        raise InvalidDisk("target: not chosen yet", field="target")
    disk = effective(disk)
    root = Element("disk", type=_kind(disk.source), device="lun" if disk.lun else "disk")
    modes = {"cache": disk.cache, "io": disk.io, "discard": disk.discard}
    _add(
        root,
        "driver",
        name="qemu",
        type=_format(disk.source),
        **modes,
        queues=disk.queues,
        iothread=disk.iothread,
    )
    root.append(_source_element(disk.source))
    root[-1].extend(encryption_elements(disk))
    if disk.logical_block_size or disk.physical_block_size:
        _add(root, "blockio", logical_block_size=disk.logical_block_size, physical_block_size=disk.physical_block_size)
    _add(root, "target", dev=disk.target, bus=disk.bus.value)
    if disk.read_only:
        _add(root, "readonly")
    if disk.shareable:
        _add(root, "shareable")
    root.extend(limits_elements(disk))
    if not disk.lun:  # libvirt forbids it
        _add(root, "serial").text = disk.volume_id
    if disk.wwn is not None:
        _add(root, "wwn").text = disk.wwn
    if disk.boot_order is not None:
        _add(root, "boot", order=disk.boot_order)
    _add(root, "alias", name=alias_of(disk.volume_id))
    if disk.unit is not None:
        _add(root, "address", type="drive", controller=0, bus=0, target=0, unit=disk.unit)
    return to_text(root)


def _add(parent: Element, tag: str, **attributes: object) -> Element:
    child = Element(tag, {name: str(value) for name, value in attributes.items() if value is not None})
    parent.append(child)
    return child


def _kind(source: DiskSource) -> str:
    if isinstance(source, BlockSource):
        return "block"
    return "file" if isinstance(source, FileSource) else "network"


def _format(source: DiskSource) -> str:
    return source.format if isinstance(source, FileSource) else "raw"


def _source_element(source: DiskSource) -> Element:
    if isinstance(source, BlockSource):
        return Element("source", dev=source.path)
    if isinstance(source, FileSource):
        return Element("source", file=source.path)
    if isinstance(source, RbdSource):
        element = Element("source", protocol="rbd", name=f"{source.pool}/{source.image}")
        for host, port in source.hosts:
            _add(element, "host", name=host, port=port)
        usage = "ceph"
    else:
        element = Element("source", protocol="iscsi", name=f"{source.target}/{source.lun}")
        _add(element, "host", name=source.host, port=source.port)
        usage = "iscsi"
    if source.user is not None:
        auth = _add(element, "auth", username=source.user)
        _add(auth, "secret", type=usage, uuid=source.secret_id)
    return element


def bootable_xml(definition: str, disk: str) -> str:
    """*definition* with the element *disk* to boot from.

    libvirt knows an order of boot devices or an order of kinds of them, never both, and gives every definition without
    either the order of kinds ``hd``. So that goes.
    """
    root = parse(definition, "guest definition")
    system, devices = root.find("os"), root.find("devices")
    if system is not None:
        for kind in system.findall("boot"):
            system.remove(kind)
    if devices is not None:
        devices.append(parse(disk, "disk"))
    return to_text(root)


def secret_xml(secret_id: str, kind: str, name: str, *, description: str | None = None) -> str:
    """Definition of a libvirt secret; *kind* is one of :data:`SECRET_KINDS`. The value is set apart from it."""
    root = Element("secret", ephemeral="no", private="yes")
    _add(root, "uuid").text = secret_id
    if description is not None:
        _add(root, "description").text = description
    usage = _add(root, "usage", type=kind)
    _add(usage, SECRET_KINDS[kind]).text = name
    return to_text(root)


# --- what is read ----------------------------------------------------------------------------------------------------


def domain_disks(source: str) -> tuple[DiskEntry, ...]:
    """The disks of a domain definition, in its order.

    Raises:
        HypervisorError: *source* is not well-formed.
    """
    root = parse(source, "guest definition")
    renamed = _kept(root, RENAMED) if RENAMED in source else {}
    return tuple(_by_its_name(_entry(element), renamed) for element in root.iterfind("devices/disk"))


def _by_its_name(entry: DiskEntry, renamed: Mapping[str, DiskEntry]) -> DiskEntry:
    """A running guest's disk keeps its alias for life. One that got another volume's bytes is that volume's."""
    if entry.disk is None:
        return entry
    known = renamed.get(renamed_space(entry.disk.volume_id, entry.disk.source).removeprefix(RENAMED))
    if known is None or known.disk is None:
        return entry
    return attrs.evolve(entry, disk=attrs.evolve(entry.disk, volume_id=known.disk.volume_id))


def renamed_space(volume_id: str, source: DiskSource) -> str:
    """Where it is kept which volume the disk with the alias of *volume_id* is, once it has its bytes at *source*."""
    place = hashlib.sha256("\n".join(_place(source)).encode()).hexdigest()
    return f"{RENAMED}{volume_id}:{place[:16]}"


def passed_units(source: str) -> frozenset[int]:
    """The SCSI units of the first controller that devices of the host have, which were passed to the guest."""
    if "<hostdev" not in source:
        return frozenset()
    units = map(_unit, parse(source, "guest definition").iterfind("devices/hostdev"))
    return frozenset(unit for unit in units if unit is not None)


def removed_disks(source: str) -> tuple[DiskEntry, ...]:
    """The disks that were taken out of a definition, as its metadata keeps them. What cannot be read is left out."""
    return tuple(_kept(parse(source, "guest definition"), KEPT).values())


def _kept(root: Element, space: str) -> dict[str, DiskEntry]:
    """The disks that are kept in the metadata under *space*, by what comes after it."""
    found = {}
    for kept in root.iterfind("metadata/*"):
        if kept.tag.startswith(f"{{{space}") and kept.text:
            with contextlib.suppress(HypervisorError):
                name = kept.tag.partition(space)[2].partition("}")[0]
                found[name] = attrs.evolve(_entry(parse(kept.text, "disk in metadata")), xml=kept.text)
    return found


def _entry(element: Element) -> DiskEntry:
    target = attribute(element, "target", "dev") or ""
    alias, serial = attribute(element, "alias", "name"), text(element, "serial")
    volume_id = _volume_id(alias, serial) if element.get("device", "disk") in {"disk", "lun"} else None
    return DiskEntry(
        target=target,
        alias=alias,
        serial=serial,
        disk=None if volume_id is None else _disk(element, volume_id, target),
        unit=_unit(element),
        copying=_copying(element, volume_id, target),
        indexes=frozenset(number(one.get("index")) for one in element.iter("source") if one.get("index")),
        xml=to_text(element),
    )


def _volume_id(alias: str | None, serial: str | None) -> str | None:
    for value in (alias.removeprefix(_USER_ALIAS) if alias and alias.startswith(_USER_ALIAS) else None, serial):
        if value is not None:
            try:
                return normalise_uuid(value, "volume_id")
            except InvalidArgument:
                continue
    return None


def _disk(element: Element, volume_id: str, target: str) -> Disk:
    order = attribute(element, "boot", "order")
    bus = attribute(element, "target", "bus")
    return Disk(
        volume_id=volume_id,
        source=_source(element),
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        bus=DiskBus(bus) if bus in set(DiskBus) else DiskBus.VIRTIO,
        target=target or None,
        boot_order=None if order is None else number(order),
        cache=attribute(element, "driver", "cache"),
        io=attribute(element, "driver", "io"),
        discard=attribute(element, "driver", "discard"),
        logical_block_size=_optional_number(attribute(element, "blockio", "logical_block_size")),
        physical_block_size=_optional_number(attribute(element, "blockio", "physical_block_size")),
        limits=read_limits(element),
        encryption=read_encryption(element),
        unit=_unit(element),
        lun=element.get("device") == "lun",
        wwn=text(element, "wwn"),
        queues=_optional_number(attribute(element, "driver", "queues")),
        iothread=_optional_number(attribute(element, "driver", "iothread")),
    )


def _unit(element: Element) -> int | None:
    """On the first SCSI controller; what is elsewhere takes no unit of it."""
    scsi = element.get("type") if element.tag == "hostdev" else attribute(element, "target", "bus")
    address = element.find("address[@type='drive']")
    if address is None or scsi != "scsi":
        return None
    elsewhere = any(number(address.get(name)) for name in ("controller", "bus", "target"))
    return None if elsewhere else number(address.get("unit"))


def _copying(element: Element, volume_id: str | None, target: str) -> Disk | None:
    """The place that a running copy goes to."""
    mirror = element.find("mirror")
    if volume_id is None or mirror is None or mirror.get("job") != "copy":
        return None
    place = Element("disk", type=mirror.get("type", "file"))
    form, source = mirror.find("format"), mirror.find("source")
    if form is not None:
        _add(place, "driver", type=form.get("type", "raw"))
    if source is not None:
        place.append(source)
    return Disk(volume_id=volume_id, source=_source(place), target=target or None)


def _optional_number(value: str | None) -> int | None:
    return None if value is None else number(value)


def _source(element: Element) -> DiskSource:
    """Where the bytes are. What cloudcore never writes is shown as a block source whose path tells what it is."""
    source = element.find("source")
    kind = element.get("type", "file")
    if source is None:
        return BlockSource(f"{kind}:")
    if kind == "block":
        return BlockSource(source.get("dev", ""))
    if kind == "file":
        return FileSource(source.get("file", ""), attribute(element, "driver", "type") or "raw")
    auth = source.find("auth")
    if auth is None:
        auth = element.find("auth")  # where older definitions have it
    user = None if auth is None else auth.get("username")
    secret = attribute(auth, "secret", "uuid")
    hosts = tuple((host.get("name", ""), number(host.get("port"))) for host in source.iterfind("host"))
    protocol, name = source.get("protocol"), source.get("name", "")
    if kind == "network" and protocol == "rbd":
        pool, _, image = name.partition("/")
        return RbdSource(pool=pool, image=image, hosts=hosts, user=user, secret_id=secret)
    if kind == "network" and protocol == "iscsi" and hosts:
        target, _, lun = name.rpartition("/")
        host, port = hosts[0]
        return IscsiSource(host=host, port=port, target=target, lun=number(lun), user=user, secret_id=secret)
    return BlockSource(f"{kind}:{protocol or ''}:{name}")


# --- compared --------------------------------------------------------------------------------------------------------


def differences(wanted: Disk, found: Disk) -> tuple[str, ...]:
    """In what *found* is not the disk that is *wanted*; empty when it is.

    A target, a cache mode and the like count only where they were asked for. Monitors may change; the image may not.
    Limits do not count: an operator may change them while the guest runs.
    """
    wanted, named = effective(wanted), wanted
    found = effective(found)
    told = []
    if _place(wanted.source) != _place(found.source):
        told.append(f"source: {_place(found.source)}, not {_place(wanted.source)}")
    for field in ("read_only", "shareable", "bus", "encryption", "lun"):
        ours, theirs = getattr(wanted, field), getattr(found, field)
        if ours != theirs:
            told.append(f"{field}: {theirs}, not {ours}")
    for field in ("target", "logical_block_size", "physical_block_size", "unit", "wwn"):
        ours, theirs = getattr(named, field), getattr(found, field)
        if ours is not None and ours != theirs:
            told.append(f"{field}: {theirs}, not {ours}")
    if (wanted.shareable or named.cache is not None) and found.cache != wanted.cache:
        told.append(f"cache: {found.cache}, not {wanted.cache}")
    return tuple(told)


def same_bytes(one: DiskSource, other: DiskSource) -> bool:
    """Whether both are the same image, however it is reached."""
    return _place(one) == _place(other)


def _place(source: DiskSource) -> tuple[str, ...]:
    if isinstance(source, RbdSource):
        return "rbd", source.pool, source.image
    if isinstance(source, IscsiSource):
        return "iscsi", source.target, str(source.lun)
    return type(source).__name__, source.path
