"""What a page or a stream needs of its router."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.listing.cells.directory import Directory

__all__ = ["RouterServices"]


@attrs.frozen(kw_only=True)
class RouterServices:
    """What a call needs of its router."""

    start: Callable[[Callable[[], None]], None]
    clock: Callable[[], float]
    directory: Directory | None
    cursor_keys: tuple[bytes, ...] = ()

    def settle(self, keys: Iterable[str]) -> Mapping[str, str]:
        """The cells that own records found in two."""
        return {} if self.directory is None else self.directory.cells_of(keys)

    def owners(self, cells: int) -> Mapping[str, str]:
        """The records known to be in two cells now, with the cell that owns each."""
        return {} if self.directory is None or cells < 2 else self.directory.moving()
