"""What an instance's end does to volumes: it takes those that the instance has, and only those meant to go with it."""

import datetime as dt

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.states import State
from cloudcore.disks import DetachOutcome
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance
from .dying import killed_at


class Guests(MemoryGuests):
    """Guests that refuse, or take their time, when told to."""

    def __init__(self, host):
        super().__init__(host)
        self.refusal = None
        self.stubborn = False

    def attach_disk(self, instance_id, disk):
        if self.refusal is not None:
            raise self.refusal
        return super().attach_disk(instance_id, disk)

    def detach_disk(self, instance_id, volume_id):
        if self.refusal is not None:
            raise self.refusal
        return DetachOutcome.PENDING if self.stubborn else super().detach_disk(instance_id, volume_id)


@pytest.fixture
def guests():
    return Guests("compute-1")


@pytest.fixture
def there():
    return Guests("compute-2")


@pytest.fixture
def faulty(volume_service):
    return FakeVolumes(volume_service.service)


@pytest.fixture
def manager(new_manager, faulty, guests, there):
    manager = new_manager(faulty, [guests, there], patience=20.0)
    yield manager
    assert manager.audit().clean


@pytest.fixture
def attach(manager):
    return lambda volume, who, **more: manager.attach(
        volume, who, host="compute-1", **{"delete_on_termination": True, **more}
    )


def kept(volume_service, volume):
    try:
        return volume_service.service.volume(volume).status not in {"deleting", "error_deleting"}
    except errors.VolumeNotFound:
        return False


def test_what_was_detached_is_kept(manager, attach, volume_service):
    """Its user wanted it back. However often the instance ends."""
    volume, who = volume_service.create_volume(), instance()
    manager.detach(attach(volume, who).id)
    assert manager.terminate(who) == manager.terminate(who) == ()
    assert volume_service.statuses(volume) == ("available", [])


def test_the_last_attachment_says_what_becomes_of_it(manager, attach, volume_service):
    """Attached to go with the instance, then again to stay; and the other way round."""
    stays, goes, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    for volume, flags in ((stays, (True, False)), (goes, (False, True))):
        manager.detach(attach(volume, who, delete_on_termination=flags[0]).id)
        attach(volume, who, delete_on_termination=flags[1])
    manager.terminate(who)
    assert kept(volume_service, stays)
    assert not kept(volume_service, goes)


def test_what_never_arrived_is_kept(manager, attach, volume_service, guests):
    """The guest refused it, and the attach was undone."""
    volume, who = volume_service.create_volume(), instance()
    guests.refusal = errors.InvalidDisk("no such bus")
    with pytest.raises(errors.InvalidDisk):
        attach(volume, who)
    guests.refusal = None
    manager.terminate(who)
    assert kept(volume_service, volume)


def test_what_another_instance_got_meanwhile_is_its_own(manager, attach, volume_service):
    """Neither deleted nor an error, for ever."""
    volume, who, other = volume_service.create_volume(), instance(), instance()
    manager.detach(attach(volume, who).id)
    attach(volume, other, delete_on_termination=False)
    assert manager.terminate(who) == ()
    assert volume_service.statuses(volume) == ("in-use", ["attached"])
    manager.terminate(other)
    assert kept(volume_service, volume)


def test_what_others_share_is_left_to_them_once_told(manager, attach, volume_service):
    """The caller hears of it once; a repeat has nothing to do, and the others' end decides."""
    volume, who, other = volume_service.create_volume(multiattach=True), instance(), instance()
    attach(volume, who)
    attach(volume, other, delete_on_termination=False)
    with pytest.raises(errors.InUse) as caught:
        manager.terminate(who)
    assert any("left to those who use it" in note for note in caught.value.__notes__)
    assert manager.terminate(who) == ()
    manager.terminate(other)
    assert kept(volume_service, volume)


def test_the_wish_survives_a_deletion_that_failed(manager, attach, volume_service, faulty):
    volume, who = volume_service.create_volume(), instance()
    attach(volume, who)
    faulty.fail("delete_volume", errors.VolumeServiceUnavailable("away"))
    with pytest.raises(errors.VolumeServiceUnavailable):
        manager.terminate(who)
    assert kept(volume_service, volume)
    assert manager.terminate(who) == ()
    assert not kept(volume_service, volume)


