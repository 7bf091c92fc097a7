"""Filters and weighers of Nova's schedulers that are callables here."""

from __future__ import annotations

import random
import subprocess

import pytest

from bench.harness import HERE, Peer, peer_env
from cloudcore.errors import InvalidRequest
from cloudcore.placement import PlacementTree, ResourceRequest
from cloudcore.placement.hosts import (
    HostView,
    aggregate_extra_specs,
    aggregate_flavors,
    aggregate_image_properties,
    below,
    dot_product,
    few_devices,
    has_metadata,
    in_zone,
    isolated_hosts,
    match_extra_spec,
    metrics,
    packed,
    prefer_cell,
    tenant_aggregates,
    valued,
    weigh,
)
from cloudcore.placement.hosts.host_columns import HostTable

SSD, PLAIN, BLUE = "aggregate-ssd", "aggregate-plain", "aggregate-blue"
METADATA = {
    SSD: {"ssd": "true", "cores": "64", "availability_zone": "east", "instance_type": "m1.large, m1.small"},
    PLAIN: {"ssd": "false", "os_distro": "debian,ubuntu", "max_instances_per_host": "3"},
    BLUE: {"filter_tenant_id": "blue", "filter_tenant_id2": "green, red"},
}


def host(name: str = "h", *aggregates: str, **fields: object) -> HostView:
    return HostView(root=f"root-{name}", name=name, cell="c", aggregates=frozenset(aggregates), **fields)


def test_operators_of_extra_specs_are_novas() -> None:
    try:
        python = peer_env("nova")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no environment with nova can be made: {error.stderr}")
    rng = random.Random(5)
    values = ["4", "4.0", "10", "x", "abc", "a", "", "true", "<in>"]
    signs = ["=", "==", "!=", ">=", "<=", "s==", "s!=", "s<", "s<=", "s>", "s>=", "<in>", "<all-in>", "<or>", ""]
    pairs = []
    for _ in range(3000):
        operands = [rng.choice(values) for _ in range(rng.choice([0, 1, 1, 2]))]
        sign = rng.choice(signs)
        requirement = " <or> ".join(operands) if sign == "<or>" else " ".join(operands)
        pairs.append((rng.choice(values), f"{sign} {requirement}".strip() if sign else requirement))
    with Peer(python, HERE / "peer_nova_flavors.py") as nova:
        theirs = nova.call("matches", pairs=pairs)()
    decided = [(pair, answer) for pair, answer in zip(pairs, theirs, strict=True) if answer is not None]
    assert len(decided) > 2000
    for (value, requirement), answer in decided:
        assert match_extra_spec(value, requirement) == answer, (value, requirement)


def test_extra_specs_against_aggregates() -> None:
    refuse = aggregate_extra_specs(
        {"aggregate_instance_extra_specs:ssd": "true", "cores": ">= 32", "hw:x": "1"}, METADATA
    )
    assert refuse(host("a", SSD)) is None
    assert refuse(host("b", SSD, PLAIN)) is None
    assert "ssd false, not true" in str(refuse(host("c", PLAIN)))
    assert "nowhere" in str(refuse(host("d")))
    assert aggregate_extra_specs({}, METADATA)(host("d")) is None


def test_zones_tenants_flavors_and_images() -> None:
    assert in_zone("east", METADATA)(host("a", SSD)) is None
    assert "east" in str(in_zone("nova", METADATA)(host("a", SSD)))
    assert in_zone("nova", METADATA)(host("b")) is None
    assert in_zone("nova", METADATA, default=None)(host("b")) is not None
    assert [tenant_aggregates(p, METADATA)(host("a", BLUE)) is None for p in ("blue", "green", "red", "x")] == [
        True,
        True,
        True,
        False,
    ]
    assert tenant_aggregates("x", METADATA)(host("a", SSD)) is None
    assert aggregate_flavors("m1.small", METADATA)(host("a", SSD)) is None
    assert "m1.large" in str(aggregate_flavors("m1.tiny", METADATA)(host("a", SSD)))
    assert aggregate_flavors("m1.tiny", METADATA)(host("a", PLAIN)) is None
    assert aggregate_image_properties({"os_distro": "debian"}, METADATA)(host("a", PLAIN)) is None
    assert "ubuntu" in str(aggregate_image_properties({"os_distro": "arch"}, METADATA)(host("a", PLAIN)))
    assert aggregate_image_properties({"os_type": "linux"}, METADATA)(host("a", PLAIN)) is None


