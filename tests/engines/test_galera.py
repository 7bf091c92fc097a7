"""A Galera cluster written at every node: what two nodes may not both do, they do not both do.

A row lock holds on its own node only. Each test here lets two nodes decide at the same moment, from the same state, and
goes red when the write that guards the decision is taken out.
"""

from __future__ import annotations

import contextlib
import threading
import uuid

import pytest
import sqlalchemy as sa

from cloudcore import AllocationLedger, PlacementTree, create_schema
from cloudcore.attach import EmbeddedVolumes
from cloudcore.attach.volumes.values import Connector
from cloudcore.database import Database, Operation, hold
from cloudcore.errors import (
    CapacityExceeded,
    CloudcoreError,
    Conflict,
    GenerationConflict,
    GroupViolation,
)
from cloudcore.placement.hosts import HostGroup
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.writes import Target
from cloudcore.placement.rules.claims import Owner
from cloudcore.placement.tables import host_groups as groups_table
from tests import services
from tests.engines.storm import Storm, held
from tests.engines.together import at_once, crossing, new

pytestmark = pytest.mark.xdist_group("galera")
OWNER = {"project_id": "p", "user_id": "u"}


def sound(*trees) -> None:
    for tree in trees:
        tree.refresh()
        tree.check()


ROUNDS = 6


@pytest.mark.parametrize("below_one_root", [False, True])
def test_crossing_subtree_moves(nodes, trees, below_one_root):
    """X under Y's child on one node, Y under X's child on the other: at most one is acknowledged, and no cycle."""
    one, two = trees
    for _ in range(ROUNDS):
        nodes[1].engine.dispose()  # a session of the same slot of the change feed would conflict in any case
        names = new("r", "x", "x2", "y", "y2")
        root = one.add(names[0]).uuid if below_one_root else None
        x = one.add(names[1], parent=root).uuid
        x2 = one.add(names[2], parent=x).uuid
        y = one.add(names[3], parent=root).uuid
        y2 = one.add(names[4], parent=y).uuid
        two.refresh()
        outcomes = crossing(lambda: one.move(x, y2), lambda: two.move(y, x2))  # noqa: B023 - run at once
        assert sum(isinstance(outcome, CloudcoreError) for outcome in outcomes) >= 1, outcomes
        assert all(isinstance(o, GenerationConflict) for o in outcomes if isinstance(o, CloudcoreError)), outcomes
        sound(one, two)


def test_child_under_a_parent_that_moves(nodes, trees):
    one, two = trees
    done = 0
    for _ in range(ROUNDS):
        nodes[1].engine.dispose()
        names = new("x", "x2", "y", "c")
        x = one.add(names[0]).uuid
        x2 = one.add(names[1], parent=x).uuid
        y = one.add(names[2]).uuid
        two.refresh()
        outcomes = crossing(lambda: one.move(x, y), lambda: two.add(names[3], parent=x2))  # noqa: B023
        assert all(isinstance(o, GenerationConflict) for o in outcomes if isinstance(o, CloudcoreError)), outcomes
        done += sum(not isinstance(outcome, CloudcoreError) for outcome in outcomes)
        sound(one, two)
    assert done, "always refusing both would be no guard"


def place(ledger: AllocationLedger, group: HostGroup, root: str, half: str) -> str:
    """Claim a member's share of *half*, one of the providers below *root*, as the selector does."""
    instance, operation = str(uuid.uuid4()), str(uuid.uuid4())

    def work(session):
        host_groups.lock_group(session, group)
        host_groups.join(session, group, instance, root, host_groups.count_members(session, group))
        target = Target(allocations={half: {"VCPU": 1}}, owner=Owner(project_id="p", user_id="u"))
        ledger_moves.write(session, operation, "claim", {instance: target}, history=False)
        return {}

    ledger.transact(Operation.of("test.place", {"instance": instance}, operation), work)
    return instance


def test_group_over_the_halves_of_a_host(nodes, trees):
    """Two members of an anti-affinity group go to two NUMA nodes of one host: no inventory is shared, only the host."""
    one, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes[:2]]
    for _ in range(2 * ROUNDS):
        names = new("h", "n0", "n1")
        root = one.add(names[0]).uuid
        halves = [one.add(name, parent=root, inventory={"VCPU": 8}).uuid for name in names[1:]]
        group = HostGroup(uuid=str(uuid.uuid4()), policy="anti-affinity")
        with nodes[0].write() as connection:  # known beforehand: else the new row itself would keep them apart
            connection.execute(
                sa.insert(groups_table).values(uuid=group.uuid, policy=str(group.policy), max_per_host=1)
            )
        nodes[1].ping()
        outcomes = at_once(*(lambda n=n: place(ledgers[n], group, root, halves[n]) for n in (0, 1)))  # noqa: B023
        assert sorted(type(outcome) for outcome in outcomes if not isinstance(outcome, str)) == [GroupViolation]
    ledgers[0].check()


def test_one_operation_id_on_three_nodes(nodes, trees):
    one, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes]
    for _ in range(ROUNDS):
        host = one.add(*new("h"), inventory={"VCPU": 8}).uuid
        consumer, operation = str(uuid.uuid4()), str(uuid.uuid4())
        claims = [
            lambda ledger=ledger: ledger.claim(consumer, {host: {"VCPU": 3}}, operation_id=operation, **OWNER)  # noqa: B023
            for ledger in ledgers
        ]
        outcomes = at_once(*claims)
        assert not [outcome for outcome in outcomes if isinstance(outcome, CloudcoreError)], outcomes
        assert ledgers[2].usages(provider=host) == {"VCPU": 3}
        assert ledgers[2].allocations(consumer)[host] == {"VCPU": 3}
    ledgers[0].check()


