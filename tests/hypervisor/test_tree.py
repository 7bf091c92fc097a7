"""From the facts of machines of several kinds to their provider trees, rule by rule."""

from __future__ import annotations

import attrs
import os_traits
import pytest

from cloudcore.errors import HypervisorError, InvalidArgument
from cloudcore.hypervisor import (
    CurrentInventory,
    CurrentProvider,
    CurrentTree,
    DeviceRule,
    HostFacts,
    HostPolicy,
    VgpuRule,
    build_tree,
    explain,
)
from cloudcore.hypervisor.facts.documents import HostDocuments, read_documents
from cloudcore.hypervisor.facts.host import DeviceFunction, HostDevice, MdevType
from cloudcore.hypervisor.tree.building import apportion
from cloudcore.hypervisor.tree.values import OWNER_TRAIT, derived_uuid, page_class
from tests.hypervisor.machines import NAMES, load


def totals(provider) -> dict[str, int]:
    return {one.resource_class: one.total for one in provider.inventories}


def tree_totals(tree) -> dict[str, dict[str, int]]:
    prefix = f"{tree.root.name}_"
    return {one.name.removeprefix(prefix): totals(one) for one in tree}


# --- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_facts_survive_json(name):
    """A report from the field becomes a test."""
    facts = load(name)
    assert HostFacts.from_json(facts.to_json()) == facts
    assert facts.summary().count("\n") == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "facts": {}}',
        '{"version": 1, "facts": {"host_name": 3}}',
        '{"version": 1, "facts": {"host_name": "a", "cells": 7}}',
        pytest.param("[" * 200_000, id="nested deeply"),
    ],
)
def test_facts_that_cannot_be_read_are_refused(text):
    with pytest.raises(InvalidArgument):
        HostFacts.from_json(text)


def test_documents_that_are_no_xml_are_named():
    with pytest.raises(HypervisorError, match="host capabilities"):
        read_documents(HostDocuments(host_name="h", capabilities="<capabilities"))


def test_devices_and_their_parts():
    """A virtual function knows its physical one; one that carries vDPA is no plain one; mdev parents are devices."""
    devices = {device.address: device for device in load("sriov").devices}
    assert devices["0000:81:00.0"].function is DeviceFunction.PF
    assert devices["0000:02:00.0"].function is DeviceFunction.PF
    assert {devices[f"0000:81:00.{n}"].function for n in (2, 3, 4)} == {DeviceFunction.VF}
    assert devices["0000:81:00.5"].function is DeviceFunction.VDPA
    assert {devices[f"0000:81:00.{n}"].parent for n in (2, 3, 4, 5)} == {"0000:81:00.0"}
    assert (devices["0000:81:00.0"].interface, devices["0000:81:00.0"].cell) == ("ens1f0", 1)
    assert devices["0000:00:1f.0"].cell is None


def test_offline_cpus_are_not_online():
    facts = load("two_sockets")
    assert 31 in facts.cells[3].cpus
    assert 31 not in facts.online_cpus
    assert len(facts.online_cpus) == 31


# --- the shape -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numa", [True, False])
def test_every_kind_of_machine_gives_a_sound_tree(name, numa):
    """Totals above zero, capacity not below reserved, standard traits that exist, parents before children."""
    policy = HostPolicy(
        numa=numa,
        disk_pool="vg0" if name == "storage" else None,
        devices=[DeviceRule(functions={DeviceFunction.PCI})],
    )
    tree = build_tree(load(name), policy)
    known = set()
    for provider in tree:
        assert provider.parent is None or provider.parent in known
        known.add(provider.uuid)
        for one in provider.inventories:
            assert one.total > 0
            assert (one.reserved or 0) <= one.total
            assert one.because
        for trait in provider.traits:
            assert trait.startswith("CUSTOM_") or os_traits.check_traits([trait])[1] == set(), trait
            assert len(trait) <= 255
        assert provider.traits == {trait for trait, _ in provider.because}
    assert len(known) == len({provider.name for provider in tree})
    assert tree == build_tree(load(name), policy)
    assert all(provider.name in explain(tree) for provider in tree)


