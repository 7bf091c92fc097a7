"""The compute API of the examples as a process that can be killed and started again at the same place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.services._host import REPOSITORY


class ComputeServer:
    """One server process over one folder."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, "COMPUTE_FOLDER": str(folder)}
        if database is not None:
            self._environment["COMPUTE_DATABASE"] = database
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "compute_api.app:create_app", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--app-dir", str(REPOSITORY / "examples"), "--log-level", "error"], env=self._environment
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                assert self._process.poll() is None, "the server ended by itself"
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(30)
