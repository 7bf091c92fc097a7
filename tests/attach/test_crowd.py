"""Sixteen processes on the same volumes: an exclusive one never has two users, a shared one never loses one."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import services
from tests.attach.crowd import open_manager

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory():
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cloudcore-crowd-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def url(memory, request):
    """SQLite, on which all writers queue; the servers, on which they do not; three nodes, each with a third of them."""
    if request.param == "sqlite":
        yield f"sqlite:///{memory / 'cloud.db'}"
        return
    server = services.database_server(request.param)
    made = server.create_database()
    yield " ".join(server.at(node, made) for node in range(3)) if request.param == "galera" else made
    server.drop_database(made)


@pytest.mark.parametrize("url", ["sqlite", "postgresql", "mariadb", "galera"], indirect=True)
def test_sixteen_processes(memory, url, request):
    """Twelve live and four are killed somewhere; what the living were told they have is what is there."""
    rounds = 60 if request.config.getoption("--long") else 6
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    command = [sys.executable, "-m", "tests.attach.crowd", str(memory), url, str(seed), str(rounds)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not [result for result in found["results"] if "error" in result]
    living = [result for result in found["results"] if not result["doomed"]]
    assert sum(result["attached"] for result in living) > 0

    manager = open_manager(memory, url.split()[0])
    world = next(iter(manager.hosts.values())).guests._world
    assert manager.recover().complete
    assert world.breaches() == []
    report = manager.audit()
    assert report.clean, [str(finding) for finding in report.findings]
    manager.check()
    there = {leg.id: (leg.volume_id, leg.instance_id) for leg in manager.attachments()}
    told = {key: tuple(value) for result in living for key, value in result["having"].items()}
    assert {key: there.get(key) for key in told} == told
    for volume in found["volumes"]:
        users = manager.attachments(volume_id=volume)
        described = manager.volumes.volume(volume)
        assert described.multiattach or len(users) <= 1
        assert described.status == ("in-use" if users else "available")
        assert len(manager.volumes.attachments(volume_id=volume)) == len(users)
    for leg in manager.attachments():
        manager.detach(leg.id)
    assert {manager.volumes.volume(volume).status for volume in found["volumes"]} == {"available"}
    assert world.breaches() == []
    manager.close()
    manager._database.close()