def test_a_host_without_numa_has_one_cell():
    tree = build_tree(load("one_socket"))
    assert tree_totals(tree) == {
        "one-socket": {"DISK_GB": 465},
        "numa0": {"VCPU": 8, "MEMORY_MB": 16384},
    }


def test_cells_are_children_with_their_cpus_and_memory():
    tree = build_tree(load("two_sockets"), HostPolicy(name="cn1"))
    cells = [provider for provider in tree if provider.kind == "numa"]
    assert [totals(cell)["VCPU"] for cell in cells] == [8, 8, 8, 7]
    assert {totals(cell)["MEMORY_MB"] for cell in cells} == {65536}
    assert all("HW_NUMA_ROOT" in cell.traits and OWNER_TRAIT in cell.traits for cell in cells)
    sockets = [{trait for trait in cell.traits if "SOCKET" in trait} for cell in cells]
    assert sockets == [{"CUSTOM_CPU_SOCKET_0"}] * 2 + [{"CUSTOM_CPU_SOCKET_1"}] * 2
    assert "HW_CPU_HYPERTHREADING" in tree.root.traits
    assert {"HW_CPU_X86_SVM", "HW_CPU_X86_AMD_SVM"} <= tree.root.traits


def test_the_flat_shape_has_it_all_on_the_root():
    tree = build_tree(load("huge_pages"), HostPolicy(numa=False))
    assert tree_totals(tree) == {
        "huge-pages": {
            "DISK_GB": 465,
            "VCPU": 8,
            "MEMORY_MB": 20480 + 16384,
            "CUSTOM_MEMORY_MB_PAGES_2M": 8192,
            "CUSTOM_MEMORY_MB_PAGES_1G": 4096 + 16384,
        }
    }


def test_pages_of_each_size_are_disjoint_and_sum_to_the_cell():
    """What is set aside as huge pages is no ordinary memory, and is given out in whole pages."""
    tree = build_tree(load("huge_pages"))
    first, second = tree["huge-pages_numa0"], tree["huge-pages_numa1"]
    assert totals(first) == {
        "VCPU": 4, "MEMORY_MB": 20480, "CUSTOM_MEMORY_MB_PAGES_2M": 8192, "CUSTOM_MEMORY_MB_PAGES_1G": 4096,
    }  # fmt: skip
    assert totals(second) == {"VCPU": 4, "MEMORY_MB": 16384, "CUSTOM_MEMORY_MB_PAGES_1G": 16384}
    for cell in (first, second):
        assert sum(total for name, total in totals(cell).items() if "MEMORY" in name) == 32768
    pages = first.inventory(page_class(1048576))
    assert (pages.min_unit, pages.step_size, pages.max_unit) == (1024, 1024, 4096)
    assert "CUSTOM_MEMORY_PAGE_SIZE_2M" in first.traits
    assert "CUSTOM_MEMORY_PAGE_SIZE_2M" not in second.traits


def test_cells_without_memory_or_cpus_leave_the_class_out():
    """Zero is no inventory; a cell that spans sockets is of none."""
    tree = build_tree(load("odd_cells"))
    assert tree_totals(tree) == {
        "odd-cells": {"DISK_GB": 465},
        "numa0": {"VCPU": 5, "MEMORY_MB": 65536},
        "numa1": {"VCPU": 4},
        "numa2": {"MEMORY_MB": 131072},
    }
    assert not any("SOCKET" in trait for trait in tree["odd-cells_numa0"].traits)


# --- CPUs ------------------------------------------------------------------------------------------------------------


