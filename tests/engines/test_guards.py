"""Each guard between nodes of a cluster by itself: what one node does while another is about to commit.

Nothing is left to chance: the first call has read and written all that it will, then the second is made, from start to
commit, at another node, which knows nothing of the first. The first one's node applies nothing meanwhile, so its locks
are in nobody's way; only what both write keeps the two apart.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree
from cloudcore.attach import EmbeddedVolumes
from cloudcore.attach.journal.journal import Journal
from cloudcore.attach.journal.leases import Leases
from cloudcore.attach.journal.owners import process_identity
from cloudcore.attach.lifecycle.states import Event
from cloudcore.attach.manager import AttachmentManager
from cloudcore.attach.tables import attachment_locks
from cloudcore.database import Database, Operation, hold
from cloudcore.errors import (
    CapacityExceeded,
    GenerationConflict,
    InUse,
    InvalidProvider,
    InvalidTransition,
    NameNotFound,
    VolumeBusy,
)
from cloudcore.listing.records.directory import Entry, InstanceDirectory
from cloudcore.placement.storage.changes import MYSQL_SLOT
from cloudcore.placement.tables import host_groups as groups_table
from tests.engines import together
from tests.engines.together import new

pytestmark = pytest.mark.xdist_group("galera")
OWNER = {"project_id": "p", "user_id": "u"}


def fresh() -> str:
    return str(uuid.uuid4())


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def ledgers(nodes) -> list[AllocationLedger]:
    return [AllocationLedger(node) for node in nodes]


@pytest.fixture
def hosts(trees) -> list[str]:
    """Three providers with eight units each, known at every node."""
    return [trees[0].add(name, inventory={"VCPU": 8}).uuid for name in new(*"abc")]


_ROWS = 1_000


@pytest.fixture
def meanwhile(urls, nodes) -> Iterator[Callable[..., list]]:
    """`meanwhile(call at the second node, other at the first)`: what they return or raise."""

    def say(statement: str) -> None:
        nodes[0].run(lambda connection: connection.exec_driver_sql(statement).close())

    def keep_busy() -> None:
        """Changed at a blow where it is said; where it is applied each row of a table without a key is looked for."""
        say(f"UPDATE burden SET n = n + {_ROWS}")

    say("CREATE TABLE IF NOT EXISTS burden (n INTEGER)")
    say(f"INSERT INTO burden SELECT seq FROM seq_1_to_{_ROWS}")

    def act(call: Callable[[], object], other: Callable[[], object]) -> list:
        late, _, early = together.meanwhile(call, keep_busy, other)
        return [late, early]

    yield act
    say("DELETE FROM burden")


def ready(*databases: Database) -> None:
    """What was acknowledged at other nodes is there."""
    for database in databases:
        database.ping()


def version_after_hold(database: Database, key: sa.ColumnElement[bool], *before: str) -> int:
    """Hold a group's row in a session to which *before* was said; its version then."""
    with database.write() as connection:
        for statement in before:
            connection.exec_driver_sql(statement)
        assert hold(connection, groups_table, key) is not None
        assert hold(connection, groups_table, groups_table.c.uuid == fresh()) is None
        connection.commit()
        for statement in before:
            connection.exec_driver_sql(statement.replace("OFF", "ON"))
    with database.read() as connection:
        return int(connection.scalar(sa.select(groups_table.c.version).where(key)))


def test_row_is_written_where_other_nodes_are_told(nodes):
    """What counts is what the server says at that moment, not what it said when the connection was made."""
    group = fresh()
    with nodes[0].write() as connection:
        connection.execute(sa.insert(groups_table).values(uuid=group, policy="affinity", max_per_host=1))
    key = groups_table.c.uuid == group
    alone = "SET SESSION wsrep_on = OFF"
    assert [version_after_hold(nodes[0], key, *said) for said in ([], [alone], [])] == [1, 1, 2]


