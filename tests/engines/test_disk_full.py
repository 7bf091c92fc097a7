"""A server without room for another page: what cannot be written is refused as a whole, and works again with room."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import AttachmentManager
from cloudcore.database import Database
from cloudcore.errors import DatabaseError, OutcomeUnknown, Transient
from tests import services

pytestmark = pytest.mark.xdist_group("small-disk")
OWNER = {"project_id": "p", "user_id": "u"}
HELD = "SELECT c.uuid FROM allocations a JOIN consumers c ON c.id = a.consumer_id"
FILL = {  # so many rows of two kilobytes
    "postgresql": "INSERT INTO filler SELECT repeat(md5(random()::text), 60) FROM generate_series(1, {})",
    "mysql": "INSERT INTO filler SELECT repeat(md5(rand()), 60) FROM seq_1_to_{}",
}


@pytest.fixture(params=["postgresql", "mariadb"])
def database(request):
    """All of it on a file system of 20 MiB, of which empty tables take less than half."""
    services.require("small-disk")
    server = getattr(services, request.param)(variant="small-disk")
    if request.param == "mariadb":
        with Database(server.url("small")) as opened:
            yield opened
            opened.run(_drop_tables)
        return
    name = f"small_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE TABLESPACE small LOCATION '{server.info['folder']}/small'")
    server.execute(f"CREATE DATABASE {name} TABLESPACE small")
    with Database(server.url(name)) as opened:
        yield opened
    server.drop_database(server.url(name))
    server.execute("DROP TABLESPACE small")


def _drop_tables(connection: sa.Connection) -> None:
    """The database itself stays: its folder is where the small disk is."""
    connection.exec_driver_sql("SET foreign_key_checks = 0")
    for table in sa.inspect(connection).get_table_names():
        connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql("SET foreign_key_checks = 1")


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
    database.run(lambda connection: connection.exec_driver_sql("CREATE TABLE filler (filling text)"))
    for rows in (400, 40, 4):
        add = FILL[database.dialect].format(rows)
        error = until_refused(lambda _, add=add: database.run(lambda connection: connection.exec_driver_sql(add)))
        original = error.__cause__.orig
        assert 1114 in original.args or original.sqlstate == "53100"


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
        refused.append(until_refused(lambda _: manager.attach(manager.volumes.create_volume().id, str(uuid.uuid4()))))
        for error in refused:  # no wait mends it, and nothing is in doubt
            assert not isinstance(error, Transient | OutcomeUnknown)
            assert re.search(r"No space left|is full", str(error))
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
