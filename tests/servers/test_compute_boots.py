"""Boots of the compute API that die, or whose cell is away: they hold nothing for ever, and a repeat goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudcore.errors import DatabaseUnavailable
from tests.services._host import REPOSITORY
from tests.waiting import until

sys.path.insert(0, str(REPOSITORY / "examples"))
from compute_api import cloud as compute
from compute_api.cloud import Caller, ComputeCloud

ADA = Caller(project_id="blue", user_id="ada")
WANTED: dict[str, Any] = {"name": "web", "flavor": "2"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[ComputeCloud]:
    """Its one cell is away until its folder is there."""
    cells = {"cell1": f"sqlite:///{tmp_path}/away/cell1.db"}
    hosts = dict.fromkeys(("host0", "host1", "host2"), "cell1")
    opened = ComputeCloud(f"sqlite:///{tmp_path}/cloud.db", cells, hosts)
    yield opened
    opened.close()


def come_back(cloud: ComputeCloud, folder: Path) -> None:
    (folder / "away").mkdir()
    cloud.store.create_tables("cell1")


def held(cloud: ComputeCloud) -> int:
    return cloud.ledger.usages().get("VCPU", 0)


def test_what_is_claimed_for_a_cell_that_is_away_lapses(
    cloud: ComputeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "CLAIM_SECONDS", 0.5)
    with pytest.raises(DatabaseUnavailable):
        cloud.boot(ADA, "given-up", WANTED)
    until(lambda: cloud.ledger.expire().consumers)
    assert held(cloud) == 0
    come_back(cloud, tmp_path)
    late = cloud.boot(ADA, "given-up", WANTED)
    assert (late["vm_state"], late["host"], held(cloud)) == ("error", None, 0)
    cloud.delete(ADA, late["uuid"])


def test_a_boot_lets_lapse_what_others_claimed(
    cloud: ComputeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to call anything for it."""
    with monkeypatch.context() as patch:
        patch.setattr(compute, "CLAIM_SECONDS", 0.001)
        with pytest.raises(DatabaseUnavailable):
            cloud.boot(ADA, "given-up", WANTED)
    come_back(cloud, tmp_path)
    running: list[str] = []

    def boot() -> bool:
        running.append(cloud.boot(ADA, f"other-{len(running)}", WANTED)["uuid"])
        return held(cloud) == 2 * len(running)

    until(boot)
    assert {cloud.router.get(each)["vm_state"] for each in running} == {"active"}


def test_a_boot_repeated_in_time_is_the_first(cloud: ComputeCloud, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        cloud.boot(ADA, "repeated", WANTED)
    come_back(cloud, tmp_path)
    for _ in range(2):
        (found,) = [cloud.boot(ADA, "repeated", WANTED)]
        assert (found["vm_state"], held(cloud)) == ("active", 2)
    consumer = cloud.ledger.consumer(found["uuid"])
    assert consumer is not None
    assert consumer.expires_at is None, "a server that runs keeps what it holds"
    (provider,) = consumer.allocations
    assert cloud.tree[provider].name == found["host"]


def test_a_boot_that_died_on_an_alternate_goes_on_there(
    cloud: ComputeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the host that failed would do by now: it is not held any more."""
    come_back(cloud, tmp_path)
    asked: list[str] = []

    def start(_: str, host: str, __: object) -> None:
        asked.append(host)
        if len(asked) == 1:
            raise RuntimeError("not yet")
        if len(asked) == 2:
            raise KeyboardInterrupt  # stands for kill -9

    monkeypatch.setattr(cloud.guests, "start", start)
    with pytest.raises(KeyboardInterrupt):
        cloud.boot(ADA, "died", WANTED)
    found = cloud.boot(ADA, "died", WANTED)
    (provider,) = cloud.ledger.allocations(found["uuid"])
    assert found["host"] == cloud.tree[provider].name == asked[1] == asked[2] != asked[0]
