"""The Placement API of the examples against OpenStack Placement's own application. See `bench.harness`.

Both under the same server, uvicorn with one process, over loopback HTTP, with one connection that is kept; both on a
SQLite file with its usual durability, with 1,000 nested hosts of seven providers, half full. Ours looks for other
writers before every answer. What comes back is read and not parsed; HTTP's part is the same on both sides.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import forests
from bench.bench_search import FOUR_GROUPS, Ours, identity
from bench.harness import HERE, Bench, Unequal, peer_env
from bench.options import options

HOSTS = 1_000
HEADERS = {"x-auth-token": "admin", "openstack-api-version": "placement 1.39", "content-type": "application/json"}
OWNER = {"project_id": "p", "user_id": "u", "consumer_type": "INSTANCE", "consumer_generation": None}


class Api:
    """A client with one connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request; status and content."""
        self._connection.request(method, path, None if body is None else json.dumps(body), HEADERS)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def get(self, path: str) -> bytes:
        status, content = self.call("GET", path)
        if status != 200:
            raise Unequal(f"{path}: {status} {content[:1000]!r}")
        return content

    def count(self, path: str) -> int:
        """How many candidates, without reading JSON."""
        return self.get(path).count(b'"mappings":')

    def claim(self, allocations: dict[str, Any]) -> int:
        return self.call("PUT", f"/allocations/{uuid.uuid4()}", {"allocations": allocations, **OWNER})[0]

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def served(python: str | Path, *arguments: str) -> Iterator[Api]:
    """A client of a server in a process of its own."""
    command = [str(python), str(HERE / "served.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with contextlib.closing(Api(int(process.stdout.readline()))) as api:
            yield api
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def candidates(answer: bytes) -> set[Any]:
    """What was found, whatever its order."""
    return identity(
        ({uuid: held["resources"] for uuid, held in each["allocations"].items()}, each["mappings"])
        for each in json.loads(answer)["allocation_requests"]
    )


def search(bench: Bench, ours: Api, real: Api) -> None:
    whole = f"/allocation_candidates?{FOUR_GROUPS}"
    if candidates(ours.get(whole)) != candidates(real.get(whole)):
        raise Unequal("the two find different candidates")
    for limit, must in ((10, 200), (1000, 20)):
        path = f"{whole}&limit={limit}"
        bench.compare(
            f"GET /allocation_candidates, four groups, limit {limit}",
            ours=lambda path=path: ours.count(path),
            peer=lambda path=path: real.count(path),
            must=must,
            rounds=5,
        )


def claims(bench: Bench, what: str, ours: Api, real: Api, must: float | None) -> None:
    wanted = {
        forests.identifier(2): {"resources": {"VCPU": 1, "MEMORY_MB": 1}},
        forests.identifier(1): {"resources": {"DISK_GB": 1}},
    }
    bench.compare(what, ours=lambda: ours.claim(wanted), peer=lambda: real.claim(wanted), must=must, number=5, rounds=5)


def report_client(bench: Bench, ours: Api, real: Api) -> None:
    """Nova's own client on both: the first update makes the providers, those that count find nothing to change."""
    for api in (ours, real):
        for trait in range(3):
            api.call("PUT", f"/traits/CUSTOM_PHYSNET_{trait}")
        api.call("PUT", "/resource_classes/CUSTOM_WIDGET")
    mine, theirs = (
        bench.peer("clients", script="peer_report_client.py", arguments=[str(api.port)]) for api in (ours, real)
    )
    bench.compare(
        "Nova's report client: update_from_provider_tree, 40 providers, nothing changed",
        ours=mine.call("update", children=40),
        peer=theirs.call("update", children=40),
        must=3,
        number=1,
        rounds=5,
        note="with the read of the tree that comes before; the client's own work is in it on both sides",
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, Bench("servers", options()) as bench:
        folder = Path(scratch)
        forest = Ours(folder, "nested", HOSTS)
        url = str(forest.database.engine.url)
        forest.close()
        arguments = ("real", f"sqlite:///{folder / 'placement.db'}", "nested", str(HOSTS))
        with served(peer_env("served"), *arguments) as real:
            with served(sys.executable, "ours", url, "cloudcore") as ours:
                for trait in ("CUSTOM_PHYSNET_A", "CUSTOM_PHYSNET_B"):
                    ours.call("PUT", f"/traits/{trait}")
                search(bench, ours, real)
                claims(bench, "PUT /allocations, three classes, durable", ours, real, must=5)
                report_client(bench, ours, real)
            with served(sys.executable, "ours", url, "placement") as counting:
                claims(bench, "the same, generations counted as Placement counts", counting, real, must=None)


if __name__ == "__main__":
    main()
