"""What a host writes down of its connections: several writers at once, and directories that cannot be used."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudcore.attach.hosts.ledger import ConnectionLedger, Entry
from tests.attach.conftest import instance
from tests.attach.san.fixtures import iscsi

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
