"""Attach, detach and move, the same on embedded volumes, on a real Cinder, and on a real Cinder with a real Ceph."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.disks import FileSource, RbdSource
from cloudcore.testing.volumes import GIB, FakeVolumes

from .conftest import instance


@pytest.fixture
def guests():
    return MemoryGuests("compute-1")


@pytest.fixture
def there():
    return MemoryGuests("compute-2")


@pytest.fixture
def manager(new_manager, volume_service, guests, there):
    manager = new_manager(volume_service.service, [guests, there])
    yield manager
    report = manager.audit()
    assert report.clean, [str(finding) for finding in report.findings]


@pytest.fixture
def attach(manager):
    """Attach on the first host."""
    return lambda volume, who, mode="rw", **more: manager.attach(volume, who, mode, host="compute-1", **more)


def disk(guests, who, volume):
    return guests.disk_state(who, volume).live


def gone(volume_service, volume):
    """Deleted, or being deleted: a service may return before the bytes are gone."""
    try:
        return volume_service.service.volume(volume).status == "deleting"
    except errors.VolumeNotFound:
        return True


def migrate(source, destination, who, disks):
    """What a hypervisor does with the disks of a guest that moves live."""
    for one in disks:
        destination.attach_disk(who, one)
        source.detach_disk(who, one.volume_id)


def test_attach_and_detach(manager, attach, volume_service, guests):
    """The guest has the disk, the service counts it; then neither."""
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who, operation_id="order-1")
    assert (made.state, made.host, made.mode) == (State.ATTACHED, "compute-1", "rw")
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    found = disk(guests, who, volume)
    assert not found.read_only
    assert not found.shareable
    assert isinstance(found.source, RbdSource if volume_service.kind != "cinder" else FileSource)
    assert attach(volume, who, operation_id="order-1") == made
    for _ in range(3):
        assert manager.detach(made.id).state is State.ABSENT
    assert volume_service.statuses(volume) == ("available", [])
    assert disk(guests, who, volume) is None
    events = [line.event for line in manager.story(made.id)]
    assert events == ["begin", *["done"] * 5, "detach", *["done"] * 3]


def test_two_and_then_ten_instances_share_a_volume(manager, attach, volume_service, guests):
    """Concurrently; Cinder refuses a reservation while another is in flight, and nobody notices."""
    volume = volume_service.create_volume(multiattach=True)
    first = [attach(volume, instance()), attach(volume, instance(), "ro")]
    with ThreadPoolExecutor(10) as pool:
        made = list(pool.map(lambda _: attach(volume, instance()), range(10)))
    assert volume_service.statuses(volume) == ("in-use", ["attached"] * 12)
    disks = [state.live for state in guests.disk_states() if state.volume_id == volume]
    assert all(found.shareable and found.cache == "none" for found in disks)
    assert sorted(found.read_only for found in disks) == [False] * 11 + [True]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda leg: manager.detach(leg.id), first + made))
    assert volume_service.statuses(volume) == ("available", [])


def test_an_exclusive_volume_has_one_user(manager, attach, volume_service):
    """The second is refused before anything is asked of the service, by name; after a detach it is welcome."""
    volume, who, other = volume_service.create_volume(), instance(), instance()
    made = attach(volume, who)
    with pytest.raises(errors.InUse, match=who) as caught:
        attach(volume, other)
    assert caught.value.users == [who]
    with pytest.raises(errors.AlreadyExists, match=made.id):
        attach(volume, who)
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    manager.detach(made.id)
    manager.detach(attach(volume, other).id)


def test_many_ask_for_an_exclusive_volume_at_once(manager, attach, volume_service, guests):
    """One gets it."""
    volume = volume_service.create_volume()

    def ask(_):
        try:
            return attach(volume, instance())
        except errors.InUse:
            return None

    with ThreadPoolExecutor(6) as pool:
        made = [leg for leg in pool.map(ask, range(6)) if leg]
    assert len(made) == 1
    assert [state.instance_id for state in guests.disk_states()] == [made[0].instance_id]
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    manager.detach(made[0].id)


def test_read_only_is_enforced_in_the_guest(attach, manager, volume_service, guests):
    """Whatever the service says of access: its connection information claims rw on every path."""
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who, "ro")
    assert disk(guests, who, volume).read_only
    assert volume_service.service.attachment(made.service_id).mode == "ro"
    manager.detach(made.id)


def test_boot_from_a_shared_volume(attach, manager, volume_service, guests):
    """Two guests, one root volume; with the volume deleted when the last of them ends."""
    volume, one, two = volume_service.create_volume(multiattach=True), instance(), instance()
    attach(volume, one, boot_order=1, target="vda", delete_on_termination=True)
    attach(volume, two, boot_order=1, target="vda", delete_on_termination=True)
    assert (disk(guests, one, volume).boot_order, disk(guests, one, volume).target) == (1, "vda")
    with pytest.raises(errors.InUse):
        manager.terminate(one)  # detached, but the other still boots from it
    assert disk(guests, one, volume) is None
    assert manager.terminate(two) == ()
    assert gone(volume_service, volume)


@pytest.mark.parametrize("multiattach", [False, True])
def test_live_migration(attach, manager, volume_service, guests, there, multiattach):
    """Two attachments while it moves; the source's goes when the guest has arrived."""
    volume, who = volume_service.create_volume(multiattach=multiattach), instance()
    attach(volume, who)
    move = manager.begin_move(who, "compute-2")
    assert volume_service.statuses(volume) == ("in-use", ["attached", "attached"])
    assert [leg.state for leg in move.legs] == [State.STAGED]
    assert manager.begin_move(who, "compute-2").legs == move.legs
    with pytest.raises(errors.Conflict, match="not arrived"):
        manager.confirm_move(who)
    with pytest.raises(errors.Conflict, match="moving"):
        attach(volume_service.create_volume(), who)
    migrate(guests, there, who, move.disks)
    with pytest.raises(errors.Conflict, match="confirm the move"):
        manager.revert_move(who)
    (leg,) = manager.confirm_move(who)
    assert (leg.host, leg.state, leg.role) == ("compute-2", State.ATTACHED, "main")
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    assert disk(there, who, volume) is not None
    assert manager.move(who) is None
    manager.detach(leg.id)
    assert volume_service.statuses(volume)[0] == "available"