def test_filled_to_the_last_unit_on_three_nodes(nodes, trees):
    one, _ = trees
    host = one.add(*new("h"), inventory={"VCPU": 30}).uuid
    ledgers = [AllocationLedger(database) for database in nodes]

    def fill(ledger: AllocationLedger) -> int:
        granted = 0
        while True:
            try:
                ledger.claim(str(uuid.uuid4()), {host: {"VCPU": 1}}, **OWNER)
            except CapacityExceeded:
                return granted
            granted += 1

    outcomes = at_once(*(lambda ledger=ledger: fill(ledger) for ledger in [*ledgers, *ledgers]))
    assert sum(outcomes) == 30, outcomes
    ledgers[1].check()


def test_one_move_begins_and_ends_once(nodes, trees):
    one, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes[:2]]
    for _ in range(ROUNDS):
        s, d, e = (one.add(name, inventory={"VCPU": 8}).uuid for name in new("s", "d", "e"))
        instance, first, second = (str(uuid.uuid4()) for _ in range(3))
        ledgers[0].claim(instance, {s: {"VCPU": 2}}, **OWNER)
        nodes[1].ping()
        begun = at_once(
            lambda: ledgers[0].begin_move(instance, first, {d: {"VCPU": 2}}),  # noqa: B023
            lambda: ledgers[1].begin_move(instance, second, {e: {"VCPU": 2}}),  # noqa: B023
        )
        (done,) = [outcome for outcome in begun if not isinstance(outcome, CloudcoreError)]
        ended = at_once(
            lambda: ledgers[0].confirm_move(done.migration),  # noqa: B023
            lambda: ledgers[1].revert_move(done.migration),  # noqa: B023
        )
        assert sum(isinstance(outcome, CloudcoreError) for outcome in ended) == 1, ended
    ledgers[1].check()


def test_exclusive_volume_is_mapped_once(nodes):
    """Two reservations of one volume, both mapped at the same moment by two nodes, whatever its status says."""
    first, second = (EmbeddedVolumes(database) for database in nodes[:2])
    connectors = [Connector(host=name, initiator=f"iqn.2026-01.org.example:{name}") for name in ("a", "b")]
    for turn in range(ROUNDS):
        volume = first.create_volume(1 << 20).id
        instance = str(uuid.uuid4())
        reserved = [first.reserve(volume, instance).id for _ in range(2)]
        if turn % 2:
            first.set_status(volume, "attaching")  # so that mapping it writes nothing new to the row
        second.volume(volume)
        outcomes = crossing(
            lambda: first.update(reserved[0], connectors[0]),  # noqa: B023
            lambda: second.update(reserved[1], connectors[1]),  # noqa: B023
        )
        assert [type(o) for o in outcomes if isinstance(o, CloudcoreError)] == [Conflict], outcomes


def test_held_row_is_held_on_every_node(nodes):
    """The guard by itself: as many versions as transactions that held the row."""
    with nodes[0].write() as connection:
        group = str(uuid.uuid4())
        connection.execute(sa.insert(groups_table).values(uuid=group, policy="affinity", max_per_host=1))
    nodes[1].ping()
    nodes[2].ping()

    def keep(database: Database) -> None:
        for _ in range(5):
            database.operate(
                Operation.of("test.hold", {}),
                lambda connection: hold(connection, groups_table, groups_table.c.uuid == group).version,
            )

    assert at_once(*(lambda database=database: keep(database) for database in nodes)) == [None] * 3
    with nodes[1].read() as connection:
        assert connection.scalar(sa.select(groups_table.c.version).where(groups_table.c.uuid == group)) == 15


def test_refresh_sees_what_another_node_acknowledged(trees, nodes):
    """The second node applies nothing for half a second; the reader waits for what it must see."""
    one, two = trees
    two.refresh()
    with nodes[1].engine.connect() as busy:
        busy.exec_driver_sql("FLUSH TABLES WITH READ LOCK")
        made = one.add(*new("seen"))
        releasing = threading.Timer(0.5, lambda: busy.exec_driver_sql("UNLOCK TABLES"))
        releasing.start()
        two.refresh()
        releasing.join()
    assert made.name in two


# ---- nodes that die and nodes that stop


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_node_that_goes_away_in_a_storm(fault):
    """Callers repeat with the same operation id at another node: nothing acknowledged is lost, nothing done twice."""
    cluster = services.galera(variant="storm")
    url = cluster.create_database()
    create_schema(url)
    addresses = [cluster.at(node, url) for node in range(3)]
    for address in addresses:  # has every table, before the first row that refers to one
        with Database(address) as database:
            database.ping()
    patience = {"connect_args": {"read_timeout": 4, "connect_timeout": 3}}
    with contextlib.ExitStack() as opened:
        databases = [opened.enter_context(Database(address, **patience)) for address in addresses]
        with PlacementTree.open(databases[0]) as tree:
            hosts = [tree.add(name, inventory={"VCPU": 100_000}).uuid for name in new(*"abcd")]
        with Storm([AllocationLedger(database) for database in databases], hosts) as storm:
            storm.goes_on()
            cluster.call(fault, 2)
            cluster.settle()
            storm.goes_on()
            cluster.call("restart" if fault == "kill" else "resume", 2)
            storm.goes_on()
    cluster.settle()
    for address in addresses:
        with Database(address) as database:
            assert held(database) == storm.acknowledged
            AllocationLedger(database).check()
    cluster.drop_database(url)
