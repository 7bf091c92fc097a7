"""Every verb in every state of one attachment, with its host alive, dead with evidence, and dead without.

What must hold whatever is called: no bare error; no volume free while a guest may have it; no volume deleted that
somebody kept; and in the end a documented way out.
"""

import pytest

from cloudcore import errors
from cloudcore.attach.lifecycle.states import State
from cloudcore.disks import DetachOutcome
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.testing.volumes import GIB, FakeVolumes
from tests.waiting import until

from .conftest import instance
from .dying import Fencer, killed_at

HERE, THERE = "compute-1", "compute-2"


class World:
    def __init__(self, new_manager, volume_service):
        self.service, self.new_manager = volume_service, new_manager
        self.faulty = FakeVolumes(volume_service.service)
        self.hosts = {name: MemoryHypervisor(name) for name in (HERE, THERE)}
        self.volume, self.who = volume_service.create_volume(), instance()
        self.hosts[HERE].add_guest(self.who)
        self.manager = self.open()

    def open(self, *, fencer=None, without=()):
        served = [host for name, host in self.hosts.items() if name not in without]
        return self.new_manager(self.faulty, served, patience=10.0, fencer=fencer)

    def attach(self, manager=None):
        return (manager or self.manager).attach(
            self.volume, self.who, host=HERE, delete_on_termination=True, boot_order=1
        )

    def leg(self):
        return next(iter(self.manager.attachments(volume_id=self.volume)), None)

    def guest_has_it(self):
        """Even if nobody could ask it now."""
        faults = self.hosts[HERE].faults
        away, faults.away = faults.away, False
        found = [state for state in self.hosts[HERE].disk_states() if state.volume_id == self.volume]
        faults.away = away
        return bool(found)


def killed_attaching(point):
    def prepare(world):
        with killed_at(point):
            world.attach()

    return prepare


def killed_detaching(point):
    def prepare(world):
        made = world.attach()
        with killed_at(point):
            world.manager.detach(made.id, boot_volume=True)

    return prepare


def attached(world):
    world.attach()


def uncertain(method):
    def prepare(world):
        for name in (method, "attachment", "attachments", "delete"):
            world.faulty.fail(name, errors.OutcomeUnknown("lost"), after=name == method, times=50)
        with pytest.raises(errors.CloudcoreError):
            world.attach()
        world.faulty.heal()

    return prepare


def pending(world):
    made = world.attach()
    world.hosts[HERE].detach_disk = lambda *_: DetachOutcome.PENDING
    world.manager.detach(made.id, boot_volume=True)
    del world.hosts[HERE].detach_disk


def off(world):
    world.attach()
    world.hosts[HERE].stop(world.who)


def killed_rebuilding(point):
    def prepare(world):
        off(world)
        with killed_at(point):
            world.manager.rebuild(world.who, world.service.image())

    return prepare


def killed_in_a_snapshot(point):
    def prepare(world):
        world.attach()
        with killed_at(point):
            world.manager.snapshot(world.who, "nightly")

    return prepare


def reserved(world):
    world.manager.reserve(world.volume, world.who, delete_on_termination=True)


STATES = {
    "reserving": killed_attaching("attach.reserve.before"),
    "reserved-unwritten": killed_attaching("attach.reserve.after"),
    "mapping": killed_attaching("attach.map.before"),
    "mapped-unwritten": killed_attaching("attach.map.after"),
    "plugging": killed_attaching("attach.plug.before"),
    "plugged-unwritten": killed_attaching("attach.plug.after"),
    "completing": killed_attaching("attach.complete.before"),
    "completed-unwritten": killed_attaching("attach.complete.after"),
    "reserve-uncertain": uncertain("reserve"),
    "map-uncertain": uncertain("update"),
    "complete-uncertain": uncertain("complete"),
    "attached": attached,
    "held": reserved,
    "unplugging": killed_detaching("attach.unplug.before"),
    "unplugged-unwritten": killed_detaching("attach.unplug.after"),
    "disconnecting": killed_detaching("attach.disconnect.before"),
    "unmapping": killed_detaching("attach.unmap.before"),
    "unmapped-unwritten": killed_detaching("attach.unmap.after"),
    "pending": pending,
    "attached-off": off,
    "rebuild-begun": killed_rebuilding("attach.move.begun"),
    "set-aside": killed_rebuilding("attach.aside.reserved"),
    "reimaged-unwritten": killed_rebuilding("attach.reimaged"),
    "rebuild-placing": killed_rebuilding("attach.map.after"),
    "rebuilt-unwritten": killed_rebuilding("attach.complete.after"),
    "freezing": killed_in_a_snapshot("attach.move.begun"),
    "frozen": killed_in_a_snapshot("attach.snapshot.frozen"),
    "snapshot-unwritten": killed_in_a_snapshot("attach.snapshot.made"),
}


def snapshot(manager, world):
    for one in manager.snapshot(world.who, "s").snapshots:
        world.service.service.delete_snapshot(one.id)