def test_dedicated_cpus_alone_leave_no_shared_ones():
    tree = build_tree(load("huge_pages"), HostPolicy(dedicated_cpus=range(2, 6)))
    assert [totals(tree[f"huge-pages_numa{n}"]).get("PCPU") for n in (0, 1)] == [2, 2]
    assert all(provider.inventory("VCPU") is None for provider in tree)


def test_shared_and_dedicated_cpus():
    policy = HostPolicy(shared_cpus={0, 4}, dedicated_cpus={1, 2, 3}, reserved_cpus=1, ratios={"VCPU": 4.0})
    tree = build_tree(load("huge_pages"), policy)
    assert [totals(tree[f"huge-pages_numa{n}"])["VCPU"] for n in (0, 1)] == [1, 1]
    assert sum(tree[f"huge-pages_numa{n}"].inventory("VCPU").reserved for n in (0, 1)) == 1
    assert tree["huge-pages_numa0"].inventory("VCPU").allocation_ratio == 4.0
    assert tree["huge-pages_numa0"].inventory("PCPU").allocation_ratio == 1.0  # a dedicated CPU is one CPU


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dedicated_cpus": {31}}, "dedicated_cpus"),
        ({"shared_cpus": {99}}, "shared_cpus"),
        ({"reserved_cpus": 32}, "reserved_cpus"),
        ({"reserved_memory_mb": 10**6}, "reserved_memory_mb"),
        ({"reserved_disk_mb": 10**6}, "reserved_disk_mb"),
        ({"disk_pool": "nowhere"}, "disk_pool"),
        ({"traits": {"HW_CPU_X86_AVX"}}, "traits"),
        ({"traits": {OWNER_TRAIT}}, "traits"),
    ],
)
def test_what_the_host_has_not_is_refused_not_guessed(changes, field):
    """CPU 31 is offline, and an invalid set is an error at the start, not an empty inventory."""
    with pytest.raises(InvalidArgument) as caught:
        build_tree(load("two_sockets"), HostPolicy(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shared_cpus": {1, 2}, "dedicated_cpus": {2, 3}}, "shared_cpus"),
        ({"reserved_cpus": -1}, "reserved_cpus"),
        ({"reserved_memory_mb": True}, "reserved_memory_mb"),
        ({"ratios": {"VCPU": 0}}, "ratios"),
        ({"initial_ratios": {"vcpu": 2}}, "initial_ratios"),
        ({"initial_ratios": {"VCPU": "two"}}, "initial_ratios"),
        ({"ratios": {"VCPU": None}}, "ratios"),
        ({"ratios": {"VCPU": 10**400}}, "ratios"),
        ({"ratios": "VCPU"}, "ratios"),
        ({"ratios": {"PCPU": 2.0}}, "ratios"),  # what is given out once is refused, not left as it is without a word
        ({"ratios": {"VGPU": 2.0}}, "ratios"),
        ({"initial_ratios": {"CUSTOM_MEMORY_MB_PAGES_2M": 0.5}}, "initial_ratios"),
        ({"uuid": "cn1"}, "uuid"),
        ({"name": ""}, "name"),
        ({"traits": "CUSTOM_A"}, "traits"),
    ],
)
def test_policies_that_contradict_themselves(changes, field):
    with pytest.raises(InvalidArgument) as caught:
        HostPolicy(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vendor": "15b"}, "vendor"),
        ({"product": "0x101d"}, "product"),
        ({"vendor": 0x15B3}, "vendor"),
        ({"address": ""}, "address"),
        ({"functions": {"nope"}}, "functions"),
        ({"functions": None}, "functions"),
    ],
)
def test_a_rule_that_can_match_no_device_is_refused(changes, field):
    with pytest.raises(InvalidArgument) as caught:
        DeviceRule(**changes)
    assert caught.value.field == field


