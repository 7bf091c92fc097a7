"""A process that lost its lease in the middle of a step, and went on: what the step did is taken back.

The winner settles what the journal says; what the loser did afterwards only the loser knows.
"""

import threading

import pytest
import sqlalchemy as sa

from cloudcore import _failpoints, errors
from cloudcore.attach.hosts.connectors import PlainConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.lifecycle.records import HostDevice
from cloudcore.attach.lifecycle.states import State
from cloudcore.attach.tables import attachment_locks
from cloudcore.attach.volumes.values import Connector
from cloudcore.disks import BlockSource

from .conftest import instance


class Connecting(PlainConnector):
    """Makes devices, in a set."""

    def __init__(self, host):
        super().__init__(Connector(host=host))
        self.devices = set()

    def acts_on(self, info):
        return True

    def connect(self, info):
        self.devices.add(info.data.get("volume_id"))
        return HostDevice(source=BlockSource("/dev/x"), connected=True, details={"volume": info.data.get("volume_id")})

    def disconnect(self, info, device, *, force=False):
        self.devices.discard(device.details["volume"])

    def connections(self):
        return tuple(self.devices)


@pytest.fixture
def guests():
    return MemoryGuests("compute-1")


@pytest.fixture
def connector():
    return Connecting("compute-1")


@pytest.fixture
def lose(journal_database, new_manager, embedded, guests, connector):
    """At *point*, once: the lease is another machine's, long past; somebody recovers, and does *more*."""
    winner = new_manager(embedded, guests, connectors={"compute-1": connector}, lease=0.4)

    def arm(point, more=lambda winner: None):
        def run(_):
            _failpoints.disarm()
            with journal_database.write() as connection:
                values = {"owner": "elsewhere/1/2/3", "expires": 1.0}
                connection.execute(sa.update(attachment_locks).values(**values))
            worker = threading.Thread(target=lambda: (winner.recover(), more(winner)))
            worker.start()
            worker.join()

        _failpoints.arm(point, run)

    yield arm
    _failpoints.disarm()


@pytest.fixture
def manager(new_manager, embedded, guests, connector):
    return new_manager(embedded, guests, connectors={"compute-1": connector}, patience=5.0)


@pytest.mark.parametrize(
    "point",
    [
        "attach.reserve.before",
        "attach.connect.before",
        "attach.plug.before",
        "attach.complete.before",
        "attach.reserve.after",
        "attach.map.before",
        "attach.map.after",
        "attach.connect.after",
        "attach.plug.after",
        "attach.complete.after",
    ],
)
def test_the_loser_leaves_nothing(manager, embedded, guests, connector, lose, point):
    """Wherever it happened: either the instance has the volume in every store, or nobody has anything of it."""
    volume = embedded.create_volume().id
    lose(point)
    with pytest.raises(errors.CloudcoreError) as caught:
        manager.attach(volume, instance())
    assert isinstance(caught.value, errors.Conflict), repr(caught.value)
    assert manager.recover().complete
    has = [state.volume_id for state in guests.disk_states()]
    assert (embedded.volume(volume).status == "in-use") == (has == [volume]) == (connector.devices == {volume})
    assert len(embedded.attachments(volume_id=volume)) == len(has)
    assert manager.audit().clean
    assert not any(leg.interrupted for leg in manager.attachments())


@pytest.mark.parametrize("point", ["attach.map.after", "attach.connect.after"])
def test_the_loser_leaves_nothing_where_targets_are_shared(manager, embedded, guests, connector, lose, point):
    """The loser held the lease on the backend's targets too, which undoing takes again."""
    embedded._backend.update(service_uuid=instance(), shared_targets=True)
    volume = embedded.create_volume().id
    lose(point)
    with pytest.raises(errors.Conflict) as caught:
        manager.attach(volume, instance())
    assert not any("could not be undone" in note for note in getattr(caught.value, "__notes__", ()))
    assert not connector.devices
    assert not embedded.attachments(volume_id=volume)
    assert not guests.disk_states()
    assert manager.audit().clean


def test_its_story_says_so(manager, embedded, guests, lose):
    volume = embedded.create_volume().id
    lose("attach.plug.before")
    with pytest.raises(errors.GenerationConflict) as caught:
        manager.attach(volume, instance())
    assert any("effect of plug was undone" in note for note in caught.value.__notes__)


def test_whoever_has_the_volume_now_keeps_it(manager, embedded, guests, connector, lose):
    """It was given to another instance meanwhile: its disk and the device of the host stay."""
    volume, other = embedded.create_volume().id, instance()
    lose("attach.plug.before", lambda winner: winner.attach(volume, other))
    with pytest.raises(errors.Conflict):
        manager.attach(volume, instance())
    assert [(state.instance_id, state.volume_id) for state in guests.disk_states()] == [(other, volume)]
    assert connector.devices == {volume}
    assert manager.audit().clean


def test_the_same_instance_keeps_it(manager, embedded, guests, connector, lose):
    """It was given to the same instance again meanwhile, so the disk is that attachment's."""
    volume, who = embedded.create_volume().id, instance()
    lose("attach.plug.before", lambda winner: winner.attach(volume, who))
    with pytest.raises(errors.Conflict):
        manager.attach(volume, who)
    (leg,) = manager.attachments()
    assert leg.state is State.ATTACHED
    assert guests.disk_state(who, volume).present
    assert manager.audit().clean


def test_a_crash_while_it_is_taken_back(manager, embedded, guests, connector, lose):
    """It was written down first, so recovery goes on with it."""

    class Killed(BaseException):
        pass

    def die(_):
        _failpoints.disarm()
        raise Killed

    volume = embedded.create_volume().id
    lose("attach.plug.before", lambda winner: _failpoints.arm("attach.surplus.begun", die))
    with pytest.raises(Killed):
        manager.attach(volume, instance())
    assert guests.disk_states()
    assert manager.recover().complete
    assert guests.disk_states() == ()
    assert connector.devices == set()
    assert manager.audit().clean
