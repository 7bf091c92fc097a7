"""Reschedules and attachments by schedulers and hosts of several nodes: nothing twice, nothing beyond, nothing lost."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from cloudcore import AllocationLedger
from cloudcore.attach import EmbeddedVolumes
from cloudcore.attach.lifecycle.rules import Limits
from cloudcore.attach.manager import AttachmentManager
from cloudcore.database import Operation
from cloudcore.errors import CloudcoreError, LimitExceeded, MaxRetriesExceeded
from cloudcore.placement import Selection, reschedule
from cloudcore.placement.hosts import HostGroup
from cloudcore.placement.hosts.selection import HostChoice
from cloudcore.placement.ledger import host_groups
from cloudcore.placement.ledger import moves as ledger_moves
from cloudcore.placement.ledger.writes import Target
from cloudcore.placement.rules.claims import Owner
from tests.engines.together import at_once, crossing, new

pytestmark = pytest.mark.xdist_group("galera")
ROUNDS = 6


def choice(root: str, provider: str | None = None) -> HostChoice:
    """One unit of *provider* on the host of *root*."""
    return HostChoice(root=root, name=root, cell="c", allocations={provider or root: {"VCPU": 1}})


def boot(ledger: AllocationLedger, *choices: HostChoice, group: HostGroup | None = None) -> Selection:
    """An instance on the first of *choices*, with the others as alternates, as a scheduler leaves it."""
    instance, first = str(uuid.uuid4()), choices[0]

    def work(session):
        if group is not None:
            host_groups.lock_group(session, group)
            host_groups.join(session, group, instance, first.root, host_groups.count_members(session, group))
        target = Target(allocations=first.allocations, owner=Owner(project_id="p", user_id="u"))
        ledger_moves.write(session, str(uuid.uuid4()), "claim", {instance: target}, history=False)
        return {}

    ledger.transact(Operation.of("test.boot", {"instance": instance}), work)
    return Selection(instance=instance, primary=first, alternates=choices[1:], project_id="p", user_id="u")


def test_reschedules_keep_the_policy_of_their_group(nodes, trees):
    """Two members fail at once; the first alternate of both is one host, of which each takes another half."""
    tree, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes]
    for _ in range(ROUNDS):
        nodes[1].engine.dispose()  # a session of the same slot of the change feed would conflict in any case
        a, b, wanted, *spare = (tree.add(name, inventory={"VCPU": 4}).uuid for name in new(*"abcde"))
        halves = [tree.add(name, parent=wanted, inventory={"VCPU": 4}).uuid for name in new("n0", "n1")]
        group = HostGroup(uuid=str(uuid.uuid4()), policy="anti-affinity")
        chosen = [
            boot(ledgers[0], choice(home), choice(wanted, half), choice(other), group=group)
            for home, half, other in zip((a, b), halves, spare, strict=True)
        ]
        nodes[1].ping()
        outcomes = crossing(*(lambda n=n: reschedule(ledgers[n], chosen[n], failed="x") for n in (0, 1)))  # noqa: B023
        assert not [outcome for outcome in outcomes if isinstance(outcome, CloudcoreError)], outcomes
        assert sum(outcome.choice.root == wanted for outcome in outcomes) == 1, outcomes
    ledgers[2].check()


def test_reschedules_fill_the_alternates_and_nothing_beyond(nodes, trees):
    """A host with nine instances dies; two others have room for three and for four. Two end without a host."""
    tree, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes]
    dead, first, second = (
        tree.add(name, inventory={"VCPU": room}).uuid for name, room in zip(new(*"abc"), (9, 3, 4), strict=True)
    )
    chosen = [boot(ledgers[0], choice(dead), choice(first), choice(second)) for _ in range(9)]
    nodes[1].ping()
    nodes[2].ping()
    outcomes = at_once(*(lambda n=n: reschedule(ledgers[n % 3], chosen[n], failed="no power") for n in range(9)))
    went = Counter(o.choice.root if not isinstance(o, CloudcoreError) else type(o) for o in outcomes)
    assert went == {first: 3, second: 4, MaxRetriesExceeded: 2}
    assert [ledgers[1].usages(provider=host).get("VCPU", 0) for host in (dead, first, second)] == [0, 3, 4]
    for number, outcome in enumerate(outcomes):
        held = {} if isinstance(outcome, CloudcoreError) else outcome.choice.allocations
        assert ledgers[2].allocations(chosen[number].instance) == held
    ledgers[0].check()


def test_one_failure_told_to_every_node_moves_on_once(nodes, trees):
    tree, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes]
    for _ in range(ROUNDS):
        hosts = [tree.add(name, inventory={"VCPU": 4}).uuid for name in new(*"abcd")]
        chosen, operation = boot(ledgers[0], *map(choice, hosts)), str(uuid.uuid4())
        nodes[1].ping()
        nodes[2].ping()
        outcomes = at_once(
            *(lambda each=each: reschedule(each, chosen, failed="x", operation_id=operation) for each in ledgers)  # noqa: B023
        )
        assert [outcome.choice.root for outcome in outcomes] == [hosts[1]] * 3, outcomes
        assert ledgers[1].allocations(chosen.instance) == {hosts[1]: {"VCPU": 1}}
    ledgers[2].check()


def test_failures_told_one_beside_the_other_hold_one_host(nodes, trees):
    """Without a common operation id each is a failure of its own: whoever comes later starts where the first ended."""
    tree, _ = trees
    ledgers = [AllocationLedger(database) for database in nodes]
    for _ in range(ROUNDS):
        hosts = [tree.add(name, inventory={"VCPU": 4}).uuid for name in new(*"abcd")]
        chosen = boot(ledgers[0], *map(choice, hosts))
        nodes[1].ping()
        nodes[2].ping()
        outcomes = at_once(*(lambda each=each: reschedule(each, chosen, failed="x") for each in ledgers))  # noqa: B023
        assert sorted(outcome.choice.root for outcome in outcomes) == sorted(hosts[1:]), outcomes
        assert ledgers[0].allocations(chosen.instance) == {hosts[3]: {"VCPU": 1}}
        assert [ledgers[1].usages(provider=host).get("VCPU", 0) for host in hosts] == [0, 0, 0, 1]
    ledgers[2].check()


def test_limit_of_an_instance_holds_on_every_node(nodes):
    """Three volumes at once by three nodes, of which the instance may have one."""
    managers = [
        AttachmentManager(database, EmbeddedVolumes(database), limits=Limits(per_instance=1)) for database in nodes
    ]
    for _ in range(3):
        made, who = [managers[0].volumes.create_volume().id for _ in managers], str(uuid.uuid4())
        for manager in managers:
            manager.attachments()
        outcomes = crossing(*(lambda m=m, v=v: m.attach(v, who) for m, v in zip(managers, made, strict=True)))  # noqa: B023
        refused = [type(outcome) for outcome in outcomes if isinstance(outcome, CloudcoreError)]
        assert refused == [LimitExceeded] * 2, outcomes
        assert len(managers[1].attachments(instance_id=who)) == 1
    for manager in managers:
        manager.check()
        manager.close()