def test_hexadecimal_digits_are_taken_in_either_case():
    """As lspci, Nova's settings and people write them."""
    plain = DeviceRule(vendor="15b3", product="101d", address="0000:3b:*", functions={"pf"})
    assert DeviceRule(vendor="15B3", product="101D", address="0000:3B:*", functions="pf") == plain
    tree = build_tree(load("vgpu_before"), HostPolicy(vgpus=[VgpuRule(type="nvidia-222", device="0000:3B:*")]))
    assert [one.name for one in tree if one.kind == "vgpu"] == ["vgpu_pci_0000_3b_00_0"]


def test_reserves_are_dealt_in_proportion():
    assert apportion(10, [30, 60, 10]) == [3, 6, 1]
    assert apportion(0, [1, 2]) == [0, 0]
    assert apportion(3, [1, 1, 1, 0]) == [1, 1, 1, 0]
    with pytest.raises(InvalidArgument):
        apportion(4, [1, 2])
    tree = build_tree(load("odd_cells"), HostPolicy(reserved_memory_mb=3000))
    assert [tree[f"odd-cells_numa{n}"].inventory("MEMORY_MB").reserved for n in (0, 2)] == [1000, 2000]


# --- ratios, identifiers ---------------------------------------------------------------------------------------------


def present(tree, **changes) -> CurrentTree:
    """*tree* as if it were there, with VCPU changed by *changes*."""
    return CurrentTree(
        CurrentProvider(
            uuid=one.uuid,
            name=one.name,
            parent=one.parent,
            traits=one.traits,
            aggregates=one.aggregates,
            inventories=tuple(
                CurrentInventory(
                    resource_class=inventory.resource_class,
                    **({"total": inventory.total, "reserved": inventory.reserved or 0,
                        "allocation_ratio": inventory.allocation_ratio}
                       | (changes if inventory.resource_class == "VCPU" else {})),
                )
                for inventory in one.inventories
            ),
        )
        for one in tree
    )  # fmt: skip


def test_configured_ratios_beat_recorded_ones_beat_initial_ones():
    facts, initial = load("two_sockets"), HostPolicy(initial_ratios={"VCPU": 8.0})
    first = build_tree(facts, initial)
    assert first["two-sockets_numa0"].inventory("VCPU").allocation_ratio == 8.0
    operator = present(first, allocation_ratio=3.0)
    kept = build_tree(facts, initial, operator)["two-sockets_numa0"].inventory("VCPU")
    assert kept.allocation_ratio == 3.0
    enforced = build_tree(facts, HostPolicy(ratios={"VCPU": 2.0}), operator)["two-sockets_numa0"].inventory("VCPU")
    assert enforced.allocation_ratio == 2.0


def test_a_ratio_moves_along_with_its_inventory():
    """From the root of a flat tree to its cells."""
    facts = load("two_sockets")
    flat = present(build_tree(facts, HostPolicy(numa=False)), allocation_ratio=5.0)
    assert build_tree(facts, None, flat)["two-sockets_numa2"].inventory("VCPU").allocation_ratio == 5.0


def test_identifiers_are_those_that_exist_else_the_same_each_time():
    facts, root = load("one_socket"), "11111111-2222-4333-8444-555555555555"
    assert build_tree(facts) == build_tree(facts)
    assert build_tree(facts, HostPolicy(name="other")).root.uuid != build_tree(facts).root.uuid
    assert build_tree(facts, HostPolicy(uuid=root)).root.uuid == root
    there = CurrentTree([CurrentProvider(uuid=root, name="one-socket", parent=None)])
    assert build_tree(facts, None, there).root.uuid == root
    with pytest.raises(InvalidArgument, match="uuid"):
        build_tree(facts, HostPolicy(uuid=derived_uuid("another")), there)
    assert derived_uuid("a")[14] == "5"


# --- storage ---------------------------------------------------------------------------------------------------------


def test_several_pools_are_not_guessed_between():
    tree = build_tree(load("storage"))
    assert tree.root.inventories == ()
    assert "ceph-vms, nfs, off, vg0" in tree.warnings[0]


