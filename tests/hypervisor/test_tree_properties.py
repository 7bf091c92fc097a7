"""What holds for the tree of any host under any policy, and for getting there from anywhere."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from cloudcore.errors import ReshapeFailed
from cloudcore.hypervisor import (
    CurrentInventory,
    CurrentProvider,
    CurrentTree,
    DeviceRule,
    HostFacts,
    HostPolicy,
    VgpuRule,
    build_tree,
    diff,
    plan_reshape,
)
from cloudcore.hypervisor.facts.host import (
    CpuFacts,
    DeviceFunction,
    DomainFacts,
    EncryptionFacts,
    HostDevice,
    MdevType,
    MediatedDevice,
    NumaCell,
    PagePool,
    StoragePool,
)
from cloudcore.hypervisor.tree.comparison import applied
from cloudcore.hypervisor.tree.values import OWNER_TRAIT, derived_uuid


@st.composite
def hosts(draw: st.DrawFn) -> HostFacts:
    cells, cpu = [], 0
    for number in range(draw(st.integers(1, 4))):
        cpus = frozenset(range(cpu, cpu + draw(st.integers(0, 6))))
        cpu += len(cpus)
        memory = draw(st.integers(0, 64)) * 1024 * 1024
        huge = [PagePool(size=size, count=draw(st.integers(0, 3))) for size in (2048, 1048576)]
        cells.append(
            NumaCell(
                id=number,
                memory=memory,
                cpus=cpus,
                sockets=frozenset(draw(st.sets(st.integers(0, 1)))),
                pages=(PagePool(size=4, count=memory // 4), *huge),
            )
        )
    every = frozenset(range(cpu))
    online = frozenset(draw(st.sets(st.sampled_from(sorted(every))))) if every else every
    devices, mediated = draw(device_sets(len(cells)))
    pools = draw(
        st.lists(
            st.builds(
                StoragePool,
                name=st.sampled_from(["a", "b"]),
                type=st.just("dir"),
                capacity=st.integers(0, 2**42),
                available=st.just(0),
                active=st.booleans(),
                identity=st.sampled_from([None, "rbd:m1/vms"]),
            ),
            max_size=2,
            unique_by=lambda pool: pool.name,
        )
    )
    return HostFacts(
        host_name="cn",
        architecture="x86_64",
        online_cpus=online,
        cells=tuple(cells),
        cpu=CpuFacts(features=frozenset(draw(st.sets(st.sampled_from(["avx", "vmx", "svm", "unknown"]))))),
        domain=DomainFacts(type="kvm", encryption=EncryptionFacts(sev_guests=draw(st.integers(0, 3)))),
        devices=devices,
        mediated_devices=mediated,
        storage_pools=tuple(pools),
    )


@st.composite
def device_sets(draw: st.DrawFn, cells: int) -> tuple[tuple[HostDevice, ...], tuple[MediatedDevice, ...]]:
    node = st.one_of(st.none(), st.integers(0, cells))  # sometimes a cell that does not exist
    devices = []
    for bus in range(draw(st.integers(0, 3))):
        address, parts, cell = f"0000:{bus:02x}:00.0", draw(st.integers(0, 3)), draw(node)
        function = DeviceFunction.PF if parts else DeviceFunction.PCI
        devices.append(
            HostDevice(name=f"pci{bus}", address=address, vendor="15b3", product="101d", function=function, cell=cell)
        )
        devices += [
            HostDevice(name=f"pci{bus}v{part}", address=f"0000:{bus:02x}:00.{part + 1}", vendor="15b3", product="101e",
                       function=DeviceFunction.VF, parent=address, cell=cell)
            for part in range(parts)
        ]  # fmt: skip
    mediated = []
    for gpu in range(draw(st.integers(0, 2))):
        name = f"gpu{gpu}"
        kinds = (MdevType(id="n1", available=draw(st.integers(0, 4))),)
        devices.append(
            HostDevice(
                name=name, address=f"0000:8{gpu}:00.0", vendor="10de", product="1eb8", cell=draw(node), mdev_types=kinds
            )
        )
        mediated += [MediatedDevice(name=f"m{gpu}{n}", type="n1", parent=name) for n in range(draw(st.integers(0, 2)))]
    return tuple(devices), tuple(mediated)


@st.composite
def policies(draw: st.DrawFn, facts: HostFacts) -> HostPolicy:
    """Policies that suit the host."""
    online = sorted(facts.online_cpus)
    dedicated = frozenset(draw(st.sets(st.sampled_from(online)))) if online else frozenset()
    rest = [cpu for cpu in online if cpu not in dedicated]
    shared = draw(st.one_of(st.none(), st.sets(st.sampled_from(rest)))) if rest else None
    number = len(shared) if shared is not None else 0 if dedicated else len(online)
    rules = [DeviceRule(vendor="15b3", functions={draw(st.sampled_from(["vf", "pf"])), "pci"},
                        physical_network=draw(st.sampled_from([None, "net"])))]  # fmt: skip
    return HostPolicy(
        name="cn",
        numa=draw(st.booleans()),
        shared_cpus=shared,
        dedicated_cpus=dedicated,
        reserved_cpus=draw(st.integers(0, number)),
        ratios=draw(st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB"]), st.sampled_from([0.5, 1.0, 4.0]))),
        initial_ratios={"VCPU": 2.0},
        disk_pool=draw(st.sampled_from([None, *[pool.name for pool in facts.storage_pools]])),
        devices=draw(st.sampled_from([[], rules])),
        vgpus=draw(st.sampled_from([[], [VgpuRule(type="n1", maximum=draw(st.one_of(st.none(), st.integers(0, 5))))]])),
        traits=draw(st.sampled_from([set(), {"CUSTOM_RACK"}])),
    )


@st.composite
def situations(draw: st.DrawFn):
    """A host, and two policies that it may have one after the other."""
    facts = draw(hosts())
    return facts, draw(policies(facts)), draw(policies(facts))


FOREIGN = CurrentProvider(
    uuid=derived_uuid("neutron"),
    name="cn:agent",
    parent=None,  # replaced by the root's
    inventories=(CurrentInventory(resource_class="NET_BW_EGR_KILOBIT_PER_SEC", total=1000, used=10),),
    traits=frozenset({"CUSTOM_VNIC"}),
)


def with_foreign_parts(current: CurrentTree) -> CurrentTree:
    """What others hang into the tree: a provider below the root, and classes, traits and aggregates on the root."""
    root = next(one for one in current.providers if one.name == "cn")
    licences = CurrentInventory(resource_class="CUSTOM_LICENCES", total=5)
    changed = attrs.evolve(
        root,
        inventories=(*root.inventories, licences),
        traits=root.traits | {"CUSTOM_GOLD", "COMPUTE_STATUS_DISABLED"},
        aggregates=root.aggregates | {derived_uuid("rack")},
    )
    others = [one for one in current.providers if one is not root]
    return CurrentTree([changed, *others, attrs.evolve(FOREIGN, parent=root.uuid)])


@given(situations())
def test_no_total_is_zero_and_nothing_is_counted_twice(situation):
    """CPUs and memory offered are those of the host, whatever the shape."""
    facts, policy, _ = situation
    tree = build_tree(facts, policy)
    totals: dict[str, int] = {}
    for provider in tree:
        assert len({one.resource_class for one in provider.inventories}) == len(provider.inventories)
        for one in provider.inventories:
            assert one.total > 0
            assert 0 <= (one.reserved or 0) <= one.total
            totals[one.resource_class] = totals.get(one.resource_class, 0) + one.total
    shared = (
        policy.shared_cpus
        if policy.shared_cpus is not None
        else frozenset()
        if policy.dedicated_cpus
        else facts.online_cpus
    )
    assert totals.get("VCPU", 0) == len(shared)
    assert totals.get("PCPU", 0) == len(policy.dedicated_cpus)
    assert (
        sum(one.reserved or 0 for provider in tree for one in provider.inventories if one.resource_class == "VCPU")
        == policy.reserved_cpus
    )
    for cell in facts.cells:
        huge = sum(pool.size * pool.count // 1024 for pool in cell.huge_pages)
        if policy.numa and huge <= cell.memory // 1024:
            found = [one for one in tree if one.name == f"cn_numa{cell.id}"]
            pages = sum(
                one.total for provider in found for one in provider.inventories if "MEMORY" in one.resource_class
            )
            assert pages == cell.memory // 1024
    mdevs = sum(kind.available for device in facts.devices for kind in device.mdev_types) + len(facts.mediated_devices)
    assert totals.get("VGPU", 0) <= mdevs
    assert len({one.name for one in tree}) == len({one.uuid for one in tree}) == len(tree.providers)


@given(situations())
def test_a_difference_applied_leaves_no_difference(situation):
    """From nothing, and from the tree of another policy, with foreign parts in it: applied twice changes nothing."""
    facts, first, second = situation
    tree = build_tree(facts, first)
    current = applied(CurrentTree(), diff(CurrentTree(), tree))
    assert not diff(current, build_tree(facts, first, current))
    current = with_foreign_parts(current)
    assert not diff(current, build_tree(facts, first, current))
    change = diff(current, build_tree(facts, second, current))
    assert not change.moves
    after = applied(current, change)
    again = diff(after, build_tree(facts, second, after))
    assert not again.edits, [edit.told for edit in again.edits]


@given(situations())
def test_what_others_own_survives(situation):
    """Providers, classes, traits and aggregates that are not ours are as before, after any change of policy."""
    facts, first, second = situation
    current = with_foreign_parts(applied(CurrentTree(), diff(CurrentTree(), build_tree(facts, first))))
    after = applied(current, diff(current, build_tree(facts, second, current)))
    root = after.named("cn")
    assert after.named("cn:agent") == current.named("cn:agent")
    assert root.inventory("CUSTOM_LICENCES") == current.named("cn").inventory("CUSTOM_LICENCES")
    assert {"CUSTOM_GOLD", "COMPUTE_STATUS_DISABLED"} <= root.traits
    assert derived_uuid("rack") in root.aggregates


@given(situations())
def test_an_operators_ratio_survives(situation):
    """Unless the policy enforces another."""
    facts, first, _ = situation
    current = applied(CurrentTree(), diff(CurrentTree(), build_tree(facts, first)))
    edited = CurrentTree(
        attrs.evolve(
            one,
            inventories=tuple(
                attrs.evolve(i, allocation_ratio=7.0) if i.resource_class in {"VCPU", "DISK_GB"} else i
                for i in one.inventories
            ),
        )
        for one in current.providers
    )
    tree = build_tree(facts, first, edited)
    enforced = dict(first.ratios)
    for provider in tree:
        for one in provider.inventories:
            if one.resource_class in {"VCPU", "DISK_GB"}:
                assert one.allocation_ratio == enforced.get(one.resource_class, 7.0)


@st.composite
def used_hosts(draw: st.DrawFn):
    """A host in use under one policy, its consumers, and the policy that it gets next."""
    facts, first, second = draw(situations())
    current = applied(CurrentTree(), diff(CurrentTree(), build_tree(facts, first)))
    allocations: dict[str, dict[str, dict[str, int]]] = {}
    used: dict[tuple[str, str], int] = {}
    for number in range(draw(st.integers(0, 4))):
        for provider in current.providers:
            for one in provider.inventories:
                free = int((one.total - one.reserved) * one.allocation_ratio) - used.get(
                    (provider.uuid, one.resource_class), 0
                )
                steps = draw(st.integers(0, 3))
                amount = steps * one.step_size
                if 0 < amount <= min(free, one.max_unit):
                    allocations.setdefault(f"consumer{number}", {}).setdefault(provider.uuid, {})[
                        one.resource_class
                    ] = amount
                    used[provider.uuid, one.resource_class] = used.get((provider.uuid, one.resource_class), 0) + amount
    current = CurrentTree(
        attrs.evolve(
            one,
            inventories=tuple(attrs.evolve(i, used=used.get((one.uuid, i.resource_class), 0)) for i in one.inventories),
        )
        for one in current.providers
    )
    return facts, second, current, allocations


def held(allocations) -> dict[tuple[str, str], int]:
    """(consumer, class) → amount, dedicated and shared CPUs alike."""
    found: dict[tuple[str, str], int] = {}
    for consumer, providers in allocations.items():
        for classes in providers.values():
            for name, amount in classes.items():
                key = consumer, "VCPU" if name == "PCPU" else name
                found[key] = found.get(key, 0) + amount
    return found


@given(used_hosts())
def test_a_reshape_loses_no_allocation(case):
    """Whatever the old and the new shape: all is held as before, on inventories that exist and have the room."""
    facts, policy, current, allocations = case
    change = diff(current, build_tree(facts, policy, current))
    try:
        reshape = plan_reshape(change, current, allocations)
    except ReshapeFailed:
        assert change.moves
        return
    after = {**allocations, **reshape.allocations}
    assert held(after) == held(allocations)
    sums: dict[tuple[str, str], int] = {}
    for providers in after.values():
        for provider, classes in providers.items():
            for name, amount in classes.items():
                assert amount > 0
                sums[provider, name] = sums.get((provider, name), 0) + amount
    tree = applied(current, change, sums)
    for (provider, name), amount in sums.items():
        found = tree.with_uuid(provider)
        assert found is not None, "allocations of a provider that is gone"
        inventory = found.inventory(name)
        assert inventory is not None, "allocations of an inventory that is gone"
        assert amount <= int((inventory.total - inventory.reserved) * inventory.allocation_ratio)
    assert not diff(tree, build_tree(facts, policy, tree)).moves


@given(used_hosts())
def test_what_is_in_use_is_never_taken_away(case):
    """Without a reshape, every inventory in use keeps room for it."""
    facts, policy, current, _ = case
    change = diff(current, build_tree(facts, policy, current))
    if change.moves:
        return
    after = applied(current, change)
    for provider in current.providers:
        for one in provider.inventories:
            if one.used:
                kept = after.with_uuid(provider.uuid).inventory(one.resource_class)
                assert kept.used == one.used
                assert int((kept.total - kept.reserved) * kept.allocation_ratio) >= one.used
    assert all(OWNER_TRAIT in one.traits or one.parent is None for one in after.providers)
