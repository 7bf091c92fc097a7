"""Every state of every move, with a host that died: with evidence each leads out, without it nothing is forced.

The world is walked: a move is brought to a state (or killed there), a host dies, and then every way out that the page
names is tried, by a process that serves both hosts and by one that serves only the living one.
"""

import pytest

from cloudcore import errors
from cloudcore.attach.lifecycle.states import State
from cloudcore.hypervisor import MemoryHypervisor

from .conftest import instance
from .dying import Fencer, killed_at

SOURCE, GOAL, SPARE = "source", "goal", "spare"


class World:
    """An instance with two volumes on *source*, and three hosts."""

    def __init__(self, new_manager, volume_service):
        self.service = volume_service
        self.new_manager = new_manager
        self.hosts = {name: MemoryHypervisor(name) for name in (SOURCE, GOAL, SPARE)}
        self.manager = new_manager(volume_service.service, self.hosts.values(), patience=20.0)
        self.volumes, self.who = [volume_service.create_volume() for _ in range(2)], instance()

    def start(self, state="running"):
        self.hosts[SOURCE].add_guest(self.who, state=state)
        for volume in self.volumes:
            order = 1 if volume == self.volumes[0] else None
            self.manager.attach(volume, self.who, host=SOURCE, boot_order=order)

    def kill(self, name):
        self.hosts[name].faults.away = True
        self.dead = name

    def open(self, *dead, without=()):
        served = [host for name, host in self.hosts.items() if name not in without]
        return self.new_manager(self.service.service, served, patience=20.0, fencer=Fencer(*dead))

    def users(self):
        """On which living hosts the guest has which volume."""
        return {
            (name, state.volume_id)
            for name, host in self.hosts.items()
            if not host.faults.away
            for state in host.disk_states()
        }


@pytest.fixture
def world(new_manager, volume_service):
    return World(new_manager, volume_service)


def live(world, *, arrived=False):
    world.start()
    world.manager.begin_move(world.who, GOAL)
    if arrived:
        world.hosts[SOURCE].migrate(world.who, world.hosts[GOAL])


def live_beginning(world):
    world.start()
    with killed_at("attach.create.after", 2):
        world.manager.begin_move(world.who, GOAL)


def live_confirming(world):
    live(world, arrived=True)
    with killed_at("attach.arrive.after", 1):
        world.manager.confirm_move(world.who)


def live_reverting(world):
    live(world)
    with killed_at("attach.unmap.before", 1):
        world.manager.revert_move(world.who)


def off(world, kind):
    world.start(state="off")
    world.manager.begin_move(world.who, None if kind == "shelve" else GOAL, kind=kind)
    if kind != "shelve":
        world.hosts[GOAL].add_guest(world.who, state="off")


def off_beginning(world, kind):
    world.start(state="off")
    goal = None if kind == "shelve" else GOAL
    with killed_at("attach.unplug.before", 2):
        world.manager.begin_move(world.who, goal, kind=kind)
    if goal is not None:
        world.hosts[goal].add_guest(world.who, state="off")


def off_confirming(world, kind):
    off(world, kind)
    if kind == "shelve":
        world.hosts[GOAL].add_guest(world.who, state="off")
    with killed_at("attach.plug.after", 2):
        world.manager.confirm_move(world.who, GOAL)


def off_reverting(world, kind):
    off(world, kind)
    with killed_at("attach.plug.after", 2):
        world.manager.revert_move(world.who)


def evacuation(world):
    world.start()
    world.kill(SOURCE)
    world.open(SOURCE).begin_move(world.who, GOAL, kind="evacuation")
    world.hosts[GOAL].add_guest(world.who, state="off")


def evacuation_confirming(world):
    evacuation(world)
    manager = world.open(SOURCE)
    with killed_at("attach.plug.after", 2):
        manager.confirm_move(world.who)


def rebuilding(point):
    def prepare(world):
        world.start(state="off")
        with killed_at(point):
            world.manager.rebuild(world.who, world.service.image())

    return prepare


def rebuild_reverting(world):
    rebuilding("attach.aside.reserved")(world)
    with killed_at("attach.map.after"):
        world.manager.revert_move(world.who)


def snapshotting(point):
    def prepare(world):
        world.start()
        with killed_at(point):
            world.manager.snapshot(world.who, "nightly")

    return prepare


MOVES = {
    "live-beginning": live_beginning,
    "live-begun": live,
    "live-arrived": lambda world: live(world, arrived=True),
    "live-confirming": live_confirming,
    "live-reverting": live_reverting,
    "evacuation-begun": evacuation,
    "evacuation-confirming": evacuation_confirming,
    "rebuild-beginning": rebuilding("attach.unmap.before"),
    "rebuild-reimaging": rebuilding("attach.reimaged"),
    "rebuild-confirming": rebuilding("attach.plug.after"),
    "rebuild-reverting": rebuild_reverting,
    "snapshot-freezing": snapshotting("attach.move.begun"),
    "snapshot-frozen": snapshotting("attach.snapshot.frozen"),
    "snapshot-made": snapshotting("attach.snapshot.made"),
}
for one in ("cold", "shelve"):
    MOVES[f"{one}-begun"] = lambda world, kind=one: off(world, kind)
    MOVES[f"{one}-beginning"] = lambda world, kind=one: off_beginning(world, kind)
    MOVES[f"{one}-confirming"] = lambda world, kind=one: off_confirming(world, kind)
    MOVES[f"{one}-reverting"] = lambda world, kind=one: off_reverting(world, kind)