@pytest.mark.parametrize(
    ("dialect", "version"),
    [("sqlite", 0), ("mariadb", 0), ("mysqldb", 0), ("mariadbconnector", 0), ("postgresql", 1), ("pgbouncer", 1)],
    indirect=["dialect"],
)
def test_row_is_locked_where_there_is_one_server(database, version):
    database.run(groups_table.create)
    group = fresh()
    database.run(
        lambda connection: connection.execute(
            sa.insert(groups_table).values(uuid=group, policy="affinity", max_per_host=1)
        ).close()
    )
    assert version_after_hold(database, groups_table.c.uuid == group) == version


def test_one_operation_id_takes_effect_at_one_node(nodes, meanwhile):
    """Two uses of an id whose effects have nothing else in common."""
    operation = Operation.of("test.once", {}, fresh())

    def work(connection: sa.Connection) -> str:
        group = fresh()
        connection.execute(sa.insert(groups_table).values(uuid=group, policy=operation.id[:20], max_per_host=1))
        return group

    late, early = meanwhile(lambda: nodes[1].operate(operation, work), lambda: nodes[0].operate(operation, work))
    assert (early.repeated, late.repeated) == (False, True)
    with nodes[1].read() as connection:
        made = connection.scalars(sa.select(groups_table.c.uuid).where(groups_table.c.policy == operation.id[:20]))
        assert list(made) == [early.result] == [late.result]


def test_last_unit_goes_to_one_node(nodes, ledgers, trees, meanwhile):
    host = trees[0].add(*new("h"), inventory={"VCPU": 1}).uuid
    slow = AllocationLedger(nodes[1], generations="placement")  # by statements, so that they can be waited for
    ready(nodes[1])
    late, early = meanwhile(
        lambda: slow.claim(fresh(), {host: {"VCPU": 1}}, **OWNER),
        lambda: ledgers[0].claim(fresh(), {host: {"VCPU": 1}}, **OWNER),
    )
    assert isinstance(late, CapacityExceeded)
    assert early.allocations == {host: {"VCPU": 1}}
    assert ledgers[1].usages(provider=host) == {"VCPU": 1}


def test_two_replacements_of_one_consumer_do_not_mix(nodes, ledgers, hosts, meanwhile):
    """Each leaves the row of the first host alone, and adds one of its own: only the consumer's own row is common."""
    consumer, (first, second, third) = fresh(), hosts
    ledgers[0].claim(consumer, {first: {"VCPU": 1}}, **OWNER)
    ready(nodes[1])
    wanted = [{first: {"VCPU": 1}, other: {"VCPU": 1}} for other in (second, third)]
    meanwhile(lambda: ledgers[1].replace({consumer: wanted[1]}), lambda: ledgers[0].replace({consumer: wanted[0]}))
    assert ledgers[1].allocations(consumer) == wanted[1]
    assert [ledgers[1].usages(provider=host).get("VCPU", 0) for host in hosts] == [1, 0, 1]
    ledgers[0].check()


@pytest.mark.parametrize("generation", [None, 1])
def test_move_begins_with_all_that_is_held(nodes, ledgers, hosts, generation, meanwhile):
    """A move hands over what its instance holds; what it is given meanwhile, elsewhere, is not forgotten."""
    instance, migration, (first, second, third) = fresh(), fresh(), hosts
    ledgers[0].claim(instance, {first: {"VCPU": 1}}, **OWNER)
    ready(nodes[1])
    more = {first: {"VCPU": 1}, second: {"VCPU": 1}}
    late, _ = meanwhile(
        lambda: ledgers[1].replace({instance: more}, generations={instance: generation} if generation else {}),
        lambda: ledgers[0].begin_move(instance, migration, {third: {"VCPU": 1}}),
    )
    if generation:  # of the two it was the second, and says what it was made for
        assert isinstance(late, GenerationConflict)
        assert ledgers[1].allocations(instance) == {third: {"VCPU": 1}}
    else:
        assert ledgers[1].allocations(instance) == more
    assert ledgers[1].allocations(migration) == {first: {"VCPU": 1}}
    ledgers[0].check()


