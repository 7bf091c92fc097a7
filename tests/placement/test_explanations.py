"""Why not: each refusal that the search reports is true and is the first one, and the counts add up."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest
from hypothesis import given

from cloudcore.errors import InvalidRequest, NoValidHost
from cloudcore.placement import PlacementTree, Rejection, SearchReport
from tests.placement import oracle, ours
from tests.placement.test_scenarios_worked import numa, pooled
from tests.placement.worlds import Provider, Request, World, cases

OF_A_GROUP = {
    "in_tree",
    "no_inventory",
    "min_unit",
    "max_unit",
    "step_size",
    "capacity",
    "trait",
    "forbidden_trait",
    "aggregate",
    "forbidden_aggregate",
}
TOGETHER = {
    "traits_together": "traits",
    "capacity_together": "capacity",
    "same_subtree": "same_subtree",
    "group_policy": "group_policy",
}


def step(rejection: Rejection) -> str:
    """The condition, as brute force names it."""
    if rejection.reason == "root_trait":
        return "root"
    if rejection.reason == "trait" and rejection.suffix == "":
        return "traits"  # of the group that may be spread, a trait that nobody usable has
    return TOGETHER.get(rejection.reason) or "group"


def report_of(tree: PlacementTree, request: Request) -> SearchReport:
    return tree.candidates(request.query()).report()


@hypothesis.settings(max_examples=max(300, hypothesis.settings().max_examples))
@given(cases())
def test_each_host_is_refused_by_what_refuses_it_first(case: tuple[World, Request]) -> None:
    """A host without a candidate has rejections, the first is what brute force finds; a host with one has none."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    report = report_of(ours.build(world), request)
    first: Counter[str] = Counter()
    by_host: dict[str, list[Rejection]] = {}
    for rejection in report:
        by_host.setdefault(rejection.root, []).append(rejection)
    for root in world.roots:
        found = report.of_host(root.uuid)
        assert list(found) == by_host.get(root.uuid, [])
        refused_by = oracle.refusal(world, request, root)
        assert (step(found[0]) if found else None) == refused_by, f"{root.name}: {found} for {request.query()}"
        first.update(rejection.label for rejection in found[:1])
        for rejection in found:
            assert rejection.root == root.uuid
            assert rejection.host == root.name
            assert str(rejection).startswith(root.name)
            check_facts(world, request, root, rejection)
    assert report.hosts == len(world.roots)
    assert report.fits == report.hosts - len(by_host)
    assert report.counts == dict(first)
    assert sum(report.counts.values()) + report.fits == report.hosts
    assert str(report.hosts) in report.summary() or not report.hosts


def check_facts(world: World, request: Request, root: Provider, rejection: Rejection) -> None:
    """What a rejection says of a provider is so, and nobody else could have helped."""
    if rejection.reason not in OF_A_GROUP:
        return
    group = request.groups[rejection.suffix or ""]
    if rejection.suffix:
        assert not oracle.options(world, root, rejection.suffix, group)
    elif rejection.resource_class:
        amount = group.resources[rejection.resource_class]
        assert not oracle.givers(world, root, group, rejection.resource_class, amount)
    elif rejection.reason != "trait":
        assert not all(oracle.givers(world, root, group, *item) for item in group.resources.items())
    if rejection.provider is not None:
        assert world.by_uuid[rejection.provider] in oracle.reachable(world, root)
        assert rejection.provider_name == world.by_uuid[rejection.provider].name
    if rejection.resource_class:
        check_amounts(world, group.resources[rejection.resource_class], rejection)


def check_amounts(world: World, asked: int, rejection: Rejection) -> None:
    """The numbers are those of the provider that is named, and they do refuse."""
    assert rejection.asked == asked
    assert rejection.provider is not None
    stock = world.by_uuid[rejection.provider].stock.get(rejection.resource_class or "")
    if rejection.reason == "no_inventory":
        assert stock is None
        return
    assert stock is not None
    capacity = int((stock.total - stock.reserved) * stock.allocation_ratio)
    assert (rejection.used, rejection.reserved, rejection.capacity) == (stock.used, stock.reserved, capacity)
    if rejection.reason == "capacity":
        assert stock.used + asked > capacity
        assert rejection.missing == stock.used + asked - capacity
        assert str(rejection.missing) in str(rejection)
    else:
        assert rejection.bound == getattr(stock, rejection.reason)
        holds = {
            "min_unit": stock.min_unit <= asked,
            "max_unit": asked <= stock.max_unit,
            "step_size": asked % stock.step_size == 0,
        }
        assert not holds[rejection.reason]


@given(cases())
def test_nearest_misses_would_fit_with_that_much_more(case: tuple[World, Request]) -> None:
    """A near miss lacks only units of one class: a provider with so many more total units mends that group."""
    world, request = case
    hypothesis.assume(oracle.cost(world, request) <= 500)
    tree = ours.build(world)
    near = report_of(tree, request).nearest(3)
    for rejection in near:
        assert rejection.reason == "capacity"
        root = world.by_uuid[rejection.root]
        assert len(report_of(tree, request).of_host(root.uuid)) == 1
        assert rejection.missing is not None
        assert rejection.missing > 0
    shares = [(rejection.missing or 0) / (rejection.asked or 1) for rejection in near]
    assert shares == sorted(shares)


def test_refusal_is_explained_in_words_and_numbers() -> None:
    tree = ours.build(numa())
    search = tree.candidates("resources=VCPU:10,MEMORY_MB:1")
    with pytest.raises(NoValidHost) as caught:
        search.first()
    report = caught.value.report
    (rejection,) = report.of_host("cn1")
    assert (rejection.reason, rejection.asked, rejection.used, rejection.capacity) == ("capacity", 10, 0, 8)
    assert rejection.missing == 2
    assert "cn1 lacks 2 VCPU" in str(caught.value)


def test_reasons_are_counted_over_all_hosts() -> None:
    report = ours.build(pooled()).candidates("resources=VCPU:9,DISK_GB:5").report()
    assert (report.hosts, report.fits) == (3, 0)
    assert report.counts == {"capacity VCPU": 2, "no_inventory VCPU": 1}
    assert [rejection.host for rejection in report.nearest(5)] == ["h1", "h2"]


def test_a_misspelt_class_is_guessed():
    """Only where no provider has it, and the guess is near."""
    tree = PlacementTree()
    tree.add("cn1", inventory={"VCPU": 8, "MEMORY_MB": 1024, "CUSTOM_FPGA": 1})
    tree.add("cn2", inventory={"VCPU": 8})

    def told(query):
        return tree.candidates(query).report().summary()

    with pytest.raises(InvalidRequest, match=r"MEMORY_GB .*: did you mean MEMORY_MB\?"):
        told("resources=MEMORY_GB:8")  # where the standard names are known
    with pytest.raises(InvalidRequest, match=r"did you mean HW_NUMA_ROOT\?"):
        told("resources=VCPU:8&required=HW_NUMA_ROT")
    assert told("resources1=CUSTOM_FGPA:1").endswith("no provider has CUSTOM_FGPA: did you mean CUSTOM_FPGA?")
    assert told("resources=CUSTOM_ELSE:1").endswith("no provider has CUSTOM_ELSE")
    assert "no provider" not in told("resources=MEMORY_MB:8")
