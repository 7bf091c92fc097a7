"""A preview shows what a selection would choose, and changes nothing."""

from __future__ import annotations

import pytest

from cloudcore.errors import InvalidRequest, NoValidHost
from cloudcore.placement import HostGroup, HostSelector
from tests.placement.ledger_worlds import uuid_of
from tests.placement.selector_worlds import FLAVOUR, Cloud, cell_of

pytestmark = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_previewed_is_what_is_selected(cloud: Cloud, count: int) -> None:
    cloud.add_hosts(2, 4)
    for _ in range(3):  # on an empty cloud, and on one that fills
        seen = cloud.selector.preview(FLAVOUR, count)
        assert cloud.selector.preview(FLAVOUR, count) == seen
        assert tuple(selection.choices for selection in cloud.select(count)) == seen


def test_it_claims_nothing_and_writes_nothing(cloud: Cloud) -> None:
    cloud.add_hosts(1, 2)
    cloud.select()
    with cloud.database.read() as connection:
        before = "\n".join(connection.connection.driver_connection.iterdump())
    cloud.selector.preview(FLAVOUR, 2, group=HostGroup(policy="anti-affinity", uuid=uuid_of("group")))
    with cloud.database.read() as connection:
        assert "\n".join(connection.connection.driver_connection.iterdump()) == before


def test_it_counts_with_others_with_groups_and_with_the_filters_of_the_call(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    group = HostGroup(policy="anti-affinity", uuid=uuid_of("group"))
    (member,) = cloud.select(group=group)
    seen = cloud.selector.preview(FLAVOUR, 3, group=group, partial=True, alternates=0)
    assert len(seen) == 2
    assert member.primary.name not in {choice.name for (choice,) in seen}
    with pytest.raises(NoValidHost):
        cloud.selector.preview(FLAVOUR, 3, group=group)
    with pytest.raises(NoValidHost) as refused:
        cloud.selector.preview(FLAVOUR, filters=[lambda host: "not today"])
    assert set(refused.value.report.refusals) == {"not today"}
    ((best, *_),) = cloud.selector.preview(FLAVOUR, weighers=[(100.0, lambda host: float(host.name == "c0-r0-h2"))])
    assert best.name == "c0-r0-h2"


@pytest.mark.parametrize("wrong", [{"count": 0}, {"alternates": -1}, {"group": "anti-affinity"}])
def test_what_is_malformed_is_refused(cloud: Cloud, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        cloud.selector.preview(FLAVOUR, **wrong)


def test_a_destination_names_its_migration_and_the_names_of_what_it_takes(cloud: Cloud) -> None:
    cloud.add_hosts(1, 3)
    (chosen,) = cloud.select()
    migration = uuid_of("migration")
    destination = cloud.selector.select_destination(chosen.instance, migration, FLAVOUR)
    assert (chosen.migration, destination.migration) == (None, migration)
    assert type(destination).from_json(destination.to_json()) == destination
    shown = destination._repr_html_()
    assert f"migration {migration} holds the source" in shown
    for choice in destination.choices:
        assert f"{choice.name}: 10 DISK_GB; {choice.name}-n" in shown
    assert not any(provider in shown for choice in destination.choices for provider in choice.allocations)


def test_a_fork_is_previewed_as_it_is(cloud: Cloud) -> None:
    """And the real tree selects as before."""
    cloud.add_hosts(1, 3)
    ((best, *_),) = cloud.selector.preview(FLAVOUR)
    fork = cloud.tree.what_if()
    fork.remove(best.root, recursive=True)
    imagined = HostSelector(fork, cloud.ledger, cell_of=cell_of).preview(FLAVOUR)
    assert best.root not in {choice.root for choice in imagined[0]}
    assert len(imagined[0]) == 2
    assert cloud.select()[0].primary == best
