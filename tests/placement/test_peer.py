"""Placement in its process: that its worlds are stored as its API stores them, and that what excuses it is true.

A mistake that a new release mends must fail here, so that the excuse goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

import attrs
import pytest

from cloudcore.errors import InvalidRequest
from cloudcore.placement import ResourceRequest
from tests.placement import oracle, ours
from tests.placement.peer import Peer, excused, peer_python
from tests.placement.test_scenarios_worked import numa, pooled, provider
from tests.placement.worlds import SHARING, Provider, Request, World, choose_world, seeded

pytestmark = pytest.mark.xdist_group("placement-peer")


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with Peer(peer_python()) as process:
        yield process


def store_by_api(peer: Peer, world: World) -> None:
    """As a client of the service would."""

    def call(method: str, path: str, body: object = None) -> dict:
        answer = peer.ask("call", method=method, path=path, body=body)
        assert answer["status"] < 300, answer
        return answer["body"]

    peer.load(World(()))
    for number, each in enumerate(world.for_peer(), 1):
        path = f"/resource_providers/{each['uuid']}"
        body = {"name": each["name"], "uuid": each["uuid"], "parent_provider_uuid": each["parent"]}
        call("POST", "/resource_providers", body)
        inventories = {"inventories": each["inventories"], "resource_provider_generation": 0}
        call("PUT", f"{path}/inventories", inventories)
        call("PUT", f"{path}/traits", {"traits": each["traits"], "resource_provider_generation": 1})
        generation = 2 if each["traits"] else 1
        body = {"aggregates": each["aggregates"], "resource_provider_generation": generation}
        call("PUT", f"{path}/aggregates", body)
        if each["used"]:
            claim = {
                "allocations": {each["uuid"]: {"resources": each["used"]}},
                "project_id": "p",
                "user_id": "u",
                "consumer_generation": None,
                "consumer_type": "INSTANCE",
            }
            call("PUT", f"/allocations/c1c1c1c1-0000-4000-8000-{number:012x}", claim)


@pytest.mark.parametrize("seed", range(4))
def test_short_cut_stores_what_the_api_stores(peer: Peer, seed: int) -> None:
    """Worlds are written into the peer's tables; through its API the same world reads the same."""
    world = claimable(choose_world(seeded(seed)))
    peer.load(world)
    stored = peer.ask("dump")
    store_by_api(peer, world)
    assert sorted(peer.ask("dump"), key=itemgetter("name")) == sorted(stored, key=itemgetter("name"))


def claimable(world: World) -> World:
    """The world with only such amounts in use as one claim may take."""

    def tamed(each: Provider) -> Provider:
        empty = attrs.evolve(each, stock={name: attrs.evolve(stock, used=0) for name, stock in each.stock.items()})
        kept = {
            name: stock if stock.used and oracle.fits(empty, name, stock.used) else empty.stock[name]
            for name, stock in each.stock.items()
        }
        return attrs.evolve(each, stock=kept)

    return World(tuple(tamed(each) for each in world.providers))


CHILD_POOL = World(
    (
        provider(1, "h1", aggregates="A", VCPU=8),
        provider(2, "shelf"),
        provider(3, "ss", 2, traits=SHARING, aggregates="A", DISK_GB=100),
    )
)
ONLY_FORBIDS = "resources1=VCPU:1&required_N=!CUSTOM_FAST&same_subtree=1,_N&group_policy=none"


@pytest.mark.parametrize(
    ("world", "query"),
    [
        (numa(), "resources=VCPU:1&resources1=VCPU:1"),
        (numa(), "resources=VCPU:1&resources1=VCPU:2&resources2=VCPU:3&group_policy=isolate"),
        (pooled(), "resources=DISK_GB:5&resources1=VCPU:1"),
        (CHILD_POOL, "resources=VCPU:1,DISK_GB:5"),
        (numa(), ONLY_FORBIDS),
    ],
)
def test_peer_is_still_wrong_where_it_is_excused(peer: Peer, world: World, query: str) -> None:
    request = Request.from_query(query)
    assert excused(world, request)
    peer.load(world)
    (answer,) = peer.search([query])
    right = oracle.candidates(world, request)
    assert answer.status == 500 or answer.candidates != right
    assert set(ours.listed(ours.build(world), query)) == right


