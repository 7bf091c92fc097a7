"""What a host writes down of its connections: several writers at once, and directories that cannot be used."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudcore import errors
from cloudcore.attach.hosts.brick import BrickConnector
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.attach.hosts.ledger import ConnectionLedger, Entry
from tests.attach.conftest import instance
from tests.attach.san.fixtures import iscsi
from tests.attach.test_brick import StandIn

IQN = "iqn.2010-10.org.openstack:volume-1"


@pytest.fixture
def ledger(tmp_path):
    return ConnectionLedger(str(tmp_path / "ledger"), boot_id="this")


def test_threads_that_enter_the_same(ledger, tmp_path):
    entry = Entry.of(instance(), iscsi(IQN, 1))

    def enter(_):
        for _ in range(100):
            ledger.enter(entry)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert ledger.entries() == (entry,)
    assert len(list((tmp_path / "ledger").iterdir())) == 1


def test_a_writer_that_comes_between(ledger, monkeypatch, tmp_path):
    """Each writes a file of its own: the one that is late does not find its gone."""
    entry, sync = Entry.of(instance(), iscsi(IQN, 1)), os.fsync

    def another_first(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        ledger.enter(entry)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", another_first)
    ledger.enter(entry)
    assert ledger.entries() == (entry,)
    assert len(list((tmp_path / "ledger").iterdir())) == 1


def test_what_could_not_be_written_leaves_nothing(ledger, monkeypatch, tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        ledger.enter(Entry.of(instance(), iscsi(IQN, 1)))
    assert list((tmp_path / "ledger").iterdir()) == []


def opened(monkeypatch):
    """The names of the files that are read from here on."""
    names, read = [], Path.read_text

    def note(path, *args, **options):
        names.append(path.name)
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", note)
    return names


def test_the_entries_of_one_volume(ledger, monkeypatch):
    """Those of the others are not opened, and a volume whose id begins like another's is not that."""
    for volume in ("one", "one.more", "two*"):
        for lun in (1, 2):
            ledger.enter(Entry.of(volume, iscsi(IQN, lun)))
    everything, names = ledger.entries(), opened(monkeypatch)
    for volume in ("one.more", "two*", "t", "nobody", "one"):
        assert ledger.entries(volume) == tuple(one for one in everything if one.volume_id == volume)
    assert len(names) == 2 + 2 + 4  # one's name is how one.more's begins


def test_an_audit_opens_each_file_a_few_times(new_manager, monkeypatch, tmp_path):
    """However many there are: not each of them for each of them."""
    module = StandIn()
    module.path = str(tmp_path / "device")
    Path(module.path).write_text("")
    connector = BrickConnector("compute-1", lock_path=str(tmp_path), module=module)
    for lun in range(20):
        connector.connect(iscsi(IQN, lun, volume_id=instance()))
    manager = new_manager(None, MemoryGuests("compute-1"), connectors={"compute-1": connector})
    names = opened(monkeypatch)
    assert len(manager.audit().findings) == 20
    assert len(names) <= 2 * 20


# --- a directory that cannot be used ---------------------------------------------------------------------------------


def refuse(monkeypatch, name, number):
    """Also root, who may read and write everything, meets this one."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("act", [ConnectionLedger.enter, ConnectionLedger.strike, lambda ledger, _: ledger.entries()])
def test_a_directory_that_is_a_file(tmp_path, act):
    (tmp_path / "ledger").write_text("")
    ledger = ConnectionLedger(str(tmp_path / "ledger"), boot_id="this")
    with pytest.raises(errors.Unavailable, match=rf"{tmp_path}/ledger: .*; mend the directory, then repeat"):
        act(ledger, Entry.of(instance(), iscsi(IQN, 1)))


def test_a_full_disk(ledger, monkeypatch):
    entry = Entry.of(instance(), iscsi(IQN, 1))
    ledger.enter(entry)
    refuse(monkeypatch, "fsync", errno.ENOSPC)
    with pytest.raises(errors.Unavailable, match="No space left"):
        ledger.enter(entry)
    assert ledger.entries() == (entry,)


def test_a_directory_that_may_not_be_read_is_not_an_empty_one(ledger, monkeypatch):
    ledger.enter(Entry.of(instance(), iscsi(IQN, 1)))
    refuse(monkeypatch, "listdir", errno.EACCES)
    with pytest.raises(errors.Unavailable, match="Permission denied"):
        ledger.entries()


def test_bytes_that_are_no_text(ledger, tmp_path):
    ledger.enter(Entry.of(instance(), iscsi(IQN, 1)))
    (tmp_path / "ledger" / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.Conflict, match=r"x\.json"):
        ledger.entries()


class Breaking(BrickConnector):
    """Its directory breaks before what *verb* names is asked for."""

    verb, folder = None, None

    def connections(self):
        self.reach("connections")
        return super().connections()

    def devices(self, volume_id):
        self.reach("devices")
        return super().devices(volume_id)

    def reach(self, verb):
        if self.verb == verb:
            self.folder.rename(self.folder.with_suffix(".aside"))
            self.folder.write_text("")


@pytest.mark.parametrize("verb", ["connections", "devices"])
def test_one_bad_directory_does_not_end_the_audit(new_manager, tmp_path, verb):
    """The other host's leftover is still found."""
    names, connectors, path = ("compute-1", "compute-2"), {}, tmp_path / "device"
    path.write_text("")
    for name in names:
        module = StandIn()
        module.path = str(path)
        folder = tmp_path / name
        connectors[name] = Breaking(name, lock_path=str(tmp_path), state_path=str(folder), module=module)
        connectors[name].connect(iscsi(IQN, 1, volume_id=instance()))
    connectors["compute-1"].verb, connectors["compute-1"].folder = verb, tmp_path / "compute-1"
    report = new_manager(None, [MemoryGuests(name) for name in names], connectors=connectors).audit()
    assert [store for store, _ in report.blind] == ["connections of compute-1"]
    assert [(found.kind, found.host) for found in report.findings] == [("leftover-connection", "compute-2")]


def test_a_device_that_could_not_be_written_down_is_not_taken_for_unmade(monkeypatch, tmp_path):
    """Nothing is connected without an entry; after that, the error says that it may be."""
    module = StandIn()
    connector, info = BrickConnector("c", lock_path=str(tmp_path), module=module), iscsi(IQN, 1, volume_id=instance())
    with monkeypatch.context() as patch:
        refuse(patch, "fsync", errno.ENOSPC)
        with pytest.raises(errors.Unavailable):
            connector.connect(info)
    assert not [call for call in module.calls if call[0] == "connect"]
    made = module.connect_volume

    def connect_and_fill(data):
        refuse(monkeypatch, "fsync", errno.ENOSPC)
        return made(data)

    module.connect_volume = connect_and_fill
    with pytest.raises(errors.OutcomeUnknown, match="No space left"):
        connector.connect(info)
