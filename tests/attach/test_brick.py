"""The adapter for os-brick, against a stand-in with its interface: iSCSI and its kin need kernel parts."""

import sys
import uuid
from pathlib import Path

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.hosts.connectors import HostConnector
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.disks import BlockSource, RbdSource

ISCSI = ConnectionInfo("iscsi", {"target_iqn": "iqn.x", "auth_password": "s3cret", "volume_id": "v"})
RBD = ConnectionInfo("rbd", {"name": "pool/image", "hosts": ["10.0.0.1"], "ports": ["6789"]})


class VolumeDeviceNotFound(Exception):
    pass


class StandIn:
    """os_brick.initiator.connector, as far as the adapter uses it."""

    def __init__(self):
        self.calls = []
        self.error = None
        self.size = 2**30
        self.path = "/dev/sdq"
        self.InitiatorConnector = self

    def get_connector_properties(self, root_helper, my_ip, multipath, enforce_multipath, host=None, execute=None):
        return {
            "host": host,
            "ip": my_ip,
            "initiator": "iqn.here",
            "multipath": multipath,
            "nqn": "nqn.here",
            "do_local_attach": False,
        }

    def factory(self, protocol, root_helper, driver=None, use_multipath=False, device_scan_attempts=3, **_):
        self.calls.append(("factory", protocol, use_multipath))
        return self

    def connect_volume(self, properties):
        self._act("connect", properties)
        return {
            "type": "block",
            "path": self.path,
            "scsi_wwn": "36000",
            "multipath_id": "mpatha",
            "password": "s3cret",
        }

    def disconnect_volume(self, properties, device_info, force=False, ignore_errors=False):
        self._act("disconnect", device_info, force)

    def extend_volume(self, properties):
        self._act("extend")
        return self.size

    def _act(self, *what):
        self.calls.append(what)
        if self.error is not None:
            raise self.error


@pytest.fixture
def module():
    return StandIn()


@pytest.fixture
def connector(module):
    return BrickConnector("compute-1", lock_path="/var/lock/brick", multipath=True, module=module)


def test_it_is_a_host_connector(connector):
    assert isinstance(connector, HostConnector)


def test_the_host_is_described_once(connector):
    found = connector.describe()
    assert (found.host, found.initiator, found.multipath) == ("compute-1", "iqn.here", True)
    assert found.properties == {"nqn": "nqn.here"}
    assert connector.describe() is found


def test_what_qemu_opens_is_not_connected(connector, module):
    assert isinstance(connector.connect(RBD).source, RbdSource)
    assert not connector.connect(RBD).connected
    assert module.calls == []


def test_a_device_is_made_and_removed(connector, module):
    """What disconnecting needs is kept, and no more: a driver's secrets are not written down."""
    device = connector.connect(ISCSI)
    assert (device.source, device.serial, device.connected) == (BlockSource("/dev/sdq"), "36000", True)
    assert set(device.details) == {"type", "path", "scsi_wwn", "multipath_id"}
    assert "s3cret" not in str(device.as_json())
    connector.disconnect(ISCSI, device, force=True)
    assert module.calls[-1] == ("disconnect", dict(device.details), True)
    assert connector.extended(ISCSI, device) == 2**30


def test_without_its_connection_nothing_is_guessed(connector, module):
    """Disconnecting by a stale or foreign description removes another volume's device."""
    device = connector.connect(ISCSI)
    with pytest.raises(errors.Conflict, match="by hand"):
        connector.disconnect(None, device)
    assert not any(call[0] == "disconnect" for call in module.calls)


