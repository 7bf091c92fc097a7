"""The manager on the hypervisor adapters' in-memory twin, which has guests that are off, paused, stubborn or gone."""

import pytest

from cloudcore import errors
from cloudcore.attach.lifecycle.states import State
from cloudcore.hypervisor import MemoryHypervisor

from .conftest import instance


@pytest.fixture
def hypervisor():
    hypervisor = MemoryHypervisor("compute-1")
    yield hypervisor
    hypervisor.check()
    hypervisor.close()


@pytest.fixture
def manager(new_manager, embedded, hypervisor):
    return new_manager(embedded, hypervisor)


@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_attach_and_detach(manager, embedded, hypervisor, state):
    """In both definitions of a guest that is on, in the persistent one of a guest that is off."""
    volume, who = embedded.create_volume().id, instance()
    hypervisor.add_guest(who, state=state)
    made = manager.attach(volume, who, "ro")
    found = hypervisor.disk_state(who, volume)
    assert (found.live is None) == (state == "off")
    assert found.persistent.read_only
    assert manager.audit().clean
    if state == "paused":
        assert manager.detach(made.id).state is State.PENDING  # it cannot let go before it is resumed
        hypervisor.resume(who)
        manager.recover()
    assert manager.detach(made.id).state is State.ABSENT
    assert manager.audit().clean


def test_boot_from_a_volume(manager, embedded, hypervisor):
    """Define the guest, attach, start: the live guest has it first in its boot order."""
    volume, who = embedded.create_volume(multiattach=True, bootable=True).id, instance()
    hypervisor.add_guest(who, state="off")
    made = manager.attach(volume, who, boot_order=1)
    hypervisor.start(who)
    assert hypervisor.disk_state(who, volume).live.boot_order == 1
    hypervisor.stop(who)
    manager.detach(made.id)


def test_a_guest_that_is_not_there(manager, embedded):
    volume = embedded.create_volume().id
    with pytest.raises(errors.GuestNotFound):
        manager.attach(volume, instance())
    assert embedded.volume(volume).status == "available"
    assert manager.attachments() == ()


def test_a_guest_that_ends_with_its_disk(manager, embedded, hypervisor):
    """Its volume is given back by the next detach, and an audit shows it until then."""
    volume, who = embedded.create_volume().id, instance()
    hypervisor.add_guest(who)
    made = manager.attach(volume, who)
    hypervisor.remove_guest(who)
    assert [finding.kind for finding in manager.audit().findings] == ["guest-lost-it"]
    manager.detach(made.id)
    assert embedded.volume(volume).status == "available"
    assert manager.audit().clean
