"""What a query of ``GET /allocation_candidates`` could say at older microversions. Pure.

Source: ``placement.schemas.allocation_candidate`` and ``placement.util`` of Placement 16.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cloudcore.placement.requests.groups import refuse

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NEWEST", "at_microversion", "read_microversion"]

OLDEST, NEWEST = (1, 10), (1, 39)

_SINCE = {
    "resources": (1, 10),
    "limit": (1, 16),
    "required": (1, 17),
    "member_of": (1, 21),
    "group_policy": (1, 25),
    "in_tree": (1, 31),
    "root_required": (1, 35),
    "same_subtree": (1, 36),
}
_GROUPED = re.compile(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})?\Z")
_NUMBER = re.compile(r"[1-9][0-9]*\Z", re.ASCII)
_FORBIDDEN_TRAITS, _SEVERAL_AGGREGATES, _NUMBERED = (1, 22), (1, 24), (1, 25)
_FORBIDDEN_AGGREGATES, _NAMED, _ALTERNATIVES = (1, 32), (1, 33), (1, 39)


def read_microversion(text: str) -> tuple[int, int]:
    """Read ``1.36``.

    Raises:
        InvalidRequest: It is none that has allocation candidates and is known here, ``1.10`` to ``1.39``.
    """
    match = re.fullmatch(r"(1)\.([0-9]{1,3})", text, re.ASCII) if isinstance(text, str) else None
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if not OLDEST <= version <= NEWEST:
        raise refuse(f"expected 1.10 to 1.39, got {text!r}", "microversion", text)
    return version


def at_microversion(pairs: Sequence[tuple[str, str]], version: tuple[int, int]) -> list[tuple[str, str]]:
    """The parameters that count at *version*, as they are read at the newest one.

    Raises:
        InvalidRequest: A parameter, a suffix or a form of a value came later; the error names the parameter.
    """
    if version >= NEWEST:
        return list(pairs)
    for name, value in pairs:
        _check(name, value, version)
    names = [name for name, _ in pairs]
    for name in names:
        if version < _SEVERAL_AGGREGATES and name.startswith("member_of") and names.count(name) > 1:
            raise refuse("may be given more than once since 1.24", name)
    last = {name: place for place, name in enumerate(names)}  # of traits, the last one counted before 1.39
    return [pair for place, pair in enumerate(pairs) if _kind(pair[0])[0] != "required" or last[pair[0]] == place]


def _kind(name: str) -> tuple[str, str]:
    match = _GROUPED.match(name)
    return (match[1], match[2] or "") if match else (name, "")


def _check(name: str, value: str, version: tuple[int, int]) -> None:
    kind, suffix = _kind(name)
    since = _SINCE.get(kind)
    if since is None or version < since:
        raise refuse("unknown parameter" + (f" before {_text(since)}" if since else ""), name, value)
    needed = _NAMED if suffix and not _NUMBER.match(suffix) else _NUMBERED if suffix else since
    if kind == "required" and value.startswith("in:"):
        needed = max(needed, _ALTERNATIVES)
    elif kind == "required" and any(part.strip().startswith("!") for part in value.split(",")):
        needed = max(needed, _FORBIDDEN_TRAITS)
    elif kind == "member_of" and value.startswith("!"):
        needed = max(needed, _FORBIDDEN_AGGREGATES)
    if version < needed:
        raise refuse(f"{value!r} or the suffix has a form that is known since {_text(needed)}", name, value)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
