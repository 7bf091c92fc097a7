"""What a page or a stream needs of its router."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs

from cloudcore.errors import InvalidArgument
from cloudcore.listing.query.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cloudcore.listing.cells.admission import Admission, Turn
    from cloudcore.listing.cells.directory import Directory
    from cloudcore.listing.query.prepared import PreparedQuery

__all__ = ["RouterServices"]

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class RouterServices:
    """What a call needs of its router."""

    start: Callable[[Callable[[], None]], None]
    clock: Callable[[], float]
    directory: Directory | None
    admission: Admission
    patience: float
    """Seconds that a call waits in line."""
    cursor_keys: tuple[bytes, ...] = ()

    def in_turn(self, cells: int, work: Callable[[Turn], T]) -> T:
        """What *work* gives, called when its turn to ask so many cells has come."""
        return self.admission.run(cells, self.patience, work)

    def settle(self, prepared: PreparedQuery, keys: Iterable[str]) -> Mapping[str, str]:
        """The cells that own records found in two.

        Raises:
            InvalidArgument: They are numbers that each cell has counted for itself: different records, not copies.
        """
        source = prepared.source
        if source.columns[source.key].kind is Kind.INTEGER:
            raise InvalidArgument(
                f"{source.name}: several cells have a record with {source.key} {next(iter(keys))}. Numbers that each "
                "cell counts for itself are no key over all of them: give RecordSource a key such as a UUID",
                field="key",
            )
        return {} if self.directory is None else self.directory.cells_of(keys)

    def owners(self, cells: int) -> Mapping[str, str]:
        """The records known to be in two cells now, with the cell that owns each."""
        return {} if self.directory is None or cells < 2 else self.directory.moving()