def test_live_migration_reverted(attach, manager, volume_service, guests):
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who)
    manager.begin_move(who, "compute-2")
    (leg,) = manager.revert_move(who)
    assert (leg.id, leg.host, leg.state) == (made.id, "compute-1", State.ATTACHED)
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    assert disk(guests, who, volume) is not None
    with pytest.raises(errors.MoveNotFound):
        manager.revert_move(who)
    manager.detach(made.id)


def test_cold_move_there_and_back(attach, manager, volume_service, guests, there):
    """The volume is held for the instance in between: nobody else can have it."""
    volume, who = volume_service.create_volume(), instance()
    attach(volume, who, "ro")
    move = manager.begin_move(who, "compute-2", kind="cold")
    assert [leg.state for leg in move.legs] == [State.HELD]
    assert disk(guests, who, volume) is None
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    with pytest.raises(errors.InUse):
        attach(volume, instance())
    (leg,) = manager.confirm_move(who)
    assert (leg.host, leg.state) == ("compute-2", State.ATTACHED)
    assert disk(there, who, volume).read_only
    manager.begin_move(who, "compute-1", kind="cold")
    (leg,) = manager.revert_move(who)
    assert (leg.host, leg.state) == ("compute-2", State.ATTACHED)
    manager.detach(leg.id)
    assert volume_service.statuses(volume) == ("available", [])


def test_shelve_and_unshelve(attach, manager, volume_service, there):
    volume, who = volume_service.create_volume(multiattach=True), instance()
    other = attach(volume, instance())
    attach(volume, who)
    manager.begin_move(who, None, kind="shelve")
    assert volume_service.statuses(volume) == ("in-use", ["attached", "attached"])
    manager.detach(other.id)
    (leg,) = manager.confirm_move(who, "compute-2")
    assert (leg.host, leg.state) == ("compute-2", State.ATTACHED)
    assert disk(there, who, volume).shareable
    manager.detach(leg.id)


def test_growing_a_volume_in_use(attach, manager, volume_service):
    volume, who = volume_service.create_volume(multiattach=True), instance()
    made = [attach(volume, who), attach(volume, instance())]
    done = manager.extend(volume, 2 * GIB)
    assert done.volume.size == 2 * GIB
    assert {leg.id for leg in done.told} == {leg.id for leg in made}
    assert done.left == ()
    assert all(leg.settings.size == 2 * GIB for leg in manager.attachments(volume_id=volume))
    for leg in made:
        manager.detach(leg.id)


# --- things that go wrong ----------------------------------------------------------------------------------------


