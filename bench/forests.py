"""The forests of the search benchmark, the same for both sides. Standard library only, any Python from 3.8.

A provider is a dict: name, uuid, parent, inventories {class: {total, ...}}, traits, aggregates, used {class: units};
parents come before their children.
"""

UNLIMITED = 2**31 - 1


def identifier(number):
    """The uuid of the provider of this number."""
    return f"{number & 0xFFFFFFFF:08x}-0000-4000-8000-{number:012x}"


def _inventory(total, reserved=0, ratio=1.0):
    return {
        "total": total,
        "reserved": reserved,
        "min_unit": 1,
        "max_unit": UNLIMITED,
        "step_size": 1,
        "allocation_ratio": ratio,
    }


def _provider(number, name, parent, inventories, traits=(), used=None):
    return {
        "name": name,
        "uuid": identifier(number),
        "parent": None if parent is None else identifier(parent),
        "inventories": inventories,
        "traits": list(traits),
        "aggregates": [],
        "used": used or {},
    }


def flat(hosts):
    """Compute nodes without children, half full."""
    for number in range(1, hosts + 1):
        inventories = {
            "VCPU": _inventory(64, ratio=4.0),
            "MEMORY_MB": _inventory(262144, reserved=4096),
            "DISK_GB": _inventory(4000),
        }
        yield _provider(
            number,
            f"host-{number}",
            None,
            inventories,
            used={"VCPU": 128, "MEMORY_MB": 129024, "DISK_GB": 2000},
        )


def nested(hosts):
    """Compute nodes of 7 providers (two NUMA nodes, two physical functions under each), half full."""
    number = 0
    for host in range(1, hosts + 1):
        root = number = number + 1
        yield _provider(root, f"cn-{host}", None, {"DISK_GB": _inventory(4000)}, used={"DISK_GB": 2000})
        for node in (0, 1):
            numa = number = number + 1
            inventories = {"VCPU": _inventory(32, ratio=4.0), "MEMORY_MB": _inventory(131072)}
            used = {"VCPU": 64, "MEMORY_MB": 65536}
            yield _provider(numa, f"cn-{host}-numa-{node}", root, inventories, ["HW_NUMA_ROOT"], used)
            for function in (0, 1):
                number += 1
                yield _provider(
                    number,
                    f"cn-{host}-numa-{node}-pf-{function}",
                    numa,
                    {"SRIOV_NET_VF": _inventory(8)},
                    ["CUSTOM_PHYSNET_" + "AB"[function]],
                    {"SRIOV_NET_VF": 4},
                )


def uneven(hosts):
    """The same, but of no two hosts the disks are as full, so that weighers have something to decide."""
    for provider in nested(hosts):
        if provider["parent"] is None:
            host = int(provider["name"].rsplit("-", 1)[1])
            provider["used"] = {"DISK_GB": 2000 - 2000 * host // (hosts + 1)}
        yield provider


def wide(children=8):
    """One compute node with as many devices of one unit each."""
    yield _provider(1, "cn", None, {"VCPU": _inventory(64)})
    for child in range(children):
        yield _provider(2 + child, f"dev-{child}", 1, {"SRIOV_NET_VF": _inventory(1)})


SHAPES = {"flat": flat, "nested": nested, "wide": wide}


def placed(host, providers=7):
    """What an instance takes of a nested host: disk of the root, processors and memory of its first NUMA node."""
    root = host * providers + 1
    return {identifier(root): {"DISK_GB": 10}, identifier(root + 1): {"VCPU": 2, "MEMORY_MB": 2048}}
