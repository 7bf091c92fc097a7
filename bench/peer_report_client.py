"""A compute host's Nova, as far as Placement sees it: Nova's report client, for `bench_servers`."""

import logging
import sys
import uuid

sys.path.insert(0, sys.argv[1])

import peer
from keystoneauth1 import adapter, session, token_endpoint
from nova import context as nova_context
from nova import objects
from nova.scheduler.client import report

logging.disable(logging.CRITICAL)
objects.register_all()
CONTEXT = nova_context.RequestContext("user", "project", is_admin=True)
HOST = str(uuid.uuid5(uuid.NAMESPACE_DNS, "host of many providers"))
CLIENT = report.SchedulerReportClient(
    adapter.Adapter(
        session.Session(token_endpoint.Token(f"http://127.0.0.1:{sys.argv[2]}", "admin")),
        service_type="placement",
        raise_exc=False,
    )
)


def inventory(total):
    return {
        "total": total,
        "reserved": 0,
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": 1.0,
    }


def update(children):
    """What a compute service does when it starts anew: read the host's tree, and say what it has; its size."""
    CLIENT.clear_provider_cache(init=True)
    tree = CLIENT.get_provider_tree_and_ensure_root(CONTEXT, HOST, name="host of many providers")
    tree.update_inventory(HOST, {"DISK_GB": inventory(1000), "MEMORY_MB": inventory(65536)})
    tree.update_traits(HOST, ["COMPUTE_NODE"])
    for number in range(children):
        child = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"child {number}"))
        if not tree.exists(child):
            tree.new_child(f"child-{number}", HOST, uuid=child)
        tree.update_inventory(child, {"VCPU": inventory(4), "CUSTOM_WIDGET": inventory(2)})
        tree.update_traits(child, ["HW_NUMA_ROOT", f"CUSTOM_PHYSNET_{number % 3}"])
    CLIENT.update_from_provider_tree(CONTEXT, tree)
    return len(CLIENT.get_providers_in_tree(CONTEXT, HOST))


peer.serve(update=update)