def lost(*methods):
    """Before and after the work on embedded volumes; on Cinder after it, which is what leaves something behind."""
    cinder = pytest.mark.services
    for method in methods:
        yield pytest.param("embedded", method, False, id=f"embedded-{method}-not-done")
        yield pytest.param("embedded", method, True, id=f"embedded-{method}-done")
        yield pytest.param("cinder-rbd", method, True, id=f"cinder-rbd-{method}-done", marks=cinder)


@pytest.mark.parametrize(
    ("volume_service", "method", "after"), list(lost("reserve", "update", "complete")), indirect=["volume_service"]
)
def test_a_lost_answer_while_attaching(new_manager, volume_service, guests, method, after):
    """The service is asked what became of it; nothing is there twice, nothing is left."""
    faulty = FakeVolumes(volume_service.service)
    manager = new_manager(faulty, guests)
    volume = volume_service.create_volume()
    faulty.fail(method, errors.OutcomeUnknown("the answer was lost"), after=after)
    made = manager.attach(volume, instance())
    assert made.state is State.ATTACHED
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    assert any(line.state.uncertain for line in manager.story(made.id))
    faulty.fail("delete", errors.OutcomeUnknown("the answer was lost"), after=after)
    assert manager.detach(made.id).state is State.ABSENT
    assert volume_service.statuses(volume) == ("available", [])
    assert manager.audit().clean


@pytest.mark.parametrize(("volume_service", "method", "after"), list(lost("create")), indirect=["volume_service"])
def test_a_lost_answer_while_moving(new_manager, volume_service, guests, there, method, after):
    """The second attachment is found and undone, or made again; the first is not touched."""
    faulty = FakeVolumes(volume_service.service)
    manager = new_manager(faulty, [guests, there])
    volume, who = volume_service.create_volume(), instance()
    made = manager.attach(volume, who, host="compute-1")
    faulty.fail(method, errors.OutcomeUnknown("the answer was lost"), after=after)
    if after:
        with pytest.raises(errors.VolumeServiceUnavailable, match="undone"):
            manager.begin_move(who, "compute-2")
        assert manager.move(who) is None
    else:
        manager.begin_move(who, "compute-2")
        manager.revert_move(who)
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    assert manager.audit().clean
    manager.detach(made.id)


def test_an_attachment_deleted_behind_our_back(attach, manager, volume_service, guests):
    """The backend may map the next volume where this one was: the guest loses the disk at once, on request."""
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who)
    volume_service.service.delete(made.service_id)
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.remedy) == ("vanished", "quarantine")
    assert {store for store, _ in finding.evidence} >= {"journal", "service", "live definition"}
    assert manager.heal().done == ()
    assert disk(guests, who, volume) is not None
    assert manager.heal(apply=True).done == (finding,)
    assert disk(guests, who, volume) is None
    assert manager.attachment(made.id).state is State.ABSENT
    assert State.QUARANTINED in {line.state for line in manager.story(made.id)}


def test_an_orphan_reservation(attach, manager, volume_service):
    """A record of an instance of ours that the journal does not know is found, and deleted on request."""
    volume, who = volume_service.create_volume(), instance()
    manager.detach(attach(volume, who).id)
    orphan = volume_service.service.reserve(volume, who)
    (finding,) = manager.audit().findings
    assert (finding.kind, finding.service_id, finding.remedy) == ("unknown-record", orphan.id, "delete-record")
    assert manager.heal(apply=True).done == (finding,)
    assert volume_service.statuses(volume) == ("available", [])


def test_the_service_goes_away_in_the_middle(new_manager, volume_service, guests):
    """The error says what is left; recovery ends it when the service is back."""
    faulty = FakeVolumes(volume_service.service)
    manager = new_manager(faulty, guests)
    volume, who = volume_service.create_volume(), instance()
    gone = errors.VolumeServiceUnavailable("connection refused")
    for method in ("update", "delete", "attachment", "attachments"):
        faulty.fail(method, gone, times=50)
    with pytest.raises(errors.VolumeServiceUnavailable) as caught:
        manager.attach(volume, who)
    assert any("recover()" in note for note in caught.value.__notes__)
    (leg,) = manager.attachments(volume_id=volume)
    assert leg.state is State.UNMAPPING
    assert not manager.recover().complete
    faulty.heal()
    assert [found.id for found in manager.recover().settled] == [leg.id]
    assert manager.recover().settled == ()
    assert volume_service.statuses(volume) == ("available", [])
