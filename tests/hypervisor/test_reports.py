"""Report after report of a host that is in use, while its devices, pools and policies come and go."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import attrs
import pytest

from cloudcore.errors import InvalidProvider, ReshapeNeeded
from cloudcore.hypervisor import DeviceRule, HostFacts, HostPolicy, VgpuRule, build_tree, diff, read_current, sync
from cloudcore.hypervisor.facts.host import HostDevice
from cloudcore.hypervisor.tree.values import OWNER_TRAIT
from cloudcore.placement import PlacementTree
from tests.hypervisor.machines import load


@pytest.fixture
def tree() -> Iterator[PlacementTree]:
    with PlacementTree() as tree:
        yield tree
        tree.check()


def without(facts: HostFacts, *addresses: str) -> HostFacts:
    """The same host after these devices have gone."""

    def left(device: HostDevice) -> bool:
        return device.address not in addresses

    return attrs.evolve(facts, devices=tuple(filter(left, facts.devices)))


# --- one-time devices ------------------------------------------------------------------------------------------------

ACCELERATOR, ONCE = (
    "CUSTOM_PCI_8086_0B60",
    HostPolicy(name="cn1", devices=[DeviceRule(vendor="8086", product="0b60", one_time_use=True)]),
)


def offered(tree: PlacementTree, resources: str) -> bool:
    return next(iter(tree.candidates(f"resources={resources}")), None) is not None


@pytest.mark.parametrize("away", [None, "while it is in use", "afterwards"])
def test_a_one_time_device_is_given_out_once(tree, away):
    """Seen in use once, it is reserved; so it is when it was away for a report. Its operator can free it again."""
    facts, name, guest = load("sriov"), "cn1_0000:3b:00.0", str(uuid.uuid4())
    gone = without(facts, "0000:3b:00.0")
    sync(tree, facts, ONCE)
    assert offered(tree, f"{ACCELERATOR}:1")
    tree.allocate(guest, {name: {ACCELERATOR: 1}})
    _, change = sync(tree, gone if away == "while it is in use" else facts, ONCE)
    assert not change.refusals
    tree.release(guest)
    for report in (gone if away else facts, facts):
        _, change = sync(tree, report, ONCE)
        assert not change.refusals
        assert tree[name].inventories[ACCELERATOR].reserved == 1
        assert not offered(tree, f"{ACCELERATOR}:1")
    tree.put_inventory(name, ACCELERATOR, 1)
    sync(tree, facts, ONCE)
    assert offered(tree, f"{ACCELERATOR}:1")


def test_fewer_one_time_devices_are_reserved_than_before(tree):
    """The reserve follows the total down; above it, no inventory could be written."""
    facts = load("sriov")
    policy = HostPolicy(name="cn1", devices=[DeviceRule(product="101e", functions={"vf"}, one_time_use=True)])
    sync(tree, facts, policy)
    (name,) = (provider.name for provider in tree if "CUSTOM_PCI_15B3_101E" in provider.inventories)
    guest = str(uuid.uuid4())
    tree.allocate(guest, {name: {"CUSTOM_PCI_15B3_101E": 1}})
    sync(tree, facts, policy)
    fewer = without(facts, "0000:81:00.3")
    for taken in (True, False):
        if not taken:
            tree.release(guest)
        sync(tree, fewer, policy)
        found = tree[name].inventories["CUSTOM_PCI_15B3_101E"]
        assert (found.total, found.reserved) == (2, 2)


# --- what is in use stays where it is --------------------------------------------------------------------------------

VGPUS = HostPolicy(name="cn1", vgpus=[VgpuRule(type="nvidia-222")])


def test_a_gpu_in_use_keeps_its_guests(tree):
    """Gone, or not offered any more: no other card takes over, and no more of it is given out until it is back."""
    facts, name = load("vgpu_before"), "cn1_pci_0000_3b_00_0"
    first, *_ = (device for device in facts.devices if device.address == "0000:3b:00.0")
    sync(tree, facts, VGPUS)
    tree.allocate(str(uuid.uuid4()), {name: {"VGPU": 3}})
    for seen, policy in (
        (without(facts, first.address), VGPUS),
        (facts, attrs.evolve(VGPUS, vgpus=[VgpuRule(type="nvidia-222", device="0000:84:*")])),
        (facts, attrs.evolve(VGPUS, vgpus=[VgpuRule(type="nvidia-222", resource_class="CUSTOM_T4")])),
        (facts, attrs.evolve(VGPUS, numa=False, vgpus=[])),
    ):
        desired, change = sync(tree, seen, policy)
        assert not change.refusals
        assert tree.usage(name)["VGPU"] == tree[name].inventories["VGPU"].capacity == 3
        assert any(
            f"{name}: VGPU is not offered any more, kept because 3 are in use" in one for one in desired.warnings
        )
        assert not sync(tree, seen, policy)[1]
    unaware = diff(read_current(tree, "cn1"), build_tree(without(facts, first.address), VGPUS))
    assert (unaware.moves, [refusal.name for refusal in unaware.refusals]) == ((), [name])
    sync(tree, facts, VGPUS)
    assert tree[name].inventories["VGPU"].total == 16


def test_encrypted_guests_are_not_booked_as_another_kind(tree):
    """After an upgrade the kernel offers SEV-SNP instead of SEV-ES; the old provider goes with its guest."""
    policy, guest = HostPolicy(name="cn1"), str(uuid.uuid4())
    sync(tree, load("sev_es"), policy)
    tree.allocate(guest, {"cn1_amd_sev_es": {"MEM_ENCRYPTION_CONTEXT": 1}})
    sync(tree, load("sev_snp"), policy)
    assert tree.usage("cn1_amd_sev_es") == {"MEM_ENCRYPTION_CONTEXT": 1}
    assert tree["cn1_amd_sev_es"].inventories["MEM_ENCRYPTION_CONTEXT"].capacity == 1
    assert tree.usage("cn1_amd_sev_snp") == {"MEM_ENCRYPTION_CONTEXT": 0}
    tree.release(guest)
    sync(tree, load("sev_snp"), policy)
    assert "cn1_amd_sev_es" not in tree


@pytest.mark.parametrize("left", [8, 9])
def test_cpus_of_a_cell_are_not_moved_to_another(tree, left):
    """Whether a cell keeps one of its shared CPUs or none: what guests have of it is neither taken nor moved."""
    facts = load("two_sockets")
    cells = [sorted(cell.cpus & facts.online_cpus) for cell in facts.cells]
    sync(tree, facts, HostPolicy(name="cn1"))
    tree.allocate(str(uuid.uuid4()), {"cn1_numa1": {"VCPU": 2, "MEMORY_MB": 512}})
    _, change = sync(tree, facts, HostPolicy(name="cn1", shared_cpus=[*cells[0], *cells[1]][:left]))
    (refusal,) = change.refusals
    assert (refusal.name, refusal.resource_class, refusal.used) == ("cn1_numa1", "VCPU", 2)
    assert tree["cn1_numa1"].inventories["VCPU"].total == 8
    with pytest.raises(ReshapeNeeded) as caught:  # to dedicated CPUs of the same cell they may be moved
        sync(tree, facts, HostPolicy(name="cn1", shared_cpus=cells[0], dedicated_cpus=[*cells[1], *cells[2]]))
    (move,) = caught.value.moves
    assert move.targets == ((tree["cn1_numa1"].uuid, "PCPU", 8),)


# --- shared storage --------------------------------------------------------------------------------------------------

CEPH = HostPolicy(name="cn1", disk_pool="ceph-vms")


def off(facts: HostFacts) -> HostFacts:
    """The same host while libvirt has none of its pools active."""
    pools = (attrs.evolve(pool, active=False, capacity=0, available=0) for pool in facts.storage_pools)
    return attrs.evolve(facts, storage_pools=tuple(pools))


def test_a_shared_pool_that_is_off_for_a_report_changes_nothing(tree):
    """Size, reserve and the host's place in its aggregate stay; a host that never saw the pool on does not join."""
    facts = load("storage")
    sync(tree, facts, CEPH)
    before = tree.as_placement()
    desired, change = sync(tree, off(facts), CEPH)
    assert not change
    assert "storage pool ceph-vms is not active; DISK_GB left as it is" in desired.warnings
    assert tree.as_placement() == before
    sync(tree, off(facts), attrs.evolve(CEPH, name="cn2"))
    found = tree.candidates("resources=VCPU:1,DISK_GB:10")
    assert {candidate.root for candidate in found} == {tree["cn1"].uuid}


