"""Kill a process at every point that selecting and rescheduling pass, and look at what is held then.

Run as a program, so that it forks from a process without threads:
``python -m tests.placement.selector_killing FOLDER`` prints one JSON line for each kill.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from cloudcore import Database, create_schema
from cloudcore._failpoints import arm, disarm
from cloudcore.errors import MaxRetriesExceeded
from cloudcore.placement import Selection, reschedule
from tests.killing import forked, killing
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud

VM, MIGRATION = uuid_of("vm"), uuid_of("migration")


def opened(folder: Path) -> Cloud:
    database = Database(f"sqlite:///{folder / 'cloud.db'}", durable=False)
    create_schema(database, areas=["placement"])
    return Cloud(database)


def selection(folder: Path) -> Selection:
    return Selection.from_json((folder / "selection.json").read_text())


# --- how the cloud is before, and what is killed ----------------------------------------------------------------------


def empty(cloud: Cloud, folder: Path) -> None:
    cloud.add_hosts(1, 4)


def booted(cloud: Cloud, folder: Path) -> None:
    empty(cloud, folder)
    (chosen,) = cloud.select(instances=[VM])
    (folder / "selection.json").write_text(chosen.to_json())


def moving(cloud: Cloud, folder: Path) -> None:
    booted(cloud, folder)
    chosen = cloud.selector.select_destination(VM, MIGRATION, FLAVOUR)
    (folder / "selection.json").write_text(chosen.to_json())


def last(cloud: Cloud, folder: Path) -> None:
    booted(cloud, folder)
    for _ in range(2):
        reschedule(cloud.ledger, selection(folder), failed="x")


def boot(cloud: Cloud, folder: Path) -> None:
    cloud.select(3, instances=[VM, uuid_of("b"), uuid_of("c")], operation_id="the-call")


def again(cloud: Cloud, folder: Path) -> None:
    reschedule(cloud.ledger, selection(folder), failed="x", operation_id="the-call")


def again_moving(cloud: Cloud, folder: Path) -> None:
    reschedule(cloud.ledger, selection(folder), failed="x", migration=MIGRATION, operation_id="the-call")


def give_up(cloud: Cloud, folder: Path) -> None:
    try:
        again(cloud, folder)
    except MaxRetriesExceeded:
        return
    raise AssertionError("an alternate was left")


def migrate(cloud: Cloud, folder: Path) -> None:
    cloud.selector.select_destination(VM, MIGRATION, FLAVOUR, operation_id="the-call")


Work = Callable[[Cloud, Path], None]
SCENARIOS: dict[str, tuple[Work, Work]] = {
    "select": (empty, boot),
    "reschedule": (booted, again),
    "reschedule-to-the-end": (last, give_up),
    "select-destination": (booted, migrate),
    "reschedule-moving": (moving, again_moving),
}


# --- processes --------------------------------------------------------------------------------------------------------


def in_cloud(folder: Path, work: Work, kill_at: int | None = None) -> Callable[[], None]:
    def run() -> None:
        cloud = opened(folder)
        if kill_at is not None:
            killing(kill_at)
        work(cloud, folder)
        disarm()
        cloud.close()

    return run


def held(cloud: Cloud) -> dict[str, object]:
    """What every consumer of the scenarios holds."""
    consumers = (VM, MIGRATION, uuid_of("b"), uuid_of("c"))
    return {consumer: cloud.ledger.allocations(consumer) for consumer in consumers}


def judge(before: object, after: object, work: Work) -> Work:
    """Killed, all is as it was or as it shall be, and the repeated call makes it as it shall be."""

    def look(cloud: Cloud, folder: Path) -> None:
        cloud.check()
        found = held(cloud)
        assert found in (before, after), f"between the two: {found}"
        work(cloud, folder)
        assert held(cloud) == after, "the repeated call"
        work(cloud, folder)
        assert held(cloud) == after, "the call repeated once more"
        cloud.check()

    return look


def snapshot(folder: Path, work: Work) -> tuple[object, object, list[str]]:
    """What is held before and after the work, and the points that it passes."""
    names: list[str] = []

    def run() -> None:
        cloud = opened(folder)
        before = held(cloud)
        arm("*", names.append)
        work(cloud, folder)
        disarm()
        (folder / "note.json").write_text(json.dumps([before, held(cloud), names]))
        cloud.close()

    trouble = forked(run)
    assert trouble is None, trouble
    before, after, passed = json.loads((folder / "note.json").read_text())
    return before, after, passed


def battery(folder: Path, name: str) -> None:
    prepare, work = SCENARIOS[name]
    template = folder / name
    template.mkdir()
    trouble = forked(in_cloud(template, prepare))
    assert trouble is None, trouble
    counted = shutil.copytree(template, folder / f"{name}-count")
    before, after, names = snapshot(counted, work)
    for number, point in enumerate(names, 1):
        place = shutil.copytree(template, folder / f"{name}-{number}")
        outcome = forked(in_cloud(place, work, kill_at=number))
        trouble = (
            f"not killed: {outcome}" if outcome != "killed" else forked(in_cloud(place, judge(before, after, work)))
        )
        print(json.dumps({"scenario": name, "point": point, "number": number, "trouble": trouble}), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or SCENARIOS:
        battery(Path(sys.argv[1]), chosen)
