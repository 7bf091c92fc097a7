"""The JSON that the API takes, for each microversion, as JSON schemas."""

from __future__ import annotations

import functools
import uuid
from typing import Any

import jsonschema

MAX_INTEGER = 2**31 - 1
MAX_FLOAT = 3.40282e38

UUID = "^[0-9a-fA-F-]{36}$"
NAME = "^[A-Z0-9_]+$"
CUSTOM = "^CUSTOM_[A-Z0-9_]+$"
SUFFIX = "[1-9][0-9]*"
SUFFIX_1_33 = "[a-zA-Z0-9_-]{1,64}"

Schema = dict[str, Any]

_FORMATS = jsonschema.FormatChecker(formats=())


@_FORMATS.checks("uuid", raises=ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or bool(uuid.UUID(value))


def validator(schema: Schema) -> jsonschema.Draft7Validator:
    """A validator that is made once and used for every request."""
    return jsonschema.Draft7Validator(schema, format_checker=_FORMATS)


def _object(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _map(pattern: str, value: Schema, *, least: int = 0) -> Schema:
    return {
        "type": "object",
        "patternProperties": {pattern: value},
        "minProperties": least,
        "additionalProperties": False,
    }


def _text(**more: Any) -> Schema:
    return {"type": "string", **more}


def _integer(minimum: int) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": MAX_INTEGER}


_GENERATION: Schema = {"type": "integer"}
_OWNER = _text(minLength=1, maxLength=255)
_UUID = _text(format="uuid")

# --- providers -------------------------------------------------------------------------------------------------------


@functools.cache
def provider(*, new: bool, nested: bool) -> jsonschema.Draft7Validator:
    """``POST`` (new) or ``PUT`` of a provider; nested from 1.14."""
    fields = {"name": _text(maxLength=200)}
    if new:
        fields["uuid"] = _UUID
    if nested:
        fields["parent_provider_uuid"] = {"anyOf": [_UUID, {"type": "null"}]}
    return validator(_object(("name",), **fields))


_INVENTORY = {
    "resource_provider_generation": _GENERATION,
    "total": _integer(1),
    "reserved": _integer(0),
    "min_unit": _integer(1),
    "max_unit": _integer(1),
    "step_size": _integer(1),
    "allocation_ratio": {"type": "number", "maximum": MAX_FLOAT},
}
_INVENTORIES: Schema = {
    **_object(
        ("resource_provider_generation", "inventories"),
        resource_provider_generation=_GENERATION,
        inventories={"type": "object", "patternProperties": {NAME: _object(("total",), **_INVENTORY)}},
    )
}

ONE_INVENTORY = validator(_object(("total", "resource_provider_generation"), **_INVENTORY))
NEW_INVENTORY = validator(_object(("total", "resource_class"), resource_class=_text(pattern=NAME), **_INVENTORY))
INVENTORIES = validator(_INVENTORIES)

_AGGREGATES: Schema = {"type": "array", "items": _UUID, "uniqueItems": True}
AGGREGATES_1_1 = validator(_AGGREGATES)
AGGREGATES = validator(
    _object(
        ("aggregates", "resource_provider_generation"), aggregates=_AGGREGATES, resource_provider_generation=_GENERATION
    )
)

CLASS = validator(_object(("name",), name=_text(pattern=CUSTOM, maxLength=255)))
TRAIT = validator(_text(pattern=CUSTOM, minLength=1, maxLength=255))
TRAITS = validator(
    _object(
        ("traits", "resource_provider_generation"),
        traits={"type": "array", "items": _text(minLength=1, maxLength=255)},
        resource_provider_generation=_GENERATION,
    )
)

# --- allocations -----------------------------------------------------------------------------------------------------

_RESOURCES = _map(NAME, {"type": "integer", "minimum": 1}, least=1)


def _allocations(version: tuple[int, int], *, several: bool) -> Schema:
    """What one consumer shall hold; ``POST`` and the reshaper take *several* consumers, and empty ones earlier."""
    if version < (1, 12):
        item = _object(
            ("resource_provider", "resources"), resource_provider=_object(("uuid",), uuid=_UUID), resources=_RESOURCES
        )
        fields: dict[str, Schema] = {"allocations": {"type": "array", "minItems": 1, "items": item}}
        required = ["allocations"]
    else:
        item = _object(("resources",), generation=_GENERATION, resources=_RESOURCES)
        fields = {"allocations": _map(UUID, item, least=0 if several or version >= (1, 28) else 1)}
        required = ["allocations"]
    if version >= (1, 8):
        fields |= {"project_id": _OWNER, "user_id": _OWNER}
        required += ["project_id", "user_id"]
    if version >= (1, 28):
        fields["consumer_generation"] = {"type": ["integer", "null"]}
        required.append("consumer_generation")
    if version >= (1, 34):
        providers = {"type": "array", "minItems": 1, "items": _UUID}
        fields["mappings"] = {"type": "object", "minProperties": 1, "patternProperties": {SUFFIX_1_33: providers}}
    if version >= (1, 38):
        fields["consumer_type"] = _text(pattern=NAME, minLength=1, maxLength=255)
        required.append("consumer_type")
    return _object(tuple(required), **fields)


@functools.cache
def allocations(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``PUT /allocations/{consumer}``."""
    return validator(_allocations(version, several=False))


@functools.cache
def allocations_of_many(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``POST /allocations``."""
    return validator(_map(UUID, _allocations(version, several=True), least=1))


@functools.cache
def reshaper(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``POST /reshaper``."""
    return validator(
        _object(
            ("inventories", "allocations"),
            inventories=_map(UUID, _INVENTORIES, least=1),
            allocations=_map(UUID, _allocations(version, several=True)),
        )
    )


# --- queries ---------------------------------------------------------------------------------------------------------


@functools.cache
def provider_query(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``GET /resource_providers``."""
    since = {
        "name": (1, 0),
        "uuid": (1, 0),
        "member_of": (1, 3),
        "resources": (1, 4),
        "in_tree": (1, 14),
        "required": (1, 18),
    }
    fields = {
        name: _UUID if name in {"uuid", "in_tree"} else _text() for name, first in since.items() if version >= first
    }
    return validator(_object((), **fields))


@functools.cache
def usage_query(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``GET /usages``."""
    fields = {"project_id": _OWNER, "user_id": _OWNER}
    if version >= (1, 38):
        fields["consumer_type"] = _text(pattern=f"{NAME}|^all|^unknown$", minLength=1, maxLength=255)
    return validator(_object(("project_id",), **fields))


TRAIT_QUERY = validator(_object((), name=_text(), associated=_text()))


@functools.cache
def candidate_query(version: tuple[int, int]) -> jsonschema.Draft7Validator:
    """``GET /allocation_candidates``: groups with suffixes from 1.25, with any suffix from 1.33."""
    plain = {
        "limit": ((1, 16), _text(pattern="^[1-9][0-9]*$")),
        "group_policy": ((1, 25), {"enum": ["none", "isolate"]}),
    }
    plain |= {"root_required": ((1, 35), _text()), "same_subtree": ((1, 36), _text())}
    fields = {name: schema for name, (first, schema) in plain.items() if version >= first}
    grouped = {"resources": (1, 10), "required": (1, 17), "member_of": (1, 21), "in_tree": (1, 31)}
    names = [name for name, first in grouped.items() if version >= first]
    if version < (1, 25):
        return validator(_object(("resources",), **fields, **{name: _text() for name in names}))
    suffix = SUFFIX if version < (1, 33) else SUFFIX_1_33
    return validator(
        {**_object((), **fields), "patternProperties": {f"^{name}({suffix})?$": _text() for name in names}}
    )
