"""Servers that stay up between test runs: `make services-up`, `make services-down`.

    python -m tests.services up [SERVICE...]      postgresql mariadb galera pgbouncer ceph cinder-file cinder-rbd
                                                  libvirt guest
    python -m tests.services down

`up` prints how to reach them, and the line that lets a test run use them instead of starting its own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests import services
from tests.services import _client
from tests.services._catalogue import missing
from tests.services._host import CACHE, ServiceError

NOTE = CACHE / "services"
"""Holds the name of the run folder of the servers that are up."""


def _ceph() -> list[str]:
    return [f"configuration {services.ceph().conf}"]


def _cinder(backend: str) -> list[str]:
    return [services.cinder(backend).endpoint]


STARTERS = {
    "postgresql": ("postgresql", lambda: [services.postgresql().admin_url]),
    "mariadb": ("mariadb", lambda: [services.mariadb().admin_url]),
    "galera": ("galera", lambda: [node.admin_url for node in services.galera().nodes]),
    "pgbouncer": ("pgbouncer", lambda: [services.pgbouncer().admin_url]),
    "libvirt": ("qemu", lambda: [host.uri for host in services.libvirt_hosts(2)]),
    "guest": ("guest", lambda: [services.guest().kernel, services.guest().initrd]),
    "cinder-file": ("cinder", lambda: _cinder("file")),
    "ceph": ("ceph", _ceph),
    "cinder-rbd": ("rbd", lambda: _cinder("rbd")),
}


def _running() -> Path | None:
    if not NOTE.exists():
        return None
    folder = Path(NOTE.read_text())
    return folder if (folder / "control").exists() else None


def up(names: list[str]) -> None:
    """Start them, in a run that nobody's end will end."""
    folder = _running()
    if folder is None:
        os.environ.pop(_client.RUN, None)
        _client.claim_run()
        folder = Path(os.environ[_client.RUN])
    os.environ[_client.RUN], os.environ[_client.OWNER] = str(folder), "0"
    for name in names or STARTERS:
        kind, start = STARTERS[name]
        if reason := missing(kind):
            print(f"{name}: left out, {reason}")
            continue
        print(f"{name}: {'  '.join(start())}", flush=True)
        NOTE.parent.mkdir(parents=True, exist_ok=True)
        NOTE.write_text(str(folder))
    print(f"\nto run tests on them: export {_client.RUN}={folder}\nto stop them: make services-down")


def down() -> None:
    """Stop them; nothing happens when none is up."""
    folder = _running()
    if folder is None:
        print("no servers are up")
        return
    os.environ[_client.RUN] = str(folder)
    _client.call("", "shutdown")
    deadline = time.monotonic() + 60
    while folder.exists():
        if time.monotonic() > deadline:
            raise ServiceError(f"servers are still running, see {folder}")
        time.sleep(0.02)
    NOTE.unlink()
    print("stopped")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up", *names]:
            up(names)
        case ["down"]:
            down()
        case _:
            sys.exit(__doc__)
