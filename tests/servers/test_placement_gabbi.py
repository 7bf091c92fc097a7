"""Placement's own suite of 1,316 tests (gabbi, shipped in its package) against the Placement API of the examples."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.servers.gabbi_expected import ALWAYS, COUNTED_OTHERWISE

RUNNER = Path(__file__).with_name("gabbi_runner.py")
WHOLE = 1316


def run(python: Path, port: int, generations: str) -> dict[str, str | None]:
    """Test → why it failed, or None."""
    command = [str(python), str(RUNNER), str(port), json.dumps({"generations": generations})]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("generations", "expected"),
    [("placement", {*ALWAYS}), ("cloudcore", {*ALWAYS, *COUNTED_OTHERWISE})],
)
def test_the_suite_passes_but_for_what_is_listed(
    clients: Path, placement_port: int, generations: str, expected: set[str]
) -> None:
    """The count is pinned: what fails beyond the list is a fault, what passes in spite of it leaves the list."""
    found = run(clients, placement_port, generations)
    failed = {name: why for name, why in found.items() if why is not None}
    print(f"generations={generations}: {len(found) - len(failed)} of {len(found)} pass")
    assert len(found) == WHOLE
    beyond = {name: str(why)[:400] for name, why in failed.items() if name not in expected}
    assert beyond == {}
    assert expected - failed.keys() == set(), "these pass by now: take them off the list"
