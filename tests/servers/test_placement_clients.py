"""Other people's clients of Placement: Nova's report client, osc-placement and openstacksdk against the example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def begin(port: int, **options: Any) -> None:
    """Give the example a new, empty database."""
    data = json.dumps({"generations": "placement", **options}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/-/begin", data, {"content-type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture
def real_port(clients: Path, tmp_path: Path) -> Iterator[int]:
    """Port of the real Placement, empty."""
    url = f"sqlite:///{tmp_path}/placement.db"
    command = [str(clients), str(HERE / "real_placement.py"), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def told(clients: Path, script: str, port: int) -> Any:
    command = [str(clients), str(HERE / script), str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_nova_sees_no_difference(clients: Path, placement_port: int, real_port: int) -> None:
    """The same calls of Nova's report client give the same answers and the same state as on the real service."""
    begin(placement_port)
    ours, real = (told(clients, "nova_script.py", port) for port in (placement_port, real_port))
    for mine, theirs in zip(ours["answers"], real["answers"], strict=True):
        assert mine == theirs
    assert ours["state"] == real["state"]
    assert len(ours["answers"]) >= 35


def session(clients: Path, port: int) -> str:
    """What `openstack` prints for the session, all commands in one process."""
    settings = {
        "OS_AUTH_TYPE": "admin_token",
        "OS_TOKEN": "admin",
        "OS_ENDPOINT": f"http://127.0.0.1:{port}",
        "OS_PLACEMENT_API_VERSION": "1.39",
    }
    with (HERE / "osc_session.txt").open() as commands:
        done = subprocess.run(
            [clients.with_name("openstack")],
            stdin=commands,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    printed = re.sub(r"\(HTTP \d+\).*|req-[0-9a-f-]+|[Ff]ound.*", "", done.stdout + done.stderr)
    printed = re.sub(r"{(.*)}", lambda found: ", ".join(sorted(found[1].split(", "))), printed)  # whatever its order
    return "\n".join(line for line in printed.splitlines() if "Warning" not in line)


def test_an_operators_session_looks_the_same(clients: Path, placement_port: int, real_port: int) -> None:
    """Thirty commands of osc-placement, refusals among them, print the same tables, generations included."""
    begin(placement_port)
    ours, real = session(clients, placement_port), session(clients, real_port)
    assert ours.count("cn1-numa0") == 2
    assert ours.splitlines() == real.splitlines()


def test_openstacksdk_finds_its_way(clients: Path, placement_port: int, real_port: int) -> None:
    begin(placement_port)
    ours = told(clients, "sdk_placement_script.py", placement_port)
    assert ours == told(clients, "sdk_placement_script.py", real_port)
    assert ["sdk-host", 0] in ours
