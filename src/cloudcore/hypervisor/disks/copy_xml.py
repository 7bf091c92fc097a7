"""What a copy under a running guest is asked for with, how far it is, and the definition after it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cloudcore.hypervisor._xml import Element, attribute, parse, to_text
from cloudcore.hypervisor.disks.xml import PREFIXES, disk_xml

if TYPE_CHECKING:
    from cloudcore.disks import Disk
    from cloudcore.hypervisor.disks.xml import DiskEntry

__all__ = ["copy_xml", "mirror_ready", "replaced_xml"]


def copy_xml(disk: Disk) -> str:
    """The ``<disk>`` that a copy goes to: where, and in which format."""
    whole = parse(disk_xml(attrs.evolve(disk, target=disk.target or f"{PREFIXES[disk.bus]}a")), "disk")
    root = Element("disk", type=whole.get("type", "file"))
    root.append(Element("driver", name="qemu", type=attribute(whole, "driver", "type") or "raw"))
    root.extend(whole.findall("source"))
    return to_text(root)


def mirror_ready(definition: str, target: str) -> bool:
    """Whether both places of the disk that is copied hold the same, as the live definition has it."""
    for element in parse(definition, "guest definition").iterfind("devices/disk"):
        if attribute(element, "target", "dev") == target:
            return attribute(element, "mirror", "ready") == "yes"
    return False


def replaced_xml(entry: DiskEntry, disk: Disk) -> str:
    """The element of *entry* with the source, the alias and the serial of *disk*, and everything else as it was."""
    root, wanted = parse(entry.xml, "disk"), parse(disk_xml(attrs.evolve(disk, target=entry.target)), "disk")
    root.set("type", wanted.get("type", "file"))
    for tag in ("source", "serial", "alias"):
        old, new = root.find(tag), wanted.find(tag)
        if old is not None and new is not None:
            root[list(root).index(old)] = new
    driver, form = root.find("driver"), attribute(wanted, "driver", "type")
    if driver is not None and form is not None:
        driver.set("type", form)
    return to_text(root)
