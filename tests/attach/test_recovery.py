"""Recovery takes each volume for itself, and forces nothing but on evidence about the very host."""

import datetime as dt

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.fencing import Evidence
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance


class Guests(MemoryGuests):
    """Guests of a host that can be away, or have a fault of its own."""

    def __init__(self, host):
        super().__init__(host)
        self.trouble = None

    def _trouble(self):
        if self.trouble is not None:
            raise self.trouble

    def attach_disk(self, instance_id, disk):
        self._trouble()
        return super().attach_disk(instance_id, disk)

    def detach_disk(self, instance_id, volume_id):
        self._trouble()
        return super().detach_disk(instance_id, volume_id)

    def disk_state(self, instance_id, volume_id):
        self._trouble()
        return super().disk_state(instance_id, volume_id)

    def disk_states(self):
        self._trouble()
        return super().disk_states()


class Fencer:
    """Says *about* when asked of any host."""

    def __init__(self, about=None):
        self.about = about
        self.asked = []

    def evidence(self, host):
        self.asked.append(host)
        about = host if self.about is None else self.about
        return Evidence(host=about, kind="power-off", by="operator", at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


AWAY = errors.HypervisorUnavailable("no connection")


@pytest.fixture
def here():
    return Guests("compute-1")


@pytest.fixture
def there():
    return Guests("compute-2")


@pytest.fixture
def faulty(volume_service):
    return FakeVolumes(volume_service.service)


def interrupted(manager, volume, here, trouble=AWAY):
    """The guest has it, and nobody knows."""
    plug = here.attach_disk

    def plug_and_lose(instance_id, disk):
        plug(instance_id, disk)
        here.trouble = trouble
        raise trouble

    here.attach_disk = plug_and_lose
    with pytest.raises(errors.OutcomeUnknown):
        manager.attach(volume, instance(), host=here.host)
    del here.attach_disk
    (leg,) = manager.attachments(volume_id=volume)
    assert leg.state is State.PLUG_UNCERTAIN
    return leg


@pytest.mark.parametrize("served", [True, False])
def test_evidence_about_another_host_is_none(new_manager, volume_service, faulty, here, there, served):
    """Whoever asks, and whether the host is served or not."""
    volume = volume_service.create_volume()
    leg = interrupted(new_manager(faulty, here), volume, here)
    fencer = Fencer(about="compute-9")
    manager = new_manager(faulty, [here, there] if served else there, fencer=fencer)
    with pytest.raises(errors.FencingRequired):
        manager.detach(leg.id, force=True)
    assert not manager.recover().complete
    assert fencer.asked.count("compute-1") >= 2
    here.trouble = None
    assert here.disk_state(leg.instance_id, volume).present
    assert volume_service.statuses(volume)[1] == ["attaching"]
    assert new_manager(faulty, here).recover().complete


def test_a_dead_host_that_is_served_is_given_up(new_manager, volume_service, faulty, here):
    """It cannot be reached, and the fencer has evidence: an attach, a pending detach."""
    volume, other = volume_service.create_volume(), volume_service.create_volume()
    manager = new_manager(faulty, here, fencer=Fencer())
    made = manager.attach(other, instance())
    leg = interrupted(manager, volume, here)
    with pytest.raises(errors.OutcomeUnknown):
        manager.detach(made.id)
    report = manager.recover()
    assert report.complete
    assert {one.id for one in report.settled} == {leg.id, made.id}
    assert volume_service.statuses(volume) == volume_service.statuses(other) == ("available", [])


def test_a_host_that_answers_is_not_forced(new_manager, volume_service, faulty, here):
    """What the fencer says of it does not matter: its guest is asked."""
    volume = volume_service.create_volume()
    fencer = Fencer()
    manager = new_manager(faulty, here, fencer=fencer)
    leg = interrupted(manager, volume, here)
    here.trouble = None
    (settled,) = manager.recover().settled
    assert settled.state is State.ATTACHED
    assert fencer.asked == []
    manager.detach(leg.id)


@pytest.mark.parametrize(
    "trouble", [TypeError("SECRET"), KeyError("SECRET"), AssertionError("SECRET"), RuntimeError("SECRET")], ids=repr
)
@pytest.mark.parametrize("where", ["guests", "service"])
def test_a_foreign_fault_stops_one_volume_only(new_manager, volume_service, faulty, here, there, where, trouble):
    """An adapter raises what none should: the outcome is unknown, the others are settled, and no value is told."""
    sick, well = volume_service.create_volume(), volume_service.create_volume()
    manager = new_manager(faulty, [here, there], patience=5.0)
    interrupted(manager, well, there)
    there.trouble = None
    if where == "guests":
        here.trouble = trouble
    else:
        faulty.on("update", lambda *_: (_ for _ in ()).throw(trouble))
        faulty.on("attachment", lambda *_: (_ for _ in ()).throw(trouble))
    with pytest.raises(errors.OutcomeUnknown) as caught:
        manager.attach(sick, instance(), host="compute-1")
    assert type(trouble).__name__ in str(caught.value)
    report = manager.recover()
    assert [leg.volume_id for leg in report.settled if leg.volume_id == well] == [well]
    for text in (str(caught.value), str(report.left), *map(str, manager.story(manager.attachments()[0].id))):
        assert "SECRET" not in text
    here.trouble = None
    faulty.heal()
    assert manager.recover().complete
    for leg in manager.attachments():
        manager.detach(leg.id)
    assert manager.audit().clean


@pytest.mark.parametrize(
    "said",
    [
        ConnectionInfo("rbd", {"name": "pool/image", "hosts": ["mon-1", "mon-2"], "ports": ["6789"]}),
        ConnectionInfo("iscsi", {"target_portal": "10.0.0.1", "target_iqn": "iqn", "target_lun": 0}),
        ConnectionInfo("rbd", {"name": None}),
        ConnectionInfo("local", {"device_path": "/x", "encrypted": True}),
        ConnectionInfo("local", {"device_path": "/x", "logical_block_size": "big"}),
    ],
    ids=lambda info: info.kind,
)
def test_malformed_connection_information_is_undone(new_manager, volume_service, here, there, said):
    """An attach and a live move; whatever else is there goes on."""

    class Says(FakeVolumes):
        odd = False

        def attachment(self, attachment_id):
            return self._odd(self._service.attachment(attachment_id))

        def update(self, attachment_id, connector):
            return self._odd(self._service.update(attachment_id, connector))

        def create(self, *arguments, **more):
            return self._odd(self._service.create(*arguments, **more))

        def _odd(self, record):
            import attrs

            return attrs.evolve(record, connection=said) if self.odd else record

    volumes = Says(volume_service.service)
    manager = new_manager(volumes, [here, there])
    moving, fresh, who = volume_service.create_volume(), volume_service.create_volume(), instance()
    made = manager.attach(moving, who, host="compute-1")
    volumes.odd = True
    expected = (errors.VolumeServiceError, errors.UnsupportedFeature)
    with pytest.raises(expected):
        manager.attach(fresh, instance(), host="compute-1")
    with pytest.raises(expected):
        manager.begin_move(who, "compute-2")
    volumes.odd = False
    assert manager.recover().complete
    assert volume_service.statuses(fresh) == ("available", [])
    assert manager.attachments() == (manager.attachment(made.id),)
    assert manager.move(who) is None
    manager.detach(made.id)
    assert manager.audit().clean
