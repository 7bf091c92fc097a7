"""What Nova 34 does to Placement, by its own report client; runs in the environment of the clients.

    python nova_script.py PORT

Prints one JSON document: the answers, and the state at the end without what is counted.
"""

from __future__ import annotations

import copy
import json
import logging
import sys
import urllib.request
import uuid

from keystoneauth1 import adapter, session, token_endpoint
from nova import context as nova_context
from nova import exception, objects
from nova.scheduler.client import report

logging.disable(logging.CRITICAL)
objects.register_all()
PORT = int(sys.argv[1])
HEADERS = {"x-auth-token": "admin", "x-roles": "admin,service", "openstack-api-version": "placement 1.39"}
CONTEXT = nova_context.RequestContext("user", "project", is_admin=True)
ANSWERS = []


def name(text):
    """The same uuid for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, text))


NAMES = {}


def known(text):
    NAMES[name(text)] = text
    return name(text)


def tell(what, answer):
    ANSWERS.append([what, plain(answer)])


def plain(value):
    """As JSON, in one order, with names for uuids, without what is counted."""
    if isinstance(value, dict):
        kept = {NAMES.get(key, key): plain(each) for key, each in value.items() if "generation" not in str(key)}
        return dict(sorted(kept.items()))
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return sorted((plain(each) for each in value), key=json.dumps)
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    return NAMES.get(value, value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__


def attempt(what, function, *arguments, **more):
    """Tell what came back or was raised; hand it back."""
    try:
        answer = function(*arguments, **more)
    except exception.NovaException as error:
        tell(what, f"raised {type(error).__name__}")
        return None
    tell(what, answer)
    return answer


def get(path):
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", headers=HEADERS)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def inventory(total, **more):
    return {
        "total": total,
        "reserved": 0,
        "min_unit": 1,
        "max_unit": total,
        "step_size": 1,
        "allocation_ratio": 1.0,
        **more,
    }


def main():
    client = report.SchedulerReportClient(
        adapter.Adapter(
            session.Session(token_endpoint.Token(f"http://127.0.0.1:{PORT}", "admin")),
            service_type="placement",
            raise_exc=False,
        )
    )
    hosts = [known("host-1"), known("host-2")]
    for number, host in enumerate(hosts, 1):
        tree = client.get_provider_tree_and_ensure_root(CONTEXT, host, name=f"host-{number}")
        build(client, tree, number, host)
    tell("names", [client.get_resource_provider_name(CONTEXT, host) for host in hosts])
    tell("tree", client.get_providers_in_tree(CONTEXT, hosts[0]))
    attempt("traits", lambda: client.get_provider_traits(CONTEXT, hosts[0]).traits)
    attempt("aggregate", client.aggregate_add_host, CONTEXT, known("aggregate"), host_name="host-2")
    attempt("by name", client.get_provider_by_name, CONTEXT, "host-2")
    attempt("no such name", client.get_provider_by_name, CONTEXT, "host-9")
    claims(client, hosts)
    changes(client, hosts)
    state = {
        each["name"]: {
            part: get(f"/resource_providers/{each['uuid']}/{part}")
            for part in ("inventories", "traits", "aggregates", "usages", "allocations")
        }
        | {"parent": each["parent_provider_uuid"], "root": each["root_provider_uuid"]}
        for each in get("/resource_providers")["resource_providers"]
    }
    print(json.dumps({"answers": ANSWERS, "state": plain(state)}))


def build(client, tree, number, host):
    """Two NUMA nodes with a device each below a host."""
    tree.update_inventory(host, {"DISK_GB": inventory(500), "VCPU": inventory(4), "MEMORY_MB": inventory(4096)})
    tree.add_traits(host, "COMPUTE_NODE", "CUSTOM_RACK")
    for node in range(2):
        numa = known(f"host-{number}-numa{node}")
        tree.new_child(f"host-{number}-numa{node}", host, uuid=numa)
        tree.update_inventory(numa, {"VCPU": inventory(8, allocation_ratio=2.0), "MEMORY_MB": inventory(16384)})
        tree.add_traits(numa, "HW_NUMA_ROOT")
        device = known(f"host-{number}-pf{node}")
        tree.new_child(f"host-{number}-pf{node}", numa, uuid=device)
        tree.update_inventory(device, {"SRIOV_NET_VF": inventory(4), "CUSTOM_WIDGET": inventory(2)})
        tree.add_traits(device, f"CUSTOM_PHYSNET_{node}")
    attempt(f"update {number}", client.update_from_provider_tree, CONTEXT, tree)
    attempt(f"update {number} again", client.update_from_provider_tree, CONTEXT, copy.deepcopy(tree))


class Resources:
    """What the client asks of a request for its candidates."""

    def __init__(self, query):
        self._query = query

    def to_querystring(self):
        return self._query


def claims(client, hosts):
    query = (
        "resources=DISK_GB:10&resources1=VCPU:2,MEMORY_MB:2048&resources2=SRIOV_NET_VF:1&required2=CUSTOM_PHYSNET_1"
        "&group_policy=none&same_subtree=1,2&limit=1000"
    )
    found, summaries, version = client.get_allocation_candidates(CONTEXT, Resources(query))
    tell("candidates", found)
    tell("summaries", summaries)
    one, two = (
        next(each for each in found if known(f"host-{number}-numa1") in each["allocations"]) for number in (1, 2)
    )
    instance, migration, other = known("instance"), known("migration"), known("other")
    attempt("claim", client.claim_resources, CONTEXT, instance, one, "project", "user", version)
    attempt("claim again", client.claim_resources, CONTEXT, instance, one, "project", "user", version)
    attempt("move to the migration", client.move_allocations, CONTEXT, instance, migration)
    attempt("claim the destination", client.claim_resources, CONTEXT, instance, two, "project", "user", version)
    attempt("what it holds", client.get_allocs_for_consumer, CONTEXT, instance)
    attempt("the migration holds", client.get_allocs_for_consumer, CONTEXT, migration)
    attempt(
        "end of the migration", client.delete_allocation_for_instance, CONTEXT, migration, consumer_type="migration"
    )
    attempt("end again", client.delete_allocation_for_instance, CONTEXT, migration, consumer_type="migration")
    payload = {
        "allocations": {hosts[0]: {"resources": {"VCPU": 2, "DISK_GB": 5}}},
        "project_id": "project",
        "user_id": "user",
        "consumer_generation": None,
        "consumer_type": "INSTANCE",
    }
    attempt("put", client.put_allocations, CONTEXT, other, payload)
    attempt("put with a stale generation", client.put_allocations, CONTEXT, other, payload)
    attempt(
        "less",
        client.remove_resources_from_instance_allocation,
        CONTEXT,
        other,
        {hosts[0]: {"resources": {"DISK_GB": 3, "VCPU": 1}}},
    )
    attempt(
        "more", client.add_resources_to_instance_allocation, CONTEXT, other, {hosts[0]: {"resources": {"DISK_GB": 4}}}
    )
    attempt(
        "too much",
        client.add_resources_to_instance_allocation,
        CONTEXT,
        other,
        {hosts[0]: {"resources": {"DISK_GB": 4000}}},
    )
    tell("usages", client.get_usages_counts_for_quota(CONTEXT, "project"))
    tell("usages for limits", client.get_usages_counts_for_limits(CONTEXT, "project"))
    attempt("of the provider", client.get_allocations_for_resource_provider, CONTEXT, hosts[0])
    attempt("of the tree", client.get_allocations_for_provider_tree, CONTEXT, "host-1")


def changes(client, hosts):
    """A host's cores go to its NUMA nodes, with what is held of them; then a device goes."""
    tree = client.get_provider_tree_and_ensure_root(CONTEXT, hosts[0])
    held = client.get_allocations_for_provider_tree(CONTEXT, "host-1")
    numa = known("host-1-numa0")
    tree.update_inventory(hosts[0], {"DISK_GB": inventory(500)})
    attempt("inventory in use", client.update_from_provider_tree, CONTEXT, copy.deepcopy(tree))
    for allocation in held.values():
        mine = allocation["allocations"].get(hosts[0], {"resources": {}})["resources"]
        cores = mine.pop("VCPU", None)
        if cores:
            allocation["allocations"].setdefault(numa, {"resources": {}})["resources"]["VCPU"] = cores
    tree = client.get_provider_tree_and_ensure_root(CONTEXT, hosts[0])
    tree.update_inventory(hosts[0], {"DISK_GB": inventory(600)})
    attempt("reshape", client.update_from_provider_tree, CONTEXT, tree, allocations=held)
    tree = client.get_provider_tree_and_ensure_root(CONTEXT, hosts[0])
    tree.remove("host-1-pf1")
    tree.add_aggregates(hosts[0], known("aggregate"))
    tree.remove_traits(hosts[0], "CUSTOM_RACK")
    attempt("a device goes", client.update_from_provider_tree, CONTEXT, tree)
    attempt("traits set", client.set_traits_for_provider, CONTEXT, hosts[0], ["COMPUTE_NODE", "CUSTOM_NEW"])
    client.get_provider_tree_and_ensure_root(CONTEXT, hosts[1])
    attempt("aggregates set", client.set_aggregates_for_provider, CONTEXT, hosts[1], [known("other-aggregate")])
    attempt("out of the aggregate", client.aggregate_remove_host, CONTEXT, known("other-aggregate"), "host-2")
    attempt("delete", client.delete_allocation_for_instance, CONTEXT, known("instance"), force=True)


main()
