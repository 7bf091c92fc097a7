"""What an audit must not call clean: records that outlived their detach, statuses and definitions that disagree."""

import attrs
import pytest

from cloudcore import errors
from cloudcore.attach.audit.findings import Kind, Remedy
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.values import Connector
from cloudcore.disks import BlockSource
from cloudcore.hypervisor import MemoryHypervisor
from cloudcore.testing.volumes import GIB, FakeVolumes

from .conftest import instance


class Deaf(FakeVolumes):
    """Says yes to a deletion and does nothing, while told to."""

    deaf = False

    def delete(self, attachment_id):
        if not self.deaf:
            self._service.delete(attachment_id)


@pytest.fixture
def faulty(volume_service):
    return Deaf(volume_service.service)


@pytest.fixture
def guests():
    return MemoryGuests("compute-1")


@pytest.fixture
def manager(new_manager, faulty, guests):
    return new_manager(faulty, guests, patience=20.0)


def test_a_record_that_outlived_its_detach(manager, faulty, volume_service):
    """The journal says absent and the service attached: deleted, on the word of journal and guests."""
    volume = volume_service.create_volume()
    made = manager.attach(volume, instance())
    faulty.deaf = True
    assert manager.detach(made.id).state is State.ABSENT
    faulty.deaf = False
    report = manager.audit()
    (finding,) = report.findings
    assert (finding.kind, finding.remedy) == (Kind.UNKNOWN_RECORD, Remedy.DELETE_RECORD)
    assert (finding.attachment_id, finding.service_id) == (made.id, made.service_id)
    assert manager.heal(report, apply=True).done == (finding,)
    assert volume_service.statuses(volume) == ("available", [])
    assert manager.audit().clean


def test_a_record_that_outlived_is_left_while_a_guest_may_use_it(manager, faulty, volume_service, guests):
    """Somebody gave the guest its disk again by hand: an operator has to look."""
    volume, who = volume_service.create_volume(), instance()
    made = manager.attach(volume, who)
    disk = guests.disk_state(who, volume).live
    faulty.deaf = True
    manager.detach(made.id)
    guests.attach_disk(who, disk)
    remedies = {finding.kind: finding.remedy for finding in manager.audit().findings}
    assert remedies == {Kind.UNKNOWN_RECORD: None, Kind.UNKNOWN_DISK: None}
    faulty.deaf = False
    guests.detach_disk(who, volume)
    manager.heal(apply=True)


@pytest.mark.parametrize(
    ("status", "attached", "found"),
    [
        ("available", True, True),
        ("error", True, True),
        ("in-use", False, True),
        ("reserved", False, True),
        ("detaching", False, True),
        ("extending", True, False),
        ("detaching", True, False),
        ("error", False, False),
        ("maintenance", True, False),
    ],
)
def test_a_volume_whose_status_disagrees(new_manager, embedded, status, attached, found):
    """An administrator reset it, or something died half-way. Nobody but an administrator can mend it."""
    manager, volume = new_manager(embedded), embedded.create_volume().id
    made = manager.attach(volume, instance())
    if not attached:
        manager.detach(made.id)
    before = embedded.volume(volume).status
    embedded.set_status(volume, status)
    findings = manager.audit().findings
    assert [(finding.kind, finding.remedy) for finding in findings] == [(Kind.VOLUME_STATUS, None)] * found
    assert all(status in str(finding) for finding in findings)
    embedded.set_status(volume, before)
    assert manager.audit().clean


@pytest.mark.parametrize("many", [False, True])
def test_statuses_are_asked_for_one_by_one_or_all_at_once(new_manager, embedded, many):
    volumes = FakeVolumes(embedded)
    manager = new_manager(volumes)
    for _ in range(60 if many else 2):
        manager.attach(embedded.create_volume().id, instance())
    volumes.calls.clear()
    assert manager.audit().clean
    assert ("volumes" in volumes.calls, "volume" in volumes.calls) == (many, not many)


