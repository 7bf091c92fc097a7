"""Alternates: Nova 34's own loop beside ours, on the same hosts, cells and instances; then a rack is lost.

Both begin where hosts are filtered, weighed and claimed, and end with a list of hosts for each instance: that is what
Nova's `_get_alternate_hosts` does. The answers cannot be equal, since Nova gives many instances the same alternates;
what is compared before any time counts is that both obey the same rules, and ours deals as many different hosts as
there can be.
"""

from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.harness import Bench, Peer
from bench.options import options
from cloudcore import Database, create_schema
from cloudcore.errors import MaxRetriesExceeded
from cloudcore.placement import (
    AllocationLedger,
    HostChoice,
    HostSelector,
    PlacementTree,
    Selection,
    reschedule,
)
from cloudcore.placement.hosts import HostView
from cloudcore.placement.hosts.alternates import choose_alternates
from cloudcore.placement.hosts.assignment import Assignment
from cloudcore.placement.hosts.candidate_hosts import CandidateHost, Option, Pick, Ranked
from cloudcore.placement.hosts.remaining_capacity import RemainingCapacity, Room

AMOUNTS = {"VCPU": 2, "MEMORY_MB": 2048}
ROOMS = {"VCPU": Room(used=0, capacity=64), "MEMORY_MB": Room(used=0, capacity=262144)}


def world(hosts: int, cells: int, instances: int) -> tuple[Assignment, RemainingCapacity]:
    """What is known when the primaries are picked: the hosts in their order, the first ones picked."""
    candidate_hosts = [
        CandidateHost(
            HostView(root=f"h{n}", name=f"h{n}", cell=f"c{n % cells}"), [Option(allocations={f"h{n}": AMOUNTS})]
        )
        for n in range(hosts)
    ]
    picks = [
        Pick(host=host, option=next(iter(host.options)), weight=0.0, rank=rank)
        for rank, host in enumerate(candidate_hosts[:instances])
    ]
    remaining = RemainingCapacity(lambda _, resource_class: ROOMS[resource_class])
    for pick in picks:
        remaining.take(pick.option.allocations)
    ranking = [Ranked(host, 0.0, rank) for rank, host in enumerate(candidate_hosts)]
    return Assignment(picks=tuple(picks), refused={}, ranking=ranking, in_domains=False), remaining


def select(assignment: Assignment, remaining: RemainingCapacity, alternates: int) -> list[list[str]]:
    hands = choose_alternates(assignment, remaining, alternates)
    return [[one.host.view.name for one in (pick, *hand)] for pick, hand in zip(assignment.picks, hands, strict=True)]


def same_rules(ours: list[list[str]], theirs: list[list[str]], *, hosts: int, cells: int, alternates: int) -> bool:
    """Same primaries, as many alternates each, in the cell, selected for nobody; ours as different as possible."""
    primaries = {chosen[0] for chosen in ours}
    asked = Counter(int(chosen[0][1:]) % cells for chosen in ours)
    for mine, nova in zip(ours, theirs, strict=True):
        for chosen in (mine, nova):
            places = {int(name[1:]) % cells for name in chosen}
            if len(places) > 1 or len(set(chosen)) != len(chosen) or primaries & set(chosen[1:]):
                return False
        if mine[0] != nova[0] or len(mine) != len(nova):
            return False
    free = Counter(number % cells for number in range(hosts) if f"h{number}" not in primaries)
    possible = sum(min(free[cell], count * alternates) for cell, count in asked.items())
    return len({name for chosen in ours for name in chosen[1:]}) == possible


# --- a rack is lost ---------------------------------------------------------------------------------------------------

SPACE = uuid.UUID("00000000-0000-4000-8000-000000000000")


def uuid_of(name: str) -> str:
    return str(uuid.uuid5(SPACE, name))


