"""What a router asks a directory: which cell owns a record, and which cells may hold a tenant's or a host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloudcore.database import Database
    from cloudcore.listing.query.sources import RecordSource

__all__ = ["Directory", "Entries"]


@attrs.frozen(kw_only=True)
class Entries:
    """How to list what a directory knows.

    Attributes:
        source: Its records, with a column ``cell``.
        database: Where they are.
        values: What ``cell`` holds for each cell asked for.
    """

    source: RecordSource
    database: Database
    values: Mapping[str, str]


@runtime_checkable
class Directory(Protocol):
    """What a router asks a directory. All methods may be called from several threads."""

    def cells_of_tenant(self, tenant: str) -> frozenset[str] | None:
        """Every cell that may hold live records of *tenant*; None when the directory cannot say."""

    def cells_of_host(self, host: str) -> frozenset[str] | None:
        """Every cell that may hold records on *host*; None when the directory cannot say."""

    def cells_of(self, uuids: Iterable[str]) -> Mapping[str, str]:
        """The cell that owns each of these; unknown ones are left out."""

    def moving(self) -> Mapping[str, str]:
        """Records that may be in two cells at present, with the cell that owns each."""

    def entries(self, cells: Iterable[str]) -> Entries | None:
        """What it knows of the records of these cells, to stand in for them; None when it cannot list."""