@pytest.mark.parametrize("overlap", ["sum", "maximum"])
def test_move_ends_one_way(nodes, ledgers, hosts, overlap, meanwhile):
    """With `maximum` and a destination that has all of the source the migration holds nothing to be fought for."""
    instance, migration, (first, _, third) = fresh(), fresh(), hosts
    ledgers[0].claim(instance, {first: {"VCPU": 1}}, **OWNER)
    destination = {first: {"VCPU": 2}} if overlap == "maximum" else {third: {"VCPU": 1}}
    ledgers[0].begin_move(instance, migration, destination, overlap=overlap)
    ready(nodes[1])
    late, early = meanwhile(lambda: ledgers[1].confirm_move(migration), lambda: ledgers[0].revert_move(migration))
    assert str(early.state) == "reverted"
    assert isinstance(late, InvalidTransition)
    assert ledgers[1].allocations(instance) == {first: {"VCPU": 1}}
    ledgers[0].check()


def test_change_is_not_numbered_before_what_was_seen(urls, trees, meanwhile):
    """A follower that stands where one edit has left the feed sees the other, which drew its number before."""
    one, _ = trees
    first, second = (one.add(name).uuid for name in new("first", "second"))
    databases = [Database(url, pool_size=1) for url in urls[:2]]
    with PlacementTree.open(databases[0]) as here, PlacementTree.open(databases[1]) as there:
        for _ in range(200):  # until both write to the same slot of the feed
            slots = []
            for database in databases:
                with database.read() as connection:
                    slots.append(connection.exec_driver_sql(f"SELECT {MYSQL_SLOT}").scalar_one())
            if slots[0] == slots[1]:
                break
            databases[1].engine.dispose()
        assert slots[0] == slots[1]
        there.refresh()
        one.refresh()

        def edit_and_look() -> None:
            here.set_traits(first, ["CUSTOM_EARLY"])
            one.refresh()

        meanwhile(lambda: there.set_traits(second, ["CUSTOM_LATE"]), edit_and_look)
        one.refresh()
        assert [set(one[number].traits) for number in (first, second)] == [{"CUSTOM_EARLY"}, {"CUSTOM_LATE"}]
    for database in databases:
        database.close()


def test_two_edits_of_one_provider_do_not_mix(trees, meanwhile):
    """One adds a trait, the other an inventory: but for the provider's own row they write nowhere the same."""
    one, two = trees
    host = one.add(*new("h"), inventory={"VCPU": 8}).uuid
    two.refresh()
    late, _ = meanwhile(lambda: two.set_traits(host, ["CUSTOM_LATE"]), lambda: one.put_inventory(host, "MEMORY_MB", 1))
    assert isinstance(late, GenerationConflict)
    two.refresh()
    two.check()
    assert (set(two[host].traits), set(two[host].inventories)) == (set(), {"VCPU", "MEMORY_MB"})


@pytest.mark.parametrize("kind", ["trait", "resource class"])
@pytest.mark.parametrize("first", ["edit", "removal"])
def test_name_is_not_removed_under_who_takes_it_into_use(nodes, kind, first, meanwhile):
    with PlacementTree.open(nodes[0], strict=True) as one, PlacementTree.open(nodes[1], strict=True) as two:
        host = one.add(*new("h")).uuid
        name = f"CUSTOM_{uuid.uuid4().hex.upper()}"
        add, remove = (
            (one.names.add_trait, two.names.remove_trait)
            if kind == "trait"
            else (one.names.add_resource_class, two.names.remove_resource_class)
        )
        add(name)
        two.refresh()
        edit = (lambda: one.set_traits(host, [name])) if kind == "trait" else (lambda: one.put_inventory(host, name, 1))
        removal = lambda: remove(name)  # noqa: E731
        if first == "edit":
            late, _ = meanwhile(removal, edit)
            assert isinstance(late, InUse)
        else:
            late, _ = meanwhile(edit, removal)
            assert isinstance(late, InvalidProvider | NameNotFound)
        one.refresh()
        known = one.names.traits() if kind == "trait" else one.names.resource_classes()
        used = one[host].traits if kind == "trait" else one[host].inventories
        assert (name in known) == (name in used) == (first == "edit")


