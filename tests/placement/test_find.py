"""Providers by filters, against an obvious reading of the rules; and one moment of providers and ledger together."""

from __future__ import annotations

import threading
import uuid as uuids
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from cloudcore.errors import CapacityExceeded, InvalidProvider, InvalidRequest, ProviderNotFound, UnsupportedFeature
from cloudcore.placement import AllocationLedger, PlacementTree, RequestGroup, prune_changes
from tests.placement import oracle
from tests.placement.ours import build
from tests.placement.worlds import Group, Provider, Request, World, cases

if TYPE_CHECKING:
    from cloudcore.database import Database


def meets(world: World, provider: Provider, group: Group) -> bool:
    """The rules for one provider by itself, one after the other."""
    return (
        all(oracle.fits(provider, name, amount) for name, amount in group.resources.items())
        and all(alternatives & provider.traits for alternatives in group.required)
        and not group.forbidden & provider.traits
        and all(alternatives & provider.aggregates for alternatives in group.member_of)
        and not group.not_member_of & provider.aggregates
        and (group.in_tree is None or oracle.in_tree_of(world, provider, group.in_tree))
    )


@given(case=cases())
def test_providers_are_found_by_the_rules_of_the_search(case: tuple[World, Request]) -> None:
    world, request = case
    tree = build(world)
    for group in request.groups.values():
        ours = RequestGroup(
            group.resources,
            group.required,
            forbidden=group.forbidden,
            member_of=group.member_of,
            not_member_of=group.not_member_of,
            in_tree=group.in_tree,
        )
        expected = {provider.name for provider in world.providers if meets(world, provider, group)}
        found = tree.find(ours)
        assert {provider.name for provider in found} == expected
        assert found == [provider for provider in tree if provider.name in expected]
        for provider in world.providers[:4]:
            whole = [each.name for each in tree.find(ours, name=provider.name, uuid=provider.uuid)]
            assert whole == ([provider.name] if provider.name in expected else [])


def test_names_and_uuids_must_both_fit() -> None:
    tree = PlacementTree()
    one, two = tree.add("one", inventory={"VCPU": 4}), tree.add("two")
    assert tree.find() == [one, two]
    assert tree.find(name="one", uuid=one.uuid.upper()) == [one]
    assert tree.find(name="one", uuid=two.uuid) == []
    assert tree.find(name="three") == tree.find(uuid=str(uuids.uuid4())) == []
    assert tree.find({"VCPU": 4}) == [one]
    assert tree.find({"VCPU": 5}) == tree.find({"VCPU": 4}, name="two") == []
    assert tree.find(RequestGroup(in_tree=one.uuid)) == [one]
    assert tree.find(RequestGroup(in_tree=str(uuids.uuid4()))) == []


def test_wrong_filters_are_refused() -> None:
    tree = PlacementTree(strict=True)
    with pytest.raises(InvalidProvider):
        tree.find(uuid="one")
    with pytest.raises(InvalidRequest):
        tree.find({"VCPU": 0})
    with pytest.raises(InvalidRequest, match="CUSTOM_MAIGC"):
        tree.find(RequestGroup(required=["CUSTOM_MAIGC"]))


# --- one moment ------------------------------------------------------------------------------------------------------


