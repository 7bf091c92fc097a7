"""A journal that cannot be written in the middle: how long that may take, and what the error has to say."""

import contextlib
import sqlite3
import time

import pytest
from sqlalchemy import event

from cloudcore import errors
from cloudcore.attach import AttachmentManager, EmbeddedVolumes
from cloudcore.attach.hosts.guests import MemoryGuests
from cloudcore.database import Database
from cloudcore.schema import create_schema
from cloudcore.testing.volumes import FakeVolumes

from .conftest import instance


@pytest.fixture
def apart(tmp_path):
    """(journal's path, service in another database)."""
    journal, other = tmp_path / "journal.db", Database(f"sqlite:///{tmp_path}/volumes.db")
    with Database(f"sqlite:///{journal}") as database:
        create_schema(database, areas=["attach"])
    create_schema(other, areas=["attach"])
    yield journal, EmbeddedVolumes(other)
    other.close()


STEPS = ["reserve", "update", "complete"]


@pytest.mark.parametrize("step", STEPS)
def test_what_is_left_half_done_is_said(apart, step):
    """The journal becomes read-only while a step is under way: its effect is there, and the error names it."""
    path, service = apart
    database, read_only = Database(f"sqlite:///{path}"), []
    event.listen(database.engine, "begin", lambda c: c.exec_driver_sql(f"pragma query_only={len(read_only)}"))
    volumes, guests = FakeVolumes(service), MemoryGuests()
    volumes.on(step, lambda *_, **__: read_only.append(1))
    manager, volume = AttachmentManager(database, volumes, guests), service.create_volume().id
    with pytest.raises(errors.CloudcoreError) as caught:
        manager.attach(volume, instance())
    (leg,) = manager.attachments()
    said = "\n".join(caught.value.__notes__)
    assert leg.id in said
    assert f"is left {leg.state}" in said
    assert "recover()" in said
    assert volume in said
    volumes.heal()
    read_only.clear()
    assert manager.recover().complete
    assert manager.audit().clean
    manager.close()
    database.close()


@pytest.mark.parametrize("verb", ["begin_move", "confirm_move", "revert_move"])
def test_a_move_says_so_too(apart, verb):
    path, service = apart
    database, read_only = Database(f"sqlite:///{path}"), []
    event.listen(database.engine, "begin", lambda c: c.exec_driver_sql(f"pragma query_only={len(read_only)}"))
    volumes, hosts = FakeVolumes(service), [MemoryGuests("a"), MemoryGuests("b")]
    manager, volume, who = AttachmentManager(database, volumes, hosts), service.create_volume().id, instance()
    manager.attach(volume, who, host="a")
    call = {"begin_move": lambda: manager.begin_move(who, "b", kind="cold")}.get(
        verb, lambda: getattr(manager, verb)(who)
    )
    if verb != "begin_move":
        manager.begin_move(who, "b", kind="cold")
    volumes.on("complete", lambda *_: read_only.append(1))
    with pytest.raises(errors.CloudcoreError) as caught:
        call()
    assert "recover()" in "\n".join(caught.value.__notes__)
    volumes.heal()
    read_only.clear()
    manager.recover()
    with contextlib.suppress(errors.MoveNotFound):  # it was finished
        call()
    manager.terminate(who)
    manager.close()
    database.close()


def test_a_locked_journal_costs_the_patience_and_no_more(apart):
    """Somebody keeps a write transaction open. No timing but the order of magnitude: the default is a minute."""
    path, service = apart
    manager = AttachmentManager(f"sqlite:///{path}", service, MemoryGuests(), patience=0.5)
    volume, who = service.create_volume().id, instance()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.process_time(), time.monotonic()
    with pytest.raises(errors.Transient):
        manager.attach(volume, who)
    waited = time.monotonic() - begun[1]
    other.execute("ROLLBACK")
    assert waited < 20.0
    made = manager.attach(volume, who)

    service_complete = service.complete
    service.complete = lambda *a: (service_complete(*a), other.execute("BEGIN IMMEDIATE"))
    second = service.create_volume().id
    begun = time.monotonic()
    with pytest.raises(errors.Transient) as caught:
        manager.attach(second, who)
    assert time.monotonic() - begun < 20.0
    assert "recover()" in "\n".join(caught.value.__notes__)
    other.execute("ROLLBACK")
    service.complete = service_complete
    assert manager.recover().complete
    assert {leg.volume_id for leg in manager.attachments()} == {volume, second}
    manager.detach(made.id)
    manager.close()
    other.close()
