"""Volumes of an instance that is on no host: reserved before it has one, or waiting while it is shelved."""

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance
from .dying import killed_at


class Guests(MemoryGuests):
    refusal = None

    def attach_disk(self, instance_id, disk):
        if self.refusal is not None:
            raise self.refusal
        return super().attach_disk(instance_id, disk)


@pytest.fixture
def here():
    return Guests("compute-1")


@pytest.fixture
def there():
    return Guests("compute-2")


@pytest.fixture
def faulty(volume_service):
    return FakeVolumes(volume_service.service)


@pytest.fixture
def manager(new_manager, faulty, here, there):
    manager = new_manager(faulty, [here, there], patience=20.0)
    yield manager
    assert manager.audit().clean


# --- reserved --------------------------------------------------------------------------------------------------------


def test_a_reserved_volume_is_its_instances(manager, volume_service, here):
    """Nobody else gets it; a host is named later, with the settings given then."""
    volume, who, other = volume_service.create_volume(), instance(), instance()
    held = manager.reserve(volume, who, operation_id="boot-1")
    assert (held.state, held.host) == (State.HELD, None)
    assert manager.reserve(volume, who, operation_id="boot-1") == held
    with pytest.raises(errors.InUse):
        manager.reserve(volume, other)
    with pytest.raises(errors.InUse):
        manager.attach(volume, other, host="compute-1")
    with pytest.raises(errors.AlreadyExists):
        manager.reserve(volume, who)
    with pytest.raises(errors.Conflict, match="reserved"):
        manager.attach(volume, who, "ro", host="compute-1")
    assert manager.plan_attach(volume, who, host="compute-1").possible
    made = manager.attach(volume, who, host="compute-1", boot_order=1, delete_on_termination=True)
    assert (made.id, made.state, made.settings.boot_order) == (held.id, State.ATTACHED, 1)
    assert here.disk_state(who, volume).present
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    manager.terminate(who)


def test_it_is_kept_through_a_failed_build(manager, volume_service, here, there):
    """The first host cannot have it, so it is reserved as before, never free; the next one can (as in Nova's rule)."""
    volume, who = volume_service.create_volume(), instance()
    manager.reserve(volume, who)
    here.refusal = errors.InvalidDisk("no such bus")
    seen = []
    attach = here.attach_disk

    def watched(*arguments):
        seen.append(volume_service.service.volume(volume).status)
        return attach(*arguments)

    here.attach_disk = watched
    with pytest.raises(errors.InvalidDisk):
        manager.attach(volume, who, host="compute-1")
    (leg,) = manager.attachments(instance_id=who)
    assert (leg.state, leg.role, leg.host) == (State.HELD, "main", None)
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    assert manager.attach(volume, who, host="compute-2").host == "compute-2"
    assert seen == ["attaching"]
    manager.terminate(who)


@pytest.mark.parametrize("point", ["attach.reserve.after", "attach.complete.before", "attach.map.after"])
def test_a_crash_leaves_it_free_or_reserved(manager, volume_service, point):
    """An interrupted reservation is undone, an interrupted build gives the reservation back."""

    volume, who = volume_service.create_volume(), instance()
    if point == "attach.map.after":
        manager.reserve(volume, who)
    with killed_at(point):
        manager.attach(volume, who, host="compute-1") if point == "attach.map.after" else manager.reserve(volume, who)
    assert manager.recover().complete
    states = [leg.state for leg in manager.attachments()]
    assert states == ([State.HELD] if point == "attach.map.after" else [])
    for leg in manager.attachments():
        manager.detach(leg.id)
    assert volume_service.statuses(volume) == ("available", [])


def test_a_reservation_is_given_back(manager, volume_service):
    """By a detach, or with the instance; before any host, or interrupted on its way to one."""
    volume, who = volume_service.create_volume(), instance()
    assert manager.detach(manager.reserve(volume, who).id).state is State.ABSENT
    manager.reserve(volume, who)
    assert manager.terminate(who) == ()
    assert volume_service.statuses(volume) == ("available", [])


