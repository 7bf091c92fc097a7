"""Instances over many cells, listed as if they were in one. Names load when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.listing.breakers import BreakerPolicy, BreakerState, BreakerView
    from cloudcore.listing.cells import Cell
    from cloudcore.listing.directory import Directory, InstanceDirectory
    from cloudcore.listing.router import CellRouter
    from cloudcore.listing.sources import RecordSource
    from cloudcore.listing.store import InstanceStore
    from cloudcore.listing.tables import create_cell_tables, create_directory_tables
    from cloudcore.listing.values import CellReport, CellState, Counts, Page, Query, Record, Sort

_EXPORTS = {
    "BreakerPolicy": "cloudcore.listing.breakers",
    "BreakerState": "cloudcore.listing.breakers",
    "BreakerView": "cloudcore.listing.breakers",
    "Cell": "cloudcore.listing.cells",
    "CellReport": "cloudcore.listing.values",
    "CellRouter": "cloudcore.listing.router",
    "CellState": "cloudcore.listing.values",
    "Counts": "cloudcore.listing.values",
    "Directory": "cloudcore.listing.directory",
    "InstanceDirectory": "cloudcore.listing.directory",
    "InstanceStore": "cloudcore.listing.store",
    "Page": "cloudcore.listing.values",
    "Query": "cloudcore.listing.values",
    "Record": "cloudcore.listing.values",
    "RecordSource": "cloudcore.listing.sources",
    "Sort": "cloudcore.listing.values",
    "create_cell_tables": "cloudcore.listing.tables",
    "create_directory_tables": "cloudcore.listing.tables",
}

__all__ = [
    "BreakerPolicy",
    "BreakerState",
    "BreakerView",
    "Cell",
    "CellReport",
    "CellRouter",
    "CellState",
    "Counts",
    "Directory",
    "InstanceDirectory",
    "InstanceStore",
    "Page",
    "Query",
    "Record",
    "RecordSource",
    "Sort",
    "create_cell_tables",
    "create_directory_tables",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
