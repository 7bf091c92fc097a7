"""Placement's query language for ``GET /allocation_candidates``, microversion 1.39: read and write. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import attrs

from cloudcore.errors import InvalidRequest
from cloudcore.placement.requests.groups import RequestGroup, refuse
from cloudcore.placement.requests.microversions import NEWEST, at_microversion

__all__ = ["parse_query", "write_query"]

_GROUPED = re.compile(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})?\Z")
_AMOUNT = re.compile(r"[0-9]+\Z", re.ASCII)
_FORBIDS_AGGREGATES = "!in:"
_PARAMETERS = {"forbidden": "required", "not_member_of": "member_of"}


def _pairs(query: str | Mapping[str, Any] | Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    if isinstance(query, str):
        try:
            text = "&".join(filter(None, query.removeprefix("?").split("&")))  # a=1&&b=2 is let pass there too
            return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
        except ValueError as error:
            raise refuse(f"not a query string: {error}", "query", query) from error
    pairs: list[tuple[str, str]] = []
    if isinstance(query, Mapping):
        for name, value in query.items():
            pairs += [(name, one) for one in ([value] if isinstance(value, str) else _listed(value, str(name)))]
    else:
        pairs = [pair if isinstance(pair, tuple) else (str(pair), "") for pair in _listed(query, "query")]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise refuse(f"expected pairs of text, got {pair!r}", "query", pair)
    return pairs


def _listed(value: Any, field: str) -> list[Any]:
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise refuse(f"expected text or a list of it, got {value!r}", field, value)
    return list(value)


@attrs.define
class _Draft:
    """A group while its parameters are being read."""

    resources: dict[str, int] = attrs.field(factory=dict)
    required: list[frozenset[str]] = attrs.field(factory=list)
    forbidden: set[str] = attrs.field(factory=set)
    member_of: list[frozenset[str]] = attrs.field(factory=list)
    not_member_of: set[str] = attrs.field(factory=set)
    in_tree: str | None = None

    def read(self, kind: str, value: str, field: str) -> None:
        if kind == "resources":
            self.resources = _read_resources(value, field)  # given again, the last one counts
        elif kind == "required":
            required, forbidden = _read_traits(value, field)
            self.required += required
            self.forbidden |= forbidden
        elif kind == "member_of":
            self._read_aggregates(value, field)
        else:
            self.in_tree = value.strip()

    def _read_aggregates(self, value: str, field: str) -> None:
        if value.startswith(_FORBIDS_AGGREGATES):
            self.not_member_of.update(value[4:].split(","))
        elif value.startswith("in:"):
            self.member_of.append(frozenset(value[3:].split(",")))
        elif "," in value:
            raise refuse(f"several aggregates need in: or !in:, got {value!r}", field, value)
        elif value.startswith("!"):
            self.not_member_of.add(value[1:])
        else:
            self.member_of.append(frozenset([value]))


def _read_resources(value: str, field: str) -> dict[str, int]:
    resources: dict[str, int] = {}
    for part in value.split(","):
        name, colon, amount = part.partition(":")
        amount = amount.strip()  # blanks around a number, but not around a name, are let pass there too
        if not colon or not _AMOUNT.match(amount) or len(amount) > 20:
            raise refuse(f"expected CLASS:amount with a whole amount of at least 1, got {part!r}", field, value)
        resources[name] = int(amount)
    return resources


def _read_traits(value: str, field: str) -> tuple[list[frozenset[str]], set[str]]:
    """Required sets and forbidden traits of one value. Any number of ``!`` forbids, as Placement reads it."""
    alternatives = value.startswith("in:")
    names = [name.strip() for name in value.removeprefix("in:").split(",")]
    if not all(name.lstrip("!") for name in names):
        raise refuse(f"an empty trait in {value!r}", field, value)
    if alternatives:
        if any(name.startswith("!") for name in names):
            raise refuse(f"in: takes no forbidden traits, got {value!r}", field, value)
        return [frozenset(names)], set()
    required = [frozenset([name]) for name in names if not name.startswith("!")]
    return required, {name.lstrip("!") for name in names if name.startswith("!")}


def _read_root(values: list[str]) -> dict[str, frozenset[str]]:
    if len(values) > 1:
        raise refuse("may be given once only", "root_required", values)
    if values[0].startswith("in:"):
        raise refuse("takes no in:", "root_required", values[0])
    required, forbidden = _read_traits(values[0], "root_required")
    return {"root_required": frozenset().union(*required), "root_forbidden": frozenset(forbidden)}


def _read_limit(value: str) -> int:
    if not _AMOUNT.match(value) or len(value) > 20 or int(value) < 1:
        raise refuse(f"expected a whole number of at least 1, got {value!r}", "limit", value)
    return int(value)


def parse_query(
    query: str | Mapping[str, Any] | Iterable[tuple[str, str]], version: tuple[int, int] = NEWEST
) -> dict[str, Any]:
    """Return the arguments of :class:`ResourceRequest` that *query* describes at the microversion *version*.

    Raises:
        InvalidRequest: A parameter is unknown or malformed; the error names it.
    """
    drafts: dict[str, _Draft] = {}
    wide: dict[str, list[str]] = {}
    for name, value in at_microversion(_pairs(query), version):
        match = _GROUPED.match(name)
        if match is not None:
            drafts.setdefault(match[2] or "", _Draft()).read(match[1], value, name)
        elif name in {"limit", "group_policy", "same_subtree", "root_required"}:
            wide.setdefault(name, []).append(value)
        else:
            raise refuse("unknown parameter", name, value)
    arguments: dict[str, Any] = {
        "groups": {suffix: _finish(suffix, draft) for suffix, draft in drafts.items()},
        "same_subtree": [[part.strip() for part in value.split(",")] for value in wide.get("same_subtree", [])],
    }
    if "limit" in wide:
        arguments["limit"] = _read_limit(wide["limit"][0])
    if "group_policy" in wide:
        arguments["group_policy"] = wide["group_policy"][0]
    if "root_required" in wide:
        arguments.update(_read_root(wide["root_required"]))
    return arguments


def _finish(suffix: str, draft: _Draft) -> RequestGroup:
    try:
        return RequestGroup(**attrs.asdict(draft, recurse=False))
    except InvalidRequest as error:
        field = str(error.field or "")
        kind, _, rest = field.partition(" ")
        parameter = f"{_PARAMETERS.get(kind, kind)}{suffix} {rest}".strip()
        raise refuse(str(error).removeprefix(f"{field}: "), parameter, error.value) from error


def _one_of(names: frozenset[str]) -> str:
    return next(iter(names)) if len(names) == 1 else "in:" + ",".join(sorted(names))


def write_query(
    *,
    groups: Mapping[str, RequestGroup],
    same_subtree: Iterable[Iterable[str]],
    root_required: Iterable[str],
    root_forbidden: Iterable[str],
    group_policy: str | None,
    limit: int | None,
) -> str:
    """Return the request of these fields as a query string that :func:`parse_query` reads back."""
    pairs: list[tuple[str, str]] = []
    for suffix, group in groups.items():
        if group.resources:
            amounts = ",".join(f"{name}:{amount}" for name, amount in group.resources.items())
            pairs.append((f"resources{suffix}", amounts))
        pairs += [(f"required{suffix}", _one_of(names)) for names in group.required]
        if group.forbidden:
            pairs.append((f"required{suffix}", ",".join(f"!{name}" for name in sorted(group.forbidden))))
        pairs += [(f"member_of{suffix}", _one_of(names)) for names in group.member_of]
        if group.not_member_of:
            pairs.append((f"member_of{suffix}", _FORBIDS_AGGREGATES + ",".join(sorted(group.not_member_of))))
        if group.in_tree is not None:
            pairs.append((f"in_tree{suffix}", group.in_tree))
    pairs += [("same_subtree", ",".join(sorted(suffixes))) for suffixes in same_subtree]
    root = [*sorted(root_required), *(f"!{name}" for name in sorted(root_forbidden))]
    if root:
        pairs.append(("root_required", ",".join(root)))
    if group_policy is not None:
        pairs.append(("group_policy", group_policy))
    if limit is not None:
        pairs.append(("limit", str(limit)))
    return urlencode(pairs, safe=",:!")