def test_what_is_still_to_be_deleted_is_not_forgotten(manager, attach, volume_service, faulty):
    """However old it is; and once it is deleted, it can be, with what was kept."""
    goes, stays, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    attach(goes, who)
    attach(stays, who, delete_on_termination=False)
    faulty.fail("delete_volume", errors.VolumeServiceUnavailable("away"))
    with pytest.raises(errors.VolumeServiceUnavailable):
        manager.terminate(who)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    assert manager.prune(later) == 1
    assert manager.terminate(who) == ()
    assert not kept(volume_service, goes)
    assert kept(volume_service, stays)
    assert (manager.prune(later), manager.prune(later)) == (1, 0)


def test_whoever_gets_it_before_the_deletion_is_repeated_keeps_it(manager, attach, volume_service, faulty):
    """Attached and detached again by somebody else: they have the bytes that they wrote."""
    volume, who, other = volume_service.create_volume(), instance(), instance()
    attach(volume, who)
    faulty.fail("delete_volume", errors.VolumeServiceUnavailable("away"))
    with pytest.raises(errors.VolumeServiceUnavailable):
        manager.terminate(who)
    manager.detach(attach(volume, other).id)
    assert manager.terminate(who) == ()
    assert kept(volume_service, volume)


@pytest.mark.parametrize("point", ["attach.unplug.before", "attach.unmap.after", "attach.terminate.before"])
def test_the_wish_survives_a_crash(manager, attach, volume_service, point):
    """Whatever is finished by recovery, a repeat of the call deletes what was to be deleted, and nothing else."""
    goes, stays, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    attach(goes, who)
    attach(stays, who, delete_on_termination=False)
    with killed_at(point):
        manager.terminate(who)
    manager.recover()
    assert kept(volume_service, goes)
    assert manager.terminate(who) == ()
    assert kept(volume_service, stays)
    assert not kept(volume_service, goes)


def test_a_guest_that_lets_go_late_changes_nothing(manager, attach, volume_service, guests):
    """A user asked first, and the guest had not let go when the instance ended: the user keeps the volume."""
    users, mine, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    first, _ = attach(users, who), attach(mine, who)
    guests.stubborn = True
    assert manager.detach(first.id).state is State.PENDING
    assert len(manager.terminate(who)) == 2
    guests.stubborn = False
    assert manager.terminate(who) == ()
    assert kept(volume_service, users)
    assert not kept(volume_service, mine)


def test_a_refused_end_is_forgotten(manager, attach, volume_service, guests):
    """The guest refuses for good, so it is attached as before; a later detach is its user's, and keeps the volume."""
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who)
    guests.refusal = errors.DetachFailed("mounted")
    with pytest.raises(errors.DetachFailed):
        manager.terminate(who)
    guests.refusal = None
    assert manager.attachment(made.id).state is State.ATTACHED
    manager.detach(made.id)
    assert manager.terminate(who) == ()
    assert kept(volume_service, volume)


@pytest.mark.parametrize("late", [True, False])
def test_the_flag_can_be_changed(manager, attach, volume_service, late):
    """While it is attached, through a move too; afterwards it is nobody's business."""
    volume, who = volume_service.create_volume(), instance()
    made = attach(volume, who, delete_on_termination=not late)
    if late:
        manager.begin_move(who, "compute-2")
    for _ in range(2):
        assert manager.set_delete_on_termination(made.id, late).settings.delete_on_termination is late
    if late:
        manager.revert_move(who)
    events = [line.event for line in manager.story(made.id)]
    assert events.count(f"delete-on-termination-{'on' if late else 'off'}") == 1
    manager.terminate(who)
    assert kept(volume_service, volume) is not late
    with pytest.raises(errors.Conflict, match="absent"):
        manager.set_delete_on_termination(made.id, True)
    with pytest.raises(errors.InvalidArgument):
        manager.set_delete_on_termination(made.id, "yes")


def test_a_cold_move_takes_the_flag_along_and_no_wish(manager, attach, volume_service, there):
    """Leaving the source is no end; the volume that a user takes back at the destination is kept."""
    volume, who = volume_service.create_volume(), instance()
    attach(volume, who)
    manager.begin_move(who, "compute-2", kind="cold")
    (moved,) = manager.confirm_move(who)
    assert moved.settings.delete_on_termination
    manager.detach(moved.id)
    assert manager.terminate(who) == ()
    assert kept(volume_service, volume)
