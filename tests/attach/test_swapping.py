"""Another volume under a running guest: refused in time, done whole or not at all, and led out of wherever it dies."""

import datetime as dt

import attrs
import pytest
import sqlalchemy as sa

from cloudcore import _failpoints, errors
from cloudcore.attach.audit.findings import Kind
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.fencing import Evidence
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.embedded import EmbeddedVolumes
from cloudcore.disks import BlockSource, CopyPhase
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.hypervisor.disks.memory_driver import Fault
from cloudcore.testing.volumes import GIB, FakeVolumes

from .conftest import instance

HERE, THERE = "compute-1", "compute-2"
KINDS = ("swap", "migration")


class Killed(BaseException):
    pass


class Fencer:
    def evidence(self, host):
        if host != HERE:
            return None
        return Evidence(host=host, kind="power-off", by="operator", at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


class World:
    """An instance with a volume, and another volume that is to take its place."""

    def __init__(self, new_manager, embedded, *, migration, reserved=False, multiattach=False):
        self.service, self.new_manager, self.migration = embedded, new_manager, migration
        self.volumes = FakeVolumes(embedded)
        self.hosts = {name: MemoryHypervisor(name) for name in (HERE, THERE)}
        self.manager = self.open()
        self.who = instance()
        self.hosts[HERE].add_guest(self.who)
        self.old = embedded.create_volume(multiattach=multiattach).id
        if reserved:
            self.manager.reserve(self.old, self.who)
        self.first = self.manager.attach(self.old, self.who, host=HERE, bus="scsi", delete_on_termination=True)
        new = embedded.begin_migration(self.old) if migration else embedded.create_volume(multiattach=multiattach)
        self.new = new.id

    def open(self, *, fencer=None, without=()):
        served = [host for name, host in self.hosts.items() if name not in without]
        return self.new_manager(self.volumes, served, patience=20.0, fencer=fencer)

    def swap(self, manager=None, **options):
        return (manager or self.manager).swap_volume(self.who, self.old, self.new, **options)

    def killed_at(self, point, call=None):
        def die(_):
            _failpoints.disarm()
            raise Killed

        _failpoints.arm(point, die)
        try:
            with pytest.raises(Killed):
                (call or self.swap)()
        finally:
            _failpoints.disarm()

    def images(self):
        """What the guest has, by volume: the names of the images in its live and in its persistent definition."""
        return {
            state.volume_id: (
                state.live and state.live.source.image,
                state.persistent and state.persistent.source.image,
            )
            for state in self.hosts[HERE].disk_states()
        }

    def records(self):
        return {record.volume_id for record in self.service.attachments(instance_id=self.who)}

    def changed_over(self, manager=None):
        """The guest, the journal and the service agree that it has the new bytes."""
        name = self.old if self.migration else self.new
        image = f"volume-{self.new}"
        if not self.hosts[HERE].faults.away:
            assert self.images() == {name: (image, image)}
        (leg,) = (manager or self.manager).attachments(instance_id=self.who)
        assert (leg.volume_id, leg.state, leg.role) == (name, State.ATTACHED, "main")
        assert leg.settings.delete_on_termination
        assert self.records() == {name}
        known = {volume.id: volume.status for volume in self.service.volumes()}
        assert known == ({name: "in-use"} if self.migration else {name: "in-use", self.old: "available"})
        return True

    def as_before(self, manager=None):
        """They agree that it has the old ones."""
        image = f"volume-{self.old}"
        if not self.hosts[HERE].faults.away:
            assert self.images() == {self.old: (image, image)}
        (leg,) = (manager or self.manager).attachments(instance_id=self.who)
        assert (leg.id, leg.state, leg.role) == (self.first.id, State.ATTACHED, "main")
        assert self.records() == {self.old}
        known = {volume.id: volume.status for volume in self.service.volumes()}
        assert known == ({self.old: "in-use"} if self.migration else {self.old: "in-use", self.new: "available"})
        if self.migration:
            assert self.service.volume(self.old).migration_status == "error"
        return True

    def over(self, manager=None):
        manager = manager or self.manager
        assert manager.move(self.who) is None
        if not self.hosts[HERE].faults.away:
            assert manager.audit().clean
        changed = next(iter(manager.attachments(instance_id=self.who))).id != self.first.id
        return self.changed_over(manager) if changed else not self.as_before(manager)


@pytest.fixture(params=KINDS)
def world(request, new_manager, embedded):
    return World(new_manager, embedded, migration=request.param == "migration")


@pytest.fixture
def plain(new_manager, embedded):
    return World(new_manager, embedded, migration=False)


# --- done ------------------------------------------------------------------------------------------------------------


def test_the_guest_goes_on_with_the_new_bytes(world):
    """Under the id that the service keeps: a migration's volume keeps its own."""
    told = []
    made = world.swap(on_progress=lambda done, total: told.append((done, total)))
    assert world.changed_over()
    assert (made.volume_id == world.old) is world.migration
    assert made.settings.bus == "scsi"
    assert told[-1] == (1, 1)
    assert world.manager.attachment(world.first.id).state is State.ABSENT
    assert world.manager.audit().clean
    assert world.manager.recover().complete
    world.manager.detach(made.id)
    assert world.hosts[HERE].disk_states() == ()
    if world.migration:
        assert [volume.id for volume in world.service.volumes()] == [world.old]


def test_the_guest_may_be_paused_and_the_volume_larger(new_manager, embedded):
    world = World(new_manager, embedded, migration=False)
    world.new = embedded.create_volume(2 * GIB).id
    world.hosts[HERE].pause(world.who)
    world.swap()
    assert world.hosts[HERE].size(world.who, world.new) == 2 * GIB


def test_guests_that_exist_only_in_memory(new_manager, journal_database, tmp_path):
    """And bytes that are files: what the service deletes is the old volume's file."""
    with EmbeddedVolumes(journal_database, directory=tmp_path) as volumes:
        manager, who = new_manager(volumes, MemoryGuests()), instance()
        old = volumes.create_volume(4096).id
        manager.attach(old, who)
        new = volumes.begin_migration(old).id
        made = manager.swap_volume(who, old, new)
        assert made.volume_id == old
        assert [path.name for path in tmp_path.glob("volume-*")] == [f"volume-{new}"]
        other = volumes.create_volume(4096).id
        assert manager.swap_volume(who, old, other).volume_id == other
        assert manager.audit().clean
        volumes.delete_volume(old)
        assert [path.name for path in tmp_path.glob("volume-*")] == [f"volume-{other}"]


@pytest.mark.parametrize("migration", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_what_began_as_a_reservation_is_held_no_more(new_manager, embedded, migration, done):
    """As Nova attaches. Neither the volume that the instance leaves is, nor the one that is taken back."""
    world = World(new_manager, embedded, migration=migration, reserved=True)
    if done:
        world.swap()
    else:
        world.killed_at("attach.swap.copying")
        world.manager.recover()
    assert world.over() is done


@pytest.mark.parametrize("migration", [False, True])
def test_what_came_by_a_cold_move_is_held_no_more(new_manager, embedded, migration):
    world = World(new_manager, embedded, migration=False)
    world.manager.detach(world.first.id)
    world.manager.attach(world.old, world.who, host=HERE, delete_on_termination=True)
    world.hosts[THERE].add_guest(world.who, state="off")
    world.hosts[HERE].stop(world.who)
    world.manager.begin_move(world.who, THERE, kind="cold")
    (moved,) = world.manager.confirm_move(world.who)
    world.hosts[THERE].start(world.who)
    if migration:
        world.new = embedded.begin_migration(world.old).id
    made = world.swap()
    assert [leg.id for leg in world.manager.attachments()] == [made.id] != [moved.id]
    assert world.records() == {world.old if migration else world.new}
    assert world.manager.audit().clean


# --- refused ---------------------------------------------------------------------------------------------------------


def shared(world):
    world.old = world.service.create_volume(multiattach=True).id
    world.manager.attach(world.old, world.who, host=HERE)
    world.hosts[HERE].add_guest(other := instance())
    world.manager.attach(world.old, other, mode="ro", host=HERE)
    world.new = world.service.create_volume(multiattach=True).id


def one_shareable(world):
    world.new = world.service.create_volume(multiattach=True).id


def smaller(world):
    world.new = world.service.create_volume(GIB - 1).id


def used(world):
    world.manager.reserve(world.new, instance())


def reserved_elsewhere(world):
    world.service.set_status(world.new, "reserved")


def broken(world):
    world.service.set_status(world.new, "error")


def encrypted(world):
    world.new = world.service.create_volume(encrypted=True).id


def read_only(world):
    world.new = world.service.create_volume(read_only=True).id


def for_another(world):
    third = world.service.create_volume().id
    world.new = world.service.begin_migration(third).id


def to_another(world):
    world.service.begin_migration(world.old)


def off(world):
    world.hosts[HERE].stop(world.who)


def not_its_own(world):
    world.who = instance()


def unknown(world):
    world.new = instance()


def itself(world):
    world.new = world.old


def moving(world):
    world.manager.begin_move(world.who, THERE)


def unable(world):
    guests = MemoryGuests(HERE)

    class Less:
        host = HERE
        attach_disk, detach_disk = guests.attach_disk, guests.detach_disk
        disk_state, disk_states, resize_disk = guests.disk_state, guests.disk_states, guests.resize_disk

    world.hosts[HERE] = Less()
    world.manager = world.open()


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (shared, errors.InUse),
        (one_shareable, errors.UnsupportedFeature),
        (smaller, errors.InvalidArgument),
        (used, errors.InUse),
        (reserved_elsewhere, errors.VolumeBusy),
        (broken, errors.Conflict),
        (encrypted, errors.UnsupportedFeature),
        (read_only, errors.Conflict),
        (for_another, errors.Conflict),
        (to_another, errors.Conflict),
        (off, errors.Conflict),
        (not_its_own, errors.AttachmentNotFound),
        (unknown, errors.VolumeNotFound),
        (itself, errors.InvalidArgument),
        (moving, errors.Conflict),
        (unable, errors.UnsupportedFeature),
    ],
    ids=lambda value: value.__name__,
)
def test_what_is_refused_is_refused_before_anything_is_done(plain, prepare, expected):
    prepare(plain)
    before = plain.volumes.calls[:]
    legs, records = plain.manager.attachments(), plain.service.attachments()
    with pytest.raises(expected):
        plain.swap()
    assert not {"create", "reserve", "update", "delete", "complete_migration"} & set(plain.volumes.calls[len(before) :])
    assert (plain.manager.attachments(), plain.service.attachments()) == (legs, records)
    if prepare is reserved_elsewhere:
        plain.service.set_status(plain.new, "available")


