"""A server for `bench_load`: FastAPI on uvicorn over the cells of ``LOAD_CELLS``, and a client with many connections.

One process, as one worker of a deployment. ``GET /servers?limit=50`` answers with the records of a page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from bench.harness import REPOSITORY

COLUMNS = ("uuid", "display_name", "vm_state", "project_id", "host", "flavor", "created_at")


def create_app():
    """The application; called by uvicorn."""
    from anyio import CapacityLimiter
    from fastapi import FastAPI, Response

    from cloudcore.aio import AsyncCellRouter
    from cloudcore.errors import Overloaded
    from cloudcore.listing import Cell, CellRouter, Query

    cells = [Cell(f"cell{number:02}", url) for number, url in enumerate(json.loads(os.environ["LOAD_CELLS"]))]
    router = AsyncCellRouter(CellRouter(cells), limiter=CapacityLimiter(2))  # near cells: others would only wait

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with router:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/servers")
    async def servers(limit: int = 100) -> Response:
        try:
            page = await router.page(Query(limit=limit, columns=COLUMNS))
        except Overloaded as error:
            return Response(str(error), 503, {"retry-after": "1"})
        return Response(page.to_json("servers", {"complete": page.complete}), media_type="application/json")

    return app


@contextlib.contextmanager
def served(urls: Sequence[str]) -> Iterator[int]:
    """The server in a process of its own; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "bench.load_api:create_app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--log-level", "warning", "--no-access-log"],
        cwd=REPOSITORY,
        env={**os.environ, "LOAD_CELLS": json.dumps(list(urls))},
    )
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def hammer(port: int, connections: int, seconds: float) -> tuple[float, Counter[str]]:
    """Requests a second over so many connections that are kept open, and what was answered."""
    return asyncio.run(_hammer(port, connections, seconds))


async def _hammer(port: int, connections: int, seconds: float) -> tuple[float, Counter[str]]:
    heard: Counter[str] = Counter()
    began = time.perf_counter()
    await asyncio.gather(*(_ask(port, began + seconds, heard) for _ in range(connections)))
    return heard["complete"] / (time.perf_counter() - began), heard


async def _ask(port: int, end: float, heard: Counter[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        writer.write(b"GET /servers?limit=50 HTTP/1.1\r\nhost: bench\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        if head.split(b" ", 2)[1] != b"200":
            heard[head.split(b"\r\n", 1)[0].decode()] += 1
        elif body.count(b'"uuid"') == 50 and body.endswith(b'"complete":true}'):
            heard["complete"] += 1
        else:
            heard["partial"] += 1
    writer.close()
    await writer.wait_closed()