@pytest.mark.parametrize("running", [True, False])
def test_a_running_guest_that_lost_the_disk(new_manager, embedded, running):
    """Only its definition has it. One that is off has no other, and nothing is wrong."""
    host = MemoryHypervisor("compute-1")
    manager, volume, who = new_manager(embedded, host), embedded.create_volume().id, instance()
    host.add_guest(who, state="running" if running else "off")
    manager.attach(volume, who)
    if running:
        host._driver.guests[who].live.clear()
    report = manager.audit()
    assert [finding.kind for finding in report.findings] == [Kind.PERSISTENT_ONLY] * running
    assert len(manager.heal(report, apply=True).done) == len(report.findings)
    assert (host.disk_state(who, volume).live is not None) is running
    assert manager.audit().clean


def test_what_was_skipped_is_not_clean(manager, faulty, volume_service):
    """Somebody is at work on it: nothing is found, and nothing is promised."""
    volume, seen = volume_service.create_volume(), []
    faulty.on("complete", lambda *_: seen.append(manager.audit()))
    made = manager.attach(volume, instance())
    faulty.heal()
    assert [(report.findings, report.skipped, report.clean) for report in seen] == [((), (volume,), False)]
    manager.detach(made.id)


# --- growing ---------------------------------------------------------------------------------------------------------


class Rescanning(PlainConnector):
    """Counts how often it was told to look again; shows *size* then."""

    def __init__(self, host):
        super().__init__(Connector(host=host))
        self.rescans = 0
        self.size = None

    def acts_on(self, info):
        return True

    def connect(self, info):
        return HostDevice(source=BlockSource("/dev/x"), connected=True, size=self.size)

    def extended(self, info, device):
        self.rescans += 1
        return self.size


@pytest.fixture
def both(new_manager, embedded):
    hosts = {name: Rescanning(name) for name in ("compute-1", "compute-2")}
    guests = [MemoryGuests(name) for name in hosts]
    return new_manager(embedded, guests, connectors=hosts), hosts, guests


def test_growing_tells_the_host_that_a_guest_will_come_to(both, embedded):
    manager, hosts, guests = both
    volume, who = embedded.create_volume(GIB).id, instance()
    manager.attach(volume, who, host="compute-1")
    (disk,) = manager.begin_move(who, "compute-2").disks
    assert len(manager.extend(volume, 2 * GIB).told) == 2
    assert [connector.rescans for connector in hosts.values()] == [1, 1]
    guests[1].attach_disk(who, disk)
    guests[0].detach_disk(who, volume)
    (leg,) = manager.confirm_move(who)
    assert leg.settings.size == 2 * GIB


def test_growing_names_the_host_that_sees_nothing_of_it(both, embedded):
    """And the call can be repeated."""
    manager, hosts, _ = both
    volume, who = embedded.create_volume(GIB).id, instance()
    manager.attach(volume, who, host="compute-1")
    (staged,) = manager.begin_move(who, "compute-2").legs
    hosts["compute-2"].size = GIB
    left = manager.extend(volume, 2 * GIB).left
    assert [identifier for identifier, _ in left] == [staged.id]
    hosts["compute-2"].size = 2 * GIB
    assert manager.extend(volume, 2 * GIB).left == ()


def test_growing_a_held_volume(new_manager, embedded, volume_service, guests):
    """Nobody has to be told, but whoever gets it next is held to the new size."""
    manager, volume, who = new_manager(embedded, guests), embedded.create_volume(GIB).id, instance()
    manager.attach(volume, who)
    manager.begin_move(who, None, kind="shelve")
    manager.extend(volume, 2 * GIB)
    (leg,) = manager.confirm_move(who, "compute-1")
    assert leg.settings.size == 2 * GIB


def test_growing_names_who_is_on_the_way(both, embedded):
    """A guest that was asked to let go has it still: told later, or not at all."""
    manager, _, guests = both
    volume, who = embedded.create_volume(GIB).id, instance()
    made = manager.attach(volume, who, host="compute-1")
    guests[0].detach_disk = lambda *_: (_ for _ in ()).throw(errors.HypervisorUnavailable("away"))
    with pytest.raises(errors.CloudcoreError):
        manager.detach(made.id)
    done = manager.extend(volume, 2 * GIB)
    assert [identifier for identifier, _ in done.left] == [made.id]
    del guests[0].detach_disk
    assert manager.recover().complete
    assert attrs.asdict(done.volume)["size"] == 2 * GIB
