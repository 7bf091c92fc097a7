"""The public names and their signatures as text: what `tests/public_surface.txt` holds.

After a change that is meant, draw it anew and look at the difference:

    python -m tests.public_surface
"""

import enum
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import cloudcore

FILE = Path(__file__).with_suffix(".txt")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

PROGRAMS = {"cloudcore.cli"}
"""What is started, not imported."""


def public_modules() -> list[str]:
    """Each package that lists its names, and so each module directly in cloudcore or in cloudcore.testing.

    Everything else is what they are made of.
    """
    found = {"cloudcore"}
    for module in pkgutil.walk_packages(cloudcore.__path__, "cloudcore."):
        folder, _, name = module.name.rpartition(".")
        may_be = module.ispkg or folder in {"cloudcore", "cloudcore.testing"}
        if may_be and not name.startswith("_") and hasattr(importlib.import_module(module.name), "__all__"):
            found.add(module.name)
    return sorted(found - PROGRAMS)


def _default(value: object) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(repr, value))) + "}"
    return "…" if inspect.isfunction(value) or ADDRESS.search(repr(value)) else repr(value)


def _annotation(value: object) -> str:
    if isinstance(value, str):
        return value
    return getattr(value, "__name__", None) or str(value)


def signature(function: object) -> str:
    """The parameters with annotations and defaults, and what is returned, as they are written in the source."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return "(…)"
    parts, star = [], False
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or parameter.kind in {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL}
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
    returned = "" if found.return_annotation is found.empty else f" -> {_annotation(found.return_annotation)}"
    return f"({', '.join(parts)}){returned}"


def _members(cls: type) -> list[str]:
    """The public members of a class that cloudcore gave it."""
    if issubclass(cls, enum.Enum):
        return [f"{member.name} = {member.value!r}" for member in cls]
    ours = [base for base in cls.__mro__ if base.__module__.startswith("cloudcore")]
    names = sorted({name for base in ours for name in vars(base) if not name.startswith("_")})
    lines = [f"__init__{signature(cls)}"] if any("__init__" in vars(base) for base in ours) else []
    for name in names:
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            lines.append(f"{name}: {_annotation(getattr(value.fget, '__annotations__', {}).get('return', '?'))}")
        elif isinstance(value, classmethod | staticmethod):
            lines.append(f"{name}{signature(value.__func__)}")
        elif callable(value) and not isinstance(value, type):
            lines.append(f"{name}{signature(value)}")
        else:
            lines.append(name)
    return lines


def _of(name: str, value: object) -> list[str]:
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        return [f"class {name}({bases})", *(f"    {line}" for line in _members(value))]
    if callable(value):
        return [f"def {name}{signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def describe() -> str:
    """The text of everything public."""
    lines = ["Drawn by: python -m tests.public_surface"]
    told: dict[int, str] = {}
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        lines += ["", f"# {module_name}"]
        for name in sorted(module.__all__):
            value = getattr(module, name)
            elsewhere = told.setdefault(id(value), f"{module_name}.{name}")
            if elsewhere == f"{module_name}.{name}" or not isinstance(value, type):
                lines += _of(name, value)
            else:
                lines.append(f"{name} is {elsewhere}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--show" in sys.argv:
        print(describe(), end="")
    else:
        FILE.write_text(describe())
