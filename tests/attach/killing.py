"""Kill a process at every point that it passes, recover in another, and look at what is left.

Run as a program, so that it forks from a process without threads: ``python -m tests.attach.killing FOLDER POINTS
SCENARIO...`` prints one JSON line for each point at which it killed. POINTS is how many of a scenario's points are
chosen, evenly; 0 chooses all.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from cloudcore import _failpoints
from cloudcore.attach.lifecycle.fencing import Evidence
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.database import Database
from cloudcore.schema import create_schema
from cloudcore.testing.stored import StoredHost, StoredWorld, WatchedVolumes
from tests.killing import forked, killing

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"
EXCLUSIVE = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
SHARED = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
HERE, THERE = "compute-1", "compute-2"


class Fencer:
    def evidence(self, host: str) -> Evidence:
        import datetime as dt

        at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        return Evidence(host=host, kind="power-off", by="the test", at=at)


class Cloud:
    """Everything that one process opens."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder / 'cloud.db'}", durable=False)
        self.world = StoredWorld(folder / "world.db")
        self.embedded = EmbeddedVolumes(
            self.database, service_uuid="33333333-3333-4333-8333-333333333333", shared_targets=True
        )
        self.volumes = WatchedVolumes(self.embedded, self.world)
        hosts = {name: StoredHost(self.world, name) for name in (HERE, THERE)}
        self.manager = AttachmentManager(
            self.database, self.volumes, hosts.values(), connectors=hosts, fencer=Fencer(), patience=20
        )

    def of(self, volume_id: str, instance_id: str = ONE) -> list:
        return list(self.manager.attachments(volume_id=volume_id, instance_id=instance_id))

    def check(self) -> None:
        """Nothing is left in the middle, and every store agrees."""
        assert self.world.breaches() == []
        report = self.manager.audit()
        assert report.clean, [str(finding) for finding in report.findings]
        assert not any(leg.interrupted for leg in self.manager.attachments())
        self.manager.check()
        self.embedded.check()
        with self.database.read() as connection:
            left = connection.exec_driver_sql("SELECT name, owner FROM attachment_locks").all()
        assert left == [], left

    def use(self) -> None:
        """Whatever was there can be finished, taken away, and had anew."""
        for instance_id in (ONE, TWO):
            move = self.manager.move(instance_id)
            if move is not None:
                self.finish(instance_id, move)
        for leg in self.manager.attachments():
            self.manager.detach(leg.id)
        for volume_id in (EXCLUSIVE, SHARED):
            assert self.embedded.volume(volume_id).status == "available"
            self.manager.detach(self.manager.attach(volume_id, ONE, host=HERE).id)
            assert self.embedded.volume(volume_id).status == "available"
        self.check()

    def finish(self, instance_id: str, move) -> None:
        if move.kind == "evacuation":
            self.manager.confirm_move(instance_id)
        elif move.kind == "shelve":
            self.manager.confirm_move(instance_id, THERE)
        elif move.kind == "live" and any(
            s.instance_id == instance_id for s in self.manager.hosts[THERE].guests.disk_states()
        ):
            self.manager.confirm_move(instance_id)
        else:
            self.manager.revert_move(instance_id)

    def close(self) -> None:
        self.manager.close()
        self.world.close()
        self.database.close()


# --- scenarios: how the world is before, and what is killed ---------------------------------------------------------


def nothing(cloud: Cloud) -> None:
    create_schema(cloud.database, areas=["attach"])
    cloud.embedded.create_volume(volume_id=EXCLUSIVE)
    cloud.embedded.create_volume(volume_id=SHARED, multiattach=True)


def attached(cloud: Cloud) -> None:
    nothing(cloud)
    cloud.manager.attach(EXCLUSIVE, ONE, host=HERE)
    cloud.manager.attach(SHARED, ONE, host=HERE)
    cloud.manager.attach(SHARED, TWO, host=HERE)


def begun(kind: str, destination: str | None) -> Callable[[Cloud], None]:
    def prepare(cloud: Cloud) -> None:
        (dead if kind == "evacuation" else attached)(cloud)
        cloud.manager.begin_move(ONE, destination, kind=kind)

    return prepare


def arrived(cloud: Cloud) -> None:
    begun("live", THERE)(cloud)
    cloud.world.migrate(ONE, HERE, THERE)


def dead(cloud: Cloud) -> None:
    nothing(cloud)
    cloud.manager.attach(EXCLUSIVE, ONE, host=HERE)
    cloud.manager.attach(SHARED, ONE, host=HERE)
    cloud.world.kill_host(HERE)


def mortal(cloud: Cloud) -> None:
    """ONE ends with its exclusive volume."""
    attached(cloud)
    cloud.manager.set_delete_on_termination(cloud.of(EXCLUSIVE)[0].id, True)


def reserved(cloud: Cloud) -> None:
    nothing(cloud)
    cloud.manager.reserve(EXCLUSIVE, ONE)


def ended_moving(cloud: Cloud) -> None:
    """A repeat ends the instance and its move, wherever it was killed."""
    assert cloud.manager.terminate(ONE) == ()
    assert cloud.manager.move(ONE) is None
    assert cloud.manager.attachments(instance_id=ONE) == ()
    assert cloud.embedded.volume(EXCLUSIVE).status == "available"


def ended(cloud: Cloud) -> None:
    """A repeat finishes what was begun: one volume is gone, the other is as TWO has it."""
    assert cloud.manager.terminate(ONE) == ()
    assert [volume.id for volume in cloud.embedded.volumes()] == [SHARED]
    assert cloud.embedded.volume(SHARED).status == "in-use"
    cloud.embedded.create_volume(volume_id=EXCLUSIVE)


