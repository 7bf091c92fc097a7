"""A guest's definition as it has to be on the host that it moves to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore._values import normalise_uuid
from cloudcore.errors import DeviceNotFound, InvalidDisk
from cloudcore.hypervisor._xml import parse, to_text
from cloudcore.hypervisor.disks.xml import disk_xml, domain_disks

if TYPE_CHECKING:
    from collections.abc import Iterable
    from xml.etree.ElementTree import Element

    from cloudcore.disks import Disk

__all__ = ["destination_xml"]

_PLACES = ("source", "auth")


def destination_xml(definition: str, disks: Iterable[Disk]) -> str:
    """*definition* with the sources of *disks* as the destination reaches them.

    Disks are found by alias, with the serial as fallback. Where the bytes are is replaced and nothing else: the guest
    must see the same device names, addresses and modes on both sides, or it does not survive the move.

    Raises:
        DeviceNotFound: The guest has no disk of one of the volumes.
        InvalidDisk: A volume is named twice.
    """
    root = parse(definition, "guest definition")
    elements = {
        entry.disk.volume_id: element
        for element, entry in zip(root.iterfind("devices/disk"), domain_disks(definition), strict=True)
        if entry.disk is not None
    }
    done = set()
    for disk in disks:
        volume_id = normalise_uuid(disk.volume_id, "volume_id")
        element = elements.get(volume_id)
        if element is None:
            raise DeviceNotFound(f"the guest has no disk of volume {volume_id}", identifier=volume_id)
        if volume_id in done:
            raise InvalidDisk(f"volume {volume_id} is named twice", field="disks", value=volume_id)
        done.add(volume_id)
        _replace_source(element, disk)
    return to_text(root)


def _replace_source(element: Element, disk: Disk) -> None:
    target = element.find("target")
    name = "vda" if target is None else target.get("dev", "vda")
    wanted = parse(disk_xml(attrs.evolve(disk, target=name)), "disk")
    first = next((i for i, child in enumerate(element) if child.tag in _PLACES), len(element))
    source, old = wanted.find("source"), element.find("source/encryption")
    for child in [child for child in element if child.tag in _PLACES]:
        element.remove(child)
    if source is not None and old is not None and source.find("encryption") is None:
        source.append(old)  # where the bytes are has changed, not how they are read
    if source is not None:
        element.insert(first, source)
    element.set("type", wanted.get("type", "file"))