# ----------------------------------------------------------------------------------------------------------- rejections

U = "00000000-0000-4000-8000-000000000001"
LONG = "x" * 65

REFUSED_BY_BOTH = [
    "",
    "resources",
    "resources=",
    "resources=VCPU",
    "resources=VCPU:",
    "resources=VCPU:x",
    "resources=VCPU:1.5",
    "resources=VCPU:0",
    "resources=VCPU:-1",
    "resources=:1",
    "resources=VCPU:1:2",
    "resources=VCPU:1,",
    "resources=,VCPU:1",
    "resources=vcpu:1",
    "resources= VCPU:1",
    "resources=NO_SUCH:1",
    "Resources=VCPU:1",
    "resource=VCPU:1",
    "resources=VCPU:1&bogus=1",
    "resources=VCPU:1&limit=0",
    "resources=VCPU:1&limit=-1",
    "resources=VCPU:1&limit=x",
    "resources=VCPU:1&limit=",
    "resources=VCPU:1&limit=1.0",
    "resources=VCPU:1&required=",
    "resources=VCPU:1&required=,",
    "resources=VCPU:1&required=!",
    "resources=VCPU:1&required=NO_SUCH",
    "resources=VCPU:1&required=in:",
    "resources=VCPU:1&required=in:CUSTOM_A,!CUSTOM_B",
    "resources=VCPU:1&required=in:CUSTOM_A,",
    "resources=VCPU:1&required=CUSTOM_A,!CUSTOM_A",
    "resources=VCPU:1&required=CUSTOM_A&required=!CUSTOM_A",
    "resources=VCPU:1&required=in:CUSTOM_A,CUSTOM_B&required=!CUSTOM_A,!CUSTOM_B",
    "resources=VCPU:1&member_of=",
    "resources=VCPU:1&member_of=x",
    "resources=VCPU:1&member_of=in:",
    f"resources=VCPU:1&member_of={U},{U}",
    f"resources=VCPU:1&member_of=!{U},{U}",
    f"resources=VCPU:1&member_of=in:{U},x",
    f"resources=VCPU:1&member_of=in:!{U}",
    "resources=VCPU:1&member_of=!",
    "resources=VCPU:1&member_of=!in:",
    "resources=VCPU:1&in_tree=",
    "resources=VCPU:1&in_tree=cn1",
    f"resources=VCPU:1&in_tree={U},{U}",
    f"in_tree={U}",
    "required=CUSTOM_A",
    f"member_of={U}",
    "resources1=VCPU:1&required=CUSTOM_A",
    "resources1=VCPU:1&required2=CUSTOM_A&group_policy=none",
    "resources1=VCPU:1&required2=CUSTOM_A&same_subtree=1&group_policy=none",
    "required1=CUSTOM_A&same_subtree=1",
    "resources1=VCPU:1&resources2=VCPU:1",
    "resources1=VCPU:1&required2=CUSTOM_A&same_subtree=1,2",
    "resources1=VCPU:1&group_policy=",
    "resources1=VCPU:1&group_policy=both",
    "resources1=VCPU:1&group_policy=NONE",
    "resources1=VCPU:1&same_subtree=",
    "resources1=VCPU:1&same_subtree=1,",
    "resources1=VCPU:1&same_subtree=2",
    "resources_a=VCPU:1&same_subtree=_A",
    "resources=VCPU:1&same_subtree=1",
    "resources@=VCPU:1",
    f"resources{LONG}=VCPU:1",
    "resourcesä=VCPU:1",
    "resources=VCPU:1&root_required=",
    "resources=VCPU:1&root_required=in:CUSTOM_A,CUSTOM_B",
    "resources=VCPU:1&root_required=CUSTOM_A,!CUSTOM_A",
    "resources=VCPU:1&root_required=CUSTOM_A&root_required=CUSTOM_B",
    "resources=VCPU:1&root_required=NO_SUCH",
]

