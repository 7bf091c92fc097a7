"""The peer of `bench_ledger`: openstack-placement in process, the object layer that its PUT and POST handlers call.

Without HTTP, JSON schemas and access rules: the peer at its fastest. Its Python may be older than ours.
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

logging.disable(logging.CRITICAL)
placement = peer_server.Placement(sys.argv[2])
state = {"host": 0, "moved": 0, "instances": []}


def load(hosts):
    """Store nested hosts, empty; the number of providers."""
    return placement.world([{**provider, "used": {}} for provider in forests.nested(hosts)])


def _write(data):
    from placement import context, db_api, microversion
    from placement.handlers import allocation, util
    from placement.objects import allocation as objects

    version = microversion_parse.Version(1, 39)
    version.min_version, version.max_version = microversion_parse.Version(1, 0), version
    del microversion
    ctx = context.RequestContext()
    ctx.config = placement.config
    consumers, _, wanted = allocation.inspect_consumers(ctx, data, version)
    rows = allocation.create_allocation_list(ctx, data, consumers)

    @db_api.placement_context_manager.writer
    def write(ctx):
        util.update_consumers(consumers.values(), wanted)
        objects.replace_all(ctx, rows)

    write(ctx)


def _consumer(allocations, generation=None):
    return {
        "allocations": {provider: {"resources": resources} for provider, resources in allocations.items()},
        "project_id": "peer",  # which the set-up has created
        "user_id": "peer",
        "consumer_generation": generation,
        "consumer_type": "INSTANCE",
    }


def claim(hosts):
    """Claim three classes of the next host for a new consumer; what was claimed."""
    allocations = forests.placed(state["host"] % hosts)
    state["host"] += 1
    instance = str(uuid.uuid4())
    _write({instance: _consumer(allocations)})
    state["instances"].append((instance, allocations))
    return sorted([provider, name, n] for provider, resources in allocations.items() for name, n in resources.items())


def begin(hosts):
    """Move an instance: the migration takes what it holds, the instance takes the next host; what it holds then."""
    instance, source = state["instances"][state["moved"]]
    destination = forests.placed((state["moved"] + hosts // 2) % hosts)
    state["moved"] += 1
    _write({str(uuid.uuid4()): _consumer(source), instance: _consumer(destination, 1)})
    return sorted([provider, name, n] for provider, resources in destination.items() for name, n in resources.items())


def place(query):
    """Search, then claim the first candidate; how many rows were claimed."""
    allocations = placement.find(query)[0][0]
    _write({str(uuid.uuid4()): _consumer(allocations)})
    return sum(len(resources) for resources in allocations.values())


peer.serve(load=load, claim=claim, begin=begin, place=place)