def test_a_plan_says_no_wherever_a_swap_would(plain):
    """Also where another try later would do: a swap does not wait."""
    reserved_elsewhere(plain)
    plan = plain.manager.plan_swap(plain.who, plain.old, plain.new)
    assert [violation.passing for violation in plan.violations] == [True]
    assert not plan.possible
    with pytest.raises(errors.VolumeBusy):
        plain.swap()
    plain.service.set_status(plain.new, "available")


def test_every_rule_is_listed(plain):
    plain.hosts[HERE].stop(plain.who)
    plain.new = plain.service.create_volume(GIB // 2, multiattach=True).id
    plan = plain.manager.plan_swap(plain.who, plain.old, plain.new)
    assert not plan.possible
    assert [violation.code for violation in plan.violations] == ["not-running", "too-small", "multiattach"]
    assert plain.manager.move(plain.who) is None


# --- interrupted -----------------------------------------------------------------------------------------------------

BEFORE = (
    "attach.move.begun",
    "attach.swap.begun",
    "attach.create.before",
    "attach.create.after",
    "attach.connect.after",
    "attach.complete.after",
    "hypervisor.copy.begun",
    "attach.swap.copying",
    "attach.swap.pivoting",
)
AFTER = (
    "hypervisor.copy.pivoted",
    "attach.swap.pivoted",
    "attach.swap.take_over",
    "attach.swap.taken_over",
    "attach.disconnect.before",
    "attach.unmap.before",
    "attach.unmap.after",
    "attach.swap.ended",
    "attach.swap.told",
    "attach.swap.renamed",
    "attach.move.end",
)


UNKNOWN = ("attach.swap.pivoting", "hypervisor.copy.pivoted", "attach.swap.pivoted")
"""Only the guest knows which one it has."""

WAYS = ("attach.create.after", "attach.swap.pivoting", "hypervisor.copy.pivoted", "attach.unmap.before")


OF_A_MIGRATION = ("attach.swap.told", "attach.swap.renamed")


def points(kind):
    """Those of a swap, or of a migration, in the order in which it passes them."""
    return [point for point in (*BEFORE, *AFTER) if kind == "migration" or point not in OF_A_MIGRATION]


@pytest.mark.parametrize(("world", "kind"), [(kind, kind) for kind in KINDS], indirect=["world"])
def test_each_passes_its_points(world, kind):
    """So whoever is to die at one of them below can, and whoever could does."""
    passed = []
    _failpoints.arm("*", passed.append)
    try:
        world.swap()
    finally:
        _failpoints.disarm()
    assert [point for point in passed if point in {*BEFORE, *AFTER}] == points(kind)
    assert ("complete_migration" in world.volumes.calls) is world.migration


@pytest.mark.parametrize(
    ("world", "point", "way"),
    [
        *((kind, point, "recover") for kind in KINDS for point in points(kind)),
        *((kind, point, way) for kind in KINDS for point in WAYS for way in ("revert", "again", "terminate")),
    ],
    indirect=["world"],
)
def test_what_died_in_the_middle_is_led_out(world, point, way):
    """Undone while the guest lives on the old bytes, finished once it lives on the new ones."""
    world.killed_at(point)
    with pytest.raises(errors.Conflict):
        world.manager.begin_move(world.who, THERE)
    with pytest.raises(errors.Conflict):
        world.manager.detach(world.first.id if point in BEFORE else world.manager.attachments()[-1].id)
    if way == "terminate":
        world.hosts[HERE].stop(world.who)
        world.manager.terminate(world.who)
        assert world.manager.attachments() == ()
        assert world.service.attachments() == ()
        assert world.manager.move(world.who) is None
        assert len(world.service.volumes()) == (0 if world.migration else 1)  # nobody waits for a migration's end
        return
    manager = world.open()
    if way == "recover":
        manager.recover()
        assert manager.recover().complete
    elif way == "revert":
        manager.revert_move(world.who)
    else:
        world.swap(manager)
    assert world.over(manager) is (point in AFTER or way == "again")


@pytest.mark.parametrize("point", ["attach.swap.copying", "hypervisor.copy.pivoted", "attach.swap.ended"])
def test_half_a_swap_is_nothing_that_an_audit_mends(world, point):
    """Another id in the journal than in the guest is no lost disk: it says what is unfinished."""
    world.killed_at(point)
    report = world.manager.audit()
    assert [(one.kind, one.instance_id, one.remedy) for one in report.findings] == [(Kind.INTERRUPTED, world.who, None)]
    world.manager.heal(report, apply=True)
    world.manager.recover()
    assert world.over() is (point in AFTER)


@pytest.mark.parametrize(
    "point", ["attach.swap.aborted", "attach.unmap.after", "attach.swap.undone", "attach.move.end"]
)
def test_undoing_that_dies_goes_on(world, point):
    world.killed_at("attach.swap.copying")
    world.killed_at(point, world.manager.recover)
    world.open().recover()
    assert world.over() is False


@pytest.mark.parametrize(
    ("world", "point", "served"),
    [
        (kind, point, number % 2 == 0)
        for kind in KINDS
        for number, point in enumerate((*BEFORE, *AFTER))
        if point in points(kind)
    ],
    indirect=["world"],
)
def test_with_evidence_that_the_host_is_dead_it_is_led_out(world, point, served):
    """Only what was being changed over is left to the operator."""
    world.killed_at(point)
    world.hosts[HERE].faults.away = True
    without = () if served else (HERE,)
    blind = world.open(without=without)
    report = blind.recover()
    assert point in AFTER or not report.complete
    manager = world.open(fencer=Fencer(), without=without)
    manager.recover()
    if point in UNKNOWN:
        assert not manager.recover().complete
        (manager.confirm_move if served else manager.revert_move)(world.who)
    assert manager.recover().complete
    assert manager.move(world.who) is None
    changed = served if point in UNKNOWN else point in AFTER
    assert world.changed_over(manager) if changed else world.as_before(manager)
    manager.begin_move(world.who, THERE, kind="evacuation")
    world.hosts[THERE].add_guest(world.who, state="off")
    (moved,) = manager.confirm_move(world.who)
    assert moved.host == THERE


@pytest.mark.parametrize("keep", ["old", "new"])
@pytest.mark.parametrize("gone", ["host", "guest"])
def test_a_guest_that_cannot_be_asked_is_left_to_the_operator(world, gone, keep):
    """It was started again, perhaps, and nobody says from what. No byte goes before somebody has chosen."""
    world.killed_at("attach.swap.pivoting")
    if gone == "host":
        world.hosts[HERE].stop(world.who)
        world.hosts[HERE].start(world.who)  # it comes up with the old volume
        world.hosts[HERE].faults.away = True
        manager = world.open(fencer=Fencer())
    else:
        world.hosts[HERE].remove_guest(world.who)
        manager = world.manager
    records, known = world.service.attachments(), world.service.volumes()
    assert not manager.recover().complete
    with pytest.raises(errors.Conflict) as caught:
        world.swap(manager)
    for word in (world.old, world.new, "revert_move()", "confirm_move()"):
        assert word in str(caught.value)
    assert (world.service.attachments(), world.service.volumes()) == (records, known)
    manager.confirm_move(world.who) if keep == "new" else manager.revert_move(world.who)
    world.hosts[HERE].faults.away = True
    assert world.changed_over(manager) if keep == "new" else world.as_before(manager)
    assert manager.move(world.who) is None


def test_only_what_has_changed_over_is_confirmed(world):
    world.killed_at("attach.swap.pivoting")
    with pytest.raises(errors.Conflict, match="has the old volume still"):
        world.manager.confirm_move(world.who)
    world.manager.recover()
    assert world.over() is False


@pytest.mark.parametrize("outlives", [False, True])
def test_an_instance_whose_guest_is_gone_ends(world, outlives):
    """Unless that decided which bytes of a migrating volume stay."""
    world.killed_at("attach.swap.pivoting")
    world.manager.set_delete_on_termination(world.first.id, not outlives)
    world.hosts[HERE].remove_guest(world.who)
    if outlives and world.migration:
        with pytest.raises(errors.Conflict, match="nobody can say"):
            world.manager.terminate(world.who)
        assert len(world.service.volumes()) == 2
        world.manager.confirm_move(world.who)
    world.manager.terminate(world.who)
    assert world.manager.move(world.who) is None
    assert world.manager.attachments() == world.service.attachments() == ()
    assert len(world.service.volumes()) == (not world.migration) + outlives


class Dying(PlainConnector):
    """Reaches its volumes by devices, of which one keeps what was written and cannot bring it to its volume."""

    dead: str | None = None

    def acts_on(self, info):
        return True

    def connect(self, info):
        source = BlockSource(f"/dev/disk/{info.volume_id}")
        return HostDevice(source=source, connected=True, details={"volume": info.volume_id})

    def disconnect(self, info, device, *, force=False):
        if device.details["volume"] == self.dead and not force:
            raise errors.FlushFailed("what was written is kept", identifier=self.dead)

    def connections(self):
        return None


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("which", ["old", "new"])
def test_a_forced_end_gives_up_what_cannot_be_flushed(new_manager, embedded, which, at_once):
    connector = Dying(host=HERE)
    world = World(new_manager, embedded, migration=False)
    world.manager.detach(world.first.id)
    world.manager = new_manager(world.volumes, list(world.hosts.values()), connectors={HERE: connector})
    world.manager.attach(world.old, world.who, host=HERE)
    connector.dead = getattr(world, which)
    if which == "old":
        with pytest.raises(errors.FlushFailed):
            world.swap()
    else:
        world.killed_at("attach.swap.copying")
    if not at_once:
        with pytest.raises(errors.FlushFailed):
            world.manager.terminate(world.who)
    world.manager.terminate(world.who, force=True)
    assert world.manager.move(world.who) is None
    assert world.manager.attachments() == world.service.attachments() == ()


@pytest.mark.parametrize("point", ["attach.swap.copying", "attach.swap.ended"])
def test_a_forced_end_needs_no_word_of_the_service(new_manager, embedded, point):
    """Which says no for ever, perhaps. The error is raised once the rest is done."""
    world = World(new_manager, embedded, migration=True)
    world.killed_at(point)
    world.volumes.fail("complete_migration", errors.PolicyDenied("for admins", rule="x"))
    with pytest.raises(errors.PolicyDenied):
        world.manager.terminate(world.who)
    world.volumes.fail("complete_migration", errors.PolicyDenied("for admins", rule="x"))
    with pytest.raises(errors.PolicyDenied) as caught:
        world.manager.terminate(world.who, force=True)
    assert "was not told" in str(caught.value.__notes__)
    assert world.manager.move(world.who) is None
    assert world.manager.attachments() == world.service.attachments() == ()
    assert world.manager.terminate(world.who) == ()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_guest_that_stops_meanwhile_comes_up_with_what_it_had(world, stopped):
    """The copy ends with it."""
    world.killed_at("attach.swap.copying")
    world.hosts[HERE].stop(world.who)
    if not stopped:
        world.hosts[HERE].start(world.who)
    world.manager.recover()
    world.hosts[HERE].start(world.who)
    assert world.over() is False


# --- meanwhile -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["swap", "migration"])
def shareable(request, new_manager, embedded):
    return World(new_manager, embedded, migration=request.param, multiattach=True)


@pytest.mark.parametrize("which", ["old", "new"])
def test_nobody_else_begins_with_a_volume_that_is_swapped(shareable, which):
    """Not even with a multi-attach one, while whoever swaps it is dead; and it keeps its size."""
    world, volume = shareable, getattr(shareable, which)
    world.killed_at("attach.swap.copying")
    world.hosts[HERE].add_guest(other := instance())
    for begin in (world.manager.attach, world.manager.reserve):
        with pytest.raises(errors.Conflict, match="in a swap"):
            begin(volume, other, **({"host": HERE} if begin == world.manager.attach else {}))
    plan = world.manager.plan_attach(volume, other, host=HERE)
    assert "swapping" in [violation.code for violation in plan.violations]
    with pytest.raises(errors.Conflict, match="in a swap"):
        world.manager.extend(volume, 2 * GIB)
    world.swap()
    assert world.over() is True
    world.manager.attach(world.old if world.migration else world.new, other, host=HERE)


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize("again", [False, True])
def test_who_begins_at_the_service_ends_it(shareable, which, again):
    """While it is copied, or before it is gone on with: the guest does not change over."""
    world, made = shareable, []

    def come(*_):
        if not made:
            made.append(world.service.reserve(getattr(world, which), instance()))

    if again:
        world.killed_at("attach.complete.after")
        world.hosts[HERE].faults.plan("begin_copy", Fault.ERROR_BEFORE)  # nothing is written to what others have
        come()
    with pytest.raises(errors.InUse):
        world.swap(on_progress=come)
    world.service.delete(made[0].id)
    world.manager.recover()
    assert world.over() is False


def test_bytes_that_somebody_uses_are_not_given_up(new_manager, embedded):
    """Cinder would delete the old volume under who has it."""
    world = World(new_manager, embedded, migration=True, multiattach=True)
    world.killed_at("attach.swap.ended")
    made = embedded.reserve(world.old, other := instance())
    with pytest.raises(errors.InUse) as caught:
        world.swap()
    assert caught.value.users == [other]
    assert not world.manager.recover().complete
    assert "complete_migration" not in world.volumes.calls
    embedded.delete(made.id)
    world.manager.recover()
    assert world.over() is True


def test_what_outgrew_the_new_volume_is_not_swapped(world):
    with pytest.raises(errors.InvalidArgument, match="fewer"):
        world.swap(on_progress=lambda *_: world.service.extend(world.old, 2 * GIB))
    assert world.over() is False


def test_what_termination_is_to_do_is_the_last_word(world):
    world.killed_at("attach.swap.pivoting")
    world.manager.set_delete_on_termination(world.first.id, False)
    assert not world.swap().settings.delete_on_termination


@pytest.mark.parametrize("noticed", [False, True])
def test_whoever_lost_its_lease_leaves_the_swap_to_others(plain, noticed):
    """Stopped for longer than that: another has undone the swap and begun it anew."""
    first, second = plain.manager, plain.open()

    def sleep(*_):
        with first._database.engine.begin() as connection:
            connection.execute(sa.text("delete from attachment_locks"))
        first._leases._held.clear()
        second.recover()
        plain.killed_at("attach.swap.pivoting", lambda: plain.swap(second))
        if noticed:
            first._leases.monotonic = lambda: float("inf")
        raise RuntimeError("it wakes")

    with pytest.raises(RuntimeError) as caught:
        plain.swap(first, on_progress=sleep)
    assert "goes on" in str(caught.value.__notes__)
    assert second.move(plain.who).phase == "pivoting"
    if noticed:
        assert plain.hosts[HERE]._driver.guests[plain.who].copies
    third = plain.open()
    third.recover()
    assert plain.over(third) is False


# --- failed ----------------------------------------------------------------------------------------------------------


def test_progress_may_end_it(world):
    def enough(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        world.swap(on_progress=enough)
    assert world.over() is False


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.TIMEOUT_BEFORE])
@pytest.mark.parametrize("primitive", ["begin_copy", "end_copy"])
def test_a_hypervisor_that_refuses(world, primitive, fault):
    world.hosts[HERE].faults.plan(primitive, fault)
    with pytest.raises(errors.CloudcoreError):
        world.swap()
    assert world.over() is False


