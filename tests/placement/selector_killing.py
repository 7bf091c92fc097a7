"""Kill a process at every point that selecting and rescheduling pass, and look at what is held then.

Run as a program, so that it forks from a process without threads:
``python -m tests.placement.selector_killing URL SCENARIO STEP`` prints the points, and one JSON line for each kill, at
every STEP-th point and at the last two. Each kill has instances of its own, on the same four hosts, empty in between.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import attrs
import sqlalchemy as sa

from cloudcore import Database, create_schema
from cloudcore._failpoints import arm, disarm
from cloudcore.errors import ConsumerNotFound, MaxRetriesExceeded
from cloudcore.placement import HostGroup, Selection, reschedule
from tests.killing import forked, killing
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud

SENT = sa.Table("sent", sa.MetaData(), sa.Column("tag", sa.String(80)), sa.Column("text", sa.Text))
NAMES = ("vm", "migration", "b", "c")


@attrs.frozen
class Trial:
    """The consumers and the call of one trial."""

    tag: str

    def uuid(self, name: str) -> str:
        return uuid_of(f"{self.tag}/{name}")

    @property
    def call(self) -> str:
        return f"{self.tag}/call"

    def keep(self, cloud: Cloud, chosen: Selection) -> None:
        """The selection travels in a table, as it would in a message."""
        with cloud.database.write() as connection:
            connection.execute(sa.delete(SENT).where(SENT.c.tag == self.tag))
            connection.execute(sa.insert(SENT).values(tag=self.tag, text=chosen.to_json()))

    def kept(self, cloud: Cloud) -> Selection:
        with cloud.database.read() as connection:
            return Selection.from_json(connection.scalars(sa.select(SENT.c.text).where(SENT.c.tag == self.tag)).one())

    def held(self, cloud: Cloud) -> dict[str, object]:
        """What each consumer of the trial holds."""
        return {name: cloud.ledger.allocations(self.uuid(name)) for name in NAMES}


def opened(url: str) -> Cloud:
    return Cloud(Database(url, durable=False))


# --- how the cloud is before, and what is killed ----------------------------------------------------------------------


def empty(cloud: Cloud, trial: Trial) -> None:
    """Nothing is there."""


def booted(cloud: Cloud, trial: Trial) -> None:
    (chosen,) = cloud.select(instances=[trial.uuid("vm")])
    trial.keep(cloud, chosen)


def moving(cloud: Cloud, trial: Trial) -> None:
    booted(cloud, trial)
    trial.keep(cloud, cloud.selector.select_destination(trial.uuid("vm"), trial.uuid("migration"), FLAVOUR))


def last(cloud: Cloud, trial: Trial) -> None:
    booted(cloud, trial)
    for _ in range(2):
        reschedule(cloud.ledger, trial.kept(cloud), failed="x")


def boot(cloud: Cloud, trial: Trial) -> None:
    cloud.select(3, instances=[trial.uuid(name) for name in ("vm", "b", "c")], operation_id=trial.call)


def boot_group(cloud: Cloud, trial: Trial) -> None:
    group = HostGroup(policy="anti-affinity", uuid=trial.uuid("group"))
    cloud.select(2, instances=[trial.uuid(name) for name in ("vm", "b")], group=group, operation_id=trial.call)


def again(cloud: Cloud, trial: Trial) -> None:
    reschedule(cloud.ledger, trial.kept(cloud), failed="x", operation_id=trial.call)


def again_moving(cloud: Cloud, trial: Trial) -> None:
    migration = trial.uuid("migration")
    reschedule(cloud.ledger, trial.kept(cloud), failed="x", migration=migration, operation_id=trial.call)


def give_up(cloud: Cloud, trial: Trial) -> None:
    try:
        again(cloud, trial)
    except MaxRetriesExceeded:
        return
    raise AssertionError("an alternate was left")


def migrate(cloud: Cloud, trial: Trial) -> None:
    cloud.selector.select_destination(trial.uuid("vm"), trial.uuid("migration"), FLAVOUR, operation_id=trial.call)


Work = Callable[[Cloud, Trial], None]
SCENARIOS: dict[str, tuple[Work, Work]] = {
    "select": (empty, boot),
    "select-group": (empty, boot_group),
    "reschedule": (booted, again),
    "reschedule-to-the-end": (last, give_up),
    "select-destination": (booted, migrate),
    "reschedule-moving": (moving, again_moving),
}


# --- processes --------------------------------------------------------------------------------------------------------


def in_cloud(url: str, trial: Trial, work: Work, kill_at: int | None = None) -> Callable[[], None]:
    def run() -> None:
        cloud = opened(url)
        if kill_at is not None:
            killing(kill_at)
        work(cloud, trial)
        disarm()
        cloud.close()

    return run


def judge(before: object, after: object, work: Work) -> Work:
    """Killed, all is as it was or as it shall be, and the repeated call makes it as it shall be."""

    def look(cloud: Cloud, trial: Trial) -> None:
        cloud.check()
        found = trial.held(cloud)
        assert found in (before, after), f"between the two: {found}"
        for times in ("once", "twice"):
            work(cloud, trial)
            assert trial.held(cloud) == after, f"repeated {times}"
        cloud.check()
        clear(cloud, trial)

    return look


def clear(cloud: Cloud, trial: Trial) -> None:
    for name in NAMES:
        try:
            cloud.ledger.release(trial.uuid(name), forever=True)
        except ConsumerNotFound:
            continue


def run_whole(url: str, trial: Trial, prepare: Work, work: Work) -> tuple[object, object, list[str]]:
    """What is held before and after the work, and the points that it passes."""
    prepared = opened(url)
    prepare(prepared, trial)
    prepared.close()
    cloud = opened(url)  # as the one that is killed: its tree is new
    before, names = trial.held(cloud), []
    arm("*", names.append)
    work(cloud, trial)
    disarm()
    after = trial.held(cloud)
    clear(cloud, trial)
    cloud.close()
    return before, after, names


def reported(work: Callable[[], object]) -> object:
    """The answer of a child."""
    reader, writer = os.pipe()

    def run() -> None:
        with os.fdopen(writer, "w") as pipe:
            json.dump(work(), pipe)

    trouble = forked(run)
    os.close(writer)
    assert trouble is None, trouble
    with os.fdopen(reader) as pipe:
        return json.load(pipe)


def build(url: str) -> None:
    database = Database(url, durable=False)
    create_schema(database, areas=["placement"])
    SENT.create(database.engine)
    cloud = Cloud(database)
    cloud.add_hosts(1, 4)
    cloud.close()


def battery(url: str, name: str, step: int) -> None:
    prepare, work = SCENARIOS[name]
    reported(lambda: build(url))
    before, after, names = reported(lambda: run_whole(url, Trial(f"{name}/whole"), prepare, work))
    print(json.dumps(names), flush=True)
    numbers = range(1, len(names) + 1)
    for number in sorted({*numbers[::step], *numbers[-2:]}):
        trial = Trial(f"{name}/{number}")
        assert (trouble := forked(in_cloud(url, trial, prepare))) is None, trouble
        outcome = forked(in_cloud(url, trial, work, kill_at=number))
        trouble = f"not killed: {outcome}"
        if outcome == "killed":
            trouble = forked(in_cloud(url, trial, judge(before, after, work)))
        print(json.dumps({"point": names[number - 1], "number": number, "trouble": trouble}), flush=True)


if __name__ == "__main__":
    battery(sys.argv[1], sys.argv[2], int(sys.argv[3]))
