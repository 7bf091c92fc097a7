"""One call forgets what is old in every table, beside writers and followers, and nothing that is needed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest

from cloudcore import AllocationLedger, AttachmentManager, Database, HostSelector, PlacementTree, create_schema, upkeep
from cloudcore.errors import InvalidArgument
from cloudcore.placement import HostGroup
from cloudcore.pruning import Upkeep

OWNER = {"project_id": "p", "user_id": "u"}


@pytest.fixture
def used(database):
    """A database in which much has happened, two instances that still hold something, and a volume that is gone."""
    create_schema(database)
    tree = PlacementTree.open(database)
    host = tree.add("cn1", inventory={"VCPU": 100}, operation_id="add").uuid
    ledger = AllocationLedger(database)
    staying = [str(uuid.uuid4()) for _ in range(2)]
    for instance in [*staying, *(str(uuid.uuid4()) for _ in range(4))]:
        ledger.claim(instance, {host: {"VCPU": 1}}, **OWNER, operation_id=f"claim {instance}"[:64])
        if instance not in staying:
            ledger.release(instance)
    with AttachmentManager(database) as manager:
        volume = manager.volumes.create_volume(2**30)
        manager.detach(manager.attach(volume.id, staying[0]).id)
        attached = manager.attach(volume.id, staying[0])
    return database, ledger, tree, host, staying, attached


def test_what_is_old_goes_and_what_holds_stays(used):
    database, ledger, _, host, staying, attached = used
    follower = PlacementTree.open(database)
    ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 5}}, **OWNER)
    done = upkeep(database, older_than=datetime.now(UTC) + timedelta(seconds=5), limit=3)
    assert done.operations >= 11
    assert (done.history, done.attachments) == (8, 1)
    now = datetime.now(UTC) + timedelta(seconds=5)
    for instance in staying:
        assert ledger.held_at(instance, now) == ledger.allocations(instance) == {host: {"VCPU": 1}}
    ledger.check()
    with AttachmentManager(database) as manager:
        assert manager.attachment(attached.id).state == "attached"
    follower.refresh()
    assert follower.usage("cn1") == {"VCPU": 7}
    assert upkeep(database, older_than=now) == Upkeep()


def test_a_follower_that_is_left_behind_reads_everything_anew(used):
    database, ledger, _, host, *_ = used
    follower = PlacementTree.open(database)
    for _ in range(40):  # on MariaDB in one slot: one connection at a time
        ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, **OWNER)
    done = upkeep(database, older_than=datetime.now(UTC) - timedelta(days=1), keep_changes=2, limit=7)
    assert done.changes > 0
    assert done.operations == 0
    follower.refresh()
    assert follower.usage("cn1") == {"VCPU": 42}
    follower.check()


def test_groups_without_members_go_however_many_there_are(database):
    create_schema(database)
    with PlacementTree.open(database) as tree:
        tree.add("cn1", inventory={"VCPU": 100})
        ledger = AllocationLedger(database)
        selector = HostSelector(tree, ledger, cell_of=lambda _: "cell1")
        for _ in range(5):
            group = HostGroup(policy="anti-affinity", uuid=str(uuid.uuid4()))
            (selection,) = selector.select("resources=VCPU:1", **OWNER, group=group)
            ledger.release(selection.instance)
    assert upkeep(database, older_than=datetime.now(UTC) - timedelta(days=1), limit=2).groups == 5


def test_areas_that_are_not_there_are_left_out(database):
    create_schema(database, areas=["listing"])
    assert upkeep(database, older_than=datetime.now(UTC)) == Upkeep()


def test_wrong_arguments_are_refused(sqlite_database):
    create_schema(sqlite_database)
    with pytest.raises(InvalidArgument, match="older_than"):
        upkeep(sqlite_database, older_than=datetime(2026, 1, 1))
    with pytest.raises(InvalidArgument, match="limit"):
        upkeep(sqlite_database, older_than=datetime.now(UTC), limit=0)


@pytest.mark.parametrize(
    ("end", "hours"), [(datetime.min, 1), (datetime.max, -1)], ids=["before year 1", "after year 9999"]
)
def test_a_time_that_utc_does_not_have_is_refused(sqlite_database, end, hours):
    create_schema(sqlite_database)
    with pytest.raises(InvalidArgument, match=r"older_than: .* beyond the years 1 to 9999 in UTC"):
        upkeep(sqlite_database, older_than=end.replace(tzinfo=timezone(timedelta(hours=hours))))


def test_an_url_is_opened_and_closed(tmp_path):
    url = f"sqlite:///{tmp_path / 'cloud.db'}"
    with Database(url) as database:
        create_schema(database)
    assert upkeep(url, older_than=datetime.now(UTC)) == Upkeep()


def test_the_command_says_what_it_forgot(tmp_path, capsys):
    pytest.importorskip("click")
    from cloudcore.cli import main

    url = f"sqlite:///{tmp_path / 'cloud.db'}"
    with Database(url) as database:
        create_schema(database)
        PlacementTree.open(database).add("cn1", inventory={"VCPU": 1}, operation_id="add")
    assert main(["prune", "--database", url, "--older-than", "1h", "--json"]) == 0
    assert '"operations": 0' in capsys.readouterr().out
    assert main(["prune", "--database", url, "--older-than", "a while"]) == 2
    assert "such as 30d" in capsys.readouterr().err