# --- shelved ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelved(manager, volume_service):
    """(instance, root, data) of an instance that is on no host."""
    who, root, data = instance(), volume_service.create_volume(), volume_service.create_volume()
    manager.attach(root, who, host="compute-1", boot_order=1, delete_on_termination=True)
    manager.attach(data, who, host="compute-1")
    manager.begin_move(who, None, kind="shelve")
    return who, root, data


def test_a_shelved_instance_ends(manager, volume_service, shelved):
    """What is to go with it goes."""
    who, root, data = shelved
    assert manager.terminate(who) == ()
    assert manager.move(who) is None
    assert volume_service.statuses(data) == ("available", [])
    with pytest.raises((errors.VolumeNotFound, AssertionError)):
        assert volume_service.service.volume(root).status != "deleting"


def test_a_shelved_instance_gives_a_volume_back_and_gets_one(manager, volume_service, shelved, there):
    """And comes back with what it has by then."""
    who, root, data = shelved
    fresh = volume_service.create_volume()
    (leg,) = manager.attachments(volume_id=data)
    assert manager.detach(leg.id).state is State.ABSENT
    assert volume_service.statuses(data) == ("available", [])
    with pytest.raises(errors.Conflict, match="moving"):
        manager.attach(fresh, who, host="compute-1")
    got = manager.attach(fresh, who)
    assert (got.state, got.host) == (State.HELD, None)
    legs = manager.confirm_move(who, "compute-2")
    assert {leg.volume_id for leg in legs} == {root, fresh} == {state.volume_id for state in there.disk_states()}
    manager.terminate(who)


def test_a_shelved_instance_that_has_begun_to_come_back_is_moving(manager, volume_service, shelved, here):
    """Half of it is on a host: neither is given back by itself, but all with the instance."""
    who, _, data = shelved
    plug = here.attach_disk

    def once(instance_id, disk):
        if here.disk_states():
            raise errors.InvalidDisk("one only")
        return plug(instance_id, disk)

    here.attach_disk = once
    with pytest.raises(errors.InvalidDisk):
        manager.confirm_move(who, "compute-1")
    for leg in manager.attachments(instance_id=who):
        with pytest.raises(errors.Conflict, match="confirm or revert"):
            manager.detach(leg.id)
    assert manager.terminate(who) == ()
    assert volume_service.statuses(data) == ("available", [])


# --- detaching -------------------------------------------------------------------------------------------------------


def test_the_boot_volume_of_a_running_guest_stays(manager, volume_service):
    """Unless asked for by name."""
    volume, data, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    root = manager.attach(volume, who, host="compute-1", boot_order=1)
    manager.detach(manager.attach(data, who, host="compute-1", boot_order=2).id)
    with pytest.raises(errors.Conflict, match="boot_volume=True"):
        manager.detach(root.id)
    assert manager.attachment(root.id) == root
    assert manager.detach(root.id, boot_volume=True).state is State.ABSENT


@pytest.mark.parametrize("away", [errors.VolumeServiceUnavailable("down"), errors.OutcomeUnknown("lost")], ids=repr)
def test_an_uncertain_attachment_while_the_service_is_away(manager, volume_service, faulty, away):
    """Whoever repeats a detach must not be told that it is impossible: it is not, later."""
    volume, who = volume_service.create_volume(), instance()
    for method in ("complete", "attachment", "delete"):
        faulty.fail(method, away, times=100)
    with pytest.raises((errors.Transient, errors.OutcomeUnknown)):
        manager.attach(volume, who, host="compute-1")
    (leg,) = manager.attachments()
    for _ in range(3):
        with pytest.raises((errors.Transient, errors.OutcomeUnknown)):
            manager.detach(leg.id)
        with pytest.raises((errors.Transient, errors.OutcomeUnknown)):
            manager.terminate(who)
    faulty.heal()
    assert manager.detach(leg.id).state is State.ABSENT
    assert volume_service.statuses(volume) == ("available", [])
