"""Instances over many cells, listed as if they were in one. Names load when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloudcore.listing.cells.breakers import BreakerPolicy, BreakerState, BreakerView
    from cloudcore.listing.cells.cell import Cell
    from cloudcore.listing.cells.directory import Directory
    from cloudcore.listing.cells.hedging import HedgePolicy
    from cloudcore.listing.merge.streaming import Stream
    from cloudcore.listing.query.sources import RecordSource
    from cloudcore.listing.records.audit import Discrepancy, Finding
    from cloudcore.listing.records.directory import InstanceDirectory
    from cloudcore.listing.records.instances import CLOUDCORE_INSTANCES
    from cloudcore.listing.records.nova import NOVA_INSTANCES, NOVA_MIGRATIONS, NovaInstances
    from cloudcore.listing.records.nova_directory import NovaDirectory
    from cloudcore.listing.router import CellRouter
    from cloudcore.listing.store import InstanceStore
    from cloudcore.listing.tables import create_cell_tables, create_directory_tables
    from cloudcore.listing.values import (
        Answered,
        CellReport,
        CellState,
        CellStatus,
        Counts,
        Fetching,
        Page,
        Query,
        Record,
        Require,
        RouterStatus,
        Sort,
    )

_EXPORTS = {
    "Answered": "cloudcore.listing.values",
    "BreakerPolicy": "cloudcore.listing.cells.breakers",
    "BreakerState": "cloudcore.listing.cells.breakers",
    "BreakerView": "cloudcore.listing.cells.breakers",
    "CLOUDCORE_INSTANCES": "cloudcore.listing.records.instances",
    "Cell": "cloudcore.listing.cells.cell",
    "CellReport": "cloudcore.listing.values",
    "CellRouter": "cloudcore.listing.router",
    "CellState": "cloudcore.listing.values",
    "CellStatus": "cloudcore.listing.values",
    "Counts": "cloudcore.listing.values",
    "Directory": "cloudcore.listing.cells.directory",
    "Discrepancy": "cloudcore.listing.records.audit",
    "Fetching": "cloudcore.listing.values",
    "Finding": "cloudcore.listing.records.audit",
    "HedgePolicy": "cloudcore.listing.cells.hedging",
    "InstanceDirectory": "cloudcore.listing.records.directory",
    "InstanceStore": "cloudcore.listing.store",
    "NOVA_INSTANCES": "cloudcore.listing.records.nova",
    "NOVA_MIGRATIONS": "cloudcore.listing.records.nova",
    "NovaDirectory": "cloudcore.listing.records.nova_directory",
    "NovaInstances": "cloudcore.listing.records.nova",
    "Page": "cloudcore.listing.values",
    "Query": "cloudcore.listing.values",
    "Record": "cloudcore.listing.values",
    "RecordSource": "cloudcore.listing.query.sources",
    "Require": "cloudcore.listing.values",
    "RouterStatus": "cloudcore.listing.values",
    "Sort": "cloudcore.listing.values",
    "Stream": "cloudcore.listing.merge.streaming",
    "create_cell_tables": "cloudcore.listing.tables",
    "create_directory_tables": "cloudcore.listing.tables",
}

__all__ = [
    "CLOUDCORE_INSTANCES",
    "NOVA_INSTANCES",
    "NOVA_MIGRATIONS",
    "Answered",
    "BreakerPolicy",
    "BreakerState",
    "BreakerView",
    "Cell",
    "CellReport",
    "CellRouter",
    "CellState",
    "CellStatus",
    "Counts",
    "Directory",
    "Discrepancy",
    "Fetching",
    "Finding",
    "HedgePolicy",
    "InstanceDirectory",
    "InstanceStore",
    "NovaDirectory",
    "NovaInstances",
    "Page",
    "Query",
    "Record",
    "RecordSource",
    "Require",
    "RouterStatus",
    "Sort",
    "Stream",
    "create_cell_tables",
    "create_directory_tables",
]

__getattr__: Callable[[str], Any]
__dir__: Callable[[], list[str]]
__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
