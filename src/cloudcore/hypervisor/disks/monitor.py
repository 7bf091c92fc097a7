"""What QEMU itself has open, asked through its monitor, and what of it the guest's definition does not know. Pure.

libvirtd can die after QEMU got a disk and before it wrote that down. Started again it knows nothing of the disk: the
live definition lacks it, and the guest has it. libvirt names what it opens: a disk's device has the disk's alias, its
images are the nodes ``libvirt-N-…``, where N is the ``index`` of a source in the live definition.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import attrs

from cloudcore.disks import BlockSource, DiskSource, FileSource, IscsiSource, RbdSource
from cloudcore.hypervisor.disks.xml import alias_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloudcore.hypervisor.disks.xml import DiskEntry

__all__ = ["OpenDisks", "OpenNode", "Orphans", "command", "failure_text", "opens", "orphans", "read_open"]

_NODE = re.compile(r"libvirt-(\d+)-")
_DEVICE = re.compile(r"(?:/machine/peripheral/)?(ua-[0-9a-f-]{36})(?:/|\Z)")


@attrs.frozen(kw_only=True)
class OpenNode:
    """An image, or a format on top of one. *file* is how QEMU names where the bytes are."""

    name: str
    file: str

    @property
    def index(self) -> int | None:
        """The number of its source in the live definition; None for what libvirt does not number."""
        found = _NODE.match(self.name)
        return int(found[1]) if found else None


@attrs.frozen(kw_only=True)
class OpenDisks:
    """The disks that QEMU has: *devices* (with a volume's alias, and the node that it reads) and all *nodes*."""

    devices: Mapping[str, str] = attrs.Factory(dict)
    nodes: tuple[OpenNode, ...] = ()


@attrs.frozen(kw_only=True)
class Orphans:
    """What QEMU has and the live definition has not: devices by alias, and nodes that no device reads."""

    devices: frozenset[str] = frozenset()
    nodes: tuple[OpenNode, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.devices or self.nodes)

    def both(self, other: Orphans) -> Orphans:
        """What is among the orphans of both looks."""
        names = {node.name for node in other.nodes}
        return Orphans(
            devices=self.devices & other.devices, nodes=tuple(node for node in self.nodes if node.name in names)
        )

    def of(self, volume_id: str, source: DiskSource | None) -> bool:
        """Whether *volume_id*, whose bytes are at *source*, is among them."""
        return alias_of(volume_id) in self.devices or any(opens(node.file, volume_id, source) for node in self.nodes)


def command(execute: str, **arguments: object) -> str:
    """A command of the QEMU monitor."""
    return json.dumps({"execute": execute, "arguments": arguments} if arguments else {"execute": execute})


def failure_text(answer: str) -> str | None:
    """What QEMU has against it; None where it did as told."""
    told = json.loads(answer).get("error")
    return None if told is None else f"{told.get('class', '')}: {told.get('desc', '')}"


def read_open(block: str, nodes: str) -> OpenDisks:
    """The answers to ``query-block`` and to ``query-named-block-nodes``. Of an answer that is an error, nothing."""
    devices = {}
    for one in json.loads(block).get("return", ()):
        found = _DEVICE.match(one.get("qdev") or "")
        if found:
            devices[found[1]] = (one.get("inserted") or {}).get("node-name") or ""
    read = tuple(
        OpenNode(name=one.get("node-name") or "", file=one.get("file") or "")
        for one in json.loads(nodes).get("return", ())
    )
    return OpenDisks(devices=devices, nodes=read)


def orphans(found: OpenDisks, live: Iterable[DiskEntry]) -> Orphans:
    """What of *found* none of the disks of the *live* definition accounts for."""
    aliases: set[str | None] = set()
    numbers: set[int] = set()
    for entry in live:
        aliases.add(entry.alias)
        numbers |= entry.indexes
    devices = {alias: node for alias, node in found.devices.items() if alias not in aliases}
    read = {OpenNode(name=node, file="").index for node in devices.values()}
    return Orphans(
        devices=frozenset(devices),
        nodes=tuple(
            node
            for node in found.nodes
            if node.index is not None and node.index not in numbers and node.index not in read
        ),
    )


def opens(file: str, volume_id: str, source: DiskSource | None) -> bool:
    """Whether QEMU's name *file* is of the volume: of its *source*, or of anything that has its id in the name."""
    if volume_id in file:
        return True
    if isinstance(source, BlockSource | FileSource):
        return file == source.path
    if isinstance(source, RbdSource):
        wanted = {"driver": "rbd", "pool": source.pool, "image": source.image}
    elif isinstance(source, IscsiSource):
        wanted = {"driver": "iscsi", "target": source.target, "lun": str(source.lun)}
    else:
        return False
    return file.startswith("json:") and _has(json.loads(file.removeprefix("json:")), wanted)


def _has(value: Any, wanted: Mapping[str, str]) -> bool:
    if not isinstance(value, dict):
        return False
    return all(str(value.get(key)) == told for key, told in wanted.items()) or any(
        _has(inner, wanted) for inner in value.values()
    )
