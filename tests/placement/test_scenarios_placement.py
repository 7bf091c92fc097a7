"""The scenarios of Placement's own functional tests (gabbi files and object-level tests), without Placement.

`scenarios.json` holds the worlds of its fixtures, the queries of its tests and the answers of Placement 16.0.0; see its
notice, and `record_scenarios`. Where that release is known to be wrong, brute force says what is right.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from cloudcore.errors import InvalidRequest
from cloudcore.placement import ResourceRequest
from tests.placement import oracle, ours
from tests.placement.peer import excused, identity
from tests.placement.worlds import Request, World

DATA = json.loads(Path(__file__).with_name("scenarios.json").read_text())
FOUND = [scenario for scenario in DATA["scenarios"] if scenario["status"] == 200]
REFUSED = [scenario for scenario in DATA["scenarios"] if scenario["status"] != 200]

NEVER_CREATED = ("CUSTOM_NO_EXIST", "CUSTOM_MAGIC")
"""Placement refuses custom names that nobody has created yet; here one may ask for any, and finds nobody who has it."""


@cache
def world_of(number: int) -> World:
    return World.from_peer(DATA["worlds"][number])


@cache
def tree_of(number: int):
    return ours.build(world_of(number))


def name(scenario: dict) -> str:
    return f"{scenario['test']}-{scenario['world']}"


@pytest.mark.parametrize("scenario", FOUND, ids=name)
def test_same_candidates_as_recorded(scenario: dict) -> None:
    """Allocations and mappings are those that Placement gave, or those of brute force where it is wrong."""
    world, query = world_of(scenario["world"]), scenario["query"]
    request = Request.from_query(query)
    right = oracle.candidates(world, request)
    if excused(world, request) is None:
        assert right == {identity(*pair) for pair in scenario["candidates"]}
    found = ours.listed(tree_of(scenario["world"]), query)
    assert set(found) == right
    assert len(found) == len(right)


def _custom(scenario: dict) -> bool:
    return any(word in scenario["query"] for word in NEVER_CREATED)


@pytest.mark.parametrize("scenario", [scenario for scenario in REFUSED if not _custom(scenario)], ids=name)
def test_refused_as_recorded(scenario: dict) -> None:
    """What Placement answers with 400 is a typed error that names a field."""
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_query(scenario["query"])
    assert caught.value.field
    assert caught.value.field.split()[0] in str(caught.value)


@pytest.mark.parametrize("scenario", [scenario for scenario in REFUSED if _custom(scenario)], ids=name)
def test_names_that_nobody_has_created_are_not_an_error(scenario: dict) -> None:
    """The answer is that of a trait that no provider carries."""
    world = world_of(scenario["world"])
    found = ours.listed(tree_of(scenario["world"]), scenario["query"])
    assert set(found) == oracle.candidates(world, Request.from_query(scenario["query"]))


def test_scenarios_are_all_there() -> None:
    """The file was not cut short: the searches of 329 tests, made once where several ask the same."""
    assert len(FOUND) == 204
    assert len(REFUSED) == 34
    assert len(DATA["worlds"]) == 49