@pytest.mark.parametrize("fault", [Fault.ERROR_AFTER, Fault.TIMEOUT_AFTER, Fault.LOST_AFTER])
@pytest.mark.parametrize("primitive", ["begin_copy", "end_copy"])
def test_a_hypervisor_whose_answer_is_lost(world, primitive, fault):
    """It is looked at what came of it."""
    world.hosts[HERE].faults.plan(primitive, fault)
    with pytest.raises(errors.CloudcoreError):
        world.swap()
    world.manager.recover()
    assert world.over() is (primitive == "end_copy")


class LatePivot:
    """A hypervisor that goes on with a pivot whose caller has given up; *ends* says when it is through.

    As libvirt's: the mirror stays in the definition until then and the job says that it is not ready; it cannot be
    ended; and "is there a job?" may be answered when there is none any more.
    """

    def __init__(self, host, *, ends):
        self._driver, self._ends, self._pivot = host._driver, ends, None
        self._end, self._copied = self._driver.end_copy, self._driver.copied
        self._driver.end_copy, self._driver.copied = self.end_copy, self.copied

    def through(self):
        pivot, self._pivot = self._pivot, None
        if pivot is not None:
            self._end(*pivot, pivot=True)

    def end_copy(self, instance_id, entry, *, pivot):
        if pivot and self._pivot is None:
            self._pivot = (instance_id, entry)
            raise errors.DeadlineExceeded("pivot: no answer")
        if self._pivot is not None:
            if self._ends == "when it is aborted":
                self.through()
            if self._ends == "later, and nobody is told":
                return
            raise errors.HypervisorError("the block job is being ended", code=55)
        self._end(instance_id, entry, pivot=pivot)

    def copied(self, instance_id, entry):
        if self._ends == "when it is looked at":
            self.through()
        told = self._copied(instance_id, entry)
        return told and (*told[:2], self._pivot is None)


