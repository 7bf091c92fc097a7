"""The control-plane logic of a compute cloud, embedded in your own program.

Four classes carry it: :class:`CellRouter` lists instances over many cell databases, :class:`PlacementTree` finds hosts
that fit, :class:`AllocationLedger` decides who holds what, and :class:`AttachmentManager` attaches volumes. Importing
this package loads none of them; each loads when its name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.attach.manager import AttachmentManager
    from cloudcore.attach.volumes.cinder import CinderVolumes
    from cloudcore.attach.volumes.embedded import EmbeddedVolumes
    from cloudcore.database import Database, open_engine
    from cloudcore.errors import CloudcoreError
    from cloudcore.hypervisor.libvirt_adapter import LibvirtHypervisor
    from cloudcore.hypervisor.memory import MemoryHypervisor
    from cloudcore.listing.cells.cell import Cell
    from cloudcore.listing.records.directory import InstanceDirectory
    from cloudcore.listing.router import CellRouter
    from cloudcore.listing.store import InstanceStore
    from cloudcore.listing.values import Query, Sort
    from cloudcore.placement.allocation_ledger import AllocationLedger
    from cloudcore.placement.forest.values import Inventory
    from cloudcore.placement.hosts.selection import Selection
    from cloudcore.placement.requests.groups import RequestGroup
    from cloudcore.placement.requests.requests import ResourceRequest
    from cloudcore.placement.scheduling.rescheduling import reschedule
    from cloudcore.placement.scheduling.selector import HostSelector
    from cloudcore.placement.tree import PlacementTree
    from cloudcore.pruning import upkeep
    from cloudcore.schema import create_schema, upgrade_schema

__version__ = "0.1.0"

_EXPORTS = {
    "AllocationLedger": "cloudcore.placement.allocation_ledger",
    "AttachmentManager": "cloudcore.attach.manager",
    "Cell": "cloudcore.listing.cells.cell",
    "CellRouter": "cloudcore.listing.router",
    "CinderVolumes": "cloudcore.attach.volumes.cinder",
    "CloudcoreError": "cloudcore.errors",
    "Database": "cloudcore.database",
    "EmbeddedVolumes": "cloudcore.attach.volumes.embedded",
    "HostSelector": "cloudcore.placement.scheduling.selector",
    "InstanceDirectory": "cloudcore.listing.records.directory",
    "InstanceStore": "cloudcore.listing.store",
    "Inventory": "cloudcore.placement.forest.values",
    "LibvirtHypervisor": "cloudcore.hypervisor.libvirt_adapter",
    "MemoryHypervisor": "cloudcore.hypervisor.memory",
    "PlacementTree": "cloudcore.placement.tree",
    "Query": "cloudcore.listing.values",
    "RequestGroup": "cloudcore.placement.requests.groups",
    "ResourceRequest": "cloudcore.placement.requests.requests",
    "Selection": "cloudcore.placement.hosts.selection",
    "Sort": "cloudcore.listing.values",
    "create_schema": "cloudcore.schema",
    "open_engine": "cloudcore.database",
    "reschedule": "cloudcore.placement.scheduling.rescheduling",
    "upgrade_schema": "cloudcore.schema",
    "upkeep": "cloudcore.pruning",
}

__all__ = [
    "AllocationLedger",
    "AttachmentManager",
    "Cell",
    "CellRouter",
    "CinderVolumes",
    "CloudcoreError",
    "Database",
    "EmbeddedVolumes",
    "HostSelector",
    "InstanceDirectory",
    "InstanceStore",
    "Inventory",
    "LibvirtHypervisor",
    "MemoryHypervisor",
    "PlacementTree",
    "Query",
    "RequestGroup",
    "ResourceRequest",
    "Selection",
    "Sort",
    "__version__",
    "create_schema",
    "open_engine",
    "reschedule",
    "upgrade_schema",
    "upkeep",
]

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
