"""The peer of `bench_servers`: openstack-placement's whole WSGI application in process, on a SQLite file."""

import logging
import sys
import uuid
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.append(str(Path(sys.argv[1]).parent / "tests" / "placement"))  # for peer_server

import forests
import peer
import peer_server

logging.disable(logging.CRITICAL)
placement = peer_server.Placement(sys.argv[2])


def load(shape, count):
    """Store a forest in place of what was there; the number of providers."""
    return placement.world(list(forests.SHAPES[shape](count)))


def get(path):
    """One request; its document."""
    status, body = placement.call("GET", path)
    assert status == 200, body
    return body


def count(path):
    """One request; how many candidates it gave."""
    return len(get(path)["allocation_requests"])


def claim(allocations):
    """Allocations for a new consumer; the status."""
    body = {
        "allocations": allocations,
        "project_id": "p",
        "user_id": "u",
        "consumer_generation": None,
        "consumer_type": "INSTANCE",
    }
    return placement.call("PUT", f"/allocations/{uuid.uuid4()}", body)[0]


peer.serve(load=load, get=get, count=count, claim=claim)
