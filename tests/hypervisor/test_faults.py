"""Whatever goes wrong with a call, asking again gets there, and no definition is left half-way for good."""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudcore import _failpoints
from cloudcore.disks import DetachOutcome, Disk, DiskBus, FileSource
from cloudcore.errors import (
    CloudcoreError,
    Conflict,
    DeadlineExceeded,
    DetachFailed,
    GuestBusy,
    GuestNotFound,
    HypervisorError,
    HypervisorUnavailable,
    InvalidDisk,
    InvariantViolated,
    OrphanedDevice,
)
from cloudcore.hypervisor import Fault, MemoryHypervisor, Timeouts, Unplug
from cloudcore.hypervisor.disks.operations import DiskOperations
from cloudcore.hypervisor.libvirt.errors import Failure, cloudcore_error

QUICK = Timeouts(detach=0.02, paused=0.02)


class Crash(Exception):
    """Our process dies here."""


def crash(point: str) -> None:
    raise Crash(point)


@pytest.fixture
def hypervisor() -> Iterator[MemoryHypervisor]:
    with MemoryHypervisor(timeouts=QUICK) as hypervisor:
        yield hypervisor
        _failpoints.disarm()
        hypervisor.check()


@pytest.fixture
def instance_id(hypervisor: MemoryHypervisor) -> str:
    instance_id = str(uuid.uuid4())
    hypervisor.add_guest(instance_id)
    return instance_id


@pytest.fixture
def disk() -> Disk:
    return Disk(volume_id=str(uuid.uuid4()), source=FileSource("/images/a.img"))


PRIMITIVES = ("view", "settle", "plug", "unplug", "forget")


@pytest.mark.parametrize(("primitive", "fault", "number"), list(itertools.product(PRIMITIVES, Fault, range(4))))
def test_any_fault_of_any_call_is_got_over(hypervisor, instance_id, disk, primitive, fault, number):
    """The nth call of a primitive fails, before or after its work. Then the same request is made again, as anyone
    would: it ends well, and both definitions agree."""
    hypervisor.faults.plan(primitive, *[None] * number, fault)
    for _ in range(2):
        try:
            hypervisor.attach_disk(instance_id, disk)
        except (HypervisorError, HypervisorUnavailable, DeadlineExceeded):
            continue
    state = hypervisor.attach_disk(instance_id, disk)
    assert state.live == state.persistent
    assert not state.half
    for _ in range(3):
        try:
            if hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED:
                break
        except (HypervisorError, HypervisorUnavailable, DeadlineExceeded, DetachFailed):
            continue
    hypervisor.faults.planned.clear()
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


