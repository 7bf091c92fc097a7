"""What the Placement API of the examples tells a caller when a server behind it fails: that, and nothing of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from cloudcore import PlacementTree
from cloudcore.errors import DatabaseError, DatabaseUnavailable
from tests.services._host import REPOSITORY

WORDS = "postgresql://nova@10.0.0.7/cell7: disk full"
ADMIN = {"x-auth-token": "admin", "x-roles": "admin", "openstack-api-version": "placement 1.39"}


@pytest.mark.parametrize(
    ("error", "status"),
    [(DatabaseUnavailable(WORDS), 503), (DatabaseError(WORDS), 500), (ZeroDivisionError(WORDS), 500)],
)
def test_a_failure_of_the_database_is_told_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    from placement_api.app import create_app

    def refresh(_: PlacementTree) -> int:
        raise error

    application = create_app(f"sqlite:///{tmp_path}/placement.db", auth="noauth")

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://here") as client:
            return await client.get("/resource_providers", headers=ADMIN)

    assert asyncio.run(get()).status_code == 200
    monkeypatch.setattr(PlacementTree, "refresh", refresh)
    answer = asyncio.run(get())
    assert answer.status_code == status
    assert not any(word in answer.text for word in ("10.0.0.7", "nova", "cell7", "disk"))