KINDS = {
    "gpfs": lambda name: {"device_path": f"/gpfs/{name}"},
    "huaweisdshypervisor": lambda name: {"volume_id": name},
    "lightos": lambda name: {"uuid": name, "subsysnqn": "nqn.x", "lightos_nodes": {"10.0.0.1": {}}},
    "scaleio": lambda name: {"scaleIO_volname": name, "scaleIO_volume_id": f"{name}-id", "serverPassword": "s3cret"},
    "storpool": lambda name: {"volume": name, "client_id": "1", "access_mode": "rw"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_volumes_are_told_apart_by_what_their_kind_calls_them(tmp_path, module, kind):
    """And a forgotten one is disconnected by that, though the host keeps no secret."""
    connector = BrickConnector("compute-1", lock_path=str(tmp_path), module=module)
    told, devices = [], {}
    module.disconnect_volume = lambda data, found, force=False: told.append(data)
    for name in ("one", "two"):
        module.path = f"/dev/{name}"
        volume_id = str(uuid.uuid4())
        devices[name] = connector.connect(ConnectionInfo(kind, KINDS[kind](name), volume_id=volume_id))
    assert "s3cret" not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    for name, device in devices.items():
        connector.disconnect(None, device)
        known = {key: value for key, value in KINDS[kind](name).items() if value != "s3cret"}
        assert told.pop() == {**known, "device_path": f"/dev/{name}"}
    assert not list(tmp_path.rglob("*.json"))


def test_of_scaleio_the_user_is_kept_and_no_password(tmp_path, module):
    connector = BrickConnector("compute-1", lock_path=str(tmp_path), module=module)
    told = {"scaleIO_volname": "one", "serverIP": "10.0.0.1", "serverUsername": "admin", "serverPassword": "s3cret"}
    connector.connect(ConnectionInfo("scaleio", told, volume_id=str(uuid.uuid4())))
    (text,) = (path.read_text() for path in tmp_path.rglob("*.json"))
    assert ("admin" in text, "10.0.0.1" in text, "s3cret" in text) == (True, True, False)
    page = (Path(__file__).parents[2] / "docs/reference/attachments.md").read_text()
    assert "for ScaleIO its server and the name of the user there too" in page


def test_a_kind_whose_address_is_not_known(connector, module):
    """All its volumes would be at one place."""
    with pytest.raises(errors.UnsupportedFeature, match="vmdk"):
        connector.connect(ConnectionInfo("vmdk", {"volume": "vm-1"}, volume_id=str(uuid.uuid4())))
    assert module.calls == []


def test_errors_quote_nothing(connector, module):
    module.error = VolumeDeviceNotFound("target with s3cret")
    with pytest.raises(errors.DeviceNotFound) as caught:
        connector.connect(ISCSI)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    module.error = RuntimeError("iscsiadm ... s3cret")
    with pytest.raises(errors.OutcomeUnknown) as caught:
        connector.connect(ISCSI)
    assert "s3cret" not in str(caught.value)


class InvalidConnectorProtocol(Exception):
    pass


@pytest.mark.parametrize("failure", [VolumeDeviceNotFound, InvalidConnectorProtocol, RuntimeError])
def test_errors_name_the_volume_and_where_to_look(tmp_path, module, failure):
    volume, module.error = str(uuid.uuid4()), failure()
    connector = BrickConnector("compute-1", lock_path=str(tmp_path), module=module)
    with pytest.raises(errors.CloudcoreError) as caught:
        connector.connect(ConnectionInfo("iscsi", ISCSI.data, volume_id=volume))
    told = f"volume {volume}: os-brick could not connect it (iscsi: {failure.__name__}); see os-brick's log on the host"
    assert str(caught.value).startswith(told)


def test_an_unknown_size_is_a_failure(connector, module):
    device = connector.connect(ISCSI)
    module.size = None
    with pytest.raises(errors.OutcomeUnknown):
        connector.extended(ISCSI, device)


def test_misuse():
    with pytest.raises(errors.InvalidArgument, match="lock_path"):
        BrickConnector("compute-1", lock_path="")
    with pytest.raises(errors.InvalidArgument, match="by_qemu"):
        BrickConnector("compute-1", lock_path="/x", by_qemu=frozenset({"nfs"}))


def test_a_helper_that_fails(connector, module, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("sudo: s3cret")

    monkeypatch.setattr(module, "get_connector_properties", fail)
    with pytest.raises(errors.Unavailable, match="root_helper") as caught:
        connector.describe()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_package_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "os_brick.opts", None)
    connector = BrickConnector("compute-1", lock_path="/x")
    with pytest.raises(errors.MissingExtra, match=r"cloudcore\[brick\]"):
        connector.describe()