class Cloud:
    """Hosts that hold two instances each, in a database; racks as the caller has them."""

    def __init__(self, url: str, hosts: int, cells: int, rack_of: Callable[[int], str]) -> None:
        self.database = Database(url, durable=False)
        create_schema(self.database, areas=["placement"])
        drawn = PlacementTree()
        for number in range(hosts):
            inventory = {name: 2 * amount for name, amount in AMOUNTS.items()}
            drawn.add(f"h{number}", uuid=uuid_of(f"h{number}"), inventory=inventory)
        self.tree = PlacementTree.open(self.database)
        self.tree.load(drawn.as_placement())
        self.ledger = AllocationLedger(self.database)
        self.cells = cells
        self.rack_of = rack_of

    def select(self, count: int, alternates: int) -> list[Selection]:
        """By our selector; hosts in the order of their numbers, as Nova's peer has them."""
        selector = HostSelector(
            self.tree,
            self.ledger,
            cell_of=lambda root: f"c{int(root.name[1:]) % self.cells}",
            domain_of=lambda root: self.rack_of(int(root.name[1:])),
            weighers=[(1.0, lambda host: -host.members), (1.0, lambda host: -float(host.name[1:]))],
        )
        request = "resources=" + ",".join(f"{name}:{amount}" for name, amount in AMOUNTS.items())
        return list(selector.select(request, count, alternates=alternates, project_id="p", user_id="u"))

    def claim(self, lists: list[list[str]]) -> list[Selection]:
        """Lists of names as selections, the first of each claimed."""
        selections = []
        for number, names in enumerate(lists):
            choices = [
                HostChoice(
                    root=uuid_of(name),
                    name=name,
                    cell=f"c{int(name[1:]) % self.cells}",
                    allocations={uuid_of(name): AMOUNTS},
                )
                for name in names
            ]
            instance = uuid_of(f"instance {number}")
            self.ledger.claim(instance, choices[0].allocations, project_id="p", user_id="u")
            selections.append(
                Selection(instance=instance, primary=choices[0], alternates=choices[1:], project_id="p", user_id="u")
            )
        return selections

    def lose(self, rack: str, selections: list[Selection]) -> tuple[int, int]:
        """How many instances were in the rack, and how many of them are on a living host of their cell afterwards."""
        dead = {choice.name for s in selections for choice in s.choices if self.rack_of(int(choice.name[1:])) == rack}
        hit = [selection for selection in selections if selection.primary.name in dead]
        return len(hit), sum(self._goes_on(selection, dead) for selection in hit)

    def _goes_on(self, selection: Selection, dead: set[str]) -> bool:
        choice = selection.primary
        while choice.name in dead:
            try:
                choice = reschedule(self.ledger, selection, failed="its rack is lost").choice
            except MaxRetriesExceeded:
                return False
        return choice.cell == selection.cell

    def close(self) -> None:
        self.ledger.check()
        self.ledger.close()
        self.tree.close()
        self.database.close()


def lose_a_rack(bench: Bench, nova: Peer, folder: Path) -> None:
    """100 instances on the first 100 of 1,000 hosts, all in the first rack of their cells."""
    hosts, cells, instances, alternates = 1_000, 10, 100, 3
    nova.run("load", hosts=hosts, cells=cells, instances=instances)
    racks: dict[str, Callable[[int], str]] = {
        "racks of 20 hosts side by side": lambda number: str(number // cells // 20),
        "hosts dealt over 5 racks": lambda number: str(number // cells % 5),
    }
    for name, rack_of in racks.items():
        clouds = [Cloud(f"sqlite:///{folder}/{name}-{whose}.db", hosts, cells, rack_of) for whose in ("ours", "nova")]
        ours = clouds[0].select(instances, alternates)
        theirs = clouds[1].claim(nova.run("select", alternates=alternates))
        if [one.primary.name for one in ours] != [one.primary.name for one in theirs]:
            raise AssertionError("not the same primaries: the lists cannot be compared")
        shares = []
        for cloud, selections in zip(clouds, (ours, theirs), strict=True):
            hit, saved = cloud.lose("0", selections)
            shares.append(saved / hit)
            cloud.close()
        bench.record(
            f"a rack of each of {cells} cells is lost, {name}: share of {hit} instances that go on in their cell",
            ours=shares[0],
            peer=shares[1],
            must=0.99,
            met=shares[0] >= 0.99,
        )


def main() -> None:
    with Bench("alternates", options()) as bench, tempfile.TemporaryDirectory() as folder:
        nova = bench.peer("nova", script="peer_nova_alternates.py")
        for hosts, cells, instances, must in ((1_000, 10, 100, 30), (10_000, 80, 100, None), (1_000, 1, 1, None)):
            if bench.quick and hosts > 1_000:
                continue
            nova.run("load", hosts=hosts, cells=cells, instances=instances)
            assignment, remaining = world(hosts, cells, instances)

            def equal(ours: list[list[str]], theirs: list[list[str]], hosts: int = hosts, cells: int = cells) -> bool:
                return same_rules(ours, theirs, hosts=hosts, cells=cells, alternates=3)

            def ours(assignment: Assignment = assignment, remaining: RemainingCapacity = remaining) -> list[list[str]]:
                return select(assignment, remaining, 3)

            bench.compare(
                f"{hosts} hosts, {cells} cells, {instances} instances, 3 alternates each",
                ours=ours,
                peer=nova.call("select", alternates=3),
                equal=equal,
                must=must,
            )
        lose_a_rack(bench, nova, Path(folder))


if __name__ == "__main__":
    main()
