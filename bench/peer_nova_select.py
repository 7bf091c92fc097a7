"""The peer of `bench_select`: a Nova scheduler's whole decision, in process, at its fastest.

Placement's candidates by its object layer (limit 1000, as Nova asks), Nova's own filter and weigher handlers over
HostStates of these hosts, and Placement's claim by the object layer. Without HTTP, RPC, JSON and the reading of
HostStates from cells' databases, all of which a real scheduler pays for as well.
"""

import logging
import sys
import uuid
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.append(str(Path(sys.argv[1]).parent / "tests" / "placement"))  # for peer_server

import forests
import microversion_parse
import peer
import peer_server
from nova import conf as nova_conf
from nova import objects as nova_objects
from nova.scheduler import filters, host_manager, weights
from nova.scheduler.filters.num_instances_filter import NumInstancesFilter
from nova.scheduler.weights.cpu import CPUWeigher
from nova.scheduler.weights.disk import DiskWeigher
from nova.scheduler.weights.ram import RAMWeigher

logging.disable(logging.CRITICAL)
placement = peer_server.Placement()
nova_conf.CONF([], default_config_files=[])
nova_objects.register_all()
FILTERS, WEIGHERS = filters.HostFilterHandler(), weights.HostWeightHandler()
state = {}


def load(hosts):
    """Store nested hosts of which no two are as full; the number of providers."""
    world = list(forests.uneven(hosts))
    state["root_of"], state["states"] = {}, {}
    for provider in world:
        parent = provider["parent"]
        root = provider["uuid"] if parent is None else state["root_of"][parent]
        state["root_of"][provider["uuid"]] = root
        if parent is None:
            host = host_manager.HostState(provider["name"], provider["name"], None)
            host.uuid, host.free_ram_mb, host.free_disk_mb, host.num_instances = root, 0, 0, 0
            host.aggregates = []
            state["states"][root] = host
        host = state["states"][root]
        for name, inventory in provider["inventories"].items():
            left = inventory["total"] - inventory["reserved"] - provider["used"].get(name, 0)
            host.free_ram_mb += left if name == "MEMORY_MB" else 0
            host.free_disk_mb += 1024 * left if name == "DISK_GB" else 0
    return placement.world(world)


def select(query):
    """Choose and claim a host, with two alternates; their names, the chosen one first."""
    by_root = {}
    for allocations, _ in placement.find(query):
        by_root.setdefault(state["root_of"][next(iter(allocations))], []).append(allocations)
    spec = nova_objects.RequestSpec(ignore_hosts=None, force_hosts=None, force_nodes=None)
    hosts = [state["states"][root] for root in by_root]
    hosts = FILTERS.get_filtered_objects([NumInstancesFilter()], hosts, spec)
    best = [weighed.obj for weighed in WEIGHERS.get_weighed_objects([RAMWeigher(), DiskWeigher()], list(hosts), spec)]
    chosen = best[0]
    allocations = by_root[chosen.uuid][0]
    claim(allocations)
    asked = {}
    for resources in allocations.values():
        for name, amount in resources.items():
            asked[name] = asked.get(name, 0) + amount
    chosen.free_ram_mb -= asked.get("MEMORY_MB", 0)
    chosen.free_disk_mb -= 1024 * asked.get("DISK_GB", 0)
    return [host.host for host in best[:3]]


def pack(hosts, flavors, events, every):
    """Let the story of `packing` happen with Nova's weighers set to stack; hosts in use at each look."""
    nova_conf.CONF.set_override("ram_weight_multiplier", -1.0, group="filter_scheduler")
    nova_conf.CONF.set_override("cpu_weight_multiplier", -1.0, group="filter_scheduler")
    spec = nova_objects.RequestSpec(ignore_hosts=None, force_hosts=None, force_nodes=None)
    states = []
    for number, (cores, memory) in enumerate(hosts):
        host = host_manager.HostState(f"cn{number}", f"cn{number}", None)
        host.vcpus_total, host.vcpus_used, host.free_ram_mb, host.aggregates = cores, 0, memory, []
        host.cpu_allocation_ratio = 1.0
        states.append(host)
    weighers, alive, used = [RAMWeigher(), CPUWeigher()], [], []
    for number, (flavor, leaving) in enumerate(events, 1):
        if flavor < 0:
            host, (cores, memory) = alive.pop(leaving)
            host.vcpus_used -= cores
            host.free_ram_mb += memory
        else:
            cores, memory = flavors[flavor]
            room = [h for h in states if h.vcpus_total - h.vcpus_used >= cores and h.free_ram_mb >= memory]
            host = WEIGHERS.get_weighed_objects(weighers, room, spec)[0].obj
            host.vcpus_used += cores
            host.free_ram_mb -= memory
            alive.append((host, (cores, memory)))
        if number % every == 0 or number == len(events):
            used.append(len({host.host for host, _ in alive}))
    return used


def claim(held):
    """Write the allocations of a new consumer, as the handler of PUT does."""
    from placement import context, db_api
    from placement.handlers import allocation, util
    from placement.objects import allocation as objects

    version = microversion_parse.Version(1, 39)
    version.min_version, version.max_version = microversion_parse.Version(1, 0), version
    ctx = context.RequestContext()
    ctx.config = placement.config
    data = {
        str(uuid.uuid4()): {
            "allocations": {provider: {"resources": resources} for provider, resources in held.items()},
            "project_id": "peer",
            "user_id": "peer",
            "consumer_generation": None,
            "consumer_type": "INSTANCE",
        }
    }
    consumers, _, wanted = allocation.inspect_consumers(ctx, data, version)
    rows = allocation.create_allocation_list(ctx, data, consumers)

    @db_api.placement_context_manager.writer
    def write(ctx):
        util.update_consumers(consumers.values(), wanted)
        objects.replace_all(ctx, rows)

    write(ctx)


peer.serve(load=load, select=select, pack=pack)