def cases(names, dead):
    """Every combination on embedded volumes; two of each on a real Cinder with Ceph, the rest there with ``--long``."""
    found = []
    for name in names:
        for host in dead:
            if host == SOURCE and name.startswith("evacuation"):
                continue  # it is dead in any case
            for served in (True, False):
                values = (name, host, served)
                identifier = f"{name}-{host}-{'served' if served else 'elsewhere'}"
                found.append(pytest.param("embedded", *values, id=f"embedded-{identifier}"))
                often = values in {("live-begun", GOAL, False), ("cold-confirming", GOAL, True)}
                marks = [pytest.mark.services] if often else [pytest.mark.services, pytest.mark.slow]
                found.append(pytest.param("cinder-rbd", *values, id=f"cinder-rbd-{identifier}", marks=marks))
    return pytest.mark.parametrize(("volume_service", "name", "dead", "served"), found, indirect=["volume_service"])


def tried(*calls):
    """The first call that succeeds, or the last error."""
    said = []
    for call in calls:
        try:
            call()
        except errors.CloudcoreError as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            return None
    return said


def ways_out(manager, who, alive):
    """In the order of the page: recover, revert, begin it again, confirm (elsewhere), evacuate from where it is."""
    manager.recover()
    tried(
        lambda: manager.revert_move(who),
        lambda: manager.confirm_move(who),
        lambda: manager.confirm_move(who, alive),
    )
    move = manager.move(who)
    if move is not None:
        tried(lambda: manager.begin_move(who, move.destination, kind=move.kind))
        tried(lambda: manager.confirm_move(who, alive), lambda: manager.revert_move(who))
    if any(leg.host not in {None, alive} for leg in manager.attachments(instance_id=who)):
        tried(lambda: manager.begin_move(who, alive, kind="evacuation"))
        tried(lambda: manager.confirm_move(who))


@cases(MOVES, [SOURCE, GOAL])
def test_with_evidence_every_state_leads_to_a_living_host(world, name, dead, served):
    """The instance ends up with both volumes, attached, on a host that lives."""
    MOVES[name](world)
    gone = {dead, SOURCE} if name.startswith("evacuation") else {dead}
    world.kill(dead)
    alive = SPARE
    if world.who not in world.hosts[SPARE]._driver.guests:
        world.hosts[SPARE].add_guest(world.who, state="off")
    manager = world.open(*gone, without=() if served else gone)
    ways_out(manager, world.who, alive)
    assert manager.move(world.who) is None, manager.move(world.who)
    legs = manager.attachments(instance_id=world.who)
    assert {(leg.volume_id, leg.state) for leg in legs} == {(volume, State.ATTACHED) for volume in world.volumes}
    assert len(legs) == 2
    (host,) = {leg.host for leg in legs}
    assert host not in gone
    assert {volume for name, volume in world.users() if name == host} == set(world.volumes)
    for volume in world.volumes:
        assert world.service.statuses(volume) == ("in-use", ["attached"])
    assert manager.recover().complete
    assert world.service.snapshots() == []
    assert manager.terminate(world.who) == ()


@cases(MOVES, [None, SOURCE, GOAL])
def test_an_instance_can_end_in_any_state(world, name, dead, served):
    """With its move: every volume is free, nothing is left over anywhere."""
    MOVES[name](world)
    gone = {SOURCE} if name.startswith("evacuation") else set()
    if dead is not None:
        gone.add(dead)
        world.kill(dead)
    for host in world.hosts.values():
        if not host.faults.away and world.who in host._driver.guests:
            host.stop(world.who)
    manager = world.open(*gone, without=() if served else gone)
    assert manager.terminate(world.who, force=True) == ()
    assert manager.move(world.who) is None
    assert manager.attachments(instance_id=world.who) == ()
    for volume in world.volumes:
        assert world.service.statuses(volume) == ("available", [])
    assert world.users() == set()
    assert world.service.snapshots() == []
    assert manager.terminate(world.who) == ()


@cases([name for name in MOVES if not name.startswith(("evacuation", "shelve"))], [SOURCE, GOAL])
def test_without_evidence_nothing_is_forced(world, name, dead, served):
    """Whatever is tried: no volume has two users, none is free while a guest may have it, and it leads out later."""
    MOVES[name](world)
    had = {state.volume_id for state in world.hosts[dead].disk_states()}
    world.kill(dead)
    manager = world.open(without=() if served else (dead,))
    world.hosts[SPARE].add_guest(world.who, state="off")
    ways_out(manager, world.who, SPARE)
    tried(lambda: manager.terminate(world.who), lambda: manager.terminate(world.who, force=True))
    for volume in had:
        assert world.service.statuses(volume)[0] != "available"
    world.hosts[dead].faults.away = False
    assert len({host for host, _ in world.users()} & {SOURCE, GOAL}) <= 1 or name == "live-begun"
    for host in world.hosts.values():
        if world.who in host._driver.guests:
            host.stop(world.who)
    manager = world.open()
    manager.recover()
    assert manager.terminate(world.who) == ()
    for volume in world.volumes:
        assert world.service.statuses(volume) == ("available", [])
