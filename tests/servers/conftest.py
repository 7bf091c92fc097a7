"""The servers of the examples, each in a process of its own, and the environment of the clients that judge them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import peer_env
from tests.services._host import CACHE, REPOSITORY


@pytest.fixture(scope="session")
def clients() -> Path:
    """The Python of OpenStack's clients."""
    if not (CACHE / "peers" / "clients" / "stamp").exists():
        pytest.skip("no environment with OpenStack's clients: bash scripts/setup clients")
    return peer_env("clients")


@contextlib.contextmanager
def serving(module: str, *arguments: str) -> Iterator[int]:
    """Run a module that prints the port it serves on; ended by closing what it reads."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def placement_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a Placement API that ``POST /-/begin`` makes anew."""
    with serving("tests.servers.placement_switch", str(tmp_path_factory.mktemp("placement"))) as port:
        yield port
