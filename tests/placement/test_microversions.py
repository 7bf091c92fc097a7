"""Queries at older microversions: what Placement takes and refuses at each, and what a query then means."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from cloudcore.errors import InvalidRequest
from cloudcore.placement import ResourceRequest
from tests.placement.peer import Peer, peer_python
from tests.placement.worlds import AGGREGATES, TRAITS

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = AGGREGATES[:2]
T, U = TRAITS[1:3]
MINORS = [10, 15, 16, 17, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33, 34, 35, 36, 38, 39]
VALUES = {
    "limit": ["5", "0", "x"],
    "required": [
        TRAITS[1],
        f"!{TRAITS[1]}",
        f"{TRAITS[1]},{TRAITS[2]}",
        f"in:{TRAITS[1]},{TRAITS[2]}",
        f"in:!{TRAITS[1]}",
    ],
    "member_of": [A, f"in:{A},{B}", f"!{A}", f"!in:{A},{B}", f"{A},{B}"],
    "group_policy": ["none", "isolate"],
    "in_tree": [A],
    "root_required": [TRAITS[1], f"!{TRAITS[1]}"],
    "same_subtree": ["1,2", "_N,1"],
    "resources": ["VCPU:1", "VCPU:1,MEMORY_MB:2"],
    "name": ["x"],
}
SUFFIXED = ("required", "member_of", "in_tree", "resources")


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with Peer(peer_python()) as process:
        yield process


def query(rng: random.Random) -> str:
    pairs = [("resources", "VCPU:1")] if rng.random() < 0.9 else []
    suffixes = rng.sample(["1", "2", "_N"], rng.choice([0, 0, 1, 2]))
    pairs += [(f"resources{suffix}", "MEMORY_MB:1") for suffix in suffixes]
    if rng.random() < 0.5:
        pairs.append(("group_policy", "none"))
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice(list(VALUES))
        suffix = rng.choice(["", "", "1", "_N"]) if name in SUFFIXED else ""
        pairs.append((name + suffix, rng.choice(VALUES[name])))
    return urlencode(pairs, safe=",:!")


def refusal(text: str, microversion: str) -> str | None:
    """Why we refuse a query, None if we take it."""
    try:
        ResourceRequest.from_query(text, microversion=microversion)
    except InvalidRequest as error:
        return f"{error.field}: {error}"
    return None


def test_each_microversion_takes_what_placement_takes_then(peer: Peer, request: pytest.FixtureRequest) -> None:
    taken = refused = 0
    for seed in range(6_000 if request.config.getoption("--long") else 900):
        rng = random.Random(seed)
        text, minor = (
            query(rng),
            rng.choice(MINORS),
        )
        path = f"/allocation_candidates?{text}"
        status = peer.ask("call", method="GET", path=path, version=f"placement 1.{minor}")["status"]
        why = refusal(text, f"1.{minor}")
        assert status == (200 if why is None else 400), (text, minor, why)
        taken, refused = taken + (why is None), refused + (why is not None)
    assert min(taken, refused) > 200, (taken, refused)


def test_of_repeated_traits_the_last_counted() -> None:
    text = f"resources=VCPU:1&required={TRAITS[1]}&required={TRAITS[2]}"
    assert ResourceRequest.from_query(text, microversion="1.38").groups[""].required == (frozenset({TRAITS[2]}),)
    assert len(ResourceRequest.from_query(text, microversion="1.39").groups[""].required) == 2
    assert ResourceRequest.from_query(text) == ResourceRequest.from_query(text, microversion="1.39")


@pytest.mark.parametrize("microversion", ["1.9", "1.40", "2.10", "1", "", "latest", None, 1.39, "1.39 "])
def test_unknown_microversions_are_refused(microversion: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_query("resources=VCPU:1", microversion=microversion)
    assert caught.value.field == "microversion"
