"""The API's pages: the defaults of attrs classes, the names at the side, and which object a bare name means."""

import enum
import importlib
import re

import attrs
from docutils import nodes
from sphinx import addnodes

MEMBERS = {"method", "property", "attribute", "classmethod", "staticmethod"}
AREAS = ["placement", "placement.hosts", "listing", "attach", "hypervisor", "disks", "database", "errors", "schema"]


def public_names() -> dict[str, list[str]]:
    """Each public name with the modules that have it."""
    names: dict[str, list[str]] = {}
    for area in AREAS:
        module = importlib.import_module(f"cloudcore.{area}")
        for name in module.__all__:
            names.setdefault(name, []).append(module.__name__)
    return names


def say_defaults(app, what, name, described, options, signature, returns):
    """The defaults of an attrs class, where its generated `__init__` only says where to find them."""
    if signature is None or not (isinstance(described, type) and attrs.has(described)):
        return None
    fields = attrs.fields_dict(described)

    def default(match: re.Match[str]) -> str:
        value = fields[match[1]].default
        return f"{type(value).__name__}.{value.name}" if isinstance(value, enum.Enum) else repr(value)

    return re.sub(r"attr_dict\['(\w+)'\]\.default", default, signature).replace("NOTHING", "..."), returns


def list_no_members(app, domain, objtype, content):
    """The contents at the side name classes and functions; with every method they would be no help, and slow."""
    if objtype in MEMBERS:
        for signature in content.parent.findall(addnodes.desc_signature):
            signature["_toc_name"] = ""


def say_whose(app, doctree: nodes.document):
    """A bare name means that of its own page, or else the only one that there is.

    Several areas have a `Move` or a `Finding`. Left to itself, Sphinx would search all names for every `int`, too.
    """
    for reference in doctree.findall(addnodes.pending_xref):
        if reference.get("refdomain") != "py":
            continue
        modules = app.public_names.get(reference["reftarget"], [])
        here = reference.get("py:module")
        if here in modules or len(modules) == 1:
            reference["reftarget"] = f"{here if here in modules else modules[0]}.{reference['reftarget']}"
        if reference.get("reftype") in {"class", "obj"}:
            reference.attributes.pop("refspecific", None)


def setup(app):
    app.public_names = public_names()
    app.connect("autodoc-process-signature", say_defaults)
    app.connect("object-description-transform", list_no_members)
    app.connect("doctree-read", say_whose)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