def test_a_guest_that_was_asked_is_given_time_before_it_is_asked_again(hypervisor, instance_id, disk):
    """Asked while it is just letting go, libvirt would leave the image open for as long as the guest lives."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.faults.plan("unplug", Fault.ERROR_BEFORE)
    threading.Timer(0.05, hypervisor.release, [instance_id]).start()
    next_process = DiskOperations(hypervisor._driver, Timeouts(detach=60, paused=60))
    assert next_process.detach(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert hypervisor.faults.planned["unplug"] == [Fault.ERROR_BEFORE]  # it never asked


def test_a_paused_guest_that_was_never_asked_is_asked(hypervisor, instance_id, disk):
    """We died between the two definitions. It cannot let go while it is paused, so there is nothing to wait for."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.pause(instance_id)
    _failpoints.arm("hypervisor.detach.after_persistent", crash)
    with pytest.raises(Crash):
        hypervisor.detach_disk(instance_id, disk.volume_id)
    _failpoints.disarm()
    next_process = DiskOperations(hypervisor._driver, Timeouts(detach=60, paused=0.02))
    assert next_process.detach(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.resume(instance_id)
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


@pytest.mark.parametrize("transient", [False, True])
def test_a_request_whose_answer_was_lost_is_not_repeated_at_once(hypervisor, disk, transient):
    """A transient guest shows no sign of having been asked; the call remembers."""
    instance_id = str(uuid.uuid4())
    hypervisor.add_guest(instance_id, transient=transient, unplug=Unplug.IGNORES)
    hypervisor.attach_disk(instance_id, disk)
    live = [None] if not transient else []  # the first request of a guest with two definitions is for the other one
    hypervisor.faults.plan("unplug", *live, Fault.LOST_AFTER, Fault.ERROR_BEFORE)
    threading.Timer(0.2, hypervisor.release, [instance_id]).start()
    patient = DiskOperations(hypervisor._driver, Timeouts(detach=60, paused=60))
    assert patient.detach(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert hypervisor.faults.planned["unplug"] == [Fault.ERROR_BEFORE]  # it asked once


def test_whoever_is_overtaken_does_not_ask_at_once(hypervisor, instance_id, disk):
    """Another call took it out of the persistent definition after ours had looked, and asked the guest."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    driver, unplug = hypervisor._driver, hypervisor._driver.unplug

    def overtaken(*arguments):
        driver.unplug = unplug
        hypervisor.detach_disk(instance_id, disk.volume_id)
        hypervisor.faults.plan("unplug", None, Fault.ERROR_BEFORE)
        return unplug(*arguments)

    driver.unplug = overtaken
    threading.Timer(0.2, hypervisor.release, [instance_id]).start()
    ours = DiskOperations(driver, Timeouts(detach=60, paused=60))
    assert ours.detach(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert hypervisor.faults.planned["unplug"] == [Fault.ERROR_BEFORE]


def test_a_disk_that_the_definition_lost_counts_as_gone_once_the_hypervisor_has_settled(hypervisor, instance_id, disk):
    """libvirt takes it out of the live definition before QEMU has closed it."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.faults.plan("settle", Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_BEFORE)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    with pytest.raises(DeadlineExceeded):
        hypervisor.disk_state(instance_id, disk.volume_id)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_one_lost_connection_goes_unnoticed(hypervisor, instance_id, disk, primitive, fault):
    hypervisor.faults.plan(primitive, fault)
    assert hypervisor.attach_disk(instance_id, disk).present
    hypervisor.faults.planned.clear()
    hypervisor.faults.plan(primitive, fault)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_without_a_connection_nothing_is_guessed(hypervisor, instance_id, disk):
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.faults.away = True
    for ask in (
        lambda: hypervisor.attach_disk(instance_id, disk),
        lambda: hypervisor.detach_disk(instance_id, disk.volume_id),
        lambda: hypervisor.disk_state(instance_id, disk.volume_id),
        hypervisor.disk_states,
        hypervisor.facts,
    ):
        with pytest.raises(HypervisorUnavailable):
            ask()
    hypervisor.faults.away = False
    assert hypervisor.disk_state(instance_id, disk.volume_id).present


def test_a_live_half_that_is_refused_takes_the_persistent_half_back(hypervisor, instance_id, disk):
    """Else the guest would get the disk at its next start, without anybody knowing."""
    hypervisor.faults.plan("plug", None, Fault.ERROR_BEFORE)
    with pytest.raises(HypervisorError) as caught:
        hypervisor.attach_disk(instance_id, disk)
    assert caught.value.code == 1
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


@pytest.mark.parametrize("fault", [Fault.TIMEOUT_BEFORE, Fault.TIMEOUT_AFTER])
def test_a_live_half_of_unknown_outcome_keeps_the_reservation(hypervisor, instance_id, disk, fault):
    """The call that was given up may still get there: with the persistent half gone, it would look like a detach."""
    hypervisor.faults.plan("plug", None, fault)
    with pytest.raises(DeadlineExceeded):
        hypervisor.attach_disk(instance_id, disk)
    assert hypervisor.disk_state(instance_id, disk.volume_id).persistent is not None
    assert not hypervisor.attach_disk(instance_id, disk).half


def test_a_device_name_that_is_taken_meanwhile(hypervisor, instance_id, disk, monkeypatch):
    """Another one is picked, unless this very one was asked for."""
    driver, plug = hypervisor._driver, hypervisor._driver.plug

    def late(instance: str, wanted: Disk, scope: object) -> None:
        other = Disk(volume_id=str(uuid.uuid4()), source=FileSource("/other"), target=wanted.target, cache="none")
        guest = driver.guests[instance]
        if "vda" not in guest.persistent or wanted.target == "vdk":
            guest.persistent.setdefault(wanted.target, other)
            guest.live.setdefault(wanted.target, other)
        plug(instance, wanted, scope)

    monkeypatch.setattr(driver, "plug", late)
    assert hypervisor.attach_disk(instance_id, disk).live.target == "vdb"
    named = attrs.evolve(disk, volume_id=str(uuid.uuid4()), target="vdk")
    with pytest.raises(InvalidDisk, match="vdk is in use"):
        hypervisor.attach_disk(instance_id, named)
    assert not hypervisor.disk_state(instance_id, named.volume_id).present


def test_a_scsi_unit_that_is_taken_meanwhile(hypervisor, instance_id, disk, monkeypatch):
    """By a disk of another name: the next unit is picked."""
    driver, plug = hypervisor._driver, hypervisor._driver.plug

    def late(instance: str, wanted: Disk, scope: object) -> None:
        other = attrs.evolve(wanted, volume_id=str(uuid.uuid4()), target="sdz", cache="none")
        driver.guests[instance].persistent.setdefault("sdz", other)
        driver.guests[instance].live.setdefault("sdz", other)
        plug(instance, wanted, scope)

    monkeypatch.setattr(driver, "plug", late)
    assert hypervisor.attach_disk(instance_id, attrs.evolve(disk, bus=DiskBus.SCSI)).live.unit == 1


def test_what_is_read_back_is_compared(hypervisor, instance_id, disk, monkeypatch):
    """A hypervisor that says yes and does something else is not believed."""
    driver, plug = hypervisor._driver, hypervisor._driver.plug
    monkeypatch.setattr(
        driver, "plug", lambda guest, one, scope: plug(guest, attrs.evolve(one, read_only=False), scope)
    )
    with pytest.raises(Conflict, match="read_only: False, not True"):
        hypervisor.attach_disk(instance_id, attrs.evolve(disk, read_only=True))
    monkeypatch.setattr(driver, "plug", lambda guest, one, scope: None)
    with pytest.raises(HypervisorError, match="not in its definition"):
        hypervisor.attach_disk(instance_id, attrs.evolve(disk, volume_id=str(uuid.uuid4())))


@pytest.mark.parametrize(("state", "plug"), [("off", 0), ("running", 0), ("running", 1), ("paused", 1)])
@pytest.mark.parametrize("verbs", [["start"], ["stop"], ["stop", "start"]])
def test_a_guest_that_starts_or_stops_meanwhile(hypervisor, disk, monkeypatch, state, plug, verbs):
    """Before the disk goes into the first of its definitions, or the second: it is in those that the guest has then."""
    instance_id, plugs, act = str(uuid.uuid4()), [], hypervisor._driver.plug
    hypervisor.add_guest(instance_id, state=state)

    def late(*arguments):
        if len(plugs) == plug:
            for verb in verbs:
                getattr(hypervisor, verb)(instance_id)
        plugs.append(arguments)
        act(*arguments)

    monkeypatch.setattr(hypervisor._driver, "plug", late)
    found = hypervisor.attach_disk(instance_id, disk)
    assert found == hypervisor.disk_state(instance_id, disk.volume_id)
    assert found.persistent is not None
    assert (found.live is not None) == (verbs[-1] == "start")


def test_a_transient_guest_that_is_stopped_meanwhile_is_not_there(hypervisor, disk, monkeypatch):
    instance_id, act = str(uuid.uuid4()), hypervisor._driver.plug
    hypervisor.add_guest(instance_id, transient=True)
    monkeypatch.setattr(hypervisor._driver, "plug", lambda *given: (hypervisor.stop(instance_id), act(*given)))
    with pytest.raises(GuestNotFound):
        hypervisor.attach_disk(instance_id, disk)


@pytest.mark.parametrize("transient", [False, True])
def test_a_disk_that_was_let_go_late_is_attached_like_any_other(hypervisor, disk, transient):
    """Nobody asked again after "pending", so the mark of that detach is there still: it is not this disk's."""
    instance_id = str(uuid.uuid4())
    hypervisor.add_guest(instance_id, transient=transient, unplug=Unplug.IGNORES)
    hypervisor.attach_disk(instance_id, disk)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.release(instance_id)
    for _ in range(2):
        assert hypervisor.attach_disk(instance_id, disk).live is not None
    assert hypervisor._driver.view(instance_id).removed == ()


def test_lost_events_only_cost_time(hypervisor, instance_id, disk):
    """Gone is what the definition does not have; nobody needs to be told."""
    hypervisor.faults.lose_events = True
    hypervisor.attach_disk(instance_id, disk)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_a_guest_that_ignores_the_request_keeps_the_disk(hypervisor, instance_id, disk):
    """Pending: also for a new adapter, also when asked again; the guest may let go much later."""
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    hypervisor.attach_disk(instance_id, disk)
    for _ in range(2):
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    state = hypervisor.disk_state(instance_id, disk.volume_id)
    assert state.half
    assert state.live is not None
    with pytest.raises(Conflict, match="being detached"):
        hypervisor.attach_disk(instance_id, disk)
    hypervisor.release(instance_id)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


@pytest.mark.parametrize("lose_events", [False, True])
def test_a_guest_that_refuses_keeps_it_for_good_in_both(hypervisor, instance_id, disk, lose_events):
    """The persistent definition gets it back, also when an earlier, pending request took it out."""
    hypervisor.attach_disk(instance_id, disk)
    before = hypervisor.disk_state(instance_id, disk.volume_id)
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.set_unplug(instance_id, Unplug.REFUSES)
    hypervisor.faults.lose_events = lose_events
    if lose_events:  # a refusal is told by an event alone: without it, nobody knows more than "not yet"
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
        return
    with pytest.raises(DetachFailed) as caught:
        hypervisor.detach_disk(instance_id, disk.volume_id)
    assert caught.value.identifier == disk.volume_id
    assert hypervisor.disk_state(instance_id, disk.volume_id) == before


@pytest.mark.parametrize("mood", [Unplug.WILLING, Unplug.REFUSES])
def test_what_gets_the_device_name_next_was_not_asked_for(hypervisor, instance_id, disk, mood):
    """The guest ignored one request and answered the next: with that, both are done."""
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    hypervisor.attach_disk(instance_id, disk)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.set_unplug(instance_id, mood)
    if mood is Unplug.WILLING:
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        disk = attrs.evolve(disk, volume_id=str(uuid.uuid4()))
        assert hypervisor.attach_disk(instance_id, disk).live.target == "vda"
    else:
        with pytest.raises(DetachFailed):
            hypervisor.detach_disk(instance_id, disk.volume_id)
        hypervisor.set_unplug(instance_id, Unplug.WILLING)
    hypervisor.pause(instance_id)
    hypervisor.resume(instance_id)
    assert hypervisor.disk_state(instance_id, disk.volume_id).live is not None


def test_an_error_of_the_request_is_a_refusal(hypervisor, instance_id, disk):
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.faults.plan("unplug", None, Fault.ERROR_BEFORE)
    with pytest.raises(DetachFailed, match="refused by memory"):
        hypervisor.detach_disk(instance_id, disk.volume_id)
    assert not hypervisor.disk_state(instance_id, disk.volume_id).half


# --- refused for a moment --------------------------------------------------------------------------------------------

BUSY = "unable to execute QEMU command '{}': Hot-{}plug failed: guest is busy (power indicator blinking)"


def busy(driver, monkeypatch, primitive: str, times: float) -> list[object]:
    """The live half of a primitive is refused that often, as libvirt words it."""
    done, act = [], getattr(driver, primitive)
    asked = BUSY.format("device_del", "un") if primitive == "unplug" else BUSY.format("device_add", "")

    def refusing(instance_id, disk, scope):
        if scope == "live" and len(done) < times:
            done.append(scope)
            raise cloudcore_error(Failure(code=1, domain=10, message=asked), primitive, uri="memory:")
        return act(instance_id, disk, scope)

    monkeypatch.setattr(driver, primitive, refusing)
    return done


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_guest_that_is_busy_is_asked_again(disk, monkeypatch, times):
    with MemoryHypervisor(timeouts=Timeouts(detach=60, paused=60)) as hypervisor:
        instance_id = str(uuid.uuid4())
        hypervisor.add_guest(instance_id)
        hypervisor.attach_disk(instance_id, disk)
        monkeypatch.setattr("cloudcore.hypervisor.disks.detaching._BUSY_AGAIN", 0.01)
        done = busy(hypervisor._driver, monkeypatch, "unplug", times)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        assert len(done) == times


def test_a_guest_that_stays_busy_is_pending_and_refuses_nothing(hypervisor, instance_id, disk, monkeypatch):
    """Ask again later: the persistent definition is not given the disk back, as after a refusal for good."""
    hypervisor.attach_disk(instance_id, disk)
    busy(hypervisor._driver, monkeypatch, "unplug", 1e9)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    assert hypervisor.disk_state(instance_id, disk.volume_id).half
    monkeypatch.undo()
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


def test_a_busy_guest_gets_its_disk_or_nothing(disk, monkeypatch):
    """Waited for; and when that was not long enough, no half is left and the error says when to come back."""
    monkeypatch.setattr("cloudcore.hypervisor.disks.operations._BUSY_AGAIN", 0.01)
    with MemoryHypervisor(timeouts=Timeouts(detach=0.2)) as hypervisor:
        instance_id = str(uuid.uuid4())
        hypervisor.add_guest(instance_id)
        driver = hypervisor._driver
        busy(driver, monkeypatch, "plug", 1e9)
        with pytest.raises(GuestBusy) as caught:
            hypervisor.attach_disk(instance_id, disk)
        assert caught.value.retry_after > 0
        assert not hypervisor.disk_state(instance_id, disk.volume_id).present
        monkeypatch.undo()
        busy(driver, monkeypatch, "plug", 2)
        monkeypatch.setattr("cloudcore.hypervisor.disks.operations._BUSY_AGAIN", 0.01)
        assert hypervisor.attach_disk(instance_id, disk).live is not None


# --- lost by the hypervisor ------------------------------------------------------------------------------------------


def test_a_disk_that_the_hypervisor_has_lost_track_of_is_not_gone(hypervisor, instance_id, disk):
    """The guest has it: that is said, by the state and by check(), and a detach takes it out for real."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.lose_track(instance_id, disk.volume_id)
    state = hypervisor.disk_state(instance_id, disk.volume_id)
    assert (state.live, state.orphaned, state.half, state.present) == (None, True, True, True)
    with pytest.raises(InvariantViolated, match=f"lost track of volume {disk.volume_id}"):
        hypervisor.check()
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


def test_a_lost_disk_that_was_asked_for_is_looked_at_again_though_the_time_is_up(disk):
    """As on a machine that is so busy that the first look takes all the time there is."""
    with MemoryHypervisor(timeouts=Timeouts(detach=0, paused=0)) as hypervisor:
        hypervisor.add_guest(instance_id := str(uuid.uuid4()))
        hypervisor.attach_disk(instance_id, disk)
        hypervisor.lose_track(instance_id, disk.volume_id)
        assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED


@pytest.mark.parametrize("unplug", [Unplug.IGNORES, Unplug.REFUSES])
def test_a_lost_disk_that_the_guest_keeps_is_pending_or_a_typed_error(hypervisor, instance_id, disk, unplug):
    """Never "detached"; a restart of the guest ends it."""
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.lose_track(instance_id, disk.volume_id)
    hypervisor.set_unplug(instance_id, unplug)
    for _ in range(2):
        if unplug is Unplug.IGNORES:
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
        else:
            with pytest.raises(OrphanedDevice, match="restart the guest"):
                hypervisor.detach_disk(instance_id, disk.volume_id)
        assert hypervisor.disk_state(instance_id, disk.volume_id).orphaned
    hypervisor.stop(instance_id)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    hypervisor.start(instance_id)
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


def test_a_lost_disk_is_cleared_away_for_the_same_volume(hypervisor, instance_id, disk):
    hypervisor.attach_disk(instance_id, disk)
    hypervisor.lose_track(instance_id, disk.volume_id)
    assert not hypervisor.attach_disk(instance_id, disk).half
    hypervisor.lose_track(instance_id, disk.volume_id)
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    with pytest.raises(OrphanedDevice, match=disk.volume_id):
        hypervisor.attach_disk(instance_id, disk)
    hypervisor.stop(instance_id)


# --- stopped ---------------------------------------------------------------------------------------------------------


def test_a_guest_that_stops_has_let_go(hypervisor, instance_id, disk):
    hypervisor.set_unplug(instance_id, Unplug.IGNORES)
    hypervisor.attach_disk(instance_id, disk)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.PENDING
    hypervisor.stop(instance_id)
    assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
    hypervisor.start(instance_id)
    assert not hypervisor.disk_state(instance_id, disk.volume_id).present


def test_a_guest_destroyed_while_it_is_waited_for(disk):
    """Wakes the waiter at once."""
    with MemoryHypervisor(timeouts=Timeouts(detach=60)) as hypervisor:
        instance_id = str(uuid.uuid4())
        hypervisor.add_guest(instance_id, unplug=Unplug.IGNORES)
        hypervisor.attach_disk(instance_id, disk)
        _failpoints.arm("hypervisor.detach.after_request", lambda _: hypervisor.remove_guest(instance_id))
        try:
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
        finally:
            _failpoints.disarm()


POINTS = [
    "hypervisor.attach.after_persistent",
    "hypervisor.attach.after_live",
    "hypervisor.detach.after_persistent",
    "hypervisor.detach.after_request",
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("state", ["running", "paused", "off"])
def test_dying_anywhere_loses_nothing(hypervisor, disk, point, state):
    """Our process dies at any step; the next one asks for the opposite or the same, and gets it."""
    for again in ("attach", "detach"):
        instance_id = str(uuid.uuid4())
        hypervisor.add_guest(instance_id, state=state)
        if "detach" in point:
            hypervisor.attach_disk(instance_id, disk)

        def die(passed: str) -> None:
            if passed == point:
                _failpoints.disarm()
                raise Crash

        _failpoints.arm("*", die)
        passes = state != "off" or "persistent" in point  # without a guest there is only one definition to change
        with pytest.raises(Crash) if passes else contextlib.nullcontext():
            if "detach" in point:
                hypervisor.detach_disk(instance_id, disk.volume_id)
            else:
                hypervisor.attach_disk(instance_id, disk)
        _failpoints.disarm()
        if state == "paused":
            hypervisor.resume(instance_id)
        if again == "detach" or hypervisor.disk_state(instance_id, disk.volume_id).half:
            if again == "attach" and "attach" in point:
                assert not hypervisor.attach_disk(instance_id, disk).half
            assert hypervisor.detach_disk(instance_id, disk.volume_id) is DetachOutcome.DETACHED
            assert not hypervisor.disk_state(instance_id, disk.volume_id).present
        else:
            assert not hypervisor.attach_disk(instance_id, disk).half


def test_a_boot_order_is_for_the_next_start(hypervisor, instance_id, disk):
    """A guest that runs has booted: libvirt would refuse an order beside the one that it runs with."""
    state = hypervisor.attach_disk(instance_id, attrs.evolve(disk, boot_order=1))
    assert (state.live.boot_order, state.persistent.boot_order) == (None, 1)
    hypervisor.check()


def test_check_finds_what_must_never_be(hypervisor, instance_id, disk):
    """A volume twice in one guest, or in two different ways."""
    hypervisor.attach_disk(instance_id, disk)
    guest = hypervisor._driver.guests[instance_id]
    guest.live["vdz"] = attrs.evolve(guest.live["vda"], target="vdz")
    guest.persistent["vda"] = attrs.evolve(guest.persistent["vda"], read_only=True)
    with pytest.raises(InvariantViolated) as caught:
        hypervisor.check()
    assert len(caught.value.findings) == 2
    del guest.live["vdz"]
    guest.persistent["vda"] = guest.live["vda"]


class Disks(RuleBasedStateMachine):
    """One host, two guests, three volumes, calls and faults in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.hypervisor = MemoryHypervisor(timeouts=Timeouts(detach=0.005, paused=0.005))
        self.guests = [str(uuid.UUID(int=n)) for n in (1, 2)]
        for guest in self.guests:
            self.hypervisor.add_guest(guest, slots=2)
        self.disks = [Disk(volume_id=str(uuid.UUID(int=n)), source=FileSource(f"/{n}")) for n in (7, 8, 9)]
        self.attached: set[tuple[int, int]] = set()  # what was acknowledged and not asked back since

    @rule(guest=st.integers(0, 1), disk=st.integers(0, 2))
    def attach(self, guest, disk):
        """An acknowledged attach holds until a detach is asked for."""
        try:
            state = self.hypervisor.attach_disk(self.guests[guest], self.disks[disk])
        except CloudcoreError:
            return
        assert state.present
        self.attached.add((guest, disk))

    @rule(guest=st.integers(0, 1), disk=st.integers(0, 2))
    def detach(self, guest, disk):
        """An acknowledged detach has taken it out of both; a refused one of neither."""
        before = self.hypervisor._driver.guests[self.guests[guest]]
        was = (guest, disk) in self.attached
        self.attached.discard((guest, disk))
        try:
            outcome = self.hypervisor.detach_disk(self.guests[guest], self.disks[disk].volume_id)
        except DetachFailed as failure:
            if was and not getattr(failure, "__notes__", ()):
                self.attached.add((guest, disk))
            return
        except CloudcoreError:
            return
        volumes = {one.volume_id for one in (*before.live.values(), *before.persistent.values())}
        if outcome is DetachOutcome.DETACHED:
            assert self.disks[disk].volume_id not in volumes

    @rule(guest=st.integers(0, 1), what=st.sampled_from(["pause", "resume", "stop", "start", "release"]))
    def drive(self, guest, what):
        getattr(self.hypervisor, what)(self.guests[guest])

    @rule(guest=st.integers(0, 1), unplug=st.sampled_from(Unplug))
    def change_mood(self, guest, unplug):
        self.hypervisor.set_unplug(self.guests[guest], unplug)

    @rule(primitive=st.sampled_from(PRIMITIVES), fault=st.sampled_from(Fault))
    def plan_fault(self, primitive, fault):
        self.hypervisor.faults.plan(primitive, fault)

    @rule(lose=st.booleans())
    def lose_events(self, lose):
        self.hypervisor.faults.lose_events = lose

    @invariant()
    def acknowledged_disks_are_there(self):
        for guest, disk in self.attached:
            found = self.hypervisor._driver.guests[self.guests[guest]]
            volume_id = self.disks[disk].volume_id
            assert volume_id in {one.volume_id for one in found.persistent.values()}
            if found.state != "off":
                assert volume_id in {one.volume_id for one in found.live.values()}

    @invariant()
    def definitions_are_sound(self):
        planned, self.hypervisor.faults.planned = self.hypervisor.faults.planned, {}
        try:
            self.hypervisor.check()
        finally:
            self.hypervisor.faults.planned = planned


TestDisks = Disks.TestCase
TestDisks.settings = settings(max_examples=40, stateful_step_count=30)