def attach(volume_id: str) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.manager.attach(volume_id, ONE, host=HERE)


def detach(volume_id: str) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.manager.detach(cloud.of(volume_id)[0].id)


def move(kind: str, destination: str | None) -> Callable[[Cloud], None]:
    return lambda cloud: cloud.manager.begin_move(ONE, destination, kind=kind)


SCENARIOS: dict[str, tuple[Callable[[Cloud], None], Callable[[Cloud], object]]] = {
    "attach": (nothing, attach(EXCLUSIVE)),
    "attach-shared": (lambda cloud: (nothing(cloud), cloud.manager.attach(SHARED, TWO, host=HERE)), attach(SHARED)),
    "detach": (attached, detach(EXCLUSIVE)),
    "detach-shared": (attached, detach(SHARED)),
    "live-begin": (attached, move("live", THERE)),
    "live-confirm": (arrived, lambda cloud: cloud.manager.confirm_move(ONE)),
    "live-revert": (begun("live", THERE), lambda cloud: cloud.manager.revert_move(ONE)),
    "cold-begin": (attached, move("cold", THERE)),
    "cold-confirm": (begun("cold", THERE), lambda cloud: cloud.manager.confirm_move(ONE)),
    "cold-revert": (begun("cold", THERE), lambda cloud: cloud.manager.revert_move(ONE)),
    "shelve": (attached, move("shelve", None)),
    "unshelve": (begun("shelve", None), lambda cloud: cloud.manager.confirm_move(ONE, THERE)),
    "evacuate": (dead, move("evacuation", THERE)),
    "terminate": (mortal, lambda cloud: cloud.manager.terminate(ONE)),
    "terminate-live": (begun("live", THERE), lambda cloud: cloud.manager.terminate(ONE)),
    "terminate-arrived": (arrived, lambda cloud: cloud.manager.terminate(ONE)),
    "terminate-shelved": (begun("shelve", None), lambda cloud: cloud.manager.terminate(ONE)),
    "reserve": (nothing, lambda cloud: cloud.manager.reserve(EXCLUSIVE, ONE)),
    "attach-reserved": (reserved, attach(EXCLUSIVE)),
    "evacuate-confirm": (begun("evacuation", THERE), lambda cloud: cloud.manager.confirm_move(ONE)),
}


# --- processes -------------------------------------------------------------------------------------------------------


def in_cloud(folder: Path, work: Callable[[Cloud], object], kill_at: int | None = None) -> Callable[[], None]:
    def run() -> None:
        cloud = Cloud(folder)
        if kill_at is not None:
            killing(kill_at)
        work(cloud)
        _failpoints.disarm()
        cloud.close()

    return run


def points(folder: Path, work: Callable[[Cloud], object]) -> list[str]:
    """The names of the points that *work* passes, in order."""
    names: list[str] = []
    note = folder / "points.json"

    def run() -> None:
        cloud = Cloud(folder)
        _failpoints.arm("*", names.append)
        work(cloud)
        _failpoints.disarm()
        note.write_text(json.dumps(names))
        cloud.close()

    trouble = forked(run)
    assert trouble is None, trouble
    return json.loads(note.read_text())


def recover(cloud: Cloud) -> None:
    cloud.manager.recover()


def settle(name: str, *, use: bool) -> Callable[[Cloud], None]:
    def work(cloud: Cloud) -> None:
        cloud.manager.recover()
        report = cloud.manager.recover()
        assert report.settled == (), "the second recovery found something left by the first"
        assert report.complete, report
        if name == "evacuate" and cloud.manager.move(ONE) is None:
            move("evacuation", THERE)(cloud)  # it had not begun; until it does, an audit names what died with the host
        if name == "terminate":
            ended(cloud)
        elif name.startswith("terminate"):
            ended_moving(cloud)
        cloud.check()
        if use:
            cloud.use()

    return work


def battery(folder: Path, name: str, *, chosen: int) -> None:
    prepare, work = SCENARIOS[name]
    template = folder / f"{name}-template"
    template.mkdir()
    trouble = forked(in_cloud(template, prepare))
    assert trouble is None, trouble
    names = points(copy(template, folder / f"{name}-count"), work)
    step = max(1.0, len(names) / chosen) if chosen else 1.0
    numbers = sorted({int(index * step) + 1 for index in range(int(len(names) / step))})
    for turn, number in enumerate(numbers):
        place = copy(template, folder / f"{name}-{number}")
        outcome = forked(in_cloud(place, work, kill_at=number))
        kills = 1
        if outcome == "killed" and turn % 5 == 3:
            for second in range(1 + number % 5, 60, 11):  # recovery dies too, several times, further and further on
                if forked(in_cloud(place, recover, kill_at=second)) != "killed":
                    break
                kills += 1
        trouble = f"not killed: {outcome}"
        if outcome == "killed":
            trouble = forked(in_cloud(place, settle(name, use=turn % 3 == 0)))
        line = {"scenario": name, "point": names[number - 1], "number": number, "kills": kills, "trouble": trouble}
        print(json.dumps(line), flush=True)
        if trouble is None:
            shutil.rmtree(place)


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


if __name__ == "__main__":
    for scenario in sys.argv[3:] or SCENARIOS:
        battery(Path(sys.argv[1]), scenario, chosen=int(sys.argv[2]))
