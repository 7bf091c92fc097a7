"""PostgreSQL without room for another page: what cannot be written is refused as a whole, and works again with room."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import AttachmentManager
from cloudcore.database import Database
from cloudcore.errors import DatabaseError, OutcomeUnknown, Transient
from tests import services

pytestmark = pytest.mark.xdist_group("small-disk")
OWNER = {"project_id": "p", "user_id": "u"}
HELD = "SELECT c.uuid FROM allocations a JOIN consumers c ON c.id = a.consumer_id"
FILL = "INSERT INTO filler SELECT repeat(md5(random()::text), 60) FROM generate_series(1, {})"


@pytest.fixture
def database():
    """All of it on a file system of 20 MiB, of which an empty database takes eight."""
    services.require("small-disk")
    server = services.postgresql(variant="small-disk")
    name = f"small_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLESPACE small LOCATION '{server.info['folder']}/small'")
    server.execute(f"CREATE DATABASE {name} TABLESPACE small")
    with Database(server.url(name)) as opened:
        yield opened
    server.drop_database(server.url(name))
    server.execute("DROP TABLESPACE small")


def until_refused(call: Callable[[int], object]) -> DatabaseError:
    """The error that *call* ends in, after what finds room in pages that are there already."""
    for number in range(5000):
        try:
            call(number)
        except DatabaseError as error:
            return error
    raise AssertionError("the disk is larger than thought")


def fill_up(database: Database) -> None:
    """Leave no page free, in portions that become smaller."""
    database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE filler (text text)"))
    for rows in (400, 40, 4):
        add = FILL.format(rows)
        error = until_refused(lambda _, add=add: database.run(lambda connection: connection.exec_driver_sql(add)))
        assert error.__cause__.orig.sqlstate == "53100"


def test_full_disk_refuses_whole_calls_and_a_repeat_goes_through_with_room(database):
    create_schema(database)
    with PlacementTree.open(database) as tree, AttachmentManager(database) as manager:
        ledger = AllocationLedger(database)
        host = tree.add("h", inventory={"VCPU": 1_000_000}).uuid
        volume = manager.volumes.create_volume().id
        fill_up(database)
        tried: list[str] = []

        def claim(_: int) -> None:
            tried.append(str(uuid.uuid4()))
            ledger.claim(tried[-1], {host: {"VCPU": 1}}, operation_id=tried[-1], **OWNER)

        refused = [until_refused(claim), until_refused(lambda number: tree.add(f"{number:0200}"))]
        refused.append(until_refused(lambda _: manager.attach(volume, tried[-1])))
        for error in refused:  # no wait mends it, and nothing is in doubt
            assert not isinstance(error, Transient | OutcomeUnknown)
            assert "No space left" in str(error)
        with database.read() as connection:
            held = connection.exec_driver_sql(HELD).scalars().all()
        assert sorted(held) == sorted(tried[:-1])
        ledger.check()
        tree.refresh()
        tree.check()
        database.run(lambda connection: connection.exec_driver_sql("DROP TABLE filler"))
        ledger.claim(tried[-1], {host: {"VCPU": 1}}, operation_id=tried[-1], **OWNER)
        assert ledger.usages(provider=host) == {"VCPU": len(tried)}
        assert manager.recover().complete
        assert manager.attach(volume, str(uuid.uuid4())).volume_id == volume
        assert manager.audit().clean
        manager.check()
