"""Which services there are, what each needs to be installed, and how the supervisor makes one.

A name is `KIND` or `KIND:VARIANT`; every name is a server of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services import _databases
from tests.services._host import Ports, ServiceError

if TYPE_CHECKING:
    from tests.services._supervisor import Service

Depend = Callable[[str], dict[str, object]]
"""Starts another service and returns its `info()`."""


def missing(kind: str) -> str | None:
    """What this machine lacks to run such a service, and the line that installs it; None when it is all there."""
    wants = {
        "postgresql": [("postgresql", _databases.postgresql_binaries())],
        "mariadb": [("mariadb-server", _databases.mariadb_server() and shutil.which("mariadb-install-db"))],
    }
    if kind not in wants:
        raise ValueError(f"no such service: {kind}; there are {', '.join(wants)}")
    packages = [package for package, found in wants[kind] if not found]
    return f"{kind} is not installed: apt-get install {' '.join(packages)}" if packages else None


def create(name: str, folder: Path, ports: Ports, depend: Depend) -> Service:
    """The service of this name, not started."""
    kind, _, variant = name.partition(":")
    if reason := missing(kind):
        raise ServiceError(reason)
    if kind == "postgresql":
        return _databases.PostgreSQL(folder, ports, durable=variant.endswith("durable"))
    return _databases.MariaDB(folder, ports, durable=variant.endswith("durable"))
