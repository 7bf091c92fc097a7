"""kill -9 at every step of attach, detach, moves and of recovery itself.

Afterwards: recovered in one go, every store agrees, no safety rule was broken at any moment, and everything can be used
again. Each scenario passes between twenty and a hundred points; `--long` dies at every one of them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cloudcore import _failpoints
from tests.attach.killing import SCENARIOS

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def memory():
    """A folder that costs no disk writes: a killed process does not lose what the kernel has."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cloudcore-kill-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def run(folder, points, *scenarios):
    command = [sys.executable, "-m", "tests.attach.killing", str(folder), str(points), *scenarios]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_any_point(memory, scenario, request):
    """Twelve points of each scenario, and more in the recoveries that follow: over two hundred processes die."""
    results = run(memory, 0 if request.config.getoption("--long") else 12, scenario)
    trouble = [f"{r['scenario']} {r['number']} {r['point']}: {r['trouble']}" for r in results if r["trouble"]]
    assert not trouble, f"{len(trouble)} of {len(results)}\n" + "\n".join(trouble[:3])
    assert sum(r["kills"] for r in results) >= 15


def test_every_point_of_the_area_is_passed(memory, tmp_path):
    """What no scenario passes, no battery kills."""
    import re

    source = "".join(path.read_text() for path in (REPOSITORY / "src/cloudcore/attach").rglob("*.py"))
    named = set(re.findall(r'failpoint\("(attach\.[a-z._]+)"\)', source))
    elsewhere = {"attach.extend.before", "attach.heal.before"}  # one guarded write, or remedies that are steps again
    elsewhere |= {"attach.surplus.begun"}  # in test_lost_races.py
    elsewhere |= {"attach.aside.reserved", "attach.reimaged"}  # in test_rebuild.py
    elsewhere |= {"attach.snapshot.frozen", "attach.snapshot.made"}  # in test_snapshots.py
    swapping = (REPOSITORY / "tests/attach/test_swapping.py").read_text()
    elsewhere |= set(re.findall(r'"(attach\.swap\.[a-z_]+)"', swapping))
    after_a_crash = {"attach.find.before", "attach.look.before", "attach.recover.begin", "attach.recover.lost"}
    from tests.attach import killing

    passed = set()
    for name, (prepare, work) in killing.SCENARIOS.items():
        folder = memory / name
        folder.mkdir()
        assert killing.forked(killing.in_cloud(folder, prepare)) is None
        passed |= set(killing.points(folder, work))
    assert named - passed <= elsewhere | after_a_crash
    _failpoints.disarm()
