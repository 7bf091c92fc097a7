"""Which index of a cell's table gives the rows of a query in its order, and how far. Pure.

MariaDB and MySQL sort all rows that a query may return unless one index has the whole order: they do not go on from a
part of it, as PostgreSQL and SQLite do. Nova's tables have an index for the first key of an order and none that also
holds the last, the uuid; a page would cost a look at every row of the cell. So a cell is read in the order of as many
leading keys as an index has, and rows that are alike in these are put in order afterwards
(:mod:`cloudcore.listing.query.ties`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cloudcore.listing.query.order import Key

__all__ = ["Index", "IndexColumn", "Served", "TableLayout", "reaches", "serve"]


@attrs.frozen
class IndexColumn:
    """One column of an index.

    Attributes:
        name: Of the table's column.
        descending: Largest first.
    """

    name: str
    descending: bool = False


@attrs.frozen
class Index:
    """An index as far as it orders rows.

    Attributes:
        name: As the database calls it.
        columns: In order of weight, up to the first of which it does not hold the whole value. Where the database
            closes every index by the primary key, that too.
    """

    name: str
    columns: tuple[IndexColumn, ...]


class TableLayout:
    """What one cell's table has: cells are upgraded one by one, and owners add indexes. Immutable; cheap to compare.

    Args:
        names: Its columns.
        indexes: Its indexes.
    """

    __slots__ = ("_word", "indexes", "names")

    indexes: tuple[Index, ...]
    names: frozenset[str]

    def __init__(self, names: Iterable[str], indexes: Iterable[Index]) -> None:
        self.names = frozenset(names)
        self.indexes = tuple(sorted(indexes, key=lambda index: index.name))
        self._word = sys.intern(f"{sorted(self.names)}{self.indexes}")
        """Of many cells that are alike, all have the same object here."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableLayout) and self._word is other._word

    def __hash__(self) -> int:
        return hash(self._word)


@attrs.frozen
class Served:
    """How far an index has an order.

    Attributes:
        index: Its name.
        keys: Number of leading keys that it gives in order.
        alone: Whether no other index promises to find the rows of the query with less reading.
    """

    index: str
    keys: int
    alone: bool


def serve(
    keys: Sequence[Key],
    indexes: Iterable[Index],
    *,
    ordered: Collection[str],
    constant: Collection[str],
    narrowed: Collection[str],
) -> Served | None:
    """The index that has most of an order; None when none has its first key.

    Args:
        keys: The order.
        indexes: Those of the table.
        ordered: Columns that indexes hold in the order of the query, whatever the collation.
        constant: Columns that the query confines to one value each.
        narrowed: Columns that it confines somehow, so that another index might find the rows faster.
    """
    indexes = tuple(indexes)
    best: tuple[_Fit, Index] | None = None
    for index in indexes:
        fit = _fit(keys, index, ordered, constant)
        if fit.keys and (best is None or fit > best[0]):
            best = fit, index
    if best is None:
        return None
    fit, chosen = best
    used = {column.name for column in chosen.columns[: fit.columns]}
    rivals = set(narrowed) - used
    return Served(chosen.name, fit.keys, alone=not any(reaches(index, rivals, constant) for index in indexes))


def reaches(index: Index, wanted: Collection[str], constant: Collection[str]) -> bool:
    """Whether an index can be sought by one of the *wanted* columns: none but constant ones stand before it."""
    for column in index.columns:
        if column.name in wanted:
            return True
        if column.name not in constant:
            break
    return False


class _Fit(NamedTuple):
    """How well an index fits an order: the larger the better."""

    keys: int
    """Leading keys that it gives in order."""
    constant: int
    """Columns confined to one value that it seeks by."""
    columns: int
    """Its leading columns that matter."""


def _fit(keys: Sequence[Key], index: Index, ordered: Collection[str], constant: Collection[str]) -> _Fit:
    taken = seeking = used = 0
    reverse: bool | None = None
    for place, column in enumerate(index.columns):
        taken = _past(keys, taken, constant)
        if taken == len(keys):
            break
        key = keys[taken]
        if column.name in constant:
            seeking += 1
            continue
        turned = key.descending != column.descending
        if column.name != key.column or key.column not in ordered or reverse not in {None, turned}:
            break
        if reverse is not None and key.nullable and key.nulls_first == key.descending:
            break  # within an index NULL is the smallest value; for the first key, rows with NULL are read apart
        reverse, taken, used = turned, taken + 1, place + 1
    if reverse is None:
        return _Fit(0, 0, 0)
    return _Fit(_past(keys, taken, constant), seeking, used)


def _past(keys: Sequence[Key], taken: int, constant: Collection[str]) -> int:
    """Beyond the keys that are the same in all rows."""
    while taken < len(keys) and keys[taken].column in constant:
        taken += 1
    return taken