TAKEN_BY_BOTH = [
    "resources=VCPU:1",
    "resources=VCPU:1,VCPU:2",
    "resources=VCPU:1&resources=VCPU:2",
    "resources=VCPU: 1 ",
    "resources=VCPU:01",
    "resources=VCPU:2147483647",
    "resources=VCPU:1&limit=1&limit=2",
    "resources=VCPU:1&required=!!CUSTOM_A",
    "resources=VCPU:1&required= CUSTOM_A , !CUSTOM_B ",
    "resources=VCPU:1&required=in:CUSTOM_A,CUSTOM_B&required=!CUSTOM_A",
    "resources=VCPU:1&required=CUSTOM_A,CUSTOM_A",
    f"resources=VCPU:1&member_of=in:{U}",
    f"resources=VCPU:1&member_of=!in:{U}",
    f"resources=VCPU:1&member_of={U}&member_of=!{U}",
    f"resources=VCPU:1&in_tree= {U} ",
    "resources1=VCPU:1",
    "resources1=VCPU:1&group_policy=none&group_policy=isolate",
    "resources1=VCPU:1&same_subtree=1",
    "resources1=VCPU:1&same_subtree= 1 , 1 ",
    "resources1=VCPU:1&resources2=VCPU:1&group_policy=isolate&same_subtree=1,2&same_subtree=2",
    "resources-_aZ09=VCPU:1",
    f"resources{LONG[:64]}=VCPU:1",
    "resources1=VCPU:1&required2=!CUSTOM_A&same_subtree=1,2&group_policy=none",
    f"resources1=VCPU:1&in_tree2={U}&same_subtree=2&group_policy=none",
    "resources=VCPU:1&root_required=!CUSTOM_A,CUSTOM_B",
]

REFUSED_HERE_ALONE = [
    "resources=VCPU:2147483648",  # no inventory can hold it
    "resources=VCPU:99999999999999999999",  # the peer ends in error 500
    "resources=VCPU:1_0",  # Python's own way to write numbers
    "resources=VCPU:%2B1",
]

REFUSED_THERE_ALONE = [
    "resources=CUSTOM_NOBODY_HAS:1",  # custom names need not be created first
    "resources=VCPU:1&required=CUSTOM_NOBODY_HAS",
    "resources=VCPU:1&root_required=!CUSTOM_NOBODY_HAS",
]


def refusal(query: str) -> InvalidRequest | None:
    try:
        ResourceRequest.from_query(query)
    except InvalidRequest as error:
        return error
    return None


@pytest.mark.parametrize(
    ("queries", "here", "there"),
    [
        (REFUSED_BY_BOTH, True, {400}),
        (TAKEN_BY_BOTH, False, {200}),
        (REFUSED_HERE_ALONE, True, {200, 500}),
        (REFUSED_THERE_ALONE, False, {400}),
    ],
    ids=["refused by both", "taken by both", "refused here alone", "refused there alone"],
)
def test_what_is_refused(peer: Peer, queries: list[str], here: bool, there: set[int]) -> None:
    """400 there is InvalidRequest here, naming the parameter; the differences are few and meant."""
    peer.load(numa())
    wrong = []
    for query, answer in zip(queries, peer.search(queries), strict=True):
        if answer.status not in there:
            wrong.append(f"{query!r}: the peer answers {answer.status} {answer.detail}")
        error = refusal(query)
        if (error is not None) != here:
            wrong.append(f"{query!r}: {error or 'taken'} here")
        if error is not None and (not error.field or error.field.split()[0] not in str(error)):
            wrong.append(f"{query!r}: {error} names {error.field!r}")
    assert not wrong, "\n".join(wrong)