VERBS = {
    "detach": lambda m, w: m.detach(w.leg().id, boot_volume=True),
    "detach-force": lambda m, w: m.detach(w.leg().id, force=True),
    "terminate": lambda m, w: m.terminate(w.who),
    "terminate-force": lambda m, w: m.terminate(w.who, force=True),
    "attach": lambda m, w: m.attach(w.volume, w.who, host=THERE if HERE not in m.hosts else HERE),
    "attach-other": lambda m, w: m.attach(w.volume, instance(), host=THERE),
    "reserve": lambda m, w: m.reserve(w.volume, w.who),
    "flag": lambda m, w: m.set_delete_on_termination(w.leg().id, False),
    "extend": lambda m, w: m.extend(w.volume, 2 * GIB),
    "live": lambda m, w: m.begin_move(w.who, THERE),
    "cold": lambda m, w: m.begin_move(w.who, THERE, kind="cold"),
    "shelve": lambda m, w: m.begin_move(w.who, None, kind="shelve"),
    "evacuate": lambda m, w: m.begin_move(w.who, THERE, kind="evacuation"),
    "refresh": lambda m, w: m.refresh(w.who),
    "rebuild": lambda m, w: m.rebuild(w.who, instance()),
    "snapshot": snapshot,
    "confirm": lambda m, w: m.confirm_move(w.who),
    "revert": lambda m, w: m.revert_move(w.who),
    "recover": lambda m, w: m.recover(),
    "audit": lambda m, w: m.audit(),
    "heal": lambda m, w: m.heal(apply=True),
}


def cases():
    for state in STATES:
        for host in ("alive", "dead-evidence", "dead"):
            marks = [pytest.mark.slow] if state in {"rebuild-begun", "rebuilt-unwritten", "freezing"} else []
            yield pytest.param("embedded", state, host, id=f"embedded-{state}-{host}", marks=marks)
            often = (state, host) in {("completed-unwritten", "dead-evidence"), ("complete-uncertain", "alive")}
            marks = [pytest.mark.services] if often else [pytest.mark.services, pytest.mark.slow]
            yield pytest.param("cinder-rbd", state, host, id=f"cinder-rbd-{state}-{host}", marks=marks)


@pytest.mark.parametrize(("volume_service", "state", "host"), list(cases()), indirect=["volume_service"])
def test_every_verb(new_manager, volume_service, state, host):
    for name, verb in VERBS.items():
        one_verb(World(new_manager, volume_service), state, host, name, verb)


def one_verb(world, state, host, name, verb):
    STATES[state](world)
    had = world.guest_has_it()
    world.hosts[HERE].faults.away = host != "alive"
    fencer = Fencer(HERE) if host == "dead-evidence" else None
    manager = world.open(fencer=fencer, without=() if name in {"live", "cold"} else () if host == "alive" else (HERE,))
    told = f"{state}, {host}, {name}"
    if world.leg() is not None or name not in {"detach", "detach-force", "flag"}:
        said = None
        try:
            verb(manager, world)
        except errors.CloudcoreError as error:
            said = error
        assert not isinstance(said, errors.InvalidTransition), f"{told}: {said!r}"
    # what a guest may have is not free: unless it is known to be dead
    status = world.service.service.volume(world.volume).status if exists(world) else "deleted"
    if host == "dead" and had:
        assert status not in {"available", "deleted"}, told
    if host == "alive" and world.guest_has_it():
        assert status not in {"available", "deleted"}, told
    if status == "deleted":
        assert name.startswith("terminate"), told
        assert state not in {"unplugging", "unplugged-unwritten", "disconnecting", "unmapping", "pending"}, told
    end(world, host, told)


def exists(world):
    try:
        return world.service.service.volume(world.volume).status != "deleting"
    except errors.VolumeNotFound:
        world.service.made.remove(world.volume)
        return False


def terminated(world, manager, guest, *, force):
    """At once; but a real service deletes snapshots after it has said so, and refuses to delete their volume before."""
    try:
        assert manager.terminate(guest, force=force) == ()
    except errors.Conflict:
        if world.service.kind == "embedded":
            raise
        return False
    return True


def end(world, host, told):
    """The way out: with evidence by force, else once the host is back."""
    if host == "dead":
        world.hosts[HERE].faults.away = False
    fencer = Fencer(HERE) if host == "dead-evidence" else None
    manager = world.open(fencer=fencer, without=(HERE,) if fencer else ())
    for guest in (world.who, *{leg.instance_id for leg in manager.attachments(volume_id=world.volume)}):
        until(lambda guest=guest: terminated(world, manager, guest, force=fencer is not None))
        assert manager.move(guest) is None, told
    assert manager.attachments(volume_id=world.volume) == (), told
    manager.recover()
    assert world.service.snapshots() == [], told
    if world.volume in world.service.made and exists(world):
        assert world.service.statuses(world.volume) == ("available", []), told
    if fencer is None:
        assert not world.guest_has_it(), told
        assert not world.hosts[HERE].frozen(world.who), told
    for leg in world.manager.attachments():
        assert leg.state is State.ABSENT, told
