"""The peer of `bench_search`: openstack-placement in process, its object layer, on SQLite in memory.

Without HTTP, JSON and access rules: the peer at its fastest. Its Python may be older than ours.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.append(str(Path(sys.argv[1]).parent / "tests" / "placement"))  # for peer_server

import forests
import peer
import peer_server

logging.disable(logging.CRITICAL)
placement = peer_server.Placement()


def load(shape, count):
    """Store a forest in place of what was there; the number of providers."""
    return placement.world(list(forests.SHAPES[shape](count)))


def search(query):
    """One search as a request handler makes it, from the query string on; candidates in the form of JSON."""
    return placement.find(query)


peer.serve(load=load, search=search)
