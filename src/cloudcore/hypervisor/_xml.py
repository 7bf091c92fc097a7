"""The one place that parses XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from xml.etree.ElementTree import Element

from cloudcore.errors import HypervisorError

__all__ = ["Element", "attribute", "is_writable", "number", "parse", "text", "to_text"]

_UNWRITABLE = re.compile(r"[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse(source: str, what: str) -> Element:
    """The root element of *source*.

    Raises:
        HypervisorError: It is not well-formed; *what* names it.
    """
    try:
        return ET.fromstring(source)  # noqa: S314 - written by the hypervisor, which we trust with all guests
    except ET.ParseError as error:
        raise HypervisorError(f"{what}: not well-formed XML: {error}") from error


def is_writable(value: str) -> bool:
    """Whether *value* comes back from a definition as it was.

    XML 1.0 has no other characters but a tab and the ends of lines, of which libvirt makes blanks.
    """
    return _UNWRITABLE.search(value) is None


def to_text(element: Element) -> str:
    """Indented XML."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")


def text(element: Element | None, path: str) -> str | None:
    """Stripped text at *path*, None where there is none."""
    found = element.findtext(path) if element is not None else None
    return found.strip() or None if found else None


def attribute(element: Element | None, path: str, name: str) -> str | None:
    """Attribute *name* of the element at *path*."""
    found = element.find(path) if element is not None else None
    return found.get(name) if found is not None else None


def number(value: str | None, default: int = 0) -> int:
    """*value* as a whole number, decimal or ``0x…``."""
    if value is None:
        return default
    try:
        return int(value, 0)
    except ValueError:
        try:
            return int(value)
        except ValueError:
            return default
