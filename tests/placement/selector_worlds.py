"""Small clouds for the tests of selections: hosts of two NUMA nodes in cells and racks, in a database."""

from __future__ import annotations

import random

from cloudcore.database import Database
from cloudcore.placement import AllocationLedger, HostSelector, Inventory, PlacementTree
from cloudcore.placement.hosts import spread
from tests.placement.ledger_worlds import uuid_of

FLAVOUR = "resources=DISK_GB:10&resources_cpu=VCPU:4,MEMORY_MB:1024&group_policy=none"
"""Four cores of one NUMA node: a host of two nodes with eight cores each holds four instances."""


class Cloud:
    """A tree, a ledger and a selector over one database."""

    def __init__(self, database: Database, **arguments: object) -> None:
        self.database = database
        self.tree = PlacementTree.open(database)
        self.ledger = AllocationLedger(database)
        arguments = {"weighers": [(1.0, spread())], "rng": random.Random(7), **arguments}
        self.selector = HostSelector(
            self.tree, self.ledger, cell_of=cell_of, domain_of=lambda root: rack_of(root.name), **arguments
        )

    def add_hosts(self, cells: int, hosts: int, *, racks: int = 2, cores: int = 8, contiguous: bool = False) -> None:
        drawn = PlacementTree()
        for cell in range(cells):
            for number in range(hosts):
                rack = number * racks // hosts if contiguous else number % racks
                name = f"c{cell}-r{rack}-h{number}"
                root = drawn.add(
                    name, uuid=uuid_of(name), inventory={"DISK_GB": 1000}, aggregates={uuid_of(rack_of(name))}
                )
                for node in range(2):
                    inventory = {"VCPU": Inventory(cores), "MEMORY_MB": 65536}
                    drawn.add(f"{name}-n{node}", uuid=uuid_of(f"{name}-n{node}"), parent=root, inventory=inventory)
        self.tree.load(drawn.as_placement())

    def select(self, count: int = 1, **arguments: object):
        return self.selector.select(FLAVOUR, count, project_id="p", user_id="u", **arguments)

    def host_of(self, consumer: str) -> str | None:
        """The name of the one host that a consumer holds, None if it holds nothing."""
        held = {self.tree.provider(provider).root for provider in self.ledger.allocations(consumer)}
        assert len(held) <= 1, f"{consumer} holds {held}"
        return self.tree.provider(held.pop()).name if held else None

    def check(self) -> None:
        self.ledger.check()
        self.tree.refresh()
        self.tree.check()

    def close(self) -> None:
        self.ledger.close()
        self.tree.close()


def cell_of(root) -> str | None:
    return root.name.split("-")[0] if root.name.startswith("c") else None


def rack_of(name: str) -> str:
    return "-".join(name.split("-")[:2])
