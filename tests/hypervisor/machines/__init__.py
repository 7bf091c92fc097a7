"""Machines of several kinds, as libvirt would describe them: its documents, in the shapes that its manual gives.

Each folder is one machine. ``load("sriov")`` reads it into facts, through the same code as a real host.
"""

from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

from cloudcore.hypervisor import HostFacts
from cloudcore.hypervisor.facts.documents import HostDocuments, guest_cpu_model, read_documents

HERE = Path(__file__).parent
NAMES = sorted(path.name for path in HERE.iterdir() if (path / "capabilities.xml").exists())


@functools.cache
def documents(name: str) -> HostDocuments:
    """What libvirt says of the machine."""
    folder = HERE / name
    about = json.loads((folder / "about.json").read_text())
    domain = _text(folder / "domain_capabilities.xml")
    return HostDocuments(
        **(about | {"cpu_map": tuple(bool(one) for one in about["cpu_map"])}),
        capabilities=(folder / "capabilities.xml").read_text(),
        domain_capabilities=domain,
        guest_cpu=guest_cpu_model(domain) if domain else None,  # libvirt would expand the model's own features too
        node_devices=tuple(ET.tostring(one, encoding="unicode") for one in _children(folder / "devices.xml")),
        storage_pools=tuple(
            (ET.tostring(one, encoding="unicode"), one.get("active") == "yes")
            for one in _children(folder / "pools.xml")
        ),
    )


@functools.cache
def load(name: str) -> HostFacts:
    """The facts of the machine."""
    return read_documents(documents(name))


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _children(path: Path) -> list[ET.Element]:
    return list(ET.parse(path).getroot()) if path.exists() else []
