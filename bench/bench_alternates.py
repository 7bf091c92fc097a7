"""Alternates: Nova 34's own loop beside ours, on the same hosts, cells and instances.

Both begin where hosts are filtered, weighed and claimed, and end with a list of hosts for each instance: that is what
Nova's `_get_alternate_hosts` does. The answers cannot be equal, since Nova gives many instances the same alternates;
what is compared before any time counts is that both obey the same rules, and ours deals as many different hosts as
there can be.
"""

from __future__ import annotations

from collections import Counter

from bench.harness import Bench
from cloudcore.placement.dealing import fall_backs
from cloudcore.placement.hosts import HostView
from cloudcore.placement.picks import Contender, Option, Pick
from cloudcore.placement.placing import Placement
from cloudcore.placement.residual import Residual, Room

AMOUNTS = {"VCPU": 2, "MEMORY_MB": 2048}
ROOMS = {"VCPU": Room(used=0, capacity=64), "MEMORY_MB": Room(used=0, capacity=262144)}


def world(hosts: int, cells: int, instances: int) -> tuple[Placement, Residual]:
    """What is known when the primaries are picked: the hosts in their order, the first ones picked."""
    contenders = [
        Contender(HostView(root=f"h{n}", name=f"h{n}", cell=f"c{n % cells}"), [Option(allocations={f"h{n}": AMOUNTS})])
        for n in range(hosts)
    ]
    picks = [
        Pick(host=host, option=next(iter(host.options)), weight=0.0, rank=rank)
        for rank, host in enumerate(contenders[:instances])
    ]
    residual = Residual(lambda _, resource_class: ROOMS[resource_class])
    for pick in picks:
        residual.take(pick.option.allocations)
    ranking = tuple((host, 0.0) for host in contenders)
    return Placement(picks=tuple(picks), refused={}, ranking=ranking), residual


def select(placement: Placement, residual: Residual, alternates: int) -> list[list[str]]:
    hands = fall_backs(placement, residual, alternates)
    return [
        [pick.host.view.name, *(other.host.view.name for other in hand)]
        for pick, hand in zip(placement.picks, hands, strict=True)
    ]


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


def main() -> None:
    with Bench("alternates") as bench:
        nova = bench.peer("nova", script="peer_nova_alternates.py")
        for hosts, cells, instances, must in ((1_000, 10, 100, 30), (10_000, 80, 100, None), (1_000, 1, 1, None)):
            nova.run("load", hosts=hosts, cells=cells, instances=instances)
            placement, residual = world(hosts, cells, instances)

            def equal(ours: list[list[str]], theirs: list[list[str]], hosts: int = hosts, cells: int = cells) -> bool:
                return same_rules(ours, theirs, hosts=hosts, cells=cells, alternates=3)

            def ours(placement: Placement = placement, residual: Residual = residual) -> list[list[str]]:
                return select(placement, residual, 3)

            bench.compare(
                f"{hosts} hosts, {cells} cells, {instances} instances, 3 alternates each",
                ours=ours,
                peer=nova.call("select", alternates=3),
                equal=equal,
                must=must,
            )


if __name__ == "__main__":
    main()