def test_a_local_pool_is_the_disk_of_the_root():
    tree = build_tree(load("storage"), HostPolicy(disk_pool="vg0", reserved_disk_mb=1025))
    disk = tree.root.inventory("DISK_GB")
    assert (disk.total, disk.reserved) == (1862, 2)  # reserves are rounded up to GB


@pytest.mark.parametrize("pool", ["ceph-vms", "nfs"])
def test_shared_storage_is_one_provider_for_all_hosts(pool):
    """Else every host would report the whole pool, and the sum would be a multiple of the truth."""
    trees = [build_tree(load("storage"), HostPolicy(name=name, disk_pool=pool)) for name in ("cn1", "cn2")]
    shared = [next(one for one in tree if one.kind == "shared_disk") for tree in trees]
    assert shared[0] == shared[1]
    assert "MISC_SHARES_VIA_AGGREGATE" in shared[0].traits
    assert [tree.root.inventories for tree in trees] == [(), ()]
    assert trees[0].root.uuid != trees[1].root.uuid
    assert trees[0].root.aggregates == trees[1].root.aggregates == shared[0].aggregates


def test_a_pool_that_is_off_leaves_the_record():
    policy = HostPolicy(disk_pool="off")
    assert build_tree(load("storage"), policy).root.inventories == ()
    root = build_tree(load("storage"), policy).root
    there = CurrentTree(
        [
            CurrentProvider(
                uuid=root.uuid,
                name=root.name,
                parent=None,
                inventories=(CurrentInventory(resource_class="DISK_GB", total=77, reserved=7),),
            )
        ]
    )
    kept = build_tree(load("storage"), policy, there).root.inventory("DISK_GB")
    assert (kept.total, kept.reserved) == (77, 7)


# --- devices ---------------------------------------------------------------------------------------------------------

NETWORK = DeviceRule(vendor="15b3", product="101e", physical_network="rack-a.1")


def test_no_device_is_offered_unasked():
    assert {provider.kind for provider in build_tree(load("sriov"))} == {"root", "numa"}


def test_virtual_functions_are_counted_on_their_physical_one():
    tree = build_tree(load("sriov"), HostPolicy(devices=[NETWORK]))
    nic = tree["sriov_0000:81:00.0"]
    assert totals(nic) == {"SRIOV_NET_VF": 3, "CUSTOM_VDPA_15B3_101E": 1}
    assert nic.parent == tree["sriov_numa1"].uuid
    assert {"CUSTOM_PHYSNET_RACK_A_1", "COMPUTE_MANAGED_PCI_DEVICE", OWNER_TRAIT} == nic.traits
    flat = build_tree(load("sriov"), HostPolicy(devices=[NETWORK], numa=False))
    assert flat["sriov_0000:81:00.0"].parent == flat.root.uuid


def test_a_device_is_offered_whole_or_in_parts_never_both():
    with pytest.raises(InvalidArgument, match="whole"):
        build_tree(load("sriov"), HostPolicy(devices=[DeviceRule(vendor="15b3")]))
    whole = build_tree(load("sriov"), HostPolicy(devices=[DeviceRule(vendor="15b3", functions={"pf"})]))
    assert totals(whole["sriov_0000:81:00.0"]) == {"CUSTOM_PCI_15B3_101D": 1}


def test_parts_of_one_device_are_offered_alike():
    rules = [DeviceRule(address="0000:81:00.2", resource_class="CUSTOM_FAST"), NETWORK]
    with pytest.raises(InvalidArgument, match="alike"):
        build_tree(load("sriov"), HostPolicy(devices=rules))


