"""What is no flavor, port, argument or rule is refused, by name, and large numbers cost nothing."""

from __future__ import annotations

from typing import Any

import pytest

from cloudcore.errors import InvalidRequest
from cloudcore.placement import FlavorRules, PciAlias, ResourceRequest
from tests.placement.test_flavors import RULES, flavor


@pytest.mark.parametrize(
    "words",
    [
        {"hw:cpu_policy": "dedicated"},
        {"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0"},
        {"hw:cpu_policy": "dedicated", "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "1"},
        {"hw:numa_nodes": "1"},
        {"hw:mem_page_size": "2048"},
        {"resources:PCPU": str(2**31 - 1)},
    ],
    ids=lambda words: next(reversed(words)),
)
def test_so_many_processors_are_not_told_apart(words: dict[str, str]) -> None:
    many = flavor(2**31 - 1)
    with pytest.raises(InvalidRequest, match="at most 65536 processors"):
        ResourceRequest.from_flavor(many | {"extra_specs": words}, rules=RULES, on_unhonoured=print)
    assert ResourceRequest.from_flavor(many).groups[""].resources["VCPU"] == 2**31 - 1


@pytest.mark.parametrize(
    ("port", "field"),
    [
        (7, "ports"),
        ({"resource_request": {}}, "ports"),
        ({"id": "p", "resource_request": ["CUSTOM_X"]}, "ports p"),
        ({"id": "p", "resource_request": {"required": []}}, "ports p"),
        ({"id": "p", "resource_request": {"resources": {"CUSTOM_X": None}}}, "ports p CUSTOM_X"),
        ({"id": "p", "resource_request": {"resources": {"CUSTOM_X": 1}, "required": "CUSTOM_Y"}}, "ports p"),
        ({"id": "p", "resource_request": {"resources": {"CUSTOM_X": 1}, "required": [{"CUSTOM_Y"}]}}, "ports p"),
        ({"id": "p", "resource_request": {"request_groups": {"id": "q"}}}, "ports p"),
        ({"id": "p", "resource_request": {"request_groups": ["q"]}}, "ports p"),
        ({"id": "p", "resource_request": {"request_groups": [], "same_subtree": "p"}}, "ports p"),
    ],
)
def test_a_port_that_is_none_is_refused(port: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_flavor(flavor(), ports=[port])
    assert caught.value.field == field


@pytest.mark.parametrize(
    "argument",
    [
        {"ports": 5},
        {"ports": {"id": "p"}},
        {"member_of": 5},
        {"member_of": "00000000-0000-4000-8000-000000000000"},
        {"member_of": [5]},
        {"not_member_of": 5},
        {"in_tree": 5},
        {"rules": "numa"},
        {"rules": 0},
    ],
    ids=str,
)
def test_an_argument_of_another_kind_is_refused_by_name(argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_flavor(flavor(), **argument)
    assert caught.value.field == next(iter(argument))


@pytest.mark.parametrize(
    "rules",
    [
        {"judged_elsewhere": "aggregate_instance_extra_specs:*"},
        {"judged_elsewhere": 5},
        {"judged_elsewhere": ["colour", 5]},
        {"device_profiles": ["acc"]},
        {"device_profiles": {"acc": {"resources:FPGA": "1"}}},
        {"device_profiles": {"acc": "resources:FPGA"}},
        {"device_profiles": {5: []}},
        {"page_class": "CUSTOM_PAGES"},
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused_when_the_rules_are_made(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        FlavorRules(**rules)
    assert caught.value.field == next(iter(rules))


def test_rules_keep_what_they_were_given() -> None:
    group = {"resources:FPGA": "1"}
    rules = FlavorRules(device_profiles={"acc": iter([group])})
    group["resources:FPGA"] = "2"
    asked = flavor(accel__device_profile="acc")
    for _ in range(2):
        assert ResourceRequest.from_flavor(asked, rules=rules).groups["device_profile_0"].resources == {"FPGA": 1}


def test_a_class_of_pages_must_be_a_name() -> None:
    rules = FlavorRules(numa=True, page_class=lambda kib: f"pages of {kib}")
    with pytest.raises(InvalidRequest) as caught:
        ResourceRequest.from_flavor(flavor(hw__mem_page_size="2048"), rules=rules)
    assert caught.value.field == "page_class"


@pytest.mark.parametrize(
    "traits", ["HW_NIC_SRIOV,red card", ["HW_NIC_SRIOV", "red card"], {"HW_NIC_SRIOV", "CUSTOM_RED_CARD"}]
)
def test_traits_of_an_alias_are_text_or_a_collection(traits: Any) -> None:
    written = FlavorRules(aliases=[{"name": "nic", "resource_class": "CUSTOM_NIC", "traits": traits}]).aliases["nic"]
    assert written.traits == {"HW_NIC_SRIOV", "CUSTOM_RED_CARD"}
    assert PciAlias(name="nic", resource_class="CUSTOM_NIC", traits=traits) == written
