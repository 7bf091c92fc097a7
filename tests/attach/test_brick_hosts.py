"""os-brick's own connectors, on a host whose storage commands stand in: iSCSI, several paths, NVMe-oF, NFS."""

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.volumes.values import ConnectionInfo
from cloudcore.disks import BlockSource, FileSource
from tests.attach.san.fixtures import iscsi
from tests.attach.san.host import GIB, PORTALS, on_the_host

IQN = "iqn.2010-10.org.openstack:volume-1"
NQN = "nqn.2014-08.org.nvmexpress:subsystem"
SHARE = "10.0.0.1:/volumes"
OTHER = "22222222-2222-4222-8222-222222222222"
DATA = b"written by the guest"


def write(path, data=DATA):
    with open(path, "r+b") as opened:
        opened.write(data)


def gone(san):
    """Nothing of a connection is left on the host."""
    names = ("devices", "sessions", "nodes", "maps", "controllers", "namespaces")
    return [name for name in names if san.state[name]] == []


def flushed_before_it_went(san, device):
    """Position of the last flush of *device*, and of its removal."""
    calls = [" ".join(words) for phase, _, words in san.log() if phase == "begin"]
    return calls.index(f"blockdev --flushbufs /dev/{device}") < calls.index(f"tee -a /sys/block/{device}/device/delete")


@pytest.fixture
def paths(san):
    """A connector that uses all paths, and fails where they are not to be had."""
    return BrickConnector(
        "compute-1", lock_path=str(san.locks), root_helper=None, multipath=True, enforce_multipath=True
    )


def both(lun=1, **more):
    """The same LUN through two portals of one target."""
    plural = {"target_portals": list(PORTALS), "target_iqns": [IQN, IQN], "target_luns": [lun, lun]}
    return iscsi(IQN, lun, **plural, **more)


# --- iSCSI -----------------------------------------------------------------------------------------------------------


@on_the_host
def test_a_volume_is_connected_and_disconnected(san, brick):
    """What was written is on the volume: it is flushed before the device goes."""
    backing = san.lun(san.target(IQN), 1)
    device = brick.connect(iscsi(IQN, 1))
    assert (device.source, device.size, device.connected) == (BlockSource("/dev/sda"), GIB, True)
    assert device.serial == "36001405" + f"{1:025x}"
    assert brick.connect(iscsi(IQN, 1)) == device
    write("/dev/sda")
    brick.disconnect(iscsi(IQN, 1), device)
    assert gone(san)
    assert flushed_before_it_went(san, "sda")
    assert backing.read_bytes().startswith(DATA)
    brick.disconnect(iscsi(IQN, 1), device)


@on_the_host
def test_volumes_of_one_target_leave_one_after_the_other(san, brick):
    """The session stays for as long as one of them is there."""
    san.target(IQN)
    devices = {}
    for lun in (1, 2, 3):
        san.lun(IQN, lun)
        devices[lun] = brick.connect(iscsi(IQN, lun, OTHER[:-1] + str(lun)))
    assert len(san.state["sessions"]) == 1
    for lun in (2, 1):
        brick.disconnect(iscsi(IQN, lun), devices[lun])
        assert len(san.state["sessions"]) == 1
    assert list(san.state["devices"]) == ["sdc"]
    assert not any("--logout" in call for call in san.commands("iscsiadm"))
    brick.disconnect(iscsi(IQN, 3), devices[3])
    assert gone(san)


@on_the_host
def test_a_device_that_cannot_be_flushed_is_kept(san, brick):
    backing = san.lun(san.target(IQN), 1)
    device = brick.connect(iscsi(IQN, 1))
    write("/dev/sda")
    san.fail("flush", "sda")
    for _ in range(2):
        with pytest.raises(errors.FlushFailed, match="device is kept"):
            brick.disconnect(iscsi(IQN, 1), device)
        assert list(san.state["devices"]) == ["sda"]
    san.fail("flush")
    brick.disconnect(iscsi(IQN, 1), device)
    assert backing.read_bytes().startswith(DATA)


