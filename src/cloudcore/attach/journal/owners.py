"""Who holds a lease: which process of which boot of which machine, and whether that process lives.

Three answers, and the third counts: of a process on another machine nothing is known.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

__all__ = ["owner_is_alive", "owner_is_dead", "process_identity"]

_identities: dict[int, str] = {}


def process_identity() -> str:
    """Which process this is: boot, process-id namespace, process id, and when it started. Fork-safe."""
    pid = os.getpid()
    if pid not in _identities:
        _identities.clear()
        _identities[pid] = f"{_machine()}/{pid}/{_started(pid)}"
    return _identities[pid]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = re.sub(r"\D", "", Path("/proc/self/ns/pid").readlink().name)
    except OSError:
        return f"unknown-{uuid.uuid4()}"  # no /proc: never the same machine, so only expiry frees its leases
    return f"{boot}-{namespace}"


def _started(pid: int) -> str | None:
    """Start time of the process in clock ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:
        return "?"
    return None if fields[0] in {"Z", "X"} else fields[19]


def owner_is_dead(owner: str) -> bool:
    """Whether *owner* was a process of this boot of this machine that is no more. False when that cannot be told."""
    return _lives(owner) is False


def owner_is_alive(owner: str) -> bool:
    """Whether *owner* is a process of this machine that lives. False when that cannot be told."""
    return _lives(owner) is True


def _lives(owner: str) -> bool | None:
    parts = owner.split("/")
    if len(parts) < 3 or not parts[1].isdigit() or parts[0] != process_identity().split("/")[0]:
        return None
    started = _started(int(parts[1]))
    return None if started == "?" else started == parts[2]
