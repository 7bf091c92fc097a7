"""The query parameters of lists and searches, by the rules of each microversion."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Any

from placement_api import schemas
from placement_api.calls import BAD_VALUE, DUPLICATE_KEY, MISSING_VALUE, Call, Problem
from placement_api.cloud import Cloud

from cloudcore.errors import InvalidRequest
from cloudcore.placement import RequestGroup, ResourceRequest

BADLY_FORMED = (
    "Badly formed resources parameter. Expected resources query string parameter in form: "
    "?resources=VCPU:2,MEMORY_MB:1024. Got: "
)
START = "Invalid query string parameters: "
ALTERNATIVES = "in:HW_CPU_X86_VMX,CUSTOM_MAGIC"
GROUPED = re.compile(f"(resources|required|member_of|in_tree)({schemas.SUFFIX_1_33})?")


def provider_filters(call: Call, cloud: Cloud) -> dict[str, Any]:
    """The filters of ``GET /resource_providers``."""
    given = dict(call.query)
    filters: dict[str, Any] = {name: given[name] for name in ("name", "uuid", "in_tree") if name in given}
    draft = _group(call, "")
    del draft["in_tree"]
    cloud.require_traits(_traits_of(draft), 'Invalid trait(s) in "required" parameter: ')
    cloud.require_classes(draft["resources"], "Invalid resource class in resources parameter: ")
    return {**filters, "group": RequestGroup(**draft)}


def _traits_of(draft: dict[str, Any]) -> set[str]:
    return set(draft["forbidden"]).union(*draft["required"])


def candidate_request(call: Call, cloud: Cloud) -> ResourceRequest:
    """The request of ``GET /allocation_candidates``."""
    call.parameters(schemas.candidate_query(call.version))
    given, limits = dict(call.query), call.all_of("limit")
    wide = _request_wide(call)
    suffixes = list(dict.fromkeys(found[2] or "" for name, _ in call.query if (found := GROUPED.fullmatch(name))))
    drafts = {suffix: _group(call, suffix) for suffix in suffixes}
    _check_groups(call, drafts, wide["same_subtree"])
    if "group_policy" not in given and sum(1 for suffix, draft in drafts.items() if suffix) > 1:
        raise Problem(
            400, 'The "group_policy" parameter is required when specifying more than one "resources{N}" parameter.'
        )
    try:
        groups = {suffix: RequestGroup(**draft) for suffix, draft in drafts.items()}
        return ResourceRequest(groups, limit=int(limits[0]) if limits else None, **wide)
    except InvalidRequest as error:
        for draft in drafts.values():
            require_names(cloud, draft["resources"], _traits_of(draft))
        require_names(cloud, (), wide["root_required"] | wide["root_forbidden"])
        raise Problem(400, f"{START}{error}", BAD_VALUE) from error


def require_names(cloud: Cloud, classes: Iterable[str], traits: Iterable[str]) -> None:
    """Refuse what nobody made, in Placement's words."""
    cloud.require_classes(classes, "Invalid resource class in resources parameter: ")
    cloud.require_traits(traits)


def _group(call: Call, suffix: str) -> dict[str, Any]:
    given = dict(call.query)
    draft: dict[str, Any] = {
        "resources": {},
        "required": [],
        "forbidden": set(),
        "member_of": [],
        "not_member_of": set(),
        "in_tree": None,
    }
    if f"resources{suffix}" in given:
        draft["resources"] = read_resources(given[f"resources{suffix}"])
    if f"required{suffix}" in given:
        draft["required"], draft["forbidden"] = read_traits(call, suffix)
    if f"member_of{suffix}" in given:
        draft["member_of"], draft["not_member_of"] = read_aggregates(call, suffix)
    if f"in_tree{suffix}" in given:
        draft["in_tree"] = _uuid(given[f"in_tree{suffix}"].strip(), "in_tree", "to be a format of uuid")
    return draft


def _request_wide(call: Call) -> dict[str, Any]:
    wide: dict[str, Any] = {"root_required": set(), "root_forbidden": set(), "same_subtree": []}
    policies = call.all_of("group_policy")
    if policies:
        wide["group_policy"] = policies[0]
    roots = call.all_of("root_required")
    if len(roots) > 1:
        raise Problem(400, "Query parameter 'root_required' may be specified only once.", DUPLICATE_KEY)
    if roots:
        required, wide["root_forbidden"] = _traits(roots[0], forbidden=True, alternatives=False)
        wide["root_required"] = set().union(*required)
        both = wide["root_required"] & wide["root_forbidden"]
        if both:
            detail = f"Conflicting required and forbidden traits found in root_required: {', '.join(sorted(both))}"
            raise Problem(400, detail, BAD_VALUE)
    for value in call.all_of("same_subtree"):
        suffixes = {part.strip() for part in value.split(",")}
        if "" in suffixes:
            raise Problem(400, "Empty string (unsuffixed group) can not be specified in `same_subtree` ", BAD_VALUE)
        wide["same_subtree"].append(suffixes)
    return wide


