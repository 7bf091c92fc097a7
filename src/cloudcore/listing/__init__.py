"""Instances over many cells, listed as if they were in one. Names load when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.listing.audit import Discrepancy, Finding
    from cloudcore.listing.breakers import BreakerPolicy, BreakerState, BreakerView
    from cloudcore.listing.cells import Cell
    from cloudcore.listing.directory import Directory, InstanceDirectory
    from cloudcore.listing.hedging import HedgePolicy
    from cloudcore.listing.nova import NOVA_INSTANCES, NOVA_MIGRATIONS, NovaDirectory, NovaInstances
    from cloudcore.listing.router import CellRouter
    from cloudcore.listing.sources import CLOUDCORE_INSTANCES, RecordSource
    from cloudcore.listing.store import InstanceStore
    from cloudcore.listing.streaming import Stream
    from cloudcore.listing.tables import create_cell_tables, create_directory_tables
    from cloudcore.listing.values import (
        Answered,
        CellReport,
        CellState,
        Counts,
        Fetching,
        Page,
        Query,
        Record,
        Require,
        Sort,
    )

_EXPORTS = {
    "Answered": "cloudcore.listing.values",
    "BreakerPolicy": "cloudcore.listing.breakers",
    "BreakerState": "cloudcore.listing.breakers",
    "BreakerView": "cloudcore.listing.breakers",
    "CLOUDCORE_INSTANCES": "cloudcore.listing.sources",
    "Cell": "cloudcore.listing.cells",
    "CellReport": "cloudcore.listing.values",
    "CellRouter": "cloudcore.listing.router",
    "CellState": "cloudcore.listing.values",
    "Counts": "cloudcore.listing.values",
    "Directory": "cloudcore.listing.directory",
    "Discrepancy": "cloudcore.listing.audit",
    "Fetching": "cloudcore.listing.values",
    "Finding": "cloudcore.listing.audit",
    "HedgePolicy": "cloudcore.listing.hedging",
    "InstanceDirectory": "cloudcore.listing.directory",
    "InstanceStore": "cloudcore.listing.store",
    "NOVA_INSTANCES": "cloudcore.listing.nova",
    "NOVA_MIGRATIONS": "cloudcore.listing.nova",
    "NovaDirectory": "cloudcore.listing.nova",
    "NovaInstances": "cloudcore.listing.nova",
    "Page": "cloudcore.listing.values",
    "Query": "cloudcore.listing.values",
    "Record": "cloudcore.listing.values",
    "RecordSource": "cloudcore.listing.sources",
    "Require": "cloudcore.listing.values",
    "Sort": "cloudcore.listing.values",
    "Stream": "cloudcore.listing.streaming",
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
    "Sort",
    "Stream",
    "create_cell_tables",
    "create_directory_tables",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