def test_directory_knows_where_a_record_may_be(nodes, meanwhile):
    """One says that the record stays on its host, as it believes; the other, that it has left there."""
    directories = [InstanceDirectory(node) for node in nodes[:2]]
    instance, old, host = fresh(), *new("old", "new")
    entry = Entry(uuid=instance, cell="c1", project_id="p", host=old, created_at=now())
    directories[0].add([entry])
    directories[0].expect(instance, host=host)
    ready(nodes[1])
    meanwhile(
        lambda: directories[1].expect(instance, host=old),
        lambda: directories[0].settle(instance, tenant="p", host=host),
    )
    ready(nodes[1])
    assert directories[1].cells_of_host(old) == {"c1"}
    for directory in directories:
        directory.close()


def test_lease_is_taken_over_at_one_node(nodes, meanwhile):
    """Two find that its holder is dead."""
    name = f"volume/{fresh()}"
    dead = {"name": name, "owner": f"{process_identity().rpartition('/')[0]}/1", "expires": 0.0}
    with nodes[0].write() as connection:
        connection.execute(sa.insert(attachment_locks), dead)
    ready(nodes[1])
    leases = [Leases(node, patience=0.0) for node in nodes[:2]]
    with contextlib.ExitStack() as held:
        late, early = meanwhile(
            lambda: held.enter_context(leases[1].hold([name])), lambda: held.enter_context(leases[0].hold([name]))
        )
        assert isinstance(late, VolumeBusy)
        with nodes[1].read() as connection:
            (owner,) = connection.scalars(sa.select(attachment_locks.c.owner).where(attachment_locks.c.name == name))
        assert owner == early.owner
    for each in leases:
        each.close()


def test_leg_of_an_attachment_takes_one_step_at_a_time(nodes, meanwhile):
    """Even under one lease: its version is what both steps write."""
    with AttachmentManager(nodes[0], EmbeddedVolumes(nodes[0])) as manager:
        leg = manager.attach(manager.volumes.create_volume().id, fresh())
        journals = [Journal(node, now) for node in nodes[:2]]
        leases = Leases(nodes[0])
        with leases.hold([f"volume/{leg.volume_id}"]) as lease:
            ready(nodes[1])
            late, early = meanwhile(
                lambda: journals[1].advance(lease, leg, Event.DETACH, note="late"),
                lambda: journals[0].advance(lease, leg, Event.DETACH, note="early"),
            )
        assert isinstance(late, GenerationConflict)
        assert [line.note for line in journals[1].story(leg.id)][-1] == "early"
        assert early[0].version == journals[1].get(leg.id).version == leg.version + 1
        leases.close()
        assert manager.recover().complete
        assert manager.attachments() == ()


def test_no_step_is_written_under_a_lease_that_another_has(nodes):
    """Whoever took it has not gone on with the leg yet: its version is still what the former holder knows."""
    with AttachmentManager(nodes[0], EmbeddedVolumes(nodes[0])) as manager:
        leg = manager.attach(manager.volumes.create_volume().id, fresh())
        leases, journal = Leases(nodes[0]), Journal(nodes[1], now)
        with leases.hold([f"volume/{leg.volume_id}"]) as lease:
            taken = sa.update(attachment_locks).where(attachment_locks.c.name == lease.names[0])
            with nodes[0].write() as connection:
                connection.execute(taken.values(owner="elsewhere/1/2/3"))
            ready(nodes[1])
            with pytest.raises(GenerationConflict, match="lease"):
                journal.advance(lease, leg, Event.DETACH)
            with nodes[0].write() as connection:
                connection.execute(taken.values(owner=lease.owner))
        assert journal.get(leg.id) == leg
        leases.close()
        manager.detach(leg.id)