def test_numbers_metrics_and_isolated_hosts() -> None:
    busy = host("a", PLAIN, metadata={"num_instances": 3})
    assert below("num_instances", 4)(busy) is None
    assert "at most 2" in str(below("num_instances", 4, METADATA, "max_instances_per_host")(busy))
    assert below("num_instances", 1)(host("b")) is None
    with pytest.raises(InvalidRequest):
        below("num_instances", -1)
    assert has_metadata(["num_instances"])(busy) is None
    assert "load" in str(has_metadata(["load"])(busy))
    cases = [(isolated, restrict, name) for isolated in (True, False) for restrict in (True, False) for name in "ab"]
    passed = [isolated_hosts({"a"}, image_isolated=i, restrict=r)(host(n)) is None for i, r, n in cases]
    assert passed == [True, False, True, False, False, True, True, True]


def test_weighers_by_metadata_scale_like_the_others() -> None:
    hosts = [host(str(n), metadata={"failed_builds": n, "load": n * 2.0}) for n in range(3)]
    assert weigh(hosts, [(-1.0, valued("failed_builds"))]) == [0.0, -0.5, -1.0]
    assert weigh(hosts, [(1.0, metrics({"load": -1.0}))]) == [1.0, 0.5, 0.0]
    assert metrics({"none": 1.0}, unavailable=-7.0)(hosts[0]) == -7.0
    assert metrics({"none": 0.0})(hosts[0]) == 0.0
    assert [prefer_cell(cell)(hosts[0]) for cell in ("c", "d")] == [1.0, -1.0]
    free = host("x", capacity={"PGPU": 4, "VF": 8}, used={"PGPU": 1})
    assert few_devices(["PGPU", "VF", "NONE"])(free) == -11.0


def test_weighers_of_many_hosts_at_once_say_what_they_say_of_one() -> None:
    rng = random.Random(3)
    tree = PlacementTree()
    for number in range(60):
        inventory = {name: rng.randrange(1, 50) for name in ("VCPU", "MEMORY_MB", "PGPU") if rng.random() < 0.8}
        root = tree.add(f"h{number}", inventory=inventory)
        tree.set_usage(root, {name: rng.randrange(total + 1) for name, total in inventory.items()})
    request = ResourceRequest({"": {"VCPU": 3, "MEMORY_MB": 8}, "1": {"VCPU": 2}})
    table = HostTable(lambda _: "c", lambda _: None)
    for weigher in (dot_product(request), few_devices(["PGPU", "VGPU"])):
        cells = list(table.of(tree.matcher(request).columns))
        assert sum(hosts.size for hosts in cells) == 60
        for hosts in cells:
            over = weigher.over(hosts)
            for number in range(hosts.size):
                view = hosts.view(number, "c", None, lambda _: {})
                assert over[number] == pytest.approx(weigher(view))


def filled(weigher_of, seed: int) -> int:
    """How many of 120 hosts of three shapes are in use after 450 instances of six flavors."""
    rng = random.Random(seed)
    shapes = [(64, 256), (96, 256), (48, 384)]
    flavors = [(1, 2), (2, 16), (4, 8), (4, 32), (8, 16), (16, 32)]
    capacity = [dict(zip(("VCPU", "MEMORY_MB"), rng.choice(shapes), strict=True)) for _ in range(120)]
    used = [{"VCPU": 0, "MEMORY_MB": 0} for _ in capacity]
    for _ in range(450):
        cores, memory = rng.choice(flavors)
        weigher = weigher_of(ResourceRequest({"": {"VCPU": cores, "MEMORY_MB": memory}}))
        fits = [
            n
            for n, (have, taken) in enumerate(zip(capacity, used, strict=True))
            if taken["VCPU"] + cores <= have["VCPU"] and taken["MEMORY_MB"] + memory <= have["MEMORY_MB"]
        ]
        best = max(fits, key=lambda n: weigher(host(str(n), capacity=capacity[n], used=used[n])))
        used[best]["VCPU"] += cores
        used[best]["MEMORY_MB"] += memory
    return sum(1 for taken in used if taken["VCPU"])


def test_the_dot_product_packs_tighter_than_sums_of_shares() -> None:
    by_product = [filled(dot_product, seed) for seed in range(4)]
    by_sum = [filled(lambda _: packed(), seed) for seed in range(4)]
    assert sum(by_product) < sum(by_sum), (by_product, by_sum)
    assert all(one <= other for one, other in zip(by_product, by_sum, strict=True)), (by_product, by_sum)
