"""Serves the Placement API of the examples, or OpenStack's own, by the same server: uvicorn, one process.

    python served.py ours DATABASE_URL GENERATIONS      in our environment
    python served.py real DATABASE_URL SHAPE COUNT      in the peer's; fills it with that forest first

Prints the port. Any Python from 3.8.
"""

import logging
import socket
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import uvicorn  # noqa: E402


def ours(url, generations):
    """The example's application."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    from placement_api.app import create_app

    return create_app(url, generations=generations), "asgi3"


def real(url, shape, count):
    """Placement's WSGI application, in uvicorn's threads."""
    sys.path.append(str(HERE.parent / "tests" / "placement"))
    import forests
    import peer_server

    logging.disable(logging.CRITICAL)
    placement = peer_server.Placement(url)
    placement.world(list(forests.SHAPES[shape](int(count))))
    return placement.application, "wsgi"


if __name__ == "__main__":
    application, interface = {"ours": ours, "real": real}[sys.argv[1]](*sys.argv[2:])
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so not delayed
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    print(listening.getsockname()[1], flush=True)
    settings = {
        "timeout_keep_alive": 3600,
        "log_level": "critical",
        "access_log": False,
        "lifespan": "off",
        "http": "h11",
        "loop": "asyncio",
    }
    uvicorn.Server(uvicorn.Config(application, interface=interface, **settings)).run(sockets=[listening])
