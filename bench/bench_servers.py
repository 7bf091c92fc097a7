"""The Placement API of the examples against OpenStack Placement's own application. See `bench.harness`.

Both in process, request to response: ours is called as an ASGI server calls it, the peer as a WSGI server does, with a
request made by webob; sockets and server processes are outside on both sides. Both on a SQLite file with its usual
durability, with 1,000 nested hosts of seven providers, half full. Ours looks for other writers before every answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from bench import forests
from bench.bench_search import FOUR_GROUPS, Ours, identity
from bench.harness import REPOSITORY, Bench, Unequal

sys.path.insert(0, str(REPOSITORY / "examples"))

from placement_api.app import create_app

HOSTS = 1_000
HEADERS = [(b"x-auth-token", b"admin"), (b"openstack-api-version", b"placement 1.39"), (b"host", b"bench")]


class Api:
    """The application, called without a server."""

    def __init__(self, url: str, generations: str) -> None:
        self._application = create_app(url, generations=generations)
        self._loop = asyncio.new_event_loop()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request; status and document."""
        path, _, query = path.partition("?")
        content = b"" if body is None else json.dumps(body).encode()
        headers = HEADERS if body is None else [*HEADERS, (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
        }
        scope |= {"headers": headers, "scheme": "http", "server": ("bench", 80), "root_path": "", "http_version": "1.1"}
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        self._loop.run_until_complete(self._application(scope, receive, send))
        text = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(text) if text else None

    def get(self, path: str) -> Any:
        status, body = self.call("GET", path)
        if status != 200:
            raise Unequal(f"{path}: {status} {body}")
        return body

    def count(self, path: str) -> int:
        return len(self.get(path)["allocation_requests"])

    def claim(self, allocations: dict[str, Any]) -> int:
        owner = {"project_id": "p", "user_id": "u", "consumer_type": "INSTANCE", "consumer_generation": None}
        return self.call("PUT", f"/allocations/{uuid.uuid4()}", {"allocations": allocations, **owner})[0]

    def close(self) -> None:
        self._application.state.cloud.close()
        self._loop.close()


def candidates(answer: Any) -> set[Any]:
    """What was found, whatever its order."""
    return identity(
        ({uuid: held["resources"] for uuid, held in each["allocations"].items()}, each["mappings"])
        for each in answer["allocation_requests"]
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Bench("servers") as bench:
        folder = Path(scratch)
        real = bench.peer(
            "placement", script="peer_placement_api.py", arguments=[f"sqlite:///{folder / 'placement.db'}"]
        )
        real.run("load", shape="nested", count=HOSTS)
        forest = Ours(folder, "nested", HOSTS)
        url = str(forest.database.engine.url)
        forest.close()
        api = Api(url, "cloudcore")
        for trait in ("CUSTOM_PHYSNET_A", "CUSTOM_PHYSNET_B"):
            api.call("PUT", f"/traits/{trait}")
        whole = f"/allocation_candidates?{FOUR_GROUPS}"
        if candidates(api.get(whole)) != candidates(real.run("get", path=whole)):
            raise Unequal("the two find different candidates")
        for limit, must in ((10, 200), (1000, 20)):
            path = f"{whole}&limit={limit}"
            bench.compare(
                f"GET /allocation_candidates, four groups, limit {limit}",
                ours=lambda path=path: api.count(path),
                peer=real.call("count", path=path),
                must=must,
                rounds=5,
            )
        node = forests.identifier(2)
        wanted = {
            node: {"resources": {"VCPU": 1, "MEMORY_MB": 1}},
            forests.identifier(1): {"resources": {"DISK_GB": 1}},
        }
        bench.compare(
            "PUT /allocations, three classes, durable",
            ours=lambda: api.claim(wanted),
            peer=real.call("claim", allocations=wanted),
            must=5,
            number=5,
            rounds=5,
        )
        api.close()
        counting = Api(url, "placement")
        bench.compare(
            "the same, generations counted as Placement counts",
            ours=lambda: counting.claim(wanted),
            peer=real.call("claim", allocations=wanted),
            number=5,
            rounds=5,
        )
        counting.close()


if __name__ == "__main__":
    main()
