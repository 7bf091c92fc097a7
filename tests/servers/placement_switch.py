"""The Placement API of the examples, in a process of its own, that begins anew whenever a test says so.

    python -m tests.servers.placement_switch FOLDER    (the port is the only line that it prints)

``POST /-/begin`` with ``create_app``'s options makes an application over a new database; everything else goes to it.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "examples"))

from placement_api.app import create_app  # noqa: E402 - an example is no installed package


class Switch:
    """Passes requests to the application that was begun last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._application: ASGIApp | None = None
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/begin":
            await self._begin(await Request(scope, receive).json())
            await JSONResponse({})(scope, receive, send)
        elif scope["type"] == "http":
            assert self._application is not None
            await self._application(scope, receive, send)

    async def _begin(self, options: dict[str, Any]) -> None:
        if self._application is not None:
            self._application.state.cloud.close()  # type: ignore[attr-defined]  # Starlette's
        self._count += 1
        self._application = create_app(f"sqlite:///{self._folder}/{self._count}.db", **options)


def main(folder: str) -> None:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so not delayed
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    print(json.dumps(listening.getsockname()[1]), flush=True)
    config = uvicorn.Config(Switch(Path(folder)), log_level="error", lifespan="off", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else scratch)