@on_the_host
def test_with_force_it_goes_with_what_it_holds(san, brick):
    san.lun(san.target(IQN), 1)
    device = brick.connect(iscsi(IQN, 1))
    san.fail("flush", "sda")
    with pytest.raises(errors.OutcomeUnknown):  # os-brick tells what went wrong on the way
        brick.disconnect(iscsi(IQN, 1), device, force=True)
    assert gone(san)
    brick.disconnect(iscsi(IQN, 1), device, force=True)


@on_the_host
def test_the_size_grows(san, brick):
    san.lun(san.target(IQN), 1)
    device = brick.connect(iscsi(IQN, 1))
    san.grow(IQN, 1, 2 * GIB)
    assert brick.extended(iscsi(IQN, 1), device) == 2 * GIB


@on_the_host
def test_chap(san, brick):
    """The password goes to the initiator, and nowhere else."""
    secret = "s3cret-of-chap"
    san.lun(san.target(IQN, chap=["user", secret]), 1)
    known = iscsi(IQN, 1, auth_method="CHAP", auth_username="user", auth_password=secret)
    device = brick.connect(known)
    kept = [path.read_text() for path in san.locks.rglob("*.json")]
    assert kept
    assert secret not in "".join(kept)
    assert secret not in str(device)
    brick.disconnect(known, device)
    wrong = iscsi(IQN, 1, auth_method="CHAP", auth_username="user", auth_password="an0ther")
    with pytest.raises(errors.DeviceNotFound) as caught:
        brick.connect(wrong)
    assert "an0ther" not in str(caught.value)
    assert caught.value.__context__ is None
    assert gone(san)
    assert brick.connections() == ()


@on_the_host
def test_a_volume_that_is_not_there(san, brick):
    san.target(IQN)
    with pytest.raises(errors.DeviceNotFound):
        brick.connect(iscsi(IQN, 1))
    assert gone(san)
    assert brick.connections() == ()


@on_the_host
def test_the_host_describes_itself(san, brick):
    found = brick.describe()
    assert (found.host, found.initiator, found.multipath) == ("compute-1", "iqn.2016-04.com.open-iscsi:here", False)
    assert found.properties["nqn"].startswith("nqn.2014-08.org.nvmexpress:uuid:")


@on_the_host
def test_kinds_that_nobody_knows(san, brick):
    with pytest.raises(errors.UnsupportedFeature, match="invented"):
        brick.connect(ConnectionInfo("invented", {}))


# --- several paths ---------------------------------------------------------------------------------------------------


@on_the_host
def test_several_paths(san, paths):
    backing = san.lun(san.target(IQN, PORTALS), 1)
    device = paths.connect(both())
    assert (device.source, device.size) == (BlockSource("/dev/dm-0"), GIB)
    assert device.details["multipath_id"] == device.serial
    assert len(san.state["sessions"]) == 2
    assert "sda" in san.state["maps"]["dm-0"]["paths"]  # os-brick does not wait for the second
    san.grow(IQN, 1, 2 * GIB)
    assert paths.extended(both(), device) == 2 * GIB
    write("/dev/dm-0")
    paths.disconnect(both(), device)
    assert gone(san)
    assert backing.read_bytes().startswith(DATA)


@on_the_host
def test_several_paths_of_which_one_is_down(san, paths):
    san.lun(san.target(IQN, PORTALS), 1)
    san.fail("portals", PORTALS[1])
    device = paths.connect(both())
    assert device.source == BlockSource("/dev/dm-0")
    paths.disconnect(both(), device)
    assert not san.state["devices"]


@on_the_host
def test_several_paths_that_cannot_be_flushed(san, paths):
    san.lun(san.target(IQN, PORTALS), 1)
    device = paths.connect(both())
    before = san.state["maps"], san.state["devices"]
    san.fail("flush", "dm-0")
    with pytest.raises(errors.FlushFailed):
        paths.disconnect(both(), device)
    assert (san.state["maps"], san.state["devices"]) == before


@on_the_host
def test_several_paths_are_a_must(san, paths):
    """Whether the volume service says so or not."""
    san.lun(san.target(IQN, PORTALS), 1)
    san.change(lambda state: state.update(multipathd=False))
    assert paths.describe().multipath
    with pytest.raises(errors.UnsupportedFeature, match="multipathd"):
        paths.connect(both())
    assert gone(san)


