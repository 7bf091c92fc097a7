"""The control-plane logic of a compute cloud, embedded in your own program.

Four classes carry it: :class:`CellRouter` lists instances over many cell databases, :class:`PlacementTree` finds hosts
that fit, :class:`AllocationLedger` decides who holds what, and :class:`AttachmentManager` attaches volumes. Importing
this package loads none of them; each loads when its name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloudcore._lazy import lazy_exports

if TYPE_CHECKING:
    from cloudcore.database import Database, open_engine
    from cloudcore.errors import CloudcoreError
    from cloudcore.schema import create_schema, upgrade_schema

__version__ = "0.1.0"

_EXPORTS = {
    "CloudcoreError": "cloudcore.errors",
    "Database": "cloudcore.database",
    "create_schema": "cloudcore.schema",
    "open_engine": "cloudcore.database",
    "upgrade_schema": "cloudcore.schema",
}

__all__ = ["CloudcoreError", "Database", "__version__", "create_schema", "open_engine", "upgrade_schema"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