def test_a_snapshot_shows_one_moment_of_both(ledger_database: Database) -> None:
    """While claims, releases and edits go on, what providers say is in use is what the holders hold, in every look."""
    ledger = AllocationLedger(ledger_database)
    with PlacementTree.open(ledger_database) as tree, PlacementTree.open(ledger_database) as editor:
        hosts = [editor.add(f"h{number}", inventory={"VCPU": 8}).uuid for number in range(4)]
        stop = threading.Event()
        failures: list[Exception] = []

        def write(seed: int) -> None:
            number = seed
            while not stop.is_set():
                consumer, number = str(uuids.uuid5(uuids.NAMESPACE_OID, f"{seed}-{number}")), number + 1
                try:
                    ledger.claim(
                        consumer,
                        {hosts[number % 4]: {"VCPU": 1}, hosts[(number + 1) % 4]: {"VCPU": 2}},
                        project_id=f"p{seed}",
                        user_id="u",
                    )
                    if number % 3:
                        ledger.release(consumer)
                except CapacityExceeded:
                    continue
                except Exception as error:
                    failures.append(error)
                    raise

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
        for writer in writers:
            writer.start()
        try:
            for number in range(25):
                if number % 5 == 0:
                    editor.update("h0", name="h0", traits=[f"CUSTOM_{number}"])
                with tree.snapshot() as seen:
                    held = dict.fromkeys(hosts, 0)
                    for state in seen.ledger.consumers():
                        for host, amounts in state.allocations.items():
                            held[host] += amounts["VCPU"]
                    assert {host: seen.tree.usage(host)["VCPU"] for host in hosts} == held
                    assert {host: seen.ledger.usages(provider=host)["VCPU"] for host in hosts} == held
                    for host in hosts:
                        assert sum(holder.resources["VCPU"] for holder in seen.ledger.holders(host)) == held[host]
                    assert seen.tree["h0"].traits == {f"CUSTOM_{number - number % 5}"}
        finally:
            stop.set()
            for writer in writers:
                writer.join(30)
        assert not failures
        tree.refresh()
        tree.check()


def test_a_snapshot_stays_while_the_tree_goes_on(ledger_database: Database) -> None:
    ledger = AllocationLedger(ledger_database)
    with PlacementTree.open(ledger_database) as tree:
        host = tree.add("host", inventory={"VCPU": 8})
        consumer = str(uuids.uuid4())
        ledger.claim(consumer, {host.uuid: {"VCPU": 2}}, project_id="p", user_id="u")
        with tree.snapshot() as seen:
            assert seen.ledger.allocations(consumer) == {host.uuid: {"VCPU": 2}}
            ledger.release(consumer)
            tree.add("other")
            tree.refresh()
            assert seen.tree.usage("host") == {"VCPU": 2}
            assert "other" not in seen.tree
            assert [holder.consumer for holder in seen.ledger.holders(host.uuid)] == [consumer]
        assert tree.usage("host") == {"VCPU": 0}
        assert ledger.consumers() == []


def test_a_snapshot_reads_all_when_the_feed_was_pruned(ledger_database: Database) -> None:
    with PlacementTree.open(ledger_database) as tree, PlacementTree.open(ledger_database) as editor:
        for number in range(5):
            editor.add(f"h{number}", inventory={"VCPU": 8})
        ledger_database.run(lambda connection: prune_changes(connection, keep=0))
        with tree.snapshot() as seen:
            assert len(seen.tree) == 5
        assert len(tree) == 5
        tree.check()


def test_a_tree_in_memory_has_no_ledger() -> None:
    with pytest.raises(UnsupportedFeature), PlacementTree().snapshot():
        pass


# --- times -----------------------------------------------------------------------------------------------------------


def test_times_of_providers_are_the_databases(ledger_database: Database) -> None:
    with PlacementTree.open(ledger_database) as tree:
        hosts = [tree.add(f"h{number}", inventory={"VCPU": 8}) for number in range(3)]
        before = tree.times(hosts)
        assert all(times.created_at.tzinfo is not None for times in before.values())
        assert all(times.created_at == times.updated_at for times in before.values())
        tree.set_traits("h0", ["CUSTOM_A"])
        AllocationLedger(ledger_database).reshape({hosts[1].uuid: {"VCPU": 9}}, {})
        after = tree.times(["h0", "h1", "h2"])
        assert {uuid: times.created_at for uuid, times in after.items()} == {
            uuid: times.created_at for uuid, times in before.items()
        }
        moved = [after[host.uuid].updated_at > before[host.uuid].updated_at for host in hosts]
        assert moved == [True, True, False]
        with PlacementTree.open(ledger_database) as other:
            other.remove("h2")
        with pytest.raises(ProviderNotFound):
            tree.times(["h2"])
    with pytest.raises(UnsupportedFeature):
        PlacementTree().times([])
