"""Sixteen processes that attach and detach the same volumes at random; some are killed in the middle.

``python -m tests.attach.crowd FOLDER URLS SEED ROUNDS`` forks them and prints, as JSON, what each believes it has in
the end. URLS lead to one empty database, each at another node, and are taken in turn; the hosts live in FOLDER.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import uuid
from pathlib import Path

from cloudcore import _failpoints, errors
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.database import Database
from cloudcore.schema import create_schema
from cloudcore.testing.stored import StoredHost, StoredWorld, WatchedVolumes

PROCESSES = 16
HOSTS = ["compute-1", "compute-2", "compute-3"]
EXPECTED = (errors.InUse, errors.AlreadyExists, errors.VolumeBusy, errors.Conflict)


def open_manager(folder: Path, url: str) -> AttachmentManager:
    database = Database(url, durable=False, busy_timeout=120, pool_size=2)
    world = StoredWorld(folder / "world.db")
    hosts = {name: StoredHost(world, name) for name in HOSTS}
    volumes = WatchedVolumes(EmbeddedVolumes(database), world)
    return AttachmentManager(database, volumes, hosts.values(), connectors=hosts, patience=120)


def wander(folder: Path, url: str, seed: int, rounds: int, volumes: list[str], *, doomed: bool) -> dict:
    """Attach and detach at random for two instances of its own; returns what it has in the end."""
    rng = random.Random(seed)
    manager = open_manager(folder, url)
    host = rng.choice(HOSTS)
    instances = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(2)]
    having: dict[str, tuple[str, str]] = {}
    done = {"attached": 0, "detached": 0, "refused": 0}
    if doomed:
        deadline = rng.randrange(30, 200)
        _failpoints.arm("*", dying(deadline))
    for _ in range(rounds):
        if having and rng.random() < 0.45:
            attachment = rng.choice(sorted(having))
            manager.detach(attachment)
            del having[attachment]
            done["detached"] += 1
            continue
        volume, who = rng.choice(volumes), rng.choice(instances)
        try:
            having[manager.attach(volume, who, rng.choice(["rw", "ro"]), host=host).id] = (volume, who)
            done["attached"] += 1
        except EXPECTED:
            done["refused"] += 1
    manager.close()
    return {"having": having, "doomed": False, **done}


def dying(steps: int):
    def step(_: str) -> None:
        nonlocal steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return step


def main(folder: Path, urls: list[str], seed: int, rounds: int) -> None:
    database = Database(urls[0], durable=False)
    create_schema(database, areas=["attach"])
    embedded = EmbeddedVolumes(database)
    volumes = [embedded.create_volume(multiattach=number % 2 == 0).id for number in range(6)]
    StoredWorld(folder / "world.db").close()
    database.close()
    children = []
    for number in range(PROCESSES):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            signal.alarm(280)
            try:
                url = urls[number % len(urls)]
                found = wander(folder, url, seed * 100 + number, rounds, volumes, doomed=number % 4 == 3)
                os.write(writer, json.dumps(found).encode())
            except BaseException as error:
                os.write(writer, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    results = []
    for child, reader in children:
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        results.append(json.loads(text) if text else {"doomed": True})
    print(json.dumps({"volumes": volumes, "results": results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3]), int(sys.argv[4]))