@pytest.mark.parametrize("ends", ["when it is looked at", "when it is aborted", "later", "later, and nobody is told"])
def test_a_pivot_that_ends_late_is_no_swap_to_undo(world, ends):
    """The bytes that the guest lives on stay."""
    late = LatePivot(world.hosts[HERE], ends=ends)
    with pytest.raises(errors.DeadlineExceeded):
        world.swap()
    late.through()
    world.manager.recover()
    assert world.over() is True


def test_a_pivot_that_ends_while_it_is_asked_for_is_seen(world):
    world.killed_at("attach.swap.pivoting")
    host = world.hosts[HERE]
    live = host.disk_state(world.who, world.old).live
    there = attrs.evolve(live, source=attrs.evolve(live.source, image=f"volume-{world.new}"))
    LatePivot(host, ends="when it is looked at")
    with pytest.raises(errors.DeadlineExceeded):
        host.pivot_disk(world.who, world.old, there)
    assert host.disk_copy(world.who, world.old, there).phase is CopyPhase.DONE
    world.manager.recover()
    assert world.over() is True


def test_a_copy_of_somebody_else_is_left_alone(world):
    """The swap is refused by the hypervisor, and undone."""
    host = world.hosts[HERE]
    live = host.disk_state(world.who, world.old).live
    elsewhere = attrs.evolve(live, source=attrs.evolve(live.source, image="elsewhere"))
    host.copy_disk(world.who, world.old, elsewhere)
    with pytest.raises(errors.Conflict, match="elsewhere"):
        world.swap()
    assert world.over() is False
    assert host.disk_copy(world.who, world.old, elsewhere).phase is CopyPhase.READY
    host.abort_disk_copy(world.who, world.old, elsewhere)
    assert host.disk_copy(world.who, world.old, elsewhere).phase is CopyPhase.NONE


@pytest.mark.parametrize(
    ("world", "method"),
    [
        *((kind, method) for kind in KINDS for method in ("create", "complete", "delete")),
        ("migration", "complete_migration"),  # which no other swap calls
    ],
    indirect=["world"],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_service_whose_answer_is_lost(world, method, after):
    world.volumes.fail(method, errors.OutcomeUnknown("lost"), after=after)
    try:
        world.swap()
    except errors.CloudcoreError:
        world.manager.recover()
    assert world.over() is not (method == "create" and after)
    assert not world.volumes._faults[method], "nobody met it"


def test_a_migration_that_was_given_up_meanwhile_leaves_a_plain_swap(new_manager, embedded):
    """The guest has changed over, so the new volume is its own, whatever its name."""
    world = World(new_manager, embedded, migration=True)
    world.volumes.fail("complete_migration", errors.NotMigrating("in no migration"))
    made = world.swap()
    assert made.volume_id == world.new
    assert world.images() == {world.new: (f"volume-{world.new}",) * 2}
    assert world.records() == {world.new}
    assert world.manager.move(world.who) is None
    assert world.manager.audit().clean