def _check_groups(call: Call, drafts: dict[str, dict[str, Any]], subtrees: list[set[str]]) -> None:
    bare = [suffix for suffix, draft in drafts.items() if not draft["resources"]]
    if call.version >= (1, 36):
        named = set().union(*subtrees)
        if len(bare) == len(drafts):
            raise Problem(400, "There must be at least one resources or resources[$S] parameter.", MISSING_VALUE)
        stray = [suffix for suffix in bare if suffix not in named]
        if stray:
            detail = (
                "Resourceless suffixed group request should be specified in `same_subtree` query param: bad group(s) - "
            )
            raise Problem(400, f"{detail}{stray}.", BAD_VALUE)
        unknown = [suffix for suffix in named if suffix not in drafts]
        if unknown:
            detail = f"Real suffixes should be specified in `same_subtree`: {unknown} not found in {list(drafts)}."
            raise Problem(400, detail, BAD_VALUE)
    else:
        _check_orphans(drafts, bare)
        if bare:
            raise Problem(400, "All request groups must specify resources.")
        if not drafts:
            raise Problem(400, "At least one request group (`resources` or `resources{$S}`) is required.")
    clashes = [
        f"required{suffix}: ({', '.join(sorted(names))})"
        for suffix, draft in drafts.items()
        for names in draft["required"]
        if names <= draft["forbidden"]
    ]
    if clashes and call.version >= (1, 22):
        start = "Conflicting required and forbidden traits found in the following traits keys: "
        raise Problem(400, start + ", ".join(sorted(clashes)))


def _check_orphans(drafts: dict[str, dict[str, Any]], bare: list[str]) -> None:
    """Until 1.35 whatever is asked of a provider is asked of one that gives something."""
    traits = [f"required{suffix}" for suffix in bare if drafts[suffix]["required"]]
    if traits:
        start = "All traits parameters must be associated with resources.  Found the following orphaned traits keys: "
        raise Problem(400, start + ", ".join(traits))
    members = [
        f"member_of{suffix}" for suffix in bare if drafts[suffix]["member_of"] or drafts[suffix]["not_member_of"]
    ]
    if members:
        start = (
            "All member_of parameters must be associated with resources. Found the following orphaned member_of keys: "
        )
        raise Problem(400, start + ", ".join(members))


def read_resources(value: str) -> dict[str, int]:
    """``VCPU:2,MEMORY_MB:1024``."""
    if not value.strip():
        raise Problem(400, f"{BADLY_FORMED}empty string.")
    found: dict[str, int] = {}
    for part in value.split(","):
        name, colon, amount = part.partition(":")
        if not colon or ":" in amount:
            raise Problem(400, f"{BADLY_FORMED}{part}.")
        try:
            number = int(amount)
        except ValueError as error:
            raise Problem(400, f"Requested resource {name} expected positive integer amount. Got: {amount}.") from error
        if number < 1:
            raise Problem(400, f"Requested resource {name} requires amount >= 1. Got: {number}.")
        found[name] = number
    return found


def read_traits(call: Call, suffix: str) -> tuple[list[frozenset[str]], set[str]]:
    """Required sets and forbidden traits; ``!`` came with 1.22, ``in:`` (one is enough) and repeating with 1.39."""
    values = call.all_of(f"required{suffix}")
    if call.version < (1, 39):
        values = values[-1:]
    required: list[frozenset[str]] = []
    forbidden: set[str] = set()
    for value in values:
        some, others = _traits(value, forbidden=call.version >= (1, 22), alternatives=call.version >= (1, 39))
        required += some
        forbidden |= others
    return required, forbidden


def _traits(value: str, *, forbidden: bool, alternatives: bool) -> tuple[list[frozenset[str]], set[str]]:
    if value.startswith("in:"):
        return [_alternatives(value, allowed=alternatives)], set()
    names = [name.strip() for name in value.split(",")]
    form = "HW_CPU_X86_VMX,!CUSTOM_MAGIC" if forbidden else "HW_CPU_X86_VMX,CUSTOM_MAGIC"
    expected = f"{START}Expected 'required' parameter value of the form: {form}."
    if not all(name.lstrip("!") for name in names):
        raise Problem(400, f"{expected} Got an empty trait in: {value}")
    unwanted = {name.lstrip("!") for name in names if name.startswith("!")}
    if unwanted and not forbidden:
        raise Problem(400, f"{expected} Got: {value}")
    return [frozenset([name]) for name in names if not name.startswith("!")], unwanted


def _alternatives(value: str, *, allowed: bool) -> frozenset[str]:
    names = [name.strip() for name in value[3:].split(",")]
    if not allowed:
        raise Problem(400, f"{START}The format '{ALTERNATIVES}' only supported since microversion 1.39. Got: {value}")
    if not all(names):
        expected = f"Expected 'required' parameter value of the form: {ALTERNATIVES}."
        raise Problem(400, f"{START}{expected} Got an empty trait in: {value}")
    if any(name.startswith("!") for name in names):
        raise Problem(400, f"{START}The format '{ALTERNATIVES}' does not support forbidden traits. Got: {value}")
    return frozenset(names)


def read_aggregates(call: Call, suffix: str) -> tuple[list[frozenset[str]], set[str]]:
    """Required sets and forbidden aggregates; repeating came with 1.24, ``!`` with 1.32."""
    values = call.all_of(f"member_of{suffix}")
    if call.version < (1, 24) and len(values) > 1:
        raise Problem(400, f"Multiple member_of{suffix} parameters are not supported")
    required: list[frozenset[str]] = []
    forbidden: set[str] = set()
    for value in values:
        plain = value.removeprefix("!")
        if "," in value and not plain.startswith("in:"):
            raise Problem(
                400,
                "Multiple values for 'member_of' must be prefixed with the 'in:' or '!in:' keyword using the valid "
                f"microversion. Got: {value}",
            )
        names = frozenset(
            _uuid(name, "member_of", "to contain valid UUID(s)") for name in plain.removeprefix("in:").split(",")
        )
        if plain == value:
            required.append(names)
        elif call.version < (1, 32):
            raise Problem(
                400, f"Forbidden member_of{suffix} parameters are not supported in the specified microversion"
            )
        else:
            forbidden |= names
    return required, forbidden


def _uuid(value: str, field: str, form: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError as error:
        raise Problem(
            400, f"Invalid query string parameters: Expected '{field}' parameter {form}. Got: {value}"
        ) from error