def test_the_first_rule_that_matches_counts():
    rules = [
        DeviceRule(address="0000:3b:*", resource_class="CUSTOM_QAT", traits={"CUSTOM_CRYPTO"}, one_time_use=True),
        DeviceRule(vendor="8086", functions={"pci"}),
    ]
    tree = build_tree(load("sriov"), HostPolicy(devices=rules))
    assert totals(tree["sriov_0000:3b:00.0"]) == {"CUSTOM_QAT": 1}
    assert {"CUSTOM_CRYPTO", "HW_PCI_ONE_TIME_USE"} <= tree["sriov_0000:3b:00.0"].traits
    assert totals(tree["sriov_0000:00:1f.0"]) == {"CUSTOM_PCI_8086_A1C1": 1}
    assert tree["sriov_0000:00:1f.0"].parent == tree.root.uuid  # nobody knows its cell


def in_use(tree, name: str, resource_class: str, used: int, **changes) -> CurrentTree:
    """*tree* as if it were there, with so much of one inventory in use."""

    def recorded(provider, one):
        here = (provider.name, one.resource_class) == (name, resource_class)
        return attrs.evolve(one, used=used, **changes) if here else one

    return CurrentTree(
        attrs.evolve(provider, inventories=tuple(recorded(provider, one) for one in provider.inventories))
        for provider in present(tree).providers
    )


def test_devices_in_use_keep_their_inventory():
    """Removed, or not offered any more: the provider stays, with what is in use and no more, and it is told."""
    facts, policy = load("sriov"), HostPolicy(devices=[NETWORK])
    used = in_use(build_tree(facts, policy), "sriov_0000:81:00.0", "SRIOV_NET_VF", 2)
    for other in (
        HostPolicy(),
        HostPolicy(devices=[DeviceRule(vendor="15b3", product="101e", resource_class="CUSTOM_A")]),
    ):
        tree = build_tree(facts, other, used)
        assert totals(tree["sriov_0000:81:00.0"])["SRIOV_NET_VF"] == 2
        assert "2 are in use" in tree.warnings[0]
    less = HostPolicy(devices=[DeviceRule(address="0000:81:00.2", physical_network="rack-a.1")])
    tree = build_tree(facts, less, used)
    assert totals(tree["sriov_0000:81:00.0"])["SRIOV_NET_VF"] == 2
    assert "2 SRIOV_NET_VF are in use, 1 devices are left" in tree.warnings[0]


def test_a_one_time_device_is_reserved_once_it_was_given_out():
    """And never offered again by us, also after it was given back."""
    facts, policy = load("sriov"), HostPolicy(devices=[DeviceRule(address="0000:3b:*", one_time_use=True)])
    first = build_tree(facts, policy)
    name = "sriov_0000:3b:00.0"
    assert first[name].inventories[0].reserved is None
    given = in_use(first, name, "CUSTOM_PCI_8086_0B60", 1)
    assert build_tree(facts, policy, given)[name].inventories[0].reserved == 1
    returned = in_use(first, name, "CUSTOM_PCI_8086_0B60", 0, reserved=1)
    assert build_tree(facts, policy, returned)[name].inventories[0].reserved == 1


def test_vgpus_count_what_exists_and_what_can_be_made():
    """Making a device does not change the total, and only the enabled type is offered."""
    policy = HostPolicy(vgpus=[VgpuRule(type="nvidia-222", traits={"CUSTOM_T4"})])
    for name in ("vgpu_before", "vgpu_after"):
        tree = build_tree(load(name), policy)
        gpus = [one for one in tree if one.kind == "vgpu"]
        assert [totals(one) for one in gpus] == [{"VGPU": 16}] * 2
        assert [one.parent for one in gpus] == [tree[f"vgpu_numa{n}"].uuid for n in (0, 1)]
        assert all("CUSTOM_T4" in one.traits for one in gpus)


def test_a_bound_on_vgpus_can_drop_a_whole_gpu():
    tree = build_tree(load("vgpu_before"), HostPolicy(vgpus=[VgpuRule(type="nvidia-222", maximum=16)]))
    assert [one.name for one in tree if one.kind == "vgpu"] == ["vgpu_pci_0000_3b_00_0"]
    tree = build_tree(load("vgpu_before"), HostPolicy(vgpus=[VgpuRule(type="nvidia-222", maximum=20)]))
    assert [totals(one)["VGPU"] for one in tree if one.kind == "vgpu"] == [16, 4]