def test_a_pool_that_is_off_leaves_the_disk_of_an_older_shape(tree):
    """A host whose shared pool is still its own disk, as Nova reports it."""
    tree.add("cn1", inventory={"DISK_GB": 500})
    sync(tree, off(load("storage")), CEPH)
    assert tree["cn1"].inventories["DISK_GB"].total == 500


def test_an_operator_may_group_storage_with_hosts(tree):
    """An aggregate of the operator's is not taken for the storage's own, also when the host changes its pool."""
    sync(tree, load("storage"), CEPH)
    (storage,) = (root.name for root in tree.roots() if root.name != "cn1")
    zone = str(uuid.uuid4())
    for name in ("cn1", storage):
        tree.set_aggregates(name, tree[name].aggregates | {zone})
    assert not sync(tree, load("storage"), CEPH)[1]
    sync(tree, load("storage"), attrs.evolve(CEPH, disk_pool="vg0"))
    assert tree["cn1"].aggregates == {zone}


# --- providers of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["numa0", "0000:3b:00.0", "pci_0000_3b_00_0", "amd_sev"])
def test_what_others_made_under_a_name_of_ours_is_not_taken_over(tree, taken):
    """Such as Nova's own reports. Nothing is done, until an operator marks it as ours."""
    machine = {"0000:3b:00.0": "sriov", "pci_0000_3b_00_0": "vgpu_before"}.get(taken, "sev")
    policy = attrs.evolve(ONCE, vgpus=VGPUS.vgpus)
    tree.add("cn1")
    tree.add(f"cn1_{taken}", parent="cn1", inventory={"CUSTOM_FPGA": 4}, traits={"OWNER_NOVA"})
    before = tree.as_placement()
    with pytest.raises(InvalidProvider, match=f"cn1_{taken} .*CUSTOM_OWNER_CLOUDCORE"):
        sync(tree, load(machine), policy)
    assert tree.as_placement() == before
    tree.set_traits(f"cn1_{taken}", {"OWNER_NOVA", OWNER_TRAIT})
    sync(tree, load(machine), policy)
    assert "CUSTOM_FPGA" not in tree[f"cn1_{taken}"].inventories
    assert "OWNER_NOVA" in tree[f"cn1_{taken}"].traits


def test_the_mark_of_our_providers_is_put_back(tree):
    """A client that replaced the traits does not make them somebody else's."""
    sync(tree, load("sriov"), ONCE)
    tree.set_traits("cn1_0000:3b:00.0", {"CUSTOM_MINE"})
    sync(tree, load("sriov"), ONCE)
    assert {OWNER_TRAIT, "CUSTOM_MINE"} <= tree["cn1_0000:3b:00.0"].traits


def test_a_trait_that_is_listed_no_more_stays(tree):
    """As with Nova's provider files: nobody knows whether the operator wants it still."""
    sync(tree, load("one_socket"), HostPolicy(name="cn1", traits={"CUSTOM_SSD"}))
    sync(tree, load("one_socket"), HostPolicy(name="cn1"))
    assert "CUSTOM_SSD" in tree["cn1"].traits
