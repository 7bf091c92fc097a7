"""What a cell's table has: read from the database when it matters, and kept for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from cloudcore.database.driver_errors import misses_index, misses_name
from cloudcore.listing.query.compiled import FixedStatement
from cloudcore.listing.query.dialects import dialect_name
from cloudcore.listing.query.indexes import Index, IndexColumn, TableLayout

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect

__all__ = ["TableLayouts"]

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Run = Callable[[str, Any], Rows]

_COLUMNS_AND_INDEXES = FixedStatement(
    sa.text(
        "SELECT column_name, NULL, 0, NULL, NULL, NULL FROM information_schema.columns "
        "WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name "
        "UNION ALL SELECT column_name, index_name, seq_in_index, collation, sub_part, index_type "
        "FROM information_schema.statistics "
        "WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name ORDER BY 2, 3"
    )
)
_COLUMNS = {
    "sqlite": FixedStatement(sa.text("SELECT name FROM pragma_table_xinfo(:name, :schema)")),
    "postgresql": FixedStatement(
        sa.text(
            "SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relname = :name AND CASE WHEN CAST(:schema AS text) "
            "IS NULL THEN pg_table_is_visible(c.oid) ELSE c.relnamespace = CAST(:schema AS regnamespace) END"
        )
    ),
}


class TableLayouts:
    """The layouts of one database's tables, as far as they were read. Thread-safe: a race reads one of them twice.

    Args:
        clock: Monotonic seconds.
    """

    FRESH = 300.0
    """Seconds for which a layout is believed: then a column or an index may have been added."""

    __slots__ = ("_clock", "_known")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[sa.Table, tuple[float, TableLayout]] = {}

    def get(self, table: sa.Table) -> TableLayout | None:
        """The layout of *table*, None when it is not known or was read too long ago."""
        read, layout = self._known.get(table, (0.0, None))
        return layout if layout is not None and self._clock() - read < self.FRESH else None

    def put(self, table: sa.Table, layout: TableLayout) -> None:
        """It has just been read."""
        self._known[table] = self._clock(), layout

    def use(self, table: sa.Table, dialect: Dialect, run: Run, read: Callable[[TableLayout | None], T]) -> T:
        """Call *read*, which reads from *table*, with the table's layout; with None where that does not matter.

        When the database does not know a column or an index that was named, the layout is looked up anew and *read*
        called once more with it.

        Args:
            table: The table.
            dialect: The database's.
            run: Sends a statement: its text and parameters.
            read: Sends its statements the same way.
        """
        layout = self.get(table)
        if layout is None and dialect_name(dialect) not in _COLUMNS:
            layout = self._learn(table, dialect, run)
        try:
            return read(layout)
        except Exception as error:
            if not misses_name(error) or (fresh := self._learn(table, dialect, run)) is None:
                raise
            if fresh == layout and not misses_index(error):  # a column that only the caller's expression knows
                raise
        if fresh == layout:  # there is an index that must not be named
            fresh = TableLayout(fresh.names, ())
            self.put(table, fresh)
        return read(fresh)

    def _learn(self, table: sa.Table, dialect: Dialect, run: Run) -> TableLayout | None:
        """Look the layout up and keep it; None when there is no such table, which the database says better itself."""
        values = {"name": table.name, "schema": table.schema}
        columns = _COLUMNS.get(dialect_name(dialect))
        if columns is not None:
            layout = TableLayout((str(row[0]) for row in run(*columns.text(dialect, values))), ())
        else:
            layout = _layout(run(*_COLUMNS_AND_INDEXES.text(dialect, values)))
        if not layout.names:
            return None
        self.put(table, layout)
        return layout


def _layout(rows: Rows) -> TableLayout:
    """From rows of (column, index, place, collation, length, kind): of the table's columns, then index by index."""
    names: list[str] = []
    indexes: dict[str, list[IndexColumn]] = {}
    ended: set[str] = set()
    for column, index, _, collation, part, kind in rows:
        if index is None:
            names.append(column)
            continue
        held = indexes.setdefault(index, [])
        if kind != "BTREE" or column is None or part is not None:  # what comes after part of a value is in no order
            ended.add(index)
        if index not in ended:
            held.append(IndexColumn(column, descending=collation == "D"))
    return TableLayout(names, (Index(name, tuple(columns)) for name, columns in indexes.items()))