def test_a_gpu_offers_one_type():
    with pytest.raises(InvalidArgument, match="one type"):
        build_tree(load("vgpu_before"), HostPolicy(vgpus=[VgpuRule(type="nvidia-222"), VgpuRule(type="nvidia-223")]))
    rules = [VgpuRule(type="nvidia-222", device="0000:3b:*"), VgpuRule(type="nvidia-223", device="pci_0000_84_*")]
    tree = build_tree(load("vgpu_before"), HostPolicy(vgpus=rules))
    assert [totals(one)["VGPU"] for one in tree if one.kind == "vgpu"] == [16, 8]


def card(number: int, **changes) -> HostDevice:
    """A virtual function, or the card itself (0); its mediated devices are made on the functions."""
    function = DeviceFunction.VF if number else DeviceFunction.PF
    parent = "0000:41:00.0" if number else None
    return HostDevice(
        name=f"card{number}", address=f"0000:41:00.{number}", vendor="10de", function=function, parent=parent, **changes
    )


@pytest.mark.parametrize(
    ("functions", "address", "refused"),
    [
        ({"pf"}, None, True),  # the card whole, and vGPUs of its functions
        ({"vf"}, None, True),
        ({"vf"}, "0000:41:00.2", False),  # other functions than those that are split
        ({"pci"}, None, False),
    ],
)
def test_a_gpu_is_offered_whole_or_in_parts_never_both(functions, address, refused):
    kinds = (MdevType(id="n1", available=1),)
    facts = attrs.evolve(load("one_socket"), devices=(card(0), card(1, mdev_types=kinds), card(2)))
    policy = HostPolicy(devices=[DeviceRule(functions=functions, address=address)], vgpus=[VgpuRule(type="n1")])
    if not refused:
        assert totals(build_tree(facts, policy)["one-socket_card1"]) == {"VGPU": 1}
        return
    with pytest.raises(InvalidArgument, match=r"0000:41:00\.1") as caught:
        build_tree(facts, policy)
    assert caught.value.field == "vgpus"


def test_a_gpu_with_its_own_mediated_devices_gives_no_functions_away():
    kinds = (MdevType(id="n1", available=1),)
    facts = attrs.evolve(load("one_socket"), devices=(card(0, mdev_types=kinds), card(1)))
    for functions in ({"pf"}, {"vf"}):
        with pytest.raises(InvalidArgument, match="narrow"):
            build_tree(facts, HostPolicy(devices=[DeviceRule(functions=functions)], vgpus=[VgpuRule(type="n1")]))


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("sev", {"amd_sev": ("HW_CPU_X86_AMD_SEV", 410)}),
        ("sev_es", {"amd_sev": ("HW_CPU_X86_AMD_SEV", 410), "amd_sev_es": ("HW_CPU_X86_AMD_SEV_ES", 99)}),
        ("sev_snp", {"amd_sev": ("HW_CPU_X86_AMD_SEV", 410), "amd_sev_snp": ("HW_CPU_X86_AMD_SEV_SNP", 99)}),
    ],
)
def test_memory_encryption(machine, expected):
    """SNP and ES draw on one range of identifiers: never two pools."""
    tree = build_tree(load(machine))
    found = {}
    for provider in tree:
        if provider.kind == "encryption":
            (inventory,) = provider.inventories
            (trait,) = provider.traits - {OWNER_TRAIT}
            assert inventory.max_unit == 1
            found[provider.name.removeprefix(f"{tree.root.name}_")] = (trait, inventory.total)
    assert found == expected
    bounded = build_tree(load(machine), HostPolicy(encryption_guests=15))
    assert {totals(one)["MEM_ENCRYPTION_CONTEXT"] for one in bounded if one.kind == "encryption"} == {15}
