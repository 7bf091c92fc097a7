"""Flavors where processors and memory lie in NUMA cells below a root that has the traits and the zone of the host."""

from __future__ import annotations

from typing import Any

import pytest

from cloudcore.errors import UnhonouredRequest
from cloudcore.placement import FlavorRules, PlacementTree, ResourceRequest

ZONE, OTHER_ZONE, STORAGE, RACK = (f"{n:08x}-0000-4000-8000-00000000abcd" for n in range(4))
NUMA = FlavorRules(numa=True)
OF_THE_HOST: dict[str, dict[str, str]] = {
    "a trait": {"trait:CUSTOM_GOLD": "required"},
    "a forbidden trait": {"trait:CUSTOM_LEAD": "forbidden"},
    "secure boot": {"os:secure_boot": "required"},
    "threads": {"hw:cpu_policy": "dedicated", "hw:cpu_thread_policy": "require"},
    "a trusted module": {"hw:tpm_version": "2.0"},
    "addresses": {"hw:maxphysaddr_mode": "emulate"},
    "sockets": {"hw:pci_numa_affinity_policy": "socket"},
}


def pooled_tree() -> PlacementTree:
    """Two hosts of two cells each, alike but for zone, rack and traits; the only disk is a pool of both zones."""
    tree = PlacementTree()
    everything = {
        "CUSTOM_GOLD",
        "COMPUTE_SECURITY_UEFI_SECURE_BOOT",
        "HW_CPU_HYPERTHREADING",
        "COMPUTE_SECURITY_TPM_TIS",
        "COMPUTE_SECURITY_TPM_2_0",
        "COMPUTE_SECURITY_TPM_SECRET_SECURITY_USER",
        "COMPUTE_ADDRESS_SPACE_EMULATED",
        "COMPUTE_SOCKET_PCI_NUMA_AFFINITY",
    }
    for host, traits, zone in (("able", everything, (ZONE, RACK)), ("plain", {"CUSTOM_LEAD"}, (OTHER_ZONE,))):
        tree.add(host, traits=traits, aggregates=[*zone, STORAGE])
        for cell in range(2):
            inventory = {"VCPU": 8, "PCPU": 8, "MEMORY_MB": 8192}
            tree.add(f"{host}-numa{cell}", parent=host, traits={"HW_NUMA_ROOT"}, inventory=inventory)
    pool = {"MISC_SHARES_VIA_AGGREGATE", "STORAGE_DISK_SSD"}
    tree.add("pool", inventory={"DISK_GB": 1000}, traits=pool, aggregates=[STORAGE, ZONE, OTHER_ZONE])
    return tree


def hosts_of(request: ResourceRequest, tree: PlacementTree | None = None) -> set[str]:
    """Names of the hosts that can serve *request*."""
    return {candidate.host.name for candidate in (tree or pooled_tree()).candidates(request)}


LAYOUTS = pytest.mark.parametrize("nodes", [None, "1", "2"], ids=["free", "one", "two"])
DISKS = pytest.mark.parametrize("boot_from_volume", [False, True], ids=["pool", "volume"])


def flavor(**extra_specs: str) -> dict[str, Any]:
    """A flavor as Nova's API gives it."""
    words = {key.replace("__", ":"): value for key, value in extra_specs.items()}
    return {"name": "m1", "vcpus": 4, "ram": 4096, "disk": 20, "extra_specs": words}


def laid_out(nodes: str | None, words: dict[str, str]) -> dict[str, Any]:
    """A flavor with *words*, of so many NUMA cells."""
    return flavor() | {"extra_specs": words | ({"hw:numa_nodes": nodes} if nodes else {})}


@DISKS
@LAYOUTS
@pytest.mark.parametrize("words", OF_THE_HOST.values(), ids=OF_THE_HOST)
def test_traits_of_the_host_are_found_on_the_root_above_its_cells(
    words: dict[str, str], nodes: str | None, boot_from_volume: bool
) -> None:
    request = ResourceRequest.from_flavor(laid_out(nodes, words), rules=NUMA, boot_from_volume=boot_from_volume)
    assert hosts_of(request) == {"able"}
    assert ResourceRequest.from_query(request.to_query()) == request


@DISKS
@LAYOUTS
def test_the_zone_of_a_host_with_cells_is_honoured(nodes: str | None, boot_from_volume: bool) -> None:
    zones = [ZONE, [STORAGE, ZONE]]
    asked = laid_out(nodes, {})
    request = ResourceRequest.from_flavor(asked, rules=NUMA, boot_from_volume=boot_from_volume, member_of=zones)
    assert hosts_of(request) == {"able"}
    assert ResourceRequest.from_query(request.to_query()) == request


@DISKS
def test_a_tree_is_asked_of_the_cells_and_leaves_the_shared_disk(boot_from_volume: bool) -> None:
    tree = pooled_tree()
    one = tree["plain-numa1"].uuid
    asked = flavor(hw__numa_nodes="2")
    request = ResourceRequest.from_flavor(asked, rules=NUMA, boot_from_volume=boot_from_volume, in_tree=one)
    assert hosts_of(request, tree) == {"plain"}


def test_aggregates_that_nothing_can_forbid_are_named() -> None:
    asked = flavor(hw__numa_nodes="1")
    assert hosts_of(ResourceRequest.from_flavor(asked, rules=NUMA, not_member_of=[RACK])) == {"plain"}
    with pytest.raises(UnhonouredRequest, match=f"not_member_of={RACK}") as caught:
        ResourceRequest.from_flavor(asked, rules=NUMA, boot_from_volume=True, not_member_of=[RACK])
    assert caught.value.field == "not_member_of"


def test_a_trait_stays_with_the_class_that_is_asked_for_by_name() -> None:
    tree = pooled_tree()
    for host, model in (("able", "CUSTOM_T4"), ("plain", "CUSTOM_A100")):
        tree.add(f"{host}-gpu", parent=f"{host}-numa1", inventory={"VGPU": 4}, traits={model})
    asked = flavor(resources__VGPU="1", trait__CUSTOM_A100="required", hw__numa_nodes="1")
    assert hosts_of(ResourceRequest.from_flavor(asked, rules=NUMA), tree) == {"plain"}
    asked["extra_specs"]["os:secure_boot"] = "required"  # of the host, whatever else is asked for
    assert hosts_of(ResourceRequest.from_flavor(asked, rules=NUMA), tree) == set()
    tree.set_traits("plain", {"COMPUTE_SECURITY_UEFI_SECURE_BOOT"})
    assert hosts_of(ResourceRequest.from_flavor(asked, rules=NUMA), tree) == {"plain"}


def test_a_trait_of_disks_stays_with_the_disk() -> None:
    for trait, expected in (("STORAGE_DISK_SSD", {"able", "plain"}), ("STORAGE_DISK_HDD", set())):
        asked = flavor(hw__numa_nodes="1", **{f"trait__{trait}": "required"})
        assert hosts_of(ResourceRequest.from_flavor(asked, rules=NUMA)) == expected