@on_the_host
def test_several_paths_if_they_are_to_be_had(san):
    san.lun(san.target(IQN, PORTALS), 1)
    san.change(lambda state: state.update(multipathd=False))
    either = BrickConnector("compute-1", lock_path=str(san.locks), root_helper=None)
    device = either.connect(both())
    assert device.source == BlockSource("/dev/sda")
    either.disconnect(both(), device)
    assert gone(san)


# --- NVMe over fabrics -----------------------------------------------------------------------------------------------


def nvme(uuid):
    portals = [["10.0.0.1", 4420, "tcp"], ["10.0.0.2", 4420, "tcp"]]
    return ConnectionInfo("nvmeof", {"target_nqn": NQN, "portals": portals, "vol_uuid": uuid}, volume_id=uuid)


@on_the_host
def test_nvme(san, paths):
    """Two namespaces of one subsystem, through two portals: the controllers stay until the last one goes."""
    san.subsystem(NQN)
    mine, other = "11111111-1111-4111-8111-111111111111", OTHER
    backing = san.namespace(NQN, 1, mine)
    device = paths.connect(nvme(mine))
    san.namespace(NQN, 2, other)
    second = paths.connect(nvme(other))
    assert (device.source, second.source) == (BlockSource("/dev/nvme0n1"), BlockSource("/dev/nvme0n2"))
    assert len(san.state["controllers"]) == 2
    write("/dev/nvme0n1")
    paths.disconnect(nvme(mine), device)
    assert backing.read_bytes().startswith(DATA)
    assert len(san.state["controllers"]) == 2
    san.change(lambda state: state["subsystems"][NQN]["namespaces"]["2"].update(size=2 * GIB))
    assert paths.extended(nvme(other), second) == 2 * GIB


@on_the_host
def test_nvme_that_cannot_be_flushed(san, paths):
    san.subsystem(NQN)
    san.namespace(NQN, 1, OTHER)
    device = paths.connect(nvme(OTHER))
    san.fail("flush", "nvme0n1")
    with pytest.raises(errors.FlushFailed):
        paths.disconnect(nvme(OTHER), device)
    assert len(san.state["controllers"]) == 2
    san.fail("flush")
    paths.disconnect(nvme(OTHER), device)
    assert gone(san)


# --- NFS -------------------------------------------------------------------------------------------------------------


def file_on(share, name, **more):
    return ConnectionInfo("nfs", {"export": share, "name": name, "options": None, **more}, volume_id=OTHER)


@on_the_host
def test_a_share(san):
    """Its volumes are files. It stays mounted: nobody knows who else uses it."""
    folder = san.export(SHARE)
    with (folder / "volume-1").open("wb") as made:
        made.truncate(GIB)
    (folder / "volume-2").write_bytes(b"QFI\xfb")
    base = san.folder / "mounts"
    brick = BrickConnector(
        "compute-1", lock_path=str(san.locks), root_helper=None, mount_point_base=str(base), by_qemu=frozenset()
    )
    raw = brick.connect(file_on(SHARE, "volume-1", format="raw"))
    assert isinstance(raw.source, FileSource)
    assert (raw.source.path.startswith(str(base)), raw.source.format, raw.size) == (True, "raw", GIB)
    layered = brick.connect(file_on(SHARE, "volume-2", format="qcow2"))
    assert (layered.source.format, layered.size) == ("qcow2", None)
    write(raw.source.path)
    (folder / "volume-1").open("r+b").truncate(2 * GIB)
    assert brick.extended(file_on(SHARE, "volume-1"), raw) == 2 * GIB
    assert brick.extended(file_on(SHARE, "volume-2"), layered) is None
    brick.disconnect(file_on(SHARE, "volume-1"), raw)
    assert (folder / "volume-1").open("rb").read(len(DATA)) == DATA


@on_the_host
def test_a_share_without_a_place_to_be_mounted_at(san, brick):
    san.export(SHARE)
    with pytest.raises(errors.InvalidArgument, match="mount_point_base"):
        brick.connect(file_on(SHARE, "volume-1"))
    known = file_on(SHARE, "volume-1", mount_point_base=str(san.folder / "theirs"))
    assert brick.connect(known).source.path.startswith(str(san.folder / "theirs"))
