"""Rows of the table ``instances``, seeded: the same arguments give the same rows. Pure."""

from __future__ import annotations

import random
import uuid as uuids
from datetime import UTC, datetime, timedelta
from typing import Any

from cloudcore.testing.worlds.forests import new_uuid

__all__ = ["START", "instance_rows"]

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When small worlds begin."""

_DAYS = 180


def instance_rows(cell: int, number: int, *, project: str | None = None) -> list[dict[str, Any]]:
    """Instances of one cell, for :meth:`InstanceStore.create_many <cloudcore.InstanceStore.create_many>`.

    They are 40 hosts', 50 projects' and 200 users', made at whole seconds over 180 days from :data:`START`. Nine in ten
    do nothing, eight in ten run.

    Args:
        cell: Its number, which is the seed as well.
        number: Of rows.
        project: Whose all of them are; by chance when it is not given.
    """
    rng = random.Random(cell)
    return [_row(rng, cell, place, project) for place in range(number)]


def _row(rng: random.Random, cell: int, place: int, project: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uuid": new_uuid(rng),
        "created_at": START + timedelta(seconds=rng.randrange(_DAYS * 86400)),
        "project_id": project or f"project-{rng.randrange(50)}",
        "user_id": f"user-{rng.randrange(200)}",
        "display_name": f"vm-{cell}-{place}",
        "hostname": f"vm-{cell}-{place}",
        "host": f"host-{cell}-{rng.randrange(40)}",
        "node": f"host-{cell}-{rng.randrange(40)}",
        "availability_zone": f"az-{cell % 3}",
        "vm_state": rng.choice(["active"] * 8 + ["stopped", "error"]),
        "task_state": rng.choice([None] * 9 + ["rebooting"]),
        "power_state": 1,
        "flavor": "m1.small",
        "image_ref": str(uuids.UUID(int=rng.getrandbits(64), version=4)),
        "vcpus": rng.choice([1, 2, 4, 8]),
        "memory_mb": rng.choice([1024, 2048, 8192]),
        "disk_gb": 20,
        "locked": False,
        "hidden": False,
        "deleted": False,
    }
    return row | {"updated_at": row["created_at"], "launched_at": row["created_at"]}
